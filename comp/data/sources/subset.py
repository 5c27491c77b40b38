"""A source of some of its classes: `data.classes`."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from comp.data.sources.source import Source
from comp.data.splits import Split
from comp.runtime.errors import ConfigError, unknown


def of_classes(source: Source, names: Sequence[str]) -> Source:
    """Return a source with the images of some classes, relabelled in the order of `names`; ids stay.

    All classes in another order leave nothing out: that is how text grades are put in their order. Of several labels,
    images keep those that are named, and none is left out.

    Raises:
        ConfigError: an unknown name, one given twice, fewer than two, or images whose classes nobody knows.
    """
    for name in names:
        if name not in source.classes:
            raise ConfigError(f"data.classes: {unknown('class', name, source.classes)}")
    if len(set(names)) < max(2, len(names)):
        raise ConfigError(f"data.classes: expected two different classes or more, found {list(names)}")
    unlabelled = source.sample is not None or (source.test is not None and source.test.labels is None)
    if unlabelled and len(names) < len(source.classes):
        raise ConfigError(
            "data.classes: some classes cannot be left out of test images whose labels are not known; leave it out"
        )
    places = np.array([source.classes.index(name) for name in names])
    train, rows = _kept(source.train, places, len(source.classes))
    return replace(
        source,
        train=train,
        val=source.val and _kept(source.val, places, len(source.classes))[0],
        test=source.test and _kept(source.test, places, len(source.classes))[0],
        classes=tuple(names),
        groups=None if source.groups is None else source.groups[rows],
        synonyms={column: tuple(texts[place] for place in places) for column, texts in source.synonyms.items()},
    )


def _kept(split: Split, places: NDArray[np.int64], count: int) -> tuple[Split, NDArray[np.int64]]:
    """Return a split of the classes at `places` alone, and which rows it keeps."""
    labels = split.labels
    if labels is None:
        return split, np.arange(len(split))
    if labels.ndim == 2:
        return replace(split, labels=labels[:, places]), np.arange(len(split))
    relabelled = np.full(count, -1, np.int64)
    relabelled[places] = np.arange(len(places))
    moved = relabelled[labels.astype(np.int64)]
    rows = np.flatnonzero(moved >= 0)
    return replace(split.take(rows, split.name), labels=moved[rows]), rows
