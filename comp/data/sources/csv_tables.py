"""Tables of ids and labels: every cell is text, so that `007` stays `007` and a class `NA` stays a class."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from comp import runs
from comp.config import CSVConfig
from comp.errors import DataError, nearest

_ID_NAMES = ("id", "image_id", "imageid", "image", "image_name", "img", "filename", "file_name", "file", "name", "path")
_LABEL_NAMES = ("label", "labels", "class", "class_name", "target", "category", "breed", "species", "diagnosis")


def read_table(path: Path) -> pd.DataFrame:
    """Return a CSV's cells as text; UTF-8 with or without a byte order mark, or UTF-16 with one.

    Raises:
        DataError: missing, of another encoding, ragged, or without a row.
    """
    content = runs.read_bytes(path, "file", DataError)
    marked = content.startswith((b"\xff\xfe", b"\xfe\xff"))
    try:
        text = content.decode("utf-16" if marked else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: expected UTF-8 text, found byte {error.start} that is not; save it as UTF-8"
        ) from None
    if "\0" in text:
        raise DataError(f"{path}: expected UTF-8 text, found zero bytes (UTF-16 without its mark?); save it as UTF-8")
    try:
        table = pd.read_csv(
            io.StringIO(text), dtype=str, keep_default_na=False, index_col=False, on_bad_lines="error",
            quoting=csv.QUOTE_MINIMAL,
        )  # fmt: skip
    except (pd.errors.ParserError, pd.errors.EmptyDataError, ValueError) as error:
        raise DataError(f"{path}: not a rectangular CSV: {str(error).strip()}") from None
    table.columns = [str(column).strip() for column in table.columns]
    if table.empty:
        raise DataError(f"{path}: expected a header and rows below it, found no row")
    return table


def columns_of(table: pd.DataFrame, config: CSVConfig, sample: Sequence[str], path: Path) -> tuple[str, str]:
    """Return the id and the label column: named by the config, else shared with the sample, else of a usual name.

    Args:
        table: the training table.
        config: `data.csv`.
        sample: columns of the sample submission, empty without one.
        path: of the table, for messages.

    Raises:
        DataError: no such column, or none can be told for sure.
    """
    columns = [str(column) for column in table.columns]
    key = _named(config.id_column, "id_column", columns, path) or _found([*sample[:1], *_ID_NAMES], columns)
    key = key or columns[0]
    left = [column for column in columns if column not in (key, config.group_column)]
    label = _named(config.label_column, "label_column", columns, path)
    label = label or _found([*(sample[1:] if len(sample) == 2 else ()), *_LABEL_NAMES], left)
    if not label and len(left) == 1:
        label = left[0]
    if not label:
        raise DataError(f"{path}: cannot tell which of {', '.join(columns)} holds labels; set data.csv.label_column")
    return key, label


def _named(name: str, field: str, columns: list[str], path: Path) -> str:
    if name and name not in columns:
        known = ", ".join(columns)
        raise DataError(f"{path}: data.csv.{field}: no column '{name}'{nearest(name, columns)}; it has {known}")
    return name


def _found(names: Sequence[str], columns: list[str]) -> str:
    lower = {column.lower(): column for column in reversed(columns)}
    return next((lower[name.lower()] for name in names if name.lower() in lower), "")


def group_numbers(table: pd.DataFrame, config: CSVConfig, path: Path) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
    """Return [N] int64: rows with the same text in the group column have the same number.

    Raises:
        DataError: no such column.
    """
    column = _named(config.group_column, "group_column", list(table.columns), path)
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
