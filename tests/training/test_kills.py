"""Trainings killed or interrupted at moments that nobody chose end as if they had not been."""

import random
import shutil
import signal
import time
from pathlib import Path

import pytest

from benchmarks.forked import Kill
from comp import config as configs
from comp.results import runs
from comp.workflows import train
from tests.support import forks
from tests.support.commands import Result
from tests.support.runs import assert_same_weights, history_without_clock, the_run

KILLS = 20
STOPS = 4
SETTINGS = ["train.epochs=3", "train.checkpoint_seconds=0", "data.validation=40", "train.average=ema"]


def _train(root: Path) -> None:
    """Go on with the one run below `root`, or begin it: what a user's script does after a crash."""
    found = runs.list_runs(root)
    if found:
        train.resume(found[0])
    else:
        train.train(configs.load("small.yaml", SETTINGS), runs_root=root)


def _is_killed(root: Path, moment: float | None = None) -> bool:
    """Train in a process of its own, killed after so many seconds; return whether it had not ended by then."""
    process = forks.start(_train, root)
    process.join(moment)
    process.kill()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


@pytest.mark.slow  # 40 s
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


def _comp(*words: object, kill: Kill | None = None) -> Result:
    """Run a command in a process of its own, which gets a signal at its moment."""
    (result,) = forks.call(forks.commands, Path.cwd(), [words], (), kill)
    return result


@pytest.mark.slow  # 20 s
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM], ids=lambda signum: signum.name)
def test_trainings_with_a_teacher_interrupted_at_random_moments_end_with_the_same_bits(
    three_runs: Path, signum: signal.Signals
) -> None:
    teachers = ", ".join(str(run.path) for run in runs.list_runs(Path("runs"))[:2])
    pseudo = [f"data.pseudo.run={runs.list_runs(Path('runs'))[0].path}", "data.pseudo.min_confidence=0.3"]
    lessons = [f"train.teacher.runs=[{teachers}]", *pseudo, "data.pseudo.share=0.1"]
    settings = [*SETTINGS[:2], *lessons, "competition.suite.source=none", "competition.ood_validation.severities=[]"]
    began = time.perf_counter()
    assert _comp("train", "small.yaml", *settings, "--runs", "whole").code == 0
    whole_seconds = time.perf_counter() - began
    whole, chance, stops = the_run(Path("whole")), random.Random(signum), 0
    while stops < STOPS:
        command: tuple[object, ...] = ("train", "small.yaml", *settings, "--runs", "stopped")
        while not any(run.is_complete() for run in runs.list_runs(Path("stopped"))):
            moment = chance.uniform(0, whole_seconds)
            result = _comp(*command, kill=Kill(signum, seconds=moment) if stops < STOPS else None)
            assert result.code in (0, 128 + signum, -signum), result.err  # the last: before it is caught
            assert "Traceback" not in result.err
            stops += result.code != 0
            if begun := [run for run in runs.list_runs(Path("stopped")) if (run.path / "execution.json").is_file()]:
                command = ("train", "--resume", begun[0].path)
            else:
                shutil.rmtree("stopped", ignore_errors=True)  # stopped before its first step
        stopped = the_run(Path("stopped"))
        assert_same_weights(whole, stopped)
        assert history_without_clock(whole) == history_without_clock(stopped)
        shutil.rmtree("stopped")
