"""Studies of several workers: none is lost when workers are killed, and none is run twice."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.trial import TrialState

from comp import config as configs
from comp.results import runs
from comp.runtime.errors import StudyError
from comp.runtime.workers import share_of
from comp.tuning import create, search
from comp.tuning import storage as storages
from comp.tuning.study import Study, failure_reason
from comp.tuning.trial import resumable_run
from tests.support import forks, postgres
from tests.support.configs import NUMBERS, tuned, write_config

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
        with postgres.server_or_skip() as url:
            yield url
    else:
        yield {"sqlite": "sqlite:///trials.db", "journal": "journal:///trials.log"}[kind]


def open_study(url: str, **tune: Any) -> Study:
    """Open a study as its worker does."""
    values = tuned(NUMBERS, storage=url, heartbeat_seconds=1, **tune)
    return create.open_search(create.plan(configs.from_mapping(values, "a.yaml"), "study", Path("runs")))


def die_training(url: str) -> None:
    """Be a worker that is killed while it trains."""
    study = open_study(url, trials=1)

    def objective(trial: Any) -> float:
        with study.lock_of(trial.number):
            study.config_of(trial)
            study.turn.release()
            trial.set_user_attr("run-0", "its run")
            if not trial.study.trials[trial.number].intermediate_values:
                trial.report(0.5, 1)
            time.sleep(0.5)  # its heart beats once
            os.kill(os.getpid(), signal.SIGKILL)
        return 0.0

    assert study.take_turn()
    study.optuna.optimize(objective)


def die_asking(url: str) -> None:
    """Be a worker that is killed between asking for a trial and its first sign of life."""
    study = open_study(url, trials=1)
    assert study.take_turn()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna wants `optimize` where hearts beat
        study.optuna.ask()
    os.kill(os.getpid(), signal.SIGKILL)


def wait_for_another(study: Study) -> None:
    """Wait until a trial may begin or the study is over, for a few seconds on a server."""
    begun = time.monotonic()
    while not study.is_over():
        if study.take_turn():
            study.turn.release()
            return
        assert time.monotonic() - begun < 60
        time.sleep(0.2)


@pytest.mark.parametrize(
    "storage", ["sqlite", "journal", pytest.param("postgres", marks=pytest.mark.slow)], indirect=True
)
def test_a_trial_whose_worker_dies_goes_on_three_times_and_has_then_failed(storage: str) -> None:
    with open_study(storage, trials=1) as study:
        for died in range(4):
            process = forks.start(die_training, storage)
            process.join()
            assert process.exitcode == -signal.SIGKILL
            wait_for_another(study)
            (trial,) = study.trials()
            assert storages.worker_deaths(trial) == min(died + 1, 3)
            assert trial.user_attrs["run-0"] == "its run"
            assert trial.intermediate_values == {1: 0.5}
        assert trial.params == study.optuna.trials[0].params
        assert trial.state == TrialState.FAIL
        assert "4" in failure_reason(trial)
        assert study.is_over()


def test_a_worker_that_dies_as_its_trial_begins_leaves_no_trial_that_runs_for_ever(storage: str) -> None:
    process = forks.start(die_asking, storage)
    process.join()
    with open_study(storage, trials=1) as study:
        assert not study.is_over()
        wait_for_another(study)
        assert [trial.state for trial in study.trials()] == [TrialState.WAITING]


def tune_here(url: str, trials: int) -> None:
    """Be one of several commands."""
    values = tuned(NUMBERS, storage=url, trials=trials, heartbeat_seconds=1)
    search.tune(configs.from_mapping(values, "a.yaml"), pictures=False)


def test_commands_of_the_same_second_share_a_new_storage_and_its_trials(storage: str) -> None:
    commands = [forks.start(tune_here, storage, 4) for _ in range(3)]
    for command in commands:
        command.join()
    assert [command.exitcode for command in commands] == [0] * 3
    with open_study(storage, trials=4) as study:
        assert [trial.state for trial in study.trials()] == [TrialState.COMPLETE] * 4
        assert len({trial.user_attrs["config_hash"] for trial in study.trials()}) == 4
    assert len(runs.list_runs(Path("runs"))) == 4


def test_a_worker_that_was_taken_for_dead_leaves_its_trial_to_the_next(storage: str) -> None:
    values = tuned(NUMBERS, storage=storage, trials=1, heartbeat_seconds=1)
    config = configs.from_mapping(values, "a.yaml")
    steps = 0

    def take_over(what: str, done: int, total: int, unit: str = "images", note: str = "") -> None:
        nonlocal steps
        steps += unit == "steps"
        if steps == 2 and unit == "steps":
            with open_study(storage, trials=1) as another:
                dead = another.optuna.tell(another.trials()[0].number, state=TrialState.FAIL)
                storages.retry(another.optuna, dead)

    report = search.tune(config, pictures=False, progress=take_over)
    assert [row["state"] for row in report.trials] == ["done"]
    assert report.trials[0]["trial"] == 1
    assert report.trials[0]["run"] in {str(run.path) for run in runs.list_runs(Path("runs")) if run.is_complete()}


def test_a_run_that_is_still_written_is_left_to_its_writer(workplace: Path) -> None:
    run = runs.create(Path("runs"), configs.load("small.yaml"), "begun", {})
    run.write_json("execution.json", {})
    with run.write_lock():
        assert resumable_run(str(run.path), run.path.parent) is None
    assert resumable_run(str(run.path), run.path.parent) == run
    (run.path / "execution.json").unlink()
    assert resumable_run(str(run.path), run.path.parent) is None
    assert not run.path.exists()  # nothing in it was trained


def test_a_study_that_began_with_sqlite_goes_on_there_and_a_new_one_begins_with_a_journal(workplace: Path) -> None:
    config = configs.from_mapping(tuned(NUMBERS), "a.yaml")
    assert create.plan(config, "study", Path("runs")).url == "journal:///runs/small/study/study.log"
    Path("runs/small/study/study.db").touch()
    assert create.plan(config, "study", Path("runs")).url == "sqlite:///runs/small/study/study.db"


@given(cores=st.integers(1, 64), workers=st.integers(1, 70))
def test_workers_share_the_cores(cores: int, workers: int) -> None:
    shares = [share_of(list(range(cores)), place, workers) for place in range(workers)]
    assert set().union(*shares) == set(range(cores))  # none is left idle, with one worker a core or more too
    assert all(shares)
    if workers <= cores:
        assert sum(map(len, shares)) == cores  # disjoint
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_database_that_does_not_answer_is_one_error_without_the_password(workplace: Path) -> None:
    pytest.importorskip("psycopg")
    with pytest.raises(StudyError, match=r"postgresql://me@127\.0\.0\.1:9/x") as refused:
        open_study("postgresql://me:secret@127.0.0.1:9/x")
    assert "secret" not in str(refused.value)


def training_workers(pid: int) -> dict[int, int]:
    """Return the numbers of trials that workers of a command hold now, and those workers."""
    found = {}
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        with contextlib.suppress(OSError):
            files = [Path(os.readlink(link)) for link in Path(f"/proc/{child}/fd").iterdir()]
            held = [file.name.rpartition("-")[2] for file in files if file.parent.name.endswith(".locks")]
            found |= {int(number): int(child) for number in held if number.isdigit()}
    return found


def of_few_kills() -> set[int]:
    """Return the trials of the study `tuned` that outlive the death of their worker."""
    with create.open_search(create.find_plan("tuned", Path("runs"), ""), make=False) as study:
        return {trial.number for trial in study.trials() if storages.worker_deaths(trial) < storages.MAX_RETRIES}


def tune_while_killing(url: str, trials: int, workers: int, kills: int) -> tuple[dict[str, Any], int]:
    """Run a study whose training workers are killed every few seconds, none of a trial's more than three times.

    Returns:
        Its report, and how many workers were killed.
    """
    values = tuned(NUMBERS, storage=url, trials=trials, heartbeat_seconds=1)
    values["train"].update(epochs=_EPOCHS, checkpoint_seconds=0.2)
    write_config(Path("tuned.yaml"), values)
    command = [sys.executable, "-m", "comp", "tune", "tuned.yaml", "--workers", str(workers), "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    killed = 0
    try:
        while process.poll() is None and killed < kills:
            time.sleep(2.0)
            running = training_workers(process.pid) if process.poll() is None else {}
            victims = sorted(running.keys() & of_few_kills()) if running else []
            if victims:
                os.kill(running[victims[0]], signal.SIGKILL)
                killed += 1
        out, err = process.communicate(timeout=500)
    finally:
        process.kill()
    assert process.returncode == 0, err
    return json.loads(out), killed


def assert_none_lost(report: dict[str, Any], trials: int) -> None:
    """Assert that every trial has ended once, in one complete run."""
    assert len({row["trial"] for row in report["trials"]}) == len(report["trials"]) == trials
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
    assert killed == 1
    assert_none_lost(report, 3)


@needs_proc
@pytest.mark.slow
@pytest.mark.parametrize("kind", STORAGES)
def test_four_workers_lose_no_trial_while_one_is_killed_every_few_seconds(kind: str, workplace: Path) -> None:
    with storage_of(kind) as url:
        report, killed = tune_while_killing(url, trials=12, workers=4, kills=8)
    assert killed >= 3
    assert_none_lost(report, 12)


@pytest.mark.slow
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
    study = create.open_search(create.find_plan("tuned", Path("runs"), ""), make=False)  # a journal: nothing to close
    assert {trial.state for trial in study.trials()} == {TrialState.WAITING}
    assert not any(storages.worker_deaths(trial) for trial in study.trials())
    begun = [run for run in runs.list_runs(Path("runs")) if run.history()]
    assert begun
    assert all((run.path / "state.pt").exists() for run in begun)


@needs_proc
@pytest.mark.slow
def test_workers_stop_when_the_command_that_started_them_is_killed_and_the_next_goes_on(workplace: Path) -> None:
    values = tuned(NUMBERS, trials=2)
    values["train"]["epochs"] = 300
    write_config(Path("tuned.yaml"), values)
    command = [sys.executable, "-m", "comp", "tune", "tuned.yaml", "--workers", "2"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while len(workers := training_workers(process.pid)) < 2 or not list(Path("runs").glob("*/*/*/history.csv")):
            assert process.poll() is None
            time.sleep(0.2)
    finally:
        process.kill()
        process.wait()
    while any(Path(f"/proc/{pid}/cwd").exists() for pid in workers.values()):  # a hang is the test's time limit's
        time.sleep(0.2)
    plan = create.find_plan("tuned", Path("runs"), "")
    study = create.open_search(plan, make=False)  # a journal: nothing to close
    assert {trial.state for trial in study.trials()} == {TrialState.WAITING}
    begun = {str(run.path) for run in runs.list_runs(Path("runs"))}
    report = search.tune(plan.load(), name="tuned", pictures=False)
    assert {row["state"] for row in report.trials} == {"done"}
    assert {row["run"] for row in report.trials} == begun
