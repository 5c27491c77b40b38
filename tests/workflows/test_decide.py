"""predict.decide through the command line: fitted on validation, recorded, applied to every other image."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from comp.results import array_files, decisions, files, metrics, prediction_files, runs
from comp.results.predictions import Predictions
from comp.results.run_metrics import Decision
from comp.runtime.progress import quiet
from comp.training.best_weights import Validation
from comp.training.selection import Scores
from comp.workflows.load import load_run
from comp.workflows.score import score_weights
from tests.support.commands import Result, assert_refused
from tests.support.configs import write_arrays, write_config
from tests.support.runs import assert_same_weights

Comp = Callable[..., Result]
CONFIG: dict[str, Any] = {
    "competition": {
        "name": "small",
        "metric": "log_loss",
        "suite": {"files": 1, "severities": 1, "images_per_block": 20},
        "ood_validation": {"severities": [3], "per_block": 4, "leave_out": ["noise", "blur", "weather"]},
    },
    "data": {"source": "arrays", "root": "data", "validation": 0.5},
    "model": {"name": "simple_cnn", "args": {"depth": 2}},
    "train": {
        "epochs": 1, "batch_size": 32, "label_smoothing": 0.4, "precision": "fp32", "channels_last": False,
        "device": "cpu", "threads": 1, "compile": False,
    },
}  # fmt: skip


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with data of four classes in `data/` and `small.yaml`."""
    monkeypatch.chdir(tmp_path)
    write_arrays(tmp_path / "data", train=320)
    write_config(tmp_path / "small.yaml", CONFIG)
    return tmp_path


def trained(comp: Comp, *words: str) -> runs.Run:
    """Train `small.yaml` and return the run."""
    result = comp("run", "small.yaml", *words, "--json")
    assert result.code == 0, result.err
    values = json.loads(result.out)
    return runs.open_run(Path("runs") / values["run"])


def stored(run: runs.Run, split: str) -> Predictions:
    return prediction_files.load(run.predictions_path(split))


def test_a_decision_is_recorded_applied_and_leaves_the_training_alone(place: Path, comp: Comp) -> None:
    run, plain = trained(comp), trained(comp, "predict.decide=argmax")
    assert_same_weights(run, plain)
    assert [row["val_loss"] for row in run.history()] == [row["val_loss"] for row in plain.history()]
    recorded, without = run.metrics(), plain.metrics()
    assert without.decision is None
    assert recorded.decision is not None
    assert recorded.decision.kind == "temperature"
    assert recorded.best.val is not None
    assert without.best.val is not None
    gains = without.best.val.log_loss or 0, recorded.best.val.log_loss or 0
    assert recorded.decision.gain == pytest.approx(gains[0] - gains[1])
    # The last epoch is compared with the best by the same kind of decision.
    last = stored(plain, "val-final")
    assert recorded.final.val is not None
    assert recorded.final.val.log_loss == metrics.log_loss(decisions.cross_fit("temperature", last, "log_loss"))
    undecided = score_weights(load_run(run), "final", quiet, Validation(Scores(), last), compared_with=Decision())
    assert undecided.scores.val is not None
    assert undecided.scores.val.log_loss == metrics.log_loss(last)
    # Each row of validation by a fit on other rows, all other images by the recorded one.
    val = stored(run, "val")
    assert val.made_by["decision"] == {"kind": "temperature", "cross_fitted": True}
    for split in ("test", "suite"):
        expected = decisions.apply(recorded.decision, stored(plain, split))
        assert np.array_equal(stored(run, split).outputs, expected.outputs), split
        assert stored(run, split).made_by["decision"]["values"] == recorded.decision.values
    # Each shifted copy by the fit of clean rows without the fold of its image.
    with array_files.open_arrays(run.path / "split.npz") as archive:
        shown = np.tile(archive["rows_ood_val"], len(stored(run, "ood_val").block_names))
    clean, shifted = stored(plain, "val"), stored(plain, "ood_val")
    fold = decisions.image_folds(clean.known_targets())
    for number in range(5):
        rows = np.flatnonzero(fold[shown] == number)
        fitted = decisions.KINDS["temperature"].fit(clean.take(np.flatnonzero(fold != number)), "log_loss")
        assert recorded.decision.fold_values[number] == fitted
        expected = decisions.KINDS["temperature"].apply(shifted.take(rows), fitted)
        assert np.array_equal(stored(run, "ood_val").outputs[rows], expected.outputs)
    assert stored(run, "ood_val").made_by["decision"] == {"kind": "temperature", "cross_fitted": True}
    sidecar = files.read_json(Path("submissions/small.json"))
    assert sidecar["made_by"]["decision"]["kind"] == "temperature"
    # Predicting again, and any images, gives the same answers.
    assert comp("predict", run.path, "--split", "val").code == 0
    assert np.array_equal(stored(run, "val").outputs, val.outputs)
    assert comp("predict", run.path, "--images", "data/test_images.npy", "-o", "table.csv").code == 0
    table = prediction_files.load(Path("table.npz"))
    assert np.array_equal(table.outputs, stored(run, "test").outputs)
    result = comp("run", "--resume", run.path)
    assert "decision    temperature" in result.out
    assert "gain in log_loss +" in result.out
    # Another decision at prediction time: what the training would have recorded, in files of its own.
    for one, other, setting in ((run, plain, "argmax"), (plain, run, "auto"), (plain, run, "temperature")):
        before = prediction_files.load(one.predictions_path("suite"))
        assert comp("predict", one.path, "--decide", setting, "-o", f"{setting}.csv", "--force").code == 0
        decided = stored(one, f"suite+decide-{setting}")
        assert np.array_equal(decided.outputs, stored(other, "suite").outputs), setting
        assert decided.made_by["decide"] == setting
        assert np.array_equal(stored(one, "suite").outputs, before.outputs)
        assert files.read_json(Path(f"{setting}.json"))["made_by"]["decide"] == setting
    refused = comp("predict", run.path, "--decide", "thresholds", "-o", "refused.csv")
    assert_refused(refused, "thresholds does not serve metric log_loss")
    # An ensemble fits its own, on its held-out predictions.
    made = comp("ensemble", run.path, plain.path, "--json", "--runs", "made")
    assert made.code == 0, made.err
    together = json.loads(made.out)
    assert together["decision"]["kind"] in ("temperature", "argmax")
    assert together["decision"]["tried"] == "temperature"


@pytest.mark.slow
def test_declared_shares_shift_the_test_once_and_leave_validation_alone(place: Path, comp: Comp) -> None:
    shares = "competition.test_shares={0: 0.7, 1: 0.1, 2: 0.1, 3: 0.1}"
    words = ("competition.metric=accuracy", "predict.decide=prior", shares)
    run, plain = trained(comp, *words), trained(comp, "competition.metric=accuracy")
    decision = run.metrics().decision
    assert decision is not None
    assert decision.shift == pytest.approx(np.log(np.array([0.7, 0.1, 0.1, 0.1]) / 0.25).tolist())
    assert np.array_equal(stored(run, "val").outputs, stored(plain, "val").outputs)
    odds = stored(plain, "suite").probabilities() * np.array([0.7, 0.1, 0.1, 0.1])
    shifted = odds / odds.sum(1, keepdims=True)
    assert stored(run, "suite").probabilities() == pytest.approx(shifted, abs=2e-3)
    with Path("submissions/small.csv").open() as file:
        assert [row["label"] for row in csv.DictReader(file)] == [str(label) for label in shifted.argmax(1)]
    again = trained(comp, *words, "seed=1")
    made = comp("ensemble", run.path, again.path, "--json", "--runs", "made")
    assert made.code == 0, made.err
    together = stored(runs.open_run(Path("made") / json.loads(made.out)["run"]), "suite").probabilities()
    members = [decisions.without_shift(stored(member, "suite")).probabilities() for member in (run, again)]
    odds = np.mean(members, axis=0) * np.array([0.7, 0.1, 0.1, 0.1])
    assert together == pytest.approx(odds / odds.sum(1, keepdims=True), abs=5e-3)


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["predict.decide=best"], ["predict.decide", "temperature"]),
        (["predict.decide=thresholds"], ["thresholds does not serve metric log_loss", "temperature"]),
        (["predict.decide=cut_points"], ["cut_points does not serve metric log_loss"]),
        (["predict.decide=prior"], ["set competition.test_shares"]),
        (["predict.decide=temperature", "data.validation=none", "train.select=val_loss"], ["there is none"]),
        (["competition.test_shares={0: 0.5, 1: 0.2}"], ["sum to 1, found 0.7"]),
        (["competition.test_shares={0: 0.5, 1: 0.2, 2: 0.3}"], ["no share of 3"]),
        (["competition.test_shares={0: 0.5, 1: 0.2, 2: 0.2, 3: 0.05, cat: 0.05}"], ["a share of cat"]),
        (["competition.test_shares={0: 1.5, 1: -0.5, 2: 0, 3: 0}"], ["competition.test_shares"]),
        (["competition.test_shares={0: .nan, 1: 1, 2: 0, 3: 0}"], ["competition.test_shares"]),
        (["competition.test_shares=even"], ["competition.test_shares"]),
        (
            ["competition.test_shares={0: 0.4, 1: 0.2, 2: 0.2, 3: 0.2}", "data.sampling=balanced"],
            ["competition.test_shares", "data.sampling"],
        ),
    ],
)
def test_a_decision_that_cannot_serve_is_refused_before_training(
    place: Path, comp: Comp, words: list[str], parts: list[str]
) -> None:
    assert_refused(comp("run", "small.yaml", *words), *parts)
    assert not any(path.name.endswith("-run") for path in Path("runs").glob("small/*"))


@pytest.mark.slow
def test_too_few_validation_images_keep_argmax_and_the_run_says_so(place: Path, comp: Comp) -> None:
    result = comp("run", "small.yaml", "data.validation=0.1", "competition.suite.source=none")
    assert result.code == 0, result.err
    assert "decision    argmax, not temperature: validation has 32 images for it, fewer than 100" in result.out
