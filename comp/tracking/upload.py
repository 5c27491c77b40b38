"""Bringing what lies on the disk to W&B: `comp leaderboard --sync` and `--push`."""

import contextlib
import secrets
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from comp.results import files, runs
from comp.results.runs import Run
from comp.runtime.errors import ConfigError, RunError
from comp.runtime.progress import Progress, quiet
from comp.tracking import login, state
from comp.tracking.payload import Table

_AT_ONCE = 200  # segments that one process uploads
END_SECONDS = 10.0  # that an end waits for the network
_ANSWER_SECONDS = 5.0
_SHOWN_LETTERS = 2000  # of what W&B said, where it failed


@contextlib.contextmanager
def _explained(doing: str) -> Iterator[None]:
    """Turn what W&B raises into one message."""
    try:
        yield
    except Exception as error:
        raise RunError(f"{doing}: W&B: {error}; nothing is lost, run it again") from error


def sync(root: Path, progress: Progress = quiet) -> int:
    """Upload what W&B lacks of the runs, studies and leaderboards below a folder; return of how many.

    Offline segments go by `wandb sync`. A run that they do not tell whole, because a process was killed, say, or a
    server fell silent, is told again from its folder: of what comes after the server's last step.

    Args:
        root: a folder of runs; those that are being trained are left for later.
        progress: called after every run, and every batch of segments.

    Raises:
        ConfigError: nobody is logged in.
        RunError: the server does not answer, or refuses some of it; nothing is lost.
    """
    if not login.is_logged_in():
        raise ConfigError("--sync: needs a login to W&B, and there is none; run `wandb login` or set WANDB_API_KEY")
    tracked = runs.list_runs(root)
    waiting, partial = [], []
    for number, run in enumerate(tracked, 1):
        if state.read(run) is not None and not state.is_being_told(run):
            told = state.is_told(run)
            waiting += state.waiting(run) if told else []
            partial += [] if told else [run]
        progress("looking for what waits", number, len(tracked), "runs")
    for place in (Run(root), *(Run(path.parent) for path in sorted(root.glob("*/*/study.json")))):
        if state.folder_of(place).is_dir() and not state.is_being_told(place):
            waiting += state.waiting(place)
    if not waiting and not partial:
        return 0
    from comp.tracking import writer

    _demand_answer(writer.address())
    for start in range(0, len(waiting), _AT_ONCE):
        upload(waiting[start : start + _AT_ONCE])
        progress("uploading", min(start + _AT_ONCE, len(waiting)), len(waiting), "segments")
    for number, run in enumerate(partial, 1):
        with _explained(f"--sync: {run.path}"), contextlib.closing(writer.Tracked("online", patient=True)) as tracker:
            tracker.begin(run)
        progress("uploading", number, len(partial), "runs")
    return len(partial) + len(waiting)


def upload(segments: Sequence[Path], seconds: float | None = None) -> None:
    """Run `wandb sync`: segments of one run one after the other, as they were begun.

    Raises:
        RunError: some are not uploaded, maybe because it took longer than `seconds`.
    """
    command = [sys.executable, "-P", "-m", "wandb", "sync", *(str(segment.absolute()) for segment in segments)]
    try:
        said = subprocess.run(
            command, cwd=segments[0], env=login.environment(segments[0].parents[1]), stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, timeout=seconds,
        ).stdout  # fmt: skip
    except subprocess.TimeoutExpired:
        said = "the server took too long"
    left = [segment for segment in segments if not any(segment.glob("*.wandb.synced"))]
    if left:
        raise RunError(
            f"--sync: {len(left)} of {len(segments)} segments are not uploaded, first {left[0]}; nothing is lost, run "
            f"it again: {said.strip()[-_SHOWN_LETTERS:]}"
        )


def push(table: Table, ranked: Sequence[Run], sort: str, root: Path) -> int:
    """Write a leaderboard, and the ranks of tracked runs that are told whole, as segments; return how many ranks.

    Args:
        table: the leaderboard of one competition, best first.
        ranked: the runs of its rows.
        sort: the column that they are sorted by.
        root: where the runs are; the leaderboard's own segments lie in its `wandb` folder.

    Raises:
        ConfigError: nothing is listed.
    """
    if not ranked:
        raise ConfigError("--push: no run is listed; push what `comp leaderboard` shows")
    from comp.tracking import writer

    config = ranked[0].config()
    project = config.track.project or config.competition.name
    board = _known_board(root, project)
    told = [(rank, run) for rank, run in enumerate(ranked, 1) if state.is_told(run)]
    about = {"id": board["id"], "project": project, "name": "leaderboard", "job_type": "leaderboard"}
    with _explained("--push"):
        with writer.segment(root, config.track, **about) as opened:
            opened.log({"leaderboard": writer.table(table)}, step=board["number"])
            opened.summary.update({"runs": len(ranked), "sorted_by": sort})
        for rank, run in told:
            writer.rank(run, {"rank": rank, "ranked_by": sort, "ranked_among": len(ranked)})
        writer.release()
    return len(told)


def _known_board(root: Path, project: str) -> dict[str, Any]:
    """Return the id of a project's leaderboard and the number of this one of it, and remember them."""
    path = root / "wandb" / "leaderboards.json"
    boards = files.read_json(path) if path.is_file() else {}
    board = boards.get(project, {"id": secrets.token_hex(4), "number": 0})
    board = {"id": board["id"], "number": board["number"] + 1}
    files.make_folder(path.parent)
    files.write_atomically(path, files.to_json({**boards, project: board}))
    return board


def _demand_answer(address: str) -> None:
    """Refuse a server that says nothing at all: W&B's own client would wait for minutes."""
    try:
        with urllib.request.urlopen(address, timeout=_ANSWER_SECONDS):
            return
    except urllib.error.HTTPError:
        return  # it speaks
    except OSError:
        raise RunError(f"--sync: {address} does not answer; nothing is lost, run it again") from None
