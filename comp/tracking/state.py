"""RUN/wandb/tracking.json: which W&B run a run is, and how far it was told."""

import contextlib
import secrets
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import filelock

from comp import runs
from comp.errors import RunError
from comp.runs import Run


@dataclass(frozen=True)
class State:
    """What is known of a run in W&B.

    Attributes:
        id: of the W&B run; the same for every segment.
        project: that it belongs to.
        entity: likewise; empty: the account's own.
        mode: `online` or `offline`, as it was tracked last.
        epochs: how many were told in segments that have ended.
        complete: whether the results were told too.
    """

    id: str
    project: str
    entity: str
    mode: str
    epochs: int = 0
    complete: bool = False

    def told(self, epochs: int, *, complete: bool) -> "State":
        """Return the state after a segment."""
        return replace(self, epochs=epochs, complete=complete)


def folder_of(run: Run) -> Path:
    """Return where W&B's files of a run lie."""
    return run.path / "wandb"


def read(run: Run) -> State | None:
    """Return a run's state, None where it was never tracked.

    Raises:
        RunError: damaged.
    """
    path = folder_of(run) / "tracking.json"
    if not path.is_file():
        return None
    values = runs.read_json(path)
    return State(**{field.name: values[field.name] for field in fields(State)})


def write(run: Run, state: State) -> None:
    """Keep a run's state."""
    run.write_json("wandb/tracking.json", asdict(state))


def begun(run: Run, mode: str) -> State:
    """Return the state that a new segment starts with: the run's own, or a new one."""
    track, known = run.config().track, read(run)
    if known:
        return replace(known, mode=mode)
    return State(secrets.token_hex(4), track.project or run.config().competition.name, track.entity, mode)


@contextlib.contextmanager
def telling(run: Run, *, wait_seconds: float) -> Iterator[None]:
    """Be the one process that tells of a run.

    Raises:
        RunError: another one still does after so many seconds.
    """
    try:
        with filelock.FileLock(folder_of(run) / ".lock", timeout=wait_seconds):
            yield
    except filelock.Timeout:
        raise RunError(f"{run.path}: another process is telling W&B of this run") from None


def is_being_told(run: Run) -> bool:
    """Tell whether a process is telling of a run now: its segment is not whole."""
    try:
        with telling(run, wait_seconds=0):
            return False
    except RunError:
        return True


def segments(run: Run) -> list[Path]:
    """Return the folders of a run's segments in the order in which they were begun."""
    return sorted(folder_of(run).glob("offline-run-*"))


def waiting(run: Run) -> list[Path]:
    """Return the segments that were not uploaded to their end; W&B marks those that were."""
    return [segment for segment in segments(run) if not any(segment.glob("*.wandb.synced"))]
