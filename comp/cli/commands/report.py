"""`comp report`: a page about one run, or about several."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from comp.cli.commands.options import AsJson

if TYPE_CHECKING:
    from comp.config import Config
    from comp.results.runs import Run


def report(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...", help="Runs, or folders of runs: a study's, ...")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The page; replaced.")] = Path("report.html"),
    baseline: Annotated[
        Path | None, typer.Option(metavar="RUN|CONFIG", help="What configs are compared to; else the defaults.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write one self-contained HTML page about a run, or about several side by side.

    Example: comp report runs/quickstart/20260101-120000-quickstart -o report.html
    """
    from comp.cli import console
    from comp.results import files
    from comp.results import report as reports

    files.check_writable(output)
    found = reports.find_runs(paths)
    if len(found) == 1:
        _evaluate(found[0])
    text = reports.render_page(found, baseline=_config(baseline) if baseline else None)
    files.write_atomically(output, text.encode())
    told = {"page": str(output), "runs": [str(run.path) for run in found]}
    console.print_json(told) if as_json else console.print_line(str(output))


def _config(path: Path) -> "Config":
    from comp import config as configs
    from comp.results import runs as run_folders

    return run_folders.open_run(path).config() if path.is_dir() else configs.load(path)


def _evaluate(run: "Run") -> None:
    """Diagnose a run that was not since its last scores; where its data or weights are gone, go on without."""
    from comp.cli import console
    from comp.results import diagnostics

    stored = run.path / diagnostics.FILE
    if stored.is_file() and stored.stat().st_mtime_ns >= (run.path / "metrics.json").stat().st_mtime_ns:
        return
    from comp.runtime.errors import UserError
    from comp.workflows import evaluate

    try:
        with console.bars() as progress:
            evaluate.evaluate(run, progress=progress)
    except UserError as error:
        console.print_note(f"not evaluated, so the page has no classes and no confusions: {error}")
