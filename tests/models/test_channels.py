"""Arrays of other than 1 or 3 channels: adapted first layers, and what needs colour refused by name before training."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch

from comp import config as configs
from comp.augment import ops, policies
from comp.augment.batch_ops import FUNCTIONS
from comp.config import DataConfig, ModelConfig
from comp.data.corruptions import suite
from comp.data.dataset import open_dataset
from comp.data.sources import open_source
from comp.models import weights, zoo
from comp.models.classifier import Classifier
from comp.runtime.errors import DataError, ModelError
from tests.support.commands import Result
from tests.support.configs import small_config, write_config
from tests.support.runs import the_run

Comp = Callable[..., Result]
CHANNELS = (2, 4, 5, 13)


def write_bands(root: Path, channels: int, *, train: int = 96, test: int = 24) -> Path:
    """Write 16-px arrays of 3 classes that differ in their last channel alone."""
    root.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(channels)
    for name, count in (("train", train), ("test", test)):
        labels = np.arange(count) % 3
        images = generator.integers(100, 156, (count, 16, 16, channels)).astype(np.uint8)
        images[..., -1] = np.clip(images[..., -1] + (labels[:, None, None] - 1) * 70, 0, 255)
        np.save(root / f"{name}_images.npy", images)
        np.save(root / f"{name}_labels.npy", labels)
    return root


def bands_config(root: Path, **sections: Any) -> dict[str, Any]:
    """Return a config of such arrays that asks for nothing that needs colour."""
    values = small_config(root)
    values["competition"] = {
        "name": "small", "suite": {"source": "test"},
        "ood_validation": {"severities": [3], "per_block": 4, "leave_out": [*suite.COLOURED, "noise", "blur"]},
    }  # fmt: skip
    values["augment"] = {"policy": "basic"}
    values["train"] |= {"epochs": 8, "batch_size": 16, "label_smoothing": 0.0}
    return {**values, **sections}


@pytest.mark.parametrize("channels", [5])
def test_arrays_of_any_channels_are_learned_and_submitted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, comp: Comp, channels: int
) -> None:
    monkeypatch.chdir(tmp_path)
    write_bands(tmp_path / "data", channels)
    write_config(tmp_path / "small.yaml", bands_config(tmp_path / "data"))
    result = comp("run", "small.yaml")
    assert result.code == 0, result.err
    run = the_run()
    assert run.provenance()["image_shape"] == [channels, 16, 16]
    labels = np.load("data/test_labels.npy")
    answers = [line.split(",")[1] for line in Path("submissions/small.csv").read_text().splitlines()[1:]]
    assert sum(answer == str(label) for answer, label in zip(answers, labels, strict=True)) >= 21  # by chance 8 of 24
    for verb in (("data", "show"), ("data", "check")):
        assert comp(*verb, "small.yaml").code == 0


@pytest.mark.parametrize("channels", CHANNELS)
def test_statistics_and_normalisation_are_of_each_channel(tmp_path: Path, channels: int) -> None:
    dataset = open_dataset(configs.from_mapping(bands_config(write_bands(tmp_path, channels)), "here"))
    pixels = np.asarray(dataset.train.images) / 255
    assert dataset.mean == pytest.approx(pixels.mean((0, 1, 2)).tolist())
    assert dataset.std == pytest.approx(pixels.std((0, 1, 2)).tolist())


@pytest.mark.parametrize(
    ("shape", "refused"),
    [
        ((4, 13, 16, 16), True), ((4, 3, 16, 20), True), ((4, 4, 32, 48), True),
        ((4, 16, 16, 13), False), ((4, 16, 8, 2), False), ((4, 8, 32, 3), False),
    ],
)  # fmt: skip
def test_channels_that_stand_first_are_told(tmp_path: Path, shape: tuple[int, ...], refused: bool) -> None:
    np.savez(tmp_path / "a.npz", train_images=np.zeros(shape, np.uint8), train_labels=[0, 1, 0, 1])
    config = DataConfig(source="arrays", root=str(tmp_path))
    if not refused:
        assert open_source(config).train.images.shape == shape
        return
    with pytest.raises(DataError, match=r"transpose\(0, 2, 3, 1\)"):
        open_source(config)


# --- pretrained first layers


def built(name: str, channels: int, published: torch.nn.Module, folder: Path, **model: Any) -> Classifier:
    """Return a zoo model for so many channels with another one's weights."""
    file = folder / "w.safetensors"
    file.write_bytes(weights.to_bytes(published.state_dict(), {}))
    return zoo.build(
        ModelConfig(name=name, pretrained=str(file), **model),
        classes=3, image_shape=(channels, 32, 32), mean=[0.5] * channels, std=[0.2] * channels, seed=0,
    )  # fmt: skip


@pytest.mark.parametrize("channels", CHANNELS)
def test_a_pretrained_first_layer_repeats_its_colours_and_keeps_its_scale(tmp_path: Path, channels: int) -> None:
    published = timm.create_model("resnet10t", num_classes=3)
    model = built("resnet10t", channels, published, tmp_path)
    own, theirs = model.inner.conv1[0].weight, published.conv1[0].weight
    for channel in range(channels):
        torch.testing.assert_close(own[:, channel], theirs[:, channel % 3] * 3 / channels)
    mean = sum(published.pretrained_cfg["mean"]) / 3
    assert model.normalize.mean.flatten().tolist() == pytest.approx([mean] * channels)
    assert model(torch.zeros(2, channels, 32, 32, dtype=torch.uint8)).shape == (2, 3)


def test_a_first_layer_that_cannot_be_adapted_is_refused(tmp_path: Path) -> None:
    stem = torch.nn.Conv2d(48, 64, 3)  # what tresnet begins with: it takes 4 x 4 pixels of 3 colours at once
    published = torch.nn.ModuleDict({"body": torch.nn.ModuleDict({"conv1": torch.nn.ModuleDict({"conv": stem})})})
    with pytest.raises(ModelError, match=r"48 .*5 channels"):
        built("tresnet_m", 5, published, tmp_path)


# --- augmentation

MAGNITUDES = {
    "rotate": 20.0, "rotate_bilinear": 20.0, "shear_x": 0.3, "shear_y": 0.3, "shear_x_bilinear": 0.3,
    "shear_y_bilinear": 0.3, "translate_x": 0.2, "translate_y": 0.2, "brightness": 0.4, "sharpness": 0.8,
    "posterize": 3.0, "solarize": 100.0, "autocontrast": 0.0, "equalize": 0.0, "invert": 0.0, "flip": 0.0, "blur": 1.0,
    "pixelate": 0.5, "disk_blur": 2.0, "zoom": 0.2, "gamma": 0.5,
}  # fmt: skip


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("name", MAGNITUDES)
def test_ops_without_colour_treat_every_channel_as_a_grey_image(name: str, channels: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (24, 40, channels)).astype(np.uint8)
    pixels = torch.from_numpy(image)[None].permute(0, 3, 1, 2)
    magnitude, keys = torch.tensor([MAGNITUDES[name]]), torch.tensor([3])
    changed = FUNCTIONS[name](pixels, magnitude, keys)
    for channel in range(channels):
        part = slice(channel, channel + 1)
        assert torch.equal(changed[:, part], FUNCTIONS[name](pixels[:, part], magnitude, keys))


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("name", sorted(ops.OPS.keys() - ops.COLOUR_OPS))
def test_every_other_op_takes_any_number_of_channels(name: str, channels: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (16, 24, channels)).astype(np.uint8)
    pixels = torch.from_numpy(image)[None].permute(0, 3, 1, 2)
    changed = FUNCTIONS[name](pixels, torch.tensor([0.3]), torch.tensor([3]))
    assert (changed.shape, changed.dtype) == (pixels.shape, torch.uint8)


NEEDS_COLOUR = {
    "a policy": ({"policy": "trivialaugment_wide"}, "augment.policy: trivialaugment_wide draws contrast, saturation"),
    "one of several": ({"policy": ["basic", "color_jitter"]}, "augment.policy: color_jitter draws contrast, hue"),
    "an op": ({"ops": [{"name": "jpeg", "magnitude": 50}]}, "augment.ops: jpeg need "),
    "albumentations": (
        {"albumentations": [{"name": "HueSaturationValue"}]},
        "augment.albumentations: HueSaturationValue cannot take images of 5 channels",
    ),
}


@pytest.mark.parametrize("name", NEEDS_COLOUR)
def test_what_needs_colour_is_refused_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, comp: Comp, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    augment, message = NEEDS_COLOUR[name]
    values = bands_config(write_bands(tmp_path / "data", 5), augment=augment)
    result = comp("run", write_config(tmp_path / "small.yaml", values))
    assert result.code == 2
    assert message in result.err
    assert "Traceback" not in result.err
    assert not Path("runs").exists()
    values["augment"] = {"policy": "none"}
    assert comp("config", "check", write_config(tmp_path / "small.yaml", values)).code == 0


def test_the_policies_that_are_named_instead_are_taken(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="choose from") as told:
        policies.check_channels("randaugment", (), 4)
    named = str(told.value).rpartition("choose from ")[2].split(", ")
    assert {"none", "basic", "augmix", "robust_strict"} <= set(named)
    for name in named:
        policies.check_channels(name, (), 4)
    policies.check_channels("randaugment", (), 3)


# --- corruptions


@pytest.mark.parametrize("channels", CHANNELS)
def test_corruptions_without_colour_take_any_channels(channels: int) -> None:
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, channels, 16, 24)).astype(np.uint8))
    for name in suite.NAMES:
        if name in suite.COLOURED:
            with pytest.raises(DataError, match=f"{name} needs 1 or 3 channels"):
                suite.corrupt(images, name, 3, seed=0, indices=torch.arange(2))
            continue
        shifted = suite.corrupt(images, name, 3, seed=0, indices=torch.arange(2))
        assert shifted.shape == images.shape


def test_suites_that_need_colour_are_refused_with_what_to_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, comp: Comp
) -> None:
    monkeypatch.chdir(tmp_path)
    values = bands_config(write_bands(tmp_path / "data", 4))
    values["competition"] = {"name": "small"}
    path = write_config(tmp_path / "small.yaml", values)
    result = comp("run", path)
    assert result.code == 2
    assert "competition.ood_validation: generates snow, frost, jpeg_compression, spatter, saturate" in result.err
    mended = result.err.rpartition("set ")[2].strip()
    result = comp("run", path, mended)
    assert result.code == 2
    assert "competition.suite: corrupt_test generates snow, frost" in result.err
    assert not Path("runs").exists()
    result = comp("run", path, mended, "competition.suite.files=7", "competition.suite.severities=1", "train.epochs=1")
    assert result.code == 0, result.err
