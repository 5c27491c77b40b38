"""Check whether a valid submission is worth sending: constant, lopsided or scrambled predictions. Torch-free.

A finding is `misleads`, and the check fails, if the score could only be chance:

- all rows hold the same answer;
- the class frequencies differ from training by more than `MISLEADS` of the rows;
- the agreement with an earlier submission is no better than chance (Cohen's kappa, or for numbers the correlation,
  below `CHANCE`): in one of them, ids and answers do not match.

Otherwise it is a `note`: class frequencies that differ by more than `LOPSIDED`, single blocks with chance agreement,
classes that are never predicted or not written like their training labels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from comp.results import predictions
from comp.results.predictions import Targets
from comp.runtime.errors import plural
from comp.submission.answers import ANSWERS, parse_numbers
from comp.submission.format import SubmissionFormat

if TYPE_CHECKING:
    import pandas as pd

LOPSIDED, MISLEADS = 0.25, 0.5  # share of rows that would have to change their class
CHANCE = 0.1  # kappa; two submissions with 60 % accuracy have 0.3 or more
_MIN_ROWS = 50  # fewer prove nothing
_MIN_ROWS_PER_CLASS = 5  # with fewer, a class may be missing by chance
_SHOWN = 5  # values in a message


@dataclass(frozen=True)
class Finding:
    """A reason not to trust a submission."""

    what: str
    verdict: Literal["note", "misleads"]


def count_classes(targets: Targets | None, classes: int) -> list[int]:
    """Return the number of images per class; empty if there are no targets, or numbers."""
    if targets is None or (targets.ndim == 1 and targets.dtype.kind == "f"):
        return []
    if targets.ndim == 2:
        return [int(count) for count in targets.sum(0)]
    return [int(count) for count in np.bincount(targets.astype(np.int64), minlength=classes)]


def check_class_texts(form: SubmissionFormat, *, derived: bool) -> list[Finding]:
    """Check the class texts against the training labels.

    Args:
        form: its `classes` are the training labels.
        derived: whether the texts were derived from the labels or set by a key; then the label of another class is a
            note.
    """
    pairs = list(zip(form.classes, form.texts, strict=False))
    class_by_value = {_comparable(name): name for name in form.classes}
    different = [(name, text) for name, text in pairs if _comparable(name) != _comparable(text)]
    if not different:
        return []
    for name, text in different:
        owner = class_by_value.get(_comparable(text), name)
        if owner != name:
            what = (
                f"labels: class {name!r} is written as {text!r}, which is the label of class {owner!r}; "
                f"{len(different)} of {len(pairs)} classes are not written as their labels"
            )
            return [Finding(what, "note" if derived else "misleads")]
    name, text = different[0]
    classes = plural(len(different), "class is", "classes are")
    return [Finding(f"labels: {classes} not written as their labels: {name!r} as {text!r}", "note")]


def _comparable(text: str) -> Decimal | str:
    """Return a plain decimal's value, any other text unchanged."""
    value = predictions.parse_decimal(text)
    return text if value is None else value


def check_distribution(table: "pd.DataFrame", form: SubmissionFormat, training: Sequence[int]) -> list[Finding]:
    """Check a valid submission for constant answers and unusual class frequencies.

    Args:
        table: its cells, in the format's order.
        form: its format.
        training: training images per class, in label order; empty: unknown.
    """
    answer = ANSWERS[form.answer]
    if len(table) < _MIN_ROWS:
        return []
    if len(table[list(form.columns)].drop_duplicates()) == 1:
        cells = ", ".join(map(str, table[list(form.columns)].iloc[0].tolist()[:_SHOWN]))
        return [Finding(f"constant: all {len(table):,} rows hold '{cells}'", "misleads")]
    texts = form.texts
    if not answer.one_class or len(training) != len(texts) or not sum(training):
        return []
    labels = answer.read(table, form)
    frequencies = _frequencies(labels)
    findings = _check_frequencies(frequencies, dict(zip(texts, training, strict=True)))
    unused = [text for text, count in zip(texts, training, strict=True) if count and text not in frequencies]
    if unused and not findings and len(labels) >= _MIN_ROWS_PER_CLASS * len(texts):
        examples = ", ".join(map(repr, unused[:_SHOWN]))
        findings.append(Finding(f"never predicted: {len(unused)} of {len(texts)} classes, {examples}", "note"))
    return findings


def _check_frequencies(frequencies: Mapping[str, float], training: Mapping[str, int]) -> list[Finding]:
    expected = {text: count / sum(training.values()) for text, count in training.items()}
    excess = {text: frequencies.get(text, 0.0) - frequency for text, frequency in expected.items()}
    moved = sum(abs(value) for value in excess.values()) / 2
    if moved <= LOPSIDED:
        return []
    most = max(excess, key=lambda text: excess[text])
    what = (
        f"lopsided: {moved:.0%} of rows would have to change class to match the class frequencies of training; "
        f"{most!r}: {frequencies[most]:.0%} of rows, {expected[most]:.0%} of training images: "
        "a weak network, or a test with other class shares"
    )
    return [Finding(what, "misleads" if moved > MISLEADS else "note")]


def check_agreement(
    table: "pd.DataFrame", earlier: "pd.DataFrame", form: SubmissionFormat, blocks: Sequence[tuple[str, slice]] = ()
) -> tuple[float, list[Finding]]:
    """Return the share of rows on which two submissions agree, and findings about it.

    Args:
        table: a valid submission's cells, in the format's order.
        earlier: an earlier submission's cells, in the same order.
        form: the format of both.
        blocks: names and rows of the suite's blocks.
    """
    answer = ANSWERS[form.answer]
    labels, earlier_labels = answer.read(table, form), answer.read(earlier, form)
    agreement, kappa = measure_agreement(labels, earlier_labels)
    if answer.graded:
        kappa = max(kappa, _correlation(parse_numbers(table, form), parse_numbers(earlier, form)))
    if len(labels) >= _MIN_ROWS and kappa < CHANCE:
        what = (
            f"scrambled: agrees on {agreement:.1%} of rows, no more than chance (kappa {kappa:.2f}); in one of the "
            "files ids and answers do not match, or one of them is worthless"
        )
        return agreement, [Finding(what, "misleads")]
    scrambled = [
        name
        for name, rows in blocks
        if rows.stop - rows.start >= _MIN_ROWS and measure_agreement(labels[rows], earlier_labels[rows])[1] < CHANCE
    ]
    if not scrambled:
        return agreement, []
    examples = ", ".join(scrambled[:_SHOWN]) + (" ..." if len(scrambled) > _SHOWN else "")
    what = f"scrambled blocks: {len(scrambled)} of {len(blocks)} agree no more than by chance: {examples}"
    return agreement, [Finding(what, "note")]


def _correlation(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Return the correlation of two tables of numbers [N, K], each column centred; 0 if one is constant."""
    first, second = (first - first.mean(0)).ravel(), (second - second.mean(0)).ravel()
    scale = float(np.sqrt((first**2).sum() * (second**2).sum()))
    return float((first * second).sum()) / scale if scale else 0.0


def measure_agreement(first: NDArray[np.str_], second: NDArray[np.str_]) -> tuple[float, float]:
    """Return the share of equal answers, and Cohen's kappa: 0 for chance, 1 for equal answers (Cohen 1960)."""
    agreement = float((first == second).mean())
    first_frequencies, second_frequencies = _frequencies(first), _frequencies(second)
    chance = sum(value * second_frequencies.get(name, 0.0) for name, value in first_frequencies.items())
    return agreement, 1.0 if chance == 1 else (agreement - chance) / (1 - chance)


def _frequencies(labels: NDArray[np.str_]) -> dict[str, float]:
    names, rows = np.unique(labels, return_counts=True)
    return dict(zip(names.tolist(), (rows / len(labels)).tolist(), strict=True))
