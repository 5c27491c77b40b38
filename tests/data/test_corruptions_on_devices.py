"""Corruptions on an accelerator, without one: torch's meta device has no values, so that reading one is an error."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from comp.data import suites
from comp.data.corruptions import suite as corruptions
from comp.data.corruptions.suite import CORRUPTIONS, NAMES, corrupt
from comp.data.splits import Split, Suite
from comp.inference.predict import predict
from comp.results.blocks import Block, block_grid
from comp.runtime.device import Execution

COUNT = 6


def clean_split() -> Split:
    pixels = np.random.default_rng(0).integers(0, 256, (COUNT, 16, 16, 3), np.uint8)
    return Split("val", pixels, np.array([str(row) for row in range(COUNT)]), None)


@pytest.mark.parametrize("side", [32, 64])  # 64: glass blur reaches further than one pixel
@pytest.mark.parametrize("name", NAMES)
def test_no_corruption_reads_a_value_back_from_the_device(name: str, side: int) -> None:
    images = torch.empty(COUNT, 3, side, side, dtype=torch.uint8, device="meta")
    for severity in (1, 5):
        after = corrupt(images, name, severity, seed=0, indices=torch.arange(COUNT, device="meta"))
        assert (after.device.type, after.shape) == ("meta", images.shape)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("cuBLAS error: CUBLAS_STATUS_ALLOC_FAILED")]
)
def test_chunks_are_halved_where_the_devices_memory_runs_out(
    monkeypatch: pytest.MonkeyPatch, error: RuntimeError
) -> None:
    sizes: list[int] = []

    def crowded(images: Tensor, keys: Tensor, scale: float, *parameters: float) -> Tensor:
        sizes.append(len(images))
        if len(images) > 3:
            raise error
        return images

    monkeypatch.setitem(CORRUPTIONS, "contrast", replace(CORRUPTIONS["contrast"], function=crowded))
    images = torch.empty(10, 3, 8, 8, dtype=torch.uint8, device="meta")
    monkeypatch.setattr(corruptions, "_CHUNK_VALUES_GPU", 8 * 3 * 8 * 8)
    corrupt(images, "contrast", 1, seed=0, indices=torch.arange(10, device="meta"))
    assert sizes == [8, 4, 2, 2, 2, 2, 2]


def test_a_prediction_has_its_suite_generated_on_its_own_device() -> None:
    devices: list[str] = []
    made = suites.corrupted_suite("suite", clean_split(), block_grid([3], [1], COUNT), seed=0)

    def moved(device: str) -> Suite:
        devices.append(device)
        return made.on(device)

    predict(
        nn.Sequential(nn.Flatten(), Halves()),
        replace(made, moved=moved),
        classes=["a", "b"],
        task="single_label",
        execution=Execution("cpu", "fp32", channels_last=False, threads=1),
        batch_size=4,
        made_by={},
    )
    assert devices == ["cpu"]


class Halves(nn.Module):
    """Logits [B, 2]: mean grey levels of an image's two halves."""

    def forward(self, pixels: Tensor) -> Tensor:
        return pixels.float().view(len(pixels), 2, -1).mean(2)


def opened(suite: Suite) -> list[np.ndarray]:
    return [suite.open(block).images for block in suite.blocks]


def equal(some: Sequence[np.ndarray], others: Sequence[np.ndarray]) -> bool:
    return all(np.array_equal(one, other) for one, other in zip(some, others, strict=True))


def test_mps_has_its_suite_generated_on_the_cpu() -> None:
    blocks: list[Block] = list(block_grid([0, 5, 14], [2], COUNT))
    suite = suites.corrupted_suite("suite", clean_split(), blocks, seed=0)
    assert equal(opened(suite.on("mps")), opened(suite))
