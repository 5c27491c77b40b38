"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009, "Learning multiple layers of features from tiny images"), in both layouts.

| layout | CIFAR-10 | CIFAR-100 |
|---|---|---|
| python | `cifar-10-batches-py/data_batch_1` ... | `cifar-100-python/train`, `test`, `meta` |
| binary | `cifar-10-batches-bin/data_batch_1.bin` ... | `cifar-100-binary/train.bin`, `test.bin` |

A binary record is its label bytes (CIFAR-100: coarse, fine), then the red, green and blue planes of 32x32.
"""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from comp.config import DataConfig
from comp.data.downloads import through_torchvision
from comp.data.sources.source import Source, class_names, numbered
from comp.runtime.errors import DataError
from comp.runtime.progress import Progress

_SHAPE = (3, 32, 32)


def cifar10(config: DataConfig, progress: Progress, task: str = "auto") -> Source:
    """CIFAR-10, binary or python layout."""
    root = Path(config.root)
    binary, python = root / "cifar-10-batches-bin", root / "cifar-10-batches-py"
    if not binary.is_dir() and not python.is_dir():
        through_torchvision("CIFAR10", root, python, config.download)
    if binary.is_dir():
        classes = class_names(binary / "batches.meta.txt")
        train = [_read_binary(binary / f"data_batch_{number}.bin", 1, 0) for number in range(1, 6)]
        test = _read_binary(binary / "test_batch.bin", 1, 0)
    else:
        classes = _names(_unpickle(python / "batches.meta"), "label_names", python)
        train = [_read_python(python / f"data_batch_{number}", "labels") for number in range(1, 6)]
        test = _read_python(python / "test_batch", "labels")
    return _cifar(train, test, classes)


def cifar100(config: DataConfig, progress: Progress, task: str = "auto") -> Source:
    """CIFAR-100, binary or python layout, with its 100 fine or 20 coarse labels (`data.labels`)."""
    root, labels = Path(config.root), config.labels
    binary, python = root / "cifar-100-binary", root / "cifar-100-python"
    if not binary.is_dir() and not python.is_dir():
        through_torchvision("CIFAR100", root, python, config.download)
    if binary.is_dir():
        classes = class_names(binary / f"{labels}_label_names.txt")
        place = ("coarse", "fine").index(labels)
        train, test = (_read_binary(binary / f"{name}.bin", 2, place) for name in ("train", "test"))
    else:
        classes = _names(_unpickle(python / "meta"), f"{labels}_label_names", python)
        train, test = (_read_python(python / name, f"{labels}_labels") for name in ("train", "test"))
    return _cifar([train], test, classes)


def _cifar(train: list[tuple[Any, Any]], test: tuple[Any, Any], classes: tuple[str, ...]) -> Source:
    images = np.concatenate([images for images, _ in train])
    labels = np.concatenate([labels for _, labels in train])
    return Source(numbered("train", images, labels), numbered("test", *test), classes, numbered=True)


def _read_binary(path: Path, label_bytes: int, place: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return images [N, 32, 32, 3] and labels [N], which are byte `place` of each record."""
    try:
        raw = np.fromfile(path, np.uint8)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}; fetch the dataset again") from None
    record = label_bytes + 3072
    if not len(raw) or len(raw) % record:
        raise DataError(f"{path}: is truncated: {len(raw):,} bytes are not a multiple of {record}; fetch it again")
    records = raw.reshape(-1, record)
    planes = records[:, label_bytes:].reshape(-1, *_SHAPE)
    return np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), records[:, place].astype(np.int64)


def _read_python(path: Path, key: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    batch = _unpickle(path)
    pixels, labels = batch.get("data"), batch.get(key)
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape[1:] != (3072,):
        raise DataError(f"{path}: expected `data` uint8 [N, 3072]; fetch the dataset again")
    if not isinstance(labels, list) or len(labels) != len(pixels):
        raise DataError(f"{path}: expected `{key}`, one for each of {len(pixels)} images; fetch the dataset again")
    planes = pixels.reshape(-1, *_SHAPE)
    return np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), np.array(labels, np.int64)


class _PlainUnpickler(pickle.Unpickler):
    """Reads the published CIFAR batches, which are pickles, and nothing that could run code."""

    def find_class(self, module: str, name: str) -> Any:
        if (module.split(".")[0], name) in {("numpy", "_reconstruct"), ("numpy", "ndarray"), ("numpy", "dtype")}:
            return super().find_class(module.replace("numpy.core", "numpy._core"), name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no CIFAR file needs")


def _unpickle(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            values = _PlainUnpickler(file, encoding="bytes").load()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; fetch the dataset again") from None
    except (pickle.UnpicklingError, EOFError, ValueError, IndexError, TypeError, AttributeError, OSError) as error:
        raise DataError(f"{path}: not a published CIFAR batch: {error}; fetch the dataset again") from None
    if not isinstance(values, dict):
        raise DataError(f"{path}: not a published CIFAR batch; fetch the dataset again")
    return {key.decode() if isinstance(key, bytes) else str(key): value for key, value in values.items()}


def _names(meta: dict[str, Any], key: str, folder: Path) -> tuple[str, ...]:
    names = meta.get(key)
    if not isinstance(names, list) or not names:
        raise DataError(f"{folder}: its meta file lacks {key}; fetch the dataset again")
    return tuple(name.decode() if isinstance(name, bytes) else str(name) for name in names)
