"""Procedural textures to mix into images: fractals, gratings and chequers. No photographs, and nothing like weather.

PixMix (Hendrycks et al. 2022, arXiv:2112.05135) mixes images with structurally complex pictures: fractals and feature
visualisations collected from the web. Ours are computed: Julia sets near the Mandelbrot set's border, half of them
with the burning ship's absolute values; waves warped by slower waves, as edges are; and chequers under random shears.
Clouds, crystals and drops are left out on purpose, so that what is mixed in resembles no corruption of a suite.
"""

import functools
import math

import torch
from torch import Tensor
from torch.nn import functional as F

from comp.augment.kernels import textures
from comp.augment.kernels.colour import rounded
from comp.augment.kernels.geometry import to_images, to_pixels
from comp.runtime import rng

COUNT = 64  # textures; each is stored upright and mirrored
_LARGEST = 128  # px that a texture is computed at; larger ones are enlarged from it
_STEPS = 40  # of a Julia set's iteration


def mix(images: Tensor, weight: Tensor, keys: Tensor) -> Tensor:
    """Return each image mixed with a random piece of a random texture, in one of three ways.

    Towards the texture or away from it (a quarter of the samples each), or multiplied by it (half), after PixMix.

    Args:
        images: [B, C, H, W] uint8.
        weight: [B] of the texture, 0 to 1.
        keys: [B] int64.
    """
    pixels = to_pixels(images)
    _, H, W, C = pixels.shape
    piece = textures.pieces(sheets(max(H, W), C, images.device), keys, H, W).to(torch.float32)
    weight, way = weight.to(torch.float32)[:, None, None, None], rng.integers(keys, 4, 4)[:, None, None, None]
    share = weight * (1 - 2 * (way == 1).to(torch.float32))
    multiplied = (way > 1).to(torch.float32) * weight
    added = (way < 2).to(torch.float32) * share
    # x + share (t - x), or x (1 + weight (2 t / 255 - 1)).
    mixed = (piece * (multiplied * 2 / 255)).add_(1 - multiplied - added).mul_(pixels.to(torch.float32))
    return to_images(rounded(mixed.add_(piece.mul_(added))))


@functools.lru_cache(maxsize=8)
def sheets(side: int, channels: int, device: torch.device) -> Tensor:
    """Return the textures for images of a side: [128, 2 side, 2 side, channels] uint8, the same on every call.

    The second half mirrors the first. They are computed on the CPU, so that devices cannot differ.
    """
    size = 2 * side
    fields = torch.stack([_field(number, min(size, _LARGEST)) for number in range(COUNT)])
    if size > _LARGEST:
        fields = F.interpolate(fields[:, None], (size, size), mode="bilinear", align_corners=False)[:, 0]
    # A field of 0 to 1 runs through some turns of a colour wheel of its own.
    turns = torch.tensor([[0.5 + 1.5 * _uniform(n, 20 + c) for c in range(channels)] for n in range(COUNT)])
    starts = torch.tensor([[_uniform(n, 30 + c) for c in range(channels)] for n in range(COUNT)])
    angles = 2 * math.pi * (fields[..., None] * turns[:, None, None] + starts[:, None, None])
    upright = rounded(torch.cos(angles).add_(1).mul_(127.5))  # [K, S, S, C]
    return torch.cat((upright, upright.flip(2))).to(device)


def _uniform(number: int, draw: int) -> float:
    return float(rng.uniform(torch.tensor([rng.key(3, number)]), draw))


def _field(number: int, size: int) -> Tensor:
    """[size, size] float32 in 0..1."""
    angle, zoom = 2 * math.pi * _uniform(number, 0), 0.5 + _uniform(number, 1)
    line = torch.linspace(-1, 1, size)
    x, y = (zoom * (math.cos(angle) * line + math.sin(angle) * line[:, None]),
            zoom * (math.cos(angle) * line[:, None] - math.sin(angle) * line))  # fmt: skip
    field = (_julia, _julia, _waves, _chequers)[number % 4](number, x, y)
    low, high = field.amin(), field.amax()
    return (field - low) / (high - low).clamp(min=1e-6)


def _julia(number: int, x: Tensor, y: Tensor) -> Tensor:
    """Smoothed escape times of z^2 + c; odd numbers take absolute values first, as the burning ship does."""
    theta, away = 2 * math.pi * _uniform(number, 2), 1 + 0.1 * _uniform(number, 3)
    real = away * (math.cos(theta) / 2 - math.cos(2 * theta) / 4)  # just outside the Mandelbrot set's heart
    imaginary = away * (math.sin(theta) / 2 - math.sin(2 * theta) / 4)
    time = torch.zeros_like(x)
    for _ in range(_STEPS):
        if number % 2:
            x, y = x.abs(), y.abs()
        x, y = (x * x - y * y + real).clamp(-1e3, 1e3), (2 * x * y + imaginary).clamp(-1e3, 1e3)
        time += torch.exp(-(x * x + y * y) / 4)  # smooth, and still once a point has gone
    return time.add_(1).log_()


def _waves(number: int, x: Tensor, y: Tensor) -> Tensor:
    """Sharpened waves, 3 to 12 across, bent by slower ones."""
    bend = torch.sin(math.pi * (1 + 2 * _uniform(number, 2)) * y + 6 * _uniform(number, 3))
    phase = math.pi * (3 + 9 * _uniform(number, 4)) * x + 4 * _uniform(number, 5) * bend
    return torch.tanh(torch.sin(phase) * (0.5 + 4 * _uniform(number, 6)))


def _chequers(number: int, x: Tensor, y: Tensor) -> Tensor:
    """Chequers of unequal sides, sheared, with shades that differ between every other one."""
    across, down = 2 + 6 * _uniform(number, 2), 2 + 6 * _uniform(number, 3)
    columns = torch.floor(across * (x + (_uniform(number, 4) - 0.5) * y))
    rows = torch.floor(down * y)
    return (columns + rows).remainder(2) + 0.5 * (columns + 2 * rows).remainder(3)
