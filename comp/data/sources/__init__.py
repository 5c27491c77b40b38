"""Data sources: one function and one row of `SOURCES` each.

A source reads the layout that its publisher uses, below `data.root`, and downloads what is missing through torchvision
if that offers it.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from comp.config import DataConfig
from comp.config.tasks import TASKS
from comp.config.tasks import task as task_row
from comp.data.sources.folders import folder_test, image_folder
from comp.data.sources.grouping import check_groups
from comp.data.sources.listing import LoadedTest
from comp.data.sources.numpy_files import arrays
from comp.data.sources.published import cifar10, cifar100, digits, fashion_mnist, mnist
from comp.data.sources.source import Source, scale_to_uint8, select_classes
from comp.data.sources.tables import csv_images, csv_test
from comp.data.splits import Split
from comp.results.predictions import class_values, one_hot
from comp.runtime.errors import ConfigError, DataError, plural, unknown
from comp.runtime.progress import Progress, quiet

__all__ = ["SOURCES", "TESTS", "Source", "open_source"]

_SHOWN = 5  # classes in a note

# Arguments: section `data`, a progress callback, and the config's task or `auto`.
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

# Sources whose test opens without the training images. Arguments: section `data`, the classes, a progress callback.
TESTS: dict[str, Callable[[DataConfig, Sequence[str], Progress], LoadedTest]] = {
    "csv_images": csv_test,
    "image_folder": folder_test,
}


def open_source(config: DataConfig, progress: Progress = quiet, task: str = "auto") -> Source:
    """Return the source that `data.source` names, with labels in the form of the task.

    Args:
        config: section `data`.
        progress: called while files are read.
        task: `competition.task`; `auto`: infer it from the labels.

    Raises:
        DataError: unknown name, missing or wrong files, or labels that contradict the task.
        ConfigError: a setting that this source does not support.
    """
    if config.source not in SOURCES:
        raise DataError(f"data.source: {unknown('source', config.source, SOURCES)}")
    if task != "auto":
        task_row(task)
    source = SOURCES[config.source](config, progress, task)
    for split in () if TASKS[source.task].numeric else source.splits:
        _check_range(split, source.classes, config.source)
    source = _with_task(source, task)
    source = scale_to_uint8(source, config, progress)
    for split in source.splits:
        _check_labels(split, source.classes, config.source)
    _check_settings(config, source)
    counts = source.train.class_counts(len(source.classes))
    if empty := [name for name, count in zip(source.classes, counts, strict=True) if not count]:
        classes = plural(len(empty), "class, which is", "classes, which are")
        note = f"train: no image of {classes} never predicted: {', '.join(empty[:_SHOWN])}"
        source = replace(source, notes=(*source.notes, note))
    if config.classes and TASKS[source.task].numeric:
        raise ConfigError(f"data.classes: task {source.task} has no classes; leave it out")
    if config.classes:
        source = select_classes(source, config.classes)
        _check_labels(source.train, source.classes, config.source)
    return source if config.group_answer == "none" else check_groups(source, config)


def _with_task(source: Source, task: str) -> Source:
    """Return a source with labels as the task has them: class indices, one column per class, or numbers.

    Columns with one 1 in every row become class indices, unless the task is set otherwise.
    """
    labelled = [split.labels for split in source.splits if split.labels is not None]
    exclusive = all(bool((labels.sum(1) == 1).all()) for labels in labelled if labels.ndim == 2)
    if task == "auto" and not exclusive:
        task = "multi_label"
    elif task == "auto":
        task = "single_label" if source.task == "multi_label" and not source.separator else source.task
    if not TASKS[task].target_columns and not exclusive:
        raise DataError(
            f"competition.task is {task}, and some images have no label or several; set competition.task=multi_label"
        )
    if TASKS[task].numeric:
        return _with_numbers(source, task)
    if any(split.is_numeric for split in source.splits):
        raise DataError(
            f"competition.task is {task}, and the training labels are floats; save classes as whole numbers "
            "(astype(int)), or set competition.task=regression"
        )
    count, columns = len(source.classes), TASKS[task].target_columns

    def converted(split: Split | None) -> Split | None:
        if split is None or split.labels is None or (split.labels.ndim == 2) == columns:
            return split
        labels = split.labels
        if columns:
            return replace(split, labels=one_hot(labels.astype(np.int64), count).astype(np.float32))
        return replace(split, labels=labels.argmax(1).astype(np.int64))

    train = converted(source.train)
    assert train is not None
    return replace(source, train=train, val=converted(source.val), test=converted(source.test), task=task)


def _with_numbers(source: Source, task: str) -> Source:
    """Return a source whose labels are numbers [N] float32; of classes, those that their names spell."""
    values = class_values(source.classes)
    if not TASKS[source.task].numeric and values is None:
        raise DataError(
            f"competition.task is {task}, and the labels are names: {', '.join(source.classes[:_SHOWN])}; expected "
            "numbers: for classes in order set competition.task=ordinal and data.classes=[lowest, ..., highest]"
        )
    numbers = np.array(values or (), np.float64).astype(np.float32)

    def converted(split: Split | None) -> Split | None:
        if split is None or split.labels is None or split.is_numeric:
            return split
        if TASKS[source.task].numeric:
            return replace(split, labels=split.labels.reshape(len(split)).astype(np.float32))
        indices = split.labels.argmax(1) if split.labels.ndim == 2 else split.labels.astype(np.int64)
        return replace(split, labels=numbers[indices])

    train = converted(source.train)
    assert train is not None
    return replace(
        source,
        train=train,
        val=converted(source.val),
        test=converted(source.test),
        classes=source.header[1:],
        task=task,
        numbered=False,
        separator="",
        synonyms={},
    )


def _check_range(split: Split, classes: tuple[str, ...], source: str) -> None:
    """Refuse class indices that name no class."""
    labels = split.labels
    if labels is None or labels.ndim == 2 or split.is_numeric:
        return
    out_of_range = np.flatnonzero(labels >= len(classes))
    if len(out_of_range):
        row = int(out_of_range[0])
        raise DataError(
            f"{source}: {split.name} label {int(labels[row])} at row {row} is out of range: there are "
            f"{len(classes)} classes, 0 to {len(classes) - 1}"
        )


def _check_labels(split: Split, classes: tuple[str, ...], source: str) -> None:
    labels = split.labels
    if labels is None:
        return
    if split.is_numeric:
        wrong = np.flatnonzero(~np.isfinite(labels))
        if len(wrong):
            row = int(wrong[0])
            raise DataError(f"{source}: {split.name} label {labels[row]} at row {row}: expected a finite number")
        if split.name == "train" and labels.min() == labels.max():
            raise DataError(f"{source}: all training labels are {labels[0]:g}, so there is nothing to learn")
        return
    counts = split.class_counts(len(classes))
    if split.name == "train" and np.count_nonzero(counts) < (2 if labels.ndim == 1 else 1):
        only = f"only class '{classes[int(counts.argmax())]}'" if counts.any() else "none"
        raise DataError(f"{source}: expected training images of two classes or more, found {only}")


def _check_settings(config: DataConfig, source: Source) -> None:
    """Refuse settings that have no effect on this source."""
    if config.image_size is not None and isinstance(source.train.images, np.ndarray):
        size = str(config.image_size).replace("(", "[").replace(")", "]").replace(" ", "")
        raise ConfigError(
            f"data.image_size: {config.source} holds arrays, which keep their size; to enlarge them inside the model: "
            f"model.stem=resize model.input_size={size}"
        )
    if config.labels == "coarse" and config.source != "cifar100":
        raise ConfigError(f"data.labels: {config.source} has no coarse labels, only cifar100 does; leave it out")
    if config.label_pattern and config.source != "image_folder":
        raise ConfigError(f"data.label_pattern: {config.source} does not use it, only image_folder does; leave it out")
    if config.groups == "column" and source.groups is None:
        raise ConfigError(f"data.groups: {config.source} has no table, so no group column; use csv_images")
