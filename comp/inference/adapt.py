"""Test-time adaptation: adapt a network to unlabelled images, and restore its weights afterwards.

`bn`: batch-norm statistics of the block, blended with those of training (Nado et al. 2020, arXiv:2006.10963; Schneider
et al. 2020, arXiv:2006.16971). `tent`: then one pass of steps on the normalisation layers' scales and shifts that
minimise the predictions' entropy (Wang et al. 2021, "Tent", arXiv:2006.10726), fresh for each block and rolled back if
the network collapses onto a few classes. `roid`: likewise, by the steps of `comp.inference.roid`. All are transductive:
an image's prediction depends on the images beside it.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from comp.inference import roid
from comp.inference.options import PredictOptions
from comp.models.classifier import Classifier
from comp.runtime.device import Execution
from comp.runtime.memory import MicroBatch

# Batch size of adaptation. Fixed, so that results do not depend on the prediction's batch size; smaller blocks are one
# batch, as in training. Where memory runs out, a batch is computed in parts, with the statistics and the gradients of
# the whole.
BATCH_IMAGES = 500

_TENT_RATE = 1e-3  # Adam's, the paper's on CIFAR
_FEWEST_CLASSES = 0.75  # relative to the number before; fewer classes in use afterwards is a collapse

_NORMS = (_BatchNorm, nn.LayerNorm, nn.GroupNorm)

Batches = Callable[[], Iterator[Tensor]]


def batch_norms(model: nn.Module) -> list[_BatchNorm]:
    """Return batch norm layers with running statistics."""
    return [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]


def count_adaptable_layers(model: nn.Module, adapt: str) -> int:
    """Return how many layers `adapt` (`none`, `bn` or a row of STEPS) would change; 0: no effect."""
    if adapt == "none":
        return 0
    affine = {name.rpartition(".")[0] for name in _affines(model)} if adapt in STEPS else set()
    layers = {id(layer) for layer in batch_norms(model)}
    statistics = {name for name, module in model.named_modules() if id(module) in layers}
    return len(affine | statistics)


def _affines(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the trainable scales and shifts of normalisation layers by name."""
    excluded = {f"inner.{name}" for name in model.non_trainable} if isinstance(model, Classifier) else set()
    layers = {name for name, module in model.named_modules() if isinstance(module, _NORMS)}
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if name.rpartition(".")[0] in layers and name not in excluded
    }


@dataclass
class _Moments:
    """Running mean and variance over batches (Chan, Golub and LeVeque 1979)."""

    count: int = 0
    mean: Tensor = field(default_factory=lambda: torch.zeros(1))
    squares: Tensor = field(default_factory=lambda: torch.zeros(1))

    def add(self, count: int, mean: Tensor, variance: Tensor) -> None:
        """Add a batch's mean and variance [C] over `count` values per channel."""
        if not self.count:
            self.count, self.mean, self.squares = count, mean, variance * count
            return
        total = self.count + count
        delta = mean - self.mean
        self.squares = self.squares + variance * count + delta.square() * (self.count * count / total)
        self.mean = self.mean + delta * (count / total)
        self.count = total


@dataclass(frozen=True)
class Outcome:
    """The outcome of an adaptation.

    Attributes:
        rolled_back: whether steps were undone because the network collapsed.
        forwards: images in all forward passes; one with gradients counts three times, as it is gone through backwards,
            which costs about two.
    """

    rolled_back: bool = False
    forwards: int = 0


@contextlib.contextmanager
def _counted_forwards(model: nn.Module) -> Iterator[list[int]]:
    """Context manager: a list to which each forward pass adds what `Outcome.forwards` counts."""
    counts: list[int] = []

    def count(_model: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        counts.append(len(inputs[0]) * (3 if torch.is_grad_enabled() else 1))

    hook = model.register_forward_pre_hook(count)
    try:
        yield counts
    finally:
        hook.remove()


@contextlib.contextmanager
def adapted(
    model: nn.Module,
    batches: Batches,
    variant: PredictOptions,
    execution: Execution,
    micro_batch: MicroBatch | None = None,
) -> Iterator[Outcome]:
    """Context manager: adapt a model in evaluation mode to images; restore it on exit.

    Args:
        model: images [B, C, H, W] uint8 -> logits; placed by `execution`.
        batches: each call yields the images again, on the device, at most `BATCH_IMAGES` at a time.
        variant: the method and alpha.
        execution: precision and layout.
        micro_batch: what fitted earlier adaptations of this model; None: not known.

    Raises:
        OutOfMemoryError: not even one image fits.
    """
    if variant.adapt == "none":
        yield Outcome()
        return
    before, micro_batch = _state(model), micro_batch or MicroBatch(BATCH_IMAGES)
    try:
        with _counted_forwards(model) as forwards:
            _blend_statistics(model, batches, variant.alpha, execution, micro_batch)
            kept = variant.adapt not in STEPS or _adapt_affines(model, batches, variant, execution, before, micro_batch)
        yield Outcome(rolled_back=not kept, forwards=sum(forwards))
    finally:
        _restore(model, before)


def _state(model: nn.Module) -> dict[str, Tensor]:
    """Return a copy of all tensors that adaptation changes, by name."""
    state: dict[str, Tensor] = {name: parameter.detach().clone() for name, parameter in _affines(model).items()}
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and module.running_mean is not None:
            state[f"{name}.running_mean"] = module.running_mean.clone()
            state[f"{name}.running_var"] = _variance(module).clone()
    return state


@torch.no_grad()
def _restore(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, value in state.items():
        tensors[name].copy_(value)


@dataclass(frozen=True)
class PredictionSummary:
    """Statistics of predictions without labels.

    Attributes:
        entropy: mean over the images, in nats.
        classes: effective number of predicted classes: the exponential of the histogram's entropy.
    """

    entropy: float
    classes: float


def collapsed(before: PredictionSummary, after: PredictionSummary) -> bool:
    """Whether steps failed: entropy rose, or far fewer classes are predicted."""
    return not (after.entropy <= before.entropy and after.classes >= _FEWEST_CLASSES * before.classes)


@torch.no_grad()
def _summarise(model: nn.Module, batches: Batches, execution: Execution, micro_batch: MicroBatch) -> PredictionSummary:
    """Predict the images and summarise the predictions."""
    entropy, counts, total = 0.0, torch.zeros(0), 0

    def predicted(images: Tensor, part: slice) -> Tensor:
        with execution.autocast():
            return model(images[part]).float()  # type: ignore[no-any-return]

    for images in batches():
        for logits in micro_batch.parts(len(images), partial(predicted, images)):
            votes = torch.bincount(logits.argmax(1), minlength=logits.shape[1]).cpu()
            counts = votes if not total else counts + votes
            entropy += float(_entropies(logits).sum())
            total += len(logits)
    shares = counts / total
    return PredictionSummary(entropy / total, float(torch.exp(torch.special.entr(shares).sum())))


def _entropies(logits: Tensor) -> Tensor:
    entropies: Tensor = torch.special.entr(logits.softmax(1)).sum(1)  # [B]
    return entropies


def _adapt_affines(
    model: nn.Module,
    batches: Batches,
    variant: PredictOptions,
    execution: Execution,
    source: Mapping[str, Tensor],
    micro_batch: MicroBatch,
) -> bool:
    """Take steps on scales and shifts; return whether the result was kept.

    Statistics are fixed during the steps and estimated again afterwards.
    """
    affines = list(_affines(model).values())
    if not affines:
        return True
    unadapted, before = _state(model), _summarise(model, batches, execution, micro_batch)
    trainable = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        model.requires_grad_(False)
        for parameter in affines:
            parameter.requires_grad_(True)
        STEPS[variant.adapt](model, affines, batches, execution, micro_batch)
    finally:
        for parameter, requires_grad in trainable:
            parameter.requires_grad_(requires_grad)
            parameter.grad = None
    _restore(model, {name: value for name, value in source.items() if name.rpartition(".")[2].startswith("running")})
    _blend_statistics(model, batches, variant.alpha, execution, micro_batch)
    if collapsed(before, _summarise(model, batches, execution, micro_batch)):
        _restore(model, unadapted)
        return False
    return True


@torch.enable_grad()
def _minimise_entropy(
    model: nn.Module,
    affines: Sequence[nn.Parameter],
    batches: Batches,
    execution: Execution,
    micro_batch: MicroBatch,
) -> None:
    """Take one Adam step per batch that minimises the predictions' entropy."""
    optimizer = torch.optim.Adam(affines, lr=_TENT_RATE)

    def compute_gradients(images: Tensor, size: int) -> None:
        optimizer.zero_grad()
        for part in torch.split(images, size):  # with fixed statistics, each image's entropy is its own
            with execution.autocast():
                logits = model(part).float()
            share = len(part) / len(images)
            (_entropies(logits).mean() * share).backward()  # type: ignore[no-untyped-call]

    for images in batches():
        micro_batch.fit(len(images), partial(compute_gradients, images))
        optimizer.step()


# Methods that take steps: model, scales and shifts, images, execution and what fits the memory.
STEPS: dict[str, Callable[[nn.Module, Sequence[nn.Parameter], Batches, Execution, MicroBatch], None]] = {
    "tent": _minimise_entropy,
    "roid": roid.take_steps,
}


@torch.no_grad()
def _blend_statistics(
    model: nn.Module, batches: Batches, alpha: float, execution: Execution, micro_batch: MicroBatch
) -> None:
    """Set each batch norm layer's statistics to `alpha` of the images' and the rest of its own.

    During the pass, each layer uses the blend of the current batch, so that later layers get adapted inputs.
    """
    layers = batch_norms(model)
    if not layers or alpha == 0:
        return
    sources = [(_mean(layer).clone(), _variance(layer).clone()) for layer in layers]
    moments = [_Moments() for _ in layers]

    def blend(number: int, mean: Tensor, variance: Tensor) -> None:
        source = sources[number]
        _set(layers[number], source[0].lerp(mean, alpha), source[1].lerp(variance, alpha))

    for images in batches():
        calls = micro_batch.fit(len(images), partial(_measure_calls, model, layers, images, blend, execution))
        for call in calls:
            moments[call.layer].add(call.values, call.mean, call.variance)
    for number, moment in enumerate(moments):
        blend(number, moment.mean, moment.squares / moment.count)


class _Call(NamedTuple):
    """Inputs of one call of a batch norm layer: its number, and mean and variance [C] over `values` a channel."""

    layer: int
    values: int
    mean: Tensor
    variance: Tensor


class _Reached(Exception):  # noqa: N818
    """A part has reached the layer that is measured."""


def _measure_calls(
    model: nn.Module,
    layers: Sequence[_BatchNorm],
    images: Tensor,
    blend: Callable[[int, Tensor, Tensor], None],
    execution: Execution,
    size: int,
) -> list[_Call]:
    """Return all calls of batch norm layers in a pass of a batch, each after `blend` of those before it.

    With at most `size` images at a time, every call takes a pass of all parts up to it: its statistics are those of the
    whole batch, and no part can go on before they are known.
    """
    calls: list[_Call] = []
    parts = torch.split(images, size)
    while (call := _next_call(model, layers, parts, calls, blend, execution)) is not None:
        calls.append(call)
    return calls


def _next_call(
    model: nn.Module,
    layers: Sequence[_BatchNorm],
    parts: Sequence[Tensor],
    calls: list[_Call],
    blend: Callable[[int, Tensor, Tensor], None],
    execution: Execution,
) -> _Call | None:
    """Return the call after `calls`, over all parts; None if there is none, as a single part adds all its calls."""
    moments, reached, position = _Moments(), -1, -1

    def enter(number: int, _layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        nonlocal reached, position
        position += 1
        if position == len(calls):
            count, mean, variance = _measure(inputs[0])
            if len(parts) > 1:
                moments.add(count, mean, variance)
                reached = number
                raise _Reached
            calls.append(_Call(number, count, mean, variance))
        blend(number, calls[position].mean, calls[position].variance)

    hooks = [layer.register_forward_pre_hook(partial(enter, number)) for number, layer in enumerate(layers)]
    try:
        for part in parts:
            position = -1
            with contextlib.suppress(_Reached), execution.autocast():
                model(part)
    finally:
        for hook in hooks:
            hook.remove()
    if reached < 0:
        return None
    return _Call(reached, moments.count, moments.mean, moments.squares / moments.count)


def _measure(inputs: Tensor) -> tuple[int, Tensor, Tensor]:
    """Return the values of each channel of [B, C, ...], and their mean and variance [C]."""
    values = inputs.float()
    axes = [axis for axis in range(values.dim()) if axis != 1]
    variance, mean = torch.var_mean(values, axes, correction=0)  # biased, as in training mode
    return values.numel() // values.shape[1], mean, variance


def _mean(layer: _BatchNorm) -> Tensor:
    assert layer.running_mean is not None
    return layer.running_mean


def _variance(layer: _BatchNorm) -> Tensor:
    assert layer.running_var is not None
    return layer.running_var


def _set(layer: _BatchNorm, mean: Tensor, variance: Tensor) -> None:
    _mean(layer).copy_(mean)
    _variance(layer).copy_(variance)
