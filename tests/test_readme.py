"""The README's commands run as they stand."""

import re
import shlex
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, comp_process

README = (REPOSITORY / "README.md").read_text()
COMMANDS = re.findall(r"^(comp .*)$", README, re.MULTILINE)


def test_every_command_on_the_digits_runs_in_turn(tmp_path: Path) -> None:
    (tmp_path / "configs").symlink_to(REPOSITORY / "configs")
    ran = 0
    for line in COMMANDS:
        if "cifar" in line:
            continue
        words = shlex.split(line, comments=True)[1:]
        done = comp_process(*words, cwd=tmp_path)
        assert done.returncode == 0, f"{line}\n{done.stderr}"
        ran += 1
    assert ran >= 8
    assert sorted(path.name for path in (tmp_path / "submissions").glob("*.csv")) == ["quickstart.csv", "three.csv"]


@pytest.mark.parametrize("path", sorted(set(re.findall(r"configs/\S+?\.yaml|docs/\w+\.md|CHANGELOG\.md", README))))
def test_every_file_it_names_exists(path: str) -> None:
    assert (REPOSITORY / path).is_file()


def test_every_verb_of_the_command_line_is_named() -> None:
    from tests.test_help import GROUP, commands

    for words in commands(GROUP):
        assert re.search(rf"comp {words[0]}\b", README), words
