"""Kernels that a step of ResNet-18 starts on an accelerator, counted as operators on the CPU, where they cost nothing.

Operators on lists (`_foreach_...`) and fused ones count once. On CUDA a list takes a few kernels, more where its
lists hold tensors of unequal shapes, as where `_foreach_mul_` takes a factor on the device for each tensor.
"""

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from timm.utils.agc import adaptive_clip_grad
from torch.utils._python_dispatch import TorchDispatchMode

from comp.config import LookaheadConfig, ModelConfig, OptimConfig, TrainConfig
from comp.models import averaging, zoo
from comp.models.classifier import Classifier
from comp.training import optimizers
from comp.training.clipping import clip_adaptively
from comp.training.norms import Norms
from comp.training.schedules import Plan


class Counting(TorchDispatchMode):
    """Counts operators that compute: views and empty tensors start no kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.launches: Counter[str] = Counter()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and importing the compiler takes four seconds

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.partition("::")[2]
        if not (func.is_view or name.startswith(("empty", "detach", "_unsafe_view", "_record"))):
            self.launches[name] += 1
        return func(*args, **(kwargs or {}))


def launches(work: Callable[[], object]) -> int:
    """Return the number of kernels of work's second run: the first one creates states."""
    work()
    with Counting() as counting:
        work()
    return counting.launches.total()


def resnet18() -> Classifier:
    """Return the network with a gradient for each parameter."""
    section = ModelConfig(name="resnet18", stem="cifar")
    model = zoo.build(section, classes=10, image_shape=(3, 32, 32), mean=[0.5] * 3, std=[0.25] * 3, seed=0)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    return model


@pytest.fixture(scope="module")
def model() -> Classifier:
    return resnet18()


@pytest.mark.parametrize(
    ("name", "lookahead", "most"),
    [("sgd", 0, 2), ("sgd", 1, 4), ("adam", 0, 4), ("adamw", 0, 4), ("muon", 0, 150), ("muon", 1, 152)],
)
def test_an_optimizer_starts_few_kernels(model: Classifier, name: str, lookahead: int, most: int) -> None:
    config = OptimConfig(name=name, lr=1e-3, schedule="constant", lookahead=LookaheadConfig(k=lookahead))
    optimizer = optimizers.for_model(model, config)
    schedule = optimizers.schedule_of(config)

    def take() -> None:
        optimizers.set_rates(optimizer, 0, Plan(10, 5), schedule)
        optimizer.step()

    assert launches(take) <= most


def test_adaptive_clipping_has_the_bits_of_timms_and_starts_a_quarter_of_the_kernels(model: Classifier) -> None:
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    clipped = []
    for clip in (clip_adaptively, adaptive_clip_grad):
        for number, (name, parameter) in enumerate(model.named_parameters()):
            scale = 10.0 ** (number % 5 - 3)  # some units above their limits, some below
            parameter.grad = gradients[name] * scale
        next(model.parameters()).grad = None
        clip(list(model.parameters()), 0.01)
        clipped.append([parameter.grad for parameter in model.parameters() if parameter.grad is not None])
    assert all(torch.equal(*pair) for pair in zip(*clipped, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(clipped[0], list(gradients.values())[1:], strict=True))
    ours, theirs = (
        launches(partial(clip, list(model.parameters()), 0.01)) for clip in (clip_adaptively, adaptive_clip_grad)
    )
    assert 4 * ours <= theirs
    for name, parameter in model.named_parameters():
        parameter.grad = gradients[name]


def test_averages_and_norms_start_few_kernels(model: Classifier) -> None:
    average = averaging.build_average(model, TrainConfig(average="ema"), 10)
    assert launches(average.step) <= 2
    assert launches(Norms(model.inner).add_step) <= 16
