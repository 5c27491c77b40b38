"""A study: its trials, which of them count, how far it is, and what a trial of it trains."""

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import filelock
import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, Trial, TrialState

from comp import config as configs
from comp.config import Config
from comp.config.space import Entry, pick_values
from comp.runtime.errors import StudyError
from comp.tuning.recovery import ENDED_BY_US, MOST_RETRIES, kills, recover
from comp.tuning.storage import Store

MOST_FAILURES = 3  # in a row, after which a study stops
SHEDS = "sheds_weights"  # user attribute of trials that began where only the best were to keep theirs
_MOST_REPEATS = 20  # proposals in a row that were made before, after which a space counts as searched


class NotCountedError(Exception):
    """A trial that trains nothing and does not count: a repeat of another, or one more than the study is to have."""


@dataclass
class Study:
    """A study as one process sees it; a context that closes its storage.

    Attributes:
        name: in its storage, `<competition>/<study>`.
        folder: where its runs and results lie.
        config: what its trials depart from; what it says of the study is in section `tune`.
        store: where its trials are kept.
        optuna: Optuna's study.
        wanted: how many trials it is to have; None: those that are enqueued, and nothing is proposed.
        propose: turns a trial into its config.
        kind: `trial` or `confirm`: what its runs are named by, before their number.
        sampler_for: the sampler of a trial's number; after a repeat one that proposes what no trial has had, if it can.
        deadline: `time.time()` from which no trial begins.
        forgiven: numbers of trials that failed before this command.
        turn: held by the process of this machine that begins a trial or looks for dead ones.
        repeats: proposals in a row that this process has struck out.
        spent: whether this process's sampler has seen every point tried or under way.
        seen: number of a trial of a server -> when this process first saw it run, in seconds.
    """

    name: str
    folder: Path
    config: Config
    store: Store
    optuna: optuna.Study
    wanted: int | None
    propose: Callable[[Trial], Config]
    kind: str
    sampler_for: Callable[[int, bool], Any]
    deadline: float = float("inf")
    forgiven: frozenset[int] = frozenset()
    turn: filelock.BaseFileLock = field(init=False)
    repeats: int = 0
    spent: bool = False
    seen: dict[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.turn = filelock.FileLock(self._lock_path("turn"))

    def __enter__(self) -> "Study":
        return self

    def __exit__(self, *error: object) -> None:
        self.store.close()

    def trials(self) -> list[FrozenTrial]:
        """Return the trials that count, by number: none that was struck out, or queued again under another number."""
        return [trial for trial in self.optuna.get_trials(deepcopy=False) if counts(trial)]

    def lock_of(self, number: int) -> filelock.BaseFileLock:
        """Return the lock that is held by the process which runs a trial."""
        return filelock.FileLock(self._lock_path(str(number)), timeout=0)

    def _lock_path(self, what: str) -> Path:
        return self.store.locks / f"{self.name.replace('/', '.')}-{what}"

    @property
    def total(self) -> int:
        """How many trials it is to have."""
        return sum("of" in trial.user_attrs for trial in self.trials()) if self.wanted is None else self.wanted

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

    def has_another(self) -> bool:
        """Tell whether a trial may begin now: one that waits, or a new one."""
        if time.time() >= self.deadline:
            return False
        trials, total = self.trials(), self.total
        if self.spent and all(trial.state.is_finished() for trial in trials):
            self.optuna.set_user_attr("exhausted", True)
        waiting = [place for place, trial in enumerate(trials) if trial.state == TrialState.WAITING]
        return waiting[0] < total if waiting else len(trials) < total and not (self.spent or self.exhausted)

    def take_turn(self) -> bool:
        """Take the turn for another trial; False, without the turn, where none may begin now.

        Raises:
            StudyError: see `refuse_failing`.
        """
        self.turn.acquire()
        self.optuna.sampler = optuna.samplers.RandomSampler()  # one that has no say in trials of dead workers
        recover(self)
        self.refuse_failing()
        if self.has_another():
            self.optuna.sampler = self.sampler_for(len(self.optuna.get_trials(deepcopy=False)), self.repeats > 0)
            return True
        self.turn.release()
        return False

    def refuse_failing(self) -> None:
        """Stop a study whose trials keep failing.

        Raises:
            StudyError: the last three trials that ended have failed since this command began.
        """
        ended = [trial for trial in self.trials() if trial.state.is_finished() and trial.number not in self.forgiven]
        last = sorted(ended, key=lambda trial: trial.datetime_complete)[-MOST_FAILURES:]
        if len(last) == MOST_FAILURES and all(trial.state == TrialState.FAIL for trial in last):
            raise StudyError(
                f"{self.folder}: {MOST_FAILURES} trials in a row have failed, so the study stops. If memory, disk or "
                "data are the cause, mend it and give the same command again; if the config or a value of tune.space "
                f"is, change it and begin another study with --study NAME, for this one keeps both:\n  {_reasons(last)}"
            )

    def refuse_empty(self) -> None:
        """Refuse a search that has come to nothing.

        Raises:
            StudyError: none of its trials is complete.
        """
        trials = self.trials()
        if any(trial.state == TrialState.COMPLETE for trial in trials):
            return
        ended = [trial for trial in trials if trial.state.is_finished()]
        raise StudyError(
            f"{self.folder}: {len(ended)} trials have ended and none is complete, so there is no best one; mend the "
            "cause and give the same command with more --trials or --timeout, or change the config and begin another "
            f"study with --study NAME:\n  {_reasons(ended[-MOST_FAILURES:])}"
        )

    def settle(self, trial: Trial) -> Config:
        """Return what a trial that has begun trains; what it trains is noted, so that no other repeats it.

        Raises:
            NotCountedError: another has the same config, or other workers have begun the last trials meanwhile.
            UserError: no config takes these values.
        """
        known = trial.user_attrs
        if "config_hash" in known and ENDED_BY_US.isdisjoint(known):  # it goes on
            return self.propose(trial)
        others = [other for other in self.trials() if other.number < trial.number]
        if len(others) >= self.total:
            trial.set_user_attr("surplus", True)
            raise NotCountedError
        config = self.propose(trial)
        fingerprint = configs.fingerprint(config)
        earlier = [other.number for other in others if other.user_attrs.get("config_hash") == fingerprint]
        if earlier:
            trial.set_user_attr("repeats", earlier[0])
            self.repeats += 1
            if self.repeats >= _MOST_REPEATS:
                self.optuna.set_user_attr("exhausted", True)
            raise NotCountedError
        self.repeats = 0
        trial.set_user_attr("config_hash", fingerprint)
        if self.config.tune.keep != "all":
            trial.set_user_attr(SHEDS, True)
        return config

    def put_back(self, trial: Trial) -> None:
        """Let an interrupted trial wait for the next command: its values, reports and run stay."""
        storage = self.store.backend
        study_id = storage.get_study_id_from_name(self.name)
        trial_id = storage.get_trial_id_from_study_id_trial_number(study_id, trial.number)
        with contextlib.suppress(UpdateFinishedTrialError):  # another process has taken it over
            storage.set_trial_state_values(trial_id, TrialState.WAITING)


def counts(trial: FrozenTrial) -> bool:
    """Tell whether a trial is one of the study's: neither struck out, nor failed with its worker and queued again."""
    known = trial.user_attrs
    if "repeats" in known or "surplus" in known:
        return False
    return trial.state != TrialState.FAIL or "reason" in known or kills(trial) >= MOST_RETRIES


def reason_of(trial: FrozenTrial) -> str:
    """Return why a trial has failed, empty where it has not."""
    if trial.state == TrialState.FAIL and "reason" not in trial.user_attrs:
        return f"its worker died {kills(trial) + 1} times"
    return str(trial.user_attrs.get("reason", ""))


def _reasons(trials: Sequence[FrozenTrial]) -> str:
    return "\n  ".join(f"trial {row.number}: {reason_of(row) or row.state.name.lower()}" for row in trials)


def failed(trial: Trial, error: Exception) -> None:
    """Keep why a trial fails: what kind of error, and its first line."""
    first = (str(error).strip() or "no message").splitlines()[0]
    trial.set_user_attr("reason", f"{type(error).__name__}: {first}"[:500])


def suggest(space: Sequence[Entry], config: Config, trial: Trial) -> dict[str, Any]:
    """Return a trial's values, path -> value, drawn by its study's sampler in the space's order."""
    return pick_values(space, config, lambda entry: _draw(entry, trial))


def _draw(entry: Entry, trial: Trial) -> Any:
    if entry.kind == "choice":
        spelled = spelled_choices(entry)
        return spelled[trial.suggest_categorical(entry.path, list(spelled))]
    if entry.kind == "int":
        return trial.suggest_int(entry.path, int(entry.low), int(entry.high), step=int(entry.step or 1), log=entry.log)
    return entry.rounded(trial.suggest_float(entry.path, entry.low, entry.high, step=entry.step, log=entry.log))


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
