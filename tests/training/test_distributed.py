"""Two processes train as one would: the same curve, one writer, and nothing lost where one of them dies."""

import copy
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from timm.layers import BatchNormAct2d, convert_sync_batchnorm
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from comp import config as configs
from comp.inference.adapt import adapted
from comp.inference.options import PredictOptions
from comp.models import averaging
from comp.results import files, prediction_files
from comp.results.runs import Run
from comp.runtime.device import Execution
from comp.runtime.errors import ConfigError, RunError
from comp.runtime.progress import quiet
from comp.training import distributed
from comp.training.early_stopping import Stop
from comp.workflows import train
from tests.support.commands import REPOSITORY, Result, assert_refused, children_of
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
    output, _ = process.communicate(timeout=300)  # nothing hangs
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


@pytest.mark.slow  # 12 s
def test_two_processes_with_a_teacher_and_pseudo_labels_give_the_curve_of_one(together: Together) -> None:
    plain = ["competition.ood_validation.severities=[]", "competition.suite.source=none", "model.args.drop_rate=0.0"]
    teacher = train.train(configs.load("small.yaml", plain), runs_root=Path("teacher")).path
    lessons = [f"train.teacher.runs=[{teacher}]", "train.teacher.share=0.8", f"data.pseudo.run={teacher}"]
    settings = [*plain, *lessons, "data.pseudo.min_confidence=0.3", "data.pseudo.share=0.1"]
    code, output = ended(together("small.yaml", *settings, "--runs", "two"))
    assert code == 0, output
    two = the_run(Path("two"))
    one = train.train(configs.load("small.yaml", settings), runs_root=Path("one"))
    assert one.metrics().pseudo_labels == two.metrics().pseudo_labels == 14
    assert np.allclose(curve(one, "train_loss", "val_loss"), curve(two, "train_loss", "val_loss"), atol=2e-3)
    first, second = weights_of(one), weights_of(two)
    assert all(np.allclose(first[name], second[name], atol=2e-3) for name in first)


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


SYNCED = (str(REPOSITORY / "tests/support/synced_batch_norm.py"),)
CONVNET = ("model.name=convnet", "model.args={}")
CURVE = ("lr", "train_loss", "train_accuracy", "val_loss", "val_accuracy")


@pytest.mark.slow  # 10 s
def test_averaged_weights_are_refreshed_by_one_process_where_batch_norm_waits_for_all(together: Together) -> None:
    settings = [*QUICK, *CONVNET, "train.average=ema"]
    code, output = ended(together("small.yaml", *settings, "--runs", "two", program=SYNCED))
    assert code == 0, output
    one, two = train.train(configs.load("small.yaml", settings), runs_root=Path("one")), the_run(Path("two"))
    assert np.allclose(curve(one, *CURVE), curve(two, *CURVE), atol=2e-3)
    assert two.metrics().averaged.method == "ema"


SIZES = "train.sizes=[{epochs: 2, size: 24}]"
EVERY_EPOCH = "competition.ood_validation.every=1"
TRAININGS = {
    "ema": ("train.average=ema", "train.log_norms=true", EVERY_EPOCH),
    "swa": ("train.average=swa", "train.swa_epochs=2", "train.nan_retries=2", "train.checkpoint_seconds=0"),
    "soup": ("train.average=soup", "train.soup_epochs=3", EVERY_EPOCH),
    "swa without validation": ("train.average=swa", "train.swa_epochs=2", "data.validation=none"),
    "early stopping": ("train.average=ema", "train.patience=1", "train.min_delta=1"),
}


@pytest.mark.slow  # 10 s each
@pytest.mark.parametrize("name", TRAININGS)
def test_a_training_whose_batch_norm_waits_for_all_gives_the_curve_of_one_process(
    together: Together, name: str
) -> None:
    settings = ["competition.suite.source=none", *CONVNET, "train.epochs=4", *TRAININGS[name]]
    code, output = ended(together("small.yaml", *settings, "--runs", "two", program=SYNCED))
    assert code == 0, output
    one, two = train.train(configs.load("small.yaml", settings), runs_root=Path("one")), the_run(Path("two"))
    names = [column for column in one.history()[0] if column in (*CURVE, "ood_accuracy", "averaged")]
    names = [column for column in names if all(row[column] for row in one.history())]
    assert np.allclose(curve(one, *names), curve(two, *names), atol=5e-3)
    assert one.metrics().averaged.statistics == two.metrics().averaged.statistics
    assert one.metrics().stopped == two.metrics().stopped


@pytest.mark.slow  # 20 s
def test_a_training_whose_batch_norm_waits_for_all_is_resumed(together: Together) -> None:
    settings = ["competition.suite.source=none", *CONVNET, "train.epochs=8", "train.average=ema"]
    process = together("small.yaml", *settings, "train.checkpoint_seconds=0", "--runs", "two", program=SYNCED)
    stopped = wait_for_a_checkpoint(Path("two"), process)
    process.send_signal(signal.SIGTERM)
    code, output = ended(process)
    assert code != 0
    assert not stopped.is_complete(), output
    code, output = ended(together("--resume", str(stopped.path), program=SYNCED))
    assert code == 0, output
    one, two = train.train(configs.load("small.yaml", settings), runs_root=Path("one")), the_run(Path("two"))
    assert np.allclose(curve(one, *CURVE), curve(two, *CURVE), atol=5e-3)


@pytest.mark.slow  # 20 s
def test_a_training_whose_batch_norm_waits_for_all_ends_in_its_time(together: Together) -> None:
    settings = [*QUICK, *CONVNET, "train.budget=6s", "train.average=ema"]
    code, output = ended(together("small.yaml", *settings, "--runs", "two", program=SYNCED))
    assert code == 0, output
    assert the_run(Path("two")).is_complete()


@pytest.mark.slow  # 20 s
def test_a_training_whose_batch_norm_waits_for_all_rolls_back_and_ends_together(together: Together) -> None:
    exploding = ("optim.name=sgd", "optim.lr=1e9", "optim.schedule=constant", "train.nan_retries=3")
    settings = [*QUICK, *CONVNET, *exploding, "train.average=soup"]
    code, output = ended(together("small.yaml", *settings, "--runs", "two", program=SYNCED))
    assert code != 0
    assert output.count("error: ") == 1, output
    assert "learning rate 1.25e+08" in output  # after three rollbacks
    assert not the_run(Path("two")).is_complete()


@pytest.mark.slow  # 10 s
def test_a_killed_process_ends_all_and_leaves_a_run_that_one_process_finishes(together: Together) -> None:
    process = together("small.yaml", *QUICK, "train.epochs=400", "train.checkpoint_seconds=0", "--runs", "two")
    run = wait_for_a_checkpoint(Path("two"), process)
    os.kill(children_of(process.pid)[1], signal.SIGKILL)
    code, output = ended(process)
    assert code != 0
    assert output.count("another process of this training") == 1
    assert "internal error" not in output
    assert not run.is_complete()
    # One process continues, here to the end of the epoch that it stopped in.
    resumed = train.resume(run, on_epoch=lambda epoch: Stop("enough"))
    assert resumed.is_complete()


FULL = """
import torch
from comp.cli.app import main
from comp.training import best_weights

def validate(*arguments, **options):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

best_weights.validate = validate
main()
"""


@pytest.mark.slow  # 9 s
def test_memory_that_runs_out_in_the_main_process_ends_all_with_one_message(together: Together) -> None:
    Path("full.py").write_text(FULL)
    code, output = ended(together("small.yaml", *QUICK, "--runs", "two", program=("full.py",)))
    assert code != 0
    assert output.count("error: ") == 1, output
    message = "error: out of memory for the validation (CUDA out of memory. Tried to allocate 2.00 GiB)"
    assert re.search(rf"{re.escape(message)}.*continue: comp run --resume two/", output), output
    assert "another process" not in output


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


@pytest.mark.slow  # 6 s
def test_a_wrong_config_is_reported_once(together: Together) -> None:
    code, output = ended(together("small.yaml", "optim.lr=fast"))
    assert code != 0
    assert output.count("optim.lr: ") == 1


@pytest.fixture
def team() -> Iterator[distributed.DistributedGroup]:
    """Return a team of one real process."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield distributed.DistributedGroup()
    dist.destroy_process_group()


def test_a_batch_that_processes_cannot_share_is_refused(team: distributed.DistributedGroup) -> None:
    with pytest.raises(ConfigError, match=r"train\.batch_size: .*2.*31"):
        team.check_batch_size(31)


def test_a_collective_call_in_the_work_of_one_process_raises_instead_of_waiting(
    team: distributed.DistributedGroup,
) -> None:
    norm, images = nn.SyncBatchNorm(2), torch.rand(4, 2, 3, 3)
    collectives: dict[str, Callable[[], object]] = {
        "a barrier": team.barrier,
        "a sum": lambda: team.all_reduce_sum(torch.zeros(1)),
        "progress": lambda: team.synced_progress(quiet)("epoch", 1, 2),
        "a broadcast": lambda: team.broadcast_from_main(lambda: 1),
        "batch norm": lambda: norm(images),
        "a distributed model": lambda: DistributedDataParallel(nn.Linear(2, 2))(torch.rand(1, 2)),
    }
    for collective in collectives.values():
        for share in (team.broadcast_from_main, team.main_process_first):
            with pytest.raises(AssertionError, match="the others would never answer"):
                share(collective)
    team.barrier()  # together it works again
    norm.eval()
    assert torch.equal(team.broadcast_from_main(lambda: norm(images)), norm(images))


def test_only_the_group_calls_what_waits_for_other_processes() -> None:
    """So its check meets every collective call."""
    callers = {
        path.name for path in (REPOSITORY / "comp").rglob("*.py") if "torch.distributed" in path.read_text("utf-8")
    }
    assert callers == {"distributed.py", "launch.py"}  # which keeps the store


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, BatchNormAct2d])
def test_a_network_with_synchronised_batch_norm_is_refreshed_like_a_plain_one(
    team: distributed.DistributedGroup, norm: type[nn.Module]
) -> None:
    inner = norm(4)
    blocks = nn.Sequential(nn.Conv2d(3, 4, 3), inner, nn.Sequential(norm(4), nn.Conv2d(4, 4, 1), inner))
    plain = nn.Sequential(blocks, nn.Flatten(), nn.BatchNorm1d(16))
    batches = torch.rand(3, 8, 3, 4, 4)
    synchronised = convert_sync_batchnorm(copy.deepcopy(plain))
    assert any(isinstance(layer, nn.SyncBatchNorm) for layer in synchronised.modules())
    expected = averaging.refresh_bn_statistics(plain, plain.state_dict(), batches)
    refreshed = team.broadcast_from_main(
        lambda: averaging.refresh_bn_statistics(synchronised, synchronised.state_dict(), batches)
    )
    assert expected.keys() == refreshed.keys()
    assert all(torch.equal(refreshed[name], value) for name, value in expected.items())


@pytest.mark.parametrize("method", ["bn", "tent"])
def test_a_network_with_synchronised_batch_norm_adapts_in_one_process_like_a_plain_one(
    team: distributed.DistributedGroup, method: str
) -> None:
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), BatchNormAct2d(4), nn.Flatten(), nn.Linear(16, 3)).eval()
    images = torch.rand(8, 3, 4, 4)
    execution = Execution("cpu", "fp32", channels_last=False, threads=1)

    def logits(model: nn.Module) -> torch.Tensor:
        with adapted(model, lambda: [images], PredictOptions(adapt=method), execution):
            return model(images).detach()

    synchronised = convert_sync_batchnorm(copy.deepcopy(plain))
    assert torch.equal(team.broadcast_from_main(lambda: logits(synchronised)), logits(plain))


NCCL = "NCCL error in: ../torch/csrc/distributed/c10d/NCCLUtils.hpp:3690, {}, NCCL version 2.28.9\n{}\nLast error:\n{}"
NCCL_SYSTEM = (
    "ncclSystemError: System call (e.g. socket, malloc) or external library call failed or device error. It can be "
    "also caused by unexpected exit of a remote peer, you can check NCCL warnings for failure reason and see if there "
    "is connection closure by a peer."
)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            dist.DistBackendError(
                NCCL.format(
                    "unhandled cuda error",
                    "ncclUnhandledCudaError: Call to CUDA function failed.",
                    "Cuda failure 2 'out of memory'",
                )
            ),
            r"out of memory in process 1 of 2 \(Cuda failure 2 'out of memory'\); .*train\.batch_size",
        ),
        (dist.DistBackendError("Failed to CUDA calloc async 25165824 bytes"), "out of memory in process 1 of 2"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."), "out of memory in process 1 of 2"),
        (MemoryError(), r"out of memory in process 1 of 2 \(MemoryError\)"),
        (
            dist.DistBackendError(
                NCCL.format(
                    "remote process exited or there was a network error",
                    "ncclRemoteError: A call failed possibly due to a network error or a remote process exiting.",
                    "socketProgress: Connection closed by remote peer",
                )
            ),
            "another process of this training has died.*--gpus 2",
        ),
        (RuntimeError("[../gloo/transport/tcp/pair.cc:538] Connection closed by peer [::1]:1"), "another process"),
        (dist.DistNetworkError("failed to recv, got 0 bytes"), "another process"),
        (
            dist.DistBackendError(
                NCCL.format(
                    "unhandled system error",
                    NCCL_SYSTEM,
                    "Error: failed to extend /dev/shm/nccl-a to 33030528 bytes, error: No space left on device (28)",
                )
            ),
            r"cannot reach each other through NCCL \(Error: failed to extend /dev/shm.*--shm-size",
        ),
    ],
)
def test_what_memory_network_and_lost_processes_raise_is_told_apart(error: Exception, message: str) -> None:
    explained = distributed.explain(error, 1, 2)
    assert isinstance(explained, RunError)
    assert re.search(message, str(explained)), str(explained)


def test_another_error_of_a_process_stays_as_it_is() -> None:
    error = RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    assert distributed.explain(error, 1, 2) is error


def test_a_command_for_one_process_is_refused_under_torchrun(
    workplace: Path, comp: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert_refused(comp("tune", "small.yaml"), "comp tune", "torchrun")
