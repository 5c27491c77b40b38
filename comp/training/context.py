"""The training context: everything that stays the same during a training."""

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
from comp.data import loading
from comp.data.dataset import Dataset
from comp.data.loading import Loader
from comp.models import averaging
from comp.models.classifier import Classifier
from comp.results.runs import Run
from comp.runtime.device import Execution, Forward
from comp.runtime.memory import MicroBatch
from comp.runtime.progress import Progress, quiet
from comp.training import budget, imbalance, losses, optimizers, schedules
from comp.training.best_weights import BestWeights
from comp.training.budget import StepPlanner
from comp.training.checkpoint import Stateful, TrainState
from comp.training.distributed import SINGLE_PROCESS, SingleProcess
from comp.training.norms import NoNorms, Norms
from comp.training.schedules import Schedule
from comp.training.step import Stepper, head_of
from comp.training.teacher import Teacher, open_teacher

# A data-dependent initialisation sees at most this many images and bytes of pixels: photographs are large.
_INITIALISE_IMAGES, _INITIALISE_BYTES = 5000, 128 << 20
STATISTICS_BATCHES = 100  # for the batch norm statistics of averaged weights


@dataclass(frozen=True)
class TrainContext:
    """Everything that stays the same during a training."""

    config: Config
    dataset: Dataset
    run: Run
    model: Classifier
    optimizer: Optimizer
    schedule: Schedule
    stepper: Stepper
    norms: NoNorms
    best_weights: BestWeights
    train: Loader
    policy: Policy
    mixing: mixing.Mixing
    execution: Execution
    forward: Forward
    team: SingleProcess
    planner: StepPlanner
    teacher: Teacher | None

    @cached_property
    def batch_size(self) -> int:
        """At most the training split's size."""
        return min(self.config.train.batch_size, len(self.train))

    @cached_property
    def steps_per_epoch(self) -> int:
        """Whole batches; the few images left over differ in every epoch."""
        return len(self.train) // self.batch_size

    def steps_in(self, number: int) -> int:
        """Return an epoch's steps; a budget may shorten the last epoch."""
        return min(self.steps_per_epoch, self.planner.plan.total_steps - (number - 1) * self.steps_per_epoch)

    @cached_property
    def augmenting(self) -> MicroBatch:
        """How many images are augmented at a time: a batch, where memory suffices."""
        return MicroBatch(self.batch_size)

    @cached_property
    def criterion(self) -> Callable[[Tensor, Tensor], Tensor]:
        """The loss, with its class weights on the device."""
        return losses.build_criterion(self.config, self.dataset, self.execution.torch_device)

    @cached_property
    def views(self) -> int:
        """How many views of each image a step sees, view after view in its batch."""
        return 1 if self.config.train.consistency == "none" else losses.VIEWS

    @cached_property
    def alternates(self) -> bool:
        """Whether the policy flips by epoch instead of at random."""
        return any(op.name == "alternating_flip" for op in self.policy.ops)

    @property
    def parts(self) -> dict[str, Stateful]:
        """What state.pt holds beside the `TrainState`."""
        parts: dict[str, Stateful] = {
            "model": self.model,
            "optimizer": self.optimizer,
            "stepper": self.stepper,
            "average": self.best_weights.average,
        }
        if self.config.train.budget:
            parts["pace"] = self.planner
        if self.norms.enabled:
            parts["norms"] = self.norms
        return parts

    def policy_at(self, number: int) -> Policy:
        """Return the policy of an epoch, from 1, without what `augment.delays` leaves out."""
        section = self.config.augment
        if number > max(section.delays.values(), default=0):
            return self.policy
        names = (section.policy,) if isinstance(section.policy, str) else section.policy
        started = tuple(name for name in names if section.delays.get(name, 0) < number)
        return policies.resolve(started, section.ops, section.albumentations)

    def order(self, number: int) -> Tensor:
        """Return the draws of an epoch (from 1), [N] int64 on the CPU; see `comp.training.imbalance`."""
        assert self.dataset.train.labels is not None
        return imbalance.epoch_order(self.config, self.dataset.train.labels, number)

    def steps_taken(self, state: TrainState) -> int:
        """Return the steps taken since the training's start."""
        return state.epoch * self.steps_per_epoch + state.step

    def rate(self, state: TrainState, step: int) -> float:
        """Return the learning rate of a step of the current epoch, before any group's own factor."""
        return self.schedule.rate(state.epoch * self.steps_per_epoch + step, self.planner.plan) * state.rate_factor

    def is_over(self, state: TrainState) -> bool:
        """Return whether the plan's last step is taken."""
        return self.steps_taken(state) >= self.planner.plan.total_steps


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
        config: of the run.
        dataset: from `open_dataset`.
        run: where files are written.
        model: as built, on the CPU.
        execution: see `comp.training.autotune`.
        fresh: whether to run a data-dependent initialisation: not where weights come from a file or a checkpoint.
        began: `time.perf_counter()` at the start of the budget; None: now.
        progress: called while image files are decoded.
        team: the processes that train together.
    """
    team.check_batch_size(min(config.train.batch_size, len(dataset.train)))
    began = time.perf_counter() if began is None else began
    policy = policies.resolve(config.augment.policy, config.augment.ops, config.augment.albumentations)
    if dataset.resident:
        # Images that are cropped before they are resized are read anew in every epoch.
        train_split = dataset.train if policy.crop else dataset.train.decoded(progress)
        dataset = replace(dataset, train=train_split, val=dataset.val and dataset.val.decoded(progress))
    schedules.check_sizes(model, config.train.sizes, dataset.competition.image_shape)
    team.prepare(model, execution)
    execution.place(model)
    if fresh:
        _initialise(model, dataset, execution.torch_device)
    optimizer = optimizers.for_model(model, config.optim)
    train = loading.build_loader(
        dataset.train,
        execution.torch_device,
        resident=dataset.resident,
        configured=config.data.loading,
        workers=execution.workers,
        transform=worker_stage.build(policy, config.seed),
    )
    steps_per_epoch = len(train) // min(config.train.batch_size, len(train))
    norms = Norms(model.inner) if config.train.log_norms else NoNorms()
    average = averaging.build_average(model, config.train, steps_per_epoch)
    return TrainContext(
        config=config,
        dataset=dataset,
        run=run,
        model=model,
        optimizer=optimizer,
        schedule=optimizers.schedule_of(config.optim),
        stepper=Stepper(
            optimizer,
            execution,
            norms,
            micro_batch=execution.micro_batch or config.train.micro_batch or config.train.batch_size,
            clip=config.optim.clip,
            clip_at=config.optim.clip_at,
            unclipped=head_of(model),
            halves=team.size == 1,
        ),
        norms=norms,
        best_weights=BestWeights(run, config, dataset, model, execution, average),
        train=train,
        policy=policy,
        mixing=_mixing(config),
        execution=execution,
        forward=team.forward(model, execution),
        team=team,
        planner=team.sync_planner(budget.step_planner(config, dataset, run, execution, began=began)),
        teacher=open_teacher(run, config, dataset, execution.torch_device),
    )


def _mixing(config: Config) -> mixing.Mixing:
    return mixing.Mixing(
        mixup=config.augment.mixup,
        cutmix=config.augment.cutmix,
        switch_probability=config.augment.switch_probability,
        label_smoothing=config.train.label_smoothing,
        off_epochs=config.augment.mix_off_epochs,
    )


def training_samples(config: Config, dataset: Dataset, model: Classifier) -> dict[str, NDArray[np.int64]]:
    """Return samples of training images (row numbers) that a new training needs, by name.

    `initialise`: for a data-dependent initialisation, such as whitening. `statistics`: whole batches for the batch
    norm statistics of averaged weights.
    """
    samples = {}
    if model.initialises_from_images:
        samples["initialise"] = dataset.sample(dataset.train, _initialise_count(dataset))
    if config.train.average != "none":
        batch_size = min(config.train.batch_size, len(dataset.train))
        batches = min(STATISTICS_BATCHES, len(dataset.train) // batch_size)
        samples["statistics"] = dataset.sample(dataset.train, batches * batch_size)
    return samples


def _initialise_count(dataset: Dataset) -> int:
    return min(_INITIALISE_IMAGES, max(1, _INITIALISE_BYTES // math.prod(dataset.train.image_shape)))


def _initialise(model: Classifier, dataset: Dataset, device: torch.device) -> None:
    """Run the model's data-dependent initialisation on its device, if it has one."""
    if not model.initialises_from_images:
        return
    rows = dataset.samples.get("initialise", np.arange(min(_initialise_count(dataset), len(dataset.train))))
    images = np.array(dataset.train.images[rows])  # a copy: memory maps are read-only
    model.initialise(torch.from_numpy(images).to(device).permute(0, 3, 1, 2))
