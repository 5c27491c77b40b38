"""A study's own run in W&B: in its trials' group, what it has come to, and the same run when it is continued."""

import csv
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from comp.results import runs
from comp.results.runs import Run
from comp.tracking import state
from tests.support.commands import Result
from tests.support.wandb_server import assert_secret, black_hole, log_in, records, serving, summary, table
from tests.support.wandb_server import nobody as nobody  # nobody is logged in here either

FOLDER = Path("runs/small/small")
STUDY = [
    "tune", "small.yaml", "competition.ood_validation.severities=[]", "train.epochs=1", "tune.pruner=none",
    "tune.space={optim.lr: {float: [1e-4, 1e-1], log: true}, augment.mixup: {choice: [0.0, 0.4]}}",
]  # fmt: skip


def segments() -> list[Path]:
    """Return the segments of the study's run, as they were begun."""
    return state.segments(Run(FOLDER))


def test_an_offline_study_says_what_its_folder_holds(workplace: Path, comp: Callable[..., Result]) -> None:
    """Counts, the best, what is recommended, trials, importances, plots and best.yaml, by W&B's own reader."""
    confirm = ["tune.confirm.top=1", "tune.confirm.seeds=1"]
    result = comp(*STUDY, *confirm, "track.project=midterm", "track.tags=[one]", "--trials", 3)
    assert result.code == 0, result.err
    (segment,) = segments()
    read, found = summary(segment), summary(segment)["summary"]
    assert (read["state"], read["project"], read["name"], read["tags"]) == ("finished", "midterm", "small", ["one"])
    record = records(segment, "run")[0]
    trials = [state.segments(run)[0] for run in runs.list_runs(Path("runs"))]
    assert len(trials) == 4
    assert {records(trial, "run")[0]["run_group"] for trial in trials} == {record["run_group"]} == {"small"}
    assert record["job_type"] == "study"

    with (FOLDER / "trials.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    values = [float(row["val_metric"]) for row in rows]
    assert (found["study"], found["metric"]) == ("small", "val_metric")
    assert [found[f"trials/{name}"] for name in ("done", "pruned", "failed")] == [3, 0, 0]
    assert (found["best/trial"], found["best/value"]) == (values.index(max(values)), max(values))
    chosen = rows[found["recommended/trial"]]
    best = yaml.safe_load((FOLDER / "best.yaml").read_text())
    assert found["recommended/optim.lr"] == float(chosen["optim.lr"]) == best["optim"]["lr"]
    assert found["recommended/augment.mixup"] == float(chosen["augment.mixup"])
    assert found["recommended/run"] == Path(chosen["run"]).name
    known = state.read(runs.open_run(Path(chosen["run"])))
    assert known is not None
    assert found["recommended/wandb_id"] == known.id

    shown = table(segment, "trials")
    assert shown["columns"] == list(rows[0])
    assert [row[shown["columns"].index("val_metric")] for row in shown["data"]] == values
    again = table(segment, "confirmed")
    assert [row[again["columns"].index("mean")] for row in again["data"]] == [found["recommended/mean"]]
    shares = dict(table(segment, "importance")["data"])
    assert set(shares) == {"optim.lr", "augment.mixup"}
    assert all(found[f"importance/{knob}"] == share for knob, share in shares.items())
    drawn = {path.stem for path in (FOLDER / "plots").glob("*.png")}
    assert {"history", "slice", "parallel"} <= drawn
    assert all((segment / "files" / found[f"plots/{name}"]["path"]).is_file() for name in drawn)
    assert read["config"]["tune"]["space"]["optim.lr"]["float"] == [1e-4, 1e-1]
    assert read["config"]["train"]["epochs"] == 1


def kept_best(segment: Path) -> str:
    """Return the best.yaml that a segment brings."""
    contents = {record["name"]: record["manifest"]["contents"] for record in records(segment, "artifact")}
    (content,) = contents["small-best"]
    assert content["path"] == "best.yaml"
    return Path(content["local_path"]).read_text()


def test_a_continued_study_goes_on_with_the_same_run(workplace: Path, comp: Callable[..., Result]) -> None:
    study = [*STUDY, "tune.confirm.top=0"]
    assert comp(*study, "--trials", 1).code == 0
    first = (FOLDER / "best.yaml").read_text()
    assert comp(*study, "--trials", 2).code == 0
    earlier, later = segments()
    assert summary(earlier)["run_id"] == summary(later)["run_id"]
    assert [summary(segment)["summary"]["trials/done"] for segment in (earlier, later)] == [1, 2]
    assert [len(table(segment, "trials")["data"]) for segment in (earlier, later)] == [1, 2]
    steps = [record["item"]["_step"] for segment in (earlier, later) for record in records(segment, "history")]
    assert steps == sorted(set(steps))  # W&B drops what is not after the last step
    assert kept_best(earlier) == first
    assert kept_best(later) == (FOLDER / "best.yaml").read_text() != first


def test_without_tracking_a_study_leaves_nothing(workplace: Path, comp: Callable[..., Result]) -> None:
    assert comp(*STUDY, "tune.confirm.top=0", "track.wandb=disabled", "--trials", 1).code == 0
    assert (FOLDER / "best.yaml").is_file()
    assert list(Path("runs").rglob("wandb")) == []


def test_a_server_that_never_answers_holds_no_study_up_and_loses_nothing(
    workplace: Path, comp: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    study = [*STUDY, "tune.confirm.top=0", "--trials", "1"]
    with black_hole() as address:
        log_in(monkeypatch, address)
        # W&B's own client would wait for a minute and a half to begin a run.
        done = subprocess.run([sys.executable, "-m", "comp", *study], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
    (segment,) = segments()
    assert state.waiting(Run(FOLDER)) == [segment]
    assert summary(segment)["summary"]["trials/done"] == 1
    with serving() as received:
        monkeypatch.setenv("WANDB_BASE_URL", received.address)
        uploaded = comp("leaderboard", "--sync")
        assert uploaded.code == 0, uploaded.err
        assert received.summary[summary(segment)["run_id"]]["trials/done"] == 1
        assert state.waiting(Run(FOLDER)) == []
    assert_secret(FOLDER, done.stdout, done.stderr, uploaded.out, uploaded.err)
