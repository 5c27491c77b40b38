"""Groups of images with one answer, such as the scans of a patient (`data.group_answer`).

A network learns from images, and predicts each image alone, with its views and adaptation. The outputs of a group's
images are then combined to one row, before anything is scored, decided, stored or submitted: what follows sees one
prediction a group, whose id is the group's name. An ensemble so combines its members' groups, not their images.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from comp.config.tasks import TASKS
from comp.results.predictions import Targets

_Values = NDArray[np.float64]

# Of logarithms: that of the sum of what they stand for, and the highest.
_POOL = {"mean": np.logaddexp, "max": np.maximum}


def _pool_softmax(outputs: _Values, starts: NDArray[np.intp], answer: str) -> _Values:
    logarithms = outputs - np.logaddexp.reduce(outputs, axis=1, keepdims=True)  # of the probabilities
    pooled: _Values = _POOL[answer].reduceat(logarithms, starts)  # the softmax that follows divides by their sum
    return pooled


def _pool_sigmoid(outputs: _Values, starts: NDArray[np.intp], answer: str) -> _Values:
    if answer == "max":
        highest: _Values = np.maximum.reduceat(outputs, starts)
        return highest
    present, absent = -np.logaddexp(0, -outputs), -np.logaddexp(0, outputs)  # logarithms of p and 1 - p
    mean: _Values = np.logaddexp.reduceat(present, starts) - np.logaddexp.reduceat(absent, starts)
    return mean


def _pool_numbers(outputs: _Values, starts: NDArray[np.intp], answer: str) -> _Values:
    if answer == "max":
        highest: _Values = np.maximum.reduceat(outputs, starts)
        return highest
    mean: _Values = np.add.reduceat(outputs, starts) / np.diff(starts, append=len(outputs))[:, None]
    return mean


# By activation of the task. Arguments: outputs [N, K] before the activation, sorted by group; where each group starts
# [G]; `mean` or `max`. Result: [G, K], before the activation too.
_POOLS: dict[str, Callable[[_Values, NDArray[np.intp], str], _Values]] = {
    "softmax": _pool_softmax,
    "sigmoid": _pool_sigmoid,
    "identity": _pool_numbers,
}


@dataclass(frozen=True)
class Groups:
    """Which images get one answer together; groups are ordered by their first image.

    Attributes:
        names: [N] text, the group of each image.
        answer: `mean` or `max`; see `data.group_answer`.
    """

    names: NDArray[np.str_]
    answer: str

    @cached_property
    def first(self) -> NDArray[np.intp]:
        """The row of each group's first image [G]."""
        return np.sort(np.unique(self.names, return_index=True)[1])

    @property
    def ids(self) -> NDArray[np.str_]:
        """The groups' names [G]."""
        return self.names[self.first]

    @cached_property
    def numbers(self) -> NDArray[np.intp]:
        """The number of each image's group [N], from 0."""
        order = np.argsort(self.ids)
        numbers: NDArray[np.intp] = order[np.searchsorted(self.ids, self.names, sorter=order)]
        return numbers

    def take(self, rows: "slice | NDArray[np.int64]") -> "Groups":
        """Return the groups of some images."""
        return Groups(self.names[rows], self.answer)

    def combine(
        self, outputs: NDArray[np.float32], task: str, blank: NDArray[np.bool_] | None = None
    ) -> NDArray[np.float32]:
        """Return one row for each group [G, K], before the activation.

        Args:
            outputs: [N, K] of the images, before the activation.
            task: a row of `comp.config.tasks.TASKS`.
            blank: [N], images that could not be read: they do not count, unless their whole group is blank.
        """
        rows = np.argsort(self.numbers, kind="stable")
        if blank is not None:
            readable = np.isin(self.numbers, self.numbers[~blank])
            rows = rows[~(blank & readable)[rows]]
        starts = np.flatnonzero(np.diff(self.numbers[rows], prepend=-1))
        values = np.where(np.isfinite(outputs), outputs, np.nan)[rows].astype(np.float64)
        with np.errstate(invalid="ignore"):  # a group with NaN is NaN, and refused later
            pooled = _POOLS[TASKS[task].activation](values, starts, self.answer)
        return pooled.astype(np.float32)

    def differing(self, labels: Targets) -> NDArray[np.intp]:
        """Return the rows of images whose label differs from that of their group's first image."""
        differs = labels != labels[self.first][self.numbers]
        return np.flatnonzero(differs.any(1) if differs.ndim == 2 else differs)
