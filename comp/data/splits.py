"""Splits: images with ids and maybe labels, what they hold, and suites of them."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from comp.data.images import ImageFiles
from comp.data.ranges import type_scale
from comp.results.blocks import Block
from comp.results.predictions import Targets
from comp.runtime.progress import Progress, quiet

_CHUNK_IMAGES = 512  # of a statistics pass: a memory map is never read whole


@dataclass(frozen=True)
class Split:
    """Images with ids and maybe labels.

    Attributes:
        name: `train`, `val`, `test`, or a block's name.
        images: uint8 [N, H, W, C]: an array, a memory map, or files that `np.asarray` decodes.
        ids: [N] text.
        labels: [N] int64 class indices or, of several labels, [N, K] float32 of 0 and 1; None where unknown.
        blank: [N], rows whose image is missing or cannot be read, and which are to be answered all the same; None where
            all are whole.
    """

    name: str
    images: NDArray[np.uint8] | ImageFiles
    ids: NDArray[np.str_]
    labels: Targets | None
    blank: NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        return len(self.images)

    def class_counts(self, classes: int) -> NDArray[np.int64]:
        """Return how many images have each class [classes]; 0 where labels are unknown."""
        if self.labels is None:
            return np.zeros(classes, np.int64)
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
        """Return some rows, in that order: a copy, or files still unread."""
        labels = None if self.labels is None else self.labels[rows]
        blank = None if self.blank is None else self.blank[rows]
        return Split(name, self.images[rows], self.ids[rows], labels, blank)

    def head(self, count: int) -> "Split":
        """Return the first rows, as a view."""
        labels = None if self.labels is None else self.labels[:count]
        blank = None if self.blank is None else self.blank[:count]
        return replace(self, images=self.images[:count], ids=self.ids[:count], labels=labels, blank=blank)

    def decoded(self, progress: Progress = quiet) -> "Split":
        """Return the split with its pixels in an array; one that has no files is returned as it is.

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
        open: the images of one block.
        folder: of the distortion files that it is read from; empty where it is made.
    """

    name: str
    blocks: tuple[Block, ...]
    open: Callable[[Block], Split]
    folder: str = ""

    def __len__(self) -> int:
        return sum(block.count for block in self.blocks)


def channel_statistics(
    images: NDArray[np.uint8] | ImageFiles, progress: Progress = quiet
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return each channel's mean and standard deviation of images [N, H, W, C], in [0, 1], in one pass.

    Exact whatever the order of summation: counts of the 256 grey levels are whole numbers.
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
    """Return a hash of pixels and labels: 16 hex digits of SHA-256. Of files, their bytes and ids are hashed."""
    digest = hashlib.sha256(str(split.images.shape).encode())
    if isinstance(split.images, ImageFiles):
        images = split.images
        digest.update("\0".join((images.content, images.resize, *split.ids.tolist())).encode())
        if images.scale is not None and images.scale != type_scale("uint16"):  # so it was before there were others
            digest.update(f"\0{images.scale}".encode())
    else:
        for start in range(0, len(split), _CHUNK_IMAGES):
            digest.update(np.ascontiguousarray(split.images[start : start + _CHUNK_IMAGES]).data)
    if split.labels is not None:
        digest.update(np.ascontiguousarray(split.labels).data)
    return digest.hexdigest()[:16]
