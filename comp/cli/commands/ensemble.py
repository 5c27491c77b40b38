"""`comp ensemble`."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from comp.cli.commands.options import (
    RUNS,
    Adapt,
    AdaptPer,
    AllowPlugins,
    Alpha,
    AsJson,
    Force,
    Name,
    Output,
    RunsRoot,
    Views,
    ViewsFor,
    open_runs,
)

if TYPE_CHECKING:
    from comp.ensembles.cross_fit import Comparison, EnsembleRow
    from comp.results.runs import Run


def ensemble(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN... [KEY=VALUE]",
            help="Two or more runs; ensembles too. If their data have moved: data.root=DIR.",
        ),
    ],
    method: Annotated[
        str,
        typer.Option(help="mean, geometric, rank, weighted, greedy or stack (of predictions), or soup (of weights)."),
    ] = "mean",
    select_on: Annotated[
        str | None,
        typer.Option("--select-on", help="Fit member weights on val or ood_val. Default: ood_val if there is one."),
    ] = None,
    folds: Annotated[int | None, typer.Option(min=2, help="Folds of the cross-fitted scores. Default: 5.")] = None,
    views: Views = None,
    views_for: ViewsFor = None,
    adapt: Adapt = None,
    adapt_per: AdaptPer = None,
    alpha: Alpha = None,
    name: Name = None,
    output: Output = None,
    force: Force = False,
    runs: RunsRoot = RUNS,
    allow_plugins: AllowPlugins = False,
    as_json: AsJson = False,
) -> None:
    """Combine runs into one that is scored and submitted.

    Example: comp ensemble runs/quickstart/20260101-120000-quickstart runs/quickstart/20260101-130000-quickstart
    """
    from comp.cli import console
    from comp.ensembles import combine, soup
    from comp.runtime.errors import ConfigError

    if method == "soup" and folds is not None:
        raise ConfigError("--folds: a soup is one set of weights and is not fitted on folds; leave it out")
    overrides = {"views": views, "views_for": views_for, "adapt": adapt, "adapt_per": adapt_per, "alpha": alpha}
    trained = open_runs(words, allow_plugins=allow_plugins)
    with console.bars() as progress:
        shared: dict[str, Any] = {
            "select_on": select_on,
            "overrides": overrides,
            "name": name or "",
            "runs_root": runs,
            "output": output,
            "force": force,
            "progress": progress,
        }
        if method == "soup":
            result = soup.soup(trained, **shared)
        else:
            result = combine.ensemble(trained, method=method, folds=folds, **shared)
    if as_json:
        console.print_run_json(result)
        return
    _print_gain(result)
    console.print_summary(result, result.metrics())
    written = result.metrics().submission
    console.print_next(*("check", written) if written else ("report", result.path))


def _print_gain(result: "Run") -> None:
    """Print the members, how often they disagree, and the ensemble's gain over the best of them."""
    from comp.cli import console
    from comp.ensembles import combine

    if note := (result.metrics().ensemble or {}).get("note"):
        console.print_text(note)
    compared = combine.read_comparison(result)
    if compared is None:
        return
    metric_column = compared.metric not in ("accuracy", "log_loss")
    numeric = compared.ensemble.accuracy is None
    columns: tuple[str, ...] = ("accuracy", *((compared.metric,) if metric_column else ()), "log_loss")
    columns = (compared.metric,) if numeric else columns
    numbers = range(1, len(compared.members) + 1)
    rows: list[tuple[str, ...]] = []
    for number, row in enumerate(compared.members, 1):
        weight = "" if row.weight is None else f"{row.weight:.3f}"
        shares = [f"{share:.3f}" for share in compared.disagreement[number - 1]]
        rows.append((f"{number} {row.name.rpartition('/')[2]}", weight, *_scores(row, metric_column), *shares))
    held_out = {"best single": compared.best_single, "ensemble": compared.ensemble}
    blank = ("",) * len(compared.members)
    rows += [(f"{name}, held-out folds", "", *_scores(row, metric_column), *blank) for name, row in held_out.items()]
    differs = "1 - correlation with member n" if numeric else "share of rows that differ from member n"
    title = f"{compared.split}: {compared.images:,} rows; ≠n: {differs}"
    differing = [f"≠{number}" for number in numbers]
    heads = ("member", "weight", *columns, *differing)
    console.print_table(heads, rows, title=title, shortened={"member": 24}, drop=[*reversed(differing), "weight"])
    for line in _gains(compared) if len(compared.members) > 1 else ():
        console.print_text(line)


def _gains(compared: "Comparison") -> list[str]:
    """Return the ensemble's gain in accuracy, and in the competition's metric if it is another."""
    title, folds = "gain over the best single member", f"over {compared.folds} folds"
    points = f"{100 * compared.gain:+.2f} points (standard error {100 * compared.gain_error:.2f} {folds})"
    if compared.metric == "accuracy":
        return [f"{title}: {points}"]
    gain, error = compared.metric_gain, compared.metric_gain_error
    uncertain = "" if error is None else f" (standard error {error:.4f} {folds})"
    value = "undefined on these images" if gain is None else f"{gain:+.4f}{uncertain}, above 0 is better"
    gained = f"{title}: {compared.metric} {value}"
    return [gained] if compared.ensemble.accuracy is None else [gained, f"{title}: accuracy {points}"]


def _scores(row: "EnsembleRow", metric_column: bool) -> tuple[str, ...]:
    metric = ("-" if row.metric is None else f"{row.metric:.4f}",) if metric_column else ()
    accuracy, loss = ((f"{value:.4f}",) if value is not None else () for value in (row.accuracy, row.loss))
    return (*accuracy, *metric, *loss)
