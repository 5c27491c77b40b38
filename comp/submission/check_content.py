"""Whether a valid submission is worth sending: constant, lopsided or scrambled predictions. Torch-free.

A doubt misleads, and the check then fails, where the score could only be chance:

- all rows say the same;
- the classes' shares depart from training's by more than `MISLEADS` of the rows;
- it agrees with an earlier submission no better than by chance (Cohen's kappa, or of numbers their correlation, below
  `CHANCE`): ids and answers of one of them do not belong together.

Below those it is a note: shares that depart by more than `LOPSIDED`, single blocks that agree by chance alone, classes
that are never predicted or not written as their training labels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from comp.results import predictions
from comp.results.predictions import Targets
from comp.submission import answers
from comp.submission.answers import ANSWERS
from comp.submission.format import SubmissionFormat

if TYPE_CHECKING:
    import pandas as pd

LOPSIDED, MISLEADS = 0.25, 0.5  # of rows that would have to change their class
CHANCE = 0.1  # of kappa; two submissions of 60 % accuracy have 0.3 and more
_FEW_ROWS = 50  # fewer prove nothing
_ROWS_A_CLASS = 5  # with fewer, a class may be missed by chance
_SHOWN = 5  # blocks in a message


@dataclass(frozen=True)
class Finding:
    """One reason not to trust a submission."""

    what: str
    verdict: Literal["note", "misleads"]


def counts(targets: Targets | None, classes: int) -> list[int]:
    """Return how many images have each class; empty where that is not known."""
    if targets is None:
        return []
    if targets.ndim == 2:
        return [int(count) for count in targets.sum(0)]
    return [int(count) for count in np.bincount(targets.astype(np.int64), minlength=classes)]


def check_texts(form: SubmissionFormat, *, derived: bool) -> list[Finding]:
    """Return what class texts give away beside the training labels: a text that is no label, or another class's.

    Args:
        form: with the training labels as its classes.
        derived: whether the texts were derived from them, or asked for by a key: then another class's label is a note.
    """
    pairs = list(zip(form.classes, form.texts, strict=False))
    own = {_value(name): name for name in form.classes}
    strange = [(name, text) for name, text in pairs if _value(name) != _value(text)]
    taken = [(name, text) for name, text in strange if own.get(_value(text), name) != name]
    if taken:
        name, text = taken[0]
        return [
            Finding(
                f"labels: class {name!r} is written {text!r}, which is the label of class {own[_value(text)]!r}; "
                f"{len(strange)} of {len(pairs)} classes are not written as their labels",
                "note" if derived else "misleads",
            )
        ]
    if strange:
        name, text = strange[0]
        return [
            Finding(f"labels: {len(strange)} classes are not written as their labels: {name!r} as {text!r}", "note")
        ]
    return []


def _value(text: str) -> Decimal | str:
    """Return what a text is compared by: its value where it is a plain decimal, else itself."""
    value = predictions.parse_decimal(text)
    return text if value is None else value


def check_distribution(table: "pd.DataFrame", form: SubmissionFormat, training: Sequence[int]) -> list[Finding]:
    """Return what one valid submission gives away.

    Args:
        table: its cells, in the format's order.
        form: its format.
        training: how many training images each class has, in label order; empty where not known.
    """
    answer = ANSWERS[form.answer]
    if len(table) < _FEW_ROWS:
        return []
    if len(table[list(form.columns)].drop_duplicates()) == 1:
        cells = ", ".join(map(str, table[list(form.columns)].iloc[0].tolist()[:_SHOWN]))
        return [Finding(f"constant: all {len(table):,} rows hold '{cells}'", "misleads")]
    texts = form.texts
    if not answer.one_class or len(training) != len(texts) or not sum(training):
        return []
    labels = answer.read(table, form)
    shares = _shares(labels)
    doubts = _lopsided(shares, dict(zip(texts, training, strict=True)))
    unused = [text for text, count in zip(texts, training, strict=True) if count and text not in shares]
    if unused and not doubts and len(labels) >= _ROWS_A_CLASS * len(texts):
        shown = ", ".join(map(repr, unused[:_SHOWN]))
        doubts.append(Finding(f"never predicted: {len(unused)} of {len(texts)} classes, {shown}", "note"))
    return doubts


def _lopsided(shares: Mapping[str, float], training: Mapping[str, int]) -> list[Finding]:
    expected = {text: count / sum(training.values()) for text, count in training.items()}
    excess = {text: shares.get(text, 0.0) - share for text, share in expected.items()}
    moved = sum(abs(value) for value in excess.values()) / 2
    if moved <= LOPSIDED:
        return []
    most = max(excess, key=lambda text: excess[text])
    what = (
        f"lopsided: {moved:.0%} of rows would have to change for the classes' shares of training; {most!r} has "
        f"{shares[most]:.0%} of rows, {expected[most]:.0%} of training"
    )
    return [Finding(what, "misleads" if moved > MISLEADS else "note")]


def check_agreement(
    table: "pd.DataFrame", earlier: "pd.DataFrame", form: SubmissionFormat, blocks: Sequence[tuple[str, slice]] = ()
) -> tuple[float, list[Finding]]:
    """Return the share of rows on which two submissions agree, and what that gives away.

    Args:
        table: a valid submission's cells, in the format's order.
        earlier: those of an earlier one, likewise.
        form: the format of both.
        blocks: names and rows of the suite's blocks.
    """
    read = ANSWERS[form.answer].read
    labels, before = read(table, form), read(earlier, form)
    agreement, kappa = agree(labels, before)
    if ANSWERS[form.answer].graded:
        kappa = max(kappa, _correlation(answers.grades(table, form), answers.grades(earlier, form)))
    if len(labels) >= _FEW_ROWS and kappa < CHANCE:
        return agreement, [
            Finding(
                f"scrambled: agrees on {agreement:.1%} of rows, which is chance (kappa {kappa:.2f}); ids and answers "
                "of one of them do not belong together, or one of them is worthless",
                "misleads",
            )
        ]
    lost = [
        name
        for name, rows in blocks
        if rows.stop - rows.start >= _FEW_ROWS and agree(labels[rows], before[rows])[1] < CHANCE
    ]
    if not lost:
        return agreement, []
    shown = ", ".join(lost[:_SHOWN]) + (" ..." if len(lost) > _SHOWN else "")
    return agreement, [
        Finding(f"scrambled blocks: {len(lost)} of {len(blocks)} agree by chance alone: {shown}", "note")
    ]


def _correlation(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Return the correlation of two tables of numbers [N, K], each column's mean taken off; 0 where one is constant."""
    first, second = (one - one.mean(0)).ravel(), (other - other.mean(0)).ravel()
    scale = float(np.sqrt((first**2).sum() * (second**2).sum()))
    return float((first * second).sum()) / scale if scale else 0.0


def agree(one: NDArray[np.str_], other: NDArray[np.str_]) -> tuple[float, float]:
    """Return the share of equal answers, and Cohen's kappa: 0 for chance, 1 for equal (Cohen 1960)."""
    share = float((one == other).mean())
    first, second = _shares(one), _shares(other)
    chance = sum(value * second.get(name, 0.0) for name, value in first.items())
    return share, 1.0 if chance == 1 else (share - chance) / (1 - chance)


def _shares(labels: NDArray[np.str_]) -> dict[str, float]:
    names, rows = np.unique(labels, return_counts=True)
    return dict(zip(names.tolist(), (rows / len(labels)).tolist(), strict=True))
