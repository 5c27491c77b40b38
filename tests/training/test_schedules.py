"""The learning rate as a function of step and plan."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim import lr_scheduler

from comp.runtime.errors import ConfigError
from comp.training import schedules
from comp.training.schedules import SCHEDULES, Plan, Schedule

PEAK = 0.7
shares = st.floats(0.01, 0.9)


def curve(plan: Plan, schedule: Schedule) -> list[float]:
    """Return the rates of all steps."""
    return [schedule.rate(step, plan) for step in range(plan.total_steps)]


def of_torch(total: int, build: Any) -> list[float]:
    """Return the rates that one of torch's schedulers gives to the steps, the peak being PEAK."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=PEAK)
    scheduler = build(optimizer)
    rates = []
    for _ in range(total):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if len(rates) < total:
            scheduler.step()
    return rates


@given(st.integers(2, 60), st.floats(0.05, 0.9), st.floats(0.01, 1.0), st.floats(1e-6, 1.0))
def test_onecycle_is_the_curve_of_torch(total: int, warmup: float, start: float, final: float) -> None:
    schedule = Schedule("onecycle", lr=PEAK, warmup=warmup, start_factor=start, final_factor=final * start)
    if warmup * total - 1 <= 0:  # torch divides by that length; what ours does there is told below
        return
    theirs = of_torch(
        total,
        lambda optimizer: lr_scheduler.OneCycleLR(
            optimizer,
            max_lr=PEAK,
            total_steps=total,
            pct_start=warmup,
            div_factor=1 / start,
            final_div_factor=1 / final,
            cycle_momentum=False,
        ),
    )
    assert np.allclose(curve(Plan(total, 1), schedule)[1:], theirs[1:], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("warmup", [0.0, 0.02, 0.05])
def test_a_warmup_of_a_step_or_less_begins_at_the_peak(warmup: float) -> None:
    rates = curve(Plan(20, 1), Schedule("onecycle", lr=PEAK, warmup=warmup))
    assert rates[0] == pytest.approx(PEAK)
    assert all(later < earlier for earlier, later in pairwise(rates))


@pytest.mark.parametrize("name", ["cosine", "linear"])
@given(total=st.integers(4, 60), warmup=st.floats(0.3, 0.7), start=shares, final=st.floats(0, 1))
def test_cosine_and_linear_are_the_curves_of_torch(
    name: str, total: int, warmup: float, start: float, final: float
) -> None:
    rise = round(warmup * total)
    schedule = Schedule(name, lr=PEAK, warmup=warmup, start_factor=start, final_factor=final)
    up = {"start_factor": start, "total_iters": rise}
    down = {
        "cosine": lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, total - rise, eta_min=PEAK * final),
        "linear": lambda optimizer: lr_scheduler.LinearLR(optimizer, 1.0, final, total_iters=total - rise),
    }[name]

    def build(optimizer: torch.optim.Optimizer) -> Any:
        parts = [lr_scheduler.LinearLR(optimizer, **up), down(optimizer)]
        return lr_scheduler.SequentialLR(optimizer, parts, milestones=[rise])

    assert np.allclose(curve(Plan(total, 1), schedule), of_torch(total, build), rtol=1e-5, atol=1e-9)


@given(st.integers(1, 40), st.integers(1, 5), st.integers(1, 7), shares)
def test_step_is_the_curve_of_torch(total: int, every: int, steps_per_epoch: int, factor: float) -> None:
    schedule = Schedule("step", lr=PEAK, step_epochs=every, step_factor=factor)
    theirs = of_torch(total, lambda optimizer: lr_scheduler.StepLR(optimizer, every * steps_per_epoch, gamma=factor))
    assert np.allclose(curve(Plan(total, steps_per_epoch), schedule), theirs, rtol=1e-9)


@pytest.mark.parametrize("name", SCHEDULES)
@given(total=st.integers(1, 200), warmup=st.floats(0, 1), start=st.floats(0.01, 1), final=st.floats(0, 1))
def test_a_rate_stays_between_zero_and_the_peak_and_rises_only_before_it(
    name: str, total: int, warmup: float, start: float, final: float
) -> None:
    schedule = Schedule(name, lr=PEAK, warmup=warmup, start_factor=start, final_factor=final)
    rates = curve(Plan(total, 7), schedule)
    assert all(0 <= value <= PEAK * (1 + 1e-12) for value in rates)
    top = int(np.argmax(rates))
    assert np.all(np.diff(rates[: top + 1]) >= -1e-12)
    assert np.all(np.diff(rates[top:]) <= 1e-12)


@given(st.integers(2, 200), st.floats(0, 0.9), st.floats(0, 0.5))
def test_onecycle_has_its_final_rate_at_the_last_step(total: int, warmup: float, final: float) -> None:
    schedule = Schedule("onecycle", lr=1.0, warmup=warmup, final_factor=final)
    assert schedule.rate(total - 1, Plan(total, 1)) == pytest.approx(final, abs=1e-9)


@pytest.mark.parametrize("name", ["onecycle", "cosine", "linear"])
@given(total=st.integers(10, 100), at=st.floats(0.1, 0.8), factor=st.floats(0.5, 3))
def test_a_changed_plan_goes_on_where_it_stood_and_ends_as_it_would_have(
    name: str, total: int, at: float, factor: float
) -> None:
    schedule = Schedule(name, lr=PEAK, warmup=0.0, final_factor=0.01)
    plan, step = Plan(total, 1), int(at * total)
    longer = max(step + 2, round(total * factor))
    changed = plan.replanned(step, longer)
    # Curves are functions of the share of their length, up to one step of discreteness at either plan.
    slack = 4 * PEAK / min(total, longer)
    assert schedule.rate(step, changed) == pytest.approx(schedule.rate(step, plan), abs=slack)
    assert schedule.rate(longer - 1, changed) == pytest.approx(schedule.rate(longer - 1, Plan(longer, 1)), rel=1e-9)
    rates = [schedule.rate(s, changed) for s in range(step, longer)]
    assert np.all(np.diff(rates) <= 1e-12)


@given(st.integers(5, 50), st.integers(1, 4))
def test_a_plan_that_is_changed_to_itself_keeps_its_rates(total: int, step: int) -> None:
    plan, schedule = Plan(total, 1), Schedule("onecycle", lr=PEAK)
    again = plan.replanned(step, total).replanned(step, total)
    assert np.allclose(curve(plan, schedule)[step:], [schedule.rate(s, again) for s in range(step, total)], rtol=1e-9)


def test_an_unknown_schedule_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"choose from .*cosine.* \(did you mean 'linear'\?\)"):
        schedules.check_schedule("liner")
