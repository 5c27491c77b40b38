"""Execution of a training: device, precision, memory layout, threads, compiled or not.

`comp.training.autotune` chooses them by timing; an `Execution` records the choice.
"""

import contextlib
import ctypes
import importlib.util
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from comp.runtime import cores, gpu, memory
from comp.runtime.errors import ConfigError, RunError, unknown

Precision = Literal["fp32", "bf16", "fp16"]
Forward = Callable[[Tensor], Tensor]

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Keys of execution.json: the expected value in words, and its check.
_RECORDED: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "device": ("cpu, cuda or mps", lambda value: value in ("cpu", "cuda", "mps")),
    "precision": (", ".join(_DTYPES), lambda value: isinstance(value, str) and value in _DTYPES),
    "channels_last": ("true or false", lambda value: isinstance(value, bool)),
    "threads": ("a number of threads", lambda value: _is_count(value) and value > 0),
    "compiled": ("true or false", lambda value: isinstance(value, bool)),
    "workers": ("a number of processes", lambda value: _is_count(value)),
    "cuda_graphs": ("true or false", lambda value: isinstance(value, bool)),
    "micro_batch": ("a number of images or null", lambda value: value is None or (_is_count(value) and value > 0)),
}
RECORD_CURE = "put the file back, or train again"  # execution.json is damaged
_AMPERE = (8, 0)  # the first compute capability that multiplies bfloat16
_VOLTA = (7, 0)  # the first with tensor cores, which multiply float16 fast, and the first that Triton compiles for
_MMAP_MAX, _TRIM_THRESHOLD, _KEPT_BYTES = -4, -1, 2**31 - 1  # as malloc.h names and bounds them
_MMAP_THRESHOLD, _MAPPED_BYTES = -3, 1 << 17  # likewise; set once, glibc does not raise it any more


@dataclass(frozen=True)
class Execution:
    """How a run computes. Recorded in execution.json; the same record on the same machine gives the same bits on CPU.

    Attributes:
        device: `cpu`, `cuda` or `mps`.
        precision: of matrix products; weights stay float32.
        channels_last: memory layout of images and kernels.
        threads: CPU threads.
        compiled: whether training steps run through torch.compile. Validation and prediction never do: they cost a
            small share of a training, and must agree with a later prediction on a machine without a compiler; see
            `comp.inference.fuse_bn` for what compiling predictions would gain.
        workers: processes that read or augment training images one by one; does not change a pixel.
        micro_batch: images that go through the network at a time after memory ran out with more; None: as configured.
        cuda_graphs: whether compiled steps are captured once and replayed, which starts all kernels at once.
    """

    device: str
    precision: Precision
    channels_last: bool
    threads: int
    compiled: bool = False
    workers: int = 0
    micro_batch: int | None = None
    cuda_graphs: bool = False

    @property
    def torch_device(self) -> torch.device:
        """The torch device."""
        return torch.device(self.device)

    def place(self, model: nn.Module) -> nn.Module:
        """Move a model to the device and layout, in place, and set up the process: threads, and memory on the CPU."""
        torch.set_num_threads(self.threads)
        if self.device == "cpu":
            _keep_freed_memory()
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        return model.to(self.torch_device, memory_format=layout)  # type: ignore[call-overload, no-any-return]

    def training_forward(self, model: nn.Module) -> Forward:
        """Return the forward function of training steps: the model, or its compiled graph with the same weights.

        The graph is built at its first call; saving, loading, unfreezing and validating use the model.

        Raises:
            ConfigError: at that call, if the model cannot be compiled.
        """
        if not self.compiled:
            return model
        # After memory ran out a step has several forward passes, and their gradients add up; see `_captured`.
        captures = self.cuda_graphs and self.micro_batch is None and not _is_shared(model)
        return _captured(model) if captures else _compiled(model)

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Return the context in which forward passes run."""
        if self.precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self.device, dtype=_DTYPES[self.precision])

    def layout(self, images: Tensor) -> Tensor:
        """Return images [B, C, H, W] in the chosen memory layout."""
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        return images.contiguous(memory_format=layout)

    def synchronize(self) -> None:
        """Wait until the device has finished its work; the CPU always has."""
        if self.device == "cuda":
            torch.cuda.synchronize()
        elif self.device == "mps":
            torch.mps.synchronize()

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


def _is_shared(model: nn.Module) -> bool:
    """Return whether processes share the model: what they send each other is not captured."""
    return isinstance(model, nn.parallel.DistributedDataParallel)


def _captured(model: nn.Module) -> Forward:
    """Return a compiled graph that CUDA captures at its second call and replays from then on.

    A replay writes into the memory of the one before it. So logits are copied out, and batches of another size than the
    first, such as micro-batches after memory ran out, whose gradients add up, are not replayed.
    """
    captured, compiled = _compiled(model, mode="reduce-overhead"), _compiled(model)
    size = 0

    def forward(images: Tensor) -> Tensor:
        nonlocal size
        size = size or len(images)
        if len(images) != size:
            return compiled(images)
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        return captured(images).clone()

    return forward


def _compiled(model: nn.Module, mode: str | None = None) -> Forward:
    from torch._dynamo.exc import TorchDynamoException  # takes a second to import

    graph = torch.compile(model, dynamic=False, mode=mode)  # an epoch has whole batches only

    def forward(images: Tensor) -> Tensor:
        try:
            logits: Tensor = graph(images)
        except TorchDynamoException as error:
            reason = str(error).strip().splitlines()[0]
            raise ConfigError(f"train.compile: this model cannot be compiled here ({reason}); use false") from error
        return logits

    return forward


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def from_json(values: Mapping[str, Any], where: str) -> Execution:
    """Return a recorded execution, to resume or repeat a training; old records get the values of their time.

    Raises:
        RunError: damaged, its augmentation engine was removed, or this machine cannot compute as it did.
    """
    run = Path(where).parent
    if values.get("engine") == "per_image":
        raise RunError(removed_engine_message(run))
    execution = _recorded(values, where)
    problem = _problem(execution.device)
    if problem:
        problem = f"its steps ran on {execution.device}, but {problem}"
    elif execution.precision == "bf16" and (lack := _lack_of_bf16(execution.device)):
        problem = f"its steps were computed in bf16, but {lack}"
    elif execution.compiled and (lack := missing_compiler(execution.device)):
        problem = f"its steps were compiled, and {lack}"
    if problem:
        raise RunError(
            f"{where}: {problem}; only a machine that computes as it did can resume or repeat it; or train again: comp "
            f"run {run}/config.yaml"
        )
    return execution


def removed_engine_message(run: Path) -> str:
    """Return why a run of the removed augmentation engine cannot be resumed or repeated, only predicted with."""
    return (
        f"{run}: was trained with augment.engine=per_image, which was removed: it can predict, but not be resumed or "
        f"repeated; to train its config again: comp run {run}/config.yaml augment.engine="
    )


def prediction_execution(values: Mapping[str, Any], where: str, device: str = "") -> tuple[Execution, str]:
    """Return the execution of a prediction, and a note on how it differs from the training's.

    It is never compiled. On a GPU or another device than the training's, precision falls back to what computes fast;
    on the CPU of the training, it stays, so that probabilities are those of the training's validation.

    Args:
        values: the record.
        where: its file.
        device: to predict on; empty: the training's, or the best of this machine if it lacks that.

    Raises:
        ConfigError: an unknown device, or one that this machine cannot use.
        RunError: damaged.
    """
    recorded = _recorded(values, where)
    if device and device not in devices():
        raise ConfigError(f"--device: {unknown('device', device, devices())}")
    if device and (problem := _problem(device)):
        raise ConfigError(f"--device: {problem}; choose from {_usable()}")
    lack = "" if device else _problem(recorded.device)
    device = device or (best_device() if lack else recorded.device)
    precision = (
        recorded.precision if device == recorded.device == "cpu" else _fast_precision(recorded.precision, device)
    )
    placed = replace(recorded, device=device, precision=precision, compiled=False)
    if device != recorded.device:
        placed = replace(placed, threads=cores.default_threads(), workers=cores.default_workers())
    elif precision == recorded.precision:
        return placed, ""
    reasons = [lack] if lack else []
    if precision != recorded.precision:
        processor = gpu.name() if device == "cuda" else f"this {device}"
        reasons.append(f"{processor} is slow in {recorded.precision}, or cannot compute in it")
    details = f" ({'; '.join(reasons)})" if reasons else ""
    return placed, (
        f"trained on {recorded.device} in {recorded.precision}, predicts on {device} in {precision}; probabilities may "
        f"differ in their last digits{details}"
    )


def _fast_precision(recorded: Precision, device: str) -> Precision:
    """Return a recorded precision if a device computes in it, and bfloat16 fast; else float16 or float32."""
    if recorded == "fp32" or device == "mps":
        return "fp32"
    if device == "cpu":
        return "bf16" if recorded == "bf16" and _cpu_multiplies_bf16() else "fp32"
    if recorded == "fp16" or not _lack_of_bf16(device):
        return recorded
    return "fp16" if gpu.capability() >= _VOLTA else "fp32"


def _cpu_multiplies_bf16() -> bool:
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def _lack_of_bf16(device: str) -> str:
    """Return why training in bfloat16 makes no sense on a device, as the end of a sentence; empty if it does."""
    if device == "mps":
        return "MPS is used in fp32 only"
    if device == "cuda" and gpu.capability() < _AMPERE:
        return f"{gpu.describe_capability()}, and bf16 needs {gpu.dotted(_AMPERE)}"
    return ""


def _recorded(values: Mapping[str, Any], where: str) -> Execution:
    names = ("device", "precision", "channels_last", "threads")
    for name, (expected, holds) in _RECORDED.items():
        if (name in values or name in names) and not holds(values.get(name)):
            raise RunError(
                f"{where}: not a record of an execution: {name}: expected {expected}, found {values.get(name)!r:.80}; "
                f"{RECORD_CURE}"
            )
    return Execution(
        **{name: values[name] for name in names},
        compiled=values.get("compiled", False),
        workers=values.get("workers", cores.default_workers()),
        micro_batch=values.get("micro_batch"),
        cuda_graphs=values.get("cuda_graphs", False),
    )


def devices() -> dict[str, bool]:
    """Return all devices, the fastest first, and whether this machine has each and torch can use it."""
    return {
        "cuda": gpu.finds_cuda() and not gpu.cuda_problem(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }


def _usable() -> str:
    return ", ".join(name for name, usable in devices().items() if usable)


def _problem(device: str) -> str:
    """Return why this machine cannot use a device, as the end of a sentence; empty if it can."""
    if devices()[device]:
        return ""
    reason = gpu.cuda_problem() if device == "cuda" else ""
    return reason or f"'{device}' is not on this machine, which has {_usable()}"


def choose_device(name: str) -> str:
    """Return the device for `train.device`: the named one, or for auto the best.

    Raises:
        ConfigError: this machine lacks the device, or torch cannot use it.
    """
    if name == "auto":
        return best_device()
    if problem := _problem(name):
        raise ConfigError(f"train.device: {problem}; auto takes {best_device()}")
    return name


def best_device() -> str:
    """Return the device that `auto` takes: CUDA, then Apple's MPS, then the CPU."""
    return next(name for name, usable in devices().items() if usable)


def notes_on(name: str) -> list[str]:
    """Return a note if `train.device: auto` passes over a GPU of this machine, or takes one that is untried."""
    if name != "auto" or (chosen := best_device()) == "cuda":
        return []
    if problem := gpu.cuda_problem():
        return [f"train.device: auto takes {chosen}: {problem}"]
    if chosen == "mps":
        return ["train.device: auto takes mps, checked on a pretend device only; if it fails: train.device=cpu"]
    return []


def local_gpu(rank: int) -> int:
    """Return the GPU of a process of torchrun that computes on CUDA: each has its own.

    Args:
        rank: LOCAL_RANK, its number among the processes on this machine.

    Raises:
        ConfigError: there are more processes than GPUs, or torch cannot use the GPU.
    """
    count = torch.cuda.device_count()
    if rank >= count:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        hidden = f" (CUDA_VISIBLE_DEVICES={visible})" if visible is not None else ""
        way_out = f"use --nproc-per-node {count}, or" if count else "use"
        raise ConfigError(
            f"torchrun: every process needs a GPU of its own: expected LOCAL_RANK below {count}, the number of GPUs"
            f"{hidden}, found {rank}; {way_out} train.device=cpu"
        )
    if problem := gpu.cuda_problem(rank):
        raise ConfigError(f"torchrun: GPU {rank} cannot be used: {problem}")
    return rank


def check_precision(precision: str, device: str) -> None:
    """Check that half precision is used only where it is faster.

    Raises:
        ConfigError: fp16, with its small range, on a device other than CUDA; bf16 on a GPU that lacks it.
    """
    if precision == "fp16" and device != "cuda":
        way_out = "fp32" if device == "mps" else "bf16"
        raise ConfigError(
            f"train.precision: fp16 needs a CUDA device, and training runs on {device}; use {way_out} or auto"
        )
    if precision == "bf16" and (lack := _lack_of_bf16(device)):
        raise ConfigError(f"train.precision: {lack}; use {'fp16' if device == 'cuda' else 'fp32'} or auto")


@contextlib.contextmanager
def kernel_choice(*, deterministic: bool) -> Iterator[None]:
    """Let torch use only deterministic algorithms, or else let cuDNN time its kernels; restores torch's settings.

    A training's steps have one or a few sizes: cuDNN times its kernels at the first step of each and keeps the fastest.
    Predictions after it are made outside: their kernels, and so their last digits, should not depend on timings.

    Raises:
        ConfigError: an operation has no deterministic algorithm.
    """
    benchmark, enabled = torch.backends.cudnn.benchmark, torch.are_deterministic_algorithms_enabled()
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.backends.cudnn.benchmark = not deterministic
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS may sum in another order
        torch.use_deterministic_algorithms(True)
    try:
        yield
    except RuntimeError as error:
        if not deterministic or "use_deterministic_algorithms" not in str(error):
            raise
        reason = str(error).partition(",")[0]
        raise ConfigError(f"train.deterministic: {reason}; use false, or another network") from error
    finally:
        if deterministic:  # else nothing was changed, and the call loads torch's compiler, which takes seconds
            torch.use_deterministic_algorithms(enabled, warn_only=warns)
        torch.backends.cudnn.benchmark = benchmark


def precisions_worth_trying(device: str) -> list[Precision]:
    """Return precisions to time, the default first."""
    if device == "mps":
        return ["fp32"]
    return ["fp32", "fp16" if _lack_of_bf16(device) else "bf16"]


def missing_compiler(device: str) -> str:
    """Return why this machine cannot compile, as the end of a sentence; empty if it can."""
    if device == "mps":
        return "torch.compile is untested on MPS"
    compiler = os.environ.get("CXX")
    if not any(shutil.which(name) for name in ([compiler] if compiler else ["g++", "clang++"])):
        return f"no C++ compiler was found ({f'CXX={compiler}' if compiler else 'g++, clang++, or one named by CXX'})"
    if device == "cuda" and importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if device == "cuda" and gpu.capability() < _VOLTA:
        return f"{gpu.describe_capability()}, and Triton needs {gpu.dotted(_VOLTA)}"
    return ""


def _keep_freed_memory() -> None:
    """Let glibc keep freed memory, up to 2 GiB, instead of returning each large tensor to the system.

    A training step frees and allocates the same hundreds of megabytes over and over; each time the kernel clears every
    page. Without that a step of `fastnet` M takes 8 % less time on a Zen 4 and its process 2 % more memory. Under a
    limit of addresses what is kept would be missing elsewhere, for oneDNN maps its code: there each tensor is mapped by
    itself, and returned when it is freed.
    """
    if sys.platform != "linux":
        return
    with contextlib.suppress(AttributeError, OSError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        if memory.address_limit() is not None:
            mallopt(_MMAP_THRESHOLD, _MAPPED_BYTES)
            return
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)
