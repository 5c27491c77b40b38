"""Training losses: a loss for each task, and the consistency loss over several views (`train.consistency`)."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from comp.augment import engine, policies
from comp.augment.ops import Policy
from comp.config import Config
from comp.runtime import rng
from comp.runtime.errors import ConfigError

VIEWS = 3  # one clean view and two augmented ones

# First stages that only move an image: the clean view has them too.
_GEOMETRIC_STAGES = ("basic", "alternating_flip", "mirrored_crop", "photo")
_PURPOSE = 0x766965  # separates the views' draws from those of first stage and mixing


def cumulative(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the loss of ordered classes: the binary cross-entropy of "above class k", summed over k < K - 1.

    Niu et al. 2016, "Ordinal regression with multiple output CNN for age estimation". The probability of each binary
    question is a sum of softmax outputs, so that they never contradict one another (as Cao et al. 2020,
    arXiv:1901.07884, ask for), and predictions stay probabilities of classes.

    Args:
        logits: [B, K].
        targets: [B, K] in [0, 1], or class indices [B].
    """
    classes = logits.shape[1]
    if targets.ndim == 1:
        targets = F.one_hot(targets, classes)
    above = torch.ones(classes - 1, classes, dtype=torch.bool, device=logits.device).triu(1)  # [k, j]: j > k
    logs = logits.float().log_softmax(1)[:, None]  # [B, 1, K]
    log_above = logs.masked_fill(~above, -torch.inf).logsumexp(2)  # [B, K - 1]
    log_below = logs.masked_fill(above, -torch.inf).logsumexp(2)
    share = (targets.float()[:, None] * above).sum(2)
    return -(share * log_above + (1 - share) * log_below).sum(1).mean()


def squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the mean squared error of numbers [B, 1]; targets are [B, 1] or [B]."""
    return F.mse_loss(outputs, targets.reshape(outputs.shape))


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


# A task's loss: logits [B, classes] and targets [B, classes] in [0, 1] -> the batch's mean, in nats. timm's losses for
# such targets are these two functions (BinaryCrossEntropy), or equal and 7 % slower (SoftTargetCrossEntropy).
LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cross_entropy": F.cross_entropy,
    "binary_cross_entropy": F.binary_cross_entropy_with_logits,
    "cumulative": cumulative,
    "mse": squared_error,
}


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
        criterion: a row of LOSSES.
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
