"""A small real dataset on disk, configs of it, and the command line as its users call it."""

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

from comp.cli import app
from tests.support.commands import Result
from tests.support.configs import QUICK, small_config, write_arrays, write_config

# A loaded machine is slow, not wrong; and CI must say the same of the same code twice.
settings.register_profile("comp", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("comp")
os.environ.pop("COLUMNS", None)  # a worker of the suite has it, and tables would be as narrow as its window
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # of a shell's `&`: commands would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ["WANDB_MODE"] = "disabled"  # nothing is tracked but by the tests of tracking


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Keep what is timed out of the user's cache; tests of timing have folders of their own."""
    folder = tmp_path_factory.mktemp("cache")
    os.environ["COMP_CACHE"] = str(folder)
    return folder


@pytest.fixture
def comp(capfd: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Run the command line in this process, through the same `main` as `comp`."""

    def call(*arguments: object) -> Result:
        capfd.readouterr()
        with pytest.raises(SystemExit) as exit_:
            app.main([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        return Result(int(exit_.value.code or 0), out, err)

    return call


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory with a dataset in `data/` and its config in `small.yaml`."""
    monkeypatch.chdir(tmp_path)
    write_config(tmp_path / "small.yaml", small_config(write_arrays(tmp_path / "data")))
    return tmp_path


@pytest.fixture(scope="session")
def three_trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data, their config and three runs, predictions made: two of one network, and one of another."""
    from comp import config as configs
    from comp.workflows.load import load_run
    from comp.workflows.predict import predict_split, score_test
    from comp.workflows.train import train

    folder = tmp_path_factory.mktemp("three")
    write_arrays(folder / "data", train=240)
    config = write_config(folder / "small.yaml", small_config(folder / "data"))
    for seed, more in ((0, []), (1, []), (2, ["model.args={depth: 3}"])):
        wanted = configs.load(config, [*QUICK, f"seed={seed}", *more])
        loaded = load_run(train(wanted, name=f"seed{seed}", runs_root=folder / "runs"))
        score_test(loaded)
        predict_split(loaded, "suite")
    return folder


@pytest.fixture
def three_runs(three_trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with `small.yaml` and copies of the three runs in `runs/small/*-seed0`, 1 and 2."""
    shutil.copytree(three_trained / "runs", tmp_path / "runs")
    shutil.copy(three_trained / "small.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path
