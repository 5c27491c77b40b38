"""What is in a config's data: numbers, label distribution and pictures (`comp data show`)."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from comp import plots, runs
from comp.augment import per_batch, policies
from comp.config import Config
from comp.data.dataset import Dataset, open_dataset
from comp.data.splits import Split, channel_statistics
from comp.imaging import draws
from comp.progress import Progress, quiet

_GRID_IMAGES = 80
_FIRST_EPOCH = 1  # whose augmentation is drawn


def open_clean(config: Config, progress: Progress = quiet) -> Dataset:
    """Open a config's splits; files of a hidden test suite are neither needed nor fetched, unreadable ones left out.

    Raises:
        DataError: as `open_dataset`.
    """
    if config.competition.suite.source == "distortion_files":
        suite = config.competition.suite.model_copy(update={"source": "none"})
        config = config.model_copy(update={"competition": config.competition.model_copy(update={"suite": suite})})
    data = config.data.model_copy(update={"skip_bad": True})
    return open_dataset(config.model_copy(update={"data": data}), progress)


def splits_of(dataset: Dataset) -> list[Split]:
    """Return train, and val and test where there are such."""
    return [split for split in (dataset.train, dataset.val, dataset.test) if split is not None]


def describe(dataset: Dataset) -> dict[str, Any]:
    """Return counts, sizes, channel statistics and labels of every split, as plain values."""
    classes = dataset.competition.classes
    described = {}
    for split in splits_of(dataset):
        mean, std = channel_statistics(split.images)
        described[split.name] = {
            "images": len(split),
            "shape": list(split.image_shape),
            "mean": [round(value, 4) for value in mean],
            "std": [round(value, 4) for value in std],
            "labels": dict(zip(classes, label_counts(split, len(classes)).tolist(), strict=True)),
        }
    return {"classes": len(classes), "fingerprint": dataset.fingerprint, "splits": described}


def draw(config: Config, dataset: Dataset, folder: Path, *, augmented: bool) -> list[Path]:
    """Draw the label distribution and a grid of training images; return the PNGs.

    Args:
        config: for its augmentation and seed.
        dataset: of that config.
        folder: made if need be; PNGs of the same names are replaced.
        augmented: also draw the same images under the config's policy, as the first epoch has them on the device;
            mixing is left out.
    """
    runs.make_folder(folder)
    classes, train = dataset.competition.classes, dataset.train
    paths = [folder / "labels.png", folder / "images.png"]
    counts = {split.name: label_counts(split, len(classes)).tolist() for split in splits_of(dataset)}
    plots.label_bars(paths[0], counts, classes)
    assert train.labels is not None
    by_label = np.argsort(train.labels, kind="stable")
    rows = by_label[np.linspace(0, len(train) - 1, min(_GRID_IMAGES, len(train))).astype(np.int64)]
    titles = [classes[label] for label in train.labels[rows]]
    plots.image_grid(paths[1], np.asarray(train.images[rows]), titles)
    if augmented:
        paths.append(folder / "augmented.png")
        plots.image_grid(paths[2], _augmented(config, train, rows), titles)
    return paths


def _augmented(config: Config, train: Split, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Return images [n, H, W, C] as the on-device engine gives them to the first epoch."""
    images = torch.from_numpy(np.array(train.images[rows])).permute(0, 3, 1, 2)
    indices = torch.from_numpy(rows)
    keys = draws.keys(config.seed, _FIRST_EPOCH, indices)
    turned = per_batch.alternation(config.seed, _FIRST_EPOCH, indices)
    policy = policies.resolve(config.augment.policy, config.augment.ops)
    return per_batch.augment(images, policy, keys, turned=turned).permute(0, 2, 3, 1).numpy()


def label_counts(split: Split, classes: int) -> NDArray[np.int64]:
    """Return how many images of each class a split has, [classes]; 0 where its labels are unknown."""
    return np.bincount(np.empty(0, np.int64) if split.labels is None else split.labels, minlength=classes)
