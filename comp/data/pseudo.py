"""Pseudo-labels: test images that a trained run is sure of join the training images (Lee 2013, "Pseudo-Label").

Their labels are hard, as in the paper: the most likely class, or each class from probability 0.5. A teacher
(`train.teacher`) softens them like all others. They follow the labelled images, whose rows and whose mean and deviation
stay; validation never changes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from comp.config import Config
from comp.config.tasks import TASKS
from comp.data import loading
from comp.data.dataset import Dataset
from comp.data.images import ImageFiles
from comp.data.splits import Split, Suite, fingerprint
from comp.results.predictions import Targets
from comp.results.runs import Run
from comp.runtime.errors import ConfigError, RunError

NAME = "pseudo"  # of its file and of its key in provenance.json


@dataclass(frozen=True)
class PseudoLabels:
    """Chosen images of the test split or suite, with their labels.

    Attributes:
        rows: [N] int64, ascending; of a suite, counted over its blocks.
        ids: [N] text.
        labels: [N] int64, or [N, K] float32 of 0 and 1.
        confident: images that reached the smallest confidence, of which these are at most as many as may join.
        highest: the highest confidence of all images.
    """

    rows: NDArray[np.int64]
    ids: NDArray[np.str_]
    labels: Targets
    confident: int = 0
    highest: float = 1.0

    def to_arrays(self) -> Mapping[str, NDArray[Any]]:
        """Return what a run keeps of them."""
        return {"rows": self.rows, "ids": self.ids, "labels": self.labels}


def candidates(dataset: Dataset, name: str) -> Split | Suite:
    """Return the images that `data.pseudo.images` names, `test` or `suite`.

    Raises:
        ConfigError: the data have none.
    """
    images = dataset.test if name == "test" else dataset.suite
    if images is None:
        raise ConfigError(f"data.pseudo.images: {name}: the data have no {name} images to label; remove data.pseudo")
    return images


def choose(
    probabilities: NDArray[np.float64],
    images: Split | Suite,
    ids: NDArray[np.str_],
    task: str,
    min_confidence: float,
    most: int,
) -> PseudoLabels:
    """Return the most confident images, at most `most`, first the earlier of equals.

    Args:
        probabilities: [N, K].
        images: from `candidates`.
        ids: [N] of the images.
        task: a row of `comp.config.tasks.TASKS`.
        min_confidence: of an image that may join.
        most: how many may join.
    """
    columns = TASKS[task].target_columns
    labels = (probabilities >= 0.5).astype(np.float32) if columns else probabilities.argmax(1).astype(np.int64)
    sure = np.maximum(probabilities, 1 - probabilities).min(1) if columns else probabilities.max(1)
    if isinstance(images, Split) and images.blank is not None:
        sure = np.where(images.blank, 0.0, sure)
    confident = np.flatnonzero(sure >= min_confidence)
    rows = np.sort(confident[np.argsort(-sure[confident], kind="stable")[:most]])
    return PseudoLabels(rows, ids[rows], labels[rows], len(confident), float(sure.max(initial=0)))


def most_joining(dataset: Dataset, share: float) -> int:
    """Return how many images may join so that they are at most `share` of all training images."""
    return int(share / (1 - share) * len(dataset.train) + 1e-9)  # 0.3 / 0.7 * 7 is not quite 3


def split_of(chosen: PseudoLabels, dataset: Dataset, name: str) -> Split:
    """Return the chosen images as a labelled split; of a suite, one block is in memory at a time.

    Raises:
        RunError: the images have changed since they were chosen.
    """
    images = candidates(dataset, name)
    if isinstance(images, Split):
        part = images.take(chosen.rows[chosen.rows < len(images)], NAME)
    else:
        part = _take_blocks(images, chosen.rows)
    if not np.array_equal(part.ids, chosen.ids):
        raise RunError(f"data.pseudo: the {name} images have changed since they were labelled; start a new run")
    return replace(part, labels=chosen.labels, blank=None)


def _take_blocks(suite: Suite, rows: NDArray[np.int64]) -> Split:
    parts, start = [], 0
    for block in suite.blocks:
        inside = rows[(rows >= start) & (rows < start + block.count)] - start
        if len(inside):
            parts.append(suite.open(block).take(inside, NAME))
        start += block.count
    parts = parts or [suite.open(suite.blocks[0]).head(0)]
    pixels, ids = [np.asarray(part.images) for part in parts], [part.ids for part in parts]
    return Split(NAME, np.concatenate(pixels), np.concatenate(ids), None)


def join(dataset: Dataset, part: Split, config: Config) -> Dataset:
    """Return the data with more training images: files stay files, arrays are copied into memory.

    They are streamed if all of them together are too many to lie on the device; a note says so.
    """
    train = dataset.train
    assert train.labels is not None
    assert part.labels is not None
    images: NDArray[np.uint8] | ImageFiles
    if isinstance(train.images, ImageFiles) and isinstance(part.images, ImageFiles):
        images = replace(train.images, paths=np.concatenate([train.images.paths, part.images.paths]))
    else:
        images = np.concatenate([np.asarray(train.images), np.asarray(part.images)])
    ids, labels = np.concatenate([train.ids, part.ids]), np.concatenate([train.labels, part.labels])
    joined = Split(train.name, images, ids, labels)
    device = loading.training_device(config.train.device)
    residency = loading.residency(joined, dataset.val, config.data.loading, device)
    notes = (residency.note,) if dataset.resident and residency.note else ()
    resident = dataset.resident and residency.resident
    return replace(dataset, train=joined, resident=resident, notes=(*dataset.notes, *notes))


def rejoin(run: Run, config: Config, dataset: Dataset) -> Dataset:
    """Return the data with a run's recorded pseudo-labelled images; without any, unchanged.

    Raises:
        RunError: pseudo.npz is missing or not the recorded one, or the test images have changed.
    """
    if not config.data.pseudo.run:
        return dataset
    arrays = run.read_recorded(NAME)
    chosen = PseudoLabels(arrays["rows"], arrays["ids"], arrays["labels"])
    part = split_of(chosen, dataset, config.data.pseudo.images)
    if fingerprint(part) != run.provenance()[NAME].get("fingerprint"):
        raise RunError(f"{run.path}: its pseudo-labelled test images have changed; restore them or start a new run")
    return join(dataset, part, config)
