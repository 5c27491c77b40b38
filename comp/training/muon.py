"""Muon: SGD momentum with orthogonalised updates for hidden matrices.

Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks" (kellerjordan.github.io/posts/muon), in
the form of KellerJordan/cifar10-airbench (airbench94_muon.py): filters are flattened to [out, in k k], and before each
step every filter bank is scaled to the norm sqrt(out).
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.sgd import sgd

# The quintic's coefficients: steep at zero, so that three to five steps suffice; singular values end in about 0.7..1.2.
_A, _B, _C = 3.4445, -4.7750, 2.0315
_SMALLEST_NORM = 1e-7


def orthogonalize(matrices: Tensor, steps: int) -> Tensor:
    """Return, for M = U S V^T, nearly U V^T, by Newton-Schulz iteration.

    Each step maps X to (a + b A + c A A) X with A = X X^T. These factors commute and are as small as the shorter side,
    so they are accumulated and X is multiplied once, at the end: for a [256, 2304] kernel half the work of the usual
    form, within its rounding errors.

    Args:
        matrices: [N, rows, columns].
        steps: of the iteration.

    Returns:
        [N, rows, columns], bfloat16 where the hardware multiplies it, else float32.
    """
    x = matrices / matrices.norm(dim=(1, 2), keepdim=True).clamp_min(_SMALLEST_NORM)
    x = x.to(_fast_type(x.device))
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x  # [N, short, long]
    gram = x @ x.mT  # [N, short, short]
    factors = None
    for step in range(steps):
        factor = torch.baddbmm(gram, gram, gram, beta=_B, alpha=_C)
        factor.diagonal(dim1=1, dim2=2).add_(_A)
        factors = factor if factors is None else factor @ factors
        if step + 1 < steps:
            gram = factor @ gram @ factor
    x = x if factors is None else factors @ x
    result: Tensor = x.mT if tall else x
    return result


def _fast_type(device: torch.device) -> torch.dtype:
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float32
    multiplies = device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if multiplies else torch.float32


class Muon(Optimizer):
    """Muon for groups marked `hidden`, SGD with Nesterov momentum for the others.

    Args:
        params: parameter groups; hidden ones have parameters of two or more dimensions, output channels first.
        lr: a hidden step moves every singular direction by about this much.
        weight_decay: of hidden groups, decoupled (lr times this each step); of the others as in SGD.
        momentum: of hidden groups.
        nesterov: for hidden groups.
        normalize_weights: scale each hidden parameter to the norm sqrt(out) before its step.
        ns_steps: of Newton-Schulz, see `orthogonalize`.
        aux_momentum: of the other groups.

    Raises:
        ValueError: a value outside its range, or a hidden parameter with fewer than two dimensions.
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        lr: float = 0.02,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        *,
        nesterov: bool = True,
        normalize_weights: bool = True,
        ns_steps: int = 3,
        aux_momentum: float = 0.85,
    ) -> None:
        if not (isinstance(ns_steps, int) and 1 <= ns_steps <= 20):
            raise ValueError(f"ns_steps: expected a whole number from 1 to 20, found {ns_steps}")
        defaults = {
            "lr": lr,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "nesterov": nesterov,
            "normalize_weights": normalize_weights,
            "ns_steps": ns_steps,
            "aux_momentum": aux_momentum,
            "hidden": True,
        }
        super().__init__(params, defaults)
        for group in self.param_groups:
            if group["hidden"] and any(parameter.ndim < 2 for parameter in group["params"]):
                raise ValueError("Muon: hidden groups take only parameters of two or more dimensions")

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take one step."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            trained = [parameter for parameter in group["params"] if parameter.grad is not None]
            if trained and group["hidden"]:
                self._orthogonal_step(trained, group)
            elif trained:
                self._plain_step(trained, group)
        return loss

    def _momentum_buffer(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        buffer: Tensor = state["momentum_buffer"]
        return buffer

    def _orthogonal_step(self, trained: list[Tensor], group: dict[str, Any]) -> None:
        updates: dict[torch.Size, list[tuple[Tensor, Tensor]]] = {}  # matrices of one shape are multiplied together
        for parameter in trained:
            assert parameter.grad is not None
            buffer = self._momentum_buffer(parameter)
            buffer.mul_(group["momentum"]).add_(parameter.grad)
            update = parameter.grad.add(buffer, alpha=group["momentum"]) if group["nesterov"] else buffer
            matrix = update.reshape(len(update), -1)
            updates.setdefault(matrix.shape, []).append((parameter, matrix))
        for pairs in updates.values():
            directions = orthogonalize(torch.stack([matrix for _, matrix in pairs]), group["ns_steps"])
            for (parameter, _), direction in zip(pairs, directions, strict=True):
                if group["normalize_weights"]:
                    parameter.mul_(len(parameter) ** 0.5 / parameter.norm().clamp_min(_SMALLEST_NORM))
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(direction.reshape(parameter.shape), alpha=-group["lr"])

    def _plain_step(self, trained: list[Tensor], group: dict[str, Any]) -> None:
        sgd(
            trained,
            [parameter.grad for parameter in trained if parameter.grad is not None],
            [self._momentum_buffer(parameter) for parameter in trained],
            foreach=True,
            weight_decay=group["weight_decay"],
            momentum=group["aux_momentum"],
            lr=group["lr"],
            dampening=0.0,
            nesterov=group["aux_momentum"] > 0,
            maximize=False,
        )
