"""Sharing CPU cores with other processes. Torch-free, and set up before torch is loaded.

OpenMP's threads synchronise at the end of every parallel piece, hundreds of times in a training step, and the first
ones spin. Beside other busy processes they spin for a thread that waits for a core, and take the core from it.
"""

import os
import time
from pathlib import Path

# Spins before a thread sleeps: some microseconds. GNU's default, 300,000, lasts longer than a thread waits for a core;
# 0 costs 3 % of the steps of a quiet machine (benchmarks/busy_machine.py).
_SPINS = "1000"
_MOST_WORKERS = 8
_SHORTEST_SECONDS = 0.5  # between two samples: the system counts in hundredths


def limit_spinning() -> None:
    """Let waiting threads sleep soon, unless the environment sets how they wait."""
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & set(os.environ):
        os.environ["GOMP_SPINCOUNT"] = _SPINS


def usable_core_ids() -> list[int]:
    """Return the ids of the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def default_threads() -> int:
    """Return `max_threads`, or a fair share where other processes want all cores."""
    return fair_threads(max_threads(), usable_cores())


def max_threads() -> int:
    """Return a thread for each usable core, at most OMP_NUM_THREADS.

    Processes of one torchrun share the cores; torchrun itself sets OMP_NUM_THREADS, which is then ignored.
    """
    allowed = usable_cores()
    if "LOCAL_WORLD_SIZE" in os.environ:
        return allowed
    limit = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]  # a list has a number for each level of nesting
    return min(allowed, int(limit)) if limit.isdecimal() and int(limit) else allowed


def default_workers() -> int:
    """Return the number of loader workers without timing: one a core, at most 8."""
    return min(_MOST_WORKERS, usable_cores())


def usable_cores() -> int:
    """Return how many cores this process may use: those it is bound to, shared with torchrun's other processes."""
    return max(1, len(usable_core_ids()) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def is_busy() -> bool:
    """Return whether the load of the last minute exceeds 1.5 per core: timings would mislead."""
    return hasattr(os, "getloadavg") and os.getloadavg()[0] > 1.5 * (os.cpu_count() or 1)


def threads_worth_trying(device: str) -> list[int]:
    """Return thread counts to time, the default first: one a core, and half of them with hyper-threads."""
    most = default_threads()
    return [most, most // 2] if device == "cpu" and most > 1 and _has_hyper_threads() else [most]


def _has_hyper_threads() -> bool:
    try:
        return Path("/sys/devices/system/cpu/smt/active").read_text().strip() == "1"
    except OSError:
        return False


class CoreLoad:
    """Measures how many of the usable cores other processes take; on Linux only, elsewhere 0."""

    def __init__(self) -> None:
        self._last, self._others = self._sample(), 0.0

    def of_others(self) -> float:
        """Return how many cores other processes took, on average since the last call."""
        now = self._sample()
        if now is None or self._last is None:
            return 0.0
        (began, busy, own), (ended, busy_now, own_now) = self._last, now
        if ended - began >= _SHORTEST_SECONDS:
            self._others = max(0.0, (busy_now - busy - own_now + own) / (ended - began))
            self._last = now
        return self._others

    @staticmethod
    def _sample() -> tuple[float, float, float] | None:
        """Return the time, and the CPU seconds of all processes and of this one on the usable cores so far."""
        try:
            lines = Path("/proc/stat").read_text(encoding="ascii").splitlines()
            tick = os.sysconf("SC_CLK_TCK")
        except (OSError, ValueError, AttributeError):
            return None
        fields = {name: values for name, *values in map(str.split, lines)}
        busy = 0.0
        for core in usable_core_ids():
            user, nice, system, _, _, irq, softirq, *_ = map(int, fields.get(f"cpu{core}", ["0"] * 7))
            busy += (user + nice + system + irq + softirq) / tick
        times = os.times()
        return time.monotonic(), busy, times.user + times.system + times.children_user + times.children_system


CORE_LOAD = CoreLoad()


def fair_threads(threads: int, cores: int) -> int:
    """Return the fastest number of threads, given what other processes have taken of the cores lately.

    All of them unless others want every core. Two threads that lose one core of two to a busy process have 0.48 of the
    quiet speed, one thread has 0.53, and would stay slow when that process has ended; with a busy process for each core
    two have 0.23 to 0.38 and one 0.36 (benchmarks/busy_machine.py): one thread would always wait for a core.

    Args:
        threads: at most.
        cores: usable by them.
    """
    others = CORE_LOAD.of_others()
    return threads if others < cores - 0.5 else max(1, min(threads, round(cores * cores / (cores + others))))
