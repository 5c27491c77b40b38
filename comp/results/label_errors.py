"""Confident learning: find likely wrong labels from out-of-fold probabilities. NumPy only.

After Northcutt, Jiang and Chuang 2021, "Confident Learning: Estimating Uncertainty in Dataset Labels",
arXiv:1911.00068: the confident joint with a threshold for each class, pruned by noise rate, ranked by normalized
margin.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_TOLERANCE = 1e-6  # of a probability that equals its class's threshold up to rounding


@dataclass(frozen=True)
class LabelErrors:
    """Likely wrong labels.

    Attributes:
        joint: [C, C] estimated images of each given label (row) and true class (column); rows sum to the given counts.
        rows: [E] rows with a likely wrong label, the likeliest first.
        suggested: [E] the class that the probabilities suggest.
        margins: [E] probability of the given label less that of the suggested class, in [-1, 0].
        confident: [E] whether the suggested class is at least as likely as it is on average for images labelled so.
    """

    joint: NDArray[np.int64]
    rows: NDArray[np.int64]
    suggested: NDArray[np.int64]
    margins: NDArray[np.float64]
    confident: NDArray[np.bool_]

    @property
    def estimated(self) -> int:
        """The estimated number of wrong labels."""
        return int(self.joint.sum() - np.trace(self.joint))

    def pairs(self) -> list[tuple[int, int, int]]:
        """Return (given label, true class, estimated images) of all confused pairs, the most frequent first."""
        wrong = self.joint - np.diag(self.joint.diagonal())
        order = np.argsort(-wrong, axis=None, kind="stable")
        cells = [divmod(int(cell), len(wrong)) for cell in order[: np.count_nonzero(wrong)]]
        return [(given, true, int(wrong[given, true])) for given, true in cells]


def find_label_errors(probabilities: NDArray[np.float64], labels: NDArray[np.int64]) -> LabelErrors:
    """Return the likely wrong labels.

    Args:
        probabilities: [N, C], each row by a model that was not trained on it.
        labels: [N] the given labels.
    """
    thresholds = _class_thresholds(probabilities, labels)
    joint = _calibrated(_confident_joint(probabilities, labels, thresholds), labels)
    suggested = probabilities.argmax(1)
    rows = np.flatnonzero(_pruned_by_noise_rate(probabilities, labels, joint) & (suggested != labels))
    margins = probabilities[rows, labels[rows]] - probabilities[rows, suggested[rows]]
    order = np.argsort(margins, kind="stable")
    rows, margins = rows[order], margins[order]
    confident = probabilities[rows, suggested[rows]] >= thresholds[suggested[rows]] - _TOLERANCE
    return LabelErrors(joint, rows, suggested[rows], margins, confident)


def _class_thresholds(probabilities: NDArray[np.float64], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return each class's mean probability over the images labelled so [C]; infinite for a class without images."""
    classes = probabilities.shape[1]
    counts = np.bincount(labels, minlength=classes)
    sums = np.bincount(labels, probabilities[np.arange(len(labels)), labels], classes)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.inf)


def _confident_joint(
    probabilities: NDArray[np.float64], labels: NDArray[np.int64], thresholds: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Return counts [C, C] of given labels and of the likeliest class that reaches its threshold (equation 1)."""
    classes = len(thresholds)
    reached = np.where(probabilities >= thresholds - _TOLERANCE, probabilities, -1.0)
    rows = reached.max(1) >= 0
    cells = labels[rows] * classes + reached[rows].argmax(1)
    joint = np.bincount(cells, minlength=classes * classes).reshape(classes, classes)
    np.fill_diagonal(joint, np.maximum(joint.diagonal(), 1))  # each class is right at least once
    return joint


def _calibrated(joint: NDArray[np.int64], labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the joint scaled to the number of images of each given label, rounded by largest remainder."""
    counts = np.bincount(labels, minlength=len(joint))
    exact = joint / joint.sum(1, keepdims=True) * counts[:, None]
    rounded: NDArray[np.int64] = np.floor(exact + 1e-9).astype(np.int64)
    for row, lacking in enumerate(counts - rounded.sum(1)):
        rounded[row, np.argsort(rounded[row] - exact[row], kind="stable")[:lacking]] += 1
    return rounded


def _pruned_by_noise_rate(
    probabilities: NDArray[np.float64], labels: NDArray[np.int64], joint: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Return [N]: for each pair of given label and other class, the estimated number of images with largest margin."""
    wrong = np.zeros(len(labels), bool)
    for given, true in np.argwhere(joint):
        if given != true:
            rows = np.flatnonzero(labels == given)
            margins = probabilities[rows, true] - probabilities[rows, given]
            wrong[rows[np.argsort(-margins, kind="stable")[: joint[given, true]]]] = True
    return wrong
