"""Two processes train as one would: the same curve, one writer, and nothing lost where one of them dies."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch.distributed as dist

from comp import config as configs
from comp.results import files, prediction_files
from comp.results.runs import Run
from comp.runtime.errors import ConfigError
from comp.training import distributed
from comp.training.early_stopping import Stop
from comp.workflows import train
from tests.support.commands import Result
from tests.support.runs import the_run, weights_of

Together = Callable[..., "subprocess.Popen[str]"]

QUICK = ("competition.ood_validation.severities=[]", "competition.suite.source=none")


@pytest.fixture
def together(workplace: Path) -> Iterator[Together]:
    """Return a function that starts `comp train` in two processes, as `torchrun` does; none outlives its test."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str, program: tuple[str, ...] = ("-m", "comp")) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [*launcher, *program, "train", *arguments], text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.terminate()  # torchrun takes its workers with it
            process.communicate(timeout=60)


def ended(process: "subprocess.Popen[str]") -> tuple[int, str]:
    """Return exit code and output."""
    output, _ = process.communicate(timeout=600)
    return process.returncode, output


def wait_for_a_checkpoint(folder: Path, process: "subprocess.Popen[str]") -> Run:
    """Return the run below a folder once it has a checkpoint."""
    while not list(folder.glob("*/*/state.pt")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    return the_run(folder)


def curve(run: Run, *names: str) -> list[list[float]]:
    """Return columns of the history."""
    return [[float(row[name]) for name in names] for row in run.history()]


@pytest.mark.slow
def test_two_processes_stopped_and_resumed_give_the_curve_of_one(together: Together) -> None:
    settings = [*QUICK, "train.epochs=6", "model.args.drop_rate=0.0"]
    process = together("small.yaml", *settings, "train.checkpoint_seconds=0", "--runs", "two")
    stopped = wait_for_a_checkpoint(Path("two"), process)
    process.send_signal(signal.SIGTERM)
    code, output = ended(process)
    assert code != 0
    assert not stopped.is_complete(), output
    assert stopped.path.joinpath("state.pt").exists()
    code, output = ended(together("--resume", str(stopped.path)))
    assert code == 0, output
    two = the_run(Path("two"))
    one = train.train(configs.load("small.yaml", settings), runs_root=Path("one"))
    names = ("lr", "train_loss", "train_accuracy", "val_loss", "val_accuracy")
    assert np.allclose(curve(one, *names), curve(two, *names), atol=2e-3)
    first, second = weights_of(one), weights_of(two)
    assert all(np.allclose(first[name], second[name], atol=2e-3) for name in first)
    ids = prediction_files.load(two.path / "predictions/val.npz").ids.tolist()
    assert len(ids) == len(set(ids)) == 32  # each validation image once
    assert ids == prediction_files.load(one.path / "predictions/val.npz").ids.tolist()


@pytest.mark.slow  # 9 s
def test_with_batch_norm_two_processes_give_the_curve_of_equal_ghost_batches(together: Together) -> None:
    settings = [*QUICK, "model.name=convnet", "model.args={}", "train.epochs=2"]
    code, output = ended(together("small.yaml", *settings, "--runs", "two"))
    assert code == 0, output
    halves = configs.load("small.yaml", [*settings, "train.micro_batch=16"])  # of batches of 32
    one, two = train.train(halves, runs_root=Path("one")), the_run(Path("two"))
    # Validation differs a little: running statistics are the main process's, of half of the images.
    assert np.allclose(
        curve(one, "train_loss", "train_accuracy"), curve(two, "train_loss", "train_accuracy"), atol=2e-3
    )


TALKING = """
import torch
import torch.distributed as dist
from comp.cli.app import main
from comp.training import distributed
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

class Talking(nn.SyncBatchNorm):  # as on GPUs: in training mode it waits for the other processes
    def forward(self, images):
        if self.training:
            dist.all_reduce(torch.zeros(1))
        return _BatchNorm.forward(self, images)

def prepare(team, model, execution):
    for name, layer in list(model.named_modules()):
        if isinstance(layer, nn.BatchNorm2d):
            model.set_submodule(name, Talking(layer.num_features))

distributed.DistributedGroup.prepare = prepare
DistributedDataParallel._passing_sync_batchnorm_handle = lambda self, module: None  # it refuses CPUs
main()
"""


def test_averaged_weights_are_refreshed_by_one_process_where_batch_norm_waits_for_all(together: Together) -> None:
    Path("talking.py").write_text(TALKING)
    settings = [*QUICK, "train.average=ema", "model.name=convnet", "model.args={}"]
    code, output = ended(together("small.yaml", *settings, "--runs", "two", program=("talking.py",)))
    assert code == 0, output
    assert the_run(Path("two")).metrics().averaged.method == "ema"


def test_a_killed_process_ends_all_and_leaves_a_run_that_one_process_finishes(together: Together) -> None:
    process = together("small.yaml", *QUICK, "train.epochs=400", "train.checkpoint_seconds=0", "--runs", "two")
    run = wait_for_a_checkpoint(Path("two"), process)
    (other_process,) = [pid for pid, rank in workers_of(process.pid).items() if rank == 1]
    os.kill(other_process, signal.SIGKILL)
    code, output = ended(process)
    assert code != 0
    assert output.count("another process of this training") == 1
    assert "internal error" not in output
    assert not run.is_complete()
    # One process continues, here to the end of the epoch that it stopped in.
    resumed = train.resume(run, on_epoch=lambda epoch: Stop("enough"))
    assert resumed.is_complete()


@pytest.mark.slow  # two compilers for a minute
def test_two_processes_give_the_curve_of_one_where_their_steps_are_compiled(together: Together) -> None:
    settings = [*QUICK, "model.args.drop_rate=0.0"]
    code, output = ended(together("small.yaml", *settings, "train.compile=true", "--runs", "two"))
    assert code == 0, output
    one, two = train.train(configs.load("small.yaml", settings), runs_root=Path("one")), the_run(Path("two"))
    assert files.read_json(two.path / "execution.json")["compiled"]
    names = ("lr", "train_loss", "train_accuracy", "val_loss", "val_accuracy")
    assert np.allclose(curve(one, *names), curve(two, *names), atol=2e-3)


@pytest.mark.slow
def test_two_processes_end_annealed_in_a_time_by_one_clock(together: Together) -> None:
    code, output = ended(together("small.yaml", *QUICK, "train.budget=6s", "--runs", "two"))
    assert code == 0, output
    run = the_run(Path("two"))
    config = configs.load("small.yaml")
    last = files.read_json(run.path / "plans.json")["plans"][-1]
    assert len(run.history()) == -(-last["total_steps"] // 4)  # 128 images, 32 a step
    assert float(run.history()[-1]["lr"]) == pytest.approx(config.optim.lr * config.optim.final_factor)
    assert run.metrics().train_seconds <= 6.0 * 1.02


@pytest.mark.slow
def test_two_processes_whose_weights_explode_roll_back_together(together: Together) -> None:
    exploding = ("optim.name=sgd", "optim.lr=1e4", "optim.schedule=constant", "train.nan_retries=40")
    code, output = ended(together("small.yaml", *QUICK, *exploding, "train.epochs=2", "--runs", "two"))
    assert code == 0, output
    run = the_run(Path("two"))
    rollbacks = run.metrics().rollbacks
    assert len(rollbacks) > 5
    assert [row["number"] for row in run.history()] == ["1", "2"]
    assert curve(run, "lr")[-1] == [pytest.approx(1e4 * 0.5 ** len(rollbacks))]
    assert all(np.isfinite(values).all() for values in weights_of(run).values())


@pytest.mark.slow  # 9 s
def test_two_processes_whose_weights_explode_too_often_end_with_one_message(together: Together) -> None:
    exploding = ("optim.name=sgd", "optim.lr=1e30", "optim.schedule=constant", "train.nan_retries=2")
    code, output = ended(together("small.yaml", *QUICK, *exploding, "--runs", "two"))
    assert code != 0
    assert output.count("error: ") == 1
    assert "not finite" in output
    assert not the_run(Path("two")).is_complete()


def test_a_wrong_config_is_reported_once(together: Together) -> None:
    code, output = ended(together("small.yaml", "optim.lr=fast"))
    assert code != 0
    assert output.count("optim.lr: ") == 1


def workers_of(parent: int) -> dict[int, int]:
    """Return torchrun's processes: pid -> rank."""
    ranks_by_pid = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            stat, environment = (folder / "stat").read_text(), (folder / "environ").read_bytes()
        except OSError:
            continue
        if int(stat.rpartition(")")[2].split()[1]) == parent:
            ranks = [word.removeprefix(b"RANK=") for word in environment.split(b"\0") if word.startswith(b"RANK=")]
            ranks_by_pid.update({int(folder.name): int(rank) for rank in ranks})
    return ranks_by_pid


@pytest.fixture
def team() -> Iterator[distributed.DistributedGroup]:
    """Return a team of one real process."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield distributed.DistributedGroup()
    dist.destroy_process_group()


def test_a_batch_that_processes_cannot_share_is_refused(team: distributed.DistributedGroup) -> None:
    with pytest.raises(ConfigError, match=r"train\.batch_size: .*2.*31"):
        team.check_batch_size(31)


def test_a_command_for_one_process_is_refused_under_torchrun(
    workplace: Path, comp: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    refused = comp("run", "small.yaml")
    assert refused.code == 2
    assert "comp run" in refused.err
    assert "torchrun" in refused.err
