"""Several workers on one machine: processes that are started, replaced when they die, and stopped together.

Each does what the same command with one worker does. Nothing is shared but the study's storage.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from comp.runtime import signals
from comp.runtime.errors import Interrupted, StudyError, UserError
from comp.runtime.progress import Progress
from comp.tuning.create import OPENERS, StudyPlan
from comp.tuning.study import Study

_POLL_SECONDS = 0.5
_MOST_EARLY_DEATHS = 10  # of workers in a row, without a trial that ends in between
_EXIT_USER = 2


def work_together(
    study: Study, plan: StudyPlan, workers: int, progress: Progress, on_trial: Callable[[Study], None]
) -> None:
    """Run a study's trials in processes of their own until it is over.

    A worker that is killed is replaced, and its trial goes on from its checkpoint in the next one that is free.

    Args:
        study: as opened here, to watch.
        plan: what workers open it with.
        workers: how many at a time.
        progress: called twice a second.
        on_trial: called when trials have ended.

    Raises:
        StudyError: trials keep failing, or workers keep dying.
        Interrupted: a signal; the workers have stopped, and their trials wait for the next command.
    """
    running: dict[int, Any] = {}
    ended, deaths = _ended(study), 0
    try:
        while not study.is_over():
            for place in range(workers):
                process = running.get(place)
                if process is not None and process.is_alive():
                    continue
                if process is not None and process.exitcode == _EXIT_USER:
                    study.refuse_failing()
                    raise StudyError(f"{study.folder}: a worker could not go on, for the reason that it has told above")
                deaths += process is not None and process.exitcode != 0
                if process is None or process.exitcode != 0:
                    running[place] = _start(plan, place, workers)
            time.sleep(_POLL_SECONDS)
            if (now := _ended(study)) > ended:
                ended, deaths = now, 0
                on_trial(study)
            progress("trials", ended, study.total, "trials")
            if deaths > _MOST_EARLY_DEATHS:
                raise StudyError(
                    f"{study.folder}: {deaths} workers in a row died before a trial had ended; use fewer --workers, or "
                    "see with one what kills them"
                )
    finally:
        _stop(running)


def _ended(study: Study) -> int:
    return sum(trial.state.is_finished() for trial in study.trials())


def _start(plan: StudyPlan, place: int, workers: int) -> Any:
    # Spawned, not forked: threads and CUDA do not survive a fork.
    process = multiprocessing.get_context("spawn").Process(
        target=_main, args=(plan, place, workers), name=f"comp-worker-{place}"
    )
    process.start()
    return process


def _stop(running: dict[int, Any]) -> None:
    """Ask the workers to stop at their next safe point, and wait until they have."""
    for process in running.values():
        if process.is_alive():
            process.terminate()
    for process in running.values():
        process.join()


def _main(plan: StudyPlan, place: int, workers: int) -> None:
    """Work in a process of its own, with its share of the cores and one of the GPUs."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the one that started us decides, by SIGTERM
    _take_share(place, workers)
    from comp.tuning.trial import Data
    from comp.tuning.worker import work

    try:
        with signals.catch_stop_signals():
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            with OPENERS[plan.part](plan) as study:
                work(study, Data(), Path(plan.runs_root), _progress, lambda study: None)
    except Interrupted as stop:
        sys.exit(128 + stop.signum)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(_EXIT_USER)


def _progress(what: str, done: int, total: int, unit: str = "images", note: str = "") -> None:
    """Stop at the next safe point where a signal has come, or the process that started this one is dead."""
    signals.raise_if_interrupted()
    parent = multiprocessing.parent_process()
    if parent is not None and not parent.is_alive():
        raise Interrupted(signal.SIGTERM)


def _take_share(place: int, workers: int) -> None:
    if hasattr(os, "sched_setaffinity"):
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, share_of(sorted(os.sched_getaffinity(0)), place, workers))
    import torch

    devices = torch.cuda.device_count()
    if devices > 1 and "CUDA_VISIBLE_DEVICES" not in os.environ:
        os.environ["CUDA_VISIBLE_DEVICES"] = str(place % devices)


def share_of(cores: list[int], place: int, workers: int) -> set[int]:
    """Return the cores of one of several workers: as many for each, or where there are fewer, one that they share."""
    if workers >= len(cores):
        return {cores[place % len(cores)]}
    return set(cores[place * len(cores) // workers : (place + 1) * len(cores) // workers])
