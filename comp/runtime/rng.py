"""Counter-based randomness: a draw is a pure function of (seed, words..., sample index, draw number).

There is no state to save, split between workers or advance: a sample gets the same bits on any device, in any batch,
worker or rank. A *key* is a 64-bit hash held in an int64 tensor; a draw mixes a
key with a counter. The mixer is the finaliser of SplitMix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom
number generators", OOPSLA), in wrapping int64 arithmetic, the same on CPU and CUDA. Counters advance by
an odd 64-bit constant (a Weyl sequence), as there.

    keys = rng.keys(seed, epoch, indices)      # [B] int64, one per sample
    angle = rng.uniform(keys, 0) * 90 - 45     # [B] float32
    noise = rng.normal_field(keys, 1, (3, 32, 32))  # [B, 3, 32, 32] float32
"""

import math
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from comp.runtime.constants import cached_constant

_WEYL = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB
_TWO_POW_64 = 1 << 64
_UNIT = 2.0**-24  # float32 holds 24 bits exactly: uniforms are multiples of it


def _signed(word: int) -> int:
    """Return the int64 with the low 64 bits of `word`."""
    word %= _TWO_POW_64
    return word - _TWO_POW_64 if word >= 1 << 63 else word


def _mix_int(word: int) -> int:
    word %= _TWO_POW_64
    word = (word ^ (word >> 30)) * _MIX_1 % _TWO_POW_64
    word = (word ^ (word >> 27)) * _MIX_2 % _TWO_POW_64
    return word ^ (word >> 31)


def _mix(words: Tensor) -> Tensor:
    """SplitMix64's finaliser; `>>` on int64 copies the sign, so the copied bits are masked off.

    Works in two buffers: noise fields are large, and fresh memory costs more than the arithmetic.
    """
    spare = (words >> 30).bitwise_and_((1 << 34) - 1)
    words = (words ^ spare).mul_(_signed(_MIX_1))
    torch.bitwise_right_shift(words, 27, out=spare).bitwise_and_((1 << 37) - 1)
    words.bitwise_xor_(spare).mul_(_signed(_MIX_2))
    torch.bitwise_right_shift(words, 31, out=spare).bitwise_and_((1 << 33) - 1)
    return words.bitwise_xor_(spare)


def key(seed: int, *words: int) -> int:
    """Return one 64-bit key for a seed and any integers that name a purpose (epoch, stage, ...)."""
    state = _mix_int(seed + _WEYL)
    for word in words:
        state = _mix_int((state ^ _mix_int(word + _WEYL)) + _WEYL)
    return _signed(state)


def keys(seed: int, epoch: int, indices: Tensor) -> Tensor:
    """Return one key for each sample.

    Args:
        seed: the run's seed.
        epoch: the epoch, or any number that names the purpose.
        indices: [B] int64 sample indices, on the device of the draws.

    Returns:
        [B] int64.
    """
    return _mix(indices.to(torch.int64) * _signed(_WEYL) ^ key(seed, epoch))


def fold(parent: Tensor, word: int) -> Tensor:
    """Return new keys, independent of `parent`'s draws: for an op, branch or view.

    Args:
        parent: [...] int64 keys.
        word: what the new keys are for.
    """
    return _mix(parent ^ key(word, 1))


def bits(parent: Tensor, draw: int | Tensor) -> Tensor:
    """Return [...] int64 in [0, 2^32): the high half of a hash of key and draw number."""
    offset = _signed((draw + 1) * _WEYL) if isinstance(draw, int) else (draw.to(torch.int64) + 1) * _signed(_WEYL)
    return (_mix(parent + offset) >> 32) & 0xFFFFFFFF


def uniform(parent: Tensor, draw: int | Tensor) -> Tensor:
    """Return [...] float32 in [0, 1), multiples of 2^-24."""
    return (bits(parent, draw) >> 8).to(torch.float32) * _UNIT


def integers(parent: Tensor, draw: int | Tensor, high: int | Tensor) -> Tensor:
    """Return [...] int64 in [0, high); `high` at most 2^31 (bias below high / 2^32)."""
    return (bits(parent, draw) * high) >> 32


def normal(parent: Tensor, draw: int) -> Tensor:
    """Return [...] float32 standard normal deviates (Box and Muller 1958); takes draws `2*draw` and `2*draw+1`."""
    radius = torch.sqrt(-2 * torch.log(1 - uniform(parent, 2 * draw)))  # 1 - u is in (0, 1]
    return radius * torch.cos(2 * math.pi * uniform(parent, 2 * draw + 1))


def bits_field(parent: Tensor, draw: int, shape: tuple[int, ...]) -> Tensor:
    """Return [B, *shape] int64 in [0, 2^32): one draw for each element of a sample, counted row-major.

    Args:
        parent: [B] int64 keys.
        draw: the draw number; each gives an unrelated field.
        shape: shape of one sample's field.
    """
    counters = torch.arange(math.prod(shape), dtype=torch.int64, device=parent.device)  # [P]
    field = bits(fold(parent, draw + 1)[:, None], counters[None, :])  # [B, P]
    return field.view(-1, *shape)


def uniform_field(parent: Tensor, draw: int, shape: tuple[int, ...]) -> Tensor:
    """Return [B, *shape] float32 in [0, 1); see `bits_field`."""
    return (bits_field(parent, draw, shape) >> 8).to(torch.float32) * _UNIT


def shorts_field(parent: Tensor, draw: int, shape: tuple[int, ...]) -> Tensor:
    """Return [B, *shape] int32 in [0, 65536): sixteen bits an element, so one hash serves four.

    For noise, masks and tables, where hashing would otherwise cost more than the op itself. Unrelated to the fields of
    `bits_field` with the same draw number.

    Args:
        parent: [B] int64 keys.
        draw: the draw number.
        shape: shape of one sample's field.
    """
    return shorts(field_keys(parent, draw), shape)


def field_keys(parent: Tensor, draw: int) -> Tensor:
    """Return the keys [B] int64 of a field of `shorts` or `normals`: made ahead, a device hashes nothing but the field.

    Args:
        parent: [B] int64 keys.
        draw: the draw number.
    """
    return fold(parent, -(draw + 1))


def shorts(fields: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return the `shorts_field` of keys [B] from `field_keys`."""
    count = math.prod(shape)
    counters = torch.arange(1, (count + 3) // 4 + 1, dtype=torch.int64, device=fields.device) * _signed(_WEYL)
    hashes = _mix(fields[:, None] + counters)  # [B, ceil(P/4)]
    halves = hashes.view(torch.int16)[:, :count].to(torch.int32).bitwise_and_(0xFFFF)  # little-endian machines only
    return halves.view(-1, *shape)


@cached_constant
def normal_quantiles(device: torch.device) -> Tensor:
    """Return [65536] float32: the normal quantiles at the middles of 65536 equal slices, rescaled to unit variance."""
    levels = (torch.arange(1 << 16, dtype=torch.float64) + 0.5) / (1 << 16)
    table: Tensor = torch.special.ndtri(levels)
    return (table / table.square().mean().sqrt()).to(torch.float32).to(device)


def normal_field(parent: Tensor, draw: int, shape: tuple[int, ...]) -> Tensor:
    """Return [B, *shape] float32 standard normal deviates, bit-equal on every device; see `shorts_field`.

    Sixteen bits index a table of quantiles: no logarithm or cosine, whose last bits differ between devices. The
    largest deviate is 4.33 sigma.
    """
    return normals(field_keys(parent, draw), shape)


def normals(fields: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return the `normal_field` of keys [B] from `field_keys`."""
    return normal_quantiles(fields.device).index_select(0, shorts(fields, shape).flatten()).view(-1, *shape)


def order(seed: int, epoch: int, count: int, device: torch.device | str = "cpu") -> Tensor:
    """Return the epoch's order: a permutation of range(count), [count] int64, the same on every device.

    A stable sort by hash, so that equal hashes (2^-64 per pair) cannot differ between devices.
    """
    return torch.argsort(keys(seed, epoch, torch.arange(count, device=device)), stable=True)


def preserve_rng_state(device: torch.device) -> AbstractContextManager[None]:
    """Restore torch's global generators at the end of a `with` block: a library must not disturb its user's draws."""
    if device.type in ("cuda", "mps"):
        return torch.random.fork_rng(devices=[device], device_type=device.type)
    return torch.random.fork_rng(devices=[])
