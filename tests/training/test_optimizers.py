"""Optimizers by name: they descend, take the rates their groups are given, and are stored and restored whole."""

from pathlib import Path
from typing import Any

import pytest
import timm.optim
import torch
from torch import Tensor, nn

from comp.config import LookaheadConfig, ModelConfig, OptimConfig
from comp.models import zoo
from comp.models.classifier import Classifier
from comp.results.runs import Run
from comp.runtime.errors import ConfigError
from comp.training import checkpoint
from comp.training import optimizers as optim
from comp.training.muon import Muon, orthogonalize
from comp.training.optimizers import OPTIMIZERS, Lookahead
from comp.training.schedules import Plan

# A rate for each at which a few steps get somewhere.
RATES = {"adamw": 0.01, "adam": 0.01, "sgd": 0.1, "muon": 0.05}
OF_TIMM = ("lion", "lamb", "nadamw", "rmsproptf", "nmuon", "adan", "sgdp", "adopt", "lars")


def small_model(name: str = "simple_cnn", **args: Any) -> Classifier:
    """Return a small network for 16-px images of 4 classes."""
    section = ModelConfig(name=name, args=args or {"depth": 2})
    return zoo.build(section, classes=4, image_shape=(3, 16, 16), mean=[0.5] * 3, std=[0.25] * 3, seed=3)


def batch() -> tuple[Tensor, Tensor]:
    """Return images that a class tints."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(32) % 4
    tint = torch.tensor([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0]])[labels][:, :, None, None]
    return 0.5 * tint + 0.5 * torch.rand(32, 3, 16, 16, generator=generator), labels


def take(model: Classifier, optimizer: torch.optim.Optimizer, config: OptimConfig, steps: range) -> list[float]:
    """Take steps on one batch; return the losses before each."""
    images, labels = batch()
    model.train()
    losses = []
    for step in steps:
        optim.set_rates(optimizer, step, Plan(12, 4), optim.schedule_of(config))
        loss = nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def settings(name: str, lookahead: int = 0) -> OptimConfig:
    rate = RATES.get(name, 0.01)
    return OptimConfig(name=name, lr=rate, schedule="constant", lookahead=LookaheadConfig(k=lookahead))


@pytest.mark.parametrize("name", [*OPTIMIZERS, *OF_TIMM])
@pytest.mark.parametrize("lookahead", [0, 3])
def test_every_optimizer_lowers_the_loss_and_goes_on_from_its_checkpoint(
    name: str, lookahead: int, tmp_path: Path
) -> None:
    config = settings(name, lookahead)
    model = small_model()
    optimizer = optim.for_model(model, config)
    losses = take(model, optimizer, config, range(7))
    assert losses[-1] < losses[0]
    again = small_model()
    restored = optim.for_model(again, config)
    checkpoint.save(Run(tmp_path), {"model": model, "optimizer": optimizer}, checkpoint.TrainState())
    checkpoint.load(tmp_path / "state.pt", {"model": again, "optimizer": restored}, torch.device("cpu"))
    assert take(again, restored, config, range(7, 12)) == take(model, optimizer, config, range(7, 12))
    for mine, theirs in zip(again.state_dict().values(), model.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_rate_follows_the_scale_of_its_group(name: str) -> None:
    config = OptimConfig(name=name, lr=0.5, aux_lr=0.5, schedule="constant", multipliers={"body": 0.5})
    optimizer = optim.for_model(small_model(), config)
    optim.set_rates(optimizer, 0, Plan(10, 1), optim.schedule_of(config))
    rates = {str(group["name"]): group["lr"] for group in optimizer.param_groups}
    assert {0.5, 0.25} == set(rates.values())
    assert all(rate == (0.25 if "x0.5" in name else 0.5) for name, rate in rates.items())


def test_sgd_takes_the_steps_of_torch() -> None:
    config = OptimConfig(name="sgd", lr=0.1, momentum=0.8, weight_decay=0.0, schedule="constant")
    mine, reference = small_model(), small_model()
    take(mine, optim.for_model(mine, config), config, range(5))
    images, labels = batch()
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.1, momentum=0.8, nesterov=True)
    reference.train()
    for _ in range(5):
        optimizer.zero_grad()
        nn.functional.cross_entropy(reference(images), labels).backward()
        optimizer.step()
    for ours, theirs in zip(mine.parameters(), reference.parameters(), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize("shape", [(8, 40), (40, 8), (16, 16)])
def test_newton_schulz_is_the_published_iteration(shape: tuple[int, int]) -> None:
    matrix = torch.randn(2, *shape, generator=torch.Generator().manual_seed(1))
    for ours, one in zip(orthogonalize(matrix, 3), matrix.double(), strict=True):
        # The polynomial a s + b s^3 + c s^5 works on singular values and leaves directions alone.
        left, values, right = torch.linalg.svd(one, full_matrices=False)
        values = values / one.norm()
        for _ in range(3):
            values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
        expected = left @ torch.diag(values) @ right
        assert (ours.double() - expected).norm() / expected.norm() < 0.03  # bfloat16 where the machine has it


def reference_muon(weight: Tensor, gradients: list[Tensor], lr: float, momentum: float) -> Tensor:
    """Return a kernel after airbench's steps, by singular values in float64."""
    weight, velocity = weight.double(), torch.zeros_like(weight).double()
    for gradient in gradients:
        velocity = momentum * velocity + gradient.double()
        left, values, right = torch.linalg.svd((gradient + momentum * velocity).flatten(1), full_matrices=False)
        values = values / values.norm()
        for _ in range(3):
            values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
        weight = weight * len(weight) ** 0.5 / weight.norm()
        weight = weight - lr * (left @ torch.diag(values) @ right).reshape(weight.shape)
    return weight


def test_muon_takes_the_steps_of_its_definition() -> None:
    generator = torch.Generator().manual_seed(2)
    kernel = nn.Parameter(torch.randn(6, 4, 3, 3, generator=generator))
    gradients = [torch.randn(6, 4, 3, 3, generator=generator) for _ in range(4)]
    expected = reference_muon(kernel.detach(), gradients, lr=0.1, momentum=0.6)
    optimizer = Muon([{"params": [kernel]}], lr=0.1, momentum=0.6)
    for gradient in gradients:
        kernel.grad = gradient
        optimizer.step()
    assert (kernel - expected).norm() / expected.norm() < 0.01


def muon_by_parameter(
    weights: list[Tensor], buffers: list[Tensor], gradients: list[Tensor], lr: float, decay: float, momentum: float
) -> None:
    """Take Muon's step of its plain form, in place: one parameter after the other, each shape by itself."""
    by_shape: dict[torch.Size, list[tuple[Tensor, Tensor]]] = {}
    for weight, buffer, gradient in zip(weights, buffers, gradients, strict=True):
        buffer.mul_(momentum).add_(gradient)
        update = gradient.add(buffer, alpha=momentum)
        by_shape.setdefault(weight.shape, []).append((weight, update.reshape(len(update), -1)))
    for pairs in by_shape.values():
        directions = orthogonalize(torch.stack([matrix for _, matrix in pairs]), 3)
        for (weight, _), direction in zip(pairs, directions, strict=True):
            weight.mul_(len(weight) ** 0.5 / weight.norm().clamp_min(1e-7))
            weight.mul_(1 - lr * decay)
            weight.add_(direction.reshape(weight.shape), alpha=-lr)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_muon_by_lists_has_the_bits_of_one_parameter_after_the_other(layout: torch.memory_format) -> None:
    generator = torch.Generator().manual_seed(4)
    # Wide, tall and square, some of one shorter side; a batch of one; depthwise and pointwise kernels.
    shapes = [
        (16, 8, 3, 3),
        (32, 16, 1, 1),
        (16, 8, 3, 3),
        (8, 16, 3, 3),
        (64, 1, 3, 3),
        (320, 96, 1, 1),
        (16, 16, 1, 1),
    ]

    def drawn() -> list[Tensor]:
        tensors = [torch.randn(shape, generator=generator) for shape in shapes]
        return [tensor.to(memory_format=layout) if tensor.ndim == 4 else tensor for tensor in tensors]

    weights = drawn()
    buffers = [torch.zeros_like(weight) for weight in weights]
    trained = [nn.Parameter(weight.clone()) for weight in weights]
    optimizer = Muon([{"params": trained}], lr=0.05, weight_decay=0.1, momentum=0.8)
    for _ in range(3):
        gradients = drawn()
        muon_by_parameter(weights, buffers, gradients, lr=0.05, decay=0.1, momentum=0.8)
        for parameter, gradient in zip(trained, gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()
    for parameter, weight, buffer in zip(trained, weights, buffers, strict=True):
        assert torch.equal(parameter, weight)
        assert torch.equal(optimizer.state[parameter]["momentum_buffer"], buffer)


@pytest.mark.parametrize("theirs", ["torch", "timm"])
def test_muon_agrees_with_other_implementations_on_wide_matrices(theirs: str) -> None:
    generator = torch.Generator().manual_seed(3)
    first = torch.randn(8, 20, generator=generator)
    gradients = [torch.randn(8, 20, generator=generator) for _ in range(4)]
    ours, other = nn.Parameter(first.clone()), nn.Parameter(first.clone())
    given: dict[str, Any] = {"lr": 0.05, "weight_decay": 0.1, "momentum": 0.8, "nesterov": True, "ns_steps": 5}
    optimizers: list[torch.optim.Optimizer] = [Muon([{"params": [ours]}], normalize_weights=False, **given)]
    if theirs == "torch":
        optimizers.append(torch.optim.Muon([other], **given))
    else:
        original = {"ns_coefficients": "original", "adjust_lr_fn": "original"}
        optimizers.append(timm.optim.create_optimizer_v2([other], "muon", **given, **original))
    for gradient in gradients:
        for weight, optimizer in zip((ours, other), optimizers, strict=True):
            weight.grad = gradient.clone()
            optimizer.step()
    moved = (other - first).norm()
    assert (ours - other).norm() / moved < 0.02


def test_muon_keeps_filter_banks_at_their_norm_and_moves_the_rest_by_sgd() -> None:
    config = OptimConfig(
        name="muon",
        lr=0.1,
        momentum=0.6,
        aux_lr=0.3,
        aux_momentum=0.85,
        aux_decay=0.01,
        decay_all=True,
        schedule="constant",
        multipliers={"classifier": 2.0},
    )
    model = small_model("fastnet", size="S")
    before = {name: parameter.detach().clone() for name, parameter in model.inner.named_parameters()}
    optimizer = optim.for_model(model, config)
    take(model, optimizer, config, range(1))
    gradients = {name: parameter.grad for name, parameter in model.inner.named_parameters()}
    for name, parameter in model.inner.named_parameters():
        gradient = gradients[name]
        if gradient is None:
            assert torch.equal(parameter, before[name])  # whitening filters and norms' scales: never trained
        elif parameter.ndim == 4:
            rescaled = before[name] * len(parameter) ** 0.5 / before[name].norm()
            singular = torch.linalg.svdvals((rescaled - parameter).flatten(1)) / 0.1
            assert singular.max() < 1.3
        else:
            rate = 0.6 if name.startswith("classifier") else 0.3
            step = gradient * 1.85 + before[name] * (0.01 / rate) * 1.85  # Nesterov's first step
            assert torch.allclose(parameter, before[name] - rate * step, atol=1e-6)


def test_a_block_that_ends_early_has_its_own_schedule_and_then_rests() -> None:
    config = OptimConfig(
        name="sgd", lr=0.1, schedule="linear", warmup=0.0, final_factor=0.0, ends={"body.0": 1}, weight_decay=0.1
    )
    model = small_model("fastnet", size="S")
    optimizer = optim.for_model(model, config)
    (early,) = [group for group in optimizer.param_groups if group["ends"]]
    rates = []
    for step in range(6):
        optim.set_rates(optimizer, step, Plan(12, 4), optim.schedule_of(config))
        rates.append(early["lr"])
    assert rates == pytest.approx([0.1, 0.075, 0.05, 0.025, 0, 0])
    optim.freeze_finished_groups(optimizer, 1)
    assert all(parameter.requires_grad for parameter in early["params"])
    optim.freeze_finished_groups(optimizer, 2)
    before = [parameter.detach().clone() for parameter in early["params"]]
    take(model, optimizer, config, range(4, 8))
    assert all(torch.equal(*pair) for pair in zip(before, early["params"], strict=True))
    assert all(parameter.grad is None for parameter in early["params"])


@pytest.mark.parametrize("nesterov", [True, False])
def test_sgd_takes_parameters_that_begin_later_as_those_that_began_with_it(nesterov: bool) -> None:
    early, late, alone = (nn.Parameter(torch.ones(2, 2)) for _ in range(3))
    together = OPTIMIZERS["sgd"]([{"params": [early, late]}], {"nesterov": nesterov}, lr=0.1, momentum=0.9)
    early.grad = torch.ones(2, 2)
    together.step()
    reference = torch.optim.SGD([alone], lr=0.1, momentum=0.9, nesterov=nesterov)
    for _ in range(3):
        for parameter in (early, late, alone):
            parameter.grad = torch.full((2, 2), 2.0)
        together.step()
        reference.step()
        assert torch.allclose(late, alone)


@pytest.mark.parametrize(
    ("name", "lookahead"),
    [
        *((name, 0) for name in OPTIMIZERS),
        *(pytest.param(name, 2, marks=pytest.mark.slow) for name in (*OPTIMIZERS, *OF_TIMM)),  # 10 s together
        *(pytest.param(name, 0, marks=pytest.mark.slow) for name in OF_TIMM),
    ],
)
def test_parameters_that_thaw_later_join_in_their_groups_and_go_on_from_a_checkpoint(
    name: str, lookahead: int, tmp_path: Path
) -> None:
    config = settings(name, lookahead)

    def frozen() -> tuple[Classifier, torch.optim.Optimizer, list[nn.Parameter]]:
        model = small_model()
        late = [parameter for name, parameter in model.inner.named_parameters() if name.startswith("body.0")]
        for parameter in late:
            parameter.requires_grad = False
        optimizer = optim.for_model(model, config)
        groups = [group for group in optimizer.param_groups if any(p in set(late) for p in group["params"])]
        assert len(groups) > 1  # kernels and the rest
        assert all(any(p not in set(late) for p in group["params"]) for group in groups)  # beside others
        return model, optimizer, late

    model, optimizer, late = frozen()
    before = [parameter.detach().clone() for parameter in late]
    take(model, optimizer, config, range(2))
    assert all(torch.equal(*pair) for pair in zip(before, late, strict=True))
    for stop in (2, 5):  # a resume before they thaw, and one after
        for parameter in late:
            parameter.requires_grad = stop > 2
        take(model, optimizer, config, range(2, stop))
        again, restored, late_again = frozen()
        checkpoint.save(Run(tmp_path), {"model": model, "optimizer": optimizer}, checkpoint.TrainState())
        checkpoint.load(tmp_path / "state.pt", {"model": again, "optimizer": restored}, torch.device("cpu"))
        for parameter in (*late, *late_again):
            parameter.requires_grad = True
        losses = take(model, optimizer, config, range(stop, stop + 3))
        assert take(again, restored, config, range(stop, stop + 3)) == losses
        for mine, theirs in zip(again.state_dict().values(), model.state_dict().values(), strict=True):
            assert torch.equal(mine, theirs)
    assert not any(torch.equal(*pair) for pair in zip(before, late, strict=True))
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_lookahead_interpolates_every_k_steps() -> None:
    weight = nn.Parameter(torch.tensor([1.0]))
    optimizer = Lookahead(torch.optim.SGD([weight], lr=0.1), k=2, alpha=0.5)
    seen = []
    for _ in range(4):
        weight.grad = torch.ones(1)
        optimizer.step()
        seen.append(weight.item())
    assert seen == pytest.approx([0.9, 0.9, 0.8, 0.8])  # 1 -> .9 -> .8, halfway back: .9 -> .8 -> .7, halfway: .8


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "adamx"}, r"optim.name.*'adamx'.*'adamax'"),
        ({"name": "adahessian"}, "optim.name: adahessian"),
        ({"name": "fusedlamb"}, "fusedlamb"),
        ({"name": "muon", "args": {"ns_stepz": 5}}, r"optim.args.*'ns_stepz'.*'ns_steps'"),
        ({"name": "muon", "args": {"ns_steps": 0}}, "1 to 20"),
        ({"args": {"lr": 1.0}}, r"optim.args.lr: .*optim.lr"),
        ({"args": {"eps": -1.0}}, "epsilon"),
        ({"name": "lion", "args": {"betas": [2.0, 0.9]}}, "beta"),
        ({"schedule": "onecicle"}, "optim.schedule.*'onecycle'"),
    ],
)
def test_a_wrong_optimizer_is_refused_before_anything_is_built(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        optim.check_optimizer(OptimConfig(**values))
