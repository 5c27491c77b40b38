"""Describe and plot a config's data: counts, label distribution, images (`comp data show`)."""

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
from comp.results import files, plots
from comp.runtime import rng
from comp.runtime.progress import Progress, quiet

_GRID_IMAGES = 80
_BINS = 12  # of numbers, in the plot of labels
_LEAST_SHARE, _MAX_MIXED = 0.005, 4  # of a mixed image's classes that are named
_FIRST_EPOCH = 1  # its augmentation is plotted


def open_without_suite(config: Config, progress: Progress = quiet) -> Dataset:
    """Open a config's splits without distortion files, which need not exist; unreadable images are left out.

    Raises:
        DataError: as `open_dataset`.
    """
    if config.competition.suite.source == "distortion_files":
        suite = config.competition.suite.model_copy(update={"source": "none"})
        config = config.model_copy(update={"competition": config.competition.model_copy(update={"suite": suite})})
    data = config.data.model_copy(update={"skip_bad": True})
    return open_dataset(config.model_copy(update={"data": data}), progress)


def describe_dataset(dataset: Dataset) -> dict[str, Any]:
    """Return counts, sizes, channel statistics and label counts of every split, as plain values."""
    classes = dataset.competition.classes
    summaries = {}
    for split in dataset.splits:
        mean, std = channel_statistics(split.images)
        summaries[split.name] = {
            "images": len(split),
            "shape": list(split.image_shape),
            "mean": [round(value, 4) for value in mean],
            "std": [round(value, 4) for value in std],
            "labels": _describe_labels(split, classes),
        }
    return {"classes": len(classes), "fingerprint": dataset.fingerprint, "splits": summaries}


def draw_plots(config: Config, dataset: Dataset, folder: Path, *, augmented: bool) -> list[Path]:
    """Plot the label distribution and a grid of training images; return the PNGs' paths.

    Args:
        config: gives the augmentation and the seed.
        dataset: of that config.
        folder: created if missing; PNGs of the same names are replaced.
        augmented: whether to plot the same images after the first epoch's augmentation and mixing, too.
    """
    files.make_folder(folder)
    classes, train = dataset.competition.classes, dataset.train
    paths = [folder / "labels.png", folder / "images.png"]
    plots.draw_label_bars(paths[0], *_label_counts(dataset))
    assert train.labels is not None
    sorted_rows = np.argsort(train.labels if train.labels.ndim == 1 else train.labels.argmax(1), kind="stable")
    rows = sorted_rows[np.linspace(0, len(train) - 1, min(_GRID_IMAGES, len(train))).astype(np.int64)]
    titles = [_label_title(label, classes) for label in train.labels[rows]]
    plots.draw_image_grid(paths[1], np.asarray(train.images[rows]), titles)
    if augmented:
        paths.append(folder / "augmented.png")
        images, targets = _augment(config, train, rows, len(classes))
        plots.draw_image_grid(paths[2], images, [_mixed_title(row, classes) for row in targets])
    return paths


def _augment(
    config: Config, train: Split, rows: NDArray[np.int64], classes: int
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Return images [n, H, W, C] as epoch 1 trains on them, augmented and mixed, and targets [n, K]."""
    section = config.augment
    if section.mixup or section.cutmix:  # neighbours are mixed: shuffle rows that are sorted by class
        rows = rows[np.random.default_rng(config.seed).permutation(len(rows))]
    policies.check_channels(section.policy, section.ops, train.image_shape[0])
    policy = policies.resolve(section.policy, section.ops, section.albumentations)
    worker_stage.check_image_shape(policy, train.image_shape)
    transform = worker_stage.build(policy, config.seed)
    pixels = [loading.read_training_image(train.images, int(row), _FIRST_EPOCH, transform) for row in rows]
    images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)  # [n, C, H, W]
    indices = torch.from_numpy(rows)
    keys = rng.keys(config.seed, _FIRST_EPOCH, indices)
    flipped = engine.alternating_flip_mask(config.seed, _FIRST_EPOCH, indices)
    assert train.labels is not None
    labels = torch.from_numpy(train.labels[rows])
    settings = mixing.Mixing(section.mixup, section.cutmix, section.switch_probability)
    images = engine.augment(images, policy, keys, flip_mask=flipped)
    mixed, targets = mixing.mix(images, labels, keys, classes=classes, mixing=settings)
    levels = (mixed * 255).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
    return levels.numpy(), targets.float().numpy()


def _describe_labels(split: Split, classes: Sequence[str]) -> dict[str, float] | None:
    """Return the number of images of each class, or where labels are numbers their range, mean and deviation."""
    if split.labels is None:
        return None
    if not split.is_numeric:
        return dict(zip(classes, split.class_counts(len(classes)).tolist(), strict=True))
    numbers = split.labels.astype(np.float64)
    facts = {"min": numbers.min(), "mean": numbers.mean(), "max": numbers.max(), "std": numbers.std()}
    return {name: round(float(value), 6) for name, value in facts.items()}


def _label_counts(dataset: Dataset) -> tuple[dict[str, list[int]], Sequence[str]]:
    """Return split -> images of each class and the classes' names; of numbers, images in ranges of equal width."""
    classes, train = dataset.competition.classes, dataset.train
    if not train.is_numeric:
        return {split.name: split.class_counts(len(classes)).tolist() for split in dataset.splits}, classes
    labelled = {split.name: split.labels for split in dataset.splits if split.labels is not None}
    edges = np.histogram_bin_edges(np.concatenate(list(labelled.values())), _BINS)
    counts = {name: np.histogram(labels, edges)[0].tolist() for name, labels in labelled.items()}
    return counts, [f"from {low:.5g}" for low in edges[:-1]]


def _mixed_title(target: NDArray[np.float32], classes: Sequence[str]) -> str:
    """Return an image's classes; if it is mixed, a line with the share of each; or its number."""
    if len(classes) == 1 and len(target) == 1:
        return f"{target[0]:.6g}"
    labels = np.argsort(-target, kind="stable")[: np.clip(np.count_nonzero(target >= _LEAST_SHARE), 1, _MAX_MIXED)]
    if target[labels].max() in (0, 1):
        return ", ".join(classes[int(label)] for label in labels if target[label]) or "no label"
    return "\n".join(f"{classes[int(label)]} {target[label]:.0%}" for label in labels)


def _label_title(label: Any, classes: Sequence[str]) -> str:
    """Return the class names of an index, or of a row of 0 and 1; or a number."""
    if isinstance(label, np.floating):
        return f"{label:.6g}"
    if np.ndim(label) == 0:
        return classes[int(label)]
    return ", ".join(classes[int(number)] for number in np.flatnonzero(label)) or "no label"
