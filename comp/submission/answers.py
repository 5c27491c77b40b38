"""The kinds of answers in a submission: each row of `ANSWERS` writes, checks and reads one kind. Torch-free.

All cells are text, quoted as CSV if necessary.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from comp.results import predictions
from comp.results.predictions import Predictions
from comp.runtime.errors import plural
from comp.submission.format import SubmissionFormat

if TYPE_CHECKING:
    import pandas as pd

SHOWN = 5  # invalid rows in a message
SUM_TOLERANCE = 1e-3  # for a row of probabilities, each rounded to eight digits
_WHOLE = re.compile(r"0|[1-9][0-9]*")
NO_ANSWER = frozenset({"", "nan", "na", "n/a", "none", "null"})

Columns = list[list[str]]  # one list of cells per answer column
Write = Callable[[Predictions, SubmissionFormat], Columns]
Problem = tuple[NDArray[np.bool_], str]  # which rows are invalid [N], and what was expected
Check = Callable[["pd.DataFrame", SubmissionFormat], Problem]
Read = Callable[["pd.DataFrame", SubmissionFormat], NDArray[np.str_]]


def quote_cell(text: str) -> str:
    """Return a cell quoted for CSV if necessary (RFC 4180)."""
    return '"' + text.replace('"', '""') + '"' if any(character in text for character in '",\r\n') else text


def parse_numbers(table: "pd.DataFrame", form: SubmissionFormat) -> NDArray[np.float64]:
    """Return the answer cells as numbers [N, columns]; NaN for any other text."""
    import pandas as pd

    columns = [pd.to_numeric(table[name], errors="coerce").to_numpy(np.float64) for name in form.columns]
    return np.stack(columns, 1)


def _format_numbers(values: NDArray[np.float64]) -> Columns:
    return [[f"{value:.8g}" for value in column] for column in values.T.tolist()]


def _write_label(rows: Predictions, form: SubmissionFormat) -> Columns:
    assert rows.top1 is not None
    if form.wide:
        return _write_flags(rows, form)
    texts = [quote_cell(text) for text in form.texts]
    return [[texts[label] for label in rows.top1.tolist()]]


def _write_flags(rows: Predictions, form: SubmissionFormat) -> Columns:
    decisions = rows.decisions()[:, form.column_classes()]
    return [["1" if flag else "0" for flag in column] for column in decisions.T.tolist()]


def _write_labels(rows: Predictions, form: SubmissionFormat) -> Columns:
    if form.wide:
        return _write_flags(rows, form)
    decisions = rows.decisions()
    if not form.may_be_empty:
        # Every training image has a class: if none reaches its threshold, the most likely one is written.
        decisions[np.arange(len(rows)), rows.outputs.argmax(1)] |= ~decisions.any(1)
    return [[_join_classes(np.flatnonzero(row), form) for row in decisions]]


def _join_classes(labels: NDArray[np.int64], form: SubmissionFormat) -> str:
    return quote_cell(form.separator.join(form.texts[label] for label in labels.tolist()))


def _write_probability(rows: Predictions, form: SubmissionFormat) -> Columns:
    assert form.positive is not None
    return _format_numbers(rows.probabilities()[:, [form.positive]])


def _write_probabilities(rows: Predictions, form: SubmissionFormat) -> Columns:
    return _format_numbers(rows.probabilities()[:, form.column_classes()])


def _write_value(rows: Predictions, form: SubmissionFormat) -> Columns:
    if rows.row.numeric:
        numbers = rows.whole_values() if form.whole else rows.values()
        return [[f"{value:.9g}" for value in numbers.tolist()]]
    class_values = predictions.class_values(form.texts)
    assert class_values is not None
    expectations = rows.probabilities() @ np.array([float(value) for value in class_values])  # [N]
    return [[f"{value:.12g}" for value in expectations.tolist()]]


def _write_ranked(rows: Predictions, form: SubmissionFormat) -> Columns:
    order = np.argsort(-rows.outputs.astype(np.float32), axis=1, kind="stable")[:, : form.ranked]
    return [[_join_classes(row, form) for row in order]]


def _check_label(table: "pd.DataFrame", form: SubmissionFormat) -> Problem:
    if form.wide:
        numbers = parse_numbers(table, form)
        one_hot = np.isin(numbers, (0, 1)).all(1) & (numbers.sum(1) == 1)
        return np.asarray(~one_hot), "one-hot: 1 in one column and 0 in the others"
    cells = table[form.columns[0]]
    may_be_label: Callable[[str], object] = str.strip if form.any_text else _WHOLE.fullmatch
    valid = form.texts or list(filter(may_be_label, cells.unique()))
    return ~cells.isin(set(valid)).to_numpy(), _describe_labels(form)


def _describe_labels(form: SubmissionFormat) -> str:
    if form.texts == tuple(map(str, range(len(form.texts)))) and form.texts:
        return f"whole numbers from 0 to {len(form.texts) - 1}"
    if form.texts:
        return f"one of {', '.join(form.texts[:SHOWN])}{' ...' if len(form.texts) > SHOWN else ''}"
    return "names" if form.any_text else "whole numbers from 0"


def _check_labels(table: "pd.DataFrame", form: SubmissionFormat) -> Problem:
    if form.wide:
        return np.asarray(~np.isin(parse_numbers(table, form), (0, 1)).all(1)), "0 or 1 in every column"
    return _check_list(table, form)


def _check_list(table: "pd.DataFrame", form: SubmissionFormat) -> Problem:
    max_labels = form.ranked if form.answer == "ranked" else len(form.texts) or None
    texts, cells = set(form.texts), table[form.columns[0]]

    def is_valid(cell: str) -> bool:
        if not cell:
            return form.may_be_empty
        parts = cell.split(form.separator)
        all_labels = all(part in texts if texts else part.strip() for part in parts)
        return all_labels and len(set(parts)) == len(parts) and (max_labels is None or len(parts) <= max_labels)

    valid = {cell: is_valid(cell) for cell in cells.unique()}
    limit = f"at most {max_labels} " if max_labels and form.answer == "ranked" else ""
    empty = ", or empty" if form.may_be_empty else ""
    expected = f"{limit}different labels separated by {form.separator!r}, each {_describe_labels(form)}{empty}"
    return ~cells.map(valid).to_numpy(bool), expected


def _check_independent(table: "pd.DataFrame", form: SubmissionFormat) -> Problem:
    numbers = parse_numbers(table, form)
    expected = "numbers from 0 to 1" if form.wide else "a number from 0 to 1"
    return np.asarray(~((numbers >= 0) & (numbers <= 1)).all(1)), expected


def _check_probabilities(table: "pd.DataFrame", form: SubmissionFormat) -> Problem:
    invalid, expected = _check_independent(table, form)
    invalid = invalid | ~(np.abs(parse_numbers(table, form).sum(1) - 1) <= SUM_TOLERANCE)
    return invalid, f"{expected} that sum to 1"


def _check_value(table: "pd.DataFrame", form: SubmissionFormat) -> Problem:
    numbers = parse_numbers(table, form)
    valid = np.isfinite(numbers) & ((numbers == np.round(numbers)) | (not form.whole))
    return np.asarray(~valid.all(1)), "a whole number" if form.whole else "a finite number"


def _read_cell(table: "pd.DataFrame", form: SubmissionFormat) -> NDArray[np.str_]:
    cells: NDArray[np.str_] = table[form.columns[0]].to_numpy().astype(np.str_)
    return cells


def _read_label(table: "pd.DataFrame", form: SubmissionFormat) -> NDArray[np.str_]:
    return _read_largest(table, form) if form.wide else _read_cell(table, form)


def _read_largest(table: "pd.DataFrame", form: SubmissionFormat) -> NDArray[np.str_]:
    largest: NDArray[np.str_] = np.array(form.column_texts(), np.str_)[parse_numbers(table, form).argmax(1)]
    return largest


def _read_flags(table: "pd.DataFrame", form: SubmissionFormat) -> NDArray[np.str_]:
    flags = parse_numbers(table, form) >= 0.5
    names = form.column_texts()
    return np.array([" ".join(name for name, flag in zip(names, row, strict=True) if flag) for row in flags], np.str_)


def _read_labels(table: "pd.DataFrame", form: SubmissionFormat) -> NDArray[np.str_]:
    if form.wide:
        return _read_flags(table, form)
    return np.array([" ".join(sorted(cell.split(form.separator))) for cell in _read_cell(table, form)])


def _read_probability(table: "pd.DataFrame", form: SubmissionFormat) -> NDArray[np.str_]:
    return np.where(parse_numbers(table, form)[:, 0] >= 0.5, "positive", "negative")


def _read_first(table: "pd.DataFrame", form: SubmissionFormat) -> NDArray[np.str_]:
    return np.array([cell.split(form.separator)[0] for cell in _read_cell(table, form)])


@dataclass(frozen=True)
class Answer:
    """A kind of answer.

    Attributes:
        write: predictions -> cells of each answer column.
        check: a table -> which rows are invalid, and what was expected.
        read: a valid table -> each row's decision as text, for comparing two submissions.
        columns: the number of answer columns: `one`, `each` (one per class) or `either`.
        graded: whether cells are numbers that can be ranked, as metrics of probabilities need.
        one_class: whether each row decides on one class, so that class frequencies can be compared with training.
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
    "probability": Answer(_write_probability, _check_independent, _read_probability, "one", graded=True),
    "probabilities": Answer(
        _write_probabilities, _check_probabilities, _read_largest, "each", graded=True, one_class=True
    ),
    "independent": Answer(_write_probabilities, _check_independent, _read_flags, "each", graded=True),
    "value": Answer(_write_value, _check_value, _read_cell, "one", graded=True),
    "ranked": Answer(_write_ranked, _check_list, _read_first, "one", one_class=True),
}
"""What each row is:

label: The most likely class, in one column or as 0 and 1 in a column for each class.
labels: All classes of the image, in one cell or as 0 and 1 in a column for each class.
probability: The probability of the positive class.
probabilities: The probability of each class, in a column each; a row sums to 1.
independent: The probability of each class, in a column each, from 0 to 1.
value: A number.
ranked: The most likely classes in order, in one cell.
"""


def check_answers(table: "pd.DataFrame", form: SubmissionFormat) -> list[str]:
    """Return the problems with the answer cells of a table that has the format's columns."""
    invalid, expected = ANSWERS[form.answer].check(table, form)
    if not invalid.any():
        return []
    rows = table[invalid]
    cells = rows[list(form.columns)]
    missing = int(cells.map(lambda cell: cell.strip().lower() in NO_ANSWER).any(axis=1).sum())
    empty = f", {missing:,} of them with an empty or NaN cell" if missing else ""
    ids: Sequence[str] = rows[form.id_column].head(SHOWN).tolist()
    if form.wide:
        examples = ", ".join(map(repr, ids))
    else:
        examples = ", ".join(f"{key!r}: {cell!r}" for key, cell in zip(ids, cells.iloc[:SHOWN, 0], strict=True))
    wrong = plural(int(invalid.sum()), "row is", "rows are")
    return [f"{form.answer}: {wrong} not {expected}{empty}, first {examples}"]
