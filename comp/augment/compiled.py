"""Compiled augmentation: plans padded to fixed sizes, so that one graph serves every step of a training.

Eager steps run each op on as many samples as drew it, a number that differs from step to step; a compiled graph would
be built anew for each. Here a group has room for its expected number of samples plus five standard deviations, and the
first one fills what is left. A batch in which more drew an op (about one in a million) runs eagerly.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from comp.augment import plans
from comp.augment.batch_ops import Numbers, Run, Shape
from comp.augment.engine import Blend, Plan, Slot, blend, plan_policy
from comp.augment.kernels import geometry
from comp.augment.ops import Policy
from comp.runtime.errors import ConfigError

_ROUNDED = 16  # samples: keeps rows of plans aligned
_DEVIATIONS = 5


_prepared: set[tuple[Run, torch.Size, torch.device]] = set()


class PaddedGroup(NamedTuple):
    """A `Group` of fixed size.

    Attributes:
        run: a `BatchOp.run`.
        take: [S, size] int32, rows of the slot.
        numbers: [S, size, ...] each.
    """

    run: Run
    take: Tensor
    numbers: Numbers


class PaddedSlot(NamedTuple):
    """A `Slot` of fixed sizes.

    Attributes:
        rows: as a slot's.
        groups: all that can be drawn.
        merge: [S, rows] int32, where each row's result is: in the groups, one after another, or in the rows behind.
    """

    rows: Tensor | None
    groups: tuple[PaddedGroup, ...]
    merge: Tensor | None


class PaddedBlend(NamedTuple):
    """A `Blend` of fixed sizes."""

    slots: tuple[PaddedSlot, ...]
    kept: Tensor
    shares: Tensor


class CompiledPlan(NamedTuple):
    """A window of batches that run as a compiled graph.

    Attributes:
        parts: of fixed sizes.
        eager: plans of the steps in which too many drew an op.
    """

    parts: tuple[PaddedSlot | PaddedBlend, ...]
    eager: Mapping[int, Plan]

    def run(self, images: Tensor, step: int) -> Tensor:
        """See `Plan.run`.

        Raises:
            ConfigError: the policy cannot be compiled.
        """
        self.prepare(images)
        return self.run_with(_compiled(), images, step)

    def prepare(self, images: Tensor) -> None:
        """Run each op on one sample, once in a process: makes the constants that its graph will hold."""
        slots = [slot for part in self.parts for slot in (part.slots if isinstance(part, PaddedBlend) else (part,))]
        for group in (group for slot in slots for group in slot.groups):
            key = group.run, images.shape[1:], images.device
            if key not in _prepared:
                _prepared.add(key)
                group.run(images[:1], *(number[0, :1] for number in group.numbers))

    def run_with(self, function: Callable[..., Tensor], images: Tensor, step: int) -> Tensor:
        """Run a step by `run_parts`, compiled or not."""
        if step in self.eager:
            return self.eager[step].run(images, 0)
        return geometry.to_images(function(geometry.to_pixels(images), plans.at_step(self.parts, step)))


def plan_compiled(policy: Policy, keys: Tensor, shape: Shape, *, flip_mask: Tensor | None = None) -> CompiledPlan:
    """Plan a window of batches; see `engine.plan_policy`."""
    whole = plan_policy(policy, keys, shape, flip_mask=flip_mask, complete=True)
    full = torch.zeros(len(keys), dtype=torch.bool)
    parts: list[PaddedSlot | PaddedBlend] = []
    for part in whole.parts:
        if isinstance(part, Blend):
            rows = part.shares.shape[1] * keys.shape[1]
            slots = tuple(_pad(slot, len(keys), rows, full) for slot in part.slots)
            parts.append(PaddedBlend(slots, part.kept, part.shares))
        else:
            parts.append(_pad(part, len(keys), keys.shape[1], full))
    eager = {}
    for step in full.nonzero()[:, 0].tolist():
        mask = None if flip_mask is None else flip_mask[step : step + 1]
        eager[step] = plan_policy(policy, keys[step : step + 1], shape, flip_mask=mask)
    return CompiledPlan(tuple(parts), eager)


def run_parts(pixels: Tensor, parts: tuple[PaddedSlot | PaddedBlend, ...]) -> Tensor:
    """Return pixels [B, H, W, C] uint8 augmented, by one step's rows of a plan."""
    for part in parts:
        if isinstance(part, PaddedBlend):
            mixed = pixels
            for slot in part.slots:
                mixed = _run_slot(mixed, slot)
            pixels = blend(pixels, mixed, part.kept, part.shares)
        else:
            pixels = _run_slot(pixels, part)
    return pixels


@functools.cache
def _compiled() -> Callable[..., Tensor]:
    from torch._dynamo.exc import TorchDynamoException  # takes a second to import

    # Not fullgraph: a process that trains with many policies reaches torch's limit of graphs, and goes on eagerly.
    graph = torch.compile(run_parts, dynamic=False)

    def run(pixels: Tensor, parts: tuple[PaddedSlot | PaddedBlend, ...]) -> Tensor:
        try:
            return graph(pixels, parts)
        except TorchDynamoException as error:
            reason = str(error).strip().splitlines()[0]
            raise ConfigError(f"train.compile: augment.policy cannot be compiled here ({reason}); use false") from error

    return run


def _run_slot(pixels: Tensor, slot: PaddedSlot) -> Tensor:
    if slot.rows is not None:
        pixels = pixels.index_select(0, slot.rows)
    if slot.merge is None:
        return pixels
    results = [
        geometry.to_pixels(group.run(geometry.to_images(pixels.index_select(0, group.take)), *group.numbers))
        for group in slot.groups
    ]
    return torch.cat([*results, pixels]).index_select(0, slot.merge)


def _pad(slot: Slot, steps: int, rows: int, full: Tensor) -> PaddedSlot:
    """Return a slot of fixed sizes; mark steps [S] bool in `full` that do not fit."""
    if not slot.groups:
        return PaddedSlot(slot.rows, (), None)
    places = torch.arange(rows).expand(steps, -1)
    sizes = [_room(group.share, rows) for group in slot.groups]
    merge = places + sum(sizes)
    first, base = torch.zeros(steps, 1, dtype=torch.int64), 0
    groups = []
    for group, size in zip(slot.groups, sizes, strict=True):
        counts = torch.tensor(group.sizes.counts)[:, None]  # [S, 1]
        full |= counts[:, 0] > size
        offsets = torch.minimum(torch.arange(size).expand(steps, -1), (counts - 1).clamp(min=0))
        take = (first + offsets).clamp(max=rows - 1).to(torch.int32)
        source = torch.tensor(group.sizes.starts)[:, None] + offsets  # [S, size]
        numbers = tuple(number[source.clamp(max=len(number) - 1)] for number in group.numbers)
        groups.append(PaddedGroup(group.run, take, numbers))
        inside = (places >= first) & (places < first + counts)
        merge = torch.where(inside, places - first + base, merge)
        first, base = first + counts, base + size
    return PaddedSlot(slot.rows, tuple(groups), merge.to(torch.int32))


def _room(share: float, rows: int) -> int:
    """Return how many of `rows` samples a group has room for, each drawing it with probability `share`."""
    largest = rows * share + _DEVIATIONS * math.sqrt(rows * share * max(1 - share, 0))
    return min(rows, math.ceil(largest / _ROUNDED) * _ROUNDED)
