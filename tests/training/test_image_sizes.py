"""Training on small images first."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from comp.training.schedules import resize, side_at
from tests.support.commands import Result
from tests.support.configs import small_config, write_config


@pytest.mark.parametrize(("epoch", "side"), [(1, None), (2, 16), (3, 16), (4, 24), (9, 24)])
def test_an_epoch_has_the_size_named_last_before_it(epoch: int, side: int | None) -> None:
    assert side_at({4: 24, 2: 16}, epoch) == side


def test_images_shrink_as_pillow_shrinks_them() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    images = torch.from_numpy(pixels).permute(2, 0, 1)[None].float()
    found = resize(images, 24)[0].permute(1, 2, 0).numpy()
    expected = np.asarray(Image.fromarray(pixels).resize((36, 24), Image.Resampling.BILINEAR), np.float32)
    assert found.shape == (24, 36, 3)
    assert np.abs(found - expected).max() <= 1


def test_images_of_the_wanted_size_are_left_alone() -> None:
    images = torch.rand(2, 3, 32, 32)
    assert resize(images, 32) is images
    assert resize(images, None) is images


def test_a_run_begins_small_and_is_scored_on_whole_images(comp: Callable[..., Result], workplace: Path) -> None:
    values = small_config(workplace / "data")
    values["model"] = {"name": "residual_cnn", "args": {"blocks": 2}}
    values["train"]["sizes"] = {1: 16, 2: 32}
    found = comp("train", write_config(workplace / "sized.yaml", values))
    assert found.code == 0, found.err


def test_a_network_of_one_size_refuses_others_before_the_first_step(
    comp: Callable[..., Result], workplace: Path
) -> None:
    found = comp("train", "small.yaml", "train.sizes={1: 16}")
    assert found.code == 2
    assert "train.sizes" in found.err
    assert "side 16" in found.err


def test_small_images_change_the_training(comp: Callable[..., Result], workplace: Path) -> None:
    values: dict[str, Any] = small_config(workplace / "data")
    values["model"] = {"name": "residual_cnn", "args": {"blocks": 2}}
    losses = []
    for folder, sizes in (("whole", {}), ("small", {1: 16})):
        values["train"]["sizes"] = sizes
        write_config(workplace / "sized.yaml", values)
        assert comp("train", "sized.yaml", "--runs", folder).code == 0
        (history,) = (workplace / folder / "small").glob("*/history.csv")
        losses.append(history.read_text().splitlines()[1].split(",")[2])
    assert losses[0] != losses[1]
