"""Best weights: validate raw and averaged weights at epochs' ends, and keep the best as best.safetensors."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from torch import Tensor, nn

from comp.config import Config
from comp.data.dataset import Dataset
from comp.data.splits import Split, Suite
from comp.inference.predict import predict
from comp.models import averaging, weights
from comp.models.averaging import Average
from comp.models.classifier import Classifier
from comp.results import decisions, metrics
from comp.results.blocks import DISTORTIONS
from comp.results.files import sha256_bytes, sha256_file
from comp.results.predictions import Predictions
from comp.results.run_metrics import SplitScores
from comp.results.runs import Run
from comp.runtime.device import Execution
from comp.runtime.errors import ConfigError
from comp.runtime.memory import MicroBatch
from comp.runtime.progress import Progress
from comp.training.checkpoint import TrainState
from comp.training.selection import Scores, Selector, is_validated, selection

Images = Callable[[], Iterable[Tensor]]


@dataclass(frozen=True)
class Validation:
    """Result of `validate`.

    Attributes:
        scores: of the model.
        val: its predictions of clean validation, without thresholds; None without validation.
        ood_val: likewise of shifted validation; None where it was not due.
    """

    scores: Scores
    val: Predictions | None = None
    ood_val: Predictions | None = None


@dataclass(frozen=True)
class BestWeights:
    """Scores weights at the end of epochs and of the training, and keeps the best."""

    run: Run
    config: Config
    dataset: Dataset
    model: Classifier
    execution: Execution
    average: Average
    _last: dict[str, tuple[str, Validation]] = field(default_factory=dict, init=False)
    """Weights file -> hash of the written file (empty for `final`), and its validation.

    Predictions of shifted validation, the largest, are kept for the best weights only.
    """
    _forward: MicroBatch = field(init=False)
    """Of all validations: what fitted one fits the next."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "_forward", MicroBatch(self.config.predict.batch_size))

    @property
    def selector(self) -> Selector:
        """The criterion for the best weights."""
        return Selector(selection(self.config), self.dataset.competition.metric)

    def end_epoch(
        self, state: TrainState, number: int, progress: Progress, *, last: bool
    ) -> tuple[Scores, float | None]:
        """Score the weights at the end of an epoch (from 1), and the average if there is one.

        Returns:
            The raw weights' scores, and the averaged ones' selected value in its own unit.
        """
        forward_images = self._forward.images
        validation = self._validate(number, progress, last=last)
        self._last["final"] = "", replace(validation, ood_val=None)
        value = self._keep_if_best(validation, state, number, averaged=False)
        average, averaged_value = self.average.current(), None
        if average is not None and self.dataset.val is not None:
            with averaging.temporary_weights(self.model, average):
                averaged = self._validate(number, progress, last=last)
                self._keep_if_best(averaged, state, number, averaged=True)
            averaged_value = averaged.scores.shown(self.selector.name)
        if self._forward.images < forward_images:
            state.notes.append(f"validation: {self._forward.note}")
        self.average.end_epoch(number, value)  # last: an interrupted validation is repeated, this must not be
        return validation.scores, averaged_value

    def finish(self, state: TrainState, images: Images, micro_batch: MicroBatch, progress: Progress) -> None:
        """Write averaged.safetensors if there is an average, and keep it as the best if it is.

        Batch norm statistics are averaged with the weights, or recomputed on training batches: the better on
        validation. Without validation SWA recomputes them, as in its paper, and EMA averages them.

        Args:
            state: after the last epoch.
            images: returns batches of training images, as the model takes them, of at most `micro_batch`.
            micro_batch: of the training; halved where recomputing statistics needs it.
            progress: called during validation.
        """

        def score(model_state: Mapping[str, Tensor]) -> float:
            with averaging.temporary_weights(self.model, model_state):
                value = self._selected(self._validate(state.epoch, progress, last=True).scores)
                assert value is not None
                return value

        validated = self.dataset.val is not None
        plain = self.average.final(score if validated else None)
        if plain is None:
            return
        averaged, refreshed = plain, False
        if averaging.has_bn_statistics(self.model):
            recomputed = micro_batch.fit(
                micro_batch.images,
                lambda size: averaging.refresh_bn_statistics(self.model, plain, images(), self.execution.autocast),
            )
            refreshed = score(recomputed) > score(plain) if validated else self.config.train.average == "swa"
            averaged = recomputed if refreshed else plain
        facts = {"statistics": "refreshed" if refreshed else "averaged"}
        digest = self._write("averaged", averaged, state.epoch, **facts)
        if validated:
            with averaging.temporary_weights(self.model, averaged):
                validation = self._validate(state.epoch, progress, last=True)
                self._last["averaged"] = digest, replace(validation, ood_val=None)
                self._keep_if_best(validation, state, state.epoch, averaged=True)

    def measured(self, name: str) -> Validation | None:
        """Return this process's validation of NAME.safetensors; None if it has none.

        Its predictions are those of a later prediction: validation is inference.
        """
        digest, validation = self._last.get(name, ("", None))
        return validation if not digest or digest == sha256_file(self.run.path / f"{name}.safetensors") else None

    def _selected(self, scores: Scores) -> float | None:
        """Return the selected value, higher being better; None where this epoch did not measure it."""
        value = self.selector.value(scores)
        return None if value is None else self.selector.as_maximize(value)

    def _validate(self, number: int, progress: Progress, *, last: bool) -> Validation:
        return validate(
            self.model, self.dataset, self.execution, self.config, number, progress, last=last, forward=self._forward
        )

    def _keep_if_best(self, validation: Validation, state: TrainState, number: int, *, averaged: bool) -> float | None:
        """Write the model's weights if they are the best so far; return the selected value."""
        scores = validation.scores
        value = self._selected(scores)
        if value is not None and _is_better(value, scores.loss, state):
            state.best, state.best_epoch, state.best_averaged = value, number, averaged
            state.best_loss = scores.loss
            self._last["best"] = self._write("best", self.model.state_dict(), number), validation
        return value

    def _write(self, name: str, model_state: Mapping[str, Tensor], epoch: int, **facts: str) -> str:
        """Write NAME.safetensors; return its hash."""
        content = weights.to_bytes(model_state, {"epoch": str(epoch), **facts})
        self.run.write(f"{name}.safetensors", content)
        return sha256_bytes(content)


def _is_better(value: float, loss: float | None, state: TrainState) -> bool:
    """Return whether a selected value, higher being better, is the best so far; ties go to the lower loss."""
    if state.best is None or value != state.best:
        return state.best is None or value > state.best
    return loss is not None and state.best_loss is not None and loss < state.best_loss


def check_validation(config: Config) -> None:
    """Check that what selects the best weights, or stops the training, is measured.

    Raises:
        ConfigError: naming the setting and how to fix it.
    """
    shifted = config.competition.ood_validation
    if config.train.select in ("ood_accuracy", "ood_metric") and not shifted.severities:
        raise ConfigError(
            f"train.select: {config.train.select} needs shifted validation, and competition.ood_validation.severities "
            "is empty; set some, such as [1, 3, 5], or train.select=val_metric"
        )
    if shifted.every != "end" and not is_validated(config):
        raise ConfigError("competition.ood_validation.every: needs a validation split, and data.validation is none")
    if shifted.every != "end" and not shifted.severities:
        raise ConfigError(
            "competition.ood_validation.every: needs severities, and none are set; set some, or use `end`"
        )
    if config.train.select in ("ood_accuracy", "ood_metric") and shifted.every == "end":
        raise ConfigError(
            f"train.select: {config.train.select} is measured only at the end; set competition.ood_validation.every "
            "to a number of epochs, such as 1"
        )
    for name in ("patience", "overfit_patience"):
        if getattr(config.train, name) is not None and not is_validated(config):
            raise ConfigError(f"train.{name}: needs a validation split, and data.validation is none; leave it out")


def validate(
    model: nn.Module,
    dataset: Dataset,
    execution: Execution,
    config: Config,
    number: int,
    progress: Progress,
    *,
    last: bool,
    forward: MicroBatch | None = None,
) -> Validation:
    """Score the model at the end of epoch `number` (from 1): on clean validation, and on shifted when due.

    Thresholds, where the metric needs them, are cross-fitted for clean validation, and for shifted validation tuned on
    all of clean validation, as for a submission.
    """
    if dataset.val is None:
        return Validation(Scores())
    metric = dataset.competition.metric

    def predictions_of(images: Split | Suite) -> Predictions:
        return predict(
            model,
            images,
            classes=dataset.competition.classes,
            task=dataset.competition.task,
            execution=execution,
            batch_size=config.predict.batch_size,
            micro_batch=forward,
            made_by={},
            progress=progress,
        )

    def value_of(scores: SplitScores, decided: Predictions) -> float:
        value = scores.value(metric)
        return metrics.metric(metric).score(decided) if value is None else value  # None: undefined

    val = predictions_of(dataset.val)
    decided = decisions.prepare_for_scoring(val, metric)
    clean = metrics.summarize(decided, metric)
    undefined = clean.value(metric) is None
    scores = Scores(_loss(clean, dataset), clean.accuracy, value_of(clean, decided), undefined=undefined)
    if dataset.ood_val is None or not _is_due(config, number, last=last):
        return Validation(scores, val)
    ood_val = predictions_of(dataset.ood_val)
    thresholds = decisions.tune_thresholds(val, metric) if decisions.needs_thresholds(val, metric) else None
    decided = replace(ood_val, thresholds=thresholds)
    shifted = metrics.summarize_blocks(decided, DISTORTIONS, metric)
    ood_metric = value_of(shifted, decided)
    scores = replace(scores, ood_accuracy=shifted.accuracy, ood_metric=ood_metric, ood_by_severity=shifted.by_severity)
    return Validation(scores, val, ood_val)


def _loss(clean: SplitScores, dataset: Dataset) -> float | None:
    """Return the validation loss; of numbers the squared error in units of the labels' variance, as in training."""
    if dataset.label_scale is None:
        return clean.log_loss
    return (clean.scores["rmse"].value / dataset.label_scale[1]) ** 2


def validation_images(dataset: Dataset, config: Config, number: int, *, last: bool) -> int:
    """Return how many images `validate` predicts at the end of an epoch."""
    shifted = len(dataset.ood_val or ()) if _is_due(config, number, last=last) else 0
    return len(dataset.val or ()) + shifted


def _is_due(config: Config, number: int, *, last: bool) -> bool:
    every = config.competition.ood_validation.every
    # After the last epoch too: selection should see the final weights.
    return every != "end" and (number % every == 0 or last)
