"""Trainings killed at moments that nobody chose end as if they had not been."""

import multiprocessing
import random
import signal
import time
from pathlib import Path

import pytest
import torch

from comp import config as configs
from comp.results import runs
from comp.workflows import train
from tests.support.runs import assert_same_weights, history_without_clock, the_run

KILLS = 20
SETTINGS = ["train.epochs=3", "train.checkpoint_seconds=0", "data.validation=40", "train.average=ema"]


def _train(root: Path) -> None:
    """Go on with the one run below `root`, or begin it: what a user's script does after a crash."""
    torch.set_num_threads(1)
    found = runs.list_runs(root)
    if found:
        train.resume(found[0])
    else:
        train.train(configs.load("small.yaml", SETTINGS), runs_root=root)


def _is_killed(root: Path, moment: float | None = None) -> bool:
    """Train in a process of its own, killed after so many seconds; return whether it had not ended by then."""
    process = multiprocessing.get_context("fork").Process(target=_train, args=(root,))
    process.start()
    process.join(moment)
    process.kill()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


@pytest.mark.slow  # 40 s
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_trainings_killed_at_random_moments_end_with_the_bits_of_an_uninterrupted_one(workplace: Path) -> None:
    began = time.perf_counter()
    assert not _is_killed(Path("whole"))
    whole_seconds = time.perf_counter() - began
    whole, chance, kills, finished = the_run(Path("whole")), random.Random(0), 0, 0
    while kills < KILLS:
        root = Path(f"killed{finished}")
        while not any(run.is_complete() for run in runs.list_runs(root)):
            kills += _is_killed(root, chance.uniform(0, whole_seconds) if kills < KILLS else None)
        assert_same_weights(whole, the_run(root))
        assert history_without_clock(whole) == history_without_clock(the_run(root))
        finished += 1
