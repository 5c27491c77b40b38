"""What labelled predictions tell beyond one score: by class, by confusion, by confidence, by distortion. NumPy alone.

Precision, recall and F1 are scikit-learn's with `zero_division=0`: a class that is never answered has precision 0.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from comp.results import metrics
from comp.results.blocks import DISTORTIONS, distortion_and_severity
from comp.results.predictions import Predictions
from comp.runtime.errors import RunError

FILE = "evaluation.json"  # where a run keeps its diagnoses
# Of every class: its key in evaluation.json -> how it is shown.
CLASS_SCORES = {
    "precision": "precision", "recall": "recall", "f1": "F1", "roc_auc": "ROC AUC",
    "average_precision": "average precision", "threshold": "threshold",
}  # fmt: skip
_BINS = 15  # of the reliability diagram, equally wide (Guo et al. 2017, arXiv:1706.04599)
_TOP = 5
_CONFUSED_PAIRS = 10


def diagnose(found: Predictions) -> dict[str, Any]:
    """Return all that labelled predictions show, as plain values.

    Returns:
        `images`, `accuracy`, `loss` (nats); `macro` and `weighted`, each with `precision`, `recall` and `f1`;
        `classes`: the same of every class with its `images`; `calibration`: see `calibration`. Where classes exclude
        each other also `top5`; `confusion`: counts, rows are labels; `confused`: the most frequent (label, answer,
        count). Elsewhere also `micro`, and of every class `roc_auc`, `average_precision` and `threshold`.
    """
    counts = metrics.class_counts(found)
    by_class = class_scores(*counts)
    support = counts[1]
    details = _of_independent_classes(found) if found.top1 is None else _of_exclusive_classes(found)
    extra = details.pop("by_class")
    return {
        "images": len(found),
        "accuracy": metrics.accuracy(found),
        "loss": metrics.log_loss(found),
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
            for row, name in enumerate(found.classes)
        ],
        **details,
        "calibration": calibration(found),
    }


def _of_exclusive_classes(found: Predictions) -> dict[str, Any]:
    table = metrics.confusion(found)
    return {
        "top5": top_accuracy(found, _TOP),
        "confusion": table.tolist(),
        "confused": most_confused(table, found.classes),
        "by_class": [{}] * len(found.classes),
    }


def _of_independent_classes(found: Predictions) -> dict[str, Any]:
    probabilities, truth, thresholds = found.probabilities(), found.truth(), found.thresholds
    if thresholds is None:
        thresholds = np.full(len(found.classes), 0.5, np.float32)
    counts = [np.array([values.sum()]) for values in metrics.class_counts(found)]
    return {
        "micro": {name: float(value[0]) for name, value in class_scores(*counts).items()},
        "by_class": [
            {
                "roc_auc": _ranked(metrics.area_under_roc, probabilities[:, row], truth[:, row]),
                "average_precision": _ranked(metrics.average_precision, probabilities[:, row], truth[:, row]),
                "threshold": float(np.atleast_2d(thresholds)[:, row].mean()),
            }
            for row in range(len(found.classes))
        ],
    }


def _ranked(score: metrics.ColumnScore, probabilities: NDArray[np.float64], truth: NDArray[np.bool_]) -> float | None:
    """Return a score of one class's ranking; None where all images have the class, or none has."""
    return score(probabilities, truth) if 0 < np.count_nonzero(truth) < len(truth) else None


def class_scores(
    right: NDArray[np.int64], labels: NDArray[np.int64], answers: NDArray[np.int64]
) -> dict[str, NDArray[np.float64]]:
    """Return `precision`, `recall` and `f1` of every class, each [C], from `metrics.class_counts`."""
    return {
        "precision": right / np.maximum(answers, 1),
        "recall": right / np.maximum(labels, 1),
        "f1": 2 * right / np.maximum(labels + answers, 1),
    }


def top_accuracy(found: Predictions, count: int) -> float:
    """Return the share of images whose label is among the `count` likeliest classes; ties count for the image."""
    labels = found.known_targets().astype(np.int64)
    own = found.outputs[np.arange(len(labels)), labels]
    return float(((found.outputs > own[:, None]).sum(1) < count).mean())


def most_confused(table: NDArray[np.int64], classes: tuple[str, ...]) -> list[tuple[str, str, int]]:
    """Return the most frequent mistakes as (label, answer, count), most frequent first."""
    wrong = table - np.diag(table.diagonal())
    cells = np.argsort(-wrong, axis=None, kind="stable")[:_CONFUSED_PAIRS]
    pairs = [divmod(int(cell), len(classes)) for cell in cells]
    return [
        (classes[label], classes[answer], int(wrong[label, answer])) for label, answer in pairs if wrong[label, answer]
    ]


def confidences(found: Predictions) -> NDArray[np.float32]:
    """Return each row's top probability [N], of classes that exclude each other."""
    top: NDArray[np.float32] = 1 / np.exp(found.outputs.astype(np.float32)).sum(1)  # rows' maxima are 0
    return top


def calibration(found: Predictions) -> dict[str, Any]:
    """Return how far confidence and accuracy are apart.

    Of exclusive classes, confidence is a row's top probability and accuracy the share of right rows; of others, each
    (image, class) pair counts: its probability, and the share of pairs where the class is there.

    Returns:
        `ece`: expected calibration error, the mean gap weighted by images; `bins`: of the filled ones `low`, `high`,
        `images`, mean `confidence` and `accuracy`.
    """
    if found.top1 is None:
        sure, right = found.probabilities().astype(np.float32).ravel(), found.truth().ravel()
    else:
        sure, right = confidences(found), found.correct()
    places = np.minimum((sure * _BINS).astype(np.int64), _BINS - 1)
    bins = [
        {"low": number / _BINS, "high": (number + 1) / _BINS, "images": int(rows.sum()),
         "confidence": float(sure[rows].mean()), "accuracy": float(right[rows].mean())}
        for number in range(_BINS) if (rows := places == number).any()
    ]  # fmt: skip
    gaps = sum(row["images"] * abs(row["confidence"] - row["accuracy"]) for row in bins)
    return {"ece": gaps / len(sure), "bins": bins}


def find_worst_mistakes(found: Predictions, count: int) -> NDArray[np.int64]:
    """Return at most `count` rows to look at, worst first: the surest mistakes; without a top class, largest losses."""
    wrong = np.flatnonzero(~found.correct())
    badness = metrics.row_losses(found) if found.top1 is None else confidences(found)
    rows: NDArray[np.int64] = wrong[np.argsort(-badness[wrong], kind="stable")[:count]]
    return rows


def mistake_title(found: Predictions, row: int) -> str:
    """Return what is wrong in a row: label, answer and confidence; of several classes, those missed and those added."""
    one = found.take(slice(row, row + 1))
    if one.top1 is not None:
        label, answer = int(one.known_targets()[0]), int(one.top1[0])
        return f"{one.classes[label]}: {one.classes[answer]} {100 * confidences(one)[0]:.0f}%"
    decided, truth = one.decisions()[0], one.truth()[0]
    marked = (("-", truth & ~decided), ("+", decided & ~truth))
    return " ".join(f"{sign}{found.classes[column]}" for sign, columns in marked for column in np.flatnonzero(columns))


def mean_corruption_error(blocks: Mapping[str, float], baseline: Mapping[str, float]) -> float:
    """Return the mean over distortions of the error relative to a baseline's, in per cent: 100 is as bad as it.

    After Hendrycks and Dietterich 2019, arXiv:1903.12261, equation 1: a distortion's errors are summed over severities
    before they are divided.

    Args:
        blocks: `distortion00_1` -> accuracy.
        baseline: likewise, of the same blocks.

    Raises:
        RunError: the blocks are others, or the baseline makes no error under a distortion.
    """
    if blocks.keys() != baseline.keys():
        raise RunError(
            f"--baseline: scored on {len(baseline)} blocks, which are not the {len(blocks)} of this run; predict the "
            "same suite with both"
        )
    errors: dict[int, tuple[float, float]] = {}
    for name, accuracy in blocks.items():
        distortion, _ = distortion_and_severity(name)
        own, theirs = errors.get(distortion, (0.0, 0.0))
        errors[distortion] = own + 1 - accuracy, theirs + 1 - baseline[name]
    if any(theirs == 0 for _, theirs in errors.values()):
        raise RunError("--baseline: makes no error under one of the distortions, so nothing is relative to it")
    return 100 * float(np.mean([own / theirs for own, theirs in errors.values()]))


def accuracy_grid(by_block: Mapping[str, float]) -> tuple[list[str], list[str], NDArray[np.float64]]:
    """Return distortions, severities and accuracies [distortions, severities] of `distortion00_1` -> accuracy.

    NaN where there is no such block.
    """
    cells = {distortion_and_severity(name): value for name, value in by_block.items()}
    numbers = list(dict.fromkeys(number for number, _ in cells))
    columns = sorted({severity for _, severity in cells})
    table = np.array([[cells.get((number, severity), np.nan) for severity in columns] for number in numbers])
    names = [DISTORTIONS[n] if n < len(DISTORTIONS) else f"distortion{n:02d}" for n in numbers]
    return names, [str(severity) for severity in columns], table
