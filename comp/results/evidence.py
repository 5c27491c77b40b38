"""What a leaderboard's sentences rest on: which rows a run gets right, what made a submission, and on which rows two
submissions differ.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from comp.results import files, prediction_files, runs
from comp.results.leaderboard import LeaderboardRow
from comp.results.predictions import Targets
from comp.results.runs import sidecar_path
from comp.runtime.errors import RunError


@dataclass(frozen=True)
class RunCorrectness:
    """Which rows a run gets right."""

    classes: tuple[str, ...]
    ids: NDArray[np.str_]
    targets: Targets
    right: NDArray[np.bool_]
    images: NDArray[np.int64]

    def same_images(self, other: "RunCorrectness") -> bool:
        """Tell whether two runs were asked the same."""
        same = self.classes == other.classes and np.array_equal(self.ids, other.ids)
        return same and np.array_equal(self.targets, other.targets)


def read_correctness(row: LeaderboardRow, name: str) -> RunCorrectness | None:
    """Return a run's answers to a labelled split; None where they are not there."""
    suffix = row.variant if name in ("test", "suite") else ""
    try:
        found = prediction_files.load_correctness(Path(row.run) / "predictions" / f"{name}{suffix}.npz")
    except RunError:  # a run may be moved or thinned out; its scores count as ever
        return None
    if found.targets is None or found.correct is None:
        return None
    return RunCorrectness(found.classes, found.ids, found.targets, found.correct, found.images)


def classes_of(row: LeaderboardRow) -> tuple[str, ...]:
    """Return a run's classes, sorted by name; none where its provenance.json does not tell."""
    try:
        return tuple(sorted(runs.Run(Path(row.run)).provenance("classes")["classes"]))
    except RunError:
        return ()


@dataclass(frozen=True)
class Sidecar:
    """What lies beside a submission.

    Attributes:
        made_by: of its predictions: views, adaptation, images.
        variant: how it was predicted, such as `+flip`; empty: plainly.
        scored: whether a score was recorded of this very file; one that was written anew since has none.
    """

    made_by: dict[str, Any]
    variant: str
    scored: bool


def read_sidecar(row: LeaderboardRow, path: str) -> Sidecar | None:
    """Return what lies beside a run's submission; None where nothing does, or it is of another run."""
    try:
        values = files.read_json(sidecar_path(Path(path)))
        made_by = dict(values.get("made_by", {}))
        variant = prediction_files.variant_suffix(made_by)
    except (RunError, TypeError, ValueError):
        return None
    if values.get("run") != runs.Run(Path(row.run)).name:
        return None
    return Sidecar(made_by, variant, scored="scores" in values or "sent" in values)


def is_of_suite(row: LeaderboardRow, sidecar: Sidecar) -> bool:
    """Tell whether a submission shows the images of the run's own suite, as far as the run's predictions tell."""
    path = Path(row.run) / "predictions" / f"suite{sidecar.variant}.npz"
    stored = prediction_files.read_made_by(path) or sidecar.made_by
    return bool(stored.get("images") == sidecar.made_by.get("images"))


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
