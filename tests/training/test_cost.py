"""What a training will take is printed and recorded before its first step, and is what it then takes."""

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from comp import config as configs
from comp.cli import app, console
from comp.results import files, runs
from comp.runtime.device import Execution
from comp.runtime.errors import Interrupted
from comp.training import cost
from comp.training.cost import Cost
from comp.workflows import train
from comp.workflows.build import prepare, ready_model
from tests.support.commands import REPOSITORY, Result, assert_refused, interrupt_at
from tests.support.configs import QUICK, small, small_config, write_arrays, write_config
from tests.support.runs import the_run

EXECUTION = Execution("cpu", "fp32", channels_last=False, threads=1)
SLOW_STEPS = {"fp32 channels_first 1 thread": 2.0}
WEEKS = Cost(
    training_seconds=2_000_000, validation_seconds=200_000, prediction_seconds=200_000, epochs=300,
    host_bytes=112_200_000_000, host_total=1125_100_000_000, gpu_bytes=113_000_000_000, gpu_total=115_900_000_000,
    files={}, disk_bytes=110_000_000_000, disk_free=7112_000_000_000,
)  # fmt: skip


@dataclass(frozen=True)
class Trained:
    """A run that counts as long, what was printed, and its estimate."""

    run: runs.Run
    folder: Path
    out: str
    err: str
    estimate: dict[str, Any]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder, out, err = tmp_path_factory.mktemp("cost"), io.StringIO(), io.StringIO()
    write_config(folder / "small.yaml", small_config(write_arrays(folder / "data")))
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.chdir(folder)
        patch.setattr(cost, "LONG_SECONDS", 0.0)
        with pytest.raises(SystemExit) as exit_:
            app.main(["run", "small.yaml", *QUICK, "train.average=ema", "train.keep_state=true", "--json"])
        assert not exit_.value.code, err.getvalue()
        run = the_run()
        run = runs.open_run(run.path.absolute())
    recorded = files.read_json(run.path / "execution.json")["estimate"]
    return Trained(run, folder, out.getvalue(), err.getvalue(), recorded)


def test_every_files_size_is_known_before_the_first_step(trained: Trained) -> None:
    for name, size in trained.estimate["files"].items():
        path = trained.folder / "submissions/small.csv" if name == "submission.csv" else trained.run.path / name
        assert size == pytest.approx(path.stat().st_size, rel=0.03, abs=300), name
    big = {path for path in trained.run.path.rglob("*") if path.is_file() and path.suffix in (".npz", ".pt")}
    big |= set(trained.run.path.glob("*.safetensors"))
    named = {path.relative_to(trained.run.path).as_posix() for path in big} - {"split.npz"}
    assert named == trained.estimate["files"].keys() - {"submission.csv"}


def test_the_disk_must_hold_a_checkpoint_beside_its_successor(trained: Trained) -> None:
    sizes = trained.estimate["files"]
    weights = sum(size for name, size in sizes.items() if name.endswith(".safetensors"))
    assert trained.estimate["disk_bytes"] >= weights + 2 * sizes["state.pt"]


def test_it_is_printed_in_two_short_lines_beside_the_result(trained: Trained) -> None:
    json.loads(trained.out)
    lines = [line for line in trained.err.splitlines() if line.startswith(("takes about", "needs about"))]
    assert len(lines) == 2
    assert "watch it: comp watch runs\n" in trained.err
    assert all(len(line) <= 80 for line in lines)


def test_the_longest_estimate_fits_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    console.print_cost(WEEKS)
    assert capsys.readouterr().err.splitlines() == [
        "takes about 27 d 18 h (validation 2 d 7 h, prediction 2 d 7 h of it)",
        "needs about memory 112 of 1,125 GB, GPU 113 of 116 GB, disk 110 of 7,112 GB",
    ]


def test_a_short_training_takes_no_step_more_and_says_nothing(
    workplace: Path, comp: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cost, "estimate", lambda *unused, **more: pytest.fail("a step was probed"))
    result = comp("train", "small.yaml", *QUICK)
    assert result.code == 0, result.err
    assert "takes about" not in result.err
    assert "estimate" not in files.read_json(the_run().path / "execution.json")


@pytest.mark.parametrize(
    "overrides", [["train.epochs=4000"], ["train.epochs=1000", "model.args={depth: 6}"], ["train.budget=2min"]]
)
def test_a_training_that_may_be_long_is_estimated(workplace: Path, overrides: list[str]) -> None:
    config = configs.load("small.yaml", overrides)
    dataset = prepare(config)
    assert not cost.is_surely_short(config, dataset, ready_model(config, dataset), predicts=True)


def test_too_small_a_disk_is_refused_before_the_first_step_and_the_run_can_go_on(
    workplace: Path, comp: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cost, "LONG_SECONDS", 0.0)
    usage = shutil.disk_usage(workplace)
    with monkeypatch.context() as full:  # enough for the predictions alone
        full.setattr(shutil, "disk_usage", lambda path: usage._replace(free=300_000_000))
        result = comp("train", "small.yaml", "train.average=soup", "train.soup_epochs=60", "train.epochs=60")
    assert_refused(result, "0.30 GB free", "make room", "--resume")
    run = the_run()
    assert not run.history()
    with pytest.raises(Interrupted):
        train.resume(run, progress=interrupt_at(1))


def estimated(*overrides: str, **arguments: Any) -> Cost:
    config = configs.load("small.yaml", list(overrides))
    dataset = prepare(config)
    model = ready_model(config, dataset)
    return cost.estimate(config, dataset, model, EXECUTION, folder=Path(), **arguments)


def test_time_is_steps_times_autotunes_seconds(workplace: Path) -> None:
    known = cost.timed_step_seconds(EXECUTION, SLOW_STEPS)
    result = estimated("train.epochs=30", step_seconds=known)
    assert result.training_seconds == 30 * (128 // 32) * 2.0
    assert estimated("train.epochs=30", step_seconds=known, processes=2).training_seconds == 30 * (128 // 32) * 1.0
    assert estimated("train.epochs=30", step_seconds=known, predicts=False).prediction_seconds == 0
    assert 0 < result.validation_seconds < result.training_seconds


def test_a_budget_is_what_it_takes(workplace: Path) -> None:
    result = estimated("train.budget=1h", step_seconds=2.0)
    assert (result.training_seconds, result.epochs) == (3600, 3600 / (4 * 2.0))


def test_timings_of_other_executions_are_not_taken_for_the_chosen_one() -> None:
    timed = {"fp32 channels_first 1 thread": 3.0, "bf16 channels_last 1 threads": 1.0}
    timed |= {"fp32 channels_first 1 thread compiled": 2.0}
    assert cost.timed_step_seconds(EXECUTION, timed) == 3.0
    assert cost.timed_step_seconds(replace(EXECUTION, compiled=True), timed) == 2.0
    timed |= {"fp32 channels_first 1 thread compiled with CUDA graphs": 1.5}
    assert cost.timed_step_seconds(replace(EXECUTION, compiled=True), timed) == 2.0
    assert cost.timed_step_seconds(replace(EXECUTION, compiled=True, cuda_graphs=True), timed) == 1.5
    assert cost.timed_step_seconds(replace(EXECUTION, workers=4), {**timed, "4 workers": 5.0}) == 5.0
    assert cost.timed_step_seconds(EXECUTION, {}) is None


def test_estimating_changes_neither_the_model_nor_the_random_numbers(workplace: Path) -> None:
    config = configs.load("small.yaml", ["model.args={depth: 2}"])
    dataset = prepare(config)
    model = ready_model(config, dataset)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    numbers = torch.get_rng_state()
    cost.estimate(config, dataset, model, EXECUTION, folder=Path())
    assert torch.equal(torch.get_rng_state(), numbers)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_training_that_fits_in_halves_is_estimated_in_halves(workplace: Path) -> None:
    config = configs.load("small.yaml", ["train.epochs=400"])  # long enough for steps on 32 images
    dataset = prepare(config)
    model = ready_model(config, dataset)
    sizes: list[int] = []

    def crowded(module: torch.nn.Module, arguments: tuple[torch.Tensor]) -> None:
        sizes.append(len(arguments[0]))
        if sizes[-1] > 8:
            raise torch.OutOfMemoryError("CUDA out of memory")

    model.register_forward_pre_hook(crowded)
    assert cost.estimate(config, dataset, model, EXECUTION, folder=Path()).training_seconds > 0
    assert sizes == [2, 2, 32, 16, 8, 8, 8, 8]


def test_a_larger_batch_needs_more_memory_and_a_micro_batch_less(workplace: Path) -> None:
    small, large = (estimated(f"train.batch_size={size}", "predict.batch_size=2").host_bytes for size in (16, 128))
    halved = estimated("train.batch_size=128", "train.micro_batch=16", "predict.batch_size=2").host_bytes
    assert large - small > 20_000_000
    assert large - halved > 20_000_000


MEASURED = """
import json, sys
from comp.training import cost
cost.LONG_SECONDS = 0.0
from comp import config
from comp.workflows.run import run_config
run = run_config(config.load("other.yaml", sys.argv[1:]))
# Not ru_maxrss, which begins with the peak of the process that started this one.
lines = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(json.dumps([str(run.path), int(lines["VmHWM"].split()[0]) * 1024]))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="counts kilobytes as Linux does")
@pytest.mark.parametrize("model", [{"name": "simple_cnn"}, {"name": "resnet18", "stem": "cifar"}])
def test_the_process_takes_about_the_memory_that_was_estimated(workplace: Path, model: dict[str, Any]) -> None:
    write_arrays(Path("data"), train=640)
    small(model)
    command = [sys.executable, "-c", MEASURED, *QUICK, "train.batch_size=128"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    path, taken = json.loads(done.stdout.splitlines()[-1])
    estimate = files.read_json(Path(path) / "execution.json")["estimate"]
    assert 0.6 * taken < estimate["host_bytes"] < 1.6 * taken
