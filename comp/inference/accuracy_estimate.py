"""Accuracy estimates without labels: average thresholded confidence (Garg et al. 2022, arXiv:2201.04234).

The threshold makes the share of more confident images equal the accuracy on shifted validation; on other images that
share estimates their accuracy. The interval covers nine in ten blocks of unseen corruption families: each family is
left out in turn to measure the errors.
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
    """Calibration from shifted validation.

    Attributes:
        threshold: of the top probability; images at or above it count as correct.
        margin: half the width of a block's interval.
    """

    threshold: float
    margin: float


@dataclass(frozen=True)
class LabelFreeEstimate:
    """An estimated accuracy with its interval.

    Attributes:
        accuracy: mean of the blocks' estimates.
        low: mean of the blocks' lower bounds.
        high: mean of the blocks' upper bounds.
        width: mean width of the blocks' intervals.
        by_block: estimate of each block.
    """

    accuracy: float
    low: float
    high: float
    width: float
    by_block: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        """Return the fields as a dict."""
        return asdict(self)


def calibrate(shifted: Predictions) -> Calibration | None:
    """Calibrate on labelled blocks; None for fewer than two corruption families, or a task without estimates.

    Args:
        shifted: shifted validation, predicted with the options of the predictions to estimate.
    """
    if not shifted.row.accuracy_estimate:
        return None
    confidence, correct = confidences(shifted), shifted.correct()
    families = np.array([_family(name) for name, rows in shifted.blocks() for _ in range(rows.stop - rows.start)])
    if len(set(families)) < 2:
        return None
    errors = []
    for family in sorted(set(families)):
        rest = families != family
        threshold = _threshold(confidence[rest], correct[rest])
        errors += [
            abs(float((confidence[rows] >= threshold).mean() - correct[rows].mean()))
            for name, rows in shifted.blocks()
            if _family(name) == family
        ]
    # The rank that covers another block with this probability (split conformal prediction).
    rank = min(len(errors), math.ceil(_COVERED * (len(errors) + 1)))
    return Calibration(_threshold(confidence, correct), sorted(errors)[rank - 1])


def estimate_accuracy(images: Predictions, calibration: Calibration) -> LabelFreeEstimate:
    """Estimate the accuracy of each block; predictions without blocks are one block."""
    confidence = confidences(images)
    blocks = images.blocks() or [("all", slice(0, len(images)))]
    estimates = {name: float((confidence[rows] >= calibration.threshold).mean()) for name, rows in blocks}
    middle = np.array(list(estimates.values()))
    low, high = np.maximum(middle - calibration.margin, 0), np.minimum(middle + calibration.margin, 1)
    return LabelFreeEstimate(
        accuracy=float(middle.mean()),
        low=float(low.mean()),
        high=float(high.mean()),
        width=float((high - low).mean()),
        by_block=estimates,
    )


def _threshold(confidence: NDArray[np.float32], correct: NDArray[np.bool_]) -> float:
    """Return the threshold that as many images reach as are correct; infinity if none is."""
    count = int(correct.sum())
    return float(np.sort(confidence)[len(confidence) - count]) if count else math.inf


def _family(block: str) -> str:
    return CORRUPTIONS[DISTORTIONS[distortion_and_severity(block)[0]]].family
