"""`comp ensemble`."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from comp.cli.commands.options import (  # fmt: skip
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
    opened_runs,
)

if TYPE_CHECKING:
    from comp.ensembles.cross_fit import Comparison, EnsembleRow
    from comp.results.runs import Run


def ensemble(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN... [KEY=VALUE]",
            help="Run folders, two or more, ensembles too; then where their data lie now: data.root=DIR.",
        ),
    ],
    method: Annotated[
        str, typer.Option(help="mean, geometric, rank, weighted, greedy or stack of predictions; soup of weights.")
    ] = "mean",
    select_on: Annotated[
        str | None, typer.Option("--select-on", help="val or ood_val: where weights are fitted; by default shifted.")
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
    from comp.cli import console
    from comp.ensembles import combine, soup
    from comp.runtime.errors import ConfigError

    if method == "soup" and folds is not None:
        raise ConfigError("--folds: a soup is one set of weights, and nothing of it is fitted on folds; leave it out")
    given = {"views": views, "views_for": views_for, "adapt": adapt, "adapt_per": adapt_per, "alpha": alpha}
    trained = opened_runs(words)
    with console.bars() as progress:
        shared: dict[str, Any] = {
            "select_on": select_on, "overrides": given, "runs_root": runs, "output": output, "force": force,
            "progress": progress,
        }  # fmt: skip
        if method == "soup":
            result = soup.soup(trained, **shared)
        else:
            result = combine.ensemble(trained, method=method, folds=folds, **shared)
    if as_json:
        console.print_json(result.metrics().to_json())
        return
    _print_gain(result)
    console.print_summary(result, result.metrics())


def _print_gain(result: "Run") -> None:
    """Print the members, how often they disagree, and what the ensemble gains over the best of them."""
    from comp.cli import console
    from comp.ensembles import combine

    if note := (result.metrics().ensemble or {}).get("note"):
        console.print_line(note)
    compared = combine.read_comparison(result)
    if compared is None:
        return
    own_column = compared.metric not in ("accuracy", "log_loss")
    columns = ("accuracy", *((compared.metric,) if own_column else ()), "log_loss")
    numbers = range(1, len(compared.members) + 1)
    rows = [
        (
            f"{number} {row.name}", "" if row.weight is None else f"{row.weight:.3f}", *_scores(row, own_column),
            *(f"{share:.3f}" for share in compared.disagreement[number - 1]),
        )
        for number, row in enumerate(compared.members, 1)
    ]  # fmt: skip
    held_out = {"best single": compared.best_single, "ensemble": compared.ensemble}
    blank = ("",) * len(compared.members)
    rows += [(f"{name}, held-out folds", "", *_scores(row, own_column), *blank) for name, row in held_out.items()]
    title = f"{compared.split}: {compared.images:,} rows; ≠n: share of rows on which it disagrees with member n"
    differing = [f"≠{number}" for number in numbers]
    heads = ("member", "weight", *columns, *differing)
    console.print_table(heads, rows, title=title, folded={"member": 16}, drop=[*reversed(differing), "weight"])
    for line in _gains(compared):
        console.print_line(line)


def _gains(compared: "Comparison") -> list[str]:
    """Return what the ensemble gains, in accuracy and in the competition's metric where that is another."""
    title, folds = "gain over the best single member", f"over {compared.folds} folds"
    points = f"{100 * compared.gain:+.2f} points (standard error {100 * compared.gain_error:.2f} {folds})"
    if compared.metric == "accuracy":
        return [f"{title}: {points}"]
    error = compared.metric_gain_error
    uncertain = "" if error is None else f" (standard error {error:.4f} {folds})"
    return [
        f"{title}: {compared.metric} {compared.metric_gain:+.4f}{uncertain}, above 0 is better",
        f"{title}: accuracy {points}",
    ]


def _scores(row: "EnsembleRow", own_column: bool) -> tuple[str, ...]:
    values = (row.accuracy, *((row.metric,) if own_column else ()), row.loss)
    return tuple(f"{value:.4f}" for value in values)
