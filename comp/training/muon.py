"""Muon: SGD momentum with orthogonalised updates for hidden matrices.

Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks" (kellerjordan.github.io/posts/muon), in
the form of KellerJordan/cifar10-airbench (airbench94_muon.py): filters are flattened to [out, in k k], and before each
step every filter bank is scaled to the norm sqrt(out).
"""

from collections.abc import Callable, Iterable, Sequence
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

    Args:
        matrices: [N, rows, columns].
        steps: of the iteration.

    Returns:
        [N, rows, columns], bfloat16 where the hardware multiplies it, else float32.
    """
    return orthogonalize_all([matrices], steps)[0]


def orthogonalize_all(stacks: Sequence[Tensor], steps: int) -> list[Tensor]:
    """Return `orthogonalize` of each of several stacks, in fewer kernels.

    Each step maps X to (a + b A + c A A) X with A = X X^T. These factors commute and are as small as the shorter side,
    so they are accumulated and X is multiplied once, at the end: for a [256, 2304] kernel half the work of the usual
    form, within its rounding errors. Stacks whose shorter sides are equal share the iteration.

    Args:
        stacks: each [N, rows, columns], of shapes of their own.
        steps: of the iteration.
    """
    wide = [_unit_norm(stack).mT if _is_tall(stack) else _unit_norm(stack) for stack in stacks]  # each [N, short, long]
    sharing: dict[int, list[int]] = {}  # shorter side -> numbers of the stacks
    for number, x in enumerate(wide):
        sharing.setdefault(x.shape[1], []).append(number)
    for numbers in sharing.values():
        # `@`, not bmm, which on the CPU rounds a lone transposed matrix in another way.
        grams = [wide[number] @ wide[number].mT for number in numbers]  # each [N, short, short]
        factors = _newton_schulz(grams[0] if len(grams) == 1 else torch.cat(grams), steps)
        for number, factor in zip(numbers, torch.split(factors, [len(gram) for gram in grams]), strict=True):
            wide[number] = factor @ wide[number]
    return [x.mT if _is_tall(stack) else x for x, stack in zip(wide, stacks, strict=True)]


def _is_tall(stack: Tensor) -> bool:
    return stack.shape[1] > stack.shape[2]


def _unit_norm(stack: Tensor) -> Tensor:
    unit: Tensor = stack / stack.norm(dim=(1, 2), keepdim=True).clamp_min(_SMALLEST_NORM)
    return unit.to(_fast_type(stack.device))


def _newton_schulz(gram: Tensor, steps: int) -> Tensor:
    """Return the product of all steps' factors [N, short, short] of X X^T."""
    factors = gram  # replaced in the first step
    for step in range(steps):
        factor = torch.baddbmm(gram, gram, gram, beta=_B, alpha=_C)
        factor.diagonal(dim1=1, dim2=2).add_(_A)
        factors = factor if step == 0 else torch.bmm(factor, factors)
        if step + 1 < steps:
            gram = torch.bmm(torch.bmm(factor, gram), factor)
    return factors


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

    def _momentum_buffers(self, trained: list[Tensor]) -> list[Tensor]:
        for parameter in trained:
            state = self.state[parameter]
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(parameter)
        return [self.state[parameter]["momentum_buffer"] for parameter in trained]

    def _orthogonal_step(self, trained: list[Tensor], group: dict[str, Any]) -> None:
        """Step all parameters at once, by lists: an accelerator is launched for the group, not for each of them."""
        updates = self._momentum_buffers(trained)
        gradients = _gradients(trained)
        torch._foreach_mul_(updates, group["momentum"])
        torch._foreach_add_(updates, gradients)
        if group["nesterov"]:
            updates = list(torch._foreach_add(gradients, updates, alpha=group["momentum"]))
        trained, directions = _directions(trained, updates, group["ns_steps"])
        if group["normalize_weights"]:
            scales = torch._foreach_norm(trained)
            torch._foreach_clamp_min_(scales, _SMALLEST_NORM)
            torch._foreach_reciprocal_(scales)
            torch._foreach_mul_(scales, [len(parameter) ** 0.5 for parameter in trained])
            torch._foreach_mul_(trained, scales)
        if group["weight_decay"]:
            torch._foreach_mul_(trained, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(trained, directions, alpha=-group["lr"])

    def _plain_step(self, trained: list[Tensor], group: dict[str, Any]) -> None:
        sgd(
            trained,
            _gradients(trained),
            [*self._momentum_buffers(trained)],
            foreach=True,
            weight_decay=group["weight_decay"],
            momentum=group["aux_momentum"],
            lr=group["lr"],
            dampening=0.0,
            nesterov=group["aux_momentum"] > 0,
            maximize=False,
        )


def _gradients(trained: list[Tensor]) -> list[Tensor]:
    return [parameter.grad for parameter in trained if parameter.grad is not None]


def _directions(trained: list[Tensor], updates: list[Tensor], steps: int) -> tuple[list[Tensor], list[Tensor]]:
    """Return parameters, those of one shape after each other, and their orthogonalised updates, laid out like them."""
    by_shape: dict[torch.Size, list[int]] = {}
    for number, parameter in enumerate(trained):
        by_shape.setdefault(parameter.shape, []).append(number)
    stacks = [torch.stack([updates[number] for number in numbers]).flatten(2) for numbers in by_shape.values()]
    directions: list[Tensor] = []
    for numbers, stack in zip(by_shape.values(), orthogonalize_all(stacks, steps), strict=True):
        like = trained[numbers[0]]
        shape, strides = (len(numbers), *like.shape), (like.numel(), *like.stride())
        # Lists of one layout and type are added in one launch.
        laid_out = torch.empty_strided(shape, strides, dtype=like.dtype, device=like.device)
        directions += laid_out.copy_(stack.reshape(shape)).unbind()
    return [trained[number] for numbers in by_shape.values() for number in numbers], directions
