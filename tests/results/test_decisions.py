"""Decisions: as good as brute force and theory say, and scores that fitting on the same rows does not flatter."""

from dataclasses import replace

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st

from comp.results import decisions, metrics
from comp.results.decision_fits import declared_shares
from comp.results.predictions import Predictions
from comp.results.run_metrics import Decision
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
    crossed = decisions.cross_fit("thresholds", labelled, name)
    assert crossed.thresholds is not None
    assert crossed.thresholds.shape == labelled.outputs.shape
    again = decisions.cross_fit("thresholds", labelled, name)
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
        honest.append(metrics.macro_f1(decisions.cross_fit("thresholds", labelled, "macro_f1")) - truth)
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
    assert decisions.cross_fit("thresholds", single, "macro_f1").decisions().shape == (1, 4)


FREQUENCIES = np.array([0.6, 0.25, 0.1, 0.05])


def exclusive(
    seed: int, count: int = 1500, *, signal: float = 1.0, sharpness: float = 1.0, frequencies: object = FREQUENCIES
) -> Predictions:
    """Return log posteriors of Gaussian classes with these frequencies, times a sharpness; 1 is calibrated."""
    generator = np.random.default_rng(seed)
    targets = generator.choice(4, count, p=np.asarray(frequencies))
    seen = generator.normal(size=(count, 4)) + signal * np.eye(4)[targets]
    outputs = sharpness * (signal * seen + np.log(FREQUENCIES))
    return predicted(targets, outputs.astype(np.float32))


@pytest.mark.parametrize("name", ["macro_f1", "balanced_accuracy", "weighted_f1"])
def test_offsets_of_rare_classes_gain_on_new_images_what_cross_fitting_measures(name: str) -> None:
    labelled, fresh = exclusive(0), exclusive(1, count=10_000)
    scored, decision = decisions.decide(labelled, name)
    score = metrics.metric(name).score
    if name == "weighted_f1":  # frequent classes count most: there is little to gain
        assert decision is not None
        assert decision.kind == ("thresholds" if (decision.low or 0) > 0 else "argmax")
        return
    assert decision is not None
    assert decision.kind == "thresholds"
    assert decision.gain == pytest.approx(score(scored) - score(labelled))
    assert decision.low is not None
    assert decision.high is not None
    assert 0 < decision.low < score(decisions.apply(decision, fresh)) - score(fresh) < decision.high
    assert metrics.log_loss(scored) == metrics.log_loss(labelled)  # probabilities stay


def test_offsets_recover_from_training_with_balanced_classes() -> None:
    labelled = exclusive(0)
    balanced = replace(labelled, outputs=(labelled.outputs - np.log(FREQUENCIES)).astype(np.float16))
    offsets = [decisions.KINDS["thresholds"].fit(part, "balanced_accuracy") for part in (labelled, balanced)]
    best = -np.log(FREQUENCIES)
    assert offsets[0] == pytest.approx(best - best.mean(), abs=0.35)
    assert offsets[1] == pytest.approx(np.zeros(4), abs=0.35)


def test_auto_keeps_argmax_without_a_clear_gain_and_a_named_decision_stays() -> None:
    labelled = exclusive(0, count=400, signal=4.0)  # hardly a mistake
    scored, decision = decisions.decide(labelled, "macro_f1")
    assert scored is labelled
    assert decision is not None
    assert (decision.kind, decision.tried) == ("argmax", "thresholds")
    assert decision.reason == "the gain is not clearly above zero"
    assert decisions.apply(decision, labelled) is labelled
    _, named = decisions.decide(labelled, "macro_f1", "thresholds")
    assert named is not None
    assert named.kind == "thresholds"
    assert named.gain == decision.gain


def test_cross_fitting_does_not_flatter_offsets_of_noise() -> None:
    gains = []
    for seed in range(6):
        labelled = exclusive(seed, count=200, signal=0.0, frequencies=[0.25] * 4)
        balanced = replace(labelled, outputs=np.random.default_rng(seed).normal(size=(200, 4)).astype(np.float16))
        balanced = replace(balanced, top1=balanced.outputs.argmax(1).astype(np.int64))
        crossed = decisions.cross_fit("thresholds", balanced, "macro_f1", np.arange(200))
        gains.append(metrics.macro_f1(crossed) - metrics.macro_f1(balanced))
    assert np.mean(gains) < 0.02


def test_a_temperature_undoes_over_confidence_without_another_decision() -> None:
    labelled = exclusive(0, sharpness=3.0)
    scored, decision = decisions.decide(labelled, "log_loss")
    assert decision is not None
    assert decision.kind == "temperature"
    assert decision.values == pytest.approx([3.0], rel=0.15)
    assert decision.gain == pytest.approx(metrics.log_loss(labelled) - metrics.log_loss(scored))
    assert np.array_equal(scored.top1, labelled.top1)
    losses = [metrics.log_loss(decisions.apply(Decision(kind="temperature", values=[t]), labelled)) for t in (2, 3, 5)]
    assert metrics.log_loss(decisions.apply(decision, labelled)) <= min(losses) + 1e-4
    several = decisions.decide(replace(drawn(0), outputs=4 * drawn(0).outputs), "log_loss")[1]
    assert several is not None
    assert several.kind == "temperature"


@pytest.mark.parametrize("names", [["0", "1", "2", "3"], ["3", "2", "1", "0"], ["low", "mid", "high", "top"]])
def test_cut_points_follow_the_order_of_the_classes_and_raise_kappa(names: list[str]) -> None:
    generator = np.random.default_rng(0)
    level = generator.choice(4, 2000, p=FREQUENCIES)
    seen = level + generator.normal(0, 1.0, 2000)
    targets = 3 - level if names[0] == "3" else level
    places = 3.0 - np.arange(4) if names[0] == "3" else np.arange(4.0)
    outputs = -((seen[:, None] - places) ** 2) / 2 + np.log(FREQUENCIES[places.astype(int)])
    labelled = predicted(targets, outputs.astype(np.float32), names)
    scored, decision = decisions.decide(labelled, "quadratic_weighted_kappa")
    assert decision is not None
    assert decision.kind == "cut_points"
    assert decision.low is not None
    assert decision.low > 0
    scores = [
        metrics.quadratic_weighted_kappa(part) for part in (labelled, scored, decisions.apply(decision, labelled))
    ]
    assert scores[0] < scores[1] <= scores[2] + 1e-3


def test_declared_shares_give_the_posteriors_of_the_test() -> None:
    flat = [0.25] * 4
    names = ("0", "1", "2", "3")
    shares = declared_shares(dict(zip(names, flat, strict=True)), names, (FREQUENCIES * 1000).tolist())
    labelled, fresh = exclusive(0), exclusive(1, count=10_000, frequencies=flat)
    scored, decision = decisions.decide(labelled, "accuracy", shares=shares)
    assert scored is labelled  # validation has the training's shares
    assert decision is not None
    assert decision.kind == "prior"
    assert decision.low is not None
    assert decision.high is not None
    decided = decisions.apply(decision, fresh)
    posterior = fresh.probabilities() * (np.array(flat) / FREQUENCIES)
    assert decided.probabilities() == pytest.approx(posterior / posterior.sum(1, keepdims=True), abs=3e-3)
    assert decision.low < metrics.accuracy(decided) - metrics.accuracy(fresh) < decision.high
    assert decisions.without_shift(decided).probabilities() == pytest.approx(fresh.probabilities(), abs=3e-3)
    thresholds = decisions.decide(labelled, "macro_f1", "thresholds", shares=shares)[1]
    assert thresholds is not None
    assert len(thresholds.shift) == len(thresholds.values) == 4
    assert decisions.decide(labelled, "accuracy", "argmax", shares=shares) == (labelled, None)


def test_too_few_images_or_classes_keep_argmax_and_say_so() -> None:
    few, one = exclusive(0, count=60), replace(exclusive(0), targets=np.zeros(1500, np.int64))
    for labelled, name, reason in (
        (few, "macro_f1", "validation has 60 images for it, fewer than 100"),
        (few, "log_loss", "validation has 60 images for it, fewer than 100"),
        (one, "macro_f1", "fewer than two classes have 10 validation images for it"),
        (one, "quadratic_weighted_kappa", "fewer than two classes have 10 validation images for it"),
    ):
        scored, decision = decisions.decide(labelled, name)
        assert scored is labelled
        assert decision is not None
        assert (decision.kind, decision.reason) == ("argmax", reason)
    copies = exclusive(0, count=300)
    decision = decisions.decide(copies, "log_loss", images=np.repeat([f"i{n}" for n in range(60)], 5))[1]
    assert decision is not None
    assert decision.reason == "validation has 60 images for it, fewer than 100"


def test_shares_of_classes_that_validation_hardly_has_measure_nothing() -> None:
    labelled, names = exclusive(0, count=300), ("0", "1", "2", "3")
    shares = declared_shares({"0": 0.0, "1": 0.0, "2": 0.0, "3": 1.0}, names, (FREQUENCIES * 1000).tolist())
    for wanted, kind in (("auto", "argmax"), ("prior", "prior")):
        _, decision = decisions.decide(labelled, "accuracy", wanted, shares=shares)
        assert decision is not None
        assert (decision.kind, decision.gain) == (kind, None)
        assert "fewer than 100" in decision.reason
    decided = decisions.apply(decision, labelled)
    assert decided.top1 is not None
    assert (decided.top1 == 3).mean() > 0.9
    nowhere = replace(labelled, targets=np.zeros(300, np.int64))
    _, decision = decisions.decide(nowhere, "accuracy", shares=shares)
    assert decision is not None
    assert decision.kind == "argmax"


def test_accuracy_and_rankings_are_not_questioned() -> None:
    labelled = exclusive(0)
    for name in ("accuracy", "roc_auc", "map_at_3"):
        assert decisions.decide(labelled, name) == (labelled, None)


def test_thresholds_of_several_labels_stay_as_tuned_and_their_gain_is_measured() -> None:
    labelled = drawn(0)
    scored, decision = decisions.decide(labelled, "macro_f1")
    assert decision is not None
    assert np.float32(decision.values) == pytest.approx(decisions.tune_thresholds(labelled, "macro_f1"), abs=0)
    assert scored.thresholds is not None
    crossed = decisions.cross_fit("thresholds", labelled, "macro_f1").thresholds
    assert crossed is not None
    assert np.array_equal(scored.thresholds, crossed)
    assert decision.gain == pytest.approx(metrics.macro_f1(scored) - metrics.macro_f1(labelled))
    assert decisions.decide(labelled, "macro_f1", "argmax") == (labelled, None)
