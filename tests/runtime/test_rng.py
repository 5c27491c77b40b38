"""The promises of counter-based draws: flat, unrelated, the same for ever."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from comp.runtime import rng

SAMPLES = 1 << 16
INDICES = torch.arange(SAMPLES)


def keys(seed: int = 0, epoch: int = 0) -> Tensor:
    return rng.keys(seed, epoch, INDICES)


def chi_square_sigmas(values: Tensor, bins: int) -> float:
    """How many standard deviations a histogram of integers in [0, bins) is from flat."""
    counts = torch.bincount(values.flatten(), minlength=bins).double()
    expected = counts.sum() / bins
    statistic = ((counts - expected) ** 2 / expected).sum()
    return float((statistic - (bins - 1)) / math.sqrt(2 * (bins - 1)))


def correlation_sigmas(a: Tensor, b: Tensor) -> float:
    """How many standard deviations the correlation of two sets of draws is from 0."""
    pair = torch.stack((a.flatten().double(), b.flatten().double()))
    return float(torch.corrcoef(pair)[0, 1] * math.sqrt(pair.shape[1]))


@pytest.mark.parametrize("shift", [0, 8, 16, 24])
def test_every_byte_of_the_bits_is_flat(shift: int) -> None:
    assert abs(chi_square_sigmas((rng.bits(keys(), 0) >> shift) & 255, 256)) < 4


@pytest.mark.parametrize("high", [2, 3, 10, 1000])
def test_integers_are_flat(high: int) -> None:
    values = rng.integers(keys(), 1, high)
    assert int(values.min()) == 0
    assert int(values.max()) == high - 1
    assert abs(chi_square_sigmas(values, high)) < 4


def test_shorts_are_flat_in_all_four_lanes_of_a_hash() -> None:
    shorts = rng.shorts_field(keys()[:4096], 0, (64,)).long()
    for lane in range(4):
        assert abs(chi_square_sigmas(shorts[:, lane::4] >> 8, 256)) < 4
        assert abs(chi_square_sigmas(shorts[:, lane::4] & 255, 256)) < 4


@pytest.mark.parametrize(
    "other",
    [
        lambda: rng.uniform(keys(), 1),
        lambda: rng.uniform(keys().roll(1), 0),
        lambda: rng.uniform(keys(epoch=1), 0),
        lambda: rng.uniform(keys(seed=1), 0),
        lambda: rng.uniform(rng.fold(keys(), 0), 0),
        lambda: rng.shorts_field(keys(), 0, (1,))[:, 0],
    ],
    ids=["next draw", "next index", "next epoch", "next seed", "folded key", "first short"],
)
def test_neighbouring_draws_are_unrelated(other) -> None:  # type: ignore[no-untyped-def]
    assert abs(correlation_sigmas(rng.uniform(keys(), 0), other())) < 4


def test_elements_of_a_field_are_unrelated_to_their_neighbours_and_to_the_next_samples() -> None:
    field = rng.normal_field(keys()[:2048], 0, (64,))
    neighbours = [(field[:, 1:], field[:, :-1]), (field[:, 4:], field[:, :-4]), (field[1:], field[:-1])]
    for a, b in [*neighbours, (field, rng.normal_field(keys()[:2048], 1, (64,)))]:
        assert abs(correlation_sigmas(a, b)) < 4
        assert abs(correlation_sigmas(a.square(), b.square())) < 4


def test_pairs_of_draws_fill_the_square_evenly() -> None:
    cells = rng.integers(keys(), 0, 32) * 32 + rng.integers(keys(), 1, 32)
    assert abs(chi_square_sigmas(cells, 1024)) < 4


GOLDEN: dict[str, object] = {
    "key": -2152535657050944081,
    "key of words": -992701273504473788,
    "bits": [721333083, 2634593102, 4088541140],
    "shorts": [
        [58996, 46990, 58530, 6775, 63970],
        [9325, 14651, 7535, 44698, 31148],
        [20088, 29673, 18421, 51013, 13585],
    ],
    "bits of a field": [[2369282296, 2016390846], [1467475370, 3174871961], [1009659103, 2748258807]],
    "order": [3, 7, 1, 5, 6, 4, 0, 2],
}


def test_bits_are_the_same_for_ever() -> None:
    assert rng.key(0) == GOLDEN["key"]
    assert rng.key(7, 1, 2) == GOLDEN["key of words"]
    some = rng.keys(7, 3, torch.tensor([0, 1, 10**12]))
    assert rng.bits(some, 5).tolist() == GOLDEN["bits"]
    assert rng.shorts_field(some, 5, (5,)).tolist() == GOLDEN["shorts"]
    assert rng.bits_field(some, 5, (2,)).tolist() == GOLDEN["bits of a field"]
    assert rng.order(7, 3, 8).tolist() == GOLDEN["order"]


@given(seed=st.integers(0, 2**63 - 1), epoch=st.integers(0, 1000), count=st.integers(0, 500))
def test_an_epochs_order_is_a_permutation(seed: int, epoch: int, count: int) -> None:
    order = rng.order(seed, epoch, count)
    assert sorted(order.tolist()) == list(range(count))


@given(seed=st.integers(0, 2**63 - 1), start=st.integers(0, 2**40), count=st.integers(2, 20), cut=st.integers(1, 19))
def test_a_samples_draws_do_not_depend_on_its_batch(seed: int, start: int, count: int, cut: int) -> None:
    indices = torch.arange(start, start + count)
    whole = rng.normal_field(rng.keys(seed, 0, indices), 2, (3, 5))
    parts = [rng.normal_field(rng.keys(seed, 0, part), 2, (3, 5)) for part in indices.split(min(cut, count))]
    assert torch.equal(whole, torch.cat(parts))


def test_normal_fields_have_the_moments_of_the_normal_distribution() -> None:
    field = rng.normal_field(keys()[:4096], 0, (256,)).double()
    count = field.numel()
    assert abs(float(field.mean())) < 4 / math.sqrt(count)
    assert abs(float(field.var()) - 1) < 4 * math.sqrt(2 / count)
    assert abs(float((field**3).mean())) < 4 * math.sqrt(15 / count)
    assert abs(float((field**4).mean()) - 3) < 0.03  # the tails end at 4.33 sigma
    assert 4 < float(field.max()) < 4.4


def test_scalar_normals_have_unit_variance() -> None:
    values = rng.normal(keys(), 0).double()
    assert abs(float(values.mean())) < 4 / math.sqrt(SAMPLES)
    assert abs(float(values.var()) - 1) < 4 * math.sqrt(2 / SAMPLES)


def test_uniforms_stay_below_one() -> None:
    values = rng.uniform_field(keys()[:1024], 0, (64,))
    assert float(values.min()) >= 0
    assert float(values.max()) < 1
    assert abs(float(values.double().mean()) - 0.5) < 4 / math.sqrt(12 * values.numel())
