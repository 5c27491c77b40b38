"""Blocks of a suite: one (distortion, severity) each, and the names of the challenge's distortions. Torch-free."""

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# The challenge's 19 distortions, in the order of their file numbers.
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
        return np.strings.add(f"{self.name}_", _numbers(self.count))


@functools.lru_cache(maxsize=4)  # most blocks of a suite have one size
def _numbers(count: int) -> NDArray[np.str_]:
    """Return `0`, `1` ... as text of minimal width."""
    return np.arange(count).astype(f"U{len(str(max(count - 1, 0)))}")


def block_grid(distortions: Iterable[int], severities: Sequence[int], count: int) -> tuple[Block, ...]:
    """Return blocks of `count` images, ordered by distortion, then severity."""
    return tuple(Block(distortion, severity, count) for distortion in distortions for severity in severities)


def distortion_and_severity(block: str) -> tuple[int, int]:
    """Return the distortion's number and the severity: 0 and 1 for `distortion00_1`."""
    distortion, _, severity = block.removeprefix("distortion").partition("_")
    return int(distortion), int(severity)
