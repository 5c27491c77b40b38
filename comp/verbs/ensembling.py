"""`comp ensemble`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from comp.verbs.options import (
    RUNS,
    Adapt,
    AdaptPer,
    Alpha,
    AsJson,
    Force,
    Output,
    RunsRoot,
    Views,
    ViewsFor,
)  # fmt: skip

if TYPE_CHECKING:
    from comp.runs import Run


def ensemble(
    paths: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders, two or more; ensembles too.")],
    method: Annotated[
        str, typer.Option(help="mean, geometric, rank, weighted, greedy or stack of predictions; soup of weights.")
    ] = "mean",
    select_on: Annotated[
        str | None, typer.Option("--select-on", help="val or ood_val: what weights are fitted on; by default shifted.")
    ] = None,
    folds: Annotated[
        int | None, typer.Option(min=2, help="Folds of its images that honest scores are made of; by default 5.")
    ] = None,
    views: Views = None,
    views_for: ViewsFor = None,
    adapt: Adapt = None,
    adapt_per: AdaptPer = None,
    alpha: Alpha = None,
    output: Output = None,
    force: Force = False,
    runs: RunsRoot = RUNS,
    as_json: AsJson = False,
) -> None:
    """Combine trained runs into one that is scored, stored and submitted like any other.

    Example: comp ensemble runs/quickstart/20260101-120000-quickstart runs/quickstart/20260101-130000-quickstart
    """
    from comp import combining, console, souping
    from comp import runs as run_folders

    given = {"views": views, "views_for": views_for, "adapt": adapt, "adapt_per": adapt_per, "alpha": alpha}
    trained = [run_folders.open_run(path) for path in paths]
    with console.bars() as progress:
        shared: dict[str, Any] = {
            "select_on": select_on, "given": given, "runs_root": runs, "output": output, "force": force,
            "progress": progress,
        }  # fmt: skip
        if method == "soup":
            found = souping.soup(trained, **shared)
        else:
            found = combining.ensemble(trained, method=method, folds=folds, **shared)
    if as_json:
        console.print_json(found.metrics())
        return
    _print_gain(found)
    console.print_summary(found, found.metrics())


def _print_gain(found: "Run") -> None:
    """Print the members, how often they disagree, and what the ensemble gains over the best of them."""
    from comp import combining, console

    compared = combining.comparison(found)
    if compared is None:
        return
    header = ("member", "weight", "accuracy", "metric", "loss", *(f"≠{n}" for n in range(1, len(compared.members) + 1)))
    rows = [
        (
            f"{number} {row.name}", "" if row.weight is None else f"{row.weight:.3f}", *_scores(row),
            *(f"{share:.3f}" for share in compared.disagreement[number - 1]),
        )
        for number, row in enumerate(compared.members, 1)
    ]  # fmt: skip
    held_out = {"best single": compared.best_single, "ensemble": compared.ensemble}
    blank = ("",) * len(compared.members)
    rows += [(f"{name}, held-out folds", "", *_scores(row), *blank) for name, row in held_out.items()]
    title = f"{compared.split}: {compared.images:,} rows; ≠n: share of rows on which it disagrees with member n"
    console.print_table(title, header, rows)
    console.print_line(
        f"gain over the best single member: {100 * compared.gain:+.2f} points (standard error "
        f"{100 * compared.gain_error:.2f} over {compared.folds} folds)"
    )


def _scores(row: Any) -> tuple[str, str, str]:
    return f"{row.accuracy:.4f}", f"{row.metric:.4f}", f"{row.loss:.4f}"
