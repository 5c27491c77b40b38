"""The engine for image files: a policy on one image at a time through albumentations, in loader workers.

Every image is its own draw: before each, the generators that all transforms share are set from (seed, epoch, index),
so that images do not depend on workers, their number or their order. (albumentations' own `set_random_seed` gives each
transform a generator of its own with the same seed: two flips at one half would then always agree.)
"""

import json
import os
import random
from bisect import bisect
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from comp.augment import array_ops
from comp.augment.ops import Choice, Foreign, Mixture, Op, Policy
from comp.augment.per_batch import alternation
from comp.errors import ConfigError, nearest
from comp.imaging import draws

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # importing it would otherwise ask the network for news

import albumentations as A

Image = NDArray[np.uint8]
_WORD = (1 << 64) - 1


class PerImage:
    """A policy for one image at a time.

    augment = PerImage(resolve("basic"), seed=0)
    image = augment(image, epoch, index)
    """

    def __init__(self, policy: Policy, seed: int) -> None:
        """Build the transforms.

        Args:
            policy: from `policies.resolve`.
            seed: the run's seed.

        Raises:
            ConfigError: a transform that albumentations has not, or arguments that it refuses.
        """
        self._seed = seed
        self._python = random.Random(0)
        self._bits = np.random.PCG64(0)
        # Two rows of transforms where flips alternate: one for the epochs in which an image is mirrored.
        alternates = any(op.name == "alternating_flip" for op in policy.ops)
        self._composes = [_compose(policy, turned) for turned in ((False, True) if alternates else (False,))]
        for compose in self._composes:
            compose.set_random_state(np.random.Generator(self._bits), self._python)

    def __call__(self, image: Image, epoch: int, index: int) -> Image:
        """Return the augmented image.

        Args:
            image: [H, W, C] uint8; `COLOUR_OPS` want C 1 or 3.
            epoch: the epoch.
            index: the sample's index in its split.

        Returns:
            [H, W, C] uint8; another size only where a foreign transform makes it so.
        """
        word = draws.key(self._seed, epoch, index) & _WORD
        self._python.seed(word)
        self._bits.state = {
            "bit_generator": "PCG64",
            "state": {"state": word << 64 | word, "inc": 1},
            "has_uint32": 0,
            "uinteger": 0,
        }
        turned = len(self._composes) > 1 and bool(_first_turns(self._seed, index // _BLOCK)[index % _BLOCK] ^ epoch & 1)
        data: dict[str, Any] = {"image": image}
        for stage in self._composes[turned].transforms:  # Compose itself would check for 10 us what is known to hold
            data = stage(**data)
        done: Image = data["image"]
        return np.ascontiguousarray(done if done.ndim == 3 else done[..., None])


_BLOCK = 4096


@lru_cache(maxsize=64)
def _first_turns(seed: int, block: int) -> NDArray[np.bool_]:
    """Return `per_batch.alternation` of epoch 0 for a block of indices: one call of torch for many images."""
    turns: NDArray[np.bool_] = alternation(seed, 0, torch.arange(block * _BLOCK, (block + 1) * _BLOCK)).numpy()
    return turns


def _compose(policy: Policy, turned: bool) -> Any:
    stages = [
        Chains(stage) if isinstance(stage, Mixture) else Branches(stage, turned=turned) for stage in policy.stages
    ]
    return A.Compose(stages, strict=True)


class Branches(A.BaseCompose):  # type: ignore[misc]
    """A `Choice`: one of its branches. (A.OneOf takes one transform, and 15 us to choose it.)"""

    def __init__(self, choice: Choice, *, turned: bool) -> None:
        distinct = {op: _transform(op, turned) for branch in choice.branches for op in branch}
        super().__init__(list(distinct.values()), p=1.0)
        self.branches = [[distinct[op] for op in branch] for branch in choice.branches]
        self.ends = choice.ends

    def __call__(self, *args: Any, force_apply: bool = False, **data: Any) -> dict[str, Any]:
        """Return the data with one branch's transforms applied."""
        branches = self.branches
        picked = bisect(self.ends, self.py_random.random()) if len(branches) > 1 else 0
        for transform in branches[picked]:
            data = transform(**data)
        return data


class Chains(A.BaseCompose):  # type: ignore[misc]
    """A `Mixture`: chains of ops, blended with each other and with the image."""

    def __init__(self, mixture: Mixture) -> None:
        super().__init__([_transform(op, False) for op in mixture.ops], p=1.0)
        self.mixture = mixture

    def __call__(self, *args: Any, force_apply: bool = False, **data: Any) -> dict[str, Any]:
        """Return the data with the image mixed."""
        mixture, image = self.mixture, data["image"]
        weights = self.random_generator.dirichlet([mixture.alpha] * mixture.width)
        kept = self.random_generator.beta(mixture.alpha, mixture.alpha)
        total = image * np.float32(kept)
        for weight in weights:
            chained = {"image": image}
            for _ in range(self.py_random.randint(1, mixture.depth)):
                chained = self.py_random.choice(self.transforms)(**chained)
            total += chained["image"] * np.float32(weight * (1 - kept))
        return {**data, "image": (total + 0.5).clip(0, 255).astype(np.uint8)}


class OwnOp(A.ImageOnlyTransform):  # type: ignore[misc]
    """An op of `array_ops`, with its magnitude drawn as the op says."""

    def __init__(self, op: Op) -> None:
        super().__init__(p=op.probability)
        self.op, self.function = op, array_ops.FUNCTIONS[op.name]

    def __call__(self, *args: Any, force_apply: bool = False, **data: Any) -> dict[str, Any]:
        """Return the data with the image under the op, or as they are. (The base's own way takes 7 us longer.)"""
        op, chance = self.op, self.py_random
        if chance.random() >= op.probability:
            return data
        share = chance.random()
        if op.steps:
            share = int(share * op.steps) / max(1, op.steps - 1)
        magnitude = op.low + (op.high - op.low) * share
        if op.signed and chance.random() < 0.5:
            magnitude = -magnitude
        return {**data, "image": self.function(data["image"], magnitude, chance)}


def _transform(op: Op | Foreign, turned: bool) -> Any:
    if isinstance(op, Foreign):
        return _foreign(op)
    if op.name == "alternating_flip" and not turned:
        op = replace(op, probability=0.0)
    return OwnOp(op)


def _foreign(op: Foreign) -> Any:
    kind = getattr(A, op.name, None)
    if not (isinstance(kind, type) and issubclass(kind, A.BasicTransform)):
        raise ConfigError(f"augment.ops: albumentations has no transform '{op.name}'{nearest(op.name, dir(A))}")
    # A class without a schema of its own knows no `strict`; Python refuses its wrong arguments.
    strict = {"strict": True} if "InitSchema" in vars(kind) else {}
    try:
        return kind(**json.loads(op.arguments), p=op.probability, **strict)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"augment.ops: albumentations' {op.name} refuses its arguments: {error}") from None
