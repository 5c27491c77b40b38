"""How labelled images are divided into training, validation and test: seeded, stratified, grouped, or in folds.

And how a sample of a split is drawn, for whatever is measured on fewer images than it has: `sample`.

Only labels, groups and the seed decide, by generators that give the same numbers on every machine.
"""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from comp.config import DataConfig
from comp.config.tasks import TASKS
from comp.data.cache import cached_json
from comp.data.duplicates import exact_groups
from comp.data.sources.source import Source
from comp.data.splits import Split, fingerprint
from comp.results import files
from comp.results.predictions import Targets
from comp.runtime.errors import ConfigError, DataError, RunError
from comp.runtime.progress import Progress, quiet

Rows = NDArray[np.int64]

_SHOWN = 5  # rare classes in a note
_SAMPLE_SEED = 0  # runs that share a split share its samples, whatever their own seeds
_ROWS = "rows_"  # begins the names of samples in split.npz


@dataclass(frozen=True)
class Splits:
    """A divided source; None for a split that it does not have.

    Attributes:
        train: labelled.
        val: held out of the training images.
        test: the source's own, or held out too.
        notes: classes too rare to be in every part.
    """

    train: Split
    val: Split | None
    test: Split | None
    notes: tuple[str, ...] = ()


def divide(
    source: Source, config: DataConfig, *, cut_test: bool, groups: Rows | None = None, progress: Progress = quiet
) -> Splits:
    """Divide a source as `data.validation`, `folds`, `stratify`, `groups` and `test` say.

    Args:
        source: opened.
        config: section `data`.
        cut_test: whether a labelled test is cut from the training images where the source has none.
        groups: [N] of `source.train`, images with the same number stay together (near duplicates, patients);
            None: as `data.groups` says.
        progress: called while pixels are hashed.

    Raises:
        DataError: a part that would be empty, or no official validation split.
    """
    if groups is None and config.groups != "none":
        groups = source.groups if config.groups == "column" else _copies(source.train, config, progress)
    stratifier = STRATIFIERS[TASKS[source.task].stratifier if config.stratify else "none"]
    train, test, val, notes = source.train, source.test, None, []
    if test is None and cut_test:
        stays, held = holdout_indices(train, config.test, config.split_seed, stratifier=stratifier, groups=groups)
        groups = None if groups is None else groups[stays]
        notes += _rare(train, source.classes, 2, "test") if config.stratify else []
        train, test = train.take(stays, "train"), train.take(held, "test")
    if config.folds is not None:
        stays, held = fold(train, config.folds, config.fold, config.split_seed, stratifier=stratifier, groups=groups)
        notes += _rare(train, source.classes, config.folds, "every fold") if config.stratify else []
        train, val = train.take(stays, "train"), train.take(held, "val")
    elif config.validation == "official":
        if source.val is None:
            raise ConfigError(
                f"data.validation: official: {config.source} has no val split; give a fraction or a count"
            )
        val = source.val
    elif config.validation != "none":
        stays, held = holdout_indices(train, config.validation, config.split_seed, stratifier=stratifier, groups=groups)
        notes += _rare(train, source.classes, 2, "validation") if config.stratify else []
        train, val = train.take(stays, "train"), train.take(held, "val")
    return Splits(train, val, test, tuple(notes))


def _rare(split: Split, classes: Sequence[str], fewest: int, where: str) -> list[str]:
    """Return a note that names the classes with too few images to be in every part."""
    counts = split.class_counts(len(classes))
    rare = [f"{classes[int(row)]!r} ({counts[row]})" for row in np.flatnonzero((counts > 0) & (counts < fewest))]
    if not rare:
        return []
    shown = ", ".join(rare[:_SHOWN]) + (", ..." if len(rare) > _SHOWN else "")
    return [f"split: classes with too few images to be in training and {where}: {shown}"]


def holdout_indices(
    split: Split, size: float | int, seed: int, *, stratifier: "Stratifier | None" = None, groups: Rows | None = None
) -> tuple[Rows, Rows]:
    """Return the rows that stay and the rows that are held out, each in order.

    Args:
        split: labelled.
        size: of the held-out part: a fraction, or a count (with groups, at most that).
        seed: the same on every machine.
        stratifier: what is balanced between the parts; None: the classes.
        groups: [N], what must stay together.

    Raises:
        DataError: a size that leaves nothing.
    """
    count = len(split)
    wanted = size if isinstance(size, int) else math.ceil(size * count)
    if not 0 < wanted < count:
        raise DataError(f"{split.name}: cannot hold out {size} of {count} images; change data.validation or data.test")
    assert split.labels is not None
    held = (stratifier or STRATIFIERS["classes"]).hold(split.labels, size, seed, groups)
    if not 0 < len(held) < count:
        units = 0 if groups is None else len(np.unique(groups))
        raise DataError(
            f"{split.name}: cannot hold out {size} of {count} images in {units} groups that stay "
            "together: no choice of groups fits; hold out more, or set data.stratify=false"
        )
    return np.setdiff1d(np.arange(count), held), held


def fold(
    split: Split, folds: int, number: int, seed: int, *, stratifier: "Stratifier | None" = None,
    groups: Rows | None = None,
) -> tuple[Rows, Rows]:  # fmt: skip
    """Return the rows of all folds but one, and of that one, each in order.

    Args:
        split: labelled.
        folds: how many; every image is in exactly one.
        number: which is held out, from 0.
        seed: the same on every machine.
        stratifier: what is balanced between the folds, as near as rare classes allow; None: the classes.
        groups: [N], what must stay together.

    Raises:
        DataError: fewer images, or groups, than folds.
    """
    units = len(split) if groups is None else len(np.unique(groups))
    if units < folds:
        what = "images" if groups is None else "groups"
        raise DataError(f"{split.name}: cannot cut {units} {what} into {folds} folds; lower data.folds")
    assert split.labels is not None
    held = (stratifier or STRATIFIERS["classes"]).fold(split.labels, folds, number, seed, groups)
    if not len(held):
        raise DataError(f"{split.name}: fold {number} of {folds} would be empty; lower data.folds")
    return np.setdiff1d(np.arange(len(split)), held), held


def sample(split: Split, count: int, *, task: str, seed: int = _SAMPLE_SEED) -> Rows:
    """Return the rows of a sample that has the split's shares of classes, in order; all rows where it is no larger.

    Args:
        split: labelled or, drawn plainly, not.
        count: images wanted, from 0.
        task: a row of `comp.config.tasks.TASKS`. With one class an image, each has its share as near as whole images
            allow, and at least one image where there is room; of label sets, see `STRATIFIERS`.
        seed: the same on every machine.
    """
    if count >= len(split):
        return np.arange(len(split))
    if count <= 0:
        return np.array([], np.int64)
    if split.labels is None:
        return _sample_plainly(np.zeros(len(split), np.int64), count, seed)
    return STRATIFIERS[TASKS[task].stratifier].sample(split.labels, count, seed)


def _hold_by_class(labels: Targets, size: float | int, seed: int, groups: Rows | None) -> Rows:
    classes = labels.astype(np.int64)
    if groups is not None:
        return _held_groups(classes, groups, size, seed)
    members, wanted = _members(classes), size if isinstance(size, int) else math.ceil(size * len(classes))
    if min(map(len, members)) < 2 or len(members) > min(wanted, len(classes) - wanted):
        return _hold_nearly_by_class(classes, size, seed)
    draw = np.random.RandomState(seed)
    counts = np.array([len(rows) for rows in members])
    stay = _likeliest_counts(counts, len(classes) - wanted, draw)
    leave = _likeliest_counts(counts - stay, wanted, draw)
    orders = [draw.permutation(rows) for rows in members]
    held = [rows[kept : kept + taken] for rows, kept, taken in zip(orders, stay, leave, strict=True)]
    return np.sort(np.concatenate(held))


def _likeliest_counts(counts: Rows, drawn: int, draw: np.random.RandomState) -> Rows:
    """Return how many of each class most likely are among `drawn` images; ties are drawn.

    With what `_hold_by_class` does, these are the numbers that scikit-learn's `train_test_split` draws, which runs were
    divided by before: importing it takes half as long as torch (docs/LOG.md).
    """
    shares = counts / counts.sum() * drawn
    found = np.floor(shares)
    for remainder in np.unique(shares - found)[::-1]:
        if lacking := int(drawn - found.sum()):
            tied = np.flatnonzero(shares - np.floor(shares) == remainder)
            found[draw.choice(tied, min(len(tied), lacking), replace=False)] += 1
    likeliest: Rows = found.astype(np.int64)
    return likeliest


def _hold_nearly_by_class(classes: Rows, size: float | int, seed: int) -> Rows:
    """Return held-out rows: each class's share rounded down, and the rest from those that it cuts most off.

    A class of one image keeps it for training.
    """
    wanted = size if isinstance(size, int) else math.ceil(size * len(classes))
    draw = np.random.RandomState(seed)
    members = [draw.permutation(rows) for rows in _members(classes)]
    shares = np.array([len(rows) * wanted / len(classes) for rows in members])
    counts = np.floor(shares).astype(np.int64)
    spare = np.array([len(rows) > max(count, 1) for rows, count in zip(members, counts, strict=True)])
    order = np.lexsort((draw.permutation(len(members)), counts - shares))
    for number in [row for row in order if spare[row]][: wanted - int(counts.sum())]:
        counts[number] += 1
    held = np.concatenate([rows[:count] for rows, count in zip(members, counts, strict=True)])
    return np.sort(held) if len(held) else np.sort(draw.permutation(len(classes))[:wanted])


def _sample_by_class(labels: Targets, count: int, seed: int) -> Rows:
    """Return the rows of a sample: each class's share rounded, by largest remainder, and one image of each at least."""
    draw = np.random.RandomState(seed)
    members = [draw.permutation(rows) for rows in _members(labels.astype(np.int64))]
    sizes = np.array([len(rows) for rows in members])
    shares = sizes * (count / len(labels))
    counts = np.maximum(np.floor(shares).astype(np.int64), int(count >= len(members)))
    ties = draw.permutation(len(members))
    while counts.sum() < count:
        lacking = np.where(counts < sizes, shares - counts, -np.inf)
        counts[np.lexsort((ties, -lacking))[0]] += 1
    while counts.sum() > count:  # rare classes took what common ones are now short of
        over = np.where(counts > 1, counts - shares, -np.inf)
        counts[np.lexsort((ties, -over))[0]] -= 1
    return np.sort(np.concatenate([rows[:taken] for rows, taken in zip(members, counts, strict=True)]))


def _sample_plainly(labels: Targets, count: int, seed: int) -> Rows:
    return np.sort(np.random.RandomState(seed).permutation(len(labels))[:count])


def _hold_plainly(labels: Targets, size: float | int, seed: int, groups: Rows | None) -> Rows:
    one_class = np.zeros(len(labels), np.int64)
    if groups is not None:
        return _held_groups(one_class, groups, size, seed)
    wanted = size if isinstance(size, int) else math.ceil(size * len(labels))
    return _sample_plainly(labels, wanted, seed)


def _fold_by_class(labels: Targets, folds: int, number: int, seed: int, groups: Rows | None) -> Rows:
    from sklearn.model_selection import KFold, StratifiedGroupKFold, StratifiedKFold

    classes = labels.astype(np.int64)
    cutter = StratifiedKFold if groups is None else StratifiedGroupKFold
    if groups is None and np.bincount(classes).max() < folds:  # no class can be in every fold
        cutter = KFold
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of a class with fewer images than folds: noted by `divide`
        cuts = list(cutter(folds, shuffle=True, random_state=seed).split(classes, classes, groups))
    return np.sort(cuts[number][1])


def _fold_plainly(labels: Targets, folds: int, number: int, seed: int, groups: Rows | None) -> Rows:
    from sklearn.model_selection import KFold, StratifiedGroupKFold

    one_class = np.zeros(len(labels), np.int64)
    cutter = KFold if groups is None else StratifiedGroupKFold
    cuts = list(cutter(folds, shuffle=True, random_state=seed).split(one_class, one_class, groups))
    return np.sort(cuts[number][1])


def _hold_by_label_set(labels: Targets, size: float | int, seed: int, groups: Rows | None) -> Rows:
    share = size / len(labels) if isinstance(size, int) else size
    return np.flatnonzero(_parts_of_label_sets(labels, np.array([1 - share, share]), seed, groups) == 1)


def _fold_by_label_set(labels: Targets, folds: int, number: int, seed: int, groups: Rows | None) -> Rows:
    return np.flatnonzero(_parts_of_label_sets(labels, np.full(folds, 1 / folds), seed, groups) == number)


def _sample_by_label_set(labels: Targets, count: int, seed: int) -> Rows:
    held = _hold_by_label_set(labels, count, seed, None)
    draw = np.random.RandomState(seed)  # the stratifier balances classes and may miss the count by a few images
    others = np.setdiff1d(np.arange(len(labels)), held)
    kept = draw.permutation(held)[:count]
    return np.sort(np.concatenate([kept, draw.permutation(others)[: count - len(kept)]]))


def _parts_of_label_sets(
    labels: Targets, shares: NDArray[np.float64], seed: int, groups: Rows | None
) -> NDArray[np.int64]:
    """Return which part each row [N] goes to, so that every class has its share of images in every part.

    Iterative stratification (Sechidis et al. 2011, "On the stratification of multi-label data", algorithm 1): the
    rarest class is dealt out first, each image to the part that lacks that class most. Groups are dealt as wholes.

    Args:
        labels: [N, K] of 0 and 1.
        shares: [P] of the parts, summing to 1.
        seed: of ties.
        groups: [N], what must stay together; None: every image by itself.
    """
    members = _members(groups) if groups is not None else [np.array([row]) for row in range(len(labels))]
    counts = np.stack([labels[rows].sum(0) for rows in members])  # [U, K]
    sizes = np.array([len(rows) for rows in members], np.float64)
    lacking, room = shares[:, None] * counts.sum(0), shares * sizes.sum()  # [P, K], [P]
    noise = np.random.RandomState(seed).permutation(len(members) * len(shares)).reshape(len(members), -1)
    part_of, left = np.full(len(members), -1), counts.sum(0)
    while (part_of < 0).any():
        rest = np.flatnonzero(part_of < 0)
        present = np.flatnonzero(left > 0)
        rarest = int(present[np.argmin(left[present])]) if len(present) else -1
        dealt = rest[counts[rest, rarest] > 0] if rarest >= 0 else rest
        if rarest >= 0 and not len(dealt):  # all of its images were dealt out for a rarer class
            left[rarest] = 0
            continue
        for unit in dealt[np.argsort(noise[dealt, 0])]:
            wish = lacking[:, rarest] if rarest >= 0 else room
            part = int(np.lexsort((noise[unit], -room, -wish))[0])
            part_of[unit] = part
            lacking[part] -= counts[unit]
            room[part] -= sizes[unit]
            left = left - counts[unit]
    parts = np.empty(len(labels), np.int64)
    for unit, rows in enumerate(members):
        parts[rows] = part_of[unit]
    return parts


@dataclass(frozen=True)
class Stratifier:
    """How parts are balanced.

    Attributes:
        hold: (labels, size, seed, groups) -> held-out rows.
        fold: (labels, folds, number, seed, groups) -> rows of one fold.
        sample: (labels, count, seed) -> rows, fewer than there are.
    """

    hold: Callable[[Targets, float | int, int, Rows | None], Rows]
    fold: Callable[[Targets, int, int, int, Rows | None], Rows]
    sample: Callable[[Targets, int, int], Rows]


STRATIFIERS = {
    "classes": Stratifier(_hold_by_class, _fold_by_class, _sample_by_class),
    "label_sets": Stratifier(_hold_by_label_set, _fold_by_label_set, _sample_by_label_set),
    "none": Stratifier(_hold_plainly, _fold_plainly, _sample_plainly),
}


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
    for rows in cached_json(Path(config.root), "copies", fingerprint(split), find)["copies"]:
        groups[rows] = rows[0]
    return groups


def save(path: Path, train: Split, val: Split | None, samples: Mapping[str, Rows] = MappingProxyType({})) -> None:
    """Write the ids of training and validation images, `train` and `val`, and the rows of samples, as a .npz.

    Args:
        path: of the .npz.
        train: of the run.
        val: likewise.
        samples: by name; see `Dataset.samples`. They are written as `rows_NAME`.

    Raises:
        RunError: it cannot be written.
    """
    ids = {"train": train.ids, "val": train.ids[:0] if val is None else val.ids}
    files.write_arrays(path, {**ids, **{_ROWS + name: rows for name, rows in samples.items()}})


def read(path: Path, cure: str) -> dict[str, NDArray[Any]]:
    """Return what a run's split.npz holds: ids by their split, of which an ensemble's has some, and samples' rows.

    Args:
        path: of the file.
        cure: ends the message.

    Raises:
        RunError: missing or damaged.
    """
    try:
        with files.open_arrays(path) as archive:
            found = {name: archive[name] for name in archive.files}
        for name, array in found.items():
            rows = name.startswith(_ROWS)
            if array.ndim != 1 or array.dtype.kind != ("i" if rows else "U") or (rows and array.min(initial=0) < 0):
                raise ValueError("it holds other arrays than lists of ids and rows")
    except files.READ_ERRORS as error:
        raise RunError(f"{path}: missing or damaged ({files.error_text(error)}); {cure}") from None
    return found


def check_saved_split(path: Path, train: Split, val: Split | None) -> None:
    """Refuse a division that is not the recorded one: validation images would have been trained on.

    Raises:
        RunError: the record is missing or damaged, or another image stands in training or validation now.
    """
    cure = f"train again: comp run {path.with_name('config.yaml')}"
    recorded = read(path, cure)
    if lacking := {"train", "val"} - recorded.keys():
        raise RunError(f"{path}: damaged (it lacks {', '.join(sorted(lacking))}); {cure}")
    for name, split in (("train", train), ("val", val)):
        ids = train.ids[:0] if split is None else split.ids
        if not np.array_equal(recorded[name], ids):
            raise RunError(
                f"{path}: the {name} split is another now ({len(recorded[name]):,} images then, {len(ids):,} now); "
                "give the run its own data and package versions back, or start a new one"
            )


def samples(path: Path) -> dict[str, Rows]:
    """Return the recorded rows of a run's samples by name; none of a run of before they were drawn.

    Raises:
        RunError: the record is missing or damaged.
    """
    recorded = read(path, f"train again: comp run {path.with_name('config.yaml')}")
    return {name.removeprefix(_ROWS): rows for name, rows in recorded.items() if name.startswith(_ROWS)}
