"""Splits: images with ids and maybe labels; their statistics, hashes and split.npz; suites."""

import hashlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from comp.data.decode import type_scale
from comp.data.groups import Groups
from comp.data.images import ImageFiles
from comp.results import array_files, files
from comp.results.blocks import Block
from comp.results.predictions import Targets
from comp.runtime.errors import RunError
from comp.runtime.progress import Progress, quiet

_CHUNK_IMAGES = 512  # per step of a pass: a memory map is never read whole
_ROWS = "rows_"  # begins the names of samples in split.npz


@dataclass(frozen=True)
class Split:
    """Images with ids and maybe labels.

    Attributes:
        name: `train`, `val`, `test`, or a block's name.
        images: uint8 [N, H, W, C]: an array, a memory map, or files that `np.asarray` decodes.
        ids: [N] text.
        labels: [N] int64 class indices or, of several labels, [N, K] float32 of 0 and 1, or [N] float32 numbers; None
            where unknown.
        blank: [N], rows whose image is missing or cannot be read, but which need a prediction; None where all images
            are readable.
        groups: of the images, where each group gets one answer (`data.group_answer`); None where each has its own.
    """

    name: str
    images: NDArray[np.uint8] | ImageFiles
    ids: NDArray[np.str_]
    labels: Targets | None
    blank: NDArray[np.bool_] | None = None
    groups: Groups | None = None

    def __len__(self) -> int:
        return len(self.images)

    @property
    def is_numeric(self) -> bool:
        """Whether labels are numbers, not classes."""
        return self.labels is not None and self.labels.ndim == 1 and self.labels.dtype.kind == "f"

    def class_counts(self, classes: int) -> NDArray[np.int64]:
        """Return how many images have each class [classes]; 0 where labels are unknown, all where they are numbers."""
        if self.labels is None:
            return np.zeros(classes, np.int64)
        if self.is_numeric:
            return np.array([len(self)])
        if self.labels.ndim == 2:
            return np.asarray(self.labels.sum(0), np.int64)
        counts: NDArray[np.int64] = np.bincount(self.labels.astype(np.int64), minlength=classes)
        return counts

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        _, height, width, channels = self.images.shape
        return channels, height, width

    def take(self, rows: NDArray[np.int64], name: str) -> "Split":
        """Return some rows, in that order: a copy of arrays; of files, no pixel is read."""
        labels = None if self.labels is None else self.labels[rows]
        blank = None if self.blank is None else self.blank[rows]
        groups = None if self.groups is None else self.groups.take(rows)
        return Split(name, self.images[rows], self.ids[rows], labels, blank, groups)

    def head(self, count: int) -> "Split":
        """Return the first rows, as a view."""
        labels = None if self.labels is None else self.labels[:count]
        blank = None if self.blank is None else self.blank[:count]
        groups = self.groups and self.groups.take(slice(count))
        return replace(
            self, images=self.images[:count], ids=self.ids[:count], labels=labels, blank=blank, groups=groups
        )

    def one_per_answer(self) -> "Split":
        """Return what is answered: each group's first image, with the name of the group; without groups, itself."""
        if self.groups is None:
            return self
        return replace(self.take(self.groups.first, self.name), ids=self.groups.ids, groups=None)

    def combine(self, outputs: NDArray[np.float32], task: str) -> NDArray[np.float32]:
        """Return the outputs of what is answered, one row for each group; without groups, all as they are.

        Args:
            outputs: [N, K] of the images, before the activation.
            task: a row of `comp.config.tasks.TASKS`.
        """
        return outputs if self.groups is None else self.groups.combine(outputs, task, self.blank)

    def decoded(self, progress: Progress = quiet) -> "Split":
        """Return the split with its pixels in an array; a split of arrays is returned unchanged.

        Raises:
            DataError: a file cannot be read.
        """
        if isinstance(self.images, np.ndarray):
            return self
        return replace(self, images=self.images.decoded(progress, self.name))


@dataclass(frozen=True)
class Suite:
    """Blocks of shifted images, opened one at a time: a suite need not fit in memory.

    Attributes:
        name: `suite` or `ood_val`.
        blocks: in the order of the submission.
        open: returns the images of one block.
        folder: of the distortion files; empty where the blocks are corrupted copies.
        moved: returns the suite whose blocks are generated on a device; None where blocks are read.
    """

    name: str
    blocks: tuple[Block, ...]
    open: Callable[[Block], Split]
    folder: str = ""
    moved: Callable[[str], "Suite"] | None = None

    def __len__(self) -> int:
        return sum(block.count for block in self.blocks)

    def on(self, device: str) -> "Suite":
        """Return the suite with its blocks generated on a device (cpu, cuda or mps); images stay in host memory."""
        return self if self.moved is None else self.moved(device)


def channel_statistics(
    images: NDArray[np.uint8] | ImageFiles, progress: Progress = quiet
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return each channel's mean and standard deviation of images [N, H, W, C], in [0, 1], in one pass.

    The order of summation does not change the result: counts of the 256 grey levels are integers.
    """
    channels = images.shape[-1]
    counts = np.zeros((channels, 256), np.int64)
    for start in range(0, len(images), _CHUNK_IMAGES):
        chunk = np.asarray(images[start : start + _CHUNK_IMAGES])
        for channel in range(channels):
            counts[channel] += np.bincount(chunk[..., channel].ravel(), minlength=256)
        progress("mean and deviation", start + len(chunk), len(images))
    levels = np.arange(256) / 255
    mean = counts @ levels / counts.sum(1)
    variance = counts @ levels**2 / counts.sum(1) - mean**2
    return tuple(mean.tolist()), tuple(np.sqrt(np.maximum(variance, 0)).tolist())


def fingerprint(split: Split) -> str:
    """Return a hash of pixels and labels, 16 hex digits of SHA-256; of files, their bytes and ids are hashed."""
    digest = hashlib.sha256(str(split.images.shape).encode())
    if isinstance(split.images, ImageFiles):
        images = split.images
        digest.update("\0".join((images.content, images.resize, *split.ids.tolist())).encode())
        if images.scale is not None and images.scale != type_scale("uint16"):  # older versions hashed no scale
            digest.update(f"\0{images.scale}".encode())
    else:
        for start in range(0, len(split), _CHUNK_IMAGES):
            digest.update(np.ascontiguousarray(split.images[start : start + _CHUNK_IMAGES]).data)
    if split.labels is not None:
        digest.update(np.ascontiguousarray(split.labels).data)
    return digest.hexdigest()[:16]


def group_exact_copies(splits: Sequence[Split], progress: Progress) -> NDArray[np.int64]:
    """Return [N] int64 over all splits: images with equal pixels share a number, counted by first appearance."""
    total = sum(len(split) for split in splits)
    numbers: dict[bytes, int] = {}
    group = np.empty(total, np.int64)
    row = 0
    for split in splits:
        for start in range(0, len(split), _CHUNK_IMAGES):
            for image in np.ascontiguousarray(split.images[start : start + _CHUNK_IMAGES]):
                group[row] = numbers.setdefault(hashlib.blake2b(image.data, digest_size=16).digest(), len(numbers))
                row += 1
            progress("exact duplicates", row, total)
    return group


def save_split(
    path: Path, train: Split, val: Split | None, samples: Mapping[str, NDArray[np.int64]] = MappingProxyType({})
) -> None:
    """Write a run's split.npz: the ids `train` and `val`, and the rows of samples as `rows_NAME`.

    Args:
        path: of the .npz.
        train: of the run.
        val: of the run.
        samples: rows by name; see `Dataset.samples`.

    Raises:
        RunError: it cannot be written.
    """
    ids = {"train": train.ids, "val": train.ids[:0] if val is None else val.ids}
    files.write_arrays(path, {**ids, **{_ROWS + name: rows for name, rows in samples.items()}})


def read_split(path: Path, cure: str) -> dict[str, NDArray[Any]]:
    """Return the arrays of a run's split.npz: ids by split, of which an ensemble has some, and rows of samples.

    Args:
        path: of the file.
        cure: how to fix it; ends the message.

    Raises:
        RunError: missing or damaged.
    """
    try:
        with array_files.open_arrays(path) as archive:
            arrays = dict(archive)
        for name, array in arrays.items():
            is_rows = name.startswith(_ROWS)
            kind = "i" if is_rows else "U"
            if array.ndim != 1 or array.dtype.kind != kind or (is_rows and array.min(initial=0) < 0):
                raise ValueError(f"{name}: expected {'rows' if is_rows else 'ids'}, found {array.dtype} {array.shape}")
    except files.READ_ERRORS as error:
        raise RunError(f"{path}: missing or damaged ({files.error_text(error)}); {cure}") from None
    return arrays


def check_saved_split(path: Path, train: Split, val: Split | None) -> None:
    """Raise if the split differs from the recorded one: training could see validation images.

    Raises:
        RunError: the file is missing or damaged, or training or validation images differ.
    """
    cure = f"train again: comp run {path.with_name('config.yaml')}"
    recorded = read_split(path, cure)
    if lacking := {"train", "val"} - recorded.keys():
        raise RunError(f"{path}: damaged (it lacks {', '.join(sorted(lacking))}); {cure}")
    for name, split in (("train", train), ("val", val)):
        ids = train.ids[:0] if split is None else split.ids
        if not np.array_equal(recorded[name], ids):
            raise RunError(
                f"{path}: the {name} split has changed ({len(recorded[name]):,} images recorded, {len(ids):,} now); "
                "restore the run's data and package versions, or start a new run"
            )


def read_samples(path: Path, sizes: Mapping[str, int]) -> dict[str, NDArray[np.int64]]:
    """Return the recorded rows of a run's samples by name; empty for runs of versions that drew none.

    Args:
        path: of the .npz.
        sizes: name of a sample -> images of the split that it was drawn from.

    Raises:
        RunError: the file is missing or damaged.
    """
    cure = f"train again: comp run {path.with_name('config.yaml')}"
    recorded = read_split(path, cure)
    samples = {name.removeprefix(_ROWS): rows for name, rows in recorded.items() if name.startswith(_ROWS)}
    for name, rows in samples.items():
        size, where = sizes.get(name, sys.maxsize), f"{path}: damaged ({_ROWS}{name}: expected"
        if (last := rows.max(initial=-1)) >= size:
            raise RunError(f"{where} rows below {size:,}, the number of images, found {last:,}); {cure}")
        if (unique := len(np.unique(rows))) < len(rows):
            raise RunError(f"{where} each row once, found {len(rows):,} rows of {unique:,} images); {cure}")
    return samples
