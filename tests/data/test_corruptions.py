"""The suite generator: reproducible pixels, the published strengths, and Pillow's and NumPy's own arithmetic."""

import csv
import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import Tensor

from comp.data.corruptions.blurs import glass_sources
from comp.data.corruptions.suite import CORRUPTIONS, FAMILIES, NAMES, SEVERITIES, corrupt
from comp.runtime import rng
from comp.runtime.errors import DataError

HERE = Path(__file__).parents[1]
CIFAR = HERE.parent / "data" / "cifar-10-batches-bin" / "test_batch.bin"
DETERMINISTIC = {"defocus_blur", "zoom_blur", "gaussian_blur"} | {"brightness", "contrast", "saturate"}
DETERMINISTIC |= {"pixelate", "jpeg_compression"}
# Change does not grow with severity where the published parameters move several things at once: glass blur trades
# blur for shuffling, frost and spatter change the mix, elastic weakens its affine part, saturate turns from fading to
# strengthening. (Motion blur's third and fourth severity differ only by a longer, still invisible, tail.)
NOT_MONOTONE = {"glass_blur", "frost", "elastic_transform", "spatter", "saturate", "motion_blur"}


def photographs() -> Tensor:
    """64 patches of two photographs, shrunk fourfold so that 32 px hold as much as CIFAR's do: [64, 3, 32, 32]."""
    patches = []
    for photograph in load_sample_images().images:
        small = np.asarray(Image.fromarray(photograph).reduce(4))  # [107, 160, 3]
        patches += [small[top : top + 32, left : left + 32] for top in range(0, 72, 10) for left in (0, 40, 80, 120)]
    return torch.from_numpy(np.stack(patches)).permute(0, 3, 1, 2).contiguous()


PHOTOGRAPHS = photographs()
INDICES = torch.arange(len(PHOTOGRAPHS))
every_corruption = pytest.mark.parametrize("name", NAMES)


def change(name: str, severity: int, images: Tensor = PHOTOGRAPHS) -> float:
    """Mean absolute change in grey levels."""
    after = corrupt(images, name, severity, seed=0, indices=torch.arange(len(images)))
    return float((after.float() - images.float()).abs().mean())


def on_photographs(name: str, severity: int) -> np.ndarray:
    """The corrupted photographs as [B, H, W, C] for comparison with NumPy and Pillow."""
    return corrupt(PHOTOGRAPHS, name, severity, seed=0, indices=INDICES).permute(0, 2, 3, 1).numpy()


def pictures() -> np.ndarray:
    return PHOTOGRAPHS.permute(0, 2, 3, 1).contiguous().numpy()


# Reproducibility


@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from(NAMES),
    severity=st.sampled_from(SEVERITIES),
    seed=st.integers(0, 2**63 - 1),
    chosen=st.lists(st.integers(0, 63), min_size=1, max_size=20),
)
def test_an_images_pixels_do_not_depend_on_its_batch(name: str, severity: int, seed: int, chosen: list[int]) -> None:
    whole = corrupt(PHOTOGRAPHS, name, severity, seed=seed, indices=INDICES)
    picked = torch.tensor(chosen)
    assert torch.equal(corrupt(PHOTOGRAPHS[picked], name, severity, seed=seed, indices=picked), whole[picked])


@every_corruption
def test_chunks_leave_no_seam(name: str) -> None:
    images, indices = PHOTOGRAPHS.repeat(3, 1, 1, 1), INDICES.repeat(3)  # more than a chunk holds
    whole = corrupt(images, name, 3, seed=1, indices=indices)
    assert torch.equal(whole[:64], whole[64:128])
    assert torch.equal(whole[:64], whole[128:])


def test_threads_change_no_pixel_and_are_restored() -> None:
    before = torch.get_num_threads()
    images, indices = PHOTOGRAPHS.repeat(6, 1, 1, 1), torch.arange(6 * 64)
    results = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            results.append([corrupt(images, name, 5, seed=2, indices=indices) for name in NAMES])
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, three) for one, three in zip(*results, strict=True))


@pytest.mark.parametrize("name", sorted(set(NAMES) - DETERMINISTIC))
def test_seed_index_and_severity_give_other_draws(name: str) -> None:
    same = PHOTOGRAPHS[:1].repeat(8, 1, 1, 1)
    first = corrupt(same, name, 4, seed=0, indices=INDICES[:8])
    assert len(first.flatten(1).unique(dim=0)) >= 6  # two motions may fall on the same pixels
    assert not torch.equal(first, corrupt(same, name, 4, seed=1, indices=INDICES[:8]))


@pytest.mark.parametrize("name", sorted(DETERMINISTIC))
def test_corruptions_without_draws_ignore_seed_and_index(name: str) -> None:
    other = corrupt(PHOTOGRAPHS, name, 4, seed=9, indices=INDICES + 1000)
    assert torch.equal(corrupt(PHOTOGRAPHS, name, 4, seed=0, indices=INDICES), other)


@every_corruption
def test_memory_format_changes_nothing_and_is_kept(name: str) -> None:
    strided = PHOTOGRAPHS.contiguous(memory_format=torch.channels_last)
    result = corrupt(strided, name, 2, seed=0, indices=INDICES)
    assert result.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(result, corrupt(PHOTOGRAPHS, name, 2, seed=0, indices=INDICES))


def test_the_input_images_are_unchanged() -> None:
    before = PHOTOGRAPHS.clone()
    for name in NAMES:
        corrupt(PHOTOGRAPHS, name, 3, seed=0, indices=INDICES)
    assert torch.equal(PHOTOGRAPHS, before)


# Strength


@every_corruption
def test_strength_on_photographs_is_as_recorded(name: str) -> None:
    recorded = json.loads((HERE / "data" / "corruption_changes.json").read_text())[name]
    assert [change(name, severity) for severity in SEVERITIES] == pytest.approx(recorded, rel=0.01)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in NOT_MONOTONE])
def test_change_grows_with_severity(name: str) -> None:
    changes = [change(name, severity) for severity in SEVERITIES]
    assert changes == sorted(changes)


def reference() -> dict[tuple[str, int], tuple[float, float]]:
    """Mean absolute change and PSNR by corruption and severity, of the suite's own files on CIFAR-10."""
    with (HERE / "data" / "corruption_stats.csv").open() as file:
        rows = list(csv.DictReader(file))
    values = [(float(row["mean_absolute_change"]), float(row["psnr_db"])) for row in rows]
    return {(row["corruption"], int(row["severity"])): pair for row, pair in zip(rows, values, strict=True)}


CLOSE = {*FAMILIES["noise"], *FAMILIES["digital"]} - {"elastic_transform"}
CLOSE |= {"gaussian_blur", "defocus_blur", "brightness"}


# The reference files were made with a true swap in glass blur (done so, its first severity changes 16.1 levels, the
# reference 16.0); the published generator copies, and so do we (11.2).
ALLOWED = {"glass_blur": 0.33}


@pytest.mark.slow
@pytest.mark.skipif(not CIFAR.exists(), reason=f"needs the binary CIFAR-10 at {CIFAR.parent}")
@every_corruption
def test_strength_on_cifar10_matches_the_suites_files(name: str) -> None:
    # The reference averages squared errors over all 500 images before it takes the logarithm.
    records = np.fromfile(CIFAR, np.uint8, count=500 * 3073).reshape(500, 3073)
    images = torch.from_numpy(records[:, 1:].reshape(500, 3, 32, 32).copy())
    for severity in SEVERITIES:
        after = corrupt(images, name, severity, seed=0, indices=torch.arange(500)).float()
        error = after - images.float()
        psnr = 10 * math.log10(255**2 / float(error.square().mean()))
        expected_change, expected_psnr = reference()[name, severity]
        share = 0.03 if name in CLOSE else ALLOWED.get(name, 0.30)
        assert float(error.abs().mean()) == pytest.approx(expected_change, rel=share), severity
        if name in CLOSE:
            assert psnr == pytest.approx(expected_psnr, abs=0.5), severity


# Pixel by pixel


@pytest.mark.parametrize("severity", SEVERITIES)
def test_jpeg_equals_pillows_bit_for_bit(severity: int) -> None:
    quality = (80, 65, 58, 50, 40)[severity - 1]
    for picture, ours in zip(pictures(), on_photographs("jpeg_compression", severity), strict=True):
        file = io.BytesIO()
        Image.fromarray(picture).save(file, "JPEG", quality=quality)
        assert np.array_equal(np.asarray(Image.open(file)), ours)


@pytest.mark.parametrize("size", [(8, 9), (17, 30), (33, 47), (48, 40)])
def test_jpeg_of_other_sizes_and_grey_images_equals_pillows(size: tuple[int, int]) -> None:
    height, width = size
    photograph = np.ascontiguousarray(load_sample_images().images[0][100 : 100 + height, 200 : 200 + width])
    for picture in (photograph, np.ascontiguousarray(photograph[:, :, 1])):
        file = io.BytesIO()
        Image.fromarray(picture).save(file, "JPEG", quality=50)
        images = torch.from_numpy(np.atleast_3d(picture)).permute(2, 0, 1)[None]
        ours = corrupt(images, "jpeg_compression", 4, seed=0, indices=torch.zeros(1, dtype=torch.int64))
        assert np.array_equal(np.atleast_3d(np.asarray(Image.open(file))), ours[0].permute(1, 2, 0).numpy())


@pytest.mark.parametrize("severity", SEVERITIES)
def test_pixelate_equals_pillows_bit_for_bit(severity: int) -> None:
    side = int(32 * (0.95, 0.9, 0.85, 0.75, 0.65)[severity - 1])
    for picture, ours in zip(pictures(), on_photographs("pixelate", severity), strict=True):
        small = Image.fromarray(picture).resize((side, side), Image.Resampling.BOX)
        assert np.array_equal(np.asarray(small.resize((32, 32), Image.Resampling.BOX)), ours)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_contrast_equals_numpys(severity: int) -> None:
    share = (0.75, 0.5, 0.4, 0.3, 0.15)[severity - 1]
    x = pictures().astype(np.float64) / 255
    means = x.mean((1, 2), keepdims=True)
    expected = np.clip((x - means) * share + means, 0, 1) * 255
    assert_cut_off(expected, on_photographs("contrast", severity))


@pytest.mark.parametrize("severity", SEVERITIES)
def test_saturate_and_brightness_follow_the_hsv_hexcone(severity: int) -> None:
    factor, offset = ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2))[severity - 1]
    amount = (0.05, 0.1, 0.15, 0.2, 0.3)[severity - 1]
    hue, saturation, value = to_hsv(pictures() / 255)
    saturated = from_hsv(hue, np.clip(saturation * factor + offset, 0, 1), value)
    assert_cut_off(saturated * 255, on_photographs("saturate", severity))
    brightened = from_hsv(hue, saturation, np.clip(value + amount, 0, 1))
    assert_cut_off(brightened * 255, on_photographs("brightness", severity))


def assert_cut_off(expected: np.ndarray, ours: np.ndarray) -> None:
    """Whole levels below; a value within float32's reach of the next level may be taken for it."""
    assert np.all((ours == np.floor(expected)) | (ours == np.floor(expected + 2e-3)))


def to_hsv(rgb: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Smith's hexcone (1978): [..., 3] in 0..1 to hue in sixths, saturation, value."""
    value, span = rgb.max(-1), rgb.max(-1) - rgb.min(-1)
    red, green, blue = np.moveaxis(rgb, -1, 0)
    safe = np.where(span > 0, span, 1)
    sixths = [4 + (red - green) / safe, 2 + (blue - red) / safe]
    hue = np.select([value == blue, value == green], sixths, (green - blue) / safe % 6)
    return np.where(span > 0, hue, 0), np.where(value > 0, span / np.where(value > 0, value, 1), 0), value


def from_hsv(hue: np.ndarray, saturation: np.ndarray, value: np.ndarray) -> np.ndarray:
    channels = []
    for turn in (5, 3, 1):
        k = (turn + hue) % 6
        channels.append(value - value * saturation * np.clip(np.minimum(k, 4 - k), 0, 1))
    return np.stack(channels, -1)


def test_shot_noise_counts_photons() -> None:
    level, photons = 100, 50
    flat = torch.full((200, 3, 32, 32), level, dtype=torch.uint8)
    after = corrupt(flat, "shot_noise", 5, seed=0, indices=torch.arange(200)).double()
    expected = level * photons / 255
    counts = (after * photons / 255).ceil()  # levels were cut off: 5.1 a photon
    assert float(counts.mean()) == pytest.approx(expected, rel=0.005)
    assert float(counts.var()) == pytest.approx(expected, rel=0.02)


def test_glass_blur_copies_only_from_above_and_the_left() -> None:
    column = torch.arange(32).expand(1, 3, 32, 32)
    ramp = (column * 8).to(torch.uint8)
    after = corrupt(ramp, "glass_blur", 1, seed=0, indices=torch.zeros(1, dtype=torch.int64))
    moved = (ramp.int() - after.int()) // 8
    assert set(moved.unique().tolist()) == {0, 1}
    assert not moved[:, :, :2].any()
    assert not moved[:, :, :, :2].any()


def test_glass_blur_of_large_images_follows_the_published_order() -> None:
    keys = rng.keys(3, 0, torch.arange(2))
    reach, height, width = 3, 20, 24
    shorts = rng.shorts_field(keys, 0, (2, height, width))
    offsets = ((shorts * (2 * reach)) >> 16) - reach
    for sample, ours in enumerate(glass_sources(keys, height, width, reach)):
        shown = np.arange(height * width).reshape(height, width)
        for row in range(height - reach, reach, -1):
            for column in range(width - reach, reach, -1):
                down, right = offsets[sample, :, row, column].tolist()
                shown[row, column] = shown[row + down, column + right]
        assert np.array_equal(shown.reshape(-1), ours.numpy())


# Shapes, grey images, errors


@every_corruption
@pytest.mark.parametrize("shape", [(2, 1, 28, 28), (2, 3, 48, 40), (3, 1, 8, 8), (1, 3, 96, 64), (0, 3, 32, 32)])
def test_other_sizes_and_grey_images_keep_their_shape(name: str, shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randint(256, (*shape[:2], 8, 8), dtype=torch.uint8, generator=generator)
    images = coarse[:, :, torch.arange(shape[2]) * 8 // shape[2]][:, :, :, torch.arange(shape[3]) * 8 // shape[3]]
    after = corrupt(images, name, 5, seed=0, indices=torch.arange(shape[0]))
    assert after.shape == images.shape
    assert after.dtype == torch.uint8
    if shape[0] and min(shape[2:]) > 8 and (name, shape[1]) != ("saturate", 1):  # at 8 px a defocused point is a point
        assert not torch.equal(after, images)


@pytest.mark.parametrize("name", ["defocus_blur", "gaussian_blur", "motion_blur", "glass_blur", "elastic_transform"])
def test_strength_follows_the_size(name: str) -> None:
    large = PHOTOGRAPHS.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert change(name, 5, large) == pytest.approx(change(name, 5), rel=0.25)


def test_the_suite_has_19_rows_of_5_severities_in_the_order_of_its_files() -> None:
    assert len(NAMES) == 19
    assert (NAMES[0], NAMES[9], NAMES[18]) == ("gaussian_noise", "fog", "saturate")
    assert all(len(row.parameters) == 5 for row in CORRUPTIONS.values())
    assert sorted(sum(FAMILIES.values(), ())) == sorted(NAMES)


def test_an_unknown_name_lists_the_names_and_suggests_the_nearest() -> None:
    with pytest.raises(DataError, match=r"unknown corruption 'gausian_blur'.*snow.*did you mean 'gaussian_blur'"):
        corrupt(PHOTOGRAPHS, "gausian_blur", 1, seed=0, indices=INDICES)


@pytest.mark.parametrize(
    ("images", "severity", "indices", "message"),
    [
        (PHOTOGRAPHS, 0, INDICES, "severity of 'fog': expected 1 to 5, found 0"),
        (PHOTOGRAPHS, 6, INDICES, "expected 1 to 5, found 6"),
        (PHOTOGRAPHS.float(), 1, INDICES, "expected uint8"),
        (PHOTOGRAPHS.permute(0, 2, 3, 1), 1, INDICES, "permute"),
        (PHOTOGRAPHS[0], 1, INDICES, r"found \[3, 32, 32\]"),
        (PHOTOGRAPHS[:, :, :4], 1, INDICES, "at least 8"),
        (PHOTOGRAPHS, 1, INDICES[:5], r"indices: expected int64 \[64\]"),
        (PHOTOGRAPHS, 1, INDICES.int(), r"found torch.int32"),
    ],
)
def test_wrong_input_is_refused(images: Tensor, severity: int, indices: Tensor, message: str) -> None:
    with pytest.raises(DataError, match=message):
        corrupt(images, "fog", severity, seed=0, indices=indices)
