"""`comp config show`, `check` and `schema`."""

import json

from comp.verbs.options import RUNS, ConfigPath, Overrides, RunsRoot


def show(config: ConfigPath, overrides: Overrides = None) -> None:
    """Print a config with every default filled in.

    Example: comp config show configs/quickstart.yaml train.epochs=3
    """
    from comp import config as configs

    print(configs.dump(configs.load(config, overrides or [])), end="")


def check(config: ConfigPath, overrides: Overrides = None, runs: RunsRoot = RUNS) -> None:
    """Check a config's keys, types, names and rules.

    Example: comp config check configs/quickstart.yaml
    """
    from comp import config as configs
    from comp import console, pipeline
    from comp.tuning import objectives, pruners, samplers

    loaded = configs.load(config, overrides or [])
    pipeline.check(loaded, runs)
    objectives.check_names(loaded)
    pruners.check_name(loaded)
    samplers.sampler(loaded, 0)
    console.print_line(f"{config}: good (config hash {configs.fingerprint(loaded)})")


def schema() -> None:
    """Print the JSON schema of a config file, for editors.

    Example: comp config schema > comp.schema.json
    """
    from comp import config as configs

    print(json.dumps(configs.schema(), indent=2))
