"""MixUp, CutMix and label smoothing, with Beta and Dirichlet draws for mixing weights.

Partners are positions 2k and 2k + 1 of the batch, so that they do not depend on how an epoch is cut into (even)
batches. Each sample draws its own lambda, its own box, and CutMix or MixUp. The odd last sample of a batch stays
unchanged. Nothing here waits for the device.

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
    """Settings of mixing.

    Attributes:
        mixup: Beta(alpha, alpha) of the blend (Zhang et al. 2018, arXiv:1710.09412); 0 is off.
        cutmix: Beta(alpha, alpha) of the kept area (Yun et al. 2019, arXiv:1905.04899); 0 is off.
        switch_probability: a sample's probability of CutMix if both are on.
        label_smoothing: share of the target spread evenly over all classes.
        off_epochs: number of last epochs without mixing.
    """

    mixup: float = 0.0
    cutmix: float = 0.0
    switch_probability: float = 0.5
    label_smoothing: float = 0.0
    off_epochs: int = 0

    def at(self, epoch: int, epochs: int) -> "Mixing":
        """Return the settings of an epoch (from 1): the last `off_epochs` only smooth labels."""
        return self if epoch <= epochs - self.off_epochs else replace(self, mixup=0.0, cutmix=0.0)


def mix(images: Tensor, labels: Tensor, keys: Tensor, *, classes: int, mixing: Mixing) -> tuple[Tensor, Tensor]:
    """Mix a batch; return float images and soft targets.

    Args:
        images: [B, C, H, W] uint8.
        labels: [B] int64, or a column of 0 and 1 for each class, [B, classes] float32.
        keys: [B] int64, those of the augmentation.
        classes: number of classes.
        mixing: the settings.

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
    kept = torch.ones(len(keys), device=keys.device)  # [B], share of the sample's own label
    if mixing.cutmix:
        boxes, uncovered = _boxes(keys, mixing.cutmix, *pixels.shape[1:3])
        kept = torch.where(cut, uncovered, kept)
        pixels = geometry.to_pixels(
            geometry.erase(geometry.to_images(pixels), boxes * cut[:, None], geometry.to_images(partners))
        )
    pixel_share = torch.ones_like(kept)  # [B], share of the sample's own pixels
    if mixing.mixup:
        lambdas = beta(mixing.mixup, mixing.mixup, rng.uniform(keys, 1))
        pixel_share = torch.where(paired & ~cut, lambdas, pixel_share)
        kept = kept * pixel_share
    targets = soft_targets(labels, _swap(labels), kept, classes=classes, label_smoothing=mixing.label_smoothing)
    return geometry.to_images(_blend(pixels, partners if mixing.mixup else None, pixel_share)), targets


def soft_targets(
    labels: Tensor,
    partner_labels: Tensor | None = None,
    kept: Tensor | None = None,
    *,
    classes: int,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Return [B, classes] float32 targets.

    Args:
        labels: [B] int64, or [B, classes] float32 of 0 and 1.
        partner_labels: labels of the partner images, weighted by 1 - kept; None: no partners.
        kept: [B] float32, the weight of `labels`; used with `partner_labels`.
        classes: number of classes.
        label_smoothing: share spread evenly over all classes (Szegedy et al. 2016, arXiv:1512.00567); columns move
            towards 0.5 instead.
    """
    if labels.ndim == 2:
        if partner_labels is not None and kept is not None:
            labels = kept[:, None] * labels + (1 - kept)[:, None] * partner_labels
        return labels * (1 - label_smoothing) + label_smoothing / 2
    even = label_smoothing / classes
    targets = torch.full((len(labels), classes), even, device=labels.device)
    mass = torch.ones(len(labels), device=labels.device) if kept is None else kept
    targets.scatter_add_(1, labels[:, None], (mass * (1 - label_smoothing))[:, None])
    if partner_labels is not None:
        targets.scatter_add_(1, partner_labels[:, None], ((1 - mass) * (1 - label_smoothing))[:, None])
    return targets


def hits(logits: Tensor, targets: Tensor, *, label_smoothing: float = 0.0, columns: bool = False) -> Tensor:
    """Return [B] float32: the unsmoothed target's mass on the predicted class; the mean is the accuracy.

    Args:
        logits: [B, classes].
        targets: [B, classes] from `mix`.
        label_smoothing: that of the targets.
        columns: labels have one column per class; then a row is correct if all its classes are.
    """
    if columns:
        return ((logits > 0) == (targets > 0.5)).all(1).float()
    mass = targets.gather(1, logits.argmax(1, keepdim=True)).squeeze(1)
    return (mass - label_smoothing / targets.shape[1]) / (1 - label_smoothing)


def _swap(values: Tensor) -> Tensor:
    """Swap rows 2k and 2k + 1; an odd last row stays."""
    even = len(values) // 2 * 2
    swapped = values[:even].reshape(-1, 2, *values.shape[1:]).flip(1).flatten(0, 1)
    return swapped if even == len(values) else torch.cat((swapped, values[even:]))


def _cut(keys: Tensor, mixing: Mixing) -> Tensor:
    """Return [B] bool: which samples get CutMix."""
    if not (mixing.mixup and mixing.cutmix):
        return torch.full(keys.shape, mixing.cutmix > 0, device=keys.device)
    return rng.uniform(keys, 0) < mixing.switch_probability


def _boxes(keys: Tensor, alpha: float, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Return boxes [B, 4] (top, left, bottom, right), cut at the border, and the share [B] outside them."""
    side = torch.sqrt(1 - beta(alpha, alpha, rng.uniform(keys, 2)))  # of the box, as a share of the image's
    edges = []
    for draw, length in ((3, height), (4, width)):
        half = (side * length).to(torch.int64) // 2
        middle = rng.integers(keys, draw, length)
        edges.append(((middle - half).clamp(min=0), (middle + half).clamp(max=length)))
    (top, bottom), (left, right) = edges
    covered = ((bottom - top) * (right - left)).to(torch.float32) / (height * width)
    return torch.stack((top, left, bottom, right), 1), 1 - covered


def _blend(pixels: Tensor, partners: Tensor | None, share: Tensor) -> Tensor:
    """Return [B, H, W, C] float32 in [0, 1]: `share` [B] of the sample, the rest of its partner."""
    share = share[:, None, None, None]
    scaled = pixels.to(torch.float32).mul_(share / 255)
    return scaled if partners is None else scaled.add_(partners.to(torch.float32).mul_((1 - share) / 255))


_QUANTILES = 4096


def beta(a: float, b: float, uniform: Tensor) -> Tensor:
    """Return Beta(a, b) deviates [...] float32 from uniforms [...] in [0, 1).

    Rejection samplers take an unknown number of uniforms, but counted draws are fixed in number. So this reads the
    quantile function, tabulated at 4096 probabilities, with linear interpolation; the distribution function is off by
    at most 1/4096.
    """
    table = _inverse(a, b, uniform.device)
    position = uniform * _QUANTILES
    step = position.floor()
    index = step.to(torch.int64)
    left = table[index]
    return left + (table[index + 1] - left) * (position - step)


def dirichlet(alpha: float, width: int, keys: Tensor, draw: int) -> Tensor:
    """Return Dirichlet(alpha, ..., alpha) weights [B, width] float32; takes `width` - 1 draws from `draw` on.

    Stick breaking: each weight is a Beta(alpha, alpha * number left) share of the rest.
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
    """Return [_QUANTILES + 1] float32: the Beta(a, b) quantiles at evenly spaced probabilities."""
    from scipy.special import betaincinv  # type: ignore[import-untyped]  # slow to import

    probabilities = torch.linspace(0, 1, _QUANTILES + 1, dtype=torch.float64)
    return torch.from_numpy(betaincinv(a, b, probabilities.numpy())).to(torch.float32).to(device)
