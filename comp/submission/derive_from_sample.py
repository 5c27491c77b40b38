"""Derive a submission's format from a sample alone; open points are noted, not refused. Torch-free.

A sample whose rows are all the same is a placeholder: it shows columns and ids, but neither the labels nor whether a
cell holds a label, a number or a list. Then the majority of the submitted file's own cells decides how all of them are
read: numbers if there are numbers, probabilities that sum to 1 if most rows do.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from comp.results import files, runs
from comp.runtime.errors import SubmissionError, UserError
from comp.submission import answers, csv_io, samples
from comp.submission.answers import NO_ANSWER, SUM_TOLERANCE
from comp.submission.derive_format import DerivedFormat
from comp.submission.format import SampleSubmission, SubmissionFormat
from comp.submission.samples import is_fraction, parse_number

if TYPE_CHECKING:
    import pandas as pd

_SAMPLE_SUM_TOLERANCE = 0.01  # probabilities in a sample may be rounded
_MAJORITY = 0.5  # share of a file's rows
_HINT = "to check more, use --format CONFIG or keep the CSV's sidecar"


def derive_from_sample(path: Path, submitted: Path) -> DerivedFormat:
    """Return the format that a sample submission shows, with open points as assumptions.

    Args:
        path: the sample.
        submitted: the CSV to check; its sidecar's format is used if header and ids match the sample.

    Raises:
        SubmissionError: a file cannot be read.
    """
    sample, table = samples.read_sample(path), csv_io.read_strict(submitted)
    sidecar_format, notes = _read_matching_sidecar(sample, submitted)
    if sidecar_format is not None:
        return DerivedFormat(sidecar_format, (), notes)
    id_column, *columns = sample.full_header
    form = SubmissionFormat(id_column=id_column, columns=tuple(columns), listed_ids=sample.ids)
    cells = table[columns] if set(columns) <= set(table.columns) and table.columns.is_unique else None
    derived = _derive_wide(sample, form, cells) if form.wide else _derive_narrow(sample, form, cells)
    return replace(derived, assumptions=(*notes, *derived.assumptions))


def _read_matching_sidecar(
    sample: SampleSubmission, submitted: Path
) -> tuple[SubmissionFormat | None, tuple[str, ...]]:
    """Return the format in a CSV's sidecar, None if there is none or it does not match the sample, and notes."""
    import pandas as pd

    sidecar = runs.sidecar_path(submitted)
    if not sidecar.exists():
        return None, ()
    try:
        form = SubmissionFormat.from_json(files.read_json(sidecar).get("format", {}), sidecar)
    except UserError:
        return None, (f"{sidecar.name} is not used: it is not a submission's sidecar",)
    id_column, *columns = sample.full_header
    same_header = form.id_column == id_column and sorted(form.columns) == sorted(columns)
    if not same_header or set(form.ids().tolist()) != set(sample.ids):
        return None, (f"{sidecar.name} is not used: its header or ids differ from {sample.path}",)
    cells = pd.DataFrame(list(sample.cells), columns=columns, dtype=str)
    cells.insert(0, id_column, list(sample.ids), allow_duplicates=True)
    if not sample.is_placeholder and answers.check_answers(cells, form):
        return None, (f"{sidecar.name} is not used: {sample.path} holds another kind of answers",)
    return form, (f"checked against {sidecar.name}, whose header and ids match {sample.path}",)


def _derive_narrow(sample: SampleSubmission, form: SubmissionFormat, table: "pd.DataFrame | None") -> DerivedFormat:
    """Return the format for one answer column."""
    texts = [cell for (cell,) in dict.fromkeys(sample.cells) if cell.strip()]
    has_blanks = len(texts) < len(set(sample.cells))
    cells = [] if table is None else [cell for cell in table.iloc[:, 0].unique() if cell.strip()]
    if sample.is_placeholder:
        form = _read_as_file_does(form, texts[0] if texts else "", cells)
        assumptions = [
            f"{sample.path} holds the same cell in every row, so it does not show what a cell holds; the file is read "
            f"as {_describe_cells(form)}; {_HINT}"
        ]
    else:
        form, assumptions = _read_as_sample_does(form, texts), []
        separator = next((sign for sign in samples.SEPARATORS if any(sign in cell for cell in texts)), "")
        if has_blanks and form.any_text and separator:
            form = replace(form, answer="labels", separator=separator)
        different = [cell for cell in cells if _is_whole(cell) != _is_whole(texts[0])]
        if form.answer == "value" and different:
            assumptions = [
                f"cells such as {different[0]!r} are not written like {texts[0]!r} in {sample.path}; {_HINT}"
            ]
    if form.any_text and table is not None:
        assumptions += _note_labels_like_missing_values(table.iloc[:, 0])
    form = replace(form, may_be_empty=has_blanks and form.answer == "labels")
    return DerivedFormat(form, (), tuple(assumptions))


def _describe_cells(form: SubmissionFormat) -> str:
    if form.answer == "label":
        return "texts" if form.any_text else "class numbers"
    if form.answer == "labels":
        return f"lists of labels separated by {form.separator!r}"
    return {"probability": "probabilities", "value": "numbers"}[form.answer]


def _read_as_file_does(form: SubmissionFormat, placeholder: str, cells: Sequence[str]) -> SubmissionFormat:
    """Return the format that a file's cells suggest, because the sample holds the same cell in every row."""
    value = parse_number(placeholder)
    separator = samples.find_separator(placeholder) or ("" if is_fraction(value) else _number_separator(cells))
    if separator and any(separator in cell for cell in cells):
        return replace(form, answer="labels", separator=separator, any_text=True)
    numbers = [cell for cell in cells if parse_number(cell) is not None]
    has_texts = any(parse_number(cell) is None and cell.strip().lower() not in NO_ANSWER for cell in cells)
    if (placeholder and value is None) or (not numbers and (has_texts or not placeholder)):
        return replace(form, any_text=True)
    if all(map(samples.WHOLE.fullmatch, numbers)) and not is_fraction(value):
        return form
    return replace(form, answer="probability" if _are_probabilities(numbers) else "value")


def _are_probabilities(cells: Sequence[str]) -> bool:
    return all(0 <= (parse_number(cell) or 0) <= 1 for cell in cells)


def _number_separator(cells: Sequence[str]) -> str:
    """Return the separator of lists of numbers; empty if there are none. A comma does not count: `0,5` may be 0.5."""
    for separator in ("|", " "):
        lists = [cell.split(separator) for cell in cells]
        all_numbers = all(parse_number(part) is not None for parts in lists for part in parts)
        if all_numbers and any(len(parts) > 1 for parts in lists):
            return separator
    return ""


def _read_as_sample_does(form: SubmissionFormat, cells: Sequence[str]) -> SubmissionFormat:
    """Return the format that a sample with varying cells shows."""
    numbers = [parse_number(cell) for cell in cells]
    if any(number is None for number in numbers):
        return replace(form, any_text=True)
    if any(map(is_fraction, numbers)):
        return replace(form, answer="probability" if _are_probabilities(cells) else "value")
    return form if all(map(samples.WHOLE.fullmatch, cells)) else replace(form, answer="value")


def _is_whole(cell: str) -> bool:
    value = parse_number(cell)
    return value is not None and not is_fraction(value)


def _note_labels_like_missing_values(column: "pd.Series") -> list[str]:
    """Return a note if cells such as `nan` or `none` are read as class names."""
    rows = column[column.map(lambda cell: bool(cell.strip()) and cell.strip().lower() in NO_ANSWER)]
    if rows.empty:
        return []
    return [f"{len(rows):,} rows hold {rows.iloc[0]!r}, which is read as a label, not as a missing answer"]


def _derive_wide(sample: SampleSubmission, form: SubmissionFormat, table: "pd.DataFrame | None") -> DerivedFormat:
    """Return the format for one column per class."""
    form = replace(form, texts=sample.columns)
    texts = sorted({cell for row in sample.cells for cell in row if cell.strip()})
    if any(parse_number(cell) is None for cell in texts):
        raise SubmissionError(
            f"{sample.path}: expected numbers in one column per class, found {csv_io.list_some(texts)}"
        )
    if sample.is_placeholder:
        form = replace(form, answer=_majority_answer(table, form))
        content = {
            "labels": "0 and 1",
            "probabilities": "probabilities that sum to 1",
            "independent": "numbers from 0 to 1 that need not sum to 1",
            "value": "numbers",
        }[form.answer]
        assumption = (
            f"{sample.path} holds the same row for every id, so it does not show what a cell holds; the file is read "
            f"as {content}; {_HINT}"
        )
        return DerivedFormat(form, (), (assumption,))
    numbers = np.array([[float(parse_number(cell) or 0) for cell in row] for row in sample.cells])
    if ((numbers < 0) | (numbers > 1)).any():
        answer = "value"
    else:
        sums_to_one = bool((np.abs(numbers.sum(1) - 1) <= _SAMPLE_SUM_TOLERANCE).all())
        answer = "probabilities" if sums_to_one else "independent"
    return DerivedFormat(replace(form, answer=answer), (), ())


def _majority_answer(table: "pd.DataFrame | None", form: SubmissionFormat) -> str:
    """Return the answer that fits the majority of a file's rows."""
    if table is None:
        return "independent"
    numbers = answers.parse_numbers(table, form)
    numbers = numbers[np.isfinite(numbers).all(1)]
    if not len(numbers):
        return "independent"
    if np.isin(numbers, (0, 1)).all():
        return "labels"
    if ((numbers < 0) | (numbers > 1)).any(1).mean() > _MAJORITY:
        return "value"
    sums_to_one = np.abs(numbers.sum(1) - 1) <= SUM_TOLERANCE
    return "probabilities" if sums_to_one.mean() >= _MAJORITY else "independent"
