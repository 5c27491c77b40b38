"""The benchmark of what is asked of a GPU works before there is one: every part, at a tiny size, on the CPU."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.commands import REPOSITORY

PARTS = (
    "94 % on",
    "a bare step",
    "tutorial's loop",
    "950,000",
    "the suite of",
    "policies:",
    "corruptions:",
    "`augmix`",
)


def run_benchmark(*arguments: object, timeout: float) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "benchmarks.gpu", "--quick", "--device", "cpu", *map(str, arguments)]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=timeout, check=False)


@pytest.mark.slow
def test_every_part_of_the_gpu_benchmark_runs_on_a_cpu_and_says_so(tmp_path: Path) -> None:
    done = run_benchmark("--seconds", 1500, "--out", tmp_path / "gpu.md", timeout=1600)
    assert done.returncode == 0, done.stdout + done.stderr
    table = (tmp_path / "gpu.md").read_text()
    assert "no GPU's numbers" in table.splitlines()[0]
    rows = [line for line in table.splitlines() if line.startswith("| ")][1:]
    for part in PARTS:
        assert any(part in row for row in rows), part
    assert not any("yes" in row or "**no**" in row for row in rows)  # nothing is claimed


@pytest.mark.slow
def test_a_part_that_is_stopped_leaves_the_others_their_rows(tmp_path: Path) -> None:
    out = tmp_path / "gpu.md"
    done = run_benchmark("--only", "pixels", "suite", "--seconds", 2, "--out", out, timeout=300)
    assert done.returncode == 1
    assert "stopped after 2 s" in out.read_text()
    assert "| suite | no time was left |" in out.read_text()
