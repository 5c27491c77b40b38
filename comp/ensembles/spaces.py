"""Ensemble spaces: the values that members are combined in, one row of `SPACES` for each activation. Torch-free."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from comp.results.predictions import Outputs, Targets

Values = NDArray[np.float32]  # [N, C] of one member
Stack = NDArray[np.float32]  # [M, N, C] of M members
Probabilities = NDArray[np.floating[Any]]  # [..., N, C]

LEAST_LOG = -20.0  # log-probability or log-odds: no member's certainty alone can exclude a class
_MOST_LOGIT = 60.0  # both probabilities stay normal float32 numbers
_LEAST_PROBABILITY = 1e-9


@dataclass(frozen=True)
class Space:
    """How members' outputs are combined.

    Attributes:
        values: outputs [N, C] -> values [N, C] float32.
        probabilities: values [..., C] -> probabilities, of the same float type.
        from_probabilities: probabilities [N, C] -> values.
        mean: values [M, N, C] and weights [M] -> values [N, C] of the weighted mean of probabilities.
        rank: values [M, N, C] -> values [N, C] that order classes or images by their mean rank.
        observed: probabilities [..., N, C] and targets -> the probability of each observation [..., P].
        ranks_images: whether `rank` orders the images of a class, so that it needs all rows of a split at once; else
            it orders the classes of an image.
    """

    values: Callable[[Outputs], Values]
    probabilities: Callable[[Probabilities], Probabilities]
    from_probabilities: Callable[[Probabilities], Values]
    mean: Callable[[Stack, NDArray[np.float64]], Values]
    rank: Callable[[Stack], Values]
    observed: Callable[[Probabilities, Targets], Probabilities]
    ranks_images: bool


def log_probabilities(outputs: Outputs) -> Values:
    """Return log-probabilities [N, C] of outputs whose rows' maxima are 0, none below -20."""
    values = outputs.astype(np.float32)
    values -= np.log(np.exp(values).sum(1, keepdims=True))
    return np.maximum(values, LEAST_LOG)


def _log(probabilities: Probabilities) -> Values:
    logarithms: Values = np.log(np.maximum(probabilities, _LEAST_PROBABILITY)).astype(np.float32)
    return logarithms


def _exclusive_mean(stack: Stack, weights: NDArray[np.float64]) -> Values:
    return _log(_weighted_sum(lambda number: np.exp(stack[number]), weights))


def _class_ranks(stack: Stack) -> Values:
    """Return each class's mean place in the members' orders (Borda counts), ties broken by mean probability."""
    places = stack.argsort(2, kind="stable").argsort(2, kind="stable").astype(np.float32)  # the likeliest is C - 1
    # Two mean places differ by 1 / M at least; a probability is at most 1.
    ranks: Values = places.mean(0) + np.exp(stack).mean(0) / (2 * len(stack))
    return ranks


def _of_target(probabilities: Probabilities, targets: Targets) -> Probabilities:
    observed: Probabilities = probabilities[..., np.arange(len(targets)), targets.astype(np.int64)]
    return np.maximum(observed, _LEAST_PROBABILITY)


def _bounded(outputs: Outputs) -> Values:
    return np.clip(outputs.astype(np.float32), -_MOST_LOGIT, _MOST_LOGIT)


def _sigmoid(values: Probabilities) -> Probabilities:
    probabilities: Probabilities = 1 / (1 + np.exp(-values))
    return probabilities


def _logit(probabilities: Probabilities) -> Values:
    return _log(probabilities) - _log(1 - probabilities)


def _independent_mean(stack: Stack, weights: NDArray[np.float64]) -> Values:
    # Summed apart, so that a mean beside 1 keeps its order.
    present = _weighted_sum(lambda number: _sigmoid(stack[number]), weights)
    absent = _weighted_sum(lambda number: _sigmoid(-stack[number]), weights)
    smallest = np.finfo(np.float32).tiny
    logits: Values = np.log(np.maximum(present, smallest)) - np.log(np.maximum(absent, smallest))
    return logits


def _image_ranks(stack: Stack) -> Values:
    """Return the logit of each image's mean rank within its class, ranks scaled into (0, 1), ties averaged."""
    from scipy.stats import rankdata  # type: ignore[import-untyped]

    shares = np.mean([(rankdata(member, axis=0) - 0.5) / len(member) for member in stack], axis=0)
    return _logit(shares)


def _of_pairs(probabilities: Probabilities, targets: Targets) -> Probabilities:
    observed = np.where(targets > 0.5, probabilities, 1 - probabilities)
    return np.maximum(observed, _LEAST_PROBABILITY).reshape(*observed.shape[:-2], -1)


def _weighted_sum(member: Callable[[int], Probabilities], weights: NDArray[np.float64]) -> Probabilities:
    parts = (np.float32(weight) * member(number) for number, weight in enumerate(weights) if weight > 0)
    return sum(parts, start=np.zeros((), np.float32))


SPACES = {
    "softmax": Space(log_probabilities, np.exp, _log, _exclusive_mean, _class_ranks, _of_target, ranks_images=False),
    "sigmoid": Space(_bounded, _sigmoid, _logit, _independent_mean, _image_ranks, _of_pairs, ranks_images=True),
}
