"""Where a study's trials are kept, by URL: a file of one machine, or a PostgreSQL server of several."""

import random
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
import optuna
from optuna.storages.journal import JournalFileBackend, JournalStorage

from comp.results import files, runs
from comp.runtime.errors import ConfigError, StudyError
from comp.tuning import recovery

_SQLITE_SECONDS = 60  # that a write waits for another
_MISSED_BEATS = 3  # after which a worker counts as dead
_TRIES = 8  # at making tables that other processes make in the same moment
_MADE_MEANWHILE = ("already exists", "duplicate key", "unique constraint")
KINDS = "sqlite:///PATH, journal:///PATH (or PATH.log), postgresql://USER@HOST/NAME"


def default_url(folder: Path) -> str:
    """Return the URL of a study without one: a journal in its folder, or the SQLite file that it began with."""
    database = folder / "study.db"
    return f"sqlite:///{database}" if database.exists() else f"journal:///{folder / 'study.log'}"


@dataclass(frozen=True)
class Store:
    """A storage, open.

    Attributes:
        url: as given.
        backend: Optuna's storage.
        locks: folder of the locks that tell which trials run on this machine.
        grace_seconds: on a server, after which a worker without a heartbeat counts as dead; 0: locks tell at once.
    """

    url: str
    backend: Any
    locks: Path
    grace_seconds: int = 0

    def close(self) -> None:
        """Let go of a database's connections; a file is not held open."""
        if hasattr(self.backend, "engine"):
            self.backend.remove_session()
            self.backend.engine.dispose()


def open_store(url: str, folder: Path, heartbeat_seconds: int) -> Store:
    """Open or make a storage.

    Args:
        url: see `KINDS`.
        folder: the study's; a server's locks lie there, a file's beside the file.
        heartbeat_seconds: between two signs of life on PostgreSQL.

    Raises:
        ConfigError: a URL of another kind, or a driver is missing.
        StudyError: it cannot be opened.
    """
    kind, _, rest = url.partition(":///")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if kind == "sqlite" and rest:
            locks = _locks_beside(rest, url)
            return Store(url, _database(url, engine_kwargs={"connect_args": {"timeout": _SQLITE_SECONDS}}), locks)
        if (kind == "journal" and rest) or ("://" not in url and url.endswith(".log")):
            path = rest or url
            locks = _locks_beside(path, url)
            return Store(url, JournalStorage(JournalFileBackend(path, lock_obj=_JournalLock(locks))), locks)
        if url.startswith(("postgresql://", "postgresql+psycopg://", "postgres://")):
            grace = _MISSED_BEATS * heartbeat_seconds
            backend = _database(
                "postgresql+psycopg://" + url.partition("://")[2],
                heartbeat_interval=heartbeat_seconds, grace_period=grace,
                heartbeat_stale_trial_callback=recovery.retry, engine_kwargs={"pool_pre_ping": True},
            )  # fmt: skip
            files.make_folder(folder / ".locks")
            return Store(url, backend, folder / ".locks", grace)
    raise ConfigError(f"tune.storage: expected {KINDS}; found '{runs.hide_passwords(url)}'")


class _JournalLock:
    """A lock that the system releases when its process dies; Optuna's own would make the others wait half a minute."""

    def __init__(self, locks: Path) -> None:
        self._lock = filelock.FileLock(locks / "journal")

    def acquire(self) -> bool:
        self._lock.acquire()
        return True

    def release(self) -> None:
        self._lock.release()


def _locks_beside(text: str, url: str) -> Path:
    path = Path(text)
    if not path.parent.is_dir():
        raise ConfigError(f"tune.storage: {url}: there is no folder {path.parent}; make it or choose another")
    locks = path.with_name(f".{path.name}.locks")
    files.make_folder(locks)
    return locks


def _database(url: str, **options: Any) -> Any:
    """Open a database; tables that are being made by another process are looked for again."""
    import sqlalchemy.exc

    shown = runs.hide_passwords(url).replace("+psycopg", "")
    for left in reversed(range(_TRIES)):
        try:
            return optuna.storages.RDBStorage(url, **options)
        except ImportError:
            raise ConfigError(f"tune.storage: {shown} needs psycopg: pip install 'comp[postgres]'") from None
        except sqlalchemy.exc.SQLAlchemyError as error:
            reason = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
            if not left or not any(text in str(error).lower() for text in _MADE_MEANWHILE):
                raise StudyError(f"tune.storage: {shown} cannot be opened: {reason}") from None
            time.sleep(random.uniform(0.05, 0.3))
    raise AssertionError("the last try raises")
