"""Submission files: written whole and traced. Torch-free.

A submission is a CSV with an id and an answer (`comp.submission.answers`) for each image of the suite. Beside it
lies a sidecar `.json` that traces it to its run, weights, config and code. Neither is ever half-written, and an
existing one is replaced only on demand.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from comp.results import files
from comp.results.predictions import Predictions
from comp.results.runs import Run
from comp.results.runs import sidecar_path as sidecar_path
from comp.runtime.errors import RunError, SubmissionError
from comp.submission.answers import ANSWERS, quoted
from comp.submission.format import SubmissionFormat

_CHUNK_ROWS = 100_000  # whose probabilities are in memory at a time


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
        SubmissionError: not a .csv name, something is there already and `force` is not given, or the folder cannot be
            written.
    """
    if path.suffix != ".csv":
        raise SubmissionError(f"{path}: a submission's name must end in .csv")
    taken = next((file for file in (path, sidecar_path(path)) if file.exists()), None)
    if taken and not force:
        raise SubmissionError(f"{taken}: is there already; choose another name with -o or replace it with --force")
    for file in (path, sidecar_path(path)):
        if file.is_dir():
            raise SubmissionError(f"{file}: is a folder; choose another name with -o")
    if reason := files.find_write_problem(path.parent):
        raise SubmissionError(f"{path}: {reason}; choose another folder with -o")


def is_kept(run: Run) -> bool:
    """Tell whether the CSV that a complete run names as its submission still lies there as it was written."""
    path = Path(run.metrics().submission)
    try:
        sidecar = files.read_json(sidecar_path(path))
        return bool(sidecar.get("run") == run.name and sidecar.get("sha256") == files.sha256_file(path))
    except (RunError, OSError, ValueError):  # ValueError: it names none
        return False


def write(
    path: Path, predictions: Predictions, form: SubmissionFormat, sidecar: Mapping[str, Any], *, force: bool = False
) -> None:
    """Write the CSV and its sidecar.

    Args:
        path: ends in .csv; its folder is made.
        predictions: of the whole suite, in its order.
        form: the competition's format.
        sidecar: what made the predictions; the format and the CSV's sha256 are added.
        force: replace what is there.

    Raises:
        SubmissionError: not a .csv name, something is there already, or ids differ from the format's.
        RunError: the disk is full or may not be written; what was there stays.
    """
    demand_free(path, force=force)
    if not np.array_equal(predictions.ids, form.ids()):
        raise SubmissionError(f"{path}: the predictions' ids are not the suite's; predict again: comp predict RUN")
    files.make_folder(path.parent)
    content = _to_csv(predictions, form)
    # The sidecar lands first: a kill in between leaves a trace without its CSV, never a CSV without a trace.
    traced = {**sidecar, "rows": len(predictions), "sha256": files.sha256_bytes(content), "format": form.to_json()}
    try:
        files.write_files_atomically({sidecar_path(path): files.to_json(traced), path: content}, replace=force)
    except FileExistsError:
        raise SubmissionError(f"{path}: another process has just written it; choose another name with -o") from None


def _to_csv(predictions: Predictions, form: SubmissionFormat) -> bytes:
    parts = [",".join(map(quoted, form.header)) + "\n"]
    write = ANSWERS[form.answer].write
    for start in range(0, len(predictions), _CHUNK_ROWS):
        rows = predictions.take(slice(start, start + _CHUNK_ROWS))
        keys = [quoted(key) for key in rows.ids.tolist()]
        lines = map(",".join, zip(keys, *write(rows, form), strict=True))
        parts.append("\n".join(lines) + "\n")
    return "".join(parts).encode()
