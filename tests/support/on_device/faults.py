"""Planted faults: each must end in the error, or in the count, that the device exists for."""

from functools import partial

import torch
from torch import Tensor

from comp.augment import engine
from comp.augment.batch_ops import FUNCTIONS
from comp.augment.ops import OneOf, Op, Policy
from comp.runtime import rng
from tests.support import pretend_device
from tests.support.images import as_images, photographs
from tests.support.on_device import Check, Values

_SOUND = FUNCTIONS["invert"]


def _sound(images: Tensor, magnitude: Tensor, keys: Tensor) -> Tensor:
    return _SOUND(images, magnitude, keys)


def _on_the_host(images: Tensor, magnitude: Tensor, keys: Tensor) -> Tensor:
    return images + torch.ones(images.shape[1:], dtype=torch.uint8)


def _read_back(images: Tensor, magnitude: Tensor, keys: Tensor) -> Tensor:
    return images if float(magnitude.max().item()) > 2 else _SOUND(images, magnitude, keys)


def _through_a_mask(images: Tensor, magnitude: Tensor, keys: Tensor) -> Tensor:
    images[magnitude >= 0] = _SOUND(images, magnitude, keys)[magnitude >= 0]
    return images


def _copied(images: Tensor, magnitude: Tensor, keys: Tensor) -> Tensor:
    return images + torch.tensor([1, 2, 3], dtype=torch.uint8, device=images.device).view(3, 1, 1)


def _in_doubles(images: Tensor, magnitude: Tensor, keys: Tensor) -> Tensor:
    return (255 - images.double()).to(torch.uint8)


PLANTS = {
    "none": _sound,
    "a tensor of the host": _on_the_host,
    "an item": _read_back,
    "a mask": _through_a_mask,
    "a copy": _copied,
    "a double": _in_doubles,
}


def checks() -> dict[str, Check]:
    """Return the checks by name."""
    return {
        **{f"fault/{name}": partial(_run_planted, plant, True) for name, plant in PLANTS.items()},
        **{f"fault without float64/{name}": partial(_run_planted, plant, False) for name, plant in PLANTS.items()},
    }


def _run_planted(plant: object, float64: bool, device: torch.device) -> Values:
    """Run a policy of `invert` alone with a fault in that op; return the counts beyond those of the sound op."""
    policy = Policy((OneOf(((Op("invert"),),)),))
    images, indices = as_images(photographs(8)).to(device), torch.arange(8, device=device)
    keys = rng.keys(0, 0, indices)

    def augment(function: object) -> Values:
        FUNCTIONS["invert"] = function  # type: ignore[assignment]
        try:
            with pretend_device.counted() as counts:
                engine.augment(images, policy, keys)
        finally:
            FUNCTIONS["invert"] = _SOUND
        return counts.to_json()

    augment(_SOUND)  # the first batch also copies tables to the device, which stay there
    sound = augment(_SOUND)
    if float64:
        planted = augment(plant)
    else:
        with pretend_device.without_float64():
            planted = augment(plant)
    return {name: planted[name] - sound[name] for name in ("waits", "copies", "launches")}
