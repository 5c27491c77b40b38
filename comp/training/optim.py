"""Optimizers by name, and the learning rate as a pure function of the step."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.optim import Optimizer

from comp.config import OptimConfig
from comp.errors import ConfigError, unknown

ParameterGroups = Iterable[dict[str, Any]]


def adamw(groups: ParameterGroups, config: OptimConfig) -> Optimizer:
    """AdamW (Loshchilov and Hutter 2019)."""
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)


def sgd(groups: ParameterGroups, config: OptimConfig) -> Optimizer:
    """SGD with Nesterov momentum (Sutskever et al. 2013)."""
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.momentum > 0, fused=True)


OPTIMIZERS: dict[str, Callable[[ParameterGroups, OptimConfig], Optimizer]] = {"adamw": adamw, "sgd": sgd}


def check_optimizer(name: str) -> None:
    """Refuse an unknown optimizer.

    Raises:
        ConfigError: naming the known ones and the nearest.
    """
    if name not in OPTIMIZERS:
        raise ConfigError(f"optim.name: {unknown('optimizer', name, OPTIMIZERS)}")


def build_optimizer(groups: ParameterGroups, config: OptimConfig) -> Optimizer:
    """Return the optimizer that `optim.name` asks for.

    Args:
        groups: torch parameter groups, each with its `weight_decay` and `lr_scale` (times the schedule's rate).
        config: section `optim`.

    Raises:
        ConfigError: unknown name.
    """
    check_optimizer(config.name)
    return OPTIMIZERS[config.name](groups, config)


def onecycle(step: int, total_steps: int, config: OptimConfig) -> float:
    """Return the learning rate of a step: up to the peak and down again, both along a cosine.

    Smith and Topin 2018, "Super-convergence"; the same curve as torch's OneCycleLR with `cycle_momentum=False`.

    Args:
        step: 0 to total_steps - 1.
        total_steps: of the whole training.
        config: `lr` is the peak; `warmup`, `start_factor`, `final_factor` shape the curve.
    """
    peak, start, final = config.lr, config.lr * config.start_factor, config.lr * config.final_factor
    top = config.warmup * total_steps - 1  # may be negative: no warm-up at all
    if step <= top:
        return _cosine(start, peak, step / top if top > 0 else 1.0)
    last = total_steps - 1
    return _cosine(peak, final, (step - max(top, 0)) / (last - max(top, 0)) if last > max(top, 0) else 1.0)


def _cosine(begin: float, end: float, share: float) -> float:
    return end + (begin - end) * (1 + math.cos(math.pi * share)) / 2


def set_rate(optimizer: Optimizer, rate: float) -> None:
    """Give every group the schedule's rate times its own `lr_scale`."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("lr_scale", 1.0)
