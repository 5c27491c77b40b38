"""Start the processes of one training on this machine, as torchrun does: `comp run --gpus 2`.

They are the same command again, each with its number in the environment (see `distributed.join_group`). The process
that starts them keeps the store by which they find each other, on a free port, so that several trainings can start at
once; it passes signals on, and returns their exit code. It has no GPU and prints nothing itself.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from types import FrameType

import torch
import torch.distributed as dist

from comp.runtime import cores, gpu, signals
from comp.runtime.errors import ConfigError, RunError

LAUNCHED = "COMP_LAUNCHED"
"""Environment variable of the processes that `start` has started."""

_POLL_SECONDS = 0.05
# Once a process has failed or the main one has ended, the others notice at their next message; at the latest after
# this they are asked to stop, and after as long again ended.
_GRACE_SECONDS = 30.0
_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT")  # the last two do not exist everywhere

Process = subprocess.Popen[bytes]


def check_gpus(gpus: int, device: str) -> None:
    """Check that every process gets a GPU of its own; with `cpu` they share the cores.

    Args:
        gpus: number of processes.
        device: `train.device`.

    Raises:
        ConfigError: fewer GPUs, or none that torch can use; on the CPU, more processes than cores.
    """
    if device == "cpu":
        most = max(2, cores.usable_cores())
        if gpus > most:
            raise ConfigError(f"--gpus {gpus}: expected at most {most} processes with train.device=cpu, one a core")
        return
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if gpus <= count:
        return
    present = f"{count} NVIDIA GPU{'s' * (count > 1)}" if count else "no NVIDIA GPU"
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    hidden = f" (CUDA_VISIBLE_DEVICES={visible})" if visible is not None else ""
    problem = "" if count else gpu.cuda_problem()
    raise ConfigError(
        f"--gpus {gpus}: this machine has {present} that torch can use{hidden}{f' ({problem})' * bool(problem)}; "
        f"{f'use --gpus {count}' if count > 1 else 'leave --gpus out'}, or share its cores: train.device=cpu"
    )


def start(arguments: Sequence[str], processes: int) -> int:
    """Run a command of the command line in several processes; return the exit code when all have ended.

    Args:
        arguments: after `comp`.
        processes: their number.

    Raises:
        RunError: all were killed, so that none could report it.
    """
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
    shared = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # so the main process joins that store, and opens none
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        LAUNCHED: "1",
    }
    # As this process was started: with -P the working directory's modules cannot hide installed ones.
    command = [sys.executable, *["-P"] * sys.flags.safe_path, "-m", "comp", *arguments]
    started: list[Process] = []
    with _passing_signals(started) as received:
        signals.raise_if_interrupted()
        try:
            for rank in range(processes):
                numbers = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                # In a session of its own: a terminal's Ctrl-C arrives once, passed on, and not as two signals. Its
                # standard input ends when this process does, even if that is killed.
                environment = {**os.environ, **shared, **numbers}
                started.append(
                    subprocess.Popen(command, env=environment, start_new_session=True, stdin=subprocess.PIPE)
                )
                for signum in received:
                    started[-1].send_signal(signum)
            _wait(started)
        finally:
            for process in started:
                if process.poll() is None:
                    process.kill()
                process.communicate()
    return _exit_code([process.returncode for process in started])


@contextlib.contextmanager
def _passing_signals(processes: list[Process]) -> Iterator[list[int]]:
    """Context manager: signals go to the processes; the first one stops a training, the second ends it at once.

    Yields the signals so far, for processes that start later.
    """
    received: list[int] = []

    def pass_on(signum: int, frame: FrameType | None) -> None:
        received.append(signum)
        for process in processes:
            process.send_signal(signum)

    signums = [getattr(signal, name) for name in _SIGNALS if hasattr(signal, name)]
    # What is ignored stays so, such as SIGHUP under nohup.
    before = {signum: signal.getsignal(signum) for signum in signums if signal.getsignal(signum) != signal.SIG_IGN}
    for signum in before:
        signal.signal(signum, pass_on)
    try:
        yield received
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _wait(processes: list[Process]) -> None:
    """Wait until all have ended; those that do not notice that another one has failed are stopped."""
    deadline, requests = float("inf"), iter((Process.terminate, Process.kill))
    while True:
        codes = [process.poll() for process in processes]
        if None not in codes:
            return
        if deadline == float("inf") and (codes[0] is not None or any(codes)):
            deadline = time.monotonic() + _GRACE_SECONDS
        if time.monotonic() >= deadline:
            request = next(requests, Process.kill)
            for process in processes:
                request(process)
            deadline = time.monotonic() + _GRACE_SECONDS
        time.sleep(_POLL_SECONDS)


def _exit_code(codes: Sequence[int]) -> int:
    """Return 0 if the main process is done, else the code of the process that reported why; 128 + a fatal signal.

    Raises:
        RunError: SIGKILL ended a process, and none was left to say so.
    """
    if codes[0] == 0:
        return 0
    reported = [code for code in codes if code > 0]
    if reported:
        return reported[0]
    signum = -codes[0]
    if signum == getattr(signal, "SIGKILL", None):
        raise RunError(
            "the processes of this training were killed (SIGKILL), often for want of main memory; resume from the last "
            "checkpoint: comp run --resume RUN, with the same --gpus"
        )
    return 128 + signum


def check_environment() -> None:
    """Check what the starting process sets.

    Raises:
        ConfigError: WORLD_SIZE is set without the rest, for example by a batch system.
    """
    names = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_PORT")
    wrong = [f"{name}={os.environ.get(name, '')!r}" for name in names if not os.environ.get(name, "").isdecimal()]
    if not os.environ.get("MASTER_ADDR"):
        wrong.append("MASTER_ADDR=''")
    if wrong:
        raise ConfigError(
            f"WORLD_SIZE={os.environ['WORLD_SIZE']} is set, as by torchrun, but {', '.join(wrong)}: to train in one "
            "process unset WORLD_SIZE; for several use --gpus N or torchrun"
        )


def follow_parent() -> None:
    """In a process that `start` has started: stop as at a signal when the starting process ends."""
    if LAUNCHED in os.environ:
        threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    """Wait for the end of standard input, which the starting process holds open."""
    with contextlib.suppress(OSError):
        while os.read(0, 1 << 10):  # not sys.stdin, whose lock a thread must not hold at the interpreter's end
            pass
    os.kill(os.getpid(), signal.SIGTERM)
