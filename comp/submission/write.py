"""Write submissions: a CSV and a sidecar `.json` that records the run, weights, config and code behind it. Torch-free.

The CSV holds an id and an answer (`comp.submission.answers`) for each image of the suite. Both files are written
atomically, and existing files are replaced only with `force`.
"""

import contextlib
import glob
import itertools
from collections.abc import Iterator, Mapping, Sequence
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
from comp.submission.class_shares import read_prior
from comp.submission.derive_format import derive_format
from comp.submission.format import Competition, SubmissionFormat

FOLDER = Path("submissions")
_CHUNK_ROWS = 100_000  # rows whose probabilities are in memory at the same time


def free_path(folder: Path, stem: str) -> Path:
    """Return the first of `folder/stem.csv`, `stem-2.csv`, `stem-3.csv` ... with neither a CSV nor a sidecar."""
    return next(path for path in _numbered(folder, stem) if not _existing(path))


def _numbered(folder: Path, stem: str) -> Iterator[Path]:
    yield folder / f"{stem}.csv"
    for number in itertools.count(2):
        yield folder / f"{stem}-{number}.csv"


def _existing(path: Path) -> list[Path]:
    """Return which of a submission's CSV and sidecar exist."""
    return [file for file in (path, sidecar_path(path)) if file.exists()]


def finish_interrupted(path: Path) -> None:
    """Give a submission its CSV if a killed process had renamed the sidecar only.

    The CSV lies beside it under its temporary name, with the SHA-256 that the sidecar records.
    """
    with contextlib.suppress(OSError, ValueError):  # a path that can name no file: its reader says so
        if files.staged_for(path):  # else nobody waits for a process that writes another file of the folder
            with files.hold_folder(path.parent):
                _finish_interrupted(path)


def _finish_interrupted(path: Path) -> None:
    with contextlib.suppress(RunError, OSError):
        if staged := files.staged_for(path):
            expected = files.read_json(sidecar_path(path)).get("sha256")
            for temporary in staged:
                if files.sha256_file(temporary) == expected:
                    temporary.replace(path)
                    return


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
    finish_interrupted(path)
    existing = _existing(path)
    if existing and not force:
        what = "already exists" if path in existing else f"already exists, without {path.name} that it describes"
        raise SubmissionError(f"{existing[0]}: {what}; choose another name with -o or replace it with --force")
    if reason := files.find_write_problem(path.parent):
        raise SubmissionError(f"{path}: {reason}; choose another folder with -o")


def has_submission(run: Run, output: Path | None = None) -> bool:
    """Return whether a complete run's submission still exists, unchanged, at `output` if that is given.

    One that the run does not record is recorded then: a kill came between writing and recording it, or a later one was
    removed.
    """
    metrics, options = run.metrics(), run.config().predict
    recorded = Path(metrics.submission)
    if is_submission_of(run, recorded) and (output is None or output.resolve() == recorded.resolve()):
        return True
    traced = FOLDER.glob(f"{glob.escape(metrics.competition)}*.json")
    for path in [output] if output else sorted(file.with_suffix(".csv") for file in traced):
        finish_interrupted(path)
        made_by = _read_intact(run, path).get("made_by", {})
        stored = run.predictions_path(f"suite{prediction_files.variant_suffix(made_by)}")
        if made_by and _has_options(made_by, options) and prediction_files.read_made_by(stored) == made_by:
            _record(run, path)
            return True
    return False


def find_own(run: Run, output: Path | None = None) -> Path | None:
    """Return the last CSV that a complete run wrote as its config predicts, unchanged; at `output` if that is given."""
    scores = run.metrics()
    for name, variant in reversed(scores.written().items()):
        path, is_own = Path(name), variant == scores.variant or not run.has_weights()
        if is_own and is_submission_of(run, path) and (output is None or output.resolve() == path.resolve()):
            return path
    return None


def is_submission_of(run: Run, path: Path) -> bool:
    """Return whether a CSV is one that a run wrote, unchanged, as its sidecar says."""
    return bool(_read_intact(run, path))


def _read_intact(run: Run, path: Path) -> dict[str, Any]:
    """Return the sidecar of a CSV that the run wrote and nobody changed; empty if it is none."""
    try:
        sidecar = files.read_json(sidecar_path(path))
        is_intact = sidecar.get("run") == run.name and sidecar.get("sha256") == files.sha256_file(path)
    except (RunError, OSError, ValueError):  # ValueError: the run records no submission
        return {}
    return sidecar if is_intact else {}


def _has_options(made_by: Mapping[str, Any], options: PredictConfig) -> bool:
    """Return whether predictions have the options of a config."""
    names = ("views", "adapt", "adapt_per", "alpha", "pool")
    same_share = (made_by.get("views_share", 1.0) == 1) == (options.views_for == "all")
    same_prior = made_by.get("prior", "none") == read_prior(options.prior)
    same = all(made_by.get(name, getattr(options, name)) == getattr(options, name) for name in names)
    return same and same_share and same_prior


def _record(run: Run, path: Path) -> None:
    """Record a submission in its run, with how its predictions were made."""
    sidecar, options = files.read_json(sidecar_path(path)), run.config().predict
    made_by = sidecar.get("made_by", {})
    variant = prediction_files.variant_suffix(made_by, decided=True)
    is_own = _has_options(made_by, options) and not made_by.get("decide")
    with run.write_lock(runs.RECORD_SECONDS):
        metrics = run.metrics()
        earlier = {name: how for name, how in metrics.written().items() if name != str(path)}
        updates = {
            "submission": str(path),
            "submissions": {**earlier, str(path): variant},
            "transductive": bool(sidecar.get("transductive")),
            **({"variant": variant} if is_own else {}),
        }
        run.write_metrics(metrics.model_copy(update=updates))


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
    path: Path | None,
    *,
    training_counts: Sequence[int],
    trace: Mapping[str, Any] | None = None,
    force: bool = False,
) -> Path:
    """Write a run's predictions as a submission, check the CSV on disk and record it in the run; return its path.

    Args:
        run: the complete run that made the predictions.
        predictions: for all images that the competition asks for.
        competition: defines the format.
        path: the CSV; None: the first free one among `submissions/COMPETITION.csv`, `-2`, `-3` ...
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
    force = force or (path is not None and is_leftover(run, path))
    path = write_submission(path, predictions, form, sidecar, force=force, stem=run.config().competition.name)
    problems = check_format.check_file(path, form)
    assert not problems, problems
    _record(run, path)
    return path


def write_submission(
    path: Path | None,
    predictions: Predictions,
    form: SubmissionFormat,
    sidecar: Mapping[str, Any],
    *,
    force: bool = False,
    stem: str = "submission",
) -> Path:
    """Write a CSV and its sidecar; return the CSV's path.

    Args:
        path: ends in .csv, missing folders are created; None: the first free one among `submissions/STEM.csv`, `-2` ...
        predictions: for the whole suite, in its order.
        form: the competition's format.
        sidecar: how the predictions were made; the format and the CSV's sha256 are added.
        force: replace existing files.
        stem: of a free name.

    Raises:
        SubmissionError: not a .csv name, a file exists, or the ids differ from the format's.
        RunError: the disk is full or not writable; existing files are kept.
    """
    shown = path or FOLDER / f"{stem}.csv"
    if path is not None:
        check_output_path(path, force=force)
    if not np.array_equal(predictions.ids, form.ids()):
        raise SubmissionError(
            f"{shown}: the ids of the predictions differ from those of the suite; predict again: comp predict RUN"
        )
    content = to_csv(predictions, form)
    traced = {**sidecar, "rows": len(predictions), "sha256": files.sha256_bytes(content), "format": form.to_json()}
    files.make_folder(shown.parent)
    with files.hold_folder(shown.parent):  # two processes never mix their CSV and sidecar, or take one free name
        path = path or free_path(FOLDER, stem)
        # The sidecar comes first: a kill in between leaves it with the CSV's temporary file (`finish_interrupted`).
        contents = {sidecar_path(path): files.to_json(traced), path: content}
        _finish_interrupted(path)
        try:
            files.write_files_atomically(contents, replace=force)
        except FileExistsError:
            raise SubmissionError(f"{path}: another process has just written it; choose another name with -o") from None
    return path


def to_csv(predictions: Predictions, form: SubmissionFormat) -> bytes:
    """Return a CSV's bytes, its rows those of the predictions."""
    lines = [",".join(map(quote_cell, form.header)) + "\n"]
    write_cells = ANSWERS[form.answer].write
    for start in range(0, len(predictions), _CHUNK_ROWS):
        rows = predictions.take(slice(start, start + _CHUNK_ROWS))
        ids = [quote_cell(key) for key in rows.ids.tolist()]
        lines += [",".join(cells) + "\n" for cells in zip(ids, *write_cells(rows, form), strict=True)]
    return "".join(lines).encode()
