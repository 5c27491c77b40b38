"""What loader workers do to a training image: a random resized crop while it is read, then albumentations.

Every image is its own draw: generators are set from (seed, epoch, index) before each, so that images do not depend on
workers, their number or their order. (albumentations' own `set_random_seed` gives each transform a generator of its
own with the same seed: two flips at one half would then always agree.)
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
_CROP, _FOREIGN = 0x63726F70, 0x616C6275  # keep their draws apart, and both from the batch's
_TRIES = 10
_ASPECTS = (3 / 4, 4 / 3)


class WorkerStage:
    """What happens to one image at a time, by its epoch and index alone.

    reading = WorkerStage(resolve("photo"), seed=0)
    box = reading.box((375, 500), (224, 224), epoch, index)
    """

    def __init__(self, policy: Policy, seed: int) -> None:
        """Build the transforms.

        Raises:
            ConfigError: a transform that albumentations has not, or arguments that it refuses.
        """
        self._seed, self._crop = seed, policy.crop
        self._transforms = _Transforms(policy.albumentations) if policy.albumentations else None

    def box(self, found: Sides, size: Sides, epoch: int, index: int) -> Box | None:
        """Return the part of an image to be brought to size; None where the policy does not crop it.

        As GoogLeNet's (Szegedy et al. 2015, section 6, arXiv:1409.4842): a share of the area, and a shape from 3/4 to
        4/3 of that of `size`, anywhere; where ten tries do not fit, the largest middle part of such a shape.

        Args:
            found: of the image as it was decoded.
            size: that its part is brought to.
            epoch: the epoch.
            index: the sample's index in its split.
        """
        if self._crop is None:
            return None
        chance = random.Random(rng.key(self._seed, epoch, index, _CROP) & _WORD)
        return _crop(self._crop, found, size, chance) if chance.random() < self._crop.probability else None

    def __call__(self, image: Image, epoch: int, index: int) -> Image:
        """Return the image under the transforms of albumentations.

        Args:
            image: [H, W, C] uint8.
            epoch: the epoch.
            index: the sample's index in its split.
        """
        if self._transforms is None:
            return image
        return self._transforms(image, rng.key(self._seed, epoch, index, _FOREIGN) & _WORD)


def build(policy: Policy, seed: int) -> WorkerStage | None:
    """Return what workers do for a policy; None where images are only read.

    Raises:
        ConfigError: as `WorkerStage`.
    """
    return WorkerStage(policy, seed) if policy.crop or policy.albumentations else None


def check_image_shape(policy: Policy, image_shape: tuple[int, int, int]) -> None:
    """Try the transforms of albumentations on an image, and refuse those that cannot take it or change its size.

    Args:
        policy: from `policies.resolve`.
        image_shape: (C, H, W) of the training images.

    Raises:
        ConfigError: naming the transform.
    """
    channels, height, width = image_shape
    image = np.random.default_rng(0).integers(0, 256, (height, width, channels), np.uint8)
    for op in policy.albumentations:
        only = _Transforms((replace(op, probability=1.0),))
        try:
            image = only(image, 0)
        except Exception as error:  # transforms raise whatever they stumble over
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


def _crop(op: Op, found: Sides, size: Sides, chance: random.Random) -> Box:
    height, width = found
    shape = size[1] / size[0]
    for _ in range(_TRIES):
        area = height * width * chance.uniform(op.low, op.high)
        aspect = shape * math.exp(chance.uniform(math.log(_ASPECTS[0]), math.log(_ASPECTS[1])))
        wide, tall = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < wide <= width and 0 < tall <= height:
            left, top = chance.randint(0, width - wide), chance.randint(0, height - tall)
            return left, top, left + wide, top + tall
    aspect = min(max(width / height, shape * _ASPECTS[0]), shape * _ASPECTS[1])
    wide, tall = min(width, max(1, round(height * aspect))), min(height, max(1, round(width / aspect)))
    left, top = (width - wide) // 2, (height - tall) // 2
    return left, top, left + wide, top + tall


class _Transforms:
    """Transforms of albumentations in turn, all with the same generators."""

    def __init__(self, ops: Sequence[AlbumentationsOp]) -> None:
        os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # importing it would otherwise ask the network for news
        import albumentations  # takes a second to import

        self._python = random.Random(0)
        self._bits = np.random.PCG64(0)
        self._all = [_built(albumentations, op) for op in ops]
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


def _built(albumentations: Any, op: AlbumentationsOp) -> Any:
    kind, arguments = getattr(albumentations, op.name, None), json.loads(op.arguments)
    if isinstance(kind, type) and issubclass(kind, albumentations.BaseCompose):
        raise ConfigError(
            f"augment.albumentations: {op.name} holds other transforms; list these themselves, one after the other, "
            "each with its probability"
        )
    if not (isinstance(kind, type) and issubclass(kind, albumentations.BasicTransform)):
        known = [name for name in dir(albumentations) if name[0].isupper()]
        raise ConfigError(
            f"augment.albumentations: albumentations has no transform '{op.name}'{nearest(op.name, known)}"
        )
    # Asked here: albumentations only warns of names that it does not know.
    known = [name for name in inspect.signature(kind).parameters if name != "p"]
    for name in arguments:
        if name not in known:
            raise ConfigError(
                f"augment.albumentations: {op.name} has no argument '{name}'{nearest(name, known)}; it takes "
                f"{', '.join(known) or 'none'}"
            )
    try:
        return kind(**arguments, p=op.probability, **({"strict": True} if "InitSchema" in vars(kind) else {}))
    except (TypeError, ValueError) as error:
        lines = [line.strip() for line in str(error).splitlines() if "errors.pydantic.dev" not in line]
        reason = " ".join(lines).partition(" [type=")[0]
        raise ConfigError(f"augment.albumentations: {op.name} refuses its arguments: {reason}") from None
