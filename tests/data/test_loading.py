"""Loaders give the same batches however they read; workers stay from pass to pass and end with the data."""

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
from comp.config import DataConfig
from comp.data import loading
from comp.data.dataset import Dataset, open_dataset
from comp.data.sources import open_source
from comp.runtime import memory, rng
from comp.runtime.errors import DataError, WorkersError
from comp.workflows import train
from tests.support.configs import write_config
from tests.support.images import Changed
from tests.support.photographs import photographs_config, write_folders

CPU = torch.device("cpu")
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
                "source": "image_folder",
                "root": "data",
                "validation": 0.4,
                "loading": "streamed",
                "workers": WORKERS,
            },
            "model": {"name": "convnet"},
            "augment": {"policy": "basic"},
            "predict": {"batch_size": 8},
            "train": {
                "epochs": 3,
                "batch_size": 8,
                "precision": "fp32",
                "channels_last": False,
                "device": "cpu",
                "threads": 1,
                "compile": False,
            },
        },
    )
    return tmp_path


def open_pictures() -> Dataset:
    """Return the folder's data."""
    return open_dataset(configs.load("files.yaml"))


def list_workers() -> set[int]:
    """Return the process ids of all live workers."""
    return {process.pid for process in multiprocessing.active_children() if process.pid}


def read_val(dataset: Dataset) -> np.ndarray:
    """Return the validation pixels as workers decode them."""
    assert dataset.val is not None
    return np.concatenate(list(loading.iter_chunks(dataset.val, 4)))


def open_photographs(root: Path, **data: object) -> Dataset:
    """Open a set of photographs without a suite."""
    values = photographs_config(root, "image_folder")
    values["competition"]["suite"] = {"source": "none"}
    values["data"].update(data)
    return open_dataset(configs.from_mapping(values, "here"))


def invert_some(image: np.ndarray, epoch: int, index: int) -> np.ndarray:
    """Invert an image or not, by epoch and index alone."""
    return 255 - image if (epoch + index) % 2 else image


def halve(image: np.ndarray, epoch: int, index: int) -> np.ndarray:
    """Return half of the image's rows."""
    return image[::2]


def read_epoch(loader: loading.Loader, start: int = 0) -> list[loading.Batch]:
    """Return an epoch's batches."""
    return list(loader.batches(rng.order(3, 1, len(loader), CPU), 4, epoch=1, start=start))


def batches_equal(left: list[loading.Batch], right: list[loading.Batch]) -> bool:
    """Return whether batches are identical."""
    return len(left) == len(right) and all(
        all(torch.equal(torch.as_tensor(a), torch.as_tensor(b)) for a, b in zip(first, second, strict=True))
        for first, second in zip(left, right, strict=True)
    )


@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker")  # on a machine of two cores
@pytest.mark.parametrize("workers", [0, 2, 3])
@pytest.mark.parametrize("transform", [None, Changed(invert_some)])
def test_batches_do_not_depend_on_workers_residence_or_where_an_epoch_begins(
    tmp_path: Path, workers: int, transform: loading.Transform | None
) -> None:
    write_folders(tmp_path, train=6, val=0)
    train = open_photographs(tmp_path, validation="none").train
    resident = loading.build_loader(train.decoded(), CPU, resident=True, workers=0, transform=transform)
    streamed = loading.build_loader(train, CPU, resident=False, workers=workers, transform=transform)
    whole = read_epoch(resident)
    assert len(whole) == 4
    assert whole[0].images.shape == (4, 3, 32, 32)
    assert batches_equal(read_epoch(streamed), whole)
    assert batches_equal(read_epoch(streamed, start=3), whole[3:])  # by the same workers
    assert isinstance(resident, loading.ResidentLoader) == (transform is None)


def test_arrays_are_streamed_on_demand(workplace: Path) -> None:
    train = open_source(DataConfig(source="arrays", root="data")).train
    streamed = loading.build_loader(train, CPU, resident=False, workers=2)
    assert batches_equal(read_epoch(streamed), read_epoch(loading.load_resident(train, CPU)))


@pytest.mark.parametrize("resident", [True, False])
def test_images_for_a_device_without_float64_stay_on_the_host_to_be_augmented(workplace: Path, resident: bool) -> None:
    train = open_source(DataConfig(source="arrays", root="data")).train
    batch = read_epoch(loading.build_loader(train, torch.device("mps"), resident=resident, workers=0))[0]
    assert batch.images.device == batch.labels.device == CPU


def test_streaming_leaves_the_global_generator_alone(tmp_path: Path) -> None:
    write_folders(tmp_path, train=6, val=0)
    loader = loading.build_loader(open_photographs(tmp_path).train, CPU, resident=False, workers=0)
    before = torch.random.get_rng_state()
    read_epoch(loader)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_in_a_worker_is_raised_as_one_message(tmp_path: Path, workers: int) -> None:
    write_folders(tmp_path, train=6, val=0)
    train = open_photographs(tmp_path).train
    (tmp_path / train.ids[0]).unlink()
    with pytest.raises(DataError, match=r"no such file$"):
        read_epoch(loading.build_loader(train, CPU, resident=False, workers=workers))
    train = open_photographs(tmp_path).train
    with pytest.raises(DataError, match=r"augment\.albumentations: .*\[32, 32, 3\] .*\[16, 32, 3\]"):
        read_epoch(loading.build_loader(train, CPU, resident=False, workers=workers, transform=Changed(halve)))


@pytest.mark.parametrize("workers", [0, 2])
def test_chunks_are_the_split_in_order(tmp_path: Path, workers: int) -> None:
    write_folders(tmp_path, train=6, val=0)
    train = open_photographs(tmp_path, workers=workers).train
    chunks = list(loading.iter_chunks(train, 4))
    assert [len(chunk) for chunk in chunks] == [4, 4, 4, 1]
    assert np.array_equal(np.concatenate(chunks), np.asarray(train.images))


def test_image_files_stay_resident_if_they_fit_in_free_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folders(tmp_path, train=6, val=0)
    train = open_photographs(tmp_path).train
    assert loading.residency(train, None, "auto", CPU) == (True, "")
    assert loading.residency(train, None, "streamed", CPU) == (False, "")
    monkeypatch.setattr(memory, "free_host_bytes", lambda: 4 * train.images.nbytes - 4)
    resident, note = loading.residency(train, None, "auto", CPU)
    assert not resident
    assert "data.loading" in note
    assert loading.residency(train.decoded(), None, "auto", CPU).resident


@pytest.mark.usefixtures("pictures")
def test_training_validation_and_scoring_share_workers_that_end_with_the_data() -> None:
    before, seen = list_workers(), set[int]()

    def progress(what: str, done: int, total: int, unit: str = "images", note: str = "") -> None:
        seen.update(list_workers() - before)

    dataset = open_pictures()
    train.train(configs.load("files.yaml"), dataset=dataset, progress=progress)
    assert len(seen) == WORKERS
    read_val(dataset)
    assert list_workers() - before == seen
    del dataset
    gc.collect()
    assert list_workers() == before


@pytest.mark.usefixtures("pictures")
def test_pixels_are_the_same_in_every_pass_complete_or_not() -> None:
    dataset = open_pictures()
    assert dataset.val is not None
    expected = np.asarray(dataset.val.images)
    assert np.array_equal(read_val(dataset), expected)
    for _ in loading.iter_chunks(dataset.val, 4):
        break  # the rest of the pass is not read
    assert np.array_equal(read_val(dataset), expected)
    for left, right in zip(loading.iter_chunks(dataset.val, 4), loading.iter_chunks(dataset.val, 4), strict=True):
        assert np.array_equal(left, right)
    train = loading.build_loader(dataset.train, CPU, resident=False, workers=WORKERS)
    order = torch.arange(len(dataset.train)).flip(0)
    for batch in train.batches(order, 8, epoch=1, start=2):
        expected_batch = np.asarray(dataset.train.images[batch.indices.numpy()])
        assert np.array_equal(batch.images.permute(0, 2, 3, 1).numpy(), expected_batch)
    assert np.array_equal(read_val(dataset), expected)


@pytest.mark.usefixtures("pictures")
def test_new_workers_start_after_an_unreadable_file_and_after_a_killed_worker() -> None:
    dataset = open_pictures()
    assert dataset.val is not None
    before, expected = list_workers(), np.asarray(dataset.val.images)
    assert np.array_equal(read_val(dataset), expected)
    path = Path(str(dataset.val.images.paths[5]))  # type: ignore[union-attr]
    content = path.read_bytes()
    path.write_bytes(b"no image")
    with pytest.raises(DataError, match=path.name):
        read_val(dataset)
    path.write_bytes(content)
    assert np.array_equal(read_val(dataset), expected)
    os.kill(next(iter(list_workers() - before)), signal.SIGKILL)
    with pytest.raises(WorkersError, match="SIGKILL"):
        list(map(read_val, [dataset] * 1000))  # in the first pass, or soon after: it may still have time to die
    assert np.array_equal(read_val(dataset), expected)


@pytest.mark.usefixtures("pictures")
def test_a_process_with_open_data_exits_without_output() -> None:
    code = (
        "from comp import config; from comp.data import dataset, loading\n"
        "data = dataset.open_dataset(config.load('files.yaml')); print(len(list(loading.iter_chunks(data.val, 4))))"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert (process.returncode, process.stdout, process.stderr) == (0, "6\n", "")
