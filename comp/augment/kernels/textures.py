"""Procedural textures: fractal clouds for fog, ice crystals for frost, and pieces cut from sheets of either.

Nobody's photographs are needed.
"""

import functools

import torch
from torch import Tensor
from torch.nn import functional as F

from comp.runtime import rng

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
        device: where they are wanted.

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


def pieces(sheets: Tensor, keys: Tensor, height: int, width: int) -> Tensor:
    """Return a random piece of a random sheet for each key, turned upside down for half of them.

    Args:
        sheets: [K, S, S, C], contiguous.
        keys: [B] int64; takes draws 0 to 3.
        height: of a piece, at most S.
        width: of a piece, at most S.

    Returns:
        [B, height, width, C].
    """
    count, side, _, C = sheets.shape
    sheet = rng.integers(keys, 0, count)
    top, left = rng.integers(keys, 1, side - height + 1), rng.integers(keys, 2, side - width + 1)
    rows = torch.arange(height, device=keys.device)
    rows = torch.where(rng.integers(keys, 3, 2)[:, None] == 1, height - 1 - rows, rows)  # [B, height]
    starts = ((sheet * side + top)[:, None] + rows).mul_(side).add_(left[:, None]).mul_(C)
    # Any run of a row's length in memory is a row of this view, so that whole rows are copied and not single pixels.
    runs = sheets.view(-1).as_strided((sheets.numel() - width * C + 1, width * C), (1, 1))
    return runs.index_select(0, starts.view(-1)).view(-1, height, width, C)
