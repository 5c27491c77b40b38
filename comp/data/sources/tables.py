"""Images with a table of labels, the usual Kaggle layout. The table names image files, or holds the pixels itself."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from comp.config import DataConfig
from comp.data.groups import Groups
from comp.data.scan import scan_files
from comp.data.sources.columns import (
    PixelTable,
    check_unique_ids,
    find_file_column,
    find_id_column,
    find_table,
    has_pixel_columns,
    read_groups,
    read_pixel_table,
    read_table,
    require_table,
)
from comp.data.sources.grouping import group_test, image_columns, image_sample, in_test_table, read_group_names
from comp.data.sources.labels import read_labels
from comp.data.sources.listing import (
    Listing,
    LoadedTest,
    find_location,
    find_sample,
    require_location,
    unlabelled_test,
)
from comp.data.sources.source import Source
from comp.data.splits import Split
from comp.runtime.errors import DataError, plural
from comp.runtime.progress import Progress
from comp.submission.format import SampleSubmission

if TYPE_CHECKING:
    import pandas as pd

_DEFAULT_TEST, _DEFAULT_TEST_TABLE = "test", "test.csv"  # used if they exist
_SHOWN = 8  # columns in a note
_SKIP_HINT = "data.skip_bad=true leaves such rows out"
_ONE_ANSWER_HINT = (
    "; if several images have one row in the sample submission: data.group_answer=mean, or for one answer an image "
    "data.csv.sample='\"\"' data.csv.id_column=COLUMN"
)


def csv_images(config: DataConfig, progress: Progress, task: str = "auto") -> Source:
    """`train.csv` (ids, labels), `train/`, optionally `test/`, `test.csv` and `sample_submission.csv`; see `data.csv`.

    Ids are file names with or without their suffix (`comp.data.sources.listing`); a folder may be a .zip archive, and a
    table packed. Labels are one column of names, which may hold several per image (`data.csv.separator`), or one column
    of 0 and 1 per class. Classes are ordered by value if all are numbers, else by name; if the sample submission has a
    column for each class, in the order of its columns. A table with one column per pixel needs no files.
    """
    root, files = Path(config.root), config.csv
    path = require_table(root, files.table, "table")
    sample, sample_notes = find_sample(config)
    if has_pixel_columns(path):
        return _pixel_source(path, config, sample, sample_notes, task)
    listing = Listing(require_location(root, files.train, "train"))
    table, table_notes = read_table(path, listing.contains)
    columns = [str(column) for column in table.columns]
    named = image_columns(columns, config, path)
    id_column = find_id_column(named, files, image_sample(sample, config), path) or named[0]
    ids = table[id_column].tolist()
    asks = sample is not None and sample.id_column == id_column
    check_unique_ids(ids, path, id_column, _ONE_ANSWER_HINT if asks else "")
    labels = read_labels(table, id_column, files, sample, path, task)
    file_column, file_notes = find_file_column(table, id_column, files, listing.contains, listing.locate, path)
    keys = table[file_column].tolist()
    paths = listing.locate(keys) if config.skip_bad else listing.require(keys, hint=_SKIP_HINT)
    train = scan_files("train", paths, ids, labels.targets, config, progress)
    kept = np.isin(ids, train.ids)
    groups = read_groups(table, files, path)[kept] if files.group_column else None
    if config.group_answer != "none":
        train = replace(train, groups=Groups(read_group_names(table, files, path)[kept], config.group_answer))
    notes = [*sample_notes, *table_notes, *file_notes]
    notes += _note_unused(columns, (id_column, file_column, files.group_column, *labels.columns), path)
    notes += [*labels.notes, *listing.notes("train")]
    used = training = frozenset(path for path in paths if path)
    find = find_location if files.test == _DEFAULT_TEST else require_location
    test, location = None, find(root, files.test, "test")
    if location is not None:
        same = listing if location == listing.location else None
        loaded = _open_test(config, sample, id_column, location, progress, table, training=training, listing=same)
        notes += loaded.notes
        test, used = loaded.split, training | loaded.files
    if unlisted := listing.count(without=used):
        images = plural(unlisted, f"image of {listing.location} is", f"images of {listing.location} are")
        notes.append(f"train: {images} not listed by {path.name}, and not used")
    return Source(
        train,
        test,
        labels.classes,
        groups=groups,
        sample=sample,
        notes=tuple(notes),
        separator=labels.separator,
        task=labels.task,
        header=_submission_header(files.group_column if train.groups else id_column, labels.column),
        synonyms=labels.synonyms,
    )


def csv_test(config: DataConfig, classes: Sequence[str], progress: Progress) -> LoadedTest:
    """Return the test images of `csv_images`, without needing the training images and their table.

    Raises:
        DataError: no test images, or they cannot be told from training images.
    """
    root, files = Path(config.root), config.csv
    sample, _ = find_sample(config)
    table = _find_test_table(config)
    if table is not None and has_pixel_columns(table):
        return LoadedTest(_pixel_test(table, config, sample)[0], sample)
    location = require_location(root, files.test, "test")
    if not sample and not _find_test_table(config) and location == find_location(root, files.train, "train"):
        raise DataError(
            f"{location}: holds training images too, and only their table, which is missing, shows which are the test's"
        )
    return _open_test(config, sample, files.id_column, location, progress)


def _submission_header(id_column: str, label_column: str) -> tuple[str, str]:
    """Return the column names of a submission without a sample: those of the training table."""
    name = "id" if id_column.startswith("Unnamed: ") else id_column
    return name, label_column or "label"


def _note_unused(columns: Sequence[str], used: Sequence[str], path: Path) -> list[str]:
    unused = [column for column in columns if column not in used]
    shown = ", ".join(unused[:_SHOWN]) + (", ..." if len(unused) > _SHOWN else "")
    return [f"{path}: {plural(len(unused), 'column is', 'columns are')} not used: {shown}"] if unused else []


def _find_test_table(config: DataConfig) -> Path | None:
    """Return the table of the test's ids, None if there is none."""
    root, name = Path(config.root), config.csv.test_table
    if name == "auto":
        return find_table(root, _DEFAULT_TEST_TABLE)
    return require_table(root, name, "test_table") if name else None


def _require_test_table(config: DataConfig) -> Path:
    """Return the test table, which names the group of each test image."""
    path = _find_test_table(config)
    if path is None:
        raise DataError(
            f"{config.root}: found no test table (data.csv.test_table): data.group_answer needs one, with a row for "
            f"each test image and the column '{config.csv.group_column}'"
        )
    return path


def _open_test(
    config: DataConfig,
    sample: SampleSubmission | None,
    id_column: str,
    location: Path,
    progress: Progress,
    train: "pd.DataFrame | None" = None,
    *,
    training: frozenset[Path] = frozenset(),
    listing: Listing | None = None,
) -> LoadedTest:
    """Return the test images, with their groups where these have one answer; see `unlabelled_test`."""
    listed = _read_test_ids(config, sample, id_column, location, train)
    loaded = unlabelled_test(
        location,
        image_sample(sample, config),
        config,
        progress,
        listed=listed.ids,
        files_by_id=listed.files,
        training=training,
        listing=listing,
    )
    split, notes = loaded.split, [*listed.notes, *loaded.notes]
    if config.group_answer != "none":
        split, more = group_test(split, listed.groups, sample, config, _require_test_table(config))
        notes += more
    return replace(loaded, split=split, sample=sample, notes=tuple(notes))


@dataclass(frozen=True)
class _TestIds:
    """The ids of a test table, the names of their files if those differ, their groups if those matter, and notes."""

    ids: Sequence[str] = ()
    files: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()
    groups: Mapping[str, str] = field(default_factory=dict)


def _read_test_ids(
    config: DataConfig, sample: SampleSubmission | None, id_column: str, location: Path, train: "pd.DataFrame | None"
) -> _TestIds:
    """Return the ids of the test table, none if there is no table; `train` is the training table, if it is read."""
    path = _find_test_table(config) if config.group_answer == "none" else _require_test_table(config)
    if path is None:
        return _TestIds()
    listing = Listing(location)
    table, notes = read_table(path, listing.contains)
    config, group_notes = in_test_table(config, table, sample, path, train)
    sample = image_sample(sample, config)
    columns = image_columns([str(column) for column in table.columns], config, path)
    shared = [column for column in (id_column, sample.id_column if sample else "") if column in columns]
    without_id = config.csv.model_copy(update={"id_column": ""})
    column = shared[0] if shared else find_id_column(columns, without_id, sample, path) or columns[0]
    ids: list[str] = table[column].tolist()
    check_unique_ids(ids, path, column)
    file_column = config.csv.file_column if config.csv.file_column in columns else ""  # may be only in train.csv
    files_from = config.csv.model_copy(update={"file_column": file_column})
    file_column, file_notes = find_file_column(table, column, files_from, listing.contains, listing.locate, path)
    files = {} if file_column == column else dict(zip(ids, table[file_column].tolist(), strict=True))
    groups = {}
    if config.group_answer != "none":
        groups = dict(zip(ids, read_group_names(table, config.csv, path).tolist(), strict=True))
    return _TestIds(ids, files, (*notes, *file_notes, *group_notes), groups)


def _pixel_source(
    path: Path, config: DataConfig, sample: SampleSubmission | None, sample_notes: Sequence[str], task: str
) -> Source:
    """Return the images of tables that hold their pixels."""
    train = read_pixel_table(path)
    others = train.other_columns
    ids, id_column = _pixel_ids(train, "train", config)
    labels = read_labels(others, id_column, config.csv, sample, path, task)
    side = train.images.shape[1]
    notes = [*sample_notes, f"{path}: holds the pixels of {len(ids):,} grey images of {side} x {side}"]
    notes += _note_unused(list(others.columns), (id_column, config.csv.group_column, *labels.columns), path)
    test_path = _find_test_table(config)
    test, test_notes = _pixel_test(test_path, config, sample, others) if test_path is not None else (None, [])
    split = Split("train", train.images, np.array(ids, np.str_), labels.targets)
    if config.group_answer != "none":
        split = replace(split, groups=Groups(read_group_names(others, config.csv, path), config.group_answer))
    return Source(
        split,
        test,
        labels.classes,
        groups=read_groups(others, config.csv, path) if config.csv.group_column else None,
        sample=sample,
        notes=(*notes, *labels.notes, *test_notes),
        separator=labels.separator,
        task=labels.task,
        header=_submission_header(config.csv.group_column if split.groups else id_column or "id", labels.column),
        synonyms=labels.synonyms,
    )


def _pixel_ids(table: PixelTable, split: str, config: DataConfig) -> tuple[list[str], str]:
    """Return the rows' ids and their column, without the sample's help; see `PixelTable.row_ids`."""
    columns = image_columns(list(table.other_columns.columns), config, table.path)
    is_absent = split == "test" and config.csv.id_column not in columns  # it may exist only in the training table
    csv = config.csv.model_copy(update={"id_column": ""}) if is_absent else config.csv
    return replace(table, other_columns=table.other_columns[columns]).row_ids(split, csv, None)


def _pixel_test(
    path: Path, config: DataConfig, sample: SampleSubmission | None, train: "pd.DataFrame | None" = None
) -> tuple[Split, list[str]]:
    """Return the test images of a pixel table, in the sample's order, and notes; `train`: see `_read_test_ids`."""
    table = read_pixel_table(path)
    config, notes = in_test_table(config, table.other_columns, sample, path, train)
    if config.group_answer != "none":
        names = read_group_names(table.other_columns, config.csv, path).tolist()
        ids, _ = _pixel_ids(table, "test", config)
        test = Split("test", table.images, np.array(ids, np.str_), None)
        test, more = group_test(test, dict(zip(ids, names, strict=True)), sample, config, path)
        return test, [*notes, *more]
    ids, _ = table.row_ids("test", config.csv, sample)
    test = Split("test", table.images, np.array(ids, np.str_), None)
    if sample is None:
        return test, notes
    row_of = {key: row for row, key in enumerate(ids)}
    missing = [key for key in sample.ids if key not in row_of]
    if missing:
        raise DataError(
            f"{path}: lacks {len(missing):,} of {len(sample.ids):,} ids of {sample.path}, first {missing[0]!r}"
        )
    return test.take(np.array([row_of[key] for key in sample.ids], np.int64), "test"), notes
