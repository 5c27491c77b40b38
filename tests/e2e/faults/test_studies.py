"""Studies that fail, are interrupted or are raced: one message, exit code 2, and advice that the next command takes."""

import contextlib
import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from comp.models.classifier import Classifier
from comp.results import runs
from comp.runtime.errors import Interrupted
from comp.tuning import create
from comp.workflows import train
from tests.support import forks, postgres
from tests.support.commands import Result
from tests.support.configs import NUMBERS, tuned, write_config
from tests.support.faults import assert_clean, assert_fault, assert_unchanged, snapshot

ERRORS = (RuntimeError("boom"), ValueError("boom"), KeyError("boom"), MemoryError("boom"), OSError(28, "boom"))


@pytest.fixture
def study(workplace: Path) -> Path:
    """A working directory with `tuned.yaml`, a study of four short trials."""
    values = tuned(NUMBERS, trials=4)
    values["train"]["epochs"] = 1
    return write_config(workplace / "tuned.yaml", values)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_three_failures_in_a_row_stop_a_study_with_the_reason(
    study: Path, comp: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fails(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(train, "train", fails)
    result = comp("tune", "tuned.yaml")
    assert_fault(result, "3 trials in a row", "boom", "repeat the command", "--study NAME", longest=1000)


def test_trials_that_optuna_refuses_count_as_failures(
    study: Path, comp: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*arguments: object) -> None:
        raise ValueError("CategoricalDistribution does not support dynamic value space.")

    monkeypatch.setattr(create, "suggest", refuses)
    assert_fault(comp("tune", "tuned.yaml"), "3 trials in a row", "dynamic value space", longest=1100)


@pytest.mark.slow  # trains
def test_a_study_whose_trials_all_failed_names_the_option_that_goes_on(
    study: Path, comp: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:

        def fails(self: Classifier, images: object) -> None:
            raise RuntimeError("boom")

        patched.setattr(Classifier, "forward", fails)
        result = comp("tune", "tuned.yaml", "tune.trials=3")
    assert_fault(result, "3 trials in a row", "repeat the command with --trials 6", longest=1000)
    options = re.search(r"--trials \d+", result.err)
    assert options
    assert comp("tune", "tuned.yaml", *options[0].split()).code == 0


@pytest.mark.slow  # trains
def test_the_command_that_continues_a_study_with_its_own_config_is_taken(
    study: Path, comp: Callable[..., Result]
) -> None:
    assert comp("tune", "tuned.yaml", "--trials", "1").code == 0
    grows = (".lock", ".log")  # a journal only grows
    before = snapshot(Path("runs"), without=grows)
    result = comp("tune", "tuned.yaml", "train.epochs=2")
    assert_fault(result, "train.epochs", "another config", "--study NAME")
    assert_unchanged(before, Path("runs"), without=grows)
    command = re.search(r"own config: comp (.*?); or begin", result.err)
    assert command
    continued = comp(*shlex.split(command[1]), "--trials", "2", "--json")
    assert continued.code == 0, continued.err
    assert json.loads(continued.out)["name"] == "tuned"
    assert json.loads(continued.out)["counts"]["done"] == 2


@pytest.mark.slow  # trains
def test_interrupted_trials_are_listed_with_the_command_that_continues_them(
    study: Path, comp: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:

        def stops(self: Classifier, images: object) -> None:
            raise Interrupted(15)

        patched.setattr(Classifier, "forward", stops)
        assert comp("tune", "tuned.yaml").code == 128 + 15
    shown = comp("tune", "--show", "tuned")
    assert shown.code == 0, shown.err
    line = re.search(r"1 interrupted trial: 0\n(?:.*\n)*next +comp (.*)", shown.out)
    assert line, shown.out
    row = json.loads(comp("tune", "--show", "tuned", "--json").out)["trials"][0]
    assert (row["state"], row["reason"]) == ("waiting", "interrupted")
    done = comp(*shlex.split(line[1]), "--json")
    assert done.code == 0, done.err
    report = json.loads(done.out)
    assert report["counts"]["done"] == 4
    assert report["interrupted"] == []


@pytest.mark.slow  # four commands
@pytest.mark.parametrize("storage", ["", "journal:///trials.log", "sqlite:///trials.db", "postgresql"])
def test_four_commands_that_race_for_a_new_storage_share_its_trials(study: Path, storage: str) -> None:
    with postgres.server_or_skip() if storage == "postgresql" else contextlib.nullcontext(storage) as url:
        settings = [f"tune.storage={url}"] if url else []
        command = ("tune", "tuned.yaml", *settings, "--study", "race", "--json")
        ended = forks.call(forks.commands, Path.cwd(), [command] * 4, (0.0, 0.05, 0.2))
    for result in ended:
        assert_clean(result)
        assert result.code == 0, result.err
    last = max((json.loads(result.out)["counts"] for result in ended), key=lambda counts: counts["done"])
    assert last == {"done": 4, "pruned": 0, "failed": 0, "running": 0, "waiting": 0}
    made = runs.list_runs(Path("runs"))
    assert len({run.config().optim.lr for run in made}) == len(made) == 4
    assert all(run.is_complete() for run in made)
