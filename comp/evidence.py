"""What a leaderboard's sentences rest on: which rows a run gets right, and on which rows two submissions differ."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from comp import predictions
from comp.errors import RunError
from comp.leaderboard import Row
from comp.predictions import Targets


@dataclass(frozen=True)
class Answers:
    """Which rows a run gets right."""

    ids: NDArray[np.str_]
    targets: Targets
    right: NDArray[np.bool_]
    images: NDArray[np.int64]

    def same_images(self, other: "Answers") -> bool:
        """Tell whether two runs were asked the same."""
        return np.array_equal(self.ids, other.ids) and np.array_equal(self.targets, other.targets)


def read_answers(row: Row, name: str) -> Answers | None:
    """Return a run's answers to a labelled split; None where they are not there."""
    suffix = row.variant if name in ("test", "suite") else ""
    try:
        found = predictions.load_answers(Path(row.run) / "predictions" / f"{name}{suffix}.npz")
    except RunError:  # a run may be moved or thinned out; its scores count as ever
        return None
    if found.targets is None or found.correct is None:
        return None
    return Answers(found.ids, found.targets, found.correct, found.images)


def read_lines(path: str) -> list[bytes]:
    """Return a submission's lines, none where there is no such file."""
    try:
        return Path(path).read_bytes().split(b"\n")
    except OSError:
        return []


def disagreement_of(one: list[bytes], other: list[bytes]) -> float | None:
    """Return the share of rows with differing answers; None where two submissions cannot be compared.

    A full suite has a million rows: lines are compared whole, and only those that differ are looked into.
    """
    header, rows = one[:1], len(one) - 2  # less the header and what follows the last line's end
    if rows < 1 or len(one) != len(other) or header != other[:1]:
        return None
    columns, differing = header[0].count(b",") + 1, 0
    for first, second in zip(one, other, strict=True):
        if first != second:
            (key, answer), (other_key, other_answer) = _parted(first, columns), _parted(second, columns)
            if key != other_key:
                return None
            differing += answer != other_answer
    return differing / rows


def _parted(line: bytes, columns: int) -> tuple[bytes, bytes | int]:
    """Return a line's id and answer; of probabilities, the place of the largest."""
    if columns == 2:
        key, _, answer = line.rpartition(b",")
        return key, answer
    key, *shares = line.rsplit(b",", columns - 1)
    return key, max(range(len(shares)), key=lambda place: _number(shares[place]), default=0)


def _number(text: bytes) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0
