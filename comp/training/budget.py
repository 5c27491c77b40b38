"""Length of a training: a number of epochs, or as many steps as fit a time budget.

A budget is wall-clock time from the trainer's start until the final weights are written: autotuning, decoding images,
validation and checkpoints included. The first plan is made from the first steps; another one at every epoch's end (at
most one in a hundredth of the budget) and after half of the remaining time. A plan changes the schedule's speed, never
its position (`Plan.replanned`): the schedule ends annealed.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from comp.config import Config, parse_duration
from comp.data.dataset import Dataset
from comp.results.runs import Run
from comp.runtime.device import Execution
from comp.training import best_weights
from comp.training.schedules import Plan

_AIM = 0.99  # of the budget is planned: the rest absorbs a stall at the end
_PLAN_INTERVAL = 0.01  # of the budget: the shortest time between two plans within an epoch
_MEASURED_STEPS = 3  # at least, to measure a step's time
_UNPLANNED = Plan(total_steps=2**40, steps_per_epoch=1)  # so long that the first steps keep the initial rate
_FORWARD = 0.5  # validation's share of a training step's time for an image, until measured: an upper estimate
_AVERAGE_PASSES = 3  # over the validation images for averaged weights after the last epoch


def step_planner(config: Config, dataset: Dataset, run: Run, execution: Execution, *, began: float) -> "StepPlanner":
    """Return the config's planner.

    Args:
        config: section `train`.
        dataset: gives the steps of an epoch, and the images to validate.
        run: where plans.json is written.
        execution: the device to wait for.
        began: `time.perf_counter()` at the start of the budget.
    """
    batch_size = min(config.train.batch_size, len(dataset.train))
    steps_per_epoch = len(dataset.train) // batch_size
    if not config.train.budget:
        return FixedEpochs(config.train.epochs, steps_per_epoch)
    seconds = parse_duration(config.train.budget)

    def validation_images(number: int, last: bool) -> int:
        passes = 1 + _AVERAGE_PASSES * (last and config.train.average != "none")
        return passes * best_weights.validation_images(dataset, config, number, last=last)

    return TimeBudget(
        seconds,
        steps_per_epoch,
        batch_size=batch_size,
        validation_images=validation_images,
        checkpoint_seconds=config.train.checkpoint_seconds,
        began=began,
        record=lambda plans: run.write_json("plans.json", {"budget_seconds": seconds, "plans": plans}),
        wait=execution.synchronize,
    )


class StepPlanner:
    """Plans the number of steps; called after everything that takes time. Steps count from the training's start."""

    plan: Plan

    def label(self, number: int) -> str:
        """Return an epoch's name (from 1) for progress bars."""
        return f"epoch {number}"

    def on_start(self) -> None:
        """Called before the first step, after a resume and after a rollback."""

    def on_step(self, step: int) -> None:
        """Called after each step with the number of steps taken."""

    def on_epoch_trained(self, step: int) -> None:
        """Called when the device has finished an epoch's last step."""

    def on_epoch_end(self, step: int) -> None:
        """Called after an epoch's validation and `on_epoch`."""

    def on_saved(self, seconds: float) -> None:
        """Called after a checkpoint with its duration."""

    def state_dict(self) -> dict[str, Any]:
        """Return what a resume needs."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load what `state_dict` returned."""


class FixedEpochs(StepPlanner):
    """A fixed number of epochs."""

    def __init__(self, epochs: int, steps_per_epoch: int) -> None:
        self.plan = Plan(epochs * steps_per_epoch, steps_per_epoch)
        self._epochs = epochs

    def label(self, number: int) -> str:
        """See `StepPlanner`."""
        return f"epoch {number}/{self._epochs}"


@dataclass
class _Timings:
    """Seconds of a step, an image at an epoch's end (without validation: of the end itself), and a checkpoint."""

    step: float = math.nan
    end_image: float = math.nan
    save: float = 0.0


class TimeBudget(StepPlanner):
    """As many steps as fit a time.

    Args:
        seconds: the budget.
        steps_per_epoch: of whole epochs; the last one may be shorter.
        batch_size: images in a step.
        validation_images: epoch (from 1) and whether it is the last -> images validated at its end.
        checkpoint_seconds: between two checkpoints.
        began: the clock's time when this process started to train.
        record: called with all plans so far, as plain values.
        wait: returns when the device has finished its steps.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        seconds: float,
        steps_per_epoch: int,
        *,
        batch_size: int,
        validation_images: Callable[[int, bool], int],
        checkpoint_seconds: float,
        began: float,
        record: Callable[[list[dict[str, Any]]], None],
        wait: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.plan = Plan(_UNPLANNED.total_steps, steps_per_epoch)
        self.plans: list[dict[str, Any]] = []
        self._seconds, self._batch_size, self._validation_images = seconds, batch_size, validation_images
        self._checkpoint_seconds, self._record, self._wait, self._clock = checkpoint_seconds, record, wait, clock
        self._began, self._spent = began, 0.0
        self._timings = _Timings()
        self._running = False
        self._mark: tuple[int, float] | None = None  # step and time at which the measurement started
        self._saving = 0.0  # seconds of checkpoints since then
        self._due = 0.0
        self._planned = -math.inf  # when the last plan was made

    @property
    def elapsed(self) -> float:
        """Seconds spent, over all processes."""
        return self._spent + self._clock() - self._began

    def on_start(self) -> None:
        """Measure anew: a process's first step allocates, picks kernels and compiles."""
        self._running, self._mark, self._due = True, None, 0.0

    def on_step(self, step: int) -> None:
        """Plan again when it is due; only then wait for the device."""
        if self._mark is None:
            self._wait()
            self._restart(step)
            self._due = self.elapsed + _PLAN_INTERVAL * self._seconds
            if self.elapsed >= _AIM * self._seconds:
                self._replan(step)
        elif self.elapsed >= self._due and step - self._mark[0] >= _MEASURED_STEPS:
            self._wait()
            self._measure(step)
            self._replan(step)

    def on_epoch_trained(self, step: int) -> None:
        """Measure the steps; the epoch's end follows."""
        self._measure(step)

    def on_epoch_end(self, step: int) -> None:
        """Measure the epoch's end and plan the rest, unless the plan is complete: the network is annealed."""
        assert self._mark is not None
        number, is_last = -(-step // self.plan.steps_per_epoch), step >= self.plan.total_steps
        seconds = self.elapsed - self._mark[1] - self._saving
        self._timings.end_image = seconds / max(1, self._validation_images(number, is_last))
        if is_last:
            return
        if not math.isnan(self._timings.step) and self.elapsed - self._planned >= _PLAN_INTERVAL * self._seconds:
            self._replan(step)
        self._restart(step)

    def on_saved(self, seconds: float) -> None:
        """Record the duration of a checkpoint."""
        self._timings.save = seconds
        self._saving += seconds

    def _restart(self, step: int) -> None:
        self._mark, self._saving = (step, self.elapsed), 0.0

    def _measure(self, step: int) -> None:
        if self._mark is not None:
            steps, seconds = step - self._mark[0], self.elapsed - self._mark[1] - self._saving
            needed = 1 if math.isnan(self._timings.step) else min(_MEASURED_STEPS, self.plan.steps_per_epoch)
            if steps >= needed:
                self._timings.step = seconds / steps
        self._restart(step)

    def _replan(self, step: int) -> None:
        self.plan = self.plan.replanned(step, self._affordable(step))
        elapsed = self._planned = self.elapsed
        self._due = elapsed + max((_AIM * self._seconds - elapsed) / 2, _PLAN_INTERVAL * self._seconds)
        values = {
            "step": step,
            "seconds_spent": elapsed,
            "total_steps": self.plan.total_steps,
            "epochs": self.plan.total_steps / self.plan.steps_per_epoch,
            "schedule_share": self.plan.share,
            "seconds_a_step": self._timings.step,
            "seconds_an_epochs_end": self._end(step // self.plan.steps_per_epoch + 1, last=False),
            "seconds_a_checkpoint": self._timings.save,
        }
        self.plans.append({name: None if math.isnan(value) else round(value, 6) for name, value in values.items()})
        self._record(self.plans)

    def _affordable(self, step: int) -> int:
        """Return how many steps the whole training can afford; at least those already taken."""
        # The state and the final weights are written at the end.
        left = _AIM * self._seconds - self.elapsed - 2 * self._timings.save
        if math.isnan(self._timings.step) or left <= 0:
            return step
        step_seconds, per_epoch = self._step_seconds(), self.plan.steps_per_epoch
        total = step
        while True:
            number = total // per_epoch + 1
            rest = number * per_epoch - total
            fitting = math.floor((left - self._end(number, last=True)) / step_seconds)
            if fitting < rest:
                return total + max(0, fitting)
            left -= rest * step_seconds + self._end(number, last=False)
            total += rest

    def _step_seconds(self) -> float:
        """Return a step's seconds with its share of the checkpoints."""
        step = max(self._timings.step, 1e-9)
        return step + self._timings.save * min(1.0, step / max(self._checkpoint_seconds, 1e-9))

    def _end(self, number: int, *, last: bool) -> float:
        """Return the seconds that an epoch's end takes, estimated until measured."""
        images = self._validation_images(number, last)
        if not math.isnan(self._timings.end_image):
            return self._timings.end_image * max(1, images)
        return _FORWARD * self._timings.step / self._batch_size * images

    def state_dict(self) -> dict[str, Any]:
        """Return plan, plans, timings and the time spent."""
        return {
            "plan": asdict(self.plan),
            "plans": self.plans,
            "measured": asdict(self._timings),
            "spent": self.elapsed,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what `state_dict` returned; in a rollback the clock keeps running."""
        self.plan = Plan(**state["plan"])
        self._timings = _Timings(**state["measured"])
        if not self._running:
            self._spent = state["spent"]
            self.plans = list(state["plans"])
