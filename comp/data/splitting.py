"""Split labelled images into training, validation and test: seeded, stratified, grouped, or in folds.

`sample_indices` draws a sample of a split, for what is measured on fewer images than it has.

The result depends on labels, groups and the seed alone, and is the same on every machine.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from comp.config import DataConfig
from comp.config.tasks import TASKS
from comp.data.cache import cached_json
from comp.data.sources.source import Source
from comp.data.splits import Split, fingerprint, group_exact_copies
from comp.results.predictions import Targets
from comp.runtime.errors import ConfigError, DataError
from comp.runtime.progress import Progress, quiet

Rows = NDArray[np.int64]

_MOST_NAMED = 5  # rare classes in a note
_MOST_BINS, _FEWEST_IN_BIN = 10, 10  # of numbers, by quantiles
_SAMPLE_SEED = 0  # runs that share a split share its samples, whatever their own seeds


@dataclass(frozen=True)
class Splits:
    """The splits of a source; None for one that it does not have.

    Attributes:
        train: labelled.
        val: held out of the training images.
        test: the source's own, or held out of the training images too.
        notes: name classes too rare to be in every part.
    """

    train: Split
    val: Split | None
    test: Split | None
    notes: tuple[str, ...] = ()


def split_source(
    source: Source, config: DataConfig, *, cut_test: bool, groups: Rows | None = None, progress: Progress = quiet
) -> Splits:
    """Split a source by `data.validation`, `folds`, `stratify`, `groups` and `test`.

    Args:
        source: opened.
        config: section `data`.
        cut_test: whether a labelled test is held out of the training images where the source has none.
        groups: [N] of `source.train`, images with the same number stay together (near duplicates, patients);
            None: as `data.groups` says.
        progress: called while pixels are hashed.

    Raises:
        DataError: an empty part.
        ConfigError: no official validation split.
    """
    if groups is None and config.groups != "none":
        groups = source.groups if config.groups == "column" else _group_copies(source.train, config, progress)
    stratifier = STRATIFIERS[TASKS[source.task].stratifier if config.stratify else "none"]
    seed, train, test, val, notes = config.split_seed, source.train, source.test, None, []
    if test is None and cut_test:
        kept, held = holdout_indices(train, config.test, seed, stratifier=stratifier, groups=groups)
        units, groups = groups, None if groups is None else groups[kept]
        notes += _rare_class_notes(train, source.classes, 2, "test", units) if config.stratify else []
        train, test = train.take(kept, "train"), train.take(held, "test")
    if config.folds is not None:
        kept, held = fold_indices(train, config.folds, config.fold, seed, stratifier=stratifier, groups=groups)
        notes += _rare_class_notes(train, source.classes, config.folds, "every fold", groups) if config.stratify else []
        train, val = train.take(kept, "train"), train.take(held, "val")
    elif config.validation == "official":
        if source.val is None:
            raise ConfigError(
                f"data.validation: official: {config.source} has no val split; give a fraction or a count"
            )
        val = source.val
    elif config.validation != "none":
        kept, held = holdout_indices(train, config.validation, seed, stratifier=stratifier, groups=groups)
        notes += _rare_class_notes(train, source.classes, 2, "validation", groups) if config.stratify else []
        train, val = train.take(kept, "train"), train.take(held, "val")
    return Splits(train, val, test, tuple(notes))


def _rare_class_notes(split: Split, classes: Sequence[str], fewest: int, where: str, groups: Rows | None) -> list[str]:
    """Return a note that names the classes with too few images, or groups that stay together, to be in every part."""
    counts, counted = split.class_counts(len(classes)), "images"
    if groups is not None and split.labels is not None and not split.is_numeric:
        rows = np.arange(len(split))
        present = np.nonzero(split.labels) if split.labels.ndim == 2 else (rows, split.labels.astype(np.int64))
        pairs = np.unique(groups[present[0]].astype(np.int64) * len(classes) + present[1])  # of a group and its class
        counts = np.bincount(pairs % len(classes), minlength=len(classes))
        counted = "images" if len(np.unique(groups)) == len(split) else "groups of images"
    rare = [f"{classes[int(row)]!r} ({counts[row]})" for row in np.flatnonzero((counts > 0) & (counts < fewest))]
    if not rare:
        return []
    names = ", ".join(rare[:_MOST_NAMED]) + (", ..." if len(rare) > _MOST_NAMED else "")
    return [f"split: classes with too few {counted} to be in training and {where}: {names}"]


def holdout_indices(
    split: Split, size: float | int, seed: int, *, stratifier: "Stratifier | None" = None, groups: Rows | None = None
) -> tuple[Rows, Rows]:
    """Return the kept and the held-out rows, each sorted.

    Args:
        split: labelled.
        size: of the held-out part: a fraction, or a count (with groups, the most).
        seed: gives the same rows on every machine.
        stratifier: balances the parts; None: by classes.
        groups: [N], rows with the same number stay together.

    Raises:
        DataError: a part would be empty.
    """
    count = len(split)
    if not 0 < _held_count(size, count) < count:
        raise DataError(f"{split.name}: cannot hold out {size} of {count} images; change data.validation or data.test")
    assert split.labels is not None
    held = (stratifier or STRATIFIERS["classes"]).hold(split.labels, size, seed, groups)
    if not 0 < len(held) < count:
        units = 0 if groups is None else len(np.unique(groups))
        raise DataError(
            f"{split.name}: cannot hold out {size} of {count} images in {units} groups that stay "
            "together: no set of groups fits; hold out more, or set data.stratify=false"
        )
    return np.setdiff1d(np.arange(count), held), held


def _held_count(size: float | int, count: int) -> int:
    """Return the size of the held-out part in images: `size` is a fraction or a count."""
    return size if isinstance(size, int) else math.ceil(size * count)


def fold_indices(
    split: Split,
    folds: int,
    number: int,
    seed: int,
    *,
    stratifier: "Stratifier | None" = None,
    groups: Rows | None = None,
) -> tuple[Rows, Rows]:
    """Return the rows of all folds but `number` (from 0), and those of that one, each sorted; see `holdout_indices`.

    Every image is in exactly one fold. The stratifier balances the folds as far as rare classes allow.

    Raises:
        DataError: fewer images, or groups, than folds.
    """
    units = len(split) if groups is None else len(np.unique(groups))
    if units < folds:
        unit = "images" if groups is None else "groups"
        raise DataError(f"{split.name}: cannot cut {units} {unit} into {folds} folds; lower data.folds")
    assert split.labels is not None
    held = (stratifier or STRATIFIERS["classes"]).fold(split.labels, folds, number, seed, groups)
    if not len(held):
        raise DataError(f"{split.name}: fold {number} of {folds} would be empty; lower data.folds")
    return np.setdiff1d(np.arange(len(split)), held), held


def sample_indices(split: Split, count: int, *, task: str, seed: int = _SAMPLE_SEED) -> Rows:
    """Return the sorted rows of a stratified sample; all rows if the split has no more than `count`.

    Args:
        split: labelled, or unlabelled and sampled uniformly.
        count: of images, from 0.
        task: a row of `comp.config.tasks.TASKS`. With one class per image, each class keeps its share, rounded, and at
            least one image where `count` allows it; for label sets, see `STRATIFIERS`.
        seed: gives the same rows on every machine.
    """
    if count >= len(split):
        return np.arange(len(split))
    if count <= 0:
        return np.array([], np.int64)
    if split.labels is None:
        return _sample_uniformly(np.zeros(len(split), np.int64), count, seed)
    return STRATIFIERS[TASKS[task].stratifier].sample(split.labels, count, seed)


def _hold_by_class(labels: Targets, size: float | int, seed: int, groups: Rows | None) -> Rows:
    classes = labels.astype(np.int64)
    if groups is not None:
        return _hold_groups(classes, groups, size, seed)
    members, held_count = _list_members(classes), _held_count(size, len(classes))
    if min(map(len, members)) < 2 or len(members) > min(held_count, len(classes) - held_count):
        return _hold_rare_classes(classes, held_count, seed)
    rng = np.random.RandomState(seed)
    counts = np.array([len(rows) for rows in members])
    kept_counts = _most_likely_counts(counts, len(classes) - held_count, rng)
    held_counts = _most_likely_counts(counts - kept_counts, held_count, rng)
    orders = [rng.permutation(rows) for rows in members]
    held = [rows[kept : kept + taken] for rows, kept, taken in zip(orders, kept_counts, held_counts, strict=True)]
    return np.sort(np.concatenate(held))


def _most_likely_counts(counts: Rows, drawn: int, rng: np.random.RandomState) -> Rows:
    """Return the most likely number of each class among `drawn` images; ties are drawn.

    `_hold_by_class` so draws the same rows as scikit-learn's `train_test_split`, which older runs were split by;
    importing that takes half as long as torch (docs/lab/2026-11-27-libraries.md).
    """
    shares = counts / counts.sum() * drawn
    likeliest = np.floor(shares)
    for remainder in np.unique(shares - likeliest)[::-1]:
        if lacking := int(drawn - likeliest.sum()):
            tied = np.flatnonzero(shares - np.floor(shares) == remainder)
            likeliest[rng.choice(tied, min(len(tied), lacking), replace=False)] += 1
    return np.asarray(likeliest, np.int64)


def _hold_rare_classes(classes: Rows, held_count: int, seed: int) -> Rows:
    """Return held-out rows: each class's share rounded down, and the rest by largest remainder.

    A class of one image keeps it for training.
    """
    rng = np.random.RandomState(seed)
    members = [rng.permutation(rows) for rows in _list_members(classes)]
    shares = np.array([len(rows) * held_count / len(classes) for rows in members])
    counts = np.floor(shares).astype(np.int64)
    has_spare = np.array([len(rows) > max(count, 1) for rows, count in zip(members, counts, strict=True)])
    order = np.lexsort((rng.permutation(len(members)), counts - shares))
    for number in [row for row in order if has_spare[row]][: held_count - int(counts.sum())]:
        counts[number] += 1
    held = np.concatenate([rows[:count] for rows, count in zip(members, counts, strict=True)])
    return np.sort(held) if len(held) else np.sort(rng.permutation(len(classes))[:held_count])


def _sample_by_class(labels: Targets, count: int, seed: int) -> Rows:
    """Return the rows of a sample: each class's share rounded by largest remainder, and at least one image of each."""
    rng = np.random.RandomState(seed)
    members = [rng.permutation(rows) for rows in _list_members(labels.astype(np.int64))]
    sizes = np.array([len(rows) for rows in members])
    shares = sizes * (count / len(labels))
    counts = np.maximum(np.floor(shares).astype(np.int64), int(count >= len(members)))
    ties = rng.permutation(len(members))
    while counts.sum() < count:
        lacking = np.where(counts < sizes, shares - counts, -np.inf)
        counts[np.lexsort((ties, -lacking))[0]] += 1
    while counts.sum() > count:  # the images of rare classes are taken from common ones
        excess = np.where(counts > 1, counts - shares, -np.inf)
        counts[np.lexsort((ties, -excess))[0]] -= 1
    return np.sort(np.concatenate([rows[:taken] for rows, taken in zip(members, counts, strict=True)]))


def _sample_uniformly(labels: Targets, count: int, seed: int) -> Rows:
    return np.sort(np.random.RandomState(seed).permutation(len(labels))[:count])


def _hold_uniformly(labels: Targets, size: float | int, seed: int, groups: Rows | None) -> Rows:
    one_class = np.zeros(len(labels), np.int64)
    if groups is not None:
        return _hold_groups(one_class, groups, size, seed)
    return _sample_uniformly(labels, _held_count(size, len(labels)), seed)


def _fold_by_class(labels: Targets, folds: int, number: int, seed: int, groups: Rows | None) -> Rows:
    from sklearn.model_selection import KFold, StratifiedGroupKFold, StratifiedKFold

    classes = labels.astype(np.int64)
    splitter = StratifiedKFold if groups is None else StratifiedGroupKFold
    if groups is None and np.bincount(classes).max() < folds:  # no class can be in every fold
        splitter = KFold
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # on a class with fewer images than folds: `split_source` notes it
        parts = list(splitter(folds, shuffle=True, random_state=seed).split(classes, classes, groups))
    return np.sort(parts[number][1])


def _fold_uniformly(labels: Targets, folds: int, number: int, seed: int, groups: Rows | None) -> Rows:
    from sklearn.model_selection import KFold, StratifiedGroupKFold

    one_class = np.zeros(len(labels), np.int64)
    splitter = KFold if groups is None else StratifiedGroupKFold
    parts = list(splitter(folds, shuffle=True, random_state=seed).split(one_class, one_class, groups))
    return np.sort(parts[number][1])


def _hold_by_label_set(labels: Targets, size: float | int, seed: int, groups: Rows | None) -> Rows:
    share = size / len(labels) if isinstance(size, int) else size
    return np.flatnonzero(_stratify_label_sets(labels, np.array([1 - share, share]), seed, groups) == 1)


def _fold_by_label_set(labels: Targets, folds: int, number: int, seed: int, groups: Rows | None) -> Rows:
    return np.flatnonzero(_stratify_label_sets(labels, np.full(folds, 1 / folds), seed, groups) == number)


def _sample_by_label_set(labels: Targets, count: int, seed: int) -> Rows:
    held = _hold_by_label_set(labels, count, seed, None)
    rng = np.random.RandomState(seed)  # the stratifier balances classes and may miss the count by a few images
    rest = np.setdiff1d(np.arange(len(labels)), held)
    sampled = rng.permutation(held)[:count]
    return np.sort(np.concatenate([sampled, rng.permutation(rest)[: count - len(sampled)]]))


def _stratify_label_sets(
    labels: Targets, shares: NDArray[np.float64], seed: int, groups: Rows | None
) -> NDArray[np.int64]:
    """Return the part of each row of labels [N, K], so that every class has its share [P] of images in every part.

    Iterative stratification (Sechidis et al. 2011, "On the stratification of multi-label data", algorithm 1): the
    rarest class is assigned first, each image to the part that lacks that class most. Groups stay together.
    """
    members = _list_members(groups) if groups is not None else [np.array([row]) for row in range(len(labels))]
    counts = np.stack([labels[rows].sum(0) for rows in members])  # [G, K]
    sizes = np.array([len(rows) for rows in members], np.float64)
    lacking, room = shares[:, None] * counts.sum(0), shares * sizes.sum()  # [P, K], [P]
    noise = np.random.RandomState(seed).permutation(len(members) * len(shares)).reshape(len(members), -1)
    part_of, unassigned = np.full(len(members), -1), counts.sum(0)
    while (part_of < 0).any():
        rest = np.flatnonzero(part_of < 0)
        present = np.flatnonzero(unassigned > 0)
        rarest = int(present[np.argmin(unassigned[present])]) if len(present) else -1
        chosen = rest[counts[rest, rarest] > 0] if rarest >= 0 else rest
        if rarest >= 0 and not len(chosen):  # its images were assigned with rarer classes
            unassigned[rarest] = 0
            continue
        for group in chosen[np.argsort(noise[chosen, 0])]:
            need = lacking[:, rarest] if rarest >= 0 else room
            part = int(np.lexsort((noise[group], -room, -need))[0])
            part_of[group] = part
            lacking[part] -= counts[group]
            room[part] -= sizes[group]
            unassigned = unassigned - counts[group]
    parts = np.empty(len(labels), np.int64)
    for group, rows in enumerate(members):
        parts[rows] = part_of[group]
    return parts


@dataclass(frozen=True)
class Stratifier:
    """Balances the parts of a split.

    Attributes:
        hold: (labels, size, seed, groups) -> held-out rows.
        fold: (labels, folds, number, seed, groups) -> rows of one fold.
        sample: (labels, count, seed) -> rows; count is below the split's size.
    """

    hold: Callable[[Targets, float | int, int, Rows | None], Rows]
    fold: Callable[[Targets, int, int, int, Rows | None], Rows]
    sample: Callable[[Targets, int, int], Rows]


def _quantile_bins(labels: Targets) -> Rows:
    """Return each number's bin [N], of up to ten with equally many images; equal numbers share a bin."""
    bins = min(_MOST_BINS, max(1, len(labels) // _FEWEST_IN_BIN))
    edges = np.unique(np.quantile(labels, np.arange(1, bins) / bins))
    # Numbered without gaps, as classes are.
    return np.unique(np.searchsorted(edges, labels, side="right"), return_inverse=True)[1].astype(np.int64)


STRATIFIERS = {
    "classes": Stratifier(_hold_by_class, _fold_by_class, _sample_by_class),
    "label_sets": Stratifier(_hold_by_label_set, _fold_by_label_set, _sample_by_label_set),
    "quantiles": Stratifier(
        lambda labels, *rest: _hold_by_class(_quantile_bins(labels), *rest),
        lambda labels, *rest: _fold_by_class(_quantile_bins(labels), *rest),
        lambda labels, *rest: _sample_by_class(_quantile_bins(labels), *rest),
    ),
    "none": Stratifier(_hold_uniformly, _fold_uniformly, _sample_uniformly),
}


def _hold_groups(labels: Rows, groups: Rows, size: float | int, seed: int) -> Rows:
    """Return held-out rows: whole groups in a drawn order, each taken if no class exceeds its share."""
    held_count = size if isinstance(size, int) else round(size * len(labels))
    most = np.ceil(np.bincount(labels) / len(labels) * held_count)  # [C]
    members = _list_members(groups)
    counts, held = np.zeros(len(most), np.int64), []
    for group in np.random.RandomState(seed).permutation(len(members)):
        added = np.bincount(labels[members[group]], minlength=len(most))
        if (counts + added <= most).all() and counts.sum() + added.sum() <= held_count:
            counts += added
            held.append(members[group])
    return np.sort(np.concatenate(held)) if held else np.array([], np.int64)


def _list_members(groups: Rows) -> list[Rows]:
    """Return each group's rows."""
    order = np.argsort(groups, kind="stable")
    ends = np.flatnonzero(np.diff(groups[order])) + 1
    return np.split(order, ends)


def _group_copies(split: Split, config: DataConfig, progress: Progress) -> Rows:
    """Return [N]: images with equal pixels share a number; from the cache if the images are unchanged."""

    def find() -> dict[str, list[list[int]]]:
        members = _list_members(group_exact_copies([split], progress))
        return {"copies": [rows.tolist() for rows in members if len(rows) > 1]}

    def is_valid(values: dict[str, Any]) -> bool:
        rows = [row for group in values["copies"] for row in group]
        return all(type(row) is int and 0 <= row < len(split) for row in rows) and all(values["copies"])

    groups = np.arange(len(split))
    for rows in cached_json(Path(config.root), "copies", fingerprint(split), find, is_valid)["copies"]:
        groups[rows] = rows[0]
    return groups
