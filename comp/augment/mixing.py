"""MixUp, CutMix and label smoothing, with Beta and Dirichlet draws for mixing weights.

Partners are positions 2k and 2k + 1 of the batch, so that they do not depend on how an epoch is cut into (even)
batches. Each sample draws its own lambda, its own box, and CutMix or MixUp. The odd last sample of a batch stays
unchanged. As in `engine`, all draws of a window of steps are planned ahead on the host; no step waits for the device.

    images, targets = mix(images, labels, keys, classes=10, mixing=Mixing(mixup=0.4))
    loss = cross_entropy(model(images), targets)
    correct += hits(logits, targets, label_smoothing=mixing.label_smoothing).sum()
"""

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from comp.augment import plans
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


class Plan(NamedTuple):
    """What mixing does to a window of S batches.

    Attributes:
        boxes: [S, B, 4] int64, what CutMix takes from the partner; empty where it takes nothing. None: CutMix is off.
        share: [S, B] float32, share of the sample's own pixels in MixUp; None: MixUp is off.
        kept: [S, B] float32, share of its own label.
    """

    boxes: Tensor | None
    share: Tensor | None
    kept: Tensor


def plan_mixing(mixing: Mixing, keys: Tensor, height: int, width: int) -> Plan | None:
    """Plan a window of batches.

    Args:
        mixing: the settings.
        keys: [S, B] int64 on the CPU, those of the augmentation.
        height: of the images.
        width: of the images.

    Returns:
        a plan on the CPU, see `plans.send`; None: nothing is mixed.
    """
    if not (mixing.mixup or mixing.cutmix):
        return None
    paired = torch.arange(keys.shape[1]) < keys.shape[1] // 2 * 2
    keys = rng.fold(keys, _PURPOSE)
    cut = _cut(keys, mixing) & paired
    boxes, share, kept = None, None, torch.ones(keys.shape)
    if mixing.cutmix:
        drawn, uncovered = _boxes(keys, mixing.cutmix, height, width)
        boxes, kept = drawn * cut[..., None], torch.where(cut, uncovered, kept)
    if mixing.mixup:
        lambdas = beta(mixing.mixup, mixing.mixup, rng.uniform(keys, 1))
        share = torch.where(paired & ~cut, lambdas, 1.0)
        kept = kept * share
    return Plan(boxes, share, kept)


def mix(images: Tensor, labels: Tensor, keys: Tensor, *, classes: int, mixing: Mixing) -> tuple[Tensor, Tensor]:
    """Plan and mix one batch; keys [B] on a device are read back. See `mix_planned`."""
    height, width = images.shape[2:]
    plan = plans.send(plan_mixing(mixing, keys.cpu()[None], height, width), images.device)
    return mix_planned(images, labels, plan, 0, classes=classes, label_smoothing=mixing.label_smoothing)


def mix_planned(
    images: Tensor, labels: Tensor, plan: Plan | None, step: int, *, classes: int, label_smoothing: float
) -> tuple[Tensor, Tensor]:
    """Mix a step's batch; return float images and soft targets.

    Args:
        images: [B, C, H, W] uint8.
        labels: [B] int64, a column of 0 and 1 for each class, [B, classes] float32, or numbers [B] float32.
        plan: on their device; None: nothing is mixed.
        step: of the plan.
        classes: number of classes.
        label_smoothing: see `Mixing`.

    Returns:
        images [B, C, H, W] float32 in [0, 1], channels_last, and targets [B, classes] float32, whose rows sum to 1
        where labels are indices; of numbers [B, 1].
    """
    pixels = geometry.to_pixels(images)  # [B, H, W, C]
    if plan is None:
        scaled = geometry.to_images(pixels.to(torch.float32).mul_(1 / 255))
        return scaled, soft_targets(labels, classes=classes, label_smoothing=label_smoothing)
    partners = _swap(pixels)
    if plan.boxes is not None:
        pixels = geometry.to_pixels(
            geometry.erase(geometry.to_images(pixels), plan.boxes[step], geometry.to_images(partners))
        )
    share = None if plan.share is None else plan.share[step]
    targets = soft_targets(labels, _swap(labels), plan.kept[step], classes=classes, label_smoothing=label_smoothing)
    return geometry.to_images(_blend(pixels, partners, share)), targets


def mix_targets(targets: Tensor, plan: Plan, step: int) -> Tensor:
    """Return soft targets [B, classes] mixed as `mix_planned` mixes labels, on their device."""
    kept = plan.kept[step].to(targets.device)[:, None]
    return kept * targets + (1 - kept) * _swap(targets)


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
        labels: [B] int64, [B, classes] float32 of 0 and 1, or numbers [B] float32, which are mixed linearly.
        partner_labels: labels of the partner images, weighted by 1 - kept; None: no partners.
        kept: [B] float32, the weight of `labels`; used with `partner_labels`.
        classes: number of classes.
        label_smoothing: share spread evenly over all classes (Szegedy et al. 2016, arXiv:1512.00567); columns move
            towards 0.5 instead.
    """
    if labels.is_floating_point() and labels.ndim == 1:
        mixed = labels if partner_labels is None or kept is None else kept * labels + (1 - kept) * partner_labels
        return mixed[:, None]
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

    For numbers, targets [B, 1], nothing is a hit.
    """
    if targets.shape[1] == 1 and not columns:
        return torch.zeros(len(targets), device=targets.device)
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
    """Return bool of the shape of keys: which samples get CutMix."""
    if not (mixing.mixup and mixing.cutmix):
        return torch.full(keys.shape, mixing.cutmix > 0)
    return rng.uniform(keys, 0) < mixing.switch_probability


def _boxes(keys: Tensor, alpha: float, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Return boxes [..., 4] (top, left, bottom, right), cut at the border, and the share [...] outside them."""
    side = torch.sqrt(1 - beta(alpha, alpha, rng.uniform(keys, 2)))  # of the box, as a share of the image's
    edges = []
    for draw, length in ((3, height), (4, width)):
        half = (side * length).to(torch.int64) // 2
        middle = rng.integers(keys, draw, length)
        edges.append(((middle - half).clamp(min=0), (middle + half).clamp(max=length)))
    (top, bottom), (left, right) = edges
    covered = ((bottom - top) * (right - left)).to(torch.float32) / (height * width)
    return torch.stack((top, left, bottom, right), -1), 1 - covered


def _blend(pixels: Tensor, partners: Tensor, share: Tensor | None) -> Tensor:
    """Return [B, H, W, C] float32 in [0, 1]: `share` [B] (None: all) of the sample, the rest of its partner."""
    if share is None:
        return pixels.to(torch.float32).mul_(1 / 255)
    share = share[:, None, None, None]
    scaled = pixels.to(torch.float32).mul_(share / 255)
    return scaled.add_(partners.to(torch.float32).mul_((1 - share) / 255))


_QUANTILES = 4096


def beta(a: float, b: float, uniform: Tensor) -> Tensor:
    """Return Beta(a, b) deviates [...] float32 from uniforms [...] in [0, 1).

    Rejection samplers take an unknown number of uniforms, but counted draws are fixed in number. So this reads the
    quantile function, tabulated at 4096 probabilities, with linear interpolation; the distribution function is off by
    at most 1/4096.
    """
    table = _inverse(a, b)
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
def _inverse(a: float, b: float) -> Tensor:
    """Return [_QUANTILES + 1] float32: the Beta(a, b) quantiles at evenly spaced probabilities."""
    from scipy.special import betaincinv  # type: ignore[import-untyped]  # slow to import

    probabilities = torch.linspace(0, 1, _QUANTILES + 1, dtype=torch.float64)
    return torch.from_numpy(betaincinv(a, b, probabilities.numpy())).to(torch.float32)
