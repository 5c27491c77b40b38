"""A study's own W&B run: in its trials' group, with its results, and the same run when the study continues."""

import csv
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from comp import config as configs
from comp.results import runs
from comp.results.runs import Run
from comp.tracking import state
from comp.tuning import search
from tests.support.commands import Result
from tests.support.wandb_server import assert_secret, black_hole, log_in, records, serving, summary, table
from tests.support.wandb_server import nobody as nobody  # logged out here too

FOLDER = Path("runs/small/small")
STUDY = [
    "competition.ood_validation.severities=[]",
    "train.epochs=1",
    "tune.pruner=none",
    "tune.space={optim.lr: {float: [1e-4, 1e-1], log: true}, augment.mixup: {choice: [0.0, 0.4]}}",
]
COMMAND = ["tune", "small.yaml", *STUDY]


def study(trials: int, *overrides: str) -> None:
    """Run a study without confirmation and plots."""
    values = [*STUDY, "tune.confirm.top=0", f"tune.trials={trials}", *overrides]
    search.tune(configs.load("small.yaml", values), name="small", pictures=False)


def segments() -> list[Path]:
    """Return the segments of the study's run, as they were begun."""
    return state.segments(Run(FOLDER))


@pytest.mark.slow  # 6 s
def test_an_offline_study_logs_what_its_folder_holds(workplace: Path, comp: Callable[..., Result]) -> None:
    """Counts, the best, what is recommended, trials, importances, plots and best.yaml, by W&B's own reader."""
    confirm = ["tune.confirm.top=1", "tune.confirm.seeds=1"]
    result = comp(*COMMAND, *confirm, "track.project=midterm", "track.tags=[one]", "--trials", 3)
    assert result.code == 0, result.err
    (segment,) = segments()
    read, values = summary(segment), summary(segment)["summary"]
    assert (read["state"], read["project"], read["name"], read["tags"]) == ("finished", "midterm", "small", ["one"])
    record = records(segment, "run")[0]
    trained = runs.list_runs(Path("runs"))
    assert len(trained) == 4
    for run in (trained[0], trained[-1]):  # of the search, and of the confirmation
        (trial,) = state.segments(run)
        assert records(trial, "run")[0]["run_group"] == record["run_group"] == "small"
        items = [row["item"] for row in records(trial, "history")]
        logged = [(item["_step"], item["val/accuracy"]) for item in items if "val/accuracy" in item]
        assert logged == [(1, float(run.history()[0]["val_accuracy"]))]
    assert summary(trial)["state"] == "finished"
    assert record["job_type"] == "study"

    with (FOLDER / "trials.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    scores = [float(row["val_metric"]) for row in rows]
    assert (values["study"], values["metric"]) == ("small", "val_metric")
    assert [values[f"trials/{name}"] for name in ("done", "pruned", "failed")] == [3, 0, 0]
    assert (values["best/trial"], values["best/value"]) == (scores.index(max(scores)), max(scores))
    chosen = rows[values["recommended/trial"]]
    best = yaml.safe_load((FOLDER / "best.yaml").read_text())
    assert values["recommended/optim.lr"] == float(chosen["optim.lr"]) == best["optim"]["lr"]
    assert values["recommended/augment.mixup"] == float(chosen["augment.mixup"])
    assert values["recommended/run"] == Path(chosen["run"]).name
    tracked = state.read(runs.open_run(Path(chosen["run"])))
    assert tracked is not None
    assert values["recommended/wandb_id"] == tracked.id

    trials = table(segment, "trials")
    assert trials["columns"] == list(rows[0])
    assert [row[trials["columns"].index("val_metric")] for row in trials["data"]] == scores
    confirmed = table(segment, "confirmed")
    assert [row[confirmed["columns"].index("mean")] for row in confirmed["data"]] == [values["recommended/mean"]]
    assert not [name for name in values if name.startswith("importance")]  # three trials tell none
    page = segment / "files" / values["page"]["path"]
    assert page.read_bytes() == (FOLDER / "study.html").read_bytes()
    assert read["config"]["tune"]["space"]["optim.lr"]["float"] == [1e-4, 1e-1]
    assert read["config"]["train"]["epochs"] == 1


def kept_best(segment: Path) -> str:
    """Return the best.yaml that a segment brings."""
    contents = {record["name"]: record["manifest"]["contents"] for record in records(segment, "artifact")}
    (content,) = contents["small-best"]
    assert content["path"] == "best.yaml"
    return Path(content["local_path"]).read_text()


def test_a_continued_study_goes_on_with_the_same_run(workplace: Path) -> None:
    study(trials=1)
    first = (FOLDER / "best.yaml").read_text()
    study(trials=2)
    earlier, later = segments()
    assert summary(earlier)["run_id"] == summary(later)["run_id"]
    assert [summary(segment)["summary"]["trials/done"] for segment in (earlier, later)] == [1, 2]
    assert [len(table(segment, "trials")["data"]) for segment in (earlier, later)] == [1, 2]
    steps = [record["item"]["_step"] for segment in (earlier, later) for record in records(segment, "history")]
    assert steps == sorted(set(steps))  # W&B drops what is not after the last step
    assert kept_best(earlier) == first
    assert kept_best(later) == (FOLDER / "best.yaml").read_text() != first


def test_without_tracking_a_study_leaves_nothing(workplace: Path) -> None:
    study(1, "track.wandb=disabled")
    assert (FOLDER / "best.yaml").is_file()
    assert list(Path("runs").rglob("wandb")) == []


@pytest.mark.slow  # tests/tracking holds the same of a training
def test_a_server_that_never_answers_holds_no_study_up_and_loses_nothing(
    workplace: Path, comp: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [sys.executable, "-m", "comp", *COMMAND, "tune.confirm.top=0", "--trials", "1"]
    with black_hole() as address:
        log_in(monkeypatch, address)
        # W&B's own client would wait for a minute and a half to begin a run.
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
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
