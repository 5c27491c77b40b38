"""Validation at an epoch's end."""

from dataclasses import dataclass, replace

from torch import nn

from comp.config import Config
from comp.data.dataset import Dataset
from comp.data.splits import Split, Suite
from comp.inference.predict import predict
from comp.results import decisions, metrics
from comp.results.blocks import DISTORTIONS
from comp.results.predictions import Predictions
from comp.runtime.device import Execution
from comp.runtime.errors import ConfigError
from comp.runtime.progress import Progress
from comp.training.selection import Scores, is_validated


@dataclass(frozen=True)
class Measured:
    """What `validate` finds.

    Attributes:
        scores: of the model.
        val: its plain predictions of clean validation, decided by no threshold; None without validation.
        ood_val: likewise of shifted validation; None where it was not due.
    """

    scores: Scores
    val: Predictions | None = None
    ood_val: Predictions | None = None


def check_validation(config: Config) -> None:
    """Refuse to measure or select by what will never be there.

    Raises:
        ConfigError: naming the setting and how to mend it.
    """
    shifted = config.competition.ood_validation
    if config.train.select in ("ood_accuracy", "ood_metric") and not shifted.severities:
        raise ConfigError(
            f"train.select: {config.train.select} is of shifted validation, and competition.ood_validation.severities "
            "is empty; give some, such as [1, 3, 5], or set train.select=val_metric"
        )
    if shifted.every != "end" and not is_validated(config):
        raise ConfigError("competition.ood_validation.every: needs a validation split, and data.validation is none")
    if shifted.every != "end" and not shifted.severities:
        raise ConfigError("competition.ood_validation.every: needs severities, and there are none; give some or `end`")
    if config.train.select in ("ood_accuracy", "ood_metric") and shifted.every == "end":
        raise ConfigError(
            f"train.select: {config.train.select} is measured at the end alone; set competition.ood_validation.every "
            "to a number of epochs, such as 1"
        )
    for name in ("patience", "overfit_patience"):
        if getattr(config.train, name) is not None and not is_validated(config):
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
) -> Measured:
    """Score the model at the end of epoch `number` (from 1): on clean validation, and on shifted where it is due.

    Where decisions need thresholds, clean validation is scored with cross-fitted ones, and shifted validation with
    those tuned on all of clean validation, as a submission is decided.
    """
    if dataset.val is None:
        return Measured(Scores())
    metric = dataset.competition.metric

    def predicted(images: Split | Suite) -> Predictions:
        return predict(
            model, images, classes=dataset.competition.classes, task=dataset.competition.task, execution=execution,
            batch_size=config.predict.batch_size, made_by={}, progress=progress,
        )  # fmt: skip

    val = predicted(dataset.val)
    clean = metrics.summarize(decisions.prepare_for_scoring(val, metric), metric)
    scores = Scores(clean.log_loss, clean.accuracy, clean.value(metric))
    if dataset.ood_val is None or not _is_due(config, number, last=last):
        return Measured(scores, val)
    ood_val = predicted(dataset.ood_val)
    thresholds = decisions.tune_thresholds(val, metric) if decisions.needs_thresholds(val, metric) else None
    shifted = metrics.summarize_blocks(replace(ood_val, thresholds=thresholds), DISTORTIONS, metric)
    scores = replace(
        scores, ood_accuracy=shifted.accuracy, ood_metric=shifted.value(metric), ood_by_severity=shifted.by_severity
    )
    return Measured(scores, val, ood_val)


def images(dataset: Dataset, config: Config, number: int, *, last: bool) -> int:
    """Return how many images `validate` looks at, at the end of an epoch."""
    shifted = len(dataset.ood_val or ()) if _is_due(config, number, last=last) else 0
    return len(dataset.val or ()) + shifted


def _is_due(config: Config, number: int, *, last: bool) -> bool:
    every = config.competition.ood_validation.every
    # After the last epoch too: a selection should see the weights that the schedule led to.
    return every != "end" and (number % every == 0 or last)
