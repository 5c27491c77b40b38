"""Read tables as text, so that `007` stays `007` and a class `NA` stays a class, and find their columns."""

import csv
import io
import math
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from comp.config import CSVConfig
from comp.runtime.errors import DataError, nearest
from comp.submission import csv_io
from comp.submission.format import SampleSubmission

if TYPE_CHECKING:
    import pandas as pd

_ID_NAMES = ("id", "image_id", "imageid", "image", "image_name", "img", "filename", "file_name", "file", "name", "path")
TABLE = re.compile(r".*\.(csv|tsv|txt)(\.zip|\.gz)?|.*\.parquet", re.IGNORECASE)
_PIXEL = re.compile(r"(?:pixel|px)[ _]?(\d+)|(\d+)x(\d+)", re.IGNORECASE)
_MIN_PIXELS = 64  # columns: fewer are features, not an image
_PROBED_ROWS = 20  # checked first when looking for file names
_SHOWN = 12  # columns in a message


def require_table(root: Path, name: str, key: str) -> Path:
    """Return the file of a table whose name is the value of `data.csv.KEY`; see `find_table`.

    Raises:
        DataError: there is none.
    """
    path = find_table(root, name)
    if path is None and not root.is_dir():
        raise DataError(f"{root}: no such folder (data.root); expected {name} in it (data.csv.{key})")
    if path is None:
        tables = sorted(path.name for path in root.glob("*") if TABLE.fullmatch(path.name))
        shown = ", ".join(tables[:_SHOWN]) or "no table"
        raise DataError(f"{root / name}: no such table (data.csv.{key}){nearest(name, tables)}; {root} holds {shown}")
    return path


def find_table(root: Path, name: str) -> Path | None:
    """Return the table's file: `name`, or with `.zip` or `.gz` added, or as `.parquet`; None if there is none."""
    plain = root / name
    packed = [plain.with_name(plain.name + suffix) for suffix in (".zip", ".gz")]
    return next((path for path in (plain, *packed, plain.with_suffix(".parquet")) if path.is_file()), None)


def read_table(path: Path, is_image: Callable[[str], bool]) -> "tuple[pd.DataFrame, tuple[str, ...]]":
    """Return a table's cells as text, under distinct column names, and notes.

    If the first line names an image like the lines below, the table has no header: its column of images is then called
    `id`, and the others `1`, `2` ... by position.

    Args:
        path: of the table; see `comp.submission.csv_io.read_table`.
        is_image: whether an id matches an image.

    Raises:
        DataError: missing, of another encoding, ragged, or without a row.
    """
    import pandas as pd

    table = csv_io.read_table(path, DataError)
    for index, header in enumerate(map(str, table.columns)):
        cells = table.iloc[:, index]
        if header and is_image(header) and is_image(cells.iloc[0]) and not (cells == header).any():
            first = list(map(str, table.columns))
            names = ["id" if number == index else str(number + 1) for number in range(len(first))]
            table.columns = names
            note = (
                f"{path}: has no header: its first line names an image ({header!r}); columns are called "
                f"{', '.join(names[:_SHOWN])}"
            )
            return pd.concat([pd.DataFrame([first], columns=names, dtype=str), table], ignore_index=True), (note,)
    table.columns = _distinct(list(map(str, table.columns)))
    return table, ()


def _distinct(columns: Sequence[str]) -> list[str]:
    seen: dict[str, int] = {}
    names = []
    for index, column in enumerate(columns):
        name = column.strip() or f"Unnamed: {index}"  # as pandas calls an index that it wrote
        count = seen[name] = seen.get(name, -1) + 1
        names.append(f"{name}.{count}" if count else name)
    return names


def find_id_column(columns: list[str], config: CSVConfig, sample: SampleSubmission | None, path: Path) -> str:
    """Return the id column: set in the config, else the sample's, else one with a common name; empty if there is none.

    Raises:
        DataError: the config names a column that does not exist.
    """
    shared = (sample.id_column,) if sample else ()
    return configured_column(config.id_column, "id_column", columns, path) or first_named(
        [*shared, *_ID_NAMES], columns
    )


def find_file_column(
    table: "pd.DataFrame",
    id_column: str,
    config: CSVConfig,
    is_image: Callable[[str], bool],
    locate: Callable[[Sequence[str]], Sequence[Path | None]],
    path: Path,
) -> tuple[str, tuple[str, ...]]:
    """Return the column that names image files, and notes: the ids, unless the config or the files show another.

    Args:
        table: one row per image.
        id_column: its column of ids.
        config: `data.csv`.
        is_image: whether a text matches an image.
        locate: finds the images of texts.
        path: of the table, for messages.

    Raises:
        DataError: no such column, or several columns name different images.
    """
    columns = [str(column) for column in table.columns]
    if configured := configured_column(config.file_column, "file_column", columns, path):
        return configured, ()
    head = table.iloc[:_PROBED_ROWS]
    candidates = [name for name in columns if name != id_column and all(map(is_image, head[name]))]
    candidates = [name for name in candidates if all(map(is_image, table[name])) and table[name].is_unique]
    if not candidates:
        return id_column, ()
    if not any(map(is_image, head[id_column])) and len(candidates) == 1:
        note = f"{path}: column '{candidates[0]}' names the files, not '{id_column}' (data.csv.file_column)"
        return candidates[0], (note,)
    files = {name: locate(table[name].tolist()) for name in (id_column, *candidates)}
    if any(paths != files[id_column] for paths in files.values()):
        raise DataError(
            f"{path}: columns {', '.join(map(repr, files))} name different images; set data.csv.file_column to the one "
            "that names the files"
        )
    return id_column, ()


def configured_column(name: str, field: str, columns: list[str], path: Path) -> str:
    """Return the column that `data.csv.FIELD` names; empty if it names none.

    Raises:
        DataError: there is no such column.
    """
    if name and name not in columns:
        raise DataError(
            f"{path}: data.csv.{field}: no column '{name}'{nearest(name, columns)}; it has {shown_columns(columns)}"
        )
    return name


def shown_columns(columns: Sequence[str]) -> str:
    """Return the first columns' names, for a message."""
    return ", ".join(columns[:_SHOWN]) + (", ..." if len(columns) > _SHOWN else "")


def first_named(names: Sequence[str], columns: list[str]) -> str:
    """Return the column with the first of these names, in any case; empty if there is none."""
    lower = {column.lower(): column for column in reversed(columns)}
    return next((lower[name.lower()] for name in names if name.lower() in lower), "")


def read_groups(table: "pd.DataFrame", config: CSVConfig, path: Path) -> NDArray[np.int64]:
    """Return [N] int64: rows with the same text in the group column have the same number.

    Raises:
        DataError: no such column.
    """
    column = configured_column(config.group_column, "group_column", list(table.columns), path)
    groups: NDArray[np.int64] = np.unique(table[column].to_numpy(str), return_inverse=True)[1]
    return groups.astype(np.int64)


def check_unique_ids(ids: Sequence[str], path: Path, column: str, hint: str = "") -> None:
    """Refuse duplicate ids; `hint` ends the message.

    Raises:
        DataError: with their number and the first one.
    """
    import pandas as pd

    index = pd.Index(ids)
    duplicates = index[index.duplicated()].unique()
    if len(duplicates):
        raise DataError(
            f"{path}: column '{column}': {len(duplicates):,} duplicate ids, first {duplicates[0]!r}; keep one row per "
            "image; join several labels of an image in one cell, separated by spaces (data.csv.separator)" + hint
        )


@dataclass(frozen=True)
class PixelTable:
    """A table with one column per pixel: `label,pixel0,pixel1...`.

    Attributes:
        images: [N, side, side, 1] uint8.
        other_columns: [N] rows of the remaining columns, as text.
        path: of the table.
    """

    images: NDArray[np.uint8]
    other_columns: "pd.DataFrame"
    path: Path

    def row_ids(self, split: str, config: CSVConfig, sample: SampleSubmission | None) -> tuple[list[str], str]:
        """Return the rows' ids and the column that holds them: else those of a sample of the same length, else numbers.

        Args:
            split: its name; without a column of ids, the first row's id is `train_0`.
            config: `data.csv`.
            sample: the sample submission, whose rows are in this table's order; None for the training table.

        Raises:
            DataError: a duplicate id, or the sample has another number of rows.
        """
        columns = list(self.other_columns.columns)
        if sample is not None and config.id_column not in columns:  # it may exist only in the training table
            config = config.model_copy(update={"id_column": ""})
        column = find_id_column(columns, config, sample, self.path) or None
        if sample and column is None:  # any column that holds the sample's ids, even one without a name
            ids_of_sample = sorted(sample.ids)
            column = next((name for name in columns if sorted(self.other_columns[name]) == ids_of_sample), None)
        if column is not None:
            ids: list[str] = self.other_columns[column].tolist()
            check_unique_ids(ids, self.path, column)
            return ids, column
        if sample is None:
            return [f"{split}_{row}" for row in range(len(self.images))], ""
        if len(sample.ids) != len(self.images):
            raise DataError(
                f"{self.path}: has {len(self.images):,} rows and no column of ids, and {sample.path} has "
                f"{len(sample.ids):,} rows, so they cannot be matched"
            )
        return list(sample.ids), ""


def has_pixel_columns(path: Path) -> bool:
    """Return whether a table has one column per pixel, by its header."""
    if path.suffix == ".parquet" or not path.is_file():
        return False
    text = csv_io.read_text(path, DataError)
    return len(_pixel_columns(_header(text))) >= _MIN_PIXELS


def read_pixel_table(path: Path) -> PixelTable:
    """Return a table's images: grey, square, row by row in the order of the columns' numbers.

    Raises:
        DataError: missing, ragged, not square, or values that are not whole numbers from 0 to 255.
    """
    import pandas as pd

    text = csv_io.read_text(path, DataError)
    header = _header(text)
    pixels = _pixel_columns(header)
    if len(set(header)) < len(header):
        twice = next(name for name in header if header.count(name) > 1)
        raise DataError(f"{path}: the column {twice!r} is there twice; remove one of them")
    side = math.isqrt(len(pixels))
    if side * side != len(pixels):
        raise DataError(
            f"{path}: expected the pixels of square grey images, found {len(pixels):,} columns; save other shapes as "
            "an array [N, H, W, C] and set data.source=arrays"
        )
    is_pixel = set(pixels).__contains__
    try:
        with warnings.catch_warnings(action="error", category=pd.errors.ParserWarning):  # of rows that are too long
            table = pd.read_csv(
                io.BytesIO(text.encode()),  # StringIO takes four bytes a character
                sep=csv_io.detect_separator(text),
                header=0,
                names=header,
                index_col=False,
                dtype={name: np.int16 if is_pixel(name) else str for name in header},
                keep_default_na=False,
            )
    except pd.errors.ParserWarning:
        raise DataError(f"{path}: not a rectangular CSV: some rows have more cells than the header") from None
    except (pd.errors.ParserError, ValueError, OverflowError) as reason:
        raise DataError(
            f"{path}: expected whole numbers from 0 to 255 in the pixel columns: {str(reason).splitlines()[0]}"
        ) from None
    values = table[pixels].to_numpy()
    if values.size and (values.min() < 0 or values.max() > 255):
        raise DataError(f"{path}: expected pixels from 0 to 255, found {values.min()} to {values.max()}")
    if not len(values):
        raise DataError(f"{path}: expected a header and rows below it, found no row")
    others = table[[name for name in header if not is_pixel(name)]]
    return PixelTable(values.astype(np.uint8).reshape(-1, side, side, 1), others, path)


def _header(text: str) -> list[str]:
    try:
        names = next(csv.reader([csv_io.first_line(text)], delimiter=csv_io.detect_separator(text)), [])
    except csv.Error:  # a name of more than 128 KiB, which is no pixel
        return []
    return [name.strip() for name in names]


def _pixel_columns(header: Sequence[str]) -> list[str]:
    """Return the names of the pixel columns, in the order of their numbers."""
    matches = [(name, _PIXEL.fullmatch(name)) for name in header]
    numbered = [(tuple(int(number) for number in match.groups() if number), name) for name, match in matches if match]
    return [name for _, name in sorted(numbered)]
