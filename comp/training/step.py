"""One optimizer step: micro-batches that fit the memory, loss scaling, clipping."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from comp.config import Config
from comp.models import surgery
from comp.models.classifier import Classifier
from comp.runtime.device import Execution
from comp.training import memory
from comp.training.autotune import seed_generators
from comp.training.norms import NoNorms

# optim.clip -> the mode of timm's `dispatch_clip_grad`, and what `clip_at: null` means for it. No mode reads a value
# back. `norm` scales all gradients together (Pascanu et al. 2013, arXiv:1211.5063), `value` bounds every element, and
# `adaptive` bounds each output unit's gradient by its weights (Brock et al. 2021, arXiv:2102.06171, heads left out).
CLIPS = {"norm": ("norm", 1.0), "value": ("value", 1.0), "adaptive": ("agc", 0.01)}

# Given a part of the batch, returns its mean loss and its logits [part, classes].
Compute = Callable[[slice], tuple[Tensor, Tensor]]


class Stepper:
    """Takes steps; what it has learnt about the memory and about loss scales is its state.

    Args:
        optimizer: its gradients are made, clipped and applied.
        unclipped: parameters that adaptive clipping leaves alone.
        config: `optim.clip`, `train.micro_batch`.
        execution: device and precision, and perhaps a smaller micro-batch that was found necessary before.
        norms: looks at every step's gradients.
        halves: whether micro-batches may shrink where memory runs out: not beside others who would not know.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        config: Config,
        execution: Execution,
        norms: NoNorms,
        *,
        unclipped: Sequence[nn.Parameter] = (),
        halves: bool = True,
    ) -> None:
        self._optimizer, self._halves = optimizer, halves
        self._device = execution.torch_device
        self.micro_batch = execution.micro_batch or config.train.micro_batch or config.train.batch_size
        """Images that go through the network at a time, at most."""
        # Float16 holds nothing below 6e-8; scaled up, small gradients survive (Micikevicius et al. 2018).
        self.scaler = torch.amp.GradScaler(execution.device, enabled=execution.precision == "fp16")
        self._clip = _clip(optimizer, config, unclipped)
        self._norms = norms

    def take(self, count: int, seed: int, compute: Compute) -> tuple[Tensor, Tensor]:
        """Take one step for a batch; return its mean loss, on the device, and its logits [count, classes].

        Args:
            count: images in the batch.
            seed: of dropout and the like.
            compute: runs the network on a part of the batch.

        Raises:
            RunError: not even two images at a time fit the memory.
        """
        loss, logits = self._gradients(count, seed, compute)
        if self._clip is not None or self._norms.wanted:
            self.scaler.unscale_(self._optimizer)
        self._norms.see()
        if self._clip is not None:
            self._clip()
        self.scaler.step(self._optimizer)
        self.scaler.update()
        return loss, logits

    def _gradients(self, count: int, seed: int, compute: Compute) -> tuple[Tensor, Tensor]:
        """Make gradients of the whole batch's mean loss; where memory runs out, again with half as much at a time."""
        while True:
            try:
                return self._attempt(count, seed, compute)
            except (RuntimeError, MemoryError) as error:
                memory.refuse_if_hopeless(error, min(self.micro_batch, count) if self._halves else memory.SMALLEST)
            # Out here the failed attempt's tensors, which its traceback held, are gone.
            self._halve(count)

    def _attempt(self, count: int, seed: int, compute: Compute) -> tuple[Tensor, Tensor]:
        seed_generators(seed, self._device)
        self._optimizer.zero_grad()
        losses, logits = [], []
        for part in parts(count, self.micro_batch):
            loss, out = compute(part)
            loss = loss * ((part.stop - part.start) / count)
            self.scaler.scale(loss).backward()
            losses.append(loss.detach())
            logits.append(out.detach())
        return torch.stack(losses).sum(), torch.cat(logits)

    def _halve(self, count: int) -> None:
        self.micro_batch = max(memory.SMALLEST, min(self.micro_batch, count) // 2)
        self._optimizer.zero_grad()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def state_dict(self) -> dict[str, Any]:
        """Return what a resume needs beside model and optimizer."""
        return {"micro_batch": self.micro_batch, "scaler": self.scaler.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` returned."""
        self.micro_batch = state["micro_batch"]
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(state["scaler"])


def parts(count: int, most: int) -> Iterator[slice]:
    """Return consecutive parts of a batch, at most `most` images each and nearly equal, cut on even positions.

    MixUp partners are positions 2k and 2k + 1: no cut comes between them. Nor is one image ever left alone, which batch
    norm could not learn from: where pairs are all that fits, the last part of an odd batch has three.
    """
    if count <= most:
        yield slice(0, count)
        return
    pairs = -(-count // 2)
    number = -(-pairs // max(1, most // 2))
    cuts = [2 * (pairs * part // number) for part in range(number)] + [count]
    if cuts[-1] - cuts[-2] == 1:
        del cuts[-2]
    for start, stop in itertools.pairwise(cuts):
        yield slice(start, stop)


def head_of(model: Classifier) -> list[nn.Parameter]:
    """Return the parameters of a model's last layer."""
    heads = surgery.head_names(model)
    return [parameter for name, parameter in model.inner.named_parameters() if name in heads]


def _clip(optimizer: Optimizer, config: Config, unclipped: Sequence[nn.Parameter]) -> Callable[[], object] | None:
    if config.optim.clip == "none":
        return None
    from timm.utils import dispatch_clip_grad

    mode, usual = CLIPS[config.optim.clip]
    left_out = {id(parameter) for parameter in unclipped} if config.optim.clip == "adaptive" else set()
    parameters = [
        parameter for group in optimizer.param_groups for parameter in group["params"] if id(parameter) not in left_out
    ]
    at = usual if config.optim.clip_at is None else config.optim.clip_at
    return lambda: dispatch_clip_grad(parameters, at, mode)
