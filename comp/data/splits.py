"""Splits: images with ids and maybe labels, and how a labelled one is divided."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import train_test_split

from comp.competition.spec import Block
from comp.errors import DataError

_CHUNK_IMAGES = 4096  # of a statistics pass: a memory map is never read whole


@dataclass(frozen=True)
class Split:
    """Images with ids and maybe labels.

    Attributes:
        name: `train`, `val`, `test`, or a block's name.
        images: uint8 [N, H, W, C], an array or a memory map.
        ids: [N] text.
        labels: [N] int64, or None where unknown.
    """

    name: str
    images: NDArray[np.uint8]
    ids: NDArray[np.str_]
    labels: NDArray[np.int64] | None

    def __len__(self) -> int:
        return len(self.images)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        _, height, width, channels = self.images.shape
        return channels, height, width

    def take(self, rows: NDArray[np.int64], name: str) -> "Split":
        """Return a copy of some rows, in that order."""
        labels = None if self.labels is None else self.labels[rows]
        return Split(name, self.images[rows], self.ids[rows], labels)

    def head(self, count: int) -> "Split":
        """Return the first rows, as a view."""
        labels = None if self.labels is None else self.labels[:count]
        return replace(self, images=self.images[:count], ids=self.ids[:count], labels=labels)


@dataclass(frozen=True)
class Suite:
    """Blocks of shifted images, opened one at a time: a suite need not fit in memory.

    Attributes:
        name: `suite` or `ood_val`.
        blocks: in the order of the submission.
        open: the images of one block.
    """

    name: str
    blocks: tuple[Block, ...]
    open: Callable[[Block], Split]

    def __len__(self) -> int:
        return sum(block.count for block in self.blocks)


def held_out(split: Split, size: float | int, seed: int, names: tuple[str, str]) -> tuple[Split, Split]:
    """Divide a labelled split, stratified by label.

    Args:
        split: what is divided.
        size: of the held-out part: a fraction, or a count.
        seed: the same on every machine.
        names: of what stays and what is held out.

    Raises:
        DataError: too few images of some class, or a count that leaves nothing.
    """
    assert split.labels is not None
    try:
        stays, held = train_test_split(
            np.arange(len(split)), test_size=size, random_state=seed, stratify=split.labels, shuffle=True
        )
    except ValueError as error:
        counts = np.bincount(split.labels)
        raise DataError(
            f"{split.name}: cannot hold out {size} of {len(split)} images in {np.count_nonzero(counts)} classes "
            f"(the smallest has {counts[counts > 0].min()}), stratified by label: {error}"
        ) from None
    return split.take(np.sort(stays), names[0]), split.take(np.sort(held), names[1])


def channel_statistics(images: NDArray[np.uint8]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return each channel's mean and standard deviation of images [N, H, W, C], in [0, 1].

    Exact whatever the order of summation: counts of the 256 grey levels are whole numbers.
    """
    channels = images.shape[-1]
    counts = np.zeros((channels, 256), np.int64)
    for start in range(0, len(images), _CHUNK_IMAGES):
        chunk = np.asarray(images[start : start + _CHUNK_IMAGES])
        for channel in range(channels):
            counts[channel] += np.bincount(chunk[..., channel].ravel(), minlength=256)
    levels = np.arange(256) / 255
    mean = counts @ levels / counts.sum(1)
    variance = counts @ levels**2 / counts.sum(1) - mean**2
    return tuple(mean.tolist()), tuple(np.sqrt(np.maximum(variance, 0)).tolist())


def fingerprint(split: Split) -> str:
    """Return a hash of pixels and labels: 16 hex digits of SHA-256."""
    digest = hashlib.sha256(str(split.images.shape).encode())
    for start in range(0, len(split), _CHUNK_IMAGES):
        digest.update(np.ascontiguousarray(split.images[start : start + _CHUNK_IMAGES]).data)
    if split.labels is not None:
        digest.update(np.ascontiguousarray(split.labels).data)
    return digest.hexdigest()[:16]
