"""Training losses: those of each task, with class weights, and the consistency loss over several views."""

import inspect
import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from comp.augment import engine, policies
from comp.augment.ops import Policy
from comp.config import Config, TrainConfig
from comp.config.tasks import TASKS
from comp.data.dataset import Dataset
from comp.runtime import rng
from comp.runtime.errors import ConfigError, unknown
from comp.training import imbalance

VIEWS = 3  # one clean view and two augmented ones

# First stages that only move an image: the clean view has them too.
_GEOMETRIC_STAGES = ("basic", "alternating_flip", "mirrored_crop", "photo")
_PURPOSE = 0x766965  # separates the views' draws from those of first stage and mixing

_SMALLEST_MISS = torch.finfo(torch.float32).eps  # a power below 1 has no gradient at 0


def binary_cross_entropy(
    logits: Tensor, targets: Tensor, *, reduction: str = "mean", target_threshold: float | None = None
) -> Tensor:
    """Return the cross-entropy of each class's sigmoid, as timm's BinaryCrossEntropy.

    For one class an image too, as in ResNet strikes back (Wightman et al. 2021, arXiv:2110.00476), where soft targets
    above `target_threshold` (0.2 there) count as 1 and others as 0: both classes of a mixed image are present.
    """
    if target_threshold is not None:
        targets = (targets > target_threshold).to(targets.dtype)
    return F.binary_cross_entropy_with_logits(logits, targets, reduction=reduction)


def focal(logits: Tensor, targets: Tensor, *, reduction: str = "mean", gamma: float = 2.0) -> Tensor:
    """Return the softmax focal loss: a class's cross-entropy times (1 - p)^gamma (Lin et al. 2017, arXiv:1708.02002).

    Linear in the targets, as MixUp takes a loss. With label smoothing it leaves predictions far less certain.
    """
    logs = logits.float().log_softmax(1)
    misses = (-logs.expm1()).clamp(min=_SMALLEST_MISS)  # 1 - p
    return _reduce(-(targets * misses**gamma * logs).sum(1), reduction)


def binary_focal(logits: Tensor, targets: Tensor, *, reduction: str = "mean", gamma: float = 2.0) -> Tensor:
    """Return the focal loss of each class's sigmoid, without the balance alpha; see `focal`."""
    present, absent = F.logsigmoid(logits.float()), F.logsigmoid(-logits.float())  # log p, log (1 - p)
    each = targets * (gamma * absent).exp() * present + (1 - targets) * (gamma * present).exp() * absent
    return _reduce(-each, reduction)


def asymmetric(
    logits: Tensor,
    targets: Tensor,
    *,
    reduction: str = "mean",
    gamma_neg: float = 4.0,
    gamma_pos: float = 1.0,
    clip: float = 0.05,
) -> Tensor:
    """Return the asymmetric loss: absent classes focus harder, and not at all below a probability of `clip`.

    Ridnik et al. 2021, arXiv:2009.14119, with soft targets as timm's AsymmetricLossMultiLabel, which has next to no
    gradient at probabilities below 1e-8, NaN for exponents below 1, and in version 1.0.28 only the batch's sum.
    """
    present, absent = logits.float().sigmoid(), (-logits.float()).sigmoid()
    shifted = (absent + clip).clamp(max=1)
    log_absent = shifted.log() if clip else F.logsigmoid(-logits.float())
    misses = (1 - present * targets - shifted * (1 - targets)).clamp(min=_SMALLEST_MISS)
    powers = misses ** (gamma_pos * targets + gamma_neg * (1 - targets))
    return _reduce(-(targets * F.logsigmoid(logits.float()) + (1 - targets) * log_absent) * powers, reduction)


def poly(logits: Tensor, targets: Tensor, *, reduction: str = "mean", epsilon: float = 2.0) -> Tensor:
    """Return Poly-1: cross-entropy plus epsilon (1 - p) (Leng et al. 2022, arXiv:2204.12511), as timm 1.0.31 has it."""
    logs = logits.float().log_softmax(1)
    return _reduce((targets * (epsilon * (1 - logs.exp()) - logs)).sum(1), reduction)


def binary_poly(logits: Tensor, targets: Tensor, *, reduction: str = "mean", epsilon: float = 2.0) -> Tensor:
    """Return Poly-1 of each class's sigmoid; see `poly`."""
    logits = logits.float()
    misses = targets * (-logits).sigmoid() + (1 - targets) * logits.sigmoid()
    each = F.binary_cross_entropy_with_logits(logits, targets, reduction="none") + epsilon * misses
    return _reduce(each, reduction)


def cumulative(logits: Tensor, targets: Tensor, *, reduction: str = "mean") -> Tensor:
    """Return the loss of ordered classes: the binary cross-entropy of "above class k", summed over k < K - 1.

    Niu et al. 2016, "Ordinal regression with multiple output CNN for age estimation". The probability of each binary
    question is a sum of softmax outputs, so that they never contradict one another (as Cao et al. 2020,
    arXiv:1901.07884, ask for), and predictions stay probabilities of classes.

    Args:
        logits: [B, K].
        targets: [B, K] in [0, 1], or class indices [B].
        reduction: `mean`, or `none` for [B].
    """
    classes = logits.shape[1]
    if targets.ndim == 1:
        targets = F.one_hot(targets, classes)
    above = torch.ones(classes - 1, classes, dtype=torch.bool, device=logits.device).triu(1)  # [k, j]: j > k
    logs = logits.float().log_softmax(1)[:, None]  # [B, 1, K]
    log_above = logs.masked_fill(~above, -torch.inf).logsumexp(2)  # [B, K - 1]
    log_below = logs.masked_fill(above, -torch.inf).logsumexp(2)
    share = (targets.float()[:, None] * above).sum(2)
    return _reduce(-(share * log_above + (1 - share) * log_below).sum(1), reduction)


def squared_error(outputs: Tensor, targets: Tensor, *, reduction: str = "mean") -> Tensor:
    """Return the mean squared error of numbers [B, 1]; targets are [B, 1] or [B]."""
    return F.mse_loss(outputs, targets.reshape(outputs.shape), reduction=reduction)


def _reduce(each: Tensor, reduction: str) -> Tensor:
    return each.mean() if reduction == "mean" else each


def standardised(
    criterion: Callable[[Tensor, Tensor], Tensor], scale: tuple[float, float] | None
) -> Callable[[Tensor, Tensor], Tensor]:
    """Return a loss of numbers in units of the training labels' deviation: rates fit any unit.

    Args:
        criterion: a row of LOSSES.
        scale: mean and standard deviation of the training labels; None: of classes, and the loss stays as it is.
    """
    if scale is None:
        return criterion
    mean, std = scale
    return lambda outputs, targets: criterion((outputs - mean) / std, (targets - mean) / std)


# From logits [B, classes] and targets [B, classes] in [0, 1] to the mean over the batch, of a sigmoid also over the
# classes, in nats; with reduction="none" to [B], or [B, classes] of a sigmoid. Other keywords are `train.loss_args`.
# timm's losses for such targets are the same functions, or equal and 7 % slower (SoftTargetCrossEntropy).
LOSSES: dict[str, Callable[..., Tensor]] = {
    "cross_entropy": F.cross_entropy,
    "binary_cross_entropy": binary_cross_entropy,
    "focal": focal,
    "binary_focal": binary_focal,
    "asymmetric": asymmetric,
    "poly": poly,
    "binary_poly": binary_poly,
    "cumulative": cumulative,
    "mse": squared_error,
}
"""Rows whose function does not describe them:

cross_entropy: Cross-entropy of the softmax, with soft targets.
"""
# Lowest and highest value of an argument.
_RANGES = {
    "gamma": (0, 10),
    "gamma_neg": (0, 10),
    "gamma_pos": (0, 10),
    "clip": (0, 0.5),
    "epsilon": (-1, 10),
    "target_threshold": (0, 1),
}
_SIGMOID_LOSSES = ("bce", "asymmetric")  # values of `train.loss` that train no softmax


def check_loss(section: TrainConfig, task: str) -> None:
    """Check `train.loss` and its arguments by name and range.

    Args:
        section: the config's.
        task: a row of TASKS; `auto`: the first that has the loss.

    Raises:
        ConfigError: unknown, or not defined for the task.
    """
    offered = {name: row.losses for name, row in TASKS.items() if task in ("auto", name)}
    if not offered:  # reported elsewhere
        return
    choices = dict.fromkeys(["auto", *(loss for row in offered.values() for loss in row)])
    if section.loss not in choices:
        if any(section.loss in row.losses for row in TASKS.values()):
            raise ConfigError(
                f"train.loss: {section.loss} is not defined for task {task}; choose from {', '.join(choices)}"
            )
        raise ConfigError(f"train.loss: {unknown('loss', section.loss, choices)}")
    first = next(name for name, row in offered.items() if section.loss in ("auto", *row))
    accepted = _arguments(LOSSES[_row_name(section, first)])
    for name, value in section.loss_args.items():
        if name not in accepted:
            rows = TASKS[first].losses
            takers = [loss for loss in rows if name in _arguments(LOSSES[rows[loss]])]
            hint = f"train.loss={takers[0]} has" if takers else "leave train.loss_args out"
            hint = f"it takes {', '.join(accepted)}" if accepted else hint
            raise ConfigError(f"train.loss_args: {section.loss} has no argument '{name}'; {hint}")
        low, high = _RANGES.get(name, (-math.inf, math.inf))  # of a plug-in
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise ConfigError(f"train.loss_args: {name}: expected a number from {low} to {high}, found {value!r}")


def _row_name(section: TrainConfig, task: str) -> str:
    row = TASKS[task]
    return row.loss if section.loss == "auto" else row.losses[section.loss]


def _arguments(loss: Callable[..., Tensor]) -> list[str]:
    parameters = inspect.signature(loss).parameters.values()
    return [one.name for one in parameters if one.kind is one.KEYWORD_ONLY and one.name != "reduction"]


def build_criterion(config: Config, dataset: Dataset, device: torch.device) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the training's loss with its arguments and class weights: logits and targets -> mean; see LOSSES.

    Weights are scaled over the training images, not over the batch, so micro-batches and processes average exactly.

    Args:
        config: sections `train` and `data`.
        dataset: its training labels are counted.
        device: of the logits.
    """
    name = _row_name(config.train, dataset.competition.task)
    loss = partial(LOSSES[name], **config.train.loss_args) if config.train.loss_args else LOSSES[name]
    weights = imbalance.class_weights(config, dataset)
    if weights is None:
        return standardised(loss, dataset.label_scale)
    present, absent = (torch.from_numpy(column).float().to(device) for column in weights)
    # Part of the targets is the teachers', which is not smoothed.
    smoothing = config.train.label_smoothing * (1 - (config.train.teacher.share if config.train.teacher.runs else 0))
    columns = TASKS[dataset.competition.task].target_columns
    even = smoothing / (2 if columns else len(present))

    def weighted(logits: Tensor, targets: Tensor) -> Tensor:
        each = loss(logits, targets, reduction="none")
        shares = (targets - even) / (1 - smoothing)  # before smoothing; of a mixed image, of both its classes
        weight = shares * present + (1 - shares) * absent  # [B, classes]
        if columns:
            return (each * weight).mean()
        return ((each if each.ndim == 1 else each.mean(1)) * weight.sum(1)).mean()

    return weighted


def jensen_shannon(logits: list[Tensor]) -> Tensor:
    """Return the Jensen-Shannon divergence of the views' predictions, averaged over the batch.

    The consistency term of AugMix (Hendrycks et al. 2020, arXiv:1912.02781, section 3), in nats: 0 where all views
    agree, at most the logarithm of their number. timm's JsdCrossEntropy has NaN gradients where a probability
    underflows, and takes 1.2 to 1.8 times as long.

    Args:
        logits: one [B, classes] for each view.
    """
    logs = torch.stack([view.float().log_softmax(1) for view in logits])  # [views, B, classes]
    mixture = logs.exp().mean(0).clamp(min=1e-7).log()  # log 0 has no gradient
    return torch.stack([F.kl_div(mixture, view, reduction="batchmean", log_target=True) for view in logs]).mean()


def consistency_loss(
    criterion: Callable[[Tensor, Tensor], Tensor], logits: Tensor, targets: Tensor, *, views: int, weight: float
) -> Tensor:
    """Return the first view's loss plus `weight` times the divergence of all views; with one view, its loss alone.

    Args:
        criterion: from `build_criterion`.
        logits: [views B, classes], view after view, the clean one first.
        targets: [B, classes].
        views: their number; B is the batch's size.
        weight: 12 in AugMix's paper.
    """
    by_view = list(logits.float().chunk(views))
    loss = criterion(by_view[0], targets)
    return loss if views == 1 else loss + weight * jensen_shannon(by_view)


def check_consistency(config: Config) -> None:
    """Check that `train.consistency` fits the augmentation.

    Raises:
        ConfigError: mixed images, or nothing to augment.
    """
    if config.train.consistency == "none":
        return
    if config.train.loss in _SIGMOID_LOSSES:
        raise ConfigError(
            f"train.consistency: {config.train.consistency} compares softmax outputs, but train.loss="
            f"{config.train.loss} trains a sigmoid of each class; use cross_entropy, focal or poly, or "
            "train.consistency=none"
        )
    section = config.augment
    if section.mixup or section.cutmix:
        name, value = ("mixup", section.mixup) if section.mixup else ("cutmix", section.cutmix)
        raise ConfigError(
            f"train.consistency: {config.train.consistency} compares views of one image, and augment.{name}={value:g} "
            f"blends two; set augment.{name}=0 or train.consistency=none"
        )
    if not split_policy(policies.resolve(section.policy, section.ops))[1].stages:
        raise ConfigError(
            f"train.consistency: {config.train.consistency} compares augmented views, and augment.policy only moves "
            "images; add a policy such as augmix: augment.policy=[basic, augmix]"
        )


def split_policy(policy: Policy) -> tuple[Policy, Policy]:
    """Return the policy of the clean view (a first stage that only crops or flips, or nothing) and the rest."""
    geometric = tuple(policies.POLICIES[name].stages[0] for name in _GEOMETRIC_STAGES)
    cut = 1 if policy.stages[:1] and policy.stages[0] in geometric else 0
    return Policy(policy.stages[:cut]), Policy(policy.stages[cut:])


class ViewsPlan(NamedTuple):
    """What happens to a window of batches of several views.

    All views of an image share its crop and flip, as in AugMix's training (Hendrycks et al. 2020, arXiv:1912.02781),
    and the workers' augmentation; the rest is drawn anew for each view.
    """

    clean: engine.Plan
    views: engine.Plan

    def run(self, images: Tensor, step: int) -> Tensor:
        """Return the clean view of images [B, C, H, W] uint8, then its augmented views: [VIEWS B, C, H, W]."""
        clean = self.clean.run(images, step)
        return torch.cat((clean, self.views.run(clean.repeat(VIEWS - 1, 1, 1, 1), step)))


def plan_views(
    policy: Policy, keys: Tensor, shape: tuple[int, int, int], *, flip_mask: Tensor | None = None
) -> ViewsPlan:
    """Plan the views of a window of batches; see `engine.plan_policy`."""
    geometric, rest = split_policy(policy)
    clean = engine.plan_policy(geometric, keys, shape, flip_mask=flip_mask)
    view_keys = torch.cat([rng.fold(keys, _PURPOSE + view) for view in range(1, VIEWS)], 1)  # [S, (VIEWS - 1) B]
    masks = None if flip_mask is None else flip_mask.repeat(1, VIEWS - 1)
    return ViewsPlan(clean, engine.plan_policy(rest, view_keys, shape, flip_mask=masks))
