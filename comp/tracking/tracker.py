"""What a training does to be tracked: start a process that watches its folder, and let it finish in the end."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np

from comp import diagnosis, plots, runs
from comp.config import TrackConfig
from comp.runs import Run
from comp.tracking import login, state, told
from comp.tracking.login import Mode

# That the end of a training waits: for a network, and for a disk.
END_SECONDS: dict[Mode, float] = {"online": 10.0, "offline": 60.0}
_NICE = 5  # where there are too few cores, the training goes first
_MOST_MISTAKES = 16


class Tracker(Protocol):
    """Whoever is told of a training."""

    def begin(self, run: Run) -> None:
        """Follow a run from here on, and let the one before come to its end; for the run at hand do nothing."""

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
        self._writers: list[subprocess.Popen[bytes]] = []
        self._followed: Run | None = None

    def begin(self, run: Run) -> None:
        """Start a writer; that the run is tracked is known even if it dies at once."""
        if self._followed == run:
            return
        for writer in self._writers:  # a study goes on while its last trial is told
            let_end(writer)
        self._writers = [writer for writer in self._writers if writer.poll() is None]
        runs.make_folder(state.folder_of(run))
        state.write(run, state.begun(run, self._mode))
        self._writers.append(start_writer(run, self._mode))
        self._followed = run

    def show(self, run: Run, images: Any) -> None:
        """Write mistakes.npz."""
        found = told.validation(run)
        if found is None or found.targets is None:
            return
        rows = diagnosis.worst(found, _MOST_MISTAKES)
        titles = [diagnosis.mistake_title(found, int(row)) for row in rows]
        shown = plots.visible(np.asarray(images[rows]))
        arrays = {"images": shown, "ids": found.ids[rows], "titles": np.array(titles, np.str_)}
        runs.write_arrays(state.folder_of(run) / "mistakes.npz", arrays)

    def close(self) -> None:
        """Ask the writers to end; end them where the network lets them wait."""
        for writer in self._writers:
            end_writer(writer, END_SECONDS[self._mode])
        self._writers, self._followed = [], None


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


def let_end(writer: "subprocess.Popen[bytes]") -> None:
    """Tell a writer that its run is over, and do not wait."""
    assert writer.stdin is not None
    with contextlib.suppress(OSError, ValueError):  # it may have ended by itself, or been told before
        # A word, because worker processes of the training may hold this pipe open too.
        writer.stdin.write(b"end\n")
        writer.stdin.close()


def end_writer(writer: "subprocess.Popen[bytes]", seconds: float | None) -> None:
    """Let a writer finish; after so many seconds end it and whatever uploads for it."""
    let_end(writer)
    end_process(writer, seconds)


def end_process(process: "subprocess.Popen[bytes]", seconds: float | None) -> None:
    """Wait for one of W&B's processes; after so many seconds end it and whatever it has started."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        _kill(process)


def _kill(process: "subprocess.Popen[bytes]") -> None:
    if os.name == "nt":
        process.kill()
    else:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()
