"""RUN/wandb/tracking.json: which W&B run a run is, and how far it is logged."""

import contextlib
import secrets
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import filelock

from comp.results import files
from comp.results.runs import Run
from comp.runtime.errors import RunError


@dataclass(frozen=True)
class TrackingState:
    """How far a run is logged.

    Attributes:
        id: of the W&B run, whichever process logs to it.
        project: of the W&B run.
        entity: of the W&B run; empty: the account's default.
        mode: `online` or `offline`, as it was logged last.
        epochs: how many the server, or offline segments that ended in order, have.
        complete: whether they have the results too.
        unsure: a process did not end in order: only the server knows what it has.
    """

    id: str
    project: str
    entity: str
    mode: str
    epochs: int = 0
    complete: bool = False
    unsure: bool = False


def folder_of(run: Run) -> Path:
    """Return the folder of a run's W&B files."""
    return run.path / "wandb"


def read(run: Run) -> TrackingState | None:
    """Return a run's state, None if it was never tracked.

    Raises:
        RunError: the file is damaged.
    """
    path = folder_of(run) / "tracking.json"
    if not path.is_file():
        return None
    try:
        values = files.read_json(path)
        names = [field.name for field in fields(TrackingState) if field.name in values]
        state = TrackingState(**{name: values[name] for name in names})
        kinds: dict[str, Any] = {field.name: field.type for field in fields(state)}
        for name, kind in kinds.items():
            if not isinstance(value := getattr(state, name), kind):
                raise TypeError(f"{name}: expected {kind.__name__}, found {value!r:.80}")
        return state
    except (RunError, TypeError) as error:  # TypeError: also one without an id
        reason = str(error).removeprefix(f"{path}: ")
        raise RunError(
            f"{path}: damaged ({reason}); remove it, and comp tracks the run again as another W&B run"
        ) from None


def write(run: Run, state: TrackingState) -> None:
    """Write a run's state."""
    run.write_json("wandb/tracking.json", asdict(state))


def read_or_new(run: Run, mode: str) -> TrackingState:
    """Return a run's state with this mode, or the state of a new W&B run."""
    track, state = run.config().track, read(run)
    if state:
        return replace(state, mode=mode)
    return TrackingState(secrets.token_hex(4), track.project or run.config().competition.name, track.entity, mode)


@contextlib.contextmanager
def locked(run: Run) -> Iterator[None]:
    """Hold the lock of the one process that logs a run.

    Raises:
        RunError: another process holds it.
    """
    files.make_folder(folder_of(run))
    try:
        with filelock.FileLock(folder_of(run) / ".lock", timeout=0):
            yield
    except filelock.Timeout:
        raise RunError(f"{run.path}: another process is logging this run to W&B") from None


def is_locked(run: Run) -> bool:
    """Return whether a process is logging a run now."""
    try:
        with locked(run):
            return False
    except RunError:
        return True


def is_logged(run: Run) -> bool:
    """Return whether the server and a run's offline segments together have all that its folder has."""
    with contextlib.suppress(RunError):  # damaged
        if (state := read(run)) and not state.unsure:
            return state.epochs >= len(run.history()) and state.complete >= run.is_complete()
    return False


def segments(run: Run) -> list[Path]:
    """Return the folders of a run's offline segments, the oldest first."""
    return sorted(folder_of(run).glob("offline-run-*"))


def waiting(run: Run) -> list[Path]:
    """Return the offline segments that are not uploaded."""
    return [segment for segment in segments(run) if not is_uploaded(segment)]


def is_uploaded(segment: Path) -> bool:
    """Return whether W&B has marked an offline segment as uploaded."""
    return any(segment.glob("*.wandb.synced"))


def mark_uploaded(run: Run) -> None:
    """Mark all segments as W&B does, because the server has their content."""
    for path in folder_of(run).glob("*run-*/*.wandb"):
        path.with_suffix(".wandb.synced").touch()
