"""Objectives: the metrics by which trials are compared."""

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
    """A value of a trained run and, for some, of its epochs.

    Attributes:
        of_run: reads it from metrics.json, for the weights that predict; None if it was not measured.
        of_epoch: reads it from an epoch; None: only complete trainings have it, so it cannot prune.
        higher_is_better: whether a config maximises it.
    """

    of_run: Callable[[RunMetrics], float | None]
    of_epoch: Callable[["Epoch"], float | None] | None
    higher_is_better: Callable[[Config], bool]


def _score(split: str, name: str = "") -> Callable[[RunMetrics], float | None]:
    """Return the reader of a split's score by a metric, by default the competition's."""

    def of_run(metrics: RunMetrics) -> float | None:
        scores = metrics.best_or_final.val if split == "val" else metrics.best_or_final.ood_val
        return scores.value(name or metrics.metric) if scores else None

    return of_run


def _metric_direction(config: Config) -> bool:
    # `auto` is a task's first metric, and higher is better for each of them.
    return config.competition.metric == "auto" or metrics.metric(config.competition.metric).higher_is_better


OBJECTIVES = {
    "val_metric": Objective(_score("val"), lambda epoch: epoch.val_metric, _metric_direction),
    "val_accuracy": Objective(_score("val", "accuracy"), lambda epoch: epoch.val_accuracy, lambda _: True),
    "val_loss": Objective(_score("val", "log_loss"), lambda epoch: epoch.val_loss, lambda _: False),
    "ood_metric": Objective(_score("ood_val"), lambda epoch: epoch.ood_metric, _metric_direction),
    "ood_accuracy": Objective(_score("ood_val", "accuracy"), lambda epoch: epoch.ood_accuracy, lambda _: True),
    "train_seconds": Objective(lambda metrics: metrics.train_seconds, None, lambda _: False),
    "parameters": Objective(lambda metrics: metrics.parameters, None, lambda _: False),
}
"""What each row is:

val_metric: The competition's metric on validation.
val_accuracy: Accuracy on validation.
val_loss: Log loss on validation; lower is better.
ood_metric: The competition's metric on shifted validation.
ood_accuracy: Accuracy on shifted validation.
train_seconds: Time of the training; lower is better.
parameters: Number of the network's parameters; lower is better.
"""


def names(config: Config) -> tuple[str, ...]:
    """Return the names of the optimised metrics; the first ranks trials."""
    listed = (config.tune.metric,) if isinstance(config.tune.metric, str) else config.tune.metric
    return tuple(selection(config) if name == "auto" else name for name in listed)


def check_names(config: Config) -> None:
    """Check the names in `tune.metric`.

    Raises:
        ConfigError: a name is unknown or repeated, or there is none.
    """
    listed = names(config)
    for name in listed:
        if name not in OBJECTIVES:
            raise ConfigError(f"tune.metric: {unknown('metric', name, [*OBJECTIVES, 'auto'])}")
    if not listed or len(set(listed)) < len(listed):
        raise ConfigError(f"tune.metric: expected different metrics, found {', '.join(listed) or 'none'}")


def chosen(config: Config) -> list[Objective]:
    """Return the optimised objectives; the first ranks trials.

    Raises:
        ConfigError: as `check_names`, or the config never measures one of them.
    """
    check_names(config)
    validated = config.data.validation != "none" or config.data.folds is not None
    shifted = validated and bool(config.competition.ood_validation.severities)
    for name in names(config):
        if name.startswith("val_") and not validated:
            raise ConfigError(f"tune.metric: {name} needs a validation split, and data.validation is none")
        if name.startswith("ood_") and not shifted:
            raise ConfigError(
                f"tune.metric: {name} needs shifted validation; set data.validation and "
                "competition.ood_validation.severities"
            )
    return [OBJECTIVES[name] for name in names(config)]


def values_of(config: Config, metrics: RunMetrics) -> list[float]:
    """Return a run's value of each objective.

    Raises:
        ConfigError: its validation leaves one undefined.
    """
    values = [objective.of_run(metrics) for objective in chosen(config)]
    if None in values:
        raise ConfigError(
            f"tune.metric: {names(config)[values.index(None)]}: {metrics.metric} is undefined on the validation of "
            f"{metrics.run}; hold out more (data.validation), or take val_loss"
        )
    return [float(value) for value in values if value is not None]
