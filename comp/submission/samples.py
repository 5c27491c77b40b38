"""Sample submissions: find them in a competition's folder, read them, and interpret their cells. Torch-free."""

import re
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path

from comp.config.tasks import TASKS
from comp.results import predictions
from comp.results.metrics import metric
from comp.runtime.errors import SubmissionError, nearest
from comp.submission import csv_io
from comp.submission.format import Competition, SampleSubmission

# Names that competitions use: sample_submission.csv, sampleSubmission.csv, SampleSubmission.csv,
# sample_submission_v2.csv.
_NAME = re.compile(r".*sample[ _-]?submission.*\.(csv|csv\.zip|zip)", re.IGNORECASE)
_USUAL = "sample_submission.csv"
_AUTO = ("auto", _USUAL)  # the second was once the default, so it counts as `auto`

WHOLE = re.compile(r"0|[1-9][0-9]*", re.ASCII)
SEPARATORS = ("|", ", ", ",", " ")  # between labels in a cell
_EXPONENT = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)[eE][+-]?\d{1,3}", re.ASCII)
_AMBIGUOUS_NUMBER = re.compile(r"[+-]?\d+,\d+|[+-]?\d+([.,]\d+)? ?%", re.ASCII)
_MIN_WORDS = 3  # a text with this many words looks like a list


def find_sample(root: Path, name: str) -> tuple[Path | None, tuple[str, ...]]:
    """Return a competition's sample submission, None if there is none, and notes on candidates that were not chosen.

    Args:
        root: the folder of the competition's data.
        name: `data.csv.sample`: a file below `root`, `auto`, or empty for none.

    Raises:
        SubmissionError: the named file is missing, or there are several candidates.
    """
    if not name:
        return None, ()
    if name not in _AUTO:
        if not (root / name).is_file():
            tables = sorted(path.name for path in root.glob("*.csv*"))
            raise SubmissionError(
                f"{root / name}: no such sample submission (data.csv.sample){nearest(name, tables)}; the folder holds "
                f"{', '.join(tables) or 'no CSV'}"
            )
        return root / name, ()
    candidates = list_samples(root)
    usual = [path for path in candidates if path.name in (_USUAL, f"{_USUAL}.zip")]
    if len(candidates) > 1 and not usual:
        names = ", ".join(path.name for path in candidates)
        raise SubmissionError(f"{root}: several sample submissions: {names}; choose one with data.csv.sample")
    chosen = next(iter(usual or candidates), None)
    ignored = [path.name for path in candidates if path != chosen]
    notes = (f"sample submission: {chosen} is used, not {', '.join(ignored)} (data.csv.sample)",) if ignored else ()
    return chosen, notes


def list_samples(root: Path) -> list[Path]:
    """Return a folder's files with a usual name for sample submissions; a file takes precedence over its .zip."""
    candidates = sorted(path for path in root.glob("*") if path.is_file() and _NAME.fullmatch(path.name))
    plain = [path for path in candidates if path.suffix != ".zip"]
    names = {path.name for path in plain}
    return plain + [path for path in candidates if path.suffix == ".zip" and path.stem not in names]


def read_sample(path: Path) -> SampleSubmission:
    """Return a sample submission's columns, ids and cells.

    Raises:
        SubmissionError: the file cannot be read, has no answer column or no row, or repeats an id.
    """
    import pandas as pd

    table = csv_io.read_table(path, SubmissionError)
    header = tuple(map(str, table.columns))
    id_column, *columns = [column.strip() for column in header]
    table.columns = [id_column, *columns]
    if not columns:
        raise SubmissionError(f"{path}: expected an id column and at least one answer column, found only '{id_column}'")
    if len(set(columns)) < len(columns) or id_column in columns:
        raise SubmissionError(f"{path}: two columns have the same name; correct the header")
    ids = tuple(table[id_column].tolist())
    index = pd.Index(ids)
    if index.has_duplicates:
        duplicates = index[index.duplicated()].unique().tolist()
        unique = [name for name in columns if table[name].is_unique]
        cure = f"put the column of ids first, as '{unique[0]}'" if unique else "keep one row per id"
        raise SubmissionError(
            f"{path}: column '{id_column}', the first, which holds the ids: {len(duplicates):,} duplicate ids, first "
            f"{csv_io.list_some(duplicates)}; {cure}"
        )
    cells = tuple(zip(*(table[column].tolist() for column in columns), strict=True))
    return SampleSubmission(str(path), id_column, tuple(columns), ids, cells, header)


def parse_number(cell: str) -> Decimal | None:
    """Return the value of a plain decimal or one with an exponent, such as `5e-1`; None for any other text."""
    bare = cell.strip()
    return Decimal(bare) if _EXPONENT.fullmatch(bare) else predictions.parse_decimal(bare)


def is_fraction(value: Decimal | None) -> bool:
    """Return whether a value is a number but not a whole one."""
    return value is not None and value != value.to_integral_value()


def refuse_ambiguous_numbers(sample: SampleSubmission, competition: Competition) -> None:
    """Refuse cells such as `0,5` and `50%` that are not labels and may be numbers in another notation.

    Raises:
        SubmissionError: names the key that settles what a cell holds.
    """
    classes = set(competition.classes)
    may_list = TASKS[competition.task].target_columns or metric(competition.metric).ranked
    for cell in dict.fromkeys(cell for row in sample.cells for cell in row):
        is_list = may_list and set(cell.split(",")) <= classes
        if cell in classes or is_list or not _AMBIGUOUS_NUMBER.fullmatch(cell.strip()):
            continue
        raise SubmissionError(
            f"{sample.path}: {cell!r} may be a number with a decimal comma or a percentage; expected numbers such as "
            "0.5: set competition.submission.answer to what a cell holds, such as probability, probabilities, label "
            "or labels"
        )


def has_fractions(sample: SampleSubmission) -> bool:
    """Return whether any cell holds a fraction."""
    return any(is_fraction(parse_number(cell)) for row in sample.cells for cell in row)


def find_fraction(sample: SampleSubmission, classes: Sequence[str]) -> str:
    """Return the first cell of a single answer column that is a fraction but not a label; empty if there is none."""
    label_values = set(predictions.class_values(classes) or ())
    cells = (cell for (cell,) in sample.cells if cell not in classes)
    return next((cell for cell in cells if is_fraction(value := parse_number(cell)) and value not in label_values), "")


def is_one_hot(sample: SampleSubmission) -> bool:
    """Return whether every row of a wide sample holds exactly one 1 and otherwise 0."""
    rows = {tuple(parse_number(cell) for cell in row) for row in sample.cells}
    return all(set(row) <= {0, 1} and sum(cell for cell in row if cell) == 1 for row in rows)


def lists_labels(sample: SampleSubmission, classes: Sequence[str]) -> bool:
    """Return whether the cells list several different labels with one separator."""
    if len(sample.columns) > 1:
        return False
    labels = set(classes)
    cells = {cell for (cell,) in sample.cells if cell.strip() and cell not in labels}
    return bool(cells) and any(all(_is_list(cell, sign, labels) for cell in cells) for sign in SEPARATORS)


def _is_list(cell: str, separator: str, labels: set[str]) -> bool:
    parts = cell.split(separator)
    return len(parts) > 1 and len(set(parts)) == len(parts) and set(parts) <= labels


def refuse_ambiguous_list(sample: SampleSubmission, classes: Sequence[str]) -> None:
    """Refuse a placeholder that looks like a list of texts that are not labels.

    Raises:
        SubmissionError: names the key that settles what a cell holds.
    """
    cells = {cell.strip() for row in sample.cells for cell in row if cell.strip()}
    if len(sample.columns) > 1 or len(cells) != 1 or lists_labels(sample, classes) or cells <= set(classes):
        return
    (cell,) = cells
    if separator := find_separator(cell, classes):
        raise SubmissionError(
            f"{sample.path}: every row holds {cell!r}, which may be a list separated by {separator!r}; set "
            "competition.submission.answer to ranked (the most likely classes) or label (one class)"
        )


def find_separator(cell: str, classes: Sequence[str] = ()) -> str:
    """Return the separator of a list of different texts: `|`, a comma, or spaces between three words or more.

    Empty if the cell is not a list, or if the separator occurs in a class name.
    """
    for separator in SEPARATORS:
        parts = cell.split(separator)
        min_parts = _MIN_WORDS if separator == " " else 2
        if len(parts) >= min_parts and all(parts) and len(set(parts)) == len(parts):
            return "" if any(separator in name for name in classes) else separator
    return ""
