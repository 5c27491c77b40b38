"""Memory: what is free, and work that goes on with fewer images at a time where memory runs out.

Loads no torch by itself: the command line recognises what ran out without it.
"""

import contextlib
import ctypes
import errno
import gc
import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from comp.runtime.errors import OutOfMemoryError, plural
from comp.runtime.progress import OUT_OF_MEMORY

if TYPE_CHECKING:
    import torch

_Result = TypeVar("_Result")

# What allocators and libraries say when they raise a plain RuntimeError, in lower case.
_MESSAGES = (
    "out of memory",  # CUDA, NCCL, MPS
    "can't allocate memory",  # CPU on Linux and macOS
    "cannot allocate memory",  # memory shared with workers
    "not enough memory",  # CPU on Windows
    "can't start new thread",  # its stack does not fit
    "alloc_failed",  # CUDNN_STATUS_, CUBLAS_STATUS_, CUFFT_ and the like
    "cudaerrormemoryallocation",
    "unable to find an engine",  # cuDNN: no algorithm's workspace fits
    "unable to find a valid cudnn algorithm",
    "invalid buffer size",  # MPS: more than one buffer can hold
)
# The whole text of oneDNN's, on the CPU; what it cannot compute at all has longer ones.
_WHOLE_MESSAGES = {"could not create a primitive", "could not create a memory object", "could not execute a primitive"}
ADVICE = "use a smaller model, smaller images (model.input_size, data.image_size) or a device with more memory"
_UNKNOWN_FREE = 16 << 30  # where the system does not tell
_CGROUP, _CGROUP_1 = Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that an allocation failed."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    text = str(error).strip().lower()
    if isinstance(error, ImportError):  # a library that does not fit the address space
        return "failed to map segment" in text
    if not isinstance(error, RuntimeError):
        return False
    if type(error).__name__ == "OutOfMemoryError" or text in _WHOLE_MESSAGES:
        return True
    return any(message in text for message in _MESSAGES)


def reason_of(error: BaseException) -> str:
    """Return the first line of an error, and the limit of this process if it has one."""
    reason = str(error).partition("\n")[0] or type(error).__name__
    limit = address_limit()
    return reason if limit is None else f"{reason}; ulimit -v allows {limit / 1e9:.1f} GB"


def release_cached() -> None:
    """Free what failed work left behind, and return what torch and the C library keep of it.

    The next attempt may need blocks of other sizes, and oneDNN maps its compiled code outside of what is kept.
    """
    gc.collect(1)  # young objects only: a whole collection walks all of torch
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    if torch is not None and torch.backends.mps.is_available():
        torch.mps.empty_cache()
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError, OSError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)


@contextlib.contextmanager
def one_message(work: str, advice: str = ADVICE) -> Iterator[None]:
    """Turn an allocation that fails within into one error that names the work.

    Raises:
        OutOfMemoryError: an allocation failed.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, OutOfMemoryError) or not is_out_of_memory(error):
            raise
        reason = reason_of(error)
        release_cached()
        raise OutOfMemoryError(f"out of memory for {work} ({reason}); {advice}") from None


class MicroBatch:
    """How many images at a time fit the memory: half as many whenever it runs out.

    Attributes:
        images: at a time, at most.
    """

    def __init__(self, images: int, *, smallest: int = 1, advice: str = ADVICE) -> None:
        """Begin with a size.

        Args:
            images: at a time, until memory runs out.
            smallest: where halving ends.
            advice: what the user can do then; ends the message.
        """
        self.images = images
        self._first, self._smallest, self._advice = images, smallest, advice

    @property
    def has_shrunk(self) -> bool:
        """Whether memory ran out."""
        return self.images < self._first

    @property
    def note(self) -> str:
        """For the user, where memory ran out; else empty."""
        return f"{OUT_OF_MEMORY}: {plural(self.images, 'image')} at a time" if self.has_shrunk else ""

    def fit(self, count: int, work: Callable[[int], _Result]) -> _Result:
        """Return `work(size)` of `count` images, at most `size` at a time, repeated with half of it until it fits.

        Raises:
            OutOfMemoryError: not even the smallest size fits; the next call tries what this one began with.
        """
        began = self.images
        while True:
            size = min(self.images, count)
            try:
                return work(size)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                reason = reason_of(error)
            # Out here the failed attempt's tensors, which the error's traceback held, are gone.
            self._halve(size, reason, began)

    def attempts(self, count: int) -> Iterator["Attempt"]:
        """Yield attempts at consecutive parts of `count` images; a part that did not fit is tried again in halves.

        The work is done inside `with attempt as part`, a slice.

        Raises:
            OutOfMemoryError: not even the smallest part fits.
        """
        began, start = self.images, 0
        while start < count:
            size = min(self.images, count - start)
            attempt = Attempt(slice(start, start + size))
            yield attempt
            if attempt.failure:
                self._halve(size, attempt.failure, began)
            else:
                start += size

    def _halve(self, size: int, reason: str, began: int) -> None:
        release_cached()
        if size <= self._smallest:
            self.images = began
            raise OutOfMemoryError(f"out of memory with {plural(size, 'image')} at a time ({reason}); {self._advice}")
        self.images = max(self._smallest, size // 2)

    def parts(self, count: int, work: Callable[[slice], _Result]) -> Iterator[_Result]:
        """Yield `work` of consecutive parts of `count` images; only a part that did not fit is repeated.

        Raises:
            OutOfMemoryError: not even the smallest part fits.
        """
        start = 0
        while start < count:
            start, result = self.fit(count - start, partial(_work_on_part, work, start))
            yield result


class Attempt:
    """A context manager for work on a part of a batch: it ends quietly where memory runs out.

    Attributes:
        failure: what ran out; empty: nothing did.
    """

    def __init__(self, part: slice) -> None:
        self._part, self.failure = part, ""

    def __enter__(self) -> slice:
        return self._part

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> bool:
        if not isinstance(error, Exception) or not is_out_of_memory(error):
            return False
        self.failure = reason_of(error)
        return True


def _work_on_part(work: Callable[[slice], _Result], start: int, size: int) -> tuple[int, _Result]:
    return start + size, work(slice(start, start + size))


def free_bytes(device: "torch.device") -> int:
    """Return the bytes that are free on a device; on MPS and the CPU, the host's."""
    if device.type != "cuda":
        return free_host_bytes()
    import torch

    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # kept by torch for later
    return int(torch.cuda.mem_get_info(device)[0]) + unused


def free_host_bytes() -> int:
    """Return the bytes available without swapping, within the limits of this process and of its container.

    Linux reports them; elsewhere the result is a generous guess.
    """
    free = []
    for report in (_read_available, _read_cgroup_free, _read_cgroup_1_free, _read_process_free):
        with contextlib.suppress(OSError, KeyError, ValueError):
            free.append(report())
    return max(0, min(free, default=_UNKNOWN_FREE))


def _read_available() -> int:
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return int(lines["MemAvailable"].split()[0]) << 10


def _read_cgroup_free() -> int:
    limit, used = (int((_CGROUP / name).read_text()) for name in ("memory.max", "memory.current"))
    return limit - used + _read_reclaimable(_CGROUP, "inactive_file")


def _read_cgroup_1_free() -> int:
    limit, used = (int((_CGROUP_1 / f"memory.{name}_in_bytes").read_text()) for name in ("limit", "usage"))
    return limit - used + _read_reclaimable(_CGROUP_1, "total_inactive_file")


def _read_reclaimable(folder: Path, name: str) -> int:
    """Return the bytes of cached files, which count as used and are given up first."""
    return int(dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())[name])


def _read_process_free() -> int:
    limit = address_limit()
    if limit is None:
        raise ValueError("no limit")
    return limit - int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")


def address_limit() -> int | None:
    """Return the bytes of addresses that this process may map, as `ulimit -v` sets it; None: no limit."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return None if limit == resource.RLIM_INFINITY else limit
