"""Runs of every earlier format stay usable: listed, reported, predicted with, recorded into."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from comp.cli.app import app
from comp.results import leaderboard, prediction_files, runs

FROZEN = Path(__file__).parents[1] / "frozen"
VERSIONS = sorted(path.name for path in FROZEN.iterdir())
SUBMISSIONS = {"frozen.csv": 0, "frozen-2.csv": 1}  # of the trained runs, by their order of start


@pytest.fixture(params=VERSIONS)
def version(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a version's frozen folder; its runs and submissions lie below the working directory."""
    frozen: Path = FROZEN / request.param
    shutil.copytree(frozen / "competition", tmp_path / "runs" / "frozen")
    shutil.copytree(frozen / "submissions", tmp_path / "submissions")
    monkeypatch.chdir(tmp_path)
    return frozen


def command(*words: str) -> str:
    result = CliRunner().invoke(app, list(words))
    assert result.exit_code == 0, result.output
    return result.stdout


def frozen_runs() -> list[runs.Run]:
    return runs.list_runs(Path("runs"))


def test_the_leaderboard_lists_old_runs_with_the_same_values_and_order(version: Path) -> None:
    then: list[dict[str, Any]] = json.loads((version / "leaderboard.json").read_text())
    now: list[dict[str, Any]] = json.loads(command("leaderboard", "--json"))
    assert [{key: row[key] for key in old} for row, old in zip(now, then, strict=True)] == then


def test_kinds_of_runs_are_recognised(version: Path) -> None:
    kinds = {row.kind for row in leaderboard.read_rows(Path("runs"))}
    assert kinds == {"run", "ensemble"}


def test_every_run_is_reported(version: Path) -> None:
    run, *_, ensemble = frozen_runs()
    for path in (run.path, ensemble.path):
        command("report", str(path), "-o", "page.html")
        assert "shifted validation accuracy" in Path("page.html").read_text()
    command("report", "runs/frozen", "-o", "all.html")
    assert "3 runs" in Path("all.html").read_text()


@pytest.mark.parametrize("name", SUBMISSIONS)
def test_a_prediction_is_the_same_file_byte_for_byte(version: Path, name: str) -> None:
    run = frozen_runs()[SUBMISSIONS[name]]
    command("predict", str(run.path), "-o", "new.csv")
    assert Path("new.csv").read_bytes() == (version / "submissions" / name).read_bytes()


def test_a_score_is_recorded(version: Path) -> None:
    command("leaderboard", "record", "submissions/frozen-2.csv", "--public", "0.625")
    row = next(row for row in leaderboard.read_rows(Path("runs")) if row.submission == "submissions/frozen-2.csv")
    assert row.public_score == 0.625


def test_stored_predictions_match_the_stored_metrics(version: Path) -> None:
    for run in frozen_runs():
        found = prediction_files.load(run.path / "predictions" / "val.npz")
        scores = run.metrics().best_or_final.val
        assert scores is not None
        assert scores.accuracy == pytest.approx(float(found.correct().mean()))


def test_an_ensemble_is_evaluated_without_its_members(version: Path) -> None:
    *members, ensemble = frozen_runs()
    for member in members:
        shutil.rmtree(member.path)
    values = json.loads(command("evaluate", str(ensemble.path), "--json"))["evaluation"]
    assert set(values) == {"val", "ood_val", "test", "suite"}
    refused = CliRunner().invoke(app, ["evaluate", str(ensemble.path), "--views", "flip"])
    assert refused.exit_code != 0
