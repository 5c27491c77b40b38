"""One worker: Optuna's `optimize` over a study's trials, until it has none left."""

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial, Trial

from comp.runtime.errors import StudyError, UserError
from comp.runtime.progress import Progress
from comp.tracking import tracker as trackers
from comp.tuning import keeping
from comp.tuning import trial as trials
from comp.tuning.study import Study, counts, failed
from comp.tuning.trial import Data, TakenOver

_POLL_SECONDS = 0.5


def work(study: Study, data: Data, runs_root: Path, progress: Progress, on_trial: Callable[[Study], None]) -> None:
    """Run trials until the study is over, those of other workers that die meanwhile among them.

    Args:
        study: see `comp.tuning.study`.
        data: of its trials, kept from one to the next.
        runs_root: where run folders are made.
        progress: called at every step, and while others still train.
        on_trial: called when a trial of this worker has ended.

    Raises:
        StudyError: three trials in a row have failed, or the storage is gone.
        Interrupted: a signal; the trial under way waits for the next command.
    """
    with trackers.opened(study.config.track) as tracker:
        stopped = False  # by us, and not by a sampler that knows no other point
        held = contextlib.ExitStack()  # a trial's lock, until Optuna has ended it

        def objective(trial: Trial) -> list[float]:
            held.enter_context(study.lock_of(trial.number))
            try:
                config = study.settle(trial)
            except UserError as error:  # a combination of values that no config takes
                failed(trial, error)
                raise
            finally:
                study.turn.release(force=True)
            return trials.run(study, trial, config, data, runs_root, tracker, progress)

        def after(_: optuna.Study, trial: FrozenTrial) -> None:
            nonlocal stopped
            held.close()
            if counts(trial):
                keeping.tidy(study)
                on_trial(study)
            if not study.take_turn():
                stopped = True
                study.optuna.stop()

        try:
            while not study.is_over():
                try:
                    if study.take_turn():
                        stopped = False
                        study.optuna.optimize(objective, callbacks=[after], catch=(Exception,))
                        study.spent = not stopped
                    else:
                        time.sleep(_POLL_SECONDS)
                        ended = sum(row.state.is_finished() for row in study.trials())
                        progress("trials", ended, study.total, "trials")
                except TakenOver:
                    continue
                finally:
                    held.close()
                    study.turn.release(force=True)
        except optuna.exceptions.StorageInternalError as error:
            reason = str(error.__cause__ or error).strip().splitlines()[0]
            raise StudyError(
                f"{study.folder}: the storage of its trials does not answer ({reason}); see to it, and give the same "
                "command again"
            ) from None
