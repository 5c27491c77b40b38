"""Gradient and weight norms by layer; sums stay on the device until an epoch's end.

A layer is a module that owns parameters; its norm is that of all of them together. Gradients are measured before
clipping, over the whole batch; an epoch's value is the mean of its steps' norms.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from comp.training.sums import RunningSum


class NoNorms:
    """Records nothing."""

    enabled = False

    def add_step(self) -> None:
        """Add a step's gradient norms."""

    def rows(self, number: int) -> list[dict[str, Any]]:
        """Return an epoch's rows of norms.csv and reset."""
        return []

    def state_dict(self) -> dict[str, Any]:
        """Return what a resume needs."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what `state_dict` returned."""


class Norms(NoNorms):
    """Records every step whose gradients are finite: float16's loss scaler passes over the others.

    Args:
        model: on its device; frozen layers have no gradient, which counts as 0.
    """

    enabled = True

    def __init__(self, model: nn.Module) -> None:
        self._layers: dict[str, list[nn.Parameter]] = {}
        for name, parameter in model.named_parameters():
            self._layers.setdefault(name.rpartition(".")[0], []).append(parameter)
        self._device = next(iter(self._layers.values()))[0].device
        self._owners: dict[tuple[int, ...], Tensor] = {}
        self._reset()

    def add_step(self) -> None:
        """Add a step's gradient norms without waiting for the device."""
        norms = self._norms([[p.grad for p in layer if p.grad is not None] for layer in self._layers.values()])
        finite = norms.isfinite().all()
        self._sums.add(torch.where(finite, norms, 0.0))
        self._steps += finite

    def rows(self, number: int) -> list[dict[str, Any]]:
        """Return a row for each layer, input first, and reset; waits for the device."""
        gradients = (self._sums.values / self._steps.clamp_min(1)).tolist()
        weights = self._norms([[p.detach() for p in layer] for layer in self._layers.values()]).tolist()
        rows = [
            {
                "epoch": number,
                "layer": name,
                "parameters": sum(p.numel() for p in layer),
                "gradient_norm": gradient,
                "weight_norm": weight,
            }
            for (name, layer), gradient, weight in zip(self._layers.items(), gradients, weights, strict=True)
        ]
        self._reset()
        return rows

    def state_dict(self) -> dict[str, Any]:
        """Return the epoch's sums so far."""
        return {"sums": self._sums.values, "steps": int(self._steps)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load the sums."""
        self._reset(state["sums"], state["steps"])

    def _reset(self, sums: Tensor | None = None, steps: int = 0) -> None:
        self._sums = RunningSum([0.0] * len(self._layers) if sums is None else sums, self._device)
        self._steps = torch.tensor(steps, device=self._device)

    def _norms(self, layers: Sequence[Sequence[Tensor]]) -> Tensor:
        """Return [layers], in the sums' type: the norm of each layer's tensors together, 0 without tensors."""
        zeros = torch.zeros_like(self._sums.values)
        tensors = [tensor for layer in layers for tensor in layer]
        if not tensors:
            return zeros
        counts = tuple(len(layer) for layer in layers)
        if counts not in self._owners:  # copied to the device once, not at every step
            owners = [index for index, count in enumerate(counts) for _ in range(count)]
            self._owners[counts] = torch.tensor(owners, device=self._device)
        squares = torch.stack(torch._foreach_norm(tensors)).to(zeros).square()  # [tensors]
        return zeros.index_add_(0, self._owners[counts], squares).sqrt()
