"""Optimizers, clipping, averages, losses, views, adaptation and fused batch norm, on the device and on the CPU."""

import itertools
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from comp.config import ModelConfig, OptimConfig, TrainConfig
from comp.config.training import LookaheadConfig
from comp.inference import adapt
from comp.inference.fuse_bn import BatchNormFuser
from comp.inference.options import PredictOptions
from comp.inference.views import VIEWS
from comp.models import averaging, zoo
from comp.models.averaging import AVERAGES
from comp.models.classifier import Classifier
from comp.runtime.device import Execution
from comp.training import losses, optimizers
from comp.training.losses import LOSSES
from comp.training.norms import NoNorms, Norms
from comp.training.optimizers import OPTIMIZERS
from comp.training.step import CLIPS, Stepper, head_of
from tests.support.images import as_images, photographs
from tests.support.on_device import Check, Values
from tests.support.on_device.compare import assert_equal, assert_on
from tests.support.pretend_device import counted

_STEPS = 3
TIMMS = ("lamb", "lion", "nadamw", "adan", "lars", "rmsproptf", "adabelief")  # some of timm's, one of a family
# Muon multiplies in bfloat16 on CUDA, and in float32 on the CPU.
_WITHIN = {"muon": 0.02}
_CPU = torch.device("cpu")


def checks() -> dict[str, Check]:
    """Return the checks by name."""
    names = (*OPTIMIZERS, *TIMMS)
    both = itertools.product(names, (False, True))
    return {
        **{f"optimizer/{name}{'+lookahead' * slow}": partial(_check_optimizer, name, slow) for name, slow in both},
        **{f"clip/{name}": partial(_check_clipping, name) for name in ("none", *CLIPS)},
        "clip/norms": partial(_check_clipping, "none", log_norms=True),
        **{f"average/{name}": partial(_check_average, name) for name in AVERAGES},
        **{f"loss/{name}": partial(_check_loss, name) for name in LOSSES},
        "loss/consistency": _check_consistency,
        **{f"view/{name}": partial(_check_views, name) for name in VIEWS},
        **{f"adapt/{name}": partial(_check_adaptation, name) for name in ("bn", *adapt.STEPS)},
        "fuse_bn": _check_fused_batch_norm,
    }


def _model(device: torch.device, name: str = "test_resnet") -> Classifier:
    config = ModelConfig(name=name)
    model = zoo.build(config, classes=4, image_shape=(3, 32, 32), mean=[0.5] * 3, std=[0.25] * 3, seed=0)
    return _execution(device).place(model)  # type: ignore[return-value]


def _execution(device: torch.device) -> Execution:
    return Execution(device=device.type, precision="fp32", channels_last=False, threads=1)


def _batches(device: torch.device) -> list[tuple[Tensor, Tensor]]:
    images, labels = as_images(photographs(8 * _STEPS)), torch.arange(8 * _STEPS) % 4
    return [(part.to(device), target.to(device)) for part, target in zip(images.split(8), labels.split(8), strict=True)]


def _train(
    device: torch.device,
    config: OptimConfig,
    *,
    network: str = "test_resnet",
    clip: str = "none",
    log_norms: bool = False,
    average: str = "none",
) -> dict[str, Any]:
    """Take a few steps; return the weights, the average and the recorded norms."""
    model = _model(device, network)
    optimizer = optimizers.for_model(model, config)
    norms = Norms(model.inner) if log_norms else NoNorms()
    stepper = Stepper(optimizer, _execution(device), norms, micro_batch=8, clip=clip, unclipped=head_of(model))
    train = TrainConfig(average=average, epochs=_STEPS, swa_epochs=_STEPS, soup_epochs=_STEPS)
    averaged = averaging.build_average(model, train, 1)
    for number, (images, labels) in enumerate(_batches(device)):

        def compute(part: slice, images: Tensor = images, labels: Tensor = labels) -> tuple[Tensor, Tensor]:
            logits = model(images[part])
            return torch.nn.functional.cross_entropy(logits, labels[part]), logits

        stepper.take(len(images), number, compute)
        averaged.step()
        averaged.end_epoch(number + 1, float(number))
    final = averaged.final(lambda state: float(len(state)))
    return {
        "weights": dict(model.state_dict()),
        "averaged": dict(final or {}),
        "norms": torch.tensor([list(_numbers(row)) for row in norms.rows(1)]) if log_norms else [],
    }


def _numbers(row: Mapping[str, Any]) -> list[float]:
    return [float(value) for value in row.values() if not isinstance(value, str)]


def _compare_trainings(device: torch.device, within: float, **settings: Any) -> Values:
    with counted() as counts:
        ours = _train(device, **settings)
    assert_on(ours["weights"], device)
    plain = _train(_CPU, **settings)
    for name in ("weights", "averaged", "norms"):
        if len(plain[name]):
            assert_equal(ours[name], plain[name], within=within)
    return counts.to_json()


def _check_optimizer(name: str, slow: bool, device: torch.device) -> Values:
    config = OptimConfig(name=name, lr=1e-2, lookahead=LookaheadConfig(k=2 if slow else 0))
    return _compare_trainings(device, _WITHIN.get(name, 0.0), config=config, network="simple_cnn")


def _check_clipping(name: str, device: torch.device, log_norms: bool = False) -> Values:
    within = 1e-6 if log_norms and device.type == "mps" else 0.0  # which sums norms in float32
    return _compare_trainings(device, within, config=OptimConfig(name="sgd", lr=0.1), clip=name, log_norms=log_norms)


def _check_average(name: str, device: torch.device) -> Values:
    return _compare_trainings(device, 0.0, config=OptimConfig(name="sgd", lr=0.1), average=name)


def _check_loss(name: str, device: torch.device) -> Values:
    logits = torch.linspace(-3, 3, 32).view(8, 4)
    targets = torch.eye(4)[torch.arange(8) % 4] * 0.9 + 0.025
    counts = _compare(device, lambda place: _loss_and_gradient(LOSSES[name], logits.to(place), targets.to(place)))
    assert not counts["waits"], f"the host waits: {counts['waits_at']}"
    return counts


def _loss_and_gradient(loss: Callable[[Tensor, Tensor], Tensor], logits: Tensor, targets: Tensor) -> list[Tensor]:
    logits.requires_grad_(True)
    value = loss(logits, targets)
    return [value, *torch.autograd.grad(value, logits)]


def _check_consistency(device: torch.device) -> Values:
    logits, targets = torch.linspace(-3, 3, 96).view(24, 4), torch.eye(4)[torch.arange(8) % 4]
    loss = partial(losses.consistency_loss, LOSSES["cross_entropy"], views=losses.VIEWS, weight=12.0)
    return _compare(device, lambda place: _loss_and_gradient(loss, logits.to(place), targets.to(place)))


def _check_views(name: str, device: torch.device) -> Values:
    images = as_images(photographs(4))
    return _compare(device, lambda place: [view.transform(images.to(place)) for view in VIEWS[name]])


def _check_adaptation(name: str, device: torch.device) -> Values:
    images, options = as_images(photographs(24)), PredictOptions(adapt=name)

    def predict(place: torch.device) -> list[Tensor]:
        model = _model(place).eval()
        with (
            adapt.adapted(model, lambda: iter(images.to(place).split(12)), options, _execution(place)),
            torch.inference_mode(),
        ):
            adapted = model(images.to(place))
        with torch.inference_mode():
            return [adapted, model(images.to(place))]

    return _compare(device, predict)


def _check_fused_batch_norm(device: torch.device) -> Values:
    images = as_images(photographs(8))

    def predict(place: torch.device) -> Tensor:
        model, batch = _model(place).eval(), images.to(place)
        with torch.inference_mode():
            fused = BatchNormFuser(changes=False).fuse(model, batch)
            assert fused is not model, "nothing was fused"
            return fused(batch)  # type: ignore[no-any-return]

    return _compare(device, predict)


def _compare(device: torch.device, compute: Callable[[torch.device], Any]) -> Values:
    """Compare what a function computes on the device with the CPU's; return the counts."""
    with counted() as counts:
        ours = compute(device)
    assert_on(ours, device)
    assert_equal(ours, compute(_CPU))
    return counts.to_json()
