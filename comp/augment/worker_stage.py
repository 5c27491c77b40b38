"""The augmentation stage of loader workers: a random resized crop while an image is read, then albumentations.

Generators are seeded from (seed, epoch, index) for each image, so that results do not depend on workers, their number
or their order. (albumentations' `set_random_seed` seeds each transform alike: two flips at 0.5 always agree.)
"""

import inspect
import json
import math
import os
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from comp.augment.ops import AlbumentationsOp, Op, Policy
from comp.runtime import rng
from comp.runtime.errors import ConfigError, nearest

Image = NDArray[np.uint8]
Sides = tuple[int, int]  # height, width
Box = tuple[int, int, int, int]  # left, top, right, bottom

_WORD = (1 << 64) - 1
_CROP_PURPOSE, _TRANSFORMS_PURPOSE = 0x63726F70, 0x616C6275  # separate their draws from each other and the batch's
_TRIES = 10
_ASPECTS = (3 / 4, 4 / 3)


class WorkerStage:
    """Crop and transforms of one image at a time, determined by its epoch and index.

    stage = WorkerStage(resolve("photo"), seed=0)
    box = stage.box((375, 500), (224, 224), epoch, index)
    """

    def __init__(self, policy: Policy, seed: int) -> None:
        """Build the transforms.

        Raises:
            ConfigError: unknown transform, or invalid arguments.
        """
        self._seed, self._crop = seed, policy.crop
        self._transforms = _Transforms(policy.albumentations) if policy.albumentations else None

    def box(self, shape: Sides, size: Sides, epoch: int, index: int) -> Box | None:
        """Draw the part of an image to crop; None if the policy does not crop it.

        As for GoogLeNet (Szegedy et al. 2015, section 6, arXiv:1409.4842): a share of the area, with an aspect ratio
        from 3/4 to 4/3 of that of `size`; after ten draws that do not fit, the largest centre crop.

        Args:
            shape: of the decoded image.
            size: that the crop is resized to.
            epoch: the epoch.
            index: the sample's index in its split.
        """
        if self._crop is None:
            return None
        generator = random.Random(rng.key(self._seed, epoch, index, _CROP_PURPOSE) & _WORD)
        return _draw_crop(self._crop, shape, size, generator) if generator.random() < self._crop.probability else None

    def __call__(self, image: Image, epoch: int, index: int) -> Image:
        """Apply the policy's albumentations transforms.

        Args:
            image: [H, W, C] uint8.
            epoch: the epoch.
            index: the sample's index in its split.
        """
        if self._transforms is None:
            return image
        return self._transforms(image, rng.key(self._seed, epoch, index, _TRANSFORMS_PURPOSE) & _WORD)


def build(policy: Policy, seed: int) -> WorkerStage | None:
    """Build a policy's worker stage; None if workers only read images.

    Raises:
        ConfigError: as `WorkerStage`.
    """
    return WorkerStage(policy, seed) if policy.crop or policy.albumentations else None


def check_image_shape(policy: Policy, image_shape: tuple[int, int, int]) -> None:
    """Check on a random image that albumentations transforms accept it and keep its size.

    Args:
        policy: from `policies.resolve`.
        image_shape: (C, H, W) of the training images.

    Raises:
        ConfigError: names the transform.
    """
    channels, height, width = image_shape
    image = np.random.default_rng(0).integers(0, 256, (height, width, channels), np.uint8)
    for op in policy.albumentations:
        transform = _Transforms((replace(op, probability=1.0),))
        try:
            image = transform(image, 0)
        except Exception as error:  # transforms raise any error
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ConfigError(
                f"augment.albumentations: {op.name} cannot take images of {channels} channels, {height} x {width} "
                f"({reason}); leave it out"
            ) from None
    if image.shape != (height, width, channels) or image.dtype != np.uint8:
        names = ", ".join(op.name for op in policy.albumentations)
        raise ConfigError(
            f"augment.albumentations: {names}: expected images [{height}, {width}, {channels}] uint8, as the network "
            f"takes them, found {list(image.shape)} {image.dtype}; choose arguments that keep the size, such as "
            f"size: [{height}, {width}]"
        )


def _draw_crop(op: Op, shape: Sides, size: Sides, generator: random.Random) -> Box:
    height, width = shape
    target_aspect = size[1] / size[0]
    for _ in range(_TRIES):
        area = height * width * generator.uniform(op.low, op.high)
        aspect = target_aspect * math.exp(generator.uniform(math.log(_ASPECTS[0]), math.log(_ASPECTS[1])))
        crop_width, crop_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            left, top = generator.randint(0, width - crop_width), generator.randint(0, height - crop_height)
            return left, top, left + crop_width, top + crop_height
    aspect = min(max(width / height, target_aspect * _ASPECTS[0]), target_aspect * _ASPECTS[1])
    crop_width, crop_height = min(width, max(1, round(height * aspect))), min(height, max(1, round(width / aspect)))
    left, top = (width - crop_width) // 2, (height - crop_height) // 2
    return left, top, left + crop_width, top + crop_height


class _Transforms:
    """albumentations transforms in sequence, sharing their generators."""

    def __init__(self, ops: Sequence[AlbumentationsOp]) -> None:
        os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # otherwise the import checks the network for updates
        import albumentations  # takes a second to import

        self._python = random.Random(0)
        self._bits = np.random.PCG64(0)
        self._all = [_build_transform(albumentations, op) for op in ops]
        for transform in self._all:
            transform.set_random_state(np.random.Generator(self._bits), self._python)

    def __call__(self, image: Image, word: int) -> Image:
        self._python.seed(word)
        self._bits.state = {
            "bit_generator": "PCG64",
            "state": {"state": word << 64 | word, "inc": 1},
            "has_uint32": 0,
            "uinteger": 0,
        }
        for transform in self._all:
            image = transform(image=image)["image"]
        return np.ascontiguousarray(image if image.ndim == 3 else image[..., None])


def _build_transform(albumentations: Any, op: AlbumentationsOp) -> Any:
    kind, arguments = getattr(albumentations, op.name, None), json.loads(op.arguments)
    if isinstance(kind, type) and issubclass(kind, albumentations.BaseCompose):
        raise ConfigError(
            f"augment.albumentations: {op.name} composes other transforms; list those directly, each with its "
            "probability"
        )
    if not (isinstance(kind, type) and issubclass(kind, albumentations.BasicTransform)):
        names = [name for name in dir(albumentations) if name[0].isupper()]
        raise ConfigError(
            f"augment.albumentations: albumentations has no transform '{op.name}'{nearest(op.name, names)}"
        )
    # albumentations itself only warns about unknown names.
    accepted = [name for name in inspect.signature(kind).parameters if name != "p"]
    for name in arguments:
        if name not in accepted:
            raise ConfigError(
                f"augment.albumentations: {op.name} has no argument '{name}'{nearest(name, accepted)}; it takes "
                f"{', '.join(accepted) or 'none'}"
            )
    try:
        return kind(**arguments, p=op.probability, **({"strict": True} if "InitSchema" in vars(kind) else {}))
    except (TypeError, ValueError) as error:
        lines = [line.strip() for line in str(error).splitlines() if "errors.pydantic.dev" not in line]
        reason = " ".join(lines).partition(" [type=")[0]
        raise ConfigError(f"augment.albumentations: {op.name}: invalid arguments: {reason}") from None
