"""Averages are what their papers say, compete fairly, and survive an interruption with their bits."""

import json
import signal
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from timm.layers import BatchNormAct2d, convert_sync_batchnorm
from torch import Tensor, nn

from comp import config as configs
from comp.models import averaging
from comp.models.averaging import EMA, SWA, Soup
from comp.models.classifier import Classifier
from comp.results import files, prediction_files, runs
from comp.runtime.errors import Interrupted
from comp.workflows import train
from tests.support.commands import Result, interrupt_at
from tests.support.parameters import slow_except
from tests.support.runs import assert_same_weights, history_without_clock, the_run, weights_of

FEW = "competition.ood_validation.severities=[]"
NORMED = ["model={name: convnet, args: {}}"]  # its batch norm keeps statistics


def small_net() -> nn.Sequential:
    """Return a net with weights, batch statistics and a counter."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def walk(model: nn.Module, step: int) -> None:
    """Change weights and statistics in place, as a training does."""
    generator = torch.Generator().manual_seed(step)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(torch.randn(tensor.shape, generator=generator))
            else:
                tensor.add_(1)


def test_ema_is_the_closed_form() -> None:
    model, horizon, steps = small_net(), 2.0, 20
    ema = EMA(model, horizon)
    seen = [averaging.clone_state_dict(model)]
    for step in range(1, steps + 1):
        walk(model, step)
        ema.step()
        seen.append(averaging.clone_state_dict(model))
    decays = [min(np.exp(-1 / horizon), (1 + t) / (10 + t)) for t in range(1, steps + 1)]
    assert decays[0] < decays[-1] == np.exp(-1 / horizon)  # both parts of the rule are met
    shares = [np.prod(decays)]  # of the weights that it started with
    shares += [(1 - decays[t]) * np.prod(decays[t + 1 :]) for t in range(steps)]
    assert sum(shares) == pytest.approx(1)
    for name, tensor in ema.final(None).items():
        if tensor.is_floating_point():
            wanted = sum(float(share) * state[name] for share, state in zip(shares, seen, strict=True))
            assert torch.allclose(tensor, torch.as_tensor(wanted), atol=1e-5)
        else:
            assert tensor == seen[-1][name]


def test_swa_is_the_mean_of_the_last_epochs_ends() -> None:
    model = small_net()
    swa = SWA(model, first_epoch=3)
    ends = []
    for epoch in range(1, 7):
        assert (swa.final(None) is None) == (epoch <= 3)
        walk(model, epoch)
        swa.end_epoch(epoch, None)
        ends.append(averaging.clone_state_dict(model))
    found = swa.final(None)
    assert found is not None
    for name, tensor in averaging.mean(ends[2:]).items():
        assert torch.allclose(found[name].double(), tensor.double(), atol=1e-5)
        assert torch.allclose(tensor.double(), torch.stack([end[name] for end in ends[2:]])[-1].double()) == (
            not tensor.is_floating_point()
        )


@given(st.integers(0, 2**31), st.integers(1, 6), st.booleans())
def test_a_soup_is_never_worse_than_its_best_member(seed: int, epochs: int, measured: bool) -> None:
    generator = np.random.default_rng(seed)
    model = nn.Linear(2, 2, bias=False)
    target = torch.from_numpy(generator.normal(size=(2, 2))).float()

    def score(state: Mapping[str, Tensor]) -> float:
        # Of a rugged kind: the mean of two good ones may be worse than either.
        distance = (state["weight"] - target).norm()
        return float(torch.cos(5 * distance) - distance)

    soup, ends = Soup(model, epochs), []
    for epoch in range(1, 9):
        with torch.no_grad():
            model.weight.copy_(torch.from_numpy(generator.normal(size=(2, 2))))
        ends.append(averaging.clone_state_dict(model))
        soup.end_epoch(epoch, score(ends[-1]) if measured else None)
    found = soup.final(score)
    assert found is not None
    assert score(found) >= max(score(state) for state in ends[-epochs:])


def test_a_soup_takes_what_helps_and_leaves_what_does_not() -> None:
    model = nn.Linear(1, 1, bias=False)
    soup = Soup(model, 3)
    for epoch, weight in enumerate((100.0, 1.0, -1.0, 5.0), 1):  # the first is forgotten
        nn.init.constant_(model.weight, weight)
        soup.end_epoch(epoch, None)
    found = soup.final(lambda state: -abs(float(state["weight"])))
    assert found is not None
    assert float(found["weight"]) == 0.0  # the mean of 1 and -1


@pytest.mark.parametrize("name", averaging.AVERAGES)
def test_an_average_goes_on_from_its_state(name: str, tmp_path: Path) -> None:
    config = configs.from_mapping(
        {"train": {"average": name, "epochs": 4, "swa_epochs": 3, "soup_epochs": 3}}, "test"
    ).train
    ends = []
    for stop_at in (None, 5):
        model = small_net()
        average = averaging.build_average(model, config, steps_per_epoch=2)
        for step in range(1, 9):
            walk(model, step)
            average.step()
            if step % 2 == 0:
                average.end_epoch(step // 2, -abs(step - 5))
            if step == stop_at:
                torch.save(average.state_dict(), tmp_path / "state.pt")
                average = averaging.build_average(model, config, steps_per_epoch=2)
                average.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
        ends.append(average.final(lambda state: float(state["0.weight"].sum())))
    whole, resumed = ends
    if whole is None or resumed is None:
        assert name == "none"
        assert whole is resumed
    else:
        assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_states_that_earlier_versions_wrote_are_taken_back() -> None:
    saved = averaging.clone_state_dict(small_net())
    saved["0.weight"] += 1
    ema, swa = EMA(small_net(), 5.0), SWA(small_net(), 1)
    ema.load_state_dict({"average": saved, "steps": 7})
    swa.load_state_dict({"mean": saved, "count": 2})
    for average in (ema.final(None), swa.final(None)):
        assert average is not None
        assert all(torch.equal(average[name], saved[name]) for name in saved)
    assert ema.state_dict()["steps"] == 7
    with pytest.raises(KeyError):  # another average's: the checkpoint says so in one message
        ema.load_state_dict(swa.state_dict())


def test_refreshed_statistics_are_those_of_the_batches_and_nothing_else_moves() -> None:
    model = small_net()
    before, averaged = averaging.clone_state_dict(model), averaging.clone_state_dict(small_net())
    averaged["0.weight"] += 1
    batches = [torch.randn(50, 3) + 2 for _ in range(3)]
    after = averaging.refresh_bn_statistics(model, averaged, batches)
    inputs = [nn.functional.linear(batch, averaged["0.weight"], averaged["0.bias"]) for batch in batches]
    assert torch.allclose(after["1.running_mean"], torch.stack([x.mean(0) for x in inputs]).mean(0), atol=1e-5)
    assert torch.allclose(after["1.running_var"], torch.stack([x.var(0) for x in inputs]).mean(0), atol=1e-5)
    kept = [name for name in before if "running" not in name and "num" not in name]
    assert all(torch.equal(after[name], averaged[name]) for name in kept)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.training
    assert isinstance(model[1], nn.BatchNorm1d)
    assert model[1].momentum == 0.1


def test_images_for_a_refresh_are_made_outside_of_autocast() -> None:
    model = small_net()
    made: list[bool] = []
    seen: list[torch.dtype] = []
    model[0].register_forward_hook(lambda layer, inputs, output: seen.append(output.dtype))

    def batches() -> Iterator[Tensor]:
        for _ in range(3):
            made.append(torch.is_autocast_enabled("cpu"))  # augmentation would compute in bfloat16
            yield torch.randn(50, 3)

    autocast = partial(torch.autocast, "cpu", dtype=torch.bfloat16)
    averaging.refresh_bn_statistics(model, model.state_dict(), batches(), autocast)
    assert made == [False] * 3
    assert set(seen) == {torch.bfloat16}


def test_a_refresh_drops_nothing_out_and_leaves_frozen_norms_alone() -> None:
    inner = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
    model = Classifier(inner, mean=(0.5,) * 3, std=(0.25,) * 3)
    model.frozen_bn_layers = frozenset({"1"})
    state = averaging.clone_state_dict(model)
    state["inner.1.running_mean"] += 1
    images = torch.rand(40, 3, 4, 4)
    after = averaging.refresh_bn_statistics(model, state, [images])
    assert torch.equal(after["inner.1.running_mean"], state["inner.1.running_mean"])
    model.load_state_dict(state)
    with torch.no_grad():
        convolved = model.eval().inner[:3](model.prepare(images))  # type: ignore[index]
    assert torch.allclose(after["inner.3.running_mean"], convolved.mean((0, 2, 3)), atol=1e-5)
    assert torch.allclose(after["inner.3.running_var"], convolved.var((0, 2, 3)) * 1.0, rtol=1e-3)


def test_a_synchronised_norm_is_refreshed_as_a_plain_one() -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(3, 4, 1), BatchNormAct2d(4), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
    synchronised = convert_sync_batchnorm(deepcopy(plain))
    assert sum(isinstance(layer, nn.SyncBatchNorm) for layer in synchronised) == 2
    state, batches = averaging.clone_state_dict(plain), [torch.randn(8, 3, 5, 5) for _ in range(3)]
    first, second = (
        averaging.refresh_bn_statistics(plain, state, batches),
        averaging.refresh_bn_statistics(synchronised, state, batches),
    )
    assert first.keys() == second.keys()
    assert all(torch.allclose(first[name], second[name], atol=1e-6) for name in first)


@pytest.mark.parametrize("average", ["ema", "swa", "soup"])
def test_averaged_weights_compete_and_both_are_scored(
    workplace: Path, comp: Callable[..., Result], average: str
) -> None:
    settings = [f"train.average={average}", "train.epochs=3", "train.swa_epochs=2", "train.select=val_loss", FEW]
    result = comp("train", "small.yaml", *settings)
    assert result.code == 0, result.err
    assert "validation, averaged" in result.out
    run = the_run()
    scores = run.metrics()
    assert scores.averaged.method == average
    assert scores.averaged.statistics in ("averaged", "refreshed")
    for which in ("final", "averaged", "best"):
        found = prediction_files.load(run.predictions_path("val" if which == "best" else f"val-{which}"))
        assert found.made_by["weights_sha256"] == files.sha256_file(run.path / f"{which}.safetensors")
    losses = {which: getattr(scores, which).val.log_loss for which in ("final", "averaged", "best")}
    assert losses["best"] <= min(losses.values())
    of_epochs = [float(row["averaged"]) for row in run.history() if row["averaged"]]
    assert len(of_epochs) == (3 if average == "ema" else 0)
    raw = [float(row["val_loss"]) for row in run.history()]
    assert losses["best"] == pytest.approx(min([*raw, *of_epochs, losses["averaged"]]), abs=1e-6)
    assert scores.best_averaged == (losses["best"] < min(raw) - 1e-9)
    if average == "soup":
        assert losses["averaged"] <= min(raw) + 1e-6


@pytest.mark.parametrize(("average", "stop_at"), slow_except([("ema", 6), ("swa", 7), ("soup", 10)], ("swa", 7)))
def test_an_interrupted_average_ends_with_the_same_bits(workplace: Path, average: str, stop_at: int) -> None:
    settings = [f"train.average={average}", "train.epochs=3", "train.swa_epochs=2", "train.soup_epochs=2", FEW]
    config = configs.load("small.yaml", settings)  # 4 steps an epoch
    whole = train.train(config, runs_root=Path("whole"))
    with pytest.raises(Interrupted):
        train.train(config, runs_root=Path("parts"), progress=interrupt_at(stop_at))
    resumed = train.resume(the_run(Path("parts")))
    assert_same(whole, resumed)


def test_a_training_stopped_while_its_average_is_finished_loses_nothing(workplace: Path) -> None:
    config = configs.load("small.yaml", ["train.average=swa", "train.swa_epochs=2", FEW, *NORMED])
    whole = train.train(config, runs_root=Path("whole"))

    def stop(what: str, done: int, total: int, unit: str = "images", note: str = "") -> None:
        if what == "batch norm" and done == 2:
            raise Interrupted(signal.SIGTERM)

    with pytest.raises(Interrupted):
        train.train(config, runs_root=Path("parts"), progress=stop)
    assert_same(whole, train.resume(the_run(Path("parts"))))


def assert_same(one: runs.Run, other: runs.Run) -> None:
    """Assert that raw, averaged and best weights have the same bits, and that histories and scores agree."""
    assert_same_weights(one, other)
    for name in ("averaged", "best"):
        first, second = weights_of(one, name), weights_of(other, name)
        assert all(np.array_equal(first[key], second[key]) for key in first)
    assert history_without_clock(one) == history_without_clock(other)
    clock: set[str] = {"run", "train_seconds"}
    scores: list[dict[str, Any]] = [
        {key: value for key, value in run.metrics().to_json().items() if key not in clock} for run in (one, other)
    ]
    assert scores[0] == scores[1]


def test_a_training_that_ends_before_its_averaged_epochs_says_so(workplace: Path, comp: Callable[..., Result]) -> None:
    ends_in_2 = ["train.epochs=6", "train.patience=1", "train.min_delta=2", "train.swa_epochs=3"]
    result = comp("train", "small.yaml", "train.average=swa", *ends_in_2, FEW)
    assert result.code == 0, result.err
    assert "no averaged weights: the training ended in epoch 2" in result.out
    assert not (the_run().path / "averaged.safetensors").exists()


def test_an_average_is_selected_by_shifted_accuracy_in_a_training_that_ends_early(
    workplace: Path, comp: Callable[..., Result]
) -> None:
    select = ["train.select=ood_accuracy", "competition.ood_validation.every=2"]
    ends_in_4 = ["train.epochs=9", "train.patience=2", "train.min_delta=2"]
    result = comp("train", "small.yaml", "train.average=soup", "train.soup_epochs=2", *select, *ends_in_4)
    assert result.code == 0, result.err
    scores = the_run().metrics()
    shifted = [float(row["ood_accuracy"]) for row in the_run().history() if row["ood_accuracy"]]
    assert len(shifted) == 2
    assert scores.best.ood_val.accuracy >= max(shifted) - 1e-6


@pytest.mark.parametrize(("average", "statistics"), [("ema", "averaged"), ("swa", "refreshed")])
def test_without_validation_averaged_weights_predict(
    workplace: Path, comp: Callable[..., Result], average: str, statistics: str
) -> None:
    result = comp("run", "small.yaml", f"train.average={average}", "data.validation=none", *NORMED, "--json")
    assert result.code == 0, result.err
    run = the_run()
    assert not (run.path / "best.safetensors").exists()
    sidecar = json.loads(Path("submissions/small.json").read_text())
    assert sidecar["weights_sha256"] == files.sha256_file(run.path / "averaged.safetensors")
    assert sidecar["weights_sha256"] != files.sha256_file(run.path / "final.safetensors")
    assert json.loads(result.out)["averaged"] == {"method": average, "statistics": statistics, "missing": ""}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["train.average=emma"], "'ema'"),
        (["train.average=soup", "data.validation=none"], "train.average"),
    ],
)
def test_an_average_that_cannot_be_is_refused(
    workplace: Path, comp: Callable[..., Result], settings: list[str], said: str
) -> None:
    result = comp("train", "small.yaml", *settings)
    assert result.code == 2
    assert said in result.err
