"""Known class shares: scale each block's posteriors so that every class gets its share. Torch-free.

The scaled posteriors are the solution of optimal transport between a block's images and its classes with entropic
regularisation (Cuturi 2013, "Sinkhorn Distances", arXiv:1306.0895): p(class | image) times a factor for each class,
made to sum to 1 for each image again, with the known mean over the images. An image's prediction depends on those
beside it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from comp.results import predictions
from comp.results.decision_fits import declared_shares
from comp.results.predictions import ACTIVATIONS, Predictions, log_softmax
from comp.runtime.errors import RunError
from comp.submission.class_shares import Prior

TOLERANCE = 1e-6  # of each class's mean posterior
_LEAST = -50.0  # of a log posterior: float16 outputs say no more, and every class can be reached


def known_shares(prior: Prior, classes: Sequence[str], counts: Sequence[int]) -> NDArray[np.float64]:
    """Return each class's share [K].

    Args:
        prior: `uniform`, `train`, or shares by class.
        classes: in the order of the outputs' columns.
        counts: training answers of each class.

    Raises:
        ConfigError: a class is missing or unknown.
    """
    if isinstance(prior, Mapping):
        declared = declared_shares(prior, classes, counts, key="predict.prior")
        assert declared is not None
        return declared.shares
    weights = np.ones(len(classes)) if prior == "uniform" else np.maximum(counts, 1)
    shares: NDArray[np.float64] = weights / weights.sum()
    return shares


def assign(predicted: Predictions, shares: NDArray[np.float64]) -> Predictions:
    """Return predictions with each block's posteriors scaled to the classes' shares [K]; without blocks, all rows'.

    Raises:
        RunError: the scaling of a block does not converge.
    """
    spans = predicted.blocks() or [("all rows", slice(0, len(predicted)))]
    outputs, top1 = np.empty_like(predicted.outputs), np.empty(len(predicted), np.int64)
    for name, rows in spans:
        if rows.stop == rows.start:
            continue
        scaled = scale(predicted.log_probabilities(rows), shares, name)
        outputs[rows], top1[rows] = predictions.to_stored(scaled), scaled.argmax(1)
    return replace(predicted, outputs=outputs, top1=top1)


def scale(posteriors: NDArray[np.float64], shares: NDArray[np.float64], name: str) -> NDArray[np.float64]:
    """Return log posteriors [N, K] plus a number for each class, normalised, whose means are the shares [K].

    The numbers minimise a convex function whose gradient is the means' distance from the shares. Newton's method takes
    a few steps, where Sinkhorn's alternation takes thousands for confident posteriors.

    Args:
        posteriors: logarithms, float64.
        shares: positive, with a sum of 1.
        name: of the block, for the message.

    Raises:
        RunError: a mean is further than TOLERANCE from its share.
    """
    from scipy.optimize import minimize  # type: ignore[import-untyped]  # slow to import

    kept, softmax = np.maximum(posteriors, _LEAST), ACTIVATIONS["softmax"]

    def value(added: NDArray[np.float64]) -> float:
        return float(np.logaddexp.reduce(kept + added, axis=1).mean() - shares @ added)

    def gradient(added: NDArray[np.float64]) -> NDArray[np.float64]:
        distances: NDArray[np.float64] = softmax(kept + added).mean(0) - shares
        return distances

    def hessian(added: NDArray[np.float64]) -> NDArray[np.float64]:
        scaled = softmax(kept + added)
        curvature: NDArray[np.float64] = np.diag(scaled.mean(0)) - scaled.T @ scaled / len(scaled)
        return curvature

    start = np.log(shares) - np.log(np.exp(kept).mean(0))
    found = minimize(value, start, jac=gradient, hess=hessian, method="trust-exact", options={"gtol": TOLERANCE / 10}).x
    distance = np.abs(gradient(found)).max()
    if not distance <= TOLERANCE:
        raise RunError(
            f"predict.prior: the posteriors of {name} cannot be scaled to the classes' shares: expected means within "
            f"{TOLERANCE:g}, found {distance:.2g}; set predict.prior=none (--prior none)"
        )
    return log_softmax(kept + found)
