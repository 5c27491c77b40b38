"""Batches of a training with their plans: all draws of augmentation and mixing, made some steps ahead on the host."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from comp.augment import compiled, engine, mixing, plans
from comp.data.loading import Batch, augmentation_device
from comp.runtime import rng
from comp.runtime.progress import Progress
from comp.training import losses
from comp.training.context import STATISTICS_BATCHES, TrainContext
from comp.training.step import split_batch

# Samples that are planned at once, at 32 px (plans grow with the side): enough that the host's share of a step is
# small, few enough that the device never waits long for a plan, and that a CPU keeps it in its cache.
_SAMPLES_AHEAD = 8192


Augmentation = engine.Plan | compiled.CompiledPlan | losses.ViewsPlan


class PlannedBatch(NamedTuple):
    """A batch, and its row in the plans of a window of batches.

    Attributes:
        batch: from the loader.
        draws: [B] int64 on the CPU, see `comp.training.imbalance`.
        augmentation: of the window.
        mixed_with: of the window; None: nothing is mixed.
        row: the batch's.
        epoch: from 1.
        samples: of the window, [S, B] on the device of the targets; None: there is no teacher.
    """

    batch: Batch
    draws: Tensor
    augmentation: Augmentation
    mixed_with: mixing.Plan | None
    row: int
    epoch: int
    samples: Tensor | None = None

    def augmented(self, context: TrainContext) -> Tensor:
        """Return augmented images, view after view: [views B, C, H, W] uint8, on the `augmentation_device`.

        Where memory is short they are made in parts, with plans of their own: an image's draws do not change.
        """
        images = self.batch.images

        def run(part: slice) -> Tensor:
            if part == slice(0, len(images)):
                whole = self.augmentation.run(images, self.row)
            else:
                augmentation, _ = _plan(context, self.epoch, self.draws[None, part], compiles=False)
                whole = augmentation.run(images[part], 0)
            return whole.reshape(context.views, -1, *whole.shape[1:])  # [views, part, C, H, W]

        parts = list(context.augmenting.parts(len(images), run))
        return (parts[0] if len(parts) == 1 else torch.cat(parts, 1)).flatten(0, 1)

    def mixed(self, context: TrainContext, settings: mixing.Mixing) -> tuple[Tensor, Tensor]:
        """Return augmented and mixed images [views B, C, H, W] float32 and targets [views B, classes].

        Args:
            context: of the training.
            settings: of this epoch: the last ones may mix nothing.
        """
        labels = self.batch.labels if context.views == 1 else torch.cat([self.batch.labels] * context.views)
        images, targets = mixing.mix_planned(
            self.augmented(context),
            labels,
            self.mixed_with if settings.mixup or settings.cutmix else None,
            self.row,
            classes=len(context.dataset.competition.classes),
            label_smoothing=settings.label_smoothing,
        )
        device = context.execution.torch_device
        return images.to(device), targets.to(device)

    def taught(self, context: TrainContext, settings: mixing.Mixing, targets: Tensor) -> Tensor:
        """Return targets [B, classes] with the teachers' share, mixed like `targets`; without a teacher, unchanged."""
        if context.teacher is None or self.samples is None:
            return targets
        plan = self.mixed_with if settings.mixup or settings.cutmix else None
        return context.teacher.soften(targets, self.samples[self.row], plan, self.row)


def planned_batches(
    context: TrainContext, order: Tensor, batch_size: int, *, epoch: int, start: int = 0
) -> Iterator[PlannedBatch]:
    """Yield an epoch's full batches with their plans.

    Args:
        context: of the training.
        order: [N] int64 on the CPU, this process's draws.
        batch_size: images per batch of this process.
        epoch: from 1.
        start: the first step to yield.
    """
    steps = len(order) // batch_size
    side = max(context.dataset.train.image_shape[1:])
    ahead = max(1, _SAMPLES_AHEAD * 32 // max(side, 32) // batch_size)
    for batch in context.train.batches(order, batch_size, epoch=epoch, start=start):
        row = (batch.step - start) % ahead
        if row == 0:
            end = min(batch.step + ahead, steps)
            window = order[batch.step * batch_size : end * batch_size].view(-1, batch_size)
            augmentation, mixed_with = _plan(context, epoch, window)
            rows = window % len(context.train)
            samples = plans.send(rows, context.execution.torch_device) if context.teacher else None
        yield PlannedBatch(batch, window[row], augmentation, mixed_with, row, epoch, samples)


def statistics_images(context: TrainContext, number: int, progress: Progress) -> Iterator[Tensor]:
    """Yield images of an epoch for batch norm: augmented as in training, at full size, not mixed."""
    order = context.order(number)
    rows = context.dataset.samples.get("statistics")
    # Runs without this sample take an epoch's first images; so do those with another sampling, a random sample of it.
    if rows is not None and context.config.data.sampling == "natural":
        order = order[torch.isin(order, torch.from_numpy(rows))]
    batches = min(STATISTICS_BATCHES, len(order) // context.batch_size)
    order = order[: batches * context.batch_size]
    for planned in planned_batches(context, order, context.batch_size, epoch=number):
        images = planned.augmented(context)
        for part in split_batch(len(images), context.stepper.micro_batch):
            yield context.execution.layout(images[part].to(context.execution.torch_device))
        progress("batch norm", planned.batch.step + 1, batches, "batches")


def _plan(
    context: TrainContext, epoch: int, draws: Tensor, *, compiles: bool = True
) -> tuple[Augmentation, mixing.Plan | None]:
    """Return the plans of batches of draws [S, B], on the device; `compiles` allows a compiled graph for them."""
    seed, shape = context.config.seed, context.dataset.train.image_shape
    device = augmentation_device(context.execution.torch_device)
    keys = rng.keys(seed, epoch, draws)
    flip_mask = engine.alternating_flip_mask(seed, epoch, draws) if context.alternates else None
    policy = context.policy_at(epoch)
    augmentation: Augmentation
    if context.views > 1:
        augmentation = losses.plan_views(policy, keys, shape, flip_mask=flip_mask)
    elif compiles and context.config.train.compile is True and device.type == "cuda":
        # A CPU is faster eagerly, in chunks for its cache; `auto` has timed the model's graph alone.
        augmentation = compiled.plan_compiled(policy, keys, shape, flip_mask=flip_mask)
    else:
        augmentation = engine.plan_policy(policy, keys, shape, flip_mask=flip_mask)
    mixed_with = mixing.plan_mixing(context.mixing, keys, *shape[1:])
    return plans.send((augmentation, mixed_with), device)
