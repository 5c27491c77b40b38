"""Beta and Dirichlet deviates made from counted uniforms, one uniform for each Beta.

Rejection samplers (Jöhnk, Cheng) take an unknown number of uniforms, which a counted draw cannot give. The inverse of
the distribution function takes one. It is tabulated at 4096 steps of probability and read linearly between them:
monotone and right at every step, so its distribution is never off by more than 1/4096.
"""

from functools import lru_cache

import torch
from torch import Tensor

from comp.runtime import rng

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
