"""Every op against Pillow or OpenCV: point-wise within 1 grey level, geometry within 2 on average."""

import io
import math
from collections.abc import Callable

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageOps

from comp.augment.batch_ops import FUNCTIONS
from comp.augment.kernels import colour, geometry
from comp.augment.ops import OPS
from comp.runtime import rng
from tests.support.images import SIDE, as_images, as_pixels, photographs, run


def pillow(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(pixels.squeeze())


def turned_hue(image: Image.Image, turns: float) -> Image.Image:
    h, s, v = image.convert("HSV").split()
    moved = (np.asarray(h).astype(int) + int(turns * 255)).astype(np.uint8)
    return Image.merge("HSV", (Image.fromarray(moved), s, v)).convert("RGB")


def affine(image: Image.Image, *matrix: float, smooth: bool = False) -> Image.Image:
    resample = Image.Resampling.BILINEAR if smooth else Image.Resampling.NEAREST
    return image.transform(image.size, Image.Transform.AFFINE, matrix, resample)


def blurred(image: Image.Image, sigma: float) -> np.ndarray:
    """By OpenCV in floats: Pillow's Gaussian is three box blurs."""
    side = 2 * math.ceil(4 * sigma) + 1
    smooth = cv2.GaussianBlur(np.asarray(image, np.float32), (side, side), max(sigma, 1e-3))
    return np.floor(smooth + 0.5).astype(np.uint8)


def pixelated(image: Image.Image, kept: float) -> Image.Image:
    width, height = (max(1, round(side * kept)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BOX).resize(image.size, Image.Resampling.NEAREST)


def through_jpeg(image: Image.Image, quality: int) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file)


def out_of_focus(image: Image.Image, radius: float) -> np.ndarray:
    """By OpenCV, with a kernel of how much of each pixel a disk covers, counted on a grid of 20 x 20 a pixel."""
    fine = (np.arange(7 * 20) + 0.5) / 20 - 3.5
    inside = fine[:, None] ** 2 + fine**2 <= max(radius, 0.05) ** 2
    covered = inside.reshape(7, 20, 7, 20).sum((1, 3))
    return np.floor(cv2.filter2D(np.asarray(image, np.float32), -1, covered / covered.sum()) + 0.5).astype(np.uint8)


def zoomed(image: Image.Image, farthest: float) -> np.ndarray:
    """The mean of 41 bilinear enlargements by OpenCV."""
    pixels, middle = np.asarray(image, np.float32), ((SIDE - 1) / 2, (SIDE - 1) / 2)
    turns = [cv2.getRotationMatrix2D(middle, 0, 1 + farthest * step / 40) for step in range(41)]
    return np.floor(np.mean([cv2.warpAffine(pixels, turn, (SIDE, SIDE)) for turn in turns], 0) + 0.5).astype(np.uint8)


# name: (what Pillow makes of an image and a magnitude, lowest and highest magnitude)
POINTWISE = {
    "brightness": (lambda image, m: ImageEnhance.Brightness(image).enhance(1 + m), -1, 1),
    "contrast": (lambda image, m: ImageEnhance.Contrast(image).enhance(1 + m), -1, 1),
    "saturation": (lambda image, m: ImageEnhance.Color(image).enhance(1 + m), -1, 1),
    "sharpness": (lambda image, m: ImageEnhance.Sharpness(image).enhance(1 + m), -1, 1),
    "hue": (lambda image, m: turned_hue(image, m) if image.mode == "RGB" else image, -0.5, 0.5),
    "grayscale": (lambda image, m: image.convert("L").convert(image.mode), 0, 0),
    "posterize": (lambda image, m: ImageOps.posterize(image, round(m)), 1, 8),
    "solarize": (lambda image, m: ImageOps.solarize(image, m), 0, 256),
    "autocontrast": (lambda image, m: ImageOps.autocontrast(image), 0, 0),
    "equalize": (lambda image, m: ImageOps.equalize(image), 0, 0),
    "invert": (lambda image, m: ImageOps.invert(image), 0, 0),
    "blur": (lambda image, m: blurred(image, m), 0, 3),
    "pixelate": (lambda image, m: pixelated(image, m), 0.125, 1),
    "jpeg": (lambda image, m: through_jpeg(image, round(m)), 1, 100),
    "gamma": (lambda image, m: image.point(lambda v: round(255 * (v / 255) ** 2**m)), -2, 2),
}
GEOMETRIC = {
    "flip": (lambda image, m: ImageOps.mirror(image), 0, 0),
    "alternating_flip": (lambda image, m: ImageOps.mirror(image), 0, 0),
    "shear_x": (lambda image, m: affine(image, 1, m, 0, 0, 1, 0), -1, 1),
    "shear_y": (lambda image, m: affine(image, 1, 0, 0, m, 1, 0), -1, 1),
    "shear_x_bilinear": (lambda image, m: affine(image, 1, m, 0, 0, 1, 0, smooth=True), -1, 1),
    "shear_y_bilinear": (lambda image, m: affine(image, 1, 0, 0, m, 1, 0, smooth=True), -1, 1),
    "translate_x": (lambda image, m: affine(image, 1, 0, -int(m * image.width), 0, 1, 0), -1, 1),
    "translate_y": (lambda image, m: affine(image, 1, 0, 0, 0, 1, -int(m * image.height)), -1, 1),
    "rotate": (lambda image, m: image.rotate(m), -180, 180),
    "rotate_bilinear": (lambda image, m: image.rotate(m, Image.Resampling.BILINEAR), -180, 180),
    "disk_blur": (lambda image, m: out_of_focus(image, m), 0, 2),
    "zoom": (lambda image, m: zoomed(image, m), 0, 0.375),  # beyond, equal ratios part from the reference's equal steps
}
# Where the amount alone does not decide. The first three are tested below, the others in test_augment_degradations.py.
RANDOM = {"crop", "crop_mirrored", "cutout", "random_erasing"} | {
    "noise", "speckle", "impulse", "pixel_shuffle", "fractal", "random_filter", "random_colour", "motion", "elastic",
    "haze", "drops",
}  # fmt: skip
# Amounts that do something, where it is not about a third that does.
AMOUNTS = {"motion": 6.0, "elastic": 1.0, "pixel_shuffle": 1.0, "jpeg": 40.0, "rotate": 20.0, "rotate_bilinear": 20.0,
           "posterize": 4.0, "solarize": 128.0, "blur": 1.0, "disk_blur": 1.5}  # fmt: skip


def run_pillow(name: str, pixels: np.ndarray, magnitude: np.ndarray) -> np.ndarray:
    function = (POINTWISE | GEOMETRIC)[name][0]
    done = [np.asarray(function(pillow(image), float(m))) for image, m in zip(pixels, magnitude, strict=True)]
    return np.stack(done).reshape(pixels.shape)


def difference(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return np.abs(one.astype(int) - other.astype(int))


def test_every_op_has_a_function_and_a_reference() -> None:
    assert set(FUNCTIONS) == set(OPS) == set(POINTWISE) | set(GEOMETRIC) | RANDOM


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", POINTWISE)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_pointwise_ops_are_within_one_level_of_pillow(name: str, channels: int, data: st.DataObject) -> None:
    _, low, high = POINTWISE[name]
    pixels = photographs(4, channels)
    magnitude = np.array(data.draw(st.lists(st.floats(low, high, width=32), min_size=4, max_size=4)))
    assert difference(run(name, pixels, magnitude), run_pillow(name, pixels, magnitude)).max() <= 1


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", GEOMETRIC)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_geometric_ops_are_within_two_levels_of_pillow_on_average(
    name: str, channels: int, data: st.DataObject
) -> None:
    _, low, high = GEOMETRIC[name]
    pixels = photographs(4, channels)
    magnitude = np.array(data.draw(st.lists(st.floats(low, high, width=32), min_size=4, max_size=4)))
    white = np.full_like(pixels, 255)
    seen, expected = run(name, white, magnitude) == 255, run_pillow(name, white, magnitude) == 255
    assert (seen != expected).mean() < 0.05  # a tie of rounding can take in or leave out a row of border pixels
    apart = difference(run(name, pixels, magnitude), run_pillow(name, pixels, magnitude))
    inside = seen & expected
    assert all(a[i].mean() <= 2 for a, i in zip(apart, inside, strict=True) if i.any())


@pytest.mark.parametrize("name", sorted(set(POINTWISE) | set(GEOMETRIC)))
def test_flat_dark_and_bright_images_come_out_as_pillows(name: str) -> None:
    pixels = np.stack([np.full((SIDE, SIDE, 3), level, np.uint8) for level in (0, 1, 127, 255)])
    magnitude = np.full(4, AMOUNTS.get(name, 0.3))
    assert difference(run(name, pixels, magnitude), run_pillow(name, pixels, magnitude)).max() <= 1


@pytest.mark.parametrize("name", FUNCTIONS)
def test_any_memory_format_and_shape_gives_the_same_pixels(name: str) -> None:
    pixels = photographs(3, 3)[:, :, :28]  # 32 high, 28 wide
    magnitude, keys = torch.full((3,), AMOUNTS.get(name, 0.3)), rng.keys(0, 0, torch.arange(3))
    last = FUNCTIONS[name](as_images(np.ascontiguousarray(pixels)), magnitude, keys)
    first = FUNCTIONS[name](as_images(pixels).contiguous(), magnitude, keys)
    assert last.shape == (3, 3, 32, 28)
    assert last.dtype == torch.uint8
    assert torch.equal(last, first)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_a_sample_gets_does_not_depend_on_the_batch(name: str) -> None:
    images, keys = as_images(photographs(37)), rng.keys(0, 0, torch.arange(37))
    magnitude = AMOUNTS.get(name, 0.3) * (0.5 + rng.uniform(keys, 99))
    whole = FUNCTIONS[name](images, magnitude, keys)
    for size in (1, 6):
        starts = range(0, 12 if size == 1 else 37, size)
        pieces = [FUNCTIONS[name](*(x[start : start + size] for x in (images, magnitude, keys))) for start in starts]
        assert torch.equal(torch.cat(pieces), whole[: sum(map(len, pieces))])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_cuda_device_gives_the_same_pixels_within_one_level(name: str) -> None:
    images, keys = as_images(photographs(256)), rng.keys(0, 0, torch.arange(256))
    magnitude = AMOUNTS.get(name, 0.3) * (0.5 + rng.uniform(keys, 99))
    there = FUNCTIONS[name](images.cuda(), magnitude.cuda(), keys.cuda()).cpu()
    assert difference(as_pixels(FUNCTIONS[name](images, magnitude, keys)), as_pixels(there)).max() <= 1


def test_all_colours_survive_hsv_as_in_pillow() -> None:
    levels = np.arange(0, 256, 5, dtype=np.uint8)
    cube = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(1, -1, len(levels), 3)
    ours = torch.stack(colour.rgb_to_hsv(as_images(cube)), -1).numpy()
    assert difference(ours, np.asarray(pillow(cube[0]).convert("HSV"))[None]).max() <= 1
    hsv = torch.from_numpy(cube).unbind(-1)
    merged = Image.merge("HSV", [Image.fromarray(plane) for plane in cube[0].transpose(2, 0, 1)]).convert("RGB")
    assert difference(as_pixels(colour.hsv_to_rgb(*hsv)), np.asarray(merged)[None]).max() <= 1


def test_crop_moves_by_at_most_the_padding_and_every_move_is_as_likely() -> None:
    pixels = np.zeros((8100, 8, 8, 1), np.uint8)
    pixels[:, 4, 4] = 255
    moved = run("crop", pixels, np.full(8100, 0.5))  # up to 4 px
    rows, columns = moved.reshape(8100, 64).argmax(1) // 8, moved.reshape(8100, 64).argmax(1) % 8
    seen = moved.reshape(8100, 64).any(1)  # a move of +4 takes the dot out
    counts = np.bincount(rows[seen] * 8 + columns[seen], minlength=64)
    assert counts.sum() == pytest.approx(8100 * 64 / 81, rel=0.03)
    assert ((counts - 100) ** 2 / 100).sum() < 110  # chi-square, 63 degrees: below 110 but for 2e-4


def test_shift_fills_what_comes_in() -> None:
    images = as_images(photographs(2))
    moved = geometry.shift(images, torch.tensor([5, -40]), torch.tensor([-3, 0]), fill=9)
    assert torch.equal(moved[0, :, :-3, 5:], images[0, :, 3:, :-5])
    assert (moved[0, :, :, :5] == 9).all()
    assert (moved[1] == 9).all()


def test_a_mirrored_crop_is_a_window_of_the_mirrored_surroundings() -> None:
    pixels = photographs(200)
    moved = run("crop_mirrored", pixels, np.full(200, 0.25))  # up to 8 px
    places = set()
    for before, after in zip(pixels, moved, strict=True):
        wide = np.pad(before, ((8, 8), (8, 8), (0, 0)), mode="reflect")
        windows = np.lib.stride_tricks.sliding_window_view(wide, (32, 32), axis=(0, 1))  # [17, 17, C, 32, 32]
        equal = (windows == after.transpose(2, 0, 1)).all((2, 3, 4))
        assert equal.sum() == 1
        places.add(int(equal.argmax()))
    assert len(places) > 100  # of 289


@pytest.mark.parametrize("affine", [geometry.affine, geometry.affine_bilinear])
def test_turned_corners_take_the_fill(affine: Callable[..., torch.Tensor]) -> None:
    steps = geometry.affine_steps(geometry.rotation_matrices(torch.full((3,), 45.0), SIDE, SIDE))
    turned = affine(as_images(photographs(3)), steps, fill=200)
    assert (turned[:, :, [0, 0, -1, -1], [0, -1, 0, -1]] == 200).all()


def test_cutout_blanks_one_square_that_may_hang_over_the_border() -> None:
    pixels = np.zeros((400, 16, 16, 3), np.uint8)
    blanked = (run("cutout", pixels, np.full(400, 0.5)) == 128).all(-1)
    rows, columns = blanked.any(2).sum(1), blanked.any(1).sum(1)
    assert (blanked.sum((1, 2)) == rows * columns).all()
    assert rows.max() == columns.max() == 8
    assert rows.min() == columns.min() == 4


def test_random_erasing_puts_noise_in_one_rectangle_of_the_published_size() -> None:
    pixels = np.zeros((400, 32, 32, 3), np.uint8)
    erased = run("random_erasing", pixels, np.full(400, 0.4))
    areas = (erased.max(-1) > 0).sum((1, 2)) / 1024
    assert 0.005 < areas.min() < 0.06
    assert 0.33 < areas.max() <= 0.4
    assert erased[erased > 0].mean() == pytest.approx(128, abs=3)
