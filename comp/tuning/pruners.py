"""What ends trials that look bad: the rows of `tune.pruner`."""

import inspect
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import optuna

from comp.config import Config, space
from comp.runtime.errors import ConfigError, unknown
from comp.tuning import objectives

BUDGET_STEPS = 10  # a training with a time budget is judged at every tenth of it
_FOLDS_WILCOXON = 3  # two pairs can never differ significantly


def _median(args: dict[str, Any], steps: int) -> Any:
    return optuna.pruners.MedianPruner(**args)


def _hyperband(args: dict[str, Any], steps: int) -> Any:
    return optuna.pruners.HyperbandPruner(**{"max_resource": max(2, steps), **args})


def _successive_halving(args: dict[str, Any], steps: int) -> Any:
    return optuna.pruners.SuccessiveHalvingPruner(**{"min_resource": 1, **args})


def _patient(args: dict[str, Any], steps: int) -> Any:
    own = {key: args.pop(key) for key in ("patience", "min_delta") if key in args}
    return optuna.pruners.PatientPruner(optuna.pruners.MedianPruner(**args), **{"patience": 2, **own})


def _wilcoxon(args: dict[str, Any], steps: int) -> Any:
    return optuna.pruners.WilcoxonPruner(**args)


def _none(args: dict[str, Any], steps: int) -> Any:
    return optuna.pruners.NopPruner(**args)


PRUNERS: dict[str, Callable[[dict[str, Any], int], Any]] = {
    "median": _median,  # below the median of earlier trials at the same step (Golovin et al. 2017)
    "hyperband": _hyperband,  # Li et al. 2018
    "successive_halving": _successive_halving,  # asynchronous (Li et al. 2020)
    "patient": _patient,  # median, but only trials that have stopped getting better
    "wilcoxon": _wilcoxon,  # signed-rank test against the best trial, fold by fold
    "none": _none,
}


def check_name(config: Config) -> None:
    """Check `tune.pruner` where nothing is tuned yet.

    Raises:
        ConfigError: an unknown name.
    """
    if config.tune.pruner not in PRUNERS:
        raise ConfigError(f"tune.pruner: {unknown('pruner', config.tune.pruner, PRUNERS)}")


def pruner(config: Config) -> Any:
    """Return Optuna's pruner.

    Raises:
        ConfigError: an unknown name or argument, or one that cannot watch what is optimised.
    """
    check_name(config)
    name = config.tune.pruner
    if config.tune.folds == "all" and not config.data.folds:
        raise ConfigError("tune.folds: all: a trial trains all of data.folds, and that is not set; set data.folds=5")
    if name != "none":
        _check_watched(config, name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        try:
            return PRUNERS[name](dict(config.tune.pruner_args), steps(config))
        except (TypeError, ValueError) as error:
            known = _arguments(name)
            raise ConfigError(f"tune.pruner_args: {name}: {error}; it takes {', '.join(known)}") from None


def steps(config: Config) -> int:
    """Return how many times a whole trial reports: epochs, tenths of a budget, or folds."""
    if config.tune.folds == "all":
        return config.data.folds or 1
    if config.train.budget:
        return BUDGET_STEPS
    tuned = [entry for entry in space.parse_space(config.tune) if entry.path == "train.epochs"]
    return int(max(max(entry.representatives()) for entry in tuned)) if tuned else config.train.epochs


def _check_watched(config: Config, name: str) -> None:
    wanted = objectives.names(config)
    if len(wanted) > 1:
        raise ConfigError(
            f"tune.pruner: {name} cannot prune by {' and '.join(wanted)}: no order says which of two trials is behind "
            "(Optuna neither reports nor prunes with several metrics); set tune.pruner=none"
        )
    (objective,) = objectives.chosen(config)
    if objective.of_epoch is None:
        raise ConfigError(f"tune.pruner: {name} watches epochs, and {wanted[0]} is of whole trainings; use none")
    if config.tune.folds == "all":
        if name == "wilcoxon" and steps(config) < _FOLDS_WILCOXON:
            raise ConfigError(
                f"tune.pruner: wilcoxon needs {_FOLDS_WILCOXON} folds or more, found {config.data.folds}: fewer pairs "
                "never differ significantly; set data.folds=5"
            )
        return
    if name == "wilcoxon":
        raise ConfigError("tune.pruner: wilcoxon compares trials fold by fold; set tune.folds=all and data.folds=5")
    if wanted[0].startswith("ood_") and config.competition.ood_validation.every == "end":
        raise ConfigError(
            f"tune.pruner: {name} watches epochs, and {wanted[0]} is measured at the end; set "
            "competition.ood_validation.every=1, or tune.pruner=none"
        )


def _arguments(name: str) -> list[str]:
    kinds: Mapping[str, list[Any]] = {
        "median": [optuna.pruners.MedianPruner],
        "hyperband": [optuna.pruners.HyperbandPruner],
        "successive_halving": [optuna.pruners.SuccessiveHalvingPruner],
        "patient": [optuna.pruners.PatientPruner, optuna.pruners.MedianPruner],
        "wilcoxon": [optuna.pruners.WilcoxonPruner],
        "none": [],
    }
    found = [parameter for kind in kinds[name] for parameter in inspect.signature(kind).parameters]
    return [parameter for parameter in found if parameter != "wrapped_pruner"] or ["nothing"]
