"""Images with a table of labels: the usual Kaggle set. The table names image files, or holds the pixels itself."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from comp.config import DataConfig
from comp.data.scan import scan_files
from comp.data.sources import pixel_tables
from comp.data.sources.csv_tables import (
    file_column_of,
    found_table,
    group_numbers,
    id_column_of,
    read_table,
    refuse_duplicates,
    table_of,
)  # fmt: skip
from comp.data.sources.labels import labels_of
from comp.data.sources.listing import Listing, demand_place, place_of
from comp.data.sources.samples import OwnTest, sample_of, unlabelled_test
from comp.data.sources.source import Source
from comp.data.splits import Split
from comp.runtime.errors import DataError
from comp.runtime.progress import Progress
from comp.submission.format import SampleSubmission

_USUAL_TEST, _USUAL_TEST_TABLE = "test", "test.csv"  # what is taken where it is there
_SHOWN = 8  # columns in a note


def csv_images(config: DataConfig, progress: Progress, task: str = "auto") -> Source:
    """`train.csv` (ids, labels), `train/`, maybe `test/`, `test.csv` and `sample_submission.csv`; see `data.csv`.

    Ids are file names with or without their ending (`comp.data.sources.listing`); a folder may be a .zip archive, and a
    table packed. Labels stand in one column of names, of which one may hold several (`data.csv.separator`), or in a
    column of 0 and 1 for each class. Classes are in the order of their values where all are numbers, of their names
    else; where the sample submission has a column for each class, in the order of its columns. A table with a column
    for each pixel needs no files.
    """
    root, files = Path(config.root), config.csv
    path = table_of(root, files.table, "table")
    submitted = sample_of(config)
    if pixel_tables.holds_pixels(path):
        return _pixels(path, config, submitted.sample, submitted.notes, task)
    sample = submitted.sample
    listing = Listing(demand_place(root, files.train, "train"))
    table, notes = read_table(path, listing.holds)
    id_column = id_column_of(table, files, sample, path)
    ids = table[id_column].tolist()
    refuse_duplicates(ids, path, id_column)
    labels = labels_of(table, id_column, files, sample, path, task)
    skip = "data.skip_bad=true leaves such rows out"
    named = file_column_of(table, id_column, files, listing.holds, listing.locate, path)
    keys = table[named.column].tolist()
    paths = listing.locate(keys) if config.skip_bad else listing.find(keys, mend=skip)
    train = scan_files("train", paths, ids, labels.targets, config, progress)
    groups = group_numbers(table, files, path)[np.isin(ids, train.ids)] if files.group_column else None
    told = [*submitted.notes, *notes, *named.notes]
    told += _unused(table.columns, (id_column, named.column, files.group_column, *labels.columns), path)
    told += [*labels.notes, *listing.note("train")]
    training = frozenset(path for path in paths if path)
    test, place = None, _test_place(config)
    if place is not None:
        listed = _test_ids(config, sample, id_column, place)
        test_images = unlabelled_test(
            place, sample, config, progress, listed=listed.ids, files_of=listed.files, training=training,
            listing=listing if place == listing.place else None,
        )  # fmt: skip
        told += [*listed.notes, *test_images.notes]
        test = test_images.split
    used = training | test_images.files if test is not None else training
    if spare := listing.count(without=used):
        told.append(f"train: {spare:,} images of {listing.place} are not listed by {path.name}, and are not used")
    return Source(
        train, test, labels.classes, groups=groups, sample=sample, notes=tuple(told), separator=labels.separator,
        task=labels.task, header=_header(id_column, labels.column), synonyms=labels.synonyms,
    )  # fmt: skip


def csv_test(config: DataConfig, classes: Sequence[str], progress: Progress) -> OwnTest:
    """Return the test images of `csv_images`; the training images and their table need not be there.

    Raises:
        DataError: no test images, or nothing tells them from training images.
    """
    root, files, sample = Path(config.root), config.csv, sample_of(config).sample
    table = _test_table(config)
    if table is not None and pixel_tables.holds_pixels(table):
        return OwnTest(_pixel_test(table, config, sample), sample)
    place = demand_place(root, files.test, "test")
    listed = _test_ids(config, sample, files.id_column, place)
    if not sample and not listed.ids and place == place_of(root, files.train, "train"):
        raise DataError(
            f"{place}: holds training images too, and without their table nothing tells which are the test's"
        )
    found = unlabelled_test(place, sample, config, progress, listed=listed.ids, files_of=listed.files)
    return OwnTest(found.split, sample)


def _header(id_column: str, label_column: str) -> tuple[str, str]:
    """Return what a submission's columns are called where no sample shows it: as the training table's are."""
    named = "id" if id_column.startswith("Unnamed: ") else id_column
    return named, label_column or "label"


def _unused(columns: Sequence[str], used: Sequence[str], path: Path) -> list[str]:
    left = [str(column) for column in columns if column not in used]
    shown = ", ".join(left[:_SHOWN]) + (", ..." if len(left) > _SHOWN else "")
    return [f"{path}: {len(left):,} columns are not used: {shown}"] if left else []


def _test_place(config: DataConfig) -> Path | None:
    """Return where the test images lie, None where there are none."""
    root, name = Path(config.root), config.csv.test
    return place_of(root, name, "test") if name == _USUAL_TEST else demand_place(root, name, "test")


def _test_table(config: DataConfig) -> Path | None:
    """Return the table of the test's ids, None where there is none."""
    root, name = Path(config.root), config.csv.test_table
    if name == "auto":
        return found_table(root, _USUAL_TEST_TABLE)
    return table_of(root, name, "test_table") if name else None


@dataclass(frozen=True)
class _Listed:
    """The ids of a test table, what names their files where they do not, and notes of how it was read."""

    ids: Sequence[str] = ()
    files: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()


def _test_ids(config: DataConfig, sample: SampleSubmission | None, id_column: str, place: Path) -> _Listed:
    """Return the ids of the test table, none where there is none."""
    path = _test_table(config)
    if path is None:
        return _Listed()
    listing = Listing(place)
    table, notes = read_table(path, listing.holds)
    named = [column for column in (id_column, sample.id_column if sample else "") if column in table.columns]
    column = named[0] if named else id_column_of(table, config.csv.model_copy(update={"id_column": ""}), sample, path)
    ids: list[str] = table[column].tolist()
    refuse_duplicates(ids, path, column)
    own = config.csv.file_column if config.csv.file_column in table.columns else ""  # it may be the other table's alone
    files_from = config.csv.model_copy(update={"file_column": own})
    found = file_column_of(table, column, files_from, listing.holds, listing.locate, path)
    files = {} if found.column == column else dict(zip(ids, table[found.column].tolist(), strict=True))
    return _Listed(ids, files, (*notes, *found.notes))


def _pixels(path: Path, config: DataConfig, sample: SampleSubmission | None, notes: Sequence[str], task: str) -> Source:
    """Return the images of tables that hold their pixels."""
    train, told = pixel_tables.read(path), list(notes)
    ids, id_column = train.ids("train", config.csv, None)
    labels = labels_of(train.others, id_column, config.csv, sample, path, task)
    side = train.images.shape[1]
    told.append(f"{path}: holds the pixels of {len(ids):,} grey pictures of {side} x {side}")
    told += [*_unused(train.others.columns, (id_column, config.csv.group_column, *labels.columns), path), *labels.notes]
    groups = group_numbers(train.others, config.csv, path) if config.csv.group_column else None
    test_path = _test_table(config)
    test = _pixel_test(test_path, config, sample) if test_path is not None else None
    return Source(
        Split("train", train.images, np.array(ids, np.str_), labels.targets), test, labels.classes, groups=groups,
        sample=sample, notes=tuple(told), separator=labels.separator, task=labels.task,
        header=_header(id_column or "id", labels.column), synonyms=labels.synonyms,
    )  # fmt: skip


def _pixel_test(path: Path, config: DataConfig, sample: SampleSubmission | None) -> Split:
    found = pixel_tables.read(path)
    ids, _ = found.ids("test", config.csv, sample)
    test = Split("test", found.images, np.array(ids, np.str_), None)
    return test if sample is None else _in_order_of(sample, test, path)


def _in_order_of(sample: SampleSubmission, test: Split, path: Path) -> Split:
    """Return the test's rows in the order of the sample's.

    Raises:
        DataError: a row of the sample is not in the table.
    """
    rows = {key: row for row, key in enumerate(test.ids.tolist())}
    missing = [key for key in sample.ids if key not in rows]
    if missing:
        raise DataError(
            f"{path}: {len(missing):,} of {len(sample.ids):,} ids of {sample.path} are not in it, first {missing[0]!r}"
        )
    return test.take(np.array([rows[key] for key in sample.ids], np.int64), "test")
