"""A small real dataset on disk, configs of it, and the command line as its users call it."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import settings

from comp.cli import app
from comp.runtime.errors import Interrupted

# A loaded machine is slow, not wrong; and CI must say the same of the same code twice.
settings.register_profile("comp", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("comp")
os.environ.pop("COLUMNS", None)  # a worker of the suite has it, and tables would be as narrow as its window
os.environ["WANDB_MODE"] = "disabled"  # nothing is tracked but by the tests of tracking

REPOSITORY = Path(__file__).parent.parent


@dataclass(frozen=True)
class Result:
    """What a command left: exit code and both streams."""

    code: int
    out: str
    err: str


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


def comp_process(*arguments: object, cwd: Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    command = [sys.executable, "-m", "comp", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300, check=False, **options)


def write_arrays(folder: Path, *, train: int = 160, test: int = 40, classes: int = 4, size: int = 32) -> Path:
    """Write an `arrays` dataset that a small net can learn: each class has a colour of its own under noise."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    colours = generator.integers(40, 216, (classes, 3))
    for name, count in (("train", train), ("test", test)):
        labels = np.arange(count) % classes
        noise = generator.normal(0, 25, (count, size, size, 3))
        images = np.clip(colours[labels][:, None, None] + noise, 0, 255).astype(np.uint8)
        np.save(folder / f"{name}_images.npy", images)
        np.save(folder / f"{name}_labels.npy", labels)
    return folder


def small_config(root: Path) -> dict[str, Any]:
    """Return a config that goes through every stage in a second or two."""
    return {
        "competition": {
            "name": "small",
            "suite": {"images_per_block": 4},
            "ood_validation": {"severities": [3], "per_block": 4},
        },
        "data": {"source": "arrays", "root": str(root), "validation": 0.2},
        "model": {"name": "simple_cnn", "args": {"depth": 2}},
        "augment": {"policy": "basic", "mixup": 0.4},
        "train": {
            "epochs": 2, "batch_size": 32, "label_smoothing": 0.1,
            "precision": "fp32", "channels_last": False, "device": "cpu", "threads": 1, "compile": False,
        },
    }  # fmt: skip


def write_config(path: Path, values: dict[str, Any]) -> Path:
    """Write a config file."""
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def interrupt_at(step: int) -> Callable[..., None]:
    """Return a progress that asks for a stop, as SIGTERM does, when a training has taken so many steps."""
    taken = 0

    def progress(what: str, done: int, total: int, unit: str = "images", note: str = "") -> None:
        nonlocal taken
        taken += unit == "steps"
        if taken == step:
            raise Interrupted(signal.SIGTERM)

    return progress


@dataclass(frozen=True)
class Changed:
    """A loader's transform that reads images as configured, and then changes them."""

    change: Callable[[np.ndarray, int, int], np.ndarray]  # type: ignore[type-arg]

    def box(self, found: tuple[int, int], size: tuple[int, int], epoch: int, index: int) -> None:
        """Crop nothing."""

    def __call__(self, image: np.ndarray, epoch: int, index: int) -> np.ndarray:  # type: ignore[type-arg]
        """Return the image changed."""
        return self.change(image, epoch, index)


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory with a dataset in `data/` and its config in `small.yaml`."""
    monkeypatch.chdir(tmp_path)
    write_config(tmp_path / "small.yaml", small_config(write_arrays(tmp_path / "data")))
    return tmp_path


# Overrides of `small.yaml` for tests of what follows training: one epoch, six blocks to submit.
QUICK = [
    "train.epochs=1", "competition.suite.files=3", "competition.suite.severities=2",
    "competition.ood_validation.per_block=12",
]  # fmt: skip


@pytest.fixture(scope="session")
def three_trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data, their config and three runs, predictions made: two of one network, and one of another."""
    from comp import config as configs
    from comp.workflows import predict
    from comp.workflows import train as pipeline

    folder = tmp_path_factory.mktemp("three")
    write_arrays(folder / "data", train=240)
    config = write_config(folder / "small.yaml", small_config(folder / "data"))
    for seed, more in ((0, []), (1, []), (2, ["model.args={depth: 3}"])):
        wanted = configs.load(config, [*QUICK, f"seed={seed}", *more])
        loaded = predict.load(pipeline.train(wanted, name=f"seed{seed}", runs_root=folder / "runs"))
        predict.evaluate(loaded)
        predict.predict(loaded)
    return folder


@pytest.fixture
def three_runs(three_trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with `small.yaml` and copies of the three runs in `runs/small/*-seed0`, 1 and 2."""
    shutil.copytree(three_trained / "runs", tmp_path / "runs")
    shutil.copy(three_trained / "small.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path
