"""What is in a config's data: numbers, label distribution and pictures (`comp data show`)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from comp.augment import engine, mixing, policies, worker_stage
from comp.config import Config
from comp.data import loading
from comp.data.dataset import Dataset, open_dataset
from comp.data.splits import Split, channel_statistics
from comp.results import plots, runs
from comp.runtime import rng
from comp.runtime.progress import Progress, quiet

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
            "labels": dict(zip(classes, split.class_counts(len(classes)).tolist(), strict=True))
            if split.labels is not None
            else None,
        }
    return {"classes": len(classes), "fingerprint": dataset.fingerprint, "splits": described}


def draw(config: Config, dataset: Dataset, folder: Path, *, augmented: bool) -> list[Path]:
    """Draw the label distribution and a grid of training images; return the PNGs.

    Args:
        config: for its augmentation and seed.
        dataset: of that config.
        folder: made if need be; PNGs of the same names are replaced.
        augmented: also draw the same images as the first epoch's steps see them: under the policy, and mixed.
    """
    runs.make_folder(folder)
    classes, train = dataset.competition.classes, dataset.train
    paths = [folder / "labels.png", folder / "images.png"]
    counts = {split.name: split.class_counts(len(classes)).tolist() for split in splits_of(dataset)}
    plots.label_bars(paths[0], counts, classes)
    assert train.labels is not None
    by_label = np.argsort(train.labels if train.labels.ndim == 1 else train.labels.argmax(1), kind="stable")
    rows = by_label[np.linspace(0, len(train) - 1, min(_GRID_IMAGES, len(train))).astype(np.int64)]
    titles = [_title(label, classes) for label in train.labels[rows]]
    plots.image_grid(paths[1], np.asarray(train.images[rows]), titles)
    if augmented:
        paths.append(folder / "augmented.png")
        images, targets = _augmented(config, train, rows, len(classes))
        plots.image_grid(paths[2], images, [_mixed_title(row, classes) for row in targets])
    return paths


def _augmented(
    config: Config, train: Split, rows: NDArray[np.int64], classes: int
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Return images [n, H, W, C] as workers, policy and mixing give them to epoch 1, and targets [n, K]."""
    section = config.augment
    if section.mixup or section.cutmix:  # neighbours are mixed, and rows are sorted by class: let classes meet
        rows = rows[np.random.default_rng(config.seed).permutation(len(rows))]
    policies.check_channels(section.policy, section.ops, train.image_shape[0])
    policy = policies.resolve(section.policy, section.ops, section.albumentations)
    worker_stage.check_image_shape(policy, train.image_shape)
    transform = worker_stage.build(policy, config.seed)
    seen = [loading.read(train.images, int(row), _FIRST_EPOCH, transform) for row in rows]
    images = torch.from_numpy(np.stack(seen)).permute(0, 3, 1, 2)
    indices = torch.from_numpy(rows)
    keys = rng.keys(config.seed, _FIRST_EPOCH, indices)
    flip_mask = engine.alternating_flip_mask(config.seed, _FIRST_EPOCH, indices)
    assert train.labels is not None
    how = mixing.Mixing(section.mixup, section.cutmix, section.switch_probability)
    mixed, targets = mixing.mix(
        engine.augment(images, policy, keys, flip_mask=flip_mask), torch.from_numpy(train.labels[rows]), keys,
        classes=classes, mixing=how,
    )  # fmt: skip
    pixels = (mixed * 255).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
    return pixels.numpy(), targets.float().numpy()


def _mixed_title(target: NDArray[np.float32], classes: Sequence[str]) -> str:
    """Return an image's classes and, where it was mixed, their shares."""
    there = np.argsort(-target, kind="stable")[: max(1, np.count_nonzero(target))]
    if target[there].max() in (0, 1):
        return ", ".join(classes[int(number)] for number in there if target[number]) or "no label"
    return " + ".join(f"{classes[int(number)]} {target[number]:.0%}" for number in there)


def _title(label: Any, classes: Sequence[str]) -> str:
    """Return the names of one image's classes: of its index, or of its row of 0 and 1."""
    if np.ndim(label) == 0:
        return classes[int(label)]
    return ", ".join(classes[int(number)] for number in np.flatnonzero(label)) or "no label"
