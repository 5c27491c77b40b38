"""What every source returns, and what several of them read in the same way."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from comp.data.decode import Scale
from comp.data.images import ImageFiles
from comp.data.splits import Split
from comp.runtime.errors import DataError
from comp.submission.format import SampleSubmission


@dataclass(frozen=True)
class Source:
    """What a dataset holds.

    Attributes:
        train: labelled images.
        test: its official test split if it has one; labels are None where nobody knows them.
        classes: names in label order.
        val: its official validation split if it has one.
        groups: [N] of `train`, images with the same number belong together; None where nothing is known of groups.
        sample: the sample submission; None where there is none.
        notes: what a user should know of how it was read.
        numbered: whether classes have numbers as well as names, as those of CIFAR and of a `classes.txt` do.
        separator: what parted several classes in one label; empty where nothing did.
        task: a row of `comp.config.tasks.TASKS` that the labels show.
        pixel_range: the values of pixels of more than 8 bits that became black and white; None of 8 bits.
        header: of the training table's id and label columns; what a submission without a sample has.
        synonyms: columns of the training table that go one to one with the labels: each class's text, in label order.
    """

    train: Split
    test: Split | None
    classes: tuple[str, ...]
    val: Split | None = None
    groups: NDArray[np.int64] | None = None
    sample: SampleSubmission | None = None
    notes: tuple[str, ...] = ()
    numbered: bool = False
    separator: str = ""
    task: str = "single_label"
    pixel_range: Scale | None = None
    header: tuple[str, str] = ("id", "label")
    synonyms: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def numbered(name: str, images: NDArray[np.uint8] | ImageFiles, labels: NDArray[Any] | None) -> Split:
    """Return a split whose ids are `<name>_<row>`, for images that have no names of their own."""
    ids = np.array([f"{name}_{row}" for row in range(len(images))], np.str_)
    if labels is not None:
        labels = labels.astype(np.float32 if labels.ndim == 2 else np.int64)
    return Split(name, images, ids, labels)


def class_names(path: Path) -> tuple[str, ...]:
    """Return the lines of a file that holds one class name a line, in label order.

    Raises:
        DataError: missing, or not UTF-8.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; it holds one class name a line, in label order") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as UTF-8 text ({error})") from None
    return tuple(line.strip() for line in text.splitlines() if line.strip())
