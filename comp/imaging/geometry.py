"""Where pixels go: batched uint8 image ops, every sample with its own amounts.

Images are [B, C, H, W] uint8 in any memory format; results are channels_last, since the work is done on rows and
pixels of [B, H, W, C]. Whole-pixel moves copy rows out of a padded buffer. Other moves compute, for each output
pixel, which input pixel it takes: Pillow's `Image.transform(AFFINE)`, in the same 16.16 fixed point for the nearest
pixel, so that the integers are Pillow's own and equal on every device.
"""

import math

import torch
from torch import Tensor

_ONE = 1 << 16  # 1.0 in 16.16 fixed point


def to_pixels(images: Tensor) -> Tensor:
    """Return [B, C, H, W] as contiguous [B, H, W, C]: a view where memory is channels_last."""
    return images.permute(0, 2, 3, 1).contiguous()


def to_images(pixels: Tensor) -> Tensor:
    """Return [B, H, W, C] viewed as [B, C, H, W]."""
    return pixels.permute(0, 3, 1, 2)


def flip(images: Tensor) -> Tensor:
    """Return every image mirrored left to right."""
    return to_images(to_pixels(images).flip(2))


def shift(images: Tensor, right: Tensor, down: Tensor, *, fill: int = 0) -> Tensor:
    """Return images moved by whole pixels.

    Args:
        images: [B, C, H, W] uint8.
        right: [B] int64 for each image, or [B, H] for each output row (a horizontal shear).
        down: [B] int64.
        fill: grey level of what comes in from outside.
    """
    pixels = to_pixels(images)
    B, H, W, C = pixels.shape
    # Each row stands between two widths of fill, and one more row is all fill: any window of W is then in memory.
    padded = pixels.new_full((B * H + 1, 3 * W, C), fill)
    padded[: B * H, W : 2 * W] = pixels.view(B * H, W, C)
    rows = torch.arange(H, device=images.device) - down[:, None]  # [B, H], the row that each output row takes
    inside = (rows >= 0) & (rows < H)
    rows = torch.where(inside, rows + torch.arange(B, device=images.device)[:, None] * H, B * H)
    left = W - right.clamp(-W, W)
    starts = (rows * (3 * W) + (left[:, None] if left.ndim == 1 else left)) * C  # [B, H]
    windows = padded.view(-1).as_strided((padded.numel() - W * C + 1, W * C), (1, 1))
    return to_images(windows.index_select(0, starts.view(-1)).view(B, H, W, C))


def shear_x(images: Tensor, slope: Tensor, *, fill: int = 0) -> Tensor:
    """Return images whose rows slide in proportion to their height; `slope` [B] is input pixels a row."""
    rows = torch.arange(images.shape[2], device=images.device)  # [H]
    # Pixel x + 0.5 takes floor(x + 0.5 + slope * (y + 0.5)): the same whole-pixel move for a whole row.
    first = _fixed(0.5 + slope.double() / 2)
    moves = -((first[:, None] + _fixed(slope.double())[:, None] * rows) >> 16)  # [B, H]
    return shift(images, moves, torch.zeros_like(moves[:, 0]), fill=fill)


def affine(images: Tensor, matrices: Tensor, *, interpolation: str = "nearest", fill: int = 0) -> Tensor:
    """Return images under affine maps, by Pillow's convention.

    Args:
        images: [B, C, H, W] uint8.
        matrices: [B, 6] float64 (a, b, c, d, e, f): output pixel (x, y) takes the input at
            (a x + b y + c, d x + e y + f), pixel centres at halves.
        interpolation: `nearest` or `bilinear`.
        fill: grey level of what comes in from outside.
    """
    assert interpolation in {"nearest", "bilinear"}
    return (_affine_nearest if interpolation == "nearest" else _affine_bilinear)(images, matrices, fill)


def shear_matrices(x: Tensor, y: Tensor) -> Tensor:
    """Return [B, 6] float64 for `affine`: horizontal slopes `x` [B] and vertical slopes `y` [B] about the corner."""
    x, y = x.double(), y.double()
    one, zero = torch.ones_like(x), torch.zeros_like(x)
    return torch.stack((one, x, zero, y, one, zero), 1)


def rotation_matrices(degrees: Tensor, height: int, width: int) -> Tensor:
    """Return [B, 6] float64 for `affine`: turn counter-clockwise by `degrees` [B] about the centre."""
    # float64: a last-bit difference of float32 sines between vector lanes or devices would move pixels.
    radians = degrees.double() * (math.pi / 180)
    cos, sin = torch.cos(radians), torch.sin(radians)
    x, y = width / 2, height / 2
    return torch.stack((cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y), 1)


def rotate(images: Tensor, degrees: Tensor, *, interpolation: str = "nearest", fill: int = 0) -> Tensor:
    """Return images turned counter-clockwise by `degrees` [B] about their centres, corners cut."""
    matrices = rotation_matrices(degrees, images.shape[2], images.shape[3])
    return affine(images, matrices, interpolation=interpolation, fill=fill)


def erase(images: Tensor, boxes: Tensor, filling: Tensor | int) -> Tensor:
    """Return images with a rectangle each replaced.

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


def _affine_nearest(images: Tensor, matrices: Tensor, fill: int) -> Tensor:
    pixels = to_pixels(images)
    B, H, W, C = pixels.shape
    a, b, c, d, e, f = matrices.unbind(1)
    x0, y0 = _fixed(c + (a + b) / 2), _fixed(f + (d + e) / 2)  # where the first pixel's centre looks
    x = _walk(x0, _fixed(a), _fixed(b), H, W)
    y = _walk(y0, _fixed(d), _fixed(e), H, W)
    inside = (x >= 0) & (x < W) & (y >= 0) & (y < H)
    first = torch.arange(0, B * H * W, H * W, dtype=torch.int32, device=images.device)[:, None, None]
    # Arithmetic instead of torch.where, which is several times slower on a CPU.
    source = (first + y * W + x - B * H * W) * inside + B * H * W
    table = torch.cat((pixels.view(-1, C), pixels.new_full((1, C), fill)))  # the last pixel is the outside
    return to_images(table.index_select(0, source.view(-1)).view(B, H, W, C))


def _walk(start: Tensor, by_column: Tensor, by_row: Tensor, height: int, width: int) -> Tensor:
    """Return [B, H, W] int32: whole input coordinates, stepping in fixed point from `start` [B]."""
    rows, columns = (torch.arange(side, device=start.device) for side in (height, width))
    along = (start[:, None] + by_column[:, None] * columns).to(torch.int32)  # [B, W]
    across = (by_row[:, None] * rows).to(torch.int32)  # [B, H]
    return (along[:, None, :] + across[:, :, None]) >> 16


def _affine_bilinear(images: Tensor, matrices: Tensor, fill: int) -> Tensor:
    pixels = to_pixels(images)
    B, H, W, C = pixels.shape
    m = matrices.to(torch.float32)[:, :, None, None]  # [B, 6, 1, 1]
    columns = torch.arange(W, device=images.device) + 0.5
    rows = (torch.arange(H, device=images.device) + 0.5)[:, None]
    x = m[:, 0] * columns + (m[:, 1] * rows + m[:, 2])  # [B, H, W]
    y = m[:, 3] * columns + (m[:, 4] * rows + m[:, 5])
    inside = (x >= 0) & (x < W) & (y >= 0) & (y < H)
    x, y = x - 0.5, y - 0.5
    left, top = x.floor(), y.floor()
    across, along = (x - left)[..., None], (y - top)[..., None]  # weights of the right and lower neighbours
    first = torch.arange(0, B * H * W, H * W, dtype=torch.int32, device=images.device)[:, None, None]
    columns_near = [(left + step).clamp(0, W - 1).to(torch.int32) for step in (0, 1)]
    rows_near = [(top + step).clamp(0, H - 1).to(torch.int32) * W + first for step in (0, 1)]
    table = pixels.view(-1, C).to(torch.float32)

    def at(row: int, column: int) -> Tensor:
        index = (rows_near[row] + columns_near[column]).view(-1)
        return table.index_select(0, index).view(B, H, W, C)

    upper = at(0, 0) * (1 - across) + at(0, 1) * across
    lower = at(1, 0) * (1 - across) + at(1, 1) * across
    blended = upper * (1 - along) + lower * along
    seen = inside[..., None].to(torch.float32)
    return to_images((blended * seen + fill * (1 - seen) + 0.5).to(torch.int32).to(torch.uint8))
