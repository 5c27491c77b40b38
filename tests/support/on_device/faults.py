"""Planted faults: each must end in the error, or in the count, that the device exists for."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from comp.augment import engine
from comp.augment.kernels import geometry
from comp.augment.ops import Policy
from comp.runtime import rng
from tests.support import pretend_device
from tests.support.images import as_images, photographs
from tests.support.on_device import Check, Values

Plant = Callable[[Tensor], Tensor]


def _sound(pixels: Tensor) -> Tensor:
    return pixels


def _mixed_devices(pixels: Tensor) -> Tensor:
    return pixels + torch.ones(pixels.shape[1:], dtype=torch.uint8)


def _item(pixels: Tensor) -> Tensor:
    return pixels if pixels.amax().item() < 256 else pixels[:0]


def _mask(pixels: Tensor) -> Tensor:
    return pixels[pixels.amax((1, 2, 3)) < 256]


def _copy(pixels: Tensor) -> Tensor:
    return pixels + torch.tensor([1, 2, 3], dtype=torch.uint8, device=pixels.device)


def _double(pixels: Tensor) -> Tensor:
    return pixels.double().to(torch.uint8)


# What is planted -> what happens to the images [B, H, W, C] uint8 that the augmentation starts with.
PLANTS: dict[str, Plant] = {
    "none": _sound,
    "a tensor of the host": _mixed_devices,
    "an item": _item,
    "a mask": _mask,
    "a copy": _copy,
    "a double": _double,
}


def checks() -> dict[str, Check]:
    """Return the checks by name."""
    return {
        **{f"fault/{name}": partial(_run_planted, plant, True) for name, plant in PLANTS.items()},
        **{f"fault without float64/{name}": partial(_run_planted, plant, False) for name, plant in PLANTS.items()},
    }


def _run_planted(plant: Plant, float64: bool, device: torch.device) -> Values:
    """Augment a batch with a fault in the engine's first function; return the counts beyond those without."""
    images, keys = as_images(photographs(8)).to(device), rng.keys(0, 0, torch.arange(8))
    sound = geometry.to_pixels

    def count(planted: Plant) -> Values:
        geometry.to_pixels = lambda images: planted(sound(images))
        try:
            with pretend_device.counted() as counts:
                engine.augment(images, Policy(()), keys)
        finally:
            geometry.to_pixels = sound
        return counts.to_json()

    before = count(_sound)
    if float64:
        after = count(plant)
    else:
        with pretend_device.without_float64():
            after = count(plant)
    return {name: after[name] - before[name] for name in ("waits", "copies", "launches")}
