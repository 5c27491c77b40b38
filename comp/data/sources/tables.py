"""Image files with a table of labels: the usual Kaggle set."""

from pathlib import Path

import numpy as np

from comp.competition.spec import Sample
from comp.config import DataConfig
from comp.data.sources.csv_tables import group_numbers, id_column_of, read_table, refuse_duplicates
from comp.data.sources.labels import labels_of
from comp.data.sources.samples import Listing, sample_of, unlabelled_test
from comp.data.sources.source import Source
from comp.data.survey import files_split
from comp.errors import DataError, nearest
from comp.progress import Progress

_TEST_TABLES = ("test.csv", "test.csv.zip")  # what `data.csv.test_table: auto` looks for


def csv_images(config: DataConfig, progress: Progress, task: str = "auto") -> Source:
    """`train.csv` (ids, labels), `train/`, maybe `test/`, `test.csv` and `sample_submission.csv`; see `data.csv`.

    Ids are file names with or without their ending. Labels stand in one column of names, of which one may hold several
    (`data.csv.separator`), or in a column of 0 and 1 for each class. Classes are in the order of their values where all
    are numbers, of their names else; where the sample submission has a column for each class, in the order of its
    columns.
    """
    root, files = Path(config.root), config.csv
    path = root / files.table
    table, submitted = read_table(path), sample_of(config)
    sample = submitted.sample
    id_column = id_column_of(table, files, sample, path)
    ids = table[id_column].tolist()
    refuse_duplicates(ids, path, id_column)
    labels = labels_of(table, id_column, files, sample, path, task)
    paths = Listing(root / files.train).find(ids)
    train = files_split("train", paths, ids, labels.targets, config, progress)
    groups = group_numbers(table, files, path)[np.isin(ids, train.ids)] if files.group_column else None
    notes, test = [*submitted.notes, *labels.notes], None
    if (root / files.test).is_dir():
        listed = _test_ids(config, sample, id_column)
        test_images = unlabelled_test(
            root / files.test, sample, config, progress, listed=listed, training=frozenset(paths)
        )
        notes += test_images.notes
        test = test_images.split
    return Source(
        train, test, labels.classes, groups=groups, sample=sample, notes=tuple(notes), separator=labels.separator,
        task=labels.task, header=_header(id_column, labels.column), synonyms=labels.synonyms,
    )  # fmt: skip


def _header(id_column: str, label_column: str) -> tuple[str, str]:
    """Return what a submission's columns are called where no sample shows it: as the training table's are."""
    named = "id" if id_column.startswith("Unnamed: ") else id_column
    return named, label_column or "label"


def _test_ids(config: DataConfig, sample: Sample | None, id_column: str) -> list[str]:
    """Return the ids of the test table, none where there is none."""
    root, name = Path(config.root), config.csv.test_table
    if name == "auto":
        path = next((root / usual for usual in _TEST_TABLES if (root / usual).is_file()), None)
    elif name and not (root / name).is_file():
        here = sorted(path.name for path in root.glob("*.csv*"))
        raise DataError(f"{root / name}: no such test table (data.csv.test_table){nearest(name, here)}")
    else:
        path = root / name if name else None
    if path is None:
        return []
    table = read_table(path)
    named = [column for column in (id_column, sample.id_column if sample else "") if column in table.columns]
    column = named[0] if named else id_column_of(table, config.csv.model_copy(update={"id_column": ""}), sample, path)
    ids: list[str] = table[column].tolist()
    refuse_duplicates(ids, path, column)
    return ids
