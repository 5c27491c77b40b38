"""The learning rate as a pure function of the step and the plan.

A rate depends on nothing that came before, so that a resumed training and one that was never stopped see the same
numbers, and a plan may be changed on the way (`Plan.replanned`).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from comp.config import OptimConfig
from comp.runtime.errors import ConfigError, unknown


@dataclass(frozen=True)
class Plan:
    """How long a training is, and how far along its schedule it was when that was decided.

    Attributes:
        total_steps: of the whole training, those before `began` among them.
        steps_per_epoch: optimizer steps, not micro-batches.
        began: the first step this plan speaks of; 0 for the plan a training starts with.
        share: of the schedule that lay behind then, in 0..1.
    """

    total_steps: int
    steps_per_epoch: int
    began: int = 0
    share: float = 0.0

    @property
    def epochs(self) -> int:
        """How many epochs that is, the last one whole or not."""
        return -(-self.total_steps // self.steps_per_epoch)

    def position(self, step: int) -> float:
        """Return where on a schedule of `total_steps` the step stands: itself, unless the plan was changed.

        What lay ahead at `began` is stretched or squeezed over the steps that are left, so that the rate does not jump
        and the last step ends the schedule.
        """
        if not self.began:
            return step
        last = self.total_steps - 1
        left = last - self.began
        walked = (step - self.began) / left if left > 0 else 1.0
        return last * (self.share + (1 - self.share) * walked)

    def replanned(self, step: int, total_steps: int) -> "Plan":
        """Return the plan that ends after `total_steps` and goes on, from `step`, where this one stands."""
        last = self.total_steps - 1
        share = self.position(step) / last if last > 0 else 1.0
        return Plan(total_steps, self.steps_per_epoch, began=step, share=min(share, 1.0))

    def ending(self, epochs: int) -> "Plan":
        """Return the plan of a block that is trained for so many epochs alone."""
        return Plan(min(self.total_steps, epochs * self.steps_per_epoch), self.steps_per_epoch)


def onecycle(step: int, plan: Plan, config: OptimConfig) -> float:
    """Up to the peak and down again, both along a cosine; the last step has the final rate.

    Smith and Topin 2018, "Super-convergence"; the same curve as torch's OneCycleLR with `cycle_momentum=False`.
    """
    position, last = plan.position(step), plan.total_steps - 1
    top = config.warmup * plan.total_steps - 1  # may be negative: no warm-up at all
    if position <= top:
        return _cosine(config.lr * config.start_factor, config.lr, position / top if top > 0 else 1.0)
    top = max(top, 0)
    return _cosine(config.lr, config.lr * config.final_factor, (position - top) / (last - top) if last > top else 1.0)


def cosine(step: int, plan: Plan, config: OptimConfig) -> float:
    """Up along a line, down along half a cosine (Loshchilov and Hutter 2017, "SGDR").

    The rate after the last step would be the final one, as in torch's CosineAnnealingLR.
    """
    return _after_warmup(step, plan, config, _cosine)


def linear(step: int, plan: Plan, config: OptimConfig) -> float:
    """Up along a line, down along a line.

    The rate after the last step would be the final one, as in torch's LinearLR: a final rate of 0 wastes no step.
    """
    return _after_warmup(step, plan, config, _line)


def step_decay(step: int, plan: Plan, config: OptimConfig) -> float:
    """Times `step_factor` after every `step_epochs` epochs, as torch's StepLR; a changed plan changes nothing here."""
    return config.lr * config.step_factor ** (step // (config.step_epochs * plan.steps_per_epoch))


def constant(step: int, plan: Plan, config: OptimConfig) -> float:
    """The same rate at every step."""
    return config.lr


# optim.schedule -> the rate of a step; a step counts from 0 to plan.total_steps - 1.
SCHEDULES: dict[str, Callable[[int, Plan, OptimConfig], float]] = {
    "onecycle": onecycle,
    "cosine": cosine,
    "linear": linear,
    "step": step_decay,
    "constant": constant,
}


def check_schedule(config: OptimConfig) -> None:
    """Refuse an unknown schedule.

    Raises:
        ConfigError: naming the known ones and the nearest.
    """
    if config.schedule not in SCHEDULES:
        raise ConfigError(f"optim.schedule: {unknown('schedule', config.schedule, SCHEDULES)}")


def rate(step: int, plan: Plan, config: OptimConfig) -> float:
    """Return the learning rate of a step (from 0), before any group's own factor.

    Raises:
        ConfigError: an unknown schedule.
    """
    check_schedule(config)
    return SCHEDULES[config.schedule](step, plan, config)


def _after_warmup(
    step: int, plan: Plan, config: OptimConfig, descent: Callable[[float, float, float], float]
) -> float:  # fmt: skip
    position, rise = plan.position(step), round(config.warmup * plan.total_steps)
    if position < rise:
        return _line(config.lr * config.start_factor, config.lr, position / rise)
    return descent(config.lr, config.lr * config.final_factor, (position - rise) / max(1, plan.total_steps - rise))


def _cosine(begin: float, end: float, share: float) -> float:
    return end + (begin - end) * (1 + math.cos(math.pi * share)) / 2


def _line(begin: float, end: float, share: float) -> float:
    return begin + (end - begin) * share
