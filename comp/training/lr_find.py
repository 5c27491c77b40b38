"""Learning rate finder: a short training on a copy whose rate rises at every step until the loss diverges."""

import copy
import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from comp.config import Config
from comp.data.dataset import Dataset
from comp.models import zoo
from comp.models.classifier import Classifier
from comp.results.runs import Run
from comp.runtime.device import Execution
from comp.runtime.errors import ConfigError, RunError
from comp.runtime.progress import Progress, quiet
from comp.runtime.rng import preserve_rng_state
from comp.training import loop
from comp.training.batches import PlannedBatch, planned_batches
from comp.training.checkpoint import TrainState
from comp.training.context import TrainContext, build_context
from comp.training.sums import EpochMeter

_ENDLESS = 10**6  # epochs: the ramp has no last epochs
_FEWEST_STEPS = 20
_DIVERGED = 1.5  # times the lowest smoothed loss
_SMOOTHED_SHARE = 0.02  # of the steps: the smoothing's standard deviation
_MOMENTUM = 0.8  # of the running mean that ends the ramp


@dataclass(frozen=True)
class LRFindResult:
    """Result of a ramp; rates are `optim.lr`, and other groups' rates rise in proportion.

    Attributes:
        rates: of each step, rising exponentially.
        losses: of each step, finite.
        smoothed: the same, smoothed over neighbouring steps.
        steepest: the rate at which the smoothed loss fell fastest.
        diverged: the rate at which it was 1.5 times its lowest, or back at its start; None if the ramp ended before.
        suggestion: the rate to set.
        reason: why.
    """

    rates: list[float]
    losses: list[float]
    smoothed: list[float]
    steepest: float
    diverged: float | None
    suggestion: float
    reason: str

    @property
    def tenth(self) -> float | None:
        """A tenth of the rate at which the loss diverged."""
        return None if self.diverged is None else self.diverged / 10

    def to_json(self) -> dict[str, Any]:
        """Return plain values, suggestions first."""
        return {
            "suggestion": self.suggestion,
            "reason": self.reason,
            "steepest": self.steepest,
            "diverged": self.diverged,
            "tenth_of_diverged": self.tenth,
            "rates": self.rates,
            "losses": self.losses,
            "smoothed": self.smoothed,
        }


def find(
    config: Config,
    dataset: Dataset,
    model: Classifier,
    execution: Execution,
    *,
    lowest: float = 1e-6,
    highest: float = 10.0,
    steps: int = 200,
    progress: Progress = quiet,
) -> LRFindResult:
    """Train a copy of a model with an exponentially rising rate, and derive a good peak rate from the losses.

    The range test of Smith 2017, "Cyclical Learning Rates for Training Neural Networks" (arXiv:1506.01186), with the
    exponential ramp and the early end of fast.ai's finder. Steps are those of a training: augmentation, mixing,
    clipping, optimizer and groups. Nothing is kept.

    Args:
        config: what to train; its schedule is ignored.
        dataset: from `comp.workflows.build.prepare`.
        model: on the CPU, with its first weights; unchanged.
        execution: how to compute, see `comp.training.autotune`.
        lowest: the first step's rate.
        highest: the last step's, unless the loss diverges before.
        steps: maximum number of steps, spaced evenly over the range on a log scale.
        progress: called after every step.

    Raises:
        ConfigError: an empty range, or too few steps.
        RunError: the loss does not fall in the range.
    """
    if not 0 < lowest < highest or steps < _FEWEST_STEPS:
        raise ConfigError(
            f"--from, --to, --steps: expected a rising range above 0 and at least {_FEWEST_STEPS} steps; found "
            f"{lowest:g} to {highest:g} in {steps} steps"
        )
    rates = np.geomspace(lowest, highest, steps)
    with tempfile.TemporaryDirectory(prefix="comp-lr-find-") as scratch, preserve_rng_state(execution.torch_device):
        run = Run(Path(scratch))
        run.write_json("execution.json", execution.to_json())
        fresh = not (config.model.pretrained or config.model.from_run)
        context = build_context(
            _steady(config), dataset, run, copy.deepcopy(model), execution, fresh=fresh, progress=progress
        )
        losses = _ramp(context, rates, progress)
    return _read(rates[: len(losses)], np.array(losses), ended_early=len(losses) < steps)


def _steady(config: Config) -> Config:
    """Return the config with a constant, endless schedule: a step's rate is `optim.lr` times a factor."""
    optim = config.optim.model_copy(update={"schedule": "constant", "ends": {}})
    train = config.train.model_copy(update={"epochs": _ENDLESS})
    return config.model_copy(update={"optim": optim, "train": train})


def _ramp(context: TrainContext, rates: Sequence[float] | NDArray[np.float64], progress: Progress) -> list[float]:
    """Return the loss of each step until it is not finite or far above its lowest."""
    state = TrainState()
    zoo.apply_freezing(context.model, context.config.model, epoch=1)
    context.model.train()
    losses: list[float] = []
    mean, lowest = 0.0, math.inf
    for done, (rate, batch) in enumerate(zip(rates, _batches(context, state), strict=False), 1):
        state.rate_factor = float(rate) / context.config.optim.lr
        loss = _loss(context, state, batch)
        if not math.isfinite(loss):
            break
        losses.append(loss)
        mean = _MOMENTUM * mean + (1 - _MOMENTUM) * loss
        running = mean / (1 - _MOMENTUM**done)  # corrects the bias of starting at zero
        lowest = min(lowest, running)
        if done >= _FEWEST_STEPS and running > 2 * _DIVERGED * lowest:
            break
        progress("rising rate", done, len(rates), "steps")
    return losses


def _batches(context: TrainContext, state: TrainState) -> Iterator[PlannedBatch]:
    """Yield batches without end, epoch after epoch, drawn as in a training."""
    for number in range(1, _ENDLESS + 1):
        state.epoch = number - 1
        yield from planned_batches(context, context.order(number), context.batch_size, epoch=number)


def _loss(context: TrainContext, state: TrainState, planned: PlannedBatch) -> float:
    """Take a training's step and return its mean loss, which may not be finite."""
    sums = TrainState()
    meter = EpochMeter(sums, context.execution.torch_device)
    loop.step(context, state, planned, meter)
    meter.read(sums)
    return sums.loss_sum / len(planned.batch.indices)


def _read(rates: NDArray[np.float64], losses: NDArray[np.float64], *, ended_early: bool) -> LRFindResult:
    if len(losses) < _FEWEST_STEPS:
        raise RunError(f"the loss is not finite from rate {rates[-1]:.1e} on; start lower (--from)")
    smoothed = _smoothed(losses)
    bottom = int(smoothed.argmin())
    noise = float((losses - smoothed)[: bottom + 1].std())
    if smoothed[0] - smoothed[bottom] <= noise:
        raise RunError(
            f"the loss does not fall between rates of {rates[0]:.1e} and {rates[-1]:.1e}; take a wider range (--from, "
            "--to), or check data and model: comp data check, comp run --rehearse"
        )
    slopes = np.gradient(smoothed, np.log(rates))
    steepest = float(rates[int(slopes[: bottom + 1].argmin())])
    divergence_loss = min(_DIVERGED * smoothed[bottom], smoothed[0])
    above = np.flatnonzero(smoothed[bottom:] >= divergence_loss)
    diverged = float(rates[bottom + above[0]]) if len(above) else float(rates[-1]) if ended_early else None
    suggestion, reason = _choose(steepest, diverged)
    return LRFindResult(rates.tolist(), losses.tolist(), smoothed.tolist(), steepest, diverged, suggestion, reason)


def _choose(steepest: float, diverged: float | None) -> tuple[float, str]:
    """Return the rate to set, and why: noise shifts the steepest point more than the divergence."""
    if diverged is None:
        return steepest, "the steepest descent; the loss did not diverge, so the upper end is unknown"
    return diverged / 10, "a tenth of where the loss diverges, which noise moves less than the steepest descent"


def _smoothed(losses: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean over neighbouring steps, weighted by a Gaussian: unlike a running mean it does not lag."""
    positions = np.arange(len(losses))
    width = max(1.0, _SMOOTHED_SHARE * len(losses))
    weights = np.exp(-0.5 * ((positions[:, None] - positions) / width) ** 2)
    smoothed: NDArray[np.float64] = weights @ losses / weights.sum(1)
    return smoothed
