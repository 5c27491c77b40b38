"""MixUp, CutMix, label smoothing, and the Beta deviates behind them."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch.nn.functional import one_hot

from comp.augment.mixing import Mixing, beta, dirichlet, hits, mix, soft_targets
from comp.runtime import rng

CLASSES = 10


def batch(count: int, channels: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    indices = torch.arange(count)
    pixels = rng.bits_field(rng.keys(5, 0, indices), 0, (16, 16, channels)) & 255
    images = pixels.to(torch.uint8).permute(0, 3, 1, 2)
    return images, indices % CLASSES, rng.keys(0, 0, indices)


def distance(drawn: torch.Tensor, a: float, b: float) -> float:
    """Return Kolmogorov and Smirnov's distance to Beta(a, b), away from the ends where float32 rounds to 0 or 1."""
    at = np.linspace(1e-4, 1 - 1e-4, 20_000)
    seen = np.searchsorted(np.sort(drawn.double().numpy()), at) / len(drawn)
    return float(np.abs(seen - stats.beta(a, b).cdf(at)).max())


@pytest.mark.parametrize(("a", "b"), [(0.2, 0.2), (0.4, 0.4), (1.0, 1.0), (2.0, 1.0), (8.0, 8.0)])
def test_beta_deviates_follow_beta(a: float, b: float) -> None:
    drawn = beta(a, b, rng.uniform(rng.keys(1, 0, torch.arange(200_000)), 0))
    assert distance(drawn, a, b) < 1.63 / 200_000**0.5  # the 1 % level
    evenly = beta(a, b, (torch.arange(100_000) + 0.5) / 100_000)
    assert distance(evenly, a, b) < 1e-3


def test_dirichlet_weights_sum_to_one_and_each_follows_its_beta() -> None:
    weights = dirichlet(0.7, 3, rng.keys(2, 0, torch.arange(50_000)), 0)
    assert torch.allclose(weights.sum(1), torch.ones(50_000), atol=1e-6)
    for column in weights.double().T:
        assert distance(column, 0.7, 1.4) < 0.008


@pytest.mark.parametrize(
    "mixing", [Mixing(), Mixing(0.4), Mixing(0, 1.0), Mixing(0.4, 1.0), Mixing(0.4, 1.0, 0.5, 0.1)]
)
@pytest.mark.parametrize(("count", "channels"), [(1, 3), (7, 1), (8, 3)])
def test_mixed_batches_are_images_and_distributions(mixing: Mixing, count: int, channels: int) -> None:
    images, labels, keys = batch(count, channels)
    mixed, targets = mix(images, labels, keys, classes=CLASSES, mixing=mixing)
    assert mixed.shape == images.shape
    assert mixed.dtype == targets.dtype == torch.float32
    assert mixed.is_contiguous(memory_format=torch.channels_last)
    assert 0 <= mixed.min() <= mixed.max() <= 1 + 1e-6
    assert torch.allclose(targets.sum(1), torch.ones(count), atol=1e-6)


def test_nothing_to_mix_changes_nothing() -> None:
    images, labels, keys = batch(6)
    mixed, targets = mix(images, labels, keys, classes=CLASSES, mixing=Mixing())
    assert torch.allclose(mixed, images / 255)
    assert torch.equal(targets, one_hot(labels, CLASSES).float())


def test_the_last_epochs_only_smooth_labels() -> None:
    mixing = Mixing(0.4, 1.0, label_smoothing=0.1, off_epochs=2)
    assert mixing.at(1, 10) == mixing.at(8, 10) == mixing
    assert mixing.at(9, 10) == mixing.at(10, 10) == Mixing(label_smoothing=0.1, off_epochs=2)


def test_the_odd_last_sample_stays_as_it_is() -> None:
    images, labels, keys = batch(9)
    for mixing in (Mixing(1.0), Mixing(0, 1.0), Mixing(1.0, 1.0)):
        mixed, targets = mix(images, labels, keys, classes=CLASSES, mixing=mixing)
        assert torch.allclose(mixed[-1], images[-1] / 255)
        assert torch.equal(targets[-1], one_hot(labels[-1], CLASSES).float())


def test_mixup_blends_pixels_and_labels_by_the_same_share() -> None:
    images, labels, keys = batch(64)
    mixed, targets = mix(images, labels, keys, classes=CLASSES, mixing=Mixing(1.0))
    kept = targets.gather(1, labels[:, None])[..., None, None]
    partners = images.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)
    assert torch.allclose(mixed, (kept * images + (1 - kept) * partners) / 255, atol=1e-5)


def test_mixup_shares_follow_beta() -> None:
    images, labels, keys = batch(20_000, 1)
    _, targets = mix(images[:, :, :4, :4], labels, keys, classes=CLASSES, mixing=Mixing(0.4))
    kept = targets.gather(1, labels[:, None])[:, 0]
    assert distance(kept, 0.4, 0.4) < 0.0115


def test_cutmix_labels_are_the_shares_of_pixels() -> None:
    count = 512
    images = (torch.arange(count) % 2 * 255).to(torch.uint8).view(-1, 1, 1, 1).expand(count, 3, 20, 16)
    labels = torch.arange(count) % 2
    mixed, targets = mix(images, labels, rng.keys(0, 3, torch.arange(count)), classes=2, mixing=Mixing(0, 1.0))
    assert torch.allclose(mixed.mean((1, 2, 3)), targets[:, 1], atol=1e-5)
    assert ((mixed == 0) | (mixed == 1)).all()
    holes = mixed[::2, 0] == 1  # the partner's rectangle in the even samples
    assert (holes.sum((1, 2)) == holes.any(2).sum(1) * holes.any(1).sum(1)).all()


def test_both_mixers_share_the_samples_by_the_switch() -> None:
    count = 4000
    images = (torch.arange(count) % 2 * 255).to(torch.uint8).view(-1, 1, 1, 1).expand(count, 1, 8, 8)
    mixed, _ = mix(images, torch.arange(count) % 2, rng.keys(0, 0, torch.arange(count)), classes=2,
                   mixing=Mixing(8.0, 1.0, switch_probability=0.3))  # fmt: skip
    cut = ((mixed == 0) | (mixed == 1)).all(3).all(2).all(1)
    assert cut.float().mean() == pytest.approx(0.3, abs=0.03)


@pytest.mark.parametrize("mixing", [Mixing(0.4), Mixing(0, 1.0), Mixing(0.4, 1.0)])
def test_a_samples_mix_does_not_depend_on_the_batch(mixing: Mixing) -> None:
    images, labels, keys = batch(32)
    whole = mix(images, labels, keys, classes=CLASSES, mixing=mixing)
    pieces = [
        mix(images[part], labels[part], keys[part], classes=CLASSES, mixing=mixing)
        for part in (slice(0, 6), slice(6, 8), slice(8, 32))
    ]
    for index in (0, 1):
        assert torch.equal(whole[index], torch.cat([piece[index] for piece in pieces]))


@settings(max_examples=20, deadline=None)
@given(smoothing=st.floats(0, 0.9))
def test_smoothing_is_taken_out_of_the_accuracy(smoothing: float) -> None:
    labels, others, kept = torch.tensor([0, 1, 2]), torch.tensor([1, 1, 3]), torch.tensor([0.7, 0.2, 0.4])
    targets = soft_targets(labels, others, kept, classes=4, label_smoothing=smoothing)
    assert targets.min() >= smoothing / 4 - 1e-6
    logits = one_hot(torch.tensor([0, 1, 0]), 4).float()
    assert torch.allclose(hits(logits, targets, label_smoothing=smoothing), torch.tensor([0.7, 1.0, 0.0]), atol=1e-5)
