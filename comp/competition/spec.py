"""What is competed in: classes, image shape, metric, and the suite's layout of blocks."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from comp.config import SuiteConfig

# The challenge's 19 distortions; a file's number is the place here.
DISTORTIONS = (
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "defocus_blur",
    "glass_blur",
    "motion_blur",
    "zoom_blur",
    "snow",
    "frost",
    "fog",
    "brightness",
    "contrast",
    "elastic_transform",
    "pixelate",
    "jpeg_compression",
    "speckle_noise",
    "gaussian_blur",
    "spatter",
    "saturate",
)


@dataclass(frozen=True)
class Block:
    """One (distortion, severity) of a suite.

    Attributes:
        distortion: the file's number, from 0.
        severity: 1 (mild) to 5.
        count: images in it.
    """

    distortion: int
    severity: int
    count: int

    @property
    def name(self) -> str:
        """`distortion00_1`."""
        return f"distortion{self.distortion:02d}_{self.severity}"

    def ids(self) -> NDArray[np.str_]:
        """Return [count] ids, `distortion00_1_0` ..."""
        return np.array([f"{self.name}_{index}" for index in range(self.count)], np.str_)


@dataclass(frozen=True)
class Competition:
    """What is competed in.

    Attributes:
        name: names folders and files.
        metric: a row of `comp.metrics.METRICS`.
        classes: class names in label order.
        image_shape: (C, H, W) of what the model sees.
        blocks: what a submission covers, in its order; empty where nothing is submitted.
    """

    name: str
    metric: str
    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]
    blocks: tuple[Block, ...]


def suite_blocks(config: SuiteConfig, test_images: int) -> tuple[Block, ...]:
    """Return the suite's blocks, file by file, severities in order.

    Args:
        config: competition.suite.
        test_images: images in the labelled test split, for a suite made from it.
    """
    if config.source == "none":
        return ()
    count = config.images_per_block or test_images
    if config.source == "corrupt_test":
        count = min(count, test_images)
    return blocks(range(config.files), range(1, config.severities + 1), count)


def blocks(distortions: Iterable[int], severities: Sequence[int], count: int) -> tuple[Block, ...]:
    """Return blocks of `count` images: distortions, and within each its severities."""
    return tuple(Block(distortion, severity, count) for distortion in distortions for severity in severities)
