"""Checking a submission by a sample alone: what the sample does not show is noted, not refused. Torch-free.

A sample whose rows are all the same is a placeholder: it shows columns and ids, and neither which labels there are nor
whether a cell holds a label, a number or a list. Then the file's own cells say how they are meant and are held to it:
numbers among numbers, probabilities that sum to 1 where most rows do.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from comp.results import files, runs
from comp.runtime.errors import SubmissionError, UserError
from comp.submission import answers, csv_io, derive_format, sample_cells, samples
from comp.submission.answers import NO_ANSWER
from comp.submission.derive_format import Derived
from comp.submission.format import SampleSubmission, SubmissionFormat

if TYPE_CHECKING:
    import pandas as pd

_NEARLY_ONE = 0.01  # of a sample's rounded probabilities
_SUM_TOLERANCE = 1e-3  # as of `comp.submission.answers`
_MOST = 0.5  # of a file's rows, which show how it is meant
_CURE = "to check more, give --format CONFIG or keep the CSV's sidecar"


def from_sample(path: Path, submitted: Path) -> Derived:
    """Return the format that a sample submission shows, and what it leaves open as doubts.

    Args:
        path: of the sample.
        submitted: the CSV to check; its sidecar's format is taken where header and ids are the sample's.

    Raises:
        SubmissionError: one of them cannot be read.
    """
    sample, table = samples.read(path), csv_io.read(submitted)
    known, notes = _beside(sample, submitted)
    if known is not None:
        return Derived(known, (), notes)
    id_column, *columns = sample.written
    form = SubmissionFormat(id_column=id_column, columns=tuple(columns), listed_ids=sample.ids)
    given = table[columns] if set(columns) <= set(table.columns) and table.columns.is_unique else None
    derived = _wide(sample, form, given) if form.wide else _narrow(sample, form, given)
    return replace(derived, doubts=(*notes, *derived.doubts))


def _beside(sample: SampleSubmission, submitted: Path) -> tuple[SubmissionFormat | None, tuple[str, ...]]:
    """Return the format of a CSV's sidecar, None where there is none or it is of something else; and what to say."""
    import pandas as pd

    sidecar = runs.sidecar_path(submitted)
    if not sidecar.exists():
        return None, ()
    try:
        form = derive_format.from_json(files.read_json(sidecar).get("format", {}), sidecar)
    except UserError:
        return None, (f"{sidecar.name} is not used: it is no sidecar of a submission",)
    cells = pd.DataFrame(list(sample.cells), columns=list(sample.written[1:]), dtype=str)
    cells.insert(0, sample.written[0], list(sample.ids), allow_duplicates=True)
    same = form.id_column == sample.written[0] and sorted(form.columns) == sorted(sample.written[1:])
    if not same or set(form.ids().tolist()) != set(sample.ids):
        return None, (f"{sidecar.name} is not used: its header or ids are not those of {sample.path}",)
    if not sample.constant and answers.problems(cells, form):
        return None, (f"{sidecar.name} is not used: {sample.path} holds other answers than it says",)
    return form, (f"judged by {sidecar.name}, whose header and ids are those of {sample.path}",)


def _narrow(sample: SampleSubmission, form: SubmissionFormat, given: "pd.DataFrame | None") -> Derived:
    """Return how one answer column is meant."""
    seen = [cell for (cell,) in dict.fromkeys(sample.cells) if cell.strip()]
    blanks = len(seen) < len(set(sample.cells))
    held = [] if given is None else [cell for cell in given.iloc[:, 0].unique() if cell.strip()]
    if sample.constant:
        form = _by_placeholder(form, seen[0] if seen else "", held)
        doubts = [
            f"{sample.path} holds the same cell in every row, so it does not show what a cell holds; the file is read "
            f"as {_named(form)}; {_CURE}"
        ]
    else:
        form, doubts = _by_cells(form, seen), []
        sign = next((sign for sign in sample_cells.SEPARATORS if any(sign in cell for cell in seen)), "")
        if blanks and form.any_text and sign:
            form = replace(form, answer="labels", separator=sign)
        if form.answer == "value" and (odd := [cell for cell in held if _whole(cell) != _whole(seen[0])]):
            doubts = [f"cells such as {odd[0]!r} are not written like {seen[0]!r} in {sample.path}; {_CURE}"]
    if form.any_text and given is not None:
        doubts += _named_like_nothing(given.iloc[:, 0])
    return Derived(replace(form, may_be_empty=blanks and form.answer == "labels"), (), tuple(doubts))


def _named(form: SubmissionFormat) -> str:
    meant = {
        "label": "texts" if form.any_text else "class numbers", "probability": "probabilities", "value": "numbers",
        "labels": f"lists of labels parted by {form.separator!r}",
    }  # fmt: skip
    return meant[form.answer]


def _by_placeholder(form: SubmissionFormat, placeholder: str, held: Sequence[str]) -> SubmissionFormat:
    """Return how a file's cells are meant where the sample holds one cell alone."""
    value = sample_cells.number(placeholder)
    sign = sample_cells.list_sign(placeholder) or ("" if sample_cells.fractional(value) else _parted(held))
    if sign and any(sign in cell for cell in held):
        return replace(form, answer="labels", separator=sign, any_text=True)
    numbers = [cell for cell in held if sample_cells.number(cell) is not None]
    texts = [cell for cell in held if sample_cells.number(cell) is None and cell.strip().lower() not in NO_ANSWER]
    if (placeholder and value is None) or (not numbers and (texts or not placeholder)):
        return replace(form, any_text=True)
    if all(map(sample_cells.WHOLE.fullmatch, numbers)) and not sample_cells.fractional(value):
        return form
    return replace(form, answer="probability" if _are_shares(numbers) else "value")


def _are_shares(cells: Sequence[str]) -> bool:
    return all(0 <= (sample_cells.number(cell) or 0) <= 1 for cell in cells)


def _parted(held: Sequence[str]) -> str:
    """Return what parts lists of numbers; empty where cells are none. `0,5` may be one number, so it parts nothing."""
    for sign in ("|", " "):
        lists = [cell.split(sign) for cell in held]
        if any(len(parts) > 1 for parts in lists) and all(
            sample_cells.number(part) is not None for parts in lists for part in parts
        ):
            return sign
    return ""


def _by_cells(form: SubmissionFormat, seen: Sequence[str]) -> SubmissionFormat:
    """Return how cells are meant where the sample's vary."""
    numbers = [sample_cells.number(cell) for cell in seen]
    if any(number is None for number in numbers):
        return replace(form, any_text=True)
    if any(map(sample_cells.fractional, numbers)):
        return replace(form, answer="probability" if _are_shares(seen) else "value")
    return form if all(map(sample_cells.WHOLE.fullmatch, seen)) else replace(form, answer="value")


def _whole(cell: str) -> bool:
    return sample_cells.number(cell) is not None and not sample_cells.fractional(sample_cells.number(cell))


def _named_like_nothing(column: "pd.Series") -> list[str]:
    """Return the doubt that `nan` or `none` is a class."""
    rows = column[column.map(lambda cell: bool(cell.strip()) and cell.strip().lower() in NO_ANSWER)]
    if rows.empty:
        return []
    return [f"{len(rows):,} rows hold {rows.iloc[0]!r}, which is read as a label of that name, not as no answer"]


def _wide(sample: SampleSubmission, form: SubmissionFormat, given: "pd.DataFrame | None") -> Derived:
    """Return how a column for each class is meant.

    Raises:
        SubmissionError: the sample's cells are no numbers.
    """
    form = replace(form, texts=sample.columns)
    cells = {cell for row in sample.cells for cell in row if cell.strip()}
    if any(sample_cells.number(cell) is None for cell in cells):
        raise SubmissionError(
            f"{sample.path}: expected numbers in a column for each class, found {csv_io.some(sorted(cells))}"
        )
    numbers = np.array([[float(sample_cells.number(cell) or 0) for cell in row] for row in sample.cells])
    if not sample.constant:
        outside = bool(((numbers < 0) | (numbers > 1)).any())
        exclusive = bool((np.abs(numbers.sum(1) - 1) <= _NEARLY_ONE).all())
        return Derived(
            replace(form, answer="value" if outside else "probabilities" if exclusive else "independent"), (), ()
        )
    form = replace(form, answer=_by_rows(given))
    meant = {"labels": "0 and 1", "probabilities": "probabilities that sum to 1",
             "independent": "numbers from 0 to 1 that need not sum to 1", "value": "numbers"}  # fmt: skip
    doubt = (
        f"{sample.path} holds the same row for every id, so it does not show what a cell holds; the file is read as "
        f"{meant[form.answer]}; {_CURE}"
    )
    return Derived(form, (), (doubt,))


def _by_rows(given: "pd.DataFrame | None") -> str:
    """Return how most rows of a file are meant."""
    import pandas as pd

    if given is None:
        return "independent"
    columns = [pd.to_numeric(given[name], errors="coerce").to_numpy(np.float64) for name in given.columns]
    numbers: NDArray[np.float64] = np.stack(columns, 1)
    numbers = numbers[np.isfinite(numbers).all(1)]
    if not len(numbers):
        return "independent"
    if np.isin(numbers, (0, 1)).all():
        return "labels"
    if ((numbers < 0) | (numbers > 1)).any(1).mean() > _MOST:
        return "value"
    sums_to_one = np.abs(numbers.sum(1) - 1) <= _SUM_TOLERANCE
    return "probabilities" if sums_to_one.mean() >= _MOST else "independent"
