"""Find the runs that a test trained, and compare them bit for bit."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from comp.results import runs
from tests.support.commands import Result


def the_run(folder: Path = Path("runs")) -> runs.Run:
    """Return the one run below a folder."""
    (run,) = runs.list_runs(folder)
    return run


def history_without_clock(run: runs.Run) -> list[dict[str, str]]:
    """Return history.csv less what the clock writes."""
    clock = {"seconds", "images_per_second"}
    return [{key: value for key, value in row.items() if key not in clock} for row in run.history()]


def weights_of(run: runs.Run, name: str = "final") -> dict[str, Any]:
    """Return a run's weights as arrays."""
    return safetensors.numpy.load((run.path / f"{name}.safetensors").read_bytes())


def assert_same_weights(one: runs.Run, other: runs.Run) -> None:
    """Assert that two runs ended with the same bits."""
    first, second = weights_of(one), weights_of(other)
    assert first.keys() == second.keys()
    assert all(np.array_equal(first[name], second[name]) for name in first)


Comp = Callable[..., Result]


def members() -> list[Path]:
    """Return the trained runs' folders by seed."""
    return sorted(Path("runs/small").glob("*-seed[0-9]"), key=lambda path: path.name.split("seed")[-1])


def made(comp: Comp, *arguments: object) -> tuple[runs.Run, dict[str, Any]]:
    """Run `comp ensemble` and return the result and its metrics."""
    result = comp("ensemble", *arguments, "--json", "--runs", "made")
    assert result.code == 0, result.err
    values = json.loads(result.out)
    return runs.open_run(Path("made") / values["run"]), values
