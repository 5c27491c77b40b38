"""Complete runs that several tests copy, so that each is trained once."""

import contextlib
import io
import os
import shutil
from pathlib import Path

import pytest

from comp.cli import app
from tests.support.configs import small_config, write_arrays, write_config


@pytest.fixture(scope="session")
def two_trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder where `comp run small.yaml` has run with seeds 0 and 1; `seed0.out` and `seed1.out` hold its stdout."""
    folder = tmp_path_factory.mktemp("two")
    write_config(folder / "small.yaml", small_config(write_arrays(folder / "data")))
    with contextlib.chdir(folder):
        for seed in (0, 1):
            out = io.StringIO()
            with contextlib.redirect_stdout(out), pytest.raises(SystemExit) as exit_:
                app.main(["run", "small.yaml", f"seed={seed}"])
            assert exit_.value.code == 0
            Path(f"seed{seed}.out").write_text(out.getvalue())
    return folder


@pytest.fixture
def two_runs(two_trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with copies of `runs/`, `submissions/` and `small.yaml`; the data stay where they are."""
    for name in os.listdir(two_trained):
        if name != "data":
            copy = shutil.copytree if (two_trained / name).is_dir() else shutil.copy
            copy(two_trained / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path
