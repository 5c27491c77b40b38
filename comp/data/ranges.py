"""Pixels of more than 8 bits, brought to 8 by one scale for all images of a data set (`data.range`).

`auto` looks at the whole training set, before anything is held out of it:

| its pixels | stretched to 0..255 |
|---|---|
| whole numbers from 0 up | 0 to 2^b - 1, where b bits hold the largest: 12-bit pictures in 16-bit files 0 to 4095 |
| whole numbers, some below 0 | the smallest to the largest |
| floats from 0 to 1 | 0 to 1 |
| floats from 0 up, the largest above 127 and at most 255 | 0 to 255 |
| other floats | the smallest to the largest |

A power of two does not hang on one pixel, keeps 0 black, and loses at most half of the grey levels. What lies beyond
the scale is clipped.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, reduce
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from comp.runtime.errors import ConfigError, DataError

Scale = tuple[float, float]  # the values that become 0 and 255

_PERCENTILE = 99.9
_WASTE = 4  # times as wide as what nearly all pixels need: then a note says so


@dataclass(frozen=True)
class Depth:
    """What the deep pixels of one image or of many hold.

    Attributes:
        kind: NumPy's name of their type, several joined by ` and `.
        smallest: value of any pixel.
        largest: likewise.
        body: the largest of the images' 99.9th percentiles: unlike the largest value, a hot pixel does not move it.
        images: how many have such pixels.
    """

    kind: str
    smallest: float
    largest: float
    body: float
    images: int = 1


def depth_of(values: NDArray[Any], where: str) -> Depth:
    """Return what one image's values, of any shape, hold.

    Raises:
        DataError: values that are not finite; `where` names the image.
    """
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        count = int(np.count_nonzero(~np.isfinite(values)))
        raise DataError(f"{where}: expected finite pixels, found {count:,} that are NaN or infinite; mend those first")
    last = values.size - 1 - int(values.size * (1 - _PERCENTILE / 100))
    body = np.partition(values, last, axis=None)[last]
    return Depth(str(values.dtype), float(values.min()), float(values.max()), float(body))


def merged(depths: Sequence[Depth]) -> Depth | None:
    """Return what many images hold together; None of none."""
    return reduce(_both, depths) if depths else None


def _both(one: Depth, other: Depth) -> Depth:
    kinds = dict.fromkeys([*one.kind.split(" and "), *other.kind.split(" and ")])
    return Depth(
        " and ".join(kinds),
        min(one.smallest, other.smallest),
        max(one.largest, other.largest),
        max(one.body, other.body),
        one.images + other.images,
    )


def chosen(wanted: Literal["auto", "type"] | Scale, train: Depth) -> Scale:
    """Return the scale of a data set.

    Args:
        wanted: `data.range`.
        train: what the whole training set holds.

    Raises:
        ConfigError: images of several types have no range in common.
    """
    if isinstance(wanted, tuple):
        return wanted
    if " and " in train.kind:
        raise ConfigError(
            f"data.range: {wanted}: the images hold pixels of several types, {train.kind}; save them alike, or give "
            "the values that become black and white: data.range=[0, 4095]"
        )
    if wanted == "type":
        return type_scale(train.kind)
    low, high = _fitting(train)
    return low, max(high, low + 1)


def _fitting(train: Depth) -> Scale:
    whole = np.dtype(train.kind).kind != "f"
    if train.smallest < 0 or (not whole and 1 < train.largest <= 127) or (not whole and train.largest > 255):
        return train.smallest, train.largest
    if whole:
        return 0.0, float(2 ** int(train.largest).bit_length() - 1)
    return 0.0, 1.0 if train.largest <= 1 else 255.0


def type_scale(kind: str) -> Scale:
    """Return the range of a type: 0 to 1 of floats; image files' 32-bit whole numbers count as 16-bit ones."""
    dtype = np.dtype(kind)
    if dtype.kind in "fb":
        return 0.0, 1.0
    if dtype == np.int32:  # what Pillow makes of 16-bit PGM and some TIFF
        return 0.0, 65535.0
    return float(np.iinfo(dtype).min), float(np.iinfo(dtype).max)


def stretched(values: NDArray[Any], scale: Scale) -> NDArray[np.uint8]:
    """Return values as uint8 of the same shape: `scale` becomes 0..255, rounded, and what lies beyond is clipped."""
    if values.dtype == np.uint16:
        return _table(scale).take(values)
    return _levels(values, scale)


@lru_cache(maxsize=8)
def _table(scale: Scale) -> NDArray[np.uint8]:
    return _levels(np.arange(1 << 16), scale)


def _levels(values: NDArray[Any], scale: Scale) -> NDArray[np.uint8]:
    low, high = scale
    shares = (values.astype(np.float64) - low) * (255 / (high - low))
    return np.asarray(np.floor(shares.clip(0, 255) + 0.5), np.uint8)


def notes(
    wanted: Literal["auto", "type"] | Scale, scale: Scale, depths: Sequence[tuple[str, Depth | None]]
) -> list[str]:
    """Return what a user should know of a scale: what it is, whether it wastes grey levels, and who lies beyond it.

    Args:
        wanted: `data.range`.
        scale: as `chosen`.
        depths: of each split by name, the training images' first.
    """
    told = []
    low, high = scale
    train = depths[0][1]
    if train is not None:
        told.append(
            f"pixels: {train.kind}, from {train.smallest:g} to {train.largest:g} in {train.images:,} training images; "
            f"{low:g} to {high:g} is stretched to 0 to 255, in every split alike (data.range: {_spelled(wanted)})"
        )
        if _WASTE * (train.body - low) <= high - low and train.body > low:
            told.append(
                f"pixels: 99.9 % of every training image's values are at most {train.body:g}: "
                f"data.range=[{low:g}, {train.body:g}] keeps more of the grey levels"
            )
    for name, depth in depths:
        if depth is not None and (depth.smallest < low or depth.largest > high):
            told.append(
                f"{name}: pixels from {depth.smallest:g} to {depth.largest:g} are clipped to {low:g} to {high:g}"
            )
    return told


def _spelled(wanted: Literal["auto", "type"] | Scale) -> str:
    return wanted if isinstance(wanted, str) else f"[{wanted[0]:g}, {wanted[1]:g}]"
