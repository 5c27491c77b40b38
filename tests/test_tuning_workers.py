"""Studies of several workers: none is lost when workers are killed, and none is run twice."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.trial import TrialState

from comp import config as configs
from comp import runs
from comp.errors import ConfigError, StudyError
from comp.tuning import opening
from comp.tuning.study import MOST_KILLS, Study, claim, put_back, tell
from comp.tuning.workers import share_of
from tests import postgres
from tests.conftest import write_config
from tests.test_tuning import NUMBERS, tuned

_EPOCHS = 15
STORAGES = ("sqlite", "journal", "postgres")


@pytest.fixture(params=STORAGES)
def storage(request: pytest.FixtureRequest, workplace: Path) -> Iterator[str]:
    """The URL of a storage of each kind."""
    with storage_of(request.param) as url:
        yield url


@contextlib.contextmanager
def storage_of(kind: str) -> Iterator[str]:
    """Give the URL of a new storage in the working directory, or of a server."""
    if kind == "postgres":
        if postgres.programs() is None:
            pytest.skip("no initdb on this machine: install PostgreSQL (Debian: postgresql)")
        pytest.importorskip("psycopg", reason="pip install 'comp[postgres]'")
        with postgres.server() as url:
            yield url
    else:
        yield {"sqlite": "sqlite:///trials.db", "journal": "journal:///trials.log"}[kind]


@pytest.fixture
def opened(storage: str) -> Iterator[Callable[..., Study]]:
    """Open a study as one of its workers does, again and again."""
    with contextlib.ExitStack() as studies:

        def another(**tune: Any) -> Study:
            return studies.enter_context(open_study(storage, **tune))

        yield another


def open_study(url: str, **tune: Any) -> Study:
    """Open a study as its worker does."""
    values = tuned(NUMBERS, storage=url, **tune)
    return opening.open_search(opening.plan(configs.from_mapping(values, "a.yaml"), "study", Path("runs"), 1))


def test_two_workers_never_claim_the_same_trial_nor_more_than_wanted(opened: Callable[..., Study]) -> None:
    one, other = opened(trials=3), opened(trials=3)
    claimed = [claim(worker) for worker in (one, other, one, other, one)]
    numbers = [found.trial.number for found in claimed if found]
    assert numbers == [0, 1, 2]
    assert not one.is_over()
    for worker, found in zip((one, other, one), claimed, strict=False):
        assert found is not None
        tell(worker, found, TrialState.COMPLETE, [0.5])
    assert one.is_over()
    assert other.is_over()
    assert claim(other) is None


def test_an_interrupted_trial_is_claimed_again_with_its_values(opened: Callable[..., Study]) -> None:
    one = opened(trials=1)
    first = claim(one)
    assert first is not None
    put_back(one, first)
    again = claim(opened(trials=1))
    assert again is not None
    assert (again.trial.number, again.config) == (0, first.config)
    assert again.trial.user_attrs.get("kills") is None


def die(study: Study, found: Any) -> None:
    """Leave a claimed trial as a killed process does: the system releases its lock, and its heart stops."""
    found.lock.release()
    time.sleep(study.config.tune.heartbeat_seconds * 3.5 if study.store.url.startswith("postgresql") else 0)


def test_a_trial_whose_worker_died_is_retried_three_times_and_then_failed(opened: Callable[..., Study]) -> None:
    one = opened(trials=1, heartbeat_seconds=1)
    for kills in range(4):
        found = claim(opened(trials=1, heartbeat_seconds=1))
        assert found is not None
        assert found.trial.user_attrs.get("kills", 0) == kills
        die(one, found)
    assert claim(one) is None
    (trial,) = one.trials()
    assert trial.state == TrialState.FAIL
    assert trial.user_attrs["reason"] == "its worker died 4 times"


def test_a_worker_that_was_taken_for_dead_ends_its_trial_once(opened: Callable[..., Study]) -> None:
    one = opened(trials=1)
    found = claim(one)
    assert found is not None
    one.store.put_back(one.name, found.trial.number)  # by another one, that thought so
    tell(one, found, TrialState.COMPLETE, [0.7])
    tell(one, found, TrialState.COMPLETE, [0.1])
    assert [trial.values for trial in one.trials()] == [[0.7]]
    assert claim(one) is None


@given(cores=st.integers(1, 64), workers=st.integers(1, 70))
def test_workers_share_the_cores(cores: int, workers: int) -> None:
    shares = [share_of(list(range(cores)), place, workers) for place in range(workers)]
    assert set().union(*shares) == set(range(cores))  # none is left idle, with one worker a core or more too
    assert all(shares)
    if workers <= cores:
        assert sum(map(len, shares)) == cores  # disjoint
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_several_workers_are_refused_on_sqlite(workplace: Path) -> None:
    config = configs.from_mapping(tuned(NUMBERS, storage="sqlite:///trials.db"), "a.yaml")
    with pytest.raises(ConfigError, match=r"would lock each other out.*use a journal"):
        opening.plan(config, "study", Path("runs"), 2)
    assert opening.plan(configs.from_mapping(tuned(NUMBERS), "a"), "study", Path("runs"), 2).url.startswith("journal:")


def test_a_database_that_does_not_answer_is_told_in_one_message(workplace: Path) -> None:
    pytest.importorskip("psycopg")
    with pytest.raises(StudyError, match=r"postgresql://me@127\.0\.0\.1:9/x cannot be opened") as told:
        open_study("postgresql://me:secret@127.0.0.1:9/x")
    assert "secret" not in str(told.value)


def training_workers(pid: int) -> dict[str, int]:
    """Return the trials that workers of a command hold now, by their lock's name, and those workers."""
    found = {}
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        with contextlib.suppress(OSError):
            files = [Path(os.readlink(link)) for link in Path(f"/proc/{child}/fd").iterdir()]
            found |= {file.name: int(child) for file in files if file.parent.name == ".locks"}
    return found


def tune_while_killing(url: str, trials: int, workers: int, kills: int) -> tuple[dict[str, Any], Counter[str]]:
    """Run a study whose training workers are killed every few seconds, none of a trial's more than three times.

    Returns:
        Its report, and trial -> how many of its workers were killed.
    """
    values = tuned(NUMBERS, storage=url, trials=trials, heartbeat_seconds=1)
    values["train"].update(epochs=_EPOCHS, checkpoint_seconds=0.2)
    write_config(Path("tuned.yaml"), values)
    command = [sys.executable, "-m", "comp", "tune", "tuned.yaml", "--workers", str(workers), "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    killed: Counter[str] = Counter()
    try:
        while process.poll() is None and killed.total() < kills:
            time.sleep(2.0)
            running = training_workers(process.pid) if process.poll() is None else {}
            victims = sorted((name for name in running if killed[name] < MOST_KILLS), key=killed.__getitem__)
            if victims:
                os.kill(running[victims[0]], signal.SIGKILL)
                killed[victims[0]] += 1
        out, err = process.communicate(timeout=500)
    finally:
        process.kill()
    assert process.returncode == 0, err
    return json.loads(out), killed


def assert_none_lost(report: dict[str, Any], trials: int) -> None:
    """Assert that every trial has ended once, in one complete run."""
    assert [row["trial"] for row in report["trials"]] == list(range(trials))
    assert report["counts"] == {"done": trials, "pruned": 0, "failed": 0, "running": 0, "waiting": 0}
    found = [run for run in runs.list_runs(Path("runs")) if run.is_complete()]
    assert sorted(str(run.path) for run in found) == sorted(row["run"] for row in report["trials"])
    assert all(len(run.history()) == _EPOCHS for run in found)


needs_proc = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds workers in /proc")


@needs_proc
@pytest.mark.slow
def test_a_killed_workers_trial_ends_all_the_same(workplace: Path) -> None:
    with storage_of("journal") as url:
        report, killed = tune_while_killing(url, trials=3, workers=2, kills=1)
    assert killed.total() == 1
    assert_none_lost(report, 3)


@needs_proc
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["journal", "postgres"])
def test_four_workers_lose_no_trial_while_one_is_killed_every_few_seconds(kind: str, workplace: Path) -> None:
    with storage_of(kind) as url:
        report, killed = tune_while_killing(url, trials=12, workers=4, kills=8)
    assert killed.total() >= 3
    assert_none_lost(report, 12)


@needs_proc
def test_an_interrupted_command_leaves_its_trials_waiting_and_goes_on(workplace: Path) -> None:
    values = tuned(NUMBERS, trials=2)
    values["train"]["epochs"] = 300
    write_config(Path("tuned.yaml"), values)
    command = [sys.executable, "-m", "comp", "tune", "tuned.yaml", "--workers", "2"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        while len(training_workers(process.pid)) < 1 or not list(Path("runs").glob("*/*/*/history.csv")):
            assert process.poll() is None
            time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 128 + signal.SIGINT, err
    study = opening.open_search(opening.find("tuned", Path("runs"), ""), make=False)  # a journal: nothing to close
    assert {trial.state for trial in study.trials()} == {TrialState.WAITING}
    assert all(trial.user_attrs.get("kills") is None for trial in study.trials())
    begun = [run for run in runs.list_runs(Path("runs")) if run.history()]
    assert begun
    assert all((run.path / "state.pt").exists() for run in begun)
