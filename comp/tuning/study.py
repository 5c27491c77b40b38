"""A study as one process sees it: its trials, its progress, and the config of each trial."""

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import filelock
import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState

from comp import config as configs
from comp.config import Config
from comp.config.space import Entry, parse_space, pick_values
from comp.runtime.errors import StudyError
from comp.tuning.storage import FAILED_ALIVE, MAX_RETRIES, Store, recover, worker_deaths

MAX_FAILURES = 3  # in a row, after which a study stops
SHEDS = "sheds_weights"  # user attribute of trials that began under a `tune.keep` other than `all`
_MAX_REPEATS = 20  # repeated proposals in a row, after which a space counts as searched


class NotCountedError(Exception):
    """A trial that trains nothing and does not count: it repeats another or exceeds the study's total."""


@dataclass
class Study:
    """A study as one process sees it; a context that closes its storage.

    Attributes:
        name: `<competition>/<study>`, its name in the storage.
        folder: where its runs and results lie.
        config: the base config of its trials; section `tune` describes the study.
        store: where its trials are stored.
        optuna: Optuna's study.
        max_trials: how many trials it gets; None: only those that are enqueued.
        propose: turns a trial into its config.
        run_prefix: `trial` or `confirm`: names its runs, before their number.
        sampler_for: (trial number, after a repeat?) -> sampler; after a repeat one that proposes untried points, if it
            can.
        deadline: `time.time()` from which no trial begins.
        prior_failures: numbers of the trials that failed before this command.
        turn: lock of the process of this machine that begins a trial or looks for dead ones.
        repeats: repeated proposals in a row in this process.
        is_sampler_done: whether this process's sampler has seen every point tried or under way.
        first_seen: number of a server's trial -> `time.monotonic()` at which this process first saw it run.
    """

    name: str
    folder: Path
    config: Config
    store: Store
    optuna: optuna.Study
    max_trials: int | None
    propose: Callable[[Trial], Config]
    run_prefix: str
    sampler_for: Callable[[int, bool], Any]
    deadline: float = float("inf")
    prior_failures: frozenset[int] = frozenset()
    turn: filelock.BaseFileLock = field(init=False)
    repeats: int = 0
    is_sampler_done: bool = False
    first_seen: dict[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.turn = filelock.FileLock(self._lock_path("turn"))

    def __enter__(self) -> "Study":
        return self

    def __exit__(self, *error: object) -> None:
        self.store.close()

    def trials(self) -> list[FrozenTrial]:
        """Return the trials that count, by number; without repeats and trials queued again under another number."""
        return [trial for trial in self.optuna.get_trials(deepcopy=False) if is_counted(trial)]

    def ended(self) -> list[FrozenTrial]:
        """Return the trials that count and have ended, by number."""
        return [trial for trial in self.trials() if trial.state.is_finished()]

    def ranked(self) -> list[FrozenTrial]:
        """Return the complete trials, the best by the first metric first."""
        complete = [trial for trial in self.trials() if trial.state == TrialState.COMPLETE]
        sign = -1 if self.maximizes else 1
        return sorted(complete, key=lambda trial: (sign * trial.values[0], trial.number))

    @property
    def maximizes(self) -> bool:
        """Whether a higher value of the first metric is better, as stored: a plug-in's metric need not be loaded."""
        return bool(self.optuna.directions[0] == StudyDirection.MAXIMIZE)

    def values_of(self, trial: FrozenTrial) -> dict[str, Any]:
        """Return a trial's values as its config has them, path -> value."""
        values = {}
        for entry in parse_space(self.config.tune):
            if entry.path in trial.params:
                value = trial.params[entry.path]
                values[entry.path] = storable_choices(entry)[value] if entry.kind == "choice" else entry.rounded(value)
        return values

    def lock_of(self, number: int) -> filelock.BaseFileLock:
        """Return the lock of a trial, held by the process that runs it."""
        return filelock.FileLock(self._lock_path(str(number)), timeout=0)

    def _lock_path(self, name: str) -> Path:
        return self.store.locks / f"{self.name.replace('/', '.')}-{name}"

    @property
    def total(self) -> int:
        """How many trials the study gets."""
        return self.max_trials if self.max_trials is not None else sum("of" in row.user_attrs for row in self.trials())

    @property
    def group(self) -> str:
        """The W&B group of its runs."""
        return self.config.track.group or self.folder.name

    @property
    def exhausted(self) -> bool:
        """Whether every point of the space has been tried."""
        return bool(self.optuna.user_attrs.get("exhausted"))

    def is_over(self) -> bool:
        """Return whether no trial is running and this command may begin no other."""
        trials = self.trials()[: self.total]
        if any(trial.state == TrialState.RUNNING for trial in trials):
            return False
        ended = all(trial.state.is_finished() for trial in trials)
        return time.time() >= self.deadline or (ended and (len(trials) == self.total or self.exhausted))

    def can_begin_trial(self) -> bool:
        """Return whether a trial may begin now: a waiting or a new one."""
        if time.time() >= self.deadline:
            return False
        trials, total = self.trials(), self.total
        if self.is_sampler_done and all(trial.state.is_finished() for trial in trials):
            self.optuna.set_user_attr("exhausted", True)
        waiting = [index for index, trial in enumerate(trials) if trial.state == TrialState.WAITING]
        return waiting[0] < total if waiting else len(trials) < total and not (self.is_sampler_done or self.exhausted)

    def take_turn(self) -> bool:
        """Take the turn to begin a trial; return False, without the turn, if none may begin now.

        Raises:
            StudyError: see `check_failures`.
        """
        self.turn.acquire()
        self.optuna.sampler = optuna.samplers.RandomSampler()  # has no effect on the trials that `recover` ends
        recover(self)
        self.check_failures()
        if self.can_begin_trial():
            self.optuna.sampler = self.sampler_for(len(self.optuna.get_trials(deepcopy=False)), self.repeats > 0)
            return True
        self.turn.release()
        return False

    def check_failures(self) -> None:
        """Stop a study whose trials keep failing.

        Raises:
            StudyError: the last three trials that ended since this command began have failed.
        """
        ended = [trial for trial in self.ended() if trial.number not in self.prior_failures]
        last = sorted(ended, key=lambda trial: trial.datetime_complete)[-MAX_FAILURES:]
        if len(last) == MAX_FAILURES and all(trial.state == TrialState.FAIL for trial in last):
            raise StudyError(
                f"{self.folder}: {MAX_FAILURES} trials in a row have failed, so the study stops. If memory, disk or "
                f"data are the cause, fix it and repeat the command{self._more_trials()}. If the config or a value of "
                "tune.space is, change it and begin another study with --study NAME, because a study keeps both:\n  "
                f"{_reasons(last)}"
            )

    def _more_trials(self) -> str:
        """Return the option without which the same command would begin no other trial."""
        if self.max_trials is None or len(self.ended()) < self.max_trials:
            return ""
        return f" with --trials {self.max_trials + MAX_FAILURES}"

    def check_any_complete(self) -> None:
        """Refuse a search without a result.

        Raises:
            StudyError: none of its trials is complete.
        """
        ended = self.ended()
        if any(trial.state == TrialState.COMPLETE for trial in ended):
            return
        cause = (
            "tune.space has no untried point left;"
            if self.exhausted
            else "fix the cause and repeat the command with more --trials or --timeout, or"
        )
        raise StudyError(
            f"{self.folder}: {len(ended)} trials have ended and none is complete, so there is no best trial; {cause} "
            f"change the config and begin another study with --study NAME:\n  {_reasons(ended[-MAX_FAILURES:])}"
        )

    def config_of(self, trial: Trial) -> Config:
        """Return the config of a trial that begins, and record its hash so that no other trial repeats it.

        Raises:
            NotCountedError: another trial has the same config, or other workers have begun the last trials meanwhile.
            UserError: no config takes these values.
        """
        attributes = trial.user_attrs
        if "config_hash" in attributes and FAILED_ALIVE.isdisjoint(attributes):  # it resumes
            return self.propose(trial)
        earlier = [row for row in self.trials() if row.number < trial.number]
        if len(earlier) >= self.total:
            trial.set_user_attr("surplus", True)
            raise NotCountedError
        config = self.propose(trial)
        fingerprint = configs.fingerprint(config)
        same = [row.number for row in earlier if row.user_attrs.get("config_hash") == fingerprint]
        if same:
            trial.set_user_attr("repeats", same[0])
            self.repeats += 1
            if self.repeats >= _MAX_REPEATS:
                self.optuna.set_user_attr("exhausted", True)
            raise NotCountedError
        self.repeats = 0
        trial.set_user_attr("config_hash", fingerprint)
        if self.config.tune.keep != "all":
            trial.set_user_attr(SHEDS, True)
        return config

    def requeue(self, trial: Trial) -> None:
        """Let an interrupted trial wait for the next command; its values, reports and run stay."""
        storage = self.store.backend
        study_id = storage.get_study_id_from_name(self.name)
        trial_id = storage.get_trial_id_from_study_id_trial_number(study_id, trial.number)
        with contextlib.suppress(UpdateFinishedTrialError):  # another process has taken it over
            storage.set_trial_state_values(trial_id, TrialState.WAITING)


def is_counted(trial: FrozenTrial) -> bool:
    """Return whether a trial counts: it is no repeat, and was not queued again after its worker died."""
    attributes = trial.user_attrs
    if "repeats" in attributes or "surplus" in attributes:
        return False
    return trial.state != TrialState.FAIL or "reason" in attributes or worker_deaths(trial) >= MAX_RETRIES


def failure_reason(trial: FrozenTrial) -> str:
    """Return why a trial has failed, empty if it has not."""
    if trial.state == TrialState.FAIL and "reason" not in trial.user_attrs:
        return f"its worker died {worker_deaths(trial) + 1} times"
    return str(trial.user_attrs.get("reason", ""))


def _reasons(trials: Sequence[FrozenTrial]) -> str:
    return "\n  ".join(f"trial {row.number}: {failure_reason(row) or row.state.name.lower()}" for row in trials)


def record_failure(trial: Trial, error: Exception) -> None:
    """Store why a trial fails: the error's type and first line."""
    first = (str(error).strip() or "no message").splitlines()[0]
    trial.set_user_attr("reason", f"{type(error).__name__}: {first}"[:500])


def suggest(space: Sequence[Entry], config: Config, trial: Trial) -> dict[str, Any]:
    """Return a trial's values, path -> value, drawn by its study's sampler in the space's order."""
    return pick_values(space, config, lambda entry: _draw(entry, trial))


def _draw(entry: Entry, trial: Trial) -> Any:
    if entry.kind == "choice":
        choices = storable_choices(entry)
        return choices[trial.suggest_categorical(entry.path, list(choices))]
    if entry.kind == "int":
        return trial.suggest_int(entry.path, int(entry.low), int(entry.high), step=int(entry.step or 1), log=entry.log)
    return entry.rounded(trial.suggest_float(entry.path, entry.low, entry.high, step=entry.step, log=entry.log))


def storable_choices(entry: Entry) -> dict[Any, Any]:
    """Return an entry's choices, as stored -> as configured: lists and mappings are stored as text."""
    return {
        value if value is None or isinstance(value, str | int | float) else repr(value): value
        for value in entry.choices
    }


def to_storable(entry: Entry, value: Any) -> Any:
    """Return one of an entry's values as it is stored."""
    if entry.kind != "choice":
        return value
    return next(key for key, choice in storable_choices(entry).items() if choice == value)
