"""What is wrong with a config's data (`comp data check`).

A finding misleads, and the check then fails, where a score could not be believed or a class not be learned:

- exact copies across train and val or test: `EXACT_LEAK` of the held-out images or more;
- near duplicates across them: `NEAR_LEAK` or more (CIFAR-10 has 0.6 %, MNIST 1 %, Fashion-MNIST 2 %);
- exact copies under different labels: `CONFLICTS` of all images or more;
- a class without an image in some split, or one class with more than `DOMINANCE` of the training images;
- files that cannot be read, unless they are skipped.

Below those, and for copies within a split and classes `IMBALANCE` times as large as others, it is a note.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from comp.data import duplicates
from comp.data.dataset import Dataset
from comp.data.duplicates import Copies
from comp.data.inspection import splits_of
from comp.data.splits import Split
from comp.runtime.errors import DataError
from comp.runtime.progress import Progress, quiet

EXACT_LEAK = 0.001
NEAR_LEAK = 0.05
CONFLICTS = 0.001
DOMINANCE = 0.9
IMBALANCE = 10.0

_EXAMPLES = 3  # of each finding

Verdict = Literal["ok", "note", "misleads"]


@dataclass(frozen=True)
class DataFinding:
    """One thing that was looked for.

    Attributes:
        what: it is, in words.
        count: how many there are.
        verdict: `ok`, `note`, or `misleads`: a training would tell something untrue.
        examples: some of them.
        mend: what to do about it.
    """

    what: str
    count: int
    verdict: Verdict
    examples: tuple[str, ...] = ()
    mend: str = ""


def find_problems(dataset: Dataset, *, skip_bad: bool = False, progress: Progress = quiet) -> list[DataFinding]:
    """Look for what would make a training mislead.

    Args:
        dataset: see `inspection.open_clean`.
        skip_bad: unreadable files are a note: they are left out.
        progress: a bar for exact duplicates, and two for near ones.
    """
    splits = splits_of(dataset)
    copies = duplicates.find(splits, progress)
    return [
        _unreadable(dataset, skip_bad),
        *_class_findings(dataset, splits),
        *_copy_findings(splits, copies),
        *_conflict_findings(splits, copies),
    ]


def refuse_misleading(findings: Sequence[DataFinding], where: str) -> None:
    """Raise for what misleads.

    Raises:
        DataError: naming each, with examples and how to mend it.
    """
    wrong = [found for found in findings if found.verdict == "misleads"]
    if wrong:
        lines = [f"{f.count:,} {f.what} ({', '.join(f.examples)}): {f.mend}" for f in wrong]
        raise DataError(f"{where}: a training on these data would mislead\n  " + "\n  ".join(lines))


def _unreadable(dataset: Dataset, skip_bad: bool) -> DataFinding:
    files = dataset.unreadable
    verdict: Verdict = "ok" if not files else "note" if skip_bad else "misleads"
    return DataFinding(
        "unreadable or missing files",
        len(files),
        verdict,
        files[:_EXAMPLES],
        "fetch them again, or go on with --skip-bad",
    )


def _class_findings(dataset: Dataset, splits: Sequence[Split]) -> Iterator[DataFinding]:
    classes = dataset.competition.classes
    for split in splits:
        if split.labels is None:
            continue
        empty = np.flatnonzero(split.class_counts(len(classes)) == 0)
        yield DataFinding(
            f"classes without an image in {split.name}", len(empty), "misleads" if len(empty) else "ok",
            tuple(classes[label] for label in empty[:_EXAMPLES]),
            "label such images, take the class out, or hold out more (data.validation)",
        )  # fmt: skip
    counts = dataset.train.class_counts(len(classes))
    largest, smallest = int(counts.argmax()), int(np.where(counts, counts, counts.max() + 1).argmin())
    uneven = counts[largest] >= IMBALANCE * counts[smallest] and largest != smallest
    dominant = counts[largest] > DOMINANCE * counts.sum()
    yield DataFinding(
        "times as many images of one class as of another", round(counts[largest] / counts[smallest]),
        "misleads" if dominant else "note" if uneven else "ok",
        tuple(f"{classes[label]}: {counts[label]:,}" for label in dict.fromkeys((largest, smallest))),
        f"answering '{classes[largest]}' always would be right {counts[largest] / counts.sum():.0%} of the time; "
        "find more images of the others, and choose by balanced_accuracy or macro_f1",
    )  # fmt: skip


def _copy_findings(splits: Sequence[Split], copies: Copies) -> Iterator[DataFinding]:
    names = _names(splits)
    yield DataFinding("images of one colour", int(copies.blank.sum()), "note" if copies.blank.any() else "ok",
                  tuple(names[copies.blank][:_EXAMPLES]), "look at them")  # fmt: skip
    for number, split in enumerate(splits):
        inside = _part(splits) == number
        rows = np.flatnonzero(inside)
        again = rows[np.setdiff1d(np.arange(len(rows)), np.unique(copies.group[rows], return_index=True)[1])]
        examples = (f"{names[row]} = {names[rows[copies.group[rows] == copies.group[row]][0]]}" for row in again)
        yield _note(f"exact copies within {split.name}", len(again), examples)
        own = np.bincount(copies.group[inside], minlength=len(copies.first)) > 0
        pairs = copies.near[own[copies.near].all(1)]
        yield _note(f"near duplicates within {split.name}, pairs", len(pairs), _examples(names, copies, pairs))
    for one in range(len(splits)):
        for other in range(one + 1, len(splits)):
            yield from _leaks(splits, copies, one, other)


def _leaks(splits: Sequence[Split], copies: Copies, one: int, other: int) -> Iterator[DataFinding]:
    """What of the later split is in the earlier one too."""
    names, part = _names(splits), _part(splits)
    between = f"{splits[other].name} images that are in {splits[one].name} too"
    mend = "take them out of one split, else a score is partly remembered"
    in_one, in_other = (np.bincount(copies.group[part == p], minlength=len(copies.first)) > 0 for p in (one, other))
    rows = np.flatnonzero(part == other)
    exact = rows[in_one[copies.group[rows]]]
    twins = (f"{names[row]} = {names[copies.first[copies.group[row]]]}" for row in exact)
    yield _judged(between, exact, len(rows), EXACT_LEAK, twins, mend)
    first, second = copies.near.T
    crossing = (in_one[first] & in_other[second]) | (in_one[second] & in_other[first])
    touched = np.zeros(len(copies.first), bool)
    touched[first[in_other[first] & in_one[second]]] = touched[second[in_other[second] & in_one[first]]] = True
    near = np.setdiff1d(rows[touched[copies.group[rows]]], exact)
    yield _judged(f"near duplicates: {between}", near, len(rows), NEAR_LEAK,
                  _examples(names, copies, copies.near[crossing]), mend)  # fmt: skip


def _conflict_findings(splits: Sequence[Split], copies: Copies) -> Iterator[DataFinding]:
    names = _names(splits)
    labels = _label_keys(splits)
    firsts = labels[copies.first]
    rows = np.flatnonzero((labels != firsts[copies.group]) & (labels >= 0) & (firsts[copies.group] >= 0))
    examples = (f"{names[row]} = {names[copies.first[copies.group[row]]]}" for row in rows)
    yield _judged("exact copies under another label", rows, len(labels), CONFLICTS, examples,
                  "correct the labels or take the images out")  # fmt: skip
    pairs = copies.near[firsts[copies.near[:, 0]] != firsts[copies.near[:, 1]]]
    yield _note("near duplicates under different labels, pairs", len(pairs), _examples(names, copies, pairs))
    if copies.capped:
        yield DataFinding("pairs of near duplicates, where the search ended", duplicates.MOST_PAIRS, "note",
                      (), "counts of near duplicates are lower bounds")  # fmt: skip


def _label_keys(splits: Sequence[Split]) -> NDArray[np.int64]:
    """Return a number for each row [N] that rows with the same label, or the same labels, share; -1 where unknown."""
    known = np.concatenate([split.labels for split in splits if split.labels is not None])
    numbers = iter(np.unique(known, axis=0, return_inverse=True)[1].ravel())
    return np.array([-1 if split.labels is None else next(numbers) for split in splits for _ in range(len(split))])


def _judged(
    what: str, rows: NDArray[np.int64], total: int, limit: float, examples: Iterator[str], mend: str
) -> DataFinding:
    verdict: Verdict = "ok"
    if len(rows):
        verdict = "misleads" if len(rows) >= limit * total else "note"
    return DataFinding(what, len(rows), verdict, _some(examples), mend)


def _note(what: str, count: int, examples: Iterator[str]) -> DataFinding:
    return DataFinding(what, count, "note" if count else "ok", _some(examples), "keep one of each, or leave them")


def _some(examples: Iterator[str]) -> tuple[str, ...]:
    return tuple(text for _, text in zip(range(_EXAMPLES), examples, strict=False))


def _examples(names: NDArray[np.str_], copies: Copies, pairs: NDArray[np.int64]) -> Iterator[str]:
    return (f"{names[copies.first[one]]} ~ {names[copies.first[other]]}" for one, other in pairs)


def _names(splits: Sequence[Split]) -> NDArray[np.str_]:
    return np.concatenate([split.ids for split in splits])


def _part(splits: Sequence[Split]) -> NDArray[np.int64]:
    """Return [N]: the number of each row's split."""
    return np.repeat(np.arange(len(splits)), [len(split) for split in splits])
