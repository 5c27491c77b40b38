"""What a prediction will score, told without its labels: average thresholded confidence (Garg et al. 2022,
arXiv:2201.04234), with the threshold and an interval from shifted validation. NumPy alone.

A threshold is chosen so that on shifted validation the share of images that are surer than it is the accuracy; the
share on other images is then an estimate of theirs. The interval is wide enough for nine in ten blocks of corruption
families that its threshold has not seen: each family is left out in turn, and the misses are counted.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from comp.data.corruptions.suite import CORRUPTIONS
from comp.results.blocks import DISTORTIONS, distortion_and_severity
from comp.results.diagnostics import confidences
from comp.results.predictions import Predictions

_COVERED = 0.9  # of left-out families' blocks


@dataclass(frozen=True)
class Calibration:
    """What shifted validation teaches.

    Attributes:
        threshold: of the top probability; images at or above it count as right.
        margin: how far a block's accuracy may be from its estimate, half the interval.
    """

    threshold: float
    margin: float


@dataclass(frozen=True)
class Expected:
    """What a prediction is expected to score.

    Attributes:
        accuracy: mean of the blocks' estimates.
        low: mean of the blocks' lower ends.
        high: mean of their upper ends.
        width: mean width of the blocks' intervals, in accuracy.
        by_block: each block's estimate.
    """

    accuracy: float
    low: float
    high: float
    width: float
    by_block: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


def calibrate(shifted: Predictions) -> Calibration | None:
    """Return the calibration from labelled blocks; None of fewer than two families, or where the task has no estimate.

    Args:
        shifted: shifted validation, predicted in the way whose other predictions are to be judged.
    """
    if not shifted.row.accuracy_estimate:
        return None
    sure, right = confidences(shifted), shifted.correct()
    families = np.array([_family(name) for name, rows in shifted.blocks() for _ in range(rows.stop - rows.start)])
    if len(set(families)) < 2:
        return None
    misses = []
    for family in sorted(set(families)):
        seen = families != family
        threshold = _threshold(sure[seen], right[seen])
        misses += [
            abs(float((sure[rows] >= threshold).mean() - right[rows].mean()))
            for name, rows in shifted.blocks()
            if _family(name) == family
        ]
    # The rank that covers a further block as often, were it drawn like these (split conformal prediction).
    rank = min(len(misses), math.ceil(_COVERED * (len(misses) + 1)))
    return Calibration(_threshold(sure, right), sorted(misses)[rank - 1])


def estimate_accuracy(found: Predictions, calibration: Calibration) -> Expected:
    """Return what blocks are expected to score; a prediction without blocks is one."""
    sure = confidences(found)
    blocks = found.blocks() or [("all", slice(0, len(found)))]
    estimates = {name: float((sure[rows] >= calibration.threshold).mean()) for name, rows in blocks}
    middle = np.array(list(estimates.values()))
    low, high = np.maximum(middle - calibration.margin, 0), np.minimum(middle + calibration.margin, 1)
    return Expected(
        float(middle.mean()), float(low.mean()), float(high.mean()), float((high - low).mean()), estimates
    )  # fmt: skip


def _threshold(sure: NDArray[np.float32], right: NDArray[np.bool_]) -> float:
    """Return the value that as many of `sure` reach as are right; infinity where none is."""
    count = int(right.sum())
    return float(np.sort(sure)[len(sure) - count]) if count else math.inf


def _family(block: str) -> str:
    return CORRUPTIONS[DISTORTIONS[distortion_and_severity(block)[0]]].family
