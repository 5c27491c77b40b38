"""Moving plans, nests of tuples with tensors, to the device."""

from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

_Plans = TypeVar("_Plans")

_ALIGNED = 16  # bytes


def send(plans: _Plans, device: torch.device) -> _Plans:
    """Return plans with their tensors on the device, in one copy that the host does not wait for.

    On the CPU they stay what they are.
    """
    leaves, structure = pytree.tree_flatten(plans)
    tensors = [leaf.contiguous() for leaf in leaves if isinstance(leaf, Tensor)]
    if device.type == "cpu" or not tensors:
        return plans
    ends = [0]
    for tensor in tensors:
        ends.append(ends[-1] + -(-tensor.nbytes // _ALIGNED) * _ALIGNED)
    packed = torch.empty(ends[-1], dtype=torch.uint8, pin_memory=device.type == "cuda")
    for start, tensor in zip(ends, tensors, strict=False):
        packed[start : start + tensor.nbytes] = tensor.view(-1).view(torch.uint8)
    there = packed.to(device, non_blocking=True)
    sent = iter(
        there[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        for start, tensor in zip(ends, tensors, strict=False)
    )
    leaves = [next(sent) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
    return cast(_Plans, pytree.tree_unflatten(leaves, structure))


def at_step(plans: _Plans, step: int) -> _Plans:
    """Return plans with the row of a step of every tensor [S, ...]."""

    def row(leaf: Any) -> Any:
        return leaf[step] if isinstance(leaf, Tensor) else leaf

    return cast(_Plans, pytree.tree_map(row, plans))
