"""How long a training goes on: a number of epochs, or as many steps as fit a time.

A budget is wall-clock time from the moment the trainer is asked to begin until the final weights lie on the disk: how
to compute is timed within it, images are decoded, epochs validated, checkpoints written. The first plan is made from
the first steps; every epoch's end (where a hundredth of the time has gone by since) makes another from what was
measured, and so does half of the time that was left. What a plan changes is how fast the schedule is walked, never
where it stands (`Plan.replanned`): it ends annealed.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from comp.config import Config, parse_duration
from comp.data.dataset import Dataset
from comp.results.runs import Run
from comp.runtime.device import Execution
from comp.training import validation
from comp.training.schedules import Plan

_AIM = 0.99  # of the budget is planned for: a stall in the last moments should not cost more than the rest
_FINEST = 0.01  # of the budget: the shortest time between two plans within an epoch
_MEASURED_STEPS = 3  # at least, for a step's time
_UNPLANNED = Plan(total_steps=2**40, steps_per_epoch=1)  # so long that the first steps keep the schedule's first rate
_FORWARD = 0.5  # of a training step's time for an image is validation's, until it is measured: rather too much
_CONTEST_ENDS = 3  # looks at the validation images that averaged weights take after the last epoch


def step_planner(config: Config, dataset: Dataset, run: Run, execution: Execution, *, began: float) -> "StepPlanner":
    """Return what the config asks for.

    Args:
        config: section `train`.
        dataset: its training images make steps, and its validation takes time.
        run: where plans.json lands.
        execution: says what to wait for.
        began: `time.perf_counter()` of the moment from which a budget counts.
    """
    batch_size = min(config.train.batch_size, len(dataset.train))
    steps_per_epoch = len(dataset.train) // batch_size
    if not config.train.budget:
        return FixedEpochs(config.train.epochs, steps_per_epoch)
    seconds = parse_duration(config.train.budget)

    def validated(number: int, last: bool) -> int:
        ends = 1 + _CONTEST_ENDS * (last and config.train.average != "none")
        return ends * validation.images(dataset, config, number, last=last)

    return TimeBudget(
        seconds,
        steps_per_epoch,
        batch_size=batch_size,
        validated=validated,
        checkpoint_seconds=config.train.checkpoint_seconds,
        began=began,
        record=lambda plans: run.write_json("plans.json", {"budget_seconds": seconds, "plans": plans}),
        wait=torch.cuda.synchronize if execution.device == "cuda" else lambda: None,
    )


class StepPlanner:
    """Says how many steps there are; told of all that takes time. Steps count from the training's first."""

    plan: Plan

    def label(self, number: int) -> str:
        """Return an epoch's name (from 1) for those who watch."""
        return f"epoch {number}"

    def begun(self) -> None:
        """Hear that steps follow, from the start, from a checkpoint or from the state that was gone back to."""

    def stepped(self, step: int) -> None:
        """Hear that so many steps are taken."""

    def trained(self, step: int) -> None:
        """Hear that an epoch's last step is taken, and finished by the device."""

    def ended(self, step: int) -> None:
        """Hear that the epoch is validated and told."""

    def saved(self, seconds: float) -> None:
        """Hear what a checkpoint took."""

    def state_dict(self) -> dict[str, Any]:
        """Return what a resume needs."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` returned."""


class FixedEpochs(StepPlanner):
    """A number of epochs, whatever they take."""

    def __init__(self, epochs: int, steps_per_epoch: int) -> None:
        self.plan = Plan(epochs * steps_per_epoch, steps_per_epoch)
        self._epochs = epochs

    def label(self, number: int) -> str:
        """See `Pace`."""
        return f"epoch {number}/{self._epochs}"


@dataclass
class _Measured:
    """Seconds of a step, an image at an epoch's end (an epoch's end where none is validated), and a checkpoint."""

    step: float = math.nan
    end_image: float = math.nan
    save: float = 0.0


class TimeBudget(StepPlanner):
    """As many steps as fit a time.

    Args:
        seconds: all there is.
        steps_per_epoch: of the whole epochs; the last one may be cut short.
        batch_size: images in a step.
        validated: epoch (from 1) and whether it is the last -> images that its end looks at.
        checkpoint_seconds: between two checkpoints.
        began: the clock's time when this process was asked to train.
        record: called with every plan so far, each as plain values.
        wait: returns when the device has taken the steps that it was given.
        clock: seconds, rising.
    """

    def __init__(
        self,
        seconds: float,
        steps_per_epoch: int,
        *,
        batch_size: int,
        validated: Callable[[int, bool], int],
        checkpoint_seconds: float,
        began: float,
        record: Callable[[list[dict[str, Any]]], None],
        wait: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.plan = Plan(_UNPLANNED.total_steps, steps_per_epoch)
        self.plans: list[dict[str, Any]] = []
        self._seconds, self._batch_size, self._validated = seconds, batch_size, validated
        self._checkpoint_seconds, self._record, self._wait, self._clock = checkpoint_seconds, record, wait, clock
        self._began, self._spent = began, 0.0
        self._measured = _Measured()
        self._running = False
        self._mark: tuple[int, float] | None = None  # step and time from which on steps are being measured
        self._saving = 0.0  # seconds of checkpoints since then
        self._due = 0.0
        self._planned = -math.inf  # when the last plan was made

    @property
    def elapsed(self) -> float:
        """Seconds spent, over all processes."""
        return self._spent + self._clock() - self._began

    def begun(self) -> None:
        """Measure anew: a process's first step allocates, picks kernels and compiles."""
        self._running, self._mark, self._due = True, None, 0.0

    def stepped(self, step: int) -> None:
        """Plan again where it is time; waits for the device then, and only then."""
        if self._mark is None:
            self._wait()
            self._restart(step)
            self._due = self.elapsed + _FINEST * self._seconds
            if self.elapsed >= _AIM * self._seconds:
                self._replan(step)
        elif self.elapsed >= self._due and step - self._mark[0] >= _MEASURED_STEPS:
            self._wait()
            self._measure(step)
            self._replan(step)

    def trained(self, step: int) -> None:
        """Measure the steps; what follows is the epoch's end."""
        self._measure(step)

    def ended(self, step: int) -> None:
        """Measure the epoch's end and plan the rest, unless the plan is done: an annealed net is not trained on."""
        assert self._mark is not None
        number, over = -(-step // self.plan.steps_per_epoch), step >= self.plan.total_steps
        taken = self.elapsed - self._mark[1] - self._saving
        self._measured.end_image = taken / max(1, self._validated(number, over))
        if over:
            return
        if not math.isnan(self._measured.step) and self.elapsed - self._planned >= _FINEST * self._seconds:
            self._replan(step)
        self._restart(step)

    def saved(self, seconds: float) -> None:
        """Remember what a checkpoint takes."""
        self._measured.save = seconds
        self._saving += seconds

    def _restart(self, step: int) -> None:
        self._mark, self._saving = (step, self.elapsed), 0.0

    def _measure(self, step: int) -> None:
        if self._mark is not None:
            steps, since = step - self._mark[0], self.elapsed - self._mark[1] - self._saving
            few = not math.isnan(self._measured.step) and steps < min(_MEASURED_STEPS, self.plan.steps_per_epoch)
            if steps and not few:
                self._measured.step = since / steps
        self._restart(step)

    def _replan(self, step: int) -> None:
        self.plan = self.plan.replanned(step, self._affordable(step))
        elapsed = self._planned = self.elapsed
        self._due = elapsed + max((_AIM * self._seconds - elapsed) / 2, _FINEST * self._seconds)
        told = {
            "step": step,
            "seconds_spent": elapsed,
            "total_steps": self.plan.total_steps,
            "epochs": self.plan.total_steps / self.plan.steps_per_epoch,
            "schedule_share": self.plan.share,
            "seconds_a_step": self._measured.step,
            "seconds_an_epochs_end": self._end(step // self.plan.steps_per_epoch + 1, last=False),
            "seconds_a_checkpoint": self._measured.save,
        }
        self.plans.append({name: None if math.isnan(value) else round(value, 6) for name, value in told.items()})
        self._record(self.plans)

    def _affordable(self, step: int) -> int:
        """Return how many steps the whole training may have; at least those that are taken."""
        # At the end the state and the final weights are written.
        left = _AIM * self._seconds - self.elapsed - 2 * self._measured.save
        if math.isnan(self._measured.step) or left <= 0:
            return step
        each, per_epoch = self._step_seconds(), self.plan.steps_per_epoch
        total = step
        while True:
            number = total // per_epoch + 1
            rest = number * per_epoch - total
            fitting = math.floor((left - self._end(number, last=True)) / each)
            if fitting < rest:
                return total + max(0, fitting)
            left -= rest * each + self._end(number, last=False)
            total += rest

    def _step_seconds(self) -> float:
        """Return a step's seconds with its share of the checkpoints."""
        step = max(self._measured.step, 1e-9)
        return step + self._measured.save * min(1.0, step / max(self._checkpoint_seconds, 1e-9))

    def _end(self, number: int, *, last: bool) -> float:
        """Return what the end of an epoch takes, as far as is known."""
        images = self._validated(number, last)
        if not math.isnan(self._measured.end_image):
            return self._measured.end_image * max(1, images)
        return _FORWARD * self._measured.step / self._batch_size * images

    def state_dict(self) -> dict[str, Any]:
        """Return plan, plans, measurements and the time spent."""
        return {
            "plan": asdict(self.plan),
            "plans": self.plans,
            "measured": asdict(self._measured),
            "spent": self.elapsed,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` returned; a training that goes back to it while it runs keeps its clock."""
        self.plan = Plan(**state["plan"])
        self._measured = _Measured(**state["measured"])
        if not self._running:
            self._spent = state["spent"]
            self.plans = list(state["plans"])
