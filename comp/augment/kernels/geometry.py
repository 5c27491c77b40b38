"""Geometric ops on uint8 batches: flips, shifts, shears, rotation, elastic, erasing; each sample has its own amounts.

Images are [B, C, H, W] uint8 in any memory format; results are channels_last, since the work is done on rows and
pixels of [B, H, W, C]. Whole-pixel shifts copy rows out of a padded buffer. Other ops compute each output
pixel's input position: Pillow's `Image.transform(AFFINE)`, in the same 16.16 fixed point for the nearest
pixel, so that the integers are Pillow's own and equal on every device.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from comp.augment.kernels.filters import border_indices
from comp.runtime import rng
from comp.runtime.constants import cached_constant

_ONE = 1 << 16  # 1.0 in 16.16 fixed point


def to_pixels(images: Tensor) -> Tensor:
    """Return [B, C, H, W] as contiguous [B, H, W, C]: a view where memory is channels_last."""
    return images.permute(0, 2, 3, 1).contiguous()


def to_images(pixels: Tensor) -> Tensor:
    """Return [B, H, W, C] viewed as [B, C, H, W]."""
    return pixels.permute(0, 3, 1, 2)


def flip(images: Tensor) -> Tensor:
    """Return images flipped left to right."""
    return to_images(to_pixels(images).flip(2))


def shift(images: Tensor, right: Tensor, down: Tensor, *, fill: int = 0) -> Tensor:
    """Return images shifted by whole pixels.

    Args:
        images: [B, C, H, W] uint8.
        right: [B] int64 for each image, or [B, H] for each output row (a horizontal shear).
        down: [B] int64.
        fill: grey level outside the image.
    """
    pixels = to_pixels(images)
    B, H, W, C = pixels.shape
    # Each row lies between two widths of fill, and one extra row is all fill: any window of W is then in memory.
    padded = pixels.new_full((B * H + 1, 3 * W, C), fill)
    padded[: B * H, W : 2 * W] = pixels.view(B * H, W, C)
    rows = torch.arange(H, device=images.device) - down[:, None]  # [B, H], the row that each output row takes
    inside = (rows >= 0) & (rows < H)
    rows = torch.where(inside, rows + torch.arange(B, device=images.device)[:, None] * H, B * H)
    left = W - right.clamp(-W, W)
    starts = (rows * (3 * W) + (left[:, None] if left.ndim == 1 else left)) * C  # [B, H]
    windows = padded.view(-1).as_strided((padded.numel() - W * C + 1, W * C), (1, 1))
    return to_images(windows.index_select(0, starts.view(-1)).view(B, H, W, C))


def shift_mirrored(images: Tensor, right: Tensor, down: Tensor) -> Tensor:
    """Return images shifted by whole pixels, with mirrored borders (dcb|abcd|cba).

    Args:
        images: [B, C, H, W] uint8.
        right: [B] int64, less than W either way.
        down: [B] int64, less than H either way.
    """
    pixels = to_pixels(images)
    B, H, W, C = pixels.shape
    padded = torch.cat((pixels[:, :, 1:].flip(2), pixels, pixels[:, :, :-1].flip(2)), 2)  # [B, H, 3 W - 2, C]
    rows = border_indices(torch.arange(H, device=images.device) - down[:, None], H, "mirror")  # [B, H]
    rows = rows + torch.arange(B, device=images.device)[:, None] * H
    starts = (rows * (3 * W - 2) + (W - 1 - right)[:, None]) * C
    windows = padded.view(-1).as_strided((padded.numel() - W * C + 1, W * C), (1, 1))
    return to_images(windows.index_select(0, starts.view(-1)).view(B, H, W, C))


def move(images: Tensor, right: Tensor, slope: Tensor, down: Tensor) -> Tensor:
    """Return images shifted and sheared horizontally, each row by whole pixels; black comes in.

    Args:
        images: [B, C, H, W] uint8.
        right: [B] int64 in 16.16 fixed point, of the first row.
        slope: [B] int64, added for each further row.
        down: [B] int64 in whole pixels.
    """
    rows = torch.arange(images.shape[2], device=images.device)  # [H]
    return shift(images, torch.addcmul(right[:, None], slope[:, None], rows) >> 16, down)


def shift_steps(right: Tensor, down: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the numbers of `move` for shifts by whole pixels, [B] int64 each."""
    return right << 16, torch.zeros_like(right), down


def shear_steps(slope: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the numbers of `move` for shears by `slope` [B], in input pixels per row."""
    # Pixel x + 0.5 takes floor(x + 0.5 + slope * (y + 0.5)): the same whole-pixel shift for a whole row. A shift to the
    # right is its negative: -floor(v) is floor(-v + 1 - 2^-16) in fixed point.
    first = _fixed(0.5 + slope.double() / 2)
    return _ONE - 1 - first, -_fixed(slope.double()), torch.zeros_like(first)


def affine(images: Tensor, steps: Tensor, *, fill: int = 0) -> Tensor:
    """Apply affine maps, by Pillow's convention, to the nearest pixel.

    Args:
        images: [B, C, H, W] uint8.
        steps: [B, 6] int64 from `affine_steps`.
        fill: grey level outside the image.
    """
    pixels = to_pixels(images)
    B, H, W, C = pixels.shape
    x, y = (places >> 16 for places in _walk(steps, H, W))
    first = torch.arange(0, B * H * W, H * W, dtype=torch.int32, device=images.device)[:, None, None]
    outside = B * H * W
    source = y.mul(W).add_(x).add_(first).sub_(outside).bitwise_and_(_inside(x, y, W, H)).add_(outside)
    table = torch.cat((pixels.view(-1, C), pixels.new_full((1, C), fill)))  # the last pixel is the outside
    return to_images(table.index_select(0, source.view(-1)).view(B, H, W, C))


def affine_bilinear(images: Tensor, steps: Tensor, *, fill: int = 0) -> Tensor:
    """Apply affine maps as `affine` does, with bilinear interpolation."""
    _, _, H, W = images.shape
    x, y = _walk(steps, H, W)
    return _bilinear(images, x, y, _inside(x, y, W * _ONE, H * _ONE), fill)


def affine_steps(matrices: Tensor) -> Tensor:
    """Return the steps of affine maps in 16.16 fixed point.

    Args:
        matrices: [B, 6] float64 (a, b, c, d, e, f): output pixel (x, y) takes the input at
            (a x + b y + c, d x + e y + f), pixel centres at halves.

    Returns:
        [B, 6] int64: the input x of the first pixel's centre, its steps by column and by row, then those of y.
    """
    a, b, c, d, e, f = matrices.unbind(1)
    return _fixed(torch.stack((c + (a + b) / 2, a, b, f + (d + e) / 2, d, e), 1))


def shear_matrices(x: Tensor, y: Tensor) -> Tensor:
    """Return [B, 6] float64 for `affine_steps`: slopes `x` [B] and `y` [B] about the corner."""
    x, y = x.double(), y.double()
    one, zero = torch.ones_like(x), torch.zeros_like(x)
    return torch.stack((one, x, zero, y, one, zero), 1)


def rotation_matrices(degrees: Tensor, height: int, width: int) -> Tensor:
    """Return [B, 6] float64 for `affine_steps`: counter-clockwise by `degrees` [B] about the centre."""
    # float64: a last-bit difference of float32 sines between vector lanes or devices would move pixels.
    radians = degrees.double() * (math.pi / 180)
    cos, sin = torch.cos(radians), torch.sin(radians)
    x, y = width / 2, height / 2
    return torch.stack((cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y), 1)


def elastic_bumps(amount: Tensor, keys: Tensor) -> Tensor:
    """Return random displacements [B, 2, 6, 6] float64 for `elastic`.

    Args:
        amount: [B] pixels, the displacements' root mean square on each axis.
        keys: [B] int64.
    """
    return rng.normal_field(keys, 0, (2, BUMPS, BUMPS)).double() * amount.double()[:, None, None, None]


def elastic(images: Tensor, bumps: Tensor) -> Tensor:
    """Return images warped by smooth displacements; borders are repeated.

    Bumps about a quarter of a side wide, on a grid of six a side, make the field (after Simard et al. 2003, ICDAR,
    who smooth noise at every pixel).

    Args:
        images: [B, C, H, W] uint8.
        bumps: [B, 2, 6, 6] float64 pixels.
    """
    H, W = images.shape[2:]
    displacements = bump_matrix(H, images.device) @ bumps @ bump_matrix(W, images.device).T  # [B, 2, H, W] pixels
    rows, columns = (torch.arange(side, device=images.device) + 0.5 for side in (H, W))
    x = _fixed((displacements[:, 0] + columns).clamp_(0, W)).to(torch.int32)
    y = _fixed((displacements[:, 1] + rows[:, None]).clamp_(0, H)).to(torch.int32)
    return _bilinear(images, x, y, torch.full_like(x, -1), 0)


BUMPS = 6


@cached_constant
def bump_matrix(size: int, device: torch.device) -> Tensor:
    """Return [size, 6] float64: each bump's weight at each position of an axis; squares of a row sum to 1.

    So a field made of unit normal bumps has unit variance everywhere.
    """
    middles = (torch.arange(BUMPS, dtype=torch.float64) - 0.5) * size / (BUMPS - 2)  # the first and last lie outside
    positions = torch.arange(size, dtype=torch.float64)[:, None] + 0.5
    bumps = torch.exp(-0.5 * ((positions - middles) / (0.6 * size / (BUMPS - 2))).square())
    return (bumps / bumps.square().sum(1, keepdim=True).sqrt()).to(device)


def erase(images: Tensor, boxes: Tensor, filling: Tensor | int) -> Tensor:
    """Return images with one rectangle each replaced.

    Args:
        images: [B, C, H, W] uint8.
        boxes: [B, 4] int64 top, left, bottom, right (the last two exclusive); parts outside the image do nothing.
        filling: a grey level, or [B, C, H, W] uint8 to take the rectangle from.
    """
    pixels = to_pixels(images)
    B, H, W, C = pixels.shape
    top, left, bottom, right = boxes[:, :, None].unbind(1)  # [B, 1] each
    rows, columns = (torch.arange(side, device=images.device) for side in (H, W))
    # Bytes of 0 or 255, combined by bitwise ops: these run at memory speed where a boolean mask does not.
    in_rows = ((rows >= top) & (rows < bottom)).to(torch.uint8).neg()[:, :, None]  # [B, H, 1]
    in_columns = ((columns >= left) & (columns < right)).to(torch.uint8).neg()  # [B, W]
    in_columns = in_columns[:, None, :, None].expand(B, 1, W, C).reshape(B, 1, W * C)
    inside = in_rows & in_columns  # [B, H, W C]
    put = inside & (to_pixels(filling).view(B, H, W * C) if isinstance(filling, Tensor) else filling)
    return to_images(((pixels.view(B, H, W * C) & ~inside) | put).view(B, H, W, C))


def _fixed(values: Tensor) -> Tensor:
    return torch.floor(values * _ONE + 0.5).to(torch.int64)


def _inside(x: Tensor, y: Tensor, width: int, height: int) -> Tensor:
    """Return int32 of the shape of `x`: all bits set where 0 <= x < width and 0 <= y < height, else none.

    A bitwise mask runs many times faster on a CPU than comparisons and torch.where: any sign bit tells.
    """
    sign = (width - 1 - x).bitwise_or_(x).bitwise_or_(y).bitwise_or_(height - 1 - y)
    return sign.bitwise_right_shift_(31).bitwise_not_()


def _walk(steps: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Return the input coordinates x and y of every pixel, [B, H, W] int32 in fixed point; see `affine_steps`."""
    rows, columns = (torch.arange(side, device=steps.device) for side in (height, width))
    start, by_column, by_row = steps.view(-1, 2, 3, 1).unbind(2)  # [B, 2, 1] each: x and y
    along = torch.addcmul(start, by_column, columns).to(torch.int32)  # [B, 2, W]
    across = (by_row * rows).to(torch.int32)  # [B, 2, H]
    x, y = (along[:, axis, None, :] + across[:, axis, :, None] for axis in (0, 1))
    return x, y


def _bilinear(images: Tensor, x: Tensor, y: Tensor, inside: Tensor, fill: int) -> Tensor:
    """Interpolate at positions [B, H, W] in fixed point where all bits of `inside` are set; else `fill`."""
    _, _, H, W = images.shape
    # -1 to 1, from edge to edge
    grid = torch.stack([positions * (2 / (side * _ONE)) for positions, side in ((x, W), (y, H))], -1)  # [B, H, W, 2]
    planes = images.to(torch.float32, memory_format=torch.contiguous_format)
    sampled = F.grid_sample(planes, grid.sub_(1), padding_mode="border", align_corners=False)
    levels = sampled.add_(0.5).to(torch.int32).bitwise_and_(inside[:, None])
    if fill:
        levels |= (~inside).bitwise_and_(fill)[:, None]
    return to_images(to_pixels(levels.to(torch.uint8)))
