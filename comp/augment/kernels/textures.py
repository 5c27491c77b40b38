"""Procedural textures, no photographs: clouds for fog, ice for frost, and PixMix textures to mix into images.

PixMix (Hendrycks et al. 2022, arXiv:2112.05135) mixes images with structurally complex pictures from the web. Ours are
computed: Julia sets near the Mandelbrot set's border, half of them with the burning ship's absolute values; waves
warped by slower waves; and chequers under random shears. They contain no clouds, crystals or drops, so that what is
mixed in resembles no corruption of a suite.
"""

import functools
import math

import torch
from torch import Tensor
from torch.nn import functional as F

from comp.augment.kernels.colour import rounded
from comp.augment.kernels.geometry import to_images, to_pixels
from comp.runtime import rng
from comp.runtime.constants import cached_constant

_FROST_SIDE = 160  # of a texture for 32-px images
# Of five textures: mean and standard deviation in grey levels, and the share of fine needles.
_FROSTS = ((148.0, 62.0, 0.7), (158.0, 58.0, 0.5), (166.0, 56.0, 0.6), (140.0, 66.0, 0.8), (153.0, 60.0, 0.4))


def plasma(keys: Tensor, side: int, decay: float) -> Tensor:
    """Return clouds by diamond-square on a torus (Fournier, Fussell and Carpenter 1982).

    Each halving of the step divides the amplitude of the displacements by `decay` squared.

    Args:
        keys: [B] int64 keys.
        side: a power of two.
        decay: above 1; larger is smoother.

    Returns:
        [B, side, side] float32, stretched to 0..1 in each sample.
    """
    uniform = rng.shorts_field(keys, 0, (side, side)).to(torch.float32).add_(0.5).mul_(2.0**-15).sub_(1)
    clouds = torch.zeros_like(uniform)
    step, amplitude = side, 1.0
    while step > 1:
        half = step // 2
        # Four means of four neighbours plus a displacement; views, so each assignment fills a quarter of the grid.
        corners, centres = clouds[:, ::step, ::step], clouds[:, half::step, half::step]
        bumps = uniform * amplitude
        pairs = corners + corners.roll(-1, 1)
        centres.copy_((pairs + pairs.roll(-1, 2)) / 4 + bumps[:, half::step, half::step])
        tops = corners + corners.roll(-1, 2) + centres + centres.roll(1, 1)
        clouds[:, ::step, half::step] = tops / 4 + bumps[:, ::step, half::step]
        lefts = pairs + centres + centres.roll(1, 2)
        clouds[:, half::step, ::step] = lefts / 4 + bumps[:, half::step, ::step]
        step, amplitude = half, amplitude / decay**2
    low, high = clouds.amin((1, 2), keepdim=True), clouds.amax((1, 2), keepdim=True)
    return (clouds - low) / (high - low).clamp(min=1e-12)


def smooth_noise(key: int, cells: int, side: int) -> Tensor:
    """Return [side, side] float32 noise, smooth between `cells` by `cells` centres, where its variance is 1."""
    field = rng.normal_field(torch.tensor([key]), 0, (1, cells, cells))
    return F.interpolate(field, (side, side), mode="bicubic", align_corners=False)[0, 0]


def _ice(number: int, needles: float, side: int) -> Tensor:
    """[side, side] float32: clouds of ice with bright ridges where noises cross zero, as crystals' edges are."""
    cloud, ridges = torch.zeros(side, side), torch.zeros(side, side)
    for octave in range(5):
        cells = 5 << octave
        cloud += smooth_noise(rng.key(1, number, octave), cells, side) * 0.75**octave
        ridges += (1 - smooth_noise(rng.key(2, number, octave), cells, side).abs()).clamp(-1, 1) * 0.9**octave
    return cloud / cloud.std() * (1 - needles) + ridges / ridges.std() * needles


@functools.lru_cache(maxsize=8)
def frosts(scale: float, device: torch.device) -> Tensor:
    """Return five frost textures, the same ones on every call.

    Args:
        scale: the image's size over 32 px; textures grow with it.
        device: of the result.

    Returns:
        [5, 3, S, S] float32 grey levels 0..255, RGB.
    """
    sheets = []
    for number, (mean, deviation, needles) in enumerate(_FROSTS):
        ice = _ice(number, needles, _FROST_SIDE)
        grey = (ice - ice.mean()) / ice.std() * deviation + mean
        # Thin ice is bluish, thick ice white.
        sheets.append(torch.stack((grey - 8, grey, grey + 6)).clamp(0, 255))
    textures = torch.stack(sheets)
    if scale != 1:
        side = round(_FROST_SIDE * scale)
        textures = F.interpolate(textures, (side, side), mode="bicubic", align_corners=False).clamp(0, 255)
    return textures.to(device)


def draw_places(keys: Tensor, count: int, height: int, width: int) -> Tensor:
    """Draw a random piece of a random sheet for each key, half of them upside down.

    Args:
        keys: [B] int64; takes draws 0 to 3.
        count: of the sheets, whose sides are twice the longer one of a piece.
        height: of a piece.
        width: of a piece.

    Returns:
        [B, 2] int64 for `pieces`: the pixel where a piece's first row starts, and the pixels from row to row.
    """
    side = 2 * max(height, width)
    sheet = rng.integers(keys, 0, count)
    top, left = rng.integers(keys, 1, side - height + 1), rng.integers(keys, 2, side - width + 1)
    turned = rng.integers(keys, 3, 2)
    start = (sheet * side + top + turned * (height - 1)) * side + left
    return torch.stack((start, side - 2 * side * turned), 1)


def pieces(sheets: Tensor, places: Tensor, height: int, width: int) -> Tensor:
    """Return a piece of the sheets for each sample, [B, height, width, C].

    Args:
        sheets: [K, S, S, C], contiguous.
        places: [B, 2] from `draw_places`.
        height: of a piece.
        width: of a piece.
    """
    C = sheets.shape[3]
    start, step = places.unbind(1)
    rows = torch.arange(height, device=places.device)
    starts = torch.addcmul(start[:, None], step[:, None], rows).mul_(C)  # [B, height]
    # Any run of a row's length in memory is a row of this view: copies whole rows, not single pixels.
    runs = sheets.view(-1).as_strided((sheets.numel() - width * C + 1, width * C), (1, 1))
    return runs.index_select(0, starts.view(-1)).view(-1, height, width, C)


COUNT = 64  # textures; each is stored upright and mirrored


_LARGEST = 128  # px that a texture is computed at; larger ones are enlarged from it


_STEPS = 40  # of a Julia set's iteration


def draw_shares(weight: Tensor, keys: Tensor) -> Tensor:
    """Draw one of three ways to mix in a texture, after PixMix.

    Towards the texture or away from it (a quarter of the samples each), or multiplied by it (half).

    Args:
        weight: [B] of the texture, 0 to 1.
        keys: [B] int64; takes draw 4.

    Returns:
        [B, 3] float32 for `mix`: factors of texture times image, of the image and of the texture.
    """
    mode = rng.integers(keys, 4, 4)
    multiplied = (mode > 1).to(torch.float32) * weight
    added = (mode < 2).to(torch.float32) * (weight * (1 - 2 * (mode == 1).to(torch.float32)))
    # x + share (t - x), or x (1 + weight (2 t / 255 - 1)).
    return torch.stack((multiplied * 2 / 255, 1 - multiplied - added, added), 1)


def mix(images: Tensor, places: Tensor, shares: Tensor) -> Tensor:
    """Mix a piece of a texture into each image.

    Args:
        images: [B, C, H, W] uint8.
        places: [B, 2] from `draw_places`.
        shares: [B, 3] from `draw_shares`.
    """
    pixels = to_pixels(images)
    _, H, W, C = pixels.shape
    piece = pieces(sheets(max(H, W), C, images.device), places, H, W).to(torch.float32)
    both, image, texture = shares[:, :, None, None, None].unbind(1)
    mixed = (piece * both).add_(image).mul_(pixels.to(torch.float32))
    return to_images(rounded(mixed.add_(piece.mul_(texture))))


@cached_constant
def sheets(side: int, channels: int, device: torch.device) -> Tensor:
    """Return the textures for images of a side: [128, 2 side, 2 side, channels] uint8, the same on every call.

    The second half mirrors the first. They are computed on the CPU, so that devices cannot differ.
    """
    size = 2 * side
    fields = torch.stack([_field(number, min(size, _LARGEST)) for number in range(COUNT)])
    if size > _LARGEST:
        fields = F.interpolate(fields[:, None], (size, size), mode="bilinear", align_corners=False)[:, 0]
    # A field of 0 to 1 runs through some turns of its own colour wheel.
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
    cos, sin = math.cos(angle), math.sin(angle)
    x = zoom * (cos * line + sin * line[:, None])
    y = zoom * (cos * line[:, None] - sin * line)
    field = (_julia, _julia, _waves, _chequers)[number % 4](number, x, y)
    low, high = field.amin(), field.amax()
    return (field - low) / (high - low).clamp(min=1e-6)


def _julia(number: int, x: Tensor, y: Tensor) -> Tensor:
    """Smoothed escape times of z^2 + c; odd numbers take absolute values first, as the burning ship does."""
    theta, distance = 2 * math.pi * _uniform(number, 2), 1 + 0.1 * _uniform(number, 3)
    real = distance * (math.cos(theta) / 2 - math.cos(2 * theta) / 4)  # just outside the Mandelbrot set's heart
    imaginary = distance * (math.sin(theta) / 2 - math.sin(2 * theta) / 4)
    time = torch.zeros_like(x)
    for _ in range(_STEPS):
        if number % 2:
            x, y = x.abs(), y.abs()
        x, y = (x * x - y * y + real).clamp(-1e3, 1e3), (2 * x * y + imaginary).clamp(-1e3, 1e3)
        time += torch.exp(-(x * x + y * y) / 4)  # smooth, and constant once a point has escaped
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
