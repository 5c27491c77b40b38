"""Tables of ids and labels: every cell is text, so that `007` stays `007` and a class `NA` stays a class."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from comp.config import CSVConfig
from comp.runtime.errors import DataError, nearest
from comp.submission import csv_io
from comp.submission.format import SampleSubmission

if TYPE_CHECKING:
    import pandas as pd

_ID_NAMES = ("id", "image_id", "imageid", "image", "image_name", "img", "filename", "file_name", "file", "name", "path")
_TABLE = re.compile(r".*\.(csv|tsv|txt)(\.zip|\.gz)?|.*\.parquet", re.IGNORECASE)
_PROBED = 20  # rows that a column is first judged by
_SHOWN = 12  # columns in a message
_LABEL_NAMES = ("label", "labels", "class", "class_name", "target", "category", "breed", "species", "diagnosis")


def table_of(root: Path, name: str, key: str) -> Path:
    """Return a table's file: of this name, or of this name and `.zip` or `.gz`, or the same as `.parquet`.

    Args:
        root: the folder of the data.
        name: what `data.csv.KEY` says.
        key: of the config, for messages.

    Raises:
        DataError: there is none.
    """
    found = found_table(root, name)
    if found is None and not root.is_dir():
        raise DataError(f"{root}: no such folder (data.root); expected {name} in it (data.csv.{key})")
    if found is None:
        here = sorted(path.name for path in root.glob("*") if _TABLE.fullmatch(path.name))
        shown = ", ".join(here[:_SHOWN]) or "no table"
        raise DataError(f"{root / name}: no such table (data.csv.{key}){nearest(name, here)}; {root} holds {shown}")
    return found


def found_table(root: Path, name: str) -> Path | None:
    """Return a table's file as `table_of` does, None where there is none."""
    plain = root / name
    forms = (
        plain,
        *(plain.with_name(plain.name + ending) for ending in (".zip", ".gz")),
        plain.with_suffix(".parquet"),
    )
    return next((path for path in forms if path.is_file()), None)


def read_table(path: Path, is_image: Callable[[str], bool]) -> "tuple[pd.DataFrame, tuple[str, ...]]":
    """Return a table's cells as text, its columns under distinct names, and notes of how it was read.

    A first line that names an image as the lines below do is a row, and the table has no header: its column of images
    is called `id` then, and the others `1`, `2` ... by their place.

    Args:
        path: of the table; see `comp.submission.csv_io.read_table`.
        is_image: whether an id finds an image.

    Raises:
        DataError: missing, of another encoding, ragged, or without a row.
    """
    import pandas as pd

    table = csv_io.read_table(path, DataError)
    for place, header in enumerate(map(str, table.columns)):
        cells = table.iloc[:, place]
        if header and is_image(header) and is_image(cells.iloc[0]) and not (cells == header).any():
            first = list(map(str, table.columns))
            names = ["id" if number == place else str(number + 1) for number in range(len(first))]
            table.columns = names
            note = (
                f"{path}: has no header, since its first line names an image ({header!r}); columns are called "
                f"{', '.join(names[:_SHOWN])}"
            )
            return pd.concat([pd.DataFrame([first], columns=names, dtype=str), table], ignore_index=True), (note,)
    table.columns = _distinct(list(map(str, table.columns)))
    return table, ()


def _distinct(columns: Sequence[str]) -> list[str]:
    seen: dict[str, int] = {}
    names = []
    for place, column in enumerate(columns):
        name = column.strip() or f"Unnamed: {place}"  # as pandas calls the index that it wrote
        count = seen[name] = seen.get(name, -1) + 1
        names.append(f"{name}.{count}" if count else name)
    return names


def id_column_of(table: "pd.DataFrame", config: CSVConfig, sample: SampleSubmission | None, path: Path) -> str:
    """Return the id column: named by the config, else the sample's, else of a usual name, else the first.

    Raises:
        DataError: no such column.
    """
    columns = [str(column) for column in table.columns]
    return known_id_column(columns, config, sample, path) or columns[0]


def known_id_column(columns: list[str], config: CSVConfig, sample: SampleSubmission | None, path: Path) -> str:
    """Return the id column that the config names, the sample has, or a usual name tells; empty where none does.

    Raises:
        DataError: no such column.
    """
    shared = (sample.id_column,) if sample else ()
    return named_column(config.id_column, "id_column", columns, path) or _first([*shared, *_ID_NAMES], columns)


@dataclass(frozen=True)
class FileColumn:
    """Which column of a table names image files, and what to say of it."""

    column: str
    notes: tuple[str, ...] = ()


def file_column_of(
    table: "pd.DataFrame",
    id_column: str,
    config: CSVConfig,
    is_image: Callable[[str], bool],
    locate: Callable[[Sequence[str]], Sequence[Path | None]],
    path: Path,
) -> FileColumn:
    """Return the column that names image files: the ids, unless the config or the files themselves say another.

    Args:
        table: with a row for each image.
        id_column: its column of ids.
        config: `data.csv`.
        is_image: whether a text finds an image.
        locate: the images that texts find.
        path: of the table, for messages.

    Raises:
        DataError: no such column, or several name images, and not the same ones.
    """
    columns = [str(column) for column in table.columns]
    if named := named_column(config.file_column, "file_column", columns, path):
        return FileColumn(named)
    first = table.iloc[:_PROBED]
    others = [name for name in columns if name != id_column and all(map(is_image, first[name]))]
    others = [name for name in others if all(map(is_image, table[name])) and table[name].is_unique]
    if not others:
        return FileColumn(id_column)
    if not any(map(is_image, first[id_column])) and len(others) == 1:
        note = f"{path}: files are named by column '{others[0]}', and not by '{id_column}' (data.csv.file_column)"
        return FileColumn(others[0], (note,))
    files = {name: locate(table[name].tolist()) for name in (id_column, *others)}
    if any(found != files[id_column] for found in files.values()):
        raise DataError(
            f"{path}: columns {', '.join(map(repr, files))} name images, and not the same ones; say which one "
            "names the files: data.csv.file_column"
        )
    return FileColumn(id_column)


def label_column_of(
    table: "pd.DataFrame",
    id_column: str,
    config: CSVConfig,
    sample: SampleSubmission | None,
    path: Path,
    *,
    sure: bool = True,
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


def group_numbers(table: "pd.DataFrame", config: CSVConfig, path: Path) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
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
    import pandas as pd

    index = pd.Index(ids)
    twice = index[index.duplicated()].unique()
    if len(twice):
        raise DataError(
            f"{path}: column '{column}': {len(twice):,} ids stand more than once, first {twice[0]!r}; keep one row for "
            "each image, its labels joined in one cell and parted by spaces where it has several (data.csv.separator)"
        )
