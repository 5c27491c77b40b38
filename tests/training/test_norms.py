"""`train.log_norms`: norms.csv, its table and its plot."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from comp import config as configs
from comp.results.runs import Run
from comp.runtime.errors import Interrupted
from comp.training.norms import Norms
from comp.workflows import train
from tests.support.commands import Result, interrupt_at
from tests.support.configs import small_config, write_arrays, write_config
from tests.support.runs import the_run

SETTINGS = ["train.log_norms=true", "train.epochs=2", "train.precision=fp32", "train.compile=false"]


def test_norms_are_those_of_each_layers_parameters_together_and_gradients_mean_over_steps() -> None:
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2, bias=False))
    norms, expected = Norms(net), []
    for step in range(3):
        net.zero_grad()
        (net(torch.randn(5, 3, generator=torch.Generator().manual_seed(step))) ** 2).sum().backward()
        norms.add_step()
        first = torch.cat([p.grad.flatten() for p in net[0].parameters()])
        expected.append((float(first.norm()), float(net[2].weight.grad.norm())))
    rows = norms.rows(1)
    means = [sum(values) / 3 for values in zip(*expected, strict=True)]
    assert [row["layer"] for row in rows] == ["0", "2"]
    assert [row["parameters"] for row in rows] == [16, 8]
    assert [row["gradient_norm"] for row in rows] == pytest.approx(means, rel=1e-5)
    whole = torch.cat([p.detach().flatten() for p in net[0].parameters()])
    assert rows[0]["weight_norm"] == pytest.approx(float(whole.norm()), rel=1e-5)


def test_an_epoch_starts_from_nothing_and_a_frozen_layer_counts_as_zero() -> None:
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    net[0].requires_grad_(False)
    norms = Norms(net)
    net(torch.ones(1, 3)).sum().backward()
    norms.add_step()
    frozen, trained = norms.rows(1)
    assert frozen["gradient_norm"] == 0
    assert trained["gradient_norm"] > 0
    assert all(row["gradient_norm"] == 0 for row in norms.rows(2))


@pytest.mark.parametrize("broken", [float("inf"), float("nan")])
def test_a_step_that_the_loss_scaler_passes_over_does_not_count(broken: float) -> None:
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    norms, expected = Norms(net), []
    for step in range(4):
        for parameter in net.parameters():
            parameter.grad = torch.full_like(parameter, step + 1.0)
        if step == 1:
            net[0].bias.grad = torch.full_like(net[0].bias, broken)
        norms.add_step()
        if step != 1:
            expected.append((step + 1) * 16**0.5)
    resumed = Norms(net)
    resumed.load_state_dict(norms.state_dict())
    assert norms.rows(1)[0]["gradient_norm"] == pytest.approx(sum(expected) / 3)
    assert resumed.rows(1)[0]["gradient_norm"] == pytest.approx(sum(expected) / 3)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return an uninterrupted run of the workplace's data."""
    folder = tmp_path_factory.mktemp("whole")
    path = write_config(folder / "small.yaml", small_config(write_arrays(folder / "data")))
    return train.train(configs.load(path, SETTINGS), runs_root=folder / "runs")


@pytest.mark.parametrize("stop_at", [2, 7])
def test_an_interrupted_training_writes_the_same_norms(workplace: Path, whole: Run, stop_at: int) -> None:
    with pytest.raises(Interrupted):
        train.train(configs.load("small.yaml", SETTINGS), runs_root=Path("parts"), progress=interrupt_at(stop_at))
    resumed = train.resume(the_run(Path("parts")))
    assert whole.table("norms.csv") == resumed.table("norms.csv")
    assert {row["epoch"] for row in whole.table("norms.csv")} == {"1", "2"}


def test_the_command_prints_a_table_and_the_report_draws_it(workplace: Path, comp: Callable[..., Result]) -> None:
    output = comp("train", "small.yaml", *SETTINGS).out
    run = the_run(Path("runs"))
    layers = [row["layer"] for row in run.table("norms.csv")]
    assert all(layer in output for layer in layers)
    assert comp("report", run.path, "-o", "page.html").code == 0
    section = Path("page.html").read_text().partition('<section id="layers">')[2].partition("</section>")[0]
    assert all(f"<title>{layer}\nepoch 1: " in section for layer in layers)


def test_without_log_norms_nothing_is_written(workplace: Path) -> None:
    run = train.train(configs.load("small.yaml", SETTINGS[1:]))
    assert not (run.path / "norms.csv").exists()
