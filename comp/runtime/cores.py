"""Sharing a machine's cores with other processes. Torch-free, and set up before torch is loaded.

OpenMP's threads meet at the end of every parallel piece, hundreds of times in a training step, and those that are there
first spin. Beside other busy processes they spin for a partner that waits for a core, and take the core from it.
"""

import os
import time
from pathlib import Path

# Times that a thread looks for its partners before it sleeps: some microseconds. GNU's default, 300,000, lasts longer
# than a partner waits for a core; 0 costs 3 % of the steps of a quiet machine (benchmarks/busy_machine.py).
_SPINS = "1000"
_SHORTEST_SECONDS = 0.5  # that `others` looks back at: the system counts in hundredths


def limit_spinning() -> None:
    """Let threads that wait for each other sleep soon, unless the environment says how they wait."""
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & set(os.environ):
        os.environ["GOMP_SPINCOUNT"] = _SPINS


def usable_core_ids() -> list[int]:
    """Return the numbers of the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


class CoreLoad:
    """How much of the usable cores other processes take; known on Linux alone, elsewhere nothing."""

    def __init__(self) -> None:
        self._seen, self._others = self._sample(), 0.0

    def of_others(self) -> float:
        """Return how many cores other processes took, on average since the last call or since this was made."""
        now = self._sample()
        if now is None or self._seen is None:
            return 0.0
        (began, busy, own), (ended, busy_now, own_now) = self._seen, now
        if ended - began >= _SHORTEST_SECONDS:
            self._others = max(0.0, (busy_now - busy - own_now + own) / (ended - began))
            self._seen = now
        return self._others

    @staticmethod
    def _sample() -> tuple[float, float, float] | None:
        """Return now, and what all processes and this one have computed on the usable cores until now, in seconds."""
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
    """Return how many threads compute best, by what other processes have taken of the cores lately.

    All of them unless others want every core. Two threads that lose one core of two to a busy process have 0.48 of the
    quiet speed, one has 0.53, and would stay slow when that process has ended; with a busy process for each core two
    have 0.23 to 0.38 and one 0.36 (benchmarks/busy_machine.py): one of their number would always wait for a core.

    Args:
        threads: that are wished for.
        cores: that they may run on.
    """
    others = CORE_LOAD.of_others()
    return threads if others < cores - 0.5 else max(1, min(threads, round(cores * cores / (cores + others))))
