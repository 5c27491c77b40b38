"""ROID: several passes of weighted steps on the scales and shifts of normalisation layers.

Marsden, Döbler and Yang 2024, "Universal Test-time Adaptation through Weight Ensembling, Diversity Weighting, and Prior
Correction" (arXiv:2306.00650), with what Niu et al. 2023, "Towards Stable Test-Time Adaptation in Dynamic Wild World"
(SAR, arXiv:2302.12400), found: layer norm and group norm adapt too, and uncertain images harm. Each step weights its
images by certainty and diversity, minimises a soft likelihood ratio, keeps an augmented view of each image in agreement
with the plain one, and moves the weights a little back to those of training. `adapt` restores and rolls back.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from comp.inference.views import shifted
from comp.results.predictions import ACTIVATIONS
from comp.runtime import rng
from comp.runtime.device import Execution
from comp.runtime.memory import MicroBatch

# Of the paper, but for these three: it takes one pass over an endless stream, 1e-3 and 200 images a step; here each
# block starts anew, and more and larger steps pay (docs/lab/2026-11-28-adaptation-digits.md).
_PASSES = 3
_STEP_IMAGES = 50
_RATE = 5e-3  # Adam's
_KEPT = 0.99  # of the weights in a step; the rest are those of training
_REMEMBERED = 0.9  # of the running mean of probabilities
_TEMPERATURE = 1 / 3
_MOST_CERTAIN = 0.99  # a higher probability has no gradient
_SEED = 0
_EPSILON = 1e-5
_LARGEST_SHIFT = 16  # of the view: the image's side over this, two pixels at 32


@torch.enable_grad()
def take_steps(
    model: nn.Module,
    affines: Sequence[nn.Parameter],
    batches: Callable[[], Iterator[Tensor]],
    execution: Execution,
    micro_batch: MicroBatch,
) -> None:
    """Take Adam steps on scales and shifts, `_STEP_IMAGES` images each, in `_PASSES` passes over all images.

    A step costs each image a forward pass, and each image with a weight two more with gradients.

    Args:
        model: images [B, C, H, W] uint8 -> logits, in evaluation mode.
        affines: what is trained.
        batches: each call yields all images, in the same order.
        execution: precision.
        micro_batch: how many images at a time fit the memory.
    """
    sources = [parameter.detach().clone() for parameter in affines]
    optimizer = torch.optim.Adam(affines, lr=_RATE)
    mean = torch.zeros(0)
    for number in range(_PASSES):
        row = 0
        for images in (part for batch in batches() for part in torch.split(batch, _STEP_IMAGES)):
            probabilities = _predict(model, images, execution, micro_batch)
            mean = mean if len(mean) else torch.full_like(probabilities[0], 1 / probabilities.shape[1])
            weights = image_weights(probabilities, mean)
            mean = mean.lerp(probabilities.mean(0), 1 - _REMEMBERED)
            kept = weights.nonzero()[:, 0]
            keys = rng.keys(_SEED, number, row + kept)
            row += len(images)
            if not len(kept):
                continue
            shares = weights[kept] / len(images)
            gradients = partial(_compute_gradients, model, images[kept], keys, shares, execution, optimizer)
            micro_batch.fit(len(kept), gradients)
            optimizer.step()
            with torch.no_grad():
                for parameter, source in zip(affines, sources, strict=True):
                    parameter.lerp_(source, 1 - _KEPT)


@torch.no_grad()
def _predict(model: nn.Module, images: Tensor, execution: Execution, micro_batch: MicroBatch) -> Tensor:
    """Return probabilities [B, C] float32."""

    def predicted(part: slice) -> Tensor:
        with execution.autocast():
            logits: Tensor = model(images[part])
        return logits.float().softmax(1)

    return torch.cat(list(micro_batch.parts(len(images), predicted)))


def _compute_gradients(
    model: nn.Module,
    images: Tensor,
    keys: Tensor,
    shares: Tensor,
    execution: Execution,
    optimizer: torch.optim.Optimizer,
    size: int,
) -> None:
    """Add up the gradients of images [B, C, H, W] with keys [B] and shares [B] of the loss, `size` at a time."""
    optimizer.zero_grad()
    for part in torch.split(torch.arange(len(images), device=images.device), size):
        view = augmented(images[part], keys[part])
        with execution.autocast():
            plain, changed = model(images[part]).float(), model(execution.layout(view)).float()
        losses = soft_likelihood_ratio(plain) + symmetric_cross_entropy(plain, changed)
        (losses * shares[part]).sum().backward()  # type: ignore[no-untyped-call]


def image_weights(probabilities: Tensor, mean: Tensor) -> Tensor:
    """Return the weights [B] of images: exp(certainty x diversity / temperature), 0 below the mean of either.

    Args:
        probabilities: [B, C]; certainty is their negative entropy.
        mean: [C], the running mean of probabilities; diversity is one minus the cosine to it.
    """
    certainty = -torch.special.entr(probabilities).sum(1)
    diversity = 1 - torch.cosine_similarity(probabilities, mean[None])
    kept = (certainty >= certainty.mean()) & (diversity >= diversity.mean())
    weights: Tensor = torch.exp(_to_unit(certainty) * _to_unit(diversity) / _TEMPERATURE) * kept
    return weights


def _to_unit(values: Tensor) -> Tensor:
    """Return values [B] scaled to 0 to 1; equal ones to 0."""
    low, high = values.aminmax()
    return (values - low) / (high - low).clamp_min(_EPSILON)


def soft_likelihood_ratio(logits: Tensor) -> Tensor:
    """Return [B]: the expected logarithm of a class's probability over that of all others, negated."""
    probabilities = logits.softmax(1).clamp(0, _MOST_CERTAIN)
    ratios = torch.log(probabilities / (1 - probabilities + _EPSILON) + _EPSILON)
    loss: Tensor = -(probabilities * ratios).sum(1)
    return loss


def symmetric_cross_entropy(first: Tensor, second: Tensor) -> Tensor:
    """Return [B]: the mean of both cross-entropies between two views' logits [B, C]."""
    pairs = ((first, second), (second, first))
    return -0.5 * torch.stack([(one.softmax(1) * two.log_softmax(1)).sum(1) for one, two in pairs]).sum(0)


@torch.no_grad()
def augmented(images: Tensor, keys: Tensor) -> Tensor:
    """Return another view of images [B, C, H, W] uint8, the same for the same keys [B].

    All are shifted alike, as their first key says; contrast, brightness and noise differ. None of these changes a
    class, unlike a flip of digits.
    """
    side = max(1, min(images.shape[-2:]) // _LARGEST_SHIFT)
    down, right = (int(rng.integers(keys[:1], draw, 2 * side + 1)) - side for draw in (0, 1))
    contrast, brightness, spread = (rng.uniform(keys, draw)[:, None, None, None] for draw in (2, 3, 4))
    pixels = shifted(images, down, right).float() - 127.5
    pixels = pixels * (0.75 + contrast / 2) + (brightness - 0.5) * 64
    noise = rng.normal_field(keys, 5, tuple(images.shape[1:])) * (spread * 16)
    return (pixels + 127.5 + noise).round().clamp(0, 255).to(torch.uint8)


def prior_correction(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return what to add to a block's logits [N, C]: the logarithm [C] of the smoothed mean of its probabilities.

    The smoothing, max(1/N, 1/C) over the largest mean, leaves small or balanced blocks nearly alone.
    """
    count, classes = logits.shape
    prior = ACTIVATIONS["softmax"](logits.astype(np.float64)).mean(0)
    smooth = max(1 / count, 1 / classes) / prior.max()
    correction: NDArray[np.float32] = np.log((prior + smooth) / (1 + smooth * classes)).astype(np.float32)
    return correction + np.float32(math.log(classes))
