"""Worker processes of one command, each with its share of the cores and one of the GPUs; they stop together."""

import contextlib
import multiprocessing
import os
import pickle
import signal
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any

from comp.runtime import memory, signals
from comp.runtime.errors import Interrupted, UserError

POLL_SECONDS = 0.5  # between two looks at the workers


@dataclass(frozen=True)
class Worker:
    """A process that runs one function.

    Attributes:
        process: as started.
        errors: brings the message of the user's error that ended it.
    """

    process: SpawnProcess
    errors: Connection

    @property
    def exit_code(self) -> int | None:
        """0: done, 2: the user's error, negative: a fatal signal; None while it works."""
        return self.process.exitcode

    def error(self) -> str:
        """Return why it ended before its work was done."""
        with contextlib.suppress(EOFError):
            if self.errors.poll():
                return str(self.errors.recv())
        if self.exit_code == -int(getattr(signal, "SIGKILL", 9)):
            return "its process was killed (SIGKILL), often for want of main memory; use fewer --workers"
        return f"its process ended with exit code {self.exit_code}; see the lines above, or use --workers 1"


def start(index: int, workers: int, function: Callable[..., None], *arguments: Any) -> Worker:
    """Start a process.

    Args:
        index: which of the workers it is, from 0.
        workers: how many work at a time.
        function: of a module; ends by `Interrupted` after a signal, as `progress` raises it.
        arguments: of it.
    """
    spawn = multiprocessing.get_context("spawn")  # threads and CUDA do not survive a fork
    receiver, sender = spawn.Pipe(duplex=False)
    work = pickle.dumps((function, arguments))
    process = spawn.Process(target=_main, args=(index, workers, work, sender), name=f"comp-worker-{index}")
    process.start()
    sender.close()
    return Worker(process, receiver)


def stop(workers: Iterable[Worker]) -> None:
    """Ask workers to stop at their next safe point, and wait for them."""
    workers = list(workers)
    for worker in workers:
        if worker.process.is_alive():
            worker.process.terminate()
    for worker in workers:
        worker.process.join()


def _main(index: int, workers: int, work: bytes, sender: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent decides, by SIGTERM
    _take_share(index, workers)
    try:
        with signals.catch_stop_signals():
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            function, arguments = pickle.loads(work)  # its module loads torch, which must follow `_take_share`
            function(*arguments)
    except Interrupted as interrupted:
        sys.exit(interrupted.exit_code)
    except UserError as error:
        sender.send(str(error))
        sys.exit(error.exit_code)
    except Exception as error:
        if not memory.is_out_of_memory(error):
            raise
        sender.send(f"out of memory ({memory.reason_of(error)}); use fewer --workers, or {memory.ADVICE}")
        sys.exit(UserError.exit_code)


def progress(what: str, done: int, total: int, unit: str = "images", note: str = "") -> None:
    """In a worker, stop at the next safe point after a signal, or when the parent process is dead."""
    signals.raise_if_interrupted()
    parent = multiprocessing.parent_process()
    if parent is not None and not parent.is_alive():
        raise Interrupted(signal.SIGTERM)


def _take_share(index: int, workers: int) -> None:
    if hasattr(os, "sched_setaffinity"):
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, share_of(sorted(os.sched_getaffinity(0)), index, workers))
    import torch

    devices = torch.cuda.device_count()
    if devices > 1 and "CUDA_VISIBLE_DEVICES" not in os.environ:
        os.environ["CUDA_VISIBLE_DEVICES"] = str(index % devices)


def share_of(cores: list[int], index: int, workers: int) -> set[int]:
    """Return a worker's cores: an equal share, or one shared core if there are more workers than cores."""
    if workers >= len(cores):
        return {cores[index % len(cores)]}
    return set(cores[index * len(cores) // workers : (index + 1) * len(cores) // workers])
