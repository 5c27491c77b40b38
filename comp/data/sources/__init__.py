"""Where images and labels come from: one function and one row of `SOURCES` each.

A source reads the on-disk layout that its publisher uses, below `data.root`, and downloads what is missing through
torchvision where that offers it.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from comp.config import DataConfig
from comp.config.tasks import TASKS
from comp.config.tasks import task as known_task
from comp.data.sources.cifar import cifar10, cifar100
from comp.data.sources.digits import digits
from comp.data.sources.folders import folder_test, image_folder
from comp.data.sources.idx import fashion_mnist, mnist
from comp.data.sources.numpy_files import arrays
from comp.data.sources.samples import OwnTest
from comp.data.sources.scaling import of_one_scale
from comp.data.sources.source import Source
from comp.data.sources.subset import of_classes
from comp.data.sources.tables import csv_images, csv_test
from comp.data.splits import Split
from comp.results.predictions import one_hot
from comp.runtime.errors import ConfigError, DataError, unknown
from comp.runtime.progress import Progress, quiet

__all__ = ["SOURCES", "TESTS", "Source", "open_source"]

_SHOWN = 5  # classes in a note

# Each is given section `data`, who is told of progress, and the task that the config names, or `auto`.
SOURCES: dict[str, Callable[[DataConfig, Progress, str], Source]] = {
    "arrays": arrays,
    "cifar10": cifar10,
    "cifar100": cifar100,
    "csv_images": csv_images,
    "digits": digits,
    "fashion_mnist": fashion_mnist,
    "image_folder": image_folder,
    "mnist": mnist,
}


# Sources whose test can be opened by itself: given section `data`, the classes in label order, and who is told.
TESTS: dict[str, Callable[[DataConfig, Sequence[str], Progress], OwnTest]] = {
    "csv_images": csv_test,
    "image_folder": folder_test,
}


def open_source(config: DataConfig, progress: Progress = quiet, task: str = "auto") -> Source:
    """Return the source that `data.source` names, its labels as the task has them.

    Args:
        config: section `data`.
        progress: called while files are read.
        task: `competition.task`; `auto`: as the labels show.

    Raises:
        DataError: unknown name, files that are missing or wrong, or labels that contradict the task.
        ConfigError: a setting that this source has no use for.
    """
    if config.source not in SOURCES:
        raise DataError(f"data.source: {unknown('source', config.source, SOURCES)}")
    if task != "auto":
        known_task(task)
    source = _with_task(SOURCES[config.source](config, progress, task), task)
    source = of_one_scale(source, config, progress)
    for split in (source.train, source.val, source.test):
        if split is not None:
            _check_labels(split, source.classes, config.source)
    _check_settings(config, source)
    if (counts := source.train.class_counts(len(source.classes))).min(initial=1) == 0:
        empty = [name for name, count in zip(source.classes, counts, strict=True) if not count]
        note = f"train: no image of {len(empty):,} classes, which are never predicted: {', '.join(empty[:_SHOWN])}"
        source = replace(source, notes=(*source.notes, note))
    if config.classes:
        source = of_classes(source, config.classes)
        _check_labels(source.train, source.classes, config.source)
    return source


def _with_task(source: Source, task: str) -> Source:
    """Return a source with labels as the task has them: class indices, or a column for each class.

    Columns with one 1 in every row are class indices too, unless the task says otherwise.
    """
    splits = [split for split in (source.train, source.val, source.test) if split is not None]
    labelled = [split.labels for split in splits if split.labels is not None]
    exclusive = all(bool((labels.sum(1) == 1).all()) for labels in labelled if labels.ndim == 2)
    meant = task if task != "auto" else "multi_label" if not exclusive else source.task
    if source.task == "multi_label" and exclusive and task == "auto" and not source.separator:
        meant = "single_label"
    if meant == "single_label" and not exclusive:
        raise DataError(
            "competition.task is single_label, and some images have no label or several; set "
            "competition.task=multi_label"
        )
    count, columns = len(source.classes), TASKS[meant].target_columns

    def converted(split: Split | None) -> Split | None:
        if split is None or split.labels is None or (split.labels.ndim == 2) == columns:
            return split
        labels = split.labels
        if columns:
            return replace(split, labels=one_hot(labels.astype(np.int64), count).astype(np.float32))
        return replace(split, labels=labels.argmax(1).astype(np.int64))

    train = converted(source.train)
    assert train is not None
    return replace(source, train=train, val=converted(source.val), test=converted(source.test), task=meant)


def _check_labels(split: Split, classes: tuple[str, ...], name: str) -> None:
    labels = split.labels
    if labels is None:
        return
    if labels.ndim == 1:
        beyond = np.flatnonzero(labels >= len(classes))
        if len(beyond):
            row = int(beyond[0])
            raise DataError(
                f"{name}: {split.name} label {int(labels[row])} at row {row} is out of range: there are "
                f"{len(classes)} classes, 0 to {len(classes) - 1}"
            )
    counts = split.class_counts(len(classes))
    if split.name == "train" and np.count_nonzero(counts) < (2 if labels.ndim == 1 else 1):
        only = f"only class '{classes[int(counts.argmax())]}'" if counts.any() else "none"
        raise DataError(f"{name}: expected training images of two classes or more, found {only}")


def _check_settings(config: DataConfig, source: Source) -> None:
    """Refuse settings that would do nothing here: whoever wrote them expects something of them."""
    if config.image_size is not None and isinstance(source.train.images, np.ndarray):
        size = str(config.image_size).replace("(", "[").replace(")", "]").replace(" ", "")
        raise ConfigError(
            f"data.image_size: {config.source} holds arrays, which keep their size; to enlarge them inside the model: "
            f"model.stem=resize model.input_size={size}"
        )
    if config.labels == "coarse" and config.source != "cifar100":
        raise ConfigError(f"data.labels: {config.source} has no coarse labels, only cifar100 has; leave it out")
    if config.label_pattern and config.source != "image_folder":
        raise ConfigError(f"data.label_pattern: {config.source} has no use for it, only image_folder has; leave it out")
    if config.groups == "column" and source.groups is None:
        raise ConfigError(f"data.groups: {config.source} has no table, so no group column; use csv_images")
