"""Submissions of a finished run: written once, refused before any work, and doubted where they are worthless."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from comp.results import prediction_files, runs
from comp.results.runs import Run
from comp.submission import validate, write
from comp.workflows.load import load_run
from tests.support.commands import Result, assert_refused

Comp = Callable[..., Result]


@pytest.fixture
def first(two_runs: Path) -> Run:
    """The first of two complete runs, which wrote `submissions/small.csv`."""
    return next(run for run in runs.list_runs(Path("runs")) if run.metrics().submission == "submissions/small.csv")


def forget(run: Run) -> None:
    """Leave a run as a kill between writing its submission and recording it leaves it."""
    run.write_metrics(run.metrics().model_copy(update={"submission": ""}))


def test_a_submission_that_a_kill_left_unrecorded_is_not_written_twice(first: Run, comp: Comp) -> None:
    before = sorted(Path("submissions").iterdir())
    whole = first.metrics()
    forget(first)
    assert comp("run", "--resume", first.path).code == 0
    assert sorted(Path("submissions").iterdir()) == before
    assert first.metrics() == whole


def test_the_older_of_two_submissions_counts_when_the_later_is_removed(first: Run, comp: Comp) -> None:
    assert comp("predict", first.path).code == 0
    later = Path(first.metrics().submission)
    assert later.read_bytes() == Path("submissions/small.csv").read_bytes()
    later.unlink()
    assert comp("run", "--resume", first.path).code == 0
    assert first.metrics().submission == "submissions/small.csv"
    assert not later.exists()


@pytest.mark.parametrize("change", ["text", "run", "views", "images"])
def test_a_submission_of_another_content_is_not_taken_for_the_runs_own(first: Run, change: str) -> None:
    forget(first)
    path = Path("submissions/small.json")
    sidecar = json.loads(path.read_text())
    if change == "text":
        Path("submissions/small.csv").write_text("id,label\n")
    elif change == "run":
        sidecar["run"] = "small/another"
    elif change == "views":
        sidecar["made_by"]["views"] = "flip"
    else:
        sidecar["made_by"]["images"] = "another suite"
    path.write_text(json.dumps(sidecar))
    assert not write.has_submission(first)
    assert first.metrics().submission == ""


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["-o", "submissions/small.csv"], "submissions/small.csv: already exists"),
        (["-o", "beside.csv"], "beside.json: already exists"),
        (["--images", "images.npy", "-o", "beside.csv"], "beside.npz: already exists"),
        (["--images", "images.npy", "-o", "a-file/x.csv"], "a-file is not a folder"),
        (["--images", "images.npy", "-o", "folder.csv"], "folder.csv: is a folder"),
    ],
)
def test_a_file_in_the_way_is_named_before_anything_is_predicted(
    first: Run, comp: Comp, arguments: list[str], named: str
) -> None:
    for name in ("beside.json", "beside.npz", "a-file"):
        Path(name).write_text("{}")
    Path("folder.csv").mkdir()
    np.save("images.npy", np.zeros((2, 32, 32, 3), np.uint8))
    first.predictions_path("suite").unlink()
    (first.path / "best.safetensors").unlink()  # which any prediction would miss first
    assert_refused(comp("predict", first.path, *arguments), named)
    assert Path("beside.json").read_text() == "{}"


def test_a_place_that_cannot_be_written_is_refused_before_anything_is_predicted(first: Run, comp: Comp) -> None:
    Path("submissions").rename("moved")
    Path("submissions").write_text("")
    (first.path / "best.safetensors").unlink()
    assert_refused(comp("predict", first.path), "submissions is not a folder")


def test_a_run_prints_the_doubts_of_a_check_behind_its_submission(first: Run, comp: Comp) -> None:
    path, loaded = Path("submissions/small.csv"), load_run(first)
    suite = prediction_files.load(first.predictions_path("suite"))
    constant = replace(suite, top1=np.zeros(len(suite), np.int64), outputs=np.zeros_like(suite.outputs))
    write.write_run_submission(
        first, constant, loaded.competition, path, training_counts=loaded.training_counts, force=True
    )
    checked = json.loads(comp("check", path, "--json").out)["doubts"]
    assert [doubt.verdict for doubt in validate.find_doubts(path)] == ["misleads"]
    lines = comp("run", "--resume", first.path).out.splitlines()
    place = lines.index(f"submission  {path}")
    assert lines[place + 1] in [f"{doubt['verdict']}: {doubt['what']}" for doubt in checked]
    assert lines[place + 1].startswith("misleads: constant")


def test_a_csv_stands_in_the_row_of_the_way_in_which_it_was_predicted(first: Run, comp: Comp) -> None:
    def rows() -> dict[str, dict[str, Any]]:
        listed = json.loads(comp("leaderboard", "--json").out)
        return {row["variant"]: row for row in listed if row["run"] == str(first.path)}

    assert comp("predict", first.path, "--views", "flip", "-o", "flip.csv").code == 0
    assert {variant: row["submission"] for variant, row in rows().items()} == {
        "": "submissions/small.csv", "+flip": "flip.csv",
    }  # fmt: skip
    scores = first.metrics()
    assert rows()[""]["val_metric"] == scores.best_or_final.val.value("accuracy")  # type: ignore[union-attr]
    assert rows()["+flip"]["val_metric"] is None
    assert rows()["+flip"]["suite_metric"] == scores.variants["suite+flip"].accuracy
    assert comp("predict", first.path, "--views", "flip", "--split", "val").code == 0
    assert rows()["+flip"]["val_metric"] == first.metrics().variants["val+flip"].accuracy
    assert comp("leaderboard", "record", "flip.csv", "--public", 0.625).code == 0
    assert {variant: row["public_score"] for variant, row in rows().items()} == {"": None, "+flip": 0.625}
    evaluated = comp("evaluate", first.path).out
    assert "submission  submissions/small.csv\n" in evaluated
    assert "submission  flip.csv (suite+flip)\n" in evaluated
    assert re.search(r"│ \+flip +│.*│ flip\.csv +│", comp("leaderboard").out)
    assert comp("predict", first.path, "-o", "flip.csv", "--force").code == 0
    assert {variant: row["submission"] for variant, row in rows().items()} == {"": "flip.csv"}


def test_another_decision_has_a_row_of_its_own(first: Run, comp: Comp) -> None:
    assert comp("predict", first.path, "--decide", "argmax", "-o", "plain.csv").code == 0
    assert first.metrics().submissions == {"submissions/small.csv": "", "plain.csv": "+decide-argmax"}
    refused = comp("predict", first.path, "--decide", "prior", "competition.test_shares={a: 1}")
    assert_refused(refused, "competition.test_shares", "the shares that it was trained with", "start a new run")
