"""Members of an ensemble: predictions of the same images, row by row, and those of k folds joined into one member."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from comp import predictions
from comp.errors import RunError
from comp.predictions import Predictions

Stack = NDArray[np.float32]  # [M, N, C] log-probabilities of M members

_LEAST = -20.0  # of a log-probability: no member's certainty alone can exclude a class
_CHUNK_ROWS = 20_000  # a suite's members are never float32 all at once


@dataclass(frozen=True)
class Sample:
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
    def labels(self) -> NDArray[np.int64] | None:
        """[N], None where unknown."""
        return self.members[0].labels

    def stack(self, rows: slice | NDArray[np.int64] | NDArray[np.bool_] = slice(None)) -> Stack:
        """Return some rows' log-probabilities [M, N, C]."""
        return np.stack([log_shares(member.logits[rows]) for member in self.members])


def log_shares(logits: NDArray[np.float16]) -> NDArray[np.float32]:
    """Return log-probabilities [N, C] of logits whose rows' maxima are 0, none below -20."""
    values = logits.astype(np.float32)
    values -= np.log(np.exp(values).sum(1, keepdims=True))
    return np.maximum(values, _LEAST)


def chunks(rows: int) -> list[slice]:
    """Return consecutive slices of all rows."""
    return [slice(start, min(start + _CHUNK_ROWS, rows)) for start in range(0, rows, _CHUNK_ROWS)]


def sample(
    what: str, names: Sequence[str], members: Sequence[Predictions], images: Sequence[NDArray[np.str_]]
) -> Sample:
    """Return members that are alike.

    Args:
        what: `val`, `suite` ..., for messages.
        names: of the members.
        members: one's predictions each.
        images: likewise, which image each row shows.

    Raises:
        RunError: one has other ids, classes, labels, blocks or images than the first, or another order of them.
    """
    first, shown = members[0], images[0]
    for name, other, theirs in zip(names[1:], members[1:], images[1:], strict=True):
        where = f"{name}: its predictions of {what}"
        _demand_classes(where, names[0], first, other)
        _demand_ids(where, names[0], first.ids, other.ids)
        if first.blocks() != other.blocks():
            raise RunError(f"{where} are cut into other blocks than those of {names[0]}; predict the same suite")
        if first.labels is not None and other.labels is not None and not np.array_equal(first.labels, other.labels):
            row = int(np.flatnonzero(first.labels != other.labels)[0])
            raise RunError(
                f"{where} have other labels than those of {names[0]}, first {other.ids[row]}: label "
                f"{other.labels[row]} instead of {first.labels[row]}; they show other images"
            )
        if not np.array_equal(shown, theirs):
            raise RunError(
                f"{where} show other images than those of {names[0]}: their validation splits differ; give the runs "
                "one data.split_seed and one division, or all folds of it"
            )
    return Sample(tuple(names), tuple(members), shown)


def _demand_classes(where: str, first_name: str, first: Predictions, other: Predictions) -> None:
    if first.classes == other.classes:
        return
    if sorted(first.classes) == sorted(other.classes):
        raise RunError(f"{where} have the classes of {first_name} in another order; predict both from the same data")
    raise RunError(
        f"{where} have {len(other.classes)} classes, expected the {len(first.classes)} of {first_name}: "
        f"{', '.join(first.classes[:5])} ..."
    )


def _demand_ids(where: str, first_name: str, expected: NDArray[np.str_], found: NDArray[np.str_]) -> None:
    if np.array_equal(expected, found):
        return
    if len(expected) != len(found):
        raise RunError(f"{where} have {len(found):,} rows, expected {len(expected):,} as those of {first_name}")
    row = int(np.flatnonzero(expected != found)[0])
    order = "in another order" if np.array_equal(np.sort(expected), np.sort(found)) else "which are others"
    raise RunError(
        f"{where} have not the ids of {first_name}, {order}: row {row + 1} is {found[row]}, expected {expected[row]}; "
        "predict both with the same data and division"
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
    for name, part in zip(names[1:], parts[1:], strict=True):
        _demand_classes(name, names[0], parts[0], part)
        if not np.array_equal(part.block_names, parts[0].block_names):
            raise RunError(f"{name}: its shifted validation has other blocks than that of fold 0")
    if not len(parts[0].block_names):
        joined, shown = predictions.concatenate(parts), np.concatenate(list(images))
        if len(np.unique(joined.ids)) < len(joined):
            raise RunError("folds: an image stands in two of them; they are not of one division")
        return joined, shown
    spans = [[rows for _, rows in part.blocks()] for part in parts]
    rows_of = [(fold, block) for block in range(len(parts[0].block_names)) for fold in range(len(parts))]
    pieces = [_rows(parts[fold], spans[fold][block], f"@{fold}") for fold, block in rows_of]
    whole = replace(
        predictions.concatenate(pieces),
        block_names=parts[0].block_names,
        block_sizes=np.sum([part.block_sizes for part in parts], axis=0),
    )
    return whole, np.concatenate([images[fold][spans[fold][block]] for fold, block in rows_of])


def _rows(part: Predictions, rows: slice, ending: str) -> Predictions:
    """Return some rows as predictions without blocks, their ids with another ending."""
    return replace(
        part,
        ids=np.strings.add(part.ids[rows], ending),
        logits=part.logits[rows],
        top1=part.top1[rows],
        labels=None if part.labels is None else part.labels[rows],
        block_names=np.array([], np.str_),
        block_sizes=np.array([], np.int64),
    )
