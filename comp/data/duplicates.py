"""Exact and near duplicates among images, whatever split they are in.

Exact copies have the same bytes. Near duplicates are looked for among thumbnails of 8 x 8 grey means, less their own
mean and scaled to length 1: so that brightness, contrast and recompression hardly move them. Two images are near if

- their thumbnails correlate by `SMALLEST_CORRELATION` or more,
- they are at most `NEAREST_SHARE` as far apart as each is from its usual neighbour, the 10th nearest of about 4,000
  images of the set: handwritten ones all look alike, and a pair of them is no finding, and
- their pixels differ by at most `LARGEST_DIFFERENCE` of the first image's own contrast (mean absolute values both).

Every pair is compared, by matrix products: 70,000 CIFAR images take seconds, and twice the images four times as long.
A bit hash with buckets would need fewer comparisons, but on MNIST's flat background its bits are ties.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from comp.data.splits import Split
from comp.runtime.progress import Progress

SMALLEST_CORRELATION = 0.98
NEAREST_SHARE = 1 / 3
LARGEST_DIFFERENCE = 0.4
MOST_PAIRS = 1_000_000  # beyond, the search ends: the set is made of copies, and memory is finite

_SIDE = 8  # of a thumbnail, in cells
_SAMPLE = 4000
_NEIGHBOUR = 10
_CHUNK_IMAGES = 1024
_CHUNK_PAIRS = 2000
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


@dataclass(frozen=True)
class Copies:
    """Which images are copies; rows count through all splits, one after the other.

    Attributes:
        group: [N] int64; images with equal bytes share a number, counted from 0 by first appearance.
        first: [G] int64, the first row of each group.
        near: [P, 2] int64, groups that are near duplicates, the smaller first.
        capped: whether the search ended at `MOST_PAIRS`.
        blank: [N] bool, images of one colour, which are near to nothing.
    """

    group: NDArray[np.int64]
    first: NDArray[np.int64]
    near: NDArray[np.int64]
    capped: bool
    blank: NDArray[np.bool_]


def find(splits: Sequence[Split], progress: Progress) -> Copies:
    """Return the copies within and across splits; all have one image shape."""
    group = exact_groups(splits, progress)
    _, first = np.unique(group, return_index=True)
    thumbnails = np.concatenate([_thumbnails(split) for split in splits])
    blank = np.logical_not(thumbnails.any(axis=1))
    near, capped = _near(thumbnails[first], progress)
    near = near[_alike(splits, first[near])] if len(near) else near
    return Copies(group, first.astype(np.int64), near, capped, blank)


def exact_groups(splits: Sequence[Split], progress: Progress) -> NDArray[np.int64]:
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


def _thumbnails(split: Split) -> NDArray[np.float32]:
    """Return [N, 64], each of mean 0 and length 1; 0 where an image has no contrast."""
    channels, height, width = split.image_shape
    grey = np.array(_LUMA if channels == 3 else (1 / channels,) * channels, np.float32)
    down = _cell_means(height)  # [8, H]
    across = (_cell_means(width)[:, :, None] * grey).reshape(_SIDE, width * channels).T  # [W * C, 8]
    found = np.empty((len(split), _SIDE * _SIDE), np.float32)
    for start in range(0, len(split), _CHUNK_IMAGES):
        images = np.asarray(split.images[start : start + _CHUNK_IMAGES], np.float32)
        lines = images.reshape(len(images), height, width * channels)
        found[start : start + len(images)] = (down @ (lines @ across)).reshape(len(images), -1)
    found -= found.mean(1, keepdims=True)
    length = np.linalg.norm(found, axis=1, keepdims=True)
    return np.where(length > 0.1, found / np.maximum(length, 0.1), 0).astype(np.float32)  # 0.1: float noise of a flat


def _cell_means(size: int) -> NDArray[np.float32]:
    """Return [8, size]: the share that each pixel has in each cell's mean."""
    edges, pixels = np.linspace(0, size, _SIDE + 1), np.arange(size)
    overlap = np.minimum(pixels + 1, edges[1:, None]) - np.maximum(pixels, edges[:-1, None])
    return np.asarray(np.maximum(overlap, 0) * (_SIDE / size), np.float32)


def _near(thumbnails: NDArray[np.float32], progress: Progress) -> tuple[NDArray[np.int64], bool]:
    """Return pairs [P, 2] of rows that thumbnails cannot tell apart, and whether there were too many."""
    needed = _needed_correlation(thumbnails, progress)
    parts, count = [np.empty((0, 2), np.int64)], 0
    for start in range(0, len(thumbnails), _CHUNK_IMAGES):
        chunk = thumbnails[start : start + _CHUNK_IMAGES]
        alike = chunk @ thumbnails[start:].T  # [chunk, the rest]
        one, other = np.divmod(np.flatnonzero(alike >= needed[start : start + len(chunk), None]), alike.shape[1])
        kept = (other > one) & (alike[one, other] >= needed[start + other])
        parts.append(np.stack((one[kept], other[kept]), 1) + start)
        count += len(parts[-1])
        progress("near duplicates", start + len(chunk), len(thumbnails))
        if count > MOST_PAIRS:
            return np.concatenate(parts)[:MOST_PAIRS], True
    return np.concatenate(parts), False


def _needed_correlation(thumbnails: NDArray[np.float32], progress: Progress) -> NDArray[np.float32]:
    """Return [N]: the correlation from which another image is much nearer than the usual neighbour."""
    sample = thumbnails[:: max(1, len(thumbnails) // _SAMPLE)].T
    place = max(0, sample.shape[1] - 1 - _NEIGHBOUR)
    usual = np.empty(len(thumbnails), np.float32)
    for start in range(0, len(thumbnails), _CHUNK_IMAGES):
        part = slice(start, start + _CHUNK_IMAGES)
        usual[part] = np.partition(thumbnails[part] @ sample, place, axis=1)[:, place]
        progress("usual neighbours", min(part.stop, len(thumbnails)), len(thumbnails))
    # Squared distances of unit vectors are 2 - 2 * correlation.
    return np.asarray(np.maximum(SMALLEST_CORRELATION, 1 - (1 - usual) * NEAREST_SHARE**2), np.float32)


def _alike(splits: Sequence[Split], rows: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Tell for each pair of rows [P, 2] whether the pixels are close, against the first image's contrast."""
    result = np.empty(len(rows), bool)
    for start in range(0, len(rows), _CHUNK_PAIRS):
        one, other = (pixels(splits, column).astype(np.float32) for column in rows[start : start + _CHUNK_PAIRS].T)
        contrast = np.abs(one - one.mean((1, 2, 3), keepdims=True)).mean((1, 2, 3))
        result[start : start + len(one)] = np.abs(one - other).mean((1, 2, 3)) <= LARGEST_DIFFERENCE * contrast
    return result


def pixels(splits: Sequence[Split], rows: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Return images [n, H, W, C] by their rows through all splits."""
    found = np.empty((len(rows), *splits[0].images.shape[1:]), np.uint8)
    end = 0
    for split in splits:
        start, end = end, end + len(split)
        own = (start <= rows) & (rows < end)
        found[own] = split.images[rows[own] - start]
    return found
