"""Predictions: ids x outputs with classes, known targets and their origin; the order of class names. Torch-free.

Scores, ensembles and submissions are all computed from them; `prediction_files` stores them.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np
from numpy.typing import NDArray

from comp.config.tasks import TASKS, TaskRow
from comp.results import page
from comp.runtime.errors import NotFiniteError, plural

Outputs = NDArray[np.float16] | NDArray[np.float32]
Targets = NDArray[np.int64] | NDArray[np.float32]  # [N] class indices, [N, K] of 0 and 1, or [N] float32 numbers

# No exponent, inf or nan: `12e4` and `nan` are names, not numbers.
_PLAIN_DECIMAL = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)", re.ASCII)


def _softmax(outputs: NDArray[np.float64]) -> NDArray[np.float64]:
    odds = np.exp(outputs - outputs.max(1, keepdims=True))
    probabilities: NDArray[np.float64] = odds / odds.sum(1, keepdims=True)
    return probabilities


def log_softmax(outputs: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return outputs [N, K] as logarithms of probabilities."""
    logarithms: NDArray[np.float64] = outputs - np.logaddexp.reduce(outputs, axis=1, keepdims=True)
    return logarithms


def _sigmoid(outputs: NDArray[np.float64]) -> NDArray[np.float64]:
    small = np.exp(-np.abs(outputs))  # of negative numbers only: no overflow
    probabilities: NDArray[np.float64] = np.where(outputs >= 0, 1 / (1 + small), small / (1 + small))
    return probabilities


# A task's activation: outputs [N, K] -> probabilities [N, K].
ACTIVATIONS: dict[str, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = {
    "softmax": _softmax,
    "sigmoid": _sigmoid,
    "identity": lambda outputs: outputs,  # of a task of numbers
}
_INVERSES: dict[str, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = {
    "softmax": np.log,
    "sigmoid": lambda probabilities: np.log(probabilities / (1 - probabilities)),
    "identity": lambda values: values,
}
_SHOWN_ROWS = 5  # in a notebook
_MIN_PROBABILITY = 1e-7  # keeps the logarithm of a mean probability finite


@dataclass(frozen=True)
class Predictions:
    """Model outputs for each image of a split.

    Attributes:
        task: a row of `comp.config.tasks.TASKS`.
        ids: [N] text.
        classes: the class names, in the order of the outputs' columns; the label's name in a task of numbers.
        outputs: [N, K] before the activation: float16 with each row's maximum subtracted for softmax tasks (this
            changes no probability and keeps float16 precise), else float32 as the model gave them.
        targets: [N] int64 class indices, [N, K] float32 of 0 and 1, or [N] float32 numbers, depending on the task; None
            if unknown.
        top1: [N] int64, the decided class: the most likely one before rounding to float16, or of an ordinal task the
            one nearest to the expected position; None unless the task decides on one class.
        block_names: [B] text: `distortion00_1` ...; empty for a split without blocks.
        block_sizes: [B] int64: consecutive rows of each block.
        made_by: origin as plain values: run, weights hash, views ...
        thresholds: probability from which a class is predicted, [K], or [N, K] if each row has its own (tuned on other
            rows); None means 0.5. In a task of numbers, [L] or [N, L], the lowest level and the cut points between it
            and the whole numbers above, for a metric of whole numbers; None, or NaN first, means rounding.
    """

    task: str
    ids: NDArray[np.str_]
    classes: tuple[str, ...]
    outputs: Outputs
    targets: Targets | None
    top1: NDArray[np.int64] | None
    block_names: NDArray[np.str_]
    block_sizes: NDArray[np.int64]
    made_by: Mapping[str, Any]
    thresholds: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        rows, columns = self.outputs.shape
        assert len(self.ids) == rows, (len(self.ids), rows)
        assert len(self.classes) == columns, (len(self.classes), columns)
        assert self.targets is None or self.targets.shape == ((rows, columns) if self.row.target_columns else (rows,))
        assert (self.top1 is not None) == self.row.one_class
        assert self.top1 is None or self.top1.shape == (rows,)
        assert self._has_sound_thresholds()
        assert len(self.block_names) == len(self.block_sizes)
        assert not len(self.block_sizes) or int(self.block_sizes.sum()) == rows

    def _has_sound_thresholds(self) -> bool:
        if self.thresholds is None:
            return True
        *rows, limits = self.thresholds.shape
        return rows in ([], [len(self.outputs)]) and (self.row.numeric or limits == self.outputs.shape[1])

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def row(self) -> TaskRow:
        """The task's row of TASKS."""
        return TASKS[self.task]

    def probabilities(self, rows: slice = slice(None)) -> NDArray[np.float64]:
        """Return class probabilities [N, K], of a task of numbers the values; rows sum to 1 only for softmax tasks."""
        return ACTIVATIONS[self.row.activation](self.outputs[rows].astype(np.float64))

    def log_probabilities(self, rows: slice = slice(None)) -> NDArray[np.float64]:
        """Return the logarithms of class probabilities [N, K] of a softmax task, however small."""
        return log_softmax(self.outputs[rows].astype(np.float64))

    def decisions(self, rows: slice = slice(None)) -> NDArray[np.bool_]:
        """Return which classes are predicted [N, K]."""
        if self.top1 is not None:
            return one_hot(self.top1[rows], len(self.classes))
        thresholds = np.float32(0.5) if self.thresholds is None else self.thresholds
        if isinstance(thresholds, np.ndarray) and thresholds.ndim == 2:
            thresholds = thresholds[rows]
        decided: NDArray[np.bool_] = self.probabilities(rows) >= thresholds
        return decided

    def values(self) -> NDArray[np.float64]:
        """Return each row's number [N]: the predicted one, uncut, or the position of the decided class."""
        if self.top1 is not None:
            return class_positions(self.classes)[self.top1]
        assert self.row.numeric
        return self.outputs[:, 0].astype(np.float64)

    def whole_values(self) -> NDArray[np.float64]:
        """Return each row's number [N] as a whole one, by the cut points where there are any; in a task of numbers."""
        values = self.values()
        rounded: NDArray[np.float64] = np.floor(values + 0.5)
        if self.thresholds is None:
            return rounded
        limits = np.broadcast_to(self.thresholds.astype(np.float64), (len(self), self.thresholds.shape[-1]))
        levels = limits[:, 0] + (values[:, None] >= limits[:, 1:]).sum(1)
        return np.where(np.isnan(limits[:, 0]), rounded, levels)

    def target_values(self) -> NDArray[np.float64]:
        """Return each row's true number [N], likewise; targets must be known."""
        targets = self.known_targets()
        return targets.astype(np.float64) if self.row.numeric else class_positions(self.classes)[targets.astype(int)]

    def truth(self) -> NDArray[np.bool_]:
        """Return which classes are present [N, K]; targets must be known."""
        targets = self.known_targets()
        return targets > 0.5 if targets.ndim == 2 else one_hot(targets.astype(np.int64), len(self.classes))

    def known_targets(self) -> Targets:
        """Return the targets, which must be known."""
        assert self.targets is not None, "a score needs targets"
        return self.targets

    def correct(self) -> NDArray[np.bool_]:
        """Return which rows are correct [N], in every class; targets must be known."""
        if self.top1 is not None:
            correct: NDArray[np.bool_] = self.top1 == self.known_targets()
            return correct
        exact: NDArray[np.bool_] = (self.decisions() == self.truth()).all(1)
        return exact

    def blocks(self) -> list[tuple[str, slice]]:
        """Return each block's name and rows."""
        ends = np.cumsum(self.block_sizes)
        spans = zip(self.block_names, ends - self.block_sizes, ends, strict=True)
        return [(str(name), slice(int(start), int(end))) for name, start, end in spans]

    def block_accuracy(self) -> dict[str, float]:
        """Return the accuracy of each non-empty block; targets must be known."""
        correct = self.correct()
        return {name: float(correct[rows].mean()) for name, rows in self.blocks() if rows.stop > rows.start}

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Return a header and one row of text per image.

        For exclusive classes: `id`, `label`, `probability` of that label. For numbers: `id` and the label's name.
        Otherwise `id`, `labels` (the predicted classes, separated by `;`), and one column of probabilities per class.
        """
        names = self.ids.tolist()
        if self.row.numeric:
            numbers = zip(names, self.values(), strict=True)
            return ["id", *self.classes], [[name, f"{value:.6g}"] for name, value in numbers]
        probabilities = self.probabilities()
        if self.top1 is not None:
            top = probabilities[range(len(self)), self.top1]
            decided = zip(names, self.top1, top, strict=True)
            rows = [[name, self.classes[label], f"{probability:.4f}"] for name, label, probability in decided]
            return ["id", "label", "probability"], rows
        rows = []
        for name, decisions, row in zip(names, self.decisions(), probabilities, strict=True):
            labels = ";".join(self.classes[column] for column in decisions.nonzero()[0])
            rows.append([name, labels, *(f"{probability:.4f}" for probability in row)])
        return ["id", "labels", *self.classes], rows

    def _repr_html_(self) -> str:
        """Return what a notebook shows: how many there are, and the first answers."""
        header, rows = self.take(slice(_SHOWN_ROWS)).table()
        columns = 2 if self.top1 is None else 3  # of several labels without the probability of each class
        cells = [[page.text(cell) for cell in row[:columns]] for row in rows]
        of_classes = "" if self.row.numeric else f", {plural(len(self.classes), 'class', 'classes')}"
        summary = f"{plural(len(self), 'image')}{of_classes}; the first:"
        return page.note(summary) + page.table(header[:columns], cells)

    def take(self, rows: "slice | NDArray[np.int64]") -> "Predictions":
        """Return the given rows, without blocks."""
        thresholds = self.thresholds
        return Predictions(
            task=self.task,
            ids=self.ids[rows],
            classes=self.classes,
            outputs=self.outputs[rows],
            targets=None if self.targets is None else self.targets[rows],
            top1=None if self.top1 is None else self.top1[rows],
            block_names=np.array([], np.str_),
            block_sizes=np.array([], np.int64),
            made_by=self.made_by,
            thresholds=thresholds[rows] if thresholds is not None and thresholds.ndim == 2 else thresholds,
        )


def _expected_level(outputs: NDArray[np.float32], classes: Sequence[str]) -> NDArray[np.int64]:
    """Return the class [N] nearest to the expected position; see `class_positions`."""
    positions = class_positions(classes)
    expected = _softmax(outputs.astype(np.float64)) @ positions
    nearest: NDArray[np.int64] = np.abs(expected[:, None] - positions).argmin(1)
    return nearest


# The decision of a task that decides on one class: outputs [N, K] and class names -> class indices [N].
_DECIDE: dict[str, Callable[[NDArray[np.float32], Sequence[str]], NDArray[np.int64]]] = {
    "arg_max": lambda outputs, classes: outputs.argmax(1).astype(np.int64),
    "expected_level": _expected_level,
}


def one_hot(indices: NDArray[np.int64], count: int) -> NDArray[np.bool_]:
    """Return [N, count]: True in the column of each index [N]."""
    columns: NDArray[np.bool_] = indices[:, None] == np.arange(count)
    return columns


def from_outputs(
    outputs: NDArray[np.float32],
    *,
    task: str,
    ids: NDArray[np.str_],
    classes: Sequence[str],
    targets: Targets | None,
    made_by: Mapping[str, Any],
    blocks: Sequence[tuple[str, int]] = (),
    thresholds: NDArray[np.float32] | None = None,
) -> Predictions:
    """Return predictions from raw outputs [N, K] float32.

    Raises:
        NotFiniteError: an output is not finite; the message names the first such row.
    """
    bad_rows = np.flatnonzero(~np.isfinite(outputs).all(axis=1))
    if len(bad_rows):
        raise NotFiniteError(
            f"predictions: {len(bad_rows)} of {len(outputs)} rows are not finite, first {ids[bad_rows[0]]}; the "
            "weights or the precision cause it: try train.precision=fp32"
        )
    row = TASKS[task]
    return Predictions(
        task=task,
        ids=ids,
        classes=tuple(classes),
        outputs=to_stored(outputs) if row.shifted else outputs,
        targets=targets,
        top1=_DECIDE[row.decision](outputs, classes) if row.one_class else None,
        block_names=np.array([name for name, _ in blocks], np.str_),
        block_sizes=np.array([size for _, size in blocks], np.int64),
        made_by=dict(made_by),
        thresholds=thresholds,
    )


def to_stored(outputs: NDArray[np.floating[Any]]) -> NDArray[np.float16]:
    """Return outputs [N, K] of a softmax task as they are stored: float16, with each row's maximum subtracted."""
    shifted = outputs - outputs.max(1, keepdims=True)
    stored: NDArray[np.float16] = np.maximum(shifted, np.finfo(np.float16).min).astype(np.float16)
    return stored


def mean_outputs(outputs: NDArray[np.float32], task: str) -> NDArray[np.float32]:
    """Return outputs [K] whose probabilities are the rows' mean: the answer for an unreadable image.

    Args:
        outputs: [N, K], before the activation; with N = 0 all classes are equally likely.
        task: a row of `comp.config.tasks.TASKS`.
    """
    if not len(outputs):
        return np.zeros(outputs.shape[1], np.float32)
    row = TASKS[task]
    means = ACTIVATIONS[row.activation](outputs.astype(np.float64)).mean(0)
    if not row.numeric:
        means = np.clip(means, _MIN_PROBABILITY, 1 - _MIN_PROBABILITY)
    return _INVERSES[row.activation](means).astype(np.float32)


def concatenate(parts: Sequence[Predictions]) -> Predictions:
    """Join consecutive parts; task, classes and origin are taken from the first."""
    first = parts[0]

    def join(arrays: "Sequence[NDArray[Any] | None]") -> Any:
        present = [array for array in arrays if array is not None]
        return np.concatenate(present) if len(present) == len(parts) else None

    thresholds = first.thresholds
    if any(not _are_equal(part.thresholds, thresholds) for part in parts) or (
        thresholds is not None and thresholds.ndim == 2
    ):
        width = max(1 if part.thresholds is None else part.thresholds.shape[-1] for part in parts)
        thresholds = join([threshold_rows(part, width) for part in parts])
    return Predictions(
        task=first.task,
        ids=np.concatenate([part.ids for part in parts]),
        classes=first.classes,
        outputs=np.concatenate([part.outputs for part in parts]),
        targets=join([part.targets for part in parts]),
        top1=join([part.top1 for part in parts]),
        block_names=np.concatenate([part.block_names for part in parts]),
        block_sizes=np.concatenate([part.block_sizes for part in parts]),
        made_by=first.made_by,
        thresholds=thresholds,
    )


def _are_equal(left: NDArray[np.float32] | None, right: NDArray[np.float32] | None) -> bool:
    return left is right or (left is not None and right is not None and np.array_equal(left, right))


def threshold_rows(part: Predictions, width: int) -> NDArray[np.float32]:
    """Return the thresholds of each row: [N, K], or in a task of numbers [N, width]."""
    if part.row.numeric:
        limits = np.full((len(part), width), np.inf, np.float32)  # levels that no number reaches
        limits[:, 0] = np.nan
        if part.thresholds is not None:
            limits[:, : part.thresholds.shape[-1]] = part.thresholds
        return limits
    thresholds = np.full(len(part.classes), 0.5, np.float32) if part.thresholds is None else part.thresholds
    return np.broadcast_to(thresholds, part.outputs.shape)


def parse_decimal(text: str) -> Decimal | None:
    """Return the value of a plain decimal such as `2`, `2.0`, `-1` or `007`; None for any other text."""
    bare = text.strip()
    return Decimal(bare) if _PLAIN_DECIMAL.fullmatch(bare) else None


def class_values(names: Sequence[str]) -> list[Decimal] | None:
    """Return the names' numeric values; None unless all are plain decimals."""
    values = [value for name in names if (value := parse_decimal(name)) is not None]
    return values if len(values) == len(names) else None


def class_positions(names: Sequence[str]) -> NDArray[np.float64]:
    """Return where each class lies [K]: at its value if all are plain decimals, else at its index."""
    values = class_values(names)
    return np.arange(len(names), dtype=np.float64) if values is None else np.array(values, np.float64)


def sort_classes(names: Iterable[str]) -> tuple[str, ...]:
    """Return distinct names in label order: by value if all are plain decimals (2 before 10), else as text."""
    distinct = sorted(set(names))
    values = class_values(distinct)
    if values is None:
        return tuple(distinct)
    return tuple(name for _, name in sorted(zip(values, distinct, strict=True)))
