"""`comp leaderboard` and `comp leaderboard record`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from comp.cli.commands.options import RUNS, AsJson, RunsRoot
from comp.cli.commands.submission import find_submission
from comp.runtime.errors import plural

if TYPE_CHECKING:
    from comp.results.leaderboard import LeaderboardRow
    from comp.results.unfinished import UnfinishedRun


def leaderboard(
    context: typer.Context,
    competition: Annotated[str | None, typer.Option(help="List only this competition's runs.")] = None,
    sort: Annotated[
        str, typer.Option(help="Column to sort by; auto: the metric on shifted validation, if most runs have it.")
    ] = "auto",
    group_by: Annotated[str | None, typer.Option(help="Print one line per model, device, variant, ...")] = None,
    since: Annotated[
        str | None, typer.Option(help="List only runs started since 2026-01-31, 2026-01-31T12:00, 12h, 7d or 2w.")
    ] = None,
    top: Annotated[int, typer.Option(min=0, help="Rows to print in the table; 0: all.")] = 100,
    runs: RunsRoot = RUNS,
    everything: Annotated[
        bool, typer.Option("--all", help="Also list interrupted and failed runs, and how to continue each.")
    ] = False,
    as_json: AsJson = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print every row and column as CSV.")] = False,
    as_md: Annotated[bool, typer.Option("--md", help="Print every row and column as a Markdown table.")] = False,
    sync: Annotated[bool, typer.Option("--sync", help="Upload runs saved offline to W&B.")] = False,
    push: Annotated[bool, typer.Option("--push", help="Send the table and each run's rank to W&B.")] = False,
) -> None:
    """List complete runs, best first, and test their differences.

    Use --competition for an analysis of which differences are significant.

    Example: comp leaderboard --competition quickstart --sort val_accuracy
    """
    if context.invoked_subcommand is not None:
        return
    from comp.cli import console
    from comp.results import leaderboard as board
    from comp.results.unfinished import list_unfinished
    from comp.runtime.errors import ConfigError, RunError

    if as_json + as_csv + as_md > 1:
        raise ConfigError("--json, --csv and --md: give only one of them")
    if group_by and push:
        raise ConfigError("--group-by and --push: runs are pushed, not groups; leave one of them out")
    if everything and (group_by or as_csv or as_md):
        raise ConfigError("--all: unfinished runs have no columns of scores; list them alone or with --json")
    damaged: list[RunError] = []
    rows = board.read_rows(runs, competition=competition, sort=sort, since=since, on_damaged=damaged.append)
    unfinished = list_unfinished(runs, competition=competition, since=since) if everything else []
    spelling = "json" if as_json else "csv" if as_csv else "md" if as_md else ""
    if group_by:
        _print_groups(rows, group_by, runs, sort, spelling)
    elif spelling == "json":
        complete = [{"state": "complete", **row.to_json()} for row in rows]
        console.print_json([*complete, *(row.to_json() for row in unfinished)])
    elif spelling:
        heads = console.metric_heads(rows, board.COLUMNS if spelling == "md" else ())
        lines = [{heads.get(name, name): value for name, value in row.cells().items()} for row in rows]
        console.print_rows(lines, [heads.get(name, name) for name in board.COLUMNS], spelling)
    else:
        _print_board(rows, unfinished, runs, top, sort)
    if damaged:
        console.print_note(f"note: {plural(len(damaged), 'run')} left out, first {damaged[0]}")
    _update_wandb(rows, runs, sort, sync=sync, push=push)


def record(
    submission: Annotated[
        Path, typer.Argument(metavar="CSV", help="Submission written by comp.", callback=find_submission)
    ],
    public: Annotated[float | None, typer.Option(help="Score on the public leaderboard.")] = None,
    private: Annotated[float | None, typer.Option(help="Score on the private leaderboard.")] = None,
    public_share: Annotated[
        float, typer.Option("--public-share", help="Share of the rows that the public score counts.")
    ] = 1.0,
    as_json: AsJson = False,
) -> None:
    """Record a submission's score, beside it and with its run.

    Example: comp leaderboard record submissions/quickstart.csv --public 0.573 --public-share 0.3
    """
    from comp.cli import console
    from comp.submission import scores

    record = scores.record_manual_score(submission, public=public, private=private, public_share=public_share)
    if as_json:
        console.print_json(record.model_dump())
        return
    both = {"public": record.public, "private": record.private}
    scored = [f"{name} {score:.4f}" for name, score in both.items() if score is not None]
    console.print_line(f"{submission}: {', '.join(scored)}, recorded")
    console.print_next("leaderboard", "--sort", "public_score")


def _print_board(
    rows: "list[LeaderboardRow]", unfinished: "list[UnfinishedRun]", root: Path, top: int, sort: str
) -> None:
    """Print the table with its analysis, what is not complete, and what to try next."""
    from comp.cli import console
    from comp.results import analysis

    same_competition = len({row.competition for row in rows}) == 1
    notes = analysis.LeaderboardAnalysis(above=(None,) * len(rows))
    if same_competition:
        notes = analysis.analyze_leaderboard(rows, sort)
    console.print_leaderboard(rows, notes, root, top, sort)
    if rows and not same_competition:
        console.print_text("several competitions; use --competition NAME for analysis")
    console.print_unfinished(unfinished)
    if rows:
        console.print_next("report", rows[0].run)
    elif not unfinished:
        console.print_next("run", "quickstart")


def _print_groups(rows: "list[LeaderboardRow]", by: str, root: Path, sort: str, spelling: str) -> None:
    from dataclasses import asdict

    from comp.cli import console
    from comp.results import leaderboard as board

    groups = board.group_rows(rows, by, sort)
    lines = [asdict(group) for group in groups]
    if spelling == "json":
        console.print_json(lines)
    elif spelling:
        console.print_rows(lines, [*board.GROUP_COLUMNS], spelling)
    else:
        console.print_groups(groups, by, rows, root, sort)
        console.print_next(*("report", rows[0].run) if rows else ("run", "quickstart"))


def _update_wandb(rows: "list[LeaderboardRow]", root: Path, sort: str, *, sync: bool, push: bool) -> None:
    """Push the table to W&B and upload offline runs; print to stderr, apart from the listing."""
    if not (sync or push):
        return
    from comp.cli import console
    from comp.results import leaderboard as board
    from comp.results import runs
    from comp.runtime.errors import ConfigError
    from comp.tracking import tracker, upload
    from comp.tracking.payload import Table

    rows = [row for row in rows if row.is_own]  # a rank for each run
    if push:
        if len({row.competition for row in rows}) > 1:
            raise ConfigError("--push: a W&B leaderboard is of one competition; choose it with --competition")
        lines = [[rank, *row.cells().values()] for rank, row in enumerate(rows, 1)]
        column = next(iter(board.sort_columns(rows, sort).values()), sort)
        ranked = [runs.Run(Path(row.run)) for row in rows]
        ranks = upload.push(Table(["rank", *board.COLUMNS], lines), ranked, column, root)
        console.print_note(f"pushed {plural(len(rows), 'row')} and {plural(ranks, 'rank')} to W&B's files below {root}")
        sync = sync or tracker.wandb_mode(ranked[0].config().track) == "online"
    if sync:
        with console.bars() as progress:
            uploaded = upload.sync(root, progress)
        console.print_note(f"uploaded {plural(uploaded, 'segment')} to W&B")
