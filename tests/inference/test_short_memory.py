"""Prediction, adaptation and features where memory runs out: the same results, with fewer images at a time."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from comp.data.splits import Split, Suite
from comp.inference import adapt
from comp.inference.options import PLAIN, PredictOptions
from comp.inference.predict import predict
from comp.inference.probe import Probe
from comp.models.classifier import Classifier
from comp.models.fastnet import fastnet
from comp.results import prediction_files
from comp.results.blocks import block_grid
from comp.results.predictions import Predictions
from comp.runtime.device import Execution
from comp.runtime.errors import Interrupted, OutOfMemoryError
from tests.support.commands import Result, assert_refused
from tests.support.memory import ERRORS, Limited, limit_classifiers
from tests.support.networks import Net
from tests.support.runs import the_run

EXECUTION = Execution(device="cpu", precision="fp32", channels_last=True, threads=1)
IMAGES = 24


def block(number: int) -> Split:
    pixels = np.random.default_rng(number).integers(0, 256 >> number, (IMAGES, 16, 16, 3), dtype=np.uint8)
    return Split(f"block{number}", pixels, np.arange(IMAGES).astype(str), np.arange(IMAGES) % 5)


def suite() -> Suite:
    layout = block_grid(range(2), (1,), IMAGES)
    return Suite("suite", layout, lambda opened: block(layout.index(opened)))


def predicted(
    model: nn.Module, options: PredictOptions = PLAIN, batch_size: int = IMAGES, **more: object
) -> Predictions:
    return predict(
        model, suite(), classes="abcde", task="single_label", execution=EXECUTION, batch_size=batch_size,
        options=options, **{"made_by": {}, **more},
    )  # fmt: skip


@pytest.mark.parametrize("library", ["CUDA", "cuDNN", "Python"])
def test_a_prediction_goes_on_with_half_the_images_from_where_it_was(library: str) -> None:
    model, notes = Limited(Net(), 9, ERRORS[library]), []

    def progress(what: str, done: int, total: int, unit: str = "images", note: str = "") -> None:
        notes.append(note)

    short, whole = predicted(model, progress=progress), predicted(Net(), batch_size=6)
    assert np.allclose(short.outputs, whole.outputs, atol=2e-3)
    assert short.made_by == {"micro_batch": 6}
    assert whole.made_by == {}
    assert set(notes) == {"out of memory: 6 images at a time"}
    assert [size for size in model.sizes if size > 9] == [24, 12]  # each fails once in the whole prediction
    assert model.sizes.count(6) == 2 * IMAGES // 6


def test_memory_that_suffices_changes_no_bit() -> None:
    model = Limited(Net(), IMAGES)
    assert np.array_equal(predicted(model).outputs, predicted(Net()).outputs)


@pytest.mark.parametrize(
    "options",
    [
        PredictOptions(views="flip_shift"),
        PredictOptions(views="flip", views_share=0.3),
        PredictOptions(adapt="bn", alpha=1, adapt_per="stream"),
        PredictOptions(adapt="tent", views="flip"),
        PredictOptions(adapt="roid"),
    ],
    ids=lambda options: options.suffix,
)
def test_views_and_adaptation_in_parts_give_what_the_whole_batch_gives(options: PredictOptions) -> None:
    short, whole = predicted(Limited(Net(), 9), options), predicted(Limited(Net(), IMAGES), options)
    assert np.allclose(short.outputs, whole.outputs, atol=5e-3)
    assert not np.allclose(whole.outputs, predicted(Net()).outputs, atol=5e-3)  # it does change something
    assert short.made_by["micro_batch"] == 6
    differing = {"micro_batch": 0, "forward_passes": 0}  # parts that are tried again cost more
    assert {**short.made_by, **differing} == {**whole.made_by, **differing}


def test_statistics_in_parts_are_those_of_the_whole_batch() -> None:
    def adapted(most: int) -> list[Tensor]:
        model = Net().eval()
        images = torch.from_numpy(block(0).images).permute(0, 3, 1, 2)
        with adapt.adapted(Limited(model, most).eval(), lambda: iter([images]), PredictOptions(adapt="bn"), EXECUTION):
            return [value.clone() for name, value in model.state_dict().items() if "running" in name]

    for part, whole in zip(adapted(5), adapted(IMAGES), strict=True):
        assert torch.allclose(part, whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", [PLAIN, PredictOptions(adapt="tent")])
def test_memory_for_not_one_image_is_one_message_and_the_model_stays_as_it_was(options: PredictOptions) -> None:
    model = Limited(Net(), 0, ERRORS["CUDA"])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(OutOfMemoryError, match=r"1 image at a time \(CUDA out of memory.*--device cpu.*smaller model"):
        predicted(model, options)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_blocks_that_were_stored_before_memory_ran_out_are_used(tmp_path: Path) -> None:
    def stop(what: str, done: int, total: int, unit: str = "images", note: str = "") -> None:
        if done > IMAGES:
            raise Interrupted(15)

    with pytest.raises(Interrupted):
        predicted(Limited(Net(), 7), parts=tmp_path, made_by={"batch_size": IMAGES}, progress=stop)
    model = Limited(Net(), IMAGES)
    rest = predicted(model, parts=tmp_path, made_by={"batch_size": IMAGES})
    assert model.sizes.count(IMAGES) == 1  # one block of two
    assert rest.made_by == {"batch_size": IMAGES, "micro_batch": 6}


def test_features_are_read_in_parts(workplace: Path) -> None:
    class Features(Classifier):
        most = IMAGES

        def features(self, images: Tensor) -> Tensor:
            if len(images) > self.most:
                raise MemoryError
            return super().features(images)

    def outputs(most: int) -> np.ndarray:
        torch.manual_seed(0)
        model = Features(fastnet((3, 16, 16), 5, size="S"), mean=[0.5] * 3, std=[0.25] * 3)
        model.most = most
        settings = {"task": "single_label", "execution": EXECUTION, "batch_size": IMAGES}
        probe = Probe(model, block(0), classes="abcde", name="knn", k=3, **settings)
        return probe.predict(block(1), {}).outputs

    assert np.allclose(outputs(5), outputs(IMAGES), atol=1e-2)


def test_a_run_predicts_and_is_evaluated_where_memory_is_short(
    workplace: Path, comp: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert comp("train", "small.yaml", "train.epochs=1", "competition.ood_validation.severities=[]").code == 0
    run = the_run()
    recorded = json.loads((run.path / "execution.json").read_text())
    (run.path / "execution.json").write_text(json.dumps({**recorded, "micro_batch": 2}))
    assert comp("predict", run.path, "--split", "test").code == 0
    whole = prediction_files.load(run.predictions_path("test"))
    assert "micro_batch" not in whole.made_by  # what the training could not do is no limit of a prediction
    with monkeypatch.context() as patched:
        limit_classifiers(patched, evaluation=16)
        for command in (["predict", run.path, "--split", "test"], ["evaluate", run.path]):
            assert comp(*command).code == 0
            short = prediction_files.load(run.predictions_path("test"))
            assert np.allclose(short.outputs, whole.outputs, atol=2e-3)
            assert short.made_by == {**whole.made_by, "micro_batch": 10}
        limit_classifiers(patched, evaluation=0)
        assert_refused(comp("predict", run.path, "--split", "test"), "1 image at a time", "--device cpu")
