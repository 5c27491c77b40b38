"""`comp report`: diagnose a run where its scores are newer than that, and write its page, or one of several runs."""

from collections.abc import Callable, Sequence
from pathlib import Path

from comp import config as configs
from comp.results import comparison, diagnostics, files, report, runs
from comp.results.runs import Run
from comp.runtime.errors import UserError
from comp.runtime.progress import Progress, quiet


def write_report(
    compared: Sequence[Run],
    output: Path,
    *,
    baseline: Path | None = None,
    on_note: Callable[[str], None] = lambda note: None,
    progress: Progress = quiet,
) -> None:
    """Write an HTML page about a run, or several side by side.

    Args:
        compared: complete runs.
        output: the page; an existing one is replaced.
        baseline: a run or a config to compare with; None: the defaults.
        on_note: called with why a run could not be diagnosed, without its data or weights; the page lacks that then.
        progress: called after every batch.

    Raises:
        UserError: a run is incomplete or damaged, or the page cannot be written.
    """
    files.check_writable(output)
    other = runs.open_run(baseline) if baseline and baseline.is_dir() else None
    reference = other.config() if other else configs.load(baseline) if baseline else None
    if len(compared) == 1:
        _diagnose(compared[0], on_note, progress)
        scored = other if other and other.is_complete() else None
        text = report.render_page(compared[0], baseline=reference, compared=scored)
    else:
        text = comparison.render_page(compared, baseline=reference)
    files.write_atomically(output, text.encode())


def _diagnose(run: Run, on_note: Callable[[str], None], progress: Progress) -> None:
    run.metrics()  # raises for an incomplete run, and says how to finish it
    stored = run.path / diagnostics.FILE
    if stored.is_file() and stored.stat().st_mtime_ns >= (run.path / "metrics.json").stat().st_mtime_ns:
        return
    from comp.workflows.evaluate import evaluate  # loads torch

    try:
        evaluate(run, progress=progress)
    except UserError as error:
        on_note(f"not evaluated, so the page has no class scores and no confusion matrix: {error}")
