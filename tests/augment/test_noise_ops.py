"""Ops that change images by chance, on a batch: their statistics, and what they must leave alone."""

import numpy as np
import pytest
import torch
from scipy import stats

from comp.augment.kernels import overlays, textures
from tests.support.images import photographs, run


def grey(count: int, level: int, side: int = 32, channels: int = 3) -> np.ndarray:
    return np.full((count, side, side, channels), level, np.uint8)


@pytest.mark.parametrize("sigma", [0.02, 0.1])
def test_noise_is_normal_with_its_sigma(sigma: float) -> None:
    change = run("noise", grey(100, 128), np.full(100, sigma)).astype(float) - 128
    assert change.mean() == pytest.approx(0, abs=0.2)
    assert change.std() == pytest.approx(255 * sigma, rel=0.01)
    some = change.reshape(100, -1)[:, ::37].flatten() + np.random.default_rng(0).random(8400) - 0.5
    assert stats.kstest(some / np.sqrt((255 * sigma) ** 2 + 1 / 12), "norm").pvalue > 1e-3


def test_speckle_grows_with_the_level() -> None:
    for level in (0, 50, 120):
        change = run("speckle", grey(50, level), np.full(50, 0.2)).astype(float) - level
        assert change.mean() == pytest.approx(0, abs=0.2)
        assert change.std() == pytest.approx(level * 0.2, rel=0.015)


def test_impulse_blackens_and_whitens_alike() -> None:
    struck = run("impulse", grey(100, 128), np.full(100, 0.06))
    counts = np.bincount(struck.flatten(), minlength=256)
    assert stats.chisquare(counts[[0, 128, 255]], struck.size * np.array([0.03, 0.94, 0.03])).pvalue > 1e-3
    assert counts[[0, 128, 255]].sum() == struck.size


@pytest.mark.parametrize(
    ("reach", "shares"), [(0.4, (0, 1, 0)), (1.0, (0.25, 0.5, 0.25)), (0.75, (1 / 6, 2 / 3, 1 / 6))]
)
def test_pixels_are_shuffled_within_reach(reach: float, shares: tuple[float, ...]) -> None:
    """Every pixel carries its own row and column as its levels; rounding gives whole offsets their shares."""
    places = np.stack([*np.indices((32, 32)), np.zeros((32, 32), int)], -1)
    shuffled = run("pixel_shuffle", places[None].repeat(20, 0).astype(np.uint8), np.full(20, reach))
    offsets = (shuffled.astype(int) - places)[:, 2:-2, 2:-2]
    for axis in (0, 1):
        counts = [(offsets[..., axis] == step).sum() for step in (-1, 0, 1)]
        if reach < 0.5:
            assert counts == [0, 20 * 28 * 28, 0]
        else:
            assert stats.chisquare(counts, 20 * 28 * 28 * np.array(shares)).pvalue > 1e-3


def test_a_random_filter_keeps_brightness_and_spreads_as_its_sigma_says() -> None:
    dots = grey(2000, 100, side=8)
    dots[:, 4, 4] = 200
    response = (run("random_filter", dots, np.full(2000, 0.1)).astype(float) - 100) / 100
    weights = response[:, 3:6, 3:6, 0]
    assert np.abs(response[..., 1] - response[..., 0]).max() == 0
    assert weights.sum((1, 2)) == pytest.approx(np.ones(2000), abs=0.05)
    around = np.delete(weights.reshape(2000, 9), 4, 1)
    assert around.mean() == pytest.approx(0, abs=0.005)
    assert around.std() == pytest.approx(0.1 * np.sqrt(8 / 9), rel=0.03)
    response[:, 3:6, 3:6] = 0
    assert not response.any()
    flat = run("random_filter", grey(50, 77), np.full(50, 0.3))
    assert (flat == 77).all()


def test_random_curves_keep_black_and_white_and_move_the_rest_as_told() -> None:
    ramp = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(2000, 0).repeat(3, 3)
    curves = run("random_colour", ramp, np.full(2000, 0.05)).reshape(2000, 256, 3).astype(float)
    assert (curves[:, 0] == 0).all()
    assert (curves[:, 255] == 255).all()
    moved = (curves - np.arange(256)[:, None])[:, 64:192]  # far from where levels are clipped
    # Six sines share the mean square evenly over all levels; in the middle the lowest stands out a little.
    sines = np.sin(np.pi * np.arange(1, 7)[:, None] * np.arange(64, 192) / 255)
    assert (moved**2).mean() == pytest.approx((0.05 * 255) ** 2 * 2 * (sines**2).mean(), rel=0.06)
    assert np.abs(np.diff(curves, axis=1)).max() < 25  # smooth
    assert np.abs(np.corrcoef(moved[:, 60].T) - np.eye(3)).max() < 0.1  # channels draw their own


def test_a_texture_moves_levels_by_its_weight_at_most() -> None:
    pixels = photographs(300)
    for weight in (0.0, 0.3):
        mixed = run("fractal", pixels, np.full(300, weight)).astype(int)
        assert np.abs(mixed - pixels).max() <= 255 * weight + 1
    ways = run("fractal", grey(2000, 0), np.full(2000, 0.5)).reshape(2000, -1).max(1)
    # Black stays black where it is multiplied or moved away from the texture, and is lifted by a quarter of the draws.
    assert stats.binomtest(int((ways > 0).sum()), 2000, 0.25).pvalue > 1e-3


@pytest.mark.parametrize(("side", "channels"), [(32, 3), (28, 1), (96, 3)])
def test_textures_differ_and_half_of_them_mirror_the_others(side: int, channels: int) -> None:
    sheets = textures.sheets(side, channels, torch.device("cpu"))
    assert sheets.shape == (128, 2 * side, 2 * side, channels)
    assert torch.equal(sheets[:64].flip(2), sheets[64:])
    assert len(sheets.flatten(1).unique(dim=0)) == 128
    assert sheets.float().flatten(1).std(1).min() > 20


def test_pieces_are_windows_of_their_sheet() -> None:
    sheets = torch.arange(3 * 12 * 12).view(3, 12, 12, 1)
    places = textures.draw_places(torch.arange(4000), 3, 5, 6)
    found = textures.pieces(sheets, places, 5, 6)[..., 0]
    step = found[:, 1, 0] - found[:, 0, 0]
    assert set(step.tolist()) == {12, -12}  # upside down or not
    assert torch.equal(found, found[:, :1, :1] + torch.arange(6) + torch.arange(5)[:, None] * step[:, None, None])
    corners = found[:, 0, 0] - (step < 0) * 4 * 12
    assert stats.chisquare(np.unique(corners.numpy(), return_counts=True)[1]).pvalue > 1e-3
    assert len(corners.unique()) == 3 * 8 * 7


def test_motion_smears_along_a_line_of_its_length_in_any_direction() -> None:
    dots = grey(2000, 0, channels=1)
    dots[:, 16, 16] = 240  # a twenty-fourth is 10 levels
    smeared = run("motion", dots, np.full(2000, 9.0))[..., 0].astype(float)
    assert smeared.sum((1, 2)) == pytest.approx(np.full(2000, 240), abs=1)
    y, x = np.indices((32, 32)) - 16
    xx, yy, xy = ((smeared * moment).sum((1, 2)) / 240 for moment in (x * x, y * y, x * y))
    # An even line has length^2 / 12 along itself and none across; rounding to pixels adds 1/12 to each at most.
    larger = (xx + yy) / 2 + np.hypot((xx - yy) / 2, xy)
    assert larger.mean() == pytest.approx(81 / 12, rel=0.03)
    assert (xx + yy - larger).max() < 0.3
    direction = np.arctan2(2 * xy, xx - yy) / 2 % np.pi
    counts = np.histogram(direction, 4, (-np.pi / 8, np.pi * 7 / 8))[0] + [
        (direction > np.pi * 7 / 8).sum(), 0, 0, 0,
    ]  # fmt: skip
    assert stats.chisquare(counts).pvalue > 1e-3


def test_elastic_moves_smoothly_by_its_amount() -> None:
    """Ramps of 6 levels a pixel: how far a level is from its own place is how far it was moved."""
    y, x = np.indices((32, 32))
    ramps = np.stack((6 * x + 30, 6 * y + 30, 0 * x), -1).astype(np.uint8)
    bent = run("elastic", ramps[None].repeat(1000, 0), np.full(1000, 1.2)).astype(float)
    moves = ((bent - ramps) / 6)[:, 5:-5, 5:-5, :2]  # away from the border, which holds what would come from outside
    assert moves.mean((0, 1, 2)) == pytest.approx(np.zeros(2), abs=0.15)
    assert moves.std() == pytest.approx(1.2, rel=0.03)
    assert np.abs(np.diff(moves, axis=2)).mean() < 0.35
    assert abs(np.corrcoef(moves[:, 11, 11].T)[0, 1]) < 0.12
    white = np.full((20, 32, 32, 3), 255, np.uint8)
    assert (run("elastic", white, np.full(20, 4.0)) == 255).all()


@pytest.mark.parametrize("name", ["haze", "drops"])
def test_layers_hide_as_much_as_their_weight_at_most(name: str) -> None:
    pixels = photographs(200)
    for weight in (0.0, 0.25):
        laid = run(name, pixels, np.full(200, weight)).astype(int)
        assert np.abs(laid - pixels).max() <= 255 * weight + 1
        assert np.array_equal(laid, pixels) == (weight == 0)


def test_haze_lightens_and_drops_are_light_or_dark() -> None:
    hazy = run("haze", grey(200, 60), np.full(200, 0.6)).astype(int)
    assert hazy.min() >= 60 + 0.3 * 90 - 1
    assert (hazy.max(3) - hazy.min(3)).max() == 0  # haze is grey
    changes = run("drops", grey(1000, 128), np.full(1000, 0.8)).astype(int) - 128
    means = changes.mean((1, 2, 3))
    assert (np.sign(changes) * np.sign(means)[:, None, None, None] >= 0).all()
    assert stats.binomtest(int((means > 0).sum()), int((means != 0).sum()), 0.5).pvalue > 1e-3
    assert (means == 0).mean() < 0.05  # a piece without drops is rare


@pytest.mark.parametrize("sheets", [overlays.clouds, overlays.covers])
@pytest.mark.parametrize(("side", "channels"), [(32, 3), (28, 1), (80, 3)])
def test_sheets_of_layers_differ(sheets: overlays.Sheets, side: int, channels: int) -> None:
    made = sheets(side, channels, torch.device("cpu"))
    assert made.shape == (96, 2 * side, 2 * side, channels)
    assert made.is_contiguous()
    assert torch.equal(made[:48].flip(2), made[48:])
    assert len(made.flatten(1).unique(dim=0)) == 96
