"""`comp predict ENSEMBLE --images`: the members predict new images, and are combined as before."""

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

import comp as api
from comp.results import files, prediction_files
from comp.results.predictions import Predictions
from comp.results.runs import Run
from tests.support.commands import assert_refused
from tests.support.runs import Comp, made, members


def pixels(folder: Path) -> Path:
    """Write the images of the test split to a file; return it."""
    root = Path(yaml.safe_load((folder / "small.yaml").read_text())["data"]["root"])
    return root / "test_images.npy"


def stored(run: Run, split: str = "test") -> Predictions:
    return prediction_files.load(run.path / "predictions" / f"{split}.npz")


@pytest.mark.parametrize("method", ["mean", "geometric", "rank", "weighted", "greedy", "stack"])
def test_new_images_are_predicted_as_the_ensembles_own_test_was(three_runs: Path, comp: Comp, method: str) -> None:
    run, _ = made(comp, *members(), "--method", method)
    result = comp("predict", run.path, "--images", pixels(three_runs), "-o", "table.csv")
    assert result.code == 0, result.err
    predicted, expected = prediction_files.load(Path("table.npz")), stored(run)
    assert np.array_equal(predicted.outputs, expected.outputs)
    assert np.array_equal(predicted.decisions(), expected.decisions())
    assert predicted.made_by["ensemble"] == method
    assert predicted.made_by["weights_sha256"] == expected.made_by["weights_sha256"]
    assert predicted.top1 is not None
    with Path("table.csv").open(newline="") as file:
        assert [row["label"] for row in csv.DictReader(file)] == [predicted.classes[top] for top in predicted.top1]


def test_ensembles_of_ensembles_and_python_do_the_same(three_runs: Path, comp: Comp) -> None:
    inner, _ = made(comp, *members()[:2])
    outer, _ = made(comp, inner.path, members()[2], "--name", "outer")
    images = np.load(pixels(three_runs))
    assert np.array_equal(api.predict(outer, images=images).outputs, stored(outer).outputs)
    flipped = api.predict(outer, images=images, views="flip")
    assert not np.array_equal(flipped.outputs, stored(outer).outputs)
    assert {member["views"] for member in flipped.made_by["members"] if "views" in member} == {"flip"}


def test_the_views_of_the_ensemble_are_kept(three_runs: Path, comp: Comp) -> None:
    run, _ = made(comp, *members()[:2], "--views", "flip")
    predicted = api.predict(run, images=np.load(pixels(three_runs)))
    assert np.array_equal(predicted.outputs, stored(run).outputs)


def test_a_decision_of_the_ensemble_applies_unless_argmax_is_asked_for(three_runs: Path, comp: Comp) -> None:
    run, _ = made(comp, *members()[:2])
    decision = {"kind": "thresholds", "values": [9.0, 0.0, 0.0, 0.0]}  # everything becomes the first class
    files.write_atomically(run.path / "metrics.json", files.to_json({**run.metrics().to_json(), "decision": decision}))
    images = np.load(pixels(three_runs))
    assert set(api.predict(run, images=images).top1.tolist()) == {0}  # type: ignore[union-attr]
    plain = api.predict(run, images=images, decide="argmax")
    assert np.array_equal(plain.top1, stored(run).top1)  # type: ignore[arg-type]
    result = comp("predict", run.path, "--images", pixels(three_runs), "--decide", "temperature")
    assert_refused(result, "--decide temperature", "auto or argmax")


def test_members_that_are_gone_or_changed_are_named(three_runs: Path, comp: Comp) -> None:
    run, _ = made(comp, *members()[:2])
    words = ("predict", run.path, "--images", pixels(three_runs))
    shutil.copy(members()[1] / "best.safetensors", members()[0] / "best.safetensors")
    assert_refused(comp(*words), str(members()[0]), "other weights", "make the ensemble again")
    gone = members()[0]
    shutil.rmtree(gone)
    assert_refused(comp(*words), str(gone), "missing", "new images cannot be predicted")
    assert not Path("predictions").exists()


def test_a_stack_that_lost_what_it_learnt_says_so(three_runs: Path, comp: Comp) -> None:
    run, _ = made(comp, *members()[:2], "--method", "stack")
    words = ("predict", run.path, "--images", pixels(three_runs))
    (run.path / "ensemble.npz").unlink()
    assert_refused(comp(*words), "ensemble.npz", "restore it")
    provenance = run.provenance()
    del provenance["ensemble"]
    run.write_json("provenance.json", provenance)  # as an earlier version left it
    assert_refused(comp(*words), "does not record what stack has learnt", "make the ensemble again")
