"""Tables of ids and labels: every cell is text, so that `007` stays `007` and a class `NA` stays a class."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from comp.competition import tables
from comp.competition.spec import Sample
from comp.config import CSVConfig
from comp.errors import DataError, nearest

_ID_NAMES = ("id", "image_id", "imageid", "image", "image_name", "img", "filename", "file_name", "file", "name", "path")
_SHOWN = 12  # columns in a message
_LABEL_NAMES = ("label", "labels", "class", "class_name", "target", "category", "breed", "species", "diagnosis")


def read_table(path: Path) -> pd.DataFrame:
    """Return a table's cells as text, its columns under distinct names; see `comp.competition.tables.read_any`.

    Raises:
        DataError: missing, of another encoding, ragged, or without a row.
    """
    table = tables.read_any(path, DataError)
    seen: dict[str, int] = {}
    names = []
    for place, column in enumerate(table.columns):
        name = column.strip() or f"Unnamed: {place}"  # as pandas calls the index that it wrote
        count = seen[name] = seen.get(name, -1) + 1
        names.append(f"{name}.{count}" if count else name)
    table.columns = names
    return table


def id_column_of(table: pd.DataFrame, config: CSVConfig, sample: Sample | None, path: Path) -> str:
    """Return the id column: named by the config, else the sample's, else of a usual name, else the first.

    Raises:
        DataError: no such column.
    """
    columns = [str(column) for column in table.columns]
    shared = (sample.id_column,) if sample else ()
    return (
        named_column(config.id_column, "id_column", columns, path)
        or _first([*shared, *_ID_NAMES], columns)
        or columns[0]
    )


def label_column_of(
    table: pd.DataFrame, id_column: str, config: CSVConfig, sample: Sample | None, path: Path, *, sure: bool = True
) -> str:
    """Return the label column: named by the config, else shared with the sample, else of a usual name, else the only
    other one.

    Args:
        table: the training table.
        id_column: its column of ids.
        config: `data.csv`.
        sample: the sample submission, None without one.
        path: of the table, for messages.
        sure: refuse where none can be determined; False: return an empty text then.

    Raises:
        DataError: no such column, or none can be determined.
    """
    columns = [str(column) for column in table.columns]
    left = [column for column in columns if column not in (id_column, config.group_column)]
    shared = sample.columns if sample is not None and len(sample.columns) == 1 else ()
    label = named_column(config.label_column, "label_column", columns, path)
    label = label or _first([*shared, *_LABEL_NAMES], left)
    if not label and len(left) == 1:
        label = left[0]
    if not label and sure:
        shown = ", ".join(columns[:_SHOWN]) + (", ..." if len(columns) > _SHOWN else "")
        raise DataError(
            f"{path}: cannot tell which of {len(columns)} columns ({shown}) holds labels; set data.csv.label_column, "
            "or data.csv.label_columns for one column of 0 and 1 for each class"
        )
    return label


def named_column(name: str, field: str, columns: list[str], path: Path) -> str:
    """Return a column that the config names, or an empty text.

    Raises:
        DataError: there is no such column.
    """
    if name and name not in columns:
        known = ", ".join(columns[:_SHOWN]) + (", ..." if len(columns) > _SHOWN else "")
        raise DataError(f"{path}: data.csv.{field}: no column '{name}'{nearest(name, columns)}; it has {known}")
    return name


def _first(names: Sequence[str], columns: list[str]) -> str:
    lower = {column.lower(): column for column in reversed(columns)}
    return next((lower[name.lower()] for name in names if name.lower() in lower), "")


def group_numbers(table: pd.DataFrame, config: CSVConfig, path: Path) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
    """Return [N] int64: rows with the same text in the group column have the same number.

    Raises:
        DataError: no such column.
    """
    column = named_column(config.group_column, "group_column", list(table.columns), path)
    numbers: np.ndarray[tuple[int], np.dtype[np.int64]] = np.unique(table[column].to_numpy(str), return_inverse=True)[1]
    return numbers.astype(np.int64)


def refuse_duplicates(ids: Sequence[str], path: Path, column: str) -> None:
    """Refuse a column in which an id stands twice.

    Raises:
        DataError: the first such id, and how many there are.
    """
    index = pd.Index(ids)
    twice = index[index.duplicated()].unique()
    if len(twice):
        raise DataError(f"{path}: column '{column}': {len(twice):,} ids stand more than once, first {twice[0]!r}")
