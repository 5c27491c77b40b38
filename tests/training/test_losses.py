"""Losses equal their papers' formulas and other libraries', and the Jensen-Shannon loss makes views agree."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm.loss
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import expit, log_expit, log_softmax
from torchvision.ops import sigmoid_focal_loss

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
from tests.support.parameters import slow_except
from tests.support.runs import assert_same_weights, history_without_clock, the_run

JSD = ("train.consistency=jsd", "augment.policy=[basic, augmix]", "augment.mixup=0")
Array = NDArray[np.float64]


def focal_by_formula(logits: Array, targets: Array, gamma: float) -> Array:
    """Return each image's loss: the mean over its classes, as their shares, of -(1 - p)^gamma log p."""
    logs = log_softmax(logits, axis=1)
    return -(targets * (1 - np.exp(logs)) ** gamma * logs).sum(1)


def binary_focal_by_formula(logits: Array, targets: Array, gamma: float) -> Array:
    return -(
        targets * (1 - expit(logits)) ** gamma * log_expit(logits)
        + (1 - targets) * expit(logits) ** gamma * log_expit(-logits)
    )


def timms(name: str, **settings: object) -> Callable[[Array, Array], Array]:
    """Return one of timm's losses, for each image or class."""
    loss = getattr(timm.loss, name)(reduction="none", **settings)
    return lambda logits, targets: loss(torch.from_numpy(logits), torch.from_numpy(targets)).double().numpy()


# Row of LOSSES -> arguments and an independent reference for each; a new row fails until it has one.
REFERENCES: dict[str, list[tuple[dict[str, float], Callable[[Array, Array], Array]]]] = {
    "cross_entropy": [({}, lambda logits, targets: -(targets * log_softmax(logits, axis=1)).sum(1))],
    "binary_cross_entropy": [
        ({}, timms("BinaryCrossEntropy", smoothing=0)),
        ({"target_threshold": 0.2}, timms("BinaryCrossEntropy", smoothing=0, target_threshold=0.2)),
    ],
    "focal": [
        ({}, lambda logits, targets: focal_by_formula(logits, targets, 2)),
        ({"gamma": 0.5}, lambda logits, targets: focal_by_formula(logits, targets, 0.5)),
        ({"gamma": 0}, lambda logits, targets: -(targets * log_softmax(logits, axis=1)).sum(1)),
    ],
    "binary_focal": [
        ({}, lambda logits, targets: binary_focal_by_formula(logits, targets, 2)),
        ({"gamma": 0.5}, lambda logits, targets: binary_focal_by_formula(logits, targets, 0.5)),
    ],
    "asymmetric": [
        ({}, timms("AsymmetricLossMultiLabel")),
        (
            {"gamma_neg": 2, "gamma_pos": 0, "clip": 0},
            timms("AsymmetricLossMultiLabel", gamma_neg=2, gamma_pos=0, clip=0),
        ),
    ],
    "poly": [({}, timms("PolyCrossEntropy")), ({"epsilon": -1}, timms("PolyCrossEntropy", epsilon=-1))],
    "binary_poly": [({}, timms("PolyBinaryCrossEntropy"))],
    "cumulative": [({}, lambda logits, targets: cumulative_by_formula(logits, targets))],
    "mse": [({}, lambda outputs, targets: (outputs - targets) ** 2)],
}


def cumulative_by_formula(logits: Array, targets: Array) -> Array:
    """Return the sum over k of the cross-entropy of "above class k", [B]."""
    probabilities = np.exp(log_softmax(logits, axis=1))
    above = [[values[:, k + 1 :].sum(1) for k in range(4)] for values in (probabilities, targets)]
    return sum(-(t * np.log(p) + (1 - t) * np.log1p(-p)) for p, t in zip(*above, strict=True))


def drawn(seed: int, scale: float, *, soft: bool) -> tuple[Array, Array]:
    """Return logits and targets [B, 5]: one class an image, or two mixed ones."""
    generator = np.random.default_rng(seed)
    first, second = (np.eye(5)[generator.integers(0, 5, 6)] for _ in range(2))
    share = generator.random((6, 1)) if soft else np.ones((6, 1))
    return generator.normal(0, scale, (6, 5)), share * first + (1 - share) * second


@pytest.mark.parametrize("name", losses.LOSSES)
@settings(max_examples=12)
@given(seed=st.integers(0, 10_000), scale=st.floats(0.1, 4), soft=st.booleans())
def test_every_loss_equals_its_reference_for_each_image_and_on_average(
    name: str, seed: int, scale: float, soft: bool
) -> None:
    logits, targets = drawn(seed, scale, soft=soft)
    tensors = torch.from_numpy(logits).float(), torch.from_numpy(targets).float()
    for arguments, reference in REFERENCES[name]:
        expected, loss = reference(logits, targets), losses.LOSSES[name]
        assert loss(*tensors, reduction="none", **arguments).numpy() == pytest.approx(expected, rel=2e-3, abs=2e-5)
        assert loss(*tensors, **arguments).item() == pytest.approx(expected.mean(), rel=2e-3, abs=2e-5)


def test_focal_losses_equal_torchvisions_on_present_and_absent_classes() -> None:
    logits, targets = (torch.from_numpy(values).float() for values in drawn(0, 3, soft=False))
    expected = sigmoid_focal_loss(logits, targets, alpha=-1, gamma=3, reduction="mean")
    assert losses.binary_focal(logits, targets, gamma=3).item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        *((name, {}) for name in losses.LOSSES),
        ("focal", {"gamma": 0.5}),
        ("binary_focal", {"gamma": 0.1}),
        ("asymmetric", {"gamma_neg": 0.5, "gamma_pos": 0.5}),
        ("asymmetric", {"gamma_neg": 0.5, "clip": 0.0}),
    ],
)
def test_losses_and_gradients_are_finite_however_sure_and_wrong_the_network_is(
    name: str, arguments: dict[str, float], dtype: torch.dtype
) -> None:
    for size in (0.0, 5.0, 20.0, 200.0, 30_000.0):
        logits = torch.tensor([[size, -size], [-size, size], [size, size]], dtype=dtype, requires_grad=True)
        for targets in (torch.tensor([[1.0, 0.0]] * 3), torch.tensor([[0.95, 0.05]] * 3)):
            loss = losses.LOSSES[name](logits.float(), targets, **arguments)
            (gradient,) = torch.autograd.grad(loss, logits)
            assert loss.isfinite()
            assert gradient.isfinite().all()
        if size:
            (wrong,) = torch.autograd.grad(losses.LOSSES[name](logits.float(), targets, **arguments), logits)
            assert wrong[1, 0] < 0  # the class that is there, and was thought absent


def test_targets_above_a_threshold_count_as_present() -> None:
    logits, mixed = torch.zeros(1, 3), torch.tensor([[0.7, 0.3, 0.0]])
    both = losses.binary_cross_entropy(logits + 1, torch.tensor([[1.0, 1.0, 0.0]]))
    assert torch.equal(losses.binary_cross_entropy(logits + 1, mixed, target_threshold=0.2), both)


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["train.loss=focl"], ("train.loss", "'focl'", "did you mean 'focal'")),
        (["train.loss=asymmetric"], ("train.loss: asymmetric is not defined for task single_label", "poly")),
        (["competition.task=multi_label", "train.loss=cross_entropy"], ("train.loss: cross_entropy", "asymmetric")),
        (["train.loss=focal", "train.loss_args={gama: 2}"], ("train.loss_args: focal has no argument 'gama'", "gamma")),
        (["train.loss=focal", "train.loss_args.gamma=-1"], ("gamma: expected a number from 0 to 10, found -1",)),
        (["train.loss=focal", "train.loss_args.gamma=true"], ("gamma: expected a number", "found True")),
        (["train.loss=focal", "train.loss_args.gamma=two"], ("gamma: expected a number", "found 'two'")),
        (["train.loss_args.gamma=2"], ("auto has no argument 'gamma'; train.loss=focal has",)),
        (["train.loss=cross_entropy", "train.loss_args.label_smoothing=0.1"], ("no argument 'label_smoothing'",)),
        (["competition.task=multilabel", "train.loss=focal"], ("competition.task: unknown task 'multilabel'",)),
        ([*JSD, "train.loss=bce"], ("train.consistency: jsd compares softmax outputs", "train.loss=bce")),
    ],
)
def test_losses_that_do_not_fit_are_refused_before_training(
    workplace: Path, comp: Callable[..., Result], overrides: list[str], parts: tuple[str, ...]
) -> None:
    assert_refused(comp("train", "small.yaml", *overrides), *parts)
    assert not Path("runs").exists()


@pytest.mark.parametrize("loss", ["focal", "bce", "poly"])
def test_a_loss_trains_with_mixed_smoothed_targets_and_is_validated_by_its_log_loss(workplace: Path, loss: str) -> None:
    overrides = ["competition.suite.source=none", "competition.ood_validation.severities=[]", "train.epochs=1"]
    plain = train.train(configs.load("small.yaml", overrides), runs_root=Path("plain"))
    run = train.train(configs.load("small.yaml", [*overrides, f"train.loss={loss}"]))
    ours, theirs = run.history()[0], plain.history()[0]
    assert ours["train_loss"] != theirs["train_loss"]
    assert float(ours["val_loss"]) == pytest.approx(float(theirs["val_loss"]), abs=0.7)  # of the same scale
    assert f"loss: {loss}" in run.provenance()["notes"]


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


@pytest.mark.parametrize("stop_at", slow_except([1, 4, 6], 4))
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
