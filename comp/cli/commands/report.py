"""`comp report`."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from comp.cli.commands.options import AllowPlugins, AsJson


def report(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...", help="Runs, or folders of runs such as a study's.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Page to write; an existing one is replaced.")] = Path(
        "report.html"
    ),
    baseline: Annotated[
        Path | None,
        typer.Option(metavar="RUN|CONFIG", help="Compare config and scores with these. Default: the defaults."),
    ] = None,
    allow_plugins: AllowPlugins = False,
    as_json: AsJson = False,
) -> None:
    """Write an HTML page about one run, or several side by side.

    Example: comp report runs/quickstart/20260101-120000-quickstart -o report.html
    """
    from comp.cli import console
    from comp.results.report import find_runs
    from comp.workflows.report import write_report

    runs = [replace(run, allow_plugins=allow_plugins) for run in find_runs(paths)]
    with console.bars() as progress:
        write_report(runs, output, baseline=baseline, on_note=console.print_note, progress=progress)
    written = {"page": str(output), "runs": [str(run.path) for run in runs]}
    if as_json:
        console.print_json(written)
        return
    console.print_written(output)
    console.print_next("leaderboard")
