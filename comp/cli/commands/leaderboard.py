"""`comp leaderboard` and `comp leaderboard record`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from comp.cli.commands.options import RUNS, AsJson, RunsRoot

if TYPE_CHECKING:
    from comp.results.leaderboard import LeaderboardRow

    pass


def leaderboard(
    context: typer.Context,
    competition: Annotated[str | None, typer.Option(help="Only this competition's runs.")] = None,
    sort: Annotated[
        str, typer.Option(help="Column; auto: the metric on shifted validation where most have it.")
    ] = "auto",
    group_by: Annotated[str | None, typer.Option(help="A line for each model, device, variant, ... instead.")] = None,
    since: Annotated[
        str | None, typer.Option(help="Only runs started since: 2026-01-31, 2026-01-31T12:00, 12h, 7d, 2w.")
    ] = None,
    top: Annotated[int, typer.Option(min=0, help="Rows of the table in the terminal; 0 for all.")] = 100,
    runs: RunsRoot = RUNS,
    as_json: AsJson = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print every row and column as CSV.")] = False,
    as_md: Annotated[bool, typer.Option("--md", help="Print every row and column as a Markdown table.")] = False,
    sync: Annotated[bool, typer.Option("--sync", help="Upload to W&B what was kept offline.")] = False,
    push: Annotated[bool, typer.Option("--push", help="Put the table into W&B, and each run's rank.")] = False,
) -> None:
    """List complete runs, best first, and tell what their differences mean.

    Example: comp leaderboard --competition quickstart --sort val_accuracy
    """
    if context.invoked_subcommand is not None:
        return
    from comp.cli import console
    from comp.results import analysis
    from comp.results import leaderboard as board
    from comp.runtime.errors import ConfigError, RunError

    if as_json + as_csv + as_md > 1:
        raise ConfigError("--json, --csv and --md: one of them at a time")
    if group_by and push:
        raise ConfigError("--group-by and --push: runs are pushed, not groups; leave one of them out")
    damaged: list[RunError] = []
    rows = board.read_rows(runs, competition=competition, sort=sort, since=since, on_damaged=damaged.append)
    spelling = "json" if as_json else "csv" if as_csv else "md" if as_md else ""
    if group_by:
        _print_groups(rows, group_by, sort, spelling)
    elif spelling == "json":
        console.print_json([row.to_json() for row in rows])
    elif spelling:
        heads = console.metric_heads(rows, board.COLUMNS if spelling == "md" else ())
        lines = [{heads.get(name, name): value for name, value in row.cells().items()} for row in rows]
        console.print_spelled(lines, [heads.get(name, name) for name in board.COLUMNS], spelling)
    else:
        one = len({row.competition for row in rows}) == 1
        told = analysis.analyze_leaderboard(rows, sort) if one else analysis.skip_analysis(rows)
        console.print_leaderboard(rows, told, runs, top, sort)
        if rows and not one:
            console.print_line("of several competitions; one of them, with --competition, can be told more of")
    if damaged:
        count = f"{len(damaged):,} run{'s' * (len(damaged) != 1)}"
        console.print_note(f"note: {count} left out, first {damaged[0]}")
    _tell(rows, runs, sort, sync=sync, push=push)


def record(
    submission: Annotated[Path, typer.Argument(metavar="CSV", help="A submission that comp has written.")],
    public: Annotated[float | None, typer.Option(help="Its score on the public leaderboard.")] = None,
    private: Annotated[float | None, typer.Option(help="Likewise on the private one, when it is shown.")] = None,
    public_share: Annotated[
        float, typer.Option("--public-share", help="Share of the rows that the public leaderboard counts.")
    ] = 1.0,
    as_json: AsJson = False,
) -> None:
    """Record what a submission has scored, beside it and with its run.

    Example: comp leaderboard record submissions/quickstart.csv --public 0.573 --public-share 0.3
    """
    from comp.cli import console
    from comp.submission import scores

    found = scores.record_submission(submission, public=public, private=private, public_share=public_share)
    if as_json:
        console.print_json(found.model_dump())
        return
    shown = {"public": found.public, "private": found.private}
    scored = [f"{name} {score:.4f}" for name, score in shown.items() if score is not None]
    console.print_line(f"{submission}: {', '.join(scored)}, recorded")


def _print_groups(rows: "list[LeaderboardRow]", by: str, sort: str, spelling: str) -> None:
    from dataclasses import asdict

    from comp.cli import console
    from comp.results import leaderboard as board

    groups = board.group_rows(rows, by, sort)
    lines = [asdict(group) for group in groups]
    if spelling == "json":
        console.print_json(lines)
    elif spelling:
        console.print_spelled(lines, [*board.GROUP_COLUMNS], spelling)
    else:
        console.print_groups(groups, by, rows, sort)


def _tell(rows: "list[LeaderboardRow]", root: Path, sort: str, *, sync: bool, push: bool) -> None:
    """Bring the table and what was kept offline to W&B; what is said of it is no part of the listing."""
    if not (sync or push):
        return
    from comp.cli import console
    from comp.results import leaderboard as board
    from comp.results import runs
    from comp.runtime.errors import ConfigError
    from comp.tracking import login, upload
    from comp.tracking.payload import Table

    if push:
        if len({row.competition for row in rows}) > 1:
            raise ConfigError("--push: a W&B leaderboard is of one competition; choose it with --competition")
        lines = [[rank, *row.cells().values()] for rank, row in enumerate(rows, 1)]
        column = next(iter(board.sort_columns(rows, sort).values()), sort)
        ranked = [runs.Run(Path(row.run)) for row in rows]
        ranks = upload.push(Table(["rank", *board.COLUMNS], lines), ranked, column, root)
        console.print_note(f"pushed {len(rows)} rows and {ranks} ranks to W&B's files below {root}")
        sync = sync or login.mode_of(ranked[0].config().track) == "online"
    if sync:
        with console.bars() as progress:
            uploaded = upload.sync(root, progress)
        console.print_note(f"uploaded {uploaded} segment{'s' * (uploaded != 1)} to W&B")
