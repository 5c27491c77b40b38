"""Pixels for augmentation: smooth pictures with noise, ramps, and an op on a batch of arrays."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from comp.augment.batch_ops import FUNCTIONS
from comp.runtime import rng


@dataclass(frozen=True)
class Changed:
    """A loader's transform that reads images as configured, and then changes them."""

    change: Callable[[np.ndarray, int, int], np.ndarray]  # type: ignore[type-arg]

    def box(self, found: tuple[int, int], size: tuple[int, int], epoch: int, index: int) -> None:
        """Crop nothing."""

    def __call__(self, image: np.ndarray, epoch: int, index: int) -> np.ndarray:  # type: ignore[type-arg]
        """Return the image changed."""
        return self.change(image, epoch, index)


SIDE = 32


def photographs(count: int, channels: int = 3, side: int = SIDE) -> np.ndarray:
    """Return [count, side, side, channels] uint8: smooth shapes with some noise, as photographs are."""
    generator = np.random.default_rng(7)
    coarse = generator.integers(0, 256, (count, 5, 5, channels), dtype=np.uint8)
    big = [
        np.asarray(Image.fromarray(image.squeeze()).resize((side, side), Image.Resampling.BICUBIC)) for image in coarse
    ]
    noisy = np.stack(big).reshape(count, side, side, channels) + generator.normal(0, 6, (count, side, side, channels))
    return noisy.clip(0, 255).astype(np.uint8)


def as_images(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


def as_pixels(images: torch.Tensor) -> np.ndarray:
    return images.permute(0, 2, 3, 1).numpy()


def run(name: str, pixels: np.ndarray, magnitude: np.ndarray) -> np.ndarray:
    keys = rng.keys(0, 0, torch.arange(len(pixels)))
    return as_pixels(FUNCTIONS[name](as_images(pixels), torch.from_numpy(magnitude).float(), keys))


def pictures(count: int, side: int = 32, channels: int = 3) -> torch.Tensor:
    """Return [count, channels, side, side] uint8 in channels_last: ramps, all different, in dark tones and bright."""
    keys = rng.keys(11, 0, torch.arange(count))
    rows = torch.arange(side).view(1, side, 1, 1) * rng.uniform_field(keys, 0, (1, 1, channels)) * 4
    columns = torch.arange(side).view(1, 1, side, 1) * rng.uniform_field(keys, 1, (1, 1, channels)) * 4
    return (rows + columns).to(torch.uint8).permute(0, 3, 1, 2)
