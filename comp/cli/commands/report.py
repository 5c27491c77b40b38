"""`comp report`."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from comp.cli.commands.options import AllowPlugins, AsJson

if TYPE_CHECKING:
    from comp.results.runs import Run


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
    from comp import config as configs
    from comp.cli import console
    from comp.results import files
    from comp.results import report as reports
    from comp.results import runs as run_folders

    files.check_writable(output)
    runs = reports.find_runs(paths)
    other = run_folders.open_run(baseline) if baseline and baseline.is_dir() else None
    reference = other.config() if other else configs.load(baseline) if baseline else None
    if len(runs) == 1:
        _evaluate(replace(runs[0], allow_plugins=allow_plugins))
        scored = other if other and other.is_complete() else None
        text = reports.render_page(runs[0], baseline=reference, compared=scored)
    else:
        from comp.results import comparison

        text = comparison.render_page(runs, baseline=reference)
    files.write_atomically(output, text.encode())
    written = {"page": str(output), "runs": [str(run.path) for run in runs]}
    if as_json:
        console.print_json(written)
        return
    console.print_written(output)
    console.print_next("leaderboard")


def _evaluate(run: "Run") -> None:
    """Diagnose a run again if its scores are newer; without its data or weights, only print a note."""
    from comp.cli import console
    from comp.results import diagnostics

    stored = run.path / diagnostics.FILE
    if stored.is_file() and stored.stat().st_mtime_ns >= (run.path / "metrics.json").stat().st_mtime_ns:
        return
    from comp.runtime.errors import UserError
    from comp.workflows.evaluate import evaluate

    try:
        with console.bars() as progress:
            evaluate(run, progress=progress)
    except UserError as error:
        console.print_note(f"not evaluated, so the page has no class scores and no confusion matrix: {error}")
