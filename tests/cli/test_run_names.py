"""`--name` on every command that makes a run, and what tables show of how a run was started."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.commands import Result, assert_refused
from tests.support.configs import QUICK

Comp = Callable[..., Result]


def folders() -> set[str]:
    """Return the names of all run folders, without their times."""
    return {path.parent.name.split("-", 2)[2] for path in Path("runs").rglob("provenance.json")}


def test_a_run_is_named_and_the_leaderboard_shows_its_overrides_and_fold(
    workplace: Path, comp: Comp, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["train", "small.yaml", *QUICK, "data.folds=3", "data.fold=2", "optim.lr=0.002", "--name", "my-name.2"]
    monkeypatch.setattr("sys.argv", ["comp", *words])
    result = comp(*words)
    assert result.code == 0, result.err
    assert folders() == {"my-name.2"}
    (row,) = json.loads(comp("leaderboard", "--json").out)
    assert row["fold"] == "2 of 3"
    assert row["overrides"] == " ".join([*QUICK, "optim.lr=0.002"])
    table = comp("leaderboard").out
    assert "2/3" in table
    assert "lr=0.002" in table
    assert "optim.lr" not in table


@pytest.mark.slow
def test_every_command_that_makes_a_run_names_it(three_runs: Path, comp: Comp) -> None:
    trained = sorted(Path("runs/small").iterdir())[:2]
    for words in (
        ["run", "small.yaml", *QUICK, "--name", "one"],
        ["run", "--as", trained[0], "--name", "two"],
        ["ensemble", *trained, "--name", "three"],
        ["ensemble", *trained, "--method", "soup", "--name", "four"],
        ["probe", trained[0], "--name", "five"],
        ["cv", "small.yaml", *QUICK, "data.folds=2", "--name", "six"],
    ):
        result = comp(*words)
        assert result.code == 0, result.err
    assert folders() >= {"one", "two", "three", "four", "five", "six", "six-fold0", "six-fold1"}


@pytest.mark.parametrize("name", ["", ".hidden", "a/b", "../up", "with space", "x" * 81, "é"])
def test_a_bad_name_is_refused_with_one_message(name: str, workplace: Path, comp: Comp) -> None:
    for command in (["run", "small.yaml"], ["train", "small.yaml"], ["cv", "small.yaml"], ["ensemble", "a", "b"]):
        assert_refused(comp(*command, "--name", name), "--name: expected", f"'{name}'")
    assert not Path("runs").exists()


def test_a_name_contradicts_what_makes_no_new_run(workplace: Path, comp: Comp) -> None:
    assert_refused(comp("run", "small.yaml", "--rehearse", "--name", "a"), "--rehearse", "--name")
    assert_refused(comp("run", "--resume", "runs/x", "--name", "a"), "--resume", "--name")
