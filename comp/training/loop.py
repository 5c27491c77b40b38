"""The training loop: exact, resumable at any step, and open at two seams (`on_epoch`, `progress`).

Every draw is counted from (seed, epoch, sample), so that the state of a training is its weights, its optimizer and a
cursor; a resumed run takes the same steps as an uninterrupted one, bit for bit on CPU.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from comp.augment import engine, mixing
from comp.data.loading import Batch
from comp.models import weights, zoo
from comp.results import runs
from comp.runtime import rng
from comp.runtime.errors import Interrupted, NotFiniteError
from comp.runtime.progress import Progress, quiet
from comp.training import checkpoint, consistency, divergence, early_stopping, losses, optimizers, resolution
from comp.training import step as stepping
from comp.training.autotune import preserve_rng_state
from comp.training.checkpoint import TrainState
from comp.training.context import STATISTICS_BATCHES, TrainContext
from comp.training.early_stopping import Stop
from comp.training.meter import EpochMeter
from comp.training.selection import Scores

OnEpoch = Callable[["Epoch"], Stop | None]


@dataclass(frozen=True)
class Epoch:
    """What an epoch's end tells; a row of history.csv.

    Attributes:
        number: from 1.
        lr: of its last step.
        train_loss: mean over its steps, on augmented and mixed images.
        train_accuracy: likewise, weighted by the mixing's lambda.
        val_loss: of the validation split, None without one.
        val_accuracy: likewise.
        val_metric: likewise, the competition's metric.
        ood_accuracy: of shifted validation, None in epochs that do not measure it.
        ood_metric: likewise, the competition's metric.
        ood_by_severity: severity -> accuracy likewise, of its blocks alone; empty where it is not measured.
        averaged: the selected value of the averaged weights; None where they are not scored at every epoch.
        seconds: of the whole epoch, validation included.
        images_per_second: of its training steps.
        note: what happened in it that one should know of: less memory than thought, a return to an earlier state.
    """

    number: int
    lr: float
    train_loss: float
    train_accuracy: float
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
        """Return its row of history.csv: each severity is a column of its own, such as `ood_accuracy_3`."""
        values = asdict(self)
        by_severity = values.pop("ood_by_severity")
        return values | {f"ood_accuracy_{severity}": value for severity, value in by_severity.items()}


def fit(
    session: TrainContext, *, resume: bool = False, on_epoch: OnEpoch = lambda epoch: None, progress: Progress = quiet
) -> TrainState:
    """Train, leaving history.csv, best, averaged (where there are such) and final.safetensors, and state.pt.

    Args:
        session: see `start`.
        resume: go on from state.pt.
        on_epoch: called at every epoch's end; may return a `Stop`.
        progress: called after every step; may raise `Interrupted`, after which the run can be resumed.

    Raises:
        RunError: the loss is not finite (`train.nan_retries` times too often), or files cannot be written.
        Interrupted: passed on after a checkpoint.
    """
    state = session.run.path / "state.pt"
    cursor = TrainState()
    if resume and state.exists():  # a run stopped before its first checkpoint starts anew
        cursor = checkpoint.load(state, session.parts, session.execution.torch_device)
    session.team.barrier()  # all have read the state before the leader writes another
    rows: list[dict[str, Any]] = [dict(row) for row in session.run.history()[: cursor.epoch]]
    norms: list[dict[str, Any]] = _until(cursor.epoch, session.run.table("norms.csv"))
    saver = _Saver(session, cursor)
    if (session.config.train.nan_retries or session.config.train.budget) and not state.exists():
        saver.save()  # something to go back to; and what it takes is known
    session.pace.begun()
    with preserve_rng_state(session.execution.torch_device):
        try:
            # An epoch whose steps are all taken may still want its end: its validation and its row of history.
            while (cursor.step or not session.is_over(cursor)) and not cursor.stopped:
                try:
                    epoch = _epoch(session, cursor, saver, progress)
                except divergence.DivergedError as error:
                    divergence.rollback(session, cursor, error)
                    session.pace.begun()
                    del rows[cursor.epoch :]
                    norms = _until(cursor.epoch, norms)
                    saver.save()
                    continue
                rows.append(epoch.row())
                session.run.write_table("history.csv", rows)
                if session.norms.wanted:
                    norms += session.norms.rows(epoch.number)
                    session.run.write_table("norms.csv", norms)
                stop = on_epoch(epoch)
                if not stop and not session.is_over(cursor):
                    stop = early_stopping.due(rows, session.config, session.contest.selector)
                cursor.stopped = stop.reason if stop else ""
                _agree(session, cursor)
                if saver.is_due() or session.config.train.nan_retries:
                    saver.save()
                session.pace.ended(session.taken(cursor))
            session.team.broadcast_from_main(
                lambda: session.contest.finish(
                    cursor, lambda: _training_images(session, cursor.epoch, progress), progress
                )
            )
        except Interrupted:
            saver.save()
            raise
    saver.save()  # first: a run that has final weights and no state was complete
    session.run.write("final.safetensors", weights.to_bytes(session.model.state_dict(), {}))
    return cursor


def _until(epoch: int, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [dict(row) for row in rows if int(row["epoch"]) <= epoch]


class _Saver:
    """Writes state.pt when it is due, and keeps the training's clock in the cursor."""

    def __init__(self, session: TrainContext, cursor: TrainState) -> None:
        self._session, self._cursor = session, cursor
        self._clock = self._saved = time.perf_counter()

    def is_due(self) -> bool:
        team, train = self._session.team, self._session.config.train
        if train.nan_retries:  # a state is looked at before it is written, and all must go back where one does
            return team.broadcast_from_main(lambda: self._waited() >= train.checkpoint_seconds)
        return team.is_main_process and self._waited() >= train.checkpoint_seconds

    def _waited(self) -> float:
        return time.perf_counter() - self._saved

    def save(self) -> None:
        """Write the state; refuse one that no resume could mend, so that the one before stays."""
        divergence.demand_finite_weights(self._session, self._cursor)
        now = time.perf_counter()
        self._cursor.seconds += now - self._clock
        self._clock = now
        checkpoint.save(self._session.run, self._session.parts, self._cursor)
        self._saved = time.perf_counter()
        self._session.pace.saved(self._saved - now)


def _epoch(session: TrainContext, cursor: TrainState, saver: _Saver, progress: Progress) -> Epoch:
    config, number = session.config, cursor.epoch + 1
    began, begun_at = time.perf_counter(), cursor.step
    order = rng.order(config.seed, number, len(session.train), session.execution.torch_device)
    tally = EpochMeter(cursor, order.device)
    zoo.apply_freezing(session.model, config.model, epoch=number)
    optimizers.freeze_finished_groups(session.optimizer, number)
    session.model.train()
    watched = session.team.watched(progress)
    for batch in session.train.batches(*session.team.share(order, session.batch_size), epoch=number, start=cursor.step):
        if session.is_over(cursor):
            break
        step(session, cursor, batch, tally)
        session.contest.average.step()
        cursor.step, cursor.seen = batch.step + 1, cursor.seen + session.batch_size
        if tally.is_free:
            _read(session, cursor, tally)
        if saver.is_due():
            _read(session, cursor, tally)
            saver.save()
        try:
            note = _note(session, cursor, tally, (cursor.step - begun_at) / (time.perf_counter() - began))
            watched(session.pace.label(number), cursor.step, session.steps_in(number), "steps", note)
        except Interrupted:
            _read(session, cursor, tally)
            raise
        session.pace.stepped(session.taken(cursor))
    _read(session, cursor, tally)  # waits for the device: the epoch's one synchronisation
    session.pace.trained(session.taken(cursor))
    divergence.demand_finite_weights(session, cursor)
    trained_seconds = time.perf_counter() - began
    trained_images = (cursor.step - begun_at) * session.batch_size
    scores, averaged = _scored(session, cursor, progress)
    epoch = Epoch(
        number=number,
        lr=session.rate(cursor, cursor.step - 1),
        train_loss=cursor.loss_sum / cursor.seen,
        train_accuracy=cursor.right_sum / cursor.seen,
        val_loss=scores.loss,
        val_accuracy=scores.accuracy,
        val_metric=scores.metric,
        ood_accuracy=scores.ood_accuracy,
        ood_metric=scores.ood_metric,
        ood_by_severity=scores.ood_by_severity,
        averaged=averaged,
        seconds=round(time.perf_counter() - began, 3),
        images_per_second=round(trained_images / trained_seconds, 1),
        note="; ".join(cursor.notes),
    )
    cursor.epoch, cursor.step, cursor.seen, cursor.loss_sum, cursor.right_sum = number, 0, 0, 0.0, 0.0
    cursor.notes = []
    return epoch


def _scored(session: TrainContext, cursor: TrainState, progress: Progress) -> tuple[Scores, float | None]:
    """Return what the leader measures at the epoch's end; weights that are finite, but only just, diverge here."""

    def end() -> tuple[Scores, float | None] | None:
        try:
            return session.contest.end_epoch(cursor, cursor.epoch + 1, progress, last=session.is_over(cursor))
        except NotFiniteError:
            return None  # that all hear of it: they go back together

    found = session.team.broadcast_from_main(end)
    if found is None:
        raise divergence.diverged(session, cursor, "logits of validation are", max(cursor.step - 1, 0))
    return found


def _note(session: TrainContext, cursor: TrainState, tally: EpochMeter, steps_per_second: float) -> str:
    """Return what a bar shows of the epoch so far: speed, loss and accuracy as far as they are known, the rate."""
    loss, right, seen = tally.glance(cursor)
    known = f"loss {loss / seen:.2f} acc {100 * right / seen:.1f}% " if seen else ""
    speed = steps_per_second * session.batch_size
    return f"{speed:,.0f} images/s {known}lr {session.rate(cursor, cursor.step - 1):.0e}"


def step(session: TrainContext, cursor: TrainState, batch: Batch, tally: EpochMeter) -> None:
    """Take one step and tally its loss and right answers."""
    config, number = session.config, cursor.epoch + 1
    step, indices, _, labels = batch
    keys = rng.keys(config.seed, number, indices)
    images, targets = mixing.mix(
        _augmented(session, number, batch, keys),
        _by_view(labels, session.views),
        _by_view(keys, session.views),
        classes=len(session.dataset.competition.classes),
        mixing=session.mixing.at(number, session.pace.plan.epochs),
    )
    images = resolution.resized(images, resolution.side_at(config.train.sizes, number))
    targets = targets[: len(indices)]
    by_view = images.reshape(session.views, len(indices), *images.shape[1:])  # [views, B, C, H, W]

    def compute(part: slice) -> tuple[Tensor, Tensor]:
        with session.execution.autocast():
            logits = session.forward(session.execution.layout(by_view[:, part].flatten(0, 1)))  # [views part, classes]
        aims = targets[part]
        weight = config.train.consistency_weight
        loss = losses.consistent(session.criterion, logits, aims, views=session.views, weight=weight)
        return loss, logits[: len(aims)]

    total_step = cursor.epoch * session.steps_per_epoch + step
    optimizers.set_rates(session.optimizer, total_step, session.pace.plan, config.optim, factor=cursor.rate_factor)
    allowed = session.stepper.micro_batch
    # The seed is dropout's, counted like the rest.
    loss, logits = session.stepper.take(len(indices), rng.key(config.seed, number, step, *session.team.words), compute)
    if session.stepper.micro_batch < allowed:
        _tell_halved(session, cursor, step)
    right = mixing.hits(logits, targets, label_smoothing=session.mixing.label_smoothing, columns=labels.ndim == 2).sum()
    sums = session.team.all_reduce_sum(torch.stack((loss.double() * len(indices), right.double())))  # [2]
    tally.add(sums, step)


def _by_view(values: Tensor, views: int) -> Tensor:
    """Return [views B, ...] of [B, ...]: each view's, one after the other."""
    return values if views == 1 else torch.cat([values] * views)


def _augmented(session: TrainContext, number: int, batch: Batch, keys: Tensor) -> Tensor:
    """Return a batch's images as the policy changes them, all views of a kind together: [views B, C, H, W]."""
    images = batch.images
    flip_mask = engine.alternating_flip_mask(session.config.seed, number, batch.indices) if session.alternates else None
    if session.views > 1:
        return consistency.views(images, session.policy, keys, flip_mask=flip_mask)
    return engine.augment(images, session.policy, keys, flip_mask=flip_mask)


def _training_images(session: TrainContext, number: int, progress: Progress) -> Iterator[Tensor]:
    """Yield images of an epoch for batch norm: augmented as in training, at full size, not mixed."""
    order = rng.order(session.config.seed, number, len(session.train), session.execution.torch_device)
    rows = session.dataset.samples.get("statistics")
    if rows is not None:  # else a run of before this sample was drawn, which sees an epoch's first images
        order = order[torch.isin(order, torch.from_numpy(rows).to(order.device))]
    batches = min(STATISTICS_BATCHES, len(order) // session.batch_size)
    size = session.stepper.micro_batch
    for batch in session.train.batches(order[: batches * session.batch_size], session.batch_size, epoch=number):
        keys = rng.keys(session.config.seed, number, batch.indices)
        images = _augmented(session, number, batch, keys)
        for part in stepping.parts(len(images), size):
            yield session.execution.layout(images[part])
        progress("batch norm", batch.step + 1, batches, "batches")


def _tell_halved(session: TrainContext, cursor: TrainState, step: int) -> None:
    """Record that memory ran out, so that whoever repeats the run starts with what fits."""
    size = session.stepper.micro_batch
    cursor.notes.append(
        f"out of memory at step {step + 1} of epoch {cursor.epoch + 1}: from there on {size} images at a time, and "
        f"their gradients averaged over the batch of {session.batch_size}; batch norm sees {size} images at once"
    )
    recorded = runs.read_json(session.run.path / "execution.json")
    session.run.write_json("execution.json", {**recorded, "micro_batch": size})


def _read(session: TrainContext, cursor: TrainState, tally: EpochMeter) -> None:
    """Bring the tally into the cursor; refuse to go on where a loss was not finite."""
    broken = tally.read(cursor)
    if broken is not None:
        raise divergence.diverged(session, cursor, "loss is", broken)


def _agree(session: TrainContext, cursor: TrainState) -> None:
    """Take the leader's cursor: it alone has validated, and looked at the clock and at whether to stop."""
    vars(cursor).update(session.team.broadcast_from_main(lambda: vars(cursor)))
