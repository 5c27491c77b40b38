"""Scores of predictions, in NumPy alone.

A competition's metric is a row of `METRICS` with its direction; accuracy and loss are reported beside it always.
Definitions are scikit-learn's where it has one; where it gives up (a class that no label has) the docstring says what
is done here, so that a score is always a number.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from comp.errors import ConfigError, unknown
from comp.predictions import Predictions


def accuracy(predictions: Predictions) -> float:
    """Return the share of right answers, in [0, 1]."""
    return float((predictions.top1 == known_labels(predictions)).mean())


def balanced_accuracy(predictions: Predictions) -> float:
    """Return the mean over classes of the share found, in [0, 1]; classes that no label has do not count."""
    table = confusion(predictions)
    support = table.sum(1)
    occurs = support > 0
    return float((table.diagonal()[occurs] / support[occurs]).mean())


def macro_f1(predictions: Predictions) -> float:
    """Return the mean F1 over classes that occur as label or answer, in [0, 1]."""
    scores, _, occurs = _f1_by_class(predictions)
    return float(scores[occurs].mean())


def weighted_f1(predictions: Predictions) -> float:
    """Return the mean F1 weighted by how many labels each class has, in [0, 1]."""
    scores, support, _ = _f1_by_class(predictions)
    return float((scores * support).sum() / support.sum())


def log_loss(predictions: Predictions) -> float:
    """Return the mean negative log likelihood in nats."""
    labels = known_labels(predictions)
    logits = predictions.logits.astype(np.float32)
    log_partition = np.log(np.exp(logits).sum(1))  # rows' maxima are 0: no overflow
    return float((log_partition - logits[np.arange(len(labels)), labels]).mean())


def roc_auc(predictions: Predictions) -> float:
    """Return the area under the ROC curve in [0, 1]: of class 1 where there are two, else the mean of one-vs-rest.

    A class that no label has, or that all have, has no curve and does not count; 0.5 where no class has one.
    """
    labels = known_labels(predictions)
    shares = np.exp(predictions.logits.astype(np.float64))
    shares /= shares.sum(1, keepdims=True)  # [N, C]
    classes = (1,) if shares.shape[1] == 2 else range(shares.shape[1])
    areas = [_area(shares[:, c], labels == c) for c in classes if 0 < np.count_nonzero(labels == c) < len(labels)]
    return float(np.mean(areas)) if areas else 0.5


def quadratic_weighted_kappa(predictions: Predictions) -> float:
    """Return Cohen's kappa with squared distances between class indices as weights, at most 1 (Cohen 1968).

    The classes are taken for an ordinal scale in label order. 1 where labels and answers are all of one class.
    """
    table = confusion(predictions).astype(np.float64)
    rank = np.arange(len(table))
    weights = (rank[:, None] - rank) ** 2
    by_chance = np.outer(table.sum(1), table.sum(0)) / table.sum()
    worst = float((weights * by_chance).sum())
    return 1.0 - float((weights * table).sum()) / worst if worst else 1.0


def confusion(predictions: Predictions) -> NDArray[np.int64]:
    """Return counts [C, C]: rows are labels, columns answers."""
    count = len(predictions.classes)
    cells = known_labels(predictions) * count + predictions.top1
    return np.bincount(cells, minlength=count * count).reshape(count, count)


def _f1_by_class(predictions: Predictions) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.bool_]]:
    """Return F1, labels and whether the class occurs at all, each [C]."""
    table = confusion(predictions)
    support, total = table.sum(1), table.sum(1) + table.sum(0)
    return 2 * table.diagonal() / np.maximum(total, 1), support, total > 0


def _area(scores: NDArray[np.float64], positive: NDArray[np.bool_]) -> float:
    """Return the share of (positive, negative) pairs in their right order, ties counting half (Mann and Whitney)."""
    _, place, sizes = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(sizes) - (sizes - 1) / 2)[place]  # from 1; the mean rank where scores are equal
    positives = int(positive.sum())
    negatives = len(positive) - positives
    return float((ranks[positive].sum() - positives * (positives + 1) / 2) / (positives * negatives))


@dataclass(frozen=True)
class Metric:
    """A score and whether more of it is better."""

    score: Callable[[Predictions], float]
    higher_is_better: bool

    def value_up(self, score: float) -> float:
        """Return the score with its sign turned where less is better: more is always better."""
        return score if self.higher_is_better else -score


METRICS = {
    "accuracy": Metric(accuracy, True),
    "balanced_accuracy": Metric(balanced_accuracy, True),
    "macro_f1": Metric(macro_f1, True),
    "weighted_f1": Metric(weighted_f1, True),
    "log_loss": Metric(log_loss, False),
    "roc_auc": Metric(roc_auc, True),
    "quadratic_weighted_kappa": Metric(quadratic_weighted_kappa, True),
}


def metric(name: str) -> Metric:
    """Return a row of METRICS.

    Raises:
        ConfigError: unknown name.
    """
    if name not in METRICS:
        raise ConfigError(f"competition.metric: {unknown('metric', name, METRICS)}")
    return METRICS[name]


def summary(predictions: Predictions, metric_name: str) -> dict[str, float]:
    """Return accuracy, loss and the competition's metric of a labelled split."""
    return {
        "accuracy": accuracy(predictions),
        "loss": log_loss(predictions),
        "metric": metric(metric_name).score(predictions),
        "images": len(predictions),
    }


def shifted_summary(predictions: Predictions, names: tuple[str, ...], metric_name: str) -> dict[str, Any]:
    """Return a labelled suite's scores: overall, and its accuracy by severity, by distortion, by block.

    Args:
        predictions: with blocks named `distortion<NN>_<severity>`.
        names: the distortions' names by number.
        metric_name: a row of METRICS; of all rows at once, as a submission is scored.
    """
    blocks = predictions.block_accuracy()
    by_severity: dict[str, list[float]] = {}
    by_distortion: dict[str, list[float]] = {}
    for block, value in blocks.items():
        distortion, severity = block.removeprefix("distortion").split("_")
        by_severity.setdefault(severity, []).append(value)
        by_distortion.setdefault(names[int(distortion)], []).append(value)
    return {
        "accuracy": shifted_accuracy(predictions),
        "loss": log_loss(predictions),
        "metric": metric(metric_name).score(predictions),
        "images": len(predictions),
        "by_severity": {key: float(np.mean(values)) for key, values in sorted(by_severity.items())},
        "by_distortion": {key: float(np.mean(values)) for key, values in by_distortion.items()},
        "by_block": blocks,
    }


def shifted_accuracy(predictions: Predictions) -> float:
    """Return the mean of the blocks' accuracies."""
    return float(np.mean(list(predictions.block_accuracy().values())))


def known_labels(predictions: Predictions) -> NDArray[np.int64]:
    """Return the labels; asking for a score without them is our fault."""
    assert predictions.labels is not None, "a score needs labels"
    return predictions.labels
