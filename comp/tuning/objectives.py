"""Objectives: what trials are compared by."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from comp.config import Config
from comp.results import metrics
from comp.results.run_metrics import RunMetrics
from comp.runtime.errors import ConfigError, unknown
from comp.training.selection import selection

if TYPE_CHECKING:
    from comp.training.loop import Epoch


@dataclass(frozen=True)
class Objective:
    """A value of a trained run, and of its epochs where it has one.

    Attributes:
        of_run: from metrics.json, of the weights that predict; None where it was not measured.
        of_epoch: from an epoch's end; None: only whole trainings have it, so that nothing can be pruned by it.
        higher_is_better: whether it is maximised under a config.
    """

    of_run: Callable[[RunMetrics], float | None]
    of_epoch: Callable[["Epoch"], float | None] | None
    higher_is_better: Callable[[Config], bool]


def _score(split: str, name: str = "") -> Callable[[RunMetrics], float | None]:
    """Return a score's reader: of a split by a metric's name, the competition's where there is none."""

    def of_run(metrics: RunMetrics) -> float | None:
        scores = metrics.best_or_final.val if split == "val" else metrics.best_or_final.ood_val
        return scores.value(name or metrics.metric) if scores else None

    return of_run


def _metric_direction(config: Config) -> bool:
    # `auto` is a task's first metric, and of all of them higher is better.
    return config.competition.metric == "auto" or metrics.metric(config.competition.metric).higher_is_better


def _higher(config: Config) -> bool:
    return True


def _lower(config: Config) -> bool:
    return False


OBJECTIVES = {
    "val_metric": Objective(_score("val"), lambda epoch: epoch.val_metric, _metric_direction),
    "val_accuracy": Objective(_score("val", "accuracy"), lambda epoch: epoch.val_accuracy, _higher),
    "val_loss": Objective(_score("val", "log_loss"), lambda epoch: epoch.val_loss, _lower),
    "ood_metric": Objective(_score("ood_val"), lambda epoch: epoch.ood_metric, _metric_direction),
    "ood_accuracy": Objective(_score("ood_val", "accuracy"), lambda epoch: epoch.ood_accuracy, _higher),
    "train_seconds": Objective(lambda metrics: metrics.train_seconds, None, _lower),
    "parameters": Objective(lambda metrics: metrics.parameters, None, _lower),
}


def names(config: Config) -> tuple[str, ...]:
    """Return the names of what is optimised, the one that ranks trials first."""
    listed = (config.tune.metric,) if isinstance(config.tune.metric, str) else config.tune.metric
    return tuple(selection(config) if name == "auto" else name for name in listed)


def check_names(config: Config) -> None:
    """Check `tune.metric` where nothing is tuned yet.

    Raises:
        ConfigError: an unknown name, a name twice, or none.
    """
    wanted = names(config)
    for name in wanted:
        if name not in OBJECTIVES:
            raise ConfigError(f"tune.metric: {unknown('metric', name, [*OBJECTIVES, 'auto'])}")
    if not wanted or len(set(wanted)) < len(wanted):
        raise ConfigError(f"tune.metric: expected different metrics, found {', '.join(wanted) or 'none'}")


def chosen(config: Config) -> list[Objective]:
    """Return what is optimised, the one that ranks trials first.

    Raises:
        ConfigError: as `check_names`, or these data never measure it.
    """
    check_names(config)
    wanted = names(config)
    validated = config.data.validation != "none" or config.data.folds is not None
    shifted = validated and bool(config.competition.ood_validation.severities)
    for name in wanted:
        if name.startswith("val_") and not validated:
            raise ConfigError(f"tune.metric: {name} is of a validation split, and data.validation is none")
        if name.startswith("ood_") and not shifted:
            raise ConfigError(
                f"tune.metric: {name} is of shifted validation, and there is none: set data.validation and "
                "competition.ood_validation.severities"
            )
    return [OBJECTIVES[name] for name in wanted]


def values_of(config: Config, metrics: RunMetrics) -> list[float]:
    """Return the values of a run's scores that a study compares."""
    values = [objective.of_run(metrics) for objective in chosen(config)]
    assert all(value is not None for value in values), metrics
    return [float(value) for value in values if value is not None]
