"""The result of opening a data source, and its conversions: 8 bits per pixel (`data.range`), some of the classes
(`data.classes`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from comp.config import DataConfig
from comp.data import decode
from comp.data.decode import Depth, Scale
from comp.data.images import ImageFiles
from comp.data.splits import Split
from comp.runtime.errors import ConfigError, DataError, unknown
from comp.runtime.progress import Progress
from comp.submission.format import SampleSubmission

_CHUNK_VALUES = 1 << 24  # of an array, converted at a time


@dataclass(frozen=True)
class Source:
    """The content of a dataset.

    Attributes:
        train: labelled images.
        test: its official test split, or None; its labels may be unknown.
        classes: names in label order.
        val: its official validation split, or None.
        groups: [N] of `train`: images with the same number belong together; None without groups.
        sample: the sample submission, or None.
        notes: how it was read, for the user.
        numbered: whether classes have numbers as well as names, like those of CIFAR and of a `classes.txt`.
        separator: between several classes in one label; empty if there is none.
        task: the row of `comp.config.tasks.TASKS` that the labels show.
        pixel_range: the pixel values that became black and white; None for 8 bits.
        header: names of the training table's id and label columns, for a submission without a sample.
        synonyms: columns of the training table that map one to one to the labels: each class's text, in label order.
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

    @property
    def splits(self) -> list[Split]:
        """The splits that exist: train, val, test."""
        return [split for split in (self.train, self.val, self.test) if split is not None]


def split_with_row_ids(name: str, images: NDArray[np.uint8] | ImageFiles, labels: NDArray[Any] | None) -> Split:
    """Return a split with ids `<name>_<row>`, for images without names."""
    ids = np.array([f"{name}_{row}" for row in range(len(images))], np.str_)
    if labels is not None:
        labels = labels.astype(np.float32 if labels.ndim == 2 or labels.dtype.kind == "f" else np.int64)
    return Split(name, images, ids, labels)


def read_class_names(path: Path) -> tuple[str, ...]:
    """Return the lines of a file with one class name per line, in label order.

    Raises:
        DataError: missing, or not UTF-8.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; expected one class name per line, in label order") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as UTF-8 text ({error})") from None
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def scale_to_uint8(source: Source, config: DataConfig, progress: Progress) -> Source:
    """Return the source with 8 bits per pixel, by one scale for all splits; one of 8 bits is returned as it is.

    All training images, held-out ones included, set the scale. Files are scaled when they are decoded; arrays are
    copied.

    Raises:
        DataError: values that are not finite, or splits of different types.
        ConfigError: `data.range` for pixels of 8 bits, or no common range.
    """
    depths = [(split.name, _measure_depth(split, progress)) for split in source.splits]
    if not any(depth for _, depth in depths):
        if isinstance(config.range, tuple):
            raise ConfigError(
                f"data.range: all pixels of {config.source} have 8 bits, which are kept as they are; leave it out"
            )
        return source
    if config.range != "type":
        _check_same_type(depths)
    leading = next(depth for _, depth in depths if depth)  # of the training images, except for data.range: type
    scale = decode.choose_scale(config.range, leading)
    train, val, test = (split and _scaled(split, scale, progress) for split in (source.train, source.val, source.test))
    assert train is not None
    notes = (*source.notes, *decode.describe_scale(config.range, scale, depths), *_note_mixed_depths(source.splits))
    return replace(source, train=train, val=val, test=test, notes=notes, pixel_range=scale)


def _note_mixed_depths(splits: list[Split]) -> list[str]:
    notes = []
    for split in splits:
        depth = split.images.depth if isinstance(split.images, ImageFiles) else None
        if depth and depth.images < len(split):
            notes.append(
                f"{split.name}: {depth.images:,} of {len(split):,} files have more than 8 bits; the others keep their "
                "values"
            )
    return notes


def _check_same_type(depths: list[tuple[str, Depth | None]]) -> None:
    """Refuse splits of different types: the scale of one would make the other black, or too bright."""
    types = {name: depth.kind if depth else "uint8" for name, depth in depths}
    if len({"float" if "float" in kind else kind == "uint8" for kind in types.values()}) > 1:
        described = ", ".join(f"{kind} in {name}" for name, kind in types.items())
        raise DataError(
            f"pixels: expected one type in all splits, found {described}; save them alike, or set data.range=type if "
            "each uses the whole range of its type"
        )


def _measure_depth(split: Split, progress: Progress) -> Depth | None:
    if isinstance(split.images, ImageFiles):
        return split.images.depth
    if split.images.dtype == np.uint8:
        return None
    depths = []
    for row, image in enumerate(split.images):
        depths.append(decode.measure_depth(image, f"{split.name} image {row}"))
        progress(f"range of {split.name}", row + 1, len(split.images))
    return decode.merge_depths(depths)


def _scaled(split: Split, scale: Scale, progress: Progress) -> Split:
    if isinstance(split.images, ImageFiles):
        return replace(split, images=replace(split.images, scale=scale) if split.images.depth else split.images)
    if split.images.dtype == np.uint8:
        return split
    deep: NDArray[Any] = split.images
    pixels = np.empty(deep.shape, np.uint8)
    rows = max(1, _CHUNK_VALUES // deep[0].size)
    for start in range(0, len(deep), rows):
        pixels[start : start + rows] = decode.stretch_to_uint8(np.asarray(deep[start : start + rows]), scale)
        progress(f"stretching {split.name}", min(start + rows, len(deep)), len(deep))
    return replace(split, images=pixels)


def select_classes(source: Source, names: Sequence[str]) -> Source:
    """Return a source with the images of some classes, relabelled in the order of `names`; ids stay.

    All classes in another order drop nothing: this sets the order of text grades. In a multi-label task, all images
    stay and keep only the named labels.

    Raises:
        ConfigError: an unknown or repeated name, fewer than two, or images whose classes are unknown.
    """
    for name in names:
        if name not in source.classes:
            raise ConfigError(f"data.classes: {unknown('class', name, source.classes)}")
    if len(set(names)) < max(2, len(names)):
        raise ConfigError(f"data.classes: expected at least two different classes, found {list(names)}")
    unlabelled = source.sample is not None or (source.test is not None and source.test.labels is None)
    if unlabelled and len(names) < len(source.classes):
        raise ConfigError(
            "data.classes: cannot drop classes, because the labels of the test images are not known; leave it out"
        )
    indices = np.array([source.classes.index(name) for name in names])
    train, rows = _select(source.train, indices, len(source.classes))
    return replace(
        source,
        train=train,
        val=source.val and _select(source.val, indices, len(source.classes))[0],
        test=source.test and _select(source.test, indices, len(source.classes))[0],
        classes=tuple(names),
        groups=None if source.groups is None else source.groups[rows],
        synonyms={column: tuple(texts[index] for index in indices) for column, texts in source.synonyms.items()},
    )


def _select(split: Split, indices: NDArray[np.int64], class_count: int) -> tuple[Split, NDArray[np.int64]]:
    """Return a split with only the classes at `indices`, and the rows it keeps."""
    labels = split.labels
    if labels is None:
        return split, np.arange(len(split))
    if labels.ndim == 2:
        return replace(split, labels=labels[:, indices]), np.arange(len(split))
    new_index = np.full(class_count, -1, np.int64)
    new_index[indices] = np.arange(len(indices))
    relabelled = new_index[labels.astype(np.int64)]
    rows = np.flatnonzero(relabelled >= 0)
    return replace(split.take(rows, split.name), labels=relabelled[rows]), rows
