"""The 19 x 5 corruption suite of Hendrycks & Dietterich (2019, "Benchmarking neural network robustness to common
corruptions and perturbations", ICLR), with its 32-px parameters, on batches of tensors.

The pixels of a corrupted image depend only on (seed, corruption, severity, source index, image), not on batch size or
order. Draws are the same on every device; another device's last bit of a float may move a pixel by a grey level.
Differences from the published generator: frost's textures are procedural, and water in spatter shines
by its thickness instead of an embossed distance map. Its quirks are kept: glass blur copies a neighbour instead of
swapping, motion blur smears to one side, values are truncated to whole grey levels, not rounded.

Images of other sizes: lengths in pixels (sigmas, radii, displacements, flakes) are multiplied by min(H, W) / 32; what
acts on single pixels is unchanged. Grey images (C = 1): coloured layers use their luma, JPEG codes only luma, and
saturation changes nothing. Images with any other number of channels have all corruptions except `COLOURED`.
"""

import functools
import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from comp.augment.kernels import filters, jpeg
from comp.data.corruptions import blurs, constants, weather
from comp.data.corruptions.blurs import NUDGE
from comp.runtime import memory, rng
from comp.runtime.errors import ConfigError, DataError, unknown

Family = Literal["noise", "blur", "weather", "digital"]
SEVERITIES = (1, 2, 3, 4, 5)
SMALLEST = 8  # pixels a side

_CHUNK_VALUES = 128 * 3 * 32 * 32  # on a CPU: intermediates stay in its cache
_QUANTILE_BITS = 14  # of shot noise's table: 4 MiB per severity; one bit more would not fit the cache
_CHUNK_VALUES_GPU = 32 * _CHUNK_VALUES


def gaussian_noise(images: Tensor, keys: Tensor, scale: float, sigma: float) -> Tensor:
    """Normal noise, equal for all grey levels."""
    return images.add(rng.normal_field(keys, 0, tuple(images.shape[1:])), alpha=255 * sigma)


def shot_noise(images: Tensor, keys: Tensor, scale: float, photons: float) -> Tensor:
    """Poisson counts of up to `photons` expected for white."""
    quantiles = rng.shorts_field(keys, 0, tuple(images.shape[1:])) >> (16 - _QUANTILE_BITS)
    cells = images.to(torch.int32).mul_(1 << _QUANTILE_BITS).add_(quantiles)
    return _poisson_table(photons, images.device).index_select(0, cells.flatten()).view_as(images).to(torch.float32)


@functools.lru_cache(maxsize=5)
def _poisson_table(photons: float, device: torch.device) -> Tensor:
    """[256 * 2^bits] uint8: grey level after shot noise, for each level before it and each quantile."""
    expected = torch.arange(256, dtype=torch.float64)[:, None] * (photons / 255)
    counts = torch.arange(int(photons + 8 * math.sqrt(photons)) + 8, dtype=torch.float64)
    slices = 1 << _QUANTILE_BITS
    density = torch.exp(torch.xlogy(counts, expected) - expected - torch.lgamma(counts + 1))
    ends = (density.cumsum(1) * slices).round_().clamp_(max=slices).to(torch.int64)
    ends[:, -1] = slices
    levels = (counts * 255 / photons + NUDGE).clamp_(max=255).to(torch.uint8)
    repeats = ends.diff(dim=1, prepend=torch.zeros(256, 1, dtype=torch.int64))
    return levels.repeat(256).repeat_interleave(repeats.flatten()).to(device)


def impulse_noise(images: Tensor, keys: Tensor, scale: float, amount: float) -> Tensor:
    """Salt and pepper in equal parts, per channel value."""
    shorts = rng.shorts_field(keys, 0, tuple(images.shape[1:]))
    flipped = amount * (1 << 16)
    return images.masked_fill(shorts < flipped, 255).masked_fill_(shorts < flipped / 2, 0)


def speckle_noise(images: Tensor, keys: Tensor, scale: float, sigma: float) -> Tensor:
    """Normal noise, proportional to the grey level."""
    return images + images * rng.normal_field(keys, 0, tuple(images.shape[1:])).mul_(sigma)


def brightness(images: Tensor, keys: Tensor, scale: float, amount: float) -> Tensor:
    """Raise the value of HSV: scaling all channels by one factor keeps hue and saturation."""
    value = images.amax(1, keepdim=True)
    raised = (value + 255 * amount).clamp_(max=255)
    return torch.where(value > 0, images * (raised / value.clamp(min=1)), raised)


def saturate(images: Tensor, keys: Tensor, scale: float, factor: float, offset: float) -> Tensor:
    """Saturation of HSV times a factor plus an offset: stretches distances from the value; grey turns red."""
    if images.shape[1] == 1:
        return images
    value, low = images.amax(1, keepdim=True), images.amin(1, keepdim=True)
    span = value - low
    saturation = (span / value.clamp(min=1) * factor + offset).clamp_(0, 1)
    stretch = saturation * value / span.clamp(min=1)  # new saturation over the old
    red = constants.values((0.0, 1.0, 1.0), images.device).view(3, 1, 1)
    away = torch.where(span > 0, (value - images) * stretch, saturation * value * red)
    return value - away


def contrast(images: Tensor, keys: Tensor, scale: float, share: float) -> Tensor:
    """Draw each channel towards its mean."""
    means = images.mean((2, 3), keepdim=True)
    return torch.lerp(means, images, share)


def elastic_transform(images: Tensor, keys: Tensor, scale: float, alpha: float, sigma: float, shift: float) -> Tensor:
    """A random affine map of three points, then a smooth random displacement of every pixel; lengths times 32."""
    height, width = images.shape[2:]
    moved = _sample(images, *_affine(keys, height, width, shift * 32 * scale), mirrored=True)
    if alpha == 0:
        return moved
    rows, columns = (
        constants.matrix(filters.gaussian_matrix, keys.device, side, sigma * 32 * scale, 3.0, "reflect")
        for side in (height, width)
    )
    noise = rng.shorts_field(keys, 1, (2, height, width)).to(torch.float32).mul_(2.0**-15).sub_(1)
    bend = filters.separable(noise, rows, columns) * (alpha * 32 * scale)  # [B, 2, H, W]
    x, y = torch.arange(width, device=keys.device), torch.arange(height, device=keys.device)[:, None]
    return _sample(moved, x + bend[:, 0], y + bend[:, 1], mirrored=False)


def _affine(keys: Tensor, height: int, width: int, shift: float) -> tuple[Tensor, Tensor]:
    """Source coordinates x, y [B, H, W] of the affine map that moves three corners of a square by up to `shift`."""
    third = min(height, width) // 3
    x, y = width // 2, height // 2
    corners = constants.values(((x + third, y + third), (x + third, y - third), (x - third, y - third)), keys.device)
    moves = rng.shorts_field(keys, 0, (3, 2)).to(torch.float32).mul_(2.0**-15).sub_(1)
    moved = corners + moves * shift  # [B, 3, 2] of x, y
    first, second = (moved[:, 1] - moved[:, 0]).unbind(1), (moved[:, 2] - moved[:, 0]).unbind(1)
    area = first[0] * second[1] - first[1] * second[0]  # of the moved triangle, far from 0: shift is below third / 2
    across = torch.arange(width, device=keys.device) - moved[:, 0, 0].view(-1, 1, 1)
    down = torch.arange(height, device=keys.device)[:, None] - moved[:, 0, 1].view(-1, 1, 1)
    along_first, along_second = (
        (across * b[:, None, None] - down * a[:, None, None]) / area[:, None, None]
        for a, b in (second, (-first[0], -first[1]))
    )
    back_1, back_2 = corners[1] - corners[0], corners[2] - corners[0]
    source_x = corners[0, 0] + along_first * back_1[0] + along_second * back_2[0]
    source_y = corners[0, 1] + along_first * back_1[1] + along_second * back_2[1]
    return source_x, source_y


def _sample(images: Tensor, x: Tensor, y: Tensor, *, mirrored: bool) -> Tensor:
    """Sample images bilinearly at pixel coordinates [B, H, W]; borders mirror about the last pixel or its edge."""
    height, width = images.shape[2:]
    if mirrored:
        grid = torch.stack((2 * x / (width - 1) - 1, 2 * y / (height - 1) - 1), 3)
    else:
        grid = torch.stack(((2 * x + 1) / width - 1, (2 * y + 1) / height - 1), 3)
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=mirrored)


def pixelate(images: Tensor, keys: Tensor, scale: float, share: float) -> Tensor:
    """Shrink by box means, rounded after each axis as in Pillow, and enlarge again."""
    across, down = (
        constants.matrix(_pixelated, images.device, side, max(1, int(side * share))) for side in images.shape[:1:-1]
    )
    rounded = (images @ across.T).add_(0.5 + NUDGE).floor_()
    return torch.matmul(down, rounded).add_(0.5 + NUDGE).floor_()


def _pixelated(size: int, count: int) -> Tensor:
    """[size, size] float64: box means of an axis, each repeated over its pixels."""
    repeated = ((torch.arange(size) + 0.5) * count / size).to(torch.int64)
    return filters.box_matrix(size, count)[repeated]


def jpeg_compression(images: Tensor, keys: Tensor, scale: float, quality: float) -> Tensor:
    """Baseline JPEG at Pillow's quality."""
    return jpeg.compress(images, constants.values((int(quality),), images.device)).to(torch.float32)


@dataclass(frozen=True)
class Corruption:
    """A row of the suite.

    `function(images, keys, scale, *parameters)` takes and returns [B, C, H, W] float32 grey levels; the result is
    clipped to 0..255 and truncated to whole levels afterwards. `parameters` are those of severities 1 to 5.
    """

    function: Callable[..., Tensor]
    parameters: tuple[tuple[float, ...], ...]
    family: Family


# In the order of the suite's files, distortion00 to distortion18.
CORRUPTIONS: dict[str, Corruption] = {
    "gaussian_noise": Corruption(gaussian_noise, ((0.04,), (0.06,), (0.08,), (0.09,), (0.10,)), "noise"),
    "shot_noise": Corruption(shot_noise, ((500,), (250,), (100,), (75,), (50,)), "noise"),
    "impulse_noise": Corruption(impulse_noise, ((0.01,), (0.02,), (0.03,), (0.05,), (0.07,)), "noise"),
    "defocus_blur": Corruption(blurs.defocus_blur, ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)), "blur"),
    "glass_blur": Corruption(
        blurs.glass_blur, ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)), "blur"
    ),
    "motion_blur": Corruption(blurs.motion_blur, ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)), "blur"),
    "zoom_blur": Corruption(blurs.zoom_blur, ((1.06,), (1.11,), (1.16,), (1.21,), (1.26,)), "blur"),
    "snow": Corruption(
        weather.snow,
        (
            (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ),
        "weather",
    ),
    "frost": Corruption(weather.frost, ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)), "weather"),
    "fog": Corruption(weather.fog, ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)), "weather"),
    "brightness": Corruption(brightness, ((0.05,), (0.1,), (0.15,), (0.2,), (0.3,)), "weather"),
    "contrast": Corruption(contrast, ((0.75,), (0.5,), (0.4,), (0.3,), (0.15,)), "digital"),
    "elastic_transform": Corruption(
        elastic_transform,
        ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
        "digital",
    ),
    "pixelate": Corruption(pixelate, ((0.95,), (0.9,), (0.85,), (0.75,), (0.65,)), "digital"),
    "jpeg_compression": Corruption(jpeg_compression, ((80,), (65,), (58,), (50,), (40,)), "digital"),
    "speckle_noise": Corruption(speckle_noise, ((0.06,), (0.1,), (0.12,), (0.16,), (0.2,)), "noise"),
    "gaussian_blur": Corruption(blurs.gaussian_blur, ((0.4,), (0.6,), (0.7,), (0.8,), (1,)), "blur"),
    "spatter": Corruption(
        weather.spatter,
        (
            (0.62, 0.1, 0.7, 0.7, 0.5, 0),
            (0.65, 0.1, 0.8, 0.7, 0.5, 0),
            (0.65, 0.3, 1, 0.69, 0.5, 0),
            (0.65, 0.1, 0.7, 0.69, 0.6, 1),
            (0.65, 0.1, 0.5, 0.68, 0.6, 1),
        ),
        "weather",
    ),
    "saturate": Corruption(saturate, ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)), "digital"),
}
NAMES = tuple(CORRUPTIONS)
COLOURED = ("snow", "frost", "jpeg_compression", "spatter", "saturate")  # need RGB or grey images
FAMILIES: dict[Family, tuple[str, ...]] = {
    family: tuple(name for name, row in CORRUPTIONS.items() if row.family == family)
    for family in ("noise", "blur", "weather", "digital")
}


def resolve_names(names: Iterable[str], where: str) -> tuple[str, ...]:
    """Return the corruptions that names of corruptions and families select, in the suite's order.

    Raises:
        ConfigError: a name is neither; the message starts with `where`.
    """
    members = {name: (name,) for name in NAMES} | {str(family): row for family, row in FAMILIES.items()}
    chosen: set[str] = set()
    for name in names:
        if name not in members:
            raise ConfigError(f"{where}: {unknown('corruption or family', name, (*FAMILIES, *NAMES))}")
        chosen.update(members[name])
    return tuple(name for name in NAMES if name in chosen)


def corrupt(images: Tensor, name: str, severity: int, *, seed: int, indices: Tensor) -> Tensor:
    """Corrupt images at one severity.

    Args:
        images: [B, C, H, W] uint8, C = 3 (RGB) or 1, or any unless `COLOURED`; any memory format; sides of at least 8.
        name: a row of `CORRUPTIONS`.
        severity: 1 to 5.
        seed: of the suite.
        indices: [B] int64, each image's index in its source, which determines its draws.

    Returns:
        [B, C, H, W] uint8, on the images' device and in their memory format.

    Raises:
        DataError: an unknown name or severity, or images or indices of the wrong type or shape.
    """
    _check_inputs(images, name, severity, indices)
    row = CORRUPTIONS[name]
    keys = rng.keys(seed, rng.key(NAMES.index(name), severity), indices.to(images.device))
    scale = min(images.shape[2:]) / 32
    count = images_at_once(images.shape[1:], images.device)
    result = torch.empty_like(images)

    def fill(part: slice) -> None:
        with torch.no_grad():  # not inference mode: the filters' cached matrices are shared
            levels = images[part].contiguous().to(torch.float32)
            changed = row.function(levels, keys[part], scale, *row.parameters[severity - 1])
            # Via int32: converting floats directly to bytes is four times slower.
            result[part] = (changed + NUDGE).clamp_(0, 255).to(torch.int32)

    # What surrounds this, such as a training, may have left too little memory.
    micro_batch = memory.MicroBatch(count)
    if images.device.type == "cpu":

        def fill_all(size: int) -> None:
            parts = [slice(start, start + size) for start in range(0, len(images), size)]
            _spread(fill, parts, torch.get_num_threads())

        micro_batch.fit(count, fill_all)
    else:
        deque(micro_batch.parts(len(images), fill), maxlen=0)
    return result


def images_at_once(image_shape: Sequence[int], device: torch.device) -> int:
    """Return how many images of a shape (C, H, W) are corrupted together on a device."""
    values = _CHUNK_VALUES if device.type == "cpu" else _CHUNK_VALUES_GPU
    return max(1, values // math.prod(image_shape))


def _spread(work: Callable[[slice], None], parts: Sequence[slice], threads: int) -> None:
    """Run chunks on our own threads, each with one torch thread.

    Torch would split every small op between the cores and wait for the slower half, which costs up to thirty times the
    op itself on a busy machine.
    """
    if threads == 1:
        for part in parts:
            work(part)
        return
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            deque(pool.map(work, parts), maxlen=0)  # raises any error of a chunk
    finally:
        torch.set_num_threads(threads)  # the pool changed the default of the whole process


def _check_inputs(images: Tensor, name: str, severity: int, indices: Tensor) -> None:
    if name not in CORRUPTIONS:
        raise DataError(unknown("corruption", name, NAMES))
    if severity not in SEVERITIES:
        raise DataError(f"severity of '{name}': expected 1 to 5, found {severity}")
    if images.dtype != torch.uint8:
        raise DataError(f"images: expected uint8 grey levels 0..255, found {images.dtype}; convert them first")
    if images.dim() != 4 or min(images.shape[2:]) < SMALLEST:
        raise DataError(
            f"images: expected [B, C, H, W] with sides of at least {SMALLEST}, found {list(images.shape)}; permute "
            "[B, H, W, C] images first"
        )
    if images.shape[1] not in (1, 3) and name in COLOURED:
        colourless = ", ".join(sorted(set(NAMES) - set(COLOURED)))
        raise DataError(f"images: {name} needs 1 or 3 channels, found {list(images.shape)}; choose from {colourless}")
    if indices.dtype != torch.int64 or indices.shape != images.shape[:1]:
        raise DataError(
            f"indices: expected int64 [{len(images)}], one per image, found {indices.dtype} {list(indices.shape)}"
        )
