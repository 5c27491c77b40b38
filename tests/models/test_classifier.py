"""The wrapper every model comes in: raw images in, logits out, whatever the images' type."""

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from comp import config
from comp.config import ModelConfig
from comp.inference.predict import predict
from comp.models import zoo
from comp.models.classifier import Classifier, Normalize
from comp.results import prediction_files, runs
from comp.runtime.errors import ConfigError, ModelError
from comp.workflows.load import load_run
from tests.support.commands import Result

MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)


def built(seed: int = 0, shape: tuple[int, int, int] = (3, 32, 32), classes: int = 10, **model: object) -> Classifier:
    section = ModelConfig.model_validate(model)
    return zoo.build(section, classes=classes, image_shape=shape, mean=MEAN[: shape[0]], std=STD[: shape[0]], seed=seed)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def test_bytes_and_fractions_give_the_same_logits(images: torch.Tensor) -> None:
    model = built(name="simple_cnn").eval()
    assert torch.equal(model(images), model(images.float() / 255))


def test_normalization_is_saved_with_the_weights(images: torch.Tensor) -> None:
    model = built(name="simple_cnn").eval()
    other = built(name="simple_cnn", seed=5, normalize={"mean": [0.1, 0.2, 0.3], "std": [1.0, 1.0, 1.0]}).eval()
    other.load_state_dict(model.state_dict())
    assert torch.equal(model(images), other(images))


@pytest.mark.parametrize("name", ["simple_cnn", "resnet10t"])
def test_initial_weights_depend_on_the_seed_alone(name: str) -> None:
    torch.manual_seed(3)
    first = built(name=name, seed=7)
    torch.rand(5)
    state = torch.get_rng_state()
    second, third = built(name=name, seed=7), built(name=name, seed=8)
    assert torch.equal(state, torch.get_rng_state())  # nothing global was drawn
    weights = [model.state_dict() for model in (first, second, third)]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    assert any(not torch.equal(weights[0][key], weights[2][key]) for key in weights[0])


@pytest.mark.parametrize(("size", "interpolation"), [(64, "bilinear"), (48, "bicubic"), (16, "bilinear")])
def test_resize_happens_inside_the_model(images: torch.Tensor, size: int, interpolation: str) -> None:
    model = built(name="residual_cnn", stem="resize", input_size=size, interpolation=interpolation).eval()
    assert model.prepare(images).shape == (4, 3, size, size)
    assert model(images).shape == (4, 10)


@pytest.mark.parametrize("name", ["simple_cnn", "resnet10t", "vit_tiny_patch16_224"])
def test_classifier_of_features_is_the_logits(images: torch.Tensor, name: str) -> None:
    model = built(name=name, stem="stock" if name == "simple_cnn" else "cifar").eval()
    head = model.get_classifier()
    features = model.features(images)
    assert features.ndim == 2
    torch.testing.assert_close(head(features), model(images))


def test_works_in_channels_last_autocast_and_bfloat16(images: torch.Tensor) -> None:
    model = built(name="resnet10t", stem="cifar").eval()
    expected = model(images)
    as_last = copy.deepcopy(model).to(memory_format=torch.channels_last)
    torch.testing.assert_close(as_last(images.contiguous(memory_format=torch.channels_last)), expected)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(model(images).float(), expected, atol=0.1, rtol=0.1)
    assert copy.deepcopy(model).to(torch.bfloat16)(images).dtype == torch.bfloat16


def test_grey_images_and_odd_sizes_are_taken() -> None:
    model = built(name="resnet10t", stem="cifar", shape=(1, 28, 28)).eval()
    assert model(torch.zeros(2, 1, 28, 28, dtype=torch.uint8)).shape == (2, 10)


def test_a_network_too_deep_for_its_images_is_refused() -> None:
    with pytest.raises(ModelError, match=r"cannot take 32x32 px images.*use stem: cifar"):
        built(name="inception_v3")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"name": "resnet81"}, "unknown model 'resnet81' .did you mean 'resnet"),
        ({"name": "simple_cnn", "args": {"dept": 2}}, "did you mean 'depth'"),
        ({"name": "resnet18", "timm": {"drop_block_rat": 0.1}}, "did you mean 'drop_block_rate'"),
        ({"name": "resnet18", "args": {"depth": 2}}, "model.timm"),
        ({"name": "simple_cnn", "stem": "cifar"}, "made for small images"),
        ({"name": "simple_cnn", "pretrained": True}, "no weights are published"),
        ({"name": "simple_cnn", "drop_path_rate": 0.1}, "has none"),
        ({"name": "simple_cnn", "normalize": {"mean": [0.5]}}, "3 numbers each"),
    ],
)
def test_a_wrong_field_is_named_with_what_would_be_right(model: dict[str, object], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        built(**model)


def test_drop_rates_reach_the_network() -> None:
    model = built(name="resnet10t", stem="cifar", drop_rate=0.3, drop_path_rate=0.2, timm={"drop_block_rate": 0.1})
    kinds = {type(module).__name__ for module in model.modules()}
    assert {"DropPath", "DropBlock2d"} <= kinds
    assert model.inner.drop_rate == 0.3
    assert any(isinstance(m, nn.Dropout) and m.p == 0.4 for m in built(name="mlp", drop_rate=0.4).modules())


@pytest.mark.slow
def test_compiles(images: torch.Tensor) -> None:
    model = built(name="simple_cnn").eval()
    torch.testing.assert_close(torch.compile(model)(images), model(images), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"stem": "resize"}, "stem: resize and input_size go together"),
        ({"input_size": 64}, "stem: resize and input_size go together"),
        ({"sha256": "0123456789"}, "set model.pretrained"),
        ({"normalize": "pretrained"}, "set model.pretrained"),
    ],
)
def test_fields_that_belong_together_are_refused_apart(model: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config.from_mapping({"model": model}, "a test")


def test_a_model_for_a_checkpoint_is_built_without_its_outside_weights() -> None:
    wanted = ModelConfig(name="resnet10t", pretrained=True, sha256="0123456789", normalize="pretrained")
    bare = wanted.model_copy(update={"pretrained": False})
    zoo.build(bare, classes=10, image_shape=(3, 32, 32), mean=MEAN, std=STD, seed=0)


@pytest.mark.parametrize("channels", [1, 3])
def test_normalised_pixels_do_not_depend_on_the_memory_layout(channels: int) -> None:
    layer = Normalize([0.4, 0.5, 0.6][:channels], [0.1, 0.2, 0.3][:channels])
    images = torch.randint(0, 256, (4, channels, 5, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    expected = (images / 255 - layer.mean) / layer.std
    channels_last = images.contiguous(memory_format=torch.channels_last)
    assert torch.equal(layer(images), expected)
    assert torch.equal(layer(channels_last), expected)
    assert layer(channels_last).is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(layer(images.flip(3)[:, :, ::2]), expected.flip(3)[:, :, ::2])  # neither layout


def test_an_image_normalised_by_itself_keeps_its_looks_under_dimming_and_fading() -> None:
    shape = {"classes": 4, "image_shape": (3, 32, 32), "mean": [0.5] * 3, "std": [0.25] * 3, "seed": 0}
    each = zoo.build(ModelConfig(name="simple_cnn", args={"depth": 2}, normalize="per_image"), **shape)
    images = torch.rand(6, 3, 32, 32)
    prepared, faded = each.prepare(images), each.prepare(images * 0.4 + 0.3)
    assert prepared.mean((1, 2, 3)).abs().max() < 1e-5
    assert (prepared - faded).abs().mean() < 0.15
    plain = zoo.build(ModelConfig(name="simple_cnn", args={"depth": 2}), **shape)
    assert (plain.prepare(images) - plain.prepare(images * 0.4 + 0.3)).abs().mean() > 0.5
    assert each.prepare(torch.full((1, 3, 32, 32), 0.7)).abs().max() < 1e-4


def test_a_run_reads_back_how_it_normalised(workplace: Path, comp: Callable[..., Result]) -> None:
    assert comp("train", "small.yaml", "model.normalize=per_image").code == 0
    loaded = load_run(runs.list_runs(Path("runs"))[0])
    assert loaded.model.normalize.per_image
    val = prediction_files.load(loaded.run.predictions_path("val"))
    again = predict(loaded.model, loaded.dataset.val, classes=val.classes, task="single_label",
                    execution=loaded.execution, batch_size=500, made_by={})  # fmt: skip
    assert np.array_equal(again.top1, val.top1)
