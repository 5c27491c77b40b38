"""What the shift card measures of two samples of images: plain properties, and features without a network."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional as F

from comp.data import archives
from comp.data.corruptions.recognise import luma_of, statistics
from comp.data.images import ImageFiles, map_in_threads
from comp.data.splits import Split
from comp.runtime.memory import MicroBatch
from comp.runtime.progress import Progress, quiet

_CHUNK_IMAGES = 256
_SIDE = 8  # of the thumbnails among the features
# Kolmogorov-Smirnov distance of two samples from which a difference has the word.
_WORDS = ((0.5, "very large"), (0.25, "large"), (0.1, "clear"), (0.0, "slight"))
_SURE = 0.001  # p-value below which a difference is reported


@dataclass(frozen=True)
class Property:
    """A property of images in two samples.

    Attributes:
        name: such as brightness, or `format JPEG` for the share of a file format.
        train: its mean in the first sample.
        test: in the second.
        difference: of the means, in standard deviations within the samples; None if neither varies.
        distance: Kolmogorov-Smirnov's: the largest difference of the two distribution functions, 0 to 1.
        word: same, slight, clear, large or very large; `same` if chance would explain it.
    """

    name: str
    train: float
    test: float
    difference: float | None
    distance: float
    word: str


def compare_properties(
    train: Split, test: Split, files: tuple[Split, Split], progress: Progress = quiet
) -> list[Property]:
    """Return all properties, those that differ most first.

    Args:
        train: the first sample.
        test: the second.
        files: the same samples before they were decoded; their sizes and kinds are compared if both are image files.
        progress: called while files are read.
    """
    pairs = [(_pixel_properties(train), _pixel_properties(test))]
    if all(isinstance(split.images, ImageFiles) for split in files):
        first, second = (_file_properties(split, progress) for split in files)
        for kind in sorted({*first, *second}):  # a file kind that only one sample has: the other's share is 0
            first.setdefault(kind, np.zeros(len(train)))
            second.setdefault(kind, np.zeros(len(test)))
        pairs.append((first, second))
    compared = [_compare(name, first[name], second[name]) for first, second in pairs for name in first]
    return sorted(compared, key=lambda row: (row.word == "same", -row.distance))


def _compare(name: str, train: NDArray[np.float64], test: NDArray[np.float64]) -> Property:
    from scipy.stats import ks_2samp  # type: ignore[import-untyped]

    result = ks_2samp(train, test, method="asymp")
    distance = float(result.statistic)
    deviation = float(np.sqrt((train.var() + test.var()) / 2))
    difference = (float(test.mean()) - float(train.mean())) / deviation if deviation > 0 else None
    word = next(word for least, word in _WORDS if distance >= least) if result.pvalue < _SURE else "same"
    return Property(name, float(train.mean()), float(test.mean()), difference, distance, word)


def _pixel_properties(split: Split) -> dict[str, NDArray[np.float64]]:
    """Return properties of the decoded images: brightness and contrast in grey levels, sharpness, saturation."""

    def measure(rows: slice) -> dict[str, NDArray[np.float64]]:
        pixels = torch.from_numpy(np.array(split.images[rows])).permute(0, 3, 1, 2).float()
        luma = luma_of(pixels)
        spread = luma.flatten(1).std(1)
        steps = luma.diff(dim=2).abs().flatten(1).mean(1) + luma.diff(dim=1).abs().flatten(1).mean(1)
        values = {"brightness": luma.flatten(1).mean(1), "contrast": spread, "sharpness": steps / (2 * spread + 1)}
        if pixels.shape[1] == 3:
            high = pixels.amax(1)
            values["saturation"] = ((high - pixels.amin(1)) / high.clamp(min=1)).flatten(1).mean(1)
        return {name: column.double().numpy() for name, column in values.items()}

    parts = list(MicroBatch(_CHUNK_IMAGES).parts(len(split), measure))
    return {name: np.concatenate([part[name] for part in parts]) for name in (parts[0] if parts else ())}


def _file_properties(split: Split, progress: Progress) -> dict[str, NDArray[np.float64]]:
    """Return width, height, aspect ratio and bytes a pixel of image files, and a 0/1 column for each format."""
    assert isinstance(split.images, ImageFiles)
    paths: Sequence[str] = [path for path in split.images.paths.tolist() if path]

    def inspect(row: int) -> tuple[int, int, float, str]:
        content = archives.read(Path(paths[row]))
        with Image.open(io.BytesIO(content)) as image:
            return *image.size, len(content) / (image.width * image.height), f"{image.format} {image.mode}"

    rows = map_in_threads(inspect, range(len(paths)), progress, f"files of {split.name}")
    width, height, density = (np.array([row[column] for row in rows], np.float64) for column in range(3))
    kinds = np.array([row[3] for row in rows])
    return {
        "width": width,
        "height": height,
        "aspect ratio": width / height,
        "bytes a pixel": density,
        **{f"format {kind}": (kinds == kind).astype(np.float64) for kind in np.unique(kinds).tolist()},
    }


def plain_features(split: Split, progress: Progress = quiet) -> NDArray[np.float32]:
    """Return features [N, F] of images without any network: statistics, and the pixels of 8 x 8 thumbnails."""

    def features(rows: slice) -> NDArray[np.float32]:
        pixels = np.array(split.images[rows])
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float()
        thumbnails = F.adaptive_avg_pool2d(images, _SIDE).flatten(1).numpy()
        return np.concatenate([statistics(pixels), thumbnails], 1)

    parts: list[NDArray[np.float32]] = []
    micro_batch, done = MicroBatch(_CHUNK_IMAGES), 0
    for part in micro_batch.parts(len(split), features):
        parts.append(part)
        done += len(part)
        progress(f"features of {split.name}", done, len(split), "images", micro_batch.note)
    return np.concatenate(parts)
