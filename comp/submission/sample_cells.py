"""What a sample submission's cells show: numbers, fractions, one-hot rows, lists of labels. Torch-free."""

import re
from collections.abc import Sequence
from decimal import Decimal

from comp.config.tasks import TASKS
from comp.results import predictions
from comp.results.metrics import metric
from comp.runtime.errors import SubmissionError
from comp.submission.format import Competition, SampleSubmission

WHOLE = re.compile(r"0|[1-9][0-9]*", re.ASCII)
_EXPONENT = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)[eE][+-]?\d{1,3}", re.ASCII)
_FOREIGN = re.compile(r"[+-]?\d+,\d+|[+-]?\d+([.,]\d+)? ?%", re.ASCII)
SEPARATORS = ("|", ", ", ",", " ")  # that samples part labels by
_WORDS = 3  # from which on a text parted by spaces looks like a list


def number(cell: str) -> Decimal | None:
    """Return the value of a sample's cell that is a plain decimal or has an exponent, such as `5e-1`; else None."""
    bare = cell.strip()
    return Decimal(bare) if _EXPONENT.fullmatch(bare) else predictions.parse_decimal(bare)


def fractional(value: Decimal | None) -> bool:
    """Tell whether a value is a number, and no whole one."""
    return value is not None and value != value.to_integral_value()


def refuse_foreign_numbers(sample: SampleSubmission, competition: Competition) -> None:
    """Refuse numbers that are written neither as comp writes them nor as labels: `0,5` and `50%`.

    Raises:
        SubmissionError: naming the key that says what is meant.
    """
    classes = set(competition.classes)
    lists = TASKS[competition.task].target_columns or metric(competition.metric).ranked
    for cell in dict.fromkeys(cell for row in sample.cells for cell in row):
        if cell in classes or not _FOREIGN.fullmatch(cell.strip()) or (lists and set(cell.split(",")) <= classes):
            continue
        raise SubmissionError(
            f"{sample.path}: holds {cell!r}, which may be a number with a decimal comma or a percentage; numbers are "
            "written as 0.5: say what a cell holds with competition.submission.answer, such as probability, "
            "probabilities, label or labels"
        )


def holds_fractions(sample: SampleSubmission) -> bool:
    return any(fractional(number(cell)) for row in sample.cells for cell in row)


def fraction_that_is_no_label(sample: SampleSubmission, classes: Sequence[str]) -> str:
    worth = set(predictions.class_values(classes) or ())
    cells = (cell for (cell,) in sample.cells if cell not in classes)
    return next((cell for cell in cells if fractional(number(cell)) and number(cell) not in worth), "")


def one_hot(sample: SampleSubmission) -> bool:
    """Tell whether a wide sample's rows each hold one 1 and else 0."""
    rows = {tuple(number(cell) for cell in row) for row in sample.cells}
    return all(set(row) <= {0, 1} and sum(cell for cell in row if cell) == 1 for row in rows)


def lists_labels(sample: SampleSubmission, classes: Sequence[str]) -> bool:
    """Tell whether a sample's cells list several different labels, parted by one sign."""
    if len(sample.columns) > 1:
        return False
    cells, known = {cell for (cell,) in sample.cells if cell.strip() and cell not in classes}, set(classes)
    return bool(cells) and any(
        all(len(parts := cell.split(sign)) > 1 and len(set(parts)) == len(parts) and set(parts) <= known
            for cell in cells) for sign in SEPARATORS
    )  # fmt: skip


def refuse_unclear_list(sample: SampleSubmission, classes: Sequence[str]) -> None:
    """Refuse a placeholder that looks like a list of texts that are no labels, where nothing says that one is wanted.

    Raises:
        SubmissionError: naming the key.
    """
    cells = {cell.strip() for row in sample.cells for cell in row if cell.strip()}
    if len(sample.columns) > 1 or len(cells) != 1 or lists_labels(sample, classes) or cells <= set(classes):
        return
    (cell,) = cells
    if sign := list_sign(cell, classes):
        raise SubmissionError(
            f"{sample.path}: holds only {cell!r}, which may list labels parted by {sign!r}; say what a cell holds: "
            "competition.submission.answer=ranked for the likeliest few, or label for one"
        )


def list_sign(cell: str, classes: Sequence[str] = ()) -> str:
    """Return what parts a text into different ones, empty where it is no list: `|`, a comma, or spaces between three.

    A sign that a class holds parts nothing.
    """
    for sign in SEPARATORS:
        parts = cell.split(sign)
        least = _WORDS if sign == " " else 2
        if len(parts) >= least and all(parts) and len(set(parts)) == len(parts):
            return "" if any(sign in name for name in classes) else sign
    return ""
