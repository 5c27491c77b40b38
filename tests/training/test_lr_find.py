"""`comp lr-find`: what a rising rate shows, and that it leaves nothing behind."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from comp import config as configs
from comp.runtime.device import Execution
from comp.runtime.errors import RunError
from comp.training import lr_find
from comp.workflows import build
from tests.support.commands import Result
from tests.support.parameters import slow_except

CPU = Execution(device="cpu", precision="fp32", channels_last=False, threads=1)


def found_with(overrides: list[str], lowest: float, highest: float, steps: int) -> lr_find.LRFindResult:
    """Search the small config's rate."""
    config = configs.load("small.yaml", overrides)
    dataset = build.prepare(config)
    model = build.build_model(config, dataset)
    return lr_find.find(config, dataset, model, CPU, lowest=lowest, highest=highest, steps=steps)


@pytest.mark.parametrize(
    "optimizer", slow_except(["adamw", "adam", "sgd", "muon", "lion", "lookahead"], "adamw", "muon")
)
def test_every_optimizer_is_searched_and_model_data_and_runs_stay_as_they_are(workplace: Path, optimizer: str) -> None:
    chosen = ["optim.lookahead.k=5"] if optimizer == "lookahead" else [f"optim.name={optimizer}"]
    config = configs.load("small.yaml", chosen)
    dataset = build.prepare(config)
    model = build.build_model(config, dataset)
    files = {path: path.stat().st_mtime_ns for path in workplace.rglob("*")}
    images, weights = np.array(dataset.train.images), {n: t.clone() for n, t in model.state_dict().items()}
    state = torch.random.get_rng_state()

    found = lr_find.find(config, dataset, model, CPU, lowest=1e-5, highest=10.0, steps=24)

    assert found.rates[0] < found.suggestion < found.rates[-1]
    assert len(found.losses) == len(found.rates) == len(found.smoothed)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert np.array_equal(dataset.train.images, images)
    assert {path: path.stat().st_mtime_ns for path in workplace.rglob("*")} == files
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_loss_that_diverges_ends_the_ramp_and_a_tenth_of_there_is_suggested(workplace: Path) -> None:
    found = found_with(["optim.name=sgd"], 1e-4, 1e6, 60)
    assert found.diverged is not None
    assert len(found.rates) < 60
    assert found.suggestion == found.tenth == pytest.approx(found.diverged / 10)
    assert found.steepest < found.diverged


def test_where_nothing_diverges_the_steepest_descent_is_suggested(workplace: Path) -> None:
    found = found_with(["optim.name=sgd"], 1e-4, 1e-2, 40)
    assert found.diverged is found.tenth is None
    assert found.suggestion == found.steepest
    assert "did not diverge" in found.reason


def test_rates_rise_exponentially_over_the_range(workplace: Path) -> None:
    rates = np.array(found_with([], 1e-4, 1e-2, 30).rates)
    assert rates[[0, -1]] == pytest.approx([1e-4, 1e-2])
    assert np.diff(np.log(rates)) == pytest.approx(np.log(100) / 29)


def test_a_loss_that_does_not_fall_gives_no_suggestion(workplace: Path) -> None:
    with pytest.raises(RunError, match="does not fall"):
        found_with(["optim.name=sgd"], 1e-12, 1e-11, 40)


def test_the_verb_prints_one_json_value_and_draws(workplace: Path, comp: Callable[..., Result]) -> None:
    result = comp("lr-find", "small.yaml", "--from", 1e-5, "--to", 1, "--steps", 24, "-o", "rates.png", "--json")
    assert result.code == 0, result.err
    told = json.loads(result.out)
    assert told["suggestion"] in (told["steepest"], told["tenth_of_diverged"])
    with Image.open("rates.png") as image:
        assert np.asarray(image.convert("RGB")).std() > 5
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("options", "values"),
    [(("--from", 1, "--to", 0.1), "1 to 0.1"), (("--steps", 3), "3 steps"), (("--from", 0), "0 to 10")],
)
def test_a_range_that_does_not_rise_is_refused(
    workplace: Path, comp: Callable[..., Result], options: tuple[object, ...], values: str
) -> None:
    result = comp("lr-find", "small.yaml", *options)
    assert result.code == 2
    assert values in result.err
