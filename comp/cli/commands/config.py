"""`comp config show`, `check`, `explain` and `schema`."""

from typing import Annotated

import typer

from comp.cli.commands import importing
from comp.cli.commands.options import RUNS, AllowPlugins, AsJson, ConfigPath, Overrides, RunsRoot, load_with_plugins


def show(config: ConfigPath, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Print a config with every default filled in.

    Example: comp config show configs/quickstart.yaml train.epochs=3
    """
    from comp import config as configs
    from comp.cli import console
    from comp.config import plugins

    loaded = configs.load(config, overrides or [])
    entries = plugins.beside(loaded.plugins, config.parent)
    shown = loaded.model_copy(update={"plugins": entries})
    if as_json:
        console.print_json(shown.model_dump(mode="json"))
    else:
        print(configs.dump(shown), end="")


def check(
    config: ConfigPath,
    overrides: Overrides = None,
    data: Annotated[bool, typer.Option("--data", help="Also open the data and build the model.")] = False,
    runs: RunsRoot = RUNS,
    allow_plugins: AllowPlugins = False,
    as_json: AsJson = False,
) -> None:
    """Check a config: keys, types, names, ranges and rules.

    Makes every check that `comp run` makes before its first step.

    Example: comp config check configs/quickstart.yaml --data
    """
    with importing():
        from comp import config as configs
        from comp.cli import console
        from comp.tuning import create, objectives, pruners, samplers
        from comp.workflows import build, checks, lineage

    with configs.naming_overrides(overrides or []):
        loaded = load_with_plugins(config, overrides, allow=allow_plugins)
        checks.check_config(loaded, runs)
        objectives.check_names(loaded)
        pruners.check_name(loaded)
        samplers.sampler(loaded, 0)
        if loaded.tune.space:
            create.check_study(loaded)
        if data:
            with console.bars() as progress:
                dataset = build.open_data(loaded, progress)
                console.print_notes(dataset)
                lineage.check_teachers(loaded, dataset, progress)
                build.ready_model(loaded, dataset)
    if as_json:
        console.print_json({"config": str(config), "valid": True, "config_hash": configs.fingerprint(loaded)})
        return
    console.print_line(f"{config}: valid (config hash {configs.fingerprint(loaded)})")
    command = "tune" if loaded.tune.space else "cv" if loaded.data.folds else "run"
    console.print_next(command, config, *(overrides or []))


def explain(
    key: Annotated[str, typer.Argument(metavar="[KEY]", help="A key or a section; all keys if left out.")] = "",
    as_json: AsJson = False,
) -> None:
    """Explain a config key, or all keys of a section.

    Example: comp config explain optim.lr
    """
    from dataclasses import asdict

    from comp.cli import console
    from comp.config import reference

    keys = reference.keys_in(key)
    if as_json:
        console.print_json([asdict(row) for row in keys])
        return
    explained = [reference.explain(row) for row in keys]
    console.print_line("\n\n".join(filter(None, (reference.wrapped(reference.heading(key)), *explained))))


def schema(as_json: AsJson = False) -> None:
    """Print the JSON schema of configs, for your editor.

    Example: comp config schema > comp.schema.json
    """
    from comp import config as configs
    from comp.cli import console

    console.print_json(configs.schema())
