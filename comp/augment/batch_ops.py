"""The ops of `ops.OPS` as functions on a batch, called by `engine` for the samples that drew an op.

Each takes images [n, C, H, W] uint8 (channels_last is fastest), magnitudes [n] in the op's unit and keys [n] int64,
and returns images of the same shape. Random draws come from the keys, so that a sample's pixels do not depend on the
batch.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from comp.augment.kernels import colour, geometry, jpeg, noise, overlays, per_image_filters, textures
from comp.runtime import rng

Function = Callable[[Tensor, Tensor, Tensor], Tensor]


def _crop(images: Tensor, magnitude: Tensor, keys: Tensor) -> Tensor:
    right, down = _draw_shift(images, magnitude, keys)
    return geometry.shift(images, right, down)


def _crop_mirrored(images: Tensor, magnitude: Tensor, keys: Tensor) -> Tensor:
    right, down = _draw_shift(images, magnitude, keys)
    return geometry.shift_mirrored(images, right, down)


def _draw_shift(images: Tensor, magnitude: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    """Draw shifts to the right and down in whole pixels, [B] each, up to a fraction of the side both ways."""
    shifts = []
    for draw, side in enumerate(images.shape[2:]):
        limit = (magnitude * side + 0.5).to(torch.int64)
        shifts.append(rng.integers(keys, draw, 2 * limit + 1) - limit)
    return shifts[1], shifts[0]


def _cutout(images: Tensor, magnitude: Tensor, keys: Tensor) -> Tensor:
    _, _, H, W = images.shape
    middle = torch.stack((rng.integers(keys, 0, H), rng.integers(keys, 1, W)), 1)  # [B, 2], anywhere
    size = (magnitude[:, None] * torch.tensor([H, W], device=images.device) + 0.5).to(torch.int64)
    corner = middle - size // 2
    # Mid-grey: the paper fills with zero after normalisation, about the mean.
    return geometry.erase(images, torch.cat((corner, corner + size), 1), 128)


def _random_erasing(images: Tensor, magnitude: Tensor, keys: Tensor) -> Tensor:
    """Fill a random box with noise: the first of 10 draws of area (from 2 %) and aspect (0.3 to 1/0.3) that fits."""
    _, C, H, W = images.shape
    tries = torch.arange(10, device=images.device)
    share = 0.02 + (magnitude[:, None] - 0.02) * rng.uniform(keys[:, None], 2 * tries)  # [B, tries]
    aspect = 0.3 + (1 / 0.3 - 0.3) * rng.uniform(keys[:, None], 2 * tries + 1)
    heights = (H * W * share * aspect).sqrt().to(torch.int64)
    widths = (H * W * share / aspect).sqrt().to(torch.int64)
    fits = (heights < H) & (widths < W)
    first = fits & (fits.cumsum(1) == 1)  # an empty box if none fits
    height, width = (heights * first).sum(1), (widths * first).sum(1)
    top = rng.integers(keys, 20, H - height + 1)
    left = rng.integers(keys, 21, W - width + 1)
    noise_pixels = (rng.bits_field(keys, 22, (H, W, C)) & 255).to(torch.uint8)
    boxes = torch.stack((top, left, top + height, left + width), 1)
    return geometry.erase(images, boxes, geometry.to_images(noise_pixels))


def _translate(images: Tensor, magnitude: Tensor, keys: Tensor, *, axis: int) -> Tensor:
    shifts = (magnitude * images.shape[3 - axis]).to(torch.int64)  # towards zero, as int()
    zero = torch.zeros_like(shifts)
    return geometry.shift(images, *((shifts, zero) if axis == 0 else (zero, shifts)))


def _shear(images: Tensor, magnitude: Tensor, keys: Tensor, *, axis: int, interpolation: str) -> Tensor:
    if axis == 0 and interpolation == "nearest":
        return geometry.shear_x(images, magnitude)
    zero = torch.zeros_like(magnitude)
    slopes = (magnitude, zero) if axis == 0 else (zero, magnitude)
    return geometry.affine(images, geometry.shear_matrices(*slopes), interpolation=interpolation)


def _jpeg(images: Tensor, magnitude: Tensor, keys: Tensor) -> Tensor:
    quality = magnitude.round().clamp(1, 100).to(torch.int64)
    return geometry.to_images(geometry.to_pixels(jpeg.compress(images, quality).to(torch.uint8)))


_CHUNK_VALUES = 128 * 3 * 32 * 32


def _chunked(function: Function) -> Function:
    """Process few samples at a time on a CPU, so that intermediates stay in its cache: up to 3 times faster."""

    def run(images: Tensor, magnitude: Tensor, keys: Tensor) -> Tensor:
        count = max(1, _CHUNK_VALUES // images[0].numel())
        if images.device.type != "cpu" or len(images) <= count:
            return function(images, magnitude, keys)
        parts = zip(*(torch.split(tensor, count) for tensor in (images, magnitude, keys)), strict=True)
        return torch.cat([function(*part) for part in parts])

    return run


def _scaled(function: Function) -> Function:
    """Scale a magnitude in pixels at a shorter side of 32 to the image's size."""
    return lambda images, magnitude, keys: function(images, magnitude * (min(images.shape[2:]) / 32), keys)


def _without_magnitude(function: Callable[[Tensor], Tensor]) -> Function:
    return lambda images, magnitude, keys: function(images)


def _with_factor(function: Callable[[Tensor, Tensor], Tensor]) -> Function:
    return lambda images, magnitude, keys: function(images, 1 + magnitude)


def _with_magnitude(function: Callable[[Tensor, Tensor], Tensor]) -> Function:
    return lambda images, magnitude, keys: function(images, magnitude)


# One row per op of ops.OPS: (images [n, C, H, W] uint8, magnitudes [n], keys [n]) -> images.
FUNCTIONS: dict[str, Function] = {
    "crop": _crop,
    "crop_mirrored": _crop_mirrored,
    "flip": _without_magnitude(geometry.flip),
    "alternating_flip": _without_magnitude(geometry.flip),
    "cutout": _cutout,
    "random_erasing": _random_erasing,
    "shear_x": partial(_shear, axis=0, interpolation="nearest"),
    "shear_y": partial(_shear, axis=1, interpolation="nearest"),
    "shear_x_bilinear": _chunked(partial(_shear, axis=0, interpolation="bilinear")),
    "shear_y_bilinear": _chunked(partial(_shear, axis=1, interpolation="bilinear")),
    "translate_x": partial(_translate, axis=0),
    "translate_y": partial(_translate, axis=1),
    "rotate": _with_magnitude(geometry.rotate),
    "rotate_bilinear": _chunked(_with_magnitude(partial(geometry.rotate, interpolation="bilinear"))),
    "brightness": _with_factor(colour.brightness),
    "contrast": _with_factor(colour.contrast),
    "saturation": _with_factor(colour.saturation),
    "sharpness": _chunked(_with_factor(colour.sharpness)),
    "hue": _with_magnitude(colour.hue),
    "grayscale": _without_magnitude(colour.grayscale),
    "posterize": _with_magnitude(lambda images, bits: colour.posterize(images, bits.round())),
    "solarize": _with_magnitude(colour.solarize),
    "autocontrast": _without_magnitude(colour.autocontrast),
    "equalize": _without_magnitude(colour.equalize),
    "invert": _without_magnitude(colour.invert),
    "noise": _chunked(noise.gaussian),
    "speckle": _chunked(noise.speckle),
    "impulse": _chunked(noise.impulse),
    "blur": _chunked(_scaled(_with_magnitude(per_image_filters.gaussian_blur))),
    "pixel_shuffle": _scaled(noise.shuffle),
    "pixelate": _chunked(_with_magnitude(per_image_filters.pixelate)),
    "fractal": _chunked(textures.mix),
    "random_filter": _chunked(per_image_filters.random_filter),
    "random_colour": colour.random_curve,
    "jpeg": _chunked(_jpeg),
    "motion": _chunked(_scaled(per_image_filters.motion_blur)),
    "disk_blur": _chunked(_scaled(_with_magnitude(per_image_filters.disk_blur))),
    "zoom": _chunked(_with_magnitude(per_image_filters.zoom_blur)),
    "elastic": _chunked(_scaled(geometry.elastic)),
    "haze": _chunked(overlays.haze),
    "drops": _chunked(overlays.drops),
    "gamma": _with_magnitude(colour.gamma),
}
