"""`comp tune`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from comp.cli.commands.options import RUNS, AsJson, MaybeConfig, Overrides, RunsRoot

if TYPE_CHECKING:
    from comp.config import Config


def tune(
    config: MaybeConfig = None,
    overrides: Overrides = None,
    *,
    trials: Annotated[int | None, typer.Option(min=1, help="Of the study in all, however often continued.")] = None,
    timeout: Annotated[str | None, typer.Option(help="No trial begins after 90s, 15min, 2h.")] = None,
    storage: Annotated[str | None, typer.Option(metavar="URL", help="sqlite, journal or postgresql; see docs.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Trainings at a time, in processes of their own.")] = 1,
    study: Annotated[str | None, typer.Option(metavar="NAME", help="By default the config file's name.")] = None,
    metric: Annotated[str | None, typer.Option(help="val_metric, ood_metric, ...; several with commas.")] = None,
    show: Annotated[str | None, typer.Option("--show", metavar="STUDY", help="Show a study; train nothing.")] = None,
    runs: RunsRoot = RUNS,
    as_json: AsJson = False,
) -> None:
    """Search a config's tune.space, train the best again with new seeds, and write best.yaml; the same command goes on.

    Example: comp tune configs/quickstart-tune.yaml --trials 30
    """
    from comp import config as configs
    from comp.cli import console

    given = {"trials": trials, "timeout": timeout, "study": study, "metric": metric}
    if show is not None:
        from comp.runtime.errors import ConfigError
        from comp.tuning import showing

        asked = {"CONFIG": config, **{f"--{name}": value for name, value in given.items()}}
        several = [name for name, value in asked.items() if value is not None] + ["--workers"] * (workers > 1)
        if several:
            raise ConfigError(f"--show trains nothing, so {', '.join(several)} would change nothing; leave it out")

        found = showing.show(show, runs_root=runs, storage=storage or "")
    else:
        from comp.training import distributed
        from comp.tuning import search

        distributed.refuse("comp tune")
        with configs.naming_overrides(overrides or []), console.bars() as progress:
            loaded, name = _load(config, overrides, {**given, "storage": storage})
            found = search.tune(
                loaded, name=name, runs_root=runs, workers=workers, on_trial=console.print_trial, progress=progress
            )
    console.print_json(found.to_json()) if as_json else console.print_study(found)


def _load(config: Path | None, overrides: list[str] | None, given: dict[str, str | int | None]) -> "tuple[Config, str]":
    """Return the config with the options laid on its section `tune`, and the study's name where it has none."""
    import json

    from comp import config as configs
    from comp.runtime.errors import ConfigError

    if config is None:
        raise ConfigError("name a config with a tune.space: comp tune configs/quickstart-tune.yaml")
    values: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if "," in values.get("metric", ""):
        values["metric"] = [name.strip() for name in values["metric"].split(",")]
    laid_on = [f"tune.{name}={json.dumps(value)}" for name, value in values.items()]  # a study may be named 7
    return configs.load(config, [*(overrides or []), *laid_on]), config.stem
