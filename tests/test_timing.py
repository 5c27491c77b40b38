"""How to run is measured, not guessed: the faster way is taken, and pixels, weights and bits never notice."""

import json
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from comp import config as configs
from comp import device, pipeline, predicting, runs
from comp.config import Config
from comp.data.dataset import Dataset, open_dataset
from comp.errors import ConfigError, Interrupted, RunError
from comp.training import timing
from tests.conftest import Changed
from tests.test_run import assert_same_weights, the_run, weights_of

FIXED = ("train.compile=false", "data.workers=2")


class Slow(nn.Module):
    """A linear classifier that takes 50 ms more in one precision."""

    def __init__(self, *, slow_in_bf16: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(3 * 32 * 32, 4)
        self.slow_in_bf16 = slow_in_bf16

    def forward(self, images: Tensor) -> Tensor:
        """Return logits, in one precision after a while."""
        if torch.is_autocast_enabled("cpu") == self.slow_in_bf16:
            time.sleep(0.05)
        logits: Tensor = self.linear(images.flatten(1).float() / 255)
        return logits


def opened(*overrides: str) -> tuple[Config, Dataset]:
    """Return the workplace's config and data."""
    config = configs.load("small.yaml", [*FIXED, *overrides])
    return config, open_dataset(config)


@pytest.mark.usefixtures("workplace")
def test_nothing_is_timed_where_the_config_says_it_all() -> None:
    config, dataset = opened()
    choice = timing.choose_execution(Slow(slow_in_bf16=True), dataset, config)
    assert choice.execution == device.Execution("cpu", "fp32", channels_last=False, threads=1, workers=2)
    assert choice.seconds_a_step == {}


@pytest.mark.usefixtures("workplace")
@pytest.mark.parametrize("slow_in_bf16", [False, True])
def test_auto_takes_the_faster_precision_and_leaves_model_and_randomness_alone(slow_in_bf16: bool) -> None:
    config, dataset = opened("train.precision=auto")
    model = Slow(slow_in_bf16=slow_in_bf16)
    before, state = {name: value.clone() for name, value in model.state_dict().items()}, torch.get_rng_state()
    choice = timing.choose_execution(model, dataset, config)
    assert choice.execution.precision == ("fp32" if slow_in_bf16 else "bf16")
    assert set(choice.seconds_a_step) == {f"{name} channels_first 1 threads" for name in ("fp32", "bf16")}
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.usefixtures("workplace")
def test_a_short_training_is_not_even_tried_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/nowhere/g++")
    config, dataset = opened("train.compile=auto")
    assert timing.choose_execution(Slow(slow_in_bf16=True), dataset, config).notes == []


@pytest.mark.usefixtures("workplace")
def test_without_a_compiler_a_long_training_says_so_and_stays_uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/nowhere/g++")
    config, dataset = opened("train.compile=auto", "train.epochs=100000")
    choice = timing.choose_execution(Slow(slow_in_bf16=False), dataset, config)
    assert not choice.execution.compiled
    assert ["no C++ compiler is found (CXX=/nowhere/g++)" in note for note in choice.notes] == [True]


@pytest.mark.usefixtures("workplace")
def test_compile_true_without_a_compiler_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/nowhere/g++")
    config, dataset = opened("train.compile=true")
    with pytest.raises(ConfigError, match=r"train\.compile: no C\+\+ compiler is found .* train\.compile=false"):
        timing.choose_execution(Slow(slow_in_bf16=True), dataset, config)


@pytest.mark.usefixtures("workplace")
def test_workers_are_timed_where_images_pass_through_them() -> None:
    config, dataset = opened("data.workers=auto", "train.batch_size=8")

    def slowly(image: NDArray[np.uint8], epoch: int, index: int) -> NDArray[np.uint8]:
        time.sleep(0.02)
        return image

    choice = timing.choose_execution(Slow(slow_in_bf16=True), dataset, config, transform=Changed(slowly))
    seconds = {name: taken for name, taken in choice.seconds_a_step.items() if name.endswith("workers")}
    assert choice.execution.workers > 0  # sleeping side by side is faster
    assert f"{choice.execution.workers} workers" in seconds
    assert "0 workers" in seconds


@pytest.mark.usefixtures("workplace")
def test_resident_images_need_no_timing_of_workers() -> None:
    config, dataset = opened("data.workers=auto")
    assert timing.choose_execution(Slow(slow_in_bf16=True), dataset, config).seconds_a_step == {}


@pytest.mark.parametrize(("wished", "found"), [("1", 1), ("1,4", 1), ("4096", 0), ("", 0), ("0", 0), ("many", 0)])
def test_threads_are_no_more_than_omp_num_threads_says(
    monkeypatch: pytest.MonkeyPatch, wished: str, found: int
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", wished)
    assert device.default_threads() == (found or device.usable_cores())
    assert max(device.threads_worth_trying("cpu")) == device.default_threads()
    assert device.default_workers() == min(8, device.usable_cores())


def test_under_torchrun_only_the_cores_are_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = device.usable_cores()
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # which torchrun sets, unless its user has
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    assert device.default_threads() == alone
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(2 * alone))
    assert device.default_threads() == 1


def test_a_record_from_before_compiling_is_read_as_uncompiled() -> None:
    old = {"device": "cpu", "precision": "bf16", "channels_last": True, "threads": 2, "seconds_a_step": {}}
    found = device.from_json(old, "execution.json")
    assert found == device.Execution("cpu", "bf16", channels_last=True, threads=2, workers=device.default_workers())


def test_a_compiled_record_without_a_compiler_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = replace(device.Execution("cpu", "fp32", channels_last=True, threads=2), compiled=True).to_json()
    assert device.from_json(recorded, "execution.json").compiled
    monkeypatch.setenv("CXX", "/nowhere/g++")
    with pytest.raises(RunError, match="the same bits need the same compiler"):
        device.from_json(recorded, "execution.json")


@pytest.mark.skipif(bool(device.missing_compiler("cpu")), reason="no C++ compiler")
def test_a_compiled_training_resumes_bit_for_bit_and_matches_the_eager_one(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(workplace / "graphs"))
    eager_config, dataset = opened("augment.mixup=0")
    config = configs.load("small.yaml", [*FIXED, "augment.mixup=0", "train.compile=true"])

    def stop(what: str, done: int, total: int, unit: str = "images", note: str = "") -> None:
        if what.startswith("epoch 2") and done == 2:
            raise Interrupted(signal.SIGTERM)

    eager = pipeline.train(eager_config, runs_root=Path("eager"), dataset=dataset)
    whole = pipeline.train(config, runs_root=Path("whole"), dataset=dataset)
    with pytest.raises(Interrupted):
        pipeline.train(config, runs_root=Path("halves"), dataset=dataset, progress=stop)
    halves = pipeline.resume(the_run(Path("halves")), dataset=dataset)
    assert json.loads((halves.path / "execution.json").read_text())["compiled"]
    assert_same_weights(whole, halves)
    one, other = weights_of(eager), weights_of(whole)
    assert one.keys() == other.keys()  # saved under the model's own names
    assert all(np.allclose(one[name], other[name], atol=1e-3) for name in one)
    assert predicting.load(runs.open_run(whole.path), dataset).execution.compiled
