"""Spaces in which members' outputs are combined: a row of `SPACES` for each activation. Torch-free."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from comp.results.predictions import Outputs, Targets

Values = NDArray[np.float32]  # [N, C] of one member
Stack = NDArray[np.float32]  # [M, N, C] of M members
Probabilities = NDArray[np.floating[Any]]  # [..., N, C]

MIN_LOG = -20.0  # log-probability or log-odds: no single member can exclude a class
MAX_LOGIT = 60.0  # both probabilities stay normal float32 numbers
MIN_PROBABILITY = 1e-9


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
        ranks_images: whether `rank` orders the images of a class, which needs all rows of a split at once, or the
            classes of an image.
        fit_weights: values [M, N, C] and targets -> the weights [M] of the best mean, for `weighted`.
    """

    values: Callable[[Outputs], Values]
    probabilities: Callable[[Probabilities], Probabilities]
    from_probabilities: Callable[[Probabilities], Values]
    mean: Callable[[Stack, NDArray[np.float64]], Values]
    rank: Callable[[Stack], Values]
    observed: Callable[[Probabilities, Targets], Probabilities]
    ranks_images: bool
    fit_weights: "Callable[[Stack, Targets], NDArray[np.float64]] | None" = None


def log_probabilities(outputs: Outputs) -> Values:
    """Return log-probabilities [N, C], at least -20, of outputs whose row maxima are 0."""
    values = outputs.astype(np.float32)
    values -= np.log(np.exp(values).sum(1, keepdims=True))
    return np.maximum(values, MIN_LOG)


def _log(probabilities: Probabilities) -> Values:
    logarithms: Values = np.log(np.maximum(probabilities, MIN_PROBABILITY)).astype(np.float32)
    return logarithms


def _exclusive_mean(stack: Stack, weights: NDArray[np.float64]) -> Values:
    return _log(_weighted_sum(lambda number: np.exp(stack[number]), weights))


def _class_ranks(stack: Stack) -> Values:
    """Return each class's mean position in the members' orders (Borda counts), ties broken by mean probability."""
    positions = stack.argsort(2, kind="stable").argsort(2, kind="stable").astype(np.float32)  # C - 1 is the most likely
    # Mean positions differ by at least 1 / M; a probability is at most 1.
    ranks: Values = positions.mean(0) + np.exp(stack).mean(0) / (2 * len(stack))
    return ranks


def _target_probabilities(probabilities: Probabilities, targets: Targets) -> Probabilities:
    observed: Probabilities = probabilities[..., np.arange(len(targets)), targets.astype(np.int64)]
    return np.maximum(observed, MIN_PROBABILITY)


def _clip_logits(outputs: Outputs) -> Values:
    return np.clip(outputs.astype(np.float32), -MAX_LOGIT, MAX_LOGIT)


def _sigmoid(values: Probabilities) -> Probabilities:
    probabilities: Probabilities = 1 / (1 + np.exp(-values))
    return probabilities


def _logit(probabilities: Probabilities) -> Values:
    return _log(probabilities) - _log(1 - probabilities)


def _independent_mean(stack: Stack, weights: NDArray[np.float64]) -> Values:
    # Two sums, so that means close to 1 keep their order.
    present = _weighted_sum(lambda number: _sigmoid(stack[number]), weights)
    absent = _weighted_sum(lambda number: _sigmoid(-stack[number]), weights)
    smallest = np.finfo(np.float32).tiny
    logits: Values = np.log(np.maximum(present, smallest)) - np.log(np.maximum(absent, smallest))
    return logits


def _image_ranks(stack: Stack) -> Values:
    """Return the logit of each image's mean rank within its class, ranks scaled into (0, 1), ties averaged."""
    from scipy.stats import rankdata  # type: ignore[import-untyped]

    mean_ranks = np.mean([(rankdata(member, axis=0) - 0.5) / len(member) for member in stack], axis=0)
    return _logit(mean_ranks)


def _pair_probabilities(probabilities: Probabilities, targets: Targets) -> Probabilities:
    observed = np.where(targets > 0.5, probabilities, 1 - probabilities)
    return np.maximum(observed, MIN_PROBABILITY).reshape(*observed.shape[:-2], -1)


def _numbers(outputs: Outputs) -> Values:
    return outputs.astype(np.float32)


def _mean_of_numbers(stack: Stack, weights: NDArray[np.float64]) -> Values:
    return np.tensordot(weights, stack, 1).astype(np.float32)


def _least_squares(stack: Stack, targets: Targets) -> NDArray[np.float64]:
    """Return the weights [M] from 0 that sum to 1 with the least squared error of the weighted mean.

    Non-negative least squares of the members' errors, with one more row that asks for a sum of 1: the solution's
    proportions are those of the constrained problem.
    """
    from scipy.optimize import nnls  # type: ignore[import-untyped]

    errors = (stack[:, :, 0].astype(np.float64) - targets).T  # [N, M]
    scale = float(np.sqrt((errors**2).mean() * len(errors))) or 1.0
    rows = np.vstack([np.linalg.qr(errors / scale, mode="r"), np.ones(errors.shape[1])])
    weights, _ = nnls(rows, np.append(np.zeros(len(rows) - 1), 1.0))
    return np.asarray(weights / weights.sum(), np.float64)


def _weighted_sum(member: Callable[[int], Probabilities], weights: NDArray[np.float64]) -> Probabilities:
    parts = (np.float32(weight) * member(number) for number, weight in enumerate(weights) if weight > 0)
    return sum(parts, start=np.zeros((), np.float32))


SPACES = {
    "softmax": Space(
        log_probabilities, np.exp, _log, _exclusive_mean, _class_ranks, _target_probabilities, ranks_images=False
    ),
    "sigmoid": Space(
        _clip_logits, _sigmoid, _logit, _independent_mean, _image_ranks, _pair_probabilities, ranks_images=True
    ),
    "identity": Space(
        _numbers,
        lambda values: values,
        _numbers,
        _mean_of_numbers,
        lambda stack: stack.mean(0),
        lambda values, targets: values[..., 0],
        ranks_images=False,
        fit_weights=_least_squares,
    ),
}
