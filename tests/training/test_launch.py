"""`--gpus N` trains in N processes that it starts itself, here on the CPU, and ends as they do."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from comp import config as configs
from comp.results.runs import Run, list_runs
from comp.runtime import cores
from comp.workflows import train
from tests.support.commands import Result, assert_refused, children_of
from tests.support.configs import QUICK
from tests.support.runs import the_run

Comp = Callable[..., Result]
Started = subprocess.Popen[str]
Start = Callable[..., Started]

UNSUBMITTED = ("competition.ood_validation.severities=[]", "competition.suite.source=none")
CONVNET = ("model.name=convnet", "model.args={}")
LONG = (*UNSUBMITTED, "train.epochs=400", "train.checkpoint_seconds=0")


@pytest.fixture
def start(workplace: Path) -> Iterator[Start]:
    """Return a function that starts a command of two processes in a session of its own, as a terminal does."""
    started: list[Started] = []

    def start(*arguments: str) -> Started:
        command = [sys.executable, "-m", "comp", *arguments, "--gpus", "2"]
        process = subprocess.Popen(
            command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.terminate()
            process.communicate(timeout=90)


def ended(process: Started) -> tuple[int, str]:
    """Return exit code and output; nothing hangs."""
    output, _ = process.communicate(timeout=300)
    return process.returncode, output


def wait_for_a_checkpoint(folder: Path, process: Started) -> Run:
    """Return the run below a folder once it has a checkpoint."""
    while not list(folder.glob("*/*/state.pt")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    return the_run(folder)


def test_one_command_trains_in_two_processes_and_writes_the_submission(workplace: Path, comp: Comp) -> None:
    settings = [*QUICK, *CONVNET]
    result = comp("run", "small.yaml", *settings, "--gpus", 2, "--runs", "two")
    assert result.code == 0, result.err
    assert result.out.count("submissions/small.csv") == 1
    assert (workplace / "submissions/small.csv").exists()
    two = the_run(workplace / "two")
    assert two.is_complete()
    # On CPUs batch norm sees a process's half of a batch.
    halves = configs.load("small.yaml", [*settings, "train.micro_batch=16"])
    one = train.train(halves, runs_root=Path("one"))
    losses = [[float(row["train_loss"]) for row in run.history()] for run in (one, two)]
    assert np.allclose(*losses, atol=1e-4)


def test_one_gpu_is_the_command_without_gpus(workplace: Path, comp: Comp) -> None:
    result = comp("train", "small.yaml", *UNSUBMITTED, "train.batch_size=31", "train.epochs=1", "--gpus", 1)
    assert result.code == 0, result.err  # 31 images are no two shares


@pytest.mark.parametrize(
    ("gpus", "parts"),
    [
        (0, ("--gpus 2", "no NVIDIA GPU", "leave --gpus out", "train.device=cpu")),
        (1, ("--gpus 2", "has 1 NVIDIA GPU that", "leave --gpus out", "train.device=cpu")),
    ],
)
@pytest.mark.parametrize("command", ["run", "train"])
def test_more_gpus_than_there_are_are_refused(
    workplace: Path, comp: Comp, monkeypatch: pytest.MonkeyPatch, command: str, gpus: int, parts: tuple[str, ...]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert_refused(comp(command, "small.yaml", "train.device=auto", "--gpus", 2), *parts)
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("environment", "parts"),
    [
        ({"WORLD_SIZE": "2", "RANK": "0"}, ("WORLD_SIZE=2", "LOCAL_RANK", "MASTER_PORT", "unset")),
        ({"WORLD_SIZE": "two", "RANK": "0"}, ("WORLD_SIZE=two", "unset")),
    ],
)
def test_half_of_what_torchrun_sets_is_one_message(
    workplace: Path, comp: Comp, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], parts: tuple[str, ...]
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert_refused(comp("train", "small.yaml", "train.device=cpu"), *parts)
    if environment["WORLD_SIZE"] == "2":
        assert_refused(comp("train", "small.yaml", "train.device=cpu", "--gpus", 2), "--gpus 2", "WORLD_SIZE=2")
    assert not Path("runs").exists()


def test_more_processes_than_cores_are_refused(workplace: Path, comp: Comp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "usable_cores", lambda: 3)
    assert_refused(comp("train", "small.yaml", "train.device=cpu", "--gpus", 1000), "--gpus 1000", "at most 3")
    assert not Path("runs").exists()


def test_wrong_input_is_refused_before_any_process_starts(
    workplace: Path, comp: Comp, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_refused(comp("run", "small.yaml", "optim.lr=fast", "--gpus", 2), "optim.lr: ")
    assert_refused(comp("run", "small.yaml", "--rehearse", "--gpus", 2), "--rehearse", "--gpus")
    assert_refused(comp("run", "small.yaml", "-o", "small.yaml", "--gpus", 2), "small.yaml")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert_refused(comp("train", "small.yaml", "--gpus", 3), "--gpus 3", "WORLD_SIZE=2")
    assert_refused(comp("run", "small.yaml", "--rehearse"), "comp run --rehearse", "torchrun")


@pytest.mark.slow  # 10 s
def test_an_error_of_all_processes_is_reported_once(start: Start) -> None:
    code, output = ended(start("train", "small.yaml", "train.batch_size=31"))
    assert code == 2
    assert output.count("error: ") == 1, output
    assert "a multiple of 4" in output


@pytest.mark.slow  # 10 s
def test_an_error_of_the_main_process_alone_is_reported_once(start: Start, workplace: Path) -> None:
    (workplace / "runs").mkdir()
    (workplace / "runs/small").write_text("where the run's folder belongs")
    code, output = ended(start("train", "small.yaml"))
    assert code == 2, output
    assert output.count("error: ") == 1, output
    assert "runs/small" in output
    assert "another process" not in output


@pytest.mark.slow  # 30 s
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_training_goes_on_from_its_checkpoint_in_two_processes(start: Start, signum: signal.Signals) -> None:
    settings = (*LONG[:2], "train.epochs=30", "train.checkpoint_seconds=0")
    process = start("run", "small.yaml", *settings)
    run = wait_for_a_checkpoint(Path("runs"), process)
    if signum == signal.SIGINT:
        os.killpg(process.pid, signum)  # Ctrl-C in a terminal
    else:
        for _ in range(2):  # as `timeout` does
            process.send_signal(signum)
    code, output = ended(process)
    assert code == 128 + signum, output
    assert output.count("Stopped. ") == output.count("stopping at the next safe point") == 1
    assert "Traceback" not in output
    assert len(run.history()) < 30
    code, output = ended(start("run", "--resume", str(run.path)))
    assert code == 0, output
    assert len(run.history()) == 30
    assert run.metrics().split_scores("test") is not None


@pytest.mark.slow  # 30 s
@pytest.mark.parametrize(
    ("ranks", "message"),
    [
        ((0,), "another process of this training has died"),
        ((1,), "another process of this training has died"),
        ((0, 1), "the processes of this training were killed (SIGKILL)"),
    ],
)
def test_killed_processes_end_all_with_one_message(start: Start, ranks: tuple[int, ...], message: str) -> None:
    process = start("train", "small.yaml", *LONG)
    wait_for_a_checkpoint(Path("runs"), process)
    children = children_of(process.pid)
    for rank in ranks:
        os.kill(children[rank], signal.SIGKILL)
    code, output = ended(process)
    assert code == 2, output
    assert output.count("error: ") == output.count(f"error: {message}") == 1
    assert "Traceback" not in output
    assert not the_run().is_complete()


@pytest.mark.slow  # 10 s
def test_a_signal_while_the_command_starts_stops_it(start: Start) -> None:
    process = start("train", "small.yaml", *LONG)
    time.sleep(1.5)  # while it imports
    process.terminate()
    code, output = ended(process)
    assert code == 143, output
    assert "Traceback" not in output


@pytest.mark.slow  # 15 s
def test_processes_stop_with_a_checkpoint_when_the_command_that_started_them_is_killed(start: Start) -> None:
    process = start("train", "small.yaml", *LONG)
    wait_for_a_checkpoint(Path("runs"), process)
    children = children_of(process.pid)
    process.kill()
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{pid}").exists() for pid in children.values()):
        assert time.monotonic() < deadline, "the processes go on"
        time.sleep(0.1)
    process.communicate()
    run = the_run()
    assert not run.is_complete()
    assert (run.path / "state.pt").exists()


@pytest.mark.slow  # 20 s
def test_two_trainings_start_at_once_on_one_machine(start: Start) -> None:
    both = [start("train", "small.yaml", *UNSUBMITTED, f"seed={seed}") for seed in (1, 2)]
    for process in both:
        code, output = ended(process)
        assert code == 0, output
    assert [run.is_complete() for run in list_runs(Path("runs"))] == [True, True]


@pytest.mark.slow  # 20 s
def test_a_trained_run_is_finished_in_one_process(start: Start) -> None:
    code, output = ended(start("train", "small.yaml", *QUICK))
    assert code == 0, output
    code, output = ended(start("run", "--resume", str(the_run().path)))
    assert code == 0, output
    assert Path("submissions/small.csv").exists()
