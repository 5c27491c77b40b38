"""Scores: what scikit-learn says, on every kind of label set; the competition's own metric through a run."""

import dataclasses
import json
from collections.abc import Callable

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from comp.config.tasks import TASKS
from comp.results import diagnostics, leaderboard, metrics, prediction_files, predictions, runs
from comp.results.predictions import Predictions
from tests.support.commands import Result
from tests.support.frozen_runs import FROZEN
from tests.support.predictions import multi_label, predicted


@st.composite
def single_label(draw: st.DrawFn) -> Predictions:
    """Draw labels that may lack classes, and coarse outputs: many ties."""
    count, classes = draw(st.integers(1, 30)), draw(st.integers(2, 5))
    labels = draw(st.lists(st.integers(0, classes - 1), min_size=count, max_size=count))
    outputs = draw(st.lists(st.integers(-3, 3), min_size=count * classes, max_size=count * classes))
    return predicted(np.array(labels), np.array(outputs, np.float32).reshape(count, classes))


@st.composite
def ordinal(draw: st.DrawFn) -> Predictions:
    """Draw the same predictions as of ordered classes."""
    found = draw(single_label())
    return predictions.from_outputs(
        found.outputs.astype(np.float32), task="ordinal", ids=found.ids, classes=found.classes, targets=found.targets,
        made_by={},
    )  # fmt: skip


@st.composite
def numbers(draw: st.DrawFn) -> Predictions:
    """Draw whole numbers and predicted ones between them."""
    count = draw(st.integers(1, 30))
    targets = draw(st.lists(st.integers(-3, 4), min_size=count, max_size=count))
    outputs = draw(st.lists(st.integers(-12, 16), min_size=count, max_size=count))
    return predictions.from_outputs(
        np.array(outputs, np.float32)[:, None] / 4, task="regression", ids=np.arange(count).astype(np.str_),
        classes=("age",), targets=np.array(targets, np.float32), made_by={},
    )  # fmt: skip


CASES = {"single_label": single_label(), "multi_label": multi_label(), "ordinal": ordinal(), "regression": numbers()}


def columns(found: Predictions) -> list[tuple[NDArray[np.bool_], NDArray[np.float64]]]:
    """Return truth and probabilities of the columns whose ranking can be scored."""
    first = 1 if len(found.classes) == 2 and found.top1 is not None else 0
    truth, shares = found.truth(), found.probabilities()
    kept = [c for c in range(first, len(found.classes)) if 0 < truth[:, c].sum() < len(found)]
    return [(truth[:, c], shares[:, c]) for c in kept]


def mean_by_sklearn(score: Callable[..., float], found: Predictions, nothing: float) -> float:
    """Return the mean of a binary score of scikit-learn's over the columns that have one."""
    scores = [score(truth, shares) for truth, shares in columns(found)]
    return float(np.mean(scores)) if scores else nothing


def kappa_by_sklearn(found: Predictions) -> float:
    """Return scikit-learn's kappa; it divides 0 by 0 where all are of one class."""
    assert found.targets is not None
    if found.top1 is None:
        truth, whole = found.targets.astype(int), np.floor(found.outputs[:, 0] + 0.5).astype(int)
        if len({*truth.tolist(), *whole.tolist()}) == 1:
            return 1.0
        levels = list(range(-4, 6))
        return float(sklearn.metrics.cohen_kappa_score(truth, whole, labels=levels, weights="quadratic"))
    if len({*found.targets.tolist(), *found.top1.tolist()}) == 1:
        return 1.0
    everything = list(range(len(found.classes)))
    return float(sklearn.metrics.cohen_kappa_score(found.targets, found.top1, labels=everything, weights="quadratic"))


def balanced_by_sklearn(found: Predictions) -> float:
    """Return the mean recall over the labels that occur; `balanced_accuracy_score` warns where an answer is new."""
    assert found.targets is not None
    recall = sklearn.metrics.recall_score(
        found.targets, found.top1, labels=np.unique(found.targets), average="macro", zero_division=0
    )
    return float(recall)


def f1_by_sklearn(average: str) -> Callable[[Predictions], float]:
    def score(found: Predictions) -> float:
        truth, decided = found.truth(), found.decisions()
        if average == "macro":  # scikit-learn counts columns that occur nowhere as 0
            occurs = truth.any(0) | decided.any(0)
            columns = zip(truth[:, occurs].T, decided[:, occurs].T, strict=True)
            scores = [float(sklearn.metrics.f1_score(*column, zero_division=0.0)) for column in columns]
            return float(np.mean(scores)) if scores else 0.0
        empty = 1.0 if average == "samples" else 0.0
        return float(sklearn.metrics.f1_score(truth, decided, average=average, zero_division=empty))

    return score


def log_loss_by_sklearn(found: Predictions) -> float:
    if found.top1 is not None:
        return float(sklearn.metrics.log_loss(found.targets, found.probabilities(), labels=range(len(found.classes))))
    return float(sklearn.metrics.log_loss(found.truth().ravel(), found.probabilities().ravel(), labels=[False, True]))


def map_by_hand(count: int) -> Callable[[Predictions], float]:
    def score(found: Predictions) -> float:
        scores = []
        for row, truth in enumerate(found.truth()):
            order = sorted(range(len(truth)), key=lambda c: -float(found.outputs[row, c]))[:count]
            hits = [place for place, c in enumerate(order) if truth[c]]
            precision = [(number + 1) / (place + 1) for number, place in enumerate(hits)]
            scores.append(sum(precision) / max(1, min(int(truth.sum()), count)))
        return float(np.mean(scores))

    return score


def of_numbers(score: Callable[..., float]) -> Callable[[Predictions], float]:
    """Return a score of scikit-learn's of true and predicted numbers; ordered classes here lie at their indices."""

    def scored(found: Predictions) -> float:
        assert found.targets is not None
        values = found.outputs[:, 0] if found.top1 is None else found.top1
        return float(score(found.targets.astype(float), values.astype(float)))

    return scored


def r2_by_sklearn(truth: np.ndarray, values: np.ndarray) -> float:
    """Return scikit-learn's score; of one number, or of equal ones, it says nothing or 1."""
    return float(sklearn.metrics.r2_score(truth, values)) if len(set(truth.tolist())) > 1 else 0.0


REFERENCES: dict[str, Callable[[Predictions], float]] = {
    "accuracy": lambda p: float(sklearn.metrics.accuracy_score(p.truth(), p.decisions())),
    "balanced_accuracy": balanced_by_sklearn,
    "macro_f1": f1_by_sklearn("macro"),
    "weighted_f1": f1_by_sklearn("weighted"),
    "micro_f1": f1_by_sklearn("micro"),
    "samples_f1": f1_by_sklearn("samples"),
    "log_loss": log_loss_by_sklearn,
    "roc_auc": lambda p: mean_by_sklearn(sklearn.metrics.roc_auc_score, p, 0.5),
    "mean_average_precision": lambda p: mean_by_sklearn(sklearn.metrics.average_precision_score, p, 0.0),
    "quadratic_weighted_kappa": kappa_by_sklearn,
    "rmse": of_numbers(sklearn.metrics.root_mean_squared_error),
    "mae": of_numbers(sklearn.metrics.mean_absolute_error),
    "r2": of_numbers(r2_by_sklearn),
    "map_at_3": map_by_hand(3),
    "map_at_5": map_by_hand(5),
}


@pytest.mark.parametrize(("task", "name"), [(task, name) for task, row in TASKS.items() for name in row.metrics])
@given(data=st.data())
def test_a_metric_agrees_with_its_reference(task: str, name: str, data: st.DataObject) -> None:
    found = data.draw(CASES[task])
    assert metrics.METRICS[name].score(found) == pytest.approx(REFERENCES[name](found), abs=1e-6)


def test_kappa_uses_the_numeric_values_of_classes() -> None:
    names = ("0", "1", "2", "10")
    generator = np.random.default_rng(0)
    labels, outputs = generator.integers(0, 4, 200), generator.normal(size=(200, 4)).astype(np.float32)
    found = predicted(labels, outputs, names)
    assert found.top1 is not None
    worth = np.array([0, 1, 2, 10])
    # Values that lie evenly, so that scikit-learn's weights, which are of places, are of values.
    expected = sklearn.metrics.cohen_kappa_score(
        worth[labels], worth[found.top1], labels=list(range(11)), weights="quadratic"
    )
    assert metrics.quadratic_weighted_kappa(found) == pytest.approx(expected)
    named = metrics.quadratic_weighted_kappa(predicted(labels, outputs, ("a", "b", "c", "d")))
    assert named == pytest.approx(sklearn.metrics.cohen_kappa_score(labels, found.top1, weights="quadratic"))
    assert named != pytest.approx(expected)


def test_a_summary_has_intervals_of_accuracy_and_loss_and_the_metric_without_one() -> None:
    generator = np.random.default_rng(0)
    found = predicted(np.arange(60) % 4, generator.normal(size=(60, 4)).astype(np.float32))
    scores = metrics.summarize(found, "macro_f1").scores
    assert list(scores) == ["accuracy", "log_loss", "macro_f1"]
    for name in ("accuracy", "log_loss"):
        low, high = scores[name].low, scores[name].high
        assert low is not None
        assert high is not None
        assert low < scores[name].value < high
    assert scores["macro_f1"].low is None
    assert not scores["log_loss"].higher_is_better


def test_roc_auc_of_many_classes_is_macro_one_vs_rest() -> None:
    generator = np.random.default_rng(0)
    found = predicted(np.arange(60) % 4, generator.normal(size=(60, 4)).astype(np.float32))
    wanted = sklearn.metrics.roc_auc_score(found.targets, found.probabilities(), multi_class="ovr", average="macro")
    assert metrics.roc_auc(found) == pytest.approx(wanted)


@pytest.mark.parametrize("name", TASKS["single_label"].metrics)
def test_every_metric_ranks_correct_predictions_above_wrong_ones(name: str) -> None:
    labels = np.arange(30) % 3
    right = np.eye(3, dtype=np.float32)[labels] * 5
    row = metrics.METRICS[name]
    assert row.as_maximize(row.score(predicted(labels, right))) > row.as_maximize(row.score(predicted(labels, -right)))


def test_a_suite_without_any_rankable_class_still_has_a_number() -> None:
    found = predicted(np.zeros(5, np.int64), np.zeros((5, 3), np.float32))
    assert metrics.roc_auc(found) == 0.5
    assert metrics.quadratic_weighted_kappa(found) == 1.0


def test_a_run_reports_the_competitions_metric_beside_accuracy(workplace: object, comp: Callable[..., Result]) -> None:
    result = comp("run", "small.yaml", "competition.metric=macro_f1", "train.select=val_metric", "--json")
    assert result.code == 0, result.err
    scores = json.loads(result.out)
    assert scores["metric"] == "macro_f1"
    (run,) = runs.list_runs(runs.Path("runs"))
    stored = prediction_files.load(run.predictions_path("val"))
    assert scores["best"]["val"]["scores"]["macro_f1"]["value"] == pytest.approx(metrics.macro_f1(stored))
    suite = prediction_files.load(run.predictions_path("suite"))
    assert scores["suite"]["scores"]["macro_f1"]["value"] == pytest.approx(metrics.macro_f1(suite))
    assert float(max(row["val_metric"] for row in run.history())) == pytest.approx(
        scores["best"]["val"]["scores"]["macro_f1"]["value"]
    )
    assert "macro_f1" in comp("evaluate", run.path).out


def test_the_leaderboard_follows_the_metric_and_its_direction(workplace: object, comp: Callable[..., Result]) -> None:
    unshifted = "competition.ood_validation.severities=[]"
    for epochs in (1, 3, 2):
        words = (f"train.epochs={epochs}", "competition.metric=log_loss", unshifted)
        assert comp("train", "small.yaml", *words).code == 0
    rows = json.loads(comp("leaderboard", "--json").out)
    losses = [row["val_metric"] for row in rows]
    assert losses == sorted(losses)
    assert len(set(losses)) == 3
    assert {(row["metric"], row["task"], row["kind"]) for row in rows} == {("log_loss", "single_label", "run")}
    shown = comp("leaderboard").out
    assert "val log_loss" in shown
    assert "more than chance" not in shown  # no interval of the difference is known
    assert "| val log_loss |" in comp("leaderboard", "--md").out
    (best, *_) = sorted(runs.list_runs(runs.Path("runs")), key=lambda run: run.metrics().best.val.log_loss)
    assert rows[0]["run"] == str(best.path)
    history = [float(row["val_loss"]) for row in best.history()]
    assert best.metrics().selected_by == "val_metric"
    assert best.metrics().best_epoch == 1 + history.index(min(history))
    assert comp("report", best.path, "-o", "page.html").code == 0
    page = runs.Path("page.html").read_text()
    assert page.index("validation log_loss") < page.index("validation accuracy")


def test_the_leaderboard_sorts_by_shifted_validation_if_most_validated_runs_have_it() -> None:
    shifted, *_ = leaderboard.read_rows(FROZEN / "competition")
    clean = dataclasses.replace(shifted, ood_metric=None)
    unvalidated = dataclasses.replace(clean, val_metric=None)
    name = shifted.competition
    assert leaderboard.sort_columns([shifted, shifted, clean], "auto") == {name: "ood_metric"}
    assert leaderboard.sort_columns([shifted, shifted, clean, unvalidated], "auto") == {name: "ood_metric"}
    assert leaderboard.sort_columns([shifted, clean, unvalidated], "auto") == {name: "val_metric"}  # half is not most
    sentence = leaderboard.describe_sort([shifted, shifted, clean], "auto")
    assert "ood_metric" in sentence
    assert "1 of 3 runs" in sentence


@pytest.mark.parametrize(("name", "targets", "reason"), [
    ("roc_auc", [1, 1, 1], "no image of class 'a'"),
    ("macro_f1", [0, 0], "no image of class 'b'"),
    ("macro_f1", [0, 1], ""),
    ("accuracy", [0, 0], ""),
])  # fmt: skip
def test_scores_that_one_class_leaves_undefined(name: str, targets: list[int], reason: str) -> None:
    labelled = dataclasses.replace(
        predicted(np.array(targets), np.zeros((len(targets), 2), np.float32)), classes=("a", "b")
    )
    assert metrics.find_undefined(labelled, name) == reason
    scores = metrics.summarize(labelled, name)
    assert (scores.value(name) is None) == bool(reason)
    assert (scores.undefined or {}) == ({name: reason} if reason else {})
    assert scores.accuracy is not None
    groups = dataclasses.replace(labelled, made_by={"group_answer": "mean"})
    assert metrics.find_undefined(groups, name) == reason.replace("image", "group")


def test_numbers_that_are_all_equal_have_errors_but_no_explained_variance() -> None:
    equal = dataclasses.replace(
        predicted(np.array([0, 0, 0]), np.zeros((3, 1), np.float32)),
        task="regression", classes=("age",), targets=np.full(3, 7, np.float32), top1=None,
        outputs=np.array([[7], [8], [9]], np.float32),
    )  # fmt: skip
    scores = metrics.summarize(equal, "r2")
    assert scores.undefined == {"r2": "all its labels are 7"}
    assert scores.value("mae") == 1
    assert diagnostics.diagnose(equal)["numbers"]["r2"] is None
