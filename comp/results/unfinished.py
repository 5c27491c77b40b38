"""Runs that are not complete: what stopped each, and the command that continues it. Torch-free."""

import contextlib
import shlex
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from comp.results import leaderboard
from comp.results.files import read_json
from comp.results.machine import hide_passwords
from comp.results.runs import Run
from comp.runtime.errors import RunError, UserError, readable

FAILURE = "failure.json"  # in a run folder: the error that ended its training, until it is resumed
_REPEATED = ("cv", "tune", "ensemble", "probe")  # commands that continue their runs when they are given again


@dataclass(frozen=True)
class UnfinishedRun:
    """A run without scores.

    Attributes:
        run: its folder.
        started: as in `LeaderboardRow`.
        competition: its name.
        state: whether a process writes it now, an error ended it, a signal or a kill did, or a file of it is damaged.
        epochs: finished ones.
        of: planned ones; None if a time budget decides.
        reason: the error that ended it, or what is damaged; empty if it was stopped.
        resume: command that continues it; empty if it is running or damaged.
    """

    run: str
    started: str
    competition: str
    state: Literal["running", "failed", "interrupted", "damaged"]
    epochs: int = 0
    of: int | None = None
    reason: str = ""
    resume: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


@contextlib.contextmanager
def noting_failure(run: Run) -> Iterator[None]:
    """Context manager: keeps in the run's folder why a training failed; a signal is no failure."""
    (run.path / FAILURE).unlink(missing_ok=True)
    try:
        yield
    except Exception as error:
        name = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        with contextlib.suppress(OSError, RunError):  # a full disk, for example
            run.write_json(FAILURE, {"error": f"{name}{readable(error)}"})
        raise


def list_unfinished(root: Path, *, competition: str | None = None, since: str | None = None) -> list[UnfinishedRun]:
    """Return the runs below `root` that have no scores, in order of their folders.

    Args:
        root: usually `runs`.
        competition: only its runs.
        since: as in `leaderboard.read_rows`.
    """
    recent = (run for run in leaderboard.runs_since(root, since) if not run.is_complete())
    return [row for row in map(describe, recent) if competition in (None, row.competition)]


def is_written(run: Run) -> bool:
    """Return whether a process is writing the run now."""
    try:
        with run.write_lock(0) if (run.path / ".lock").exists() else contextlib.nullcontext():
            return False
    except RunError:
        return True


def describe(run: Run) -> UnfinishedRun:
    """Return the state of a run that is not complete."""
    path, started = str(run.path), leaderboard.start_time(run)
    try:
        config, finished = run.config(), len(run.history())
        argv = run.provenance().get("argv") or ["run"]
        failure = read_json(run.path / FAILURE, "remove it") if (run.path / FAILURE).exists() else {}
    except UserError as error:
        return UnfinishedRun(path, started, run.path.parent.name, "damaged", reason=readable(error))
    words = ["train" if argv[0] == "train" else "run", "--resume", path, *["--allow-plugins"] * bool(config.plugins)]
    resume = hide_passwords(shlex.join(["comp", *(argv if argv[0] in _REPEATED else words)]))
    planned = None if config.train.budget else config.train.epochs
    name, reason = config.competition.name, str(failure.get("error", ""))
    if is_written(run):
        return UnfinishedRun(path, started, name, "running", finished, planned)
    state: Literal["failed", "interrupted"] = "failed" if failure else "interrupted"
    return UnfinishedRun(path, started, name, state, finished, planned, reason, resume)
