"""`augment.engine: auto` takes the faster engine, and a run's record is what repeats it."""

import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from comp import config as configs
from comp import device, pipeline
from comp.data.dataset import open_dataset
from comp.errors import ConfigError, Interrupted, RunError
from comp.training import engine_choice
from tests.conftest import Result
from tests.test_bad_inputs import assert_refused
from tests.test_run import assert_same_weights, the_run, weights_of

AUTO = ("augment.engine=auto", "data.workers=1")
FOREIGN = "augment.ops=[{name: GaussNoise, p: 0.5}]"


def test_another_engine_than_the_plainest_must_be_worth_while() -> None:
    assert engine_choice.faster({"per_batch": 1.0, "per_image": 0.97}) == "per_batch"
    assert engine_choice.faster({"per_batch": 1.0, "per_image": 0.9}) == "per_image"
    assert engine_choice.faster({"per_batch": 0.5, "per_image": 0.9}) == "per_batch"


@pytest.mark.usefixtures("workplace")
@pytest.mark.parametrize(
    ("overrides", "engine"),
    [
        (["augment.engine=per_image"], "per_image"),
        (["augment.engine=auto", FOREIGN], "per_image"),
        (["augment.engine=auto", "augment.policy=augmix", "augment.mixup=0", "train.consistency=jsd"], "per_batch"),
        (["augment.engine=auto", "augment.policy=none"], "per_batch"),
    ],
)
def test_nothing_is_timed_where_one_engine_can_run(overrides: list[str], engine: str) -> None:
    config = configs.load("small.yaml", overrides)
    assert engine_choice.choose(config, open_dataset(config)) == (engine, {})


@pytest.mark.usefixtures("workplace")
@pytest.mark.parametrize("loading", ["resident", "streamed"])
def test_both_engines_are_timed_and_nobody_elses_draws_disturbed(loading: str) -> None:
    config = configs.load("small.yaml", [*AUTO, f"data.loading={loading}"])
    state = torch.get_rng_state()
    engine, seconds = engine_choice.choose(config, open_dataset(config))
    assert torch.equal(torch.get_rng_state(), state)
    assert set(seconds) == {"per_batch augmentation", "per_image augmentation"}
    assert min(seconds.values()) > 0
    assert engine == engine_choice.faster({name: seconds[f"{name} augmentation"] for name in engine_choice.ENGINES})


def test_the_record_decides_what_a_repetition_draws(workplace: Path, comp: Callable[..., Result]) -> None:
    fixed = {}
    for engine in engine_choice.ENGINES:
        config = configs.load("small.yaml", [*AUTO, f"augment.engine={engine}"])
        fixed[engine] = pipeline.train(config, runs_root=Path(engine))
    one, other = (weights_of(run) for run in fixed.values())
    assert any((one[name] != other[name]).any() for name in one)  # the engines draw differently
    chosen = pipeline.train(configs.load("small.yaml", list(AUTO)), runs_root=Path("chosen"))
    record = chosen.path / "execution.json"
    recorded = json.loads(record.read_text())
    assert {"per_batch augmentation", "per_image augmentation"} <= recorded["seconds_a_step"].keys()
    assert_same_weights(chosen, fixed[recorded["engine"]])
    for engine in engine_choice.ENGINES:
        record.write_text(json.dumps({**recorded, "engine": engine}))
        done = comp("run", "--as", chosen.path, "--runs", f"as-{engine}", "-o", f"{engine}.csv")
        assert done.code == 0, done.err
        assert_same_weights(the_run(Path(f"as-{engine}")), fixed[engine])


def test_a_stopped_run_goes_on_with_its_recorded_engine(workplace: Path) -> None:
    def stop(what: str, done: int, total: int, unit: str = "images", note: str = "") -> None:
        if what.startswith("epoch 2") and unit == "steps":
            raise Interrupted(signal.SIGTERM)

    with pytest.raises(Interrupted):
        pipeline.train(configs.load("small.yaml", list(AUTO)), runs_root=Path("parts"), progress=stop)
    stopped = the_run(Path("parts"))
    engine = json.loads((stopped.path / "execution.json").read_text())["engine"]
    whole = pipeline.train(configs.load("small.yaml", [*AUTO, f"augment.engine={engine}"]), runs_root=Path("whole"))
    assert_same_weights(pipeline.resume(stopped), whole)


def test_albumentations_transforms_need_the_engine_that_has_them(workplace: Path, comp: Callable[..., Result]) -> None:
    assert_refused(comp("train", "small.yaml", FOREIGN), "'GaussNoise' needs augment.engine=per_image")
    assert not Path("runs").exists()
    config = configs.load("small.yaml", ["augment.engine=auto", FOREIGN, "augment.mixup=0", "train.consistency=jsd"])
    with pytest.raises(ConfigError, match=r"which train\.consistency=jsd cannot use"):
        engine_choice.possible(config)


def test_a_record_with_an_unknown_engine_is_refused() -> None:
    recorded = device.Execution("cpu", "fp32", channels_last=False, threads=1).to_json()
    with pytest.raises(RunError, match="unknown engine 'per_pixel'"):
        device.from_json({**recorded, "engine": "per_pixel"}, "execution.json")
    del recorded["engine"]  # from before engines were chosen
    assert device.from_json(recorded, "execution.json").engine == "per_batch"
