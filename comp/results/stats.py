"""Statistics of scores: intervals, significance of differences, rank correlation.

All intervals are at 95 %. NumPy only, but for Student's t: importing scipy.stats takes 0.5 s, while listing 10,000 runs
takes 1.2 s in all; its `binomtest` computes Wilson's interval in 400 us instead of 1, and a listing needs thousands.
Tests compare with scipy.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_Z = 1.959964  # two-sided 95 % quantile of the normal distribution


@dataclass(frozen=True)
class Interval:
    """A confidence interval."""

    low: float
    high: float

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high


@dataclass(frozen=True)
class ScoreDifference:
    """A first score minus a second one.

    Attributes:
        value: the measured difference.
        interval: of the difference on as many other images of the same kind.
        images: number of independent images.
        paired: whether the rows on which both differ are known.
    """

    value: float
    interval: Interval
    images: int
    paired: bool

    @property
    def is_real(self) -> bool:
        """Whether the difference is significant."""
        return 0 not in self.interval


@dataclass(frozen=True)
class AUC:
    """Area under the ROC curve: the share of pairs, one of each class, that scores put in the right order.

    Attributes:
        value: 0.5 if nothing tells the classes apart, 1 if everything does.
        interval: of the value.
    """

    value: float
    interval: Interval


def wilson(share: float, count: int) -> Interval:
    """Return the interval of a share of `count` independent images (Wilson 1927), within [0, 1]."""
    scale = 1 + _Z**2 / count
    middle = (share + _Z**2 / (2 * count)) / scale
    half = _Z / scale * math.sqrt(share * (1 - share) / count + _Z**2 / (4 * count**2))
    return Interval(max(0.0, middle - half), min(1.0, middle + half))


def mean_interval(values: NDArray[np.float64]) -> Interval | None:
    """Return Student's interval of the mean of independent values [N]; None for fewer than two, or if all are equal."""
    if len(values) < 2 or not np.ptp(values):
        return None
    from scipy.special import stdtrit  # type: ignore[import-untyped]  # slow, and a listing needs none

    quantile = float(stdtrit(len(values) - 1, 0.975))
    half = quantile * float(values.std(ddof=1)) / math.sqrt(len(values))
    return Interval(float(values.mean()) - half, float(values.mean()) + half)


def jackknife_interval(value: float, left_out: Sequence[float]) -> Interval:
    """Return the interval of any statistic from its values with one of equal groups of rows left out at a time.

    The delete-a-group jackknife (Kott 2001), with a normal quantile: leave out about 50 groups.
    """
    spread = np.array(left_out) - np.mean(left_out)
    half = _Z * math.sqrt((len(spread) - 1) / len(spread) * float((spread**2).sum()))
    return Interval(value - half, value + half)


def unpaired_difference(first: float, second: float, count: int) -> ScoreDifference:
    """Return the difference of two shares, each of `count` images, as if the images were different.

    Newcombe's interval (1998, method 10) from two Wilson intervals; too wide if the images are the same.
    """
    interval, other_interval, value = wilson(first, count), wilson(second, count), first - second
    low = value - math.hypot(first - interval.low, other_interval.high - second)
    high = value + math.hypot(interval.high - first, second - other_interval.low)
    return ScoreDifference(value, Interval(low, high), count, paired=False)


def paired_difference(
    first: NDArray[np.bool_], second: NDArray[np.bool_], images: NDArray[np.int64] | None = None
) -> ScoreDifference:
    """Return the difference of two accuracies on the same rows.

    If each row is another image, the square of value / standard error is McNemar's statistic (1947). Rows of one image
    under several corruptions are correlated: their sum counts once (cluster-robust, Liang and Zeger 1986). The interval
    adds a pseudo-disagreement of one image each way, so that it is not empty for two models that never disagree
    (Agresti and Min 2005).

    Args:
        first: [N] whether each row is correct.
        second: likewise, for the same rows.
        images: [N] which image each row shows, from 0; None: each row another.
    """
    difference = first.astype(np.float64) - second
    if images is not None:
        rows = np.bincount(images)
        by_image = np.bincount(images, weights=difference)[rows > 0] / rows[rows > 0].mean()
    else:
        by_image = difference
    count, value = len(by_image), float(difference.mean())
    # Two pseudo-images, one for each side, make the count + 2.
    middle = by_image.sum() / (count + 2)
    spread = math.sqrt(float((by_image**2).sum() + 2 - (count + 2) * middle**2)) / (count + 2)
    return ScoreDifference(value, Interval(middle - _Z * spread, middle + _Z * spread), count, paired=True)


def bounded_difference(first: float, second: float, disagreement: float, count: int) -> ScoreDifference:
    """Return the difference of two shares of `count` rows if only the share of differing answers is known.

    The variance of a row's difference is at most the disagreement minus the squared difference. The rows of a public
    split are a sample of a submission's rows: the interval covers other samples, whether or not rows are independent.
    """
    value = first - second
    spread = math.sqrt(max(disagreement - value**2, 1 / count) / count)
    return ScoreDifference(value, Interval(value - _Z * spread, value + _Z * spread), count, paired=True)


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> tuple[float, Interval]:
    """Return Spearman's rank correlation of at least four pairs and its interval (Bonett and Wright 2000).

    0 if either is constant.
    """
    first_ranks, second_ranks = ranks(first), ranks(second)
    count = len(first)
    assert count >= 4, "an interval needs four pairs"
    if first_ranks.std() == 0 or second_ranks.std() == 0:
        return 0.0, Interval(-1.0, 1.0)
    rho = float(np.clip(np.corrcoef(first_ranks, second_ranks)[0, 1], -1, 1))
    inner = min(max(rho, -0.9999), 0.9999)  # Fisher's transformation is infinite at 1
    half = _Z * math.sqrt((1 + inner**2 / 2) / (count - 3))
    return rho, Interval(math.tanh(math.atanh(inner) - half), math.tanh(math.atanh(inner) + half))


def ranks(values: Sequence[float] | NDArray[np.float64]) -> NDArray[np.float64]:
    """Return ranks from 1; equal values share their mean rank."""
    _, index, sizes = np.unique(np.asarray(values, np.float64), return_inverse=True, return_counts=True)
    mean_ranks: NDArray[np.float64] = (np.cumsum(sizes) - (sizes - 1) / 2)[index]
    return mean_ranks


def separation(scores: NDArray[np.float64], positive: NDArray[np.bool_], folds: NDArray[np.int64]) -> AUC:
    """Return how well out-of-fold scores [N] tell positive rows from negative ones.

    The mean over folds, because scores of two folds come from two classifiers. Its variance is DeLong's (1988, with
    the mid-ranks of Sun and Xu 2014), times Nadeau and Bengio's factor (2003) for classifiers that share training
    rows, and at least that of a miss of one row, so that a perfect score is not certain either. The interval is
    symmetric for the logit, and stays in [0, 1].

    Args:
        scores: of a classifier that did not see the row's fold.
        positive: [N] whether each row is of the class with high scores.
        folds: [N]; a fold without rows of both classes is left out, and one must remain.
    """
    areas, variances = [], []
    for fold in np.unique(folds):
        high, low = scores[(folds == fold) & positive], scores[(folds == fold) & ~positive]
        if len(high) and len(low):
            area, variance = _delong(high, low)
            areas.append(area)
            variances.append(variance)
    assert areas, "no fold has rows of both classes"
    value = float(np.mean(areas))
    fewer = min(int(positive.sum()), int((~positive).sum()))
    shared = 1 + len(areas) / (len(areas) - 1) if len(areas) > 1 else 1.0
    error = max(math.sqrt(sum(variances) * shared) / len(areas), 1 / (2 * fewer))
    inner = min(max(value, 1 / (2 * fewer)), 1 - 1 / (2 * fewer))
    half = min(_Z * error / (inner * (1 - inner)), 700.0)
    middle = math.log(inner / (1 - inner))
    ends = [1 / (1 + math.exp(-min(max(middle + side * half, -700.0), 700.0))) for side in (-1, 1)]
    return AUC(value, Interval(min(value, ends[0]), max(value, ends[1])))


def _delong(high: NDArray[np.float64], low: NDArray[np.float64]) -> tuple[float, float]:
    """Return the area under the curve of two groups of scores, and its variance."""
    together = ranks(np.concatenate([high, low]))
    above = (together[: len(high)] - ranks(high)) / len(low)  # share of low scores below each high one
    below = 1 - (together[len(high) :] - ranks(low)) / len(high)
    spread = [float(part.var(ddof=1)) / len(part) if len(part) > 1 else 0.25 for part in (above, below)]
    return float(above.mean()), sum(spread)
