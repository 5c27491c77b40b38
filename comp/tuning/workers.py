"""Workers: Optuna's `optimize` over a study's trials, in this process or in several of one machine.

Workers share nothing but the study's storage. A command with several of them replaces those that die, and stops them
together.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from optuna.trial import FrozenTrial, Trial

from comp.runtime import signals
from comp.runtime.errors import Interrupted, StudyError, UserError
from comp.runtime.progress import Progress
from comp.tracking.tracker import open_tracker
from comp.tuning.create import OPENERS, StudyPlan
from comp.tuning.results import discard_weights
from comp.tuning.study import Study, is_counted, record_failure

if TYPE_CHECKING:
    from comp.data.dataset import Dataset

_POLL_SECONDS = 0.5
_MAX_EARLY_DEATHS = 10  # of workers in a row, without a trial that ends in between
_EXIT_USER = 2


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
    from comp.tuning.trial import TrialRunner, TrialTakenOver  # loads torch, which must follow `_take_share`

    with open_tracker(study.config.track) as tracker:
        runner = TrialRunner(study, runs_root, datasets, tracker, progress)
        stopped = False  # by us, and not by a sampler that has no other point
        trial_lock = contextlib.ExitStack()  # held until Optuna has ended the trial

        def objective(trial: Trial) -> list[float]:
            trial_lock.enter_context(study.lock_of(trial.number))
            try:
                config = study.config_of(trial)
            except UserError as error:  # a combination of values that no config takes
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

        try:
            while not study.is_over():
                try:
                    if study.take_turn():
                        stopped = False
                        study.optuna.optimize(objective, callbacks=[after_trial], catch=(Exception,))
                        study.is_sampler_done = not stopped
                    else:
                        time.sleep(_POLL_SECONDS)
                        progress("trials", len(study.ended()), study.total, "trials")
                except TrialTakenOver:
                    continue
                finally:
                    trial_lock.close()
                    study.turn.release(force=True)
        except optuna.exceptions.StorageInternalError as error:
            reason = str(error.__cause__ or error).strip().splitlines()[0]
            raise StudyError(
                f"{study.folder}: the study's storage does not answer ({reason}); bring it up and repeat the command"
            ) from None


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
    processes: dict[int, Any] = {}
    ended, deaths = len(study.ended()), 0
    spawn = multiprocessing.get_context("spawn")  # threads and CUDA do not survive a fork
    try:
        while not study.is_over():
            for index in range(workers):
                process = processes.get(index)
                if process is not None and process.is_alive():
                    continue
                if process is not None and process.exitcode == _EXIT_USER:
                    study.check_failures()
                    raise StudyError(f"{study.folder}: a worker stopped with the error above")
                deaths += process is not None and process.exitcode != 0
                if process is None or process.exitcode != 0:
                    arguments, name = (plan, index, workers), f"comp-worker-{index}"
                    processes[index] = spawn.Process(target=_main, args=arguments, name=name)
                    processes[index].start()
            time.sleep(_POLL_SECONDS)
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
        _stop(processes)


def _stop(processes: dict[int, Any]) -> None:
    """Ask the workers to stop at their next safe point, and wait for them."""
    for process in processes.values():
        if process.is_alive():
            process.terminate()
    for process in processes.values():
        process.join()


def _main(plan: StudyPlan, index: int, workers: int) -> None:
    """Run a worker process, with its share of the cores and one of the GPUs."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent decides, by SIGTERM
    _take_share(index, workers)
    from comp.workflows import plugins  # loads torch, which must follow

    try:
        with signals.catch_stop_signals():
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            plugins.load(plan.load())
            with OPENERS[plan.part](plan) as study:
                work(study, {}, Path(plan.runs_root), _progress, lambda study: None)
    except Interrupted as stop:
        sys.exit(128 + stop.signum)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(_EXIT_USER)


def _progress(what: str, done: int, total: int, unit: str = "images", note: str = "") -> None:
    """Stop at the next safe point after a signal, or when the parent process is dead."""
    signals.raise_if_interrupted()
    parent = multiprocessing.parent_process()
    if parent is not None and not parent.is_alive():
        raise Interrupted(signal.SIGTERM)


def _take_share(index: int, workers: int) -> None:
    if hasattr(os, "sched_setaffinity"):
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, share_of(sorted(os.sched_getaffinity(0)), index, workers))
    import torch

    devices = torch.cuda.device_count()
    if devices > 1 and "CUDA_VISIBLE_DEVICES" not in os.environ:
        os.environ["CUDA_VISIBLE_DEVICES"] = str(index % devices)


def share_of(cores: list[int], index: int, workers: int) -> set[int]:
    """Return a worker's cores: an equal share, or one shared core if there are more workers than cores."""
    if workers >= len(cores):
        return {cores[index % len(cores)]}
    return set(cores[index * len(cores) // workers : (index + 1) * len(cores) // workers])
