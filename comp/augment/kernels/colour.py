"""Colour and grey-level ops on uint8 batches, as Pillow defines them; each sample has its own amount.

Images are [B, C, H, W] uint8 (C is 1 or 3) in any memory format; results are channels_last. An op that maps grey
levels one by one writes a 256-entry table for each sample (or sample and channel) and looks all pixels up at once.
Arithmetic is arranged to be exact in float32 where Pillow's is in integers, so that results do not depend on batch
size or device. References: Pillow's ImageOps, ImageEnhance and its conversions between RGB, L and HSV.
"""

import math

import torch
from torch import Tensor

from comp.augment.kernels.geometry import to_images, to_pixels
from comp.runtime import rng
from comp.runtime.constants import cached_constant

# ITU-R 601 luma in 1/65536, as Pillow's convert("L"). Sums stay below 2^24, so float32 holds them exactly.
_RED, _GREEN, _BLUE = 19595.0, 38470.0, 7471.0


def look_up(images: Tensor, tables: Tensor) -> Tensor:
    """Return every grey level replaced by its table's entry.

    Args:
        images: [B, C, H, W] uint8.
        tables: [B, 256] uint8.
    """
    pixels = to_pixels(images)
    return _take(tables, _entries(pixels, False), pixels)


def look_up_by_channel(images: Tensor, tables: Tensor) -> Tensor:
    """Return every grey level replaced by its channel's entry in tables [B, C, 256] uint8."""
    pixels = to_pixels(images)
    return _take(tables, _entries(pixels, True), pixels)


def brightness_tables(factor: Tensor) -> Tensor:
    """Return [B, 256] tables that blend with black; `factor` [B]: 0 is black, 1 the image (ImageEnhance.Brightness)."""
    return _blend_tables(torch.zeros_like(factor), factor)


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Return images blended with their own mean luma; `factor` [B]: 0 is flat, 1 the image."""
    # Sums of at most 2^16 pixels of 8 bits are exact in float32 blocks; float64 holds any image's.
    mean = luma(images).flatten(1).sum(1, dtype=torch.float64) / (images.shape[2] * images.shape[3])
    return look_up(images, _blend_tables((mean + 0.5).floor().to(torch.float32), factor))


def saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Return images blended with their luma; `factor` [B]: 0 is grey, 1 the image (ImageEnhance.Color)."""
    if images.shape[1] == 1:
        return images
    planes = _planes(images)
    grey, factor = _luma_of(planes), factor[:, None, None]
    return _from_planes([_blend(grey, plane, factor) for plane in planes])


def sharpness(images: Tensor, factor: Tensor) -> Tensor:
    """Return images blended with a smoothed copy; `factor` [B]: 0 is smooth, 1 the image, 2 sharp.

    The kernel is Pillow's SMOOTH: 5 in the middle, 1 around, over 13. Border pixels stay as they are.
    """
    pixels = to_pixels(images)
    B, H, W, C = pixels.shape
    if min(H, W) < 3:
        return images
    x = pixels.view(B, H, W * C).to(torch.float32)
    rows = (x[:, :-2] + x[:, 1:-1]).add_(x[:, 2:])  # [B, H-2, W C]
    inner = slice(C, (W - 1) * C)
    box = (rows[:, :, : (W - 2) * C] + rows[:, :, inner]).add_(rows[:, :, 2 * C :])
    smooth = x.clone()
    smooth[:, 1:-1, inner] = box.add_(x[:, 1:-1, inner], alpha=4).div_(13).add_(0.5).floor_()
    return to_images(_to_bytes(_blend(smooth, x, factor[:, None, None])).view(B, H, W, C))


def posterize_tables(bits: Tensor) -> Tensor:
    """Return [B, 256] tables that keep the `bits` [B] highest bits of each value, 0 to 8."""
    step = torch.exp2(8 - bits.to(torch.float32))[:, None]
    return _to_bytes((_levels(bits) / step).floor() * step)


def solarize_tables(threshold: Tensor) -> Tensor:
    """Return [B, 256] tables that invert values at or above `threshold` [B]."""
    levels = _levels(threshold)
    return _to_bytes(torch.where(levels < threshold[:, None], levels, 255 - levels))


def invert(images: Tensor) -> Tensor:
    """Return negatives."""
    return to_images(~to_pixels(images))


def gamma_tables(octaves: Tensor) -> Tensor:
    """Return [B, 256] tables of levels, as fractions of 255, to the power 2^`octaves` [B]: above 0 is darker."""
    shares = torch.arange(256, dtype=torch.float64, device=octaves.device) / 255
    return rounded(255 * shares ** torch.exp2(octaves.double())[:, None])


def autocontrast(images: Tensor) -> Tensor:
    """Return images with each channel stretched to reach from 0 to 255; a flat channel stays (ImageOps)."""
    B, C, _, W = images.shape
    rows = to_pixels(images).flatten(2)  # [B, H, W C]: long inner rows keep the reduction vectorised
    if torch.compiler.is_compiling():
        rows = rows.to(torch.int32)  # compiled for a CPU, torch 2.14's extremes of bytes are wrong in some batches
    low = rows.amin(1).view(B, W, C).amin(1).double()[..., None]  # [B, C, 1]
    high = rows.amax(1).view(B, W, C).amax(1).double()[..., None]
    scale = 255 / (high - low).clamp(min=1)
    levels = torch.arange(256, dtype=torch.float64, device=images.device)
    stretched = (levels * scale - low * scale).clamp(0, 255)
    return look_up_by_channel(images, torch.where(high > low, stretched, levels).to(torch.int32).to(torch.uint8))


def equalize(images: Tensor) -> Tensor:
    """Return images with each channel's histogram flattened (ImageOps.equalize)."""
    B, C, H, W = images.shape
    pixels = to_pixels(images)
    entries = _entries(pixels, True)
    counts = _count(entries, B * C * 256).view(B, C, 256)
    # Pillow's step leaves out the pixels of the highest level that occurs.
    levels = torch.arange(256, device=images.device)
    highest = torch.where(counts > 0, levels, 0).amax(2, keepdim=True)  # [B, C, 1]
    step = (H * W - counts.gather(2, highest)) // 255
    below = counts.cumsum(2) - counts
    table = ((step // 2 + below) // step.clamp(min=1)).clamp(max=255)
    return _take(torch.where(step > 0, table, levels).to(torch.uint8), entries, pixels)


def _count(entries: Tensor, length: int) -> Tensor:
    """Return [length] int64: how often each number occurs. (`bincount` reads the largest one back from the device.)"""
    if entries.device.type == "cpu" and not torch.compiler.is_compiling():
        return torch.bincount(entries, minlength=length)  # several times faster there
    counts = torch.zeros(length, dtype=torch.int64, device=entries.device)
    return counts.index_add_(0, entries, torch.ones_like(entries, dtype=torch.int64))


def grayscale(images: Tensor) -> Tensor:
    """Return images with every channel replaced by the luma."""
    if images.shape[1] == 1:
        return images
    grey = luma(images)
    return _from_planes([grey] * 3)


def luma(images: Tensor) -> Tensor:
    """Return [B, H, W] float32 whole numbers: Pillow's convert("L")."""
    if images.shape[1] == 1:
        return images[:, 0].to(torch.float32)
    return _luma_of(_planes(images))


def _luma_of(planes: list[Tensor]) -> Tensor:
    red, green, blue = planes
    # In place from here on: fresh memory costs more than arithmetic on a CPU.
    return (red * _RED).add_(green * _GREEN).add_(blue * _BLUE).add_(32768).mul_(2.0**-16).floor_()


def hue(images: Tensor, steps: Tensor) -> Tensor:
    """Return images with hues shifted by `steps` [B] uint8 of 255 to the circle, in Pillow's 8-bit HSV."""
    if images.shape[1] == 1:
        return images
    h, s, v = rgb_to_hsv(images)
    h += steps[:, None, None]  # bytes wrap, as hues do
    return hsv_to_rgb(h, s, v)


def rgb_to_hsv(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return hue, saturation and value: each [B, H, W] uint8 (Pillow's convert("HSV"))."""
    red, green, blue = (images[:, c].clone(memory_format=torch.contiguous_format) for c in range(3))
    higher, lower = torch.maximum(red, green), torch.minimum(red, green)
    value = torch.maximum(higher, blue)
    spread = (value - torch.minimum(lower, blue)).to(torch.int32)
    gap = value - torch.maximum(lower, torch.minimum(higher, blue))  # from the middle channel up to the highest
    hues, saturations = hsv_tables(value.device)
    s = saturations.index_select(0, value.to(torch.int32).mul_(256).add_(spread).view(-1))
    sector = (red >= green).to(torch.int32).mul_(4).add_((green >= blue).to(torch.int32), alpha=2).add_(red >= blue)
    h = hues.index_select(0, sector.mul_(256).add_(spread).mul_(256).add_(gap).view(-1))
    return h.view(value.shape), s.view(value.shape), value


@cached_constant
def hsv_tables(device: torch.device) -> tuple[Tensor, Tensor]:
    """Return uint8 tables of hue [8 sectors * 256 spreads * 256 gaps] and saturation [256 values * 256 spreads].

    One hue level is six grey levels, so Pillow's roundings are followed: quotients in float32, the rest in float64.
    """
    level = torch.arange(256, dtype=torch.float32)
    gaps = level / level[:, None].clamp(min=1)  # [spread, gap] float32
    # Sixths of the circle, by (red >= green, green >= blue, red >= blue); the second and the seventh cannot be.
    start = torch.tensor([3.0, 0.0, 3.0, 1.0, 5.0, -1.0, 0.0, 1.0])[:, None, None]
    sign = torch.tensor([1.0, 0.0, -1.0, 1.0, -1.0, 1.0, 0.0, -1.0])[:, None, None]
    turns = ((start + sign * gaps).double() / 6 + 1) % 1
    hues = (turns.float().double() * 255).clamp(0, 255).to(torch.uint8)
    hues[:, 0] = 0  # a grey pixel has no hue
    shares = level / level[:, None].clamp(min=1)  # [value, spread]
    saturations = (shares.double() * 255).clamp(0, 255).to(torch.uint8)
    return hues.view(-1).to(device), saturations.view(-1).to(device)


def hsv_to_rgb(h: Tensor, s: Tensor, v: Tensor) -> Tensor:
    """Return [B, 3, H, W] uint8 of hue, saturation and value, each [B, H, W] uint8 (Pillow's convert("RGB"))."""
    sixths, start = h * (6 / 255), v + 0.5
    chroma = v.to(torch.float32).mul_(s).mul_(1 / 255)
    # How far a channel's hue lies from where the channel is full, in sixths, is its loss of chroma, within 0 and 1.
    red = ((sixths - 3).abs_() - 2).neg_().clamp_(0, 1)
    green = ((sixths - 2).abs_() - 1).clamp_(0, 1)
    blue = ((sixths - 4).abs_() - 1).clamp_(0, 1)
    return _from_planes([torch.sub(start, loss.mul_(chroma)) for loss in (red, green, blue)])


_WAVES = 6


@cached_constant
def waves(device: torch.device) -> Tensor:
    """Return [6, 256] float64: sin(pi k level / 255) for k from 1, whose sum is a random curve; rms 1 together."""
    k = torch.arange(1, _WAVES + 1, dtype=torch.float64)[:, None]
    return (torch.sin(torch.pi * k * torch.arange(256) / 255) * math.sqrt(2 / _WAVES)).to(device)


def random_curves(displacement: Tensor, keys: Tensor, channels: int) -> Tensor:
    """Return [B, C, 256] tables that move each channel's levels along a smooth random curve; black and white stay.

    The curve is the level plus six sines with normal weights, after PRIME's colour transform (Modas et al. 2022,
    arXiv:2112.13547); it need not rise.

    Args:
        displacement: [B], root mean square of what is added, as a fraction of 255.
        keys: [B] int64.
        channels: of the images.
    """
    weights = rng.normal_field(keys, 0, (channels, _WAVES)) * displacement[:, None, None]
    curves = (weights.double() @ waves(keys.device)).mul_(255)  # [B, C, 256]; float64: no batch moves a rounding
    return rounded(curves.add_(_levels(keys)))


def _entries(pixels: Tensor, by_channel: bool) -> Tensor:
    """Return [B H W C] int32: each pixel's index into the concatenated 256-entry tables."""
    B, H, W, C = pixels.shape
    if not by_channel:
        first = torch.arange(0, B * 256, 256, dtype=torch.int32, device=pixels.device)
        return (pixels.view(B, -1) + first[:, None]).view(-1)
    first = torch.arange(0, B * C * 256, 256, dtype=torch.int32, device=pixels.device)
    row = first.view(B, 1, 1, C).expand(B, 1, W, C).reshape(B, 1, W * C)  # long inner rows keep the sum vectorised
    return (pixels.view(B, H, W * C) + row).view(-1)


def _take(tables: Tensor, entries: Tensor, pixels: Tensor) -> Tensor:
    return to_images(tables.reshape(-1).index_select(0, entries).view(pixels.shape))


def _levels(images: Tensor) -> Tensor:
    return torch.arange(256, dtype=torch.float32, device=images.device)


def _blend(start: Tensor, end: Tensor, factor: Tensor) -> Tensor:
    """Interpolate or extrapolate from `start` to `end`, as Image.blend; the fraction is cut off."""
    return (end - start).mul_(factor).add_(start).clamp_(0, 255)


def _blend_tables(start: Tensor, factor: Tensor) -> Tensor:
    """Return [B, 256] uint8: each level blended with its sample's `start` [B]."""
    return _to_bytes(_blend(start[:, None], _levels(start), factor[:, None]))


def rounded(values: Tensor) -> Tensor:
    """Return float grey levels as uint8, rounded and clipped; works in the buffer of `values`."""
    return _to_bytes(values.add_(0.5).clamp_(0, 255))


def _to_bytes(values: Tensor) -> Tensor:
    # By way of int32, which is twice as fast on a CPU as straight from float32.
    return values.to(torch.int32).to(torch.uint8)


def _planes(images: Tensor) -> list[Tensor]:
    return [images[:, channel].to(torch.float32, memory_format=torch.contiguous_format) for channel in range(3)]


def _from_planes(planes: list[Tensor]) -> Tensor:
    return to_images(torch.stack([_to_bytes(plane) for plane in planes], -1))
