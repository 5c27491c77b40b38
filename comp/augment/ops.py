"""Building blocks of policies: ops, choices and mixtures of ops. Without torch.

A policy is a sequence of stages. In a `OneOf` each sample draws one branch and runs its ops in order; each op draws
whether it acts and how strongly. A `Mixture` blends several chains of ops with the image. `engine` runs the stages on
batches; `worker_stage` runs the policy's crop and albumentations transforms before, on one image at a time.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple

from comp.runtime.errors import ConfigError, unknown


class OpRow(NamedTuple):
    """What an op is; a plug-in's row may be a plain tuple of the first two or of all three.

    Attributes:
        meaning: of its magnitude.
        imitates: the suite's corruptions that it imitates.
        range: smallest and largest magnitude; a signed magnitude's negative is in it, too.
    """

    meaning: str
    imitates: frozenset[str]
    range: tuple[float, float] = (-1e6, 1e6)


# Meaning of each op's magnitude, and the suite's corruptions that the op imitates. Geometry and grey-level remapping
# imitate none (as in AugMix); blends with black, grey, luma and a blurred copy do. PRIME's random filters, curves and
# PixMix's textures imitate none, as their authors argue: a draw can resemble a weak blur, but nothing aims at one.
OPS: dict[str, OpRow] = {
    "crop": OpRow("shift by up to this fraction of a side, both ways", frozenset(), (0, 1)),
    "crop_mirrored": OpRow("shift by up to this fraction of a side, with mirrored borders", frozenset(), (0, 0.8)),
    "flip": OpRow("none", frozenset()),
    "alternating_flip": OpRow("none", frozenset()),
    "cutout": OpRow("side of the square, as a fraction of the image's", frozenset(), (0, 1)),
    "random_erasing": OpRow("largest share of the area", frozenset(), (0, 1)),
    "shear_x": OpRow("slope", frozenset(), (-5, 5)),
    "shear_y": OpRow("slope", frozenset(), (-5, 5)),
    "shear_x_bilinear": OpRow("slope", frozenset(), (-5, 5)),
    "shear_y_bilinear": OpRow("slope", frozenset(), (-5, 5)),
    "translate_x": OpRow("fraction of the width, cut to whole pixels", frozenset(), (-1, 1)),
    "translate_y": OpRow("fraction of the height, cut to whole pixels", frozenset(), (-1, 1)),
    "rotate": OpRow("degrees", frozenset(), (-360, 360)),
    "rotate_bilinear": OpRow("degrees", frozenset(), (-360, 360)),
    "brightness": OpRow("factor - 1", frozenset({"brightness"}), (-10, 10)),
    "contrast": OpRow("factor - 1", frozenset({"contrast"}), (-10, 10)),
    "saturation": OpRow("factor - 1", frozenset({"saturate"}), (-10, 10)),
    "sharpness": OpRow("factor - 1; below 0 blurs", frozenset({"gaussian_blur", "defocus_blur"}), (-10, 10)),
    "hue": OpRow("fraction of the circle", frozenset(), (-1, 1)),
    "grayscale": OpRow("none", frozenset({"saturate"})),
    "posterize": OpRow("bits kept, rounded", frozenset(), (0, 8)),
    "solarize": OpRow("threshold, 0 to 256", frozenset(), (0, 256)),
    "autocontrast": OpRow("none", frozenset()),
    "equalize": OpRow("none", frozenset()),
    "invert": OpRow("none", frozenset()),
    "noise": OpRow("sigma, as a fraction of 255", frozenset({"gaussian_noise", "shot_noise"}), (0, 1)),
    "speckle": OpRow("sigma, as a fraction of the grey level", frozenset({"speckle_noise", "shot_noise"}), (0, 2)),
    "impulse": OpRow("share of the values", frozenset({"impulse_noise"}), (0, 1)),
    "blur": OpRow(
        "sigma in pixels, where the shorter side is 32", frozenset({"gaussian_blur", "defocus_blur"}), (0, 16)
    ),
    "pixel_shuffle": OpRow("reach in pixels, where the shorter side is 32", frozenset({"glass_blur"}), (0, 16)),
    "pixelate": OpRow("fraction of each side that is kept", frozenset({"pixelate"}), (0, 1)),
    "fractal": OpRow("weight of the texture, 0 to 1", frozenset(), (0, 1)),
    "random_filter": OpRow("sigma of the nine weights", frozenset(), (0, 4)),
    "random_colour": OpRow("root mean square of the change, as a fraction of 255", frozenset(), (0, 1)),
    "jpeg": OpRow("quality, 1 to 100, rounded", frozenset({"jpeg_compression"}), (0, 100)),
    "motion": OpRow("length in pixels, where the shorter side is 32", frozenset({"motion_blur"}), (0, 32)),
    "disk_blur": OpRow(
        "radius in pixels, where the shorter side is 32", frozenset({"defocus_blur", "gaussian_blur"}), (0, 16)
    ),
    "zoom": OpRow("largest factor - 1", frozenset({"zoom_blur"}), (0, 4)),
    "elastic": OpRow(
        "rms displacement in pixels, where the shorter side is 32", frozenset({"elastic_transform"}), (0, 16)
    ),
    "haze": OpRow("share of the clouds' light, 0 to 1", frozenset({"fog"}), (0, 1)),
    "drops": OpRow("share hidden in a drop's middle, 0 to 1", frozenset({"snow", "frost", "spatter"}), (0, 1)),
    "gamma": OpRow("octaves of the exponent; above 0 darkens", frozenset({"brightness", "contrast"}), (-5, 5)),
}
"""What each row is:

crop: Shift the image at random; black comes in (He et al. 2016, arXiv:1512.03385).
crop_mirrored: Shift the image at random; the border is mirrored (Jordan 2024, arXiv:2404.00498).
flip: Mirror the image left to right.
alternating_flip: Mirror each image in every second epoch, half of the images in the first (Jordan 2024,
    arXiv:2404.00498).
cutout: Cover a square with grey (DeVries and Taylor 2017, arXiv:1708.04552).
random_erasing: Replace a rectangle by noise (Zhong et al. 2017, arXiv:1708.04896).
shear_x: Shear horizontally, by whole pixels (AutoAugment, Cubuk et al. 2019, arXiv:1805.09501).
shear_y: Shear vertically, to the nearest pixel (AutoAugment).
shear_x_bilinear: Shear horizontally, bilinear (AugMix, Hendrycks et al. 2020, arXiv:1912.02781).
shear_y_bilinear: Shear vertically, bilinear (AugMix).
translate_x: Shift horizontally; black comes in (AutoAugment).
translate_y: Shift vertically; black comes in (AutoAugment).
rotate: Rotate about the centre, to the nearest pixel (AutoAugment).
rotate_bilinear: Rotate about the centre, bilinear (AugMix).
brightness: Blend with black (AutoAugment).
contrast: Blend with the mean luma (AutoAugment).
saturation: Blend with the luma (AutoAugment, which calls it color).
sharpness: Blend with a smoothed copy (AutoAugment).
hue: Turn the colours around the circle of hues (Howard 2013, arXiv:1312.5402).
grayscale: Replace the colours by their luma.
posterize: Keep the highest bits of each value (AutoAugment).
solarize: Invert values at or above a threshold (AutoAugment).
autocontrast: Stretch each channel to 0 to 255 (AutoAugment).
equalize: Flatten each channel's histogram (AutoAugment).
invert: Take the negative (AutoAugment).
noise: Add normal noise.
speckle: Add normal noise in proportion to the grey level.
impulse: Set single values to black or white.
blur: Blur by a Gaussian.
pixel_shuffle: Replace each pixel by a random one nearby, as frosted glass does.
pixelate: Shrink the image and enlarge it again.
fractal: Mix in a fractal texture (PixMix, Hendrycks et al. 2022, arXiv:2112.05135).
random_filter: Apply a random 3x3 filter (PRIME, Modas et al. 2022, arXiv:2112.13547).
random_colour: Move each channel's levels along a smooth random curve (PRIME).
jpeg: Compress as JPEG.
motion: Smear along a line.
disk_blur: Blur by a disk, as a lens out of focus does.
zoom: Average the image and its enlargements.
elastic: Warp by a smooth random displacement (Simard et al. 2003, ICDAR).
haze: Lay clouds of light grey over the image.
drops: Lay blobs, streaks or crystals over the image.
gamma: Raise the levels to a power.
"""

# Likewise for the op that workers run while reading an image, on its full resolution.
WORKER_OPS: dict[str, OpRow] = {
    "random_resized_crop": OpRow("share of the image's area that is kept", frozenset(), (0, 1)),
}
"""What each row is:

random_resized_crop: Crop a random part of the image and resize it (Szegedy et al. 2015, arXiv:1409.4842).
"""

# Ops defined by luma, hue or chroma: only for images of 3 or 1 channels.
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
    """An albumentations transform, by its name and arguments."""

    name: str
    probability: float
    arguments: str
    """JSON, so that a policy stays hashable."""


@dataclass(frozen=True)
class OneOf:
    """A choice: each sample draws one branch and runs its ops in order."""

    branches: tuple[tuple[Op, ...], ...]
    weights: tuple[float, ...] = ()
    """Relative weight of each branch, above 0; empty: equal weights."""

    def __post_init__(self) -> None:
        assert not self.weights or (len(self.weights) == len(self.branches) and min(self.weights) > 0)

    @property
    def ends(self) -> tuple[float, ...]:
        """Cumulative probabilities of the branches, without the last (1)."""
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
    """An augmentation policy: a crop while an image is read, albumentations transforms, then stages."""

    stages: tuple[OneOf | Mixture, ...]
    paper: str = ""
    """Its publication."""
    crop: Op | None = None
    """A `random_resized_crop`."""
    albumentations: tuple[AlbumentationsOp, ...] = ()

    @property
    def ops(self) -> frozenset[Op]:
        """All ops that the policy can draw, without albumentations."""
        ops = {self.crop} if self.crop else set()
        for stage in self.stages:
            branches = (stage.ops,) if isinstance(stage, Mixture) else stage.branches
            ops.update(op for branch in branches for op in branch)
        return frozenset(ops)

    @property
    def colour_ops(self) -> tuple[str, ...]:
        """Names of the policy's ops that need images of 1 or 3 channels."""
        return tuple(sorted({op.name for op in self.ops if op.name in COLOUR_OPS and op.probability > 0}))

    @property
    def imitates(self) -> frozenset[str]:
        """The suite's corruptions that the policy's ops imitate."""
        ours = ((OPS | WORKER_OPS)[op.name][1] for op in self.ops if op.probability > 0)
        transforms = (
            ALBUMENTATIONS_IMITATES.get(op.name, frozenset()) for op in self.albumentations if op.probability > 0
        )
        return frozenset().union(*ours, *transforms)


# albumentations transforms that imitate a corruption of the suite.
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
    """Parse a row of `augment.ops`.

    Args:
        row: `{name, p, magnitude, signed}`, where `name` is a row of `OPS` or `WORKER_OPS` and `magnitude` a number or
            [low, high].
        where: the row's name in messages.

    Raises:
        ConfigError: unknown name or key, or a value of the wrong type.
    """
    name, probability, rest = _split_row(row, where, "an op")
    if name[:1].isupper():
        raise ConfigError(f"{where}: {name} is an albumentations transform; move it to augment.albumentations")
    if name not in OPS | WORKER_OPS:
        raise ConfigError(f"{where}.name: {unknown('op', name, OPS | WORKER_OPS)}")
    low, high = _parse_range(rest.pop("magnitude", _CROP_AREA if name in WORKER_OPS else 0.0), where)
    if name in WORKER_OPS and not 0 < low <= high <= 1:
        raise ConfigError(f"{where}.magnitude: expected a share in (0, 1] or [low, high], found {low, high}")
    row_of_op = OpRow(*(OPS | WORKER_OPS)[name])
    lowest, highest = row_of_op.range
    signed = rest.pop("signed", False)
    ends = (low, high, -low, -high) if signed is True else (low, high)
    if not all(lowest <= end <= highest for end in ends):
        what = "magnitudes of both signs" if signed is True else "a magnitude"
        raise ConfigError(
            f"{where}.magnitude: {name}: expected {what} from {lowest:g} to {highest:g} ({row_of_op.meaning}), found "
            f"{low:g} to {high:g}"
        )
    if rest or not isinstance(signed, bool):
        wrong = ", ".join(rest) or "signed"
        raise ConfigError(f"{where}: op '{name}' takes p, magnitude and signed (true or false); check {wrong}")
    return Op(name, float(probability), low, high, signed)


def parse_albumentations(row: Mapping[str, Any], where: str) -> AlbumentationsOp:
    """Parse a row of `augment.albumentations`.

    Args:
        row: `{name, p, ...}`: an albumentations transform and its arguments.
        where: the row's name in messages.

    Raises:
        ConfigError: no name, the name of an op, or an invalid probability.
    """
    name, probability, rest = _split_row(row, where, "an albumentations transform")
    if name in OPS | WORKER_OPS:
        raise ConfigError(f"{where}: {name} is an op, not an albumentations transform; move it to augment.ops")
    return AlbumentationsOp(name, float(probability), json.dumps(rest, sort_keys=True))


_CROP_AREA = (0.08, 1.0)  # share kept by random_resized_crop, as for GoogLeNet


def _split_row(row: Mapping[str, Any], where: str, what: str) -> tuple[str, float, dict[str, Any]]:
    """Split a row into name, probability and the remaining keys."""
    rest = dict(row)
    name, probability = rest.pop("name", None), rest.pop("p", 1.0)
    if not isinstance(name, str):
        raise ConfigError(f"{where}: expected `name`, {what}, found {name!r}")
    if isinstance(probability, bool) or not isinstance(probability, int | float) or not 0 <= probability <= 1:
        raise ConfigError(f"{where}.p: expected a probability from 0 to 1, found {probability!r}")
    return name, probability, rest


def _parse_range(magnitude: Any, where: str) -> tuple[float, float]:
    pair = magnitude if isinstance(magnitude, list | tuple) else (magnitude, magnitude)
    if len(pair) != 2 or not all(isinstance(value, int | float) and not isinstance(value, bool) for value in pair):
        raise ConfigError(f"{where}.magnitude: expected a number or [low, high], found {magnitude!r}")
    return float(pair[0]), float(pair[1])
