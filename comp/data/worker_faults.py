"""Loader workers that die, hang or cannot start: noticed where it is safe to stop, and reported in one message."""

import contextlib
import errno
import os
import shutil
import signal
import threading
from collections.abc import Iterator, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType

import torch
from torch import Tensor

from comp.runtime import memory
from comp.runtime.errors import UserError, WorkersError

STALLED_SECONDS = 1800.0  # of waiting for one batch, after which workers count as hanging: a slow disk takes minutes
_END_SECONDS = 1.0  # a killed process ends at once, unless a drive holds it
_SHARED_MEMORY = Path("/dev/shm")
_NONE = "data.workers=0 reads images in the main process"
_NO_MORE_PROCESSES = (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE)


@contextlib.contextmanager
def raising_deaths(workers: Sequence[BaseProcess]) -> Iterator[None]:
    """Context manager of waiting for workers: the death of one raises, at once or if it died before.

    Torch's own handler of SIGCHLD raises wherever the main process is; amid an optimizer's step that would leave
    weights which no checkpoint may hold. So it is set aside, and deaths count only here.

    Raises:
        WorkersError: a worker is dead.
    """

    def check() -> None:
        for worker in workers:
            if worker.exitcode is not None:
                raise _died(worker.exitcode)

    def on_child(signum: int, frame: FrameType | None) -> None:
        check()
        if callable(before):
            before(signum, frame)

    check()
    if not hasattr(signal, "SIGCHLD") or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGCHLD, on_child)
    try:
        check()
        yield
    finally:
        signal.signal(signal.SIGCHLD, before if before is not None else signal.SIG_DFL)


def end(workers: Sequence[BaseProcess]) -> None:
    """End workers that may hang: a stopped one ignores SIGTERM, and the exit would wait for it."""
    for worker in workers:
        worker.kill()
    for worker in workers:
        worker.join(_END_SECONDS)


def share(pixels: Tensor) -> "Tensor | WorkersError":
    """In a worker, move pixels into memory that the main process sees; return what is wrong if there is too little.

    Torch would do it in a thread whose errors are printed and lost, and the main process would wait for ever.
    """
    if torch.utils.data.get_worker_info() is None:
        return pixels
    try:
        pixels.share_memory_()  # type: ignore[no-untyped-call]
        return pixels
    except (RuntimeError, OSError) as error:
        return _no_shared_memory(memory.reason_of(error))


def explain(error: Exception, workers: Sequence[BaseProcess], *, starting: bool) -> WorkersError | None:
    """Return the user's message for an error of a pass over images; None: it is not about workers.

    Args:
        error: as torch raised it.
        workers: of the pass, dead or alive.
        starting: whether it was raised while they were started.
    """
    reason = memory.reason_of(error)
    if starting and (getattr(error, "errno", None) in _NO_MORE_PROCESSES or memory.is_out_of_memory(error)):
        return WorkersError(f"loader workers cannot be started ({reason}); use fewer (data.workers=2), or {_NONE}")
    if starting and getattr(error, "errno", None) == errno.ENOSPC:  # not even the queues' locks fit
        return _no_shared_memory(reason)
    if isinstance(error, UserError) or not workers:
        return error if isinstance(error, WorkersError) else None
    for worker in workers:
        if worker.exitcode is not None:
            return _died(worker.exitcode)
    if "DataLoader timed out" in reason:
        return WorkersError(
            f"no loader worker has answered for {STALLED_SECONDS:.0f} seconds: a drive hangs, or a library does not "
            f"work in a forked process; {_NONE}"
        )
    if "in DataLoader worker process" in reason and memory.is_out_of_memory(error):
        return WorkersError(f"a loader worker ran out of memory; use fewer (data.workers=2), or {_NONE}")
    if "Too many open files" in str(error):
        return WorkersError(f"too many open files for the loader workers; raise the limit (ulimit -n 4096), or {_NONE}")
    return None


def _died(exit_code: int) -> WorkersError:
    """Return the message for a worker's exit code, negative after a fatal signal."""
    name = signal.Signals(-exit_code).name if -exit_code in set(signal.Signals) else f"exit code {exit_code}"
    if name == "SIGBUS":
        return _no_shared_memory("SIGBUS")
    if name == "SIGKILL":
        return WorkersError(
            "a loader worker was killed (SIGKILL), often for want of main memory; use fewer (data.workers=2), or "
            f"{_NONE}"
        )
    return WorkersError(
        f"a loader worker ended unexpectedly ({name}), often in a library that decodes or transforms images; {_NONE}, "
        "and shows where it fails"
    )


def _no_shared_memory(reason: str) -> WorkersError:
    size = ""
    with contextlib.suppress(OSError):
        size = f", of {shutil.disk_usage(_SHARED_MEMORY).total / 1e6:,.0f} MB" if os.name == "posix" else ""
    return WorkersError(
        f"loader workers ran out of shared memory ({_SHARED_MEMORY}{size}; {reason}); make it larger (docker run "
        f"--shm-size=8g), lower train.batch_size and predict.batch_size, or {_NONE}"
    )
