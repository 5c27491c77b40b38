"""Images and labels in `.npy` files or in one `.npz`, memory-mapped, with every way of being wrong told apart.

Functions take the path of an array. One inside an archive has the archive for its folder: `data/set.npz/labels.npy`;
that is also how messages name it.
"""

import zipfile
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from comp.results.predictions import Targets
from comp.runtime.errors import DataError

_MAGIC = b"\x93NUMPY"


def holds(path: Path) -> bool:
    """Tell whether an array is there, in its folder or archive.

    Raises:
        DataError: the archive cannot be read.
    """
    if path.parent.suffix != ".npz":
        return path.exists()
    with _archive(path.parent) as archive:
        return path.name in archive.namelist()


def open_npy(path: Path) -> NDArray[Any]:
    """Return a memory map of an array; one that lies compressed in an archive is read whole.

    Raises:
        DataError: missing, truncated, pickled or not a .npy file.
    """
    if path.parent.suffix == ".npz":
        return _open_member(path)
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (ValueError, EOFError) as error:
        with path.open("rb") as file:
            raise DataError(f"{path}: {_reason(file.read(len(_MAGIC)), path.stat().st_size, str(error))}") from None
    if not isinstance(array, np.ndarray):
        raise DataError(f"{path}: expected one array (.npy), found an archive; give it the ending .npz")
    return array


def _reason(begins: bytes, size: int, message: str) -> str:
    if "object" in message.lower() and begins == _MAGIC:
        return "holds pickled Python objects, which are refused since they can run code; save a plain uint8 array"
    if begins != _MAGIC[: len(begins)]:
        return "is not a NumPy .npy file; save it with numpy.save"
    return f"is truncated ({size:,} bytes are fewer than its header promises); fetch it again"


def check_archive(path: Path, names: tuple[str, ...]) -> None:
    """Read an archive through once, before any of its arrays is mapped past its checksum.

    Args:
        path: the .npz.
        names: members that it may have.

    Raises:
        DataError: damaged, or a member of another name, such as one that points out of its folder.
    """
    with _archive(path) as archive:
        for member in archive.namelist():
            if member not in names:
                raise DataError(f"{path}: expected members {', '.join(names)}, found {member!r}; remove it")
        try:
            broken = archive.testzip()
        except (zipfile.BadZipFile, OSError, EOFError, zlib.error, NotImplementedError) as error:
            raise DataError(f"{path}: is damaged ({error}); fetch it again") from None
    if broken:
        raise DataError(f"{path}: is damaged: member {broken} fails its checksum; fetch it again")


def _archive(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (zipfile.BadZipFile, OSError) as error:
        raise DataError(f"{path}: is truncated or not a NumPy archive ({error}); fetch it again") from None


def _open_member(path: Path) -> NDArray[Any]:
    with _archive(path.parent) as archive:
        if path.name not in archive.namelist():
            raise DataError(f"{path}: no such member in the archive; it has {', '.join(archive.namelist())}")
        member = archive.getinfo(path.name)
        with archive.open(member) as file:
            try:
                if member.compress_type == zipfile.ZIP_STORED:
                    return _map_member(path.parent, member, file)
                read: NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
                return read
            except (ValueError, EOFError, OSError) as error:
                begins = archive.read(member)[: len(_MAGIC)]
                raise DataError(f"{path}: {_reason(begins, member.file_size, str(error))}") from None


def _map_member(archive: Path, member: zipfile.ZipInfo, file: IO[bytes]) -> NDArray[Any]:
    """Return a memory map into an uncompressed member: its bytes lie in the archive as they would in a file."""
    version = np.lib.format.read_magic(file)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"version {version} of the format is unknown")
    shape, fortran, dtype = readers[version](file)
    if dtype.hasobject:
        raise ValueError("object arrays are not mapped")
    with archive.open("rb") as whole:  # the local header's two lengths may differ from the directory's
        whole.seek(member.header_offset + 26)
        names = sum(int.from_bytes(whole.read(2), "little") for _ in range(2))
    start = member.header_offset + 30 + names + file.tell()
    return np.memmap(archive, dtype, "r", start, shape, "F" if fortran else "C")


def open_images(path: Path) -> NDArray[np.uint8]:
    """Return a memory map of images, uint8 [N, H, W, C].

    Raises:
        DataError: as `open_deep_images`, or another type.
    """
    array = open_deep_images(path)
    if array.dtype != np.uint8:
        hint = "multiply by 255 and round" if array.dtype.kind == "f" else "bring them to 0..255"
        raise DataError(f"{path}: expected uint8 pixels 0..255, found {array.dtype}; {hint}")
    return array


def open_deep_images(path: Path) -> NDArray[Any]:
    """Return a memory map of images of any numbers, [N, H, W, C].

    Raises:
        DataError: as `open_npy`, or not numbers, the wrong shape or no image at all.
    """
    array = open_npy(path)
    if array.dtype.kind not in "uifb":
        raise DataError(f"{path}: expected whole numbers or floats as pixels, found {array.dtype}")
    if array.ndim == 3:
        array = array[..., None]  # grey images without a channel axis
    if array.ndim != 4 or 0 in array.shape[1:] or _channels_first(array.shape):
        swapped = array.ndim == 4 and _channels_first(array.shape)
        hint = "; the channels stand first: transpose(0, 2, 3, 1)" if swapped else ""
        raise DataError(f"{path}: expected images [N, H, W, channels], found {list(array.shape)}{hint}")
    if not len(array):
        raise DataError(f"{path}: holds no image")
    return array


def _channels_first(shape: tuple[int, ...]) -> bool:
    """Tell [N, C, H, W] from [N, H, W, C]: fewer channels than pixels a side, unless the last axis is one or three."""
    return shape[1] < min(shape[2], shape[3]) and shape[3] not in (1, 3)


def open_labels(path: Path, count: int) -> Targets:
    """Return labels [count] int64, from [count] or [count, 1], or a column for each class, [count, K] float32.

    Raises:
        DataError: as `open_npy`, or not whole numbers from 0 up, columns of other values than 0 and 1, or another count
            than the images'.
    """
    labels = open_npy(path)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.dtype.kind not in "iub" or labels.ndim not in (1, 2) or 0 in labels.shape:
        raise DataError(f"{path}: expected whole numbers [{count}], found {labels.dtype} {list(labels.shape)}")
    if len(labels) != count:
        raise DataError(f"{path}: expected {count} labels, one for each image, found {len(labels)}")
    if labels.ndim == 2:
        if not np.isin(labels, (0, 1)).all():
            raise DataError(f"{path}: expected 0 and 1 in a column for each class, found {int(labels.max())}")
        return labels.astype(np.float32)
    if int(labels.min()) < 0:
        first = int(np.flatnonzero(labels < 0)[0])
        raise DataError(f"{path}: expected labels from 0 up, found {int(labels[first])} at row {first}")
    return labels.astype(np.int64)
