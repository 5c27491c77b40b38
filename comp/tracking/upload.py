"""Bringing what lies on the disk to W&B: `comp leaderboard --sync` and `--push`."""

import json
import secrets
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from comp import runs
from comp.errors import ConfigError, RunError
from comp.progress import Progress, quiet
from comp.runs import Run
from comp.tracking import login, state
from comp.tracking.tracker import end_writer, start_writer

_AT_ONCE = 200  # segments that one process uploads
_SHOWN_LETTERS = 2000  # of what it said, where it failed


@dataclass(frozen=True)
class Board:
    """A leaderboard to tell of.

    Attributes:
        columns: names.
        rows: best first, a value for each column.
        runs: the rows' runs.
        sort: the column that they are sorted by.
    """

    columns: list[str]
    rows: list[list[Any]]
    runs: list[Run]
    sort: str


def sync(tracked: Sequence[Run], also: Sequence[Path] = (), progress: Progress = quiet) -> list[Path]:
    """Upload every segment that was not yet, having told first what some process did not live to tell.

    Args:
        tracked: runs, tracked or not; those that are being trained are left for later.
        also: segments of leaderboards.
        progress: called after every run, and every batch of segments.

    Returns:
        The segments that were uploaded now.

    Raises:
        ConfigError: nobody is logged in.
        RunError: the server does not answer, or refuses some of it; nothing is lost.
    """
    if not login.is_logged_in():
        raise ConfigError("--sync: needs a login to W&B, and there is none; run `wandb login` or set WANDB_API_KEY")
    waiting: list[Path] = []
    for number, run in enumerate(tracked, 1):
        if state.read(run) is not None and not state.is_being_told(run):
            catch_up(run)
            waiting += state.waiting(run)
        progress("looking for what waits", number, len(tracked), "runs")
    waiting += [segment for segment in also if not any(segment.glob("*.wandb.synced"))]
    for start in range(0, len(waiting), _AT_ONCE):
        _upload(waiting[start : start + _AT_ONCE])
        progress("uploading", min(start + _AT_ONCE, len(waiting)), len(waiting), "segments")
    return waiting


def catch_up(run: Run) -> None:
    """Tell what a complete, tracked run has that its segments have not: its process was killed, say."""
    known = state.read(run)
    if known is not None and run.is_complete() and not known.complete:
        end_writer(start_writer(run, "offline"), None)


def push(board: Board, root: Path) -> list[Path]:
    """Write a leaderboard, and each tracked run's rank, as segments; return all that are new.

    Args:
        board: of one competition.
        root: where the runs are; the leaderboard's own segments lie in its `wandb` folder.

    Raises:
        ConfigError: nothing is listed, or W&B is disabled.
    """
    if not board.runs:
        raise ConfigError("--push: no run is listed; push what `comp leaderboard` shows")
    track = board.runs[0].config().track
    project = track.project or board.runs[0].config().competition.name
    folder = root.absolute()
    ranked = [(run, rank) for rank, run in enumerate(board.runs, 1) if state.read(run) is not None]
    before = _segments(folder, [run for run, _ in ranked])
    told = {
        "folder": str(folder), **_known_board(folder, project), "project": project, "entity": track.entity,
        "columns": board.columns, "rows": board.rows, "sort": board.sort,
        "ranks": [[str(run.path.absolute()), rank] for run, rank in ranked],
    }  # fmt: skip
    done = _process(["comp.tracking.board"], login.environment(folder, uploads=False), input=json.dumps(told))
    if done.returncode:
        raise RunError(f"--push: W&B's files could not be written: {_last_words(done)}")
    return sorted(_segments(folder, [run for run, _ in ranked]) - before)


def is_online(run: Run) -> bool:
    """Tell whether a run's config would be tracked online here."""
    return login.mode_of(run.config().track) == "online"


def board_segments(root: Path) -> list[Path]:
    """Return the segments of the leaderboards that were pushed from a folder of runs."""
    return sorted((root / "wandb").glob("offline-run-*"))


def _known_board(folder: Path, project: str) -> dict[str, Any]:
    """Return the id of a project's leaderboard and the number of this one of it, and remember them."""
    path = folder / "wandb" / "leaderboards.json"
    known = runs.read_json(path) if path.is_file() else {}
    found = known.get(project, {"id": secrets.token_hex(4), "number": 0})
    found = {"id": found["id"], "number": found["number"] + 1}
    runs.make_folder(path.parent)
    runs.write_atomically(path, runs.to_json({**known, project: found}))
    return found


def _segments(folder: Path, ranked: Sequence[Run]) -> set[Path]:
    listed: list[Path] = board_segments(folder)
    for run in ranked:
        listed += state.segments(run)
    return set(listed)


def _upload(segments: Sequence[Path]) -> None:
    absolute = [str(segment.absolute()) for segment in segments]
    done = _process(
        ["comp.tracking.uploader", *absolute], login.environment(segments[0].parents[1].absolute(), uploads=True)
    )
    left = [segment for segment in segments if not any(segment.glob("*.wandb.synced"))]
    if left:
        raise RunError(
            f"--sync: {len(left)} of {len(segments)} segments are not uploaded, first {left[0]}; nothing is lost, run "
            f"it again: {_last_words(done)}"
        )


def _process(words: list[str], environment: dict[str, str], **options: Any) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-P", "-m", *words]
    return subprocess.run(
        command, env=environment, cwd=environment["WANDB_DIR"], text=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, check=False, **options,
    )  # fmt: skip


def _last_words(done: "subprocess.CompletedProcess[str]") -> str:
    return done.stdout.strip()[-_SHOWN_LETTERS:]
