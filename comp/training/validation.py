"""What an epoch's end measures, and what the best weights are chosen by."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import nn

from comp import metrics
from comp.competition.spec import DISTORTIONS
from comp.config import Config
from comp.data.dataset import Dataset
from comp.device import Execution
from comp.errors import ConfigError
from comp.inference.predict import predict
from comp.progress import Progress


@dataclass(frozen=True)
class Scores:
    """Of the weights at an epoch's end; all None without a validation split.

    Attributes:
        loss: of clean validation.
        accuracy: likewise.
        metric: likewise, the competition's own.
        ood_accuracy: mean over the blocks of shifted validation; None in epochs that do not measure it.
        ood_by_severity: severity -> mean over its blocks; empty likewise.
    """

    loss: float | None = None
    accuracy: float | None = None
    metric: float | None = None
    ood_accuracy: float | None = None
    ood_by_severity: Mapping[str, float] = field(default_factory=dict)


# train.select -> what the epoch's end measured of it.
SELECTIONS: dict[str, Callable[[Scores], float | None]] = {
    "val_accuracy": lambda scores: scores.accuracy,
    "val_loss": lambda scores: scores.loss,
    "val_metric": lambda scores: scores.metric,
    "ood_accuracy": lambda scores: scores.ood_accuracy,
}


def check(config: Config) -> None:
    """Refuse to measure or select by what will never be there.

    Raises:
        ConfigError: naming the setting and how to mend it.
    """
    wanted = config.competition.ood_validation
    if wanted.every != "end" and config.data.validation == "none":
        raise ConfigError("competition.ood_validation.every: needs a validation split, and data.validation is none")
    if wanted.every != "end" and not wanted.severities:
        raise ConfigError("competition.ood_validation.every: needs severities, and there are none; give some or `end`")
    if config.train.select == "ood_accuracy" and wanted.every == "end":
        raise ConfigError(
            "train.select: ood_accuracy is measured at the end alone; set competition.ood_validation.every to a number "
            "of epochs, such as 1"
        )
    for name in ("patience", "overfit_patience"):
        if getattr(config.train, name) is not None and config.data.validation == "none":
            raise ConfigError(f"train.{name}: watches a validation split, and data.validation is none; leave it out")


def validate(
    model: nn.Module,
    dataset: Dataset,
    execution: Execution,
    config: Config,
    number: int,
    progress: Progress,
    *,
    last: bool,
) -> Scores:
    """Score the model at the end of epoch `number` (from 1): on clean validation, and on shifted where it is due."""
    if dataset.val is None:
        return Scores()
    classes, batch_size = dataset.competition.classes, config.predict.batch_size
    found = predict(
        model, dataset.val, classes=classes, execution=execution, batch_size=batch_size, made_by={}, progress=progress
    )
    clean = metrics.summary(found, config.competition.metric)
    shifted, by_severity = None, {}
    if dataset.ood_val is not None and _is_due(config, number, last=last):
        found = predict(
            model, dataset.ood_val, classes=classes, execution=execution, batch_size=batch_size, made_by={},
            progress=progress,
        )  # fmt: skip
        scores = metrics.shifted_summary(found, DISTORTIONS, config.competition.metric)
        shifted, by_severity = scores["accuracy"], scores["by_severity"]
    return Scores(clean["loss"], clean["accuracy"], clean["metric"], shifted, by_severity)


def selected(scores: Scores, config: Config) -> float | None:
    """Return what `train.select` compares, more being better; None where this epoch did not measure it."""
    value = SELECTIONS[config.train.select](scores)
    return None if value is None else upward(value, config)


def upward(value: float, config: Config) -> float:
    """Return a value of `train.select` with its sign turned where less is better: more is always better."""
    if config.train.select == "val_loss":
        return -value
    if config.train.select == "val_metric":
        return metrics.metric(config.competition.metric).value_up(value)
    return value


def images(dataset: Dataset, config: Config, number: int, *, last: bool) -> int:
    """Return how many images `validate` looks at, at the end of an epoch."""
    shifted = len(dataset.ood_val or ()) if _is_due(config, number, last=last) else 0
    return len(dataset.val or ()) + shifted


def _is_due(config: Config, number: int, *, last: bool) -> bool:
    every = config.competition.ood_validation.every
    # After the last epoch too: a selection should see the weights that the schedule led to.
    return every != "end" and (number % every == 0 or last)
