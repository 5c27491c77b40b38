"""Predictions of an image's views are made to agree: AugMix's Jensen-Shannon loss, and the views it compares."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import log_softmax

from comp import config as configs
from comp.augment import engine
from comp.augment.policies import resolve
from comp.results import runs
from comp.runtime import rng
from comp.runtime.errors import Interrupted
from comp.training import losses
from comp.workflows import train
from tests.support.commands import Result, assert_refused, interrupt_at
from tests.support.configs import small_config, write_arrays, write_config
from tests.support.images import pictures
from tests.support.runs import assert_same_weights, history_without_clock, the_run

JSD = ("train.consistency=jsd", "augment.policy=[basic, augmix]", "augment.mixup=0")


def jensen_shannon(logits: np.ndarray) -> float:  # type: ignore[type-arg]
    """Return the mean divergence of [views, B, classes], by the formula: entropy of the mean less mean entropy."""
    logs = log_softmax(logits.astype(np.float64), axis=2)
    mean = np.exp(logs).mean(0)
    entropy_of_mean = -(mean * np.log(mean)).sum(1)
    mean_entropy = -(np.exp(logs) * logs).sum(2).mean(0)
    return float((entropy_of_mean - mean_entropy).mean())


@given(seed=st.integers(0, 10_000), views=st.integers(2, 4), count=st.integers(1, 7), scale=st.floats(0.1, 3))
def test_the_divergence_is_the_entropy_of_the_mean_less_the_mean_entropy(
    seed: int, views: int, count: int, scale: float
) -> None:
    logits = np.random.default_rng(seed).normal(0, scale, (views, count, 5)).astype(np.float32)
    found = losses.jensen_shannon(list(torch.from_numpy(logits))).item()
    assert found == pytest.approx(jensen_shannon(logits), abs=2e-5)
    assert -1e-6 <= found <= np.log(views)


def test_views_that_agree_do_not_diverge_and_opposite_ones_by_the_log_of_two() -> None:
    logits = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    assert losses.jensen_shannon([logits] * 3).item() == pytest.approx(0, abs=1e-6)
    sure = torch.tensor([[50.0, 0.0]])
    assert losses.jensen_shannon([sure, sure.flip(1)]).item() == pytest.approx(np.log(2), abs=1e-4)


def test_the_loss_is_the_clean_views_cross_entropy_plus_the_weighted_divergence() -> None:
    cross_entropy = losses.LOSSES["cross_entropy"]
    logits = torch.randn(3 * 5, 4, generator=torch.Generator().manual_seed(1))
    targets = torch.nn.functional.one_hot(torch.tensor([0, 1, 2, 3, 1]), 4).float()
    clean = -(log_softmax(logits[:5].double().numpy(), axis=1) * targets.numpy()).sum(1).mean()
    expected = clean + 12 * jensen_shannon(logits.view(3, 5, 4).numpy())
    assert losses.consistency_loss(cross_entropy, logits, targets, views=3, weight=12).item() == pytest.approx(
        expected, abs=1e-4
    )
    assert losses.consistency_loss(cross_entropy, logits[:5], targets, views=1, weight=12).item() == pytest.approx(
        clean, abs=1e-5
    )


def test_every_view_gets_a_gradient_even_where_a_class_has_no_probability_left() -> None:
    for scale in (1.0, 200.0):
        logits = (scale * torch.randn(6, 4, generator=torch.Generator().manual_seed(2))).requires_grad_()
        losses.jensen_shannon(list(logits.chunk(3))).backward()  # type: ignore[no-untyped-call]
        assert logits.grad is not None
        assert logits.grad.isfinite().all()
        assert scale > 1 or (logits.grad.abs().sum(1) > 1e-4).all()


@pytest.mark.parametrize("names", [["augmix"], ["basic", "augmix"], ["mirrored_crop", "color_jitter"]])
def test_the_clean_view_is_moved_at_most_and_the_others_are_its_augmentations(names: list[str]) -> None:
    images, indices = pictures(33), torch.arange(33)
    keys, flip_mask = rng.keys(0, 1, indices), engine.alternating_flip_mask(0, 1, indices)
    plan = losses.plan_views(resolve(names), keys[None], (3, 32, 32), flip_mask=flip_mask[None])
    clean, first, second = plan.run(images, 0).chunk(3)
    base = resolve(names[:-1]) if len(names) > 1 else resolve("none")
    assert torch.equal(clean, engine.augment(images, base, keys, flip_mask=flip_mask))
    for one, other in ((clean, first), (clean, second), (first, second)):
        assert (one != other).flatten(1).any(1).float().mean() > 0.8
    single = losses.plan_views(resolve(names), keys[None, 7:8], (3, 32, 32), flip_mask=flip_mask[None, 7:8])
    alone = single.run(images[7:8], 0)
    assert torch.equal(alone, torch.stack((clean[7], first[7], second[7])))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> runs.Run:
    """Return an uninterrupted run of the workplace's data."""
    folder = tmp_path_factory.mktemp("whole")
    path = write_config(folder / "small.yaml", small_config(write_arrays(folder / "data")))
    return train.train(configs.load(path, list(JSD)), runs_root=folder / "runs")


@pytest.mark.parametrize("stop_at", [1, 4, 6])
def test_a_consistent_run_stopped_at_any_step_ends_with_the_same_bits(
    workplace: Path, whole: runs.Run, stop_at: int
) -> None:
    with pytest.raises(Interrupted):
        train.train(configs.load("small.yaml", list(JSD)), runs_root=Path("parts"), progress=interrupt_at(stop_at))
    resumed = train.resume(the_run(Path("parts")))
    assert_same_weights(whole, resumed)
    assert history_without_clock(whole) == history_without_clock(resumed)


def test_the_divergence_counts_by_its_weight(workplace: Path) -> None:
    found = []
    for weight in (0, 12):
        config = configs.load("small.yaml", [*JSD, f"train.consistency_weight={weight}", "train.epochs=1"])
        found.append(train.train(config, runs_root=Path(str(weight))).history()[0]["train_loss"])
    assert float(found[1]) > float(found[0])


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("augment.mixup=0.4", ("train.consistency: jsd", "augment.mixup=0.4", "set augment.mixup=0")),
        ("augment.cutmix=1", ("augment.cutmix=1",)),
        ("augment.policy=basic", ("train.consistency: jsd", "augment.policy=[basic, augmix]")),
        ("train.consistency=kl", ("train.consistency", "'jsd'")),
    ],
)
def test_what_views_cannot_go_with_is_refused(
    workplace: Path, comp: Callable[..., Result], override: str, parts: tuple[str, ...]
) -> None:
    assert_refused(comp("train", "small.yaml", *JSD, override), *parts)
    assert not Path("runs").exists()
