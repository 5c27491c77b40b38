"""Schedules: the learning rate as a pure function of the step, the image size as one of the epoch.

A rate depends on nothing that came before, so a resumed training sees the same numbers as an uninterrupted one, and a
plan can change on the way (`Plan.replanned`).

Training on small images first costs a fraction of the time: progressive resizing as in fast.ai's DAWNBench entries
(Howard 2018), and Touvron et al. 2019, "Fixing the train-test resolution discrepancy", arXiv:1906.06423: the last
epochs see the size that is predicted.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from comp.runtime.errors import ConfigError, unknown


@dataclass(frozen=True)
class Plan:
    """Length of a training, and how far along its schedule it was when that was decided.

    Attributes:
        total_steps: of the whole training, including those before `began`.
        steps_per_epoch: optimizer steps, not micro-batches.
        began: the plan's first step; 0 for the plan a training starts with.
        share: of the schedule completed by then, in 0..1.
    """

    total_steps: int
    steps_per_epoch: int
    began: int = 0
    share: float = 0.0

    @property
    def epochs(self) -> int:
        """Number of epochs, counting a partial last one."""
        return -(-self.total_steps // self.steps_per_epoch)

    def position(self, step: int) -> float:
        """Return the step's position on a schedule of `total_steps`: the step itself, unless the plan was changed.

        What lay ahead at `began` is stretched or squeezed over the remaining steps, so the rate does not jump and the
        last step ends the schedule.
        """
        if not self.began:
            return step
        last = self.total_steps - 1
        left = last - self.began
        progress = (step - self.began) / left if left > 0 else 1.0
        return last * (self.share + (1 - self.share) * progress)

    def replanned(self, step: int, total_steps: int) -> "Plan":
        """Return a plan that ends after `total_steps` and continues, from `step`, at this one's position."""
        last = self.total_steps - 1
        share = self.position(step) / last if last > 0 else 1.0
        return Plan(total_steps, self.steps_per_epoch, began=step, share=min(share, 1.0))

    def ending(self, epochs: int) -> "Plan":
        """Return the plan of a block that trains for only so many epochs."""
        return Plan(min(self.total_steps, epochs * self.steps_per_epoch), self.steps_per_epoch)


@dataclass(frozen=True)
class Schedule:
    """A learning rate schedule: a row of SCHEDULES and its settings.

    Attributes:
        name: a row of SCHEDULES.
        lr: the peak rate.
        warmup: share of steps in which onecycle, cosine and linear rise.
        start_factor: the rise starts at `lr` times this.
        final_factor: onecycle, cosine and linear end at `lr` times this.
        step_epochs: how many epochs the rate of `step` stays the same.
        step_factor: what it is then multiplied by.
    """

    name: str
    lr: float
    warmup: float = 0.3
    start_factor: float = 0.04
    final_factor: float = 1e-5
    step_epochs: int = 30
    step_factor: float = 0.1

    def rate(self, step: int, plan: Plan) -> float:
        """Return the learning rate of a step (from 0), before any group's own factor."""
        return SCHEDULES[self.name](step, plan, self)


def onecycle(step: int, plan: Plan, schedule: Schedule) -> float:
    """Rise to the peak and fall again, both along a cosine; the last step has the final rate.

    Smith and Topin 2018, "Super-convergence"; the same curve as torch's OneCycleLR with `cycle_momentum=False`.
    """
    position, last, lr = plan.position(step), plan.total_steps - 1, schedule.lr
    top = schedule.warmup * plan.total_steps - 1  # may be negative: no warm-up at all
    if position <= top:
        return _cosine(lr * schedule.start_factor, lr, position / top if top > 0 else 1.0)
    top = max(top, 0)
    return _cosine(lr, lr * schedule.final_factor, (position - top) / (last - top) if last > top else 1.0)


def cosine(step: int, plan: Plan, schedule: Schedule) -> float:
    """Rise along a line, fall along half a cosine (Loshchilov and Hutter 2017, "SGDR").

    The rate after the last step would be the final one, as in torch's CosineAnnealingLR.
    """
    return _after_warmup(step, plan, schedule, _cosine)


def linear(step: int, plan: Plan, schedule: Schedule) -> float:
    """Rise along a line, fall along a line.

    The rate after the last step would be the final one, as in torch's LinearLR: a final rate of 0 wastes no step.
    """
    return _after_warmup(step, plan, schedule, _line)


def step_decay(step: int, plan: Plan, schedule: Schedule) -> float:
    """Multiply by `step_factor` every `step_epochs` epochs, like torch's StepLR; a changed plan changes nothing."""
    return schedule.lr * schedule.step_factor ** (step // (schedule.step_epochs * plan.steps_per_epoch))


def constant(step: int, plan: Plan, schedule: Schedule) -> float:
    """Keep the same rate at every step."""
    return schedule.lr


# optim.schedule -> the rate of a step; a step counts from 0 to plan.total_steps - 1.
SCHEDULES: dict[str, Callable[[int, Plan, Schedule], float]] = {
    "onecycle": onecycle,
    "cosine": cosine,
    "linear": linear,
    "step": step_decay,
    "constant": constant,
}


def check_schedule(name: str) -> None:
    """Check that a schedule exists.

    Raises:
        ConfigError: listing the schedules and the nearest name.
    """
    if name not in SCHEDULES:
        raise ConfigError(f"optim.schedule: {unknown('schedule', name, SCHEDULES)}")


def _after_warmup(step: int, plan: Plan, schedule: Schedule, descend: Callable[[float, float, float], float]) -> float:
    position, rise, lr = plan.position(step), round(schedule.warmup * plan.total_steps), schedule.lr
    if position < rise:
        return _line(lr * schedule.start_factor, lr, position / rise)
    return descend(lr, lr * schedule.final_factor, (position - rise) / max(1, plan.total_steps - rise))


def _cosine(begin: float, end: float, share: float) -> float:
    return end + (begin - end) * (1 + math.cos(math.pi * share)) / 2


def _line(begin: float, end: float, share: float) -> float:
    return begin + (end - begin) * share


def side_at(sizes: Mapping[int, int], epoch: int) -> int | None:
    """Return the side in pixels of an epoch's images (from 1), None for their own size.

    Args:
        sizes: first epoch -> side, valid until the next listed epoch.
        epoch: counted from 1.
    """
    started = [first for first in sizes if first <= epoch]
    return sizes[max(started)] if started else None


def resize(images: Tensor, side: int | None) -> Tensor:
    """Return float images [B, C, H, W] with their shorter side resized to `side`, antialiased; None keeps them."""
    shorter = min(images.shape[-2:])
    if side is None or side == shorter:
        return images
    size = [round(length * side / shorter) for length in images.shape[-2:]]
    return F.interpolate(images, size, mode="bilinear", align_corners=False, antialias=True)


def check_sizes(model: nn.Module, sizes: Mapping[int, int], image_shape: tuple[int, int, int]) -> None:
    """Check before training that the network takes every side.

    Args:
        model: on the CPU.
        sizes: see `side_at`.
        image_shape: (C, H, W) of the training images.

    Raises:
        ConfigError: naming the side.
    """
    for side in sorted(set(sizes.values())):
        images = resize(torch.zeros(1, *image_shape), side)
        was_training = model.training
        try:
            with torch.no_grad():
                model.eval()(images)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(
                f"train.sizes: the network cannot take images of side {side} ({reason}); leave train.sizes out, or "
                "choose a network that accepts any image size"
            ) from None
        finally:
            model.train(was_training)
