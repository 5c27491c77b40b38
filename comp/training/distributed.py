"""One training on several devices or processes, started by `comp run --gpus 2` (see `launch`) or by torchrun.

Every process holds the whole model and takes a shard of each batch; torch's DistributedDataParallel (Li et al. 2020,
arXiv:2006.15704) averages gradients, over NCCL between GPUs and Gloo between CPUs. Draws are counted by sample, so a
batch has the pixels of a single process, and without batch statistics the same steps, up to rounding. On CPUs batch
norm sees a process's shard only, as with `train.micro_batch`; on GPUs it is synchronised.

The main process (rank 0) validates, decides and writes. `SingleProcess` is a group of one. In work of the main process
alone no collective call may stand, since nobody would answer: one raises instead of waiting for ever.

An error is reported by the process that meets it first; the others end without a word, with its exit code.
"""

import contextlib
import datetime
import gc
import os
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, NoReturn, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.nn.parallel import DistributedDataParallel

from comp.models.classifier import Classifier
from comp.results.runs import Run
from comp.runtime.device import Execution, Forward, choose_device, local_gpu
from comp.runtime.errors import ConfigError, Interrupted, RunError, UserError
from comp.runtime.progress import Progress
from comp.training import launch
from comp.training.budget import FixedEpochs, StepPlanner
from comp.training.schedules import Plan

_Value = TypeVar("_Value")


# Processes wait while the main one validates or times; a process that dies is noticed by its closed connection.
_TIMEOUT = datetime.timedelta(days=1)
_JOIN_TIMEOUT = datetime.timedelta(minutes=10)  # they start at the same time
# What Gloo and NCCL say when another process has gone. NCCL has other errors too; Gloo, between CPUs, hardly.
_GONE = (
    "closed by peer",
    "closed by remote peer",
    "reset by peer",
    "Broken pipe",
    "Connection refused",
    "ncclRemoteError",
    "communicator was aborted",
)
_GLOO = ("[torch/csrc/distributed", "gloo/")
_NO_MEMORY = ("out of memory", "Failed to CUDA malloc", "Failed to CUDA calloc", "ALLOC_FAILED")
_REPORTED = "comp/reported"  # the store's key: rank and exit code of the process that reports the error


class SingleProcess:
    """A group of one process: nothing to share, nothing to wait for."""

    is_main_process = True
    size = 1
    rng_offset: tuple[int, ...] = ()
    """Makes this process's dropout differ from the others'."""

    def check_batch_size(self, batch_size: int) -> None:
        """Check that the processes can share batches."""

    def take_device(self, name: str) -> None:
        """Take this process's GPU, if `train.device` is one."""

    def prepare(self, model: Classifier, execution: Execution) -> None:
        """Synchronise layers between processes, in place."""

    def forward(self, model: nn.Module, execution: Execution) -> Forward:
        """Return the forward function of this process's shard; its backward pass averages gradients."""
        return execution.training_forward(model)

    def shard(self, order: Tensor, batch_size: int) -> tuple[Tensor, int]:
        """Return this process's part of every whole batch of an order [N], and its number of images in each."""
        return order, batch_size

    def all_reduce_sum(self, values: Tensor) -> Tensor:
        """Return the sum of all processes' values."""
        return values

    def synced_progress(self, progress: Progress) -> Progress:
        """Return a progress that interrupts all processes when one is interrupted."""
        return progress

    def broadcast_from_main(self, work: Callable[[], _Value]) -> _Value:
        """Return the result of the main process's work; the others do not run it."""
        return work()

    def main_process_first(self, work: Callable[[], _Value]) -> _Value:
        """Return the result of this process's work; the others start when the main process is done."""
        return work()

    def sync_planner(self, planner: StepPlanner) -> StepPlanner:
        """Return a planner whose plan is the same for all processes at every step."""
        return planner

    def stop(self, error: UserError | Interrupted) -> NoReturn:
        """End all processes with an error that all have met."""
        raise error

    def barrier(self) -> None:
        """Wait for all processes."""

    def leave(self) -> None:
        """Leave the group, all at the same time: from here on the main process works alone."""


SINGLE_PROCESS = SingleProcess()


class DistributedGroup(SingleProcess):
    """Several processes started by `launch` or torchrun."""

    def __init__(self) -> None:
        self._rank = dist.get_rank()
        self._works_alone = False
        self.size = dist.get_world_size()
        self.is_main_process = self._rank == 0
        self.rng_offset = () if self.is_main_process else (self._rank,)

    def check_batch_size(self, batch_size: int) -> None:
        """Check that the processes can share batches.

        Raises:
            ConfigError: batches that cannot be cut at even positions into equal shards.
        """
        if batch_size % (2 * self.size):
            raise ConfigError(
                f"train.batch_size: {self.size} processes share each batch in equal, even parts; expected a multiple "
                f"of {2 * self.size}, found {batch_size}"
            )

    def take_device(self, name: str) -> None:
        """Take this process's GPU, if `train.device` is one.

        Raises:
            ConfigError: there are fewer GPUs than processes.
        """
        if choose_device(name) == "cuda":
            torch.cuda.set_device(local_gpu(int(os.environ.get("LOCAL_RANK", "0"))))

    def prepare(self, model: Classifier, execution: Execution) -> None:
        """Synchronise batch norm on GPUs; names and weights stay."""
        if execution.device == "cuda":
            from timm.layers import convert_sync_batchnorm

            model.inner = convert_sync_batchnorm(model.inner)

    def forward(self, model: nn.Module, execution: Execution) -> Forward:
        """Return the model under DistributedDataParallel; see `_DDPModel`."""
        return _DDPModel(model, execution)

    def shard(self, order: Tensor, batch_size: int) -> tuple[Tensor, int]:
        """Return this process's part of every whole batch; pairs (2k, 2k + 1) stay together."""
        images, steps = batch_size // self.size, len(order) // batch_size
        shards = order[: steps * batch_size].view(steps, self.size, images)
        return shards[:, self._rank].flatten(), images

    def all_reduce_sum(self, values: Tensor) -> Tensor:
        """Return the sum of all processes' values, on their device."""
        self._check_together()
        dist.all_reduce(values)
        return values

    def synced_progress(self, progress: Progress) -> Progress:
        """Return a progress that interrupts all processes, at the same step, when one is interrupted."""

        def call(what: str, done: int, total: int, unit: str = "images", note: str = "") -> None:
            signum = torch.zeros(1, dtype=torch.int64)
            try:
                progress(what, done, total, unit, note)
            except Interrupted as stop:
                signum += stop.signum
            self._check_together()
            dist.all_reduce(signum, dist.ReduceOp.MAX)  # on the CPU: does not wait for a device
            if signum.item():
                self.stop(Interrupted(int(signum)))

        return call

    def broadcast_from_main(self, work: Callable[[], _Value]) -> _Value:
        """Return the result of the main process's work, or fail as it fails."""
        return cast(_Value, self._broadcast(work if self.is_main_process else None))

    def main_process_first(self, work: Callable[[], _Value]) -> _Value:
        """Return the result of this process's work, done after the main process's, or fail as that fails."""
        results: list[_Value] = []
        self._broadcast(lambda: results.append(work()) if self.is_main_process else None)
        if self.is_main_process:
            return results[0]
        with self._alone():
            return work()

    def sync_planner(self, planner: StepPlanner) -> StepPlanner:
        """Return the main process's planner for all; a fixed number of epochs needs no synchronisation."""
        return planner if isinstance(planner, FixedEpochs) else _SyncedPlanner(planner, self)

    def barrier(self) -> None:
        """Wait for all processes."""
        self._check_together()
        dist.all_reduce(torch.zeros(1))

    def leave(self) -> None:
        """Leave the group, all at the same time: from here on the main process works alone."""
        self.barrier()
        dist.destroy_process_group()

    def _check_together(self) -> None:
        if self._works_alone:
            raise AssertionError("a collective call in the work of one process: the others would never answer")

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Context manager: this process works by itself, so collective calls raise; see `_refuse_collectives`."""
        self._works_alone = True
        hook = register_module_forward_pre_hook(_refuse_collectives)
        try:
            yield
        finally:
            hook.remove()
            self._works_alone = False

    def _broadcast(self, work: Callable[[], Any] | None) -> Any:
        """Run work in the main process, and return its result or raise its error in all."""
        self._check_together()
        result_and_error: list[Any] = [None, None]
        if self.is_main_process:
            assert work is not None
            try:
                with self._alone():
                    result_and_error[0] = work()
            except (UserError, Interrupted) as error:
                result_and_error[1] = error
        dist.broadcast_object_list(result_and_error, src=0, device=torch.device("cpu"))
        if result_and_error[1] is not None:
            self.stop(result_and_error[1])
        return result_and_error[0]

    def stop(self, error: UserError | Interrupted) -> NoReturn:
        """End all processes; only the main one reports the error."""
        if self.is_main_process:
            raise error
        raise SystemExit(error.exit_code)


def _refuse_collectives(module: nn.Module, inputs: Any) -> None:
    """Forward pre-hook: raise where a module of torch would wait for the other processes.

    Raises:
        AssertionError: synchronised batch norm in training mode, or a distributed model.
    """
    if isinstance(module, DistributedDataParallel) or (isinstance(module, nn.SyncBatchNorm) and module.training):
        raise AssertionError(
            f"{type(module).__name__} in the work of one process: the others would never answer; use a copy without"
        )


class _SyncedPlanner(StepPlanner):
    """Broadcasts the main process's plan to all processes whenever it may have changed.

    Args:
        planner: the main process's measures time; the others' only load states.
        team: its processes.
    """

    def __init__(self, planner: StepPlanner, team: SingleProcess) -> None:
        self._planner, self._team = planner, team
        self.plan = planner.plan

    def label(self, number: int) -> str:
        """See `StepPlanner`."""
        return self._planner.label(number)

    def on_start(self) -> None:
        """See `StepPlanner`."""
        self._planner.on_start()

    def on_step(self, step: int) -> None:
        """See `StepPlanner`."""
        self._sync(lambda: self._planner.on_step(step))

    def on_epoch_trained(self, step: int) -> None:
        """See `StepPlanner`."""
        if self._team.is_main_process:
            self._planner.on_epoch_trained(step)

    def on_epoch_end(self, step: int) -> None:
        """See `StepPlanner`."""
        self._sync(lambda: self._planner.on_epoch_end(step))

    def on_saved(self, seconds: float) -> None:
        """See `StepPlanner`."""
        self._planner.on_saved(seconds)

    def state_dict(self) -> dict[str, Any]:
        """See `StepPlanner`."""
        return self._planner.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `StepPlanner`."""
        self._planner.load_state_dict(state)
        self.plan = self._planner.plan

    def _sync(self, update: Callable[[], None]) -> None:
        def plan() -> Plan:
            update()
            return self._planner.plan

        self.plan = self._team.broadcast_from_main(plan)


class _DDPModel:
    """A model under DistributedDataParallel, wrapped again whenever the trainable parameters change."""

    def __init__(self, model: nn.Module, execution: Execution) -> None:
        self._model, self._execution = model, execution
        self._trained: list[bool] = []
        self._wrapped: Forward | None = None

    def __call__(self, images: Tensor) -> Tensor:
        trained = [parameter.requires_grad for parameter in self._model.parameters()]
        if self._wrapped is None or trained != self._trained:
            self._wrapped = None  # removes its hooks from the parameters
            wrapped = DistributedDataParallel(self._model)
            self._wrapped, self._trained = self._execution.training_forward(wrapped), trained
        return self._wrapped(images)


class ReadOnlyRun(Run):
    """The run as processes other than the main one see it: writes do nothing."""

    def write(self, name: str, content: bytes | Callable[[BinaryIO], None]) -> None:
        """Do nothing: the main process writes."""


def is_distributed() -> bool:
    """Return whether this is one of several processes, started by `launch` or torchrun."""
    return os.environ.get("WORLD_SIZE", "1") not in ("", "1")


@contextlib.contextmanager
def join_group() -> Iterator[SingleProcess]:
    """Join the processes that train together; a `SingleProcess` where there is one.

    The first process to fail raises its error; the others exit with its code.

    Raises:
        RunError: another process has died, memory is out, or the GPUs cannot reach each other.
    """
    if not is_distributed():
        yield SINGLE_PROCESS
        return
    launch.check_environment()
    launch.follow_parent()
    store, rank, size = next(rendezvous("env://", timeout=_JOIN_TIMEOUT))
    store.set_timeout(_TIMEOUT)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=_TIMEOUT)
    try:
        yield DistributedGroup()
    except (Exception, Interrupted) as error:
        # Before this process leaves the group, which the others notice.
        explained = explain(error, rank, size)
        first, code = _first_report(store, rank, getattr(explained, "exit_code", 1))
        if first != rank:
            raise SystemExit(code) from None
        if explained is error:
            raise
        raise explained from None
    finally:
        if dist.is_initialized():  # else all have left
            dist.destroy_process_group()
        gc.collect()  # what still holds the group would end its threads too late, and abort the process at its end


def _first_report(store: Any, rank: int, exit_code: int) -> tuple[int, int]:
    """Return rank and exit code of the first process that failed, this one if none has before; `store` is torch's."""
    mine = f"{rank} {exit_code}"
    try:
        first = store.compare_set(_REPORTED, "", mine).decode()
    except RuntimeError:  # the process that kept the store has died
        first = mine
    reporter, code = first.split()
    return int(reporter), int(code)


def explain(error: BaseException, rank: int, size: int) -> BaseException:
    """Return the message for what memory, network and lost processes raise in a group; any other error itself."""
    if not isinstance(error, RuntimeError | MemoryError):
        return error
    text = str(error)
    if isinstance(error, MemoryError) or any(sign in text for sign in _NO_MEMORY):
        return RunError(
            f"out of memory in process {rank} of {size} ({_line(error, _NO_MEMORY)}); use smaller train.batch_size, "
            "train.micro_batch or predict.batch_size, a smaller model or smaller images (model.input_size), and look "
            "for other programs on the device"
        )
    is_nccl = "NCCL" in text or "nccl" in text
    if any(sign in text for sign in _GONE) or (
        not is_nccl and (isinstance(error, dist.DistError) or any(sign in text for sign in _GLOO))
    ):
        return RunError(
            "another process of this training has died, so all processes end; resume from the last checkpoint: "
            f"comp run --resume RUN --gpus {size}"
        )
    if is_nccl:
        return RunError(
            f"the GPUs cannot reach each other through NCCL ({_line(error, ('Error', 'error', 'failure'))}); set "
            "NCCL_DEBUG=WARN to see why: often too small a /dev/shm (in Docker: --shm-size=1g) or one GPU named twice; "
            "or train on one GPU, without --gpus"
        )
    return error


def _line(error: BaseException, signs: tuple[str, ...]) -> str:
    """Return the last line of a message that has one of the signs, shortened; the error's name for an empty message."""
    lines = [line.strip() for line in str(error).splitlines() if any(sign in line for sign in signs)]
    return lines[-1][:200] if lines else type(error).__name__


def check_single_process(command: str) -> None:
    """Check that torchrun has not started several processes for a command that runs in one.

    Raises:
        ConfigError: it has.
    """
    if is_distributed():
        raise ConfigError(
            f"{command}: runs in one process, and torchrun has started several; start it without torchrun, or train "
            "with them: torchrun ... -m comp run CONFIG"
        )
