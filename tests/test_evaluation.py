"""`comp evaluate`: diagnosis held to scikit-learn and to arithmetic done by hand, and what lands in the run."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn.metrics import precision_recall_fscore_support, top_k_accuracy_score

from comp import diagnosis, predictions
from comp.errors import RunError
from comp.predictions import Predictions
from tests.conftest import Result
from tests.test_run import the_run


def drawn(seed: int, count: int, classes: int) -> Predictions:
    """Return predictions of random labels, better than chance."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, count)
    logits = generator.normal(0, 1, (count, classes)).astype(np.float32)
    logits[np.arange(count), labels] += 1
    return predictions.from_logits(
        logits,
        ids=np.arange(count).astype(np.str_),
        classes=[f"c{c}" for c in range(classes)],
        labels=labels,
        made_by={},
    )


@given(st.integers(0, 2**31), st.integers(1, 200), st.integers(2, 12))
def test_scores_by_class_are_scikit_learns(seed: int, count: int, classes: int) -> None:
    found = drawn(seed, count, classes)
    told = diagnosis.diagnose(found)
    every = list(range(classes))
    for average in ("macro", "weighted"):
        *expected, _ = precision_recall_fscore_support(
            found.labels, found.top1, labels=every, average=average, zero_division=0
        )
        assert [told[average][key] for key in ("precision", "recall", "f1")] == pytest.approx(expected)
    *columns, support = precision_recall_fscore_support(found.labels, found.top1, labels=every, zero_division=0)
    for key, column in zip(("precision", "recall", "f1"), columns, strict=True):
        assert [row[key] for row in told["classes"]] == pytest.approx(column)
    assert [row["images"] for row in told["classes"]] == list(support)
    assert np.array(told["confusion"]).sum() == count
    assert sum(mistakes for *_, mistakes in told["confused"]) <= count


@given(st.integers(0, 2**31), st.integers(2, 100))
def test_the_label_is_among_the_five_likeliest_as_often_as_scikit_learn_counts(seed: int, count: int) -> None:
    found = drawn(seed, count, 8)
    # On logits before rounding there are no ties, which scikit-learn breaks by order.
    logits = found.logits.astype(np.float64) + 1e-9 * np.eye(8)[found.labels]
    assert found.labels is not None
    expected = top_k_accuracy_score(found.labels, logits, k=5, labels=range(8))
    assert diagnosis.top_accuracy(found, 5) == pytest.approx(expected)


def test_calibration_by_hand() -> None:
    logits = np.log(np.array([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.4, 0.6]], np.float32))
    found = predictions.from_logits(
        logits, ids=np.array(list("abcd")), classes=["x", "y"], labels=np.array([0, 1, 0, 1]), made_by={}
    )
    told = diagnosis.calibration(found)
    assert [row["images"] for row in told["bins"]] == [2, 2]
    assert told["ece"] == pytest.approx((2 * abs(0.6 - 1.0) + 2 * abs(0.9 - 0.5)) / 4, abs=1e-3)
    assert list(diagnosis.worst(found, 5)) == [1]


def test_mean_corruption_error_sums_severities_before_it_divides() -> None:
    own = {"distortion00_1": 0.9, "distortion00_2": 0.7, "distortion01_1": 0.8, "distortion01_2": 0.8}
    base = {"distortion00_1": 0.8, "distortion00_2": 0.4, "distortion01_1": 0.6, "distortion01_2": 0.8}
    assert diagnosis.mean_corruption_error(own, base) == pytest.approx(100 * (0.4 / 0.8 + 0.4 / 0.6) / 2)
    assert diagnosis.mean_corruption_error(base, base) == pytest.approx(100)
    with pytest.raises(RunError, match="same suite"):
        diagnosis.mean_corruption_error(own, {"distortion00_1": 0.5})
    with pytest.raises(RunError, match="no error"):
        diagnosis.mean_corruption_error(own, dict.fromkeys(own, 1.0))


def test_evaluate_leaves_numbers_and_pictures_and_prints_them(workplace: Path, comp: Callable[..., Result]) -> None:
    assert comp("run", "small.yaml").code == 0
    run = the_run()
    result = comp("evaluate", run.path, "--baseline", run.path)
    assert result.code == 0, result.err
    stored = json.loads((run.path / "evaluation.json").read_text())
    assert set(stored) == {"val", "ood_val", "test", "suite", "mean_corruption_error"}
    scores = run.metrics()
    for name, known in (("val", scores["best"]["val"]), ("test", scores["test"]), ("suite", scores["suite"])):
        assert stored[name]["loss"] == pytest.approx(known["loss"])
        assert stored[name]["images"] == known["images"]
    assert stored["test"]["accuracy"] == pytest.approx(scores["test"]["accuracy"])
    assert stored["suite"]["by_block"] == scores["suite"]["by_block"]
    assert stored["mean_corruption_error"]["value"] == pytest.approx(100)
    assert "mean corruption error on suite: 100.0 %" in result.out
    for picture in ("confusion-test", "reliability-test", "blocks-suite"):
        with Image.open(run.path / "plots" / f"{picture}.png") as image:
            assert image.width > 300
    as_json = json.loads(comp("evaluate", run.path, "--json").out)
    assert as_json["evaluation"]["test"]["accuracy"] == as_json["test"]["accuracy"]


def test_a_baseline_without_such_predictions_is_refused(workplace: Path, comp: Callable[..., Result]) -> None:
    assert comp("run", "small.yaml").code == 0
    assert comp("train", "small.yaml", "competition.ood_validation.severities=[]", "--runs", "other").code == 0
    run, other = the_run(), the_run(Path("other"))
    result = comp("evaluate", run.path, "--baseline", other.path)
    assert result.code == 2
    assert "suite.npz is not there" in result.err
    assert not (run.path / "evaluation.json").exists()
