"""`comp cv`."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from comp.cli.commands import importing
from comp.cli.commands.options import (
    RUNS,
    AllowPlugins,
    AsJson,
    ConfigPath,
    Force,
    Name,
    Output,
    Overrides,
    RunsRoot,
    load_with_plugins,
)

if TYPE_CHECKING:
    from comp.results.runs import Run


def cv(
    config: ConfigPath,
    overrides: Overrides = None,
    workers: Annotated[int, typer.Option(min=1, help="Folds that are trained at a time, each in its own process.")] = 1,
    name: Name = None,
    output: Output = None,
    force: Force = False,
    runs: RunsRoot = RUNS,
    allow_plugins: AllowPlugins = False,
    as_json: AsJson = False,
) -> None:
    """Train every fold, score them out of fold, and submit their mean.

    Repeat the command to continue after an interruption: finished folds stay.

    Example: comp cv configs/quickstart.yaml data.folds=3 train.epochs=2
    """
    with importing():
        from comp import config as configs
        from comp.cli import console
        from comp.ensembles.cross_validate import cross_validate

    def print_fold(number: int, run: "Run | None") -> None:
        state = "starts" if run is None else "is complete" if run.is_complete() else "is resumed"
        console.print_note(f"fold {number} {state}{'' if run is None else f': {run.path}'}")

    with configs.naming_overrides(overrides or []), console.bars() as progress:
        loaded = load_with_plugins(config, overrides, allow=allow_plugins)
        result = cross_validate(
            loaded,
            name=name or "",
            runs_root=runs,
            workers=workers,
            output=output,
            force=force,
            progress=progress,
            on_data=console.print_notes,
            on_fold=print_fold,
            on_epoch=console.print_epoch,
        )
    if not result.is_new:
        left = f"its submission is written to {result.written}" if result.written else "nothing is left to do"
        console.print_note(f"{result.result.path}: complete, {left}")
        if output and not result.written:
            console.print_note(f"{output}: is its submission already")
        if name:
            console.print_note(f"note: --name {name} is not used; it names new runs")
    values = result.to_json()
    if as_json:
        console.print_json(values)
        return
    _print_folds(values)
    console.print_decision(result.result.metrics())
    written = values["submission"]
    console.print_next(*("check", written) if written else ("report", values["run"]))


def _print_folds(values: dict[str, Any]) -> None:
    """Print a row for each fold, their mean, and the score of all validation images together."""
    from comp.cli import console
    from comp.ensembles.cross_validate import fold_table

    scores: dict[str, Any] = values["scores"]
    console.print_table(*fold_table(values))
    for name, score in scores.items():
        what = "out of fold" if name == "accuracy" else "mean of the folds"
        if score["interval"]:
            low, high = score["interval"]
            console.print_text(f"{name}, {what}: 95 % interval {low:.4f} to {high:.4f}")
        else:
            few = sum(value is not None for value in score["folds"]) < 2
            why = "fewer than two folds have a score" if few else "all folds have the same score"
            console.print_text(f"{name}, {what}: no interval can be estimated, {why}")
    for fold, reason in {fold: why for score in scores.values() for fold, why in score["undefined"].items()}.items():
        names = ", ".join(name for name, score in scores.items() if fold in score["undefined"])
        console.print_note(f"fold {fold}: {names} undefined, and left out of mean and interval: {reason}")
    console.print_line(f"run         {values['run']}")
    console.print_submission(values["submission"])
