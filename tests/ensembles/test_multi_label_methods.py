"""Ensembles of predictions with any number of classes for each image, against NumPy and SciPy."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import expit, logit
from scipy.stats import rankdata
from sklearn.metrics import roc_auc_score

from comp.config.tasks import TASKS
from comp.ensembles import align, cross_fit, methods
from comp.ensembles.align import AlignedSplit
from comp.ensembles.cross_fit import Decider
from comp.ensembles.methods import METHODS, Scorer
from comp.ensembles.spaces import SPACES
from comp.results import metrics, predictions
from comp.results.predictions import Predictions
from comp.runtime.errors import ConfigError

CLASSES = ("cat", "dog", "emu", "owl")
RATES = np.array([0.5, 0.3, 0.15, 0.05])
DEFINED = [name for name in METHODS if name in TASKS["multi_label"].ensembles]
AUC = Scorer("roc_auc", CLASSES, "multi_label")


def member(seed: int, targets: np.ndarray, skill: float, scale: float = 1.0) -> Predictions:
    """Return a member: its prior, noise, and as much of the truth as its skill."""
    noise = np.random.default_rng(seed).normal(0, 1, targets.shape)
    outputs = scale * (logit(RATES) + noise + skill * (targets - RATES))
    return predictions.from_outputs(
        outputs.astype(np.float32),
        task="multi_label",
        ids=np.array([f"i{row}" for row in range(len(targets))]),
        classes=CLASSES,
        targets=targets,
        made_by={},
    )


def a_sample(skills: Sequence[float], rows: int = 400, seed: int = 0, scale: float = 1.0) -> AlignedSplit:
    """Return independent members of these skills."""
    targets = (np.random.default_rng(seed).random((rows, len(CLASSES))) < RATES).astype(np.float32)
    parts = [member(seed + 1 + number, targets, skill, scale) for number, skill in enumerate(skills)]
    return align.align_members(
        "val", [f"m{number}" for number in range(len(skills))], parts, [parts[0].ids] * len(parts)
    )


def fitted(name: str, sample: AlignedSplit, score: Scorer = AUC) -> methods.Fitted:
    """Return a method fitted on all of a sample."""
    return METHODS[name].fit(methods.FitData(sample.stack(), sample.space, sample.targets, sample.images, score))


def probabilities(sample: AlignedSplit) -> np.ndarray:
    """Return the members' probabilities [M, N, K]."""
    return expit(np.stack([part.outputs.astype(np.float64) for part in sample.members]))


def known(sample: AlignedSplit) -> np.ndarray:
    """Return the targets [N, K]."""
    assert sample.targets is not None
    return sample.targets


@pytest.mark.parametrize("name", ["mean", "geometric", "weighted", "greedy"])
def test_identical_members_change_nothing(name: str) -> None:
    one = a_sample([1.5]).members[0]
    same = align.align_members("val", "abc", [one] * 3, [one.ids] * 3)
    combined = cross_fit.combine(fitted(name, same), same, {})
    assert np.allclose(combined.outputs, one.outputs, atol=1e-4)
    assert combined.outputs.dtype == np.float32


def test_identical_members_keep_their_order_by_rank() -> None:
    one = a_sample([1.5]).members[0]
    same = align.align_members("val", "ab", [one] * 2, [one.ids] * 2)
    combined = cross_fit.combine(fitted("rank", same), same, {})
    assert (combined.outputs.argsort(0) == one.outputs.argsort(0)).all()


def test_confident_members_keep_their_order_in_a_mean() -> None:
    outputs = np.linspace(18, 40, 12, dtype=np.float32).reshape(3, 4)
    mean = SPACES["sigmoid"].mean(np.stack([outputs, outputs]), np.full(2, 0.5))
    assert np.allclose(mean, outputs, atol=1e-4)
    assert np.allclose(SPACES["sigmoid"].mean(-outputs[None], np.ones(1)), -outputs, atol=1e-4)


@settings(max_examples=30)
@given(seed=st.integers(0, 10**6), count=st.integers(1, 5), scale=st.floats(0.1, 4))
@example(seed=137, count=5, scale=4.0)  # log-odds beyond 20
def test_plain_methods_match_numpy_and_scipy(seed: int, count: int, scale: float) -> None:
    sample = a_sample([1.0] * count, rows=50, seed=seed, scale=scale)
    values = probabilities(sample)
    expected = {
        "mean": values.mean(0),
        "geometric": expit(logit(values).clip(-20, 20).mean(0)),  # certainty counts up to 20 nats
        "rank": np.mean([(rankdata(part, axis=0) - 0.5) / 50 for part in values], axis=0),
    }
    for name, oracle in expected.items():
        assert np.allclose(cross_fit.combine(fitted(name, sample), sample, {}).probabilities(), oracle, atol=1e-5), name


def test_ranks_average_ties() -> None:
    stack = np.zeros((1, 4, 1), np.float32)
    stack[0, 3] = 1
    shares = expit(SPACES["sigmoid"].rank(stack))
    assert shares[:, 0] == pytest.approx([0.375, 0.375, 0.375, 0.875])


def test_fitted_weights_have_the_least_log_loss_over_all_pairs() -> None:
    sample = a_sample([0.5, 2.0, 1.0])
    values, targets = probabilities(sample), known(sample)

    def loss(free: np.ndarray) -> float:
        weights = np.exp(free) / np.exp(free).sum()
        mean = np.tensordot(weights, values, 1)
        return float(-np.log(np.where(targets > 0.5, mean, 1 - mean)).mean())

    best = minimize(loss, np.zeros(3), method="Nelder-Mead", options={"fatol": 1e-12, "maxiter": 4000})
    weights = np.array(fitted("weighted", sample).weights)
    assert loss(np.log(np.maximum(weights, 1e-12))) <= best.fun + 1e-6
    assert weights.sum() == pytest.approx(1)


@pytest.mark.parametrize("metric", ["roc_auc", "log_loss", "macro_f1", "micro_f1", "samples_f1", "accuracy"])
def test_greedy_climbs_any_metric_past_a_useless_member(metric: str) -> None:
    sample, fresh = a_sample([2.0, 0.0, 0.0], rows=150), a_sample([2.0, 0.0, 0.0], rows=300, seed=50)
    score = Scorer(metric, CLASSES, "multi_label")
    greedy = fitted("greedy", sample, score)
    assert greedy.weights[0] > 0.5
    values = {
        name: score(expit(fitted(name, sample, score).combine(fresh.stack())), known(fresh))
        for name in ("greedy", "mean")
    }
    assert values["greedy"] >= values["mean"] - 0.02


@pytest.mark.parametrize("name", DEFINED)
def test_an_ensemble_of_independent_members_is_better_than_any_of_them(name: str) -> None:
    sample, fresh = a_sample([1.2] * 4), a_sample([1.2] * 4, seed=50)
    best = max(roc_auc_score(known(fresh), part.outputs) for part in fresh.members)
    combined = cross_fit.combine(fitted(name, sample), fresh, {})
    assert roc_auc_score(known(fresh), combined.outputs) > best + 0.03


def test_a_method_that_is_not_defined_for_a_task_is_refused_with_the_list() -> None:
    with pytest.raises(ConfigError, match=r"stack.* multi_label; choose from mean, geometric, rank"):
        methods.method("stack", TASKS["multi_label"])


def turned(part: Predictions) -> Predictions:
    """Return predictions with their classes in another order, by hand."""
    order = [2, 0, 3, 1]
    assert part.targets is not None
    return dataclasses.replace(
        part,
        classes=tuple(CLASSES[number] for number in order),
        outputs=part.outputs[:, order],
        targets=part.targets[:, order],
        thresholds=None if part.thresholds is None else part.thresholds[order],
    )


def test_members_with_another_class_order_are_matched_by_name() -> None:
    sample = a_sample([1.0, 2.0])
    second = dataclasses.replace(sample.members[1], thresholds=np.array([0.1, 0.2, 0.3, 0.4], np.float32))
    again = align.align_members("val", sample.names, [sample.members[0], turned(second)], [sample.images] * 2)
    assert again.members[1].classes == CLASSES
    assert np.array_equal(again.members[1].outputs, second.outputs)
    assert np.array_equal(known(again), known(sample))
    assert again.members[1].thresholds == pytest.approx(second.thresholds)
    first = align.align_members("val", sample.names, [turned(second), second], [sample.images] * 2)
    assert np.array_equal(first.members[0].outputs, first.members[1].outputs)


def test_rows_are_combined_at_once_where_ranks_need_it() -> None:
    sample = a_sample([1.0, 1.0], rows=100)
    crossed = cross_fit.cross_fit(METHODS["rank"], sample, 5, AUC)
    held_out = cross_fit.predict_out_of_fold(crossed, sample, {})
    whole = cross_fit.combine(fitted("rank", sample), sample, {})
    assert np.array_equal(held_out.outputs, whole.outputs)


@pytest.mark.parametrize("metric", ["roc_auc", "macro_f1", "log_loss"])
def test_the_table_compares_in_the_competitions_metric_and_in_accuracy(metric: str) -> None:
    sample = a_sample([1.2, 1.2, 1.2], rows=300)
    score = Scorer(metric, CLASSES, "multi_label")
    crossed = cross_fit.cross_fit(METHODS["mean"], sample, 5, score)
    plain = cross_fit.predict_out_of_fold(crossed, sample, {})
    held_out = cross_fit.fit_decider(metric, "val", plain, sample.images, calibrated=True).decide("val", plain, sample)
    compared = cross_fit.compare_with_members("val", sample, crossed, fitted("mean", sample), held_out, metric)
    sign = 1 if metrics.metric(metric).higher_is_better else -1
    assert compared.metric_gain == pytest.approx(sign * (compared.ensemble.metric - compared.best_single.metric))
    assert compared.gain == pytest.approx(compared.ensemble.accuracy - compared.best_single.accuracy)
    decisions = [part.decisions() for part in sample.members]
    expected = [[(one != two).any(1).mean() for two in decisions] for one in decisions]
    assert np.array(compared.disagreement) == pytest.approx(np.array(expected))
    assert compared.metric_gain > 0
    assert compared.metric_gain_error is not None
    assert compared.metric_gain_error > 0


@given(seed=st.integers(0, 10**6), folds=st.integers(2, 6))
def test_folds_hold_images_together_and_deal_the_rarest_class_evenly(seed: int, folds: int) -> None:
    generator = np.random.default_rng(seed)
    targets = (generator.random((60, 4)) < RATES).astype(np.float32)
    rows = np.concatenate([np.arange(60), generator.integers(0, 60, 100)])
    fold = cross_fit.assign_folds(np.array([f"i{row}" for row in rows]), targets[rows], folds)
    assert all(len(set(fold[rows == image])) == 1 for image in range(60))
    rarest = int(np.lexsort((-np.arange(4), targets.sum(0)))[0])
    counts = np.bincount(fold[:60][targets[:, rarest] > 0], minlength=folds)
    assert counts.max() - counts.min() <= 1


def test_thresholds_are_tuned_on_validation_and_serve_every_other_split() -> None:
    sample = a_sample([1.5, 1.5])
    combined = cross_fit.combine(fitted("mean", sample), sample, {})
    decider = cross_fit.fit_decider("macro_f1", "val", combined, sample.images, calibrated=True)
    assert decider.decision is not None
    suite = decider.decide("suite", combined, sample)
    assert suite.thresholds == pytest.approx(decider.decision.values)
    assert metrics.macro_f1(suite) > metrics.macro_f1(combined)
    val = decider.decide("val", combined, sample)
    assert val.thresholds is not None
    assert val.thresholds.shape == combined.outputs.shape  # cross-fitted
    plain = cross_fit.fit_decider("roc_auc", "val", combined, sample.images, calibrated=True)
    assert plain.decide("val", combined, sample) is combined


def test_without_tuned_thresholds_classes_are_predicted_as_often_as_by_the_members() -> None:
    sample = a_sample([1.5, 1.5])
    thresholds = np.array([0.4, 0.3, 0.2, 0.1], np.float32)
    parts = [dataclasses.replace(part, thresholds=thresholds) for part in sample.members]
    own = align.align_members("suite", sample.names, parts, [sample.images] * 2)
    rates = np.mean([part.decisions().mean(0) for part in parts], axis=0)
    for name in ("mean", "geometric", "rank"):
        decided = Decider("macro_f1").decide("suite", cross_fit.combine(fitted(name, own), own, {}), own)
        assert decided.decisions().mean(0) == pytest.approx(rates, abs=3 / 400)  # mean ranks have ties
    ranked = cross_fit.combine(fitted("rank", sample), sample, {})
    decided = Decider("roc_auc", calibrated=False).decide("suite", ranked, sample)
    plain = np.mean([part.decisions().mean(0) for part in sample.members], axis=0)
    assert decided.decisions().mean(0) == pytest.approx(plain, abs=3 / 400)


def test_a_temperature_leaves_the_rates_of_ranks_to_the_members() -> None:
    sample = a_sample([1.5, 1.5])
    ranked = cross_fit.combine(fitted("rank", sample), sample, {})
    decider = cross_fit.fit_decider("log_loss", "val", ranked, sample.images, calibrated=False, setting="temperature")
    assert decider.decision is not None
    assert decider.decision.kind == "temperature"
    plain = np.mean([part.decisions().mean(0) for part in sample.members], axis=0)
    for split in ("val", "suite"):
        decided = decider.decide(split, ranked, sample)
        assert decided.decisions().mean(0) == pytest.approx(plain, abs=3 / 400)
        assert not np.array_equal(decided.outputs, ranked.outputs)


def test_classes_that_no_member_predicts_are_not_predicted() -> None:
    sample = a_sample([1.0])
    never = dataclasses.replace(sample.members[0], thresholds=np.array([2.0, 0.0, 2.0, 0.0], np.float32))
    own = align.align_members("suite", ["m"], [never], [sample.images])
    decided = cross_fit.match_decision_rates(cross_fit.combine(fitted("mean", own), own, {}), own)
    assert decided.decisions().mean(0).tolist() == [0, 1, 0, 1]


def test_folds_keep_their_own_thresholds() -> None:
    whole = a_sample([1.0], rows=30).members[0]
    parts = [
        dataclasses.replace(whole.take(np.arange(fold, 30, 3)), thresholds=np.full(4, 0.2 * (fold + 1), np.float32))
        for fold in range(3)
    ]
    joined, _ = align.join_folds(parts, [part.ids for part in parts])
    assert joined.thresholds is not None
    assert joined.thresholds[::10, 0].tolist() == pytest.approx([0.2, 0.4, 0.6])
