"""`train.budget`: a training that ends annealed, in time."""

import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from comp import config as configs
from comp.results import files, runs
from comp.runtime.errors import ConfigError, Interrupted
from comp.training.budget import TimeBudget
from comp.training.schedules import Schedule
from comp.workflows import train
from tests.support.commands import Result

VALIDATED, BATCH = 100, 10
SCHEDULE = Schedule("onecycle", lr=1e-3)


@dataclass
class Machine:
    """What things take, by a clock that only they move."""

    step: Callable[[int], float]
    image: float = 0.0
    save: float = 0.0
    checkpoint_seconds: float = 60.0
    now: float = 1000.0
    rates: list[float] = field(default_factory=list)
    records: list[dict[str, Any]] = field(default_factory=list)

    def budget(self, seconds: float, steps_per_epoch: int, began: float) -> TimeBudget:
        """Return a budget on this machine's clock."""
        return TimeBudget(
            seconds,
            steps_per_epoch,
            batch_size=BATCH,
            validation_images=lambda number, last: VALIDATED,
            checkpoint_seconds=self.checkpoint_seconds,
            began=began,
            record=self.note,
            clock=lambda: self.now,
        )

    def note(self, plans: list[dict[str, Any]]) -> None:
        """Keep what was recorded last."""
        self.records = [dict(plan) for plan in plans]

    def checkpoint(self, budget: TimeBudget) -> None:
        """Spend what a checkpoint takes."""
        self.now += self.save
        budget.on_saved(self.save)

    def train(self, budget: TimeBudget, steps_per_epoch: int, taken: int = 0, stop_at: int | None = None) -> int:
        """Train as `fit` does; return the steps taken."""
        saved = self.now
        budget.on_start()
        while taken < budget.plan.total_steps:
            while taken < budget.plan.total_steps:
                self.rates.append(SCHEDULE.rate(taken, budget.plan))
                self.now += self.step(taken)
                taken += 1
                if self.now - saved >= self.checkpoint_seconds:
                    self.checkpoint(budget)
                    saved = self.now
                if taken == stop_at:
                    return taken
                budget.on_step(taken)
                if taken % steps_per_epoch == 0:
                    break
            budget.on_epoch_trained(taken)
            self.now += VALIDATED * self.image
            budget.on_epoch_end(taken)
        self.now += 2 * self.save  # state and final weights
        return taken


def first_slow(seconds: float, first: float = 0.0) -> Callable[[int], float]:
    """Return steps that all take the same, but for the first one."""
    return lambda step: first if step == 0 and first else seconds


FINAL = SCHEDULE.lr * SCHEDULE.final_factor


@given(
    step=st.floats(0.05, 0.5),
    image=st.floats(0.0, 0.02),
    save=st.floats(0.0, 1.0),
    first=st.floats(0.0, 10.0),
    steps_per_epoch=st.integers(20, 1000),
    startup=st.floats(0.0, 20.0),
)
@example(step=0.0668129073133366, image=0.014812847160838534, save=0.0, first=1.25, steps_per_epoch=53, startup=2.5)
@settings(max_examples=15)
def test_the_schedule_ends_annealed_within_the_budget(
    step: float, image: float, save: float, first: float, steps_per_epoch: int, startup: float
) -> None:
    machine = Machine(first_slow(step, first), image, save)
    began = machine.now
    machine.now += startup
    taken = machine.train(machine.budget(300.0, steps_per_epoch, began), steps_per_epoch)
    spent = machine.now - began
    assert spent <= 300.0 * 1.02
    # An epoch's end that took longer than planned can cost the last steps, whose rates hardly differ.
    assert machine.rates[-1] == pytest.approx(FINAL, abs=1e-4 * SCHEDULE.lr)
    assert machine.records[-1]["total_steps"] == taken


def test_a_machine_that_slows_down_midway_ends_annealed_in_time() -> None:
    machine = Machine(lambda step: 0.1 if step < 500 else 0.23, image=0.01, save=0.2)
    began = machine.now
    machine.train(machine.budget(200.0, 400, began), 400)
    assert 200.0 * 0.95 < machine.now - began <= 200.0 * 1.02
    assert machine.rates[-1] == pytest.approx(FINAL)


def test_an_epoch_longer_than_the_budget_is_cut_short() -> None:
    machine = Machine(first_slow(0.1), image=0.01)
    taken = machine.train(machine.budget(50.0, 10_000, machine.now), 10_000)
    assert 450 < taken < 500
    assert machine.rates[-1] == pytest.approx(FINAL)


def test_rates_do_not_jump_where_a_plan_changes() -> None:
    machine = Machine(lambda step: 0.1 if step < 500 else 0.2, image=0.01)
    machine.train(machine.budget(200.0, 100, machine.now), 100)
    jumps = [abs(after - before) for before, after in itertools.pairwise(machine.rates)]
    assert max(jumps) < 0.02 * SCHEDULE.lr
    assert max(machine.rates) > 0.98 * SCHEDULE.lr


def test_every_plan_is_recorded_with_what_it_was_made_from() -> None:
    machine = Machine(first_slow(0.1, 2.0), image=0.01, save=0.5)
    machine.train(machine.budget(100.0, 100, machine.now), 100)
    ends = {plan["step"] for plan in machine.records if plan["step"] % 100 == 0}
    assert ends >= {100, 200, 300, 400, 500, 600, 700}
    last = machine.records[-1]
    assert last["seconds_a_step"] == pytest.approx(0.1)
    assert last["seconds_an_epochs_end"] == pytest.approx(1.0)
    assert last["seconds_a_checkpoint"] == 0.5
    assert [plan["seconds_spent"] for plan in machine.records] == sorted(p["seconds_spent"] for p in machine.records)


@pytest.mark.parametrize("stop_at", [1, 250, 400, 555])
def test_a_resumed_training_continues_within_what_is_left(stop_at: int) -> None:
    machine = Machine(first_slow(0.1), image=0.01)
    budget = machine.budget(100.0, 200, machine.now)
    taken = machine.train(budget, 200, stop_at=stop_at)
    spent, state = budget.elapsed, json.loads(json.dumps(budget.state_dict()))

    machine.now += 5000.0  # nobody trains
    began = machine.now
    machine.now += 4.0  # the new process opens its data
    again = machine.budget(100.0, 200, began)
    again.load_state_dict(state)
    machine.train(again, 200, taken=taken)
    assert 90.0 < spent + machine.now - began <= 102.0
    assert machine.rates[-1] == pytest.approx(FINAL)


def test_a_training_that_goes_back_keeps_its_clock() -> None:
    machine = Machine(first_slow(0.1), image=0.01)
    began = machine.now
    budget = machine.budget(100.0, 200, began)
    early = budget.state_dict()
    machine.train(budget, 200, stop_at=300)
    budget.load_state_dict(early)
    machine.train(budget, 200)
    assert machine.now - began <= 102.0
    assert machine.rates[-1] == pytest.approx(FINAL)


@pytest.fixture
def budgeted(workplace: Path) -> configs.Config:
    """Return the small config with a budget of some seconds."""
    return configs.load("small.yaml", ["train.budget=4s", "augment.mix_off_epochs=1"])


def test_a_real_training_ends_annealed_in_time_and_records_its_plans(budgeted: configs.Config) -> None:
    run = train.train(budgeted)
    found = files.read_json(run.path / "plans.json")
    last = run.history()[-1]
    assert found["budget_seconds"] == 4.0
    assert float(last["lr"]) == pytest.approx(budgeted.optim.lr * budgeted.optim.final_factor)
    assert len(run.history()) == -(-found["plans"][-1]["total_steps"] // 4)  # 128 images, 32 a step
    assert run.metrics().train_seconds <= 4.0 * 1.02


def test_an_interrupted_budget_goes_on_where_it_stopped(budgeted: configs.Config) -> None:
    calls = itertools.count()

    def stop(what: str, done: int, total: int, unit: str = "images", note: str = "") -> None:
        if unit == "steps" and next(calls) == 8:
            raise Interrupted(15)

    with pytest.raises(Interrupted):
        train.train(budgeted, progress=stop)
    (run,) = runs.list_runs(Path("runs"))
    early = files.read_json(run.path / "plans.json")["plans"]
    train.resume(run)
    plans = files.read_json(run.path / "plans.json")["plans"]
    assert plans[: len(early)] == early
    assert len(plans) > len(early)
    assert float(run.history()[-1]["lr"]) == pytest.approx(budgeted.optim.lr * budgeted.optim.final_factor)
    assert run.metrics().train_seconds <= 4.0 * 1.02


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90.0), ("15min", 900.0), ("1.5h", 5400.0), ("2 min", 120.0)])
def test_durations_are_spelled_with_their_unit(text: str, seconds: float) -> None:
    assert configs.parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["15", "15 minutes", "-3s", "0s", "1h30"])
def test_other_durations_are_refused_in_one_message(workplace: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"train\.budget"):
        configs.load("small.yaml", [f"train.budget='{text}'"])


def test_a_rehearsal_says_what_fits(workplace: Path, comp: Callable[..., Result]) -> None:
    result = comp("run", "small.yaml", "train.budget=1h", "--rehearse")
    assert result.code == 0, result.err
    assert "epochs fit into 1h" in result.out
