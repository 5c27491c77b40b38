"""Loader workers that die, hang or cannot start: one message, and a training that goes on from its checkpoint."""

import contextlib
import multiprocessing
import os
import re
import resource
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import get_worker_info

from comp.data import images, worker_faults
from tests.support.commands import REPOSITORY, Result
from tests.support.configs import write_config
from tests.support.faults import assert_fault, assert_unchanged, snapshot
from tests.support.photographs import photographs_config, write_folders
from tests.support.runs import assert_same_weights, the_run

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")


def killed_by(number: signal.Signals) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


def out_of_memory() -> None:
    raise MemoryError


def without_shared_memory() -> None:
    """Let no file of this process grow, as where `/dev/shm` is full."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


def asleep() -> None:
    time.sleep(600)


# What happens in a worker -> what happened, and how to fix it, as the message says it.
FAULTS: dict[str, tuple[Callable[[], None], tuple[str, ...]]] = {
    "killed": (killed_by(signal.SIGKILL), ("was killed (SIGKILL)", "main memory", "data.workers=2")),
    "bus error": (killed_by(signal.SIGBUS), ("shared memory", "/dev/shm", "--shm-size", "SIGBUS")),
    "crash": (killed_by(signal.SIGSEGV), ("ended unexpectedly (SIGSEGV)",)),
    "abort": (killed_by(signal.SIGABRT), ("ended unexpectedly (SIGABRT)",)),
    "exit": (lambda: os._exit(3), ("ended unexpectedly (exit code 3)",)),
    "quiet exit": (lambda: os._exit(0), ("ended unexpectedly (exit code 0)",)),
    "no shared memory": (without_shared_memory, ("shared memory", "/dev/shm", "--shm-size")),
    "no memory": (out_of_memory, ("ran out of memory", "data.workers=2")),
    "stopped": (killed_by(signal.SIGSTOP), ("has answered for 1 seconds", "hangs")),
    "asleep": (asleep, ("has answered for 1 seconds", "hangs")),
}


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with image files that two workers decode, and `files.yaml`."""
    monkeypatch.chdir(tmp_path)
    write_folders(Path("data"), train=16, val=8, test=12)
    values = photographs_config(Path("data"), "image_folder")
    values["data"] |= {"image_size": 16, "loading": "streamed", "workers": 2}
    values["model"] = {"name": "simple_cnn", "args": {"depth": 2}}
    values["augment"] = {"policy": "none"}
    values["predict"] = {"batch_size": 4}
    values["train"] |= {"epochs": 2, "batch_size": 8, "nan_retries": 0}
    write_config(Path("files.yaml"), values)
    return tmp_path


@contextlib.contextmanager
def trouble(monkeypatch: pytest.MonkeyPatch, fault: Callable[[], None], after: int) -> Iterator[None]:
    """Let every worker that starts here meet a fault after it has read so many images."""
    read, seen = images.read_image, 0

    def faulty(*arguments: Any, **options: Any) -> Any:
        nonlocal seen
        if get_worker_info() is not None:
            seen += 1
            if seen == after + 1:
                fault()
        return read(*arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(images, "read_image", faulty)
        patched.setattr(worker_faults, "STALLED_SECONDS", 1.0)
        yield


def commands_in(message: str) -> list[str]:
    """Return the words of the command that a message ends with, without `comp`."""
    found = re.search(r"continue: comp (.*)$", message.strip(), re.MULTILINE)
    assert found, message
    return shlex.split(found[1])


def assert_no_workers_left() -> None:
    """Assert that no process of this one is alive."""
    assert not [process for process in multiprocessing.active_children() if process.is_alive()]


@pytest.mark.parametrize("name", [*FAULTS])
@pytest.mark.slow  # a training each
def test_a_training_whose_workers_fail_says_why_and_its_own_command_ends_it_with_the_same_bits(
    pictures: Path, comp: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    fault, words = FAULTS[name]
    assert comp("train", "files.yaml", "data.workers=0", "--runs", "whole").code == 0
    with trouble(monkeypatch, fault, after=9):
        result = comp("train", "files.yaml", "--runs", "stopped")
    assert_fault(result, *words, "data.workers=0")
    assert_no_workers_left()
    stopped = the_run(Path("stopped"))
    assert (stopped.path / "state.pt").is_file()
    assert not stopped.is_complete()
    resumed = comp(*commands_in(result.err))
    assert resumed.code == 0, resumed.err
    assert_same_weights(the_run(Path("whole")), stopped)


@pytest.mark.parametrize("name", ["killed", "no shared memory", "stopped"])
@pytest.mark.slow
def test_a_validation_whose_workers_fail_is_repeated_by_the_resumed_training(
    pictures: Path, comp: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    fault, words = FAULTS[name]
    assert comp("train", "files.yaml", "data.workers=0", "--runs", "whole").code == 0
    with trouble(monkeypatch, fault, after=17):  # each reads 16 images of an epoch, and then some of validation
        result = comp("train", "files.yaml", "--runs", "stopped")
    assert_fault(result, *words, "data.workers=0")
    stopped = the_run(Path("stopped"))
    assert not stopped.history()  # the first epoch has not ended
    assert comp(*commands_in(result.err)).code == 0
    assert_same_weights(the_run(Path("whole")), stopped)
    assert [row["val_loss"] for row in stopped.history()] == [
        row["val_loss"] for row in the_run(Path("whole")).history()
    ]


@pytest.mark.parametrize("name", ["killed", "bus error", "exit", "no shared memory", "no memory", "stopped"])
@pytest.mark.slow
def test_a_prediction_whose_workers_fail_says_why_and_leaves_what_there_was(
    pictures: Path, comp: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    fault, words = FAULTS[name]
    assert comp("train", "files.yaml", "train.epochs=1", "data.workers=0").code == 0
    run = the_run()
    before = snapshot(run.path)
    with trouble(monkeypatch, fault, after=3):
        result = comp("predict", run.path, "data.workers=2", "--images", "data/test", "-o", "answers.csv")
    assert_fault(result, *words, "data.workers=0")
    assert_no_workers_left()
    assert_unchanged(before, run.path)
    assert not Path("answers.csv").exists()
    again = comp("predict", run.path, "data.workers=0", "--images", "data/test", "-o", "answers.csv")
    assert again.code == 0, again.err


@pytest.mark.slow
@pytest.mark.parametrize("kilobytes", [4, 128])
def test_a_training_with_a_tiny_shared_memory_says_so_and_its_own_command_ends_it(
    pictures: Path, comp: Callable[..., Result], kilobytes: int
) -> None:
    """As in a container that is started without --shm-size: not even queues fit, or no two batches."""

    def in_container(*words: object) -> Result:
        mount = f"mount -t tmpfs -o size={kilobytes}k tmpfs /dev/shm"
        if subprocess.run(["unshare", "-m", "sh", "-c", mount], capture_output=True, check=False).returncode:
            pytest.skip("only root may mount a disk here")
        line = shlex.join([sys.executable, "-m", "comp", *map(str, words)])
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
        ended = subprocess.run(
            ["unshare", "-m", "sh", "-c", f"{mount} && exec {line}"], capture_output=True, text=True, timeout=300,
            check=False, env=environment,
        )  # fmt: skip
        return Result(ended.returncode, ended.stdout, ended.stderr)

    larger = "data.image_size=64"
    assert comp("train", "files.yaml", larger, "data.workers=0", "--runs", "whole").code == 0
    result = in_container("train", "files.yaml", larger, "--runs", "stopped")
    assert_fault(result, "shared memory", "/dev/shm", "--shm-size", "data.workers=0")
    resumed = in_container(*commands_in(result.err))
    assert resumed.code == 0, resumed.err
    assert_same_weights(the_run(Path("whole")), the_run(Path("stopped")))
