"""Checks that run on the pretend device, in a process of their own; `tests/device` reads their outcomes.

    python -m tests.support.on_device cuda outcomes.json op policy/basic

starts the device as CUDA, runs the checks with these names or below them, and writes an `Outcome` for each. A module's
`checks()` names its checks after the rows of our registries, so that a new row is checked without a new line here.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from tests.support.commands import REPOSITORY

Values = dict[str, Any]
Check = Callable[[torch.device], Values | None]


@dataclass(frozen=True)
class Outcome:
    """What a check left: the error that it ended with, empty if it passed, and what it measured."""

    error: str = ""
    values: Values = field(default_factory=dict)


# From a device and names of checks to their outcomes by name.
Outcomes = Callable[[str, Sequence[str]], dict[str, Outcome]]


def run_checks(device: str, folder: Path, names: Sequence[str]) -> dict[str, Outcome]:
    """Run checks on a device in a process of their own; return their outcomes by name.

    Args:
        device: `cuda`, `mps` or `pretend`.
        folder: an empty one, for the process to work in.
        names: of checks (`policy/basic`), or of groups (`op`).
    """
    path = folder / "outcomes.json"
    command = [sys.executable, "-W", "error", "-m", "tests.support.on_device", device, str(path), *names]
    done = subprocess.run(
        command,
        cwd=folder,
        env=_environment(),
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return {name: Outcome(**values) for name, values in json.loads(path.read_text()).items()}


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled"}
