"""`comp tune`."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from comp.cli.commands.options import RUNS, AllowPlugins, AsJson, MaybeConfig, Overrides, RunsRoot, load_with_plugins

if TYPE_CHECKING:
    from comp.config import Config


def tune(
    config: MaybeConfig = None,
    overrides: Overrides = None,
    *,
    trials: Annotated[int | None, typer.Option(min=1, help="Trials of the study in total.")] = None,
    timeout: Annotated[str | None, typer.Option(help="Start no trial after this time: 90s, 15min, 2h.")] = None,
    storage: Annotated[
        str | None, typer.Option(metavar="URL", help="Study storage: sqlite, journal or postgresql.")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Parallel trainings, each in its own process.")] = 1,
    study: Annotated[
        str | None, typer.Option(metavar="NAME", help="Study name. Default: the config file's name.")
    ] = None,
    metric: Annotated[
        str | None, typer.Option(help="Optimize val_metric, ood_metric, ...; separate several by commas.")
    ] = None,
    show: Annotated[str | None, typer.Option("--show", metavar="STUDY", help="Print a study; train nothing.")] = None,
    runs: RunsRoot = RUNS,
    allow_plugins: AllowPlugins = False,
    as_json: AsJson = False,
) -> None:
    """Search a config's tune.space for the best settings.

    Then trains the best trials again with new seeds and writes best.yaml. Run the
    same command to continue a study.

    Example: comp tune configs/quickstart-tune.yaml --trials 30
    """
    from comp import config as configs
    from comp.cli import console

    options = {"trials": trials, "timeout": timeout, "study": study, "metric": metric}
    if show is not None:
        from comp.runtime.errors import ConfigError
        from comp.tuning import results

        named = {"CONFIG": config, **{f"--{name}": value for name, value in options.items()}}
        ignored = [name for name, value in named.items() if value is not None] + ["--workers"] * (workers > 1)
        if ignored:
            raise ConfigError(f"--show trains nothing, so {', '.join(ignored)} would change nothing; leave it out")

        study_result = results.load_report(show, runs_root=runs, storage=storage or "")
    else:
        from comp.training import distributed
        from comp.tuning import search

        distributed.check_single_process("comp tune")
        with configs.naming_overrides(overrides or []), console.bars() as progress:
            loaded, name = _load(config, overrides, {**options, "storage": storage}, allow_plugins)
            study_result = search.tune(
                loaded,
                name=name,
                runs_root=runs,
                workers=workers,
                on_start=lambda plan: console.print_watch(runs, plan.url),
                on_trial=console.print_trial,
                progress=progress,
            )
    if as_json:
        console.print_json(study_result.to_json())
        return
    console.print_study(study_result)
    unfinished = study_result.interrupted or not study_result.best
    console.print_next(*shlex.split(study_result.command)[1:] if unfinished else ("run", study_result.best))


def _load(
    config: Path | None, overrides: list[str] | None, options: dict[str, str | int | None], allow_plugins: bool
) -> "tuple[Config, str]":
    """Return the config with the options in its section `tune`, and a name for a study without one."""
    import json

    from comp.runtime.errors import ConfigError

    if config is None:
        raise ConfigError("name a config with a tune.space: comp tune configs/quickstart-tune.yaml")
    values: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    if "," in values.get("metric", ""):
        values["metric"] = [name.strip() for name in values["metric"].split(",")]
    tune_overrides = [f"tune.{name}={json.dumps(value)}" for name, value in values.items()]  # a study may be named 7
    return load_with_plugins(config, [*(overrides or []), *tune_overrides], allow=allow_plugins), config.stem
