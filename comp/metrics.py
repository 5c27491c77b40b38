"""Scores of predictions. Torch-free.

A competition's metric is a row of `METRICS` with its direction; losses and accuracies that training and reports need
stand beside it.
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


def log_loss(predictions: Predictions) -> float:
    """Return the mean negative log likelihood in nats."""
    labels = known_labels(predictions)
    logits = predictions.logits.astype(np.float32)
    log_partition = np.log(np.exp(logits).sum(1))  # rows' maxima are 0: no overflow
    return float((log_partition - logits[np.arange(len(labels)), labels]).mean())


@dataclass(frozen=True)
class Metric:
    """A score and whether more of it is better."""

    score: Callable[[Predictions], float]
    higher_is_better: bool


METRICS = {"accuracy": Metric(accuracy, True), "log_loss": Metric(log_loss, False)}


def metric(name: str) -> Metric:
    """Return a row of METRICS.

    Raises:
        ConfigError: unknown name.
    """
    if name not in METRICS:
        raise ConfigError(f"competition.metric: {unknown('metric', name, METRICS)}")
    return METRICS[name]


def summary(predictions: Predictions) -> dict[str, float]:
    """Return accuracy and loss of a labelled split."""
    return {"accuracy": accuracy(predictions), "loss": log_loss(predictions), "images": len(predictions)}


def shifted_summary(predictions: Predictions, names: tuple[str, ...]) -> dict[str, Any]:
    """Return a labelled suite's accuracy: overall, by severity, by distortion, by block.

    Args:
        predictions: with blocks named `distortion<NN>_<severity>`.
        names: the distortions' names by number.
    """
    blocks = predictions.block_accuracy()
    by_severity: dict[str, list[float]] = {}
    by_distortion: dict[str, list[float]] = {}
    for block, value in blocks.items():
        distortion, severity = block.removeprefix("distortion").split("_")
        by_severity.setdefault(severity, []).append(value)
        by_distortion.setdefault(names[int(distortion)], []).append(value)
    return {
        "accuracy": float(np.mean(list(blocks.values()))),
        "loss": log_loss(predictions),
        "images": len(predictions),
        "by_severity": {key: float(np.mean(values)) for key, values in sorted(by_severity.items())},
        "by_distortion": {key: float(np.mean(values)) for key, values in by_distortion.items()},
        "by_block": blocks,
    }


def known_labels(predictions: Predictions) -> NDArray[np.int64]:
    """Return the labels; asking for a score without them is our fault."""
    assert predictions.labels is not None, "a score needs labels"
    return predictions.labels
