"""Several views of each image in one step, for a loss that wants their predictions to agree (`train.consistency`)."""

import torch
from torch import Tensor

from comp.augment import engine, policies
from comp.augment.ops import Policy
from comp.config import Config
from comp.runtime import rng
from comp.runtime.errors import ConfigError

VIEWS = 3  # the clean one and two augmented ones

# First stages that only move an image: the clean view has them too.
_BASE = ("basic", "alternating_flip", "mirrored_crop", "photo")
_PURPOSE = 0x766965  # keeps the views' draws apart from the base's and the mixing's


def check_consistency(config: Config) -> None:
    """Refuse what `train.consistency` cannot go together with.

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
    if not split(policies.resolve(section.policy, section.ops))[1].stages:
        raise ConfigError(
            f"train.consistency: {config.train.consistency} compares augmented views, and augment.policy does no more "
            "than move images; add a policy such as augmix: augment.policy=[basic, augmix]"
        )


def split(policy: Policy) -> tuple[Policy, Policy]:
    """Return what makes the clean view, a first stage that crops or flips or nothing, and what the views add to it."""
    base = tuple(policies.POLICIES[name].stages[0] for name in _BASE)
    cut = 1 if policy.stages[:1] and policy.stages[0] in base else 0
    return Policy(policy.stages[:cut]), Policy(policy.stages[cut:])


def views(images: Tensor, policy: Policy, keys: Tensor, *, flip_mask: Tensor | None = None) -> Tensor:
    """Return the clean view of a batch and its augmented views, one after the other.

    All views of an image share its crop and flip, as in AugMix's training (Hendrycks et al. 2020, arXiv:1912.02781),
    and what workers did to it; what comes after has draws of its own in each.

    Args:
        images: [B, C, H, W] uint8.
        policy: of the run.
        keys: [B] int64 from `draws.keys(seed, epoch, indices)`.
        flip_mask: [B] bool from `engine.alternating_flip_mask`, for a policy with `alternating_flip`.

    Returns:
        [VIEWS B, C, H, W] uint8, channels_last.
    """
    base, rest = split(policy)
    clean = engine.augment(images, base, keys, flip_mask=flip_mask)
    own = torch.cat([rng.fold(keys, _PURPOSE + view) for view in range(1, VIEWS)])  # [(VIEWS - 1) B]
    twice = clean.repeat(VIEWS - 1, 1, 1, 1)
    again = None if flip_mask is None else flip_mask.repeat(VIEWS - 1)
    return torch.cat((clean, engine.augment(twice, rest, own, flip_mask=again)))
