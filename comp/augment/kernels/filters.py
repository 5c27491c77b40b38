"""Linear filters on batches of images, as matrices that include the border rule.

On small images a filter along one axis is cheapest as a [size, size] matrix: one multiplication per side, no padding,
any border rule; resizing only has other weights. A filter that is not separable is a sum of few separable ones (the
singular value decomposition of its kernel): two wider multiplications.

All functions are pure, work on any device, take float32 images [B, C, H, W] and keep the values' range.
"""

import functools
import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Border = Literal["nearest", "mirror", "reflect"]


def border_indices(positions: Tensor, size: int, border: Border) -> Tensor:
    """Map positions outside an axis to the positions they are read from.

    Args:
        positions: [...] int64, any values.
        size: length of the axis.
        border: `nearest` aaa|abcd|ddd, `mirror` dcb|abcd|cba (OpenCV's REFLECT_101), `reflect` cba|abcd|dcb.

    Returns:
        [...] int64 in [0, size).
    """
    if border == "nearest" or size == 1:
        return positions.clamp(0, size - 1)
    if border == "mirror":
        folded = positions.remainder(2 * size - 2)
        return torch.minimum(folded, 2 * size - 2 - folded)
    folded = positions.remainder(2 * size)
    return torch.minimum(folded, 2 * size - 1 - folded)


def gaussian_kernel(sigma: float, radius: int) -> Tensor:
    """Return [2 * radius + 1] float64 weights that sum to 1; `sigma` in pixels, 0 for no blur."""
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float64)
    if sigma <= 0:
        return (offsets == 0).to(torch.float64)
    weights = torch.exp(-0.5 * (offsets / sigma) ** 2)
    return weights / weights.sum()


def correlation_matrix(size: int, kernel: Tensor, border: Border) -> Tensor:
    """Return the [size, size] float64 matrix that correlates an axis with an odd, centred kernel [K]."""
    radius = len(kernel) // 2
    rows = torch.arange(size)[:, None].expand(-1, len(kernel))
    columns = border_indices(rows + torch.arange(-radius, radius + 1), size, border)  # [size, K]
    matrix = torch.zeros(size, size, dtype=torch.float64)
    return matrix.index_put_((rows, columns), kernel.to(torch.float64).expand(size, -1), accumulate=True)


@functools.lru_cache(maxsize=256)
def gaussian_matrix(size: int, sigma: float, truncate: float, border: Border) -> Tensor:
    """Return the [size, size] float64 Gaussian of one axis, cut after `truncate` sigmas (as SciPy and scikit-image)."""
    return correlation_matrix(size, gaussian_kernel(sigma, int(truncate * sigma + 0.5)), border)


@functools.lru_cache(maxsize=256)
def zoom_matrix(size: int, factor: float) -> Tensor:
    """Return the [size, size] float64 bilinear enlargement of an axis' middle.

    The middle `ceil(size / factor)` pixels are stretched to `round(that * factor)`, ends on ends (as SciPy's `zoom`
    of order 1), and the middle `size` of those are kept.

    Args:
        size: length of the axis.
        factor: at least 1.
    """
    part = math.ceil(size / factor)
    stretched = max(round(part * factor), size)
    steps = torch.arange(size) + (stretched - size) // 2
    inside = (steps.to(torch.float64) * (part - 1) / max(stretched - 1, 1)).clamp(0, part - 1)
    left = inside.floor().to(torch.int64).clamp(max=max(part - 2, 0))
    share = inside - left
    first = (size - part) // 2
    rows, matrix = torch.arange(size), torch.zeros(size, size, dtype=torch.float64)
    matrix.index_put_((rows, first + left), 1 - share, accumulate=True)
    return matrix.index_put_((rows, (first + left + 1).clamp(max=size - 1)), share, accumulate=True)


@functools.lru_cache(maxsize=256)
def box_matrix(size: int, count: int) -> Tensor:
    """Return the [count, size] float64 box resize of an axis: means over whole pixels, as Pillow's `BOX` takes them."""
    scale = size / count
    centres = (torch.arange(count, dtype=torch.float64)[:, None] + 0.5) * scale
    reach = max(scale, 1.0) / 2
    first, last = (centres - reach + 0.5).floor(), (centres + reach + 0.5).floor().clamp(max=size)
    pixels = torch.arange(size)
    inside = ((pixels >= first) & (pixels < last)).to(torch.float64)
    return inside / inside.sum(1, keepdim=True)


def separable(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Filter or resize both axes.

    Args:
        images: [..., H, W] float.
        rows: [H', H], applied along the height.
        columns: [W', W], applied along the width.

    Returns:
        [..., H', W'].
    """
    return torch.matmul(rows.to(images), images @ columns.to(images).T)


def sum_of_separable(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return the sum over k of `separable(images, rows[k], columns[k])`, in two multiplications.

    Args:
        images: [B, C, H, W] float.
        rows: [K, H, H].
        columns: [K, W, W].

    Returns:
        [B, C, H, W].
    """
    terms, height, width = len(rows), images.shape[-2], images.shape[-1]
    stack = rows.to(images).transpose(0, 1).reshape(height * terms, height)  # row h of every term side by side
    mixed = torch.matmul(stack, images)  # [B, C, H * K, W]
    across = columns.to(images).transpose(1, 2).reshape(terms * width, width)
    return (mixed.reshape(-1, terms * width) @ across).view_as(images)


def few_terms(rows: Tensor, columns: Tensor, tolerance: float = 1e-5) -> tuple[Tensor, Tensor]:
    """Return the shortest sum of separable filters that equals a longer one.

    Each term is an outer product of two matrices seen as vectors, so the singular value decomposition of the whole
    sum is the best sum of any length; terms below `tolerance` of the largest are dropped.

    Args:
        rows: [K, H, H] float64.
        columns: [K, W, W] float64.
        tolerance: relative.

    Returns:
        [R, H, H] and [R, W, W] float64, R at most K.
    """
    left, left_mix = torch.linalg.qr(rows.flatten(1).T)  # [H * H, K], [K, K]
    right, right_mix = torch.linalg.qr(columns.flatten(1).T)
    u, sizes, v = torch.linalg.svd(left_mix @ right_mix.T)
    kept = int((sizes > tolerance * sizes[0]).sum())
    root = sizes[:kept].sqrt()
    row_terms = (left @ u[:, :kept] * root).T.reshape(kept, *rows.shape[1:])
    column_terms = (right @ v[:kept].T * root).T.reshape(kept, *columns.shape[1:])
    return row_terms, column_terms


def kernel_terms(kernel: Tensor, height: int, width: int, border: Border) -> tuple[Tensor, Tensor]:
    """Return the separable filters whose sum correlates images with a kernel, for `sum_of_separable`.

    Args:
        kernel: [K, L] float64, odd sides, centred.
        height: of the images.
        width: of the images.
        border: see `border_indices`.

    Returns:
        [R, H, H] and [R, W, W] float64, R the kernel's rank.
    """
    u, sizes, v = torch.linalg.svd(kernel, full_matrices=False)
    kept = int((sizes > 1e-9 * sizes[0]).sum())
    rows = [correlation_matrix(height, u[:, k] * sizes[k], border) for k in range(kept)]
    columns = [correlation_matrix(width, v[k], border) for k in range(kept)]
    return torch.stack(rows), torch.stack(columns)


def disk_kernel(radius: float, alias_sigma: float, alias_reach: int) -> Tensor:
    """Return a defocus kernel: a disk, softened by a small Gaussian against aliasing.

    Args:
        radius: of the disk, in pixels; below 1 it is one pixel.
        alias_sigma: of the Gaussian, in pixels.
        alias_reach: where the Gaussian is cut, in pixels.

    Returns:
        [K, K] float64 with odd K, summing to 1.
    """
    reach = int(radius) + alias_reach + 1  # one more ring of zeros, so that the border rule has no effect
    offsets = torch.arange(-reach, reach + 1, dtype=torch.float64)
    disk = (offsets[:, None] ** 2 + offsets**2 <= radius**2).to(torch.float64)
    blur = correlation_matrix(len(offsets), gaussian_kernel(alias_sigma, alias_reach), "mirror")
    soft = (blur @ (disk / disk.sum()) @ blur.T)[1:-1, 1:-1]
    return soft / soft.sum()


def trail(images: Tensor, angle: Tensor, weights: Sequence[float]) -> Tensor:
    """Blur each image along its own line: weight k reads the pixel k steps away, rounded to whole pixels.

    Pixels beyond the border repeat it. With half a Gaussian as weights this is ImageMagick's motion blur, which
    smears to one side only.

    Args:
        images: [B, C, H, W] float.
        angle: [B] float, radians from the x axis (downwards positive), the direction to read from.
        weights: [T].

    Returns:
        [B, C, H, W] float.
    """
    batch, channels, height, width = images.shape
    reach = len(weights) - 1
    padded = F.pad(images, (reach,) * 4, mode="replicate")  # so that a step is the same memory distance everywhere
    tall, pitch = padded.shape[2:]
    steps = torch.arange(len(weights), device=images.device)
    # float64: the last bit of a float32 cosine depends on its place in the batch, and could move a pixel.
    angle = angle.to(torch.float64)[:, None]
    across = torch.ceil(steps * torch.cos(angle) - 0.5).to(torch.int64)  # [B, T]
    down = torch.ceil(steps * torch.sin(angle) - 0.5).to(torch.int64)
    jumps = (down * pitch + across).repeat_interleave(channels, 0)  # [B * C, T]
    planes = torch.arange(batch * channels, device=images.device)[:, None] * (tall * pitch)
    rows = planes + (torch.arange(reach, reach + height, device=images.device) * pitch + reach)  # [B * C, H]
    # Every run of W neighbours in memory is a row of this view: copies whole rows, not single pixels.
    runs = padded.view(-1).as_strided((max(padded.numel() - width + 1, 0), width), (1, 1))
    total = images.reshape(-1, width) * weights[0]
    for step in range(1, len(weights)):
        total.add_(runs.index_select(0, (rows + jumps[:, step, None]).flatten()), alpha=weights[step])
    return total.view(images.shape)


def half_gaussian(sigma: float, longest: int, cut: float = 1e-4) -> list[float]:
    """Return the weights of a one-sided trail that sum to 1: at most `longest`, none below `cut` of the first."""
    reach = math.floor(sigma * math.sqrt(-2 * math.log(cut)))
    weights = [math.exp(-0.5 * (step / sigma) ** 2) for step in range(min(longest, reach + 1))]
    return [weight / sum(weights) for weight in weights]
