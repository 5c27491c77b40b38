"""A step in parts is the same step; memory that runs out and losses that are not finite do not end a training."""

import dataclasses
import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from comp import config as configs
from comp.config import Config, OptimConfig
from comp.models.classifier import Classifier
from comp.results import runs
from comp.runtime import device
from comp.runtime.device import Execution, Precision, kernel_choice
from comp.runtime.errors import ConfigError, Interrupted, RunError
from comp.runtime.memory import is_out_of_memory
from comp.training import checkpoint, step
from comp.training.norms import NoNorms
from comp.training.step import Stepper, split_batch
from comp.workflows import train
from tests.support.commands import Result
from tests.support.runs import assert_same_weights, the_run, weights_of

EXECUTION = Execution(device="cpu", precision="fp32", channels_last=False, threads=1)

UNSHIFTED = "competition.ood_validation.severities=[]"  # generating it takes longer than the training


def small(*overrides: str) -> Config:
    """Return the config of the working directory with overrides."""
    return configs.load("small.yaml", [UNSHIFTED, *overrides])


@given(st.integers(1, 600), st.integers(2, 200))
def test_parts_cover_the_batch_in_order_and_keep_pairs_together(count: int, most: int) -> None:
    cut = list(split_batch(count, most))
    covered = [position for part in cut for position in range(part.start, part.stop)]
    assert covered == list(range(count))
    assert all(part.start % 2 == 0 for part in cut)
    sizes = [part.stop - part.start for part in cut]
    assert max(sizes) <= max(most, 3)
    assert min(sizes) > 1 or count == 1  # batch norm learns nothing from one image
    assert max(sizes) - min(sizes) <= 3  # two for a pair, one for an odd end


def gradients(micro_batch: int | None, **clipping: Any) -> tuple[list[Tensor], Tensor, Tensor]:
    """Return gradients, loss and logits of one step of a net without batch statistics."""
    generator = torch.Generator().manual_seed(5)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GELU(), nn.Flatten(), nn.Linear(8 * 36, 4))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 8)
    images, targets = torch.randn(30, 3, 8, 8, generator=generator), torch.rand(30, 4, generator=generator)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    stepper = Stepper(
        optimizer, EXECUTION, NoNorms(), micro_batch=micro_batch or 30, unclipped=list(net[3].parameters()), **clipping
    )

    def compute(part: slice) -> tuple[Tensor, Tensor]:
        logits = net(images[part])
        return nn.functional.cross_entropy(logits, targets[part]), logits

    loss, logits = stepper.take(30, 0, compute)
    found = [parameter.grad for parameter in net.parameters() if parameter.grad is not None]
    assert len(found) == 4
    return found, loss, logits


@pytest.mark.parametrize("micro_batch", [2, 7, 16, 30, 64])
def test_micro_batches_give_the_gradients_of_the_whole_batch(micro_batch: int) -> None:
    whole, loss, logits = gradients(None)
    cut, cut_loss, cut_logits = gradients(micro_batch)
    assert torch.allclose(loss, cut_loss, rtol=1e-5)
    assert torch.allclose(logits, cut_logits, atol=1e-5)
    for one, other in zip(whole, cut, strict=True):
        assert torch.allclose(one, other, atol=1e-6)


@pytest.mark.parametrize("more", [[], ["train.consistency=jsd", "augment.mixup=0.0", "augment.policy=[basic, augmix]"]])
def test_micro_batches_change_nothing_for_a_net_without_batch_statistics(workplace: Path, more: list[str]) -> None:
    given = ["optim.name=sgd", "optim.lr=0.05", *more]
    whole = train.train(small(*given), runs_root=Path("whole"))
    cut = train.train(small(*given, "train.micro_batch=6"), runs_root=Path("cut"))
    expected = weights_of(whole)
    for name, values in weights_of(cut).items():
        assert np.allclose(values, expected[name], atol=1e-5), name
    assert not np.array_equal(weights_of(cut)["inner.classifier.weight"], expected["inner.classifier.weight"])


def scaled(precision: Precision, *losses: float) -> tuple[list[Tensor], Stepper, torch.optim.Optimizer]:
    """Return the weights after each step of a line's fit whose loss is multiplied by the numbers given."""
    weight = nn.Parameter(torch.tensor([1.0, -2.0]))
    optimizer = torch.optim.SGD([weight], lr=0.125, momentum=0.5)
    stepper = Stepper(optimizer, dataclasses.replace(EXECUTION, precision=precision), NoNorms(), micro_batch=4)
    seen = []
    for factor in losses:

        def compute(part: slice, factor: float = factor) -> tuple[Tensor, Tensor]:
            return weight.square().sum() * factor, torch.zeros(4, 2)[part]

        stepper.take(4, 0, compute)
        seen.append(weight.detach().clone())
    return seen, stepper, optimizer


def test_scaled_losses_give_the_same_steps_and_an_overflow_is_passed_over() -> None:
    plain, _, _ = scaled("fp32", 1.0, 0.5)
    with_scale, stepper, _ = scaled("fp16", 1.0, 3e38, 0.5)
    first = stepper.state_dict()["scaler"]["scale"]
    assert torch.equal(with_scale[0], plain[0])
    assert torch.equal(with_scale[1], plain[0])  # the gradients were infinite: no step
    assert torch.equal(with_scale[2], plain[1])
    assert first == 2.0**15  # half of what it began with
    _, again, _ = scaled("fp16", 1.0)
    assert again.state_dict()["scaler"]["scale"] == 2.0**16
    again.load_state_dict(stepper.state_dict())
    assert again.state_dict() == stepper.state_dict()


def test_a_loss_scale_survives_in_a_checkpoint(tmp_path: Path) -> None:
    _, stepper, optimizer = scaled("fp16", 1.0, 3e38)
    state = checkpoint.TrainState(step=2, seen=64, loss_sum=90.0)
    checkpoint.save(runs.Run(tmp_path), {"optimizer": optimizer, "stepper": stepper}, state)
    _, fresh, other = scaled("fp16", 1.0)
    cursor = checkpoint.load(tmp_path / "state.pt", {"optimizer": other, "stepper": fresh}, torch.device("cpu"))
    assert cursor == state
    assert fresh.state_dict() == stepper.state_dict()


def test_an_operation_without_a_deterministic_form_is_refused_and_settings_are_given_back() -> None:
    with pytest.raises(ConfigError, match=r"train\.deterministic: put_"), kernel_choice(deterministic=True):
        torch.zeros(4).put_(torch.tensor([1]), torch.ones(1))
    assert not torch.are_deterministic_algorithms_enabled()
    with pytest.raises(RuntimeError, match="another"), kernel_choice(deterministic=True):
        raise RuntimeError("another")
    with kernel_choice(deterministic=False):
        torch.zeros(4).put_(torch.tensor([1]), torch.ones(1))


def test_a_deterministic_training_has_the_bits_of_any_other_on_the_cpu(workplace: Path) -> None:
    one = train.train(small(), runs_root=Path("one"))
    two = train.train(small("train.deterministic=true"), runs_root=Path("two"))
    assert_same_weights(one, two)
    assert two.metrics().deterministic is True


def total_norm(tensors: list[Tensor]) -> float:
    return math.sqrt(sum(float(tensor.square().sum()) for tensor in tensors))


@pytest.mark.parametrize("micro_batch", [None, 8])
def test_clipping_limits_what_it_says(micro_batch: int | None) -> None:
    free, _, _ = gradients(micro_batch)
    norm = total_norm(free)
    clipped, _, _ = gradients(micro_batch, clip="norm", clip_at=norm / 3)
    assert total_norm(clipped) == pytest.approx(norm / 3, rel=1e-4)
    assert torch.allclose(clipped[0] * 3, free[0], atol=1e-5)
    unmoved, _, _ = gradients(micro_batch, clip="norm", clip_at=norm * 3)
    assert all(torch.equal(*pair) for pair in zip(free, unmoved, strict=True))
    limit = 0.3 * max(float(tensor.abs().max()) for tensor in free)
    clipped, _, _ = gradients(micro_batch, clip="value", clip_at=limit)
    assert all(torch.equal(one, other.clamp(-limit, limit)) for one, other in zip(clipped, free, strict=True))


def test_adaptive_clipping_limits_each_unit_by_its_weights_and_spares_the_head() -> None:
    free, _, _ = gradients(None)
    clipped, _, _ = gradients(None, clip="adaptive", clip_at=0.001)
    assert torch.equal(clipped[2], free[2])
    assert torch.equal(clipped[3], free[3])
    generator = torch.Generator().manual_seed(5)
    weights = torch.randn(8, 3, 3, 3, generator=generator) / 8
    limits = 0.001 * weights.flatten(1).norm(dim=1)
    norms = clipped[0].flatten(1).norm(dim=1)
    assert torch.allclose(norms, torch.minimum(limits, free[0].flatten(1).norm(dim=1)), rtol=1e-4)
    assert torch.any(norms < free[0].flatten(1).norm(dim=1))


def test_every_clip_of_the_config_is_there() -> None:
    known = set(OptimConfig.model_fields["clip"].annotation.__args__)  # type: ignore[union-attr]
    assert known == {"none", *step.CLIPS}


@pytest.mark.parametrize("size", [1 << 50, 1 << 62])
def test_a_failed_allocation_of_this_machine_is_recognised(size: int) -> None:
    with pytest.raises((RuntimeError, MemoryError)) as caught:
        torch.empty(size, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    assert not is_out_of_memory(RuntimeError("shapes do not match"))
    assert not is_out_of_memory(ValueError("out of memory"))


def hungry(monkeypatch: pytest.MonkeyPatch, most: int, error: Callable[[], Exception]) -> None:
    """Let every model that is built from here on run out of memory above `most` images."""
    forward = Classifier.forward

    def limited(self: Classifier, images: Tensor) -> Tensor:
        if self.training and len(images) > most:
            raise error()
        return forward(self, images)

    monkeypatch.setattr(Classifier, "forward", limited)


OUT = pytest.mark.parametrize(
    "error",
    [
        lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        lambda: RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory"),
        MemoryError,
    ],
)


@OUT
def test_a_training_that_runs_out_of_memory_goes_on_in_smaller_parts(
    workplace: Path, comp: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, error: Callable[[], Exception]
) -> None:
    with monkeypatch.context() as patched:
        hungry(patched, 10, error)
        result = comp("train", "small.yaml", UNSHIFTED, "--runs", "one")
    assert result.code == 0, result.err
    assert result.err.count("out of memory") == 1
    one = the_run(Path("one"))
    note = one.history()[0]["note"]
    assert all(text in note for text in ("step 1 of epoch 1", "8 images at a time"))
    assert note in result.err
    assert one.history()[1]["note"] == ""
    assert one.metrics().micro_batch == 8
    recorded = device.from_json(json.loads((one.path / "execution.json").read_text()), "execution.json")
    two = train.train(small(), runs_root=Path("two"), execution=recorded)  # as `--as` does: starts with what fitted
    assert_same_weights(one, two)


def test_a_resume_keeps_the_parts_that_fitted(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hungry(monkeypatch, 10, MemoryError)
    config = small()
    whole = train.train(config, runs_root=Path("whole"))

    def stop(what: str, done: int, total: int, unit: str = "images", note: str = "") -> None:
        if unit == "steps" and done == 3:
            raise Interrupted(15)

    with pytest.raises(Interrupted):
        train.train(config, runs_root=Path("stopped"), progress=stop)
    run = the_run(Path("stopped"))
    assert json.loads((run.path / "execution.json").read_text())["micro_batch"] == 8
    monkeypatch.undo()
    monkeypatch.chdir(workplace)
    train.resume(run)
    assert_same_weights(whole, run)
    assert run.history()[0]["note"] == whole.history()[0]["note"]


def test_timing_makes_do_with_what_fits(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMP_CACHE", str(workplace / "cache"))
    hungry(monkeypatch, 10, MemoryError)
    run = train.train(small("train.precision=auto", "train.compile=auto"))
    assert run.metrics().micro_batch == 8
    assert len(json.loads((run.path / "execution.json").read_text())["seconds_a_step"]) == 2


@pytest.mark.parametrize("compile_", ["false", "auto"])
def test_memory_for_not_even_two_images_is_told(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, compile_: str
) -> None:
    monkeypatch.setenv("COMP_CACHE", str(workplace / "cache"))
    hungry(monkeypatch, 1, MemoryError)
    with pytest.raises(RunError, match="2 images"):
        train.train(small(f"train.compile={compile_}"))


def test_another_error_of_the_network_is_passed_on(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hungry(monkeypatch, 1, lambda: RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match="shapes do not match"):
        train.train(small())


def broken_at(monkeypatch: pytest.MonkeyPatch, *calls: int) -> None:
    """Let the n-th training step (from 1) of this process give a loss that is not finite."""
    forward, count = Classifier.forward, itertools.count(1)

    def sometimes(self: Classifier, images: Tensor) -> Tensor:
        logits = forward(self, images)
        return logits * math.nan if self.training and next(count) in calls else logits

    monkeypatch.setattr(Classifier, "forward", sometimes)


def rates(run: runs.Run) -> list[float]:
    return [float(row["lr"]) for row in run.history()]


def test_a_loss_that_is_not_finite_stops_and_says_where_and_what_to_try(
    workplace: Path, comp: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    broken_at(monkeypatch, 6)
    result = comp("train", "small.yaml", UNSHIFTED, "optim.schedule=constant", "optim.lr=2e-3")
    assert result.code == 2
    assert "step 2 of epoch 2, learning rate 2.00e-03" in result.err
    assert "optim.lr=6.7e-04" in result.err
    assert "train.nan_retries" in result.err
    assert not the_run().is_complete()


def test_a_real_explosion_is_noticed(workplace: Path, comp: Callable[..., Result]) -> None:
    result = comp("train", "small.yaml", UNSHIFTED, "optim.name=sgd", "optim.lr=1e38", "optim.schedule=constant")
    assert result.code == 2
    assert "not finite" in result.err


def test_a_training_goes_back_to_its_last_good_state_at_half_the_rate(
    workplace: Path, comp: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ("optim.schedule=constant", "optim.lr=2e-3", "train.epochs=3")
    with monkeypatch.context() as patched:
        broken_at(patched, 6, 9)  # in epoch 2, and when it is taken again
        result = comp("train", "small.yaml", UNSHIFTED, *given, "train.nan_retries=2")
    assert result.code == 0, result.err
    run = the_run()
    assert rates(run) == pytest.approx([2e-3, 5e-4, 5e-4])
    assert [row["number"] for row in run.history()] == ["1", "2", "3"]
    first, second = run.metrics().rollbacks
    assert "loss is not finite at step 2 of epoch 2" in first
    assert "back to step 0 of epoch 2, all rates times 0.5" in first
    assert "all rates times 0.25" in second
    assert first in result.err
    assert all(np.isfinite(values).all() for values in weights_of(run).values())


def test_a_training_goes_back_no_more_often_than_allowed(
    workplace: Path, comp: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    broken_at(monkeypatch, 2, 4)
    result = comp("train", "small.yaml", UNSHIFTED, "train.nan_retries=1")
    assert result.code == 2
    assert "not finite at step 2 of epoch 1" in result.err


def test_weights_that_are_finite_only_just_are_gone_back_from(workplace: Path) -> None:
    # Their loss is finite, or was before the step, and only the logits of validation are not.
    run = train.train(small("train.nan_retries=40", "optim.name=sgd", "optim.schedule=constant", "optim.lr=1e4"))
    back = run.metrics().rollbacks
    assert any("validation" in reason for reason in back)
    assert rates(run)[-1] == pytest.approx(1e4 * 0.5 ** len(back))
    assert all(np.isfinite(values).all() for values in weights_of(run).values())


def test_a_return_survives_an_interruption(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = small("train.nan_retries=1", "optim.schedule=constant", "optim.lr=1e-3")
    steps = itertools.count(1)

    def stop(what: str, done: int, total: int, unit: str = "images", note: str = "") -> None:
        if unit == "steps" and next(steps) == 7:
            raise Interrupted(15)

    with monkeypatch.context() as patched:
        broken_at(patched, 6)
        with pytest.raises(Interrupted):
            train.train(config, progress=stop)
    run = train.resume(the_run())
    assert rates(run) == pytest.approx([1e-3, 5e-4])
    assert len(run.metrics().rollbacks) == 1


def test_clipping_and_micro_batches_train_through_the_command_line(
    workplace: Path, comp: Callable[..., Result]
) -> None:
    given = ("train.micro_batch=8", "optim.clip=adaptive", "optim.lookahead.k=2", "optim.name=muon")
    assert comp("train", "small.yaml", UNSHIFTED, *given, "--runs", "one").code == 0
    assert the_run(Path("one")).metrics().micro_batch == 8


def test_float16_is_refused_where_there_is_no_cuda(workplace: Path, comp: Callable[..., Result]) -> None:
    result = comp("train", "small.yaml", UNSHIFTED, "train.precision=fp16")
    assert result.code == 2
    assert "train.precision: fp16" in result.err
    assert "cpu" in result.err


def test_muon_and_lookahead_survive_an_interruption_bit_for_bit(workplace: Path) -> None:
    config = small("optim.name=muon", "optim.lookahead.k=3", "optim.schedule=cosine")
    whole = train.train(config, runs_root=Path("whole"))
    steps = itertools.count(1)

    def stop(what: str, done: int, total: int, unit: str = "images", note: str = "") -> None:
        if unit == "steps" and next(steps) == 5:
            raise Interrupted(15)

    with pytest.raises(Interrupted):
        train.train(config, runs_root=Path("stopped"), progress=stop)
    run = train.resume(the_run(Path("stopped")))
    assert_same_weights(whole, run)
