"""Decision thresholds of multi-label tasks, tuned on validation. NumPy only.

Metrics of probabilities (roc_auc, log loss) need no threshold, and accuracy keeps 0.5. `TUNERS` has a row for each
metric whose best threshold depends on class frequencies (Lipton et al. 2014, arXiv:1402.1892).
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from comp.results import metrics
from comp.results.decision_fits import fit_cut_points as fit_cut_points
from comp.results.predictions import Predictions

_FOLDS = 5
_CANDIDATES = 200  # for a common threshold without a closed form
_DEFAULT = np.float32(0.5)


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


def cross_fit_thresholds(predictions: Predictions, metric_name: str, folds: int = _FOLDS) -> Predictions:
    """Return the predictions with thresholds [N, K], each row's tuned on the other folds: their score is unbiased.

    Folds are drawn with a fixed seed: the same predictions always give the same thresholds.
    """
    rows = len(predictions)
    thresholds = np.full(predictions.outputs.shape, _DEFAULT)
    folds_of_rows = np.random.default_rng(0).permutation(rows) % folds
    for fold in range(min(folds, rows)):
        other_rows = np.flatnonzero(folds_of_rows != fold)
        if len(other_rows):
            thresholds[folds_of_rows == fold] = tune_thresholds(predictions.take(other_rows), metric_name)
    return replace(predictions, thresholds=thresholds)


def prepare_for_scoring(predictions: Predictions, metric_name: str) -> Predictions:
    """Return validation predictions, with cross-fitted thresholds if the metric needs them."""
    return cross_fit_thresholds(predictions, metric_name) if needs_thresholds(predictions, metric_name) else predictions


def _each_class(predictions: Predictions) -> NDArray[np.float32]:
    """Return the best threshold for each class's F1."""
    probabilities, truth = predictions.probabilities(), predictions.truth()
    best = [_best_f1_threshold(probabilities[:, c], truth[:, c]) for c in range(truth.shape[1])]
    return np.array(best, np.float32)


def _all_pairs(predictions: Predictions) -> NDArray[np.float32]:
    """Return one threshold for all classes, best for the F1 of all (image, class) pairs."""
    best = _best_f1_threshold(predictions.probabilities().ravel(), predictions.truth().ravel())
    return np.full(len(predictions.classes), best, np.float32)


def _each_sample(predictions: Predictions) -> NDArray[np.float32]:
    """Return one threshold for all classes, best for the mean F1 of images among quantiles of the probabilities."""
    quantiles = np.linspace(0, 1, _CANDIDATES)
    candidates = np.unique(np.append(np.quantile(predictions.probabilities(), quantiles), _DEFAULT)).astype(np.float32)
    classes = len(predictions.classes)
    scores = [
        metrics.samples_f1(replace(predictions, thresholds=np.full(classes, candidate, np.float32)))
        for candidate in candidates
    ]
    return np.full(classes, _nearest_half(candidates, np.array(scores)), np.float32)


def _best_f1_threshold(probabilities: NDArray[np.float64], truth: NDArray[np.bool_]) -> float:
    """Return the midpoint between sorted probabilities [N] with the best F1; 0.5 if the class never occurs."""
    if not truth.any():
        return float(_DEFAULT)
    distinct, index = np.unique(probabilities, return_inverse=True)  # ascending
    decided = np.cumsum(np.bincount(index)[::-1])[::-1]  # rows at or above each distinct probability
    both = np.cumsum(np.bincount(index, weights=truth)[::-1])[::-1]
    scores = 2 * both / (decided + truth.sum())
    midpoints = (distinct + np.concatenate(([0.0], distinct[:-1]))) / 2
    return float(_nearest_half(midpoints, scores))


def _nearest_half(candidates: NDArray[np.floating], scores: NDArray[np.float64]) -> np.floating:
    """Return the candidate with the best score; of equal ones, the nearest to 0.5."""
    best = candidates[scores == scores.max()]
    nearest: np.floating = best[np.abs(best - 0.5).argmin()]
    return nearest


# A metric of decisions -> the function that tunes its thresholds.
TUNERS: dict[str, Callable[[Predictions], NDArray[np.float32]]] = {
    "macro_f1": _each_class,
    "micro_f1": _all_pairs,
    "samples_f1": _each_sample,
}
