"""Weights that a study keeps: those of its best trials, so that a search of hundreds fits on the disk."""

import contextlib
from pathlib import Path

from comp.results import runs
from comp.results.runs import Run
from comp.runtime.errors import RunError
from comp.tuning import confirm
from comp.tuning.study import SHEDS, Study


def tidy(study: Study) -> None:
    """Remove the weights of trials that have ended and are none of the best `tune.keep`; everything else stays.

    With several metrics those stay too that no other trial is better than in everything. Trials that began under
    `keep: all`, or before comp knew `keep`, stay as they are.
    """
    keep = study.config.tune.keep
    if keep == "all" or study.wanted is None:  # what confirms the best is the best's
        return
    best = {trial.number for trial in confirm.ranked(study)[:keep]}
    if len(study.optuna.directions) > 1:
        best |= {trial.number for trial in study.optuna.best_trials}
    for trial in study.trials():
        if SHEDS in trial.user_attrs and trial.state.is_finished() and trial.number not in best:
            for key, path in trial.user_attrs.items():
                if key.startswith("run-"):
                    _remove_weights(Run(Path(path)))


def _remove_weights(run: Run) -> None:
    """Remove a run's weights and mark that they are, unless another process writes the run."""
    if not (run.path / "config.yaml").is_file() or (run.path / runs.REMOVED).exists():
        return
    with contextlib.suppress(RunError), run.write_lock():
        run.write_json(runs.REMOVED, {"by": "tune.keep"})
        for name in runs.WEIGHTS:
            (run.path / name).unlink(missing_ok=True)
