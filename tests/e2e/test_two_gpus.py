"""docs/TWO_GPUS.md as it stands, with two processes on CPUs in place of two GPUs."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from comp.results import runs
from tests.support.commands import REPOSITORY
from tests.support.configs import small_config, write_config

PAGE = (REPOSITORY / "docs/TWO_GPUS.md").read_text()
BLOCKS = re.findall(r"^```console\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
CONFIG = "configs/cifar100-ood/best_1gpu.yaml"
EPOCHS = 150  # more than a session holds


@pytest.mark.slow  # four starts of torch, two at a time
def test_a_session_that_ends_too_soon_goes_on_in_the_next(workplace: Path) -> None:
    bundle, work, last = (workplace / name for name in ("bundle", "working", "last"))
    (bundle / Path(CONFIG).parent).mkdir(parents=True)
    work.mkdir()
    (workplace / "data").rename(bundle / "data")
    values = small_config(Path("data"))
    values["train"] = {**values["train"], "epochs": EPOCHS, "checkpoint_seconds": 1}
    write_config(bundle / CONFIG, values)
    scripts = workplace / "bin"
    scripts.mkdir()
    (scripts / "comp").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m comp "$@"\n')
    (scripts / "comp").chmod(0o755)
    environment = {**os.environ, "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    environment |= {"IN": str(bundle), "WORK": str(work), "LAST": str(last)}

    def start(block: str, prefix: str = "") -> "subprocess.Popen[bytes]":
        lines = [line for line in block.splitlines() if not line.startswith(("export", "pip"))]
        return subprocess.Popen(["bash", "-ec", prefix + "\n".join(lines)], env=environment)

    first, following = BLOCKS[2], BLOCKS[3]
    session = start(first, "exec ")  # `timeout` passes on what it is sent, as when its time has come
    while not list(work.glob("runs/*/*/state.pt")):
        assert session.poll() is None
        time.sleep(0.05)
    session.send_signal(signal.SIGTERM)
    assert session.wait(timeout=60) == 128 + signal.SIGTERM
    (stopped,) = runs.list_runs(work / "runs")
    assert not stopped.is_complete()
    assert (stopped.path / "state.pt").exists()
    assert len(stopped.history()) < EPOCHS
    work.rename(last)  # what a session keeps is the next one's input
    work.mkdir()
    assert start(following).wait(timeout=500) == 0
    (finished,) = runs.list_runs(work / "runs")
    assert finished.is_complete()
    assert len(finished.history()) == EPOCHS
    assert list((work / "submissions").glob("*.csv"))
