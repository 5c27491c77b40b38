"""Workers: Optuna's `optimize` over a study's trials, in this process or in several of one machine.

Workers share nothing but the study's storage. A command with several of them replaces those that die, and stops them
together.
"""

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, Trial

from comp.runtime.errors import StudyError, UserError
from comp.runtime.progress import Progress
from comp.runtime.workers import POLL_SECONDS, Worker, start, stop
from comp.runtime.workers import progress as worker_progress
from comp.tracking.tracker import open_tracker
from comp.tuning.create import OPENERS, StudyPlan
from comp.tuning.results import discard_weights
from comp.tuning.storage import answering
from comp.tuning.study import NotCountedError, Study, is_counted, record_failure
from comp.workflows import plugins

if TYPE_CHECKING:
    from comp.data.dataset import Dataset

_MAX_EARLY_DEATHS = 10  # of workers in a row, without a trial that ends in between


def work(
    study: Study,
    datasets: "dict[int, Dataset]",
    runs_root: Path,
    progress: Progress,
    on_trial: Callable[[Study], None],
) -> None:
    """Run trials until the study is over, including those of other workers that die meanwhile.

    Args:
        study: see `comp.tuning.study`.
        datasets: fold -> its data; missing ones are opened and added.
        runs_root: where run folders are made.
        progress: called at every step, and while other workers still train.
        on_trial: called when a trial of this worker has ended.

    Raises:
        StudyError: three trials in a row have failed, or the storage does not answer.
        Interrupted: a signal; the current trial waits for the next command.
    """
    from comp.tuning.trial import TrialRunner, TrialTakenOver  # loads torch

    with open_tracker(study.config.track) as tracker:
        runner = TrialRunner(study, runs_root, datasets, tracker, progress)
        stopped = False  # by us, and not by a sampler that has no other point
        trial_lock = contextlib.ExitStack()  # held until Optuna has ended the trial

        def objective(trial: Trial) -> list[float]:
            trial_lock.enter_context(study.lock_of(trial.number))
            try:
                config = study.config_of(trial)
            except (NotCountedError, UpdateFinishedTrialError):
                raise
            except Exception as error:  # a combination of values that no config takes, or Optuna's refusal
                record_failure(trial, error)
                raise
            finally:
                study.turn.release(force=True)
            return runner.run(trial, config)

        def after_trial(_: optuna.Study, trial: FrozenTrial) -> None:
            nonlocal stopped
            trial_lock.close()
            if is_counted(trial):
                discard_weights(study)
                on_trial(study)
            if not study.take_turn():
                stopped = True
                study.optuna.stop()

        with answering(study.folder):
            while not study.is_over():
                try:
                    if study.take_turn():
                        stopped = False
                        study.optuna.optimize(objective, callbacks=[after_trial], catch=(Exception,))
                        study.is_sampler_done = not stopped
                    else:
                        time.sleep(POLL_SECONDS)
                        progress("trials", len(study.ended()), study.total, "trials")
                except TrialTakenOver:
                    continue
                finally:
                    trial_lock.close()
                    study.turn.release(force=True)


def work_together(
    study: Study, plan: StudyPlan, workers: int, progress: Progress, on_trial: Callable[[Study], None]
) -> None:
    """Run a study's trials in several processes until it is over.

    A worker that is killed is replaced, and the next free worker resumes its trial from its checkpoint.

    Args:
        study: as opened here, to watch.
        plan: workers open the study with it.
        workers: how many run at a time.
        progress: called twice a second.
        on_trial: called when trials have ended.

    Raises:
        StudyError: trials keep failing, or workers keep dying.
        Interrupted: a signal; the workers have stopped, and their trials wait for the next command.
    """
    running: dict[int, Worker] = {}
    ended, deaths = len(study.ended()), 0
    try:
        while not study.is_over():
            for index in range(workers):
                worker = running.get(index)
                if worker is not None and worker.exit_code is None:
                    continue
                if worker is not None and worker.exit_code == UserError.exit_code:
                    study.check_failures()
                    raise StudyError(f"{study.folder}: a worker stopped: {worker.error()}")
                deaths += worker is not None and worker.exit_code != 0
                if worker is None or worker.exit_code != 0:
                    running[index] = start(index, workers, _work_alone, plan)
            time.sleep(POLL_SECONDS)
            if (now := len(study.ended())) > ended:
                ended, deaths = now, 0
                on_trial(study)
            progress("trials", ended, study.total, "trials")
            if deaths > _MAX_EARLY_DEATHS:
                raise StudyError(
                    f"{study.folder}: {deaths} workers in a row died before a trial had ended; use fewer --workers, or "
                    "find the cause with --workers 1"
                )
    finally:
        stop(running.values())


def _work_alone(plan: StudyPlan) -> None:
    plugins.load(plan.load())
    with answering(plan.folder), OPENERS[plan.part](plan) as study:
        work(study, {}, Path(plan.runs_root), worker_progress, lambda study: None)
