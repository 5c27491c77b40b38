"""The losses of ordered classes and of numbers: their formulas, soft targets, and rates that fit any unit."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from comp.augment import mixing
from comp.training import losses


def cumulative(logits: np.ndarray, targets: np.ndarray) -> float:
    """Return the loss by its definition: for each k the binary cross-entropy of P(class > k), summed over k."""
    total = 0.0
    for row, target in zip(logits.astype(np.float64), targets, strict=True):
        shares = np.exp(row - row.max()) / np.exp(row - row.max()).sum()
        for k in range(len(row) - 1):
            above, truth = shares[k + 1 :].sum(), target[k + 1 :].sum()
            total -= truth * np.log(above) + (1 - truth) * np.log(shares[: k + 1].sum())
    return total / len(logits)


@given(seed=st.integers(0, 10_000), count=st.integers(1, 6), classes=st.integers(2, 7))
def test_the_loss_of_ordered_classes_is_the_sum_of_its_binary_questions(seed: int, count: int, classes: int) -> None:
    generator = np.random.default_rng(seed)
    logits = generator.normal(0, 2, (count, classes)).astype(np.float32)
    targets = generator.dirichlet(np.ones(classes), count).astype(np.float32)
    found = losses.cumulative(torch.from_numpy(logits), torch.from_numpy(targets)).item()
    assert found == pytest.approx(cumulative(logits, targets), rel=1e-4)


def test_a_mistake_by_two_levels_costs_more_than_one_by_one_level() -> None:
    logits = torch.tensor([[0.0, 4.0, 0.0, 0.0]])
    costs = [losses.cumulative(logits, torch.tensor([label])).item() for label in (1, 2, 3)]
    assert costs[0] < costs[1] < costs[2]
    assert F.cross_entropy(logits, torch.tensor([2])) == F.cross_entropy(logits, torch.tensor([3]))


def test_two_ordered_classes_are_a_plain_classification() -> None:
    logits, targets = torch.randn(5, 2), torch.tensor([0, 1, 1, 0, 1])
    torch.testing.assert_close(losses.cumulative(logits, targets), F.cross_entropy(logits, targets))


@pytest.mark.parametrize("size", [1e4, 60.0])
def test_extreme_logits_have_finite_losses_and_gradients(size: float) -> None:
    logits = torch.tensor([[size, 0.0, -size], [-size, 0.0, size]], requires_grad=True)
    loss = losses.cumulative(logits, torch.tensor([2, 0]))
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.isfinite()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_the_loss_of_numbers_does_not_depend_on_their_unit() -> None:
    outputs, targets = torch.randn(8, 1), torch.randn(8, 1)
    plain = losses.standardised(losses.squared_error, (0.0, 1.0))(outputs, targets)
    other = losses.standardised(losses.squared_error, (50.0, 20.0))(outputs * 20 + 50, targets * 20 + 50)
    torch.testing.assert_close(other, plain)
    torch.testing.assert_close(plain, ((outputs - targets) ** 2).mean())


def test_mixed_images_have_the_mixed_number() -> None:
    labels, keys = torch.tensor([1.0, 3.0, 10.0, 30.0, 7.0]), torch.arange(5)
    images = torch.arange(5, dtype=torch.uint8).reshape(5, 1, 1, 1).expand(5, 3, 8, 8).contiguous() * 50
    settings = mixing.Mixing(mixup=1.0)
    mixed, targets = mixing.mix(images, labels, keys, classes=1, mixing=settings)
    assert targets.shape == (5, 1)
    # Each image is of one brightness, so that its share of the partner's shows in its pixels.
    partners = torch.tensor([1, 0, 3, 2, 4])
    own, other = (images[rows, 0, 0, 0].float() / 255 for rows in (torch.arange(5), partners))
    share = torch.where(own == other, 1.0, (mixed[:, 0, 0, 0] - other) / (own - other))
    torch.testing.assert_close(targets[:, 0], share * labels + (1 - share) * labels[partners], atol=1e-4, rtol=1e-4)
    assert targets[4, 0] == 7
