"""What a training does to be tracked: start a process that watches its folder, and let it finish in the end."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from typing import Any, BinaryIO, Protocol

import numpy as np

from comp import runs
from comp.config import TrackConfig
from comp.runs import Run
from comp.tracking import login, state, told
from comp.tracking.login import Mode

# That the end of a training waits: for a network, and for a disk.
_END_SECONDS: dict[Mode, float] = {"online": 10.0, "offline": 60.0}
_NICE = 5  # where there are too few cores, the training goes first
_MOST_MISTAKES = 16


class Tracker(Protocol):
    """Whoever is told of a training."""

    def begin(self, run: Run) -> None:
        """Follow a run from here on; a run is followed once, and later calls do nothing."""

    def show(self, run: Run, images: Any) -> None:
        """Keep the validation images that a scored run was surest of and wrong; `images` [N, H, W, C] uint8."""

    def close(self) -> None:
        """Let what is told come to its end; a network is waited for ten seconds at most."""


class Untracked:
    """Tells nobody."""

    def begin(self, run: Run) -> None:
        """Do nothing."""

    def show(self, run: Run, images: Any) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


class Tracked:
    """Tells W&B, by way of a process of its own: this one never waits for it before the end."""

    def __init__(self, mode: Mode) -> None:
        self._mode = mode
        self._writer: subprocess.Popen[bytes] | None = None

    def begin(self, run: Run) -> None:
        """Start the writer; that the run is tracked is known even if it dies at once."""
        if self._writer is None:
            runs.make_folder(state.folder_of(run))
            state.write(run, state.begun(run, self._mode))
            self._writer = start_writer(run, self._mode)

    def show(self, run: Run, images: Any) -> None:
        """Write mistakes.npz."""
        found = told.validation(run)
        if found is None or found.labels is None:
            return
        sure = 1 / np.exp(found.logits.astype(np.float32)).sum(1)  # [N], of the answer
        wrong = np.flatnonzero(found.top1 != found.labels)
        rows = wrong[np.argsort(-sure[wrong], kind="stable")][:_MOST_MISTAKES]
        arrays = {
            "images": np.asarray(images[rows]), "labels": found.labels[rows], "answers": found.top1[rows],
            "sure": sure[rows], "classes": np.array(found.classes, np.str_), "ids": found.ids[rows],
        }  # fmt: skip
        runs.write_atomically(state.folder_of(run) / "mistakes.npz", partial(_savez, arrays=arrays))

    def close(self) -> None:
        """Ask the writer to end; end it where the network lets it wait."""
        if self._writer is not None:
            end_writer(self._writer, _END_SECONDS[self._mode])
            self._writer = None


UNTRACKED = Untracked()


@contextlib.contextmanager
def opened(track: TrackConfig, given: Tracker | None = None) -> Iterator[Tracker]:
    """Return the tracker that a config asks for, closed in the end; one that was given is its owner's to close."""
    if given is not None:
        yield given
        return
    mode = login.mode_of(track)
    tracker: Tracker = UNTRACKED if mode == "disabled" else Tracked(mode)
    try:
        yield tracker
    finally:
        tracker.close()


def start_writer(run: Run, mode: str) -> "subprocess.Popen[bytes]":
    """Start a process that watches a run's folder until it is told to end."""
    folder = run.path.absolute()
    with (folder / "wandb" / "writer.log").open("ab") as log:
        writer = subprocess.Popen(
            [sys.executable, "-P", "-m", "comp.tracking.writer", str(folder), mode],
            stdin=subprocess.PIPE, stdout=log, stderr=log,
            env=login.environment(folder, uploads=mode == "online"),
            start_new_session=True,  # a Ctrl-C is for the training, which then ends this one in order
        )  # fmt: skip
    if hasattr(os, "setpriority"):
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, writer.pid, _NICE)
    return writer


def end_writer(writer: "subprocess.Popen[bytes]", seconds: float | None) -> None:
    """Let a writer finish; after so many seconds end it and whatever uploads for it."""
    assert writer.stdin is not None
    with contextlib.suppress(OSError):  # it may have ended by itself; its log says why
        # A word, because worker processes of the training may hold this pipe open too.
        writer.stdin.write(b"end\n")
        writer.stdin.close()
    try:
        writer.wait(seconds)
    except subprocess.TimeoutExpired:
        _kill(writer)


def _kill(process: "subprocess.Popen[bytes]") -> None:
    if os.name == "nt":
        process.kill()
    else:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _savez(file: BinaryIO, arrays: dict[str, Any]) -> None:
    np.savez(file, **arrays)
