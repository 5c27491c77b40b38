"""MNIST (LeCun, Cortes, Burges 1998) and Fashion-MNIST (Xiao, Rasul, Vollgraf 2017), as idx files.

Layout as torchvision keeps it: `MNIST/raw/train-images-idx3-ubyte` and its companions, plain or `.gz`. An idx file is
two zero bytes, a type (8: unsigned bytes), the number of dimensions, each of them big-endian in 4 bytes, the values.
"""

import gzip
import math
import zlib
from pathlib import Path
from typing import IO, cast

import numpy as np
from numpy.typing import NDArray

from comp.config import DataConfig
from comp.data.downloads import through_torchvision
from comp.data.sources.source import Source, numbered
from comp.data.splits import Split
from comp.runtime.errors import DataError
from comp.runtime.progress import Progress

_FASHION = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
_MOST_BYTES = 1 << 32  # of an idx file that is meant


def mnist(config: DataConfig, progress: Progress, task: str = "auto") -> Source:
    """MNIST: 70,000 grey digits of 28x28."""
    return _open("MNIST", config, tuple(str(digit) for digit in range(10)))


def fashion_mnist(config: DataConfig, progress: Progress, task: str = "auto") -> Source:
    """Fashion-MNIST: 70,000 grey pieces of clothing of 28x28."""
    return _open("FashionMNIST", config, _FASHION)


def _open(name: str, config: DataConfig, classes: tuple[str, ...]) -> Source:
    folder = Path(config.root) / name / "raw"
    first = folder / "train-images-idx3-ubyte"
    if not _present(first):
        through_torchvision(name, Path(config.root), first, config.download)
    return Source(_read("train", folder, "train"), _read("test", folder, "t10k"), classes, numbered=True)


def _read(name: str, folder: Path, prefix: str) -> Split:
    images = read_idx(folder / f"{prefix}-images-idx3-ubyte", dimensions=3)  # [N, 28, 28]
    labels = read_idx(folder / f"{prefix}-labels-idx1-ubyte", dimensions=1)
    if len(images) != len(labels):
        raise DataError(f"{folder}: expected a label for each of {len(images)} {name} images, found {len(labels)}")
    return numbered(name, images[..., None], labels)


def _present(path: Path) -> Path | None:
    return next((found for found in (path, path.with_name(path.name + ".gz")) if found.is_file()), None)


def read_idx(path: Path, *, dimensions: int) -> NDArray[np.uint8]:
    """Return the values of an idx file, or of the `.gz` beside it.

    Args:
        path: without `.gz`.
        dimensions: how many it must have.

    Raises:
        DataError: missing, truncated, damaged, or another type or number of dimensions.
    """
    found = _present(path)
    if found is None:
        raise DataError(f"{path}: no such file, nor {path.name}.gz; fetch the dataset again")
    try:
        with cast(IO[bytes], gzip.open(found) if found.suffix == ".gz" else found.open("rb")) as file:
            shape = _shape(file, found, dimensions)
            size = math.prod(shape)
            values = file.read(size + 1)  # one more: a file that goes on is wrong, and is not unpacked any further
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{found}: is truncated or damaged ({error}); fetch it again") from None
    if len(values) != size:
        less = "fewer" if len(values) < size else "more"
        raise DataError(f"{found}: is damaged: its header promises {size:,} values and it has {less}; fetch it again")
    return np.frombuffer(values, np.uint8).reshape(shape)


def _shape(file: IO[bytes], path: Path, dimensions: int) -> tuple[int, ...]:
    header = file.read(4 + 4 * dimensions)
    if header[:4] != bytes((0, 0, 8, dimensions)) or len(header) < 4 + 4 * dimensions:
        raise DataError(
            f"{path}: expected an idx file of unsigned bytes with {dimensions} dimensions, found a header "
            f"{header[:4].hex()}; fetch it again"
        )
    shape = tuple(int.from_bytes(header[at : at + 4], "big") for at in range(4, len(header), 4))
    if not all(shape) or math.prod(shape) > _MOST_BYTES:
        raise DataError(f"{path}: is damaged: its header promises {' x '.join(map(str, shape))}; fetch it again")
    return shape
