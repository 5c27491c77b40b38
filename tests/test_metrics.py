"""Scores: what scikit-learn says, on every kind of label set; the competition's own metric through a run."""

import json
from collections.abc import Callable

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from comp import metrics, predictions, runs
from comp.predictions import Predictions
from tests.conftest import Result

Arrays = tuple[NDArray[np.int64], NDArray[np.float64], int]


def predicted(labels: NDArray[np.int64], logits: NDArray[np.float32]) -> Predictions:
    """Return predictions of `len(labels)` images."""
    names = [str(c) for c in range(logits.shape[1])]
    ids = np.arange(len(labels)).astype(np.str_)
    return predictions.from_logits(logits, ids=ids, classes=names, labels=labels, made_by={})


@st.composite
def cases(draw: st.DrawFn) -> Predictions:
    """Draw labels that may lack classes, and coarse logits: many ties."""
    count, classes = draw(st.integers(1, 30)), draw(st.integers(2, 5))
    labels = draw(st.lists(st.integers(0, classes - 1), min_size=count, max_size=count))
    logits = draw(st.lists(st.integers(-3, 3), min_size=count * classes, max_size=count * classes))
    return predicted(np.array(labels), np.array(logits, np.float32).reshape(count, classes))


def shares(found: Predictions) -> NDArray[np.float64]:
    """Return probabilities [N, C] of the stored logits."""
    raised = np.exp(found.logits.astype(np.float64))
    return raised / raised.sum(1, keepdims=True)


def area_by_sklearn(found: Predictions) -> float:
    """Return the mean of scikit-learn's binary areas, over the classes that have one."""
    classes = [1] if len(found.classes) == 2 else range(len(found.classes))
    truths = [(found.labels == c, shares(found)[:, c]) for c in classes]
    areas = [sklearn.metrics.roc_auc_score(truth, share) for truth, share in truths if len(set(truth)) == 2]
    return float(np.mean(areas)) if areas else 0.5


def kappa_by_sklearn(found: Predictions) -> float:
    """Return scikit-learn's kappa; it divides 0 by 0 where all are of one class."""
    assert found.labels is not None
    if len({*found.labels.tolist(), *found.top1.tolist()}) == 1:
        return 1.0
    everything = list(range(len(found.classes)))
    return float(sklearn.metrics.cohen_kappa_score(found.labels, found.top1, labels=everything, weights="quadratic"))


def balanced_by_sklearn(found: Predictions) -> float:
    """Return the mean recall over the labels that occur; `balanced_accuracy_score` warns where an answer is new."""
    assert found.labels is not None
    recall = sklearn.metrics.recall_score(
        found.labels, found.top1, labels=np.unique(found.labels), average="macro", zero_division=0
    )
    return float(recall)


REFERENCES: dict[str, Callable[[Predictions], float]] = {
    "accuracy": lambda p: float(sklearn.metrics.accuracy_score(p.labels, p.top1)),
    "balanced_accuracy": balanced_by_sklearn,
    "macro_f1": lambda p: float(sklearn.metrics.f1_score(p.labels, p.top1, average="macro", zero_division=0)),
    "weighted_f1": lambda p: float(sklearn.metrics.f1_score(p.labels, p.top1, average="weighted", zero_division=0)),
    "log_loss": lambda p: float(
        sklearn.metrics.log_loss(p.labels, shares(p), labels=list(range(len(p.classes)))),
    ),
    "roc_auc": area_by_sklearn,
    "quadratic_weighted_kappa": kappa_by_sklearn,
}


@pytest.mark.parametrize("name", metrics.METRICS)
@given(found=cases())
def test_a_metric_agrees_with_scikit_learn(name: str, found: Predictions) -> None:
    assert metrics.METRICS[name].score(found) == pytest.approx(REFERENCES[name](found), abs=1e-6)


def test_the_area_of_many_classes_is_scikit_learns_macro_one_vs_rest() -> None:
    generator = np.random.default_rng(0)
    found = predicted(np.arange(60) % 4, generator.normal(size=(60, 4)).astype(np.float32))
    wanted = sklearn.metrics.roc_auc_score(found.labels, shares(found), multi_class="ovr", average="macro")
    assert metrics.roc_auc(found) == pytest.approx(wanted)


@pytest.mark.parametrize("name", metrics.METRICS)
def test_every_metric_ranks_right_answers_above_wrong_ones(name: str) -> None:
    labels = np.arange(30) % 3
    right = np.eye(3, dtype=np.float32)[labels] * 5
    row = metrics.METRICS[name]
    assert row.value_up(row.score(predicted(labels, right))) > row.value_up(row.score(predicted(labels, -right)))


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
    stored = predictions.load(run.predictions_path("val"))
    assert scores["best"]["val"]["metric"] == pytest.approx(metrics.macro_f1(stored))
    suite = predictions.load(run.predictions_path("suite"))
    assert scores["suite"]["metric"] == pytest.approx(metrics.macro_f1(suite))
    assert float(max(row["val_metric"] for row in run.history())) == pytest.approx(scores["best"]["val"]["metric"])
    assert "macro_f1" in comp("evaluate", run.path).out


def test_the_leaderboard_sorts_a_metric_in_its_own_direction(workplace: object, comp: Callable[..., Result]) -> None:
    for epochs in (1, 3):
        assert comp("train", "small.yaml", f"train.epochs={epochs}", "competition.metric=log_loss").code == 0
    rows = json.loads(comp("leaderboard", "--sort", "val_metric", "--json").out)
    assert [row["metric"] for row in rows] == ["log_loss", "log_loss"]
    assert rows[0]["val_metric"] < rows[1]["val_metric"]
