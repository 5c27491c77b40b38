"""A source whose pixels have more than 8 bits, brought to 8 by one scale: `data.range`."""

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from comp.config import DataConfig
from comp.data import decode
from comp.data.decode import Depth, Scale
from comp.data.images import ImageFiles
from comp.data.sources.source import Source
from comp.data.splits import Split
from comp.runtime.errors import ConfigError, DataError
from comp.runtime.progress import Progress

_CHUNK_VALUES = 1 << 24  # of an array converted at a time


def of_one_scale(source: Source, config: DataConfig, progress: Progress) -> Source:
    """Return the source with 8 bits a pixel in every split, and the scale that did it; one of 8 bits stays as it is.

    The training images set the scale, all of them, whatever is held out of them later. Files are stretched when they
    are decoded; arrays are copied.

    Raises:
        DataError: values that are not finite, or splits of different types.
        ConfigError: a range for pixels of 8 bits, or none in common.
    """
    splits = [split for split in (source.train, source.val, source.test) if split is not None]
    depths = [(split.name, _depth(split, progress)) for split in splits]
    if not any(depth for _, depth in depths):
        if isinstance(config.range, tuple):
            raise ConfigError(
                f"data.range: all pixels of {config.source} have 8 bits, which are kept as they are; leave it out"
            )
        return source
    if config.range != "type":
        _refuse_mixed(depths)
    leading = next(depth for _, depth in depths if depth)  # the training images', but for data.range: type
    scale = decode.choose_scale(config.range, leading)
    train, val, test = (split and _scaled(split, scale, progress) for split in (source.train, source.val, source.test))
    assert train is not None
    notes = (*source.notes, *decode.describe_scale(config.range, scale, depths), *_partly_deep(splits))
    return replace(source, train=train, val=val, test=test, notes=notes, pixel_range=scale)


def _partly_deep(splits: list[Split]) -> list[str]:
    counts = [(split, split.images.depth.images) for split in splits if isinstance(split.images, ImageFiles)
              and split.images.depth]  # fmt: skip
    return [
        f"{split.name}: {count:,} of {len(split):,} files have more than 8 bits; the others keep their values"
        for split, count in counts
        if count < len(split)
    ]


def _refuse_mixed(depths: list[tuple[str, Depth | None]]) -> None:
    """Refuse splits of different types: the scale of one would make the other black, or too bright."""
    kinds = {name: depth.kind if depth else "uint8" for name, depth in depths}
    if len({"float" if "float" in kind else kind == "uint8" for kind in kinds.values()}) > 1:
        found = ", ".join(f"{kind} in {name}" for name, kind in kinds.items())
        raise DataError(
            f"pixels: expected one type in all splits, found {found}; save them alike, or set data.range=type where "
            "each uses the whole range of its type"
        )


def _depth(split: Split, progress: Progress) -> Depth | None:
    if isinstance(split.images, ImageFiles):
        return split.images.depth
    if split.images.dtype == np.uint8:
        return None
    found = []
    for row, image in enumerate(split.images):
        found.append(decode.measure_depth(image, f"{split.name} image {row}"))
        progress(f"range of {split.name}", row + 1, len(split.images))
    return decode.merge_depths(found)


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
