"""Trainings where memory runs out go on in smaller parts, or stop so that they can be resumed."""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from comp import config as configs
from comp.augment import engine
from comp.config import Config
from comp.data import loading
from comp.data.dataset import open_dataset
from comp.models import averaging
from comp.models.classifier import Classifier
from comp.results import prediction_files
from comp.results.runs import Run
from comp.runtime import memory
from comp.runtime.errors import ConfigError
from comp.training import loop, optimizers
from comp.training.batches import PlannedBatch, planned_batches
from comp.workflows import train
from comp.workflows.load import load_run
from comp.workflows.predict import options_for, predict_split
from tests.support.commands import Result, assert_refused
from tests.support.configs import write_arrays
from tests.support.memory import ERRORS, in_megabytes, limit_classifiers
from tests.support.parameters import slow_except
from tests.support.runs import assert_same_weights, the_run

GIGABYTE = 1 << 30


def small(*overrides: str) -> Config:
    return configs.load("small.yaml", ["competition.ood_validation.severities=[]", *overrides])


def trained(name: str, *overrides: str) -> Run:
    return train.train(small("train.epochs=1", *overrides), runs_root=Path(name))


def test_validation_goes_on_with_fewer_images_and_the_history_says_so(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train.train(small(), runs_root=Path("whole"))
    limit_classifiers(monkeypatch, evaluation=10, error=ERRORS["cuDNN"])
    short = train.train(small(), runs_root=Path("short"))
    assert_same_weights(whole, short)
    first, second = short.history()
    assert first["note"] == "validation: out of memory: 8 images at a time"
    assert second["note"] == ""
    for one, other in zip(whole.history(), short.history(), strict=True):
        assert float(one["val_loss"]) == pytest.approx(float(other["val_loss"]), rel=1e-4)


@pytest.mark.parametrize("more", [[], ["train.consistency=jsd", "augment.mixup=0"]], ids=["plain", "views"])
def test_augmentation_in_parts_gives_the_same_bits(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, more: list[str]
) -> None:
    more = [*more, "augment.policy=augmix"]
    whole = trained("whole", *more)
    run, sizes = engine.Plan.run, []

    def limited(self: engine.Plan, images: Tensor, step: int) -> Tensor:
        sizes.append(len(images))
        if len(images) > 20:
            raise ERRORS["CUDA"]()
        return run(self, images, step)

    monkeypatch.setattr(engine.Plan, "run", limited)
    assert_same_weights(whole, trained("short", *more))
    assert max(sizes[4:]) <= 20


def test_a_batch_that_cannot_be_made_says_what_to_lower(
    workplace: Path, comp: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*images: object, **options: object) -> None:
        raise MemoryError

    monkeypatch.setattr("comp.augment.mixing.mix_planned", full)
    assert_refused(comp("train", "small.yaml"), "batch of 32 images", "train.batch_size")
    assert (the_run().path / "state.pt").exists()


def test_statistics_of_averaged_weights_are_recomputed_in_smaller_parts(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    update, sizes = averaging.update_bn, []

    def limited(batches: Any, model: Any) -> None:
        def checked() -> Any:
            for images in batches:
                sizes.append(len(images))
                if len(images) > 10:
                    raise ERRORS["CUDA"]()
                yield images

        update(checked(), model)

    monkeypatch.setattr(averaging, "update_bn", limited)
    run = trained("runs", "train.average=swa", "train.swa_epochs=1", "model.name=convnet", "model.args={}")
    assert run.metrics().averaged.method == "swa"
    assert run.metrics().micro_batch == 8
    assert sizes[:3] == [32, 16, 8]


def test_the_rate_is_found_in_smaller_parts(
    workplace: Path, comp: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    limit_classifiers(monkeypatch, training=10, error=ERRORS["cuBLAS"])
    result = comp("lr-find", "small.yaml", "--steps", "20", "--from", "1e-4", "--to", "1", "--json")
    assert result.code == 0, result.err
    limit_classifiers(monkeypatch, training=1, error=ERRORS["cuBLAS"])
    assert_refused(comp("lr-find", "small.yaml", "--steps", "20"), "2 images at a time", "CUBLAS_STATUS_ALLOC_FAILED")


@pytest.mark.parametrize("when", slow_except(["batch", "step", "validation"], "step"))
def test_a_training_that_does_not_fit_any_more_can_be_resumed_with_the_same_bits(
    workplace: Path, comp: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    whole = train.train(small(), runs_root=Path("whole"))
    forward, steps = Classifier.forward, itertools.count(1)

    def full(self: Classifier, images: Tensor) -> Tensor:
        if self.training != (when == "step") or (self.training and next(steps) <= 3):
            return forward(self, images)
        raise ERRORS["CUDA"]()

    def batches(*arguments: Any, **settings: Any) -> Iterator[PlannedBatch]:
        yield from itertools.islice(planned_batches(*arguments, **settings), 3)
        raise ERRORS["CUDA"]()

    with monkeypatch.context() as patched:
        if when == "batch":
            patched.setattr(loop, "planned_batches", batches)
        else:
            patched.setattr(Classifier, "forward", full)
        result = comp("train", "small.yaml", "competition.ood_validation.severities=[]", "--runs", "stopped")
    stopped = the_run(Path("stopped"))
    size = "a batch of" if when == "batch" else "at a time"
    assert_refused(result, size, "a device with more memory", f"comp run --resume {stopped.path}")
    assert (stopped.path / "state.pt").exists()
    train.resume(stopped)
    assert_same_weights(whole, stopped)
    assert stopped.metrics().micro_batch == 32


def test_an_optimizer_whose_state_does_not_fit_is_one_message(
    workplace: Path, comp: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: optimizers.SGD, closure: None = None) -> None:
        raise ERRORS["CUDA"]()

    monkeypatch.setattr(optimizers.SGD, "step", full)
    assert_refused(comp("train", "small.yaml", "optim.name=sgd"), "the optimizer's state", "optim.name=sgd")


# --- where the training images lie


def on_cuda(monkeypatch: pytest.MonkeyPatch, *, free: int, kept: int = 0, used: int = 0) -> torch.device:
    """Let torch report so many bytes of a GPU."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 16 * GIGABYTE))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: kept)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: used)
    return torch.device("cuda")


def test_images_lie_on_a_gpu_where_they_take_a_quarter_of_its_free_memory(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = open_dataset(small())
    needed = data.train.images.nbytes
    decide = loading.residency
    assert decide(data.train, data.val, "auto", on_cuda(monkeypatch, free=4 * needed)).resident
    short = on_cuda(monkeypatch, free=4 * needed - 4)
    resident, note = decide(data.train, data.val, "auto", short)
    assert not resident
    assert all(text in note for text in ("data.loading", "memory of cuda", "MiB"))
    assert decide(data.train, data.val, "resident", short).resident  # then placing them decides
    assert decide(data.train, data.val, "auto", torch.device("cpu")).resident  # an array is there already
    # What torch keeps from an earlier trial is free too.
    assert decide(data.train, data.val, "auto", on_cuda(monkeypatch, free=0, kept=6 * needed, used=needed)).resident


def test_a_memory_map_beyond_a_quarter_of_main_memory_is_streamed(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = open_dataset(small("data.validation=none"))
    assert isinstance(data.train.images, np.memmap)
    assert data.resident
    monkeypatch.setattr(memory, "free_host_bytes", lambda: 3 * data.train.images.nbytes)
    streamed = open_dataset(small("data.validation=none"))
    assert not streamed.resident
    assert any(note.startswith("data.loading: workers stream the images") for note in streamed.notes)


def test_images_that_do_not_fit_after_all_are_streamed_with_a_note_or_refused(
    workplace: Path, comp: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ("data.validation=none", "data.workers=0")
    whole = trained("whole", *settings)
    empty = torch.empty

    def full(*sizes: Any, **options: Any) -> Tensor:
        if options.get("dtype") == torch.uint8:
            raise ERRORS["CUDA"]()
        return empty(*sizes, **options)

    monkeypatch.setattr(loading.torch, "empty", full)
    result = comp("train", "small.yaml", "train.epochs=1", *settings, "--runs", "short")
    assert result.code == 0, result.err
    short = the_run(Path("short"))
    assert_same_weights(whole, short)
    assert "so workers stream them" in short.history()[0]["note"]
    assert "so workers stream them" in result.err
    with pytest.raises(ConfigError, match=r"data.loading: resident: .* do not fit on cpu.*use auto or streamed"):
        trained("refused", *settings, "data.loading=resident")


# --- a process that has little memory left

_TRAIN = """
from comp import config as configs
from comp.workflows import train
print(train.train(configs.load("small.yaml", sys.argv[1:])).path)
assert "torch._inductor" not in sys.modules  # torch's compiler, which takes seconds and memory to load
"""
_PREDICT = """
from comp.results import runs
from comp.workflows import load, predict
loaded = load.load_run(runs.open_run(Path(sys.argv[1])))
predict.predict_split(loaded, "test", options=predict.options_for(loaded, {"adapt": sys.argv[2]}))
"""


@pytest.mark.slow
def test_processes_with_little_memory_left_train_validate_and_predict(workplace: Path) -> None:
    write_arrays(workplace / "data", train=640, test=800)
    settings = [
        "competition.ood_validation.severities=[]", "model.name=residual_cnn", "model.args={}", "train.epochs=1",
        "train.batch_size=512", "predict.batch_size=800",
    ]  # fmt: skip
    run = Run(workplace / in_megabytes(300, workplace, _TRAIN, *settings))
    assert 2 <= run.metrics().micro_batch < 512
    whole = load_run(run)
    for adapt in ("none", "bn"):
        in_megabytes(300, workplace, _PREDICT, str(run.path), adapt)
        options = options_for(whole, {"adapt": adapt})
        short = prediction_files.load(run.predictions_path("test" + options.suffix))
        assert short.made_by["micro_batch"] < 800
        assert np.allclose(short.outputs, predict_split(whole, "test", options=options).outputs, atol=5e-3)
