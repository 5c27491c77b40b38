"""What labelled predictions tell beyond one score: by class, by confusion, by confidence, by distortion. NumPy alone.

Precision, recall and F1 are scikit-learn's with `zero_division=0`: a class that is never answered has precision 0.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from comp import metrics
from comp.competition.spec import DISTORTIONS
from comp.errors import RunError
from comp.predictions import Predictions

FILE = "evaluation.json"  # where a run keeps its diagnoses
_BINS = 15  # of the reliability diagram, equally wide (Guo et al. 2017, arXiv:1706.04599)
_TOP = 5
_CONFUSED_PAIRS = 10


def diagnose(found: Predictions) -> dict[str, Any]:
    """Return all that is told of labelled predictions, as plain values.

    Returns:
        `images`, `accuracy`, `top5`, `loss` (nats); `macro` and `weighted`, each with `precision`, `recall` and `f1`;
        `classes`: the same of every class with its `images`; `confusion`: counts, rows are labels; `confused`: the most
        frequent (label, answer, count); `calibration`: see `calibration`.
    """
    table = metrics.confusion(found)
    by_class = class_scores(table)
    support = table.sum(1)
    return {
        "images": len(found),
        "accuracy": metrics.accuracy(found),
        "top5": top_accuracy(found, _TOP),
        "loss": metrics.log_loss(found),
        "macro": {name: float(values.mean()) for name, values in by_class.items()},
        "weighted": {name: float((values * support).sum() / support.sum()) for name, values in by_class.items()},
        "classes": [
            {"name": name, "images": int(support[row]), **{key: float(v[row]) for key, v in by_class.items()}}
            for row, name in enumerate(found.classes)
        ],
        "confusion": table.tolist(),
        "confused": confused(table, found.classes),
        "calibration": calibration(found),
    }


def class_scores(table: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
    """Return `precision`, `recall` and `f1` of every class, each [C], from a confusion table [labels, answers]."""
    right, labels, answers = table.diagonal(), table.sum(1), table.sum(0)
    return {
        "precision": right / np.maximum(answers, 1),
        "recall": right / np.maximum(labels, 1),
        "f1": 2 * right / np.maximum(labels + answers, 1),
    }


def top_accuracy(found: Predictions, count: int) -> float:
    """Return the share of images whose label is among the `count` likeliest classes; ties count for the image."""
    labels = metrics.known_labels(found)
    own = found.logits[np.arange(len(labels)), labels]
    return float(((found.logits > own[:, None]).sum(1) < count).mean())


def confused(table: NDArray[np.int64], classes: tuple[str, ...]) -> list[tuple[str, str, int]]:
    """Return the most frequent mistakes as (label, answer, count), most frequent first."""
    wrong = table - np.diag(table.diagonal())
    cells = np.argsort(-wrong, axis=None, kind="stable")[:_CONFUSED_PAIRS]
    pairs = [divmod(int(cell), len(classes)) for cell in cells]
    return [
        (classes[label], classes[answer], int(wrong[label, answer])) for label, answer in pairs if wrong[label, answer]
    ]


def confidences(found: Predictions) -> NDArray[np.float32]:
    """Return each row's top probability [N]."""
    top: NDArray[np.float32] = 1 / np.exp(found.logits.astype(np.float32)).sum(1)  # rows' maxima are 0
    return top


def calibration(found: Predictions) -> dict[str, Any]:
    """Return how far confidence and accuracy are apart.

    Returns:
        `ece`: expected calibration error, the mean gap weighted by images; `bins`: of the filled ones `low`, `high`,
        `images`, mean `confidence` and `accuracy`.
    """
    sure, right = confidences(found), found.top1 == metrics.known_labels(found)
    places = np.minimum((sure * _BINS).astype(np.int64), _BINS - 1)
    bins = [
        {"low": number / _BINS, "high": (number + 1) / _BINS, "images": int(rows.sum()),
         "confidence": float(sure[rows].mean()), "accuracy": float(right[rows].mean())}
        for number in range(_BINS) if (rows := places == number).any()
    ]  # fmt: skip
    gaps = sum(row["images"] * abs(row["confidence"] - row["accuracy"]) for row in bins)
    return {"ece": gaps / len(found), "bins": bins}


def worst(found: Predictions, count: int) -> NDArray[np.int64]:
    """Return the rows of the mistakes that the model was surest of, surest first, at most `count`."""
    wrong = np.flatnonzero(found.top1 != metrics.known_labels(found))
    return wrong[np.argsort(-confidences(found)[wrong], kind="stable")[:count]]


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
    errors: dict[str, tuple[float, float]] = {}
    for name, accuracy in blocks.items():
        distortion = name.partition("_")[0]
        own, theirs = errors.get(distortion, (0.0, 0.0))
        errors[distortion] = own + 1 - accuracy, theirs + 1 - baseline[name]
    if any(theirs == 0 for _, theirs in errors.values()):
        raise RunError("--baseline: makes no error under one of the distortions, so nothing is relative to it")
    return 100 * float(np.mean([own / theirs for own, theirs in errors.values()]))


def grid(by_block: Mapping[str, float]) -> tuple[list[str], list[str], NDArray[np.float64]]:
    """Return distortions, severities and accuracies [distortions, severities] of `distortion00_1` -> accuracy.

    NaN where there is no such block.
    """
    cells = {tuple(name.removeprefix("distortion").split("_")): value for name, value in by_block.items()}
    numbers = list(dict.fromkeys(number for number, _ in cells))
    columns = sorted({severity for _, severity in cells}, key=int)
    table = np.array([[cells.get((number, severity), np.nan) for severity in columns] for number in numbers])
    names = [DISTORTIONS[int(n)] if int(n) < len(DISTORTIONS) else f"distortion{n}" for n in numbers]
    return names, columns, table
