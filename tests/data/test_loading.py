"""Workers that decode image files stay from one pass to the next, and end with the data."""

import gc
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from comp import config as configs
from comp.data import loading
from comp.data.dataset import Dataset, open_dataset
from comp.runtime.errors import DataError
from comp.workflows import train as pipeline
from tests.support.configs import write_config

WORKERS = 2


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a folder of images, streamed by two workers, and `files.yaml`."""
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    for number in range(60):
        path = Path("data", "train", f"class{number % 3}", f"{number:02d}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (16, 16, 3), np.uint8)).save(path)
    write_config(
        Path("files.yaml"),
        {
            "competition": {"name": "files", "suite": {"source": "none"}, "ood_validation": {"severities": []}},
            "data": {
                "source": "image_folder", "root": "data", "validation": 0.4, "loading": "streamed", "workers": WORKERS,
            },
            "model": {"name": "convnet"},
            "augment": {"policy": "basic"},
            "predict": {"batch_size": 8},
            "train": {
                "epochs": 3, "batch_size": 8, "precision": "fp32", "channels_last": False, "device": "cpu",
                "threads": 1, "compile": False,
            },
        },
    )  # fmt: skip
    return tmp_path


def opened() -> Dataset:
    """Return the folder's data."""
    return open_dataset(configs.load("files.yaml"))


def workers() -> set[int]:
    """Return the process numbers of all workers that live."""
    return {process.pid for process in multiprocessing.active_children() if process.pid}


def pixels(dataset: Dataset) -> np.ndarray:
    """Return validation as its workers decode it."""
    assert dataset.val is not None
    return np.concatenate(list(loading.iter_chunks(dataset.val, 4)))


@pytest.mark.usefixtures("pictures")
def test_training_validation_and_scoring_share_workers_that_end_with_the_data() -> None:
    before, seen = workers(), set[int]()

    def progress(what: str, done: int, total: int, unit: str = "images", note: str = "") -> None:
        seen.update(workers() - before)

    dataset = opened()
    pipeline.train(configs.load("files.yaml"), dataset=dataset, progress=progress)
    assert len(seen) == WORKERS
    pixels(dataset)
    assert workers() - before == seen
    del dataset
    gc.collect()
    assert workers() == before


@pytest.mark.usefixtures("pictures")
def test_pixels_are_the_same_in_every_pass_whole_or_not() -> None:
    dataset = opened()
    assert dataset.val is not None
    expected = np.asarray(dataset.val.images)
    assert np.array_equal(pixels(dataset), expected)
    for _ in loading.iter_chunks(dataset.val, 4):
        break  # the rest of the pass is never asked for
    assert np.array_equal(pixels(dataset), expected)
    for one, other in zip(loading.iter_chunks(dataset.val, 4), loading.iter_chunks(dataset.val, 4), strict=True):
        assert np.array_equal(one, other)
    train = loading.build_loader(dataset.train, torch.device("cpu"), resident=False, workers=WORKERS)
    order = torch.arange(len(dataset.train)).flip(0)
    for batch in train.batches(order, 8, epoch=1, start=2):
        wanted = np.asarray(dataset.train.images[batch.indices.numpy()])
        assert np.array_equal(batch.images.permute(0, 2, 3, 1).numpy(), wanted)
    assert np.array_equal(pixels(dataset), expected)


@pytest.mark.usefixtures("pictures")
def test_after_a_file_that_cannot_be_read_and_a_killed_worker_others_are_started() -> None:
    dataset = opened()
    assert dataset.val is not None
    before, expected = workers(), np.asarray(dataset.val.images)
    assert np.array_equal(pixels(dataset), expected)
    path = Path(str(dataset.val.images.paths[5]))  # type: ignore[union-attr]
    content = path.read_bytes()
    path.write_bytes(b"no image")
    with pytest.raises(DataError, match=path.name):
        pixels(dataset)
    path.write_bytes(content)
    assert np.array_equal(pixels(dataset), expected)
    os.kill(next(iter(workers() - before)), signal.SIGKILL)
    with pytest.raises(RuntimeError, match="worker"):
        list(map(pixels, [dataset] * 1000))  # it is noticed in the first pass, or in one soon after
    assert np.array_equal(pixels(dataset), expected)


@pytest.mark.usefixtures("pictures")
def test_a_process_that_ends_with_its_data_open_ends_in_silence() -> None:
    code = (
        "from comp import config; from comp.data import dataset, loading\n"
        "data = dataset.open_dataset(config.load('files.yaml')); print(len(list(loading.iter_chunks(data.val, 4))))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "6\n", "")
