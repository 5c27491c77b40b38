"""One optimizer step: micro-batches that fit the memory, loss scaling, clipping."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from comp.models import surgery
from comp.models.classifier import Classifier
from comp.runtime import memory
from comp.runtime.device import Execution
from comp.runtime.errors import RunError
from comp.training.clipping import clip_adaptively
from comp.training.norms import NoNorms

# optim.clip -> the mode of timm's `dispatch_clip_grad`, and its limit for `clip_at: null`. No mode reads a value back.
# `norm` scales all gradients together (Pascanu et al. 2013, arXiv:1211.5063), `value` bounds every element, and
# `adaptive` bounds each output unit's gradient by its weights (Brock et al. 2021, arXiv:2102.06171, heads left out).
CLIPS = {"norm": ("norm", 1.0), "value": ("value", 1.0), "adaptive": ("agc", 0.01)}

SMALLEST = 2  # images in a micro-batch: batch norm needs more than one

# Takes a part of the batch, returns its mean loss and its logits [part, classes].
Compute = Callable[[slice], tuple[Tensor, Tensor]]


class Stepper:
    """Takes steps; its state is the micro-batch that fits the memory and the loss scale.

    Args:
        optimizer: its gradients are computed, clipped and applied.
        execution: device, precision.
        norms: records every step's gradients.
        micro_batch: images that go through the network at a time, at most.
        clip: `none` or a row of CLIPS.
        clip_at: the limit; None: the row's own.
        unclipped: parameters that adaptive clipping leaves alone.
        halves: whether micro-batches may shrink where memory runs out: not in a group, whose other processes would not
            know.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        execution: Execution,
        norms: NoNorms,
        *,
        micro_batch: int,
        clip: str = "none",
        clip_at: float | None = None,
        unclipped: Sequence[nn.Parameter] = (),
        halves: bool = True,
    ) -> None:
        self._optimizer = optimizer
        self._device = execution.torch_device
        self.memory = _micro_batch(micro_batch, halves=halves)
        self.steps = 0  # begun since this process started
        # Float16 holds nothing below 6e-8; scaled up, small gradients survive (Micikevicius et al. 2018).
        self.scaler = torch.amp.GradScaler(execution.device, enabled=execution.precision == "fp16")
        self._clip = None if clip == "none" else _clipping(optimizer, clip, clip_at, unclipped)
        self._norms = norms

    @property
    def micro_batch(self) -> int:
        """Images that go through the network at a time, at most."""
        return self.memory.images

    def take(self, count: int, seed: int, compute: Compute) -> tuple[Tensor, Tensor]:
        """Take one step for a batch; return its mean loss, on the device, and its logits [count, classes].

        Args:
            count: images in the batch.
            seed: of dropout and the like.
            compute: runs the network on a part of the batch.

        Raises:
            OutOfMemoryError: not even two images at a time fit the memory; weights and optimizer are as before.
            RunError: the optimizer's state does not fit.
        """
        loss, logits = self.memory.fit(count, lambda size: self._attempt(count, seed, compute, size))
        if self._clip is not None or self._norms.enabled:
            self.scaler.unscale_(self._optimizer)
        self._norms.add_step()
        if self._clip is not None:
            self._clip()
        self.steps += 1
        try:
            self.scaler.step(self._optimizer)
        except (RuntimeError, MemoryError) as error:
            if not memory.is_out_of_memory(error):
                raise
            raise RunError(
                f"out of memory for the optimizer's state ({memory.reason_of(error)}); use an optimizer with a smaller "
                "one (optim.name=sgd), a smaller model, or a device with more memory"
            ) from None
        self.scaler.update()
        return loss, logits

    def _attempt(self, count: int, seed: int, compute: Compute, size: int) -> tuple[Tensor, Tensor]:
        """Compute the gradients of the batch's mean loss, at most `size` images at a time."""
        seed_generators(seed, self._device)
        self._optimizer.zero_grad()
        losses, logits = [], []
        for part in split_batch(count, size):
            loss, part_logits = compute(part)
            loss = loss * ((part.stop - part.start) / count)
            self.scaler.scale(loss).backward()
            losses.append(loss.detach())
            logits.append(part_logits.detach())
        return torch.stack(losses).sum(), torch.cat(logits)

    def state_dict(self) -> dict[str, Any]:
        """Return what a resume needs beside model and optimizer."""
        return {"micro_batch": self.micro_batch, "scaler": self.scaler.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load what `state_dict` returned."""
        self.memory.images = state["micro_batch"]
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(state["scaler"])


def _micro_batch(images: int, *, halves: bool) -> memory.MicroBatch:
    if halves:
        return memory.MicroBatch(images, smallest=SMALLEST)
    # Each process of a group would halve alone, and the others wait for its gradients.
    advice = "processes that train together do not halve it by themselves: set train.micro_batch to half as many"
    return memory.MicroBatch(images, smallest=images, advice=advice)


def split_batch(count: int, largest: int) -> Iterator[slice]:
    """Return consecutive parts of a batch, at most `largest` images each and nearly equal, cut at even positions.

    MixUp partners are positions 2k and 2k + 1: no cut separates them. Nor is one image ever left alone, which batch
    norm could not learn from: where only pairs fit, the last part of an odd batch has three.
    """
    if count <= largest:
        yield slice(0, count)
        return
    pairs = -(-count // 2)
    number = -(-pairs // max(1, largest // 2))
    cuts = [2 * (pairs * part // number) for part in range(number)] + [count]
    if cuts[-1] - cuts[-2] == 1:
        del cuts[-2]
    for start, stop in itertools.pairwise(cuts):
        yield slice(start, stop)


def head_of(model: Classifier) -> list[nn.Parameter]:
    """Return the parameters of a model's last layer."""
    heads = surgery.head_names(model)
    return [parameter for name, parameter in model.inner.named_parameters() if name in heads]


def _clipping(
    optimizer: Optimizer, clip: str, clip_at: float | None, unclipped: Sequence[nn.Parameter]
) -> Callable[[], object]:
    from timm.utils import dispatch_clip_grad

    mode, default_limit = CLIPS[clip]
    excluded = {id(parameter) for parameter in unclipped} if clip == "adaptive" else set()
    parameters = [
        parameter for group in optimizer.param_groups for parameter in group["params"] if id(parameter) not in excluded
    ]
    limit = default_limit if clip_at is None else clip_at
    if clip == "adaptive":
        return lambda: clip_adaptively(parameters, limit)
    return lambda: dispatch_clip_grad(parameters, limit, mode)


def seed_generators(seed: int, device: torch.device) -> None:
    """Seed torch's generators for a step on this device; inside `comp.runtime.rng.preserve_rng_state`.

    `torch.manual_seed` gives the same bits, but where CUDA is absent or not initialised it also formats and keeps a
    stack trace for every call: half a percent of a small network's step.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)
