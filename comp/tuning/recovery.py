"""What becomes of the trials of killed workers: they fail, and are queued again with what they know of their runs.

On a server Optuna does so, by heartbeats. A file has none, but locks: a worker takes the study's turn to begin a trial,
and within it the trial's own lock, which it holds until the trial has ended. The system releases the locks of a dead
process, so that whoever has the turn and finds a running trial's lock free knows that nobody runs it.
"""

import time
import warnings
from typing import TYPE_CHECKING

import filelock
import optuna
from optuna.storages import RetryHeartbeatStaleTrialCallback, fail_stale_trials
from optuna.trial import FrozenTrial, TrialState

if TYPE_CHECKING:
    from comp.tuning.study import Study

MOST_RETRIES = 3  # of a trial whose workers die, after which it counts as failed: it may be what kills them
ENDED_BY_US = frozenset(
    {"reason", "repeats", "surplus"}
)  # user attributes of trials that failed with their worker alive


def kills(trial: FrozenTrial) -> int:
    """Return how many workers have died over a trial before it was queued anew, as Optuna's callback counts them."""
    return len(trial.system_attrs.get("retry_history", ()))


def retry(study: optuna.Study, trial: FrozenTrial) -> None:
    """Queue a trial again whose worker has died, three times at most: parameters, reports and attributes are kept."""
    if ENDED_BY_US.isdisjoint(trial.user_attrs):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            again = RetryHeartbeatStaleTrialCallback(max_retry=MOST_RETRIES, inherit_intermediate_values=True)
        again(study, trial)


def recover(study: "Study") -> None:
    """Queue the trials of dead workers again; called by whoever has the study's turn and runs no trial."""
    if study.store.grace_seconds:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            fail_stale_trials(study.optuna)
    for trial in study.optuna.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if _is_dead(study, trial):
            dead = study.optuna.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)
            if dead.state == TrialState.FAIL:  # and has not ended since it was listed
                retry(study.optuna, dead)


def _is_dead(study: "Study", trial: FrozenTrial) -> bool:
    if study.store.grace_seconds:
        # Optuna knows hearts that have beaten; a worker that died before its first beat has left no other sign.
        silent = "config_hash" not in trial.user_attrs
        first = study.seen.setdefault(trial.number, time.monotonic())
        return silent and time.monotonic() - first > study.store.grace_seconds
    try:
        with study.lock_of(trial.number):
            return True
    except filelock.Timeout:
        return False
