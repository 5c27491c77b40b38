"""What torch answers about CUDA and MPS while `pretend_device` stands for one of them.

The answers are those of a small GPU with 16 GB of memory, of which 12 are free, and of compute capability 8.0. They let
code that asks go on; none of them measures anything.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

CAPABILITY = (8, 0)
FREE_BYTES, TOTAL_BYTES = 12 << 30, 16 << 30

# Autocast on CUDA: operations that take the lower precision, and those that take float32. torch has more of both; these
# are what networks for images use.
_LOWER = ("conv2d", "linear", "matmul", "mm", "bmm", "addmm", "baddbmm", "scaled_dot_product_attention")
_FLOAT32 = (
    "softmax.int",
    "log_softmax.int",
    "layer_norm",
    "group_norm",
    "cross_entropy_loss",
    "nll_loss",
    "exp",
    "log",
)


class Backend:
    """The module `torch.pretend`."""

    def is_initialized(self) -> bool:
        """It needs no start."""
        return True

    def is_available(self) -> bool:
        """It is here."""
        return True

    def current_device(self) -> int:
        """Its only index."""
        return 0

    def device_count(self) -> int:
        """One."""
        return 1

    def manual_seed_all(self, seed: int) -> None:
        """It draws from the CPU's generator, which is seeded beside it."""

    def get_rng_state(self, device: Any = None) -> Tensor:
        """Likewise: it has no state of its own."""
        return torch.zeros(16, dtype=torch.uint8)

    def set_rng_state(self, state: Tensor, device: Any = None) -> None:
        """Likewise."""

    def _is_in_bad_fork(self) -> bool:
        return False

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        """As on CUDA."""
        return [torch.float16, torch.bfloat16, torch.float32]


def register_autocast(backend: str) -> None:
    """Give the backend autocast: torch has its lists for its own devices only."""
    everything = torch.library.Library("_", "IMPL")
    everything.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    aten = torch.library.Library("aten", "IMPL")
    for name in _LOWER:
        aten.impl(name, _casting(name, lambda: torch.get_autocast_dtype(backend)), "AutocastPrivateUse1")
    for name in _FLOAT32:
        aten.impl(name, _casting(name, lambda: torch.float32), "AutocastPrivateUse1")
    _KEPT.extend((everything, aten))


_KEPT: list[Any] = []  # a Library's kernels go when it does


def _casting(name: str, dtype: Callable[[], torch.dtype]) -> Callable[..., Any]:
    """Return an operation that casts its floating-point tensors first."""
    packet, _, overload = name.partition(".")
    operation = getattr(getattr(torch.ops.aten, packet), overload or "default")
    key = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)

    def cast(value: Any) -> Any:
        if isinstance(value, Tensor) and value.is_floating_point() and value.dtype != torch.float64:
            return value.to(dtype())
        return value

    def run(*args: Any, **kwargs: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(key):
            return operation(*map(cast, args), **{name: cast(value) for name, value in kwargs.items()})

    return run


def answer_as(name: str, *, wait: Callable[[], None]) -> None:
    """Let torch answer for `cuda` or `mps`.

    Args:
        name: of the device.
        wait: called where the host waits for the device.
    """
    autocast = torch.amp.autocast_mode.autocast
    begin = autocast.__init__

    def init(self: Any, device_type: str, *args: Any, **kwargs: Any) -> None:
        begin(self, "pretend" if device_type == name else device_type, *args, **kwargs)

    autocast.__init__ = init  # type: ignore[method-assign]
    {"cuda": _answer_as_cuda, "mps": _answer_as_mps}[name](wait)


def _answer_as_cuda(wait: Callable[[], None]) -> None:
    properties = SimpleNamespace(
        name="pretend", major=CAPABILITY[0], minor=CAPABILITY[1], total_memory=TOTAL_BYTES, multi_processor_count=1
    )
    answers: dict[str, Any] = {
        "is_available": True,
        "is_initialized": True,
        "is_bf16_supported": True,
        "device_count": 1,
        "current_device": 0,
        "get_device_name": "pretend",
        "get_device_capability": CAPABILITY,
        "get_device_properties": properties,
        "get_arch_list": ["sm_75", "sm_80", "sm_90"],
        "mem_get_info": (FREE_BYTES, TOTAL_BYTES),
        "memory_allocated": 0,
        "memory_reserved": 0,
        "max_memory_allocated": 0,
        "max_memory_reserved": 0,
        "reset_peak_memory_stats": None,
        "empty_cache": None,
        "init": None,
        "_lazy_init": None,
        "set_device": None,
        "manual_seed": None,  # it draws from the CPU's generator
        "manual_seed_all": None,
        "get_rng_state": torch.zeros(16, dtype=torch.uint8),
        "set_rng_state": None,
    }
    for name, value in answers.items():
        setattr(torch.cuda, name, _constantly(value))
    torch.cuda.synchronize = lambda device=None: wait()
    torch.cuda.Event = _event_class(wait)  # type: ignore[misc]
    torch.cuda.Stream = _Stream  # type: ignore[misc]
    torch.cuda.current_stream = lambda device=None: _Stream()  # type: ignore[assignment, return-value]
    torch.cuda.stream = _nothing  # type: ignore[assignment]
    _mark_pinned()


def _answer_as_mps(wait: Callable[[], None]) -> None:
    about = {"is_available": True, "is_built": True, "get_name": "pretend", "get_core_count": 1}
    for name, value in about.items():
        setattr(torch.backends.mps, name, functools.lru_cache(_constantly(value)))  # torch unwraps their caches
    answers: dict[str, Any] = {
        "manual_seed": None,
        "seed": 0,
        "get_rng_state": torch.zeros(16, dtype=torch.uint8),
        "set_rng_state": None,
        "empty_cache": None,
        "device_count": 1,
        "current_allocated_memory": 0,
        "driver_allocated_memory": 0,
        "recommended_max_memory": FREE_BYTES,
    }
    for name, value in answers.items():
        setattr(torch.mps, name, _constantly(value))
    torch.mps.synchronize = wait


def _constantly(value: Any) -> Callable[..., Any]:
    return lambda *args, **kwargs: value


@contextlib.contextmanager
def _nothing(*args: Any) -> Iterator[None]:
    yield


class _Stream:
    """The device's one stream: everything on it has already run."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def wait_stream(self, stream: Any) -> None:
        """There is no other."""

    def wait_event(self, event: Any) -> None:
        """It has passed."""


def _event_class(wait: Callable[[], None]) -> type:
    class Event:
        """A mark on the stream, passed as soon as it is made."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            pass

        def record(self, stream: Any = None) -> None:
            """Mark the stream."""

        def query(self) -> bool:
            """It has passed."""
            return True

        def synchronize(self) -> None:
            """Wait until it has passed."""
            wait()

        def elapsed_time(self, end: Any) -> float:
            """Milliseconds up to another mark."""
            return 0.0

    return Event


def _mark_pinned() -> None:
    """Let tensors of the host say that they are pinned, which needs a driver."""

    def pin(self: Tensor, device: Any = None) -> Tensor:
        copy = self.clone()
        copy.pinned = True  # type: ignore[attr-defined]
        return copy

    Tensor.pin_memory = pin  # type: ignore[assignment, method-assign]
    Tensor.is_pinned = lambda self, device=None: getattr(self, "pinned", False)  # type: ignore[method-assign]
