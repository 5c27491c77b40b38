"""Adaptive gradient clipping for all parameters at once."""

from collections.abc import Iterable

import torch
from torch import Tensor

# As in Brock et al. 2021: units whose weights are smaller count as this large, so that zeros can grow.
_SMALLEST_WEIGHTS, _SMALLEST_GRADIENT = 1e-3, 1e-6


@torch.no_grad()
def clip_adaptively(parameters: Iterable[Tensor], limit: float) -> None:
    """Scale gradients, in place, so that no output unit's exceeds `limit` times the norm of its weights.

    Brock et al. 2021 (arXiv:2102.06171). The bits of timm's `adaptive_clip_grad`, which starts ten kernels for each
    parameter; here two norms each, and the rest for all units together.

    Args:
        parameters: those without a gradient are left out.
        limit: 0.01 in the paper.
    """
    clipped = [parameter for parameter in parameters if parameter.grad is not None]
    gradients = [parameter.grad for parameter in clipped if parameter.grad is not None]
    if not clipped:
        return
    norms = [_unit_norms(gradient) for gradient in gradients]
    gradient_norms = torch.cat([norm.flatten() for norm in norms])  # [units of all parameters]
    largest = torch.cat([_unit_norms(parameter).flatten() for parameter in clipped])
    largest = largest.clamp_(min=_SMALLEST_WEIGHTS).mul_(limit)
    factors = largest / gradient_norms.clamp(min=_SMALLEST_GRADIENT)
    factors = torch.where(gradient_norms < largest, 1.0, factors)
    by_parameter = torch.split(factors, [norm.numel() for norm in norms])
    torch._foreach_mul_(gradients, [factor.view_as(norm) for factor, norm in zip(by_parameter, norms, strict=True)])


def _unit_norms(tensor: Tensor) -> Tensor:
    """Return norms [out, 1, ...] by output unit; a vector's own norm []."""
    dimensions = tuple(range(1, tensor.ndim)) or None
    norms: Tensor = torch.linalg.vector_norm(tensor, dim=dimensions, keepdim=dimensions is not None)
    return norms
