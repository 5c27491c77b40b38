"""Diagnostics of labelled predictions: by class, confusion, confidence and distortion. Torch-free.

Precision, recall and F1 follow scikit-learn with `zero_division=0`: a class that is never predicted has precision 0.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from comp.results import metrics
from comp.results.blocks import DISTORTIONS, distortion_and_severity
from comp.results.predictions import Predictions
from comp.runtime.errors import RunError

FILE = "evaluation.json"  # in a run folder
# A class's score in evaluation.json -> its heading.
CLASS_SCORES = {
    "precision": "precision",
    "recall": "recall",
    "f1": "F1",
    "roc_auc": "ROC AUC",
    "average_precision": "average precision",
    "threshold": "threshold",
}
_BINS = 15  # of equal width in the reliability diagram (Guo et al. 2017, arXiv:1706.04599)
_TOP = 5
_CONFUSED_PAIRS = 10
_MAX_POINTS = 500  # of predicted numbers, enough to see their spread
_MAX_ORDERED = 200  # classes; the best order of the leaves takes cubic time


def diagnose(predictions: Predictions) -> dict[str, Any]:
    """Return the diagnostics of labelled predictions as plain values.

    Returns:
        For numbers: `images`, and `numbers`: `rmse`, `mae`, `r2` (None if undefined), the mean error `bias`, and the
        absolute error that nine in ten images stay below, `p90`; `points`: (true, predicted) of some. For classes:
        `images`, `accuracy`, `loss` (nats); `macro` and `weighted`, each with `precision`, `recall` and `f1`;
        `classes`: the same for each class with its `images`; `calibration`: see `calibration`. For single-label tasks
        also `top5`; `confusion`: counts, rows are true classes; `order`: see `class_order`; `confused`: the most
        frequent (true class, predicted class, count). For multi-label tasks also `micro`, and each class's `roc_auc`,
        `average_precision` and `threshold`.
    """
    if predictions.row.numeric:
        errors = predictions.values() - predictions.target_values()
        scored = metrics.summarize(predictions, predictions.row.reported[0])
        numbers = {name: scored.value(name) for name in predictions.row.reported}
        numbers |= {"bias": float(errors.mean()), "p90": float(np.quantile(np.abs(errors), 0.9))}
        pairs = np.stack([predictions.target_values(), predictions.values()], 1)
        points = pairs[:: math.ceil(len(pairs) / _MAX_POINTS)]
        return {"images": len(predictions), "numbers": numbers, "points": points.tolist()}
    counts = metrics.class_counts(predictions)
    by_class = class_scores(*counts)
    support = counts[1]
    details = _multi_label_details(predictions) if predictions.top1 is None else _single_label_details(predictions)
    extra = details.pop("by_class")
    return {
        "images": len(predictions),
        "accuracy": metrics.accuracy(predictions),
        "loss": metrics.log_loss(predictions),
        "macro": {name: float(values.mean()) for name, values in by_class.items()},
        "weighted": {
            name: float((values * support).sum() / max(support.sum(), 1)) for name, values in by_class.items()
        },
        "classes": [
            {
                "name": name,
                "images": int(support[row]),
                **{key: float(v[row]) for key, v in by_class.items()},
                **extra[row],
            }
            for row, name in enumerate(predictions.classes)
        ],
        **details,
        "calibration": calibration(predictions),
    }


def _single_label_details(predictions: Predictions) -> dict[str, Any]:
    table = metrics.confusion(predictions)
    return {
        "top5": top_accuracy(predictions, _TOP),
        "confusion": table.tolist(),
        "order": class_order(table, keep=predictions.task == "ordinal"),
        "confused": most_confused(table, predictions.classes),
        "by_class": [{}] * len(predictions.classes),
    }


def _multi_label_details(predictions: Predictions) -> dict[str, Any]:
    probabilities, truth, thresholds = predictions.probabilities(), predictions.truth(), predictions.thresholds
    if thresholds is None:
        thresholds = np.full(len(predictions.classes), 0.5, np.float32)
    counts = [np.array([values.sum()]) for values in metrics.class_counts(predictions)]
    return {
        "micro": {name: float(value[0]) for name, value in class_scores(*counts).items()},
        "by_class": [
            {
                "roc_auc": _rank_score(metrics.area_under_roc, probabilities[:, row], truth[:, row]),
                "average_precision": _rank_score(metrics.average_precision, probabilities[:, row], truth[:, row]),
                "threshold": float(np.atleast_2d(thresholds)[:, row].mean()),
            }
            for row in range(len(predictions.classes))
        ],
    }


def _rank_score(
    score: metrics.ColumnScore, probabilities: NDArray[np.float64], truth: NDArray[np.bool_]
) -> float | None:
    """Return a score of one class's ranking; None if all images have the class, or none has."""
    return score(probabilities, truth) if 0 < np.count_nonzero(truth) < len(truth) else None


def class_scores(
    correct: NDArray[np.int64], targets: NDArray[np.int64], decisions: NDArray[np.int64]
) -> dict[str, NDArray[np.float64]]:
    """Return `precision`, `recall` and `f1`, each [C], from `metrics.class_counts`."""
    return {
        "precision": correct / np.maximum(decisions, 1),
        "recall": correct / np.maximum(targets, 1),
        "f1": 2 * correct / np.maximum(targets + decisions, 1),
    }


def top_accuracy(predictions: Predictions, count: int) -> float:
    """Return the share of images whose true class is among the `count` most likely ones; ties count as correct."""
    targets = predictions.known_targets().astype(np.int64)
    true_outputs = predictions.outputs[np.arange(len(targets)), targets]
    return float(((predictions.outputs > true_outputs[:, None]).sum(1) < count).mean())


def most_confused(table: NDArray[np.int64], classes: tuple[str, ...]) -> list[tuple[str, str, int]]:
    """Return the most frequent mistakes as (true class, predicted class, count), most frequent first."""
    wrong = table - np.diag(table.diagonal())
    cells = np.argsort(-wrong, axis=None, kind="stable")[:_CONFUSED_PAIRS]
    pairs = [divmod(int(cell), len(classes)) for cell in cells]
    return [
        (classes[true], classes[predicted], int(wrong[true, predicted]))
        for true, predicted in pairs
        if wrong[true, predicted]
    ]


def class_order(table: NDArray[np.int64], *, keep: bool) -> list[int]:
    """Return the classes in an order that puts those next to each other that are confused most.

    By average linkage of one minus the share of two classes' images that are taken for the other, its leaves ordered
    after Bar-Joseph et al. 2001; `keep` returns them as they are, for grades.
    """
    if keep or len(table) < 3:
        return list(range(len(table)))
    from scipy.cluster import hierarchy  # type: ignore[import-untyped]  # slow, and scores need none
    from scipy.spatial.distance import squareform  # type: ignore[import-untyped]

    shares = table / np.maximum(table.sum(1, keepdims=True), 1)
    distances = 1 - (shares + shares.T) / 2
    np.fill_diagonal(distances, 0)
    linkage = hierarchy.linkage(squareform(distances), "average", optimal_ordering=len(table) <= _MAX_ORDERED)
    return [int(row) for row in hierarchy.leaves_list(linkage)]


def confidences(predictions: Predictions) -> NDArray[np.float32]:
    """Return the probability of each row's decision [N], for tasks that decide on one class."""
    assert predictions.top1 is not None
    odds = np.exp(predictions.outputs.astype(np.float32))  # rows' maxima are 1
    confidence: NDArray[np.float32] = odds[np.arange(len(odds)), predictions.top1] / odds.sum(1)
    return confidence


def calibration(predictions: Predictions) -> dict[str, Any]:
    """Return the calibration: how confidence and accuracy differ.

    For single-label tasks, confidence is a row's top probability and accuracy the share of correct rows; for others,
    they are the probability of each (image, class) pair and the share of pairs whose class is present.

    Returns:
        `ece`: expected calibration error, the mean gap weighted by images; `bins`: the non-empty ones with `low`,
        `high`, `images`, mean `confidence` and `accuracy`.
    """
    if predictions.top1 is None:
        confidence, correct = predictions.probabilities().astype(np.float32).ravel(), predictions.truth().ravel()
    else:
        confidence, correct = confidences(predictions), predictions.correct()
    bin_of_row = np.minimum((confidence * _BINS).astype(np.int64), _BINS - 1)
    bins = [
        {
            "low": number / _BINS,
            "high": (number + 1) / _BINS,
            "images": int(rows.sum()),
            "confidence": float(confidence[rows].mean()),
            "accuracy": float(correct[rows].mean()),
        }
        for number in range(_BINS)
        if (rows := bin_of_row == number).any()
    ]
    gaps = sum(row["images"] * abs(row["confidence"] - row["accuracy"]) for row in bins)
    return {"ece": gaps / len(confidence), "bins": bins}


def find_worst_mistakes(predictions: Predictions, count: int) -> NDArray[np.int64]:
    """Return up to `count` wrong rows, worst first: most confident mistakes, or largest losses or errors."""
    if predictions.row.numeric:
        errors = np.abs(predictions.values() - predictions.target_values())
        return np.argsort(-errors, kind="stable")[:count]
    wrong = np.flatnonzero(~predictions.correct())
    badness = metrics.row_losses(predictions) if predictions.top1 is None else confidences(predictions)
    rows: NDArray[np.int64] = wrong[np.argsort(-badness[wrong], kind="stable")[:count]]
    return rows


def describe(predictions: Predictions, row: int) -> dict[str, Any]:
    """Return a row's `true` and `predicted` class, classes or number as text, and its `confidence`, None without."""
    one = predictions.take(slice(row, row + 1))
    if one.row.numeric:
        return {"true": f"{one.target_values()[0]:.6g}", "predicted": f"{one.values()[0]:.6g}", "confidence": None}
    names = [
        ", ".join(one.classes[column] for column in np.flatnonzero(labels[0])) or "none"
        for labels in (one.truth(), one.decisions())
    ]
    confidence = None if one.top1 is None else float(confidences(one)[0])
    return {"true": names[0], "predicted": names[1], "confidence": confidence}


def mean_corruption_error(blocks: Mapping[str, float], baseline: Mapping[str, float]) -> float:
    """Return the mean over distortions of the error relative to a baseline's, in per cent: 100 equals the baseline.

    After Hendrycks and Dietterich 2019, arXiv:1903.12261, equation 1: errors are summed over severities, then divided.

    Args:
        blocks: `distortion00_1` -> accuracy.
        baseline: likewise, for the same blocks.

    Raises:
        RunError: the blocks differ, or the baseline has no errors in one distortion.
    """
    if blocks.keys() != baseline.keys():
        raise RunError(
            f"--baseline: its {len(baseline)} blocks differ from the {len(blocks)} of this run; predict the same suite "
            "with both"
        )
    errors: dict[int, tuple[float, float]] = {}
    for name, accuracy in blocks.items():
        distortion, _ = distortion_and_severity(name)
        run_error, baseline_error = errors.get(distortion, (0.0, 0.0))
        errors[distortion] = run_error + 1 - accuracy, baseline_error + 1 - baseline[name]
    if any(baseline_error == 0 for _, baseline_error in errors.values()):
        raise RunError("--baseline: has no errors in one of the distortions, so no relative error is defined")
    return 100 * float(np.mean([run_error / baseline_error for run_error, baseline_error in errors.values()]))


def accuracy_grid(by_block: Mapping[str, float]) -> tuple[list[str], list[str], NDArray[np.float64]]:
    """Return the blocks' distortions, severities and accuracies [distortions, severities], NaN for missing blocks."""
    cells = {distortion_and_severity(name): value for name, value in by_block.items()}
    numbers = list(dict.fromkeys(number for number, _ in cells))
    columns = sorted({severity for _, severity in cells})
    table = np.array([[cells.get((number, severity), np.nan) for severity in columns] for number in numbers])
    names = [DISTORTIONS[n] if n < len(DISTORTIONS) else f"distortion{n:02d}" for n in numbers]
    return names, [str(severity) for severity in columns], table
