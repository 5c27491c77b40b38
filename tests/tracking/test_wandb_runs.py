"""W&B sees what the run's folder holds, and a training never waits for it."""

import contextlib
import csv
import gc
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from comp import config as configs
from comp.config import TrackConfig
from comp.results import prediction_files, runs
from comp.runtime.errors import ConfigError, Interrupted
from comp.tracking import payload, state, tracker, upload
from comp.training.early_stopping import Stop
from comp.workflows import train
from tests.support.commands import Result, interrupt_at
from tests.support.configs import QUICK
from tests.support.runs import the_run
from tests.support.wandb_server import (
    KEY,
    Received,
    assert_secret,
    black_hole,
    log_in,
    records,
    serving,
    summary,
    table,
)
from tests.support.wandb_server import nobody as nobody  # logs everyone out

FEW = ["competition.ood_validation.every=1", "competition.suite.source=none"]


def steps(segments: list[Path], name: str) -> list[tuple[int, float]]:
    """Return a curve over segments, as W&B's own reader has it."""
    items = [record["item"] for segment in segments for record in records(segment, "history")]
    return [(item["_step"], item[name]) for item in items if name in item]


def test_a_damaged_tracking_file_is_reported_and_hides_no_result(workplace: Path, comp: Callable[..., Result]) -> None:
    run = train.train(configs.load("small.yaml", [*FEW, "track.wandb=disabled"]))
    path = run.path / "wandb" / "tracking.json"
    path.parent.mkdir()
    for content in ("{", "{}", "[1]"):
        path.write_text(content)
        result = comp("train", "--resume", run.path)
        assert result.code == 0
        assert f"note: {path}: " in " ".join(result.err.split())
    path.unlink()
    assert str(path) not in comp("train", "--resume", run.path).err


def test_an_offline_run_logs_what_its_folder_holds(workplace: Path, comp: Callable[..., Result]) -> None:
    """Curves, results, tables, mistakes, config and artifacts, read back by W&B's own reader."""
    result = comp(
        "run", "small.yaml", "competition.ood_validation.every=1", "track.project=midterm", "track.group=study",
        "track.images=true",
        "track.tags=[one,two]", "track.artifacts=[weights,submission]",
        "tune.storage=postgresql://me:sesame@host/db",
    )  # fmt: skip
    assert result.code == 0, result.err
    run = the_run()
    (segment,) = state.segments(run)
    read = summary(segment)
    assert (read["state"], read["project"], read["name"]) == ("finished", "midterm", run.path.name)
    assert read["tags"] == ["one", "two"]
    assert records(segment, "run")[0]["run_group"] == "study"
    written = [path for path in state.folder_of(run).rglob("*") if path.is_file()]
    assert not any(b"sesame" in path.read_bytes() for path in written)

    history, scores = run.history(), run.metrics()
    for column, name in (
        ("train_loss", "train/loss"), ("val_accuracy", "val/accuracy"), ("ood_accuracy_3", "ood/severity_3"),
        ("lr", "lr"), ("images_per_second", "images_per_second"),
    ):  # fmt: skip
        assert steps([segment], name) == [(int(row["number"]), float(row[column])) for row in history]
    assert float(history[-1]["ood_accuracy_3"]) == pytest.approx(float(history[-1]["ood_accuracy"]))

    found = read["summary"]
    assert found["val/accuracy"] == {"max": max(float(row["val_accuracy"]) for row in history)}
    assert found["val/loss"] == {"min": min(float(row["val_loss"]) for row in history)}
    assert found["best/val/accuracy"] == scores.best.val.accuracy
    assert found["final/val/log_loss"] == scores.final.val.log_loss
    assert found["suite/accuracy"] == scores.suite.accuracy
    assert found["expected/suite/low"] == scores.expected["suite"].low

    by_distortion = scores.best.ood_val.by_distortion
    assert {row[0]: row[-1] for row in table(segment, "distortions/ood_val")["data"]} == by_distortion
    assert table(segment, "distortions/suite")["columns"] == [
        "distortion",
        *(f"severity {n}" for n in range(1, 6)),
        "mean",
    ]
    val = prediction_files.load(run.path / "predictions/val.npz")
    counted = {(row[0], row[1]): row[2] for row in table(segment, "confusion_table")["data"]}
    assert val.targets is not None
    assert counted[("0", "0")] == np.count_nonzero((val.targets == 0) & (val.top1 == 0))
    assert sum(counted.values()) == len(val)

    wrong = np.flatnonzero(val.targets != val.top1)
    captions = found["mistakes"]["captions"]
    assert len(captions) == min(16, len(wrong)) > 0
    classes = val.classes
    expected = {f"{val.ids[row]}: {classes[val.targets[row]]}: {classes[val.top1[row]]}" for row in wrong}
    assert {caption.rpartition(" ")[0] for caption in captions} <= expected
    assert all((segment / "files" / name).is_file() for name in found["mistakes"]["filenames"])

    assert read["config"]["train"]["epochs"] == 2
    assert read["config"]["provenance"]["config_hash"] == configs.fingerprint(run.config())
    assert "git" in read["config"]["provenance"]
    artifacts = {record["name"]: record["manifest"]["contents"] for record in records(segment, "artifact")}
    assert artifacts[f"{run.path.name}-weights"][0]["local_path"] == str(run.weights_path().absolute())
    names = [content["path"] for content in artifacts[f"{run.path.name}-submission"]]
    assert names == ["small.csv", "small.json"]


@pytest.mark.slow
def test_the_table_of_a_suite_that_is_predicted_with_views_is_logged(
    workplace: Path, comp: Callable[..., Result]
) -> None:
    assert comp("run", "small.yaml", *QUICK, "predict.views=flip", "track.wandb=offline").code == 0
    run = the_run()
    (segment,) = state.segments(run)
    scores = run.metrics().variants["suite+flip"]
    logged = table(segment, "distortions/suite+flip")
    assert logged["columns"] == ["distortion", "severity 1", "severity 2", "mean"]
    assert {row[0]: row[-1] for row in logged["data"]} == scores.by_distortion
    assert [cell for row in logged["data"] for cell in row[1:-1]] == list(scores.by_block.values())


@pytest.mark.slow  # 4 s
def test_a_resumed_run_continues_its_own_curve(workplace: Path) -> None:
    """Two segments of one W&B run, each epoch once, and the summary is of all of them."""
    values = [*FEW, "train.epochs=4", "optim.lr=0.003"]
    config = configs.load("small.yaml", values)
    with pytest.raises(Interrupted):
        train.train(config, progress=interrupt_at(10))  # in epoch 3 of 4 steps each
    run = the_run()
    (first,) = state.segments(run)
    assert summary(first)["exit_code"] == 1
    train.resume(run)
    segments = state.segments(run)
    assert len(segments) == 2
    assert len({summary(segment)["run_id"] for segment in segments}) == 1
    logged = steps(segments, "val/accuracy")
    assert logged == [(int(row["number"]), float(row["val_accuracy"])) for row in run.history()]
    assert [step for step, _ in logged] == [1, 2, 3, 4]
    assert summary(segments[-1])["summary"]["train/loss"] == {"min": min(float(r["train_loss"]) for r in run.history())}
    assert summary(segments[-1])["exit_code"] == 0
    assert "mistakes" not in summary(segments[-1])["summary"]  # images of the data stay here without track.images
    assert not list(state.folder_of(run).rglob("mistakes*"))


@pytest.mark.slow  # 17 s by the clock
def test_a_server_that_never_answers_costs_no_training_and_loses_nothing(
    workplace: Path, comp: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trained against a black hole, refused by it, and uploaded later by `--sync`: every epoch arrives, once."""
    with black_hole() as address:
        log_in(monkeypatch, address)
        # W&B's own client would wait for a minute and a half before the first step.
        done = subprocess.run(
            [sys.executable, "-m", "comp", "train", "small.yaml", *FEW], capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        run = the_run()
        (segment,) = state.segments(run)
        assert steps([segment], "val/loss") == [(int(r["number"]), float(r["val_loss"])) for r in run.history()]
        assert summary(segment)["summary"]["best/val/accuracy"] == run.metrics().best.val.accuracy
        assert state.waiting(run) == [segment]
        refused = comp("leaderboard", "--sync")
        assert refused.code == 2
        assert address in refused.err
        assert_secret(run.path, done.stdout, done.stderr, refused.out, refused.err)
    with serving() as received:
        monkeypatch.setenv("WANDB_BASE_URL", received.address)
        uploaded = comp("leaderboard", "--sync")
        assert uploaded.code == 0, uploaded.err
        assert "1 segment" in uploaded.err
        tracked = state.read(run)
        assert tracked is not None
        assert received.curve(tracked.id, "val/loss") == {int(r["number"]): float(r["val_loss"]) for r in run.history()}
        assert received.summary[tracked.id]["best/val/accuracy"] == run.metrics().best.val.accuracy
        assert received.keys == {KEY}
        assert state.waiting(run) == []
    assert_secret(run.path, uploaded.out, uploaded.err)


def test_logged_in_a_run_is_uploaded_while_it_trains_and_the_key_stays_secret(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, comp: Callable[..., Result]
) -> None:
    with serving() as received:
        log_in(monkeypatch, received.address)
        result = comp("train", "small.yaml", *FEW, "track.entity=me")
        assert result.code == 0, result.err
        run = the_run()
        tracked = state.read(run)
        assert tracked is not None
        assert tracked.mode == "online"
        assert state.waiting(run) == []
        expected = {int(row["number"]): float(row["train_loss"]) for row in run.history()}
        assert received.curve(tracked.id, "train/loss") == expected
        assert received.upserts[-1]["project"] == "small"
        assert received.keys == {KEY}
    assert_secret(run.path, result.out, result.err)


def services() -> list[int]:
    """Return W&B's service processes that this one has started."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            name, _, rest = status.read_text().partition("(")[2].rpartition(")")
            if name.startswith("wandb-core") and int(rest.split()[1]) == os.getpid():
                found.append(int(status.parent.name))
    return found


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_killed_service_stops_no_training_and_its_run_is_logged_from_its_folder(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def kill(epoch: Any) -> None:
        if epoch.number == 1:
            for service in services():
                os.kill(service, signal.SIGKILL)

    run = train.train(configs.load("small.yaml", FEW), on_epoch=kill)
    assert run.is_complete()
    (note,) = [line for line in capsys.readouterr().err.splitlines() if "W&B" in line]
    assert re.fullmatch(
        rf"note: W&B: not tracked: epochs from \d on \(.+\) of {run.name}; nothing is lost: .* --sync", note
    )
    with serving() as received:
        log_in(monkeypatch, received.address)
        assert upload.sync(Path("runs")) == 1
        assert_arrived(received, run)
        assert upload.sync(Path("runs")) == 0
    gc.collect()  # the killed process's handle


@pytest.mark.slow  # the black hole and the killed service hold that a training goes on
def test_a_server_that_falls_silent_stops_no_training_and_what_it_lacks_is_uploaded_later(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving() as received:
        log_in(monkeypatch, received.address)

        def fall_silent(epoch: Any) -> None:
            if epoch.number == 2:
                received.silent.set()

        run = train.train(configs.load("small.yaml", [*FEW, "train.epochs=3"]), on_epoch=fall_silent)
        assert run.is_complete()
        (note,) = [line for line in capsys.readouterr().err.splitlines() if "W&B" in line]
        assert f"not tracked: the results (the server took too long) of {run.name}; nothing is lost" in note
        received.silent.clear()
        assert upload.sync(Path("runs")) == 1
        assert_arrived(received, run)


def assert_arrived(received: Received, run: runs.Run) -> None:
    """Assert that a server has every epoch of a run once, and its results."""
    tracked = state.read(run)
    assert tracked is not None
    lines = [line for line in received.history[tracked.id].values() if "val/loss" in line]
    assert [(line["_step"], line["val/loss"]) for line in lines] == [
        (int(row["number"]), float(row["val_loss"])) for row in run.history()
    ]
    assert received.summary[tracked.id]["best/val/accuracy"] == run.metrics().best.val.accuracy


def training_of(words: list[str]) -> tuple["subprocess.Popen[bytes]", runs.Run]:
    """Start a training as a terminal does, in a process group of its own; return it when an epoch has ended."""
    command = [sys.executable, "-m", "comp", "train", "small.yaml", *words]
    training = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True)
    while not (begun := [run for run in runs.list_runs(Path("runs")) if run.history()]):
        assert training.poll() is None
        time.sleep(0.02)
    return training, begun[0]


@pytest.mark.slow  # 6 s
def test_a_ctrl_c_in_the_terminal_ends_the_segment_in_order(workplace: Path) -> None:
    training, run = training_of([*FEW, "train.epochs=50"])
    os.killpg(training.pid, signal.SIGINT)
    assert training.wait() == 130
    (segment,) = state.segments(run)
    assert [step for step, _ in steps([segment], "val/loss")] == [int(row["number"]) for row in run.history()]
    assert summary(segment)["exit_code"] == 1
    assert state.is_logged(run)
    assert train.resume(run, on_epoch=lambda epoch: Stop("enough")).is_complete()


@pytest.mark.slow
@pytest.mark.parametrize("online", [False, True])
def test_a_killed_training_is_resumed_and_logged_once(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, comp: Callable[..., Result], online: bool
) -> None:
    """SIGKILL takes W&B's service along; resumed or not, `--sync` brings every epoch, once."""
    with serving() as received:
        if online:
            log_in(monkeypatch, received.address)
        training, run = training_of([*FEW, "train.epochs=4"])
        training.kill()
        training.wait()
        log_in(monkeypatch, received.address)
        assert comp("leaderboard", "--sync").code == 0
        tracked = state.read(run)
        assert tracked is not None
        assert set(received.curve(tracked.id, "val/loss")) == {int(row["number"]) for row in run.history()}
        if not online:
            monkeypatch.delenv("WANDB_API_KEY")
        assert comp("train", "--resume", str(run.path)).code == 0
        log_in(monkeypatch, received.address)
        assert comp("leaderboard", "--sync").code == 0
        assert_arrived(received, run)


def test_disabled_leaves_nothing_and_changes_no_hash(workplace: Path, comp: Callable[..., Result]) -> None:
    assert comp("train", "small.yaml", "track.wandb=disabled").code == 0
    run = the_run()
    assert not state.folder_of(run).exists()
    assert state.read(run) is None
    tracked = configs.load("small.yaml", ["track.wandb=offline", "track.project=other"])
    assert configs.fingerprint(tracked) == run.metrics().config_hash


def test_online_without_a_login_is_refused_before_the_first_step(workplace: Path, comp: Callable[..., Result]) -> None:
    result = comp("train", "small.yaml", "track.wandb=online")
    assert result.code == 2
    assert "wandb login" in result.err
    assert not Path("runs").exists()
    with pytest.raises(ConfigError, match="wandb login"):
        upload.sync(Path("runs"))


@pytest.mark.parametrize(
    ("environment", "netrc", "mode"),
    [
        ({}, "", "offline"),
        ({"WANDB_API_KEY": KEY}, "", "online"),
        ({}, f"machine api.wandb.test login user password {KEY}", "online"),
        ({}, f"machine somewhere.test login user password {KEY}", "offline"),
        ({"WANDB_BASE_URL": "https://own.test"}, f"machine own.test login user password {KEY}", "online"),
        ({"WANDB_BASE_URL": "https://own.test"}, f"machine api.wandb.test login user password {KEY}", "offline"),
        ({}, "not a netrc at all {", "offline"),
        ({"WANDB_API_KEY": KEY, "WANDB_MODE": "offline"}, "", "offline"),
        ({"WANDB_API_KEY": KEY, "WANDB_MODE": "disabled"}, "", "disabled"),
    ],
)
def test_auto_is_online_where_one_is_logged_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], netrc: str, mode: str
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    (tmp_path / ".netrc").write_text(netrc)
    assert tracker.wandb_mode(TrackConfig()) == mode
    assert tracker.wandb_mode(TrackConfig(wandb="disabled")) == "disabled"
    assert tracker.wandb_mode(TrackConfig(wandb="offline")) == "offline"


def test_norms_are_logged_if_recorded_and_thinned_if_there_are_many(tmp_path: Path) -> None:
    run = runs.Run(tmp_path)
    assert payload.norms(run) is None
    with (tmp_path / "norms.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["step", "body", "head"], *[[step, step / 2, ""] for step in range(25_000)]])
    norms = payload.norms(run)
    assert norms is not None
    assert norms.columns == ["step", "body", "head"]
    assert 5_000 <= len(norms.rows) <= 10_000
    assert norms.rows[1][0] == 2 * norms.rows[1][1] > 0
    assert np.isnan(norms.rows[0][2])
