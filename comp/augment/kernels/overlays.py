"""Procedural overlays: haze, and drops, streaks or crystals; a random piece of a sheet for each sample."""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from comp.augment.kernels import filters, textures
from comp.augment.kernels.colour import rounded
from comp.augment.kernels.geometry import to_images, to_pixels
from comp.runtime import rng
from comp.runtime.constants import cached_constant

_COUNT = 48  # sheets of a kind
SHEETS = 2 * _COUNT  # each is stored upright and mirrored
_SIDES = (64, 128)  # px that sheets are computed at, for images of up to 32 px and larger ones

Sheets = Callable[[int, int, torch.device], Tensor]


def draw_light(keys: Tensor) -> Tensor:
    """Draw [B, 1] float32, a light grey for `haze`, from draw 4."""
    return 150 + 105 * rng.uniform(keys, 4)[:, None]


def draw_colour(keys: Tensor, channels: int) -> Tensor:
    """Draw [B, C] float32, a colour for `drops`, half of them light and half dark, from draws 4 and 5."""
    shade = 90 * rng.uniform_field(keys, 4, (channels,))
    return torch.where(rng.integers(keys, 5, 2)[:, None] == 1, 255 - shade, shade)


def haze(images: Tensor, places: Tensor, colour: Tensor, opacity: Tensor) -> Tensor:
    """Overlay clouds.

    Args:
        images: [B, C, H, W] uint8.
        places: [B, 2] of the clouds' pieces, from `textures.draw_places`.
        colour: [B, 1] or [B, C] float32.
        opacity: [B] float32 / 255, of the clouds where they are thickest; half of it where thinnest.
    """
    return _overlay(images, clouds, places, colour, opacity)


def drops(images: Tensor, places: Tensor, colour: Tensor, opacity: Tensor) -> Tensor:
    """Overlay blobs, streaks or crystals, as `haze` does clouds; `opacity` is that in a drop's middle."""
    return _overlay(images, covers, places, colour, opacity)


def _overlay(images: Tensor, sheets: Sheets, places: Tensor, colour: Tensor, opacity: Tensor) -> Tensor:
    pixels = to_pixels(images)
    _, H, W, C = pixels.shape
    cover = textures.pieces(sheets(max(H, W), C, images.device), places, H, W).to(torch.float32)
    cover.mul_(opacity[:, None, None, None])  # [B, H, W, C], the colour's share
    levels = pixels.to(torch.float32)
    return to_images(rounded(cover.mul_(colour[:, None, None, :] - levels).add_(levels)))


@cached_constant
def clouds(side: int, channels: int, device: torch.device) -> Tensor:
    """Return sheets of haze for images of a side: [96, 2 side, 2 side, channels] uint8, the same on every call.

    A level / 255 is the opacity, from a half up.
    """
    size = _SIDES[side > 32]
    keys = torch.tensor([rng.key(4, number) for number in range(_COUNT)])
    smooth = [textures.plasma(keys[n : n + 1], size, 1.3 + 1.2 * n / (_COUNT - 1)) for n in range(_COUNT)]
    return _sheets(torch.cat(smooth) / 2 + 0.5, side, channels, device)


@cached_constant
def covers(side: int, channels: int, device: torch.device) -> Tensor:
    """Return sheets of blobs, streaks and crystals, as `clouds` does; a level / 255 is the opacity."""
    size = _SIDES[side > 32]
    kinds = (_blobs, _streaks, _crystals)
    covers = [kinds[number % 3](rng.key(5, number), size).clamp(0, 1) for number in range(_COUNT)]
    return _sheets(torch.stack(covers), side, channels, device)


def _sheets(fields: Tensor, side: int, channels: int, device: torch.device) -> Tensor:
    """Return fields [K, S, S] of 0 to 1 as sheets, with their mirror images."""
    if fields.shape[1] != 2 * side:
        fields = F.interpolate(fields[:, None], (2 * side, 2 * side), mode="bilinear", align_corners=False)[:, 0]
    upright = rounded(fields * 255)[..., None].expand(-1, -1, -1, channels)
    return torch.cat((upright, upright.flip(2))).to(device)


def _between(key: int, draw: int, low: float, high: float) -> float:
    return low + (high - low) * float(rng.uniform(torch.tensor([key]), draw))


def _above(field: Tensor, share: float) -> Tensor:
    """Return a field minus its (1 - share) quantile, in standard deviations."""
    return (field - field.flatten().quantile(1 - share)) / field.std()


def _blobs(key: int, size: int) -> Tensor:
    """Roundish drops over 5 to 35 % of the sheet, their rims soft."""
    noise = textures.smooth_noise(key, round(_between(key, 1, 8, 24)), size)
    return _above(noise, _between(key, 2, 0.05, 0.35)) * _between(key, 3, 2, 8)


def _streaks(key: int, size: int) -> Tensor:
    """Flakes over 1 to 6 % of the sheet, smeared in one direction by up to a sixth of an image."""
    flakes = (_above(textures.smooth_noise(key, 48, size), _between(key, 1, 0.01, 0.06)) * 4).clamp(0, 1)
    length = round(_between(key, 2, 1, 6) * size / 64)
    angle = torch.tensor([_between(key, 3, 0, math.pi)])
    smeared = filters.trail(flakes[None, None], angle, [1 / length] * length)[0, 0]
    return smeared / smeared.amax()


def _crystals(key: int, size: int) -> Tensor:
    """Needles along the lines where noises of three sizes cross zero, over a faint film."""
    needles = torch.zeros(size, size)
    for octave in range(3):
        noise = textures.smooth_noise(rng.key(key, octave), 6 << octave, size)
        needles = torch.maximum(needles, (1 - noise.abs() * _between(key, octave, 2, 6)) * 0.8**octave)
    return 0.15 + 0.85 * needles
