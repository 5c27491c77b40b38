"""Pruners stop trials that look bad: the rows of `tune.pruner`."""

import inspect
import warnings
from collections.abc import Mapping
from typing import Any

import optuna
from optuna.pruners import (
    HyperbandPruner,
    MedianPruner,
    NopPruner,
    PatientPruner,
    SuccessiveHalvingPruner,
    WilcoxonPruner,
)

from comp.config import Config, space
from comp.config.section import check_numbers
from comp.runtime.errors import ConfigError, unknown
from comp.tuning import objectives

BUDGET_STEPS = 10  # a training with a time budget is judged at every tenth of it
_LARGEST = 10**6  # of a pruner's arguments
_MIN_WILCOXON_FOLDS = 3  # two pairs never differ significantly

# Name -> Optuna's class and its arguments here.
PRUNERS: dict[str, tuple[type[Any], Mapping[str, Any]]] = {
    "median": (MedianPruner, {}),
    "hyperband": (HyperbandPruner, {}),
    "successive_halving": (SuccessiveHalvingPruner, {"min_resource": 1}),
    "patient": (PatientPruner, {"patience": 2}),
    "wilcoxon": (WilcoxonPruner, {}),
    "none": (NopPruner, {}),
}
"""What each row is:

median: Stop a trial below the median of earlier trials at the same step (Golovin et al. 2017, Vizier).
hyperband: Several rounds of successive halving; `max_resource` is the number of steps (Li et al. 2018,
    arXiv:1603.06560).
successive_halving: Only the best of each round go on, asynchronously (Li et al. 2020, arXiv:1810.05934).
patient: `median`, but only for trials that no longer improve.
wilcoxon: A signed-rank test against the best trial, fold by fold; needs `tune.folds=all` (Wilcoxon 1945).
none: Every trial runs to its end.
"""


def check_name(config: Config) -> None:
    """Check the name in `tune.pruner`.

    Raises:
        ConfigError: the name is unknown.
    """
    if config.tune.pruner not in PRUNERS:
        raise ConfigError(f"tune.pruner: {unknown('pruner', config.tune.pruner, PRUNERS)}")


def pruner(config: Config) -> Any:
    """Return Optuna's pruner.

    Raises:
        ConfigError: a name or argument is unknown, or the pruner cannot watch the objectives.
    """
    check_name(config)
    name = config.tune.pruner
    if config.tune.folds == "all" and not config.data.folds:
        raise ConfigError("tune.folds: all: a trial trains all of data.folds, and that is not set; set data.folds=5")
    if name != "none":
        _check_objectives(config, name)
    check_numbers(config.tune.pruner_args, "tune.pruner_args", 0, _LARGEST)
    kind, defaults = PRUNERS[name]
    args = {**defaults, **config.tune.pruner_args}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        try:
            if kind is HyperbandPruner:
                args = {"max_resource": max(2, steps(config)), **args}
            if kind is PatientPruner:
                own_args = {key: args.pop(key) for key in ("patience", "min_delta") if key in args}
                return PatientPruner(MedianPruner(**args), **own_args)
            return kind(**args)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"tune.pruner_args: {name}: {error}; it takes {_argument_names(name)}") from None


def steps(config: Config) -> int:
    """Return how many times a complete trial reports: epochs, tenths of a budget, or folds."""
    if config.tune.folds == "all":
        return config.data.folds or 1
    if config.train.budget:
        return BUDGET_STEPS
    tuned = [entry for entry in space.parse_space(config.tune) if entry.path == "train.epochs"]
    return int(max(max(entry.representatives()) for entry in tuned)) if tuned else config.train.epochs


def _check_objectives(config: Config, name: str) -> None:
    metrics = objectives.names(config)
    if len(metrics) > 1:
        raise ConfigError(
            f"tune.pruner: {name} cannot prune by {' and '.join(metrics)}, because several metrics do not order two "
            "trials (Optuna neither reports nor prunes with them); set tune.pruner=none"
        )
    (objective,) = objectives.chosen(config)
    if objective.of_epoch is None:
        raise ConfigError(
            f"tune.pruner: {name} watches epochs, and only complete trainings have {metrics[0]}; set tune.pruner=none"
        )
    if config.tune.folds == "all":
        if name == "wilcoxon" and steps(config) < _MIN_WILCOXON_FOLDS:
            raise ConfigError(
                f"tune.pruner: wilcoxon needs {_MIN_WILCOXON_FOLDS} folds or more, found {config.data.folds}: fewer "
                "pairs never differ significantly; set data.folds=5"
            )
        return
    if name == "wilcoxon":
        raise ConfigError("tune.pruner: wilcoxon compares trials fold by fold; set tune.folds=all and data.folds=5")
    if metrics[0].startswith("ood_") and config.competition.ood_validation.every == "end":
        raise ConfigError(
            f"tune.pruner: {name} watches epochs, and {metrics[0]} is measured at the end; set "
            "competition.ood_validation.every=1, or tune.pruner=none"
        )


def _argument_names(name: str) -> str:
    kinds: list[Any] = {"patient": [PatientPruner, MedianPruner], "none": []}.get(name, [PRUNERS[name][0]])
    names = [parameter for kind in kinds for parameter in inspect.signature(kind).parameters]
    return ", ".join(name for name in names if name != "wrapped_pruner") or "nothing"
