"""Adaptation to the images at hand: what it changes, what it leaves, and where it is refused."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from comp.data.splits import Split, Suite
from comp.inference import adapt
from comp.inference.options import PredictOptions
from comp.inference.predict import predict
from comp.models.classifier import Classifier
from comp.results import leaderboard
from comp.results.blocks import block_grid
from comp.results.predictions import Predictions
from comp.runtime import device
from comp.workflows.load import load_run
from comp.workflows.predict import options_for, predict_split
from tests.support.commands import Result, assert_refused
from tests.support.configs import small
from tests.support.networks import Net
from tests.support.runs import the_run

EXECUTION = device.Execution(device="cpu", precision="fp32", channels_last=True, threads=1)


def suite(count: int = 24, files: int = 2, severities: tuple[int, ...] = (1, 2)) -> Suite:
    """Return blocks of noise, each of another brightness."""
    layout = block_grid(range(files), severities, count)

    def open_(block: object) -> Split:
        place = layout.index(block)  # type: ignore[arg-type]
        generator = np.random.default_rng(place)
        pixels = generator.integers(0, 256 >> place, (count, 16, 16, 3), dtype=np.uint8)
        return Split(layout[place].name, pixels, layout[place].ids(), np.arange(count) % 5)

    return Suite("suite", layout, open_)


def predicted(model: nn.Module, images: Split | Suite, variant: PredictOptions, batch_size: int = 10) -> Predictions:
    """Return predictions of the variant."""
    return predict(
        model,
        images,
        classes="abcde",
        task="single_label",
        execution=EXECUTION,
        batch_size=batch_size,
        made_by={},
        options=variant,
    )


def state(model: nn.Module) -> dict[str, Tensor]:
    """Return a copy of all weights and statistics."""
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_untouched(model: nn.Module, before: dict[str, Tensor]) -> None:
    """Assert that not a bit of the model has moved."""
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_alpha_0_is_the_plain_prediction() -> None:
    model = Net()
    plain, found = (predicted(model, suite(), PredictOptions(adapt=name, alpha=0)) for name in ("none", "bn"))
    assert np.array_equal(plain.outputs, found.outputs)


def test_alpha_1_is_what_training_mode_computes_on_the_block() -> None:
    model, images = Net(), suite()
    found = predicted(model, images, PredictOptions(adapt="bn", alpha=1))
    for block, (_, rows) in zip(images.blocks, found.blocks(), strict=True):
        pixels = torch.from_numpy(images.open(block).images).permute(0, 3, 1, 2)
        with torch.no_grad():
            wanted = Net().train()(pixels)
        wanted = wanted - wanted.max(1, keepdim=True).values
        assert np.allclose(found.outputs[rows].astype(np.float32), wanted.numpy(), atol=5e-3)


def test_the_model_comes_back_as_it_was() -> None:
    model = Net()
    before = state(model)
    predicted(model, suite(), PredictOptions(views="flip", adapt="bn"))
    assert_untouched(model, before)
    assert model.training


def test_the_model_comes_back_as_it_was_from_a_failure_too() -> None:
    model = Net()
    before = state(model)

    def images() -> Iterator[Tensor]:
        yield torch.zeros(4, 3, 16, 16)
        yield torch.zeros(4, 5, 16, 16)  # channels that the network does not have

    with pytest.raises(RuntimeError, match="channels"):
        adapt.adapted(model.eval(), images, PredictOptions(adapt="bn"), EXECUTION).__enter__()
    assert_untouched(model, before)


@settings(max_examples=15)
@given(batch_size=st.integers(1, 30))
def test_adapted_predictions_do_not_depend_on_the_batch_size(batch_size: int) -> None:
    model, variant = Net(), PredictOptions(views="flip", adapt="bn")
    some, others = predicted(model, suite(), variant, batch_size), predicted(model, suite(), variant)
    assert np.allclose(some.outputs.astype(np.float32), others.outputs.astype(np.float32), atol=5e-3)


def test_statistics_of_many_batches_are_those_of_all_images() -> None:
    """Of the first layer, whose inputs do not depend on how others were normalised."""
    model, images = Net().eval(), torch.rand(100, 3, 16, 16)
    layer = adapt.batch_norms(model)[0]
    seen = {}
    for size in (100, 7):
        with adapt.adapted(
            model, lambda size=size: iter(images.split(size)), PredictOptions(adapt="bn", alpha=1), EXECUTION
        ):  # type: ignore[misc]
            assert layer.running_mean is not None
            assert layer.running_var is not None
            seen[size] = torch.cat([layer.running_mean, layer.running_var]).clone()
    assert torch.allclose(seen[100], seen[7], atol=1e-5)


@pytest.mark.parametrize("per", ["block", "file", "stream"])
def test_each_group_is_adapted_to_on_its_own(per: str) -> None:
    """Blocks of other groups, or their absence, change nothing."""
    model, variant = Net(), PredictOptions(adapt="bn", adapt_per=per)
    whole, half = predicted(model, suite(), variant), predicted(model, suite(files=1), variant)
    first_file = whole.outputs[: len(half)]
    assert np.array_equal(first_file, half.outputs) == (per != "stream")
    if per != "block":
        assert not np.array_equal(whole.outputs, predicted(model, suite(), PredictOptions(adapt="bn")).outputs)


def test_an_adapted_prediction_lies_beside_the_plain_one_and_is_marked(
    workplace: Path, comp: Callable[..., Result]
) -> None:
    result = comp("run", small({"name": "fastnet", "args": {"size": "S"}}))
    assert result.code == 0, result.err
    run = the_run()
    result = comp("predict", run.path, "--adapt", "bn", "--alpha", "1", "--json")
    assert result.code == 0, result.err
    scores = run.metrics()
    found = scores.variants["suite+bn-alpha1"]
    assert found.transductive
    assert found.accuracy != scores.suite.accuracy
    (csv,) = json.loads(result.out).values()
    sidecar = json.loads(Path(csv).with_suffix(".json").read_text())
    assert sidecar["transductive"]
    assert sidecar["made_by"]["adapt"] == "bn"
    rows = {row.transductive: row for row in leaderboard.read_rows(Path("runs"))}  # each way that wrote a CSV has one
    assert rows[False].suite_accuracy == scores.suite.accuracy  # the run's own config predicts plainly
    assert rows[True].suite_accuracy == found.accuracy
    assert "transductive" in comp("leaderboard").out


def test_a_network_without_batch_norm_says_that_bn_does_nothing(workplace: Path, comp: Callable[..., Result]) -> None:
    assert comp("train", small({"name": "mlp"})).code == 0
    run = the_run()
    result = comp("predict", run.path, "--adapt", "bn", "--split", "test")
    assert result.code == 0, result.err
    assert "no layers for bn" in result.out
    assert "transductive" not in result.out


def test_adaptation_is_refused_where_the_rules_forbid_it(workplace: Path, comp: Callable[..., Result]) -> None:
    forbidden = "competition.rules.transductive=false"
    assert_refused(comp("run", "small.yaml", forbidden, "--adapt", "bn"), "predict.adapt", "rules.transductive")
    comp("train", "small.yaml", forbidden)
    assert_refused(comp("predict", the_run().path, "--adapt", "bn"), "predict.adapt", "rules.transductive")
    assert comp("predict", the_run().path, "--views", "flip").code == 0


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (("--adapt", "bnn"), ("--adapt", "'bn'", "bnn")),
        (("--alpha", "2"), ("--alpha", "2")),
        (("--views", "flop"), ("predict.views", "flip")),
        (("--split", "tests"), ("--split", "test")),
    ],
)
def test_wrong_options_are_refused(
    workplace: Path, comp: Callable[..., Result], options: tuple[str, ...], parts: tuple[str, ...]
) -> None:
    comp("train", "small.yaml", "train.epochs=1", "competition.ood_validation.severities=[]")
    assert_refused(comp("predict", the_run().path, *options), *parts)


def test_tent_moves_shifts_and_never_a_frozen_scale() -> None:
    model = Net()
    classifier = Classifier(model.inner, mean=[0.5] * 3, std=[0.2] * 3).eval()
    before = state(classifier)
    images = [torch.from_numpy(suite().open(block).images).permute(0, 3, 1, 2) for block in suite().blocks[:2]]
    with adapt.adapted(classifier, lambda: iter(images), PredictOptions(adapt="tent"), EXECUTION) as outcome:
        after = state(classifier)
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert not outcome.rolled_back
    assert any(name.endswith("bias") for name in moved)
    assert {name.rpartition(".")[2] for name in moved} == {"bias", "running_mean", "running_var"}
    assert_untouched(classifier, before)


def test_tent_lowers_entropy() -> None:
    images = suite()
    entropies = {}
    for name in ("bn", "tent"):
        logits = predicted(Net(), images, PredictOptions(adapt=name)).outputs.astype(np.float64)
        shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        entropies[name] = -(shares * np.log(shares)).sum(1).mean()
    assert entropies["tent"] < entropies["bn"]


def test_tent_is_taken_back_where_the_network_collapses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapt, "_TENT_RATE", 1e6)  # one step, and every image is of one class
    images = suite(files=1)  # the darker file's answers are all of one class from the start
    found = predicted(Net(), images, PredictOptions(adapt="tent"))
    assert found.made_by["rolled_back"] == [block.name for block in images.blocks]
    assert np.array_equal(found.outputs, predicted(Net(), images, PredictOptions(adapt="bn")).outputs)


@pytest.mark.parametrize(
    ("after", "expected"),
    [((0.9, 9.0), False), ((1.1, 9.0), True), ((0.1, 2.0), True), ((float("nan"), 9.0), True)],
)
def test_collapse_is_seen_without_labels(after: tuple[float, float], expected: bool) -> None:
    assert adapt.collapsed(adapt.PredictionSummary(1.0, 9.5), adapt.PredictionSummary(*after)) is expected


@pytest.mark.slow
def test_a_prediction_killed_in_mid_suite_goes_on_with_the_same_bits(
    workplace: Path, comp: Callable[..., Result]
) -> None:
    assert comp("train", small({"name": "fastnet", "args": {"size": "S"}})).code == 0
    run = the_run()
    options = ("predict", run.path, "--views", "flip", "--adapt", "tent")
    parts = run.path / "predictions/suite+flip+tent.parts"
    command = [sys.executable, "-m", "comp", *map(str, options)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while len(list(parts.glob("*.npz"))) < 3:
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    first = min(parts.glob("*.npz"))
    written = first.stat().st_mtime_ns, len(list(parts.glob("*.npz")))
    assert written[1] < 95
    seen: list[int] = []

    loaded = load_run(run)
    variant = options_for(loaded, {"views": "flip", "adapt": "tent"})

    def note(what: str, done: int, total: int, unit: str = "images", note: str = "") -> None:
        seen.append(done)

    resumed = predict_split(loaded, "suite", note, options=variant)
    assert min(seen) >= 4 * (written[1] - 1)  # blocks of four images that were there were not made again
    assert not parts.exists()
    whole = predict_split(loaded, "suite", options=variant)
    assert np.array_equal(resumed.outputs, whole.outputs)
    assert np.array_equal(resumed.ids, whole.ids)
