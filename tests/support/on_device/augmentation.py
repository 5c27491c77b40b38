"""Every op, policy, mixing and corruption: the same pixels on the device as on the CPU, bit for bit."""

from functools import partial

import torch
from torch import Tensor

from comp.augment import engine, mixing, policies
from comp.augment.mixing import Mixing
from comp.augment.ops import OPS, OneOf, Op, Policy
from comp.data.corruptions import suite
from comp.runtime import rng
from tests.support.images import as_images, photographs
from tests.support.on_device import Check, Values
from tests.support.on_device.compare import assert_equal, assert_on
from tests.support.pretend_device import counted

_IMAGES = 12
# A magnitude from the middle of each op's range that changes pixels, where 0.3 is none.
_MAGNITUDES = {
    "posterize": 4.0,
    "solarize": 100.0,
    "jpeg": 50.0,
    "motion": 5.0,
    "rotate": 20.0,
    "rotate_bilinear": 20.0,
}

MIXINGS = {
    "off": Mixing(label_smoothing=0.1),
    "mixup": Mixing(mixup=0.4),
    "cutmix": Mixing(cutmix=1.0),
    "both": Mixing(mixup=0.2, cutmix=1.0, label_smoothing=0.1),
}
# Chains of policies as configs have them, beside every single policy.
CHAINS = {
    "basic+robust": ("basic", "robust"),
    "basic+augmix": ("basic", "augmix"),
    "alternating_flip+cutout": ("alternating_flip", "cutout"),
}


def checks() -> dict[str, Check]:
    """Return the checks by name."""
    named = {name: (name,) for name in policies.POLICIES} | CHAINS
    return {
        **{f"op/{name}": partial(_check_op, name) for name in OPS},
        **{f"policy/{name}": partial(_check_policy, names) for name, names in named.items()},
        **{f"mixing/{name}": partial(_check_mixing, values) for name, values in MIXINGS.items()},
        **{f"corruption/{name}": partial(_check_corruption, name) for name in suite.CORRUPTIONS},
    }


def _check_op(name: str, device: torch.device) -> Values:
    magnitude = _MAGNITUDES.get(name, 0.3)
    return _compare_pixels(Policy((OneOf(((Op(name, 1.0, magnitude, magnitude),),)),)), _IMAGES, device)


def _check_policy(names: tuple[str, ...], device: torch.device) -> Values:
    return _compare_pixels(policies.resolve(names), 64, device)


def _compare_pixels(policy: Policy, count: int, device: torch.device) -> Values:
    images, indices = as_images(photographs(count)), torch.arange(count)

    def augment(place: torch.device) -> Tensor:
        keys = rng.keys(3, 2, indices.to(place))
        mask = engine.alternating_flip_mask(3, 2, indices.to(place))
        return engine.augment(images.to(place), policy, keys, flip_mask=mask)

    with counted() as counts:
        changed = augment(device)
    assert_on(changed, device)
    assert_equal(changed, augment(torch.device("cpu")))
    return counts.to_json()


def _check_mixing(values: Mixing, device: torch.device) -> Values:
    images, labels = as_images(photographs(_IMAGES)), torch.arange(_IMAGES) % 4
    columns = torch.eye(4)[labels]

    def mix(place: torch.device, targets: Tensor) -> tuple[Tensor, Tensor]:
        keys = rng.keys(0, 1, torch.arange(_IMAGES, device=place))
        return mixing.mix(images.to(place), targets.to(place), keys, classes=4, mixing=values)

    with counted() as counts:
        mixed = mix(device, labels), mix(device, columns)
    assert_on(mixed, device)
    assert_equal(mixed, (mix(torch.device("cpu"), labels), mix(torch.device("cpu"), columns)))
    return counts.to_json()


def _check_corruption(name: str, device: torch.device) -> Values:
    images, indices = as_images(photographs(6)), torch.arange(6)
    with counted() as counts:
        for severity in suite.SEVERITIES:
            changed = suite.corrupt(images.to(device), name, severity, seed=1, indices=indices.to(device))
            assert_on(changed, device)
            assert_equal(changed, suite.corrupt(images, name, severity, seed=1, indices=indices))
    return counts.to_json()
