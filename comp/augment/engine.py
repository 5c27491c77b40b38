"""The augmentation engine: runs a policy's stages on a uint8 batch on the device, with draws per sample.

A stage makes all its draws at once, groups samples that drew the same op (one row copy of the batch), and runs each op
once on its slice. Grouping needs the group sizes on the host: one synchronisation per stage (in a mixture, per chain),
none between ops except equalize's histograms. A sample's result depends on its key alone.

    keys = rng.keys(seed, epoch, indices)    # [B] int64
    images = augment(images, policy, keys)     # [B, C, H, W] uint8
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from comp.augment.batch_ops import FUNCTIONS
from comp.augment.kernels import geometry
from comp.augment.mixing import beta, dirichlet
from comp.augment.ops import Mixture, OneOf, Op, Policy
from comp.runtime import rng


def augment(images: Tensor, policy: Policy, keys: Tensor, *, flip_mask: Tensor | None = None) -> Tensor:
    """Augment a batch.

    Args:
        images: [B, C, H, W] uint8; `COLOUR_OPS` need C 1 or 3; fastest in channels_last memory, the result's format.
        policy: from `policies.resolve`; its crop and albumentations transforms are left to `worker_stage`.
        keys: [B] int64 from `rng.keys(seed, epoch, indices)`, on the images' device.
        flip_mask: [B] bool from `alternating_flip_mask`; only `alternating_flip` needs it.
    """
    assert images.dtype == torch.uint8
    pixels = geometry.to_pixels(images)  # [B, H, W, C]
    for number, stage in enumerate(policy.stages):
        stage_keys = rng.fold(keys, number)
        if isinstance(stage, Mixture):
            pixels = _mix_chains(pixels, stage, stage_keys, flip_mask)
        else:
            pixels = _run(pixels, _draw(stage, stage_keys, flip_mask))
    return geometry.to_images(pixels)


def alternating_flip_mask(seed: int, epoch: int, indices: Tensor) -> Tensor:
    """Return [B] bool: which samples are flipped in this epoch: at random in epoch 0, then alternating."""
    coins = rng.integers(rng.keys(seed, 0, indices), 0, 2)
    return (coins + epoch) % 2 == 1


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
class _Plan:
    """The drawn ops of a batch: [slots, B] each; `op` is len(names) where none acts."""

    names: tuple[str, ...]
    op: Tensor
    magnitude: Tensor
    keys: Tensor


@lru_cache(maxsize=64)
def _tabulate(choice: OneOf, device: torch.device) -> _Table:
    slots = max(len(branch) for branch in choice.branches)
    names = tuple(dict.fromkeys(op.name for branch in choice.branches for op in branch))
    idle = Op(names[0], 0.0)
    rows = [[*branch, *[idle] * (slots - len(branch))] for branch in choice.branches]

    def column(value: Callable[[Op], float]) -> Tensor:
        return torch.tensor([[value(op) for op in row] for row in rows], dtype=torch.float32, device=device)

    return _Table(
        names,
        column(lambda op: names.index(op.name)).to(torch.int64),
        column(lambda op: op.probability),
        column(lambda op: op.low),
        column(lambda op: op.high - op.low),
        column(lambda op: op.signed),
        column(lambda op: op.steps),
    )


def _draw(choice: OneOf, keys: Tensor, flip_mask: Tensor | None) -> _Plan:
    """Draw each sample's ops: draw 0 picks the branch, then each slot takes three."""
    table = _tabulate(choice, keys.device)
    slots = table.op.shape[1]
    branch = _pick(choice, keys)  # [B]
    op, probability, low, reach, signed, steps = (
        column.index_select(0, branch).t()
        for column in (table.op, table.probability, table.low, table.reach, table.signed, table.steps)
    )  # [slots, B] each
    counters = 3 * torch.arange(slots, device=keys.device)[:, None] + 1
    acts = rng.uniform(keys, counters) < probability
    if "alternating_flip" in table.names:
        assert flip_mask is not None, "a policy with alternating_flip needs `flip_mask`"
        acts &= (op != table.names.index("alternating_flip")) | flip_mask
    share = rng.uniform(keys, counters + 1)
    stepped = (share * steps).floor() / (steps - 1).clamp(min=1)
    magnitude = low + reach * torch.where(steps > 0, stepped, share)
    magnitude = magnitude * (1 - 2 * signed * rng.integers(keys, counters + 2, 2))
    slot_keys = torch.stack([rng.fold(keys, slot) for slot in range(slots)])
    return _Plan(table.names, torch.where(acts, op, len(table.names)), magnitude, slot_keys)


def _pick(choice: OneOf, keys: Tensor) -> Tensor:
    """Return [B] int64: each sample's branch, from draw 0."""
    if not choice.weights:
        return rng.integers(keys, 0, len(choice.branches))
    ends = torch.tensor(choice.ends, device=keys.device)
    return torch.searchsorted(ends, rng.uniform(keys, 0), right=True)


def _run(pixels: Tensor, plan: _Plan) -> Tensor:
    """Run the plan's slots in turn, each op once for all samples that drew it; return [B, H, W, C]."""
    slots, B = plan.op.shape
    groups = len(plan.names) + 1
    orders = plan.op.argsort(stable=True, dim=1)  # [slots, B]
    first = groups * torch.arange(slots, device=pixels.device)[:, None]
    sizes = torch.bincount((plan.op + first).view(-1), minlength=slots * groups).view(slots, groups).tolist()
    position: Tensor | None = None  # current row of each sample; None: unchanged
    for slot, order in enumerate(orders):
        if sizes[slot][-1] == B:
            continue
        if max(sizes[slot]) < B:  # otherwise all drew one op: no need to move
            pixels = pixels.index_select(0, order if position is None else position[order])
            position = torch.empty_like(order).scatter_(0, order, torch.arange(B, device=order.device))
        elif position is not None:
            order = position.argsort()
        pixels = _run_slot(pixels, plan, sizes[slot], plan.magnitude[slot][order], plan.keys[slot][order])
    return pixels if position is None else pixels.index_select(0, position)


def _run_slot(pixels: Tensor, plan: _Plan, sizes: list[int], magnitude: Tensor, keys: Tensor) -> Tensor:
    """Run each op on its slice of samples sorted by op, idle ones last; return [B, H, W, C]."""
    parts, start = [], 0
    for name, size in zip(plan.names, sizes, strict=False):
        part = slice(start, start + size)
        start += size
        if size:
            images = FUNCTIONS[name](geometry.to_images(pixels[part]), magnitude[part], keys[part])
            parts.append(geometry.to_pixels(images))
    return torch.cat([*parts, pixels[start:]])


def _mix_chains(pixels: Tensor, mixture: Mixture, keys: Tensor, flip_mask: Tensor | None) -> Tensor:
    """Blend chains of ops with each other and with the image; return [B, H, W, C]."""
    any_op = OneOf(tuple((op,) for op in mixture.ops))
    weights = dirichlet(mixture.alpha, mixture.width, keys, 0)  # [B, width]
    kept = beta(mixture.alpha, mixture.alpha, rng.uniform(keys, mixture.width))  # [B], share of the unchanged image
    total = pixels.to(torch.float32) * kept[:, None, None, None]
    for chain in range(mixture.width):
        chain_keys = rng.fold(keys, chain)
        depth = 1 + rng.integers(chain_keys, 0, mixture.depth)  # [B]
        links = [_draw(any_op, rng.fold(chain_keys, link + 1), flip_mask) for link in range(mixture.depth)]
        idle = torch.full_like(depth, len(links[0].names))
        plan = _Plan(
            links[0].names,
            torch.stack([torch.where(link < depth, p.op[0], idle) for link, p in enumerate(links)]),
            torch.cat([p.magnitude for p in links]),
            torch.cat([p.keys for p in links]),
        )
        share = (1 - kept) * weights[:, chain]
        total = total + _run(pixels, plan) * share[:, None, None, None]
    return (total + 0.5).clamp_(0, 255).to(torch.int32).to(torch.uint8)
