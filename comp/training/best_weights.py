"""Raw and averaged weights, scored alike and competing for best.safetensors."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from torch import Tensor

from comp.config import Config
from comp.data.dataset import Dataset
from comp.models import averaging, weights
from comp.models.averaging import Average
from comp.models.classifier import Classifier
from comp.results.files import sha256_bytes, sha256_file
from comp.results.runs import Run
from comp.runtime.device import Execution
from comp.runtime.progress import Progress
from comp.training import validation
from comp.training.checkpoint import TrainState
from comp.training.selection import Scores, Selector, selection
from comp.training.validation import Measured

Images = Callable[[], Iterable[Tensor]]


@dataclass(frozen=True)
class BestWeights:
    """What is scored at epochs' ends and at the training's, and where the best of it is kept."""

    run: Run
    config: Config
    dataset: Dataset
    model: Classifier
    execution: Execution
    average: Average
    _last: dict[str, tuple[str, Measured]] = field(default_factory=dict, init=False)
    """By weights file: the hash of what was written, and what was measured of it; of `final`, no hash.

    Shifted validation, the largest of it, is scored for the best weights alone, and kept for no others.
    """

    @property
    def selector(self) -> Selector:
        """What the best weights are selected by."""
        return Selector(selection(self.config), self.dataset.competition.metric)

    def end_epoch(
        self, cursor: TrainState, number: int, progress: Progress, *, last: bool
    ) -> tuple[Scores, float | None]:
        """Score the weights at the end of an epoch (from 1), and the average where it has come to something.

        Returns:
            The raw weights' scores, and the averaged ones' selected value in its own unit.
        """
        measured = self._score(number, progress, last=last)
        self._last["final"] = "", replace(measured, ood_val=None)
        value = self._keep_if_best(measured, cursor, number, averaged=False)
        average, found = self.average.current(), None
        if average is not None and self.dataset.val is not None:
            with averaging.temporary_weights(self.model, average):
                averaged = self._score(number, progress, last=last)
                self._keep_if_best(averaged, cursor, number, averaged=True)
            found = self.selector.value(averaged.scores)
        self.average.end_epoch(number, value)  # last: an interrupted validation is repeated, this must not be
        return measured.scores, found

    def finish(self, cursor: TrainState, images: Images, progress: Progress) -> None:
        """Write averaged.safetensors where there is an average, and let it compete.

        Batch norm's statistics, averaged with the weights or met on training batches: the better on validation is
        kept. Without validation SWA's are met anew, as in its paper, and EMA's are the averaged ones.

        Args:
            cursor: after the last epoch.
            images: gives batches of training images, as the model takes them.
            progress: called while validation goes on.
        """

        def score(state: Mapping[str, Tensor]) -> float:
            with averaging.temporary_weights(self.model, state):
                return self._value(cursor.epoch, progress)

        validated = self.dataset.val is not None
        plain = self.average.final(score if validated else None)
        if plain is None:
            return
        averaged, refreshed = plain, False
        if averaging.has_statistics(self.model):
            met = averaging.refreshed(self.model, plain, images(), self.execution.autocast)
            refreshed = score(met) > score(plain) if validated else self.config.train.average == "swa"
            averaged = met if refreshed else plain
        facts = {"statistics": "refreshed" if refreshed else "averaged"}
        digest = self._write("averaged", averaged, cursor.epoch, **facts)
        if validated:
            with averaging.temporary_weights(self.model, averaged):
                # As after the last epoch, whichever the training has ended with: all of validation is due.
                measured = self._score(cursor.epoch, progress, last=True)
                self._last["averaged"] = digest, replace(measured, ood_val=None)
                self._keep_if_best(measured, cursor, cursor.epoch, averaged=True)

    def measured(self, name: str) -> Measured | None:
        """Return what this process has measured of the weights that lie in NAME.safetensors; None where it has not.

        The predictions are those that the weights would make again: validation is inference.
        """
        digest, measured = self._last.get(name, ("", None))
        return measured if not digest or digest == sha256_file(self.run.path / f"{name}.safetensors") else None

    def _value(self, epoch: int, progress: Progress) -> float:
        value = self._selected(self._score(epoch, progress, last=True).scores)
        assert value is not None
        return value

    def _selected(self, scores: Scores) -> float | None:
        """Return what weights are compared by, higher being better; None where this epoch did not measure it."""
        value = self.selector.value(scores)
        return None if value is None else self.selector.as_maximize(value)

    def _score(self, number: int, progress: Progress, *, last: bool) -> Measured:
        return validation.validate(self.model, self.dataset, self.execution, self.config, number, progress, last=last)

    def _keep_if_best(self, measured: Measured, cursor: TrainState, number: int, *, averaged: bool) -> float | None:
        """Write the model's weights if they are the best so far, of equals the lower loss; return what was compared."""
        scores = measured.scores
        value = self._selected(scores)
        if value is not None and _is_better(value, scores.loss, cursor):
            cursor.best, cursor.best_epoch, cursor.best_averaged = value, number, averaged
            cursor.best_loss = scores.loss
            self._last["best"] = self._write("best", self.model.state_dict(), number), measured
        return value

    def _write(self, name: str, state: Mapping[str, Tensor], epoch: int, **facts: str) -> str:
        """Write weights; return the file's hash."""
        content = weights.to_bytes(state, {"epoch": str(epoch), **facts})
        self.run.write(f"{name}.safetensors", content)
        return sha256_bytes(content)


def _is_better(value: float, loss: float | None, cursor: TrainState) -> bool:
    """Return whether a selected value, higher being better, is the best so far; ties go to the lower loss."""
    if cursor.best is None or value != cursor.best:
        return cursor.best is None or value > cursor.best
    return loss is not None and cursor.best_loss is not None and loss < cursor.best_loss
