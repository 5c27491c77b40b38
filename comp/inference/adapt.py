"""Adapt a network to the images at hand, without their labels; its own weights come back afterwards.

`bn`: batch-norm statistics of the block, blended with those of training (Nado et al. 2020, arXiv:2006.10963; Schneider
et al. 2020, arXiv:2006.16971). Transductive: what is said of an image depends on the images beside it.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from comp.device import Execution
from comp.inference.variants import Variant

# Images of a statistics pass and of an entropy step. A number of its own, so that what is adapted to, and with it the
# result, does not depend on the prediction's batch size; blocks up to this size are seen as one batch, as in training.
BATCH_IMAGES = 500

Batches = Callable[[], Iterator[Tensor]]


def batch_norms(model: nn.Module) -> list[_BatchNorm]:
    """Return the layers that keep running statistics."""
    return [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]


def adaptable(model: nn.Module, adapt: str) -> int:
    """Return how many layers `adapt` (`none`, `bn`) would change in the model; 0: it does nothing."""
    return 0 if adapt == "none" else len(batch_norms(model))


@dataclass
class _Moments:
    """Mean and variance over all that was seen, joined batch by batch (Chan, Golub and LeVeque 1979)."""

    count: int = 0
    mean: Tensor = field(default_factory=lambda: torch.zeros(1))
    squares: Tensor = field(default_factory=lambda: torch.zeros(1))

    def add(self, count: int, mean: Tensor, variance: Tensor) -> None:
        """Join a batch's mean and variance [C] over `count` values a channel."""
        if not self.count:
            self.count, self.mean, self.squares = count, mean, variance * count
            return
        total = self.count + count
        delta = mean - self.mean
        self.squares = self.squares + variance * count + delta.square() * (self.count * count / total)
        self.mean = self.mean + delta * (count / total)
        self.count = total


@contextlib.contextmanager
def adapted(model: nn.Module, batches: Batches, variant: Variant, execution: Execution) -> Iterator[None]:
    """Have the model, in evaluation mode, adapted to images; leave it as it was.

    Args:
        model: images [B, C, H, W] uint8 -> logits; placed by `execution`.
        batches: gives the images anew at each call, on the device, `BATCH_IMAGES` or fewer at a time.
        variant: what is done.
        execution: precision and layout.
    """
    if variant.adapt == "none":
        yield
        return
    layers = batch_norms(model)
    before = [(_mean(layer).clone(), _variance(layer).clone()) for layer in layers]
    try:
        _blend_statistics(model, layers, batches, variant.alpha, execution)
        yield
    finally:
        for layer, (mean, variance) in zip(layers, before, strict=True):
            _set(layer, mean, variance)


@torch.no_grad()
def _blend_statistics(
    model: nn.Module, layers: list[_BatchNorm], batches: Batches, alpha: float, execution: Execution
) -> None:
    """Give each layer `alpha` of the images' statistics and the rest of its own.

    While the images pass, each layer already works with the blend of the batch at hand, so that the layers above see
    what they will see afterwards.
    """
    if not layers or alpha == 0:
        return
    sources = [(_mean(layer).clone(), _variance(layer).clone()) for layer in layers]
    moments = [_Moments() for _ in layers]

    def note(found: _Moments, source: tuple[Tensor, Tensor], layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        values = inputs[0].float()
        axes = [axis for axis in range(values.dim()) if axis != 1]
        variance, mean = torch.var_mean(values, axes, correction=0)  # as a layer in training mode divides by
        found.add(values.numel() // values.shape[1], mean, variance)
        assert isinstance(layer, _BatchNorm)
        _set(layer, source[0].lerp(mean, alpha), source[1].lerp(variance, alpha))

    hooks = [
        layer.register_forward_pre_hook(partial(note, found, source))
        for layer, found, source in zip(layers, moments, sources, strict=True)
    ]
    try:
        for images in batches():
            with execution.autocast():
                model(images)
    finally:
        for hook in hooks:
            hook.remove()
    for layer, found, (mean, variance) in zip(layers, moments, sources, strict=True):
        _set(layer, mean.lerp(found.mean, alpha), variance.lerp(found.squares / found.count, alpha))


def _mean(layer: _BatchNorm) -> Tensor:
    assert layer.running_mean is not None
    return layer.running_mean


def _variance(layer: _BatchNorm) -> Tensor:
    assert layer.running_var is not None
    return layer.running_var


def _set(layer: _BatchNorm, mean: Tensor, variance: Tensor) -> None:
    _mean(layer).copy_(mean)
    _variance(layer).copy_(variance)
