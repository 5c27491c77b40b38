"""`comp leaderboard`."""

from typing import Annotated

import typer

from comp.verbs.options import RUNS, AsJson, RunsRoot


def leaderboard(
    competition: Annotated[str | None, typer.Option(help="Only this competition's runs.")] = None,
    sort: Annotated[str, typer.Option(help="Column to sort by.")] = "ood_accuracy",
    runs: RunsRoot = RUNS,
    as_json: AsJson = False,
) -> None:
    """List complete runs, best first.

    Example: comp leaderboard --competition quickstart --sort val_accuracy
    """
    from dataclasses import asdict

    from comp import console
    from comp import leaderboard as board

    rows = board.rows(runs, competition=competition, sort=sort)
    console.print_json([asdict(row) for row in rows]) if as_json else console.print_leaderboard(rows, runs)
