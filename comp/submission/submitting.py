"""A run's predictions as a submission: written, traced to what made them, checked, noted in the run. Torch-free."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from comp.results import runs
from comp.results.predictions import Predictions
from comp.results.runs import Run
from comp.submission import check_format, derive_format, write
from comp.submission.format import Competition


def submit(
    run: Run,
    found: Predictions,
    competition: Competition,
    path: Path,
    *,
    trace: Mapping[str, Any],
    training_counts: Sequence[int] = (),
    force: bool = False,
) -> Path:
    """Write the submission and its sidecar, check the CSV that lies on the disk, and note it in the run.

    Args:
        run: complete; it made the predictions.
        found: of all that the competition submits.
        competition: gives the format.
        path: of the CSV.
        trace: what the sidecar says beside the run, its config, `made_by`, the code and the machine: weights, seeds.
        training_counts: of each class, whose shares a later check compares; empty: not known.
        force: replace what is there.

    Raises:
        SubmissionError: the name is taken.
        RunError: the disk is full; what was there stays.
    """
    wanted = derive_format.format_of(competition)
    transductive = bool(found.made_by.get("transductive"))
    sidecar = {
        "run": run.name,
        "run_path": str(run.path),
        "config_hash": run.config_hash(),
        "made_by": dict(found.made_by),
        "transductive": transductive,
        "training_counts": list(training_counts),
        **trace,
        **runs.describe_machine(),
    }
    write.write(path, found, wanted, sidecar, force=force)
    problems = check_format.format_problems(path, wanted)
    assert not problems, problems
    with run.write_lock():
        noted = {"submission": str(path), "transductive": transductive}
        run.write_metrics(run.metrics().model_copy(update=noted))
    return path
