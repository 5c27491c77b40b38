"""Whether a valid submission is worth sending: constant, lopsided or scrambled predictions. Torch-free.

A doubt misleads, and the check then fails, where the score could only be chance:

- all rows say the same;
- the classes' shares depart from training's by more than `MISLEADS` of the rows;
- it agrees with an earlier submission no better than by chance (Cohen's kappa below `CHANCE`): the rows of one of them
  stand in another order.

Below those it is a note: shares that depart by more than `LOPSIDED`, single blocks that agree by chance alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from comp.competition.spec import SubmissionFormat

LOPSIDED, MISLEADS = 0.25, 0.5  # of rows that would have to change their class
CHANCE = 0.1  # of kappa; two submissions of 60 % accuracy have 0.3 and more
_FEW_ROWS = 50  # fewer prove nothing
_SHOWN = 5  # blocks in a message


@dataclass(frozen=True)
class Doubt:
    """One reason not to trust a submission."""

    what: str
    verdict: Literal["note", "misleads"]


def answers(table: pd.DataFrame, wanted: SubmissionFormat) -> NDArray[np.str_]:
    """Return what each row of a valid CSV says [N]: its label, or the class with the largest probability."""
    if not wanted.probabilities:
        said: NDArray[np.str_] = table[wanted.label_column].to_numpy().astype(np.str_)
        return said
    shares = table[list(wanted.answers)].to_numpy(np.float64)
    most: NDArray[np.str_] = np.array(wanted.answers, np.str_)[shares.argmax(1)]
    return most


def counts(labels: NDArray[np.int64] | None, classes: int) -> list[int]:
    """Return how many labels each class has; empty where they are not known."""
    return [] if labels is None else [int(count) for count in np.bincount(labels, minlength=classes)]


def of_one(said: NDArray[np.str_], wanted: SubmissionFormat, training: Sequence[int]) -> list[Doubt]:
    """Return what one submission gives away.

    Args:
        said: from `answers`.
        wanted: its format.
        training: how many training images each class has, in label order; empty where not known.
    """
    if len(said) < _FEW_ROWS:
        return []
    if bool((said == said[0]).all()):
        return [Doubt(f"constant: all {len(said):,} rows say '{said[0]}'", "misleads")]
    if len(training) != len(wanted.texts) or not sum(training):
        return []
    found = _shares(said)
    expected = {text: count / sum(training) for text, count in zip(wanted.texts, training, strict=True)}
    excess = {text: found.get(text, 0.0) - share for text, share in expected.items()}
    moved = sum(abs(value) for value in excess.values()) / 2
    if moved <= LOPSIDED:
        return []
    most = max(excess, key=lambda text: excess[text])
    what = (
        f"lopsided: {moved:.0%} of rows would have to change for the classes' shares of training; {most!r} has "
        f"{found[most]:.0%} of rows, {expected[most]:.0%} of training"
    )
    return [Doubt(what, "misleads" if moved > MISLEADS else "note")]


def of_two(
    said: NDArray[np.str_], before: NDArray[np.str_], blocks: Sequence[tuple[str, slice]] = ()
) -> tuple[float, list[Doubt]]:
    """Return the share of rows on which two submissions agree, and what that gives away.

    Args:
        said: from `answers`.
        before: those of an earlier submission, the same ids in the same order.
        blocks: names and rows of the suite's blocks.
    """
    agreement, kappa = agree(said, before)
    if len(said) >= _FEW_ROWS and kappa < CHANCE:
        return agreement, [
            Doubt(
                f"scrambled: agrees on {agreement:.1%} of rows, which is chance (kappa {kappa:.2f}); the rows of one "
                "of them stand in another order, or one of them is worthless",
                "misleads",
            )
        ]
    lost = [
        name
        for name, rows in blocks
        if rows.stop - rows.start >= _FEW_ROWS and agree(said[rows], before[rows])[1] < CHANCE
    ]
    if not lost:
        return agreement, []
    shown = ", ".join(lost[:_SHOWN]) + (" ..." if len(lost) > _SHOWN else "")
    return agreement, [Doubt(f"scrambled blocks: {len(lost)} of {len(blocks)} agree by chance alone: {shown}", "note")]


def agree(one: NDArray[np.str_], other: NDArray[np.str_]) -> tuple[float, float]:
    """Return the share of equal answers, and Cohen's kappa: 0 for chance, 1 for equal (Cohen 1960)."""
    share = float((one == other).mean())
    first, second = _shares(one), _shares(other)
    chance = sum(value * second.get(name, 0.0) for name, value in first.items())
    return share, 1.0 if chance == 1 else (share - chance) / (1 - chance)


def _shares(said: NDArray[np.str_]) -> dict[str, float]:
    names, rows = np.unique(said, return_counts=True)
    return dict(zip(names.tolist(), (rows / len(said)).tolist(), strict=True))
