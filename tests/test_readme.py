"""The README's commands run as they stand."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

README = (REPOSITORY / "README.md").read_text()
BLOCKS = re.findall(r"^```console\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def test_every_command_on_the_digits_runs_in_turn(tmp_path: Path) -> None:
    (tmp_path / "configs").symlink_to(REPOSITORY / "configs")
    command = tmp_path / "bin" / "comp"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m comp "$@"\n')
    command.chmod(0o755)
    path = {**os.environ, "PATH": f"{command.parent}{os.pathsep}{os.environ['PATH']}"}
    ran = 0
    for line in "".join(BLOCKS).splitlines():
        if line.startswith("make") or "cifar" in line:
            continue
        done = subprocess.run(
            ["bash", "-ec", line], cwd=tmp_path, env=path, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, f"{line}\n{done.stderr}"
        ran += 1
    assert ran >= 10
    written = sorted(path.name for path in (tmp_path / "submissions").glob("*.csv"))
    assert written == ["quickstart-2.csv", "quickstart.csv", "three.csv"]  # the second is the ensemble's


@pytest.mark.parametrize("path", sorted(set(re.findall(r"configs/\S+?\.yaml|docs/\w+\.md|CHANGELOG\.md", README))))
def test_every_file_it_names_exists(path: str) -> None:
    assert (REPOSITORY / path).is_file()


def test_every_verb_of_the_command_line_is_named() -> None:
    from tests.test_help import GROUP, commands

    for words in commands(GROUP):
        assert re.search(rf"comp {words[0]}\b", README), words
