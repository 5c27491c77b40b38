"""MixUp and CutMix: images and labels of a batch blended in pairs; also the one place where labels are smoothed.

Partners are positions 2k and 2k + 1 of the batch, so that they do not depend on how an epoch's order is cut into
(even) batches. Each sample draws its own lambda, its own box, and whether it is cut or blended. The odd last sample of
a batch stays as it is. Nothing here waits for the device.

    images, targets = mix(images, labels, keys, classes=10, mixing=Mixing(mixup=0.4))
    loss = cross_entropy(model(images), targets)
    correct += hits(logits, targets, label_smoothing=mixing.label_smoothing).sum()
"""

from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from comp.augment.kernels import geometry
from comp.runtime import rng

_PURPOSE = 0x6D6978  # keeps these draws apart from the augmentation's, which starts from the same keys


@dataclass(frozen=True)
class Mixing:
    """How a batch is mixed.

    Attributes:
        mixup: Beta(alpha, alpha) of the blend (Zhang et al. 2018, arXiv:1710.09412); 0 is off.
        cutmix: Beta(alpha, alpha) of the kept area (Yun et al. 2019, arXiv:1905.04899); 0 is off.
        switch_probability: a sample's probability of CutMix where both are on.
        label_smoothing: share of the target spread evenly over all classes.
        off_epochs: how many last epochs are not mixed.
    """

    mixup: float = 0.0
    cutmix: float = 0.0
    switch_probability: float = 0.5
    label_smoothing: float = 0.0
    off_epochs: int = 0

    def at(self, epoch: int, epochs: int) -> "Mixing":
        """Return what holds in an epoch, counted from 1: the last `off_epochs` only smooth labels."""
        return self if epoch <= epochs - self.off_epochs else replace(self, mixup=0.0, cutmix=0.0)


def mix(images: Tensor, labels: Tensor, keys: Tensor, *, classes: int, mixing: Mixing) -> tuple[Tensor, Tensor]:
    """Return the batch as floats, mixed, and its soft targets.

    Args:
        images: [B, C, H, W] uint8.
        labels: [B] int64, or a column of 0 and 1 for each class, [B, classes] float32.
        keys: [B] int64, those of the augmentation.
        classes: number of classes.
        mixing: what to do.

    Returns:
        images [B, C, H, W] float32 in [0, 1], channels_last, and targets [B, classes] float32, whose rows sum to 1
        where labels are indices.
    """
    if not (mixing.mixup or mixing.cutmix):
        scaled = geometry.to_images(geometry.to_pixels(images).to(torch.float32).mul_(1 / 255))
        return scaled, soft_targets(labels, classes=classes, label_smoothing=mixing.label_smoothing)
    keys = rng.fold(keys, _PURPOSE)
    pixels = geometry.to_pixels(images)  # [B, H, W, C]
    partners, paired = _swap(pixels), torch.arange(len(keys), device=keys.device) < len(keys) // 2 * 2
    cut = _cut(keys, mixing) & paired
    kept = torch.ones(len(keys), device=keys.device)  # [B], the share of a sample's own label
    if mixing.cutmix:
        boxes, uncovered = _boxes(keys, mixing.cutmix, *pixels.shape[1:3])
        kept = torch.where(cut, uncovered, kept)
        pixels = geometry.to_pixels(
            geometry.erase(geometry.to_images(pixels), boxes * cut[:, None], geometry.to_images(partners))
        )
    own = torch.ones_like(kept)  # [B], the share of a sample's own grey levels
    if mixing.mixup:
        own = torch.where(paired & ~cut, beta(mixing.mixup, mixing.mixup, rng.uniform(keys, 1)), own)
        kept = kept * own
    targets = soft_targets(labels, _swap(labels), kept, classes=classes, label_smoothing=mixing.label_smoothing)
    return geometry.to_images(_blend(pixels, partners, own) if mixing.mixup else _blend(pixels, None, own)), targets


def soft_targets(
    labels: Tensor,
    others: Tensor | None = None,
    kept: Tensor | None = None,
    *,
    classes: int,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Return [B, classes] float32 targets.

    Args:
        labels: [B] int64, or [B, classes] float32 of 0 and 1.
        others: likewise, what the rest of the mass goes to; None: no rest.
        kept: [B] float32, the mass of `labels`, with `others`.
        classes: number of classes.
        label_smoothing: share spread evenly over all classes (Szegedy et al. 2016, arXiv:1512.00567); of columns, each
            moves by half of it towards 0.5.
    """
    if labels.ndim == 2:
        blended = labels if others is None or kept is None else kept[:, None] * labels + (1 - kept)[:, None] * others
        return blended * (1 - label_smoothing) + label_smoothing / 2
    even = label_smoothing / classes
    targets = torch.full((len(labels), classes), even, device=labels.device)
    mass = torch.ones(len(labels), device=labels.device) if kept is None else kept
    targets.scatter_add_(1, labels[:, None], (mass * (1 - label_smoothing))[:, None])
    if others is not None:
        targets.scatter_add_(1, others[:, None], ((1 - mass) * (1 - label_smoothing))[:, None])
    return targets


def hits(logits: Tensor, targets: Tensor, *, label_smoothing: float = 0.0, columns: bool = False) -> Tensor:
    """Return [B] float32: how much of each unsmoothed target the likeliest class holds; the mean is the accuracy.

    Args:
        logits: [B, classes].
        targets: [B, classes] from `mix`.
        label_smoothing: that of the targets.
        columns: whether labels are a column for each class: then a row is right where every class of it is.
    """
    if columns:
        return ((logits > 0) == (targets > 0.5)).all(1).float()
    mass = targets.gather(1, logits.argmax(1, keepdim=True)).squeeze(1)
    return (mass - label_smoothing / targets.shape[1]) / (1 - label_smoothing)


def _swap(values: Tensor) -> Tensor:
    """Return rows 2k and 2k + 1 exchanged; an odd last row stays."""
    even = len(values) // 2 * 2
    swapped = values[:even].reshape(-1, 2, *values.shape[1:]).flip(1).flatten(0, 1)
    return swapped if even == len(values) else torch.cat((swapped, values[even:]))


def _cut(keys: Tensor, mixing: Mixing) -> Tensor:
    """Return [B] bool: who gets CutMix."""
    if not (mixing.mixup and mixing.cutmix):
        return torch.full(keys.shape, mixing.cutmix > 0, device=keys.device)
    return rng.uniform(keys, 0) < mixing.switch_probability


def _boxes(keys: Tensor, alpha: float, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Return boxes [B, 4] (top, left, bottom, right), cut at the border, and the share [B] that they leave."""
    side = torch.sqrt(1 - beta(alpha, alpha, rng.uniform(keys, 2)))  # of the box, as a share of the image's
    edges = []
    for draw, length in ((3, height), (4, width)):
        half = (side * length).to(torch.int64) // 2
        middle = rng.integers(keys, draw, length)
        edges.append(((middle - half).clamp(min=0), (middle + half).clamp(max=length)))
    (top, bottom), (left, right) = edges
    covered = ((bottom - top) * (right - left)).to(torch.float32) / (height * width)
    return torch.stack((top, left, bottom, right), 1), 1 - covered


def _blend(pixels: Tensor, partners: Tensor | None, own: Tensor) -> Tensor:
    """Return [B, H, W, C] float32 in [0, 1]: `own` [B] of the sample, the rest of its partner."""
    own = own[:, None, None, None]
    scaled = pixels.to(torch.float32).mul_(own / 255)
    return scaled if partners is None else scaled.add_(partners.to(torch.float32).mul_((1 - own) / 255))


_STEPS = 4096


def beta(a: float, b: float, uniform: Tensor) -> Tensor:
    """Return [...] float32 Beta(a, b) deviates of uniforms [...] in [0, 1)."""
    table = _inverse(a, b, uniform.device)
    position = uniform * _STEPS
    step = position.floor()
    index = step.to(torch.int64)
    left = table[index]
    return left + (table[index + 1] - left) * (position - step)


def dirichlet(alpha: float, width: int, keys: Tensor, draw: int) -> Tensor:
    """Return [B, width] float32 Dirichlet(alpha, ..., alpha) weights; takes draws from `draw` on, `width` - 1.

    Sticks are broken one after another: each weight is a Beta(alpha, alpha times those left) share of the rest.
    """
    rest = torch.ones(keys.shape, device=keys.device)
    weights = []
    for left in range(width - 1, 0, -1):
        share = beta(alpha, alpha * left, rng.uniform(keys, draw + left - 1))
        weights.append(rest * share)
        rest = rest * (1 - share)
    return torch.stack([*weights, rest], 1)


@lru_cache(maxsize=32)
def _inverse(a: float, b: float, device: torch.device) -> Tensor:
    """Return [_STEPS + 1] float32: the Beta(a, b) quantiles at evenly spaced probabilities."""
    from scipy.special import betaincinv  # type: ignore[import-untyped]  # imported late, as all of scipy

    probabilities = torch.linspace(0, 1, _STEPS + 1, dtype=torch.float64)
    return torch.from_numpy(betaincinv(a, b, probabilities.numpy())).to(torch.float32).to(device)
