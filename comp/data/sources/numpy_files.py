"""NumPy files: images and labels in `.npy` files or in one `.npz`, memory-mapped and checked.

Functions take the path of an array. The path of one inside an archive leads through it: `data/set.npz/labels.npy`.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from comp.config import DataConfig
from comp.config.tasks import TASKS
from comp.data.sources.source import Source, read_class_names, split_with_row_ids
from comp.data.splits import Split
from comp.results import array_files, files
from comp.results.array_files import ArrayArchive, ArrayError
from comp.results.predictions import Targets
from comp.runtime.errors import DataError
from comp.runtime.progress import Progress

_MAX_CLASSES, _MAX_NUMBER = 1_000_000, 10_000_000  # whole labels: of classes, and of numbers to regress


def array_names(split: str, what: str) -> tuple[str, ...]:
    """Return the names that a split's `images` or `labels` may have: comp's and MedMNIST's, or those of Keras."""
    letters = ("x", "X") if what == "images" else ("y", "Y")
    return (f"{split}_{what}.npy", *(f"{letter}_{split}.npy" for letter in letters))


_MEMBERS = tuple(
    name for split in ("train", "val", "test") for what in ("images", "labels") for name in array_names(split, what)
)


def arrays(config: DataConfig, progress: Progress, task: str = "auto") -> Source:
    """`train_images.npy`, `train_labels.npy`, optionally `val_...` and `test_...`, and `classes.txt`, memory-mapped.

    Images [N, H, W, C] of any number of channels, or grey [N, H, W]: uint8, or other numbers, which `open_source`
    scales to 0..255 by `data.range`. Labels: whole numbers from 0 up, [N] or [N, 1], floats to regress, or one column
    of 0 and 1 per class, [N, K]; optional for the test. All arrays may instead be in one `.npz` (any name; the layout
    of MedMNIST), compressed or not. `x_train`, `y_train`, `x_test` ... are read too.
    """
    root = Path(config.root)
    folder = find_archive(root) or root
    train = _read_split("train", folder)
    optional = [name for name in ("val", "test") if array_exists(_find_array(folder, name, "images"))]
    splits = {name: _read_split(name, folder) for name in optional}
    assert train.labels is not None
    numeric = task != "auto" and TASKS[task].numeric
    for split in splits.values():
        _check_kind(train, split, folder, numeric=numeric)
    if train.is_numeric:
        if task == "auto" and np.isfinite(train.labels).all() and not (train.labels % 1).any():
            raise DataError(
                f"{root}: training labels are floats without fractions; save classes as whole numbers (astype(int)), "
                "or set competition.task=regression"
            )
        note = f"labels: numbers from {train.labels.min():g} to {train.labels.max():g}: regression (competition.task)"
        val, test = splits.get("val"), splits.get("test")
        return Source(train, test, ("label",), val=val, task="regression", notes=(note,))
    listed = root / "classes.txt"
    if train.labels.ndim == 1 and numeric and not listed.exists():
        numbers = {name: _with_floats(split) for name, split in splits.items()}
        return Source(_with_floats(train), numbers.get("test"), ("label",), val=numbers.get("val"), task="regression")
    if train.labels.ndim == 1 and not numeric and (largest := int(train.labels.max())) >= _MAX_CLASSES:
        path = _find_array(folder, "train", "labels")
        raise DataError(_too_large(path, train.labels, largest, _MAX_CLASSES))
    count = train.labels.shape[1] if train.labels.ndim == 2 else int(train.labels.max()) + 1
    names = read_class_names(listed) if listed.exists() else tuple(str(label) for label in range(count))
    if train.labels.ndim == 2 and len(names) != count:
        raise DataError(f"{listed}: expected {count} names, one per column of train_labels.npy, found {len(names)}")
    for split in splits.values():
        if split.labels is not None and split.labels.ndim == 2 and split.labels.shape[1] != len(names):
            raise DataError(
                f"{_find_array(folder, split.name, 'labels')}: expected {len(names)} columns, one per class of "
                f"{_find_array(folder, 'train', 'labels').name}, found {split.labels.shape[1]}; save all splits with "
                "the same columns"
            )
    task = "multi_label" if train.labels.ndim == 2 else "single_label"
    return Source(train, splits.get("test"), names, val=splits.get("val"), numbered=listed.exists(), task=task)


def _check_kind(train: Split, other: Split, folder: Path, *, numeric: bool) -> None:
    """Refuse labels of another kind than training's: floats among classes, or columns that are no single classes.

    Args:
        train: the training images.
        other: `val` or `test`.
        folder: that holds the arrays, or the archive.
        numeric: whether the config's task is one of numbers.
    """
    if train.labels is None or other.labels is None:
        return
    if train.is_numeric or (numeric and train.labels.ndim == 1):
        fits, cure = other.labels.ndim == 1, "save one number per image"
    elif other.is_numeric:
        fits = False
        cure = "save classes as whole numbers (astype(int))"
        cure += ", or, for numbers to predict, set competition.task=regression" if train.labels.ndim == 1 else ""
    else:
        fits = train.labels.ndim == other.labels.ndim or (_is_exclusive(train) and _is_exclusive(other))
        cure = "save both alike"
    if not fits:
        path, trained = (_find_array(folder, split.name, "labels") for split in (other, train))
        raise DataError(f"{path}: expected labels as in {trained.name}, {_kind(train)}, found {_kind(other)}; {cure}")


def _is_exclusive(split: Split) -> bool:
    """Return whether each image has one class: a whole number, or columns with one 1."""
    return split.labels is None or split.labels.ndim == 1 or bool((split.labels.sum(1) == 1).all())


def _kind(split: Split) -> str:
    assert split.labels is not None
    if split.labels.ndim == 2:
        return f"{split.labels.shape[1]} columns of 0 and 1"
    return "floats" if split.is_numeric else "whole numbers"


def _with_floats(split: Split) -> Split:
    return split if split.labels is None else replace(split, labels=split.labels.astype(np.float32))


def find_archive(root: Path) -> Path | None:
    """Return the folder's verified archive; None if it holds .npy files.

    Raises:
        DataError: there are several, or as `verify_archive`.
    """
    archives = sorted(root.glob("*.npz"))
    if not archives or any((root / name).exists() for name in array_names("train", "images")):
        return None
    if len(archives) > 1:
        names = ", ".join(path.name for path in archives)
        raise DataError(
            f"{root}: expected all arrays in one .npz, found {names}; keep the one that holds them all, or join them: "
            "numpy.savez('data.npz', x_train=..., y_train=..., x_test=...)"
        )
    verify_archive(archives[0])
    return archives[0]


def _find_array(folder: Path, split: str, what: str) -> Path:
    """Return the path of an array under one of its names; under the first one if there is none."""
    paths = [folder / name for name in array_names(split, what)]
    return next(filter(array_exists, paths), paths[0])


def _read_split(name: str, folder: Path) -> Split:
    images = open_deep_images(_find_array(folder, name, "images"))
    labels = _find_array(folder, name, "labels")
    if name == "test" and not array_exists(labels):
        return split_with_row_ids(name, images, None)
    return split_with_row_ids(name, images, open_labels(labels, len(images)))


def array_exists(path: Path) -> bool:
    """Return whether an array exists, in its folder or archive.

    Raises:
        DataError: the archive cannot be read.
    """
    if path.parent.suffix != ".npz":
        return path.exists()
    with _opened(path.parent) as archive:
        return path.stem in archive


def open_npy(path: Path) -> NDArray[Any]:
    """Return a memory map of an array; one compressed in an archive is read into memory.

    Raises:
        DataError: missing, truncated, pickled or not a .npy file.
    """
    if path.parent.suffix == ".npz":
        with _opened(path.parent, path) as archive:
            if path.stem not in archive:
                raise DataError(f"{path}: no such member in the archive; it has {', '.join(archive)}")
            return archive.open(path.stem)
    try:
        return array_files.map_array(path)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None
    except ArrayError as error:
        raise DataError(f"{path}: {error}; {error.cure}") from None


def verify_archive(path: Path) -> None:
    """Check a .npz's members, their sizes and their checksums, before arrays are mapped past them.

    Raises:
        DataError: damaged, or an unexpected member, such as one that leads out of the folder.
    """
    with _opened(path) as archive:
        for name in archive.file_names:
            if name not in _MEMBERS:
                raise DataError(f"{path}: expected members {', '.join(_MEMBERS)}, found {name!r}; remove it")
        archive.check_members()


@contextlib.contextmanager
def _opened(path: Path, part: Path | None = None) -> Iterator[ArrayArchive]:
    """Open an archive; a message names the part of it that is read."""
    try:
        with array_files.open_arrays(path) as archive:
            yield archive
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except ArrayError as error:
        raise DataError(f"{part or path}: {error}; {error.cure}") from None
    except files.READ_ERRORS as error:
        raise DataError(
            f"{part or path}: is truncated, damaged or not a NumPy archive ({files.error_text(error)}); fetch it again"
        ) from None


def open_images(path: Path) -> NDArray[np.uint8]:
    """Return a memory map of images, uint8 [N, H, W, C].

    Raises:
        DataError: as `open_deep_images`, or another type.
    """
    array = open_deep_images(path)
    if array.dtype != np.uint8:
        hint = "multiply by 255 and round" if array.dtype.kind == "f" else "scale them to 0..255"
        raise DataError(f"{path}: expected uint8 pixels 0..255, found {array.dtype}; {hint}")
    return array


def open_deep_images(path: Path) -> NDArray[Any]:
    """Return a memory map of images of any numeric type, [N, H, W, C].

    Raises:
        DataError: as `open_npy`, or not numbers, the wrong shape or no image.
    """
    array = open_npy(path)
    if array.dtype.kind not in "uifb":
        raise DataError(f"{path}: expected whole numbers or floats as pixels, found {array.dtype}")
    if array.ndim == 3:
        array = array[..., None]  # grey images without a channel axis
    if array.ndim != 4 or 0 in array.shape[1:] or _channels_first(array.shape):
        swapped = array.ndim == 4 and _channels_first(array.shape)
        hint = "; the channels are first: transpose(0, 2, 3, 1)" if swapped else ""
        raise DataError(f"{path}: expected images [N, H, W, channels], found {list(array.shape)}{hint}")
    if not len(array):
        raise DataError(f"{path}: holds no image")
    return array


def _channels_first(shape: tuple[int, ...]) -> bool:
    """Return whether a shape is [N, C, H, W]: fewer channels than pixels a side, and last axis not 1 or 3."""
    return shape[1] < min(shape[2], shape[3]) and shape[3] not in (1, 3)


def open_labels(path: Path, count: int) -> Targets:
    """Return labels [count] int64, from [count] or [count, 1], of floats as float32, or one column per class, [count,
    K] float32.

    Raises:
        DataError: as `open_npy`, or not numbers, whole numbers below 0, columns of other values than 0 and 1, or not
            one per image.
    """
    labels = open_npy(path)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    kinds = "iubf" if labels.ndim == 1 else "iub"
    if labels.dtype.kind not in kinds or labels.ndim not in (1, 2) or 0 in labels.shape:
        raise DataError(f"{path}: expected whole numbers [{count}], found {labels.dtype} {list(labels.shape)}")
    if len(labels) != count:
        raise DataError(f"{path}: expected {count} labels, one per image, found {len(labels)}")
    if labels.dtype.kind == "f":
        with np.errstate(over="ignore"):  # infinity is refused
            return labels.astype(np.float32)
    if labels.ndim == 2:
        if not np.isin(labels, (0, 1)).all():
            raise DataError(f"{path}: expected 0 and 1 in one column per class, found {int(labels.max())}")
        return labels.astype(np.float32)
    if int(labels.min()) < 0:
        first = int(np.flatnonzero(labels < 0)[0])
        raise DataError(f"{path}: expected labels from 0 up, found {int(labels[first])} at row {first}")
    if (largest := int(labels.max())) >= _MAX_NUMBER:
        raise DataError(_too_large(path, labels, largest, _MAX_NUMBER))
    return labels.astype(np.int64)


def _too_large(path: Path, labels: NDArray[Any], largest: int, limit: int) -> str:
    return (
        f"{path}: expected labels below {limit:,}, found {largest} at row {int(labels.argmax())}; number the classes "
        "from 0 on (numpy.unique(labels, return_inverse=True)[1]), or save numbers to regress as floats"
    )
