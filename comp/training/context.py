"""What stays the same through a training, and how it is set up."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.optim import Optimizer

from comp.augment import mixing, policies, worker_stage
from comp.augment.ops import Policy
from comp.config import Config
from comp.config.tasks import TASKS
from comp.data import loading
from comp.data.dataset import Dataset
from comp.data.loading import Loader
from comp.models import averaging
from comp.models.classifier import Classifier
from comp.results.runs import Run
from comp.runtime.device import Execution, Forward
from comp.runtime.progress import Progress, quiet
from comp.training import budget, consistency, losses, optimizers, resolution, schedules
from comp.training.best_weights import BestWeights
from comp.training.budget import StepPlanner
from comp.training.checkpoint import Stateful, TrainState
from comp.training.distributed import SINGLE_PROCESS, SingleProcess
from comp.training.norms import NoNorms, Norms
from comp.training.step import Stepper, head_of

_INITIALISE_IMAGES = 5000  # that a data-dependent initialisation sees,
_INITIALISE_BYTES = 128 << 20  # and at most this many of their pixels: photographs are large
STATISTICS_BATCHES = 100  # that the batch norm of averaged weights sees


@dataclass(frozen=True)
class TrainContext:
    """What stays the same through a training."""

    config: Config
    dataset: Dataset
    run: Run
    model: Classifier
    optimizer: Optimizer
    stepper: Stepper
    norms: NoNorms
    contest: BestWeights
    train: Loader
    policy: Policy
    mixing: mixing.Mixing
    execution: Execution
    forward: Forward
    team: SingleProcess
    pace: StepPlanner

    @cached_property
    def batch_size(self) -> int:
        """At most the training split's size."""
        return min(self.config.train.batch_size, len(self.train))

    @cached_property
    def steps_per_epoch(self) -> int:
        """Whole batches: the few images left over are others in every epoch."""
        return len(self.train) // self.batch_size

    def steps_in(self, number: int) -> int:
        """Return an epoch's steps; a budget may cut the last one short."""
        return min(self.steps_per_epoch, self.pace.plan.total_steps - (number - 1) * self.steps_per_epoch)

    @cached_property
    def criterion(self) -> Callable[[Tensor, Tensor], Tensor]:
        """The task's loss."""
        return losses.LOSSES[TASKS[self.dataset.competition.task].loss]

    @cached_property
    def views(self) -> int:
        """How many views of each image a step sees, one after the other in its batch."""
        return 1 if self.config.train.consistency == "none" else consistency.VIEWS

    @cached_property
    def alternates(self) -> bool:
        """Whether the policy mirrors by epoch instead of by chance."""
        return any(op.name == "alternating_flip" for op in self.policy.ops)

    @property
    def parts(self) -> dict[str, Stateful]:
        """What state.pt holds beside the cursor."""
        parts: dict[str, Stateful] = {
            "model": self.model,
            "optimizer": self.optimizer,
            "stepper": self.stepper,
            "average": self.contest.average,
        }
        if self.config.train.budget:
            parts["pace"] = self.pace
        if self.norms.wanted:
            parts["norms"] = self.norms
        return parts

    def taken(self, cursor: TrainState) -> int:
        """Return the steps taken since the training's first."""
        return cursor.epoch * self.steps_per_epoch + cursor.step

    def rate(self, cursor: TrainState, step: int) -> float:
        """Return the learning rate of a step of the current epoch, before any group's own factor."""
        planned = schedules.rate(cursor.epoch * self.steps_per_epoch + step, self.pace.plan, self.config.optim)
        return planned * cursor.rate_factor

    def is_over(self, cursor: TrainState) -> bool:
        """Tell whether the plan's last step is taken."""
        return self.taken(cursor) >= self.pace.plan.total_steps


def build_context(
    config: Config,
    dataset: Dataset,
    run: Run,
    model: Classifier,
    execution: Execution,
    *,
    fresh: bool,
    began: float | None = None,
    progress: Progress = quiet,
    team: SingleProcess = SINGLE_PROCESS,
) -> TrainContext:
    """Place model and training images on the device and build the optimizer.

    Args:
        config: the run's.
        dataset: opened by `open_dataset`.
        run: where files land.
        model: as built, on the CPU.
        execution: see `comp.training.autotune`.
        fresh: whether a data-dependent initialisation is wanted: not where weights come from a file or a checkpoint.
        began: `time.perf_counter()` of the moment from which a budget counts; None: now.
        progress: called while image files are decoded.
        team: the processes that train it together.
    """
    team.check(config, dataset)
    began = time.perf_counter() if began is None else began
    policy = policies.resolve(config.augment.policy, config.augment.ops, config.augment.albumentations)
    if dataset.resident:
        val = dataset.val and dataset.val.decoded(progress)
        # What is cropped before it is resized is read anew in every epoch.
        train_split = dataset.train if policy.crop else dataset.train.decoded(progress)
        dataset = replace(dataset, train=train_split, val=val)
    if fresh:
        _initialise(model, dataset)
    resolution.check_sizes(model, config.train.sizes, dataset.competition.image_shape)
    team.prepare(model, execution)
    execution.place(model)
    optimizer = optimizers.for_model(model, config.optim)
    train = loading.loader(
        dataset.train,
        execution.torch_device,
        stays=dataset.resident,
        workers=execution.workers,
        transform=worker_stage.build(policy, config.seed),
    )
    steps_per_epoch = len(train) // min(config.train.batch_size, len(train))
    norms = Norms(model.inner) if config.train.log_norms else NoNorms()
    average = averaging.AVERAGES[config.train.average](model, steps_per_epoch, config.train)
    return TrainContext(
        config=config,
        dataset=dataset,
        run=run,
        model=model,
        optimizer=optimizer,
        stepper=Stepper(optimizer, config, execution, norms, unclipped=head_of(model), halves=team.size == 1),
        norms=norms,
        contest=BestWeights(run, config, dataset, model, execution, average),
        train=train,
        policy=policy,
        mixing=mixing.Mixing(
            mixup=config.augment.mixup,
            cutmix=config.augment.cutmix,
            switch_probability=config.augment.switch_probability,
            label_smoothing=config.train.label_smoothing,
            off_epochs=config.augment.mix_off_epochs,
        ),
        execution=execution,
        forward=team.forward(model, execution),
        team=team,
        pace=team.keep(budget.step_planner(config, dataset, run, execution, began=began)),
    )


def samples(config: Config, dataset: Dataset, model: Classifier) -> dict[str, NDArray[np.int64]]:
    """Return the rows of training images that a new training measures something on, by name.

    `initialise`: what a data-dependent initialisation sees, such as whitening. `statistics`: the whole batches from
    which batch norm meets averaged weights. Names whose use this training has not are left out.
    """
    found = {}
    if model.initialises_from_images:
        found["initialise"] = dataset.sample(dataset.train, _most_initialising(dataset))
    if config.train.average != "none":
        batch_size = min(config.train.batch_size, len(dataset.train))
        batches = min(STATISTICS_BATCHES, len(dataset.train) // batch_size)
        found["statistics"] = dataset.sample(dataset.train, batches * batch_size)
    return found


def _most_initialising(dataset: Dataset) -> int:
    return min(_INITIALISE_IMAGES, max(1, _INITIALISE_BYTES // math.prod(dataset.train.image_shape)))


def _initialise(model: Classifier, dataset: Dataset) -> None:
    """Let the model see some training images before its first step."""
    if not model.initialises_from_images:
        return
    rows = dataset.samples.get("initialise", np.arange(min(_most_initialising(dataset), len(dataset.train))))
    images = np.array(dataset.train.images[rows])  # a copy: memory maps are read-only
    model.initialise(torch.from_numpy(images).permute(0, 3, 1, 2))
