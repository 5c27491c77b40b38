"""What trials are compared by."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from comp import metrics
from comp.config import Config
from comp.errors import ConfigError, unknown

if TYPE_CHECKING:
    from comp.training.fit import Epoch


@dataclass(frozen=True)
class Objective:
    """A value of a trained run, and of its epochs where it has one.

    Attributes:
        of_run: from metrics.json, of the weights that predict; None where it was not measured.
        of_epoch: from an epoch's end; None: only whole trainings have it, so that nothing can be pruned by it.
        more_is_better: whether it is maximised under a config.
    """

    of_run: Callable[[Mapping[str, Any]], float | None]
    of_epoch: Callable[["Epoch"], float | None] | None
    more_is_better: Callable[[Config], bool]


def _score(split: str, name: str) -> Callable[[Mapping[str, Any]], float | None]:
    def of_run(scores: Mapping[str, Any]) -> float | None:
        found: float | None = (scores["best"] or scores["final"]).get(split, {}).get(name)
        return found

    return of_run


def _metric_up(config: Config) -> bool:
    return metrics.metric(config.competition.metric).value_up(1.0) > 0


OBJECTIVES = {
    "val_accuracy": Objective(_score("val", "accuracy"), lambda epoch: epoch.val_accuracy, lambda config: True),
    "val_loss": Objective(_score("val", "loss"), lambda epoch: epoch.val_loss, lambda config: False),
    "val_metric": Objective(_score("val", "metric"), lambda epoch: epoch.val_metric, _metric_up),
    "ood_accuracy": Objective(_score("ood_val", "accuracy"), lambda epoch: epoch.ood_accuracy, lambda config: True),
    "train_seconds": Objective(lambda scores: scores["train_seconds"], None, lambda config: False),
    "parameters": Objective(lambda scores: scores["parameters"], None, lambda config: False),
}


def names(config: Config) -> tuple[str, ...]:
    """Return the names of what is optimised, the one that ranks trials first."""
    return (config.tune.metric,) if isinstance(config.tune.metric, str) else config.tune.metric


def chosen(config: Config) -> list[Objective]:
    """Return what is optimised, the one that ranks trials first.

    Raises:
        ConfigError: an unknown name, a name twice, or none; or these data never measure it.
    """
    wanted = names(config)
    for name in wanted:
        if name not in OBJECTIVES:
            raise ConfigError(f"tune.metric: {unknown('metric', name, OBJECTIVES)}")
    if not wanted or len(set(wanted)) < len(wanted):
        raise ConfigError(f"tune.metric: expected different metrics, found {', '.join(wanted) or 'none'}")
    validated = config.data.validation != "none" or config.data.folds is not None
    shifted = validated and bool(config.competition.ood_validation.severities)
    for name in wanted:
        if name.startswith("val_") and not validated:
            raise ConfigError(f"tune.metric: {name} is of a validation split, and data.validation is none")
        if name == "ood_accuracy" and not shifted:
            raise ConfigError(
                "tune.metric: ood_accuracy is of shifted validation, and there is none: set data.validation and "
                "competition.ood_validation.severities"
            )
    return [OBJECTIVES[name] for name in wanted]


def values_of(config: Config, scores: Mapping[str, Any]) -> list[float]:
    """Return the values of a run's metrics.json that a study compares."""
    found = [objective.of_run(scores) for objective in chosen(config)]
    assert all(value is not None for value in found), scores
    return [float(value) for value in found if value is not None]
