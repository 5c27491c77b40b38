"""Cross-fitting: an ensemble's gain over its best member, on images that neither was fitted on; its decisions.

Images are divided into folds. For each fold the method is fitted, and the best member chosen, on the other folds; both
are scored on the fold. All shifted copies of an image are in one fold, so that no image is both fitted and scored.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from comp.ensembles.align import AlignedSplit, chunks, expand_thresholds
from comp.ensembles.methods import FitData, Fitted, Method, Scorer
from comp.ensembles.spaces import Values
from comp.results import decisions, metrics, predictions
from comp.results.decision_fits import DeclaredShares
from comp.results.predictions import Predictions, Targets
from comp.results.run_metrics import Decision
from comp.runtime.errors import ConfigError
from comp.runtime.progress import Progress, quiet


@dataclass(frozen=True)
class EnsembleRow:
    """Scores of a member or the ensemble: accuracy in [0, 1], the metric in its own unit, loss in nats.

    A task of numbers has neither accuracy nor loss; the metric is None where the images leave it undefined.
    """

    name: str
    accuracy: float | None
    metric: float | None
    loss: float | None
    weight: float | None = None


@dataclass(frozen=True)
class Comparison:
    """An ensemble compared with its members.

    Attributes:
        split: the split that is fitted and scored.
        metric: the competition's, a row of `comp.results.metrics.METRICS`.
        images: number of rows.
        folds: number of folds.
        members: each on the whole split, with its weight if the method has weights.
        disagreement: [M][M] share of rows that two members predict differently; of numbers, 1 minus their correlation.
        best_single: the best member by the metric, chosen on the other folds.
        ensemble: fitted on the other folds.
        gain: the ensemble's accuracy minus the best single's; 0 for a task of numbers, like its error.
        gain_error: its standard error over folds.
        metric_gain: likewise for the metric; positive if the ensemble is better, whatever the metric's direction; None
            if it is undefined.
        metric_gain_error: its standard error over the folds that define it; None for fewer than two.
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
    metric_gain: float | None
    metric_gain_error: float | None

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


def assign_folds(images: NDArray[np.str_], targets: Targets, folds: int) -> NDArray[np.int64]:
    """Return each row's fold [N], stratified by class; rows of one image are in one fold.

    In multi-label tasks the rarest class is divided evenly, others nearly so.

    Raises:
        ConfigError: fewer than two folds, or more folds than images.
    """
    names, first, image_of_row = np.unique(images, return_index=True, return_inverse=True)
    if not 2 <= folds <= len(names):
        raise ConfigError(f"--folds: expected 2 to {len(names):,}, the number of images, found {folds}")
    shuffled = np.random.default_rng(0).permutation(len(names))
    columns = targets[first].reshape(len(first), -1).T  # [1, N] classes, or [K, N] of 0 and 1
    common_first = columns[np.argsort(-columns.sum(1), kind="stable")]
    order = np.lexsort((shuffled, *common_first))  # by class, shuffled within each; the last key sorts first
    fold_of_image = np.empty(len(names), np.int64)
    fold_of_image[order] = np.arange(len(names)) % folds
    return fold_of_image[image_of_row]


def combine(
    fitted: Fitted, aligned: AlignedSplit, made_by: Mapping[str, Any], progress: Progress = quiet
) -> Predictions:
    """Return the ensemble's predictions of a split."""
    return _as_predictions(aligned, _outputs(fitted, aligned, np.arange(len(aligned.images)), progress), made_by)


def _outputs(fitted: Fitted, aligned: AlignedSplit, rows: NDArray[np.int64], progress: Progress = quiet) -> Values:
    """Return the ensemble's outputs of some rows, [len(rows), C]."""
    outputs = np.empty((len(rows), len(aligned.members[0].classes)), np.float32)
    for part in [slice(0, len(rows))] if fitted.whole_split else chunks(len(rows)):
        outputs[part] = fitted.combine(aligned.stack(rows[part]))
        progress("combining", part.stop, len(rows), "images")
    return outputs


def _as_predictions(aligned: AlignedSplit, outputs: Values, made_by: Mapping[str, Any]) -> Predictions:
    first = aligned.members[0]
    return predictions.from_outputs(
        outputs,
        task=first.task,
        ids=first.ids,
        classes=first.classes,
        targets=aligned.targets,
        made_by=made_by,
        blocks=[(name, rows.stop - rows.start) for name, rows in first.blocks()],
    )


@dataclass(frozen=True)
class CrossFitted:
    """A method fitted once for each fold, on all other folds.

    Attributes:
        fits: one for each fold; a single one if the method learns nothing.
        best: for each fold, the index of the best member on the other folds.
        folds: image -> fold.
    """

    fits: tuple[Fitted, ...]
    best: tuple[int, ...]
    folds: Mapping[str, int]

    def folds_of(self, images: NDArray[np.str_]) -> NDArray[np.int64]:
        """Return each row's fold [N]; -1 for other images, which any of the fits may predict."""
        names, index = np.unique(images, return_inverse=True)
        return np.array([self.folds.get(str(name), -1) for name in names])[index]


def cross_fit(
    method: Method, aligned: AlignedSplit, folds: int, score: Scorer, progress: Progress = quiet
) -> CrossFitted:
    """For each fold, fit a method and choose the best member on all other folds."""
    targets = aligned.targets
    assert targets is not None
    fold = assign_folds(aligned.images, targets, folds)
    fits: list[Fitted] = []
    best: list[int] = []
    for number in range(folds):
        rows = np.flatnonzero(fold != number)
        stack = aligned.stack(rows)
        if method.learns or not fits:
            fits.append(method.fit(FitData(stack, aligned.space, targets[rows], aligned.images[rows], score)))
        scores = [score(aligned.space.probabilities(member), targets[rows]) for member in stack]
        best.append(int(np.argmax(scores)))
        progress("fitting on the other folds", number + 1, folds, "folds")
    names, first = np.unique(aligned.images, return_index=True)
    fold_of_image = dict(zip(map(str, names), fold[first].tolist(), strict=True))
    return CrossFitted(tuple(fits), tuple(best), fold_of_image)


def predict_out_of_fold(crossed: CrossFitted, aligned: AlignedSplit, made_by: Mapping[str, Any]) -> Predictions:
    """Return predictions of a split of the same images or others, each row by a fit on folds without its image."""
    if len(crossed.fits) == 1:
        return combine(crossed.fits[0], aligned, made_by)
    fold = crossed.folds_of(aligned.images)
    outputs = np.empty(aligned.members[0].outputs.shape, np.float32)
    for number in np.unique(fold):
        rows = np.flatnonzero(fold == number)
        outputs[rows] = _outputs(crossed.fits[number], aligned, rows)
    return _as_predictions(aligned, outputs, made_by)


def compare_with_members(
    split: str, aligned: AlignedSplit, crossed: CrossFitted, whole: Fitted, held_out: Predictions, metric: str
) -> Comparison:
    """Compare the ensemble with its members on the split that it was fitted on.

    `held_out` are its predictions from `predict_out_of_fold`, and `metric` is a row of `comp.results.metrics.METRICS`.
    """
    weights = whole.weights or (None,) * len(aligned.members)
    members = [
        _score_row(name, member, metric, weight)
        for name, member, weight in zip(aligned.names, aligned.members, weights, strict=True)
    ]
    fold = crossed.folds_of(aligned.images)
    single = _best_singles(crossed, aligned, fold)
    best_single, ensemble = _score_row("best single", single, metric), _score_row("ensemble", held_out, metric)
    correct = np.zeros(len(held_out))
    if not held_out.row.numeric:
        correct = held_out.correct().astype(np.float64) - single.correct()
    fold_rows = [np.flatnonzero(fold == number) for number in range(len(crossed.best))]
    gains = [_gain(held_out.take(rows), single.take(rows), metric) for rows in fold_rows]
    defined = [gain for gain in gains if gain is not None]
    return Comparison(
        split=split,
        metric=metric,
        images=len(held_out),
        folds=len(crossed.best),
        members=tuple(members),
        disagreement=_disagreement(aligned.members),
        best_single=best_single,
        ensemble=ensemble,
        gain=float(correct.mean()),
        gain_error=_standard_error([float(correct[rows].mean()) for rows in fold_rows]),
        metric_gain=_gain(held_out, single, metric),
        metric_gain_error=_standard_error(defined) if len(defined) > 1 else None,
    )


def _gain(better: Predictions, worse: Predictions, metric: str) -> float | None:
    """Return by how much one's score is better, whatever the metric's direction; None where it is undefined."""
    if metrics.find_undefined(better, metric):
        return None
    definition = metrics.metric(metric)
    return definition.as_maximize(definition.score(better) - definition.score(worse))


def _best_singles(crossed: CrossFitted, aligned: AlignedSplit, fold: NDArray[np.int64]) -> Predictions:
    """Return each fold's rows as predicted by the member that is best on the other folds."""
    rows_of = [np.flatnonzero(fold == number) for number in range(len(crossed.best))]
    parts = [
        expand_thresholds(aligned.members[best].take(rows)) for best, rows in zip(crossed.best, rows_of, strict=True)
    ]
    joined = predictions.concatenate(parts)
    return joined.take(np.argsort(np.concatenate(rows_of)))


def _disagreement(members: Sequence[Predictions]) -> tuple[tuple[float, ...], ...]:
    if members[0].row.numeric:
        values = np.stack([member.values() for member in members])
        centred = values - values.mean(1, keepdims=True)
        norms = np.maximum(np.sqrt((centred**2).sum(1)), np.finfo(float).tiny)
        apart = np.clip(1 - centred @ centred.T / np.outer(norms, norms), 0, 2)
        return tuple(tuple(map(float, row)) for row in apart)
    votes = [member.decisions() if member.top1 is None else member.top1[:, None] for member in members]
    return tuple(tuple(float((first != second).any(1).mean()) for second in votes) for first in votes)


def _standard_error(values: Sequence[float]) -> float:
    return float(np.std(values, ddof=1) / np.sqrt(len(values)))


def _score_row(name: str, predicted: Predictions, metric: str, weight: float | None = None) -> EnsembleRow:
    scores = metrics.summarize(predicted, metric)
    return EnsembleRow(name, scores.accuracy, scores.value(metric), scores.log_loss, weight)


@dataclass(frozen=True)
class Decider:
    """Decides an ensemble's predictions.

    Attributes:
        metric: the competition's.
        split: the split that the decision was fitted on; empty if none was.
        scored: that split, as it is scored: each row decided by a fit on other images.
        decision: for other images, fitted on that whole split; None if the plain one is not questioned.
        fold_of: image of that split -> its fold, for its shifted copies.
        calibrated: whether 0.5 is a sensible threshold for the method's probabilities.
    """

    metric: str
    split: str = ""
    scored: Predictions | None = None
    decision: Decision | None = None
    calibrated: bool = True
    fold_of: Mapping[str, int] = field(default_factory=dict)

    def decide(self, split: str, combined: Predictions, aligned: AlignedSplit) -> Predictions:
        """Return decided predictions of a split.

        Without fitted thresholds, if members have their own or the method is not calibrated, each class of a
        multi-label task is predicted as often as by the members on average.
        """
        decided = self._apply(split, combined, aligned.images)
        if decided.row.decision != "thresholds" or decided.thresholds is not None:
            return decided
        if self.calibrated and all(member.thresholds is None for member in aligned.members):
            return decided
        return match_decision_rates(decided, aligned)

    def _apply(self, split: str, combined: Predictions, images: NDArray[np.str_]) -> Predictions:
        if self.scored is not None and split == self.split:
            return replace(self.scored, made_by={**combined.made_by, **self.scored.made_by})
        if split in ("val", "ood_val"):
            fold = np.array([self.fold_of.get(name, -1) for name in images.tolist()])
            return decisions.apply_to_shifted_validation(self.decision, combined, fold)
        return combined if self.decision is None else decisions.apply(self.decision, combined)


def fit_decider(
    metric: str,
    split: str,
    combined: Predictions,
    images: NDArray[np.str_],
    *,
    calibrated: bool,
    setting: str = "auto",
    shares: DeclaredShares | None = None,
) -> Decider:
    """Return a decider with the decision that held-out predictions of a validation split ask for.

    Args:
        metric: the competition's.
        split: the validation split.
        combined: its predictions, each row by a fit on other images.
        images: which image each row shows.
        calibrated: whether 0.5 is a sensible threshold for the method's probabilities.
        setting: value of predict.decide.
        shares: of the test, if they are declared.
    """
    scored, decision = decisions.decide(combined, metric, setting, shares=shares, images=images)
    if decision is None or decision.kind == "argmax":
        return Decider(metric, decision=decision, calibrated=calibrated)
    numbers = np.unique(images, return_inverse=True)[1]
    fold = decisions.image_folds(combined.known_targets(), numbers)
    fold_of = dict(zip(images.tolist(), fold.tolist(), strict=True))
    return Decider(metric, split, None if decision.shift else scored, decision, calibrated, fold_of)


def match_decision_rates(combined: Predictions, aligned: AlignedSplit) -> Predictions:
    """Return predictions with thresholds that predict each class as often as the members do on average."""
    rates = np.mean([member.decisions().mean(0) for member in aligned.members], axis=0)  # [C]
    ascending = np.sort(combined.probabilities(), axis=0)
    counts = np.round(rates * len(combined)).astype(np.int64)
    rows, columns = ascending.shape
    # Halfway between the last value that reaches a threshold and the next one.
    edged = np.concatenate([np.zeros((1, columns)), ascending, np.full((1, columns), 2.0)])
    above, column = rows + 1 - counts, np.arange(columns)
    middle: NDArray[np.float64] = (edged[above - 1, column] + edged[above, column]) / 2  # above 1 if the count is 0
    return replace(combined, thresholds=middle.astype(np.float32))
