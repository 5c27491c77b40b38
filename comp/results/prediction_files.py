"""Predictions on disk: a `.npz` without pickles, version 2. Torch-free.

Version 1, which held `logits` and `labels` of single-label tasks, is still read.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from comp.config import PredictConfig
from comp.config.tasks import TASKS, TaskRow
from comp.results import array_files, files, runs
from comp.results.predictions import Predictions, Targets
from comp.runtime.errors import RunError, UserError

_LABELLED = ("val", "val-final", "ood_val")  # files whose labels are always known
VERSION = 2
_ALPHA = PredictConfig().alpha
_SPLITS = ("val", "ood_val", "test", "suite")  # of `comp predict --split`
# Parts of a file name.
_VIEWED = re.compile(r"\+(?!bn\b|tent\b|roid\b|prior-|pool-|decide-)([a-z_]+)(?:-uncertain([\d.]+))?")
_ADAPTED = re.compile(r"\+(bn|tent|roid)(?:-(file|stream))?(?:-alpha([\d.]+))?")
_PRIOR = re.compile(r"\+prior-([a-z]+|file-[0-9a-f]{8})")
_POOLED = re.compile(r"\+pool-([a-z]+)")
_DECIDED = re.compile(r"\+decide-([a-z_]+)")
_FIELDS = ("task", "ids", "classes", "outputs", "block_names", "block_sizes", "made_by")
_OPTIONAL = ("targets", "top1", "thresholds")
_FIELDS_1 = ("ids", "classes", "logits", "top1", "labels", "block_names", "block_sizes", "made_by")


def save(path: Path, predictions: Predictions) -> None:
    """Write predictions to a .npz, atomically."""
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
        kind = np.float32 if predictions.row.numeric else np.uint8 if predictions.row.target_columns else np.int32
        arrays["targets"] = predictions.targets.astype(kind)
    if predictions.top1 is not None:
        arrays["top1"] = predictions.top1.astype(np.int32)
    if predictions.thresholds is not None:
        arrays["thresholds"] = predictions.thresholds
    files.write_arrays(path, arrays)


def load(path: Path) -> Predictions:
    """Load predictions from a .npz.

    Raises:
        RunError: missing, damaged, of a later version, or not a predictions file.
    """
    return _from_arrays(_read(path, lambda name: True), path)


def _read(path: Path, select: Callable[[str], bool]) -> dict[str, NDArray[Any]]:
    """Return the selected arrays of a .npz under their version 2 names."""
    try:
        with array_files.open_arrays(path) as archive:
            names = set(archive)
            version = int(archive["version"]) if "version" in names else 1
            if version > VERSION:
                raise RunError(f"{path}: version {version} is newer than {VERSION}; update comp")
            fields = _FIELDS_1 if version == 1 else _FIELDS
            missing = [name for name in fields if name not in names]
            if missing:
                raise RunError(f"{path}: not a predictions file: it lacks {', '.join(missing)}")
            unknown = names - {"version", *_FIELDS, *_OPTIONAL}
            if version != 1 and unknown:  # a damaged name would look like a missing optional array
                raise ValueError(f"unknown arrays {', '.join(sorted(unknown))}")
            if version == 1:
                arrays = _upgrade(archive, select)
            else:
                arrays = {name: archive[name] for name in sorted(names - {"version"}) if select(name)}
            _check_blocks(arrays)
            if select("targets") and "targets" not in arrays and path.stem.partition("+")[0] in _LABELLED:
                raise ValueError("it lacks targets, the labels of the validation images")
            return arrays
    except FileNotFoundError:
        raise RunError(f"{path}: no such predictions file; {_repair_hint(path)}") from None
    except RunError:
        raise
    except files.READ_ERRORS as error:
        raise _damaged(path, error) from None


def _check_blocks(arrays: Mapping[str, NDArray[Any]]) -> None:
    """Raise ValueError unless ids and classes are lists, and the blocks divide the rows into consecutive parts."""
    if arrays["ids"].ndim != 1 or arrays["classes"].ndim != 1 or arrays["block_names"].ndim != 1:
        raise ValueError("ids, classes and block_names: expected lists")
    names, sizes, rows = arrays["block_names"], arrays["block_sizes"], len(arrays["ids"])
    if sizes.ndim != 1 or len(names) != len(sizes) or (len(sizes) and sizes.dtype.kind not in "iu"):
        raise ValueError("block_sizes: expected one whole number for each of block_names")
    if (sizes < 0).any() or (len(sizes) and sum(sizes.tolist()) != rows):
        raise ValueError(f"block_sizes: expected a sum of {rows:,}, the number of rows")


def _damaged(path: Path, error: Exception) -> RunError:
    return RunError(f"{path}: damaged predictions file ({files.error_text(error)}); {_repair_hint(path)}")


def _repair_hint(path: Path) -> str:
    """Return how to create a run's predictions again, as the end of an error message."""
    run, (split, plus, variant) = runs.Run(path.parent.parent), path.stem.partition("+")
    if not run.has_weights():
        return f"{run.path} has no weights: {run.repair_hint}"
    images = f"--split {split}" if split in _SPLITS else "--suite DIR (the folder of that suite)"
    return f"create it again: comp predict {run.path} {images}{_options(run, plus + variant)}"


def _options(run: runs.Run, variant: str) -> str:
    """Return the `comp predict` options of a variant (part of a file name) that differ from the run's config."""
    views, adaptation = _VIEWED.search(variant), _ADAPTED.search(variant)
    options: dict[str, Any] = {
        "views": views[1] if views else "none",
        "adapt": adaptation[1] if adaptation else "none",
    }
    if views:
        options["views_for"] = f"uncertain:{views[2]}" if views[2] else "all"
    if adaptation:
        options["adapt_per"] = adaptation[2] or "block"
        options["alpha"] = float(adaptation[3]) if adaptation[3] else _ALPHA
    if prior := _PRIOR.search(variant):
        options["prior"] = "FILE.csv" if prior[1].startswith("file-") else prior[1]
    if pooled := _POOLED.search(variant):
        options["pool"] = pooled[1]
    if decided := _DECIDED.search(variant):
        options["decide"] = decided[1]
    try:
        config = run.config().predict
    except UserError:  # report one error at a time
        config = PredictConfig()
    differing = {name: value for name, value in options.items() if value != getattr(config, name)}
    return "".join(f" --{name.replace('_', '-')} {value}" for name, value in differing.items())


def _upgrade(archive: Mapping[str, NDArray[Any]], select: Callable[[str], bool]) -> dict[str, NDArray[Any]]:
    """Return version 1's arrays under version 2's names; its labels are single, -1 if unknown."""
    names = {"outputs": "logits", "targets": "labels"}
    kept = [name for name in (*_FIELDS[1:], "targets", "top1") if select(name)]
    arrays = {"task": np.array("single_label"), **{name: archive[names.get(name, name)] for name in kept}}
    if (arrays["targets"] < 0).all():
        del arrays["targets"]
    return arrays


def variant_suffix(made_by: Mapping[str, Any], *, decided: bool = False) -> str:
    """Return the file suffix of prediction options: `+flip-uncertain0.25+bn-file-alpha0.5+prior-uniform`, or nothing.

    With `decided`, another decision than the run's ends it, such as `+decide-argmax`.
    """
    views, share = made_by.get("views", "none"), made_by.get("views_share", 1.0)
    adapt, per, alpha = made_by.get("adapt", "none"), made_by.get("adapt_per", "block"), made_by.get("alpha", _ALPHA)
    text = ""
    if views != "none":
        text += f"+{views}" + (f"-uncertain{share:g}" if share < 1 else "")
    if adapt != "none":
        text += f"+{adapt}" + (f"-{per}" if per != "block" else "") + (f"-alpha{alpha:g}" if alpha != _ALPHA else "")
    text += _prior_suffix(made_by.get("prior", "none"))
    text += f"+pool-{made_by['pool']}" if made_by.get("pool", "none") != "none" else ""
    return text + (f"+decide-{made_by['decide']}" if decided and made_by.get("decide") else "")


def _prior_suffix(prior: str | Mapping[str, float]) -> str:
    if isinstance(prior, Mapping):
        return f"+prior-file-{files.sha256_bytes(files.to_json(dict(sorted(prior.items()))))[:8]}"
    return "" if prior == "none" else f"+prior-{prior}"


def is_transductive(variant: str) -> bool:
    """Return whether a suffix names an adaptation, known class shares or pooled blocks."""
    return any(part.search(variant) for part in (_ADAPTED, _PRIOR, _POOLED))


def is_pooled(variant: str) -> bool:
    """Return whether a suffix names pooled blocks."""
    return _POOLED.search(variant) is not None


def read_made_by(path: Path) -> dict[str, Any] | None:
    """Return the `made_by` of a .npz without its other arrays; None if the file is missing or damaged."""
    try:
        with array_files.open_arrays(path) as archive:
            origin = files.parse_json(str(archive["made_by"]).encode())
    except files.READ_ERRORS:
        return None
    return origin if isinstance(origin, dict) else None


@dataclass(frozen=True)
class Correctness:
    """Which rows of a run's predictions are correct; differences between runs are tested on them.

    Attributes:
        classes: class names; targets are indices into them.
        ids: [N] text.
        targets: [N] or [N, K]; None if unknown.
        correct: [N]; None if targets are unknown, or numbers.
        images: [N] which image each row shows: its index within its block, or within the split without blocks.
    """

    classes: tuple[str, ...]
    ids: NDArray[np.str_]
    targets: Targets | None
    correct: NDArray[np.bool_] | None
    images: NDArray[np.int64]

    def has_same_rows(self, other: "Correctness") -> bool:
        """Return whether both hold the same classes, ids and targets in the same order."""
        same = self.classes == other.classes and np.array_equal(self.ids, other.ids)
        if self.targets is None or other.targets is None:
            return False
        return same and np.array_equal(self.targets, other.targets)


def load_correctness(path: Path) -> Correctness:
    """Load which rows of a .npz are correct; outputs, most of a file, are read only for tasks with thresholds.

    Raises:
        RunError: missing, damaged, of a later version, or not a predictions file.
    """
    arrays = _read(path, lambda name: name not in ("outputs", "thresholds"))
    try:
        sizes, ids = arrays["block_sizes"], arrays["ids"]
        images = np.concatenate([np.arange(size) for size in sizes]) if len(sizes) else np.arange(len(ids))
        classes = tuple(str(name) for name in arrays["classes"])
        if "targets" not in arrays:
            return Correctness(classes, ids, None, None, images)
        if "top1" in arrays:
            targets, top1 = _indices("targets", arrays), _indices("top1", arrays)
            return Correctness(classes, ids, targets, top1 == targets, images)
    except files.READ_ERRORS as error:
        raise _damaged(path, error) from None
    loaded = load(path)
    correct = None if loaded.row.numeric else loaded.correct()
    return Correctness(classes, loaded.ids, loaded.targets, correct, images)


def find_correctness(path: Path) -> Correctness | None:
    """Return which rows of a .npz are correct; None if it is gone or damaged, or its answers are unknown or numbers."""
    try:
        loaded = load_correctness(path)
    except RunError:  # a run's folder may be moved or pruned; its scores still count
        return None
    return loaded if loaded.correct is not None else None


def _from_arrays(arrays: Mapping[str, NDArray[Any]], path: Path) -> Predictions:
    try:
        name = str(arrays["task"])
        if name not in TASKS:
            raise ValueError(f"unknown task '{name}'")
        row, outputs = TASKS[name], arrays["outputs"]
        made_by = files.parse_json(str(arrays["made_by"]).encode())
        if not isinstance(made_by, dict):
            raise ValueError("made_by is not a mapping")
        if arrays["ids"].dtype.kind != "U" or outputs.dtype != (np.float16 if row.shifted else np.float32):
            raise ValueError("ids are not text, or outputs have the wrong data type for the task")
        if not np.isfinite(outputs).all():
            raise ValueError("outputs are not finite")
        _check_shapes(arrays, row)
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
            thresholds=_numbers("thresholds", arrays) if "thresholds" in arrays else None,
        )
    except files.READ_ERRORS as error:
        raise _damaged(path, error) from None


def _check_shapes(arrays: Mapping[str, NDArray[Any]], row: TaskRow) -> None:
    """Raise ValueError unless the arrays are those of the task, for the rows and classes that the file has."""
    if ("top1" in arrays) != row.one_class:
        raise ValueError(f"{'it lacks' if row.one_class else 'unexpected array'} top1 for task {row.name}")
    shape, expected = arrays["outputs"].shape, (len(arrays["ids"]), len(arrays["classes"]))
    if shape != expected:
        raise ValueError(f"outputs: expected {expected[0]:,} rows and {expected[1]:,} classes, found {list(shape)}")
    targets = expected if row.target_columns else expected[:1]
    of_indices = row.one_class  # whose shape `_indices` checks
    if "targets" in arrays and not of_indices and arrays["targets"].shape != targets:
        raise ValueError(f"targets: expected {list(targets)}, found {list(arrays['targets'].shape)}")
    if "thresholds" in arrays:
        *rows, limits = arrays["thresholds"].shape or (0, 0, 0)
        if rows not in ([], [shape[0]]) or not (row.numeric or limits == shape[1]):
            raise ValueError(f"thresholds: expected one per class, found {list(arrays['thresholds'].shape)}")


def _targets(arrays: Mapping[str, NDArray[Any]], row: TaskRow) -> Targets | None:
    if "targets" not in arrays:
        return None
    if row.numeric:
        numbers = _numbers("targets", arrays)
        if not np.isfinite(numbers).all():
            raise ValueError("targets are not finite")
        return numbers
    if not row.target_columns:
        return _indices("targets", arrays)
    if not np.isin(arrays["targets"], (0, 1)).all():
        raise ValueError("targets: expected only 0 and 1")
    return arrays["targets"].astype(np.float32)


def _numbers(name: str, arrays: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
    if arrays[name].dtype.kind not in "fiu":
        raise ValueError(f"{name}: expected numbers, found {arrays[name].dtype}")
    with np.errstate(over="ignore"):  # infinity is refused, or larger than any output
        return arrays[name].astype(np.float32)


def _indices(name: str, arrays: Mapping[str, NDArray[Any]]) -> NDArray[np.int64]:
    if arrays[name].dtype.kind not in "iu" or arrays[name].shape != arrays["ids"].shape:
        raise ValueError(f"{name}: expected a class index for each of {len(arrays['ids']):,} rows")
    values = arrays[name].astype(np.int64)
    if values.max(initial=0) >= len(arrays["classes"]) or values.min(initial=0) < 0:
        raise ValueError(f"{name}: a class index is out of range")
    return values
