"""What an ensemble gains over its best member, measured on images that nothing was fitted on.

Images are dealt into folds. For each fold the method is fitted, and the best member chosen, on the images of the
others; both are scored on the fold. An image's shifted copies lie in its fold with it, so that nothing is scored on
what it was fitted on, whichever split that was.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from comp.ensembles.align import AlignedSplit, chunks, expand_thresholds
from comp.ensembles.methods import FitData, Fitted, Method, Scorer, Thresholds, Values
from comp.results import decisions, metrics, predictions
from comp.results.predictions import Predictions, Targets
from comp.runtime.errors import ConfigError
from comp.runtime.progress import Progress, quiet


@dataclass(frozen=True)
class EnsembleRow:
    """A member, or the whole: accuracy in [0, 1], the competition's metric in its own unit, loss in nats."""

    name: str
    accuracy: float
    metric: float
    loss: float
    weight: float | None = None


@dataclass(frozen=True)
class Comparison:
    """An ensemble beside its members.

    Attributes:
        split: what it is scored and fitted on.
        metric: the competition's, a row of `comp.results.metrics.METRICS`.
        images: how many rows that has.
        folds: how many it was cut into.
        members: each on all of it, with its weight where the method has weights.
        disagreement: [M][M] share of rows that two members decide differently.
        best_single: the member that is best by the metric, chosen on the other folds.
        ensemble: fitted on the other folds.
        gain: the ensemble's accuracy less the best single's.
        gain_error: standard error of that over folds.
        metric_gain: likewise of the metric, above 0 where the ensemble is better, whichever the metric's direction.
        metric_gain_error: standard error of that over folds.
    """

    split: str
    metric: str
    images: int
    folds: int
    members: tuple[EnsembleRow, ...]
    disagreement: tuple[tuple[float, ...], ...]
    best_single: EnsembleRow
    ensemble: EnsembleRow
    gain: float
    gain_error: float
    metric_gain: float
    metric_gain_error: float | None

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


def assign_folds(images: NDArray[np.str_], targets: Targets, folds: int) -> NDArray[np.int64]:
    """Return each row's fold [N]: rows of one image share theirs, and every fold has each class's share.

    Of images with several classes each, the rarest class is dealt out evenly, and others nearly so.

    Raises:
        ConfigError: fewer than two folds, or more than images.
    """
    names, first, place = np.unique(images, return_index=True, return_inverse=True)
    if not 2 <= folds <= len(names):
        raise ConfigError(f"--folds: expected 2 to {len(names):,}, the number of images, found {folds}")
    drawn = np.random.default_rng(0).permutation(len(names))
    columns = targets[first].reshape(len(first), -1).T  # [1, N] classes, or [K, N] of 0 and 1
    common_first = columns[np.argsort(-columns.sum(1), kind="stable")]
    order = np.lexsort((drawn, *common_first))  # class by class, drawn within each; the last key counts first
    dealt = np.empty(len(names), np.int64)
    dealt[order] = np.arange(len(names)) % folds
    return dealt[place]


def combine(
    fitted: Fitted, sample: AlignedSplit, made_by: Mapping[str, Any], progress: Progress = quiet
) -> Predictions:
    """Return the ensemble's predictions of a sample."""
    return _as_predictions(sample, _outputs(fitted, sample, np.arange(len(sample.images)), progress), made_by)


def _outputs(fitted: Fitted, sample: AlignedSplit, rows: NDArray[np.int64], progress: Progress = quiet) -> Values:
    """Return the ensemble's outputs of some rows, [len(rows), C]."""
    outputs = np.empty((len(rows), len(sample.members[0].classes)), np.float32)
    for part in [slice(0, len(rows))] if fitted.whole_split else chunks(len(rows)):
        outputs[part] = fitted.combine(sample.stack(rows[part]))
        progress("combining", part.stop, len(rows), "images")
    return outputs


def _as_predictions(sample: AlignedSplit, outputs: Values, made_by: Mapping[str, Any]) -> Predictions:
    first = sample.members[0]
    return predictions.from_outputs(
        outputs,
        task=first.task,
        ids=first.ids,
        classes=first.classes,
        targets=sample.targets,
        made_by=made_by,
        blocks=[(name, rows.stop - rows.start) for name, rows in first.blocks()],
    )


@dataclass(frozen=True)
class CrossFitted:
    """A method fitted on every fold's others.

    Attributes:
        fits: one for each fold; a single one where the method learns nothing.
        best: the number of the member that is best on the others, for each fold.
        folds: image -> fold.
    """

    fits: tuple[Fitted, ...]
    best: tuple[int, ...]
    folds: Mapping[str, int]

    def of(self, images: NDArray[np.str_]) -> NDArray[np.int64]:
        """Return each row's fold [N]; -1 for images that nothing was fitted on, which any fit may be scored on."""
        names, place = np.unique(images, return_inverse=True)
        return np.array([self.folds.get(str(name), -1) for name in names])[place]


def cross_fit(
    method: Method, sample: AlignedSplit, folds: int, score: Scorer, progress: Progress = quiet
) -> CrossFitted:
    """Fit a method, and choose the best member, on all folds but one, for each."""
    targets = sample.targets
    assert targets is not None
    fold = assign_folds(sample.images, targets, folds)
    fits: list[Fitted] = []
    best: list[int] = []
    for number in range(folds):
        rows = np.flatnonzero(fold != number)
        stack = sample.stack(rows)
        if method.learns or not fits:
            fits.append(method.fit(FitData(stack, sample.space, targets[rows], sample.images[rows], score)))
        scores = [score(sample.space.probabilities(member), targets[rows]) for member in stack]
        best.append(int(np.argmax(scores)))
        progress("fitting on the other folds", number + 1, folds, "folds")
    names, first = np.unique(sample.images, return_index=True)
    dealt = dict(zip(map(str, names), fold[first].tolist(), strict=True))
    return CrossFitted(tuple(fits), tuple(best), dealt)


def predict_out_of_fold(crossed: CrossFitted, sample: AlignedSplit, made_by: Mapping[str, Any]) -> Predictions:
    """Return predictions of a sample in which no row is combined by what was fitted on its image.

    Args:
        crossed: from `cross_fit`.
        sample: of the same images, or of others.
        made_by: noted with the result.
    """
    if len(crossed.fits) == 1:
        return combine(crossed.fits[0], sample, made_by)
    fold = crossed.of(sample.images)
    outputs = np.empty(sample.members[0].outputs.shape, np.float32)
    for number in np.unique(fold):
        rows = np.flatnonzero(fold == number)
        outputs[rows] = _outputs(crossed.fits[number], sample, rows)
    return _as_predictions(sample, outputs, made_by)


def compare_with_members(
    split: str, sample: AlignedSplit, crossed: CrossFitted, whole: Fitted, held_out: Predictions, metric: str
) -> Comparison:
    """Return the ensemble beside its members on the split that it was fitted on.

    Args:
        split: its name.
        sample: the members' predictions of it.
        crossed: the method fitted on every fold's others.
        whole: fitted on all of it.
        held_out: from `out_of_fold`.
        metric: a row of `comp.results.metrics.METRICS`.
    """
    weights = whole.weights or (None,) * len(sample.members)
    members = [
        _row(name, member, metric, weight)
        for name, member, weight in zip(sample.names, sample.members, weights, strict=True)
    ]
    fold = crossed.of(sample.images)
    single = _best_singles(crossed, sample, fold)
    best_single, ensemble = _row("best single", single, metric), _row("ensemble", held_out, metric)
    correct = held_out.correct().astype(np.float64) - single.correct()
    fold_rows = [np.flatnonzero(fold == number) for number in range(len(crossed.best))]
    definition = metrics.metric(metric)
    metric_gains = [
        definition.as_maximize(definition.score(held_out.take(rows)) - definition.score(single.take(rows)))
        for rows in fold_rows
    ]
    return Comparison(
        split=split,
        metric=metric,
        images=len(held_out),
        folds=len(crossed.best),
        members=tuple(members),
        disagreement=_disagreement(sample.members),
        best_single=best_single,
        ensemble=ensemble,
        gain=float(correct.mean()),
        gain_error=_standard_error([float(correct[rows].mean()) for rows in fold_rows]),
        metric_gain=definition.as_maximize(ensemble.metric - best_single.metric),
        metric_gain_error=_standard_error(metric_gains),
    )


def _best_singles(crossed: CrossFitted, sample: AlignedSplit, fold: NDArray[np.int64]) -> Predictions:
    """Return each fold's rows as the member predicts them that is best on the others."""
    rows_of = [np.flatnonzero(fold == number) for number in range(len(crossed.best))]
    parts = [
        expand_thresholds(sample.members[best].take(rows)) for best, rows in zip(crossed.best, rows_of, strict=True)
    ]
    joined = predictions.concatenate([expand_thresholds(part) for part in parts])
    return joined.take(np.argsort(np.concatenate(rows_of)))


def _disagreement(members: Sequence[Predictions]) -> tuple[tuple[float, ...], ...]:
    votes = [member.decisions() if member.top1 is None else member.top1[:, None] for member in members]
    return tuple(tuple(float((one != two).any(1).mean()) for two in votes) for one in votes)


def _standard_error(values: Sequence[float]) -> float:
    return float(np.std(values, ddof=1) / np.sqrt(len(values)))


def _row(name: str, predicted: Predictions, metric: str, weight: float | None = None) -> EnsembleRow:
    scores = metrics.summarize(predicted, metric).scores
    accuracy, score, loss = (scores[key].value for key in ("accuracy", metric, "log_loss"))
    return EnsembleRow(name, accuracy, score, loss, weight)


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
            if split == self.split:
                return decisions.prepare_for_scoring(combined, self.metric)
            return replace(combined, thresholds=self.thresholds)
        if self.calibrated and all(member.thresholds is None for member in sample.members):
            return combined
        return match_decision_rates(combined, sample)


def tune_decider(metric: str, split: str, combined: Predictions, *, calibrated: bool) -> Decider:
    """Return the decider of an ensemble, its thresholds tuned on its held-out predictions of a validation split."""
    if not decisions.needs_thresholds(combined, metric):
        return Decider(metric, calibrated=calibrated)
    return Decider(metric, split, decisions.tune_thresholds(combined, metric), calibrated)


def match_decision_rates(combined: Predictions, sample: AlignedSplit) -> Predictions:
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
