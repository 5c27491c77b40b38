"""Augmentation policies as data, each with its paper. Without torch."""

from collections.abc import Mapping, Sequence
from itertools import permutations
from typing import Any

from comp.augment.ops import WORKER_OPS, Mixture, OneOf, Op, Policy, parse, parse_albumentations
from comp.runtime.errors import ConfigError, unknown

# Magnitude ranges of the AutoAugment search space: (at level 0, at level 9, signed).
_AUTOAUGMENT = {
    "shear_x": (0.0, 0.3, True),
    "shear_y": (0.0, 0.3, True),
    "translate_x": (0.0, 150 / 331, True),
    "translate_y": (0.0, 150 / 331, True),
    "rotate": (0.0, 30.0, True),
    "brightness": (0.0, 0.9, True),
    "saturation": (0.0, 0.9, True),
    "contrast": (0.0, 0.9, True),
    "sharpness": (0.0, 0.9, True),
    "posterize": (8.0, 4.0, False),
    "solarize": (255.0, 0.0, False),
    "autocontrast": (0.0, 0.0, False),
    "equalize": (0.0, 0.0, False),
    "invert": (0.0, 0.0, False),
}

_CIFAR10 = """
    invert 0.1 -, contrast 0.2 6          | rotate 0.7 2, translate_x 0.3 9       | sharpness 0.8 1, sharpness 0.9 3
    shear_y 0.5 8, translate_y 0.7 9      | autocontrast 0.5 -, equalize 0.9 -    | shear_y 0.2 7, posterize 0.3 7
    saturation 0.4 3, brightness 0.6 7    | sharpness 0.3 9, brightness 0.7 9     | equalize 0.6 -, equalize 0.5 -
    contrast 0.6 7, sharpness 0.6 5       | saturation 0.7 7, translate_x 0.5 8   | equalize 0.3 -, autocontrast 0.4 -
    translate_y 0.4 3, sharpness 0.2 6    | brightness 0.9 6, saturation 0.2 8    | solarize 0.5 2, invert 0.0 -
    equalize 0.2 -, autocontrast 0.6 -    | equalize 0.2 -, equalize 0.6 -        | saturation 0.9 9, equalize 0.6 -
    autocontrast 0.8 -, solarize 0.2 8    | brightness 0.1 3, saturation 0.7 0    | solarize 0.4 5, autocontrast 0.9 -
    translate_y 0.9 9, translate_y 0.7 9  | autocontrast 0.9 -, solarize 0.8 3    | equalize 0.8 -, invert 0.1 -
    translate_y 0.7 9, autocontrast 0.9 -
"""

_IMAGENET = """
    posterize 0.4 8, rotate 0.6 9         | solarize 0.6 5, autocontrast 0.6 -    | equalize 0.8 -, equalize 0.6 -
    posterize 0.6 7, posterize 0.6 6      | equalize 0.4 -, solarize 0.2 4        | equalize 0.4 -, rotate 0.8 8
    solarize 0.6 3, equalize 0.6 -        | posterize 0.8 5, equalize 1.0 -       | rotate 0.2 3, solarize 0.6 8
    equalize 0.6 -, posterize 0.4 6       | rotate 0.8 8, saturation 0.4 0        | rotate 0.4 9, equalize 0.6 -
    equalize 0.0 -, equalize 0.8 -        | invert 0.6 -, equalize 1.0 -          | saturation 0.6 4, contrast 1.0 8
    rotate 0.8 8, saturation 1.0 2        | saturation 0.8 8, solarize 0.8 7      | sharpness 0.4 7, invert 0.6 -
    shear_x 0.6 5, equalize 1.0 -         | saturation 0.4 0, equalize 0.6 -      | equalize 0.4 -, solarize 0.2 4
    solarize 0.6 5, autocontrast 0.6 -    | invert 0.6 -, equalize 1.0 -          | saturation 0.6 4, contrast 1.0 8
    equalize 0.8 -, equalize 0.6 -
"""


def _autoaugment(table: str) -> OneOf:
    """Parse a table of sub-policies: `name probability level`, two ops per cell."""
    cells = [cell for line in table.strip().splitlines() for cell in line.split("|")]
    return OneOf(tuple(tuple(_leveled(*op.split()) for op in cell.split(",")) for cell in cells))


def _leveled(name: str, probability: str, level: str) -> Op:
    weak, strong, signed = _AUTOAUGMENT[name]
    magnitude = weak + (strong - weak) * (0 if level == "-" else int(level)) / 9
    return Op(name, float(probability), magnitude, magnitude, signed)


def _one_of(ranges: dict[str, tuple[float, float, bool]], at: float | None = None, steps: int = 0) -> OneOf:
    """Return a choice of single ops, at a fixed share `at` of their range or anywhere in it."""
    branches = []
    for name, (weak, strong, signed) in ranges.items():
        low, high = (weak, strong) if at is None else (weak + (strong - weak) * at,) * 2
        branches.append((Op(name, 1.0, low, high, signed, steps),))
    return OneOf((*branches, ()))  # the last branch is the identity


def randaugment(n: int = 2, m: int = 9) -> Policy:
    """Return RandAugment: `n` ops in turn, each at magnitude `m` of 30."""
    ranges = {name: row for name, row in _AUTOAUGMENT.items() if name != "invert"}
    return Policy((_one_of(ranges, at=m / 30),) * n, "Cubuk et al. 2020, RandAugment, arXiv:1909.13719")


def augmix(width: int = 3, depth: int = 3, alpha: float = 1.0, severity: int = 3) -> Policy:
    """Return AugMix without its consistency loss: ops up to `severity` of 10, none that imitates the suite."""
    share = severity / 10
    ops = (
        Op("autocontrast"),
        Op("equalize"),
        Op("posterize", 1.0, 4 - 4 * share, 4.0),
        Op("rotate_bilinear", 1.0, 0.0, 30 * share, signed=True),
        Op("solarize", 1.0, 256 - 256 * share, 256.0),
        Op("shear_x_bilinear", 1.0, 0.0, 0.3 * share, signed=True),
        Op("shear_y_bilinear", 1.0, 0.0, 0.3 * share, signed=True),
        Op("translate_x", 1.0, 0.0, share / 3, signed=True),
        Op("translate_y", 1.0, 0.0, share / 3, signed=True),
    )
    return Policy((Mixture(ops, width, depth, alpha),), "Hendrycks et al. 2020, AugMix, arXiv:1912.02781")


# TrivialAugment's wide space: (weakest, strongest, signed). Its 32 px are a full side of CIFAR images.
_WIDE = _AUTOAUGMENT | {
    "shear_x": (0.0, 0.99, True),
    "shear_y": (0.0, 0.99, True),
    "translate_x": (0.0, 1.0, True),
    "translate_y": (0.0, 1.0, True),
    "rotate": (0.0, 135.0, True),
    "brightness": (0.0, 0.99, True),
    "saturation": (0.0, 0.99, True),
    "contrast": (0.0, 0.99, True),
    "sharpness": (0.0, 0.99, True),
    "posterize": (8.0, 2.0, False),
}
del _WIDE["invert"]

# What `robust` draws from: an op and its weight. Ranges reach from nearly nothing to more than a person would call the
# same picture; they were set once, by eye, and none is a severity of a suite. Noise has most of the weight
# because nothing else teaches it (docs/lab/2026-11-24-robust-policies.md has trials without each family).
_DEGRADATIONS = (
    (2.0, Op("noise", 1.0, 0.0, 0.15)),
    (0.7, Op("speckle", 1.0, 0.0, 0.3)),
    (0.8, Op("impulse", 1.0, 0.0, 0.1)),
    (0.7, Op("blur", 1.0, 0.2, 1.6)),
    (0.7, Op("disk_blur", 1.0, 0.5, 2.0)),
    (0.6, Op("motion", 1.0, 2.0, 9.0)),
    (0.6, Op("zoom", 1.0, 0.02, 0.3)),
    (1.2, Op("pixel_shuffle", 1.0, 1.0, 2.0)),
    (0.6, Op("pixelate", 1.0, 0.4, 0.95)),
    (0.8, Op("jpeg", 1.0, 20.0, 90.0)),
    (0.6, Op("elastic", 1.0, 0.2, 1.5)),
    (0.8, Op("contrast", 1.0, -0.9, 0.3)),
    (0.6, Op("brightness", 1.0, -0.3, 0.7)),
    (0.5, Op("saturation", 1.0, -1.0, 1.5)),
    (1.0, Op("haze", 1.0, 0.2, 0.9)),
    (1.2, Op("drops", 1.0, 0.3, 1.0)),
    (0.7, Op("random_filter", 1.0, 0.05, 0.3)),
    (0.7, Op("fractal", 1.0, 0.1, 0.6)),
    (0.4, Op("rotate_bilinear", 1.0, 0.0, 20.0, signed=True)),
    (0.3, Op("random_colour", 1.0, 0.02, 0.2)),
)
# Ops of `robust_strict`: none imitates a corruption.
_ABSTRACT = (
    (1.5, Op("random_filter", 1.0, 0.05, 0.3)),
    (1.0, Op("random_colour", 1.0, 0.0, 0.2)),
    (3.0, Op("fractal", 1.0, 0.1, 0.6)),
    (1.0, Op("rotate_bilinear", 1.0, 0.0, 20.0, signed=True)),
    (1.0, Op("posterize", 1.0, 3.0, 7.0)),
    (1.0, Op("solarize", 1.0, 64.0, 255.0)),
    (1.0, Op("equalize")),
    (1.0, Op("autocontrast")),
)
# Ops of its second stage.
_ABSTRACT_AGAIN = ((1.0, Op("random_filter", 1.0, 0.05, 0.3)), (1.0, Op("fractal", 1.0, 0.1, 0.5)))


def _weighted(untouched: float, rows: Sequence[tuple[float, Op]]) -> OneOf:
    """Return a choice of one op or, with weight `untouched`, no op."""
    return OneOf(((), *((op,) for _, op in rows)), (untouched, *(weight for weight, _ in rows)))


_CROP = Op("crop", 1.0, 0.125, 0.125)  # 4 px of 32
_JITTER = (
    Op("brightness", 1.0, -0.4, 0.4),
    Op("contrast", 1.0, -0.4, 0.4),
    Op("saturation", 1.0, -0.4, 0.4),
    Op("hue", 1.0, -0.1, 0.1),
)
_MILD_JITTER = tuple(Op(name, 1.0, -0.2, 0.2) for name in ("brightness", "contrast", "saturation"))

POLICIES: dict[str, Policy] = {
    "none": Policy(()),
    "basic": Policy((OneOf(((_CROP, Op("flip", 0.5)),)),), "He et al. 2016, ResNet, section 4.2, arXiv:1512.03385"),
    "alternating_flip": Policy(
        (OneOf(((_CROP, Op("alternating_flip")),)),), "Jordan 2024, 94% on CIFAR-10 in 3.29 s, arXiv:2404.00498"
    ),
    "mirrored_crop": Policy(
        (OneOf(((Op("alternating_flip"), Op("crop_mirrored", 1.0, 0.0625, 0.0625)),)),),  # 2 px of 32
        "Jordan 2024, 94% on CIFAR-10 in 3.29 s, arXiv:2404.00498",
    ),
    "cutout": Policy((OneOf(((Op("cutout", 1.0, 0.5, 0.5),),)),), "DeVries and Taylor 2017, arXiv:1708.04552"),
    "random_erasing": Policy(
        (OneOf(((Op("random_erasing", 0.5, 0.4, 0.4),),)),), "Zhong et al. 2020, arXiv:1708.04896"
    ),
    "color_jitter": Policy((OneOf(tuple(permutations(_JITTER))),), "Howard 2013, section 2.2, arXiv:1312.5402"),
    "photo": Policy(
        (OneOf(((Op("flip", 0.5),),)), OneOf(tuple(permutations(_MILD_JITTER)))),
        "Szegedy et al. 2015, GoogLeNet, section 6, arXiv:1409.4842; Howard 2013, section 2.2, arXiv:1312.5402",
        crop=Op("random_resized_crop", 1.0, 0.08, 1.0),
    ),
    "rotation": Policy((OneOf(((Op("rotate_bilinear", 1.0, -15.0, 15.0),),)),), "Simard et al. 2003, ICDAR"),
    "autoaugment_cifar10": Policy((_autoaugment(_CIFAR10),), "Cubuk et al. 2019, table 7, arXiv:1805.09501"),
    "autoaugment_imagenet": Policy((_autoaugment(_IMAGENET),), "Cubuk et al. 2019, table 9, arXiv:1805.09501"),
    "randaugment": randaugment(),
    "trivialaugment_wide": Policy((_one_of(_WIDE, steps=31),), "Müller and Hutter 2021, arXiv:2103.10158"),
    "augmix": augmix(),
    "robust": Policy(
        (_weighted(6.0, _DEGRADATIONS),),
        "ours, after AugMix, PRIME (arXiv:2112.13547) and PixMix (arXiv:2112.05135); docs/lab",
    ),
    "robust_strict": Policy(
        (_weighted(3.0, _ABSTRACT), _weighted(2.0, _ABSTRACT_AGAIN)),
        "ours, from PRIME's filters and curves, PixMix's textures and AugMix's ops; docs/lab",
    ),
}
"""What each row is:

none: No augmentation.
basic: Random crops of the padded image, and flips.
alternating_flip: `basic` with flips that alternate between epochs.
mirrored_crop: Alternating flips, and crops of the mirrored image.
cutout: A grey square over each image.
random_erasing: A rectangle of noise over half of the images.
color_jitter: Brightness, contrast, saturation and hue, in random order.
photo: For photographs: random resized crops, flips, mild colour jitter.
rotation: Rotations up to 15 degrees.
autoaugment_cifar10: AutoAugment as learned on CIFAR-10.
autoaugment_imagenet: AutoAugment as learned on ImageNet.
randaugment: Two random ops of fixed strength.
trivialaugment_wide: One random op of random strength.
augmix: Chains of mild ops, blended; `train.consistency=jsd` adds AugMix's loss.
robust: One of 20 degradations, among them the suite's kinds; for shifted tests.
robust_strict: Textures, filters and curves, none of which imitates a corruption.
"""


def check_channels(names: str | Sequence[str], ops: Sequence[Mapping[str, Any]], channels: int) -> None:
    """Check that the policy's ops support the number of channels.

    Args:
        names: as for `resolve`.
        ops: likewise.
        channels: of the images; 1 and 3 support every op.

    Raises:
        ConfigError: names the policy, its ops and alternatives.
    """
    if channels in (1, 3):
        return
    supported = [name for name, policy in POLICIES.items() if not policy.colour_ops]
    for name in [names] if isinstance(names, str) else names:
        if colour_ops := POLICIES[name].colour_ops:
            raise ConfigError(
                f"augment.policy: {name} draws {', '.join(colour_ops)}, which need 1 or 3 channels, but the images "
                f"have {channels}; choose from {', '.join(supported)}"
            )
    if colour_ops := resolve("none", ops).colour_ops:
        raise ConfigError(
            f"augment.ops: {', '.join(colour_ops)} need 1 or 3 channels, but the images have {channels}; use others, "
            "such as brightness, gamma or random_colour, which treat each channel separately"
        )


def resolve(
    names: str | Sequence[str],
    ops: Sequence[Mapping[str, Any]] = (),
    albumentations: Sequence[Mapping[str, Any]] = (),
) -> Policy:
    """Combine policies into one: albumentations transforms, the named policies in order, then single ops.

    Args:
        names: rows of `POLICIES`.
        ops: rows of `augment.ops`; see `ops.parse`.
        albumentations: rows of `augment.albumentations`; see `ops.parse_albumentations`.

    Raises:
        ConfigError: unknown name, invalid row, or more than one random_resized_crop.
    """
    names = [names] if isinstance(names, str) else list(names)
    for name in names:
        if name not in POLICIES:
            raise ConfigError(f"augment.policy: {unknown('policy', name, POLICIES)}")
    chosen = [POLICIES[name] for name in names]
    single = [parse(row, f"augment.ops[{number}]") for number, row in enumerate(ops)]
    crops = [policy.crop for policy in chosen if policy.crop] + [op for op in single if op.name in WORKER_OPS]
    if len(crops) > 1:
        raise ConfigError(
            f"augment: random_resized_crop runs once, while an image is read, but augment.policy and augment.ops "
            f"contain it {len(crops)} times; keep one"
        )
    stages = [stage for policy in chosen for stage in policy.stages]
    if on_batches := tuple(op for op in single if op.name not in WORKER_OPS):
        stages.append(OneOf((on_batches,)))
    return Policy(
        tuple(stages),
        "; ".join(policy.paper for policy in chosen if policy.paper),
        crops[0] if crops else None,
        tuple(
            parse_albumentations(row, f"augment.albumentations[{number}]") for number, row in enumerate(albumentations)
        ),
    )
