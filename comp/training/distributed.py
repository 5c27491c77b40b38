"""One training on several devices or processes: `torchrun --nproc-per-node 2 -m comp train CONFIG`.

Every process holds the whole model and takes its share of each batch; gradients are averaged by torch's
DistributedDataParallel (Li et al. 2020, arXiv:2006.15704), over NCCL between GPUs and Gloo between CPUs. Draws are
counted by sample, so that a batch's pixels are those of a single process, and without batch statistics its steps are
too, up to rounding. Batch norm sees a process's share alone on CPUs, as with `train.micro_batch`; on GPUs it is
synchronised.

The first process, the leader, validates, decides and writes; the others follow. `Alone` is a team of one.
"""

import contextlib
import datetime
import os
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, NoReturn, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from comp.config import Config
from comp.data.dataset import Dataset
from comp.models.classifier import Classifier
from comp.results.runs import Run
from comp.runtime.device import Execution, Forward
from comp.runtime.errors import ConfigError, Interrupted, RunError, UserError
from comp.runtime.progress import Progress
from comp.training.budget import FixedEpochs, StepPlanner
from comp.training.schedules import Plan

_Value = TypeVar("_Value")

# The others wait while the leader validates or times; a process that dies is noticed by its closed connection.
_PATIENCE = datetime.timedelta(days=1)
_LOST = (
    "closed by peer",
    "reset by peer",
    "Broken pipe",
    "Connection refused",
    "[torch/csrc/distributed",
    "gloo/",
    "NCCL",
)


class SingleProcess:
    """The team of one process: nothing to share, nobody to wait for."""

    is_main_process = True
    size = 1
    words: tuple[int, ...] = ()
    """What sets this process's dropout apart from the others'."""

    def check(self, config: Config, dataset: Dataset) -> None:
        """Refuse what a team cannot do."""

    def prepare(self, model: Classifier, execution: Execution) -> None:
        """Change layers, in place, that must know of the others."""

    def forward(self, model: nn.Module, execution: Execution) -> Forward:
        """Return what computes the logits of this process's share, and lets gradients be averaged on the way back."""
        return execution.training_forward(model)

    def share(self, order: Tensor, batch_size: int) -> tuple[Tensor, int]:
        """Return this process's part of every whole batch of an order [N], and how many images of each that is."""
        return order, batch_size

    def all_reduce_sum(self, values: Tensor) -> Tensor:
        """Return the sum of all processes' values."""
        return values

    def watched(self, progress: Progress) -> Progress:
        """Return a progress after which all stop where one was told to."""
        return progress

    def broadcast_from_main(self, work: Callable[[], _Value]) -> _Value:
        """Return what the leader's work returns; nobody else does it."""
        return work()

    def main_process_first(self, work: Callable[[], _Value]) -> _Value:
        """Return what this process's work returns; the others begin when the leader has ended, and find its files."""
        return work()

    def keep(self, pace: StepPlanner) -> StepPlanner:
        """Return a pace whose plan is the same for all at every step."""
        return pace

    def stop(self, error: UserError | Interrupted) -> NoReturn:
        """End with what all have met."""
        raise error

    def barrier(self) -> None:
        """Wait for all."""


SINGLE_PROCESS = SingleProcess()


class DistributedGroup(SingleProcess):
    """Several processes that torchrun has started."""

    def __init__(self) -> None:
        self._rank = dist.get_rank()
        self.size = dist.get_world_size()
        self.is_main_process = self._rank == 0
        self.words = () if self.is_main_process else (self._rank,)

    def check(self, config: Config, dataset: Dataset) -> None:
        """Refuse what a team cannot do.

        Raises:
            ConfigError: batches that cannot be cut on even positions into equal shares.
        """
        batch_size = min(config.train.batch_size, len(dataset.train))
        if batch_size % (2 * self.size):
            raise ConfigError(
                f"train.batch_size: {self.size} processes share each batch in equal, even parts; expected a multiple "
                f"of {2 * self.size}, found {batch_size}"
            )

    def prepare(self, model: Classifier, execution: Execution) -> None:
        """Synchronise batch norm on GPUs; names and weights stay."""
        if execution.device == "cuda":
            from timm.layers import convert_sync_batchnorm

            model.inner = convert_sync_batchnorm(model.inner)

    def forward(self, model: nn.Module, execution: Execution) -> Forward:
        """Return the model under DistributedDataParallel; see `_Together`."""
        return _DDPModel(model, execution)

    def share(self, order: Tensor, batch_size: int) -> tuple[Tensor, int]:
        """Return this process's part of every whole batch; pairs (2k, 2k + 1) stay together."""
        images, steps = batch_size // self.size, len(order) // batch_size
        shares = order[: steps * batch_size].view(steps, self.size, images)
        return shares[:, self._rank].flatten(), images

    def all_reduce_sum(self, values: Tensor) -> Tensor:
        """Return the sum of all processes' values, on their device."""
        dist.all_reduce(values)
        return values

    def watched(self, progress: Progress) -> Progress:
        """Return a progress after which all stop where one was told to, at the same step."""

        def call(what: str, done: int, total: int, unit: str = "images", note: str = "") -> None:
            signum = torch.zeros(1, dtype=torch.int64)
            try:
                progress(what, done, total, unit, note)
            except Interrupted as stop:
                signum += stop.signum
            dist.all_reduce(signum, dist.ReduceOp.MAX)  # on the CPU: no device is waited for
            if signum.item():
                self.stop(Interrupted(int(signum)))

        return call

    def broadcast_from_main(self, work: Callable[[], _Value]) -> _Value:
        """Return what the leader's work returns, or end as it ends."""
        return cast(_Value, self._told(work if self.is_main_process else None))

    def main_process_first(self, work: Callable[[], _Value]) -> _Value:
        """Return what this process's work returns, done after the leader's, or end as the leader's ends."""
        found: list[_Value] = []
        self._told(lambda: found.append(work()) if self.is_main_process else None)
        return found[0] if self.is_main_process else work()

    def keep(self, pace: StepPlanner) -> StepPlanner:
        """Return the leader's pace for all; a number of epochs needs no telling."""
        return pace if isinstance(pace, FixedEpochs) else _SyncedPlanner(pace, self)

    def barrier(self) -> None:
        """Wait for all."""
        dist.all_reduce(torch.zeros(1))

    def _told(self, work: Callable[[], Any] | None) -> Any:
        """Do the leader's work there, and hand its result or its end to all."""
        told: list[Any] = [None, None]
        if self.is_main_process:
            assert work is not None
            try:
                told[0] = work()
            except (UserError, Interrupted) as error:
                told[1] = error
        dist.broadcast_object_list(told, src=0, device=torch.device("cpu"))
        if told[1] is not None:
            self.stop(told[1])
        return told[0]

    def stop(self, error: UserError | Interrupted) -> NoReturn:
        """End as all end; the leader alone says why."""
        if self.is_main_process:
            raise error
        raise SystemExit(error.exit_code)


class _SyncedPlanner(StepPlanner):
    """A `comp.training.budget.StepPlanner` by the leader's clock, whose plan is told to all whenever it may have
    changed.

    Args:
        pace: the leader's is told what takes time; the others' only takes states back.
        team: its processes.
    """

    def __init__(self, pace: StepPlanner, team: SingleProcess) -> None:
        self._pace, self._team = pace, team
        self.plan = pace.plan

    def label(self, number: int) -> str:
        """See `Pace`."""
        return self._pace.label(number)

    def begun(self) -> None:
        """See `Pace`."""
        self._pace.begun()

    def stepped(self, step: int) -> None:
        """See `Pace`."""
        self._follow(lambda: self._pace.stepped(step))

    def trained(self, step: int) -> None:
        """See `Pace`."""
        if self._team.is_main_process:
            self._pace.trained(step)

    def ended(self, step: int) -> None:
        """See `Pace`."""
        self._follow(lambda: self._pace.ended(step))

    def saved(self, seconds: float) -> None:
        """See `Pace`."""
        self._pace.saved(seconds)

    def state_dict(self) -> dict[str, Any]:
        """See `Pace`."""
        return self._pace.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `Pace`."""
        self._pace.load_state_dict(state)
        self.plan = self._pace.plan

    def _follow(self, hear: Callable[[], None]) -> None:
        def plan() -> Plan:
            hear()
            return self._pace.plan

        self.plan = self._team.broadcast_from_main(plan)


class _DDPModel:
    """A model under DistributedDataParallel, wrapped anew whenever other parameters are trained."""

    def __init__(self, model: nn.Module, execution: Execution) -> None:
        self._model, self._execution = model, execution
        self._trained: list[bool] = []
        self._wrapped: Forward | None = None

    def __call__(self, images: Tensor) -> Tensor:
        trained = [parameter.requires_grad for parameter in self._model.parameters()]
        if self._wrapped is None or trained != self._trained:
            self._wrapped = None  # takes its hooks off the parameters
            wrapped = DistributedDataParallel(self._model)
            self._wrapped, self._trained = self._execution.training_forward(wrapped), trained
        return self._wrapped(images)


class ReadOnlyRun(Run):
    """A follower's view of the run: everything is read, nothing is written."""

    def write(self, name: str, content: bytes | Callable[[BinaryIO], None]) -> None:
        """Leave it to the leader."""


def is_distributed() -> bool:
    """Tell whether torchrun has started more than one process."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


@contextlib.contextmanager
def joined() -> Iterator[SingleProcess]:
    """Join the other processes that torchrun has started; alone without them.

    Raises:
        RunError: another process has ended too soon.
    """
    if not is_distributed():
        yield SINGLE_PROCESS
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, timeout=_PATIENCE)
    try:
        yield DistributedGroup()
    except RuntimeError as error:
        if not _is_lost(error):
            raise
        raise RunError(
            "another process of this training has ended, so all end; go on from the last checkpoint: "
            "torchrun ... -m comp train --resume RUN"
        ) from None
    finally:
        dist.destroy_process_group()


def _is_lost(error: RuntimeError) -> bool:
    return isinstance(error, dist.DistError) or any(saying in str(error) for saying in _LOST)


def refuse(command: str) -> None:
    """Refuse a command that knows one process only.

    Raises:
        ConfigError: torchrun has started several.
    """
    if is_distributed():
        raise ConfigError(
            f"{command}: runs in one process, and torchrun has started several; train with them "
            f"(torchrun ... -m comp train CONFIG), then `comp run --resume RUN` predicts and submits"
        )
