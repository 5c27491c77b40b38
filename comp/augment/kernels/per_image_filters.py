"""Blurs and filters on uint8 batches, each sample with its own amount.

Images are [B, C, H, W] uint8 in any memory format; results are channels_last. A separable filter is a matrix for each
image and axis, and two batched multiplications. Weights are whole multiples of a power of two, so few bits that every
sum is exact in float32: neither the batch nor the device changes a pixel.
"""

import math

import torch
from torch import Tensor

from comp.augment.kernels import filters
from comp.augment.kernels.colour import rounded
from comp.augment.kernels.geometry import to_images, to_pixels
from comp.runtime import rng
from comp.runtime.constants import cached_constant

_FINEST = 1 << 13  # weights are multiples of 1/8192: 13 bits, and 8 of a grey level
_EIGHTHS = 8  # precision between the axes: 11 bits of a grey level, and 13 of a weight


def gaussian_kernels(sigma: Tensor, height: int, width: int) -> Tensor:
    """Return [B, K] float32 weights of a Gaussian of `sigma` [B] pixels, for `blur`.

    The kernel ends at half of the longer side: `sigma` should stay below an eighth of it.
    """
    reach = max(height, width) // 2
    offsets = torch.arange(-reach, reach + 1, dtype=torch.float64, device=sigma.device)
    weights = torch.exp(-0.5 * (offsets / sigma.double()[:, None].clamp(min=1e-3)).square())
    return _quantise(weights / weights.sum(1, keepdim=True))


def blur(images: Tensor, kernels: Tensor) -> Tensor:
    """Return images under a kernel [B, K] along each axis; borders are mirrored, as in OpenCV."""
    H, W = images.shape[2:]
    return _separable(images, _matrices(kernels, H), _matrices(kernels, W))


def _quantise(weights: Tensor) -> Tensor:
    """Return [B, K] float32 multiples of 1/8192 that sum to 1; the largest absorbs the rounding error."""
    whole = (weights * _FINEST).round()
    whole.scatter_add_(1, whole.argmax(1, keepdim=True), _FINEST - whole.sum(1, keepdim=True))
    return (whole / _FINEST).to(torch.float32)


def _matrices(kernels: Tensor, size: int) -> Tensor:
    """Return [B, size, size]: each image's kernel [B, K], odd and centred, as the matrix of an axis."""
    return (kernels @ _tap_matrices(size, kernels.shape[1], kernels.device)).view(-1, size, size)


@cached_constant
def _tap_matrices(size: int, taps: int, device: torch.device) -> Tensor:
    """Return [taps, size * size] float32: the correlation matrix of each single tap."""
    units = torch.eye(taps, dtype=torch.float64)
    matrices = [filters.correlation_matrix(size, tap, "mirror") for tap in units]
    return torch.stack(matrices).flatten(1).to(device, torch.float32)


def _separable(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Apply [B, H, H] along the height and [B, W, W] along the width; between them levels are kept to 1/8."""
    pixels = to_pixels(images)
    B, H, W, C = pixels.shape
    down = torch.bmm(rows, pixels.view(B, H, W * C).to(torch.float32)).mul_(_EIGHTHS).add_(0.5).floor_()
    across = torch.bmm(columns, down.view(B, H, W, C).transpose(1, 2).reshape(B, W, H * C))
    across_down = rounded(across.div_(_EIGHTHS)).view(B, W, H, C)
    return to_images(across_down.transpose(1, 2).contiguous())


def pixelate(images: Tensor, counts: Tensor) -> Tensor:
    """Return images shrunk by box means to `counts` [B, 2] float64 rows and columns, and blown up as Pillow does."""
    pixels = to_pixels(images)
    B, H, W, C = pixels.shape
    rows, columns = (_boxes(side, counts[:, axis]) for axis, side in enumerate((H, W)))
    # Sums of whole levels are exact, and each mean is rounded once.
    means = torch.bmm(rows, pixels.view(B, H, W * C).to(torch.float32)).div_(rows.sum(2, keepdim=True))
    means = means.add_(0.5).floor_().view(B, H, W, C).transpose(1, 2).reshape(B, W, H * C)
    means = torch.bmm(columns, means).div_(columns.sum(2, keepdim=True))
    return to_images(rounded(means).view(B, W, H, C).transpose(1, 2).contiguous())


def _boxes(size: int, count: Tensor) -> Tensor:
    """[B, size, size] float32 of 0 and 1: the pixels whose mean each pixel shows, `count` [B] boxes to an axis."""
    width = size / count[:, None]
    places = torch.arange(size, dtype=torch.float64, device=count.device)
    middle = (((places + 0.5) / width).floor() + 0.5) * width  # [B, size]
    first, last = (middle - width / 2 + 0.5).floor(), (middle + width / 2 + 0.5).floor()
    return ((places >= first[:, :, None]) & (places < last[:, :, None])).to(torch.float32)


def random_kernels(sigma: Tensor, keys: Tensor) -> Tensor:
    """Return [B, 9] float32 weights of random 3x3 kernels (PRIME's filters, Modas et al. 2022, arXiv:2112.13547).

    The kernel is the identity plus normal weights, less their mean: unlike there, brightness stays.

    Args:
        sigma: [B], of each weight.
        keys: [B] int64.
    """
    noise = rng.normal_field(keys, 0, (9,)).double() * sigma[:, None]  # float64: no batch moves a rounding
    # Multiples of 1/1024 below 4: 12 bits and a sign. What rounding leaves of the sum 1 goes to the middle.
    weights = ((noise - noise.mean(1, keepdim=True)).clamp(-4, 4) * 1024).round()
    weights[:, 4] += 1024 - weights.sum(1)
    return weights.div_(1024).to(torch.float32)


def filter_3x3(images: Tensor, weights: Tensor) -> Tensor:
    """Return images under a 3x3 kernel each, `weights` [B, 9] float32; borders are mirrored, sides at least 2."""
    pixels = to_pixels(images)
    B, H, W, C = pixels.shape
    weights = weights[:, :, None, None]  # [B, 9, 1, 1]
    rows, columns = (
        filters.border_indices(torch.arange(-1, side + 1, device=images.device), side, "mirror") for side in (H, W)
    )
    padded = pixels.index_select(1, rows).index_select(2, columns).to(torch.float32).view(B, H + 2, (W + 2) * C)
    total = torch.zeros(B, H, W * C, device=images.device)
    for tap in range(9):
        down, right = divmod(tap, 3)
        total.add_(padded[:, down : down + H, right * C : (right + W) * C] * weights[:, tap])
    return to_images(rounded(total).view(B, H, W, C))


def motion_shifts(length: Tensor, keys: Tensor, height: int, width: int) -> Tensor:
    """Return shifts for `mean_of_shifts` evenly along a line of `length` [B] pixels, directions by chance."""
    count = samples(height, width)
    along = ((torch.arange(count, device=keys.device) + 0.5) / count - 0.5) * length.double()[:, None]  # [B, T]
    # float64: the last bit of a float32 cosine depends on its place in the batch, and could move a pixel.
    angle = math.pi * rng.uniform(keys, 0).double()[:, None]
    return _whole(torch.cos(angle) * along, torch.sin(angle) * along)


def disk_shifts(radius: Tensor, height: int, width: int) -> Tensor:
    """Return shifts for `mean_of_shifts` all over a disk of `radius` [B] pixels, as a lens out of focus does."""
    x, y = sunflower(samples(height, width)).to(radius.device).unbind(1)
    radius = radius.double()[:, None]
    return _whole(radius * x, radius * y)


def _whole(right: Tensor, down: Tensor) -> Tensor:
    """Return shifts [B, T] float64, rounded, as [B, 2, T] int32."""
    return torch.stack((right, down), 1).add_(0.5).floor_().to(torch.int32)


def zoom_blur(images: Tensor, farthest: Tensor) -> Tensor:
    """Return the mean of images and their enlargements about the middle, up to a factor of 1 + `farthest` [B]."""
    if images.shape[1] > _PACKED:
        return torch.cat([zoom_blur(planes, farthest) for planes in torch.split(images, _PACKED, 1)], 1)
    B, C, H, W = images.shape
    count = samples(H, W)
    steps = torch.arange(count, device=images.device) / (count - 1)
    factors = 1 + farthest.double()[:, None, None] * steps[:, None]  # [B, T, 1]

    def places(size: int, dither: Tensor) -> Tensor:
        offsets = torch.arange(size, dtype=torch.float64, device=images.device) - (size - 1) / 2
        return (offsets / factors + size / 2 + dither[:, None]).floor().to(torch.int32).clamp_(0, size - 1)

    right, down = dithers(count, images.device).unbind(1)
    first = torch.arange(0, B * H * W, H * W, dtype=torch.int32, device=images.device)[:, None, None]
    rows, columns = places(H, down).mul_(W).add_(first), places(W, right)  # [B, T, H], [B, T, W]
    packed = _pack(images)
    total = torch.zeros(B * H * W, dtype=torch.int64, device=images.device)
    for t in range(count):
        total += packed.index_select(0, (rows[:, t, :, None] + columns[:, t, None, :]).view(-1))
    planes = [(total >> channel * _APART).bitwise_and_((1 << _APART) - 1).to(torch.float32) for channel in range(C)]
    return to_images(rounded(torch.stack(planes, -1).div_(count)).view(B, H, W, C))


# Up to three channels of a pixel stand in one int64, 21 bits apart: room for sums of 8192 of them.
_APART = 21
_PACKED = 3  # channels


def _pack(images: Tensor) -> Tensor:
    """Return [B H W] int64 of [B, C, H, W] uint8, C at most 3: the channels of a pixel `_APART` bits apart."""
    assert images.shape[1] <= _PACKED
    packed = images[:, 0].to(torch.int64, memory_format=torch.contiguous_format)
    for channel in range(1, images.shape[1]):
        packed |= images[:, channel].to(torch.int64) << channel * _APART
    return packed.view(-1)


def samples(height: int, width: int) -> int:
    """Return how many copies stand for a continuous smear: 24 at 32 pixels, more where a smear is longer."""
    return min(max(24, min(height, width) // 2), 128)  # 128 levels of 255 still go into 16 bits


def sunflower(count: int) -> Tensor:
    """Return [count, 2] float64 points spread evenly over the unit disk (Vogel 1979, Mathematical Biosciences 44)."""
    steps = torch.arange(count, dtype=torch.float64)
    radius, angle = ((steps + 0.5) / count).sqrt(), steps * (math.pi * (3 - math.sqrt(5)))
    return torch.stack((radius * torch.cos(angle), radius * torch.sin(angle)), 1)


@cached_constant
def dithers(count: int, device: torch.device) -> Tensor:
    """Return [count, 2] float64 in -0.5..0.5, spread evenly: what copies are moved by before rounding to pixels.

    The mean over many copies is then that of bilinear interpolation, and copies that lie on pixels stay there. Steps
    are powers of the plastic number (Roberts 2018, "The unreasonable effectiveness of quasirandom sequences").
    """
    steps = torch.arange(1, count + 1, dtype=torch.float64)[:, None]
    plastic = 1.32471795724474602596
    pair = torch.tensor([1 / plastic, 1 / plastic**2], dtype=torch.float64)
    return ((steps * pair).remainder(1) - 0.5).to(device)


def mean_of_shifts(images: Tensor, shifts: Tensor) -> Tensor:
    """Return the mean over T of images read `shifts` [B, 2, T] int32 pixels to the right and down, rounded.

    Borders are mirrored. Shifts end at half a side. Whole rows are copied out of a wider image and summed, 16 bits a
    value.
    """
    pixels = to_pixels(images)
    B, H, W, C = pixels.shape
    margin = W // 2
    columns = torch.arange(-margin, W + margin, device=images.device)
    wide = pixels.index_select(2, filters.border_indices(columns, W, "mirror")).to(torch.int16)
    right, down = shifts.to(torch.int64).permute(1, 2, 0)[..., None]  # [T, B, 1] each
    rows = filters.border_indices(torch.arange(H, device=images.device) + down, H, "mirror")  # [T, B, H]
    rows += torch.arange(0, B * H, H, device=images.device)[:, None]
    starts = (rows * (W + 2 * margin) + margin + right.clamp(-margin, margin)).mul_(C)
    # Any run of a row's length in memory is a row of this view.
    runs = wide.view(-1).as_strided((wide.numel() - W * C + 1, W * C), (1, 1))
    total = torch.zeros(B * H, W * C, dtype=torch.int16, device=images.device)
    for places in starts.reshape(len(starts), -1):
        total += runs.index_select(0, places)
    return to_images(rounded(total.to(torch.float32).div_(len(starts))).view(B, H, W, C))
