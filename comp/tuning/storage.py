"""Where a study's trials are stored, by URL, and how the trials of killed workers are queued again.

A journal or SQLite file serves one machine, a PostgreSQL server several. On a server, Optuna recovers trials by
heartbeats. A file has locks instead: a worker takes the study's turn to begin a trial and then holds the trial's own
lock until the trial has ended. The system releases the locks of a dead process, so a running trial whose lock is free
has no worker.
"""

import contextlib
import json
import random
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock
import optuna
from optuna.storages import RetryHeartbeatStaleTrialCallback, fail_stale_trials
from optuna.storages.journal import JournalFileBackend, JournalStorage
from optuna.trial import FrozenTrial, TrialState

from comp.results import files, runs
from comp.runtime.errors import ConfigError, StudyError

if TYPE_CHECKING:
    from comp.tuning.study import Study

_SQLITE_TIMEOUT_SECONDS = 60
_MISSED_BEATS = 3  # after which a worker counts as dead
_OPEN_ATTEMPTS = 8  # other processes may create the same tables at the same moment
_JOURNAL_ATTEMPTS, _JOURNAL_SECONDS = 5, 0.05  # another process may be writing a journal's last line
_CREATED_MEANWHILE = ("already exists", "duplicate key", "unique constraint")
KINDS = "sqlite:///PATH, journal:///PATH (or PATH.log), postgresql://USER@HOST/NAME"
MAX_RETRIES = 3  # of a trial whose workers die; then it counts as failed, for it may be what kills them
FAILED_ALIVE = frozenset({"reason", "repeats", "surplus"})  # user attributes of trials that failed with a live worker


def default_url(folder: Path) -> str:
    """Return the URL of a study that names none: the SQLite file it began with, else a journal in its folder."""
    database = folder / "study.db"
    return f"sqlite:///{database}" if database.exists() else f"journal:///{folder / 'study.log'}"


@dataclass(frozen=True)
class Store:
    """An open storage.

    Attributes:
        url: as configured.
        backend: Optuna's storage.
        locks: folder of the locks of the trials that run on this machine.
        grace_seconds: on a server, a worker without a heartbeat for so long counts as dead; 0 for files, which lock.
    """

    url: str
    backend: Any
    locks: Path
    grace_seconds: int = 0

    def close(self) -> None:
        """Close a database's connections; a file is not held open."""
        if hasattr(self.backend, "engine"):
            self.backend.remove_session()
            self.backend.engine.dispose()


@contextlib.contextmanager
def answering(folder: Path) -> Iterator[None]:
    """Turn the failures of an open storage into one message.

    Args:
        folder: of the study.

    Raises:
        StudyError: the storage does not answer, or its file is damaged.
    """
    try:
        yield
    except optuna.exceptions.StorageInternalError as error:
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise StudyError(
            f"{folder}: the study's storage does not answer ({reason}); bring it up and repeat the command"
        ) from None
    except json.JSONDecodeError as error:
        raise StudyError(
            f"{folder}: the study's journal is damaged ({error}); restore it, or begin another study: --study NAME"
        ) from None


def one_at_a_time(locks: Path) -> filelock.BaseFileLock:
    """Return the lock of the process of this machine that makes a storage's tables or a study in it."""
    return filelock.FileLock(locks / "open")


def open_store(url: str, folder: Path, heartbeat_seconds: int) -> Store:
    """Open or create a storage.

    Args:
        url: see `KINDS`.
        folder: the study's folder. A server's locks lie there; a file's lie beside the file.
        heartbeat_seconds: between two heartbeats on PostgreSQL.

    Raises:
        ConfigError: the URL is of another kind, or a driver is missing.
        StudyError: the storage cannot be opened.
    """
    kind, _, rest = url.partition(":///")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if kind == "sqlite" and rest:
            locks = _lock_folder(rest, url)
            timeout = {"connect_args": {"timeout": _SQLITE_TIMEOUT_SECONDS}}
            return Store(url, _open_database(url, locks, engine_kwargs=timeout), locks)
        if (kind == "journal" and rest) or ("://" not in url and url.endswith(".log")):
            path = rest or url
            locks = _lock_folder(path, url)
            _check_journal(Path(path))
            try:
                return Store(url, JournalStorage(JournalFileBackend(path, lock_obj=_JournalLock(locks))), locks)
            except files.READ_ERRORS as error:  # a line that is no entry
                raise StudyError(
                    f"{path}: cannot be read as a study's journal ({files.error_text(error)}); restore it, or begin "
                    "another study: --study NAME"
                ) from None
        if url.startswith(("postgresql://", "postgresql+psycopg://", "postgres://")):
            grace = _MISSED_BEATS * heartbeat_seconds
            locks = folder / ".locks"
            files.make_folder(locks)
            backend = _open_database(
                "postgresql+psycopg://" + url.partition("://")[2],
                locks,
                heartbeat_interval=heartbeat_seconds,
                grace_period=grace,
                heartbeat_stale_trial_callback=retry,
                engine_kwargs={"pool_pre_ping": True},
            )
            return Store(url, backend, locks, grace)
    raise ConfigError(f"tune.storage: expected {KINDS}; found '{runs.hide_passwords(url)}'")


def _check_journal(path: Path) -> None:
    """Refuse a journal whose last line is no entry: Optuna passes over it, and the next entry would follow it.

    Raises:
        StudyError: the line stays as it is; an entry that another process writes is soon complete.
    """
    for attempts_left in reversed(range(_JOURNAL_ATTEMPTS)):
        try:
            content = path.read_bytes()
            if not content:
                return
            last = content[content[:-1].rfind(b"\n") + 1 :]
            json.loads(last)
            if last.endswith(b"\n"):
                return
            reason = "it has no end"
        except ValueError as error:
            reason = files.error_text(error)
        except OSError:  # missing: a new one; or Optuna says why it cannot be read
            return
        if attempts_left:
            time.sleep(_JOURNAL_SECONDS)
    raise StudyError(
        f"{path}: the study's journal is damaged (its last line: {reason}); restore it, or begin another study: "
        "--study NAME"
    )


class _JournalLock:
    """A lock that the system releases when its process dies; after a crash, Optuna's own blocks for half a minute."""

    def __init__(self, locks: Path) -> None:
        self._lock = filelock.FileLock(locks / "journal")

    def acquire(self) -> bool:
        self._lock.acquire()
        return True

    def release(self) -> None:
        self._lock.release()


def _lock_folder(file: str, url: str) -> Path:
    path = Path(file)
    if not path.parent.is_dir():
        raise ConfigError(f"tune.storage: {url}: folder {path.parent} does not exist; create it or choose another")
    locks = path.with_name(f".{path.name}.locks")
    files.make_folder(locks)
    return locks


def _open_database(url: str, locks: Path, **options: Any) -> Any:
    """Open a database; try again while other machines create its tables."""
    import sqlalchemy.exc

    public_url = runs.hide_passwords(url).replace("+psycopg", "")
    for attempts_left in reversed(range(_OPEN_ATTEMPTS)):
        try:
            with one_at_a_time(locks):
                return optuna.storages.RDBStorage(url, **options)
        except ImportError:
            raise ConfigError(f"tune.storage: {public_url} needs psycopg: pip install 'comp[postgres]'") from None
        except sqlalchemy.exc.SQLAlchemyError as error:
            reason = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
            if not attempts_left or not any(text in str(error).lower() for text in _CREATED_MEANWHILE):
                raise StudyError(f"tune.storage: {public_url} cannot be opened: {reason}") from None
            time.sleep(random.uniform(0.05, 0.3))
    raise AssertionError("the last attempt raises")


def worker_deaths(trial: FrozenTrial) -> int:
    """Return how many workers died over a trial before it was queued again, as Optuna's callback counts them."""
    return len(trial.system_attrs.get("retry_history", ()))


def retry(study: optuna.Study, trial: FrozenTrial) -> None:
    """Queue a trial whose worker died again, `MAX_RETRIES` times: parameters, reports and attributes are kept."""
    if FAILED_ALIVE.isdisjoint(trial.user_attrs):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            callback = RetryHeartbeatStaleTrialCallback(max_retry=MAX_RETRIES, inherit_intermediate_values=True)
        callback(study, trial)


def recover(study: "Study") -> None:
    """Queue the trials of dead workers again; the caller holds the study's turn and runs no trial."""
    if study.store.grace_seconds:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            fail_stale_trials(study.optuna)
    for trial in study.optuna.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if _is_dead(study, trial):
            dead = study.optuna.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)
            if dead.state == TrialState.FAIL:  # it may have ended since it was listed
                retry(study.optuna, dead)


def _is_dead(study: "Study", trial: FrozenTrial) -> bool:
    if study.store.grace_seconds:
        # Optuna misses workers that die before their first heartbeat; they leave a trial without a config hash.
        has_started = "config_hash" in trial.user_attrs
        first_seen = study.first_seen.setdefault(trial.number, time.monotonic())
        return not has_started and time.monotonic() - first_seen > study.store.grace_seconds
    try:
        with study.lock_of(trial.number):
            return True
    except filelock.Timeout:
        return False


def interrupted(study: "Study") -> list[int]:
    """Return the numbers of the trials that the next command resumes: they wait, or their worker is dead."""
    begun = [trial for trial in study.trials() if "config_hash" in trial.user_attrs]
    numbers = {trial.number for trial in begun if trial.state == TrialState.WAITING}
    running = [trial for trial in begun if trial.state == TrialState.RUNNING]
    if running:
        with contextlib.suppress(filelock.Timeout, OSError), study.turn.acquire(timeout=0):  # so that none begins
            numbers |= {trial.number for trial in running if _is_dead(study, trial)}
    return sorted(numbers)
