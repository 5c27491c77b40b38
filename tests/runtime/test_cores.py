"""Beside other busy processes there are fewer threads, and those that wait sleep soon."""

import os
import subprocess
import sys
import time

import pytest

from comp.runtime import cores
from comp.training import autotune
from tests.support.timing import Slow, opened


@pytest.mark.parametrize(
    ("threads", "allowed", "others", "left"),
    [
        (2, 2, 0.0, 2),
        (2, 2, 1.0, 2),
        (2, 2, 2.0, 1),
        (2, 2, 9.0, 1),
        (8, 8, 7.0, 8),
        (8, 8, 8.0, 4),
        (2, 8, 8.0, 2),
        (1, 1, 3.0, 1),
    ],
)
def test_threads_are_a_fair_share_where_others_want_every_core(
    threads: int, allowed: int, others: float, left: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cores.CORE_LOAD, "of_others", lambda: others)
    assert cores.fair_threads(threads, allowed) == left


def test_what_this_process_computes_is_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = iter([(0.0, 100.0, 50.0), (2.0, 103.0, 51.0), (2.1, 103.2, 51.0), (4.0, 105.0, 53.0)])
    monkeypatch.setattr(cores.CoreLoad, "_sample", staticmethod(lambda: next(looks)))
    seen = cores.CoreLoad()
    assert [seen.of_others() for _ in range(3)] == [1.0, 1.0, 0.0]  # the second looks back at too short a time


@pytest.mark.skipif(not os.path.exists("/proc/stat"), reason="the system does not tell what others compute")
def test_what_other_processes_compute_is_seen() -> None:
    seen = cores.CoreLoad()
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in cores.usable_core_ids()]
    try:
        time.sleep(1.5)
        beside = seen.of_others()
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()
    assert beside > 0.7 * len(loops)  # whatever else runs here only adds to it


@pytest.mark.usefixtures("workplace")
def test_a_training_beside_busy_processes_says_that_it_takes_fewer_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    config, dataset = opened("train.threads=null")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(cores, "usable_cores", lambda: 2)
    monkeypatch.setattr(cores.CORE_LOAD, "of_others", lambda: 2.0)
    choice = autotune.choose_execution(Slow(slow_in_bf16=True), dataset, config)
    assert choice.execution.threads == 1
    assert all(text in choice.notes[0] for text in ("1 of 2 threads", "train.threads=2"))


def test_how_threads_wait_is_set_before_torch_is_loaded_unless_the_user_says_how() -> None:
    program = (
        "import os, sys; from comp.cli import app; app.cores.limit_spinning(); "
        "print(os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules)"
    )
    plain = {name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}

    def printed(**environment: str) -> str:
        return subprocess.run(
            [sys.executable, "-c", program], env={**plain, **environment}, capture_output=True, text=True, check=True
        ).stdout.strip()

    assert printed() == "1000 False"
    assert printed(GOMP_SPINCOUNT="7") == "7 False"
    assert printed(OMP_WAIT_POLICY="ACTIVE") == "None False"
