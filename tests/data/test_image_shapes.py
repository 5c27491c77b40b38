"""Images that are not square: sizes [height, width], how files are brought to them, and all that follows."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from comp import config as configs
from comp.augment.mixing import Mixing, mix
from comp.config import Config, DataConfig, ModelConfig
from comp.data.corruptions import suite
from comp.data.images import fitted
from comp.data.sources import open_source
from comp.models import zoo
from comp.models.classifier import Classifier
from comp.results import plots
from comp.runtime import rng
from comp.runtime.errors import ModelError
from tests.support.commands import Result
from tests.support.configs import small_config, write_config
from tests.support.photographs import COLOURS, photograph, photographs_config, write_folders
from tests.support.runs import the_run

Comp = Callable[..., Result]
BILINEAR = Image.Resampling.BILINEAR


# --- what a config may say


def config_of(**data: Any) -> Config:
    """Return a config with these values in section `data`."""
    return configs.from_mapping({"data": data}, "here")


def test_a_square_has_one_spelling_and_one_hash() -> None:
    assert config_of(image_size=[64, 64]) == config_of(image_size=64)
    assert configs.fingerprint(config_of(image_size=[64, 64])) == configs.fingerprint(config_of(image_size=64))
    assert configs.fingerprint(config_of(image_size=[64, 96])) != configs.fingerprint(config_of(image_size=[96, 64]))


def test_oblong_sizes_are_written_and_read_back() -> None:
    config = configs.from_mapping(
        {"data": {"image_size": [48, 64]}, "model": {"stem": "resize", "input_size": [96, 128]}}, "here"
    )
    assert configs.from_mapping(yaml.safe_load(configs.dump(config)), "there") == config


@pytest.mark.parametrize("key", ["data.image_size", "model.input_size"])
@pytest.mark.parametrize("wrong", ["[64]", "[64, 64, 3]", "[4, 64]", "64.5", "big", "[64, 5000]", "true"])
def test_a_wrong_size_is_told_in_words(tmp_path: Path, comp: Comp, key: str, wrong: str) -> None:
    path = write_config(tmp_path / "small.yaml", small_config(tmp_path))
    result = comp("config", "check", path, f"{key}={wrong}", "model.stem=resize")
    assert result.code == 2
    assert f"{key}: expected a whole number of pixels from 8 to 4096, or [height, width], found" in result.err


# --- from a file to its size


def picture(width: int, height: int) -> Image.Image:
    """Return a noisy picture."""
    return photograph(3, (120, 90, 60), (width, height))


@pytest.mark.parametrize("size", [(24, 40), (40, 24), (32, 32)])
@pytest.mark.parametrize("found", [(60, 30), (30, 60), (50, 50), (10, 12), (40, 24)])
def test_files_are_brought_to_a_size_as_pillow_would(size: tuple[int, int], found: tuple[int, int]) -> None:
    image, (height, width) = picture(*found), size
    stretched = np.asarray(image.resize((width, height), BILINEAR))
    assert np.array_equal(fitted(image, size, "stretch"), stretched)
    # The largest middle part of the wanted shape.
    part = (image.height * width / height, image.height)
    if part[0] > image.width:
        part = (image.width, image.width * height / width)
    left, top = (image.width - part[0]) / 2, (image.height - part[1]) / 2
    cut = image.resize((width, height), BILINEAR, box=(left, top, left + part[0], top + part[1]))
    assert np.abs(fitted(image, size, "crop").astype(int) - np.asarray(cut)).max() <= 1
    # Everything in proportion, the rest black.
    boxed = fitted(image, size, "letterbox")
    if image.width * height >= image.height * width:
        inner = (width, round(image.height * width / image.width))
    else:
        inner = (round(image.width * height / image.height), height)
    expected = np.zeros((height, width, 3), np.uint8)
    above, beside = (height - inner[1]) // 2, (width - inner[0]) // 2
    expected[above : above + inner[1], beside : beside + inner[0]] = np.asarray(image.resize(inner, BILINEAR))
    assert np.array_equal(boxed, expected)


def test_resize_stays_crop_where_nothing_is_said_and_letterbox_is_another_data_set(tmp_path: Path) -> None:
    write_folders(tmp_path, train=2, val=0)

    def opened(**data: Any) -> Any:
        return open_source(DataConfig(source="image_folder", root=str(tmp_path), image_size=(20, 30), **data)).train

    assert opened().images.shape == (6, 20, 30, 3)
    assert np.array_equal(np.asarray(opened().images), np.asarray(opened(resize="crop").images))
    bars = np.asarray(opened(resize="letterbox").images)
    assert any((image[:, 0] == 0).all() for image in bars)


# --- networks


def built(name: str, shape: tuple[int, int, int], **model: Any) -> Classifier:
    """Return a zoo model."""
    return zoo.build(
        ModelConfig(name=name, **model), classes=3, image_shape=shape, mean=[0.5] * 3, std=[0.2] * 3, seed=0
    )


@pytest.mark.parametrize("stem", ["stock", "cifar"])
@pytest.mark.parametrize("name", ["resnet10t", "test_vit", "swin_tiny_patch4_window7_224", "mobilenetv3_small_050"])
def test_networks_take_oblong_images(name: str, stem: str) -> None:
    model = built(name, (3, 64, 96), stem=stem).eval()
    assert model(torch.zeros(1, 3, 64, 96, dtype=torch.uint8)).shape == (1, 3)


def test_position_embeddings_cover_an_oblong_image() -> None:
    model = built("test_vit", (3, 64, 96))
    assert model.inner.pos_embed.shape[1] == 1 + (64 // 16) * (96 // 16)


@pytest.mark.parametrize("size", [(48, 80), (20, 24)])
def test_the_resize_stem_brings_images_to_height_and_width(size: tuple[int, int]) -> None:
    model = built("resnet10t", (3, 24, 40), stem="resize", input_size=size)
    images = torch.randint(0, 256, (2, 3, 24, 40), dtype=torch.uint8)
    grown = model.prepare(images)
    assert grown.shape == (2, 3, *size)
    smaller = size[0] < 24 or size[1] < 40
    expected = torch.nn.functional.interpolate(
        (images / 255 - 0.5) / 0.2, size, mode="bilinear", align_corners=False, antialias=smaller
    )
    torch.testing.assert_close(grown, expected)


def test_a_network_of_fixed_size_is_refused_with_the_size_it_was_made_for() -> None:
    with pytest.raises(ModelError, match=r"cannot take 64x96 px images .*made for 224x224: model\.stem=resize"):
        built("efficientformer_l1", (3, 64, 96))
    assert built("efficientformer_l1", (3, 64, 96), stem="resize", input_size=224).resize.size == (224, 224)


def test_a_network_that_is_built_for_squares_alone_is_refused_with_one() -> None:
    with pytest.raises(ModelError, match=r"nest_tiny cannot be built for 64x96 px images \(Model only handles square"):
        built("nest_tiny", (3, 64, 96))


# --- what happens to images


def test_cutmix_targets_are_the_shares_of_oblong_areas() -> None:
    images = (torch.arange(1, 33)[:, None, None, None] * 7).expand(32, 3, 8, 24).to(torch.uint8).contiguous()
    labels = torch.arange(32)
    mixed, targets = mix(images, labels, rng.keys(0, 1, labels), classes=32, mixing=Mixing(cutmix=1.0))
    own = (mixed[:, 0] * 255).round() == (labels[:, None, None] + 1) * 7  # [32, 8, 24]
    torch.testing.assert_close(targets[labels, labels], own.float().mean((1, 2)))
    assert not own.all()


@pytest.mark.parametrize("size", [(8, 200), (200, 8)])
def test_frost_covers_images_of_any_proportion(size: tuple[int, int]) -> None:
    images = torch.full((2, 3, *size), 128, dtype=torch.uint8)
    frosted = suite.corrupt(images, "frost", 3, seed=0, indices=torch.arange(2))
    assert frosted.shape == images.shape
    assert frosted.float().std(-1).mean() > 1


def test_grids_are_drawn_in_the_images_proportions(tmp_path: Path) -> None:
    for height, width in ((16, 64), (64, 16)):
        plots.draw_image_grid(tmp_path / "a.png", np.zeros((4, height, width, 3), np.uint8), ["a"] * 4)
        with Image.open(tmp_path / "a.png") as drawn:
            proportion = drawn.width / drawn.height
        assert proportion == pytest.approx(4 * width / height, rel=0.4)


# --- from end to end


def wide_config(root: Path) -> dict[str, Any]:
    """Return a config of wide images whose network sees wider ones still."""
    values = photographs_config(root, "image_folder")
    values["data"] |= {"image_size": [24, 40], "resize": "letterbox", "validation": "official"}
    values["model"] = {"name": "simple_cnn", "args": {"depth": 2}, "stem": "resize", "input_size": [32, 48]}
    values["competition"]["ood_validation"] = {"severities": [2], "per_block": 3}
    values["augment"] = {"policy": ["basic", "randaugment"], "mixup": 0.2, "cutmix": 1.0}
    values["train"] |= {"epochs": 6, "batch_size": 16, "label_smoothing": 0.0}
    values["optim"] = {"lr": 0.005}
    return values


def test_wide_images_run_from_files_to_a_submission_and_predict_alike_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, comp: Comp
) -> None:
    monkeypatch.chdir(tmp_path)
    write_folders(tmp_path / "data", train=16, val=4, test=9)
    write_config(tmp_path / "small.yaml", wide_config(tmp_path / "data"))
    result = comp("run", "small.yaml")
    assert result.code == 0, result.err
    run = the_run()
    assert run.provenance()["image_shape"] == [3, 24, 40]
    assert (run.config().data.image_size, run.config().data.resize) == ((24, 40), "letterbox")
    submitted = Path("submissions/small.csv").read_text()
    answers = [row[1] for row in csv.reader(submitted.splitlines())][1:]
    assert sum(answer == list(COLOURS)[number % 3] for number, answer in enumerate(answers)) >= 7
    assert comp("predict", run.path, "--output", "again.csv").code == 0
    assert Path("again.csv").read_text() == submitted
    assert comp("predict", run.path, "--views", "ten_crop", "--output", "views.csv").code == 0
    result = comp("predict", run.path, "--views", "dihedral", "--output", "turned.csv")
    assert result.code == 2
    assert "which must be square, found 24 x 40" in result.err
    assert comp("data", "show", "small.yaml", "--augment").code == 0
    assert comp("data", "check", "small.yaml").code == 0


def test_views_that_turn_are_refused_before_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, comp: Comp
) -> None:
    monkeypatch.chdir(tmp_path)
    write_folders(tmp_path / "data", train=4, val=2, test=3)
    write_config(tmp_path / "small.yaml", wide_config(tmp_path / "data"))
    result = comp("run", "small.yaml", "predict.views=dihedral")
    assert result.code == 2
    assert "predict.views: dihedral turns images, which must be square, found 24 x 40" in result.err
    assert not Path("runs").exists()


def test_arrays_keep_their_size_and_the_message_spells_the_mend(tmp_path: Path, comp: Comp) -> None:
    np.savez(tmp_path / "a.npz", train_images=np.zeros((8, 24, 40, 3), np.uint8), train_labels=[0, 1] * 4)
    path = write_config(tmp_path / "small.yaml", small_config(tmp_path))
    result = comp("data", "prepare", path, "data.image_size=[32, 48]")
    assert result.code == 2
    assert "model.stem=resize model.input_size=[32,48]" in result.err
    mend = result.err.rpartition("model: ")[2].split()
    assert comp("config", "check", path, *mend).code == 0
