"""A device that exists only here: its tensors hold real values on the CPU, and say that they lie elsewhere.

It is torch's `privateuse1` backend, and cannot be removed from a process again: start it in a process of its own. It

- refuses an operation on tensors of two devices, as a GPU does;
- counts, by operation and line of `comp`: `waits` (the host stops until the device is done), `copies` (from the host to
  the device) and `launches` (operations that run on the device; one kernel each, by and large);
- computes with torch's CPU kernels, so results can be compared bit for bit with those of a plain CPU;
- under `float64=False` refuses every tensor of doubles, as Apple's MPS does;
- answers to the name `cuda` or `mps`, so that code behind `device.type == "cuda"` runs too; what torch itself answers
  about such a device then comes from `pretend_backends`.

    device = pretend_device.start("cuda")
    with pretend_device.counted() as counts:
        images = augment(images.to(device), policy, keys)
    assert not counts.waits
"""

import contextlib
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

BACKEND = "pretend"  # torch's name of the backend, whatever name it answers to

# Operations whose result, or the size of it, the host must read before it can go on.
_READ_BACK = {
    "_local_scalar_dense", "nonzero", "bincount", "masked_select", "equal", "histc", "is_nonzero", "_unique2",
    "_unique", "unique_dim", "unique_consecutive", "_linalg_check_errors",
}  # fmt: skip
_MOVES = {"_to_copy", "copy_", "_foreach_copy_"}  # the operations that may touch two devices
_NO_KERNEL = (
    "empty", "new_empty", "detach", "alias", "lift", "_local_scalar_dense", "set_", "resize_", "_reshape_alias",
    "is_", "_has_", "sym_", "stride", "size",
)  # fmt: skip
# Operations beside the pointwise ones that take a number as a tensor of the host.
_TAKE_HOST_NUMBERS = {"fill_", "fill", "index_put_", "index_put", "_index_put_impl_", "masked_fill_", "masked_fill"}


class Place(NamedTuple):
    """An operation, and the line of `comp` that asked for it; the line is empty in torch's own threads."""

    operation: str
    line: str


@dataclass(frozen=True)
class Counts:
    """What the device was asked to do."""

    waits: Counter[Place] = field(default_factory=Counter)
    copies: Counter[Place] = field(default_factory=Counter)
    launches: Counter[Place] = field(default_factory=Counter)

    def copy(self) -> "Counts":
        """Return what is counted so far."""
        return Counts(self.waits.copy(), self.copies.copy(), self.launches.copy())

    def __sub__(self, before: "Counts") -> "Counts":
        return Counts(self.waits - before.waits, self.copies - before.copies, self.launches - before.launches)

    def to_json(self) -> dict[str, Any]:
        """Return the totals, and the lines that wait or copy."""
        return {
            "waits": self.waits.total(),
            "copies": self.copies.total(),
            "launches": self.launches.total(),
            "waits_at": {f"{place.operation} at {place.line}": count for place, count in self.waits.items()},
            "copies_at": {f"{place.operation} at {place.line}": count for place, count in self.copies.items()},
        }


@dataclass
class _State:
    """This process's one device."""

    answers_to: torch.device = field(default_factory=lambda: torch.device("cpu"))
    float64: bool = True
    counts: Counts | None = None


_STATE = _State()


def start(name: str = BACKEND, *, float64: bool | None = None) -> torch.device:
    """Register the device for the rest of this process, and return it.

    Args:
        name: `pretend`, or the device it answers as: `cuda` or `mps`.
        float64: whether it knows doubles; None: unless it is `mps`.
    """
    from tests.support import pretend_backends

    _STATE.float64 = name != "mps" if float64 is None else float64
    _setup_privateuseone_for_python_backend(BACKEND, backend_module=pretend_backends.Backend())
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device=...) then is a copy from the host, as it is
    torch.__future__.set_swap_module_params_on_conversion(True)  # module.to keeps each Parameter, as on real devices
    pretend_backends.register_autocast(BACKEND)
    _STATE.answers_to = torch.device(name, 0)
    if name != BACKEND:
        pretend_backends.answer_as(name, wait=lambda: note_wait("synchronize"))
    _load_to_host_first()
    _Names().__enter__()
    _Operations().__enter__()
    return torch.device(name)


@contextlib.contextmanager
def counted() -> Iterator[Counts]:
    """Context manager: count in a new `Counts`; what is counted around it goes on afterwards."""
    before, _STATE.counts = _STATE.counts, Counts()
    try:
        yield _STATE.counts
    finally:
        _STATE.counts = before


@contextlib.contextmanager
def without_float64() -> Iterator[None]:
    """Context manager: refuse doubles."""
    before, _STATE.float64 = _STATE.float64, False
    try:
        yield
    finally:
        _STATE.float64 = before


def note_wait(operation: str) -> None:
    """Count a wait of the host."""
    if _STATE.counts is not None:
        _STATE.counts.waits[Place(operation, _line_of_comp())] += 1


class PretendTensor(Tensor):
    """A tensor of the device; `held` has its values."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> "PretendTensor":
        """Return a tensor of the same shape, strides and dtype that has no memory of its own.

        Raises:
            TypeError: doubles, and the device knows none.
        """
        if held.dtype in (torch.float64, torch.complex128) and not _STATE.float64:
            raise TypeError(
                f"the pretend device has no {held.dtype}, as MPS: use float32, or stay on the CPU (from "
                f"{_line_of_comp() or 'outside comp'})"
            )
        return Tensor._make_wrapper_subclass(  # type: ignore[attr-defined, no-any-return]
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=torch.device(BACKEND, 0),
        )

    def __init__(self, held: Tensor) -> None:
        self.held = held

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        """The device under the name that it answers to."""
        return _STATE.answers_to

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        """Whether it answers as CUDA."""
        return _STATE.answers_to.type == "cuda"

    @property
    def is_mps(self) -> bool:  # type: ignore[override]
        """Whether it answers as MPS."""
        return _STATE.answers_to.type == "mps"

    def tolist(self) -> Any:
        """Return the values, for which the host waits."""
        note_wait("tolist")
        return self.held.tolist()

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickle the values: torch.save reads them from the device, and a file names no device."""
        note_wait("save")
        return self.held.detach().__reduce_ex__(protocol)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Operations(TorchDispatchMode):
    """Sees operations without a tensor of the device, such as those that make one."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else every operation imports the compiler first, which takes longer than a training here

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Names(TorchFunctionMode):
    """Replaces the name that the device answers to by the backend's in arguments; marks pinned memory."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        pinned = kwargs.pop("pin_memory", False)
        name = _STATE.answers_to.type
        if name != BACKEND and func is not torch.device:
            args = tuple(_as_backend(value, name) for value in args)
            kwargs = {key: _as_backend(value, name) for key, value in kwargs.items()}
        result = func(*args, **kwargs)
        if pinned:
            result.pinned = True
        return result


def _as_backend(value: Any, name: str) -> Any:
    if isinstance(value, torch.device) and value.type == name:
        return torch.device(BACKEND, 0)
    return torch.device(BACKEND, 0) if isinstance(value, str) and value.partition(":")[0] == name else value


def _run(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Run an operation on the held values, and count it."""
    leaves, name = tree_leaves((args, kwargs)), func._schema.name.partition("::")[2]
    ours = [leaf for leaf in leaves if isinstance(leaf, PretendTensor)]
    if not ours and not any(isinstance(leaf, torch.device) and leaf.type == BACKEND for leaf in leaves):
        return func(*args, **kwargs)
    if torch.is_inference_mode_enabled():  # there, operations that are made of others arrive whole
        with _Operations():
            parts = func.decompose(*args, **kwargs)
        if parts is not NotImplemented:
            return parts
    host = [leaf for leaf in leaves if isinstance(leaf, Tensor) and not isinstance(leaf, PretendTensor)]
    if ours:
        _check_one_device(func, name, host)
    to_host = bool(ours) and _device_of(kwargs) == "cpu"
    result = func(*tree_map(_held, tuple(args)), **tree_map(_held, dict(kwargs)))
    _count(func, name, args, kwargs, host=host, to_host=to_host, result=result)
    if name == "copy_":
        return args[0]
    wrapped = {id(tensor.held): tensor for tensor in ours}  # operations in place return their argument
    if to_host:
        return result
    # As in torch, a view of a normal tensor is a normal tensor in inference mode, too.
    normal = func.is_view and not args[0].is_inference()
    with torch.inference_mode(False) if normal else contextlib.nullcontext():
        return tree_map(lambda value: _wrap(value, wrapped), result)


def _device_of(kwargs: Mapping[str, Any]) -> str:
    device = kwargs.get("device")
    return device.type if isinstance(device, torch.device) else ""


def _held(value: Any) -> Any:
    if isinstance(value, PretendTensor):
        return value.held
    return torch.device("cpu") if isinstance(value, torch.device) else value


def _wrap(value: Any, wrapped: Mapping[int, PretendTensor]) -> Any:
    if not isinstance(value, Tensor):
        return value
    return wrapped[id(value)] if id(value) in wrapped else PretendTensor(value)


def _check_one_device(func: Any, name: str, host: Sequence[Tensor]) -> None:
    """Check that tensors of the host are numbers, where a number may lie on the host.

    Raises:
        RuntimeError: tensors on two devices.
    """
    if name in _MOVES:
        return
    numbers = torch.Tag.pointwise in func.tags or name in _TAKE_HOST_NUMBERS or name.startswith("_foreach")
    strangers = [tensor for tensor in host if tensor.dim() or not numbers]
    if strangers:
        raise RuntimeError(
            f"{name}: expected all tensors on one device, but found at least two: {_STATE.answers_to} and cpu "
            f"(shape {list(strangers[0].shape)}, from {_line_of_comp() or 'outside comp'})"
        )


def _count(
    func: Any,
    name: str,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    *,
    host: Sequence[Tensor],
    to_host: bool,
    result: Any,
) -> None:
    counts = _STATE.counts
    if counts is None:
        return
    if name in _MOVES and (host or to_host):
        target = args[0] if name == "copy_" else None
        if to_host or (target is not None and not isinstance(target, PretendTensor)):
            non_blocking = kwargs.get("non_blocking", len(args) > 2 and args[2])
            if not (non_blocking and (to_host or getattr(target, "pinned", False))):
                counts.waits[Place(name, _line_of_comp())] += 1
        else:
            counts.copies[Place(name, _line_of_comp())] += len(host)
        return
    if name in _READ_BACK or _indexes_by_mask(name, args) or _repeats_unknown(func, kwargs):
        counts.waits[Place(name, _line_of_comp())] += 1
    empty = all(value.numel() == 0 for value in tree_leaves(result) if isinstance(value, Tensor)) and result is not None
    if not (func.is_view or name.startswith(_NO_KERNEL) or empty):
        counts.launches[Place(name, _line_of_comp())] += 1


def _indexes_by_mask(name: str, args: Sequence[Any]) -> bool:
    """Return whether an index is a mask, whose true elements the host must count first."""
    if name not in ("index", "index_put", "index_put_", "_index_put_impl_"):
        return False
    masks = [index for index in args[1] if isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8)]
    if name != "index" and args[2].numel() == 1 and not (len(args) > 3 and args[3]):
        return False  # torch turns it into masked_fill_
    return bool(masks)


def _repeats_unknown(func: Any, kwargs: Mapping[str, Any]) -> bool:
    """Return whether the host must add up repeats to know the result's size."""
    return func._schema.name == "aten::repeat_interleave" and kwargs.get("output_size") is None


def _line_of_comp() -> str:
    """Return the innermost line of `comp` on the stack, such as `training/loop.py:120`."""
    frame: Any = sys._getframe(1)
    while frame is not None and "/comp/" not in frame.f_code.co_filename:
        frame = frame.f_back
    return f"{frame.f_code.co_filename.rpartition('/comp/')[2]}:{frame.f_lineno}" if frame is not None else ""


def _load_to_host_first() -> None:
    """Let torch.load read to the host and copy to the device from there: the device has no storages of its own."""
    load: Callable[..., Any] = torch.load

    def load_and_copy(file: Any, map_location: Any = None, **options: Any) -> Any:
        device = torch.device(map_location) if isinstance(map_location, str | torch.device) else None
        if device is None or device.type != _STATE.answers_to.type:
            return load(file, map_location=map_location, **options)
        values = load(file, map_location="cpu", **options)
        return tree_map(lambda value: value.to(device) if isinstance(value, Tensor) else value, values)

    torch.load = load_and_copy
