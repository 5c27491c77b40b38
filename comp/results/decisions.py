"""Decisions: how outputs become answers that suit the competition's metric. Torch-free.

`KINDS` has a row for each way. What a way needs is fitted on validation; its gain over the plain way (the most likely
class, or all classes from 0.5) is measured on rows that it was not fitted on. In multi-label tasks thresholds always
serve the metrics of `TUNERS`, whose best threshold depends on class frequencies (Lipton et al. 2014, arXiv:1402.1892).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from comp.config.tasks import TASKS, TaskRow
from comp.results import decision_fits, metrics, predictions
from comp.results.decision_fits import DeclaredShares
from comp.results.decision_fits import fit_cut_points as fit_cut_points
from comp.results.predictions import Predictions, Targets
from comp.results.run_metrics import Decision
from comp.results.stats import Interval, jackknife_interval
from comp.runtime.errors import ConfigError

_FOLDS = 5
_CANDIDATES = 200  # for a common threshold without a closed form
_GROUPS = 50  # of the jackknife
_LEAST_IMAGES, _LEAST_OF_A_CLASS = 100, 10
_MOST_LEVELS = 100  # of numbers that are cut


def check(setting: str, metric_name: str, row: TaskRow, *, validated: bool, shares: bool) -> None:
    """Check predict.decide against metric, task and validation.

    Raises:
        ConfigError: it does not fit them.
    """
    if shares and row.decision != "arg_max":
        raise ConfigError(
            f"competition.test_shares: not defined for task {row.name}, which does not take the likeliest class"
        )
    if setting in ("auto", "argmax"):
        return
    if setting == "prior":
        if not shares:
            raise ConfigError("predict.decide: prior needs the test's share of each class; set competition.test_shares")
        return
    if metric_name not in KINDS[setting].metrics:
        fitting = choose("auto", metric_name, shares=shares)
        choices = ", ".join(dict.fromkeys(("auto", "argmax", fitting)))
        raise ConfigError(f"predict.decide: {setting} does not serve metric {metric_name}; choose from {choices}")
    if not validated:
        raise ConfigError(
            f"predict.decide: {setting} is fitted on validation, and there is none; set data.validation or data.folds, "
            "or predict.decide=auto"
        )


def choose(setting: str, metric_name: str, *, shares: bool) -> str:
    """Return the row of KINDS, or argmax, that predict.decide asks for; `shares`: whether the test's are declared."""
    if setting != "auto":
        return setting
    plain = "prior" if shares else "argmax"
    return next((name for name, kind in KINDS.items() if metric_name in kind.metrics), plain)


def decide(
    labelled: Predictions,
    metric_name: str,
    setting: str = "auto",
    *,
    shares: DeclaredShares | None = None,
    images: NDArray[np.str_] | None = None,
) -> tuple[Predictions, Decision | None]:
    """Fit on plain validation predictions what predict.decide asks for.

    If the test's shares are declared, rows are drawn again by these shares to fit and measure on. Validation itself
    keeps its own shares, and is scored with plain decisions.

    Args:
        labelled: with targets, before any decision.
        metric_name: a row of METRICS.
        setting: value of predict.decide, which `check` has passed.
        shares: of the test, if they are declared.
        images: [N] which image each row shows; None: each row another.

    Returns:
        The predictions as they are scored: each row decided by a fit on other images. And the decision for other
        images, fitted on all of them; None if the plain way is not questioned.
    """
    kind = choose(setting, metric_name, shares=shares is not None)
    if kind == "argmax":
        return labelled, None
    numbers = np.arange(len(labelled)) if images is None else np.unique(images, return_inverse=True)[1]
    sample, shift = labelled, []
    if shares is not None:
        rows = shares.sample(labelled.known_targets().astype(np.int64))
        sample, numbers, shift = labelled.take(rows), numbers[rows], shares.shift.tolist()
    always = kind == "thresholds" and _has_thresholds(labelled)
    reason = _find_too_few(kind, sample, numbers)
    if reason and kind == setting == "prior":
        return labelled, Decision(kind=kind, shift=shift, tried=kind, reason=reason)
    if reason and not always:
        return labelled, Decision(tried=kind, reason=reason)
    shifted = _shift(sample, shift)
    crossed, fold_values = _cross_fit(kind, shifted, metric_name, numbers)
    measured = Decision(tried=kind, reason=reason)
    if not reason:
        gain, interval = _measure_gain(sample, crossed, metric_name, numbers)
        measured = measured.model_copy(update={"gain": gain, "low": interval.low, "high": interval.high})
        if setting == "auto" and not always and interval.low <= 0:
            return labelled, measured.model_copy(update={"reason": "the gain is not clearly above zero"})
    fitted = {"kind": kind, "values": KINDS[kind].fit(shifted, metric_name), "shift": shift}
    decision = measured.model_copy(update={**fitted, "fold_values": [] if shift else fold_values})
    return labelled if shares is not None else crossed, decision


def decide_without_validation(setting: str, shares: DeclaredShares | None) -> Decision | None:
    """Return the decision of a run without validation: only declared shares need nothing fitted, if asked for."""
    reason = "there is no validation to measure the gain on"
    if shares is None or setting == "argmax":
        return None
    if setting != "prior":
        return Decision(tried="prior", reason=reason)
    return Decision(kind="prior", shift=shares.shift.tolist(), tried="prior", reason=reason)


def recorded(decision: Decision | None, task: str) -> dict[str, Any]:
    """Return a decision as fields of RunMetrics; thresholds of multi-label tasks have one of their own."""
    is_own = decision is not None and decision.kind == "thresholds" and TASKS[task].decision == "thresholds"
    return {"decision": decision, "thresholds": decision.values if decision and is_own else []}


def apply(decision: Decision, plain: Predictions) -> Predictions:
    """Return predictions of images that the decision was not fitted on, decided by it."""
    if decision.kind == "argmax":
        return plain
    decided = KINDS[decision.kind].apply(_shift(plain, decision.shift), decision.values)
    return decided if _has_thresholds(plain) else _mark(decided, decision.model_dump(include=_MARKED))


def apply_to_shifted_validation(decision: Decision | None, plain: Predictions, fold: NDArray[np.int64]) -> Predictions:
    """Return predictions of shifted validation, each row by a fit without its image; the classes keep their shares.

    Decisions of earlier versions hold no such fits: they apply as they are.

    Args:
        decision: fitted on clean validation.
        plain: the predictions.
        fold: [N] of the image that each row shows, from `image_folds`; -1: of no image that was fitted on.
    """
    if decision is None or decision.shift or decision.kind == "argmax":
        return plain
    if not decision.fold_values:
        return apply(decision, plain)
    return _apply_by_fold(decision.kind, plain, fold, [*decision.fold_values, decision.values])


def apply_to_validation(decision: Decision, plain: Predictions, metric_name: str) -> Predictions:
    """Return predictions of clean validation, on which the decision was fitted: each row by a fit on other rows."""
    if decision.kind == "argmax" or decision.shift:
        return plain
    return cross_fit(decision.kind, plain, metric_name)


def cross_fit(kind: str, plain: Predictions, metric_name: str, images: NDArray[np.int64] | None = None) -> Predictions:
    """Return predictions decided in one way, each row by a fit on the other folds: their score is unbiased.

    Folds are drawn with a fixed seed: the same predictions are always decided alike.

    Args:
        kind: a row of KINDS.
        plain: with targets, before any decision.
        metric_name: a row of METRICS.
        images: [N] the number of the image that each row shows, which stays in one fold; None: each row another.
    """
    return _cross_fit(kind, plain, metric_name, images)[0]


def _cross_fit(
    kind: str, plain: Predictions, metric_name: str, images: NDArray[np.int64] | None
) -> tuple[Predictions, list[list[float]]]:
    """Return what `cross_fit` returns, and what was fitted without each fold."""
    way, fold = KINDS[kind], image_folds(plain.known_targets(), images)
    numbers = np.unique(fold)
    if len(numbers) < 2:  # one image: there is nothing else to fit on
        return plain, []
    values = [way.fit(plain.take(np.flatnonzero(fold != number)), metric_name) for number in numbers]
    return _apply_by_fold(kind, plain, fold, values), values


def _apply_by_fold(
    kind: str, plain: Predictions, fold: NDArray[np.int64], values: Sequence[Sequence[float]]
) -> Predictions:
    """Return predictions decided in one way, each row by the values of its fold."""
    rows_of = {int(number): np.flatnonzero(fold == number) for number in np.unique(fold)}
    parts = [KINDS[kind].apply(plain.take(rows), values[number]) for number, rows in rows_of.items()]
    joined = predictions.concatenate(parts).take(np.argsort(np.concatenate([*rows_of.values()])))
    crossed = replace(plain, outputs=joined.outputs, top1=joined.top1, thresholds=joined.thresholds)
    is_own = kind == "thresholds" and _has_thresholds(plain)  # which no mark is needed for
    return crossed if is_own else _mark(crossed, {"kind": kind, "cross_fitted": True})


def without_shift(decided: Predictions) -> Predictions:
    """Return predictions with probabilities for the training's shares of the classes, and a temperature undone."""
    decision = decided.made_by.get("decision", {})
    shift = decision.get("shift")
    if not shift:
        return decided
    if decision["kind"] == "temperature" and decision.get("values"):  # divides the shifted outputs
        decided = _apply_temperature(decided, [1 / decision["values"][0]])
    return _shift(decided, [-value for value in shift])


def _has_thresholds(plain: Predictions) -> bool:
    return plain.row.decision == "thresholds"


_MARKED = {"kind", "values", "shift"}  # of a Decision, in `made_by`


def _mark(decided: Predictions, decision: Mapping[str, object]) -> Predictions:
    return replace(decided, made_by={**decided.made_by, "decision": dict(decision)})


def _counted(labelled: Predictions) -> str:
    return "groups" if labelled.made_by.get("group_answer") else "images"


def _find_too_few(kind: str, labelled: Predictions, images: NDArray[np.int64]) -> str:
    """Return why nothing can be fitted or measured; empty if it can."""
    count = len(np.unique(images))
    if count < _LEAST_IMAGES:
        return f"validation has {count} {_counted(labelled)} for it, fewer than {_LEAST_IMAGES}"
    if kind in ("thresholds", "cut_points"):
        numeric = labelled.row.numeric
        counts = np.unique(labelled.target_values(), return_counts=True)[1] if numeric else labelled.truth().sum(0)
        if numeric and np.ptp(labelled.target_values()) >= _MOST_LEVELS:
            return f"the labels have {_MOST_LEVELS} levels or more, so each is rounded"
        enough = int((counts >= _LEAST_OF_A_CLASS).sum())
        if enough < 2:
            return f"fewer than two classes have {_LEAST_OF_A_CLASS} validation {_counted(labelled)} for it"
    return ""


def image_folds(targets: Targets, images: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
    """Return each row's fold [N]: even in single classes, and the same for all rows of an image.

    Args:
        targets: of validation, in its order.
        images: [N] the number of the image that each row shows; None: each row another.
    """
    numbers = np.arange(len(targets)) if images is None else images
    names, first, image_of_row = np.unique(numbers, return_index=True, return_inverse=True)
    shuffled, targets = np.random.default_rng(0).permutation(len(names)), targets[first]
    order = np.lexsort((shuffled, targets) if targets.ndim == 1 else (shuffled,))
    fold = np.empty(len(names), np.int64)
    fold[order] = np.arange(len(names)) % _FOLDS
    return fold[image_of_row]


def _measure_gain(
    plain: Predictions, decided: Predictions, metric_name: str, images: NDArray[np.int64]
) -> tuple[float, Interval]:
    """Return by how much the metric is better, whatever its direction, and the difference's interval."""
    metric = metrics.metric(metric_name)

    def gain(rows: slice | NDArray[np.int64]) -> float:
        scores = [metric.score(part.take(rows)) for part in (plain, decided)]
        return metric.as_maximize(scores[1]) - metric.as_maximize(scores[0])

    _, image_of_row = np.unique(images, return_inverse=True)
    group = (np.random.default_rng(1).permutation(int(image_of_row.max()) + 1) % _GROUPS)[image_of_row]
    value = gain(slice(None))
    return value, jackknife_interval(value, [gain(np.flatnonzero(group != number)) for number in range(_GROUPS)])


def _with_outputs(plain: Predictions, outputs: NDArray[np.float64]) -> Predictions:
    """Return predictions with other outputs [N, K], stored as `predictions.from_outputs` does."""
    if plain.row.shifted:
        return replace(plain, outputs=predictions.to_stored(outputs))
    return replace(plain, outputs=outputs.astype(np.float32))


def _shift(plain: Predictions, shift: Sequence[float]) -> Predictions:
    """Return predictions with a constant added to each class's output, which then decides."""
    if not shift:
        return plain
    outputs = plain.outputs.astype(np.float64) + shift
    return replace(_with_outputs(plain, outputs), top1=outputs.argmax(1).astype(np.int64))


def _fit_thresholds(plain: Predictions, metric_name: str) -> list[float]:
    if _has_thresholds(plain):
        return [*map(float, tune_thresholds(plain, metric_name))]
    targets = plain.known_targets().astype(np.int64)
    return [*map(float, decision_fits.fit_offsets(plain.outputs.astype(np.float64), targets, metric_name))]


def _apply_thresholds(plain: Predictions, values: Sequence[float]) -> Predictions:
    thresholds = np.array(values, np.float32)
    if _has_thresholds(plain):
        return replace(plain, thresholds=thresholds)
    return replace(plain, top1=(plain.outputs.astype(np.float32) + thresholds).argmax(1).astype(np.int64))


def _levels(plain: Predictions) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the classes from lowest to highest [K], and where the metric places them [K]."""
    positions = predictions.class_positions(plain.classes)
    order = np.argsort(positions, kind="stable")
    return order, positions[order]


def _fit_cut_points(plain: Predictions, metric_name: str) -> list[float]:
    if plain.row.numeric:
        targets = plain.target_values().astype(np.int64)
        low = int(targets.min())
        count = int(targets.max()) - low + 1
        exact = fit_cut_points(plain.values(), targets - low, count) if count > 1 else np.array([])
        stored = exact.astype(np.float32)  # rounded up: the same numbers reach them
        return [float(low), *map(float, np.where(stored < exact, np.nextafter(stored, np.float32(np.inf)), stored))]
    order, positions = _levels(plain)
    level_of_class = np.argsort(order)
    levels = level_of_class[plain.known_targets().astype(np.int64)]
    expected = plain.probabilities()[:, order] @ positions
    return [*map(float, fit_cut_points(expected, levels, len(order), positions))]


def _apply_cut_points(plain: Predictions, values: Sequence[float]) -> Predictions:
    if plain.row.numeric:
        return replace(plain, thresholds=np.array(values, np.float32))
    order, positions = _levels(plain)
    return replace(plain, top1=order[decision_fits.cut(plain.probabilities()[:, order] @ positions, np.array(values))])


def _fit_temperature(plain: Predictions, metric_name: str) -> list[float]:
    part = plain.take(np.linspace(0, len(plain) - 1, min(len(plain), decision_fits.MAX_ROWS)).astype(np.int64))

    def loss(temperature: float) -> float:
        return metrics.log_loss(_apply_temperature(part, [temperature]))

    return [decision_fits.fit_temperature(loss)]


def _apply_temperature(plain: Predictions, values: Sequence[float]) -> Predictions:
    return _with_outputs(plain, plain.outputs.astype(np.float64) / values[0])


@dataclass(frozen=True)
class Kind:
    """A way to decide.

    Attributes:
        metrics: rows of METRICS that it serves; empty: any.
        fit: labelled predictions, metric -> its values.
        apply: predictions, values -> predictions with other outputs or decisions.
        size: number of classes -> number of values.
    """

    metrics: tuple[str, ...]
    fit: Callable[[Predictions, str], list[float]]
    apply: Callable[[Predictions, Sequence[float]], Predictions]
    size: Callable[[int], int]


KINDS = {
    "thresholds": Kind(
        ("macro_f1", "weighted_f1", "balanced_accuracy", "micro_f1", "samples_f1"),
        _fit_thresholds,
        _apply_thresholds,
        lambda classes: classes,
    ),
    "cut_points": Kind(("quadratic_weighted_kappa",), _fit_cut_points, _apply_cut_points, lambda classes: classes - 1),
    "temperature": Kind(("log_loss",), _fit_temperature, _apply_temperature, lambda classes: 1),
    # The shift of the outputs, which any kind begins with, is all.
    "prior": Kind((), lambda plain, metric_name: [], lambda plain, values: plain, lambda classes: 0),
}
"""What each row is:

thresholds: An offset for each class's output, or a threshold for each label, for F1 and balanced accuracy (plug-in
    rule, Narasimhan et al. 2014; logit adjustment, Menon et al. 2020, arXiv:2007.07314).
cut_points: Cut points of the expected class or of the number, for quadratic weighted kappa.
temperature: One temperature for all outputs, for the log loss (Guo et al. 2017, arXiv:1706.04599).
prior: Probabilities for the test's class shares in `competition.test_shares` (Saerens et al. 2002).
"""


def is_sound(decision: Decision, classes: int, *, numeric: bool) -> bool:
    """Return whether a decision that was read has the right number of values."""
    if decision.kind == "argmax":
        return True
    if numeric:  # the lowest level and the cut points above it
        return decision.kind == "cut_points" and all(map(len, (decision.values, *decision.fold_values)))
    kind, shift = KINDS.get(decision.kind), decision.shift
    fits = (decision.values, *decision.fold_values)
    whole = kind is not None and all(len(fit) == kind.size(classes) for fit in fits) and len(shift) in (0, classes)
    return whole and (decision.kind != "temperature" or all(fit[0] > 0 for fit in fits))


def needs_thresholds(predictions: Predictions, metric_name: str) -> bool:
    """Return whether the task decides by thresholds and the metric depends on them."""
    return predictions.row.decision == "thresholds" and metric_name in TUNERS


def tune_thresholds(predictions: Predictions, metric_name: str) -> NDArray[np.float32]:
    """Return the probability thresholds [K] that are best for the metric on these predictions.

    Args:
        predictions: of a task that decides by thresholds, with targets.
        metric_name: a row of TUNERS.
    """
    return TUNERS[metric_name](predictions)


def prepare_for_scoring(predictions: Predictions, metric_name: str) -> Predictions:
    """Return validation predictions, with cross-fitted thresholds if the metric needs them."""
    return (
        cross_fit("thresholds", predictions, metric_name) if needs_thresholds(predictions, metric_name) else predictions
    )


def _each_class(predictions: Predictions) -> NDArray[np.float32]:
    """Return the best threshold for each class's F1."""
    probabilities, truth = predictions.probabilities(), predictions.truth()
    best = [decision_fits.fit_f1_threshold(probabilities[:, c], truth[:, c]) for c in range(truth.shape[1])]
    return np.array(best, np.float32)


def _all_pairs(predictions: Predictions) -> NDArray[np.float32]:
    """Return one threshold for all classes, best for the F1 of all (image, class) pairs."""
    best = decision_fits.fit_f1_threshold(predictions.probabilities().ravel(), predictions.truth().ravel())
    return np.full(len(predictions.classes), best, np.float32)


def _each_sample(predictions: Predictions) -> NDArray[np.float32]:
    """Return one threshold for all classes, best for the mean F1 of images among quantiles of the probabilities."""
    quantiles = np.linspace(0, 1, _CANDIDATES)
    candidates = np.unique(np.append(np.quantile(predictions.probabilities(), quantiles), 0.5)).astype(np.float32)
    classes = len(predictions.classes)
    scores = [
        metrics.samples_f1(replace(predictions, thresholds=np.full(classes, candidate, np.float32)))
        for candidate in candidates
    ]
    return np.full(classes, decision_fits.nearest_half(candidates, np.array(scores)), np.float32)


# A metric of decisions -> the function that tunes its thresholds.
TUNERS: dict[str, Callable[[Predictions], NDArray[np.float32]]] = {
    "macro_f1": _each_class,
    "micro_f1": _all_pairs,
    "samples_f1": _each_sample,
}
