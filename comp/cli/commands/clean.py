"""`comp clean`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from comp.cli.commands.options import RUNS, AsJson, expand_path
from comp.runtime.errors import plural

if TYPE_CHECKING:
    from comp.workflows.clean import Cleaned

_LISTED = 5  # skipped paths


def clean(
    runs: Annotated[
        Path, typer.Argument(metavar="RUNS", help="Folder of runs, or one run's.", callback=expand_path)
    ] = RUNS,
    older: Annotated[str | None, typer.Option(help="Only clean runs unchanged for 12h, 7d, ...")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would be removed; remove nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove files that complete runs no longer need.

    From complete runs: state.pt (unless train.keep_state is set), partial blocks
    of finished predictions, W&B files that are marked as uploaded.

    From all runs: temporary files of killed processes, after an hour.

    With --older: runs that ended before their first epoch, after an hour. They
    have no weights, checkpoint, history or predictions.

    Never removes weights, predictions, scores, curves, other interrupted runs,
    your own files, links, or runs that a process is writing.

    Example: comp clean runs --older 7d --dry-run
    """
    from comp.cli import console
    from comp.workflows.clean import clean

    done = clean(runs, older=_seconds(older) if older is not None else None, dry_run=dry_run)
    if as_json:
        console.print_json(
            {
                "runs": str(runs),
                "dry_run": dry_run,
                "bytes": done.bytes,
                "removed": [{"what": item.what, "path": str(item.path), "bytes": item.bytes} for item in done.removed],
                "left": [{"path": str(path), "reason": reason} for path, reason in done.left],
                "unfinished": list(map(str, done.unfinished)),
                "unbegun": list(map(str, done.unbegun)),
            }
        )
        return
    _print(done, runs, older, dry_run=dry_run)


def _seconds(older: str) -> float:
    from comp.config import parse_duration
    from comp.runtime.errors import ConfigError

    try:
        return parse_duration(older)
    except ValueError:
        raise ConfigError(f"--older: expected a time such as 90s, 15min, 12h or 7d, found '{older}'") from None


def _print(done: "Cleaned", runs: Path, older: str | None, *, dry_run: bool) -> None:
    from comp.cli import console

    kinds: dict[str, list[int]] = {}
    for item in done.removed:
        kinds.setdefault(item.what, []).append(item.bytes)
    if kinds:
        rows = [[what, f"{len(sizes):,}", _mib(sum(sizes))] for what, sizes in sorted(kinds.items())]
        console.print_table(["what", "count", "MiB"], rows, folded={"what": 16})
    summary = f"would free {_mib(done.bytes)} MiB; nothing is removed" if dry_run else f"freed {_mib(done.bytes)} MiB"
    console.print_line(f"{runs}: {summary if kinds else 'nothing to clean'}")
    if done.unbegun:
        unbegun = plural(len(done.unbegun), "run")
        console.print_note(f"note: {unbegun} ended before the first epoch; remove them with --older 7d")
    if done.unfinished:
        first, unfinished = done.unfinished[0], plural(len(done.unfinished), "run is", "runs are")
        console.print_note(f"note: {unfinished} not complete; continue with: comp run --resume {first}")
    for path, reason in done.left[:_LISTED]:
        console.print_note(f"skipped: {reason if reason.startswith(str(path)) else f'{path}: {reason}'}")
    if len(done.left) > _LISTED:
        console.print_note(f"skipped: {len(done.left) - _LISTED:,} more; list them with --json")
    if kinds and dry_run:
        console.print_next("clean", runs, *(("--older", older) if older else ()))
    else:
        root = [] if runs == RUNS else ["--runs", runs]
        console.print_next("leaderboard", *root, *(["--all"] if done.unfinished else []))


def _mib(size: int) -> str:
    return f"{size / 2**20:,.1f}"
