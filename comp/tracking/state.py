"""RUN/wandb/tracking.json: which W&B run a run is, and how far it was told."""

import contextlib
import secrets
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import filelock

from comp.results import files
from comp.results.runs import Run
from comp.runtime.errors import RunError


@dataclass(frozen=True)
class TrackingState:
    """How far a run was told.

    Attributes:
        id: of the W&B run, whichever process tells it.
        project: that it belongs to.
        entity: likewise; empty: the account's own.
        mode: `online` or `offline`, as it was tracked last.
        epochs: how many the server has, or offline segments that have ended hold.
        complete: whether the results were told too.
        unsure: a process began to tell and did not end well: only the server knows what it has.
    """

    id: str
    project: str
    entity: str
    mode: str
    epochs: int = 0
    complete: bool = False
    unsure: bool = False


def folder_of(run: Run) -> Path:
    """Return where W&B's files of a run lie."""
    return run.path / "wandb"


def read(run: Run) -> TrackingState | None:
    """Return a run's state, None where it was never tracked.

    Raises:
        RunError: damaged.
    """
    path = folder_of(run) / "tracking.json"
    if not path.is_file():
        return None
    try:
        values = files.read_json(path)
        return TrackingState(
            **{field.name: values[field.name] for field in fields(TrackingState) if field.name in values}
        )
    except (RunError, TypeError) as error:  # TypeError: no mapping, or one that lacks the id
        reason = str(error).removeprefix(f"{path}: ")
        raise RunError(
            f"{path}: damaged ({reason}); remove it, and the run is tracked anew, as another one in W&B"
        ) from None


def write(run: Run, state: TrackingState) -> None:
    """Keep a run's state."""
    run.write_json("wandb/tracking.json", asdict(state))


def begun(run: Run, mode: str) -> TrackingState:
    """Return the state that telling starts with: the run's own, or a new one."""
    track, state = run.config().track, read(run)
    if state:
        return replace(state, mode=mode)
    return TrackingState(secrets.token_hex(4), track.project or run.config().competition.name, track.entity, mode)


@contextlib.contextmanager
def telling(run: Run) -> Iterator[None]:
    """Be the one process that tells of a run.

    Raises:
        RunError: another one does.
    """
    files.make_folder(folder_of(run))
    try:
        with filelock.FileLock(folder_of(run) / ".lock", timeout=0):
            yield
    except filelock.Timeout:
        raise RunError(f"{run.path}: another process is telling W&B of this run") from None


def is_being_told(run: Run) -> bool:
    """Tell whether a process is telling of a run now."""
    try:
        with telling(run):
            return False
    except RunError:
        return True


def is_told(run: Run) -> bool:
    """Tell whether a run is tracked, and the server and its offline segments together have all that its folder has."""
    with contextlib.suppress(RunError):  # damaged
        if (state := read(run)) and not state.unsure:
            return state.epochs >= len(run.history()) and state.complete >= run.is_complete()
    return False


def segments(run: Run) -> list[Path]:
    """Return the folders of a run's offline segments in the order in which they were begun."""
    return sorted(folder_of(run).glob("offline-run-*"))


def waiting(run: Run) -> list[Path]:
    """Return the offline segments that were not uploaded; W&B marks those that were."""
    return [segment for segment in segments(run) if not any(segment.glob("*.wandb.synced"))]


def mark_uploaded(run: Run) -> None:
    """Mark all segments as W&B would: the server has what they hold."""
    for path in folder_of(run).glob("*run-*/*.wandb"):
        path.with_suffix(".wandb.synced").touch()
