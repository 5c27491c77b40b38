"""Write submissions: a CSV and a sidecar `.json` that records the run, weights, config and code behind it. Torch-free.

The CSV holds an id and an answer (`comp.submission.answers`) for each image of the suite. Both files are written
atomically, and existing files are replaced only with `force`.
"""

import glob
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from comp.config import PredictConfig
from comp.results import files, prediction_files, runs
from comp.results.predictions import Predictions
from comp.results.runs import Run
from comp.results.runs import sidecar_path as sidecar_path
from comp.runtime.errors import RunError, SubmissionError
from comp.submission import check_format
from comp.submission.answers import ANSWERS, quote_cell
from comp.submission.derive_format import derive_format
from comp.submission.format import Competition, SubmissionFormat

_CHUNK_ROWS = 100_000  # rows whose probabilities are in memory at the same time


def free_path(folder: Path, stem: str) -> Path:
    """Return the first of `folder/stem.csv`, `stem-2.csv`, `stem-3.csv` ... with neither a CSV nor a sidecar."""
    number = 1
    while True:
        path = folder / (f"{stem}.csv" if number == 1 else f"{stem}-{number}.csv")
        if not path.exists() and not sidecar_path(path).exists():
            return path
        number += 1


def check_output_path(path: Path, *, force: bool) -> None:
    """Check, before any work starts, that a submission can be written to a path.

    Raises:
        SubmissionError: the name does not end in .csv, a file exists and `force` is not set, or the folder is not
            writable.
    """
    if path.suffix != ".csv":
        raise SubmissionError(f"{path}: a submission's name must end in .csv")
    for file in (path, sidecar_path(path)):
        if file.is_dir():
            raise SubmissionError(f"{file}: is a folder; choose another name with -o")
    existing = next((file for file in (path, sidecar_path(path)) if file.exists()), None)
    if existing and not force:
        what = "already exists" if existing == path else f"already exists, without {path.name} that it describes"
        raise SubmissionError(f"{existing}: {what}; choose another name with -o or replace it with --force")
    if reason := files.find_write_problem(path.parent):
        raise SubmissionError(f"{path}: {reason}; choose another folder with -o")


def has_submission(run: Run, folder: Path = Path("submissions")) -> bool:
    """Return whether a complete run's submission still exists, unchanged: the CSV that it records, or one in `folder`.

    That one is recorded then: a kill came between writing and recording it, or a later one was removed.
    """
    metrics, options = run.metrics(), run.config().predict
    if _read_intact(run, Path(metrics.submission)):
        return True
    for path in sorted(folder.glob(f"{glob.escape(metrics.competition)}*.csv")):
        sidecar = _read_intact(run, path)
        made_by = sidecar.get("made_by", {})
        stored = run.predictions_path(f"suite{prediction_files.variant_suffix(made_by)}")
        if made_by and _has_options(made_by, options) and prediction_files.read_made_by(stored) == made_by:
            _record(run, path, transductive=bool(sidecar.get("transductive")))
            return True
    return False


def has_intact_submission(run: Run, path: Path | None = None) -> bool:
    """Return whether a submission of a complete run exists unchanged: the one that it records, or the one at a path."""
    return bool(_read_intact(run, path or Path(run.metrics().submission)))


def _read_intact(run: Run, path: Path) -> dict[str, Any]:
    """Return the sidecar of a CSV that the run wrote and nobody changed; empty if it is none."""
    try:
        sidecar = files.read_json(sidecar_path(path))
        is_intact = sidecar.get("run") == run.name and sidecar.get("sha256") == files.sha256_file(path)
    except (RunError, OSError, ValueError):  # ValueError: the run records no submission
        return {}
    return sidecar if is_intact else {}


def _has_options(made_by: Mapping[str, Any], options: PredictConfig) -> bool:
    """Return whether predictions have the views and the adaptation of a config."""
    names = ("views", "adapt", "adapt_per", "alpha")
    same_share = (made_by.get("views_share", 1.0) == 1) == (options.views_for == "all")
    return same_share and all(made_by.get(name, getattr(options, name)) == getattr(options, name) for name in names)


def _record(run: Run, path: Path, *, transductive: bool) -> None:
    with run.write_lock():
        updates = {"submission": str(path), "transductive": transductive}
        run.write_metrics(run.metrics().model_copy(update=updates))


def lost_submission(run: Run) -> Path | None:
    """Return where the CSV recorded in a complete run was if it is gone, and nothing else has taken the name."""
    path = Path(run.metrics().submission)
    if path.suffix != ".csv" or path.exists() or not path.parent.is_dir():
        return None
    return path if not sidecar_path(path).exists() or is_leftover(run, path) else None


def is_leftover(run: Run, path: Path) -> bool:
    """Return whether only its sidecar is left of a run's submission, which says nothing of a file that was sent."""
    try:
        sidecar = files.read_json(sidecar_path(path))
    except (RunError, OSError, ValueError):
        return False
    return not path.exists() and sidecar.get("run") == run.name and "sent" not in sidecar


def write_run_submission(
    run: Run,
    predictions: Predictions,
    competition: Competition,
    path: Path,
    *,
    training_counts: Sequence[int],
    trace: Mapping[str, Any] | None = None,
    force: bool = False,
) -> Path:
    """Write a run's predictions as a submission, check the CSV on disk and record it in the run.

    Args:
        run: the complete run that made the predictions.
        predictions: for all images that the competition asks for.
        competition: defines the format.
        path: the CSV.
        training_counts: training images per class, for later checks of the class distribution; empty: unknown.
        trace: more values for the sidecar, beside run, config, `made_by`, weights, seed, code and machine.
        force: replace existing files; what is left of the run's own submission at this path is replaced anyway.

    Raises:
        SubmissionError: the file exists.
        RunError: the disk is full; existing files are kept.
    """
    form = derive_format(competition).format
    transductive = bool(predictions.made_by.get("transductive") or run.metrics().pseudo_labels)
    sidecar = {
        "run": run.name,
        "run_path": str(run.path),
        "config_hash": run.config_hash(),
        "made_by": dict(predictions.made_by),
        "transductive": transductive,
        "training_counts": list(training_counts),
        "weights_sha256": predictions.made_by["weights_sha256"],
        "seed": run.config().seed,
        **(trace or {}),
        **runs.describe_machine(),
    }
    write_submission(path, predictions, form, sidecar, force=force or is_leftover(run, path))
    problems = check_format.check_file(path, form)
    assert not problems, problems
    _record(run, path, transductive=transductive)
    return path


def write_submission(
    path: Path, predictions: Predictions, form: SubmissionFormat, sidecar: Mapping[str, Any], *, force: bool = False
) -> None:
    """Write a CSV and its sidecar.

    Args:
        path: ends in .csv; missing folders are created.
        predictions: for the whole suite, in its order.
        form: the competition's format.
        sidecar: how the predictions were made; the format and the CSV's sha256 are added.
        force: replace existing files.

    Raises:
        SubmissionError: not a .csv name, a file exists, or the ids differ from the format's.
        RunError: the disk is full or not writable; existing files are kept.
    """
    check_output_path(path, force=force)
    if not np.array_equal(predictions.ids, form.ids()):
        raise SubmissionError(
            f"{path}: the ids of the predictions differ from those of the suite; predict again: comp predict RUN"
        )
    files.make_folder(path.parent)
    lines = [",".join(map(quote_cell, form.header)) + "\n"]
    write_cells = ANSWERS[form.answer].write
    for start in range(0, len(predictions), _CHUNK_ROWS):
        rows = predictions.take(slice(start, start + _CHUNK_ROWS))
        ids = [quote_cell(key) for key in rows.ids.tolist()]
        lines += [",".join(cells) + "\n" for cells in zip(ids, *write_cells(rows, form), strict=True)]
    content = "".join(lines).encode()
    # The sidecar is written first: a kill in between leaves a sidecar without its CSV, never a CSV without its sidecar.
    traced = {**sidecar, "rows": len(predictions), "sha256": files.sha256_bytes(content), "format": form.to_json()}
    try:
        files.write_files_atomically({sidecar_path(path): files.to_json(traced), path: content}, replace=force)
    except FileExistsError:
        existing = next((file for file in (sidecar_path(path), path) if file.exists()), path)
        raise SubmissionError(f"{existing}: another process has just written it; choose another name with -o") from None
