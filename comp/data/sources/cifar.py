"""Where images and labels come from: one function and one row of `SOURCES` each.

A source reads the on-disk layout that its publisher uses, below `data.root`, and downloads what is missing through
torchvision where that offers it.
"""

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from comp.config import DataConfig
from comp.data.arrays import open_images, open_labels
from comp.data.splits import Split
from comp.errors import DataError, unknown

_CIFAR_SHAPE = (3, 32, 32)


@dataclass(frozen=True)
class Source:
    """What a dataset holds: labelled training images, its official test split if it has one, class names."""

    train: Split
    test: Split | None
    classes: tuple[str, ...]


def open_source(config: DataConfig) -> Source:
    """Return the source that `data.source` names.

    Raises:
        DataError: unknown name, or files that are missing or wrong.
    """
    if config.source not in SOURCES:
        raise DataError(f"data.source: {unknown('source', config.source, SOURCES)}")
    source = SOURCES[config.source](Path(config.root), config.download)
    _check_labels(source, config.source)
    return source


def digits(root: Path, download: bool) -> Source:
    """Handwritten digits that scikit-learn ships: 1,797 grey images of 8x8, brought to 32x32x3 (bilinear).

    Alpaydin and Kaynak 1998, UCI ML repository.
    """
    from PIL import Image
    from sklearn.datasets import load_digits

    bunch = load_digits()
    grey = np.round(bunch.images * (255 / 16)).astype(np.uint8)  # [1797, 8, 8], 17 levels
    large = [np.asarray(Image.fromarray(image).resize((32, 32), Image.Resampling.BILINEAR)) for image in grey]
    images = np.repeat(np.stack(large)[..., None], 3, axis=-1)  # [1797, 32, 32, 3]
    return Source(_split("train", images, bunch.target), None, tuple(str(digit) for digit in range(10)))


def cifar10(root: Path, download: bool) -> Source:
    """CIFAR-10 (Krizhevsky 2009), binary or python layout."""
    binary, python = root / "cifar-10-batches-bin", root / "cifar-10-batches-py"
    if not binary.is_dir() and not python.is_dir():
        _download("CIFAR10", root, python, download)
    if binary.is_dir():
        classes = _lines(binary / "batches.meta.txt")
        train = [_read_binary(binary / f"data_batch_{number}.bin", 1) for number in range(1, 6)]
        test = _read_binary(binary / "test_batch.bin", 1)
    else:
        classes = _names(_unpickle(python / "batches.meta"), "label_names", python)
        train = [_read_python(python / f"data_batch_{number}", "labels") for number in range(1, 6)]
        test = _read_python(python / "test_batch", "labels")
    return _cifar(train, test, classes)


def cifar100(root: Path, download: bool) -> Source:
    """CIFAR-100 (Krizhevsky 2009) with its 100 fine labels, binary or python layout."""
    binary, python = root / "cifar-100-binary", root / "cifar-100-python"
    if not binary.is_dir() and not python.is_dir():
        _download("CIFAR100", root, python, download)
    if binary.is_dir():
        classes = _lines(binary / "fine_label_names.txt")
        train, test = _read_binary(binary / "train.bin", 2), _read_binary(binary / "test.bin", 2)
    else:
        classes = _names(_unpickle(python / "meta"), "fine_label_names", python)
        train, test = _read_python(python / "train", "fine_labels"), _read_python(python / "test", "fine_labels")
    return _cifar([train], test, classes)


def arrays(root: Path, download: bool) -> Source:
    """NumPy files: `train_images.npy`, `train_labels.npy`, maybe `test_images.npy`, `test_labels.npy`, `classes.txt`.

    Images uint8 [N, H, W, 3] or [N, H, W, 1], labels whole numbers from 0 up.
    """
    images = open_images(root / "train_images.npy")
    train = _split("train", images, open_labels(root / "train_labels.npy", len(images)))
    test = None
    if (root / "test_images.npy").exists():
        images = open_images(root / "test_images.npy")
        test = _split("test", images, open_labels(root / "test_labels.npy", len(images)))
    assert train.labels is not None
    count = int(train.labels.max()) + 1
    names = _lines(root / "classes.txt") if (root / "classes.txt").exists() else tuple(str(c) for c in range(count))
    return Source(train, test, names)


SOURCES: dict[str, Callable[[Path, bool], Source]] = {
    "digits": digits,
    "cifar10": cifar10,
    "cifar100": cifar100,
    "arrays": arrays,
}


def _split(name: str, images: NDArray[np.uint8], labels: NDArray[Any]) -> Split:
    ids = np.array([f"{name}_{row}" for row in range(len(images))], np.str_)
    return Split(name, images, ids, labels.astype(np.int64))


def _cifar(train: list[tuple[Any, Any]], test: tuple[Any, Any], classes: tuple[str, ...]) -> Source:
    images = np.concatenate([images for images, _ in train])
    labels = np.concatenate([labels for _, labels in train])
    return Source(_split("train", images, labels), _split("test", *test), classes)


def _check_labels(source: Source, name: str) -> None:
    for split in (source.train, source.test):
        if split is None or split.labels is None:
            continue
        beyond = np.flatnonzero(split.labels >= len(source.classes))
        if len(beyond):
            row = int(beyond[0])
            raise DataError(
                f"{name}: {split.name} label {int(split.labels[row])} at row {row} is out of range: there are "
                f"{len(source.classes)} classes, 0 to {len(source.classes) - 1}"
            )


def _read_binary(path: Path, label_bytes: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return images [N, 32, 32, 3] and labels: each record is label bytes (the last is the fine one), then planes."""
    try:
        raw = np.fromfile(path, np.uint8)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}; fetch the dataset again") from None
    record = label_bytes + 3072
    if not len(raw) or len(raw) % record:
        raise DataError(f"{path}: is truncated: {len(raw):,} bytes are not a multiple of {record}; fetch it again")
    records = raw.reshape(-1, record)
    planes = records[:, label_bytes:].reshape(-1, *_CIFAR_SHAPE)
    return np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), records[:, label_bytes - 1].astype(np.int64)


def _read_python(path: Path, key: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    batch = _unpickle(path)
    pixels, labels = batch.get("data"), batch.get(key)
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape[1:] != (3072,):
        raise DataError(f"{path}: expected `data` uint8 [N, 3072]; fetch the dataset again")
    if not isinstance(labels, list) or len(labels) != len(pixels):
        raise DataError(f"{path}: expected `{key}`, one for each of {len(pixels)} images; fetch the dataset again")
    planes = pixels.reshape(-1, *_CIFAR_SHAPE)
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


def _lines(path: Path) -> tuple[str, ...]:
    try:
        return tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; it holds one class name a line, in label order") from None


def _download(name: str, root: Path, target: Path, allowed: bool) -> None:
    """Fetch and verify a dataset through torchvision, which knows its addresses and checksums."""
    from torchvision import datasets

    dataset = getattr(datasets, name)
    mend = f"put it in place: curl -L '{dataset.url}' | tar -xz -C '{root}'"
    if not allowed:
        raise DataError(f"{target}: {name} is missing and data.download is false; {mend}")
    try:
        dataset(str(root), download=True)
    except (OSError, RuntimeError) as error:
        raise DataError(f"{target}: {name} is missing and could not be downloaded ({error}); {mend}") from None
