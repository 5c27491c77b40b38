"""The ops of `ops.OPS` for one image: NumPy and OpenCV. (Of these, albumentations has only flips just as Pillow.)

Each takes an image [H, W, C] uint8 (C is 1 or 3), a magnitude in the op's unit, and where chance places it, a
generator. They follow Pillow as the tensor ops do; tests hold both engines to it.
"""

import math
import random
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from comp.augment import array_degradations
from comp.augment.array_degradations import Function, Image
from comp.imaging import colour

Matrix = tuple[tuple[float, float, float], tuple[float, float, float]]
Warp = Callable[[Image, Matrix], Image]

_LEVELS = np.arange(256)


def _look_up(image: Image, table: NDArray[Any]) -> Image:
    """Return grey levels replaced by `table` [256], fractions cut off."""
    return _shaped(cv2.LUT(image, table.clip(0, 255).astype(np.uint8)), image)


def _shaped(result: Any, image: Image) -> Image:
    """OpenCV drops a single channel's axis."""
    return np.asarray(result, np.uint8).reshape(*result.shape[:2], image.shape[2])


# Pillow's integer luma; OpenCV's own conversion to grey can be one level off, which saturation doubles.
_LUMA = np.array([[19595, 38470, 7471]]) / 65536


def _luma(image: Image) -> Image:
    return image[..., 0] if image.shape[2] == 1 else np.asarray(cv2.transform(image, _LUMA), np.uint8)


def _grayscale(image: Image, magnitude: float, chance: random.Random) -> Image:
    return image if image.shape[2] == 1 else _shaped(cv2.cvtColor(_luma(image), cv2.COLOR_GRAY2RGB), image)


def _brightness(image: Image, magnitude: float, chance: random.Random) -> Image:
    return _look_up(image, _LEVELS * (1 + magnitude))


def _contrast(image: Image, magnitude: float, chance: random.Random) -> Image:
    grey = image if image.shape[2] == 1 else cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)  # near enough for a mean
    mean = int(cv2.mean(grey)[0] + 0.5)
    return _look_up(image, mean + (_LEVELS - mean) * (1 + magnitude))


def _saturation(image: Image, magnitude: float, chance: random.Random) -> Image:
    if image.shape[2] == 1:
        return image
    grey = cv2.cvtColor(_luma(image), cv2.COLOR_GRAY2RGB)
    return _shaped(cv2.addWeighted(grey, -magnitude, image, 1 + magnitude, 0), image)


_SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13


def _sharpness(image: Image, magnitude: float, chance: random.Random) -> Image:
    smooth = _shaped(cv2.filter2D(image, -1, _SMOOTH), image)
    sharp = image.copy()  # border pixels stay as they are
    inner = (slice(1, -1), slice(1, -1))
    sharp[inner] = _shaped(cv2.addWeighted(smooth, -magnitude, image, 1 + magnitude, 0), image)[inner]
    return sharp


def _hue(image: Image, magnitude: float, chance: random.Random) -> Image:
    """Pillow's 8-bit HSV by the tensor op's tables; OpenCV's rounds otherwise, and a hue level is six grey levels."""
    if image.shape[2] == 1:
        return image
    red, green, blue = cv2.split(image)
    higher, lower = cv2.max(red, green), cv2.min(red, green)
    value = cv2.max(higher, blue)
    spread = cv2.subtract(value, cv2.min(lower, blue))
    gap = cv2.subtract(value, cv2.max(lower, cv2.min(higher, blue)))  # from the middle channel up to the highest
    pairs = ((red, green, 4), (green, blue, 2), (red, blue, 1))
    sector = sum((cv2.compare(one, other, cv2.CMP_GE) & bit for one, other, bit in pairs), start=np.uint8(0))
    hues, chromas, losses = _hsv_tables()
    # Bytes side by side are already the index that shifts would make of them.
    hue = hues.take(cv2.merge([gap, spread, sector, np.zeros_like(gap)]).view("<i4")[..., 0])
    hue += np.uint8(int(magnitude * 255) & 255)
    chroma = chromas.take(cv2.merge([spread, value]).view("<u2")[..., 0])
    start = value + np.float32(0.5)
    return np.asarray(cv2.merge([(start - chroma * cv2.LUT(hue, loss)).astype(np.uint8) for loss in losses]), np.uint8)


@cache
def _hsv_tables() -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.float32]]:
    """Return hue by sector, spread and gap; chroma by value and spread; each channel's loss of chroma by hue."""
    hues, saturations = (table.numpy() for table in colour.hsv_tables(torch.device("cpu")))
    chromas = np.repeat(np.arange(256, dtype=np.float32), 256) * saturations / 255
    k = (np.arange(256) * (6 / 255) + np.array([[5.0], [3.0], [1.0]])) % 6
    losses = np.minimum(k, 4 - k).clip(0, 1).astype(np.float32)  # [3, 256]
    return hues, chromas.astype(np.float32), losses


def _posterize(image: Image, magnitude: float, chance: random.Random) -> Image:
    step = 2 ** (8 - round(magnitude))
    return _look_up(image, _LEVELS // step * step)


def _solarize(image: Image, magnitude: float, chance: random.Random) -> Image:
    return _look_up(image, np.where(magnitude > _LEVELS, _LEVELS, 255 - _LEVELS))


def _autocontrast(image: Image, magnitude: float, chance: random.Random) -> Image:
    stretched = []
    for channel in cv2.split(image):
        low, high = int(channel.min()), int(channel.max())
        scale = 255 / max(1, high - low)
        stretched.append(_look_up(channel[..., None], _LEVELS * scale - low * scale) if high > low else channel)
    return _shaped(cv2.merge(stretched), image)


def _equalize(image: Image, magnitude: float, chance: random.Random) -> Image:
    flattened = []
    for channel in cv2.split(image):
        counts = np.bincount(channel.reshape(-1), minlength=256)
        step = (channel.size - int(counts[channel.max()])) // 255
        below = np.cumsum(counts) - counts
        flattened.append(_look_up(channel[..., None], (step // 2 + below) // step) if step else channel)
    return _shaped(cv2.merge(flattened), image)


def _crop(image: Image, magnitude: float, chance: random.Random) -> Image:
    return _shift(image, *_moves(image, magnitude, chance))


def _crop_mirrored(image: Image, magnitude: float, chance: random.Random) -> Image:
    right, down = _moves(image, magnitude, chance)
    height, width = image.shape[:2]
    edges = (max(down, 0), max(-down, 0), max(right, 0), max(-right, 0))
    padded = _shaped(cv2.copyMakeBorder(image, *edges, cv2.BORDER_REFLECT_101), image)
    return padded[edges[1] : edges[1] + height, edges[3] : edges[3] + width]


def _moves(image: Image, magnitude: float, chance: random.Random) -> tuple[int, int]:
    """Return whole pixels to the right and down, up to a fraction of the side both ways."""
    most = [int(magnitude * side + 0.5) for side in image.shape[:2]]
    down, right = (chance.randint(-reach, reach) for reach in most)
    return right, down


def _shift(image: Image, right: int, down: int) -> Image:
    height, width = image.shape[:2]
    moved = np.zeros_like(image)
    if abs(right) < width and abs(down) < height:
        to = (slice(max(down, 0), height + min(down, 0)), slice(max(right, 0), width + min(right, 0)))
        from_ = (slice(max(-down, 0), height + min(-down, 0)), slice(max(-right, 0), width + min(-right, 0)))
        moved[to] = image[from_]
    return moved


def _flip(image: Image, magnitude: float, chance: random.Random) -> Image:
    return _shaped(cv2.flip(image, 1), image)


def _invert(image: Image, magnitude: float, chance: random.Random) -> Image:
    return ~image


def _cutout(image: Image, magnitude: float, chance: random.Random) -> Image:
    edges = []
    for side in image.shape[:2]:
        size = int(magnitude * side + 0.5)
        start = chance.randrange(side) - size // 2
        edges.append(slice(max(start, 0), max(start + size, 0)))
    blanked = image.copy()
    blanked[edges[0], edges[1]] = 128  # mid-grey, about the mean that the paper's zero is after normalisation
    return blanked


def _random_erasing(image: Image, magnitude: float, chance: random.Random) -> Image:
    height, width, channels = image.shape
    for _ in range(10):
        area, aspect = chance.uniform(0.02, magnitude) * height * width, chance.uniform(0.3, 1 / 0.3)
        tall, wide = int(math.sqrt(area * aspect)), int(math.sqrt(area / aspect))
        if tall < height and wide < width:
            top, left = chance.randint(0, height - tall), chance.randint(0, width - wide)
            noise = np.frombuffer(chance.randbytes(tall * wide * channels), np.uint8)
            erased = image.copy()
            erased[top : top + tall, left : left + wide] = noise.reshape(tall, wide, channels)
            return erased
    return image


def _look(matrix: Matrix, height: int, width: int) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """Return the flat input pixel that each output pixel takes, and which are inside: [H, W] each.

    By Pillow's matrix: output (x, y), centres at halves, takes the input at matrix (x, y, 1); in its 16.16 fixed point.
    """
    columns, rows = np.arange(width, dtype=np.int32), np.arange(height, dtype=np.int32)[:, None]
    x, y = (
        (round((c + (a + b) / 2) * 65536) + round(a * 65536) * columns + round(b * 65536) * rows) >> 16
        for a, b, c in matrix
    )
    # As unsigned, a negative coordinate is a large one.
    return y * width + x, (x.view(np.uint32) < width) & (y.view(np.uint32) < height)


def _only(inside: NDArray[np.bool_], warped: Any, image: Image) -> Image:
    return _shaped(cv2.bitwise_and(warped, warped, mask=inside.view(np.uint8)), image)


def _nearest(image: Image, matrix: Matrix) -> Image:
    """OpenCV rounds places to 1/1024 pixel, which moves whole rows where a slope makes ties: NumPy looks them up."""
    height, width, channels = image.shape
    taken, inside = _look(matrix, height, width)
    warped = image.reshape(-1, channels).take(taken.reshape(-1), axis=0, mode="clip").reshape(image.shape)
    return _only(inside, warped, image)


def _bilinear(image: Image, matrix: Matrix) -> Image:
    """OpenCV, with the edge held where the four neighbours pass over it, as Pillow does."""
    height, width = image.shape[:2]
    # OpenCV's pixel centres stand at whole numbers, half a pixel from Pillow's.
    moved = np.array([(a, b, c + (a + b) / 2 - 0.5) for a, b, c in matrix])
    flags = cv2.WARP_INVERSE_MAP | cv2.INTER_LINEAR
    warped = cv2.warpAffine(image, moved, (width, height), flags=flags, borderMode=cv2.BORDER_REPLICATE)
    return _only(_look(matrix, height, width)[1], warped, image)


def _shear(image: Image, magnitude: float, chance: random.Random, *, axis: int, warp: Warp) -> Image:
    x, y = (magnitude, 0.0) if axis == 0 else (0.0, magnitude)
    return warp(image, ((1.0, x, 0.0), (y, 1.0, 0.0)))


def _translate(image: Image, magnitude: float, chance: random.Random, *, axis: int) -> Image:
    pixels = int(magnitude * image.shape[1 - axis])
    return _shift(image, *((pixels, 0) if axis == 0 else (0, pixels)))


def _rotate(image: Image, magnitude: float, chance: random.Random, *, warp: Warp) -> Image:
    cos, sin = math.cos(math.radians(magnitude)), math.sin(math.radians(magnitude))
    y, x = image.shape[0] / 2, image.shape[1] / 2
    return warp(image, ((cos, -sin, x - cos * x + sin * y), (sin, cos, y - sin * x - cos * y)))


# Rows for those of `ops.OPS` that albumentations lacks.
FUNCTIONS: dict[str, Function] = {
    "crop": _crop,
    "crop_mirrored": _crop_mirrored,
    "cutout": _cutout,
    "random_erasing": _random_erasing,
    "flip": _flip,
    "alternating_flip": _flip,
    "shear_x": partial(_shear, axis=0, warp=_nearest),
    "shear_y": partial(_shear, axis=1, warp=_nearest),
    "shear_x_bilinear": partial(_shear, axis=0, warp=_bilinear),
    "shear_y_bilinear": partial(_shear, axis=1, warp=_bilinear),
    "translate_x": partial(_translate, axis=0),
    "translate_y": partial(_translate, axis=1),
    "rotate": partial(_rotate, warp=_nearest),
    "rotate_bilinear": partial(_rotate, warp=_bilinear),
    "brightness": _brightness,
    "contrast": _contrast,
    "saturation": _saturation,
    "sharpness": _sharpness,
    "hue": _hue,
    "grayscale": _grayscale,
    "posterize": _posterize,
    "solarize": _solarize,
    "autocontrast": _autocontrast,
    "equalize": _equalize,
    "invert": _invert,
    **array_degradations.FUNCTIONS,
}
