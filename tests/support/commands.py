"""The command line, in a process of its own and in this one, and what a refusal looks like."""

import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer.main

from comp.cli import app
from comp.runtime.errors import Interrupted

REPOSITORY = Path(__file__).parents[2]


@dataclass(frozen=True)
class Result:
    """What a command left: exit code and both streams."""

    code: int
    out: str
    err: str


def comp_process(*arguments: object, cwd: Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    command = [sys.executable, "-m", "comp", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300, check=False, **options)


def children_of(parent: int) -> dict[int, int]:
    """Return the processes that a process has started: rank -> pid."""
    pids = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            stat, environment = (folder / "stat").read_text(), (folder / "environ").read_bytes()
        except OSError:
            continue
        if int(stat.rpartition(")")[2].split()[1]) == parent:
            pids.update({int(word[5:]): int(folder.name) for word in environment.split(b"\0") if word[:5] == b"RANK="})
    return pids


def interrupt_at(step: int) -> Callable[..., None]:
    """Return a progress that asks for a stop, as SIGTERM does, when a training has taken so many steps."""
    taken = 0

    def progress(what: str, done: int, total: int, unit: str = "images", note: str = "") -> None:
        nonlocal taken
        taken += unit == "steps"
        if taken == step:
            raise Interrupted(signal.SIGTERM)

    return progress


def assert_refused(result: Result, *parts: str) -> None:
    """Assert exit code 2 and one message that has every part and is no traceback."""
    assert result.code == 2, result.err
    assert "Traceback" not in result.err
    (line,) = [line for line in result.err.splitlines() if line.startswith("error: ")]
    for part in parts:
        assert part in result.err, result.err
    assert len(line) < 600


GROUP = typer.main.get_command(app.app)


def commands(group: object, prefix: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Return every command's words."""
    words: list[tuple[str, ...]] = []
    for name, command in getattr(group, "commands", {}).items():
        words += commands(command, (*prefix, name)) if hasattr(command, "commands") else [(*prefix, name)]
    return words
