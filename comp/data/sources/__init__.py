"""Where images and labels come from: one function and one row of `SOURCES` each.

A source reads the on-disk layout that its publisher uses, below `data.root`, and downloads what is missing through
torchvision where that offers it.
"""

from collections.abc import Callable

import numpy as np

from comp.config import DataConfig
from comp.data.sources.cifar import cifar10, cifar100
from comp.data.sources.digits import digits
from comp.data.sources.folders import image_folder
from comp.data.sources.idx import fashion_mnist, mnist
from comp.data.sources.numpy_files import arrays
from comp.data.sources.source import Source
from comp.data.sources.subset import of_classes
from comp.data.sources.tables import csv_images
from comp.data.splits import Split
from comp.errors import ConfigError, DataError, unknown
from comp.progress import Progress, quiet

__all__ = ["SOURCES", "Source", "open_source"]

SOURCES: dict[str, Callable[[DataConfig, Progress], Source]] = {
    "arrays": arrays,
    "cifar10": cifar10,
    "cifar100": cifar100,
    "csv_images": csv_images,
    "digits": digits,
    "fashion_mnist": fashion_mnist,
    "image_folder": image_folder,
    "mnist": mnist,
}


def open_source(config: DataConfig, progress: Progress = quiet) -> Source:
    """Return the source that `data.source` names.

    Raises:
        DataError: unknown name, or files that are missing or wrong.
        ConfigError: a setting that this source has no use for.
    """
    if config.source not in SOURCES:
        raise DataError(f"data.source: {unknown('source', config.source, SOURCES)}")
    source = SOURCES[config.source](config, progress)
    for split in (source.train, source.val, source.test):
        if split is not None:
            _check_labels(split, source.classes, config.source)
    _check_settings(config, source)
    if config.classes:
        source = of_classes(source, config.classes)
        _check_labels(source.train, source.classes, config.source)
    return source


def _check_labels(split: Split, classes: tuple[str, ...], name: str) -> None:
    if split.labels is None:
        return
    beyond = np.flatnonzero(split.labels >= len(classes))
    if len(beyond):
        row = int(beyond[0])
        raise DataError(
            f"{name}: {split.name} label {int(split.labels[row])} at row {row} is out of range: there are "
            f"{len(classes)} classes, 0 to {len(classes) - 1}"
        )
    if split.name == "train" and len(np.unique(split.labels)) < 2:
        only = classes[int(split.labels[0])]
        raise DataError(f"{name}: expected training images of two classes or more, found only class '{only}'")


def _check_settings(config: DataConfig, source: Source) -> None:
    """Refuse settings that would do nothing here: whoever wrote them expects something of them."""
    if config.image_size is not None and isinstance(source.train.images, np.ndarray):
        raise ConfigError(
            f"data.image_size: {config.source} holds arrays, which keep their size; to enlarge them inside the model: "
            f"model.stem=resize model.input_size={config.image_size}"
        )
    if config.labels == "coarse" and config.source != "cifar100":
        raise ConfigError(f"data.labels: {config.source} has no coarse labels, only cifar100 has; leave it out")
    if config.groups == "column" and source.groups is None:
        raise ConfigError(f"data.groups: {config.source} has no table, so no group column; use csv_images")
