"""Snow, frost, fog and spatter of the suite (Hendrycks & Dietterich 2019).

Every function takes images [B, C, H, W] float32 in grey levels 0..255, keys [B] int64, the scale (shorter side over
32 px) and its severity's parameters, and returns images of the same shape, not yet clipped. Lengths in pixels are
those for 32 px and grow with the scale. On grey images (C = 1) a coloured layer becomes its luma.
"""

import math

import torch
from torch import Tensor

from comp.augment.kernels import filters, textures
from comp.data.corruptions import constants
from comp.data.corruptions.blurs import gaussian_blur
from comp.runtime import rng

_LUMA = (0.299, 0.587, 0.114)
_WATER = (175.0, 238.0, 238.0)  # pale turquoise
_MUD = (63.0, 42.0, 20.0)
_RIM = 1.0  # pixels over which a water drop fades out; fitted to the strength of the reference files


def _luma(images: Tensor) -> Tensor:
    """Return the luma, [B, 1, H, W]."""
    if images.shape[1] == 1:
        return images
    return sum(weight * images[:, c : c + 1] for c, weight in enumerate(_LUMA))  # type: ignore[return-value]


def _colour(rgb: tuple[float, ...], images: Tensor) -> Tensor:
    """Return a colour with the images' channels, [C, 1, 1] float32."""
    colour = constants.values(rgb, images.device).view(3, 1, 1)
    return colour if images.shape[1] == 3 else _luma(colour[None])[0]


def _angles(keys: Tensor, draw: int, low: float, high: float) -> Tensor:
    """Return [B] float32 radians, uniform between two angles in degrees."""
    return torch.deg2rad(rng.uniform(keys, draw) * (high - low) + low)


def snow(
    images: Tensor,
    keys: Tensor,
    scale: float,
    loc: float,
    spread: float,
    zoom: float,
    threshold: float,
    radius: float,
    sigma: float,
    mix: float,
) -> Tensor:
    """Bright flakes falling at a random angle, added twice (once rotated by 180 degrees), over a whitened image."""
    height, width = images.shape[2:]
    flakes = rng.normal_field(keys, 0, (1, height, width)) * spread + loc
    factor = max(zoom * scale, 1.0)
    rows, columns = (constants.matrix(filters.zoom_matrix, keys.device, side, factor) for side in (height, width))
    flakes = filters.separable(flakes, rows, columns)
    flakes = torch.where(flakes < threshold, 0, flakes).clamp_(max=1).mul_(255).floor_()
    weights = filters.half_gaussian(sigma * scale, 2 * math.ceil(radius * scale) + 1)
    flakes = filters.trail(flakes, _angles(keys, 1, -135, -45), weights).round_()
    whitened = torch.maximum(images, _luma(images) * 1.5 + 127.5)
    return mix * images + (1 - mix) * whitened + flakes + flakes.flip(2, 3)


def frost(images: Tensor, keys: Tensor, scale: float, image_share: float, frost_share: float) -> Tensor:
    """A random crop of one of five frost textures."""
    channels, height, width = images.shape[1:]
    sheets = _covering(textures.frosts(scale, images.device), height, width)
    pieces = sheets.unfold(2, height, 1).unfold(3, width, 1)  # [5, 3, places, places, H, W], a view
    sheet = rng.integers(keys, 0, pieces.shape[0])
    top, left = rng.integers(keys, 1, pieces.shape[2]), rng.integers(keys, 2, pieces.shape[3])
    ice = pieces[sheet, :, top, left]  # [B, 3, H, W]
    return image_share * images + frost_share * (ice if channels == 3 else _luma(ice))


def _covering(sheets: Tensor, height: int, width: int) -> Tensor:
    """Return sheets [5, 3, S, S], sized by an image's shorter side, mirrored until they cover the longer one."""
    for axis, side in ((2, height), (3, width)):
        while sheets.shape[axis] < side:
            sheets = torch.cat((sheets, sheets.flip(axis)), axis)
    return sheets


def fog(images: Tensor, keys: Tensor, scale: float, amount: float, decay: float) -> Tensor:
    """Add clouds, keeping the brightest value."""
    height, width = images.shape[2:]
    side = 1 << (max(height, width) - 1).bit_length()
    clouds = textures.plasma(keys, side, decay)[:, None, :height, :width]
    brightest = images.amax((1, 2, 3), keepdim=True)
    return (images + 255 * amount * clouds) * (brightest / (brightest + 255 * amount))


def spatter(
    images: Tensor,
    keys: Tensor,
    scale: float,
    loc: float,
    spread: float,
    sigma: float,
    threshold: float,
    intensity: float,
    mud: float,
) -> Tensor:
    """Drops on the lens: smoothed noise above a threshold, as water or mud."""
    height, width = images.shape[2:]
    # A wider blur damps the noise, so its spread grows too: drops cover the same share of any image size.
    noise = rng.normal_field(keys, 0, (1, height, width)) * (spread * max(scale, 1.0)) + loc
    liquid = gaussian_blur(noise, keys, scale, sigma)
    if mud:
        cover = gaussian_blur((liquid > threshold).to(torch.float32), keys, scale, intensity)
        cover = torch.where(cover < 0.8, 0, cover)
        return images * (1 - cover) + cover * _colour(_MUD, images)
    cover = (liquid >= threshold).to(torch.float32)
    shine = cover * liquid * gaussian_blur(cover, keys, scale, _RIM)
    shine = shine / shine.amax((2, 3), keepdim=True).clamp(min=1e-6)
    return images + intensity * shine * _colour(_WATER, images)
