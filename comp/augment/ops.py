"""The words that policies are written in: ops, choices between them, mixtures of them. No torch here.

A policy is a row of stages applied in turn. In a `Choice` each sample draws one branch and runs its ops one after
another; each op draws whether it acts and how strongly. A `Mixture` blends several chains of ops
with the image. `per_batch` runs the stages on batches; what comes before them, `reading` does to one image at a time.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from comp.runtime.errors import ConfigError, unknown

# What each op's magnitude means, and which corruptions of the suite the op imitates (by the suite's names).
# Geometry and grey-level remapping imitate none, as AugMix's authors drew the line; blends with black, grey, luma
# and a blurred copy do. PRIME's random filters and curves and PixMix's textures imitate none either, as their authors
# hold: a draw can come near a weak blur or a darker image, but nothing aims at one.
OPS: dict[str, tuple[str, frozenset[str]]] = {
    "crop": ("shift by up to this fraction of a side, both ways", frozenset()),
    "crop_mirrored": ("likewise; what comes in is the mirror image, not black", frozenset()),
    "flip": ("none", frozenset()),
    "alternating_flip": ("none", frozenset()),
    "cutout": ("side of the square, as a fraction of the image's", frozenset()),
    "random_erasing": ("largest share of the area", frozenset()),
    "shear_x": ("slope", frozenset()),
    "shear_y": ("slope", frozenset()),
    "shear_x_bilinear": ("slope", frozenset()),
    "shear_y_bilinear": ("slope", frozenset()),
    "translate_x": ("fraction of the width, cut to whole pixels", frozenset()),
    "translate_y": ("fraction of the height, cut to whole pixels", frozenset()),
    "rotate": ("degrees", frozenset()),
    "rotate_bilinear": ("degrees", frozenset()),
    "brightness": ("factor - 1", frozenset({"brightness"})),
    "contrast": ("factor - 1", frozenset({"contrast"})),
    "saturation": ("factor - 1", frozenset({"saturate"})),
    "sharpness": ("factor - 1; below 0 blurs", frozenset({"gaussian_blur", "defocus_blur"})),
    "hue": ("fraction of the circle", frozenset()),
    "grayscale": ("none", frozenset({"saturate"})),
    "posterize": ("bits kept, rounded", frozenset()),
    "solarize": ("threshold, 0 to 256", frozenset()),
    "autocontrast": ("none", frozenset()),
    "equalize": ("none", frozenset()),
    "invert": ("none", frozenset()),
    "noise": ("sigma, as a fraction of 255", frozenset({"gaussian_noise", "shot_noise"})),
    "speckle": ("sigma, as a fraction of the grey level", frozenset({"speckle_noise", "shot_noise"})),
    "impulse": ("share of the values", frozenset({"impulse_noise"})),
    "blur": ("sigma in pixels, where the shorter side is 32", frozenset({"gaussian_blur", "defocus_blur"})),
    "pixel_shuffle": ("reach in pixels, where the shorter side is 32", frozenset({"glass_blur"})),
    "pixelate": ("fraction of each side that is kept", frozenset({"pixelate"})),
    "fractal": ("weight of the texture, 0 to 1", frozenset()),
    "random_filter": ("sigma of the nine weights", frozenset()),
    "random_colour": ("root mean square of the change, as a fraction of 255", frozenset()),
    "jpeg": ("quality, 1 to 100, rounded", frozenset({"jpeg_compression"})),
    "motion": ("length in pixels, where the shorter side is 32", frozenset({"motion_blur"})),
    "disk_blur": ("radius in pixels, where the shorter side is 32", frozenset({"defocus_blur", "gaussian_blur"})),
    "zoom": ("largest factor - 1", frozenset({"zoom_blur"})),
    "elastic": ("rms displacement in pixels, where the shorter side is 32", frozenset({"elastic_transform"})),
    "haze": ("share of the clouds' light, 0 to 1", frozenset({"fog"})),
    "drops": ("share hidden in a drop's middle, 0 to 1", frozenset({"snow", "frost", "spatter"})),
    "gamma": ("octaves of the exponent; above 0 darkens", frozenset({"brightness", "contrast"})),
}

# Likewise of the op that acts while an image is read, when all of its pixels are still there.
WORKER_OPS: dict[str, tuple[str, frozenset[str]]] = {
    "random_resized_crop": ("share of the image's area that is kept", frozenset()),
}

# What is defined by luma, hue or chroma, and so for colour (3 channels) and grey (1) alone.
COLOUR_OPS = frozenset({"contrast", "saturation", "hue", "grayscale", "jpeg"})


@dataclass(frozen=True)
class Op:
    """One op: acts with `probability`, with a magnitude uniform in [low, high] (units: `OPS`)."""

    name: str
    probability: float = 1.0
    low: float = 0.0
    high: float = 0.0
    signed: bool = False
    """Whether half of the magnitudes are negated."""
    steps: int = 0
    """0: continuous; N: one of N evenly spaced magnitudes, both ends among them."""


@dataclass(frozen=True)
class AlbumentationsOp:
    """A transform of albumentations by its own name and arguments."""

    name: str
    probability: float
    arguments: str
    """JSON, so that a policy stays hashable."""


@dataclass(frozen=True)
class OneOf:
    """One branch a sample; a branch's ops act in turn."""

    branches: tuple[tuple[Op, ...], ...]
    weights: tuple[float, ...] = ()
    """How likely each branch is, above 0 and in any unit; empty: all equally."""

    def __post_init__(self) -> None:
        assert not self.weights or (len(self.weights) == len(self.branches) and min(self.weights) > 0)

    @property
    def ends(self) -> tuple[float, ...]:
        """Where each branch's share of 0..1 ends; the last one's end, 1, is left out."""
        *ends, total = accumulate(self.weights or (1.0,) * len(self.branches))
        return tuple(end / total for end in ends)


@dataclass(frozen=True)
class Mixture:
    """`width` chains of 1 to `depth` ops drawn from `ops`, blended by Dirichlet(alpha), and with the image by
    Beta(alpha, alpha).
    """

    ops: tuple[Op, ...]
    width: int
    depth: int
    alpha: float


@dataclass(frozen=True)
class Policy:
    """What happens to a training image: a crop while it is read, transforms of albumentations, and stages in turn."""

    stages: tuple[OneOf | Mixture, ...]
    paper: str = ""
    """Where it was published."""
    crop: Op | None = None
    """A `random_resized_crop`."""
    albumentations: tuple[AlbumentationsOp, ...] = ()

    @property
    def ops(self) -> frozenset[Op]:
        """Every op of ours that the policy can draw."""
        found = {self.crop} if self.crop else set()
        for stage in self.stages:
            branches = (stage.ops,) if isinstance(stage, Mixture) else stage.branches
            found.update(op for branch in branches for op in branch)
        return frozenset(found)

    @property
    def colour_ops(self) -> tuple[str, ...]:
        """Names of ops that images of other than 1 or 3 channels cannot have."""
        return tuple(sorted({op.name for op in self.ops if op.name in COLOUR_OPS and op.probability > 0}))

    @property
    def imitates(self) -> frozenset[str]:
        """Corruptions of the suite that some op of the policy imitates."""
        ours = ((OPS | WORKER_OPS)[op.name][1] for op in self.ops if op.probability > 0)
        foreign = (
            ALBUMENTATIONS_IMITATES.get(op.name, frozenset()) for op in self.albumentations if op.probability > 0
        )
        return frozenset().union(*ours, *foreign)


# Transforms of albumentations that make one of the suite's corruptions, or nearly.
ALBUMENTATIONS_IMITATES: dict[str, frozenset[str]] = {
    "AdditiveNoise": frozenset({"gaussian_noise"}),
    "AdvancedBlur": frozenset({"gaussian_blur"}),
    "Blur": frozenset({"gaussian_blur", "defocus_blur"}),
    "ColorJitter": frozenset({"brightness", "contrast", "saturate"}),
    "Defocus": frozenset({"defocus_blur"}),
    "Downscale": frozenset({"pixelate"}),
    "ElasticTransform": frozenset({"elastic_transform"}),
    "GaussNoise": frozenset({"gaussian_noise"}),
    "GaussianBlur": frozenset({"gaussian_blur"}),
    "GlassBlur": frozenset({"glass_blur"}),
    "HueSaturationValue": frozenset({"brightness", "saturate"}),
    "ISONoise": frozenset({"gaussian_noise", "shot_noise"}),
    "Illumination": frozenset({"brightness"}),
    "ImageCompression": frozenset({"jpeg_compression"}),
    "MedianBlur": frozenset({"gaussian_blur"}),
    "MotionBlur": frozenset({"motion_blur"}),
    "MultiplicativeNoise": frozenset({"speckle_noise"}),
    "PlanckianJitter": frozenset({"saturate"}),
    "RandomBrightnessContrast": frozenset({"brightness", "contrast"}),
    "RandomFog": frozenset({"fog"}),
    "RandomGamma": frozenset({"brightness", "contrast"}),
    "RandomRain": frozenset({"spatter"}),
    "RandomSnow": frozenset({"snow"}),
    "RandomToneCurve": frozenset({"contrast"}),
    "SaltAndPepper": frozenset({"impulse_noise"}),
    "Sharpen": frozenset({"gaussian_blur"}),
    "ShotNoise": frozenset({"shot_noise"}),
    "Spatter": frozenset({"spatter"}),
    "ToGray": frozenset({"saturate"}),
    "UnsharpMask": frozenset({"gaussian_blur"}),
    "ZoomBlur": frozenset({"zoom_blur"}),
}


def parse(row: Mapping[str, Any], where: str) -> Op:
    """Return the op that a row of `augment.ops` asks for.

    Args:
        row: `{name, p, magnitude, signed}`, where `name` is a row of `OPS` or `WORKER_OPS` and `magnitude` a number or
            [low, high].
        where: names the row in messages.

    Raises:
        ConfigError: an unknown name or key, or a value of the wrong kind.
    """
    name, probability, rest = _named(row, where, "an op")
    if name[:1].isupper():
        raise ConfigError(
            f"{where}: {name} is a transform of albumentations, and these stand in a list of their own; move it to "
            "augment.albumentations"
        )
    if name not in OPS | WORKER_OPS:
        raise ConfigError(f"{where}.name: {unknown('op', name, OPS | WORKER_OPS)}")
    low, high = _range(rest.pop("magnitude", _KEPT if name in WORKER_OPS else 0.0), where)
    if name in WORKER_OPS and not 0 < low <= high <= 1:
        raise ConfigError(f"{where}.magnitude: expected a share above 0, at most 1, or [low, high], found {low, high}")
    signed = rest.pop("signed", False)
    if rest or not isinstance(signed, bool):
        wrong = ", ".join(rest) or "signed"
        raise ConfigError(f"{where}: op '{name}' takes p, magnitude and signed (true or false); check {wrong}")
    return Op(name, float(probability), low, high, signed)


def parse_albumentations(row: Mapping[str, Any], where: str) -> AlbumentationsOp:
    """Return the transform that a row of `augment.albumentations` asks for.

    Args:
        row: `{name, p, ...}`: the name of a transform of albumentations and its arguments.
        where: names the row in messages.

    Raises:
        ConfigError: no name, an op of ours, or no probability.
    """
    name, probability, rest = _named(row, where, "a transform of albumentations")
    if name in OPS | WORKER_OPS:
        raise ConfigError(f"{where}: {name} is an op, not a transform of albumentations; move it to augment.ops")
    return AlbumentationsOp(name, float(probability), json.dumps(rest, sort_keys=True))


_KEPT = (0.08, 1.0)  # of the area by random_resized_crop, as GoogLeNet was trained


def _named(row: Mapping[str, Any], where: str, what: str) -> tuple[str, float, dict[str, Any]]:
    """Return a row's name and probability, and what is left of it."""
    rest = dict(row)
    name, probability = rest.pop("name", None), rest.pop("p", 1.0)
    if not isinstance(name, str):
        raise ConfigError(f"{where}: expected `name`, {what}, found {name!r}")
    if isinstance(probability, bool) or not isinstance(probability, int | float) or not 0 <= probability <= 1:
        raise ConfigError(f"{where}.p: expected a probability from 0 to 1, found {probability!r}")
    return name, probability, rest


def _range(magnitude: Any, where: str) -> tuple[float, float]:
    pair = magnitude if isinstance(magnitude, list | tuple) else (magnitude, magnitude)
    if len(pair) != 2 or not all(isinstance(value, int | float) and not isinstance(value, bool) for value in pair):
        raise ConfigError(f"{where}.magnitude: expected a number or [low, high], found {magnitude!r}")
    return float(pair[0]), float(pair[1])
