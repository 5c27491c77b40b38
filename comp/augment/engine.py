"""The augmentation engine: plans a policy's draws ahead on the host, and runs the plan on uint8 batches on the device.

A plan covers a window of steps. It is made for all of them at once and reaches the device in one copy: each stage's
groups of samples that run the same function, their sizes, and every number that the ops need. A step gathers rows, so
that groups stand together, and runs each function once on its slice; it never waits for the device. A sample's result
depends on its key alone.

    keys = rng.keys(seed, epoch, indices)                     # [S, B] int64: S steps of B samples, on the CPU
    plan = plans.send(plan_policy(policy, keys, (C, H, W)), device)
    images = plan.run(images, step)                           # [B, C, H, W] uint8
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from comp.augment import plans
from comp.augment.batch_ops import FUNCTIONS, Numbers, Run, Shape
from comp.augment.kernels import geometry
from comp.augment.mixing import beta, dirichlet
from comp.augment.ops import Mixture, OneOf, Op, Policy
from comp.runtime import rng


def augment(images: Tensor, policy: Policy, keys: Tensor, *, flip_mask: Tensor | None = None) -> Tensor:
    """Plan and augment one batch; keys on a device are read back.

    Args:
        images: [B, C, H, W] uint8; `COLOUR_OPS` need C 1 or 3; fastest in channels_last memory, the result's format.
        policy: from `policies.resolve`; its crop and albumentations transforms are left to `worker_stage`.
        keys: [B] int64 from `rng.keys(seed, epoch, indices)`.
        flip_mask: [B] bool from `alternating_flip_mask`; only `alternating_flip` needs it.
    """
    _, C, H, W = images.shape
    plan = plan_policy(policy, keys.cpu()[None], (C, H, W), flip_mask=None if flip_mask is None else flip_mask.cpu())
    return plans.send(plan, images.device).run(images, 0)


def alternating_flip_mask(seed: int, epoch: int, indices: Tensor) -> Tensor:
    """Return [...] bool: which samples are flipped in this epoch: at random in epoch 0, then alternating."""
    coins = rng.integers(rng.keys(seed, 0, indices), 0, 2)
    return (coins + epoch) % 2 == 1


class Group(NamedTuple):
    """Samples of a slot that run the same function.

    Attributes:
        run: a `BatchOp.run`.
        share: expected share of the rows.
        sizes: of the group in each step.
        numbers: what `run` takes beside the images, [sum of sizes, ...] each: all steps' one after the other.
    """

    run: Run
    share: float
    sizes: "_Sizes"
    numbers: Numbers

    def numbers_at(self, step: int) -> Numbers:
        """Return those of a step."""
        start = self.sizes.starts[step]
        return tuple(number[start : start + self.sizes.counts[step]] for number in self.numbers)


@dataclass(frozen=True)
class _Sizes:
    """Counts of samples in each step, and their running sums."""

    counts: list[int]
    starts: list[int]

    @classmethod
    def of(cls, counts: Tensor) -> "_Sizes":
        """Return those of counts [S]."""
        return cls(counts.tolist(), (counts.cumsum(0) - counts).tolist())


class Slot(NamedTuple):
    """One move of a batch's rows, then one op for each sample.

    Attributes:
        rows: [S, rows] int32, the row that each row is copied from; None: rows stay where they are.
        groups: one after another from the first row on; what is left stays as it is.
    """

    rows: Tensor | None
    groups: tuple[Group, ...]

    def run(self, pixels: Tensor, step: int) -> Tensor:
        """Return [rows, H, W, C]."""
        if self.rows is not None:
            pixels = pixels.index_select(0, self.rows[step])
        parts, done = [], 0
        for group in self.groups:
            if size := group.sizes.counts[step]:
                images = geometry.to_images(pixels[done : done + size])
                parts.append(geometry.to_pixels(group.run(images, *group.numbers_at(step))))
                done += size
        if len(parts) == 1 and done == len(pixels):
            return parts[0]
        return torch.cat([*parts, pixels[done:]]) if parts else pixels


class Blend(NamedTuple):
    """A planned `Mixture`: chains of ops, blended with each other and with the image.

    Attributes:
        slots: of all chains together; they make width * B rows of B.
        kept: [S, B] float32, the unchanged image's share.
        shares: [S, width, B] float32, each chain's.
    """

    slots: tuple[Slot, ...]
    kept: Tensor
    shares: Tensor

    def run(self, pixels: Tensor, step: int) -> Tensor:
        """Return [B, H, W, C]."""
        mixed = pixels
        for slot in self.slots:
            mixed = slot.run(mixed, step)
        return blend(pixels, mixed, self.kept[step], self.shares[step])


def blend(pixels: Tensor, mixed: Tensor, kept: Tensor, shares: Tensor) -> Tensor:
    """Return pixels [B, ...] times `kept` [B] plus each chain of `mixed` [width B, ...] times `shares` [width, B]."""
    total = pixels.to(torch.float32) * kept[:, None, None, None]
    for chain, share in zip(mixed.view(-1, *pixels.shape), shares, strict=True):
        total = total + chain * share[:, None, None, None]
    return (total + 0.5).clamp_(0, 255).to(torch.int32).to(torch.uint8)


class Plan(NamedTuple):
    """What a policy does to a window of batches."""

    parts: tuple[Slot | Blend, ...]

    def run(self, images: Tensor, step: int) -> Tensor:
        """Return a step's images [B, C, H, W] uint8 augmented, channels_last; the plan lies on their device."""
        assert images.dtype == torch.uint8
        pixels = geometry.to_pixels(images)  # [B, H, W, C]
        for part in self.parts:
            pixels = part.run(pixels, step)
        return geometry.to_images(pixels)


def plan_policy(
    policy: Policy, keys: Tensor, shape: Shape, *, flip_mask: Tensor | None = None, complete: bool = False
) -> Plan:
    """Plan a window of batches.

    Args:
        policy: see `augment`.
        keys: [S, B] int64 on the CPU: those of S batches.
        shape: of an image: C, H, W.
        flip_mask: [S, B] bool, see `augment`.
        complete: whether to have every group that can be drawn, also where no sample of the window drew it.

    Returns:
        a plan on the CPU, see `plans.send`.
    """
    masks = None if flip_mask is None else flip_mask.reshape(-1)
    in_order = torch.arange(keys.shape[1]).expand(keys.shape)
    parts: list[Slot | Blend] = []
    samples = in_order  # [S, B]: which sample stands in each row
    for number, stage in enumerate(policy.stages):
        stage_keys = rng.fold(keys, number)
        if isinstance(stage, Mixture):
            parts += _restore(samples)
            parts.append(_plan_mixture(stage, stage_keys, shape, masks, complete))
            samples = in_order
        else:
            slots, samples = _plan_slots(_draw(stage, stage_keys.reshape(-1), masks), samples, shape, complete)
            parts += slots
    return Plan((*parts, *_restore(samples)))


@dataclass(frozen=True)
class _Table:
    """A choice's branches as tensors [branches, slots], padded with inactive ops."""

    names: tuple[str, ...]
    op: Tensor  # int64 index into names
    probability: Tensor
    low: Tensor
    reach: Tensor  # high - low
    signed: Tensor  # 0 or 1
    steps: Tensor  # 0: continuous


@dataclass(frozen=True)
class _Drawn:
    """The drawn ops of N samples: [slots, N] each; `op` is len(names) where none acts.

    `shares` holds for each slot the probability of each name.
    """

    names: tuple[str, ...]
    shares: list[dict[str, float]]
    op: Tensor
    magnitude: Tensor
    keys: Tensor


@lru_cache(maxsize=64)
def _tabulate(choice: OneOf) -> _Table:
    slots = max(len(branch) for branch in choice.branches)
    names = tuple(dict.fromkeys(op.name for branch in choice.branches for op in branch))
    idle = Op(names[0], 0.0)
    rows = [[*branch, *[idle] * (slots - len(branch))] for branch in choice.branches]

    def column(value: Callable[[Op], float]) -> Tensor:
        return torch.tensor([[value(op) for op in row] for row in rows], dtype=torch.float32)

    return _Table(
        names,
        column(lambda op: names.index(op.name)).to(torch.int64),
        column(lambda op: op.probability),
        column(lambda op: op.low),
        column(lambda op: op.high - op.low),
        column(lambda op: op.signed),
        column(lambda op: op.steps),
    )


def _draw(choice: OneOf, keys: Tensor, flip_mask: Tensor | None) -> _Drawn:
    """Draw each sample's ops from keys [N]: draw 0 picks the branch, then each slot takes three."""
    table = _tabulate(choice)
    slots = table.op.shape[1]
    branch = _pick(choice, keys)  # [N]
    op, probability, low, reach, signed, steps = (
        column.index_select(0, branch).t()
        for column in (table.op, table.probability, table.low, table.reach, table.signed, table.steps)
    )  # [slots, N] each
    counters = 3 * torch.arange(slots)[:, None] + 1
    acts = rng.uniform(keys, counters) < probability
    if "alternating_flip" in table.names:
        assert flip_mask is not None, "a policy with alternating_flip needs `flip_mask`"
        acts &= (op != table.names.index("alternating_flip")) | flip_mask
    share = rng.uniform(keys, counters + 1)
    stepped = (share * steps).floor() / (steps - 1).clamp(min=1)
    magnitude = low + reach * torch.where(steps > 0, stepped, share)
    magnitude = magnitude * (1 - 2 * signed * rng.integers(keys, counters + 2, 2))
    slot_keys = torch.stack([rng.fold(keys, slot) for slot in range(slots)])
    return _Drawn(table.names, _shares(choice, slots), torch.where(acts, op, len(table.names)), magnitude, slot_keys)


def _pick(choice: OneOf, keys: Tensor) -> Tensor:
    """Return [N] int64: each sample's branch, from draw 0."""
    if not choice.weights:
        return rng.integers(keys, 0, len(choice.branches))
    return torch.searchsorted(torch.tensor(choice.ends), rng.uniform(keys, 0), right=True)


def _shares(choice: OneOf, slots: int) -> list[dict[str, float]]:
    """Return for each slot the probability that each op acts."""
    weights = choice.weights or (1.0,) * len(choice.branches)
    shares: list[dict[str, float]] = [{} for _ in range(slots)]
    for weight, branch in zip(weights, choice.branches, strict=True):
        for slot, op in enumerate(branch):
            shares[slot][op.name] = shares[slot].get(op.name, 0.0) + op.probability * weight / sum(weights)
    return shares


def _plan_slots(drawn: _Drawn, samples: Tensor, shape: Shape, complete: bool) -> tuple[list[Slot], Tensor]:
    """Return a slot for each op in turn, and which sample then stands in each row.

    Args:
        drawn: N = S * rows samples.
        samples: [S, rows] int64, which sample stands in each row before.
        shape: of an image.
        complete: see `plan_policy`.
    """
    runs = tuple(dict.fromkeys(FUNCTIONS[name].run for name in drawn.names))
    run_of = torch.tensor([*(runs.index(FUNCTIONS[name].run) for name in drawn.names), len(runs)])
    slots = []
    for named, *values in zip(drawn.shares, drawn.op, drawn.magnitude, drawn.keys, strict=True):
        op, magnitude, keys = (value.view(samples.shape) for value in values)
        shares = [sum(named.get(name, 0.0) for name in drawn.names if FUNCTIONS[name].run is run) for run in runs]
        kinds = run_of[op.gather(1, samples)]  # [S, rows]
        counts = _count_by_row(kinds, len(runs) + 1)  # [S, runs + 1]
        totals = counts.sum(0).tolist()
        present = [share > 0 if complete else total > 0 for share, total in zip(shares, totals, strict=False)]
        if not any(present):
            continue
        # Where all draw one function, rows need not move. (Half of the samples leave an alternating flip out.)
        alike = max(shares) >= 1 and "alternating_flip" not in named if complete else max(totals) == kinds.numel()
        rows = None
        if not alike:
            rows = kinds.argsort(stable=True, dim=1)
            samples, kinds = samples.gather(1, rows), kinds.gather(1, rows)
            rows = rows.to(torch.int32)
        op, magnitude, keys = (value.gather(1, samples) for value in (op, magnitude, keys))
        groups = []
        for kind, (run, share) in enumerate(zip(runs, shares, strict=True)):
            if present[kind]:
                mine = kinds == kind
                numbers = _draw_numbers(drawn.names, run, op[mine], magnitude[mine], keys[mine], shape)
                groups.append(Group(run, share, _Sizes.of(counts[:, kind]), numbers))
        slots.append(Slot(rows, tuple(groups)))
    return slots, samples


def _draw_numbers(
    names: tuple[str, ...], run: Run, op: Tensor, magnitude: Tensor, keys: Tensor, shape: Shape
) -> Numbers:
    """Return the numbers of samples [n] whose ops all run the same function; of none, those of one made-up sample."""
    candidates = [index for index, name in enumerate(names) if FUNCTIONS[name].run is run]
    if not len(op):
        return FUNCTIONS[names[candidates[0]]].draw(magnitude.new_zeros(1), keys.new_zeros(1), shape)
    numbers: Numbers = ()
    for index in candidates:
        draw = FUNCTIONS[names[index]].draw
        if len(candidates) == 1:
            return draw(magnitude, keys, shape)
        mine = (op == index).nonzero()[:, 0]
        drawn = draw(magnitude[mine], keys[mine], shape)
        numbers = numbers or tuple(number.new_empty((len(op), *number.shape[1:])) for number in drawn)
        for all_of_them, number in zip(numbers, drawn, strict=True):
            all_of_them.index_copy_(0, mine, number)
    return numbers


def _count_by_row(values: Tensor, length: int) -> Tensor:
    """Return [S, length] int64: how often each of 0 to length - 1 occurs in each row of [S, n]."""
    first = length * torch.arange(len(values))[:, None]
    return torch.bincount((values + first).view(-1), minlength=len(values) * length).view(-1, length)


def _restore(samples: Tensor) -> list[Slot]:
    """Return the move that puts samples [S, rows] back into order, if they are not."""
    in_order = torch.arange(samples.shape[1]).expand(samples.shape)
    return [] if torch.equal(samples, in_order) else [Slot(samples.argsort(1).to(torch.int32), ())]


def _plan_mixture(mixture: Mixture, keys: Tensor, shape: Shape, flip_mask: Tensor | None, complete: bool) -> Blend:
    """Plan a mixture for keys [S, B]; its chains run together, as width * B rows."""
    S, B = keys.shape
    any_op = OneOf(tuple((op,) for op in mixture.ops))
    weights = dirichlet(mixture.alpha, mixture.width, keys.reshape(-1), 0).view(S, B, -1)
    kept = beta(mixture.alpha, mixture.alpha, rng.uniform(keys, mixture.width))  # [S, B]
    shares = torch.stack([(1 - kept) * weights[:, :, chain] for chain in range(mixture.width)], 1)
    chain_keys = torch.stack([rng.fold(keys, chain) for chain in range(mixture.width)], 1).view(-1)  # [S width B]
    masks = None if flip_mask is None else flip_mask.view(S, 1, B).expand(S, mixture.width, B).reshape(-1)
    depth = 1 + rng.integers(chain_keys, 0, mixture.depth)
    links = [_draw(any_op, rng.fold(chain_keys, link + 1), masks) for link in range(mixture.depth)]
    idle = torch.full_like(depth, len(links[0].names))
    drawn = _Drawn(
        links[0].names,
        [
            {name: share * (mixture.depth - link) / mixture.depth for name, share in drawn.shares[0].items()}
            for link, drawn in enumerate(links)
        ],
        torch.stack([torch.where(link < depth, drawn.op[0], idle) for link, drawn in enumerate(links)]),
        torch.cat([drawn.magnitude for drawn in links]),
        torch.cat([drawn.keys for drawn in links]),
    )
    in_order = torch.arange(mixture.width * B).expand(S, -1)
    slots, samples = _plan_slots(drawn, in_order, shape, complete)
    slots = [*slots, *_restore(samples)] or [Slot(None, ())]
    # The first move also makes a copy of the batch for each chain.
    first = in_order.to(torch.int32) if slots[0].rows is None else slots[0].rows
    copies = slots[0]._replace(rows=first % B)
    return Blend((copies, *slots[1:]), kept, shares)
