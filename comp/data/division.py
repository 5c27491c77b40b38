"""How labelled images are divided into training, validation and test: seeded, stratified, grouped, or in folds.

Only labels, groups and the seed decide, by generators that give the same numbers on every machine.
"""

import zipfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import KFold, StratifiedGroupKFold, StratifiedKFold, train_test_split

from comp import runs
from comp.config import DataConfig
from comp.data.cache import remembered
from comp.data.duplicates import exact_groups
from comp.data.sources.source import Source
from comp.data.splits import Split, fingerprint
from comp.errors import ConfigError, DataError, RunError
from comp.progress import Progress, quiet

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Parts:
    """A divided source; None for what there is not."""

    train: Split
    val: Split | None
    test: Split | None


def divide(
    source: Source, config: DataConfig, *, cut_test: bool, groups: Rows | None = None, progress: Progress = quiet
) -> Parts:
    """Divide a source as `data.validation`, `folds`, `stratify`, `groups` and `test` say.

    Args:
        source: opened.
        config: section `data`.
        cut_test: whether a labelled test is cut from the training images where the source has none.
        groups: [N] of `source.train`, images with the same number stay together (near duplicates, patients);
            None: as `data.groups` says.
        progress: called while pixels are hashed.

    Raises:
        DataError: too few images of some class, a part that would be empty, or no official validation split.
    """
    if groups is None and config.groups != "none":
        groups = source.groups if config.groups == "column" else _copies(source.train, config, progress)
    train, test, val = source.train, source.test, None
    if test is None and cut_test:
        stays, held = held_out(train, config.test, config.split_seed, stratify=config.stratify, groups=groups)
        groups = None if groups is None else groups[stays]
        train, test = train.take(stays, "train"), train.take(held, "test")
    if config.folds is not None:
        stays, held = fold(train, config.folds, config.fold, config.split_seed, stratify=config.stratify, groups=groups)
        train, val = train.take(stays, "train"), train.take(held, "val")
    elif config.validation == "official":
        if source.val is None:
            raise ConfigError(
                f"data.validation: official: {config.source} has no val split; give a fraction or a count"
            )
        val = source.val
    elif config.validation != "none":
        stays, held = held_out(train, config.validation, config.split_seed, stratify=config.stratify, groups=groups)
        train, val = train.take(stays, "train"), train.take(held, "val")
    return Parts(train, val, test)


def held_out(
    split: Split, size: float | int, seed: int, *, stratify: bool = True, groups: Rows | None = None
) -> tuple[Rows, Rows]:
    """Return the rows that stay and the rows that are held out, each in order.

    Args:
        split: labelled.
        size: of the held-out part: a fraction, or a count (with groups, at most that).
        seed: the same on every machine.
        stratify: whether both parts have the classes' shares of the whole.
        groups: [N], what must stay together.

    Raises:
        DataError: too few images of some class, or a size that leaves nothing.
    """
    labels, rows = _strata(split, stratify), np.arange(len(split))
    if groups is not None:
        held = _held_groups(labels, groups, size, seed)
        if not 0 < len(held) < len(split):
            raise DataError(
                f"{split.name}: cannot hold out {size} of {len(split)} images in {len(np.unique(groups))} groups that "
                "stay together: no choice of groups fits; hold out more, or set data.stratify=false"
            )
        return np.setdiff1d(rows, held), held
    try:
        stays, held = train_test_split(rows, test_size=size, random_state=seed, stratify=labels if stratify else None)
    except ValueError as error:
        raise DataError(
            f"{split.name}: cannot hold out {size} of {len(split)} images in {_classes(labels)}"
            f"{', stratified by label' if stratify else ''}: {error}"
        ) from None
    return np.sort(stays), np.sort(held)


def fold(
    split: Split, folds: int, number: int, seed: int, *, stratify: bool = True, groups: Rows | None = None
) -> tuple[Rows, Rows]:
    """Return the rows of all folds but one, and of that one, each in order.

    Args:
        split: labelled.
        folds: how many; every image is in exactly one.
        number: which is held out, from 0.
        seed: the same on every machine.
        stratify: whether every fold has the classes' shares of the whole.
        groups: [N], what must stay together.

    Raises:
        DataError: a class (or, with groups, the groups) too few for every fold to have one.
    """
    labels = _strata(split, stratify)
    counts = np.bincount(labels)
    fewest = len(np.unique(groups)) if groups is not None else int(counts[counts > 0].min())
    if fewest < folds:
        what = f"{fewest} groups" if groups is not None else _classes(labels)
        raise DataError(f"{split.name}: cannot cut {len(split)} images in {what} into {folds} folds; lower data.folds")
    cutter = StratifiedKFold if stratify else KFold
    if groups is not None:
        cutter = StratifiedGroupKFold
    try:
        cuts = list(cutter(folds, shuffle=True, random_state=seed).split(labels, labels, groups))
    except ValueError as error:
        raise DataError(f"{split.name}: cannot be cut into {folds} folds: {error}; lower data.folds") from None
    stays, held = cuts[number]
    return np.sort(stays), np.sort(held)


def _strata(split: Split, stratify: bool) -> Rows:
    """Return what is balanced between parts: labels, or one stratum for all."""
    assert split.labels is not None
    return split.labels if stratify else np.zeros_like(split.labels)


def _classes(labels: Rows) -> str:
    counts = np.bincount(labels)
    return f"{np.count_nonzero(counts)} classes (the smallest has {counts[counts > 0].min()})"


def _held_groups(labels: Rows, groups: Rows, size: float | int, seed: int) -> Rows:
    """Return held-out rows: whole groups in a drawn order, each taken if no class gets more than its share."""
    wanted = size if isinstance(size, int) else round(size * len(labels))
    shares = np.ceil(np.bincount(labels) / len(labels) * wanted)  # [C], the most of each class
    members = _members(groups)
    have, held = np.zeros(len(shares), np.int64), []
    for group in np.random.RandomState(seed).permutation(len(members)):
        more = np.bincount(labels[members[group]], minlength=len(shares))
        if (have + more <= shares).all() and have.sum() + more.sum() <= wanted:
            have += more
            held.append(members[group])
    return np.sort(np.concatenate(held)) if held else np.array([], np.int64)


def _members(groups: Rows) -> list[Rows]:
    """Return each group's rows."""
    order = np.argsort(groups, kind="stable")
    ends = np.flatnonzero(np.diff(groups[order])) + 1
    return np.split(order, ends)


def _copies(split: Split, config: DataConfig, progress: Progress) -> Rows:
    """Return [N]: images with equal pixels have the same number; from the cache where they were compared before."""

    def find() -> dict[str, list[list[int]]]:
        members = _members(exact_groups([split], progress))
        return {"copies": [rows.tolist() for rows in members if len(rows) > 1]}

    groups = np.arange(len(split))
    for rows in remembered(Path(config.root), "copies", fingerprint(split), find)["copies"]:
        groups[rows] = rows[0]
    return groups


def save(path: Path, train: Split, val: Split | None) -> None:
    """Write the ids of training and validation images, `train` and `val`, as a .npz.

    Raises:
        RunError: it cannot be written.
    """
    ids = {"train": train.ids, "val": train.ids[:0] if val is None else val.ids}
    runs.write_atomically(path, partial(_savez, ids=ids))


def _savez(file: BinaryIO, ids: dict[str, NDArray[np.str_]]) -> None:
    np.savez_compressed(file, **ids)  # type: ignore[arg-type]  # numpy's stub takes its own flag for a keyword array


def check(path: Path, train: Split, val: Split | None) -> None:
    """Refuse a division that is not the recorded one: validation images would have been trained on.

    Raises:
        RunError: the record is missing or damaged, or another image stands in training or validation now.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            recorded = {name: archive[name] for name in ("train", "val")}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise RunError(f"{path}: missing or damaged ({error}); start again: comp run CONFIG") from None
    for name, split in (("train", train), ("val", val)):
        ids = train.ids[:0] if split is None else split.ids
        if not np.array_equal(recorded[name], ids):
            raise RunError(
                f"{path}: the {name} split is another now ({len(recorded[name]):,} images then, {len(ids):,} now); "
                "give the run its own data and package versions back, or start a new one"
            )
