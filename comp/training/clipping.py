"""Gradient clipping, on the device: no value is read back."""

from collections.abc import Callable, Sequence

import torch
from torch.nn import Parameter

Clip = Callable[[Sequence[Parameter], float], object]


def by_norm(parameters: Sequence[Parameter], at: float) -> None:
    """Scale all gradients together so that their norm is at most `at` (Pascanu et al. 2013, arXiv:1211.5063)."""
    torch.nn.utils.clip_grad_norm_(parameters, at)


def by_value(parameters: Sequence[Parameter], at: float) -> None:
    """Bring every element of the gradients to -at..at."""
    torch.nn.utils.clip_grad_value_(parameters, at)


def adaptive(parameters: Sequence[Parameter], at: float) -> None:
    """Scale each output unit's gradient to at most `at` times the norm of its weights.

    Adaptive gradient clipping (Brock et al. 2021, arXiv:2102.06171), by timm; the paper leaves the head out.
    """
    from timm.utils.agc import adaptive_clip_grad

    adaptive_clip_grad(parameters, at)


# optim.clip -> how, and what `clip_at: null` means for it.
CLIPS: dict[str, tuple[Clip, float]] = {
    "norm": (by_norm, 1.0),
    "value": (by_value, 1.0),
    "adaptive": (adaptive, 0.01),
}
