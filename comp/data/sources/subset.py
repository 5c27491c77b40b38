"""A source of some of its classes: `data.classes`."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from comp.data.sources.source import Source
from comp.data.splits import Split
from comp.errors import ConfigError, unknown


def of_classes(source: Source, names: Sequence[str]) -> Source:
    """Return a source with the images of some classes, relabelled in the order of `names`; ids stay.

    Raises:
        ConfigError: an unknown name, one given twice, fewer than two, or images whose classes nobody knows.
    """
    for name in names:
        if name not in source.classes:
            raise ConfigError(f"data.classes: {unknown('class', name, source.classes)}")
    if len(set(names)) < max(2, len(names)):
        raise ConfigError(f"data.classes: expected two different classes or more, found {list(names)}")
    if source.sample is not None or (source.test is not None and source.test.labels is None):
        raise ConfigError(
            "data.classes: some classes cannot be left out of test images whose labels are not known; leave it out"
        )
    relabelled = np.full(len(source.classes), -1, np.int64)
    relabelled[[source.classes.index(name) for name in names]] = np.arange(len(names))
    kept = np.flatnonzero(relabelled[_labels(source.train)] >= 0)
    return replace(
        source,
        train=_kept(source.train, relabelled),
        val=source.val and _kept(source.val, relabelled),
        test=source.test and _kept(source.test, relabelled),
        classes=tuple(names),
        groups=None if source.groups is None else source.groups[kept],
    )


def _kept(split: Split, relabelled: np.ndarray) -> Split:
    labels = relabelled[_labels(split)]
    kept = np.flatnonzero(labels >= 0)
    return replace(split.take(kept, split.name), labels=labels[kept])


def _labels(split: Split) -> np.ndarray:
    assert split.labels is not None
    return split.labels
