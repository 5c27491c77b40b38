"""Image files with a table of labels: the usual Kaggle set."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from comp.config import DataConfig
from comp.data.sources.csv_tables import columns_of, group_numbers, read_table, refuse_duplicates
from comp.data.sources.samples import Listing, sample_of, unlabelled_test
from comp.data.sources.source import Source
from comp.data.survey import files_split
from comp.errors import DataError
from comp.progress import Progress


def csv_images(config: DataConfig, progress: Progress) -> Source:
    """`train.csv` (ids, labels), `train/`, maybe `test/` and `sample_submission.csv`; see `data.csv` for other names.

    Ids are file names with or without their ending. Classes are the distinct labels: in the order of their numbers
    where all are whole numbers, of their names else; where the sample submission has a column for each class, in the
    order of its columns.
    """
    root, files = Path(config.root), config.csv
    path, sample_path = root / files.table, root / files.sample
    table = read_table(path)
    shown = [str(column) for column in read_table(sample_path).columns] if sample_path.is_file() else []
    id_column, label_column = columns_of(table, files, shown, path)
    ids, labels = table[id_column].tolist(), table[label_column].tolist()
    refuse_duplicates(ids, path, id_column)
    sample, classes = sample_of(sample_path, _classes(labels, path, label_column))
    numbers = {name: number for number, name in enumerate(classes)}
    paths = Listing(root / files.train).find(ids)
    train = files_split("train", paths, ids, [numbers[label] for label in labels], config, progress)
    groups = group_numbers(table, files, path)[np.isin(ids, train.ids)] if files.group_column else None
    test = None
    if (root / files.test).is_dir():
        test, sample = unlabelled_test(root / files.test, sample, classes, config, progress)
    return Source(train, test, classes, groups=groups, sample=sample)


def _classes(labels: Sequence[str], path: Path, column: str) -> tuple[str, ...]:
    """Return the distinct labels in their order.

    Raises:
        DataError: a row without a label, or labels that differ only in spaces.
    """
    missing = [row for row, label in enumerate(labels) if not label.strip()]
    if missing:
        raise DataError(
            f"{path}: column '{column}': {len(missing):,} rows have no label, first row {missing[0] + 2}; remove them"
        )
    found = set(labels)
    bare = {label.strip(): label for label in sorted(found)}
    if len(bare) < len(found):
        spaced = next(label for label in sorted(found) if label != bare[label.strip()])
        raise DataError(
            f"{path}: column '{column}': {spaced!r} and {bare[spaced.strip()]!r} differ only in spaces; mend them"
        )
    if all(label.lstrip("-").isascii() and label.lstrip("-").isdigit() for label in found):
        return tuple(sorted(found, key=lambda label: (int(label), label)))
    return tuple(sorted(found))
