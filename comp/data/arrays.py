"""Images and labels in `.npy` files, memory-mapped, with every way of being wrong told apart."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from comp.errors import DataError

_MAGIC = b"\x93NUMPY"


def open_npy(path: Path) -> NDArray[Any]:
    """Return a memory map of a .npy file.

    Raises:
        DataError: missing, truncated, pickled or not a .npy file.
    """
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (ValueError, EOFError) as error:
        raise DataError(f"{path}: {_reason(path, str(error))}") from None
    if not isinstance(array, np.ndarray):
        raise DataError(f"{path}: expected one array (.npy), found an archive; unpack it")
    return array


def _reason(path: Path, message: str) -> str:
    with path.open("rb") as file:
        begins = file.read(len(_MAGIC))
    if "object" in message.lower() and begins == _MAGIC:
        return "holds pickled Python objects, which are refused since they can run code; save a plain uint8 array"
    if begins != _MAGIC[: len(begins)]:
        return "is not a NumPy .npy file; save it with numpy.save"
    return f"is truncated ({path.stat().st_size:,} bytes are fewer than its header promises); fetch it again"


def open_images(path: Path) -> NDArray[np.uint8]:
    """Return a memory map of images, uint8 [N, H, W, 3] or [N, H, W, 1].

    Raises:
        DataError: as `open_npy`, or the wrong type, shape or no image at all.
    """
    array = open_npy(path)
    if array.dtype != np.uint8:
        hint = "; multiply by 255 and round" if array.dtype.kind == "f" else ""
        raise DataError(f"{path}: expected uint8 pixels 0..255, found {array.dtype}{hint}")
    if array.ndim == 3:
        array = array[..., None]  # grey images without a channel axis
    if array.ndim != 4 or array.shape[-1] not in (1, 3):
        swapped = array.ndim == 4 and array.shape[1] in (1, 3)
        hint = "; the channels stand first: transpose(0, 2, 3, 1)" if swapped else ""
        raise DataError(f"{path}: expected images [N, H, W, 3] or [N, H, W, 1], found {list(array.shape)}{hint}")
    if not len(array):
        raise DataError(f"{path}: holds no image")
    return array


def open_labels(path: Path, count: int) -> NDArray[np.int64]:
    """Return labels [count] int64.

    Raises:
        DataError: as `open_npy`, or not whole numbers from 0 up, or another count than the images'.
    """
    labels = open_npy(path)
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        raise DataError(f"{path}: expected whole numbers [{count}], found {labels.dtype} {list(labels.shape)}")
    if len(labels) != count:
        raise DataError(f"{path}: expected {count} labels, one for each image, found {len(labels)}")
    if int(labels.min()) < 0:
        first = int(np.flatnonzero(labels < 0)[0])
        raise DataError(f"{path}: expected labels from 0 up, found {int(labels[first])} at row {first}")
    return labels.astype(np.int64)
