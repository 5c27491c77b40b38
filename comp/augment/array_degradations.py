"""Noise, filters and textures for one image: the rest of what `array_ops` does, by NumPy and OpenCV.

As there, each function takes an image [H, W, C] uint8, a magnitude in the op's unit and a generator.
"""

import math
import random
from collections.abc import Callable
from functools import cache
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from comp.imaging import colour, draws, fractals, geometry, kernels, overlays

Image = NDArray[np.uint8]
Function = Callable[[Image, float, random.Random], Image]

_CPU = torch.device("cpu")


def _rounded(levels: Any, image: Image) -> Image:
    """Return grey levels as bytes, in the image's shape: OpenCV drops a single channel's axis."""
    return np.asarray((levels + 0.5).clip(0, 255), np.uint8).reshape(image.shape)


def _scale(image: Image) -> float:
    return float(min(image.shape[:2])) / 32


def _shorts(chance: random.Random, *shape: int) -> NDArray[np.uint16]:
    return np.frombuffer(chance.randbytes(2 * math.prod(shape)), np.uint16).reshape(shape)


@cache
def _quantiles() -> NDArray[np.float32]:
    return np.asarray(draws.normal_quantiles(_CPU).numpy(), np.float32)


def _normal(chance: random.Random, *shape: int) -> NDArray[np.float32]:
    """Return standard normal deviates, by the tensor ops' table."""
    return _quantiles().take(_shorts(chance, *shape))


def _noise(image: Image, magnitude: float, chance: random.Random) -> Image:
    return _rounded(image + _normal(chance, *image.shape) * np.float32(255 * magnitude), image)


def _speckle(image: Image, magnitude: float, chance: random.Random) -> Image:
    return _rounded(image * (1 + _normal(chance, *image.shape) * np.float32(magnitude)), image)


def _impulse(image: Image, magnitude: float, chance: random.Random) -> Image:
    shorts, struck = _shorts(chance, *image.shape), round(magnitude * 65536)
    return np.where(shorts < struck, np.where(shorts < struck // 2, 255, 0), image).astype(np.uint8)


def _blur(image: Image, magnitude: float, chance: random.Random) -> Image:
    sigma = magnitude * _scale(image)
    if sigma <= 0:
        return image
    kernel = cv2.getGaussianKernel(2 * math.ceil(4 * sigma) + 1, sigma, cv2.CV_32F)
    # In floats: OpenCV's Gaussian on bytes keeps 8 bits of each weight and can be two levels off.
    return _rounded(cv2.sepFilter2D(image, cv2.CV_32F, kernel, kernel), image)


def _pixel_shuffle(image: Image, magnitude: float, chance: random.Random) -> Image:
    height, width, channels = image.shape
    reach = magnitude * _scale(image)
    offsets = np.floor((_shorts(chance, 2, height, width) + 0.5) * (reach / 32768) - (reach - 0.5)).astype(np.intp)
    rows = (np.arange(height)[:, None] + offsets[0]).clip(0, height - 1)
    columns = (np.arange(width) + offsets[1]).clip(0, width - 1)
    return np.asarray(image.reshape(-1, channels).take(rows * width + columns, axis=0), np.uint8)


def _pixelate(image: Image, magnitude: float, chance: random.Random) -> Image:
    """Pillow's box resize, which takes whole pixels: OpenCV's weights them by how much of them a box covers."""
    rows, columns = (_boxes(side, min(max(round(magnitude * side), 1), side)) for side in image.shape[:2])
    height, width, channels = image.shape
    means = np.floor(rows @ image.reshape(height, -1).astype(np.float32) + 0.5).reshape(image.shape)
    turned = columns @ means.swapaxes(0, 1).reshape(width, -1)
    return _rounded(turned.reshape(width, height, channels).swapaxes(0, 1), image)


@cache
def _boxes(size: int, count: int) -> NDArray[np.float32]:
    """Return [size, size]: the mean that each pixel shows, `count` boxes to an axis."""
    places = np.arange(size)
    middle = (np.floor((places + 0.5) * count / size) + 0.5) * size / count
    first, last = np.floor(middle - size / count / 2 + 0.5), np.floor(middle + size / count / 2 + 0.5)
    inside = (places >= first[:, None]) & (places < last[:, None])
    return np.asarray(inside / inside.sum(1, keepdims=True), np.float32)


def _fractal(image: Image, magnitude: float, chance: random.Random) -> Image:
    height, width, channels = image.shape
    piece = _piece(fractals.sheets(max(height, width), channels, _CPU).numpy(), image, chance).astype(np.float32)
    way = chance.randrange(4)
    if way > 1:
        return _rounded(image * (1 + magnitude * (piece * np.float32(2 / 255) - 1)), image)
    return _rounded(image + (piece - image) * np.float32(-magnitude if way else magnitude), image)


def _piece(sheets: NDArray[Any], image: Image, chance: random.Random) -> NDArray[Any]:
    """Return a random piece of one of the sheets [K, S, S, C], as large as the image, upside down or not."""
    height, width = image.shape[:2]
    count, side = sheets.shape[:2]
    sheet, top, left = (chance.randrange(n) for n in (count, side - height + 1, side - width + 1))
    piece = sheets[sheet, top : top + height, left : left + width]
    return piece[::-1] if chance.random() < 0.5 else piece


def _random_filter(image: Image, magnitude: float, chance: random.Random) -> Image:
    kernel = _normal(chance, 3, 3) * np.float32(magnitude)
    kernel -= kernel.mean()
    kernel[1, 1] += 1
    return _rounded(cv2.filter2D(image, cv2.CV_32F, kernel), image)


@cache
def _waves() -> NDArray[np.float64]:
    return np.asarray(colour.waves(_CPU).numpy() * 255, np.float64)


def _random_colour(image: Image, magnitude: float, chance: random.Random) -> Image:
    waves = _waves()
    weights = _normal(chance, image.shape[2], len(waves)) * magnitude
    tables = (np.arange(256) + weights @ waves + 0.5).clip(0, 255).astype(np.uint8)  # [C, 256]
    return np.asarray(cv2.LUT(image, tables.T[None]), np.uint8).reshape(image.shape)


def _jpeg(image: Image, magnitude: float, chance: random.Random) -> Image:
    quality = min(max(round(magnitude), 1), 100)
    flags = cv2.IMREAD_COLOR if image.shape[2] == 3 else cv2.IMREAD_GRAYSCALE
    # OpenCV takes blue first; chroma and tables are Pillow's.
    file = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    decoded = np.asarray(cv2.imdecode(file, flags), np.uint8).reshape(image.shape)
    return np.ascontiguousarray(decoded[..., ::-1])


def _motion(image: Image, magnitude: float, chance: random.Random) -> Image:
    count = kernels.samples(*image.shape[:2])
    along = ((np.arange(count) + 0.5) / count - 0.5) * magnitude * _scale(image)
    angle = chance.uniform(0, math.pi)
    return _mean_at(image, along * math.cos(angle), along * math.sin(angle))


def _disk_blur(image: Image, magnitude: float, chance: random.Random) -> Image:
    points = kernels.sunflower(kernels.samples(*image.shape[:2])).numpy() * magnitude * _scale(image)
    return _mean_at(image, points[:, 0], points[:, 1])


def _mean_at(image: Image, right: NDArray[np.float64], down: NDArray[np.float64]) -> Image:
    """Return the mean of the pixels at offsets [T], rounded."""
    x, y = (np.floor(way + 0.5).astype(int) for way in (right, down))
    reach = max(np.abs(x).max(), np.abs(y).max())
    kernel = np.zeros((2 * reach + 1, 2 * reach + 1), np.float32)
    np.add.at(kernel, (y + reach, x + reach), np.float32(1 / len(x)))
    return _rounded(cv2.filter2D(image, cv2.CV_32F, kernel), image)


def _zoom(image: Image, magnitude: float, chance: random.Random) -> Image:
    """Each stage doubles the number of enlargements in the mean: their factors are the powers of one ratio."""
    height, width = image.shape[:2]
    stages = kernels.samples(height, width).bit_length()
    mean = image.astype(np.float32)
    for stage in range(stages):
        shrunk = (1 + magnitude) ** -(2**stage / (2**stages - 1))
        matrix = np.array([[shrunk, 0, (1 - shrunk) * (width - 1) / 2], [0, shrunk, (1 - shrunk) * (height - 1) / 2]])
        flags = cv2.WARP_INVERSE_MAP | cv2.INTER_LINEAR
        enlarged = cv2.warpAffine(mean, matrix, (width, height), flags=flags, borderMode=cv2.BORDER_REPLICATE)
        mean = cv2.addWeighted(mean, 0.5, enlarged.reshape(image.shape), 0.5, 0).reshape(image.shape)
    return _rounded(mean, image)


def _elastic(image: Image, magnitude: float, chance: random.Random) -> Image:
    height, width = image.shape[:2]
    bumps = _normal(chance, 2, geometry.BUMPS, geometry.BUMPS) * (magnitude * _scale(image))
    rows, columns = (geometry.bump_matrix(side, _CPU).numpy() for side in (height, width))
    x, y = rows @ bumps @ columns.T + np.indices((height, width))[::-1]
    bent = cv2.remap(
        image, x.astype(np.float32), y.astype(np.float32), cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    return np.asarray(bent, np.uint8).reshape(image.shape)


def _haze(image: Image, magnitude: float, chance: random.Random) -> Image:
    return _lay(image, overlays.clouds, np.array(chance.uniform(150, 255)), magnitude, chance)


def _drops(image: Image, magnitude: float, chance: random.Random) -> Image:
    shade = np.array([chance.uniform(0, 90) for _ in range(image.shape[2])])
    return _lay(image, overlays.covers, 255 - shade if chance.random() < 0.5 else shade, magnitude, chance)


def _lay(
    image: Image, sheets: overlays.Sheets, tint: NDArray[np.float64], weight: float, chance: random.Random
) -> Image:
    cover = _piece(sheets(max(image.shape[:2]), image.shape[2], _CPU).numpy(), image, chance)
    return _rounded(image + cover * np.float32(weight / 255) * (tint.astype(np.float32) - image), image)


def _gamma(image: Image, magnitude: float, chance: random.Random) -> Image:
    table = 255 * (np.arange(256) / 255) ** (2**magnitude)
    return np.asarray(cv2.LUT(image, (table + 0.5).astype(np.uint8)), np.uint8).reshape(image.shape)


FUNCTIONS: dict[str, Function] = {
    "noise": _noise,
    "speckle": _speckle,
    "impulse": _impulse,
    "blur": _blur,
    "pixel_shuffle": _pixel_shuffle,
    "pixelate": _pixelate,
    "fractal": _fractal,
    "random_filter": _random_filter,
    "random_colour": _random_colour,
    "jpeg": _jpeg,
    "motion": _motion,
    "disk_blur": _disk_blur,
    "zoom": _zoom,
    "elastic": _elastic,
    "haze": _haze,
    "drops": _drops,
    "gamma": _gamma,
}
