"""Constants of the corruptions, each copied once to the device that uses it: a copy at every call would wait there."""

import functools
from collections.abc import Callable, Hashable

import torch
from torch import Tensor


@functools.lru_cache(maxsize=256)
def matrix(make: Callable[..., Tensor], device: torch.device, *arguments: Hashable) -> Tensor:
    """Return `make(*arguments)`, a float64 matrix, as float32 on a device."""
    return make(*arguments).to(device, torch.float32)


@functools.lru_cache(maxsize=64)
def values(numbers: tuple[float, ...] | tuple[tuple[float, ...], ...], device: torch.device) -> Tensor:
    """Return numbers as a tensor on a device: int64 of whole numbers, else float32."""
    return torch.tensor(numbers, device=device)
