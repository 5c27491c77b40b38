"""Upload run folders to W&B: `comp leaderboard --sync` and `--push`."""

import contextlib
import secrets
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from comp.results import files, records, runs
from comp.results.runs import Run
from comp.runtime.errors import ConfigError, RunError
from comp.runtime.progress import Progress, quiet
from comp.tracking import state, tracker
from comp.tracking.payload import Table

_BATCH = 200  # segments that one process uploads
END_SECONDS = 10.0  # how long the end of a command waits for the network
_ANSWER_SECONDS = 5.0
_MAX_OUTPUT = 2000  # letters of W&B's output in an error message


@contextlib.contextmanager
def _wandb_errors(action: str) -> Iterator[None]:
    """Turn what W&B raises into one message."""
    try:
        yield
    except Exception as error:
        raise RunError(f"{action}: W&B: {error}; nothing is lost, run it again") from error


def sync(root: Path, progress: Progress = quiet) -> int:
    """Upload what W&B lacks of the runs, studies and leaderboards below a folder; return how many uploads it took.

    `wandb sync` uploads offline segments. If the segments of a run are incomplete, because a process was killed or a
    server did not answer, the run is logged again from its folder, from the server's last step on.

    Args:
        root: a folder of runs; runs in training are left out.
        progress: called after each run and each batch of segments.

    Raises:
        ConfigError: you are not logged in.
        RunError: the server does not answer or refuses an upload; nothing is lost.
    """
    if not tracker.is_logged_in():
        raise ConfigError("--sync: needs a login to W&B; run `wandb login` or set WANDB_API_KEY")
    listed = runs.list_runs(root)
    waiting, partial = [], []
    for number, run in enumerate(listed, 1):
        if state.read(run) is not None and not state.is_locked(run):
            if state.is_logged(run):
                waiting += state.waiting(run)
            else:
                partial.append(run)
        progress("looking for unsent data", number, len(listed), "runs")
    for folder in (Run(root), *(Run(path.parent) for path in sorted(root.glob("*/*/study.json")))):
        if state.folder_of(folder).is_dir() and not state.is_locked(folder):
            waiting += state.waiting(folder)
    if not waiting and not partial:
        return 0
    from comp.tracking import writer

    _check_server_answers(writer.server_address())
    for start in range(0, len(waiting), _BATCH):
        upload(waiting[start : start + _BATCH])
        progress("uploading", min(start + _BATCH, len(waiting)), len(waiting), "segments")
    for number, run in enumerate(partial, 1):
        with (
            _wandb_errors(f"--sync: {run.path}"),
            contextlib.closing(writer.WandbTracker("online", patient=True)) as wandb_tracker,
        ):
            wandb_tracker.start(run)
        progress("uploading", number, len(partial), "runs")
    return len(partial) + len(waiting)


def upload(segments: Sequence[Path], seconds: float | None = None) -> None:
    """Run `wandb sync`; the segments of one run must be in order, the oldest first.

    Raises:
        RunError: some are not uploaded, maybe because it took longer than `seconds`.
    """
    command = [sys.executable, "-P", "-m", "wandb", "sync", *(str(segment.absolute()) for segment in segments)]
    folder, pipe, null = segments[0], subprocess.PIPE, subprocess.DEVNULL
    options: Any = {"stdin": null, "stdout": pipe, "stderr": subprocess.STDOUT, "text": True, "timeout": seconds}
    environment = tracker.wandb_environment(folder.parents[1])
    try:
        output = subprocess.run(command, cwd=folder, env=environment, check=False, **options).stdout
    except subprocess.TimeoutExpired:
        output = "the server took too long"
    missing = [segment for segment in segments if not state.is_uploaded(segment)]
    if missing:
        raise RunError(
            f"--sync: {len(missing)} of {len(segments)} segments are not uploaded, first {missing[0]}; nothing is "
            f"lost, run it again: {output.strip()[-_MAX_OUTPUT:]}"
        )


def push(table: Table, ranked: Sequence[Run], sort: str, root: Path) -> int:
    """Write a leaderboard, and the ranks of completely logged runs, as offline segments; return how many ranks.

    Args:
        table: the leaderboard of one competition, best first.
        ranked: the runs of its rows.
        sort: the column that they are sorted by.
        root: where the runs are; the leaderboard's own segments lie in its `wandb` folder.

    Raises:
        ConfigError: the leaderboard is empty.
    """
    if not ranked:
        raise ConfigError("--push: no run is listed; push what `comp leaderboard` shows")
    from comp.tracking import writer

    config = ranked[0].config()
    project = config.track.project or config.competition.name
    board_id, number = _next_push(root, project)
    logged = [(rank, run) for rank, run in enumerate(ranked, 1) if state.is_logged(run)]
    options = {"id": board_id, "project": project, "name": "leaderboard", "job_type": "leaderboard"}
    with _wandb_errors("--push"):
        with writer.segment(root, config.track, **options) as wandb_run:
            wandb_run.log({"leaderboard": writer.table(table)}, step=number)
            wandb_run.summary.update({"runs": len(ranked), "sorted_by": sort})
        for rank, run in logged:
            writer.log_rank(run, {"rank": rank, "ranked_by": sort, "ranked_among": len(ranked)})
        writer.release()
    return len(logged)


def _next_push(root: Path, project: str) -> tuple[str, int]:
    """Return the W&B id of a project's leaderboard and the number of this push, and record both."""
    path = root / "wandb" / "leaderboards.json"
    remove = "remove it, and the next push begins another leaderboard in W&B"
    files.make_folder(path.parent)
    with files.hold_folder(path.parent):
        boards = files.read_json(path, remove) if path.is_file() else {}
        records.check(boards, path, {project: ("an object with a text id and a number", _is_board)}, remove)
        board = boards.get(project, {"id": secrets.token_hex(4), "number": 0})
        board = {"id": board["id"], "number": board["number"] + 1}
        files.write_atomically(path, files.to_json({**boards, project: board}))
    return board["id"], board["number"]


_is_board = records.is_object(id=lambda value: isinstance(value, str), number=lambda value: isinstance(value, int))


def _check_server_answers(address: str) -> None:
    """Refuse a server that does not answer; W&B's own client would wait for minutes."""
    try:
        with urllib.request.urlopen(address, timeout=_ANSWER_SECONDS):
            return
    except urllib.error.HTTPError:
        return  # an answer
    except OSError:
        raise RunError(f"--sync: {address} does not answer; nothing is lost, run it again") from None
