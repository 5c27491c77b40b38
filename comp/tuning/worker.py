"""One worker: claims trials and trains them, until the study has none left."""

import time
from collections.abc import Callable
from pathlib import Path

from comp.progress import Progress
from comp.tracking import tracker as trackers
from comp.tuning import trial
from comp.tuning.study import Study, claim, free_dead
from comp.tuning.trial import Data

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
        StudyError: three trials in a row have failed.
        Interrupted: a signal; the trial under way waits for the next command.
    """
    with trackers.opened(study.config.track) as tracker:
        while True:
            claimed = claim(study)
            if claimed is not None:
                trial.run(study, claimed, data, runs_root, tracker, progress)
                on_trial(study)
            elif study.is_over():
                return
            else:
                wait(study, progress)


def wait(study: Study, progress: Progress) -> None:
    """Wait a moment for trials that other workers run, and free those of workers that have died."""
    time.sleep(_POLL_SECONDS)
    ended = sum(row.state.is_finished() for row in study.trials())
    progress("trials", ended, study.total, "trials")
    with study.turn():
        free_dead(study)
