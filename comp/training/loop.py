"""The training loop: exact, resumable at any step, with two seams (`on_epoch`, `progress`).

Every draw is counted from (seed, epoch, sample), so the state of a training is its weights, its optimizer and its
position; a resumed run takes the same steps as an uninterrupted one, bit for bit on CPU.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from comp.augment import mixing
from comp.models import weights, zoo
from comp.results import files
from comp.runtime import memory, rng
from comp.runtime.errors import (
    DataError,
    Interrupted,
    NotFiniteError,
    OutOfMemoryError,
    RunError,
    WorkersError,
    plural,
)
from comp.runtime.progress import Progress, quiet
from comp.training import checkpoint, losses, optimizers, schedules
from comp.training.batches import PlannedBatch, planned_batches, statistics_images
from comp.training.checkpoint import TrainState
from comp.training.context import TrainContext
from comp.training.early_stopping import Stop, early_stop
from comp.training.selection import Scores
from comp.training.sums import EpochMeter

OnEpoch = Callable[["Epoch"], Stop | None]


class DivergedError(RunError):
    """The loss, the weights or the validation logits are not finite."""


@dataclass(frozen=True)
class Epoch:
    """Results of one epoch; a row of history.csv.

    Attributes:
        number: from 1.
        lr: of its last step.
        train_loss: mean over its steps, on augmented and mixed images.
        train_accuracy: likewise, weighted by the mixing's lambda; None for a task of numbers.
        val_loss: of the validation split, None without one.
        val_accuracy: likewise; None for a task of numbers.
        val_metric: likewise, the competition's metric; None too where the images leave it undefined.
        ood_accuracy: of shifted validation, None in epochs that do not measure it.
        ood_metric: likewise, the competition's metric.
        ood_by_severity: severity -> accuracy of its blocks; empty where it is not measured.
        averaged: the selected value of the averaged weights; None where they are not scored at every epoch.
        seconds: of the whole epoch, validation included.
        images_per_second: of its training steps.
        note: events to know about: micro-batches halved, a rollback.
    """

    number: int
    lr: float
    train_loss: float
    train_accuracy: float | None
    val_loss: float | None
    val_accuracy: float | None
    val_metric: float | None
    ood_accuracy: float | None
    ood_metric: float | None
    ood_by_severity: Mapping[str, float]
    averaged: float | None
    seconds: float
    images_per_second: float
    note: str

    def row(self) -> dict[str, Any]:
        """Return its row of history.csv: each severity has its own column, such as `ood_accuracy_3`."""
        values = asdict(self)
        by_severity = values.pop("ood_by_severity")
        return values | {f"ood_accuracy_{severity}": value for severity, value in by_severity.items()}


def fit(
    context: TrainContext, *, resume: bool = False, on_epoch: OnEpoch = lambda epoch: None, progress: Progress = quiet
) -> TrainState:
    """Train; write history.csv, best, averaged (if there is an average) and final.safetensors, and state.pt.

    Args:
        context: from `build_context`.
        resume: continue from state.pt.
        on_epoch: called at every epoch's end; may return a `Stop`.
        progress: called after every step; may raise `Interrupted`, after which the run can be resumed.

    Raises:
        RunError: the loss is not finite (more than `train.nan_retries` times), or files cannot be written.
        OutOfMemoryError, WorkersError, DataError: passed on after a checkpoint.
        Interrupted: likewise.
    """
    path, train = context.run.path / "state.pt", context.config.train
    state = TrainState()
    if resume and path.exists():  # a run stopped before its first checkpoint starts anew
        device = context.execution.torch_device
        state = checkpoint.load(path, context.parts, device, misplaced=lambda state: _misplaced(context, state))
    if context.train.note and context.train.note not in state.notes:
        state.notes.append(context.train.note)
    context.team.barrier()  # all have read the state before the main process writes another
    rows: list[dict[str, Any]] = [dict(row) for row in context.run.history()[: state.epoch]]
    norms: list[dict[str, Any]] = _until(state.epoch, context.run.table("norms.csv"))
    saver = _Saver(context, state)
    if (train.nan_retries or train.budget) and not path.exists():
        saver.save()  # for a rollback; and a budget measures what it takes
    context.planner.on_start()
    with rng.preserve_rng_state(context.execution.torch_device):
        try:
            # An epoch may have taken all its steps and still need its end: validation and a row of history.
            while (state.step or not context.is_over(state)) and not state.stopped:
                try:
                    epoch = _train_epoch(context, state, saver, progress)
                except DivergedError as error:
                    _roll_back(context, state, error)
                    context.planner.on_start()
                    del rows[state.epoch :]
                    norms = _until(state.epoch, norms)
                    saver.save()
                    continue
                rows.append(epoch.row())
                context.run.write_table("history.csv", rows)
                if context.norms.enabled:
                    norms += context.norms.rows(epoch.number)
                    context.run.write_table("norms.csv", norms)
                stop = on_epoch(epoch)
                if not stop and not context.is_over(state):
                    stop = early_stop(
                        rows,
                        context.best_weights.selector,
                        patience=train.patience,
                        min_delta=train.min_delta,
                        overfit_patience=train.overfit_patience,
                        overfit_threshold=train.overfit_threshold,
                    )
                state.stopped = stop.reason if stop else ""
                # Only the main process validates, and decides whether to stop.
                vars(state).update(context.team.broadcast_from_main(lambda: vars(state)))
                if saver.is_due() or train.nan_retries:
                    saver.save()
                context.planner.on_epoch_end(context.steps_taken(state))
            context.team.broadcast_from_main(
                lambda: context.best_weights.finish(
                    state, lambda: statistics_images(context, state.epoch, progress), context.stepper.memory, progress
                )
            )
        except (Interrupted, OutOfMemoryError, WorkersError, DataError) as stop:
            saver.save()
            raise _with_resume_command(stop, context.run.path) from None
    saver.save()  # first: a run with final weights and no state is complete
    context.run.write("final.safetensors", weights.to_bytes(context.model.state_dict(), {}))
    return state


def _misplaced(context: TrainContext, state: TrainState) -> str:
    """Return why a training has no such position; empty if it has."""
    if state.step > context.steps_per_epoch:
        return f"cursor.step: expected at most {context.steps_per_epoch}, the steps of an epoch, found {state.step}"
    if state.seen != (images := state.step * context.batch_size):
        return f"cursor.seen: expected the images of {plural(state.step, 'step')} ({images}), found {state.seen}"
    planned, taken = context.planner.plan.total_steps, context.steps_taken(state)
    if taken > planned:
        return f"cursor.epoch: expected at most the {planned:,} steps of the training, found {taken:,}"
    rows = len(context.run.history())
    if 0 < rows < state.epoch:  # without history.csv, a training goes on without its curves
        return f"cursor.epoch: expected at most {rows}, the rows of history.csv, found {state.epoch}"
    return ""


def _with_resume_command(stop: BaseException, run: Path) -> BaseException:
    """Return what stopped a training with the command that continues it; a signal's with the folder alone."""
    resume = f"comp run --resume {run}"
    if isinstance(stop, Interrupted):
        stop.folder = str(run)
    if isinstance(stop, OutOfMemoryError):
        return OutOfMemoryError(f"{stop}; with more memory, continue: {resume}")
    if isinstance(stop, WorkersError):
        return WorkersError(f"{stop}; continue: {resume} data.workers=0")
    if isinstance(stop, DataError):
        return DataError(f"{stop}; once that is mended, continue: {resume}")
    return stop


def _until(epoch: int, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [dict(row) for row in rows if int(row["epoch"]) <= epoch]


class _Saver:
    """Writes state.pt when it is due, and keeps the training's clock in the state."""

    def __init__(self, context: TrainContext, state: TrainState) -> None:
        self._context, self._state = context, state
        self._clock = self._saved = time.perf_counter()

    def is_due(self) -> bool:
        team, train = self._context.team, self._context.config.train
        if train.nan_retries:  # each process checks its state before it is written, and all must roll back together
            return team.broadcast_from_main(lambda: self._seconds_since_save() >= train.checkpoint_seconds)
        return team.is_main_process and self._seconds_since_save() >= train.checkpoint_seconds

    def _seconds_since_save(self) -> float:
        return time.perf_counter() - self._saved

    def save(self) -> None:
        """Write the state; with non-finite weights, raise and keep the previous file."""
        _check_finite_weights(self._context, self._state)
        now = time.perf_counter()
        self._state.seconds += now - self._clock
        self._clock = now
        checkpoint.save(self._context.run, self._context.parts, self._state)
        self._saved = time.perf_counter()
        self._context.planner.on_saved(self._saved - now)


def _train_epoch(context: TrainContext, state: TrainState, saver: _Saver, progress: Progress) -> Epoch:
    config, number = context.config, state.epoch + 1
    began, first_step = time.perf_counter(), state.step
    order = context.order(number)
    meter = EpochMeter(state, context.execution.torch_device)
    zoo.apply_freezing(context.model, config.model, epoch=number)
    optimizers.freeze_finished_groups(context.optimizer, number)
    context.model.train()
    progress_of_all = context.team.synced_progress(progress)
    shard, images = context.team.shard(order, context.batch_size)
    for planned in _training_batches(context, state, meter, shard, images):
        if context.is_over(state):
            break
        taken = context.stepper.steps
        try:
            step(context, state, planned, meter)
        except (RuntimeError, MemoryError, OutOfMemoryError) as error:
            if context.stepper.steps == taken:
                _stop_out_of_memory(context, state, meter, error)
            raise
        context.best_weights.average.step()
        state.step, state.seen = planned.batch.step + 1, state.seen + context.batch_size
        if meter.is_on_cpu:
            _read_meter(context, state, meter)
        if saver.is_due():
            _read_meter(context, state, meter)
            saver.save()
        try:
            note = _bar_note(context, state, meter, (state.step - first_step) / (time.perf_counter() - began))
            progress_of_all(context.planner.label(number), state.step, context.steps_in(number), "steps", note)
        except Interrupted:
            _read_meter(context, state, meter)
            raise
        context.planner.on_step(context.steps_taken(state))
    _read_meter(context, state, meter)  # waits for the device: the epoch's one synchronisation
    context.planner.on_epoch_trained(context.steps_taken(state))
    _check_finite_weights(context, state)
    train_seconds = time.perf_counter() - began
    train_images = (state.step - first_step) * context.batch_size
    scores, averaged = _score_epoch(context, state, progress)
    if context.planner.plan.total_steps < context.steps_per_epoch:
        share = f"{state.step} of an epoch's {context.steps_per_epoch} steps"
        state.notes.append(f"train.budget: too short, it allows {share}; give it more time, or use a smaller model")
    epoch = Epoch(
        number=number,
        lr=context.rate(state, state.step - 1),
        train_loss=state.loss_sum / state.seen,
        train_accuracy=None if context.dataset.label_scale else state.right_sum / state.seen,
        val_loss=scores.loss,
        val_accuracy=scores.accuracy,
        val_metric=scores.shown("val_metric"),
        ood_accuracy=scores.ood_accuracy,
        ood_metric=scores.shown("ood_metric"),
        ood_by_severity=scores.ood_by_severity,
        averaged=averaged,
        seconds=round(time.perf_counter() - began, 3),
        images_per_second=round(train_images / train_seconds, 1),
        note="; ".join(state.notes),
    )
    state.epoch, state.step, state.seen, state.loss_sum, state.right_sum = number, 0, 0, 0.0, 0.0
    state.notes = []
    return epoch


def _training_batches(
    context: TrainContext, state: TrainState, meter: EpochMeter, shard: Tensor, images: int
) -> Iterator[PlannedBatch]:
    """Yield what is left of an epoch's batches.

    Raises:
        OutOfMemoryError: a batch or its plan does not fit.
        WorkersError, DataError: a batch cannot be read; the state can be saved.
    """
    try:
        yield from planned_batches(context, shard, images, epoch=state.epoch + 1, start=state.step)
    except (WorkersError, DataError):
        _read_meter(context, state, meter)  # for the checkpoint
        raise
    except (RuntimeError, MemoryError) as error:
        _stop_out_of_memory(context, state, meter, error)


def _score_epoch(context: TrainContext, state: TrainState, progress: Progress) -> tuple[Scores, float | None]:
    """Return the main process's scores at the epoch's end.

    Raises:
        DivergedError: in all processes, where weights are finite and their validation logits are not.
    """

    def end_epoch() -> tuple[Scores, float | None] | None:
        try:
            with memory.one_message("the validation"):
                return context.best_weights.end_epoch(state, state.epoch + 1, progress, last=context.is_over(state))
        except NotFiniteError:
            return None  # so that all processes roll back together

    scores = context.team.broadcast_from_main(end_epoch)
    if scores is None:
        raise _diverged(context, state, "logits of validation are", max(state.step - 1, 0))
    return scores


def _bar_note(context: TrainContext, state: TrainState, meter: EpochMeter, steps_per_second: float) -> str:
    """Return the progress bar's note: speed, loss and any accuracy of the epoch so far (where known), rate."""
    loss, right, seen = meter.peek(state)
    accuracy = "" if context.dataset.label_scale or not seen else f"acc {100 * right / seen:.1f}% "
    means = f"loss {loss / seen:.2f} {accuracy}" if seen else ""
    speed = steps_per_second * context.batch_size
    return f"{speed:,.0f} images/s {means}lr {context.rate(state, state.step - 1):.0e}"


def step(context: TrainContext, state: TrainState, planned: PlannedBatch, meter: EpochMeter) -> None:
    """Take one step and add its loss and correct answers to the meter."""
    config, number = context.config, state.epoch + 1
    step, indices, _, labels = planned.batch
    mixed = context.mixing.at(number, context.planner.plan.epochs)
    images, targets = planned.mixed(context, mixed)
    images = schedules.resize(images, schedules.side_at(config.train.sizes, number))
    targets = targets[: len(indices)]
    taught = planned.taught(context, mixed, targets)  # accuracy counts the labels, `targets`
    by_view = images.reshape(context.views, len(indices), *images.shape[1:])  # [views, B, C, H, W]

    def compute(part: slice) -> tuple[Tensor, Tensor]:
        with context.execution.autocast():
            logits = context.forward(context.execution.layout(by_view[:, part].flatten(0, 1)))  # [views part, classes]
        part_targets, weight = taught[part], config.train.consistency_weight
        loss = losses.consistency_loss(context.criterion, logits, part_targets, views=context.views, weight=weight)
        return loss, logits[: len(part_targets)]

    total_step = state.epoch * context.steps_per_epoch + step
    optimizers.set_rates(
        context.optimizer, total_step, context.planner.plan, context.schedule, factor=state.rate_factor
    )
    micro_batch = context.stepper.micro_batch
    dropout_seed = rng.key(config.seed, number, step, *context.team.rng_offset)
    loss, logits = context.stepper.take(len(indices), dropout_seed, compute)
    if context.stepper.micro_batch < micro_batch:
        _record_halving(context, state, step)
    right = mixing.hits(logits, targets, label_smoothing=context.mixing.label_smoothing, columns=labels.ndim == 2).sum()
    sums = context.team.all_reduce_sum(torch.stack((loss.to(meter.dtype) * len(indices), right.to(meter.dtype))))  # [2]
    meter.add(sums, step)


def _stop_out_of_memory(context: TrainContext, state: TrainState, meter: EpochMeter, error: Exception) -> None:
    """Raise what ends a training whose step did not fit, before the optimizer has changed a weight.

    Raises:
        OutOfMemoryError: the state can be saved.
        Exception: the error itself, if it is not about memory.
    """
    if not isinstance(error, OutOfMemoryError) and not memory.is_out_of_memory(error):
        raise error
    _read_meter(context, state, meter)
    if isinstance(error, OutOfMemoryError):
        raise error
    raise OutOfMemoryError(
        f"out of memory for a batch of {context.batch_size} images ({memory.reason_of(error)}); use a smaller "
        "train.batch_size, smaller images (data.image_size) or a device with more memory"
    ) from None


def _record_halving(context: TrainContext, state: TrainState, step: int) -> None:
    """Note that memory ran out, and record in execution.json what fits: a repetition starts with it."""
    size = context.stepper.micro_batch
    state.notes.append(
        f"out of memory at step {step + 1} of epoch {state.epoch + 1}: from here on {size} images at a time, with "
        f"gradients averaged over the batch of {context.batch_size}; batch norm sees {size} images at once"
    )
    recorded = files.read_json(context.run.path / "execution.json")
    context.run.write_json("execution.json", {**recorded, "micro_batch": size})


def _read_meter(context: TrainContext, state: TrainState, meter: EpochMeter) -> None:
    """Read the meter into the state.

    Raises:
        DivergedError: a loss was not finite.
    """
    broken_step = meter.read(state)
    if broken_step is not None:
        raise _diverged(context, state, "loss is", broken_step)


def _check_finite_weights(context: TrainContext, state: TrainState) -> None:
    """Check that weights and statistics are finite.

    Raises:
        DivergedError: one is infinite or NaN.
    """
    tensors = [tensor for tensor in context.model.state_dict().values() if tensor.is_floating_point()]
    largest = torch.stack([norm.float() for norm in torch._foreach_norm(tensors, math.inf)])
    if not bool(largest.isfinite().all()):
        raise _diverged(context, state, "weights are", max(state.step - 1, 0))


def _diverged(context: TrainContext, state: TrainState, what: str, step: int) -> DivergedError:
    """Return the error for what (with its verb) is not finite at a step of the current epoch, from 0."""
    return DivergedError(
        f"{context.run.path}: the {what} not finite at step {step + 1} of epoch {state.epoch + 1}, learning rate "
        f"{context.rate(state, step):.2e}; the last checkpoint is kept; try a lower rate "
        f"(optim.lr={context.config.optim.lr / 3:.1e}), a longer optim.warmup, optim.clip=norm, train.precision=fp32, "
        "or train.nan_retries=2, which rolls back and halves the rate by itself"
    )


def _roll_back(context: TrainContext, state: TrainState, error: DivergedError) -> None:
    """Load the last good state and halve the rate.

    Raises:
        DivergedError: the error, after `train.nan_retries` rollbacks.
    """
    if len(state.rollbacks) >= context.config.train.nan_retries:
        context.team.stop(error)
    device = context.execution.torch_device
    good = checkpoint.load(context.run.path / "state.pt", context.parts, device, trusted=True)
    context.team.barrier()  # all have read the state before the main process writes another
    reason = str(error).partition(": ")[2].partition(";")[0]
    good.rate_factor = state.rate_factor / 2
    note = f"{reason}: back to step {good.step} of epoch {good.epoch + 1}, all rates times {good.rate_factor:g}"
    good.rollbacks = [*state.rollbacks, note]
    good.notes = [*state.notes, note]
    good.seconds = state.seconds
    vars(state).update(vars(good))  # in place: others hold the same state
