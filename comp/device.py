"""Which device, precision and memory layout: chosen by timing a few steps, recorded, and reused."""

import contextlib
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import nn

from comp.config import TrainConfig
from comp.errors import ConfigError, RunError
from comp.progress import Progress, quiet

Precision = Literal["fp32", "bf16"]

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# A choice must be this much faster than the plainest one: timings of a few steps scatter by about as much.
_WORTHWHILE = 1.05
_TIMED_STEPS = 3


@dataclass(frozen=True)
class Execution:
    """How a run computes. Recorded in execution.json; the same record on the same machine gives the same bits on CPU.

    Attributes:
        device: `cpu`, `cuda` or `mps`.
        precision: of matrix products; weights stay float32.
        channels_last: memory layout of images and kernels.
        threads: CPU threads.
    """

    device: str
    precision: Precision
    channels_last: bool
    threads: int

    @property
    def torch_device(self) -> torch.device:
        """The device as torch has it."""
        return torch.device(self.device)

    def place(self, model: nn.Module) -> nn.Module:
        """Move a model to the device and layout, in place, and set the thread count."""
        torch.set_num_threads(self.threads)
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        return model.to(self.torch_device, memory_format=layout)  # type: ignore[call-overload, no-any-return]

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Return the context in which forward passes run."""
        if self.precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self.device, dtype=_DTYPES[self.precision])

    def layout(self, images: torch.Tensor) -> torch.Tensor:
        """Return images [B, C, H, W] in the chosen memory layout."""
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        return images.contiguous(memory_format=layout)

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


def from_json(values: Mapping[str, Any], where: str) -> Execution:
    """Return a recorded execution.

    Raises:
        RunError: altered, or its device is not on this machine.
    """
    names = ("device", "precision", "channels_last", "threads")
    if any(name not in values for name in names) or values["precision"] not in _DTYPES:
        raise RunError(f"{where}: not a record of an execution; expected {', '.join(names)}")
    choose_device(values["device"])
    return Execution(**{name: values[name] for name in names})


def choose_device(wanted: str) -> str:
    """Return the device for `train.device`: auto takes CUDA, then Apple's MPS, then the CPU.

    Raises:
        ConfigError: the device is not on this machine.
    """
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if wanted == "auto":
        return next(name for name in present if present[name])
    if not present[wanted]:
        here = ", ".join(name for name in present if present[name])
        raise ConfigError(f"train.device: '{wanted}' is not on this machine, which has {here}; use auto")
    return wanted


def default_threads() -> int:
    """Return as many threads as the process may use cores."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def choose(
    config: TrainConfig, attempt: Callable[[Execution], Callable[[], None]], progress: Progress = quiet
) -> tuple[Execution, dict[str, float]]:
    """Return how to train: what the config fixes, and for the rest what a few timed steps say.

    Args:
        config: device, precision, channels_last and threads.
        attempt: given a candidate, returns a function that takes one training step on a scratch copy and waits for it.
        progress: called after each candidate.

    Returns:
        The choice and each candidate's seconds a step (empty where nothing was left to choose).
    """
    device = choose_device(config.device)
    threads = config.threads or default_threads()
    tried: list[Precision] = ["fp32"] if device == "mps" else ["fp32", "bf16"]  # bf16 on MPS: untested, only on demand
    precisions = tried if config.precision == "auto" else [config.precision]
    layouts = [False, True] if config.channels_last == "auto" else [config.channels_last]
    candidates = [Execution(device, precision, layout, threads) for precision in precisions for layout in layouts]
    if len(candidates) == 1:
        return candidates[0], {}
    seconds: dict[Execution, float] = {}
    for candidate in candidates:
        seconds[candidate] = _seconds_a_step(attempt(candidate))
        progress("timing precision and layout", len(seconds), len(candidates), "candidates")
    plainest, fastest = candidates[0], min(candidates, key=lambda candidate: seconds[candidate])
    chosen = fastest if seconds[fastest] * _WORTHWHILE < seconds[plainest] else plainest
    return chosen, {_label(candidate): round(value, 5) for candidate, value in seconds.items()}


def _label(candidate: Execution) -> str:
    return f"{candidate.precision} {'channels_last' if candidate.channels_last else 'channels_first'}"


def _seconds_a_step(step: Callable[[], None]) -> float:
    step()  # the first one allocates and picks kernels
    seconds = []
    for _ in range(_TIMED_STEPS):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    return min(seconds)
