"""Runs that are not complete are listed with what stopped them and the command that continues them."""

import json
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from comp import config as configs
from comp.results import runs
from comp.results.unfinished import FAILURE, list_unfinished, noting_failure
from comp.runtime.errors import Interrupted, RunError
from tests.support.commands import Result
from tests.support.frozen_runs import thawed

Comp = Callable[..., Result]
ROOT = Path("runs")


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def begun(name: str = "a", argv: str = "run c.yaml", **train: object) -> runs.Run:
    """Return a run that has only begun."""
    config = configs.from_mapping({"competition": {"name": "small"}, "train": {"epochs": 9, **train}}, "here")
    return runs.create(ROOT, config, name, {"classes": ["x", "y"], "argv": argv.split()})


@pytest.mark.parametrize(
    ("argv", "command"),
    [
        ("run c.yaml", "comp run --resume {run}"),
        ("train c.yaml", "comp train --resume {run}"),
        ("script.py --fast", "comp run --resume {run}"),
        ("cv c.yaml --workers 2", "comp cv c.yaml --workers 2"),
        ("tune c.yaml --storage postgresql://me:secret@host/x", "comp tune c.yaml --storage postgresql://me@host/x"),
        ("ensemble a b", "comp ensemble a b"),
    ],
)
def test_each_is_continued_as_it_was_begun(argv: str, command: str) -> None:
    run = begun(argv=argv)
    (row,) = list_unfinished(ROOT)
    assert (row.state, row.epochs, row.of) == ("interrupted", 0, 9)
    assert row.resume == command.format(run=run.path)


def test_a_failure_is_kept_until_the_run_is_resumed() -> None:
    run = begun()
    with pytest.raises(OSError, match="disk"), noting_failure(run):
        raise OSError("the disk is full")
    (row,) = list_unfinished(ROOT)
    assert (row.state, row.reason) == ("failed", "OSError: the disk is full")
    with pytest.raises(RunError), noting_failure(run):
        raise RunError("a file is damaged")
    assert list_unfinished(ROOT)[0].reason == "a file is damaged"
    with pytest.raises(Interrupted), noting_failure(run):
        raise Interrupted(2)
    assert list_unfinished(ROOT)[0].state == "interrupted"  # a signal is no failure


def test_what_is_running_or_damaged_has_no_command() -> None:
    running, damaged = begun("running"), begun("damaged")
    (damaged.path / "config.yaml").write_text("competition: [")
    with running.write_lock():
        rows = {Path(row.run).name.split("-")[-1]: row for row in list_unfinished(ROOT)}
    assert {name: row.state for name, row in rows.items()} == {"running": "running", "damaged": "damaged"}
    assert not any(row.resume for row in rows.values())
    assert "config.yaml" in rows["damaged"].reason


def test_a_time_budget_plans_no_epochs() -> None:
    begun(budget="2min")
    assert list_unfinished(ROOT)[0].of is None


def test_only_runs_of_the_competition_and_the_time_are_listed() -> None:
    begun()
    assert not list_unfinished(ROOT, competition="other")
    assert not list_unfinished(ROOT, since="2999-01-01")


def test_the_leaderboard_lists_them_below_the_complete_ones_with_whole_commands(
    comp: Comp,
) -> None:
    thawed(Path())
    name = "n" * 80
    run = begun(name)
    (run.path / FAILURE).write_text(json.dumps({"error": "out of memory"}))
    plain, everything = comp("leaderboard"), comp("leaderboard", "--all")
    assert name not in plain.out
    assert f"  comp run --resume {run.path}" in everything.out.splitlines()
    assert "1 run is not complete:\nfailed in epoch 1: out of memory" in everything.out
    assert comp("leaderboard", "--all", "--csv").code == 2


def test_a_folder_without_complete_runs_lists_the_others(comp: Comp) -> None:
    run = begun()
    result = comp("leaderboard", "--all")
    assert result.code == 0
    assert f"comp run --resume {run.path}" in result.out


@pytest.mark.slow  # two trainings
def test_a_training_that_fails_is_listed_and_continues(workplace: Path, comp: Comp) -> None:
    (workplace / "broken.py").write_text(
        "import os\n"
        "def loss(logits, targets, reduction='mean'):\n"
        "    if not os.path.exists('mended'): raise KeyError('not yet')\n"
        "    each = ((logits.softmax(1) - targets) ** 2).sum(1)\n"
        "    return each.mean() if reduction == 'mean' else each\n"
        "LOSSES = {'broken': loss}\n"
        "TASKS = {'single_label': {'losses': ['broken']}}\n"
    )
    assert comp("run", "small.yaml", "plugins=[broken.py]", "train.loss=broken", "train.epochs=1").code
    (row,) = list_unfinished(ROOT)
    assert row.state == "failed"
    assert "not yet" in row.reason
    (workplace / "mended").touch()
    done = comp(*shlex.split(row.resume)[1:])
    assert done.code == 0, done.err
    assert not list_unfinished(ROOT)
    assert not (Path(row.run) / FAILURE).exists()
