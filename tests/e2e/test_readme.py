"""The commands of README.md, of how-to pages on the digits, and of AGENTS.md run as they stand."""

import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from comp.runtime.errors import Interrupted, UserError
from tests.support.commands import GROUP, REPOSITORY, commands

README = (REPOSITORY / "README.md").read_text()
HOWTO = REPOSITORY / "docs" / "howto"
TUTORIAL = (REPOSITORY / "docs" / "tutorial.md").read_text()
CONSOLE = re.compile(r"^```console\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINES = "".join(CONSOLE.findall(README)).splitlines()
AGENTS = (REPOSITORY / "AGENTS.md").read_text()
AGENTS_LINES = re.findall(r"^comp .*", AGENTS, re.MULTILINE)


def run_lines(folder: Path, lines: list[str]) -> None:
    """Run lines of shell, one after the other, where `comp` is this one."""
    (folder / "configs").symlink_to(REPOSITORY / "configs")
    command = folder / "bin" / "comp"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m comp "$@"\n')
    command.chmod(0o755)
    path = {**os.environ, "PATH": f"{command.parent}{os.pathsep}{os.environ['PATH']}"}
    for line in lines:
        done = subprocess.run(
            ["bash", "-ec", line], cwd=folder, env=path, capture_output=True, text=True, timeout=600, check=False
        )
        assert done.returncode == 0, f"{line}\n{done.stderr}"


def assert_is_taken(line: str) -> None:
    """Assert that a command line has a command, arguments and options that exist."""
    words = shlex.split(line, comments=True)[1:]
    command: Any = GROUP
    context = None
    while words and words[0] in getattr(command, "commands", {}):
        context = command.make_context(command.name or "comp", words[:0], parent=context, resilient_parsing=True)
        command, words = command.commands[words[0]], words[1:]
    command.make_context(command.name, words, parent=context)  # raises where an option or argument is unknown


@pytest.mark.parametrize("line", [line for line in (*LINES, *AGENTS_LINES) if line.startswith("comp ")])
def test_every_command_is_one_that_the_command_line_takes(line: str) -> None:
    assert_is_taken(line)


@pytest.mark.slow  # two minutes
def test_every_command_on_the_digits_runs_in_turn(tmp_path: Path) -> None:
    texts = [(HOWTO / name).read_text() for name in ("configs.md", "folds.md")]
    lines = [*LINES, *"".join(block for text in texts for block in CONSOLE.findall(text)).splitlines()]
    lines = [line for line in lines if line.startswith("comp ") and "my" not in line]
    assert len(lines) >= 10
    run_lines(tmp_path, lines)
    written = sorted(path.name for path in (tmp_path / "submissions").glob("*.csv"))
    assert written == ["quickstart-2.csv", "quickstart.csv", "three.csv"]  # the second is the ensemble's


@pytest.mark.slow  # a minute
def test_the_commands_for_your_own_data_end_in_a_submission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (script,) = re.findall(r"^```python\n(.*?)^```", TUTORIAL, re.MULTILINE | re.DOTALL)
    exec(compile(script.replace("postcodes", "my-competition"), "make_data.py", "exec"), {})
    init, cv, check = (line for line in LINES if "my" in line)
    run_lines(tmp_path, [f"{init} data.folds=2", f"{cv} train.budget=none train.epochs=1", check])
    assert len(Path("submissions/my-competition.csv").read_text().splitlines()) == 301


@pytest.mark.slow  # a minute
def test_every_command_for_automated_users_prints_one_json_value(tmp_path: Path) -> None:
    check = f"{shlex.quote(sys.executable)} -m json.tool > /dev/null"
    run_lines(tmp_path, [f"set -o pipefail; {line} | {check}" for line in AGENTS_LINES])
    assert (tmp_path / "submissions" / "quickstart.csv").is_file()


def test_the_page_for_automated_users_is_short_and_says_what_holds() -> None:
    assert len(AGENTS.splitlines()) <= 80
    assert all((REPOSITORY / path).is_file() for path in re.findall(r"\]\(([^)]+)\)", AGENTS))
    codes = {int(code) for code in re.findall(r"^\| (\d+)", AGENTS, re.MULTILINE)}
    assert codes == {0, 1, UserError.exit_code, Interrupted(signal.SIGINT).exit_code}
    assert len(AGENTS_LINES) >= 10
    assert all(line.endswith("--json") for line in AGENTS_LINES)


@pytest.mark.slow  # a whole study
def test_its_study_runs(tmp_path: Path) -> None:
    blocks = CONSOLE.findall((HOWTO / "tuning.md").read_text())
    lines = [line for block in blocks for line in block.splitlines() if "quickstart-tune" in line]
    assert len(lines) == 2
    run_lines(tmp_path, lines)
    assert list((tmp_path / "runs").rglob("best.yaml"))


@pytest.mark.parametrize("path", sorted(set(re.findall(r"configs/\S+?\.yaml|docs/[\w/.-]+\w|CHANGELOG\.md", README))))
def test_every_file_it_names_exists(path: str) -> None:
    assert (REPOSITORY / path).is_file()


def test_every_verb_of_the_command_line_is_named() -> None:
    for words in commands(GROUP):
        assert re.search(rf"comp {words[0]}\b", README), words


def test_it_is_short_and_its_picture_loads_nothing() -> None:
    assert len(README.splitlines()) < 150
    picture = REPOSITORY / re.findall(r"!\[[^\]]+\]\(([^)]+)\)", README)[0]
    assert picture.stat().st_size < 300_000
    text = picture.read_text()
    assert ElementTree.fromstring(text).tag.endswith("svg")
    assert not re.search(r"(?:href|src|@import|url)\b", text)
    assert "prefers-color-scheme: dark" in text
