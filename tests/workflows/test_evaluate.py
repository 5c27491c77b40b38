"""`comp evaluate`: diagnosis held to scikit-learn and to arithmetic done by hand, and what lands in the run."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn.metrics import (
    average_precision_score,
    precision_recall_fscore_support,
    roc_auc_score,
    top_k_accuracy_score,
)

from comp import config as configs
from comp.results import diagnostics, metrics, prediction_files, predictions, runs
from comp.results.predictions import Predictions
from comp.results.run_metrics import RunMetrics, WeightScores
from comp.runtime.errors import RunError
from tests.support.commands import Result


def drawn(seed: int, count: int, classes: int) -> Predictions:
    """Return predictions of random labels, better than chance."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, count)
    logits = generator.normal(0, 1, (count, classes)).astype(np.float32)
    logits[np.arange(count), labels] += 1
    return predictions.from_outputs(
        logits,
        task="single_label",
        ids=np.arange(count).astype(np.str_),
        classes=[f"c{c}" for c in range(classes)],
        targets=labels,
        made_by={},
    )


@given(st.integers(0, 2**31), st.integers(1, 200), st.integers(2, 12))
def test_scores_by_class_are_scikit_learns(seed: int, count: int, classes: int) -> None:
    found = drawn(seed, count, classes)
    told = diagnostics.diagnose(found)
    every = list(range(classes))
    for average in ("macro", "weighted"):
        *expected, _ = precision_recall_fscore_support(
            found.targets, found.top1, labels=every, average=average, zero_division=0
        )
        assert [told[average][key] for key in ("precision", "recall", "f1")] == pytest.approx(expected)
    *columns, support = precision_recall_fscore_support(found.targets, found.top1, labels=every, zero_division=0)
    for key, column in zip(("precision", "recall", "f1"), columns, strict=True):
        assert [row[key] for row in told["classes"]] == pytest.approx(column)
    assert [row["images"] for row in told["classes"]] == list(support)
    assert np.array(told["confusion"]).sum() == count
    assert sum(mistakes for *_, mistakes in told["confused"]) <= count


@given(st.integers(0, 2**31), st.integers(2, 100))
def test_the_label_is_among_the_five_likeliest_as_often_as_scikit_learn_counts(seed: int, count: int) -> None:
    found = drawn(seed, count, 8)
    # On logits before rounding there are no ties, which scikit-learn breaks by order.
    logits = found.outputs.astype(np.float64) + 1e-9 * np.eye(8)[found.targets]
    assert found.targets is not None
    expected = top_k_accuracy_score(found.targets, logits, k=5, labels=range(8))
    assert diagnostics.top_accuracy(found, 5) == pytest.approx(expected)


def test_calibration_by_hand() -> None:
    logits = np.log(np.array([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.4, 0.6]], np.float32))
    found = predictions.from_outputs(
        logits,
        task="single_label",
        ids=np.array(list("abcd")),
        classes=["x", "y"],
        targets=np.array([0, 1, 0, 1]),
        made_by={},
    )
    told = diagnostics.calibration(found)
    assert [row["images"] for row in told["bins"]] == [2, 2]
    assert told["ece"] == pytest.approx((2 * abs(0.6 - 1.0) + 2 * abs(0.9 - 0.5)) / 4, abs=1e-3)
    assert list(diagnostics.find_worst_mistakes(found, 5)) == [1]


def test_mean_corruption_error_sums_severities_before_it_divides() -> None:
    own = {"distortion00_1": 0.9, "distortion00_2": 0.7, "distortion01_1": 0.8, "distortion01_2": 0.8}
    base = {"distortion00_1": 0.8, "distortion00_2": 0.4, "distortion01_1": 0.6, "distortion01_2": 0.8}
    assert diagnostics.mean_corruption_error(own, base) == pytest.approx(100 * (0.4 / 0.8 + 0.4 / 0.6) / 2)
    assert diagnostics.mean_corruption_error(base, base) == pytest.approx(100)
    with pytest.raises(RunError, match="same suite"):
        diagnostics.mean_corruption_error(own, {"distortion00_1": 0.5})
    with pytest.raises(RunError, match="no error"):
        diagnostics.mean_corruption_error(own, dict.fromkeys(own, 1.0))


def test_evaluate_leaves_numbers_and_pictures_and_prints_them(two_runs: Path, comp: Callable[..., Result]) -> None:
    run, _ = runs.list_runs(Path("runs"))
    result = comp("evaluate", run.path, "--baseline", run.path)
    assert result.code == 0, result.err
    stored = json.loads((run.path / "evaluation.json").read_text())
    assert set(stored) == {"val", "ood_val", "test", "suite", "mean_corruption_error"}
    scores = run.metrics()
    for name, known in (("val", scores.best.val), ("test", scores.test), ("suite", scores.suite)):
        assert stored[name]["loss"] == pytest.approx(known.log_loss)
        assert stored[name]["images"] == known.images
    assert stored["test"]["accuracy"] == pytest.approx(scores.test.accuracy)
    assert stored["suite"]["by_block"] == scores.suite.by_block
    assert stored["mean_corruption_error"]["value"] == pytest.approx(100)
    assert "100.0 %" in result.out
    for name in ("val", "test"):
        shown = stored[name]["examples"]["shown"]
        assert [each["right"] for each in shown] == sorted(each["right"] for each in shown)  # mistakes come first
        assert all((each["true"] == each["predicted"]) == each["right"] for each in shown)
        with Image.open(run.path / "plots" / f"examples-{name}.png") as image:
            assert image.size == (32 * len(shown), 2 * 32)  # below each picture, what the network looked at
    as_json = json.loads(comp("evaluate", run.path, "--json").out)
    assert as_json["evaluation"]["test"]["accuracy"] == as_json["test"]["scores"]["accuracy"]["value"]


def test_a_baseline_without_such_predictions_is_refused(two_runs: Path, comp: Callable[..., Result]) -> None:
    run, baseline = runs.list_runs(Path("runs"))
    (baseline.path / "predictions/suite.npz").unlink()
    result = comp("evaluate", run.path, "--baseline", baseline.path)
    assert result.code == 2
    assert f"{baseline.path}/predictions/suite.npz" in result.err
    assert not (run.path / "evaluation.json").exists()


def several_labels(seed: int, count: int = 40) -> Predictions:
    """Return predictions of images with any number of three classes, one of which no image has."""
    generator = np.random.default_rng(seed)
    targets = (generator.random((count, 3)) < (0.5, 0.2, 0.0)).astype(np.float32)
    outputs = generator.normal(size=(count, 3)) + 2 * targets - 1
    return predictions.from_outputs(
        outputs.astype(np.float32), task="multi_label", ids=np.arange(count).astype(np.str_),
        classes=["cat", "dog", "<owl>"], targets=targets, made_by={}, thresholds=np.array([0.5, 0.3, 0.5], np.float32),
    )  # fmt: skip


def test_independent_classes_are_diagnosed_one_by_one() -> None:
    found = several_labels(0)
    values = diagnostics.diagnose(found)
    assert not {"confusion", "confused", "top5"} & set(values)
    truth, decided = found.truth(), found.decisions()
    for average in ("macro", "weighted", "micro"):
        *expected, _ = precision_recall_fscore_support(truth, decided, average=average, zero_division=0)
        assert [values[average][key] for key in ("precision", "recall", "f1")] == pytest.approx(expected)
    dog, owl = values["classes"][1:]
    assert dog["images"] == truth[:, 1].sum()
    assert dog["roc_auc"] == pytest.approx(roc_auc_score(truth[:, 1], found.probabilities()[:, 1]))
    assert dog["average_precision"] == pytest.approx(average_precision_score(truth[:, 1], found.probabilities()[:, 1]))
    assert dog["threshold"] == pytest.approx(0.3)
    assert (owl["roc_auc"], owl["average_precision"]) == (None, None)
    assert sum(row["images"] for row in values["calibration"]["bins"]) == truth.size
    worst = diagnostics.find_worst_mistakes(found, 3)
    losses = metrics.row_losses(found)
    assert list(losses[worst]) == sorted(losses[worst], reverse=True)
    assert not found.correct()[worst].any()
    described = diagnostics.describe(found, int(worst[0]))
    assert described["true"] != described["predicted"]
    assert described["confidence"] is None


def test_a_run_of_several_labels_without_weights_is_evaluated_and_reported(
    workplace: Path, comp: Callable[..., Result]
) -> None:
    run = runs.create(Path("runs"), configs.load("small.yaml"), "mean-ensemble", {"classes": ["cat", "dog", "<owl>"]})
    scores = {}
    for seed, split in enumerate(("val", "test")):
        prediction_files.save(run.predictions_path(split), several_labels(seed))
        scores[split] = metrics.summarize(several_labels(seed), "macro_f1")
    run.write_metrics(RunMetrics(
        kind="ensemble", task="multi_label", run=run.name, competition="small", metric="macro_f1", model="mean of 2",
        parameters=1, best=WeightScores(val=scores["val"]), test=scores["test"], thresholds=[0.5, 0.3, 0.5],
    ))  # fmt: skip
    result = comp("evaluate", run.path)
    assert result.code == 0, result.err
    assert "macro_f1" in result.out
    assert "micro F1" in result.out
    assert "top 5" not in result.out
    refused = comp("evaluate", run.path, "--views", "flip", "--adapt", "bn")
    assert refused.code == 2
    assert "--views, --adapt" in refused.err
    assert comp("report", run.path, "-o", "page.html").code == 0
    page = Path("page.html").read_text()
    assert "average precision" in page
    assert "accuracy by confidence" in page
    assert "columns: predicted" not in page
    assert "No pictures of mistakes" not in page  # it has no weights, so none will come
    assert "&lt;owl&gt;" in page
    assert "validation macro_f1" in page
    assert "val macro_f1" in comp("leaderboard").out
