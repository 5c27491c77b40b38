"""Take a few steps with a copy of a model, to estimate the time and memory of its training.

On CUDA whole batches are measured, with the peak of the allocator. Elsewhere a step of a few images is extrapolated,
and memory is that of the tensors which the backward pass needs.
"""

import copy
import math
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from comp.augment.mixing import soft_targets
from comp.config import Config
from comp.data import loading
from comp.data.dataset import Dataset
from comp.models.classifier import Classifier
from comp.runtime.device import Execution
from comp.runtime.memory import is_out_of_memory
from comp.training import losses, optimizers
from comp.training.step import SMALLEST

_SHARE, _MOST = 0.003, 32  # of a training's images, in one step; images there, on a CPU
_LAYERS = 3  # of the largest tensors that a forward pass holds at a time: input, output, and a copy of one


@dataclass(frozen=True)
class Probe:
    """What steps and a forward pass on a few images took.

    Attributes:
        step_seconds: of a training step on the config's batch.
        forward_share: a prediction's part of a step's time for an image.
        device_bytes: that a step on a whole micro-batch needs on its device, weights included.
        forward_bytes: that a prediction's batch needs there beside the weights.
        state_bytes: of the optimizer's state.
        state_tensors: in it.
    """

    step_seconds: float
    forward_share: float
    device_bytes: int
    forward_bytes: int
    state_bytes: int
    state_tensors: int


def count_multiplications(model: Classifier, image_shape: tuple[int, int, int]) -> int:
    """Return how many times a forward pass on an image (C, H, W) multiplies by a weight; the model stays unchanged."""
    scratch, counted = copy.deepcopy(model).eval(), 0

    def count(module: nn.Module, inputs: Any, output: Any) -> None:
        nonlocal counted
        weight = getattr(module, "weight", None)
        if isinstance(weight, Tensor) and isinstance(output, Tensor):
            counted += weight.numel() * output.numel() // weight.shape[0]  # at every place of the output

    for module in scratch.modules():
        module.register_forward_hook(count)
    with torch.inference_mode():
        scratch(torch.zeros(1, *image_shape, dtype=torch.uint8))
    return counted


class _Scratch:
    """A copy of a model that takes steps, and notes what they take."""

    def __init__(self, config: Config, dataset: Dataset, model: Classifier, execution: Execution) -> None:
        self._dataset, self._execution = dataset, execution
        self.model = copy.deepcopy(model)
        if config.model.unfreeze:  # the epochs after it need the most
            self.model.requires_grad_(True)
        execution.place(self.model).train()
        self.optimizer = optimizers.for_model(self.model, config.optim)
        self._criterion = losses.build_criterion(config, dataset, execution.torch_device)
        self._views = 1 if config.train.consistency == "none" else losses.VIEWS

    def step(self, count: int) -> float:
        """Take a training step on so many images; return its seconds."""
        images, labels = (torch.cat([values] * self._views) for values in self._batch(count))
        began = time.perf_counter()
        with self._execution.autocast():
            logits = self.model(self._execution.layout(images))
        loss = self._criterion(logits.float(), soft_targets(labels, classes=logits.shape[1]))
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        loss.item()  # waits for the device
        return time.perf_counter() - began

    def forward(self, count: int) -> float:
        """Predict so many images; return the seconds."""
        images, _ = self._batch(count)
        self.model.eval()
        began = time.perf_counter()
        with torch.inference_mode(), self._execution.autocast():
            self.model(self._execution.layout(images)).sum().item()
        seconds = time.perf_counter() - began
        self.model.train()
        return seconds

    def memory(self, count: int, saved_by_fewest: int, state_bytes: int) -> int:
        """Return the bytes that a step on so many images needs on the device."""
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        pixels = count * self._views * math.prod(self._dataset.train.image_shape)
        computed = (
            tensor_bytes(self.model.state_dict().values())
            + tensor_bytes(trained)  # gradients
            + state_bytes
            + saved_by_fewest * max(count, SMALLEST) // SMALLEST
            + 3 * 4 * pixels  # floats, before, in and after augmentation
        )
        if not measures_gpu(self._execution):
            return computed
        torch.cuda.reset_peak_memory_stats()
        try:
            self.step(count)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            return computed
        return torch.cuda.max_memory_allocated() + 3 * 4 * pixels

    def _batch(self, count: int) -> tuple[Tensor, Tensor]:
        train, device = self._dataset.train, self._execution.torch_device
        return loading.load_resident(train.head(count), device).batch(torch.arange(count, device=device) % len(train))


def probe(config: Config, dataset: Dataset, model: Classifier, execution: Execution, processes: int) -> Probe:
    """Take steps on the fewest images, then on as many as cost little beside the training.

    Args:
        config: what is trained.
        dataset: its data.
        model: on the CPU; it stays unchanged.
        execution: the chosen one.
        processes: that train together.

    Raises:
        RuntimeError: not even the fewest images fit the memory; or MemoryError.
    """
    scratch = _Scratch(config, dataset, model, execution)
    batch_size = min(config.train.batch_size, len(dataset.train))
    images = len(dataset.train) * config.train.epochs
    saved = _SavedTensors(scratch.model)
    with saved:
        scratch.step(SMALLEST)
    most = batch_size // processes if measures_gpu(execution) else min(_MOST, batch_size)
    count = max(SMALLEST, min(int(_SHARE * images), most))
    fewest_seconds = scratch.step(SMALLEST)
    count = _warm_up_fitting(scratch, count)
    if count > SMALLEST:
        seconds = scratch.step(count)
        slope = max((seconds - fewest_seconds) / (count - SMALLEST), 0.0)
    else:
        seconds, slope = fewest_seconds, fewest_seconds / SMALLEST
    forward_seconds = min(scratch.forward(count) for _ in range(2))
    state = [leaf for leaf in tree_leaves(scratch.optimizer.state_dict()) if isinstance(leaf, Tensor)]
    share = -(-batch_size // processes)
    micro_batch = min(execution.micro_batch or config.train.micro_batch or share, share)
    return Probe(
        step_seconds=seconds + slope * (batch_size - count),
        forward_share=min(forward_seconds / seconds, 1.0),
        device_bytes=scratch.memory(micro_batch, saved.bytes, tensor_bytes(state)),
        forward_bytes=_LAYERS * saved.largest * config.predict.batch_size // SMALLEST,
        state_bytes=tensor_bytes(state),
        state_tensors=len(state),
    )


def _warm_up_fitting(scratch: _Scratch, count: int) -> int:
    """Take a step on so many images, or on half as many until memory suffices; return how many."""
    while True:
        try:
            scratch.step(count)
            return count
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or count <= SMALLEST:
                raise
        count //= 2  # out here the failed step's tensors, which its traceback held, are gone


class _SavedTensors(torch.autograd.graph.saved_tensors_hooks):
    """Counts the bytes that forward passes keep for the backward pass, beside the model's own."""

    def __init__(self, model: nn.Module) -> None:
        self._sizes: dict[int, int] = {}
        self._own = {tensor.untyped_storage()._cdata for tensor in model.state_dict().values()}
        super().__init__(self._pack, lambda tensor: tensor)

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._own:
            self._sizes[storage._cdata] = storage.nbytes()
        return tensor

    @property
    def bytes(self) -> int:
        """The bytes."""
        return sum(self._sizes.values())

    @property
    def largest(self) -> int:
        """The bytes of the largest tensor."""
        return max(self._sizes.values(), default=0)


def measures_gpu(execution: Execution) -> bool:
    """Return whether memory is measured on a GPU."""
    return execution.device == "cuda" and torch.cuda.is_initialized()  # type: ignore[no-untyped-call]


def tensor_bytes(tensors: Iterable[Tensor]) -> int:
    """Return the bytes of all elements."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
