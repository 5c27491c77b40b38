"""Compare what the pretend device computed with the CPU's results."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tests.support.pretend_device import PretendTensor


def assert_on(value: Any, device: torch.device) -> None:
    """Assert that a result lies on the device."""
    for tensor in _tensors(value):
        assert tensor.device.type == device.type, f"a result lies on {tensor.device}, not on {device}"


def assert_equal(ours: Any, plain: Any, *, within: float = 0.0) -> None:
    """Assert that the device's tensors equal the CPU's: bit for bit, or within a share of the largest value.

    A tensor whose largest value is below 0.01, such as a bias after a few steps, counts as if it were 0.01.
    """
    pairs = list(zip(_tensors(ours), _tensors(plain), strict=True))
    assert pairs, "nothing to compare"
    for number, (one, other) in enumerate(pairs):
        one = one.held if isinstance(one, PretendTensor) else one
        assert (one.shape, one.dtype) == (other.shape, other.dtype), f"result {number}: {one.shape}, {other.shape}"
        difference = (one.double() - other.double()).abs().max() if one.numel() else torch.tensor(0.0)
        most = within * max(0.01, float(other.double().abs().max())) if other.numel() else 0.0
        assert float(difference) <= most, f"result {number} differs from the CPU's by {float(difference):g}"


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value.detach()]
    if isinstance(value, Mapping):
        return [tensor for key in value for tensor in _tensors(value[key])]
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [tensor for item in value for tensor in _tensors(item)]
    return []
