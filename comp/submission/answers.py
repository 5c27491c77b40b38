"""What a submission holds of each image: one row of `ANSWERS` each, how it is written, checked and read. Torch-free.

A cell is written by the same row that later checks and reads it. All cells are text, quoted as CSV where they need it.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from comp.results import predictions
from comp.results.predictions import Predictions
from comp.submission.format import SubmissionFormat

if TYPE_CHECKING:
    import pandas as pd

SHOWN = 5  # offending rows in a message
_SUM_TOLERANCE = 1e-3  # of a row of probabilities, each rounded to eight digits
_WHOLE = re.compile(r"0|[1-9][0-9]*")
NO_ANSWER = frozenset({"", "nan", "na", "n/a", "none", "null"})

Columns = list[list[str]]  # one list of cells for each answer column
Write = Callable[[Predictions, SubmissionFormat], Columns]
Problem = tuple[NDArray[np.bool_], str]  # rows that are wrong, and what every row should be
Check = Callable[["pd.DataFrame", SubmissionFormat], Problem]
Read = Callable[["pd.DataFrame", SubmissionFormat], NDArray[np.str_]]


def quoted(text: str) -> str:
    """Return a cell as a CSV holds it (RFC 4180)."""
    return '"' + text.replace('"', '""') + '"' if any(sign in text for sign in '",\r\n') else text


def _numbers(table: "pd.DataFrame", form: SubmissionFormat) -> NDArray[np.float64]:
    """Return the answer cells as numbers [N, columns]; NaN where a cell is none."""
    import pandas as pd

    columns = [pd.to_numeric(table[name], errors="coerce").to_numpy(np.float64) for name in form.columns]
    return np.stack(columns, 1)


def _cells(values: NDArray[np.float64]) -> Columns:
    return [[f"{value:.8g}" for value in column] for column in values.T.tolist()]


def _write_label(rows: Predictions, form: SubmissionFormat) -> Columns:
    assert rows.top1 is not None
    if form.wide:
        return _write_flags(rows, form)
    texts = [quoted(text) for text in form.texts]
    return [[texts[label] for label in rows.top1.tolist()]]


def _write_flags(rows: Predictions, form: SubmissionFormat) -> Columns:
    decided = rows.decisions()[:, form.column_classes()]
    return [["1" if flag else "0" for flag in column] for column in decided.T.tolist()]


def _write_labels(rows: Predictions, form: SubmissionFormat) -> Columns:
    if form.wide:
        return _write_flags(rows, form)
    decided = rows.decisions()
    if not form.may_be_empty:
        # Every training image has a class: where none reaches its threshold, the likeliest one is written.
        decided[np.arange(len(rows)), rows.outputs.argmax(1)] |= ~decided.any(1)
    return [[_joined(np.flatnonzero(row), form) for row in decided]]


def _joined(classes: NDArray[np.int64], form: SubmissionFormat) -> str:
    return quoted(form.separator.join(form.texts[number] for number in classes.tolist()))


def _write_probability(rows: Predictions, form: SubmissionFormat) -> Columns:
    assert form.positive is not None
    return _cells(rows.probabilities()[:, [form.positive]])


def _write_probabilities(rows: Predictions, form: SubmissionFormat) -> Columns:
    return _cells(rows.probabilities()[:, form.column_classes()])


def _write_value(rows: Predictions, form: SubmissionFormat) -> Columns:
    worth = predictions.class_values(form.texts)
    assert worth is not None
    values = rows.probabilities() @ np.array([float(value) for value in worth])
    return [[f"{value:.12g}" for value in values.tolist()]]


def _write_ranked(rows: Predictions, form: SubmissionFormat) -> Columns:
    order = np.argsort(-rows.outputs.astype(np.float32), axis=1, kind="stable")[:, : form.ranked]
    return [[_joined(row, form) for row in order]]


def _check_label(table: "pd.DataFrame", form: SubmissionFormat) -> Problem:
    if form.wide:
        numbers = _numbers(table, form)
        return np.asarray(
            ~(np.isin(numbers, (0, 1)).all(1) & (numbers.sum(1) == 1))
        ), "0 in all columns but one, and 1 in that"
    labels = table[form.columns[0]]
    known = form.texts or [cell for cell in labels.unique() if _may_be_label(cell, form)]
    return ~labels.isin(set(known)).to_numpy(), _labels_meant(form)


def _may_be_label(cell: str, form: SubmissionFormat) -> bool:
    return bool(cell.strip()) if form.any_text else bool(_WHOLE.fullmatch(cell))


def _labels_meant(form: SubmissionFormat) -> str:
    if form.texts == tuple(map(str, range(len(form.texts)))) and form.texts:
        return f"whole numbers from 0 to {len(form.texts) - 1}"
    if form.texts:
        return f"one of {', '.join(form.texts[:SHOWN])}{' ...' if len(form.texts) > SHOWN else ''}"
    return "names" if form.any_text else "whole numbers from 0"


def _check_labels(table: "pd.DataFrame", form: SubmissionFormat) -> Problem:
    if form.wide:
        return np.asarray(~np.isin(_numbers(table, form), (0, 1)).all(1)), "0 or 1 in every column"
    return _check_list(table, form, len(form.texts) or None)


def _check_ranked(table: "pd.DataFrame", form: SubmissionFormat) -> Problem:
    return _check_list(table, form, form.ranked)


def _check_list(table: "pd.DataFrame", form: SubmissionFormat, most: int | None) -> Problem:
    known, cells = set(form.texts), table[form.columns[0]]

    def right(cell: str) -> bool:
        if not cell:
            return form.may_be_empty
        parts = cell.split(form.separator)
        every = all(part in known if known else part.strip() for part in parts)
        return every and len(set(parts)) == len(parts) and (most is None or len(parts) <= most)

    valid = {cell: right(cell) for cell in cells.unique()}
    limit = f"at most {most} " if most and form.answer == "ranked" else ""
    empty = ", or nothing" if form.may_be_empty else ""
    meant = f"{limit}different labels parted by {form.separator!r}, each {_labels_meant(form)}{empty}"
    return ~cells.map(valid).to_numpy(bool), meant


def _check_shares(table: "pd.DataFrame", form: SubmissionFormat) -> Problem:
    numbers = _numbers(table, form)
    meant = "numbers from 0 to 1" if form.wide else "a number from 0 to 1"
    return np.asarray(~((numbers >= 0) & (numbers <= 1)).all(1)), meant


def _check_probabilities(table: "pd.DataFrame", form: SubmissionFormat) -> Problem:
    wrong, meant = _check_shares(table, form)
    wrong = wrong | ~(np.abs(_numbers(table, form).sum(1) - 1) <= _SUM_TOLERANCE)
    return wrong, f"{meant} that sum to 1"


def _check_value(table: "pd.DataFrame", form: SubmissionFormat) -> Problem:
    return np.asarray(~np.isfinite(_numbers(table, form)).all(1)), "a finite number"


def _read_cell(table: "pd.DataFrame", form: SubmissionFormat) -> NDArray[np.str_]:
    cells: NDArray[np.str_] = table[form.columns[0]].to_numpy().astype(np.str_)
    return cells


def _read_label(table: "pd.DataFrame", form: SubmissionFormat) -> NDArray[np.str_]:
    return _read_largest(table, form) if form.wide else _read_cell(table, form)


def _read_largest(table: "pd.DataFrame", form: SubmissionFormat) -> NDArray[np.str_]:
    largest: NDArray[np.str_] = np.array(form.column_texts(), np.str_)[_numbers(table, form).argmax(1)]
    return largest


def _read_flags(table: "pd.DataFrame", form: SubmissionFormat) -> NDArray[np.str_]:
    flags = _numbers(table, form) >= 0.5
    names = form.column_texts()
    return np.array([" ".join(name for name, flag in zip(names, row, strict=True) if flag) for row in flags], np.str_)


def _read_labels(table: "pd.DataFrame", form: SubmissionFormat) -> NDArray[np.str_]:
    if form.wide:
        return _read_flags(table, form)
    return np.array([" ".join(sorted(cell.split(form.separator))) for cell in _read_cell(table, form)])


def _read_probability(table: "pd.DataFrame", form: SubmissionFormat) -> NDArray[np.str_]:
    return np.where(_numbers(table, form)[:, 0] >= 0.5, "positive", "negative")


def _read_first(table: "pd.DataFrame", form: SubmissionFormat) -> NDArray[np.str_]:
    return np.array([cell.split(form.separator)[0] for cell in _read_cell(table, form)])


@dataclass(frozen=True)
class Answer:
    """A way to answer.

    Attributes:
        write: predictions -> cells of each answer column.
        check: a table's cells -> which rows are wrong, and what they should be.
        read: a valid table's cells -> each row's decision as text, to compare two submissions by.
        columns: how many answer columns it can have: `one`, `each` (one for each class) or `either`.
        graded: whether cells are numbers whose order counts, as for a metric of probabilities.
        one_class: whether a row decides on one class, so that the classes' shares can be compared with training's.
    """

    write: Write
    check: Check
    read: Read
    columns: str
    graded: bool = False
    one_class: bool = False


ANSWERS = {
    "label": Answer(_write_label, _check_label, _read_label, "either", one_class=True),
    "labels": Answer(_write_labels, _check_labels, _read_labels, "either"),
    "probability": Answer(_write_probability, _check_shares, _read_probability, "one", graded=True),
    "probabilities": Answer(
        _write_probabilities, _check_probabilities, _read_largest, "each", graded=True, one_class=True
    ),
    "independent": Answer(_write_probabilities, _check_shares, _read_flags, "each", graded=True),
    "value": Answer(_write_value, _check_value, _read_cell, "one", graded=True),
    "ranked": Answer(_write_ranked, _check_ranked, _read_first, "one", one_class=True),
}


def grades(table: "pd.DataFrame", form: SubmissionFormat) -> NDArray[np.float64]:
    """Return the numbers of a graded answer's cells [N, columns]."""
    return _numbers(table, form)


def problems(table: "pd.DataFrame", form: SubmissionFormat) -> list[str]:
    """Return what is wrong with the answer cells of a table that has the format's columns."""
    wrong, meant = ANSWERS[form.answer].check(table, form)
    if not wrong.any():
        return []
    rows = table[wrong]
    cells = rows[list(form.columns)]
    missing = int(cells.map(lambda cell: cell.strip().lower() in NO_ANSWER).any(axis=1).sum())
    empty = f", {missing:,} of them with an empty or NaN cell" if missing else ""
    keys: Sequence[str] = rows[form.id_column].head(SHOWN).tolist()
    if form.wide:
        shown = ", ".join(map(repr, keys))
    else:
        shown = ", ".join(f"{key!r}: {cell!r}" for key, cell in zip(keys, cells.iloc[:SHOWN, 0], strict=True))
    return [f"{form.answer}: {int(wrong.sum()):,} rows are not {meant}{empty}, first {shown}"]
