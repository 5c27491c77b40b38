"""Fits of decisions: as good as brute force, whatever the values."""

from itertools import combinations_with_replacement

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from comp.results.decision_fits import cut, fit_cut_points


def kappa(targets: NDArray[np.int64], levels: NDArray[np.int64], positions: NDArray[np.float64]) -> float:
    """Return the quadratic weighted kappa from its definition, 1 if nothing can disagree."""
    observed = ((positions[targets] - positions[levels]) ** 2).mean()
    by_chance = ((positions[targets][:, None] - positions[levels]) ** 2).mean()
    return 1.0 - observed / by_chance if by_chance else 1.0


def best_by_brute_force(
    values: NDArray[np.float64], targets: NDArray[np.int64], positions: NDArray[np.float64]
) -> float:
    edges = [*np.unique(values), np.inf]
    tried = combinations_with_replacement(edges, len(positions) - 1)
    return max(kappa(targets, cut(values, np.array(cut_points)), positions) for cut_points in tried)


@settings(max_examples=40)
@given(st.data(), st.integers(2, 4))
def test_cut_points_give_the_best_kappa_of_all_cut_points(data: st.DataObject, levels: int) -> None:
    count = data.draw(st.integers(1, 7))
    targets = np.array(data.draw(st.lists(st.integers(0, levels - 1), min_size=count, max_size=count)))
    numbers = st.one_of(st.integers(-3, 3).map(float), st.floats(-1e3, 1e3, width=32))
    values = np.array(data.draw(st.lists(numbers, min_size=count, max_size=count)))
    gaps = np.array(data.draw(st.lists(st.integers(1, 5), min_size=levels, max_size=levels)))
    positions = np.cumsum(gaps).astype(np.float64)
    cut_points = fit_cut_points(values, targets, levels, positions)
    assert cut_points.shape == (levels - 1,)
    assert np.isfinite(cut_points).all()
    assert (np.diff(cut_points) >= 0).all()
    own = kappa(targets, cut(values, cut_points), positions)
    assert own == pytest.approx(best_by_brute_force(values, targets, positions), abs=1e-9)


def test_cut_points_of_many_rows_recover_the_true_ones_and_agree_with_scikit_learn() -> None:
    generator = np.random.default_rng(0)
    truth = np.array([0.2, 0.5, 2.5, 2.9])
    values = generator.random(20_000) * 4
    targets = cut(values, truth)
    assert fit_cut_points(values, targets, 5) == pytest.approx(truth, abs=1e-3)
    noisy = values + generator.normal(0, 0.5, len(values))
    fitted = cut(noisy, fit_cut_points(noisy, targets, 5))
    rounded = np.clip(np.round(noisy), 0, 4).astype(np.int64)
    scores = [sklearn.metrics.cohen_kappa_score(targets, levels, weights="quadratic") for levels in (fitted, rounded)]
    assert scores[0] > scores[1]


def test_cut_points_lie_between_values_and_a_level_that_never_helps_is_never_reached() -> None:
    values, targets = np.array([0.0, 1.0, 3.0, 4.0]), np.array([0, 0, 2, 2])
    cut_points = fit_cut_points(values, targets, 4)
    assert cut_points[:2] == pytest.approx([2.0, 2.0])
    assert cut(values, cut_points).tolist() == [0, 0, 2, 2]
    assert cut_points[2] > 4.0
    assert cut(values, fit_cut_points(values, np.array([1, 1, 1, 1]), 3)).tolist() == [1, 1, 1, 1]
