"""Check a config's data for leaks, duplicates, label conflicts and class imbalance (`comp data check`).

A finding has the verdict `misleads`, and the check fails, where a score would be wrong or a class cannot be learned:

- exact copies across train and val or test: `EXACT_LEAK` of the held-out images or more;
- near duplicates across them: `NEAR_LEAK` or more (CIFAR-10 has 0.6 %, MNIST 1 %, Fashion-MNIST 2 %);
- exact copies under different labels: `CONFLICTS` of all images or more;
- a class without an image in some split, or one class with more than `DOMINANCE` of the training images;
- files that cannot be read, unless they are skipped.

Below those limits, and for copies within a split and classes `IMBALANCE` times as large as others, it is a `note`.

Exact copies have the same bytes. Near duplicates are searched among thumbnails of 8 x 8 grey means, minus their own
mean and scaled to length 1, so that brightness, contrast and recompression hardly change them. Two images are near if

- their thumbnails correlate by `SMALLEST_CORRELATION` or more,
- their distance is at most `NEAREST_SHARE` of each one's distance to its usual neighbour, the 10th nearest of about
  4,000 images of the set: handwritten digits all look alike, and similarity alone is no finding, and
- their pixels differ by at most `LARGEST_DIFFERENCE` of the first image's own contrast (mean absolute values both).

All pairs are compared, by matrix products: 70,000 CIFAR images take seconds, and twice the images four times as long.
A bit hash with buckets would need fewer comparisons, but on MNIST's flat background its bits are ties.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from comp.config import Config
from comp.data.dataset import Dataset
from comp.data.splits import Split, group_exact_copies
from comp.results.metrics import METRICS
from comp.runtime.errors import DataError
from comp.runtime.progress import Progress, quiet

EXACT_LEAK = 0.001
NEAR_LEAK = 0.05
CONFLICTS = 0.001
DOMINANCE = 0.9
IMBALANCE = 10.0

SMALLEST_CORRELATION = 0.98
NEAREST_SHARE = 1 / 3
LARGEST_DIFFERENCE = 0.4
MOST_PAIRS = 1_000_000  # where the search ends: a set made of copies would fill the memory

_EXAMPLES = 3  # per finding
_THUMBNAIL_SIDE = 8
_SAMPLE = 4000
_NEIGHBOUR = 10
_CHUNK_IMAGES = 1024
_CHUNK_PAIRS = 2000
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601

Verdict = Literal["ok", "note", "misleads"]


@dataclass(frozen=True)
class DataFinding:
    """The result of one check; its fields are the keys of `comp data check --json`.

    Attributes:
        what: what was checked.
        count: how many cases there are, or a ratio.
        verdict: `ok`, `note`, or `misleads`: scores of a training would be wrong.
        examples: some of the cases.
        mend: how to fix it.
    """

    what: str
    count: int | float
    verdict: Verdict
    examples: tuple[str, ...] = ()
    mend: str = ""


@dataclass(frozen=True)
class Copies:
    """Exact and near duplicates; rows count through all splits, one after the other.

    Attributes:
        group: [N] int64; images with equal bytes share a number, counted from 0 by first appearance.
        first: [G] int64, the first row of each group.
        near: [P, 2] int64, groups that are near duplicates, the smaller first.
        capped: whether the search ended at `MOST_PAIRS`.
        blank: [N] bool, images of one colour, which have no near duplicates.
    """

    group: NDArray[np.int64]
    first: NDArray[np.int64]
    near: NDArray[np.int64]
    capped: bool
    blank: NDArray[np.bool_]


def find_problems(
    dataset: Dataset, config: Config, *, skip_bad: bool = False, progress: Progress = quiet
) -> list[DataFinding]:
    """Return the findings of all checks.

    Args:
        dataset: from `inspection.open_without_suite`.
        config: of the data; what it does already is not advised.
        skip_bad: whether unreadable files are only a note, as they are left out.
        progress: called during the search for exact duplicates (one bar) and near ones (two).
    """
    splits = dataset.splits
    copies = find_copies(splits, progress)
    files = dataset.unreadable
    verdict: Verdict = "ok" if not files else "note" if skip_bad else "misleads"
    mend = "fetch them again, or skip them with --skip-bad"
    return [
        DataFinding("unreadable or missing files", len(files), verdict, files[:_EXAMPLES], mend),
        *_check_classes(dataset, config, splits),
        *_check_copies(splits, copies),
        *_check_conflicts(splits, copies),
    ]


def raise_if_misleading(findings: Sequence[DataFinding], where: str) -> None:
    """Raise if any finding misleads.

    Raises:
        DataError: names each, with examples and how to fix it.
    """
    misleading = [finding for finding in findings if finding.verdict == "misleads"]
    if misleading:
        lines = [f"{f.what}: {f.count:,} ({', '.join(f.examples)}); {f.mend}" for f in misleading]
        raise DataError(f"{where}: a training on these data would mislead\n  " + "\n  ".join(lines))


def _check_classes(dataset: Dataset, config: Config, splits: Sequence[Split]) -> Iterator[DataFinding]:
    """Count images by class, or groups of images where a group has one answer."""
    if dataset.train.is_numeric:
        return
    classes, counted = dataset.competition.classes, "image" if dataset.train.groups is None else "group"
    more = {"val": _way_to_hold_more(config), "test": "data.test" if dataset.test_is_cut else ""}
    for split in splits:
        if split.labels is None:
            continue
        empty = np.flatnonzero(split.one_per_answer().class_counts(len(classes)) == 0)
        way = f", or hold out more ({more[split.name]})" if more.get(split.name) else ""
        yield DataFinding(
            f"classes without {'an' if counted == 'image' else 'a'} {counted} in {split.name}",
            len(empty),
            "misleads" if len(empty) else "ok",
            tuple(classes[label] for label in empty[:_EXAMPLES]),
            f"label {counted}s of these classes, or remove the classes{way}",
        )
    counts = dataset.train.one_per_answer().class_counts(len(classes))
    largest, smallest = int(counts.argmax()), int(np.where(counts, counts, counts.max() + 1).argmin())
    imbalanced = counts[largest] >= IMBALANCE * counts[smallest] and largest != smallest
    dominant = counts[largest] > DOMINANCE * counts.sum()
    yield DataFinding(
        "class imbalance (largest/smallest)",
        round(float(counts[largest] / counts[smallest]), 2),
        "misleads" if dominant else "note" if imbalanced else "ok",
        tuple(f"{classes[label]}: {counts[label]:,}" for label in dict.fromkeys((largest, smallest))),
        f"predicting '{classes[largest]}' always would be correct {counts[largest] / counts.sum():.0%} of the time; "
        f"add {counted}s of the other classes{_way_to_select(dataset.competition.metric, config)}",
    )


def _way_to_hold_more(config: Config) -> str:
    """Return the key that makes validation larger; empty where it is the data's own."""
    if config.data.folds is not None:
        return f"fewer folds: data.folds, now {config.data.folds}" if config.data.folds > 2 else ""
    return "" if isinstance(config.data.validation, str) else f"data.validation, now {config.data.validation}"


def _way_to_select(metric: str, config: Config) -> str:
    """Return the advice on what weights are selected by; empty where a common class alone scores low there."""
    if not (METRICS[metric].needs_variety or METRICS[metric].of_probabilities):
        return f", and select by balanced_accuracy or macro_f1 (competition.metric, now {metric})"
    if config.train.select in ("val_accuracy", "ood_accuracy"):
        return f", and select by {metric} (train.select, now {config.train.select})"
    return ""


def _check_copies(splits: Sequence[Split], copies: Copies) -> Iterator[DataFinding]:
    ids, split_of = _concatenate_ids(splits), _number_splits(splits)
    blank = ids[copies.blank]
    verdict: Verdict = "note" if len(blank) else "ok"
    yield DataFinding("images of one colour", len(blank), verdict, tuple(blank[:_EXAMPLES]), "look at them")
    for number, split in enumerate(splits):
        rows = np.flatnonzero(split_of == number)
        repeated = rows[np.setdiff1d(np.arange(len(rows)), np.unique(copies.group[rows], return_index=True)[1])]
        examples = (f"{ids[row]} = {ids[rows[copies.group[rows] == copies.group[row]][0]]}" for row in repeated)
        yield _note(f"exact copies within {split.name}", len(repeated), examples)
        in_split = np.bincount(copies.group[rows], minlength=len(copies.first)) > 0
        pairs = copies.near[in_split[copies.near].all(1)]
        yield _note(f"near duplicates within {split.name}, pairs", len(pairs), _pair_examples(ids, copies, pairs))
    for first in range(len(splits)):
        for second in range(first + 1, len(splits)):
            yield from _check_leaks(splits, copies, first, second)


def _check_leaks(splits: Sequence[Split], copies: Copies, first: int, second: int) -> Iterator[DataFinding]:
    """Count the images of the second split that are in the first too."""
    ids, split_of = _concatenate_ids(splits), _number_splits(splits)
    what = f"{splits[second].name} images that are in {splits[first].name} too"
    mend = "remove them from one split: the score partly measures memory"
    in_first, in_second = (
        np.bincount(copies.group[split_of == number], minlength=len(copies.first)) > 0 for number in (first, second)
    )
    rows = np.flatnonzero(split_of == second)
    exact = rows[in_first[copies.group[rows]]]
    yield _compare(what, exact, len(rows), EXACT_LEAK, _copy_examples(ids, copies, exact), mend)
    left, right = copies.near.T
    crossing = (in_first[left] & in_second[right]) | (in_first[right] & in_second[left])
    leaked = np.zeros(len(copies.first), bool)
    leaked[left[in_second[left] & in_first[right]]] = leaked[right[in_second[right] & in_first[left]]] = True
    near = np.setdiff1d(rows[leaked[copies.group[rows]]], exact)
    examples = _pair_examples(ids, copies, copies.near[crossing])
    yield _compare(f"near duplicates: {what}", near, len(rows), NEAR_LEAK, examples, mend)


def _check_conflicts(splits: Sequence[Split], copies: Copies) -> Iterator[DataFinding]:
    ids = _concatenate_ids(splits)
    labels = _number_labels(splits)
    firsts = labels[copies.first]
    rows = np.flatnonzero((labels != firsts[copies.group]) & (labels >= 0) & (firsts[copies.group] >= 0))
    mend = "correct the labels or remove the images"
    examples = _copy_examples(ids, copies, rows)
    yield _compare("exact copies under another label", rows, len(labels), CONFLICTS, examples, mend)
    pairs = copies.near[firsts[copies.near[:, 0]] != firsts[copies.near[:, 1]]]
    yield _note("near duplicates under different labels, pairs", len(pairs), _pair_examples(ids, copies, pairs))
    if copies.capped:
        mend = "counts of near duplicates are lower bounds"
        yield DataFinding("pairs of near duplicates, where the search ended", MOST_PAIRS, "note", (), mend)


def _number_labels(splits: Sequence[Split]) -> NDArray[np.int64]:
    """Return [N]: a number that rows with the same label, or the same set of labels, share; -1 where unknown."""
    labels = np.concatenate([split.labels for split in splits if split.labels is not None])
    numbers = iter(np.unique(labels, axis=0, return_inverse=True)[1].ravel())
    return np.array([-1 if split.labels is None else next(numbers) for split in splits for _ in range(len(split))])


def _compare(
    what: str, rows: NDArray[np.int64], total: int, limit: float, examples: Iterable[str], mend: str
) -> DataFinding:
    """Return a finding that misleads from a share of `total` on, and is a note below."""
    verdict: Verdict = "ok"
    if len(rows):
        verdict = "misleads" if len(rows) >= limit * total else "note"
    return DataFinding(what, len(rows), verdict, tuple(islice(examples, _EXAMPLES)), mend)


def _note(what: str, count: int, examples: Iterable[str]) -> DataFinding:
    mend = "keep one of each, or leave them"
    return DataFinding(what, count, "note" if count else "ok", tuple(islice(examples, _EXAMPLES)), mend)


def _copy_examples(ids: NDArray[np.str_], copies: Copies, rows: NDArray[np.int64]) -> Iterator[str]:
    return (f"{ids[row]} = {ids[copies.first[copies.group[row]]]}" for row in rows)


def _pair_examples(ids: NDArray[np.str_], copies: Copies, pairs: NDArray[np.int64]) -> Iterator[str]:
    return (f"{ids[copies.first[first]]} ~ {ids[copies.first[second]]}" for first, second in pairs)


def _concatenate_ids(splits: Sequence[Split]) -> NDArray[np.str_]:
    return np.concatenate([split.ids for split in splits])


def _number_splits(splits: Sequence[Split]) -> NDArray[np.int64]:
    """Return [N]: the number of each row's split."""
    return np.repeat(np.arange(len(splits)), [len(split) for split in splits])


def find_copies(splits: Sequence[Split], progress: Progress) -> Copies:
    """Return the copies within and across splits; all images have the same shape."""
    group = group_exact_copies(splits, progress)
    _, first = np.unique(group, return_index=True)
    thumbnails = np.concatenate([_make_thumbnails(split) for split in splits])
    blank = np.logical_not(thumbnails.any(axis=1))
    near, capped = _find_near_pairs(thumbnails[first], progress)
    near = near[_compare_pixels(splits, first[near])] if len(near) else near
    return Copies(group, first.astype(np.int64), near, capped, blank)


def _make_thumbnails(split: Split) -> NDArray[np.float32]:
    """Return [N, 64], each of mean 0 and length 1; 0 where an image has no contrast."""
    channels, height, width = split.image_shape
    grey = np.array(_LUMA if channels == 3 else (1 / channels,) * channels, np.float32)
    down = _cell_weights(height)  # [8, H]
    across = (_cell_weights(width)[:, :, None] * grey).reshape(_THUMBNAIL_SIDE, width * channels).T  # [W * C, 8]
    cells = np.empty((len(split), _THUMBNAIL_SIDE**2), np.float32)
    for start in range(0, len(split), _CHUNK_IMAGES):
        images = np.asarray(split.images[start : start + _CHUNK_IMAGES], np.float32)
        lines = images.reshape(len(images), height, width * channels)
        cells[start : start + len(images)] = (down @ (lines @ across)).reshape(len(images), -1)
    cells -= cells.mean(1, keepdims=True)
    length = np.linalg.norm(cells, axis=1, keepdims=True)
    # 0.1: float noise of a flat image
    return np.where(length > 0.1, cells / np.maximum(length, 0.1), 0).astype(np.float32)


def _cell_weights(size: int) -> NDArray[np.float32]:
    """Return [8, size]: each pixel's weight in each cell's mean."""
    edges, pixels = np.linspace(0, size, _THUMBNAIL_SIDE + 1), np.arange(size)
    overlap = np.minimum(pixels + 1, edges[1:, None]) - np.maximum(pixels, edges[:-1, None])
    return np.asarray(np.maximum(overlap, 0) * (_THUMBNAIL_SIDE / size), np.float32)


def _find_near_pairs(thumbnails: NDArray[np.float32], progress: Progress) -> tuple[NDArray[np.int64], bool]:
    """Return pairs [P, 2] of rows with near thumbnails, and whether there were too many."""
    threshold = _correlation_thresholds(thumbnails, progress)
    chunks, count = [np.empty((0, 2), np.int64)], 0
    for start in range(0, len(thumbnails), _CHUNK_IMAGES):
        chunk = thumbnails[start : start + _CHUNK_IMAGES]
        correlation = chunk @ thumbnails[start:].T  # [chunk, N - start]
        near = np.flatnonzero(correlation >= threshold[start : start + len(chunk), None])
        left, right = np.divmod(near, correlation.shape[1])
        kept = (right > left) & (correlation[left, right] >= threshold[start + right])
        chunks.append(np.stack((left[kept], right[kept]), 1) + start)
        count += len(chunks[-1])
        progress("near duplicates", start + len(chunk), len(thumbnails))
        if count > MOST_PAIRS:
            return np.concatenate(chunks)[:MOST_PAIRS], True
    return np.concatenate(chunks), False


def _correlation_thresholds(thumbnails: NDArray[np.float32], progress: Progress) -> NDArray[np.float32]:
    """Return [N]: the correlation from which on an image is much nearer than the usual neighbour."""
    sample = thumbnails[:: max(1, len(thumbnails) // _SAMPLE)].T
    index = max(0, sample.shape[1] - 1 - _NEIGHBOUR)
    usual = np.empty(len(thumbnails), np.float32)
    for start in range(0, len(thumbnails), _CHUNK_IMAGES):
        chunk = slice(start, start + _CHUNK_IMAGES)
        usual[chunk] = np.partition(thumbnails[chunk] @ sample, index, axis=1)[:, index]
        progress("usual neighbours", min(chunk.stop, len(thumbnails)), len(thumbnails))
    # Squared distances of unit vectors are 2 - 2 * correlation.
    return np.asarray(np.maximum(SMALLEST_CORRELATION, 1 - (1 - usual) * NEAREST_SHARE**2), np.float32)


def _compare_pixels(splits: Sequence[Split], rows: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return for each pair of rows [P, 2] whether the pixels are close, relative to the first image's contrast."""
    close = np.empty(len(rows), bool)
    for start in range(0, len(rows), _CHUNK_PAIRS):
        left, right = (
            gather_pixels(splits, column).astype(np.float32) for column in rows[start : start + _CHUNK_PAIRS].T
        )
        contrast = np.abs(left - left.mean((1, 2, 3), keepdims=True)).mean((1, 2, 3))
        close[start : start + len(left)] = np.abs(left - right).mean((1, 2, 3)) <= LARGEST_DIFFERENCE * contrast
    return close


def gather_pixels(splits: Sequence[Split], rows: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Return images [n, H, W, C] by their rows through all splits."""
    pixels = np.empty((len(rows), *splits[0].images.shape[1:]), np.uint8)
    end = 0
    for split in splits:
        start, end = end, end + len(split)
        inside = (start <= rows) & (rows < end)
        pixels[inside] = split.images[rows[inside] - start]
    return pixels
