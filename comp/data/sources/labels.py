"""Labels of a training table: the columns that hold them, and whether an image may have several."""

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from comp.config import CSVConfig
from comp.config.tasks import TASKS
from comp.data.sources.columns import configured_column, first_named, shown_columns
from comp.results import predictions
from comp.results.predictions import Targets
from comp.runtime.errors import DataError, plural
from comp.submission import csv_io, samples
from comp.submission.format import SampleSubmission

if TYPE_CHECKING:
    import pandas as pd

_LABEL_NAMES = ("label", "labels", "class", "class_name", "target", "category", "breed", "species", "diagnosis")
_SEPARATORS = ("|", ",", " ")  # tried in turn; names separated by one may contain the later ones
_MOST_GRADES = 20  # distinct values of a label column up to which fractions such as 0.5 may name classes
_TRUTHS = {"true": Decimal(1), "false": Decimal(0)}


@dataclass(frozen=True)
class Labels:
    """The labels of a table's rows.

    Attributes:
        targets: [N] int64 class indices, [N, K] float32 of 0 and 1, or [N] float32 numbers.
        classes: names in label order; of numbers, the column's name.
        task: `single_label`, `multi_label` or `regression`.
        columns: the table's label columns.
        separator: between several names in one label; empty if there is none.
        notes: how they were read.
        column: the column of names; empty if there is a column for each class.
        synonyms: columns that map one to one to it: each class's text, in label order.
    """

    targets: Targets
    classes: tuple[str, ...]
    task: str
    columns: tuple[str, ...]
    separator: str = ""
    notes: tuple[str, ...] = ()
    column: str = ""
    synonyms: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class _TrainingTable:
    """A training table and what helps to find its label columns; see `read_labels`."""

    cells: "pd.DataFrame"
    id_column: str
    config: CSVConfig
    sample: SampleSubmission | None
    path: Path

    @property
    def columns(self) -> list[str]:
        return [str(column) for column in self.cells.columns]

    @property
    def candidates(self) -> list[str]:
        """The columns that may hold labels: all but ids and groups."""
        return [column for column in self.columns if column not in (self.id_column, self.config.group_column)]


def read_labels(
    table: "pd.DataFrame", id_column: str, config: CSVConfig, sample: SampleSubmission | None, path: Path, task: str
) -> Labels:
    """Return the labels of a training table.

    Args:
        table: all cells as text.
        id_column: its column of ids.
        config: `data.csv`.
        sample: the sample submission, or None.
        path: of the table, for messages.
        task: `competition.task`; `auto`: infer it from the labels.

    Raises:
        DataError: no column can be determined, labels are missing, or they contradict the task.
    """
    context = _TrainingTable(table, id_column, config, sample, path)
    numeric = task != "auto" and TASKS[task].numeric
    if numeric and config.label_columns:
        raise DataError(f"{path}: data.csv.label_columns: task {task} reads one column of numbers; set label_column")
    columns = () if numeric else _find_flag_columns(context)
    if columns:
        return _read_flag_columns(context, columns, task)
    column = _find_label_column(context)
    if not column:
        raise DataError(
            f"{path}: cannot tell which of {len(table.columns)} columns ({shown_columns(context.columns)}) holds "
            "labels; set data.csv.label_column, or data.csv.label_columns for one column of 0 and 1 per class"
        )
    if column in (id_column, config.group_column):
        raise DataError(
            f"{path}: data.csv.label_column: '{column}' is also the column of "
            f"{'ids' if column == id_column else 'groups'}; name the column of labels"
        )
    if numeric or (task == "auto" and not config.separator and _holds_numbers(context, column)):
        return _read_numbers(context, column)
    labels = table[column].tolist()
    separator = _find_separator(labels, config.separator, task)
    if separator or task == "multi_label":
        return _read_lists(context, column, separator)
    _check_texts(labels, path, column)
    classes = order_classes(labels, sample)
    index_of = {name: index for index, name in enumerate(classes)}
    targets = np.array([index_of[label] for label in labels], np.int64)
    synonyms = _find_synonyms(table[context.candidates], column, classes)
    return Labels(targets, classes, "single_label", (column,), column=column, synonyms=synonyms)


def order_classes(names: Sequence[str], sample: SampleSubmission | None) -> tuple[str, ...]:
    """Return classes in label order: that of the sample's columns if it has one per class, else by value or text
    (`class_names.ordered`).
    """
    if sample is not None and len(sample.columns) > 1 and set(sample.columns) == set(names):
        return sample.columns
    return predictions.sort_classes(names)


def _find_label_column(table: _TrainingTable) -> str:
    """Return the label column: set in the config, else shared with the sample, else with a common name, else the only
    candidate; empty if none can be determined.
    """
    sample, candidates = table.sample, table.candidates
    shared = sample.columns if sample is not None and len(sample.columns) == 1 else ()
    label = configured_column(table.config.label_column, "label_column", table.columns, table.path)
    label = label or first_named([*shared, *_LABEL_NAMES], candidates)
    return candidates[0] if not label and len(candidates) == 1 else label


def _holds_numbers(table: _TrainingTable, column: str) -> bool:
    """Return whether a column holds numbers, not classes: fractions show it, if there are many or the sample's differ.

    Raises:
        DataError: few fractions, which may name classes.
    """
    texts = table.cells[column].unique().tolist()
    fractions = [text for text in texts if samples.is_fraction(samples.parse_number(text))]
    if len(fractions) > _MOST_GRADES:
        return True
    if not fractions or any(samples.parse_number(text) is None for text in texts):
        return False
    if table.sample is not None and len(table.sample.columns) == 1 and samples.find_fraction(table.sample, texts):
        return True
    raise DataError(
        f"{table.path}: column '{column}' holds {len(texts)} values such as {fractions[0]}, which may be numbers or "
        "classes; set competition.task to regression (predict a number), ordinal (classes in order) or single_label"
    )


def _read_numbers(table: _TrainingTable, column: str) -> Labels:
    numbers = [samples.parse_number(cell) for cell in table.cells[column].tolist()]
    with np.errstate(over="ignore"):  # infinity is refused
        targets = np.array([np.nan if number is None else float(number) for number in numbers]).astype(np.float32)
    wrong = np.flatnonzero(~np.isfinite(targets))
    if len(wrong):
        raise DataError(
            f"{table.path}: column '{column}': expected a number in every row, found {len(wrong):,} other cells, first "
            f"{table.cells[column].iloc[int(wrong[0])]!r} in row {int(wrong[0]) + 2}; correct or remove these rows, or "
            "set competition.task=single_label if the column holds names"
        )
    note = (
        f"labels: column '{column}' holds numbers from {targets.min():g} to {targets.max():g}: regression "
        "(competition.task)"
    )
    return Labels(targets, (column,), "regression", (column,), notes=(note,), column=column)


def _find_synonyms(table: "pd.DataFrame", column: str, classes: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return the columns whose texts map one to one to the labels: each class's text, in label order."""
    synonyms = {}
    for name in table.columns.drop(column):
        pairs = table[[column, name]].drop_duplicates()
        text_of = dict(zip(pairs[column], pairs[name], strict=True))
        if len(pairs) == len(text_of) == len(set(text_of.values())):
            synonyms[str(name)] = tuple(str(text_of[label]) for label in classes)
    return synonyms


def _find_flag_columns(table: _TrainingTable) -> tuple[str, ...]:
    """Return the columns of 0 and 1, one per class; empty if one column holds names."""
    config, sample = table.config, table.sample
    if config.label_columns:
        if len(set(config.label_columns)) < max(2, len(config.label_columns)):
            raise DataError(
                f"{table.path}: data.csv.label_columns: expected at least two different columns, one per class; a "
                "single one is data.csv.label_column"
            )
        for name in config.label_columns:
            configured_column(name, "label_columns", table.columns, table.path)
        return config.label_columns
    if config.label_column:
        return ()
    shared = sample.columns if sample is not None and len(sample.columns) > 1 else ()
    if sample is not None and shared and set(shared) <= set(table.columns) and _are_flags(table.cells, shared):
        _check_sample_classes(table, sample)
        return shared
    if _find_label_column(table):
        return ()
    candidates = table.candidates
    return tuple(candidates) if len(candidates) > 1 and _are_flags(table.cells, candidates) else ()


def _check_sample_classes(table: _TrainingTable, sample: SampleSubmission) -> None:
    """Refuse a sample that has columns for only some classes: every row has one 1, but not within its columns."""
    shared = sample.columns
    flags = _read_flags(table.cells, shared)
    rest = [name for name in table.candidates if name not in shared and _are_flags(table.cells, [name])]
    rest = [name for name in rest if not (_read_flags(table.cells, [name]).T @ flags).any()]
    complete = _read_flags(table.cells, [*shared, *rest])
    if rest and not (flags.sum(1) == 1).all() and (complete.sum(1) == 1).all():
        raise DataError(
            f"{sample.path}: has no column for {csv_io.list_some(rest)}, and with it every row of {table.path} has "
            "exactly one 1; complete the sample, or train only on its classes, as a multi-label task: "
            f"data.csv.label_columns=[{', '.join(shared[:3])}{', ...' if len(shared) > 3 else ''}]"
        )


def _read_flags(table: "pd.DataFrame", columns: Sequence[str]) -> NDArray[np.float64]:
    """Return the cells of columns of 0 and 1, [N, K]."""
    flags = [table[column].map(lambda cell: float(_flag(cell) or 0)) for column in columns]
    return np.stack(flags, 1).astype(np.float64)


def _are_flags(table: "pd.DataFrame", columns: Sequence[str]) -> bool:
    return all(_flag(cell) in (0, 1) for column in columns for cell in table[column].unique())


def _flag(cell: str) -> Decimal | None:
    """Return a cell's number, with pandas' `True` and `False` as 1 and 0; None if it is no number."""
    return _TRUTHS.get(cell.strip().lower(), predictions.parse_decimal(cell))


def _read_flag_columns(table: _TrainingTable, columns: Sequence[str], task: str) -> Labels:
    path = table.path
    for column in columns:
        wrong = [cell for cell in table.cells[column].unique() if _flag(cell) not in (0, 1)]
        if wrong:
            raise DataError(
                f"{path}: column '{column}': expected 0 or 1, found {wrong[0]!r}; correct data.csv.label_columns"
            )
    flags = _read_flags(table.cells, columns)
    counts = flags.sum(1)
    exclusive = bool((counts == 1).all())
    single = task != "auto" and not TASKS[task].target_columns
    if single and not exclusive:
        row = int(np.flatnonzero(counts != 1)[0])
        raise DataError(
            f"{path}: competition.task is {task}, and row {row + 2} has {int(counts[row])} labels; set "
            "competition.task=multi_label"
        )
    if exclusive and task != "multi_label":
        note = f"labels: {len(columns)} columns of 0 and 1, one 1 in every row: single_label"
        return Labels(flags.argmax(1).astype(np.int64), tuple(columns), "single_label", tuple(columns), notes=(note,))
    note = f"labels: {len(columns)} columns of 0 and 1, {counts.mean():.2f} labels per image: multi_label"
    return Labels(flags.astype(np.float32), tuple(columns), "multi_label", tuple(columns), notes=(note,))


def _find_separator(labels: Sequence[str], configured: str, task: str) -> str:
    """Return the separator of several names in a label; empty if labels are single names.

    Labels are split only if all parts of some label occur alone elsewhere (`Sugar beet` is one class), or if the task
    or the config demands it.
    """
    if task != "auto" and not TASKS[task].target_columns:
        return ""
    if configured:
        return configured
    texts = set(labels)
    for separator in _SEPARATORS:
        lists = [_split(text, separator) for text in texts if separator in text.strip()]
        alone = {text.strip() for text in texts if separator not in text.strip()}
        if lists and (task == "multi_label" or any(len(parts) > 1 and set(parts) <= alone for parts in lists)):
            return separator
    return ""


def _split(text: str, separator: str) -> list[str]:
    parts = text.split(separator) if separator else [text]
    return [part.strip() for part in parts if part.strip()]


def _read_lists(table: _TrainingTable, column: str, separator: str) -> Labels:
    lists = [_split(label, separator) for label in table.cells[column].tolist()]
    check_look([name for parts in lists for name in parts], f"{table.path}: column '{column}'")
    classes = order_classes([name for parts in lists for name in parts], table.sample)
    if len(classes) < 2:
        raise DataError(f"{table.path}: column '{column}': expected labels of two classes or more, found {classes}")
    index_of = {name: index for index, name in enumerate(classes)}
    flags = np.zeros((len(lists), len(classes)), np.float32)
    for row, parts in enumerate(lists):
        flags[row, [index_of[name] for name in parts]] = 1
    counts = flags.sum(1)
    how = f"separated by {separator!r}" if separator else "one per row"
    notes = [f"labels: column '{column}' holds {len(classes)} names {how}, {counts.mean():.2f} per image: multi_label"]
    if unlabelled := int((counts == 0).sum()):
        images = plural(unlabelled, "image has", "images have")
        notes.append(f"labels: {images} none, so a submission may have empty lists of labels")
    return Labels(flags, classes, "multi_label", (column,), separator, tuple(notes), column)


def _check_texts(labels: Sequence[str], path: Path, column: str) -> None:
    """Refuse rows without a label, and labels that differ only in spaces."""
    missing = [row for row, label in enumerate(labels) if not label.strip()]
    if missing:
        raise DataError(
            f"{path}: column '{column}': {plural(len(missing), 'row has', 'rows have')} no label, first row "
            f"{missing[0] + 2}; remove them, or set competition.task=multi_label if an image may have no label"
        )
    distinct = sorted(set(labels))
    stripped = {label.strip(): label for label in distinct}
    if len(stripped) < len(distinct):
        text = next(label for label in distinct if label != stripped[label.strip()])
        raise DataError(
            f"{path}: column '{column}': {text!r} and {stripped[text.strip()]!r} differ only in spaces; correct them"
        )
    check_look(distinct, f"{path}: column '{column}'")


def check_look(names: Iterable[str], where: str) -> None:
    """Refuse names that look alike because Unicode has two spellings for a letter: `é`, and `e` with an accent.

    Raises:
        DataError: names both; `where` begins the message.
    """
    distinct = sorted(set(names))
    composed = {unicodedata.normalize("NFC", name): name for name in distinct}
    if len(composed) < len(distinct):
        name = next(name for name in distinct if name != composed[unicodedata.normalize("NFC", name)])
        other = composed[unicodedata.normalize("NFC", name)]
        raise DataError(
            f"{where}: {name!a} and {other!a} look alike ({other}) and differ in their Unicode form; write "
            "both in one form, as unicodedata.normalize('NFC', name) does"
        )
