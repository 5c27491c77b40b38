"""Thresholds: the best that brute force finds, and scores that tuning on the same rows does not flatter."""

from dataclasses import replace

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st

from comp.results import decisions, metrics
from comp.results.predictions import Predictions
from tests.support.predictions import multi_label, predicted, predicted_sets

AVERAGES = {"macro_f1": "macro", "micro_f1": "micro", "samples_f1": "samples"}


def drawn(seed: int, count: int = 200, classes: int = 4, signal: float = 1.0) -> Predictions:
    """Return predictions of rare and frequent classes."""
    generator = np.random.default_rng(seed)
    frequency = np.linspace(0.05, 0.5, classes)
    targets = (generator.random((count, classes)) < frequency).astype(np.float32)
    outputs = generator.normal(size=(count, classes)) + signal * targets - 2
    return predicted_sets(targets, outputs.astype(np.float32))


def by_sklearn(labelled: Predictions, thresholds: object, average: str) -> float:
    decided = labelled.probabilities() >= thresholds
    empty = 1.0 if average == "samples" else 0.0
    return float(sklearn.metrics.f1_score(labelled.truth(), decided, average=average, zero_division=empty))


@settings(max_examples=10)
@given(multi_label())
def test_a_class_threshold_is_optimal(labelled: Predictions) -> None:
    thresholds = decisions.tune_thresholds(labelled, "macro_f1")
    probabilities, truth = labelled.probabilities(), labelled.truth()
    for column in np.flatnonzero(truth.any(0)):
        tried = [0.0, *np.unique(probabilities[:, column])]
        scores = [
            sklearn.metrics.f1_score(truth[:, column], probabilities[:, column] >= threshold) for threshold in tried
        ]
        own = sklearn.metrics.f1_score(truth[:, column], probabilities[:, column] >= thresholds[column])
        assert own == pytest.approx(max(scores))


@given(st.integers(0, 1000))
def test_a_common_threshold_is_optimal(seed: int) -> None:
    drawn_predictions = drawn(seed, count=40)
    micro = decisions.tune_thresholds(drawn_predictions, "micro_f1")
    assert len(set(micro.tolist())) == 1
    probabilities, truth = drawn_predictions.probabilities().ravel(), drawn_predictions.truth().ravel()
    decided = probabilities >= np.unique(probabilities)[:, None]  # one row for each threshold that matters
    scores = 2 * (decided & truth).sum(1) / (decided.sum(1) + truth.sum())
    assert by_sklearn(drawn_predictions, micro, "micro") == pytest.approx(scores.max())


@pytest.mark.parametrize("name", decisions.TUNERS)
def test_tuned_thresholds_beat_one_half_and_scores_match_scikit_learn(name: str) -> None:
    labelled = drawn(0)
    thresholds = decisions.tune_thresholds(labelled, name)
    assert thresholds.shape == (4,)
    assert thresholds.dtype == np.float32
    tuned = metrics.metric(name).score(replace(labelled, thresholds=thresholds))
    assert tuned > metrics.metric(name).score(labelled)
    assert tuned == pytest.approx(by_sklearn(labelled, thresholds, AVERAGES[name]))


@pytest.mark.parametrize("name", decisions.TUNERS)
def test_cross_fitting_tunes_on_other_rows_and_always_the_same_way(name: str) -> None:
    labelled = drawn(1)
    crossed = decisions.cross_fit_thresholds(labelled, name)
    assert crossed.thresholds is not None
    assert crossed.thresholds.shape == labelled.outputs.shape
    again = decisions.cross_fit_thresholds(labelled, name)
    assert again.thresholds is not None
    assert np.array_equal(crossed.thresholds, again.thresholds)
    assert len(np.unique(crossed.thresholds, axis=0)) <= 5


def test_cross_fitted_scores_are_unbiased() -> None:
    flattered, honest = [], []
    for seed in range(20):
        labelled = drawn(seed, count=60, classes=8, signal=0.0)  # nothing can be learnt
        fresh = drawn(seed + 100, count=2000, classes=8, signal=0.0)
        thresholds = decisions.tune_thresholds(labelled, "macro_f1")
        truth = metrics.macro_f1(replace(fresh, thresholds=thresholds))
        flattered.append(metrics.macro_f1(replace(labelled, thresholds=thresholds)) - truth)
        honest.append(metrics.macro_f1(decisions.cross_fit_thresholds(labelled, "macro_f1")) - truth)
    assert np.mean(flattered) > 0.03
    assert abs(np.mean(honest)) < np.mean(flattered) / 2


def test_a_class_without_rows_keeps_one_half() -> None:
    targets = np.array([[1, 0], [0, 0], [1, 0]], np.float32)
    labelled = predicted_sets(targets, np.array([[1, -3], [-1, 2], [2, 0]], np.float32))
    assert decisions.tune_thresholds(labelled, "macro_f1")[1] == 0.5


def test_only_decisions_of_several_labels_are_tuned() -> None:
    several, one = drawn(0), predicted(np.arange(4) % 2, np.zeros((4, 2), np.float32))
    assert decisions.needs_thresholds(several, "macro_f1")
    assert not decisions.needs_thresholds(several, "accuracy")
    assert not decisions.needs_thresholds(several, "roc_auc")
    assert not decisions.needs_thresholds(one, "macro_f1")
    assert decisions.prepare_for_scoring(one, "macro_f1") is one
    single = drawn(0, count=1)
    assert decisions.cross_fit_thresholds(single, "macro_f1").decisions().shape == (1, 4)
