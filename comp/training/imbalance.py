"""Class imbalance: which training images an epoch holds (`data.sampling`), and weights of classes in the loss.

A *draw* is an image's place in an epoch: `row + occurrence * images`. Its row is what is read, and the number itself is
what augmentation is counted by, so an image that is drawn twice is augmented in two ways. With natural sampling draws
are rows.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from comp.config import Config
from comp.config.tasks import TASKS
from comp.data.dataset import Dataset
from comp.results.predictions import Targets
from comp.runtime import rng
from comp.runtime.errors import ConfigError, unknown

Numbers = NDArray[np.float64]

# data.sampling -> the power of its class's size that an image is drawn by.
_POWERS = {"natural": 0.0, "balanced": -1.0, "sqrt": -0.5}
# Cui et al. 2019 ("Class-Balanced Loss Based on Effective Number of Samples", arXiv:1901.05555) take 0.9 to 0.9999.
_BETA = 0.999
_PURPOSE = 0x73616D70  # keeps the choice of images apart from their order and augmentation


class ClassWeights(NamedTuple):
    """Weights in the loss, whose mean over the images of an epoch is 1.

    Attributes:
        present: [K] of an image's class.
        absent: [K] of a class that an image of several classes does not have; 0 where an image has one class.
    """

    present: Numbers
    absent: Numbers


def epoch_order(config: Config, labels: Targets, epoch: int) -> Tensor:
    """Return the draws of an epoch in their order, [N] int64, a function of labels, seed and epoch alone.

    A systematic sample (Madow 1949, "On the Theory of Systematic Sampling, II"): each image is drawn as often as its
    class's share of the epoch demands, rounded up or down. Which ones are rounded up is drawn anew in each epoch.

    Args:
        config: `seed` and `data.sampling`.
        labels: [N] class indices, or [N, K] of 0 and 1.
        epoch: from 1.
    """
    count = len(labels)
    order = rng.order(config.seed, epoch, count)
    if config.data.sampling == "natural":
        return order
    hashes = rng.fold(rng.keys(config.seed, epoch, torch.arange(count)), _PURPOSE).numpy()
    by_class = np.lexsort((hashes, _groups(labels)))  # rows, at random within each class
    ends = np.cumsum(expected_draws(labels, config.data.sampling)[by_class])
    ends[-1] = count  # what rounding took
    offset = float(rng.uniform(torch.tensor(rng.key(config.seed, epoch, _PURPOSE)), 0))
    times = np.diff(np.floor(ends + offset), prepend=0).astype(np.int64)
    occurrences = np.arange(count) - np.repeat(np.cumsum(times) - times, times)
    draws = np.repeat(by_class, times) + occurrences * count
    return torch.from_numpy(draws)[order]


def expected_draws(labels: Targets, sampling: str) -> Numbers:
    """Return how often an epoch draws each image on average, [N]; their sum is N."""
    groups = _groups(labels)
    sizes = np.bincount(groups).astype(np.float64)
    weights = sizes[groups] ** _POWERS[sampling]
    expected: Numbers = weights * (len(groups) / weights.sum())
    return expected


def _groups(labels: Targets) -> NDArray[np.int64]:
    """Return each image's class; of several the rarest, and a class of their own for images without any."""
    if labels.ndim == 1:
        return labels.astype(np.int64)
    present = labels > 0
    sizes = np.where(present, present.sum(0), np.inf)
    groups: NDArray[np.int64] = np.where(present.any(1), sizes.argmin(1), labels.shape[1])
    return groups


def class_weights(config: Config, dataset: Dataset) -> ClassWeights | None:
    """Return the weights of `train.class_weights`; None: all are 1."""
    chosen, names = config.train.class_weights, dataset.competition.classes
    if chosen == "none":
        return None
    labels = dataset.train.labels
    assert labels is not None
    draws = expected_draws(labels, config.data.sampling)
    columns = TASKS[dataset.competition.task].target_columns
    counted = draws @ labels if columns else np.bincount(labels.astype(np.int64), draws, len(names))
    with_class: Numbers = np.asarray(counted, np.float64)
    without = len(labels) - with_class
    if isinstance(chosen, str):
        present, absent = _inverse_size(chosen, with_class), _inverse_size(chosen, without)
    else:
        present, absent = np.array([chosen.get(name, 1.0) for name in names]), np.ones(len(names))
    if columns:
        scale = len(labels) / (with_class * present + without * absent)
        return ClassWeights(present * scale, absent * scale)
    return ClassWeights(present * (len(labels) / (with_class @ present)), np.zeros(len(names)))


def _inverse_size(chosen: str, images: Numbers) -> Numbers:
    """Return the inverse of the numbers of images, or of the effective ones; a part of an image counts as one."""
    images = np.maximum(images, 1.0)
    inverse: Numbers = 1 / images if chosen == "balanced" else (1 - _BETA) / (1 - _BETA**images)
    return inverse


def check_imbalance(config: Config, dataset: Dataset) -> None:
    """Check `data.sampling` and `train.class_weights` against the training images.

    Raises:
        ConfigError: labels that are numbers, one class alone, or a class without images whose weight would be computed.
    """
    labels, names, chosen = dataset.train.labels, dataset.competition.classes, config.train.class_weights
    assert labels is not None
    settings = {"data.sampling": config.data.sampling != "natural", "train.class_weights": chosen != "none"}
    for key in (key for key, differs in settings.items() if differs):
        if TASKS[dataset.competition.task].numeric:
            raise ConfigError(f"{key}: balances classes, and the labels are numbers; leave it out")
        if len(np.unique(_groups(labels))) < 2:
            raise ConfigError(f"{key}: there is nothing to balance, all training images are of one class; leave it out")
    counts = dataset.train.class_counts(len(names))
    missing = [names[int(row)] for row in np.flatnonzero(counts == 0)]
    if missing and isinstance(chosen, str) and chosen != "none":
        raise ConfigError(
            f"train.class_weights: {chosen} counts the training images of each class, and there are none of "
            f"{', '.join(missing[:5])}{', ...' if len(missing) > 5 else ''}; name the weights yourself "
            "({class: weight}), or use data.sampling=balanced, which passes over such classes"
        )


def check_named_weights(config: Config) -> None:
    """Check that `train.class_weights` names a class, if it is a mapping.

    Raises:
        ConfigError: it is empty.
    """
    if not config.train.class_weights:
        raise ConfigError(
            "train.class_weights: expected the weight of at least one class, found {}; write {cat: 2.5}, or none"
        )


def check_class_names(config: Config, classes: Sequence[str]) -> None:
    """Check the names in `train.class_weights`.

    Raises:
        ConfigError: one is not among the classes.
    """
    chosen = config.train.class_weights
    for name in () if isinstance(chosen, str) else chosen:
        if name not in classes:
            raise ConfigError(f"train.class_weights: {unknown('class', name, classes)}")


def describe(config: Config, dataset: Dataset) -> tuple[str, ...]:
    """Return notes on the loss, on how often images of which class are drawn, and on the weights; empty by default."""
    train, labels, names = config.train, dataset.train.labels, dataset.competition.classes
    assert labels is not None
    notes = []
    if train.loss != "auto" or train.loss_args:
        arguments = ", ".join(f"{name} {value}" for name, value in train.loss_args.items())
        notes.append(f"loss: {train.loss}{f' ({arguments})' if arguments else ''}")
    if config.data.sampling != "natural":
        draws = expected_draws(labels, config.data.sampling)
        notes.append(
            f"sampling ({config.data.sampling}): an epoch draws {len(labels):,} images, each {draws.min():.2g} to "
            f"{draws.max():.2g} times, by the size of its class"
        )
    weights = class_weights(config, dataset)
    if weights is not None:
        low, high = int(weights.present.argmin()), int(weights.present.argmax())
        kind = train.class_weights if isinstance(train.class_weights, str) else "named"
        notes.append(
            f"class weights ({kind}): {weights.present[low]:.3g} ({names[low]}) to {weights.present[high]:.3g} "
            f"({names[high]})"
        )
    return tuple(notes)
