"""What an ensemble gains over its best member, told honestly.

Images are dealt into folds. For each fold the method is fitted, and the best member chosen, on the images of the
others; both are scored on the fold. An image's shifted copies lie in its fold with it, so that nothing is scored on
what it was fitted on, whichever split that was.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from comp import metrics, predictions
from comp.ensembling.members import Sample, chunks
from comp.ensembling.methods import Fitted, Labels, Method, Score, Shares, Task
from comp.errors import ConfigError
from comp.predictions import Predictions
from comp.progress import Progress, quiet


@dataclass(frozen=True)
class Row:
    """A member, or the whole: scores in [0, 1], the competition's metric in its own unit, loss in nats."""

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
        images: how many rows that has.
        folds: how many it was cut into.
        members: each on all of it, with its weight where the method has weights.
        disagreement: [M][M] share of rows on which two members say something else.
        best_single: the best member, chosen on the other folds.
        ensemble: fitted on the other folds.
        gain: the ensemble's accuracy less the best single's.
        gain_error: standard error of that over folds.
    """

    split: str
    images: int
    folds: int
    members: tuple[Row, ...]
    disagreement: tuple[tuple[float, ...], ...]
    best_single: Row
    ensemble: Row
    gain: float
    gain_error: float

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


def scorer(name: str, classes: Sequence[str]) -> Score:
    """Return a metric as a function of probabilities [N, C] and labels, more being better."""
    if name == "accuracy":
        return lambda shares, labels: float((shares.argmax(1) == labels).mean())
    wanted = metrics.metric(name)

    def score(shares: Shares, labels: Labels) -> float:
        made = predictions.from_logits(
            np.log(np.maximum(shares, 1e-9)),
            ids=np.empty(len(labels), "U1"),
            classes=classes,
            labels=labels,
            made_by={},
        )
        return wanted.value_up(wanted.score(made))

    return score


def fold_of(images: NDArray[np.str_], labels: NDArray[np.int64], folds: int) -> NDArray[np.int64]:
    """Return each row's fold [N]: rows of one image share theirs, and every fold has each class's share.

    Raises:
        ConfigError: fewer than two folds, or more than images.
    """
    names, first, place = np.unique(images, return_index=True, return_inverse=True)
    if not 2 <= folds <= len(names):
        raise ConfigError(f"--folds: expected 2 to {len(names):,}, the number of images, found {folds}")
    drawn = np.random.default_rng(0).permutation(len(names))
    order = np.lexsort((drawn, labels[first]))  # class by class, drawn within each
    dealt = np.empty(len(names), np.int64)
    dealt[order] = np.arange(len(names)) % folds
    return dealt[place]


def combine(fitted: Fitted, sample: Sample, made_by: Mapping[str, Any], progress: Progress = quiet) -> Predictions:
    """Return the ensemble's predictions of a sample."""
    logits = np.empty(sample.members[0].logits.shape, np.float32)
    for rows in chunks(len(logits)):
        logits[rows] = fitted.combine(sample.stack(rows))
        progress("combining", rows.stop, len(logits), "images")
    return _as_predictions(sample, logits, made_by)


def _as_predictions(sample: Sample, logits: Shares, made_by: Mapping[str, Any]) -> Predictions:
    first = sample.members[0]
    sizes = [int(size) for size in first.block_sizes]
    blocks = list(zip(map(str, first.block_names), sizes, strict=True))
    known = next((member.labels for member in sample.members if member.labels is not None), None)
    return predictions.from_logits(
        logits, ids=first.ids, classes=first.classes, labels=known, made_by=made_by, blocks=blocks
    )


@dataclass(frozen=True)
class CrossFitted:
    """A method fitted on every fold's others.

    Attributes:
        fits: one for each fold.
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


def cross_fit(method: Method, sample: Sample, folds: int, score: Score, progress: Progress = quiet) -> CrossFitted:
    """Fit a method, and choose the best member, on all folds but one, for each."""
    labels = sample.labels
    assert labels is not None
    fold = fold_of(sample.images, labels, folds)
    fits, best = [], []
    for number in range(folds):
        rows = np.flatnonzero(fold != number)
        stack = sample.stack(rows)
        fits.append(method.fit(Task(stack, labels[rows], sample.images[rows], score)))
        best.append(int(np.argmax([score(np.exp(member), labels[rows]) for member in stack])))
        progress("fitting on the other folds", number + 1, folds, "folds")
    names, first = np.unique(sample.images, return_index=True)
    dealt = dict(zip(map(str, names), fold[first].tolist(), strict=True))
    return CrossFitted(tuple(fits), tuple(best), dealt)


def out_of_fold(
    crossed: CrossFitted, sample: Sample, made_by: Mapping[str, Any], choose: Callable[[int], Fitted] | None = None
) -> Predictions:
    """Return predictions of a sample in which no row is combined by what was fitted on its image.

    Args:
        crossed: from `cross_fit`.
        sample: of the same images, or of others.
        made_by: noted with the result.
        choose: what combines a fold's rows; None: its fit.
    """
    fold = crossed.of(sample.images)
    logits = np.empty(sample.members[0].logits.shape, np.float32)
    for number in np.unique(fold):
        fitted = choose(int(number)) if choose else crossed.fits[number]
        rows = np.flatnonzero(fold == number)
        for part in chunks(len(rows)):
            logits[rows[part]] = fitted.combine(sample.stack(rows[part]))
    return _as_predictions(sample, logits, made_by)


def compare(
    split: str, sample: Sample, crossed: CrossFitted, whole: Fitted, held_out: Predictions, metric: str
) -> Comparison:
    """Return the ensemble beside its members on the split that it was fitted on.

    Args:
        split: its name.
        sample: the members' predictions of it.
        crossed: the method fitted on every fold's others.
        whole: fitted on all of it.
        held_out: from `out_of_fold`.
        metric: a row of `comp.metrics.METRICS`.
    """
    weights = whole.weights or (None,) * len(sample.members)
    rows = [
        _row(name, member, metric, weight)
        for name, member, weight in zip(sample.names, sample.members, weights, strict=True)
    ]
    single = out_of_fold(crossed, sample, {}, lambda number: _member(crossed.best[number]))
    fold = crossed.of(sample.images)
    right = (held_out.top1 == held_out.labels).astype(np.float64) - (single.top1 == held_out.labels)
    gains = np.array([right[fold == number].mean() for number in range(len(crossed.fits))])
    votes = np.stack([member.top1 for member in sample.members])  # [M, N]
    return Comparison(
        split=split,
        images=len(held_out),
        folds=len(crossed.fits),
        members=tuple(rows),
        disagreement=tuple(tuple(float((one != other).mean()) for other in votes) for one in votes),
        best_single=_row("best single", single, metric),
        ensemble=_row("ensemble", held_out, metric),
        gain=float(right.mean()),
        gain_error=float(gains.std(ddof=1) / np.sqrt(len(gains))),
    )


def _member(number: int) -> Fitted:
    return Fitted(lambda rows: rows[number])


def _row(name: str, found: Predictions, metric: str, weight: float | None = None) -> Row:
    scores = metrics.summary(found, metric)
    return Row(name, scores["accuracy"], scores["metric"], scores["loss"], weight)
