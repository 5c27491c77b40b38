"""Predictions: ids x outputs with classes, targets where known and what made them. Torch-free.

The one currency of evaluate, ensemble and submit. On disk a `.npz` without pickles, version 2; version 1, which held
`logits` and `labels` of single-label tasks, is read.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from comp.config import PredictConfig
from comp.config.tasks import TASKS, TaskRow
from comp.results import files, runs
from comp.runtime.errors import NotFiniteError, RunError, UserError

VERSION = 2

_ALPHA = PredictConfig().alpha
_SPLITS = ("val", "ood_val", "test", "suite")  # of `comp predict --split`
_VIEWED = re.compile(r"\+(?!bn\b|tent\b)([a-z_]+)(?:-uncertain([\d.]+))?")  # in a file's name, as the next one
_ADAPTED = re.compile(r"\+(bn|tent)(?:-(file|stream))?(?:-alpha([\d.]+))?")
_FIELDS = ("task", "ids", "classes", "outputs", "block_names", "block_sizes", "made_by")
_OPTIONAL = ("targets", "top1", "thresholds")
_FIELDS_1 = ("ids", "classes", "logits", "top1", "labels", "block_names", "block_sizes", "made_by")

Outputs = NDArray[np.float16] | NDArray[np.float32]
Targets = NDArray[np.int64] | NDArray[np.float32]  # [N] class indices, or [N, K] of 0 and 1


def _softmax(outputs: NDArray[np.float64]) -> NDArray[np.float64]:
    odds = np.exp(outputs - outputs.max(1, keepdims=True))
    probabilities: NDArray[np.float64] = odds / odds.sum(1, keepdims=True)
    return probabilities


def _sigmoid(outputs: NDArray[np.float64]) -> NDArray[np.float64]:
    # Of exponentials of negative numbers alone: none overflows.
    small = np.exp(-np.abs(outputs))
    probabilities: NDArray[np.float64] = np.where(outputs >= 0, 1 / (1 + small), small / (1 + small))
    return probabilities


# A task's activation: outputs [N, K] -> probabilities [N, K].
ACTIVATIONS: dict[str, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = {
    "softmax": _softmax,
    "sigmoid": _sigmoid,
}
_INVERSES: dict[str, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = {
    "softmax": np.log,
    "sigmoid": lambda shares: np.log(shares / (1 - shares)),
}
_LEAST_SHARE = 1e-7  # of a mean probability, so that its logarithm is finite


@dataclass(frozen=True)
class Predictions:
    """What a model says of each image.

    Attributes:
        task: a row of `comp.config.tasks.TASKS`.
        ids: [N] text.
        classes: the class names, in the order of the outputs' columns.
        outputs: [N, K] before the activation: float16 with each row's maximum subtracted where the task allows it
            (softmax does not notice, float16 does), float32 as the model gave them elsewhere.
        targets: [N] int64 class indices or [N, K] float32 of 0 and 1, as the task says; None where unknown.
        top1: [N] int64, the most likely class before rounding to float16; None where the task does not choose one.
        block_names: [B] text: `distortion00_1` ...; empty for a split without blocks.
        block_sizes: [B] int64: consecutive rows of each block.
        made_by: run, weights hash, views ...: plain values.
        thresholds: probability from which a class is decided to be there, [K] or, where each row has its own (tuned on
            other rows), [N, K]; None: 0.5.
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
        assert (self.top1 is not None) == (self.row.decision == "arg_max")
        assert self.top1 is None or self.top1.shape == (rows,)
        assert self.thresholds is None or self.thresholds.shape in ((columns,), (rows, columns))
        assert len(self.block_names) == len(self.block_sizes)
        assert not len(self.block_sizes) or int(self.block_sizes.sum()) == rows

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def row(self) -> TaskRow:
        """What follows from the task."""
        return TASKS[self.task]

    def probabilities(self, rows: slice = slice(None)) -> NDArray[np.float64]:
        """Return [N, K]: each class's probability; rows sum to 1 only where classes exclude each other."""
        return ACTIVATIONS[self.row.activation](self.outputs[rows].astype(np.float64))

    def decisions(self, rows: slice = slice(None)) -> NDArray[np.bool_]:
        """Return [N, K]: which classes are decided to be there."""
        if self.top1 is not None:
            return one_hot(self.top1[rows], len(self.classes))
        thresholds = np.float32(0.5) if self.thresholds is None else self.thresholds
        if isinstance(thresholds, np.ndarray) and thresholds.ndim == 2:
            thresholds = thresholds[rows]
        decided: NDArray[np.bool_] = self.probabilities(rows) >= thresholds
        return decided

    def truth(self) -> NDArray[np.bool_]:
        """Return [N, K]: which classes are there; targets must be known."""
        targets = self.known_targets()
        return targets > 0.5 if targets.ndim == 2 else one_hot(targets.astype(np.int64), len(self.classes))

    def known_targets(self) -> Targets:
        """Return the targets; asking for a score without them is our fault."""
        assert self.targets is not None, "a score needs targets"
        return self.targets

    def correct(self) -> NDArray[np.bool_]:
        """Return [N]: whether the decision is the target, every class of it; targets must be known."""
        if self.top1 is not None:
            right: NDArray[np.bool_] = self.top1 == self.known_targets()
            return right
        exact: NDArray[np.bool_] = (self.decisions() == self.truth()).all(1)
        return exact

    def blocks(self) -> list[tuple[str, slice]]:
        """Return each block's name and rows."""
        ends = np.cumsum(self.block_sizes)
        spans = zip(self.block_names, ends - self.block_sizes, ends, strict=True)
        return [(str(name), slice(int(start), int(end))) for name, start, end in spans]

    def block_accuracy(self) -> dict[str, float]:
        """Return the share of correct decisions in each block that has rows; targets must be known."""
        right = self.correct()
        return {name: float(right[rows].mean()) for name, rows in self.blocks() if rows.stop > rows.start}

    def take(self, rows: "slice | NDArray[np.int64]") -> "Predictions":
        """Return some rows, without blocks."""
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


def one_hot(indices: NDArray[np.int64], count: int) -> NDArray[np.bool_]:
    """Return [N, count]: True in the column that each index [N] names."""
    hot: NDArray[np.bool_] = indices[:, None] == np.arange(count)
    return hot


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
        NotFiniteError: an output is not finite: the first such row is named.
    """
    broken = np.flatnonzero(~np.isfinite(outputs).all(axis=1))
    if len(broken):
        raise NotFiniteError(
            f"predictions: {len(broken)} of {len(outputs)} rows are not finite, first {ids[broken[0]]}; the weights or "
            "their precision are at fault: try train.precision=fp32"
        )
    row = TASKS[task]
    stored: Outputs = outputs
    if row.shifted:
        shifted = outputs - outputs.max(1, keepdims=True)
        stored = np.maximum(shifted, np.finfo(np.float16).min).astype(np.float16)
    return Predictions(
        task=task,
        ids=ids,
        classes=tuple(classes),
        outputs=stored,
        targets=targets,
        top1=outputs.argmax(1).astype(np.int64) if row.decision == "arg_max" else None,
        block_names=np.array([name for name, _ in blocks], np.str_),
        block_sizes=np.array([size for _, size in blocks], np.int64),
        made_by=dict(made_by),
        thresholds=thresholds,
    )


def mean_outputs(outputs: NDArray[np.float32], task: str) -> NDArray[np.float32]:
    """Return [K]: the outputs whose probabilities are the mean of the rows' ones, the answer for an image unseen.

    Args:
        outputs: [N, K], before the activation; without a row every class is as likely.
        task: a row of `comp.config.tasks.TASKS`.
    """
    if not len(outputs):
        return np.zeros(outputs.shape[1], np.float32)
    activation = TASKS[task].activation
    shares = ACTIVATIONS[activation](outputs.astype(np.float64)).mean(0)
    return _INVERSES[activation](np.clip(shares, _LEAST_SHARE, 1 - _LEAST_SHARE)).astype(np.float32)


def concatenate(parts: Sequence[Predictions]) -> Predictions:
    """Return consecutive parts as one; task, classes and what made them are the first one's."""
    first = parts[0]

    def joined(arrays: "Sequence[NDArray[Any] | None]") -> Any:
        known = [array for array in arrays if array is not None]
        return np.concatenate(known) if len(known) == len(parts) else None

    thresholds = first.thresholds
    if any(not _same(part.thresholds, thresholds) for part in parts) or (
        thresholds is not None and thresholds.ndim == 2
    ):
        thresholds = joined([_threshold_rows(part) for part in parts])
    return Predictions(
        task=first.task,
        ids=np.concatenate([part.ids for part in parts]),
        classes=first.classes,
        outputs=np.concatenate([part.outputs for part in parts]),
        targets=joined([part.targets for part in parts]),
        top1=joined([part.top1 for part in parts]),
        block_names=np.concatenate([part.block_names for part in parts]),
        block_sizes=np.concatenate([part.block_sizes for part in parts]),
        made_by=first.made_by,
        thresholds=thresholds,
    )


def _same(one: NDArray[np.float32] | None, other: NDArray[np.float32] | None) -> bool:
    return one is other or (one is not None and other is not None and np.array_equal(one, other))


def _threshold_rows(part: Predictions) -> NDArray[np.float32]:
    thresholds = np.full(len(part.classes), 0.5, np.float32) if part.thresholds is None else part.thresholds
    return np.broadcast_to(thresholds, part.outputs.shape)


def save(path: Path, predictions: Predictions) -> None:
    """Write a .npz atomically."""
    arrays: dict[str, NDArray[Any]] = {
        "version": np.array(VERSION),
        "task": np.array(predictions.task),
        "ids": predictions.ids,
        "classes": np.array(predictions.classes, np.str_),
        "outputs": predictions.outputs,
        "block_names": predictions.block_names,
        "block_sizes": predictions.block_sizes,
        "made_by": np.array(json.dumps(dict(predictions.made_by), sort_keys=True)),
    }
    if predictions.targets is not None:
        small = np.uint8 if predictions.row.target_columns else np.int32
        arrays["targets"] = predictions.targets.astype(small)
    if predictions.top1 is not None:
        arrays["top1"] = predictions.top1.astype(np.int32)
    if predictions.thresholds is not None:
        arrays["thresholds"] = predictions.thresholds
    files.write_arrays(path, arrays)


def load(path: Path) -> Predictions:
    """Return the predictions in a .npz.

    Raises:
        RunError: missing, truncated, altered, of a later version or not ours.
    """
    return _from_arrays(_read(path, lambda name: True), path)


def _read(path: Path, wanted: Callable[[str], bool]) -> dict[str, NDArray[Any]]:
    """Return the wanted arrays of a .npz, under their names of version 2."""
    try:
        with files.open_arrays(path) as archive:
            names = set(archive.files)
            version = int(archive["version"]) if "version" in names else 1
            if version > VERSION:
                raise RunError(f"{path}: is of version {version}, later than {VERSION}; update comp")
            fields = _FIELDS_1 if version == 1 else _FIELDS
            missing = [name for name in fields if name not in names]
            if missing:
                raise RunError(f"{path}: not a predictions file: it lacks {', '.join(missing)}")
            unknown = names - {"version", *_FIELDS, *_OPTIONAL}
            if version != 1 and unknown:  # a damaged name would pass for an optional array that is not there
                raise ValueError(f"unknown arrays {', '.join(sorted(unknown))}")
            if version == 1:
                arrays = _upgraded(archive, wanted)
            else:
                arrays = {name: archive[name] for name in sorted(names - {"version"}) if wanted(name)}
            _check_blocks(arrays)
            return arrays
    except FileNotFoundError:
        raise RunError(f"{path}: no such predictions; {_cure(path)}") from None
    except RunError:
        raise
    except files.READ_ERRORS as error:
        raise _damaged(path, error) from None


def _check_blocks(arrays: Mapping[str, NDArray[Any]]) -> None:
    """Raise ValueError where blocks do not cut the rows into consecutive parts."""
    names, sizes, rows = arrays["block_names"], arrays["block_sizes"], len(arrays["ids"])
    if sizes.ndim != 1 or len(names) != len(sizes) or (len(sizes) and sizes.dtype.kind not in "iu"):
        raise ValueError("block_sizes are not one whole number for each of block_names")
    if (sizes < 0).any() or (len(sizes) and int(sizes.sum()) != rows):
        raise ValueError(f"block_sizes do not sum to the {rows:,} rows")


def _damaged(path: Path, error: Exception) -> RunError:
    return RunError(f"{path}: damaged predictions file ({files.error_text(error)}); {_cure(path)}")


def _cure(path: Path) -> str:
    """Return the command that makes a run's predictions anew, as the end of a message."""
    run, (split, plus, variant) = runs.Run(path.parent.parent), path.stem.partition("+")
    if not run.has_weights():
        return f"{run.path} has no weights to predict with, so {run.cure}"
    chosen = f"--split {split}" if split in _SPLITS else "--suite DIR, the folder of that suite"
    return f"make it again: comp predict {run.path} {chosen}{_options(run, plus + variant)}"


def _options(run: runs.Run, variant: str) -> str:
    """Return the options of `comp predict` for a variant, as a file's name has it, less what the run's config says."""
    viewed, adapted = _VIEWED.search(variant), _ADAPTED.search(variant)
    wanted: dict[str, Any] = {"views": viewed[1] if viewed else "none", "adapt": adapted[1] if adapted else "none"}
    if viewed:
        wanted["views_for"] = f"uncertain:{viewed[2]}" if viewed[2] else "all"
    if adapted:
        wanted["adapt_per"] = adapted[2] or "block"
        wanted["alpha"] = float(adapted[3]) if adapted[3] else _ALPHA
    try:
        own = run.config().predict
    except UserError:  # one message at a time
        own = PredictConfig()
    given = {name: value for name, value in wanted.items() if value != getattr(own, name)}
    return "".join(f" --{name.replace('_', '-')} {value}" for name, value in given.items())


def _upgraded(archive: Mapping[str, NDArray[Any]], wanted: Callable[[str], bool]) -> dict[str, NDArray[Any]]:
    """Return version 1's arrays as version 2's: single-label, unknown labels written as -1."""
    names = {"outputs": "logits", "targets": "labels"}
    kept = [name for name in (*_FIELDS[1:], "targets", "top1") if wanted(name)]
    arrays = {"task": np.array("single_label"), **{name: archive[names.get(name, name)] for name in kept}}
    if (arrays["targets"] < 0).all():
        del arrays["targets"]
    return arrays


def suffix(made_by: Mapping[str, Any]) -> str:
    """Return `+flip-uncertain0.25+bn-file-alpha0.5`: all in which predictions depart from the plain way; empty for it.

    Args:
        made_by: what made them; what it does not have is plain.
    """
    views, share = made_by.get("views", "none"), made_by.get("views_share", 1.0)
    adapt, per, alpha = made_by.get("adapt", "none"), made_by.get("adapt_per", "block"), made_by.get("alpha", _ALPHA)
    text = ""
    if views != "none":
        text += f"+{views}" + (f"-uncertain{share:g}" if share < 1 else "")
    if adapt != "none":
        text += f"+{adapt}" + (f"-{per}" if per != "block" else "") + (f"-alpha{alpha:g}" if alpha != _ALPHA else "")
    return text


def made_by(path: Path) -> dict[str, Any] | None:
    """Return what made the predictions in a .npz without reading them; None where there are none, or not ours."""
    try:
        with files.open_arrays(path) as archive:
            found = json.loads(str(archive["made_by"]))
    except files.READ_ERRORS:
        return None
    return found if isinstance(found, dict) else None


@dataclass(frozen=True)
class Correctness:
    """Of predictions, which rows are right: what differences between runs are tested on.

    Attributes:
        classes: their names, in the order that targets count them.
        ids: [N] text.
        targets: [N] or [N, K], or None where unknown.
        correct: [N], or None where targets are unknown.
        images: [N] which image a row shows: its place within its block, or its own where there are no blocks.
    """

    classes: tuple[str, ...]
    ids: NDArray[np.str_]
    targets: Targets | None
    correct: NDArray[np.bool_] | None
    images: NDArray[np.int64]


def load_correctness(path: Path) -> Correctness:
    """Return the answers in a .npz; outputs, most of a file, are read only where decisions are made from them.

    Raises:
        RunError: missing, truncated, altered or not ours.
    """
    arrays = _read(path, lambda name: name not in ("outputs", "thresholds"))
    try:
        sizes, ids = arrays["block_sizes"], arrays["ids"]
        images = np.concatenate([np.arange(size) for size in sizes]) if len(sizes) else np.arange(len(ids))
        classes = tuple(str(name) for name in arrays["classes"])
        if "targets" not in arrays:
            return Correctness(classes, ids, None, None, images)
        if "top1" in arrays:
            targets = arrays["targets"].astype(np.int64)
            return Correctness(classes, ids, targets, arrays["top1"] == targets, images)
    except files.READ_ERRORS as error:
        raise _damaged(path, error) from None
    found = load(path)
    return Correctness(classes, found.ids, found.targets, found.correct(), images)


def _from_arrays(arrays: Mapping[str, NDArray[Any]], path: Path) -> Predictions:
    try:
        name = str(arrays["task"])
        if name not in TASKS:
            raise ValueError(f"unknown task '{name}'")
        row, outputs = TASKS[name], arrays["outputs"]
        made_by = json.loads(str(arrays["made_by"]))
        if not isinstance(made_by, dict):
            raise ValueError("made_by is not a mapping")
        if arrays["ids"].dtype.kind != "U" or outputs.dtype != (np.float16 if row.shifted else np.float32):
            raise ValueError("ids are not text, or outputs are of another type than the task's")
        if not np.isfinite(outputs).all():
            raise ValueError("outputs are not finite")
        return Predictions(
            task=name,
            ids=arrays["ids"],
            classes=tuple(str(name) for name in arrays["classes"]),
            outputs=outputs,
            targets=_targets(arrays, row),
            top1=_indices("top1", arrays) if "top1" in arrays else None,
            block_names=arrays["block_names"],
            block_sizes=arrays["block_sizes"],
            made_by=made_by,
            thresholds=arrays["thresholds"].astype(np.float32) if "thresholds" in arrays else None,
        )
    except files.READ_ERRORS as error:
        raise _damaged(path, error) from None


def _targets(arrays: Mapping[str, NDArray[Any]], row: TaskRow) -> Targets | None:
    if "targets" not in arrays:
        return None
    if not row.target_columns:
        return _indices("targets", arrays)
    if not np.isin(arrays["targets"], (0, 1)).all():
        raise ValueError("targets hold other values than 0 and 1")
    return arrays["targets"].astype(np.float32)


def _indices(name: str, arrays: Mapping[str, NDArray[Any]]) -> NDArray[np.int64]:
    values = arrays[name].astype(np.int64)
    if values.max(initial=0) >= len(arrays["classes"]) or values.min(initial=0) < 0:
        raise ValueError(f"{name} holds an index that is no class's")
    return values
