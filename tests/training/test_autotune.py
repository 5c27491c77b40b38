"""How to run is measured, not guessed: the faster way is taken, and pixels, weights and bits never notice."""

import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from comp import config as configs
from comp.config import ModelConfig
from comp.data import cache
from comp.models import zoo
from comp.results import runs
from comp.runtime import cores, device
from comp.runtime.errors import ConfigError, Interrupted, RunError
from comp.training import autotune
from comp.workflows import train
from comp.workflows.load import load_run
from tests.support.commands import Result
from tests.support.images import Changed
from tests.support.runs import assert_same_weights, the_run, weights_of
from tests.support.timing import FIXED, Slow, opened


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What one test times is not known to another."""
    monkeypatch.setenv("COMP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cores, "is_busy", lambda: False)  # whatever else the machine does
    monkeypatch.setattr(cores.CORE_LOAD, "of_others", lambda: 0.0)
    return tmp_path / "cache"


def slowly(image: NDArray[np.uint8], epoch: int, index: int) -> NDArray[np.uint8]:
    """Return an image after a while, as a transform in a worker."""
    time.sleep(0.02)
    return image


@pytest.mark.usefixtures("workplace")
def test_nothing_is_timed_where_the_config_says_it_all() -> None:
    config, dataset = opened()
    choice = autotune.choose_execution(Slow(slow_in_bf16=True), dataset, config)
    assert choice.execution == device.Execution("cpu", "fp32", channels_last=False, threads=1, workers=2)
    assert choice.seconds_a_step == {}


@pytest.mark.usefixtures("workplace")
@pytest.mark.parametrize("slow_in_bf16", [False, True])
def test_auto_takes_the_faster_precision_and_leaves_model_and_randomness_alone(slow_in_bf16: bool) -> None:
    config, dataset = opened("train.precision=auto")
    model = Slow(slow_in_bf16=slow_in_bf16)
    before, state = {name: value.clone() for name, value in model.state_dict().items()}, torch.get_rng_state()
    choice = autotune.choose_execution(model, dataset, config)
    assert choice.execution.precision == ("fp32" if slow_in_bf16 else "bf16")
    assert set(choice.seconds_a_step) == {f"{name} channels_first 1 thread" for name in ("fp32", "bf16")}
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.usefixtures("workplace")
def test_processes_that_train_together_time_their_share_of_a_batch() -> None:
    config, dataset = opened("train.precision=auto", "train.batch_size=96")
    for processes, share in ((1, 96), (3, 32)):
        sizes: set[int] = set()
        model = Slow(slow_in_bf16=True)
        model.register_forward_pre_hook(lambda module, inputs, sizes=sizes: sizes.add(len(inputs[0])))
        autotune.choose_execution(model, dataset, config, processes=processes)
        assert max(sizes) == share


@pytest.mark.usefixtures("workplace")
def test_one_training_image_is_taken_twice() -> None:
    config, dataset = opened("train.precision=auto", "data.validation=159")
    assert len(dataset.train) == 1
    sizes: set[int] = set()
    model = Slow(slow_in_bf16=True)
    model.register_forward_pre_hook(lambda module, inputs: sizes.add(len(inputs[0])))
    autotune.choose_execution(model, dataset, config)
    assert sizes == {2}


@pytest.mark.usefixtures("workplace")
def test_a_short_training_is_not_even_tried_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/nowhere/g++")
    config, dataset = opened("train.compile=auto")
    assert autotune.choose_execution(Slow(slow_in_bf16=True), dataset, config).notes == []


@pytest.mark.usefixtures("workplace")
def test_without_a_compiler_a_long_training_says_so_and_stays_uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/nowhere/g++")
    config, dataset = opened("train.compile=auto", "train.epochs=100000")
    choice = autotune.choose_execution(Slow(slow_in_bf16=False), dataset, config)
    assert not choice.execution.compiled
    assert ["CXX=/nowhere/g++" in note for note in choice.notes] == [True]


@pytest.mark.usefixtures("workplace")
def test_compile_true_without_a_compiler_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/nowhere/g++")
    config, dataset = opened("train.compile=true")
    with pytest.raises(ConfigError, match=r"train\.compile: .*CXX=/nowhere/g"):
        autotune.choose_execution(Slow(slow_in_bf16=True), dataset, config)


@pytest.mark.slow  # 4 s
@pytest.mark.usefixtures("workplace")
def test_workers_are_timed_where_images_pass_through_them() -> None:
    config, dataset = opened("data.workers=auto", "train.batch_size=8")
    choice = autotune.choose_execution(Slow(slow_in_bf16=True), dataset, config, transform=Changed(slowly))
    seconds = {name: taken for name, taken in choice.seconds_a_step.items() if name.endswith("workers")}
    assert choice.execution.workers > 0  # sleeping side by side is faster
    assert f"{choice.execution.workers} workers" in seconds
    assert "0 workers" in seconds


@pytest.mark.usefixtures("workplace")
def test_resident_images_need_no_timing_of_workers() -> None:
    config, dataset = opened("data.workers=auto")
    assert autotune.choose_execution(Slow(slow_in_bf16=True), dataset, config).seconds_a_step == {}


def timings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list of the settings and workers timed from here on; loader workers are not really started."""
    timed: list[str] = []
    time_steps = autotune._Tuner._time_steps

    def recorded(self: Any, setting: str, *more: Any) -> Any:
        timed.append(setting)
        return time_steps(self, setting, *more)

    def with_workers(self: Any, step: Any, workers: int, *more: Any) -> float:
        timed.append(f"{workers} workers")
        return 1.0

    monkeypatch.setattr(autotune._Tuner, "_time_steps", recorded)
    monkeypatch.setattr(autotune._Tuner, "_seconds_with_workers", with_workers)
    return timed


OPEN = ("train.precision=auto", "train.channels_last=auto", "data.workers=auto", "data.loading=streamed")


@pytest.mark.usefixtures("workplace")
def test_a_second_training_times_nothing_and_computes_as_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    timed = timings(monkeypatch)
    config, dataset = opened(*OPEN)
    first = autotune.choose_execution(Slow(slow_in_bf16=False), dataset, config, transform=Changed(slowly))
    assert "precision and layout" in timed
    assert "0 workers" in timed
    assert not first.timed_before
    timed.clear()
    again, dataset = opened(*OPEN, "seed=1", "data.split_seed=1", "optim.lr=0.01", "train.epochs=7")  # another trial
    second = autotune.choose_execution(Slow(slow_in_bf16=False), dataset, again, transform=Changed(slowly))
    assert timed == []
    assert (second.execution, second.seconds_a_step) == (first.execution, first.seconds_a_step)
    assert second.execution.precision == "bf16"
    assert Path(second.timed_before).is_file()


@pytest.mark.usefixtures("workplace")
@pytest.mark.parametrize("change", ["train.batch_size=16", "model.args={depth: 3}", "train.micro_batch=8"])
def test_what_a_step_depends_on_is_timed_anew(monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    timed = timings(monkeypatch)
    for overrides in ([], [change]):
        timed.clear()
        config, dataset = opened("train.precision=auto", *overrides)
        autotune.choose_execution(Slow(slow_in_bf16=False), dataset, config)
        assert timed == ["precision and layout"]


@pytest.mark.usefixtures("workplace")
@pytest.mark.parametrize("content", [b"{", b"[]", b"{}", b'{"precision and layout": {"fp32": -1.0}}', b'{"a": 3}'])
def test_a_damaged_record_is_timed_anew_and_mended(
    monkeypatch: pytest.MonkeyPatch, own_cache: Path, content: bytes
) -> None:
    timed = timings(monkeypatch)
    config, dataset = opened("train.precision=auto")
    autotune.choose_execution(Slow(slow_in_bf16=False), dataset, config)
    (record,) = (own_cache / "timing").iterdir()
    record.write_bytes(content)
    for times in (["precision and layout"], []):
        timed.clear()
        assert autotune.choose_execution(Slow(slow_in_bf16=False), dataset, config).execution.precision == "bf16"
        assert timed == times


@pytest.mark.usefixtures("workplace")
def test_a_cache_that_cannot_be_kept_costs_time_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    timed = timings(monkeypatch)
    config, dataset = opened("train.precision=auto")
    (tmp_path / "file").touch()  # where a folder is wanted: root may write into a folder of mode 500
    places = [{"COMP_CACHE": str(tmp_path / "file")}, {"XDG_CACHE_HOME": str(tmp_path / "file")}, {}]
    for place in places:
        for name in ("COMP_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA", "HOME"):
            monkeypatch.delenv(name, raising=False)
        for name, value in place.items():
            monkeypatch.setenv(name, value)
        timed.clear()
        choice = autotune.choose_execution(Slow(slow_in_bf16=False), dataset, config)
        assert choice.execution.precision == "bf16"
        assert not choice.timed_before
        assert timed == ["precision and layout"]


@pytest.mark.usefixtures("workplace")
def test_what_is_timed_on_a_busy_machine_is_not_kept(monkeypatch: pytest.MonkeyPatch, own_cache: Path) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("COMP_CACHE", str(own_cache))
    monkeypatch.chdir(own_cache.parent)
    config, dataset = opened("train.precision=auto")
    for load, kept in ((100.0 * (os.cpu_count() or 1), False), (0.0, True)):
        monkeypatch.setattr(os, "getloadavg", lambda load=load: (load, 0.0, 0.0))
        autotune.choose_execution(Slow(slow_in_bf16=False), dataset, config)
        assert own_cache.exists() == kept


def test_the_cache_lies_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("COMP_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA", "HOME"):
        monkeypatch.delenv(name, raising=False)
    assert cache.user_cache_folder() is None
    monkeypatch.setenv("HOME", "/home/me")
    assert cache.user_cache_folder() == Path("/home/me/.cache/comp")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache.user_cache_folder() == Path("/xdg/comp")
    monkeypatch.setenv("COMP_CACHE", "/own")
    assert cache.user_cache_folder() == Path("/own")


@pytest.mark.usefixtures("workplace")
@pytest.mark.parametrize(
    ("rounds", "chosen"),
    [
        ([{0: 1.0, 1: 0.5, 2: 1.0}, {1: 0.5, 2: 1.0}], 1),
        ([{0: 1.0, 1: 0.97, 2: 1.0}], 2),  # not worthwhile
        ([{0: 1.0, 1: 0.5, 2: 1.0}, {1: 0.97, 2: 1.0}], 2),  # a moment's luck
        ([{0: 0.6, 1: 0.7, 2: 1.0}, {0: 0.6, 1: 0.4, 2: 1.0}], 1),
    ],
)
def test_the_usual_workers_stay_unless_others_are_faster_in_two_rounds(
    monkeypatch: pytest.MonkeyPatch, rounds: list[dict[int, float]], chosen: int
) -> None:
    monkeypatch.setattr(cores, "usable_cores", lambda: 2)
    given = [taken for seconds in rounds for taken in sorted(seconds.items())]

    def taken(self: Any, step: Any, workers: int, images: int, transform: Any) -> float:
        count, seconds = given.pop(0)
        assert count == workers
        return seconds

    monkeypatch.setattr(autotune._Tuner, "_seconds_with_workers", taken)
    config, dataset = opened("data.workers=auto", "data.loading=streamed")
    choice = autotune.choose_execution(Slow(slow_in_bf16=True), dataset, config, transform=Changed(slowly))
    assert choice.execution.workers == chosen
    assert not given


@pytest.mark.usefixtures("workplace")
def test_a_training_says_where_its_choices_come_from(comp: Callable[..., Result]) -> None:
    command = ("train", "small.yaml", "train.precision=auto", "train.epochs=1")
    first, second = comp(*command), comp(*command, "seed=1")
    assert "timed in" in first.err
    assert "timed before on this machine" in " ".join(second.err.split())
    recorded = [json.loads((run.path / "execution.json").read_text()) for run in runs.list_runs(Path("runs"))]
    assert [bool(values["timed_before"]) for values in recorded] == [False, True]


@pytest.mark.parametrize(("wished", "found"), [("1", 1), ("1,4", 1), ("4096", 0), ("", 0), ("0", 0), ("many", 0)])
def test_threads_are_no_more_than_omp_num_threads_says(
    monkeypatch: pytest.MonkeyPatch, wished: str, found: int
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", wished)
    assert cores.default_threads() == (found or cores.usable_cores())
    assert max(cores.threads_worth_trying("cpu")) == cores.default_threads()
    assert cores.default_workers() == min(8, cores.usable_cores())


def test_under_torchrun_only_the_cores_are_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = cores.usable_cores()
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # which torchrun sets, unless its user has
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    assert cores.default_threads() == alone
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(2 * alone))
    assert cores.default_threads() == 1


def test_a_record_from_before_compiling_is_read_as_uncompiled() -> None:
    old = {"device": "cpu", "precision": "bf16", "channels_last": True, "threads": 2, "seconds_a_step": {}}
    found = device.from_json(old, "execution.json")
    assert found == device.Execution("cpu", "bf16", channels_last=True, threads=2, workers=cores.default_workers())


def test_a_compiled_record_without_a_compiler_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = replace(device.Execution("cpu", "fp32", channels_last=True, threads=2), compiled=True).to_json()
    assert device.from_json(recorded, "execution.json").compiled
    monkeypatch.setenv("CXX", "/nowhere/g++")
    with pytest.raises(RunError, match="CXX=/nowhere/g"):
        device.from_json(recorded, "execution.json")


def test_a_probe_is_small_on_the_cpu_alone() -> None:
    assert autotune.probe_images("cpu", 512) == 32
    assert autotune.probe_images("cpu", 8) == 8
    assert autotune.probe_images("cuda", 512) == autotune.probe_images("mps", 512) == 512


def test_steps_are_captured_only_on_cuda_by_one_process_that_takes_whole_batches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cpu = device.Execution("cpu", "fp32", channels_last=True, threads=2)
    cuda = replace(cpu, device="cuda")
    compiled = replace(cuda, compiled=True)
    captured = replace(compiled, cuda_graphs=True)
    assert autotune.compiled_variants(cpu, whole_batches=True) == [replace(cpu, compiled=True)]
    assert autotune.compiled_variants(cuda, whole_batches=True) == [compiled, captured]
    assert autotune.compiled_variants(cuda, whole_batches=False) == [compiled]
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert autotune.compiled_variants(cuda, whole_batches=True) == [compiled]


def test_steps_that_cannot_be_captured_leave_the_compiled_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = device.Execution("cuda", "fp32", channels_last=True, threads=2)
    variants = autotune.compiled_variants(plain, whole_batches=True)

    def step_of(_tuner: object, execution: device.Execution) -> autotune.Step:
        calls = 0

        def step(images: torch.Tensor, labels: torch.Tensor) -> None:
            nonlocal calls
            calls += 1
            if execution.cuda_graphs and calls == 2:  # the first call compiles, the second one captures
                raise RuntimeError("CUDA error: operation not permitted when stream is capturing")

        return step

    monkeypatch.setattr(autotune._Tuner, "_step", step_of)
    choice = autotune.ExecutionChoice(plain)
    tuner = autotune._Tuner.__new__(autotune._Tuner)
    tuner._choice = choice
    steps, building = tuner._built(variants, (torch.zeros(1), torch.zeros(1)))
    assert list(steps) == variants[:1]
    assert building.keys() >= {autotune._label(variants[0])}
    assert "cannot be captured as CUDA graphs (CUDA error" in choice.notes[0]


def test_a_run_that_goes_on_in_micro_batches_is_compiled_but_not_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[str | None] = []
    monkeypatch.setattr(device, "_compiled", lambda model, mode=None: modes.append(mode) or model)

    def modes_of(execution: device.Execution) -> list[str | None]:
        modes.clear()
        execution.training_forward(torch.nn.Linear(2, 2))
        return list(modes)

    captured = device.Execution("cuda", "fp32", channels_last=True, threads=2, compiled=True, cuda_graphs=True)
    assert "reduce-overhead" in modes_of(captured)
    assert modes_of(replace(captured, micro_batch=64)) == [None]
    assert modes_of(replace(captured, cuda_graphs=False)) == [None]
    assert device.from_json({**captured.to_json(), "device": "cpu"}, "execution.json").cuda_graphs


@pytest.mark.slow  # 8 s
@pytest.mark.parametrize(
    ("name", "stem"), [("resnet18", "cifar"), ("fastnet", "stock"), ("tf_efficientnet_lite0", "stock")]
)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_training_step_is_traced_into_one_graph(name: str, stem: Any, layout: torch.memory_format) -> None:
    section = ModelConfig(name=name, stem=stem)
    model = zoo.build(section, classes=10, image_shape=(3, 32, 32), mean=[0.5] * 3, std=[0.25] * 3, seed=0).train()
    images = torch.zeros(2, 3, 32, 32, dtype=torch.uint8).to(memory_format=layout)
    torch._dynamo.reset()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        explained = torch._dynamo.explain(model)(images)
    assert (explained.graph_count, explained.break_reasons) == (1, [])


@pytest.mark.slow  # 16 s: two compiled networks
@pytest.mark.skipif(bool(device.missing_compiler("cpu")), reason="no C++ compiler")
def test_the_forward_pass_for_captured_steps_has_the_gradients_of_the_model_in_every_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "graphs"))
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 4))
    execution = device.Execution("cpu", "fp32", channels_last=False, threads=1, compiled=True, cuda_graphs=True)
    forward = execution.training_forward(model)  # on the CPU nothing is captured: the path around it is what runs
    for count in (6, 3, 6):  # the small ones as after memory ran out
        images = torch.randn(count, 3, 2, 2)
        gradients = []
        for function in (model, forward):
            model.zero_grad()
            function(images).square().sum().backward()
            gradients.append([parameter.grad for parameter in model.parameters()])
        for one, other in zip(*gradients, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.slow  # 47 s: three compiled trainings
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

    eager = train.train(eager_config, runs_root=Path("eager"), dataset=dataset)
    whole = train.train(config, runs_root=Path("whole"), dataset=dataset)
    with pytest.raises(Interrupted):
        train.train(config, runs_root=Path("halves"), dataset=dataset, progress=stop)
    halves = train.resume(the_run(Path("halves")), dataset=dataset)
    assert json.loads((halves.path / "execution.json").read_text())["compiled"]
    assert_same_weights(whole, halves)
    one, other = weights_of(eager), weights_of(whole)
    assert one.keys() == other.keys()  # saved under the model's own names
    assert all(np.allclose(one[name], other[name], atol=1e-3) for name in one)
    assert not load_run(runs.open_run(whole.path), dataset).execution.compiled  # a prediction never is
