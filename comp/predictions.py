"""Predictions: ids x logits with classes, labels where known and what made them. Torch-free.

The one currency of evaluate, ensemble and submit. On disk a `.npz` without pickles.
"""

import json
import struct
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from comp import runs
from comp.errors import NotFiniteError, RunError

# What zipfile and numpy raise of bytes that nobody wrote: a flipped flag asks for a password or another compression, a
# hostile header for more memory than there is.
_DAMAGE = (
    ValueError, AssertionError, TypeError, IndexError, KeyError, OSError, EOFError, MemoryError, RuntimeError,
    OverflowError, zipfile.BadZipFile, zlib.error, struct.error,
)  # fmt: skip
_FIELDS = ("ids", "classes", "logits", "top1", "labels", "block_names", "block_sizes", "made_by")


@dataclass(frozen=True)
class Predictions:
    """What a model says of each image.

    Attributes:
        ids: [N] text.
        classes: the class names, in the order of the logits' columns.
        logits: [N, C] float16, each row's maximum subtracted (softmax does not notice, float16 does).
        top1: [N] int64, the most likely class before rounding to float16.
        labels: [N] int64 or None where unknown.
        block_names: [K] text: `distortion00_1` ...; empty for a split without blocks.
        block_sizes: [K] int64: consecutive rows of each block.
        made_by: run, weights hash, views ...: plain values.
    """

    ids: NDArray[np.str_]
    classes: tuple[str, ...]
    logits: NDArray[np.float16]
    top1: NDArray[np.int64]
    labels: NDArray[np.int64] | None
    block_names: NDArray[np.str_]
    block_sizes: NDArray[np.int64]
    made_by: Mapping[str, Any]

    def __post_init__(self) -> None:
        rows, columns = self.logits.shape
        assert len(self.ids) == len(self.top1) == rows, (len(self.ids), len(self.top1), rows)
        assert len(self.classes) == columns, (len(self.classes), columns)
        assert self.labels is None or len(self.labels) == rows
        assert len(self.block_names) == len(self.block_sizes)
        assert not len(self.block_sizes) or int(self.block_sizes.sum()) == rows

    def __len__(self) -> int:
        return len(self.ids)

    def blocks(self) -> list[tuple[str, slice]]:
        """Return each block's name and rows."""
        ends = np.cumsum(self.block_sizes)
        spans = zip(self.block_names, ends - self.block_sizes, ends, strict=True)
        return [(str(name), slice(int(start), int(end))) for name, start, end in spans]

    def block_accuracy(self) -> dict[str, float]:
        """Return the share of right answers in each block; labels must be known."""
        assert self.labels is not None
        right = self.top1 == self.labels
        return {name: float(right[rows].mean()) for name, rows in self.blocks()}


def from_logits(
    logits: NDArray[np.float32],
    *,
    ids: NDArray[np.str_],
    classes: Sequence[str],
    labels: NDArray[np.int64] | None,
    made_by: Mapping[str, Any],
    blocks: Sequence[tuple[str, int]] = (),
) -> Predictions:
    """Return predictions from raw logits [N, C] float32.

    Raises:
        NotFiniteError: a logit is not finite: the first such row is named.
    """
    broken = np.flatnonzero(~np.isfinite(logits).all(axis=1))
    if len(broken):
        raise NotFiniteError(
            f"predictions: {len(broken)} of {len(logits)} rows are not finite, first {ids[broken[0]]}; the weights or "
            "their precision are at fault: try train.precision=fp32"
        )
    shifted = logits - logits.max(1, keepdims=True)
    return Predictions(
        ids=ids,
        classes=tuple(classes),
        logits=np.maximum(shifted, np.finfo(np.float16).min).astype(np.float16),
        top1=logits.argmax(1).astype(np.int64),
        labels=labels,
        block_names=np.array([name for name, _ in blocks], np.str_),
        block_sizes=np.array([size for _, size in blocks], np.int64),
        made_by=dict(made_by),
    )


def concatenate(parts: Sequence[Predictions]) -> Predictions:
    """Return consecutive parts as one; classes and what made them are the first one's."""
    first = parts[0]
    known = all(part.labels is not None for part in parts)
    return Predictions(
        ids=np.concatenate([part.ids for part in parts]),
        classes=first.classes,
        logits=np.concatenate([part.logits for part in parts]),
        top1=np.concatenate([part.top1 for part in parts]),
        labels=np.concatenate([part.labels for part in parts if part.labels is not None]) if known else None,
        block_names=np.concatenate([part.block_names for part in parts]),
        block_sizes=np.concatenate([part.block_sizes for part in parts]),
        made_by=first.made_by,
    )


def save(path: Path, predictions: Predictions) -> None:
    """Write a .npz atomically."""
    labels = predictions.labels
    arrays = {
        "ids": predictions.ids,
        "classes": np.array(predictions.classes, np.str_),
        "logits": predictions.logits,
        "top1": predictions.top1.astype(np.int32),
        "labels": np.full(len(predictions), -1, np.int32) if labels is None else labels.astype(np.int32),
        "block_names": predictions.block_names,
        "block_sizes": predictions.block_sizes,
        "made_by": np.array(json.dumps(dict(predictions.made_by), sort_keys=True)),
    }
    runs.write_atomically(path, partial(_savez, arrays=arrays))


def _savez(file: BinaryIO, arrays: Mapping[str, NDArray[Any]]) -> None:
    np.savez(file, **arrays)  # type: ignore[arg-type]  # numpy's stub takes its own flag for a keyword array


def load(path: Path) -> Predictions:
    """Return the predictions in a .npz.

    Raises:
        RunError: missing, truncated, altered or not ours.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            missing = [name for name in _FIELDS if name not in archive.files]
            if missing:
                raise RunError(f"{path}: not a predictions file: it lacks {', '.join(missing)}")
            return _from_arrays({name: archive[name] for name in _FIELDS})
    except FileNotFoundError:
        raise RunError(f"{path}: no such predictions; make them: comp predict RUN") from None
    except RunError:
        raise
    except _DAMAGE as error:
        raise RunError(f"{path}: damaged predictions file ({error}); make it again: comp predict RUN") from None


def made_by(path: Path) -> dict[str, Any] | None:
    """Return what made the predictions in a .npz without reading them; None where there are none, or not ours."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            found = json.loads(str(archive["made_by"]))
    except _DAMAGE:
        return None
    return found if isinstance(found, dict) else None


@dataclass(frozen=True)
class Answers:
    """Of predictions, what scores are counted from: without the logits, which are most of a file.

    Attributes:
        ids: [N] text.
        top1: [N] the answers.
        labels: [N], or None where unknown.
        images: [N] which image a row shows: its place within its block, or its own where there are no blocks.
    """

    ids: NDArray[np.str_]
    top1: NDArray[np.int64]
    labels: NDArray[np.int64] | None
    images: NDArray[np.int64]


def load_answers(path: Path) -> Answers:
    """Return the answers in a .npz.

    Raises:
        RunError: missing, truncated, altered or not ours.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            labels, sizes = archive["labels"].astype(np.int64), archive["block_sizes"]
            ids, top1 = archive["ids"], archive["top1"].astype(np.int64)
    except FileNotFoundError:
        raise RunError(f"{path}: no such predictions; make them: comp predict RUN") from None
    except (ValueError, zipfile.BadZipFile, OSError, EOFError, KeyError) as error:
        raise RunError(f"{path}: damaged predictions file ({error}); make it again: comp predict RUN") from None
    images = np.concatenate([np.arange(size) for size in sizes]) if len(sizes) else np.arange(len(ids))
    return Answers(ids, top1, None if (labels < 0).all() else labels, images)


def _from_arrays(arrays: Mapping[str, NDArray[Any]]) -> Predictions:
    labels, top1 = arrays["labels"].astype(np.int64), arrays["top1"].astype(np.int64)
    made_by = json.loads(str(arrays["made_by"]))
    if not isinstance(made_by, dict):
        raise ValueError("made_by is no mapping")
    if arrays["ids"].dtype.kind != "U" or arrays["logits"].dtype != np.float16:
        raise ValueError("ids are no text, or logits no half floats")
    for name, values in (("top1", top1), ("labels", labels)):
        if values.max(initial=-1) >= len(arrays["classes"]):
            raise ValueError(f"{name} names a class that there is not")
    if top1.min(initial=0) < 0:
        raise ValueError("top1 names a class that there is not")
    return Predictions(
        ids=arrays["ids"],
        classes=tuple(str(name) for name in arrays["classes"]),
        logits=arrays["logits"],
        top1=top1,
        labels=None if (labels < 0).all() else labels,
        block_names=arrays["block_names"],
        block_sizes=arrays["block_sizes"],
        made_by=made_by,
    )
