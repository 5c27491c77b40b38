"""Gaussian, defocus, glass, motion and zoom blur of the suite (Hendrycks & Dietterich 2019).

Every function takes images [B, C, H, W] float32 in grey levels 0..255, keys [B] int64, the scale (shorter side over
32 px) and its severity's parameters, and returns images of the same shape. Lengths in pixels are those for 32 px and
grow with the scale.
"""

import functools
import math

import torch
from torch import Tensor

from comp.augment.kernels import filters
from comp.data.corruptions import constants
from comp.runtime import rng

# Truncation to whole grey levels must not turn 199.99998, float32's 200, into 199.
NUDGE = 1e-3


def gaussian_blur(images: Tensor, keys: Tensor, scale: float, sigma: float) -> Tensor:
    """Gaussian blur, truncated at four sigmas, with repeated borders."""
    rows, columns = (
        constants.matrix(filters.gaussian_matrix, images.device, side, sigma * scale, 4.0, "nearest")
        for side in images.shape[2:]
    )
    return filters.separable(images, rows, columns)


def defocus_blur(images: Tensor, keys: Tensor, scale: float, radius: float, alias_sigma: float) -> Tensor:
    """Blur by a disk, the image of a point in a defocused lens, anti-aliased."""
    return filters.sum_of_separable(images, *_disk_terms(images.device, *images.shape[2:], scale, radius, alias_sigma))


@functools.lru_cache(maxsize=32)
def _disk_terms(
    device: torch.device, height: int, width: int, scale: float, radius: float, alias_sigma: float
) -> tuple[Tensor, Tensor]:
    kernel = filters.disk_kernel(radius * scale, alias_sigma * scale, max(1, round(scale)))
    return _float32(device, *filters.kernel_terms(kernel, height, width, "mirror"))


def _float32(device: torch.device, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    return rows.to(device, torch.float32), columns.to(device, torch.float32)


def glass_blur(images: Tensor, keys: Tensor, scale: float, sigma: float, reach: float, rounds: float) -> Tensor:
    """Blur, replace pixels by near neighbours one after the other, blur again."""
    height, width = images.shape[2:]
    blurred = gaussian_blur(images, keys, scale, sigma).add_(NUDGE).floor_()
    source = torch.arange(height * width, device=images.device).expand(len(images), -1)
    for step in range(int(rounds)):
        copied = glass_sources(rng.fold(keys, step), height, width, max(1, round(reach * scale)))
        source = source.gather(1, copied)
    shuffled = blurred.flatten(2).gather(2, source[:, None].expand(-1, images.shape[1], -1))
    return gaussian_blur(shuffled.view_as(images), keys, scale, sigma)


def glass_sources(keys: Tensor, height: int, width: int, reach: int) -> Tensor:
    """Return each pixel's source pixel in one round of glass blur, [B, H * W] int64.

    The published loop runs from the bottom right to the top left and copies into each pixel from an offset of
    -reach..reach-1 on each axis. A pixel above or to the left is still unchanged then; one below or to the right
    is already replaced, so its own source is looked up, until every pixel is traced to an unchanged one. Each round
    doubles the length of the traces. The CPU stops when all are traced; asking an accelerator would wait for it, so it
    takes the most rounds that any image could need.
    """
    shorts = rng.shorts_field(keys, 0, (2, height, width))
    offsets = ((shorts * (2 * reach)) >> 16) - reach  # [B, 2, H, W]
    row, column = torch.arange(height, device=keys.device)[:, None], torch.arange(width, device=keys.device)
    index = row * width + column
    moving = (row > reach) & (row <= height - reach) & (column > reach) & (column <= width - reach)
    source = torch.where(moving, index + offsets[:, 0] * width + offsets[:, 1], index).flatten(1)
    if reach == 1:  # -1 or 0: always unchanged
        return source
    index = index.flatten()
    stays = ~moving.flatten()
    done = (source <= index) | stays[source]  # [B, H * W]
    for _ in range((height * width).bit_length()):
        if keys.device.type == "cpu" and bool(done.all()):
            break
        source, done = torch.where(done, source, source.gather(1, source)), done | done.gather(1, source)
    return source


def motion_blur(images: Tensor, keys: Tensor, scale: float, radius: float, sigma: float) -> Tensor:
    """Smear along a one-sided Gaussian trail, at most 45 degrees from the horizontal."""
    angle = torch.deg2rad(rng.uniform(keys, 0) * 90 - 45)
    weights = filters.half_gaussian(sigma * scale, 2 * math.ceil(radius * scale) + 1)
    return filters.trail(images, angle, weights).round_()


def zoom_blur(images: Tensor, keys: Tensor, scale: float, farthest: float) -> Tensor:
    """Mean of the image and of its enlargements by 1, 1.01, 1.02, ... up to `farthest`."""
    return filters.sum_of_separable(images, *_zoom_terms(images.device, *images.shape[2:], farthest))


@functools.lru_cache(maxsize=32)
def _zoom_terms(device: torch.device, height: int, width: int, farthest: float) -> tuple[Tensor, Tensor]:
    count = math.ceil((farthest - 1) / 0.01)  # NumPy's arange includes the end by float rounding
    factors = [1.0, *(1 + 0.01 * step for step in range(count))]
    rows, columns = (torch.stack([filters.zoom_matrix(side, f) for f in factors]) for side in (height, width))
    return _float32(device, *filters.few_terms(rows / len(factors), columns))
