"""A study: its trials, which of them count, how far it is, and what a worker may claim of it.

A trial is claimed by one worker at a time and stays itself until it has ended: one that was interrupted, or whose
worker was killed, waits again and goes on in its run. Proposals that an earlier trial has made already are struck out
and not counted.
"""

import contextlib
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

from comp import config as configs
from comp.config import Config
from comp.config.space import Entry, assemble
from comp.errors import StudyError, UserError
from comp.tuning.storage import Store

Propose = Callable[[Trial], Config]
MOST_KILLS = 3  # of a trial's workers, after which it counts as failed: it may be what kills them
MOST_FAILURES = 3  # in a row, after which a study stops
_MOST_REPEATS = 20  # proposals in a row that were made before, after which a space counts as searched


@dataclass
class Study:
    """A study as one process sees it; a context that closes its storage.

    Attributes:
        name: in its storage, `<competition>/<study>`.
        folder: where its runs and results lie.
        config: what its trials depart from; what it says of the study is in section `tune`.
        store: where its trials are kept.
        optuna: Optuna's study.
        total: how many trials it is to have, struck ones not counted.
        propose: turns a claimed trial into its config.
        kind: `trial` or `confirm`: what its runs are named by, before their number.
        sampler_for: the sampler of a trial's number.
        untried: returns a point that no trial has had, None where all are tried; None itself: the space is a continuum.
        in_order: whether `untried` proposes, and not the sampler.
        deadline: `time.time()` from which nothing is claimed.
        forgiven: numbers of trials that failed before this command.
    """

    name: str
    folder: Path
    config: Config
    store: Store
    optuna: optuna.Study
    total: int
    propose: Propose
    kind: str
    sampler_for: Callable[[int], Any]
    untried: Callable[[Sequence[FrozenTrial]], dict[str, Any] | None] | None = None
    in_order: bool = False
    deadline: float = float("inf")
    forgiven: frozenset[int] = frozenset()

    def __enter__(self) -> "Study":
        return self

    def __exit__(self, *error: object) -> None:
        self.store.close()

    def trials(self) -> list[FrozenTrial]:
        """Return the trials that count, by number: none that was struck out as a repeat."""
        return [trial for trial in self.optuna.get_trials(deepcopy=False) if "repeats" not in trial.user_attrs]

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Hold the study's turn; see `Store.claiming`."""
        with self.store.claiming(self.name):
            yield

    @property
    def group(self) -> str:
        """What its runs have in common in W&B."""
        return self.config.track.group or self.folder.name

    @property
    def exhausted(self) -> bool:
        """Whether every point of the space has been tried."""
        return bool(self.optuna.user_attrs.get("exhausted"))

    def is_over(self) -> bool:
        """Tell whether nothing of it is under way, and nothing left that this command may begin."""
        trials = self.trials()[: self.total]
        if any(trial.state == TrialState.RUNNING for trial in trials):
            return False
        ended = all(trial.state.is_finished() for trial in trials)
        return time.time() >= self.deadline or (ended and (len(trials) == self.total or self.exhausted))


@dataclass
class Claimed:
    """A trial that this process runs, its lock held.

    Attributes:
        trial: Optuna's.
        config: what it trains.
        lock: held until it has ended.
    """

    trial: Trial
    config: Config
    lock: filelock.BaseFileLock


def claim(study: Study) -> Claimed | None:
    """Return the next trial to run, as its only holder; None where there is none now.

    Trials that wait come first: interrupted ones, those of workers that died, enqueued ones.

    Raises:
        StudyError: three trials in a row have failed.
    """
    with study.turn():
        free_dead(study)
        repeats = 0
        while _has_claimable(study):
            refuse_failing(study)
            if study.in_order and not _has_waiting(study) and not _prepare_another(study, repeats):
                return None
            trial = _ask(study)
            lock = study.store.trial_lock(study.name, trial.number)
            try:
                config = study.propose(trial)
            except UserError as error:  # a combination of values that no config takes
                fail(study, trial, f"{type(error).__name__}: {error}")
                continue
            if (earlier := _earlier(study, trial, config)) is not None:
                trial.set_user_attr("repeats", earlier)
                study.optuna.tell(trial, state=TrialState.FAIL)
                repeats += 1
                if not _prepare_another(study, repeats):
                    return None
                continue
            lock.acquire()
            trial.set_user_attr("config_hash", configs.fingerprint(config))
            study.store.beat(study.name, trial.number)
            trial.set_user_attr("claimed", trial.user_attrs.get("claimed", 0) + 1)
            return Claimed(trial, config, lock)
    return None


def free_dead(study: Study) -> None:
    """Let the trials of workers that died wait again; one whose workers die again and again has failed."""
    for trial in study.optuna.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if not study.store.is_dead(study.name, trial):
            continue
        kills = trial.user_attrs.get("kills", 0) + 1
        trial_id = study.store.id_of(study.name, trial.number)
        study.store.backend.set_trial_user_attr(trial_id, "kills", kills)
        if kills > MOST_KILLS:
            study.store.backend.set_trial_user_attr(trial_id, "reason", f"its worker died {kills} times")
            study.store.backend.set_trial_state_values(trial_id, TrialState.FAIL)
        else:
            study.store.put_back(study.name, trial.number)


def refuse_failing(study: Study) -> None:
    """Stop a study whose trials keep failing.

    Raises:
        StudyError: the last three trials that ended have failed since this command began.
    """
    ended = [trial for trial in study.trials() if trial.state.is_finished() and trial.number not in study.forgiven]
    ended.sort(key=lambda trial: trial.datetime_complete)
    last = ended[-MOST_FAILURES:]
    if len(last) == MOST_FAILURES and all(trial.state == TrialState.FAIL for trial in last):
        reasons = "\n  ".join(f"trial {trial.number}: {trial.user_attrs.get('reason', '')}" for trial in last)
        raise StudyError(
            f"{study.folder}: {MOST_FAILURES} trials in a row have failed, so the study stops; mend the cause, or take "
            f"such values out of tune.space, and give the same command again:\n  {reasons}"
        )


def tell(study: Study, claimed: Claimed, state: TrialState, values: Sequence[float] | None = None) -> None:
    """End a claimed trial, once: one that another process has ended meanwhile stays as it is."""
    with study.turn():
        number = claimed.trial.number
        now = study.optuna.get_trials(deepcopy=False)[number].state
        if now == TrialState.WAITING:  # this process was taken for dead
            study.store.backend.set_trial_state_values(study.store.id_of(study.name, number), TrialState.RUNNING)
        study.optuna.tell(number, values, state, skip_if_finished=True)
    claimed.lock.release()


def fail(study: Study, trial: Trial, reason: str) -> None:
    """End a trial as failed, for a reason that is kept."""
    trial.set_user_attr("reason", reason[:500])
    study.optuna.tell(trial, state=TrialState.FAIL, skip_if_finished=True)


def put_back(study: Study, claimed: Claimed) -> None:
    """Let an interrupted trial wait for the next command."""
    with study.turn():
        study.store.put_back(study.name, claimed.trial.number)
    claimed.lock.release()


def suggest(space: Sequence[Entry], config: Config, trial: Trial) -> dict[str, Any]:
    """Return a trial's values, path -> value, drawn by its study's sampler in the space's order."""
    return assemble(space, config, lambda entry: _draw(entry, trial))


def _draw(entry: Entry, trial: Trial) -> Any:
    if entry.kind == "choice":
        spelled = spelled_choices(entry)
        return spelled[trial.suggest_categorical(entry.path, list(spelled))]
    if entry.kind == "int":
        return trial.suggest_int(entry.path, int(entry.low), int(entry.high), step=int(entry.step or 1), log=entry.log)
    return entry.tidy(trial.suggest_float(entry.path, entry.low, entry.high, step=entry.step, log=entry.log))


def spelled_choices(entry: Entry) -> dict[Any, Any]:
    """Return choices as a storage keeps them -> as a config has them: lists and mappings become text."""
    return {
        value if value is None or isinstance(value, str | int | float) else repr(value): value
        for value in entry.choices
    }


def spell(entry: Entry, value: Any) -> Any:
    """Return one of an entry's values as a storage keeps it."""
    if entry.kind != "choice":
        return value
    return next(key for key, choice in spelled_choices(entry).items() if choice == value)


def _has_claimable(study: Study) -> bool:
    trials = study.trials()
    if time.time() >= study.deadline:
        return False
    waiting = [place for place, trial in enumerate(trials) if trial.state == TrialState.WAITING]
    return waiting[0] < study.total if waiting else len(trials) < study.total and not study.exhausted


def _has_waiting(study: Study) -> bool:
    return any(trial.state == TrialState.WAITING for trial in study.trials())


def _ask(study: Study) -> Trial:
    study.optuna.sampler = study.sampler_for(len(study.optuna.get_trials(deepcopy=False)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        warnings.filterwarnings("ignore", "Heartbeat of storage")  # `Store.beating` tells it
        return study.optuna.ask()


def _earlier(study: Study, trial: Trial, config: Config) -> int | None:
    """Return the number of the trial that trains, or has trained, the same config; None where there is none."""
    if "claimed" in trial.user_attrs:
        return None
    wanted = configs.fingerprint(config)
    same = (other for other in study.trials() if other.user_attrs.get("config_hash") == wanted)
    return next((other.number for other in same if other.number != trial.number), None)


def _prepare_another(study: Study, repeats: int) -> bool:
    """See to it that the next proposal is another one; False where the space has no more."""
    point = study.untried(study.trials()) if study.untried else None
    if point is not None:
        study.optuna.enqueue_trial(point)
        return True
    if study.untried or repeats >= _MOST_REPEATS:
        study.optuna.set_user_attr("exhausted", True)
        return False
    return True
