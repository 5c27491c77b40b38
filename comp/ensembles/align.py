"""Members of an ensemble: predictions of the same images, row by row, and those of k folds joined into one member."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from comp.ensembles.methods import SPACES, Space, Stack
from comp.results import predictions
from comp.results.predictions import Predictions, Targets
from comp.runtime.errors import RunError

_CHUNK_ROWS = 20_000  # a suite's members are never float32 all at once


@dataclass(frozen=True)
class AlignedSplit:
    """One split as all members see it.

    Attributes:
        names: of the members.
        members: their predictions, alike row by row.
        images: [N] which image a row shows: the same one may stand in several blocks.
    """

    names: tuple[str, ...]
    members: tuple[Predictions, ...]
    images: NDArray[np.str_]

    @property
    def space(self) -> Space:
        """What the members are combined in."""
        return SPACES[self.members[0].row.activation]

    @property
    def targets(self) -> Targets | None:
        """[N] or [N, C]; None where no member has them."""
        return next((member.targets for member in self.members if member.targets is not None), None)

    def stack(self, rows: slice | NDArray[np.int64] = slice(None)) -> Stack:
        """Return some rows' values [M, N, C] in the ensemble space."""
        return np.stack([self.space.values(member.outputs[rows]) for member in self.members])


def chunks(rows: int) -> list[slice]:
    """Return consecutive slices of all rows."""
    return [slice(start, min(start + _CHUNK_ROWS, rows)) for start in range(0, rows, _CHUNK_ROWS)]


def align_members(
    split: str, names: Sequence[str], members: Sequence[Predictions], images: Sequence[NDArray[np.str_]]
) -> AlignedSplit:
    """Return members that show the same images, their classes in the first one's order.

    Args:
        split: `val`, `suite` ..., for messages.
        names: of the members.
        members: one's predictions each.
        images: likewise, which image each row shows.

    Raises:
        RunError: one has other ids, classes, targets, blocks or images than the first, or another order of ids.
    """
    first, shown = members[0], images[0]
    ordered = [first]
    for name, member, member_images in zip(names[1:], members[1:], images[1:], strict=True):
        where = f"{name}: its predictions of {split}"
        aligned = reorder_classes(member, first.classes, f"{where} have other classes than {names[0]}")
        _check_ids(where, names[0], first.ids, aligned.ids)
        if first.blocks() != aligned.blocks():
            raise RunError(f"{where} have other blocks than those of {names[0]}; predict the same suite")
        _check_targets(where, names[0], first, aligned)
        if not np.array_equal(shown, member_images):
            raise RunError(
                f"{where} show other images than those of {names[0]}: their validation splits differ; give the runs "
                "one data.split_seed and one division, or all folds of it"
            )
        ordered.append(aligned)
    return AlignedSplit(tuple(names), tuple(ordered), shown)


def show_same_images(members: Sequence[Predictions], images: Sequence[NDArray[np.str_]]) -> bool:
    """Return whether all members show the same images in the same rows and blocks."""
    first, shown = members[0], images[0]
    return all(
        np.array_equal(first.ids, member.ids)
        and first.blocks() == member.blocks()
        and np.array_equal(shown, member_images)
        for member, member_images in zip(members[1:], images[1:], strict=True)
    )


def reorder_classes(predicted: Predictions, classes: tuple[str, ...], problem: str) -> Predictions:
    """Return predictions whose columns, targets and decisions follow another order of the same classes.

    Args:
        predicted: predictions.
        classes: its classes in the new order.
        problem: begins the message where they are not the same classes.

    Raises:
        RunError: other classes.
    """
    if predicted.classes == classes:
        return predicted
    if sorted(predicted.classes) != sorted(classes):
        raise RunError(f"{problem}: {_first_few(predicted.classes)}; expected {_first_few(classes)}")
    column_of = {name: column for column, name in enumerate(predicted.classes)}
    columns = np.array([column_of[name] for name in classes])
    index_of = np.argsort(columns)  # old index -> new index
    targets, top1, thresholds = predicted.targets, predicted.top1, predicted.thresholds
    if targets is not None:
        targets = targets[:, columns] if targets.ndim == 2 else index_of[targets.astype(np.int64)]
    return replace(
        predicted,
        classes=classes,
        outputs=predicted.outputs[:, columns],
        targets=targets,
        top1=None if top1 is None else index_of[top1],
        thresholds=None if thresholds is None else thresholds[..., columns],
    )


def _first_few(classes: tuple[str, ...]) -> str:
    return f"{len(classes)} classes, {', '.join(classes[:5])}{' ...' if len(classes) > 5 else ''}"


def _check_targets(where: str, first_name: str, first: Predictions, member: Predictions) -> None:
    if first.targets is None or member.targets is None or np.array_equal(first.targets, member.targets):
        return
    row = int(np.flatnonzero((first.truth() != member.truth()).any(1))[0])
    classes = [", ".join(np.array(part.classes)[part.truth()[row]].tolist()) or "no class" for part in (member, first)]
    raise RunError(
        f"{where} have other labels than those of {first_name}, first {member.ids[row]}: label {classes[0]} instead "
        f"of {classes[1]}; they show other images"
    )


def _check_ids(where: str, first_name: str, expected: NDArray[np.str_], ids: NDArray[np.str_]) -> None:
    if np.array_equal(expected, ids):
        return
    if len(expected) != len(ids):
        raise RunError(f"{where} have {len(ids):,} rows, expected {len(expected):,} as those of {first_name}")
    row = int(np.flatnonzero(expected != ids)[0])
    difference = "in another order" if np.array_equal(np.sort(expected), np.sort(ids)) else "which are others"
    raise RunError(
        f"{where} differ from {first_name} in their ids, {difference}: row {row + 1} is {ids[row]}, expected "
        f"{expected[row]}; predict both with the same data and division"
    )


def join_folds(
    parts: Sequence[Predictions], images: Sequence[NDArray[np.str_]]
) -> tuple[Predictions, NDArray[np.str_]]:
    """Return the validation predictions of k folds as one: every image by the network that has not seen it.

    Without blocks the folds follow each other; with them each block holds its rows of every fold in turn, whose ids
    then end in `@` and the fold.

    Args:
        parts: of fold 0, 1 ...
        images: likewise, which image each row shows.

    Raises:
        RunError: the folds have other classes or blocks, or an image stands in two of them.
    """
    names = [f"fold {number}" for number in range(len(parts))]
    problem = "the folds have different classes"
    parts = [reorder_classes(part, parts[0].classes, problem) for part in parts]
    for name, part in zip(names[1:], parts[1:], strict=True):
        if not np.array_equal(part.block_names, parts[0].block_names):
            raise RunError(f"{name}: its shifted validation has other blocks than that of fold 0")
    if not len(parts[0].block_names):
        joined = predictions.concatenate([expand_thresholds(part) for part in parts])
        if len(np.unique(joined.ids)) < len(joined):
            raise RunError("folds: an image stands in two of them; they are not of one division")
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
    """Return some rows without blocks, their ids ending in `@` and the fold."""
    taken = expand_thresholds(part.take(rows))
    return replace(taken, ids=np.strings.add(taken.ids, f"@{fold}"))


def expand_thresholds(part: Predictions) -> Predictions:
    """Return predictions whose thresholds are written out for each row, so that they can follow others."""
    if part.row.decision != "thresholds":
        return part
    thresholds = np.float32(0.5) if part.thresholds is None else part.thresholds
    return replace(part, thresholds=np.broadcast_to(thresholds, part.outputs.shape))
