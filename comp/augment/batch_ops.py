"""The ops of `ops.OPS` as pairs of functions on a batch: `draw` and `run`.

`draw` makes every number that an op needs for each sample, on the CPU, for many batches at once: shifts, boxes, fixed
point matrices, tables, colours. `run` works on the device with these numbers alone, so no step waits. Ops with the same
`run` run together. A sample's numbers come from its key, so its pixels do not depend on the batch.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from comp.augment.kernels import colour, geometry, jpeg, noise, overlays, per_image_filters, textures
from comp.runtime import rng

Shape = tuple[int, int, int]  # of an image: C, H, W
Numbers = tuple[Tensor, ...]
# (magnitudes [n] float32 in the op's unit, keys [n] int64, shape) -> numbers of the samples, [n, ...] each.
Draw = Callable[[Tensor, Tensor, Shape], Numbers]
Run = Callable[..., Tensor]  # (images [n, C, H, W] uint8, *numbers) -> images; channels_last is fastest


class BatchOp(NamedTuple):
    """An op: what it draws on the CPU, and what it does on the device."""

    draw: Draw
    run: Run

    def __call__(self, images: Tensor, magnitude: Tensor, keys: Tensor) -> Tensor:
        """Return images [n, C, H, W] changed by magnitudes [n] and keys [n]."""
        _, C, H, W = images.shape
        numbers = self.draw(magnitude.cpu(), keys.cpu(), (C, H, W))
        return self.run(images, *(number.to(images.device) for number in numbers))


def _nothing(magnitude: Tensor, keys: Tensor, shape: Shape) -> Numbers:
    return ()


def _magnitude(magnitude: Tensor, keys: Tensor, shape: Shape) -> Numbers:
    return (magnitude,)


def _factor(magnitude: Tensor, keys: Tensor, shape: Shape) -> Numbers:
    return (1 + magnitude,)


def _with_field(number: Callable[[Tensor], Tensor]) -> Draw:
    """Draw one number from the magnitude; a field of draws is hashed on the device, from its key."""
    return lambda magnitude, keys, shape: (number(magnitude), rng.field_keys(keys, 0))


def _table(tables: Callable[[Tensor], Tensor]) -> Draw:
    return lambda magnitude, keys, shape: (tables(magnitude),)


def _scaled(draw: Draw) -> Draw:
    """Scale a magnitude in pixels at a shorter side of 32 to the image's size."""
    return lambda magnitude, keys, shape: draw(magnitude * (min(shape[1:]) / 32), keys, shape)


def _shift(magnitude: Tensor, keys: Tensor, shape: Shape) -> Numbers:
    """Draw shifts to the right and down in whole pixels, [n] each, up to a fraction of the side both ways."""
    shifts = []
    for draw, side in enumerate(shape[1:]):
        limit = (magnitude * side + 0.5).to(torch.int64)
        shifts.append(rng.integers(keys, draw, 2 * limit + 1) - limit)
    return shifts[1], shifts[0]


def _crop(magnitude: Tensor, keys: Tensor, shape: Shape) -> Numbers:
    right, down = _shift(magnitude, keys, shape)
    return geometry.shift_steps(right, down)


def _translate(axis: int) -> Draw:
    def draw(magnitude: Tensor, keys: Tensor, shape: Shape) -> Numbers:
        shifts = (magnitude * shape[2 - axis]).to(torch.int64)  # towards zero, as int()
        zero = torch.zeros_like(shifts)
        return geometry.shift_steps(*((shifts, zero) if axis == 0 else (zero, shifts)))

    return draw


def _shear(axis: int) -> Draw:
    def draw(magnitude: Tensor, keys: Tensor, shape: Shape) -> Numbers:
        zero = torch.zeros_like(magnitude)
        matrices = geometry.shear_matrices(*((magnitude, zero) if axis == 0 else (zero, magnitude)))
        return (geometry.affine_steps(matrices),)

    return draw


def _rotate(magnitude: Tensor, keys: Tensor, shape: Shape) -> Numbers:
    return (geometry.affine_steps(geometry.rotation_matrices(magnitude, shape[1], shape[2])),)


def _cutout(magnitude: Tensor, keys: Tensor, shape: Shape) -> Numbers:
    _, H, W = shape
    middle = torch.stack((rng.integers(keys, 0, H), rng.integers(keys, 1, W)), 1)  # [n, 2], anywhere
    size = (magnitude[:, None] * torch.tensor([H, W]) + 0.5).to(torch.int64)
    corner = middle - size // 2
    return (torch.cat((corner, corner + size), 1),)


def _blank(images: Tensor, boxes: Tensor) -> Tensor:
    # Mid-grey: the paper fills with zero after normalisation, about the mean.
    return geometry.erase(images, boxes, 128)


def _random_box(magnitude: Tensor, keys: Tensor, shape: Shape) -> Numbers:
    """Draw a box: the first of 10 draws of area (from 2 %) and aspect (0.3 to 1/0.3) that fits."""
    _, H, W = shape
    tries = torch.arange(10)
    share = 0.02 + (magnitude[:, None] - 0.02) * rng.uniform(keys[:, None], 2 * tries)  # [n, tries]
    aspect = 0.3 + (1 / 0.3 - 0.3) * rng.uniform(keys[:, None], 2 * tries + 1)
    heights = (H * W * share * aspect).sqrt().to(torch.int64)
    widths = (H * W * share / aspect).sqrt().to(torch.int64)
    fits = (heights < H) & (widths < W)
    first = fits & (fits.cumsum(1) == 1)  # an empty box if none fits
    height, width = (heights * first).sum(1), (widths * first).sum(1)
    top = rng.integers(keys, 20, H - height + 1)
    left = rng.integers(keys, 21, W - width + 1)
    return torch.stack((top, left, top + height, left + width), 1), keys


def _fill_with_noise(images: Tensor, boxes: Tensor, keys: Tensor) -> Tensor:
    _, C, H, W = images.shape
    noise_pixels = (rng.bits_field(keys, 22, (H, W, C)) & 255).to(torch.uint8)
    return geometry.erase(images, boxes, geometry.to_images(noise_pixels))


def _hue(magnitude: Tensor, keys: Tensor, shape: Shape) -> Numbers:
    return (((magnitude * 255).to(torch.int32) & 255).to(torch.uint8),)


def _pixelate(magnitude: Tensor, keys: Tensor, shape: Shape) -> Numbers:
    counts = [(magnitude.double() * side).round().clamp(1, side) for side in shape[1:]]
    return (torch.stack(counts, 1),)


def _texture(magnitude: Tensor, keys: Tensor, shape: Shape) -> Numbers:
    places = textures.draw_places(keys, 2 * textures.COUNT, *shape[1:])
    return places, textures.draw_shares(magnitude, keys)


def _haze(magnitude: Tensor, keys: Tensor, shape: Shape) -> Numbers:
    places = textures.draw_places(keys, overlays.SHEETS, *shape[1:])
    return places, overlays.draw_light(keys), magnitude / 255


def _drops(magnitude: Tensor, keys: Tensor, shape: Shape) -> Numbers:
    places = textures.draw_places(keys, overlays.SHEETS, *shape[1:])
    return places, overlays.draw_colour(keys, shape[0]), magnitude / 255


def _quality(magnitude: Tensor) -> Tensor:
    return magnitude.round().clamp(1, 100).to(torch.int64)


def _jpeg(images: Tensor, quality: Tensor) -> Tensor:
    return geometry.to_images(geometry.to_pixels(jpeg.compress(images, quality).to(torch.uint8)))


_CHUNK_VALUES = 128 * 3 * 32 * 32


def _chunked(function: Run) -> Run:
    """Process few samples at a time on a CPU, so that intermediates stay in its cache: up to 3 times faster."""

    def run(images: Tensor, *numbers: Tensor) -> Tensor:
        count = max(1, _CHUNK_VALUES // images[0].numel())
        if images.device.type != "cpu" or len(images) <= count:
            return function(images, *numbers)
        parts = zip(*(torch.split(tensor, count) for tensor in (images, *numbers)), strict=True)
        return torch.cat([function(*part) for part in parts])

    return run


_affine_bilinear = _chunked(geometry.affine_bilinear)
_mean_of_shifts = _chunked(per_image_filters.mean_of_shifts)

# One row per op of ops.OPS.
FUNCTIONS: dict[str, BatchOp] = {
    "crop": BatchOp(_crop, geometry.move),
    "crop_mirrored": BatchOp(_shift, geometry.shift_mirrored),
    "flip": BatchOp(_nothing, geometry.flip),
    "alternating_flip": BatchOp(_nothing, geometry.flip),
    "cutout": BatchOp(_cutout, _blank),
    "random_erasing": BatchOp(_random_box, _fill_with_noise),
    "shear_x": BatchOp(lambda magnitude, keys, shape: geometry.shear_steps(magnitude), geometry.move),
    "shear_y": BatchOp(_shear(1), geometry.affine),
    "shear_x_bilinear": BatchOp(_shear(0), _affine_bilinear),
    "shear_y_bilinear": BatchOp(_shear(1), _affine_bilinear),
    "translate_x": BatchOp(_translate(0), geometry.move),
    "translate_y": BatchOp(_translate(1), geometry.move),
    "rotate": BatchOp(_rotate, geometry.affine),
    "rotate_bilinear": BatchOp(_rotate, _affine_bilinear),
    "brightness": BatchOp(_table(lambda magnitude: colour.brightness_tables(1 + magnitude)), colour.look_up),
    "contrast": BatchOp(_factor, colour.contrast),
    "saturation": BatchOp(_factor, colour.saturation),
    "sharpness": BatchOp(_factor, _chunked(colour.sharpness)),
    "hue": BatchOp(_hue, colour.hue),
    "grayscale": BatchOp(_nothing, colour.grayscale),
    "posterize": BatchOp(_table(lambda magnitude: colour.posterize_tables(magnitude.round())), colour.look_up),
    "solarize": BatchOp(_table(colour.solarize_tables), colour.look_up),
    "autocontrast": BatchOp(_nothing, colour.autocontrast),
    "equalize": BatchOp(_nothing, colour.equalize),
    "invert": BatchOp(_nothing, colour.invert),
    "noise": BatchOp(_with_field(lambda magnitude: magnitude * 255), _chunked(noise.gaussian)),
    "speckle": BatchOp(_with_field(lambda magnitude: magnitude), _chunked(noise.speckle)),
    "impulse": BatchOp(
        _with_field(lambda magnitude: (magnitude.double() * (1 << 16)).round().to(torch.int32)), _chunked(noise.impulse)
    ),
    "blur": BatchOp(
        _scaled(lambda magnitude, keys, shape: (per_image_filters.gaussian_kernels(magnitude, *shape[1:]),)),
        _chunked(per_image_filters.blur),
    ),
    "pixel_shuffle": BatchOp(
        _scaled(_with_field(lambda magnitude: (magnitude.double() * 256).round().to(torch.int32))), noise.shuffle
    ),
    "pixelate": BatchOp(_pixelate, _chunked(per_image_filters.pixelate)),
    "fractal": BatchOp(_texture, _chunked(textures.mix)),
    "random_filter": BatchOp(
        lambda magnitude, keys, shape: (per_image_filters.random_kernels(magnitude, keys),),
        _chunked(per_image_filters.filter_3x3),
    ),
    "random_colour": BatchOp(
        lambda magnitude, keys, shape: (colour.random_curves(magnitude, keys, shape[0]),), colour.look_up_by_channel
    ),
    "jpeg": BatchOp(_table(_quality), _chunked(_jpeg)),
    "motion": BatchOp(
        _scaled(lambda magnitude, keys, shape: (per_image_filters.motion_shifts(magnitude, keys, *shape[1:]),)),
        _mean_of_shifts,
    ),
    "disk_blur": BatchOp(
        _scaled(lambda magnitude, keys, shape: (per_image_filters.disk_shifts(magnitude, *shape[1:]),)),
        _mean_of_shifts,
    ),
    "zoom": BatchOp(_magnitude, _chunked(per_image_filters.zoom_blur)),
    "elastic": BatchOp(
        _scaled(lambda magnitude, keys, shape: (geometry.elastic_bumps(magnitude, keys),)), _chunked(geometry.elastic)
    ),
    "haze": BatchOp(_haze, _chunked(overlays.haze)),
    "drops": BatchOp(_drops, _chunked(overlays.drops)),
    "gamma": BatchOp(_table(colour.gamma_tables), colour.look_up),
}
