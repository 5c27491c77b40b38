"""What scores can tell: intervals, differences that are more than chance, rankings that agree.

All intervals are at 95 %. NumPy alone: importing scipy.stats takes 0.5 s of a processor, where listing 10,000 runs
takes 1.2 s in all. Its `binomtest` gives Wilson's interval, the same to nine digits, in 400 us instead of 1, and a
listing needs thousands. The tests compare with scipy.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_Z = 1.959964  # two-sided 95 % of a normal distribution


@dataclass(frozen=True)
class Interval:
    """Where a value probably lies."""

    low: float
    high: float

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high


@dataclass(frozen=True)
class ScoreDifference:
    """How far one score is above another.

    Attributes:
        value: of the scores as measured; negative where it is below.
        interval: of what it would be on as many other images of the kind.
        images: that it was measured on; the independent ones.
        paired: whether it is known which images each of them gets right.
    """

    value: float
    interval: Interval
    images: int
    paired: bool

    @property
    def is_real(self) -> bool:
        """Whether the sign is more than chance."""
        return 0 not in self.interval


def wilson(share: float, count: int) -> Interval:
    """Return the interval of a share of `count` independent images (Wilson 1927), within [0, 1]."""
    scale = 1 + _Z**2 / count
    middle = (share + _Z**2 / (2 * count)) / scale
    half = _Z / scale * math.sqrt(share * (1 - share) / count + _Z**2 / (4 * count**2))
    return Interval(max(0.0, middle - half), min(1.0, middle + half))


def mean_interval(values: NDArray[np.float64]) -> Interval | None:
    """Return the normal interval of the mean of independent values [N]; None of fewer than two."""
    if len(values) < 2:
        return None
    half = _Z * float(values.std(ddof=1)) / math.sqrt(len(values))
    return Interval(float(values.mean()) - half, float(values.mean()) + half)


def unpaired_difference(one: float, other: float, count: int) -> ScoreDifference:
    """Return the difference of two shares, each of `count` images, as if the images were not the same.

    Newcombe's interval (1998, method 10), of two Wilson intervals. On the same images it is wider than it need be.
    """
    first, second, value = wilson(one, count), wilson(other, count), one - other
    low = value - math.hypot(one - first.low, second.high - other)
    high = value + math.hypot(first.high - one, other - second.low)
    return ScoreDifference(value, Interval(low, high), count, paired=False)


def paired_difference(
    one: NDArray[np.bool_], other: NDArray[np.bool_], images: NDArray[np.int64] | None = None
) -> ScoreDifference:
    """Return the difference of two shares of right answers to the same rows.

    The square of value / standard error is McNemar's statistic (1947) where each row is an image of its own. Rows of
    one image, under several corruptions, are right together more often than chance: their sum counts once (cluster-
    robust, Liang and Zeger 1986). The interval adds a pseudo-disagreement of one image each way, so that two models
    without any disagreement are not told to be equal for certain (Agresti and Min 2005).

    Args:
        one: [N] whether it is right.
        other: likewise, on the same rows.
        images: [N] which image a row shows, from 0; None: each row another.
    """
    difference = one.astype(np.float64) - other
    if images is not None:
        rows = np.bincount(images)
        by_image = np.bincount(images, weights=difference)[rows > 0] / rows[rows > 0].mean()
    else:
        by_image = difference
    count, value = len(by_image), float(difference.mean())
    # A pair of images, one for each side, in a sum of count + 2.
    middle = by_image.sum() / (count + 2)
    spread = math.sqrt(float((by_image**2).sum() + 2 - (count + 2) * middle**2)) / (count + 2)
    return ScoreDifference(value, Interval(middle - _Z * spread, middle + _Z * spread), count, paired=True)


def bounded_difference(one: float, other: float, disagreement: float, count: int) -> ScoreDifference:
    """Return the difference of two shares of `count` rows, where only the share of differing answers is known.

    Rows on which two submissions agree cannot tell them apart, so that the variance of a row's difference is at most
    the disagreement less the difference's square. The rows of a public split are drawn from a submission's: the
    interval says what another draw would have shown, however the rows depend on each other.
    """
    value = one - other
    spread = math.sqrt(max(disagreement - value**2, 1 / count) / count)
    return ScoreDifference(value, Interval(value - _Z * spread, value + _Z * spread), count, paired=True)


def rank_correlation(one: Sequence[float], other: Sequence[float]) -> tuple[float, Interval]:
    """Return Spearman's rank correlation of at least four pairs, and its interval (Bonett and Wright 2000).

    1 is the same order, -1 the reverse; 0 where one of them is constant.
    """
    first, second = ranks(one), ranks(other)
    count = len(first)
    assert count >= 4, "an interval needs four pairs"
    if first.std() == 0 or second.std() == 0:
        return 0.0, Interval(-1.0, 1.0)
    rho = float(np.clip(np.corrcoef(first, second)[0, 1], -1, 1))
    inner = min(max(rho, -0.9999), 0.9999)  # Fisher's transformation has no end
    half = _Z * math.sqrt((1 + inner**2 / 2) / (count - 3))
    return rho, Interval(math.tanh(math.atanh(inner) - half), math.tanh(math.atanh(inner) + half))


def ranks(values: Sequence[float] | NDArray[np.float64]) -> NDArray[np.float64]:
    """Return ranks from 1, the mean rank where values are equal."""
    _, place, sizes = np.unique(np.asarray(values, np.float64), return_inverse=True, return_counts=True)
    found: NDArray[np.float64] = (np.cumsum(sizes) - (sizes - 1) / 2)[place]
    return found
