"""Submission files: written whole and traced. Torch-free.

A submission is a CSV with an id and a label, or a probability of each class, for each image of the suite. Beside it
lies a sidecar `.json` that traces it to its run, weights, config and code. Neither is ever half-written, and an
existing one is replaced only on demand.
"""

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from comp import runs
from comp.competition.spec import SubmissionFormat
from comp.errors import SubmissionError
from comp.predictions import Predictions

_CHUNK_ROWS = 100_000  # of text at a time: its bytes stay in the cache
_QUOTED = np.isin(np.arange(128), [ord(sign) for sign in '",\r\n'])  # what a CSV has to quote, by code


def sidecar_path(path: Path) -> Path:
    """Return where a submission's sidecar lies."""
    return path.with_suffix(".json")


def free_path(folder: Path, stem: str) -> Path:
    """Return `folder/stem.csv`, or with `-2`, `-3` ... the first that neither a CSV nor a sidecar has."""
    number = 1
    while True:
        path = folder / (f"{stem}.csv" if number == 1 else f"{stem}-{number}.csv")
        if not path.exists() and not sidecar_path(path).exists():
            return path
        number += 1


def demand_free(path: Path, *, force: bool) -> None:
    """Refuse a name that cannot be written: asked before the work that ends there.

    Raises:
        SubmissionError: not a .csv name, or something is there already and `force` is not given.
    """
    if path.suffix != ".csv":
        raise SubmissionError(f"{path}: a submission's name must end in .csv")
    if not force and (path.exists() or sidecar_path(path).exists()):
        raise SubmissionError(f"{path}: is there already; choose another name with -o or replace it with --force")


def write(
    path: Path, predictions: Predictions, wanted: SubmissionFormat, sidecar: Mapping[str, Any], *, force: bool = False
) -> None:
    """Write the CSV and its sidecar.

    Args:
        path: ends in .csv; its folder is made.
        predictions: of the whole suite, in its order.
        wanted: the competition's format.
        sidecar: what made the predictions; the format and the CSV's sha256 are added.
        force: replace what is there.

    Raises:
        SubmissionError: not a .csv name, something is there already, or ids differ from the format's.
        RunError: the disk is full or may not be written; what was there stays.
    """
    demand_free(path, force=force)
    if not np.array_equal(predictions.ids, wanted.ids()):
        raise SubmissionError(f"{path}: the predictions' ids are not the suite's; predict again: comp predict RUN")
    runs.make_folder(path.parent)
    content = _to_csv(predictions, wanted)
    # The sidecar lands first: a kill in between leaves a trace without its CSV, never a CSV without a trace.
    traced = {**sidecar, "rows": len(predictions), "sha256": runs.sha256_of(content), "format": wanted.to_json()}
    try:
        runs.write_together({sidecar_path(path): runs.to_json(traced), path: content}, replace=force)
    except FileExistsError:
        raise SubmissionError(f"{path}: another process has just written it; choose another name with -o") from None


def _to_csv(predictions: Predictions, wanted: SubmissionFormat) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerow(wanted.columns)
    parts = [text.getvalue().encode()]
    for start in range(0, len(predictions), _CHUNK_ROWS):
        rows = slice(start, start + _CHUNK_ROWS)
        if wanted.probabilities:
            parts.append(_probability_lines(predictions.ids[rows], predictions.logits[rows]))
        else:
            parts.append(_label_lines(predictions.ids[rows], wanted.texts, predictions.top1[rows]))
    return b"".join(parts)


def _probability_lines(ids: NDArray[np.str_], logits: NDArray[np.float16]) -> bytes:
    odds = np.exp(logits.astype(np.float64))  # [N, C]; rows' maxima are 0: no overflow
    shares = (odds / odds.sum(1, keepdims=True)).tolist()
    return _lines([key, *(f"{share:.6g}" for share in row)] for key, row in zip(ids.tolist(), shares, strict=True))


def _label_lines(ids: NDArray[np.str_], texts: tuple[str, ...], labels: NDArray[np.int64]) -> bytes:
    """Return `id,text` lines: a matrix of bytes, a row each, whose zeros behind shorter texts are left out."""
    keys, answers = _codes(ids), _codes(np.array(texts, np.str_))
    if keys is None or answers is None:
        return _lines([key, texts[label]] for key, label in zip(ids.tolist(), labels.tolist(), strict=True))
    width = keys.shape[1]
    lines = np.zeros((len(ids), width + answers.shape[1] + 2), np.uint8)
    lines[:, :width] = keys
    lines[:, width] = ord(",")
    lines[:, width + 1 : -1] = answers[labels]
    lines[:, -1] = ord("\n")
    content: bytes = lines[lines != 0].tobytes()
    return content


def _codes(texts: NDArray[np.str_]) -> NDArray[np.uint8] | None:
    """Return texts' ASCII codes, uint8 [N, W], zeros behind the end; None where a CSV could not hold them bare."""
    width = max(texts.dtype.itemsize // 4, 1)
    codes = np.ascontiguousarray(texts).view(np.uint32).reshape(len(texts), -1) if texts.dtype.itemsize else None
    if codes is None or codes.max(initial=0) >= len(_QUOTED):
        return None
    small = codes.astype(np.uint8)
    inner_zeros = bool(((small[:, :-1] == 0) & (small[:, 1:] != 0)).any()) if width > 1 else False
    return None if inner_zeros or bool(_QUOTED[small].any()) else small


def _lines(rows: Any) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()
