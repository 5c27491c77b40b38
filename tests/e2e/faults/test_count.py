"""How many faults the automated set has: every case of this folder, slow ones too."""

import subprocess
import sys

import pytest

from tests.support.commands import REPOSITORY

LEAST = 20


@pytest.mark.slow
def test_the_automated_set_has_at_least_so_many_cases() -> None:
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-m", "", "-p", "no:xdist", "tests/e2e/faults"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    cases = [line for line in done.stdout.splitlines() if "::" in line and "test_count" not in line]
    assert len(cases) >= LEAST, done.stdout[-2000:] + done.stderr
