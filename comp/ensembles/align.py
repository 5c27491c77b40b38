"""Align the members of an ensemble: the same images row by row; the predictions of k folds joined into one member."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from comp.ensembles.spaces import SPACES, Space, Stack
from comp.results import predictions
from comp.results.predictions import Predictions, Targets
from comp.runtime.errors import RunError

_CHUNK_ROWS = 20_000  # limits memory: a suite's members are never all float32 at once


@dataclass(frozen=True)
class AlignedSplit:
    """The members' predictions of one split.

    Attributes:
        names: of the members.
        members: their predictions, of the same images row by row.
        images: [N] which image each row shows; one image may occur in several blocks.
    """

    names: tuple[str, ...]
    members: tuple[Predictions, ...]
    images: NDArray[np.str_]

    @property
    def space(self) -> Space:
        """The space the members are combined in."""
        return SPACES[self.members[0].row.activation]

    @property
    def targets(self) -> Targets | None:
        """[N] or [N, C]; None if no member has them."""
        return next((member.targets for member in self.members if member.targets is not None), None)

    def stack(self, rows: slice | NDArray[np.int64] = slice(None)) -> Stack:
        """Return the members' values [M, N, C] of the given rows in the ensemble space."""
        return np.stack([self.space.values(member.outputs[rows]) for member in self.members])


def chunks(rows: int) -> list[slice]:
    """Return consecutive slices of all rows."""
    return [slice(start, min(start + _CHUNK_ROWS, rows)) for start in range(0, rows, _CHUNK_ROWS)]


def align_members(
    split: str, names: Sequence[str], members: Sequence[Predictions], images: Sequence[NDArray[np.str_]]
) -> AlignedSplit:
    """Return the members aligned, with the first one's order of classes.

    Args:
        split: `val`, `suite` ..., for error messages.
        names: of the members.
        members: their predictions.
        images: for each member, which image each row shows.

    Raises:
        RunError: ids, classes, targets, blocks or images differ from the first member's, or the ids' order does.
    """
    first, first_images = members[0], images[0]
    ordered = [first]
    for name, member, member_images in zip(names[1:], members[1:], images[1:], strict=True):
        where = f"{name}: its predictions of {split}"
        aligned = reorder_classes(member, first.classes, f"{where} have other classes than {names[0]}")
        _check_ids(where, names[0], first.ids, aligned.ids)
        if first.blocks() != aligned.blocks():
            raise RunError(f"{where} have other blocks than {names[0]}; predict the same suite")
        _check_targets(where, names[0], first, aligned)
        if not np.array_equal(first_images, member_images):
            raise RunError(
                f"{where} show other images than {names[0]}: their validation splits differ; give the runs the same "
                "data.split_seed and split settings, or all folds"
            )
        ordered.append(aligned)
    return AlignedSplit(tuple(names), tuple(ordered), first_images)


def show_same_images(members: Sequence[Predictions], images: Sequence[NDArray[np.str_]]) -> bool:
    """Return whether all members have the same images in the same rows and blocks."""
    first, first_images = members[0], images[0]
    return all(
        np.array_equal(first.ids, member.ids)
        and first.blocks() == member.blocks()
        and np.array_equal(first_images, member_images)
        for member, member_images in zip(members[1:], images[1:], strict=True)
    )


def reorder_classes(original: Predictions, classes: tuple[str, ...], problem: str) -> Predictions:
    """Return predictions with the same classes in another order; `problem` begins the error message.

    Raises:
        RunError: the classes differ.
    """
    if original.classes == classes:
        return original
    if sorted(original.classes) != sorted(classes):
        raise RunError(f"{problem}: {_first_few(original.classes)}; expected {_first_few(classes)}")
    column_of = {name: column for column, name in enumerate(original.classes)}
    columns = np.array([column_of[name] for name in classes])
    index_of = np.argsort(columns)  # old index -> new index
    targets, top1, thresholds = original.targets, original.top1, original.thresholds
    if targets is not None:
        targets = targets[:, columns] if targets.ndim == 2 else index_of[targets.astype(np.int64)]
    return replace(
        original,
        classes=classes,
        outputs=original.outputs[:, columns],
        targets=targets,
        top1=None if top1 is None else index_of[top1],
        thresholds=None if thresholds is None else thresholds[..., columns],
    )


def _first_few(classes: tuple[str, ...]) -> str:
    return f"{len(classes)} classes, {', '.join(classes[:5])}{' ...' if len(classes) > 5 else ''}"


def _check_targets(where: str, first_name: str, first: Predictions, member: Predictions) -> None:
    if first.targets is None or member.targets is None or np.array_equal(first.targets, member.targets):
        return
    if first.row.numeric:
        raise RunError(f"{where} have other labels than {first_name}; the images or the labels differ")
    row = int(np.flatnonzero((first.truth() != member.truth()).any(1))[0])
    classes = [", ".join(np.array(part.classes)[part.truth()[row]].tolist()) or "no class" for part in (member, first)]
    raise RunError(
        f"{where} have other labels than {first_name}, first {member.ids[row]}: found {classes[0]}, expected "
        f"{classes[1]}; the images differ"
    )


def _check_ids(where: str, first_name: str, expected: NDArray[np.str_], ids: NDArray[np.str_]) -> None:
    if np.array_equal(expected, ids):
        return
    if len(expected) != len(ids):
        raise RunError(f"{where} have {len(ids):,} rows, expected {len(expected):,} as {first_name} has")
    row = int(np.flatnonzero(expected != ids)[0])
    difference = "the ids' order differs" if np.array_equal(np.sort(expected), np.sort(ids)) else "the ids differ"
    raise RunError(
        f"{where}: {difference} from {first_name}: row {row + 1} is {ids[row]}, expected {expected[row]}; predict both "
        "with the same data and split settings"
    )


def join_folds(
    parts: Sequence[Predictions], images: Sequence[NDArray[np.str_]]
) -> tuple[Predictions, NDArray[np.str_]]:
    """Join the validation predictions of k folds: each image is predicted by the network that was not trained on it.

    Without blocks the folds follow each other. With blocks each block holds the rows of fold 0, 1 ..., and `@` and the
    fold are appended to the ids.

    Args:
        parts: of fold 0, 1 ...
        images: for each fold, which image each row shows.

    Raises:
        RunError: classes or blocks differ, or an image occurs in two folds.
    """
    names = [f"fold {number}" for number in range(len(parts))]
    problem = "the folds have different classes"
    parts = [reorder_classes(part, parts[0].classes, problem) for part in parts]
    for name, part in zip(names[1:], parts[1:], strict=True):
        if not np.array_equal(part.block_names, parts[0].block_names):
            raise RunError(f"{name}: its shifted validation has other blocks than fold 0")
    if not len(parts[0].block_names):
        joined = predictions.concatenate([expand_thresholds(part) for part in parts])
        if len(np.unique(joined.ids)) < len(joined):
            raise RunError("an image occurs in two folds; use folds of the same split (data.split_seed, data.folds)")
        return joined, np.concatenate(list(images))
    spans = [[rows for _, rows in part.blocks()] for part in parts]
    rows_of = [(fold, block) for block in range(len(parts[0].block_names)) for fold in range(len(parts))]
    pieces = [_fold_rows(parts[fold], spans[fold][block], fold) for fold, block in rows_of]
    whole = replace(
        predictions.concatenate(pieces),
        block_names=parts[0].block_names,
        block_sizes=np.sum([part.block_sizes for part in parts], axis=0),
    )
    return whole, np.concatenate([images[fold][spans[fold][block]] for fold, block in rows_of])


def _fold_rows(part: Predictions, rows: slice, fold: int) -> Predictions:
    """Return some rows without blocks, with `@` and the fold appended to their ids."""
    selected = expand_thresholds(part.take(rows))
    return replace(selected, ids=np.strings.add(selected.ids, f"@{fold}"))


def expand_thresholds(part: Predictions) -> Predictions:
    """Return predictions with thresholds for each row, so that they can be concatenated."""
    if part.row.decision != "thresholds":  # those of numbers are joined as they are
        return part
    return replace(part, thresholds=predictions.threshold_rows(part, len(part.classes)))
