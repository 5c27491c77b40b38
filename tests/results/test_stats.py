"""Intervals hold what they promise, counted over many drawn samples whose truth is known."""

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from comp.results import stats

DRAWS = 600


def covered(hits: list[bool]) -> float:
    return float(np.mean(hits))


@pytest.mark.parametrize(("share", "count"), [(0.5, 50), (0.9, 100), (0.99, 200), (0.7, 2000)])
def test_wilsons_interval_covers_the_truth_19_times_in_20(share: float, count: int) -> None:
    found = np.random.default_rng(0).binomial(count, share, DRAWS) / count
    assert 0.93 <= covered([share in stats.wilson(value, count) for value in found]) <= 0.98


@given(st.integers(1, 100_000), st.floats(0, 1))
def test_wilsons_interval_is_scipys(count: int, share: float) -> None:
    hits = round(share * count)
    low, high = scipy.stats.binomtest(hits, count).proportion_ci(method="wilson")
    assert stats.wilson(hits / count, count).low == pytest.approx(low, abs=1e-8)
    assert stats.wilson(hits / count, count).high == pytest.approx(high, abs=1e-8)


def drawn(generator: np.random.Generator, gap: float, images: int, rows: int) -> list[NDArray[np.bool_]]:
    """Return two models' right answers [images * rows]; rows of an image are as hard as each other."""
    hardness = np.repeat(generator.uniform(0, 1, images), rows)
    return [hardness + generator.normal(0, 0.2, images * rows) < skill for skill in (0.6, 0.6 - gap)]


@pytest.mark.parametrize("rows", [1, 6])
@pytest.mark.parametrize("gap", [0.0, 0.05])
def test_the_paired_interval_covers_the_truth_where_rows_share_images(gap: float, rows: int) -> None:
    one, other = drawn(np.random.default_rng(1), gap, 400_000, 1)
    truth = float(one.mean() - other.mean())
    generator, images = np.random.default_rng(2), np.repeat(np.arange(300), rows)
    found = [stats.paired_difference(*drawn(generator, gap, 300, rows), images) for _ in range(DRAWS)]
    assert 0.92 <= covered([truth in one.interval for one in found]) <= 0.98
    called = covered([one.is_real for one in found])
    assert called <= 0.08 if gap == 0 else called >= 0.3


@given(both=st.integers(0, 200), first=st.integers(0, 60), second=st.integers(0, 60))
def test_without_shared_images_it_is_mcnemars_test(both: int, first: int, second: int) -> None:
    one = np.array([True] * both + [True] * first + [False] * second + [False] * 300)
    other = np.array([True] * both + [False] * first + [True] * second + [False] * 300)
    found = stats.paired_difference(one, other)
    assert found.value == pytest.approx((first - second) / len(one))
    assert found.images == len(one)
    p_value = scipy.stats.binomtest(first, first + second).pvalue if first + second else 1.0
    if p_value < 0.02:
        assert found.is_real
    if p_value > 0.09:
        assert not found.is_real


def test_the_interval_of_models_that_never_disagree_is_not_empty() -> None:
    right = np.arange(100) % 3 == 0
    found = stats.paired_difference(right, right)
    assert not found.is_real
    assert found.interval.low < 0 < found.interval.high


def test_the_unpaired_interval_covers_the_truth_of_models_on_other_images() -> None:
    generator = np.random.default_rng(3)
    shares = generator.binomial(400, [0.7, 0.64], (DRAWS, 2)) / 400
    hits = [0.06 in stats.unpaired_difference(*map(float, pair), 400).interval for pair in shares]
    assert 0.93 <= covered(hits) <= 0.975


def test_the_disagreement_interval_covers_the_full_difference() -> None:
    generator = np.random.default_rng(4)
    one, other = drawn(generator, 0.02, 5_000, 4)  # a submission's rows, which depend on each other
    wrong = generator.random(len(one)) < 0.3  # of rows that both get wrong, the share with differing wrong answers
    disagreement = float(np.mean((one != other) | (~one & ~other & wrong)))
    truth, hits = float(one.mean() - other.mean()), []
    for _ in range(DRAWS):
        public = generator.random(len(one)) < 0.1
        found = stats.bounded_difference(
            float(one[public].mean()), float(other[public].mean()), disagreement, int(public.sum())
        )
        hits.append(truth in found.interval)
    assert covered(hits) >= 0.94


@pytest.mark.parametrize(("truth", "count"), [(0.0, 12), (0.6, 12), (0.8, 40)])
def test_the_rank_correlation_is_spearmans_and_its_interval_covers_the_truth(truth: float, count: int) -> None:
    generator, hits = np.random.default_rng(5), []
    inner = 2 * math.sin(math.pi * truth / 6)  # of normal values with this rank correlation
    for _ in range(DRAWS):
        one, other = generator.multivariate_normal([0, 0], [[1, inner], [inner, 1]], count).T
        rho, interval = stats.rank_correlation(one.tolist(), other.tolist())
        assert rho == pytest.approx(scipy.stats.spearmanr(one, other).statistic)
        hits.append(truth in interval)
    assert 0.91 <= covered(hits) <= 0.99


def test_a_constant_has_no_correlation_and_a_perfect_one_has_an_interval() -> None:
    assert stats.rank_correlation([1, 1, 1, 1], [1, 2, 3, 4]) == (0.0, stats.Interval(-1.0, 1.0))
    rho, interval = stats.rank_correlation([1, 2, 3, 4, 5, 6], [2, 4, 6, 8, 10, 12])
    assert rho == 1.0
    assert interval.low < 1


def test_the_jackknife_of_a_mean_is_its_normal_interval() -> None:
    values = np.random.default_rng(0).normal(size=50)
    left_out = [float(np.delete(values, row).mean()) for row in range(50)]
    interval, normal = stats.jackknife_interval(float(values.mean()), left_out), stats.mean_interval(values)
    assert normal is not None
    width = (normal.high - normal.low) * 1.959964 / scipy.stats.t.ppf(0.975, 49)  # of a normal quantile
    assert interval.high - interval.low == pytest.approx(width)


@given(
    rows=st.lists(st.tuples(st.integers(0, 9), st.booleans(), st.integers(0, 2)), min_size=4, max_size=60),
)
def test_the_separation_is_the_mean_of_scikit_learns_auc_of_each_fold(rows: list[tuple[int, bool, int]]) -> None:
    scores, positive, folds = (np.array(column) for column in zip(*rows, strict=True))
    both = [fold for fold in np.unique(folds) if 0 < positive[folds == fold].sum() < (folds == fold).sum()]
    if not both:
        return
    separated = stats.separation(scores.astype(float), positive, folds)
    expected = [roc_auc_score(positive[folds == fold], scores[folds == fold]) for fold in both]
    assert separated.value == pytest.approx(np.mean(expected))
    assert separated.value in separated.interval
    assert 0 <= separated.interval.low < separated.interval.high <= 1


@pytest.mark.parametrize("shift", [0.0, 0.5, 1.5])
def test_the_interval_of_a_separation_covers_the_truth(shift: float) -> None:
    """Scores of one fixed classifier: the factor for classifiers that share rows makes the interval wide."""
    generator, hits = np.random.default_rng(1), []
    truth = float(scipy.stats.norm.cdf(shift / math.sqrt(2)))
    positive, folds = np.arange(200) < 100, np.arange(200) % 5
    for _ in range(DRAWS // 2):
        scores = generator.normal(0, 1, 200) + shift * positive
        hits.append(truth in stats.separation(scores, positive, folds).interval)
    assert covered(hits) >= 0.97
    assert stats.separation(scores, positive, folds).interval.low > 0.5 or shift < 1


def test_the_interval_of_a_mean_of_few_is_students() -> None:
    values = np.array([0.7, 0.8, 0.75])
    interval = stats.mean_interval(values)
    assert interval is not None
    expected = scipy.stats.t.interval(0.95, 2, values.mean(), scipy.stats.sem(values))
    assert (interval.low, interval.high) == pytest.approx(expected)


def test_equal_values_or_a_single_one_have_no_interval() -> None:
    assert stats.mean_interval(np.array([0.3, 0.3, 0.3])) is None
    assert stats.mean_interval(np.array([0.3])) is None
