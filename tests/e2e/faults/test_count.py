"""How many faults the automated set has: every case of this folder, slow ones too."""

import re
import subprocess
import sys

import pytest

from tests.support.commands import REPOSITORY

LEAST = 700


@pytest.mark.slow
def test_the_automated_set_has_at_least_so_many_cases() -> None:
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-m", "", "-p", "no:xdist", "tests/e2e/faults"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    counts = re.findall(r"^tests/e2e/faults/(?!test_count)\w+\.py: (\d+)$", done.stdout, re.MULTILINE)
    assert sum(map(int, counts)) >= LEAST, done.stdout[-2000:] + done.stderr
