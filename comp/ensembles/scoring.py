"""What ensembles climb and decide by: the competition's metric of probabilities, and thresholds. Torch-free."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from comp.config.tasks import TASKS
from comp.ensembles.align import AlignedSplit
from comp.ensembles.spaces import SPACES, Probabilities
from comp.results import decisions, metrics, predictions
from comp.results.predictions import Predictions, Targets

Thresholds = NDArray[np.float32]  # [C]


@dataclass(frozen=True)
class Scorer:
    """The competition's metric as a function of probabilities, higher being better.

    Attributes:
        metric: a row of `comp.results.metrics.METRICS`.
        classes: the columns.
        task: a row of `comp.config.tasks.TASKS`.
        thresholds: that decide; None: tuned on what is scored, where the metric needs them.
    """

    metric: str
    classes: Sequence[str]
    task: str
    thresholds: Thresholds | None = None

    def __call__(self, probabilities: Probabilities, targets: Targets) -> float:
        """Return the score of probabilities [N, C]."""
        if self.metric == "accuracy" and TASKS[self.task].decision == "arg_max":
            return float((probabilities.argmax(1) == targets).mean())
        metric = metrics.metric(self.metric)
        scored = self.tuned_on(probabilities, targets)._predictions(probabilities, targets)
        return metric.as_maximize(metric.score(scored))

    def tuned_on(self, probabilities: Probabilities, targets: Targets) -> "Scorer":
        """Return the same with thresholds that are best for these probabilities, where the metric needs thresholds.

        Tuning costs far more than scoring: what compares thousands of candidates tunes once.
        """
        if self.thresholds is not None:
            return self
        scored = self._predictions(probabilities, targets)
        if not decisions.needs_thresholds(scored, self.metric):
            return self
        return replace(self, thresholds=decisions.tune_thresholds(scored, self.metric))

    def _predictions(self, probabilities: Probabilities, targets: Targets) -> Predictions:
        return predictions.from_outputs(
            SPACES[TASKS[self.task].activation].from_probabilities(probabilities),
            task=self.task,
            ids=np.empty(len(targets), "U1"),
            classes=self.classes,
            targets=targets,
            made_by={},
            thresholds=self.thresholds,
        )


@dataclass(frozen=True)
class Decider:
    """Which thresholds an ensemble's predictions get; of tasks that choose one class, none.

    Attributes:
        metric: the competition's.
        split: what the thresholds were tuned on, empty where they were not.
        thresholds: tuned on all of it.
        calibrated: whether the method's probabilities can be decided at 0.5.
    """

    metric: str
    split: str = ""
    thresholds: Thresholds | None = None
    calibrated: bool = True

    def decide(self, split: str, combined: Predictions, sample: AlignedSplit) -> Predictions:
        """Return an ensemble's predictions of a split with thresholds; on what they were tuned on, cross-fitted ones.

        Without tuned ones each class is decided as often as by the members on average, where members have thresholds
        of their own or the method's probabilities mean nothing.
        """
        if combined.row.decision != "thresholds":
            return combined
        if self.thresholds is not None:
            own = split == self.split
            return decisions.prepare_for_scoring(combined, self.metric) if own else replace(combined, thresholds=self.thresholds)
        if self.calibrated and all(member.thresholds is None for member in sample.members):
            return combined
        return as_often(combined, sample)


def tuned(metric: str, split: str, combined: Predictions, *, calibrated: bool) -> Decider:
    """Return the decider of an ensemble, its thresholds tuned on its held-out predictions of a validation split."""
    if not decisions.needs_thresholds(combined, metric):
        return Decider(metric, calibrated=calibrated)
    return Decider(metric, split, decisions.tune_thresholds(combined, metric), calibrated)


def as_often(combined: Predictions, sample: AlignedSplit) -> Predictions:
    """Return predictions with thresholds that decide each class as often as the members do on average."""
    rates = np.mean([member.decisions().mean(0) for member in sample.members], axis=0)  # [C]
    ascending = np.sort(combined.probabilities(), axis=0)
    counts = np.round(rates * len(combined)).astype(np.int64)
    return replace(combined, thresholds=_cuts(ascending, counts))


def _cuts(ascending: NDArray[np.float64], counts: NDArray[np.int64]) -> Thresholds:
    """Return the threshold [C] of each column that its largest `counts` values reach, halfway to the next."""
    rows, columns = ascending.shape
    edged = np.concatenate([np.zeros((1, columns)), ascending, np.full((1, columns), 2.0)])
    above, column = rows + 1 - counts, np.arange(columns)
    middle: NDArray[np.float64] = (edged[above - 1, column] + edged[above, column]) / 2  # above 1 where none is decided
    return middle.astype(np.float32)
