"""Published datasets in the layouts of their publishers, fetched through torchvision if they are missing.

CIFAR-10 and CIFAR-100 (Krizhevsky 2009, "Learning multiple layers of features from tiny images"), in both layouts:

| layout | CIFAR-10 | CIFAR-100 |
|---|---|---|
| python | `cifar-10-batches-py/data_batch_1` ... | `cifar-100-python/train`, `test`, `meta` |
| binary | `cifar-10-batches-bin/data_batch_1.bin` ... | `cifar-100-binary/train.bin`, `test.bin` |

A binary record is its label bytes (CIFAR-100: coarse, fine), then the red, green and blue planes of 32x32.

MNIST (LeCun, Cortes, Burges 1998) and Fashion-MNIST (Xiao, Rasul, Vollgraf 2017), as idx files in torchvision's layout:
`MNIST/raw/train-images-idx3-ubyte` and its companions, plain or `.gz`. An idx file is two zero bytes, a type (8:
unsigned bytes), the number of dimensions, each of them big-endian in 4 bytes, the values.

The digits that scikit-learn ships, which need no download.
"""

import gzip
import math
import pickle
import zlib
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from comp.config import DataConfig
from comp.data.downloads import download_with_torchvision
from comp.data.sources.source import Source, read_class_names, split_with_row_ids
from comp.data.splits import Split
from comp.results import files
from comp.runtime.errors import DataError
from comp.runtime.progress import Progress

_PLANES = (3, 32, 32)  # of a CIFAR record
_FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
_MAX_IDX_BYTES = 1 << 32  # a header that claims more is damaged
_DIGITS = tuple(str(digit) for digit in range(10))


def cifar10(config: DataConfig, progress: Progress, task: str = "auto") -> Source:
    """CIFAR-10, binary or python layout (Krizhevsky 2009)."""
    root = Path(config.root)
    binary, python = root / "cifar-10-batches-bin", root / "cifar-10-batches-py"
    if not binary.is_dir() and not python.is_dir():
        download_with_torchvision("CIFAR10", root, python, config.download)
    if binary.is_dir():
        classes = read_class_names(binary / "batches.meta.txt")
        train = [_read_binary(binary / f"data_batch_{number}.bin", 1, 0) for number in range(1, 6)]
        test = _read_binary(binary / "test_batch.bin", 1, 0)
    else:
        classes = _decode_names(_unpickle(python / "batches.meta"), "label_names", python)
        train = [_read_python(python / f"data_batch_{number}", "labels") for number in range(1, 6)]
        test = _read_python(python / "test_batch", "labels")
    return _cifar_source(train, test, classes)


def cifar100(config: DataConfig, progress: Progress, task: str = "auto") -> Source:
    """CIFAR-100, binary or python layout, with its 100 fine or 20 coarse labels, `data.labels` (Krizhevsky 2009)."""
    root, labels = Path(config.root), config.labels
    binary, python = root / "cifar-100-binary", root / "cifar-100-python"
    if not binary.is_dir() and not python.is_dir():
        download_with_torchvision("CIFAR100", root, python, config.download)
    if binary.is_dir():
        classes = read_class_names(binary / f"{labels}_label_names.txt")
        label_byte = ("coarse", "fine").index(labels)
        train, test = (_read_binary(binary / f"{name}.bin", 2, label_byte) for name in ("train", "test"))
    else:
        classes = _decode_names(_unpickle(python / "meta"), f"{labels}_label_names", python)
        train, test = (_read_python(python / name, f"{labels}_labels") for name in ("train", "test"))
    return _cifar_source([train], test, classes)


def _cifar_source(train: list[tuple[Any, Any]], test: tuple[Any, Any], classes: tuple[str, ...]) -> Source:
    images = np.concatenate([images for images, _ in train])
    labels = np.concatenate([labels for _, labels in train])
    train_split = split_with_row_ids("train", images, labels)
    return Source(train_split, split_with_row_ids("test", *test), classes, numbered=True)


def _read_binary(path: Path, label_bytes: int, label_byte: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return images [N, 32, 32, 3] and labels [N], which are byte `label_byte` of each record."""
    try:
        raw = np.fromfile(path, np.uint8)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}; fetch the dataset again") from None
    record = label_bytes + 3072
    if not len(raw) or len(raw) % record:
        raise DataError(f"{path}: is truncated: {len(raw):,} bytes are not a multiple of {record}; fetch it again")
    records = raw.reshape(-1, record)
    planes = records[:, label_bytes:].reshape(-1, *_PLANES)
    return np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), records[:, label_byte].astype(np.int64)


def _read_python(path: Path, key: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    batch = _unpickle(path)
    pixels, labels = batch.get("data"), batch.get(key)
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape[1:] != (3072,) or not len(pixels):
        raise DataError(f"{path}: expected `data` uint8 [N, 3072]; fetch the dataset again")
    if (
        not isinstance(labels, list)
        or len(labels) != len(pixels)
        or not all(type(label) is int and 0 <= label < 256 for label in labels)
    ):
        raise DataError(
            f"{path}: expected `{key}`, a class number for each of {len(pixels)} images; fetch the dataset again"
        )
    planes = pixels.reshape(-1, *_PLANES)
    return np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), np.array(labels, np.int64)


class _PlainUnpickler(pickle.Unpickler):
    """Reads the published CIFAR batches, which are pickles, and refuses anything that could run code."""

    def find_class(self, module: str, name: str) -> Any:
        if (module.split(".")[0], name) in {("numpy", "_reconstruct"), ("numpy", "ndarray"), ("numpy", "dtype")}:
            return super().find_class(module.replace("numpy.core", "numpy._core"), name)
        raise pickle.UnpicklingError(f"it needs {module}.{name}, which no CIFAR file uses")


def _unpickle(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            values = _PlainUnpickler(file, encoding="bytes").load()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; fetch the dataset again") from None
    except (*files.READ_ERRORS, pickle.UnpicklingError, ImportError) as error:
        reason = files.error_text(error)
        raise DataError(f"{path}: not a published CIFAR batch: {reason}; fetch the dataset again") from None
    if not isinstance(values, dict):
        raise DataError(f"{path}: not a published CIFAR batch; fetch the dataset again")
    return {_text(key): value for key, value in values.items()}


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _decode_names(meta: dict[str, Any], key: str, folder: Path) -> tuple[str, ...]:
    names = meta.get(key)
    if not isinstance(names, list) or not names:
        raise DataError(f"{folder}: its meta file lacks {key}; fetch the dataset again")
    return tuple(map(_text, names))


def mnist(config: DataConfig, progress: Progress, task: str = "auto") -> Source:
    """MNIST: 70,000 grey digits of 28x28 (LeCun et al. 1998)."""
    return _open_idx("MNIST", config, _DIGITS)


def fashion_mnist(config: DataConfig, progress: Progress, task: str = "auto") -> Source:
    """Fashion-MNIST: 70,000 grey pieces of clothing of 28x28 (Xiao et al. 2017, arXiv:1708.07747)."""
    return _open_idx("FashionMNIST", config, _FASHION)


def _open_idx(name: str, config: DataConfig, classes: tuple[str, ...]) -> Source:
    folder = Path(config.root) / name / "raw"
    first = folder / "train-images-idx3-ubyte"
    if not _find_idx(first):
        download_with_torchvision(name, Path(config.root), first, config.download)
    train, test = _read_idx_split("train", folder, "train"), _read_idx_split("test", folder, "t10k")
    return Source(train, test, classes, numbered=True)


def _read_idx_split(name: str, folder: Path, prefix: str) -> Split:
    images = read_idx(folder / f"{prefix}-images-idx3-ubyte", dimensions=3)  # [N, 28, 28]
    labels = read_idx(folder / f"{prefix}-labels-idx1-ubyte", dimensions=1)
    if len(images) != len(labels):
        raise DataError(f"{folder}: expected a label for each of {len(images)} {name} images, found {len(labels)}")
    return split_with_row_ids(name, images[..., None], labels)


def _find_idx(path: Path) -> Path | None:
    return next((file for file in (path, path.with_name(path.name + ".gz")) if file.is_file()), None)


def read_idx(path: Path, *, dimensions: int) -> NDArray[np.uint8]:
    """Return the values of an idx file, or of the `.gz` beside it.

    Args:
        path: without `.gz`.
        dimensions: expected number of dimensions.

    Raises:
        DataError: missing, truncated, damaged, or another type or number of dimensions.
    """
    file_path = _find_idx(path)
    if file_path is None:
        raise DataError(f"{path}: no such file, nor {path.name}.gz; fetch the dataset again")
    try:
        with cast(IO[bytes], gzip.open(file_path) if file_path.suffix == ".gz" else file_path.open("rb")) as file:
            shape = _read_idx_shape(file, file_path, dimensions)
            size = math.prod(shape)
            if problem := file_path.suffix == ".gz" and files.unpacking_problem(size, file_path.stat().st_size):
                raise DataError(f"{file_path}: is damaged: {problem}; fetch it again")
            values = file.read(size + 1)  # one more, to notice a file that is too long
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{file_path}: is truncated or damaged ({error}); fetch it again") from None
    if len(values) != size:
        count = "fewer" if len(values) < size else "more"
        raise DataError(
            f"{file_path}: is damaged: its header promises {size:,} values and it has {count}; fetch it again"
        )
    return np.frombuffer(values, np.uint8).reshape(shape)


def _read_idx_shape(file: IO[bytes], path: Path, dimensions: int) -> tuple[int, ...]:
    header = file.read(4 + 4 * dimensions)
    if header[:4] != bytes((0, 0, 8, dimensions)) or len(header) < 4 + 4 * dimensions:
        raise DataError(
            f"{path}: expected an idx file of unsigned bytes with {dimensions} dimensions, found a header "
            f"{header[:4].hex()}; fetch it again"
        )
    shape = tuple(int.from_bytes(header[at : at + 4], "big") for at in range(4, len(header), 4))
    if not all(shape) or math.prod(shape) > _MAX_IDX_BYTES:
        raise DataError(f"{path}: is damaged: its header promises {' x '.join(map(str, shape))}; fetch it again")
    return shape


def digits(config: DataConfig, progress: Progress, task: str = "auto") -> Source:
    """scikit-learn's 1,797 grey images of 8x8, resized to 32x32x3 (bilinear).

    Alpaydin and Kaynak 1998, UCI ML repository.
    """
    package = find_spec("sklearn")
    assert package is not None
    assert package.origin is not None
    # As `sklearn.datasets.load_digits` reads it: importing that takes a second.
    table = np.loadtxt(Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz", np.int64, delimiter=",")
    grey = np.round(table[:, :-1].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)  # [1797, 8, 8], 17 levels
    large = [np.asarray(Image.fromarray(image).resize((32, 32), Image.Resampling.BILINEAR)) for image in grey]
    images = np.repeat(np.stack(large)[..., None], 3, axis=-1)  # [1797, 32, 32, 3]
    return Source(split_with_row_ids("train", images, table[:, -1]), None, _DIGITS)
