"""What is competed in: classes, image shape, metric, the suite's layout of blocks and what a submission looks like."""

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from comp.config import SubmissionConfig, SuiteConfig

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
        return np.strings.add(f"{self.name}_", _numbers(self.count))


@functools.lru_cache(maxsize=4)  # a suite's blocks are mostly of one size
def _numbers(count: int) -> NDArray[np.str_]:
    """Return `0`, `1` ... as text no wider than the last."""
    return np.arange(count).astype(f"U{len(str(max(count - 1, 0)))}")


@dataclass(frozen=True)
class SubmissionFormat:
    """What a submission must look like.

    Attributes:
        blocks: give the ids in their order, where none are listed.
        class_count: how many classes there are; 0 where a sample alone was seen, which does not tell.
        id_column: header of the first column.
        label_column: header of the second; empty for probabilities.
        listed_ids: every id in order, as a sample submission lists them.
        answers: what is written for each class; empty: its number.
        probabilities: a column for each class, named by `answers`, instead of one label.
        names: where the number of classes is not known: any text is a label, not whole numbers alone.
    """

    blocks: tuple[Block, ...]
    class_count: int
    id_column: str = "id"
    label_column: str = "label"
    listed_ids: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()
    probabilities: bool = False
    names: bool = False

    @property
    def columns(self) -> tuple[str, ...]:
        """The header."""
        return (self.id_column, *(self.answers if self.probabilities else (self.label_column,)))

    @property
    def texts(self) -> tuple[str, ...]:
        """What stands for each class."""
        return self.answers or tuple(str(label) for label in range(self.class_count))

    def ids(self) -> NDArray[np.str_]:
        """Return every id in order."""
        if self.listed_ids:
            return np.array(self.listed_ids, np.str_)
        return np.concatenate([block.ids() for block in self.blocks]) if self.blocks else np.array([], np.str_)

    def to_json(self) -> dict[str, Any]:
        """Return plain values for a sidecar."""
        return {
            "columns": list(self.columns),
            "blocks": [[block.distortion, block.severity, block.count] for block in self.blocks],
            "class_count": self.class_count,
            "ids": list(self.listed_ids),
            "answers": list(self.answers),
            "probabilities": self.probabilities,
            "names": self.names,
        }


@dataclass(frozen=True)
class Competition:
    """What is competed in.

    Attributes:
        name: names folders and files.
        metric: a row of `comp.metrics.METRICS`.
        classes: class names in label order.
        image_shape: (C, H, W) of what the model sees.
        blocks: what a submission covers, in its order; empty where there are no blocks.
        sample: what a submission of the test images looks like; None where blocks or nothing are submitted.
        submission: what the config says of a submission's columns; it goes before the sample.
    """

    name: str
    metric: str
    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]
    blocks: tuple[Block, ...]
    sample: SubmissionFormat | None = None
    submission: SubmissionConfig = field(default_factory=SubmissionConfig)


def suite_blocks(config: SuiteConfig, test_images: int) -> tuple[Block, ...]:
    """Return the suite's blocks, file by file, severities in order.

    Args:
        config: competition.suite.
        test_images: images in the labelled test split, for a suite made from it.
    """
    if config.source in ("none", "test"):
        return ()
    count = config.images_per_block or test_images
    if config.source == "corrupt_test":
        count = min(count, test_images)
    return blocks(range(config.files), range(1, config.severities + 1), count)


def blocks(distortions: Iterable[int], severities: Sequence[int], count: int) -> tuple[Block, ...]:
    """Return blocks of `count` images: distortions, and within each its severities."""
    return tuple(Block(distortion, severity, count) for distortion in distortions for severity in severities)
