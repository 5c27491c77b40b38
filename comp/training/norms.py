"""Gradient and weight norms by layer; sums stay on the device until an epoch's end.

A layer is a module that owns parameters; its norm is that of all of them together. Gradients are measured before
clipping, over the whole batch; an epoch's value is the mean of its steps' norms.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn


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
    """Records every step.

    Args:
        model: on its device; frozen layers have no gradient, which counts as 0.
    """

    enabled = True

    def __init__(self, model: nn.Module) -> None:
        self._layers: dict[str, list[nn.Parameter]] = {}
        for name, parameter in model.named_parameters():
            self._layers.setdefault(name.rpartition(".")[0], []).append(parameter)
        self._sums = self._zeros()
        self._steps = 0

    def add_step(self) -> None:
        """Add a step's gradient norms without waiting for the device."""
        gradients = [[p.grad for p in layer if p.grad is not None] for layer in self._layers.values()]
        self._sums += _norms(gradients, self._sums)
        self._steps += 1

    def rows(self, number: int) -> list[dict[str, Any]]:
        """Return a row for each layer, input first, and reset; waits for the device."""
        gradients = (self._sums / max(self._steps, 1)).tolist()
        weights = _norms([[p.detach() for p in layer] for layer in self._layers.values()], self._sums).tolist()
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
        self._sums, self._steps = self._zeros(), 0
        return rows

    def state_dict(self) -> dict[str, Any]:
        """Return the epoch's sums so far."""
        return {"sums": self._sums, "steps": self._steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load the sums."""
        self._sums, self._steps = state["sums"].to(self._sums), state["steps"]

    def _zeros(self) -> Tensor:
        device = next(iter(self._layers.values()))[0].device
        return torch.zeros(len(self._layers), dtype=torch.float64, device=device)


def _norms(layers: Iterable[list[Tensor]], like: Tensor) -> Tensor:
    """Return [layers] float64: the norm of each layer's tensors together, 0 without tensors."""
    layers = list(layers)
    tensors = [tensor for layer in layers for tensor in layer]
    if not tensors:
        return torch.zeros_like(like)
    squares = torch.stack(torch._foreach_norm(tensors)).to(like).square()  # [tensors]
    owner = torch.tensor([index for index, layer in enumerate(layers) for _ in layer], device=like.device)
    return torch.zeros_like(like).index_add_(0, owner, squares).sqrt()
