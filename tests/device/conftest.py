"""Runs checks on the pretend device once, in a process for each of their modules and devices, for all tests here."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import pytest
from filelock import FileLock

from tests.support.on_device import Outcome, Outcomes, run_checks


@pytest.fixture(scope="session")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    """Return the outcomes of checks on a device; each list of checks runs once, whatever number of workers ask."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent

    def run(device: str, names: Sequence[str]) -> dict[str, Outcome]:
        folder = shared / f"pretend-{device}-{names[0].replace('/', '-')}"
        with FileLock(f"{folder}.lock"):
            path = Path(f"{folder}.json")
            if not path.exists():
                folder.mkdir()
                done = {name: asdict(outcome) for name, outcome in run_checks(device, folder, names).items()}
                path.write_text(json.dumps(done))
            return {name: Outcome(**values) for name, values in json.loads(path.read_text()).items()}

    return run
