"""Sums of an epoch: exact where the device has float64, and nearly so where it does not."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from comp.training import sums
from comp.training.checkpoint import TrainState
from comp.training.norms import Norms
from comp.training.sums import EpochMeter, RunningSum, wide_dtype

CPU = torch.device("cpu")


class WithoutFloat64(TorchDispatchMode):
    """Makes float64 an error, as on MPS."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and importing the compiler takes four seconds

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        assert all(x.dtype != torch.float64 for x in tree_leaves(result) if isinstance(x, Tensor)), func
        return result


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the CPU stand for a device without float64."""
    monkeypatch.setattr(sums, "wide_dtype", lambda device: torch.float32)


def test_only_mps_has_no_float64() -> None:
    types = {name: wide_dtype(torch.device(name)) for name in ("cpu", "cuda", "mps")}
    assert types == {"cpu": torch.float64, "cuda": torch.float64, "mps": torch.float32}


def test_sums_in_float64_are_those_of_plain_addition() -> None:
    values = torch.rand(1000, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    running, plain = RunningSum([3.0, 4.0], CPU), torch.tensor([3.0, 4.0], dtype=torch.float64)
    for value in values:
        running.add(value)
        plain += value
    assert torch.equal(running.values, plain)


def test_sums_without_float64_do_not_drift_over_many_steps(narrow: None) -> None:
    values = 1000 * torch.rand(20_000, 1, generator=torch.Generator().manual_seed(0))
    running, plain = RunningSum([0.0], CPU), torch.zeros(1)
    for value in values:
        running.add(value)
        plain += value
    exact = values.double().sum().item()
    assert abs(running.values.item() - exact) < 1.2e-7 * exact
    assert abs(plain.item() - exact) > 5e-7 * exact  # what it is for


def test_meter_and_norms_do_without_float64(narrow: None) -> None:
    net, state = nn.Linear(3, 2), TrainState(loss_sum=1.0, right_sum=2.0)
    with WithoutFloat64():
        meter, norms = EpochMeter(state, CPU), Norms(nn.Sequential(net))
        for step in range(3):
            for parameter in net.parameters():
                parameter.grad = torch.full_like(parameter, step + 1.0)
            meter.add(torch.stack((torch.tensor(0.5), torch.tensor(4.0))).to(meter.dtype), step)
            norms.add_step()
        assert meter.read(state) is None
        (row,) = norms.rows(1)
    assert (state.loss_sum, state.right_sum) == (2.5, 14.0)
    assert row["gradient_norm"] == pytest.approx(8**0.5 * 2, rel=1e-6)  # of 8 ones, twos and threes
