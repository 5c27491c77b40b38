"""Test-time augmentation (TTA): views of an image whose logits are averaged by weight.

A view is a deterministic transform of a batch on its device; the first of every set is the plain image. Averaging
logits, not probabilities, is the geometric mean of the views' probabilities, as in Jordan, "94% on CIFAR-10 in 3.29
seconds" (2024, arXiv:2404.00498), whose `flip_shift` this is.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from comp.runtime.errors import ConfigError, unknown

Transform = Callable[[Tensor], Tensor]

_CROP_BORDER = 16  # ten_crop: the border is the image's shorter side over this, two pixels at 32


@dataclass(frozen=True)
class View:
    """A transform [B, C, H, W] -> [B, C, H, W] and its share of the averaged logits."""

    weight: float
    transform: Transform


def plain(images: Tensor) -> Tensor:
    """Return the images as they are."""
    return images


def mirrored(images: Tensor) -> Tensor:
    """Return images flipped left to right."""
    return images.flip(-1)


def shifted(images: Tensor, down: int, right: int) -> Tensor:
    """Return images [B, C, H, W] shifted by pixels; borders are reflected."""
    rows, columns = (
        _reflected(side, by, images.device) for side, by in ((images.shape[-2], down), (images.shape[-1], right))
    )
    return images.index_select(-2, rows).index_select(-1, columns)


def _reflected(side: int, by: int, device: torch.device) -> Tensor:
    indices = (torch.arange(side, device=device) - by).abs()
    return torch.minimum(indices, 2 * (side - 1) - indices)


def _diagonal(by: int) -> Transform:
    return lambda images: shifted(images, by, by)


def _corner(down: int, right: int) -> Transform:
    """Return a crop at the image's size that shows one corner with a reflected border."""

    def crop(images: Tensor) -> Tensor:
        border = max(1, min(images.shape[-2:]) // _CROP_BORDER)
        return shifted(images, down * border, right * border)

    return crop


def _rotated(quarters: int) -> Transform:
    return lambda images: images.rot90(quarters, (-2, -1))


def _equal_weights(*transforms: Transform) -> tuple[View, ...]:
    return tuple(View(1 / len(transforms), transform) for transform in transforms)


def _with_mirror(views: tuple[View, ...]) -> tuple[View, ...]:
    def mirror(transform: Transform) -> Transform:
        return lambda images: mirrored(transform(images))

    halves = [(View(v.weight / 2, v.transform), View(v.weight / 2, mirror(v.transform))) for v in views]
    return tuple(view for pair in halves for view in pair)


_PLAIN = _equal_weights(plain)
_SHIFT = (View(0.5, plain), View(0.25, _diagonal(1)), View(0.25, _diagonal(-1)))
_CROPS = _equal_weights(plain, *[_corner(down, right) for down in (1, -1) for right in (1, -1)])
_ROTATIONS = _equal_weights(plain, *[_rotated(quarters) for quarters in (1, 2, 3)])

VIEWS: dict[str, tuple[View, ...]] = {
    "none": _PLAIN,
    "flip": _with_mirror(_PLAIN),
    "shift": _SHIFT,
    "flip_shift": _with_mirror(_SHIFT),
    "ten_crop": _with_mirror(_CROPS),
    "dihedral": _with_mirror(_ROTATIONS),
}
"""What each row is:

none: The image as it is.
flip: Two views: the image and its mirror image.
shift: Three views: the image, and shifted by a pixel along the diagonal, both ways.
flip_shift: Six views: `shift`, each also mirrored (Jordan 2024, arXiv:2404.00498).
ten_crop: Ten views: the centre and four corners, each also mirrored (Krizhevsky et al. 2012, AlexNet).
dihedral: Eight views: all quarter turns, each also mirrored; for images without an upright side, such as tissue.
"""
_SQUARE_ONLY = {"dihedral"}


def check_size(name: str, height: int, width: int) -> None:
    """Check that views are possible for an image size.

    Raises:
        ConfigError: the views need square images; lists views that do not.
    """
    if name in _SQUARE_ONLY and height != width:
        raise ConfigError(
            f"predict.views: {name} turns images, which must be square, found {height} x {width}; choose from "
            f"{', '.join(sorted(set(VIEWS) - _SQUARE_ONLY))}"
        )


def views(name: str) -> tuple[View, ...]:
    """Return a row of VIEWS.

    Raises:
        ConfigError: unknown name.
    """
    if name not in VIEWS:
        raise ConfigError(f"predict.views: {unknown('views', name, VIEWS)}")
    return VIEWS[name]


def least_confident(logits: NDArray[np.float32], share: float) -> NDArray[np.int64]:
    """Return the rows (ascending) of the `share` (rounded up) of logits [N, C] with the lowest top probability."""
    centred = logits - logits.max(1, keepdims=True)
    confidence = 1 / np.exp(centred).sum(1)  # [N]: softmax at the maximum
    count = math.ceil(share * len(logits))
    return np.sort(np.argsort(confidence, kind="stable")[:count])
