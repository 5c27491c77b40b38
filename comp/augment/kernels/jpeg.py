"""Baseline JPEG encoding and decoding on batches of tensors, bit-identical to Pillow's `save(..., quality=q)`.

The arithmetic is that of the Independent JPEG Group's library as Pillow ships it (libjpeg-turbo): 16-bit fixed-point
colour conversion, 4:2:0 chroma, the 13-bit fixed-point DCT after Loeffler, Ligtenberg and Moschytz (1989), quantisation
tables of ITU-T T.81 annex K scaled by quality, triangular chroma upsampling. Entropy coding is lossless and left
out. The DCT's butterflies are exact integer sums before each rounding, so they are matrix products here; float64 holds
those integers exactly, and the result is Pillow's, bit for bit.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from comp.runtime.constants import cached_constant

_LUMINANCE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
_CHROMINANCE = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *((99, 99, 99, 99, 99, 99, 99, 99),) * 4,
)
_CHROMA_BIAS = (128 << 16) + (1 << 15) - 1
# R, G, B weights times 2^16, and the bias before the shift (128 for chroma, and the rounding).
_TO_YCC = (
    (19595, 38470, 7471, 1 << 15),
    (-11059, -21709, 32768, _CHROMA_BIAS),
    (32768, -27439, -5329, _CHROMA_BIAS),
)
_DCT_BITS, _PASS_BITS = 13, 2


def _fix(value: float) -> int:
    return int(value * (1 << _DCT_BITS) + 0.5)


@cached_constant
def _forward_matrix(device: torch.device) -> Tensor:
    """[8, 8] float64: the DCT's butterflies in 13-bit fixed point, applied to the unit vectors."""
    columns = []
    for unit in torch.eye(8, dtype=torch.int64).tolist():
        s = [unit[i] + unit[7 - i] for i in range(4)]
        d = [unit[3 - i] - unit[4 + i] for i in range(4)]
        even_sum, even_mid, low = s[0] + s[3], s[1] + s[2], s[0] - s[3]
        mid = s[1] - s[2]
        shared = (mid + low) * _fix(0.541196100)
        z1, z2, z3, z4 = d[0] + d[3], d[1] + d[2], d[0] + d[2], d[1] + d[3]
        z5 = (z3 + z4) * _fix(1.175875602)
        z3, z4 = z5 - z3 * _fix(1.961570560), z5 - z4 * _fix(0.390180644)
        z1, z2 = -z1 * _fix(0.899976223), -z2 * _fix(2.562915447)
        column = [
            (even_sum + even_mid) << _DCT_BITS,
            d[3] * _fix(1.501321110) + z1 + z4,
            shared + low * _fix(0.765366865),
            d[2] * _fix(3.072711026) + z2 + z3,
            (even_sum - even_mid) << _DCT_BITS,
            d[1] * _fix(2.053119869) + z2 + z4,
            shared - mid * _fix(1.847759065),
            d[0] * _fix(0.298631336) + z1 + z3,
        ]
        columns.append(column)
    return torch.tensor(columns, dtype=torch.float64).T.contiguous().to(device)


def _passes(blocks: Tensor, matrix: Tensor, first_shift: int, second_shift: int, *, rows_first: bool) -> Tensor:
    """Apply an 8-point transform along both axes of [N, H, W] planes, rounding by a shift after each."""
    for along_rows, shift in ((rows_first, first_shift), (not rows_first, second_shift)):
        scaled = matrix * 2.0**-shift  # a power of two: still exact
        if along_rows:
            summed = blocks.view(*blocks.shape[:2], -1, 8) @ scaled.T
        else:
            summed = torch.matmul(scaled, blocks.view(len(blocks), -1, 8, blocks.shape[2]))
        blocks = summed.view_as(blocks).add_(0.5).floor_()
    return blocks


@cached_constant
def _tables(plane: Literal["luma", "chroma"], device: torch.device) -> Tensor:
    """[100, 8, 8] float64 quantisation steps for qualities of 1 to 100, within baseline's 1..255."""
    base = torch.tensor(_LUMINANCE if plane == "luma" else _CHROMINANCE)
    quality = torch.arange(1, 101)[:, None, None]
    scale = torch.where(quality < 50, 5000 // quality, 200 - 2 * quality)
    return ((base * scale + 50) // 100).clamp(1, 255).to(device, torch.float64)


def _code(planes: Tensor, tables: Tensor) -> Tensor:
    """Transform, quantise and transform back [N, H, W] int32 planes whose sides are multiples of 8.

    `tables` is [N, 8, 8], or [1, 8, 8] for all.
    """
    height, width = planes.shape[1:]
    forward = _forward_matrix(planes.device)
    steps = tables.repeat(1, height // 8, width // 8)
    first, second = _DCT_BITS - _PASS_BITS, _DCT_BITS + _PASS_BITS
    centred = (planes - 128).to(torch.float64)
    coefficients = _passes(centred, forward, first, second, rows_first=True)  # 8 times the orthonormal ones
    # Halves round away from zero; integers divided by integers, so no quotient is wrongly rounded up.
    levels = coefficients.abs().add_(4 * steps).div_(8 * steps).floor_().copysign_(coefficients)
    back = _passes(levels.mul_(steps), forward.T, first, second + 3, rows_first=False)
    return back.to(torch.int32).add_(128).clamp_(0, 255)


def _padded(planes: Tensor, rows: int, columns: int) -> Tensor:
    """Repeat the last row and column of [N, C, H, W] until the sides are multiples of `rows` and `columns`."""
    bottom, right = -planes.shape[2] % rows, -planes.shape[3] % columns
    if not bottom and not right:
        return planes
    return F.pad(planes.to(torch.float32), (0, right, 0, bottom), mode="replicate").to(planes.dtype)


def _halved(planes: Tensor) -> Tensor:
    """Mean of each 2x2 of [..., H, W] int32; the rounding alternates by column, so that no tint builds up."""
    pairs = planes[..., ::2, :] + planes[..., 1::2, :]
    bias = 1 + torch.arange(planes.shape[-1] // 2, dtype=torch.int32, device=planes.device) % 2
    fours = pairs[..., ::2] + pairs[..., 1::2] + bias
    return fours >> 2


def _doubled(planes: Tensor) -> Tensor:
    """Triangular upsampling of [N, H, W] int32 to [N, 2H, 2W]: 9, 3, 3 and 1 sixteenths of the four nearest."""
    above = torch.cat((planes[:, :1], planes[:, :-1]), 1)
    below = torch.cat((planes[:, 1:], planes[:, -1:]), 1)
    tall = torch.stack((3 * planes + above, 3 * planes + below), 2).flatten(1, 2)  # [N, 2H, W]
    before = torch.cat((tall[:, :, :1], tall[:, :, :-1]), 2)
    after = torch.cat((tall[:, :, 1:], tall[:, :, -1:]), 2)
    return torch.stack(((3 * tall + before + 8) >> 4, (3 * tall + after + 7) >> 4), 3).flatten(2)


def _to_ycc(images: Tensor) -> Tensor:
    """[B, 3, H, W] int32 RGB to luma and chroma."""
    red, green, blue = images.unbind(1)
    planes = [(red * r + green * g).add_(blue * b).add_(bias) >> 16 for r, g, b, bias in _TO_YCC]
    return torch.stack(planes, 1)


def _to_rgb(luma: Tensor, blue: Tensor, red: Tensor) -> Tensor:
    """[B, H, W] int32 planes to [B, 3, H, W]; weights are the inverse transform's times 2^16."""
    blue, red, half = blue - 128, red - 128, 1 << 15
    planes = (
        luma + ((red * 91881 + half) >> 16),
        luma + ((blue * -22554 + red * -46802 + half) >> 16),
        luma + ((blue * 116130 + half) >> 16),
    )
    return torch.stack(planes, 1).clamp_(0, 255)


def compress(images: Tensor, quality: int | Tensor) -> Tensor:
    """Return images after a baseline JPEG round trip.

    Args:
        images: [B, C, H, W], whole grey levels 0..255 in any type; C = 3 is coded with 4:2:0 chroma, C = 1 as luma.
        quality: 1..100 as in Pillow; or [B] int64, one per image.

    Returns:
        [B, C, H, W] int32, 0..255.
    """
    pixels = images.to(torch.int32)
    channels, height, width = pixels.shape[1:]
    row = (quality if isinstance(quality, Tensor) else torch.tensor([quality], device=pixels.device)) - 1
    luma_tables = _tables("luma", pixels.device).index_select(0, row)
    if channels == 1:
        return _code(_padded(pixels, 8, 8)[:, 0], luma_tables)[:, None, :height, :width]
    # As the library pads: columns before chroma is halved, rows after.
    ycc = _padded(_to_ycc(pixels), 2, 16)
    luma = _code(_padded(ycc[:, :1], 8, 8)[:, 0], luma_tables)[:, :height, :width]
    halves = _padded(_halved(ycc[:, 1:]), 8, 8)  # [B, 2, h, w]
    # Blocks are coded independently, so both chroma planes fit in one.
    chroma = _code(halves.flatten(1, 2), _tables("chroma", pixels.device).index_select(0, row))
    # The decoder crops before it upsamples: beyond the last column it repeats that column, not the padding.
    half_height, half_width = (height + 1) // 2, (width + 1) // 2
    chroma = chroma.view_as(halves).flatten(0, 1)[:, :half_height, :half_width]
    chroma = _doubled(chroma)[:, :height, :width]
    return _to_rgb(luma, chroma[::2], chroma[1::2])
