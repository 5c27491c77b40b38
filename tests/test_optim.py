"""The learning rate as a function of the step, and optimizers by name."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from comp.config import OptimConfig
from comp.training.optim import OPTIMIZERS, build_optimizer, onecycle, set_rate


@given(st.integers(2, 60), st.floats(0.05, 0.9), st.floats(0.01, 1.0), st.floats(1e-6, 1.0))
def test_onecycle_is_the_curve_of_torch(total: int, warmup: float, start: float, final: float) -> None:
    config = OptimConfig(lr=0.7, warmup=warmup, start_factor=start, final_factor=final * start)
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=0.7, total_steps=total, pct_start=warmup, div_factor=1 / start, final_div_factor=1 / final,
        cycle_momentum=False,
    )  # fmt: skip
    if warmup * total - 1 < 0:  # torch divides by a negative length there
        return
    theirs = []
    for _ in range(total):
        theirs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if len(theirs) < total:
            schedule.step()
    ours = [onecycle(step, total, config) for step in range(total)]
    assert np.allclose(ours[1:], theirs[1:], rtol=1e-6, atol=1e-9)


@given(st.integers(1, 200), st.floats(0, 1))
def test_onecycle_stays_between_zero_and_its_peak_and_ends_low(total: int, warmup: float) -> None:
    config = OptimConfig(lr=1.0, warmup=warmup)
    rates = [onecycle(step, total, config) for step in range(total)]
    assert all(0 <= rate <= 1 + 1e-12 for rate in rates)
    if total > 1 and warmup < 1:
        assert rates[-1] == pytest.approx(config.final_factor, abs=1e-9)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_descends_and_its_rate_follows_the_group_scale(name: str) -> None:
    weights = [torch.nn.Parameter(torch.ones(4)), torch.nn.Parameter(torch.ones(4))]
    groups = [
        {"params": [weight], "weight_decay": 0.0, "lr_scale": scale}
        for weight, scale in zip(weights, (1, 0.5), strict=True)
    ]
    optimizer = build_optimizer(groups, OptimConfig(name=name, lr=0.01))
    set_rate(optimizer, 0.01)
    assert [group["lr"] for group in optimizer.param_groups] == [0.01, 0.005]
    for _ in range(5):  # few enough that momentum has not yet carried past the minimum
        optimizer.zero_grad()
        sum(weight.square().sum() for weight in weights).backward()
        optimizer.step()
    assert weights[0].square().sum() < weights[1].square().sum() < 4
