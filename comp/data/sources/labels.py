"""Labels of a training table: which columns hold them, and whether an image may have several."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from comp.config import CSVConfig
from comp.data.sources.csv_tables import label_column_of, named_column
from comp.data.sources.samples import class_order
from comp.results import predictions
from comp.results.predictions import Targets
from comp.runtime.errors import DataError
from comp.submission import csv_io
from comp.submission.format import SampleSubmission

if TYPE_CHECKING:
    import pandas as pd

_SEPARATORS = ("|", ",", " ")  # tried in turn; a label that is parted by one may hold the later ones
_TRUTHS = {"true": Decimal(1), "false": Decimal(0)}


@dataclass(frozen=True)
class Labels:
    """The labels of a table's rows.

    Attributes:
        targets: [N] int64 class indices, or [N, K] float32 of 0 and 1.
        classes: names in label order.
        task: `single_label` or `multi_label`.
        columns: of the table, which held them.
        separator: what parted several names in one label; empty where nothing did.
        notes: how they were read.
        column: that holds the names; empty where there is a column for each class.
        synonyms: columns that go one to one with it: each class's text, in label order.
    """

    targets: Targets
    classes: tuple[str, ...]
    task: str
    columns: tuple[str, ...]
    separator: str = ""
    notes: tuple[str, ...] = ()
    column: str = ""
    synonyms: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def labels_of(
    table: "pd.DataFrame", id_column: str, config: CSVConfig, sample: SampleSubmission | None, path: Path, task: str
) -> Labels:
    """Return the labels of a training table.

    Args:
        table: all cells as text.
        id_column: its column of ids.
        config: `data.csv`.
        sample: the sample submission, None without one.
        path: of the table, for messages.
        task: `competition.task`; `auto`: as the labels show.

    Raises:
        DataError: no column can be determined, labels are missing, or they contradict the task.
    """
    columns = _flag_columns(table, id_column, config, sample, path)
    if columns:
        return _of_columns(table, columns, path, task)
    column = label_column_of(table, id_column, config, sample, path)
    if column in (id_column, config.group_column):
        raise DataError(
            f"{path}: data.csv.label_column: '{column}' is the column of {'ids' if column == id_column else 'groups'} "
            "too; name the one that holds the labels"
        )
    cells = table[column].tolist()
    separator = _separator(cells, config.separator, task)
    if separator or task == "multi_label":
        return _of_lists(cells, separator, sample, path, column)
    _refuse_unclear(cells, path, column)
    classes = class_order(cells, sample)
    numbers = {name: number for number, name in enumerate(classes)}
    others = table.drop(columns=[name for name in (id_column, config.group_column) if name])
    return Labels(
        np.array([numbers[cell] for cell in cells], np.int64), classes, "single_label", (column,), column=column,
        synonyms=_synonyms(others, column, classes),
    )  # fmt: skip


def _synonyms(table: "pd.DataFrame", column: str, classes: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return the columns whose texts go one to one with the labels: each class's text, in label order."""
    found = {}
    for name in table.columns.drop(column):
        pairs = table[[column, name]].drop_duplicates()
        texts = dict(zip(pairs[column], pairs[name], strict=True))
        if len(pairs) == len(texts) == len(set(texts.values())):
            found[str(name)] = tuple(str(texts[label]) for label in classes)
    return found


def _flag_columns(
    table: "pd.DataFrame", id_column: str, config: CSVConfig, sample: SampleSubmission | None, path: Path
) -> tuple[str, ...]:
    """Return the columns that hold 0 and 1, one for each class; empty where one column holds names."""
    if config.label_columns:
        if len(set(config.label_columns)) < max(2, len(config.label_columns)):
            raise DataError(
                f"{path}: data.csv.label_columns: expected two different columns or more, one for each class; a single "
                "one is data.csv.label_column"
            )
        for name in config.label_columns:
            named_column(name, "label_columns", [str(column) for column in table.columns], path)
        return config.label_columns
    if config.label_column:
        return ()
    shown = sample.columns if sample is not None and len(sample.columns) > 1 else ()
    if shown and set(shown) <= set(table.columns) and _are_flags(table, shown):
        _refuse_lost_classes(table, shown, (id_column, config.group_column), sample, path)
        return shown
    left = [str(column) for column in table.columns if column not in (id_column, config.group_column)]
    if label_column_of(table, id_column, config, sample, path, sure=False):
        return ()
    return tuple(left) if len(left) > 1 and _are_flags(table, left) else ()


def _refuse_lost_classes(
    table: "pd.DataFrame", shown: Sequence[str], besides: Sequence[str], sample: SampleSubmission | None, path: Path
) -> None:
    """Refuse a sample that has columns for some of the classes alone: one 1 in every row, but not within its columns.

    Raises:
        DataError: naming the key that says which columns are classes.
    """
    flags = _flags(table, shown)
    left = [column for column in map(str, table.columns) if column not in (*shown, *besides)]
    left = [column for column in left if _are_flags(table, [column]) and not (_flags(table, [column]).T @ flags).any()]
    whole = _flags(table, [*shown, *left])
    if left and not (flags.sum(1) == 1).all() and (whole.sum(1) == 1).all():
        assert sample is not None
        raise DataError(
            f"{sample.path}: has no column for {csv_io.some(left)}, and with that every row of {path} holds one 1; "
            "complete the sample, or train on its classes alone, as several labels of which an image may have none: "
            f"data.csv.label_columns=[{', '.join(shown[:3])}{', ...' if len(shown) > 3 else ''}]"
        )


def _flags(table: "pd.DataFrame", columns: Sequence[str]) -> NDArray[np.float64]:
    """Return the cells of columns of 0 and 1, [N, K]."""
    flags = [table[column].map(lambda cell: float(_flag(cell) or 0)) for column in columns]
    return np.stack(flags, 1).astype(np.float64)


def _are_flags(table: "pd.DataFrame", columns: Sequence[str]) -> bool:
    return all(_flag(cell) in (0, 1) for column in columns for cell in table[column].unique())


def _flag(cell: str) -> Decimal | None:
    """Return 0 or 1 of a cell that says so in any form, as pandas' `True` does; another number as it is."""
    return _TRUTHS.get(cell.strip().lower(), predictions.parse_decimal(cell))


def _of_columns(table: "pd.DataFrame", columns: Sequence[str], path: Path, task: str) -> Labels:
    strange = [
        (column, cell) for column in columns for cell in table[column].unique()
        if _flag(cell) not in (0, 1)
    ]  # fmt: skip
    if strange:
        column, cell = strange[0]
        raise DataError(f"{path}: column '{column}': expected 0 or 1, found {cell!r}; correct data.csv.label_columns")
    flags = _flags(table, columns)
    exclusive = bool((flags.sum(1) == 1).all())
    if task == "single_label" and not exclusive:
        row = int(np.flatnonzero(flags.sum(1) != 1)[0])
        raise DataError(
            f"{path}: competition.task is single_label, and row {row + 2} has {int(flags[row].sum())} labels; set "
            "competition.task=multi_label"
        )
    if exclusive and task != "multi_label":
        note = f"labels: {len(columns)} columns of 0 and 1, one 1 in every row: single_label"
        return Labels(flags.argmax(1).astype(np.int64), tuple(columns), "single_label", tuple(columns), notes=(note,))
    note = f"labels: {len(columns)} columns of 0 and 1, {flags.sum(1).mean():.2f} labels an image: multi_label"
    return Labels(flags.astype(np.float32), tuple(columns), "multi_label", tuple(columns), notes=(note,))


def _separator(cells: Sequence[str], chosen: str, task: str) -> str:
    """Return what parts several names in a label; empty where labels are whole.

    A label is parted only where some label's parts all occur alone elsewhere (`Sugar beet` is one class), or where the
    task or the config demands it.
    """
    if task == "single_label":
        return ""
    if chosen:
        return chosen
    texts = set(cells)
    for sign in _SEPARATORS:
        lists = [_parts(text, sign) for text in texts if sign in text.strip()]
        if not lists:
            continue
        alone = {text.strip() for text in texts if sign not in text.strip()}
        if task == "multi_label" or any(len(parts) > 1 and set(parts) <= alone for parts in lists):
            return sign
    return ""


def _parts(text: str, separator: str) -> list[str]:
    parts = text.split(separator) if separator else [text]
    return [part.strip() for part in parts if part.strip()]


def _of_lists(cells: Sequence[str], separator: str, sample: SampleSubmission | None, path: Path, column: str) -> Labels:
    lists = [_parts(cell, separator) for cell in cells]
    classes = class_order([name for parts in lists for name in parts], sample)
    if len(classes) < 2:
        raise DataError(f"{path}: column '{column}': expected labels of two classes or more, found {classes}")
    numbers = {name: number for number, name in enumerate(classes)}
    flags = np.zeros((len(cells), len(classes)), np.float32)
    for row, parts in enumerate(lists):
        flags[row, [numbers[name] for name in parts]] = 1
    parted = f"parted by {separator!r}" if separator else "one a row"
    bare = int((flags.sum(1) == 0).sum())
    notes = [
        f"labels: column '{column}' holds {len(classes)} names {parted}, {flags.sum(1).mean():.2f} an image: "
        "multi_label"
    ]
    if bare:
        notes.append(f"labels: {bare:,} images have none, so a list of labels in a submission may be empty")
    return Labels(flags, classes, "multi_label", (column,), separator, tuple(notes), column)


def _refuse_unclear(labels: Sequence[str], path: Path, column: str) -> None:
    """Refuse rows without a label, and labels that differ only in spaces.

    Raises:
        DataError: the first such row or pair.
    """
    missing = [row for row, label in enumerate(labels) if not label.strip()]
    if missing:
        raise DataError(
            f"{path}: column '{column}': {len(missing):,} rows have no label, first row {missing[0] + 2}; remove them"
        )
    distinct = sorted(set(labels))
    bare = {label.strip(): label for label in distinct}
    if len(bare) < len(distinct):
        spaced = next(label for label in distinct if label != bare[label.strip()])
        raise DataError(
            f"{path}: column '{column}': {spaced!r} and {bare[spaced.strip()]!r} differ only in spaces; mend them"
        )
