"""Where a study's trials are kept, by URL, and how its workers take turns and miss each other.

Trials of one study are claimed one at a time, under a lock of the storage's kind: a file's, or PostgreSQL's. A claimed
trial holds a lock of its own in the study's folder until it has ended; a lock that is free tells that its worker died,
at once. Other machines have other folders: on PostgreSQL a worker also tells every few seconds that it lives.
"""

import contextlib
import threading
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock
import optuna
from optuna.storages.journal import JournalFileBackend, JournalStorage
from optuna.trial import TrialState

from comp import runs
from comp.errors import ConfigError, StudyError

_SQLITE_SECONDS = 60  # that a write waits for another
_MISSED_BEATS = 3  # after which a worker counts as dead
KINDS = "sqlite:///PATH, journal:///PATH (or PATH.log), postgresql://USER@HOST/NAME"


def default_url(folder: Path, workers: int) -> str:
    """Return the URL of a study without one: the file that its folder has, else SQLite, for several workers a journal.

    Args:
        folder: the study's.
        workers: how many processes will write it.
    """
    journal, database = folder / "study.log", folder / "study.db"
    if journal.exists() or (workers > 1 and not database.exists()):
        return f"journal:///{journal}"
    return f"sqlite:///{database}"


class Store:
    """A storage, open, and what keeps its workers apart.

    Attributes:
        url: as given.
        backend: Optuna's storage.
        shared: whether several processes may write it.
    """

    def __init__(self, url: str, folder: Path, heartbeat_seconds: int) -> None:
        """Open or make a storage.

        Args:
            url: see `KINDS`.
            folder: the study's; locks lie there.
            heartbeat_seconds: between two signs of life on PostgreSQL.

        Raises:
            ConfigError: a URL of another kind, or a driver is missing.
            StudyError: it cannot be opened.
        """
        self.url = url
        self._folder = folder
        self._beat_seconds = heartbeat_seconds
        runs.make_folder(folder / ".locks")
        kind, _, rest = url.partition(":///")
        self._beats = url.startswith(("postgresql://", "postgresql+psycopg://", "postgres://"))
        self.shared = kind != "sqlite"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            if kind == "sqlite" and rest:
                self._claims = _path(rest, url).with_name(Path(rest).name + ".claims")
                self.backend = _database(url, engine_kwargs={"connect_args": {"timeout": _SQLITE_SECONDS}})
            elif (kind == "journal" and rest) or ("://" not in url and url.endswith(".log")):
                path = _path(rest or url, url)
                self._claims = path.with_name(path.name + ".claims")
                self.backend = JournalStorage(JournalFileBackend(str(path), lock_obj=_JournalLock(path)))
            elif self._beats:
                self.backend = _database(
                    "postgresql+psycopg://" + url.partition("://")[2],
                    heartbeat_interval=heartbeat_seconds,
                    grace_period=_MISSED_BEATS * heartbeat_seconds,
                    engine_kwargs={"pool_pre_ping": True},
                )
            else:
                raise ConfigError(f"tune.storage: expected {KINDS}; found '{runs.hide_password(url)}'")

    def close(self) -> None:
        """Let go of a database's connections; a file is not held open."""
        if hasattr(self.backend, "engine"):
            self.backend.remove_session()
            self.backend.engine.dispose()

    @contextlib.contextmanager
    def claiming(self, study: str) -> Iterator[None]:
        """Hold the study's turn: nobody else claims, frees or adds a trial."""
        if not self._beats:
            with filelock.FileLock(self._claims):
                yield
            return
        import sqlalchemy

        key = zlib.crc32(study.encode())
        # Held by the connection: it ends with the process.
        with self.backend.engine.connect() as connection:
            connection.execute(sqlalchemy.text("select pg_advisory_lock(:key)"), {"key": key})
            try:
                yield
            finally:
                connection.execute(sqlalchemy.text("select pg_advisory_unlock(:key)"), {"key": key})

    def trial_lock(self, study: str, number: int) -> filelock.BaseFileLock:
        """Return the lock that is held by the process which runs a trial."""
        return filelock.FileLock(self._folder / ".locks" / f"{study.replace('/', '.')}-{number}", timeout=0)

    def beat(self, study: str, number: int) -> None:
        """Tell that the process which runs a trial lives, where that is told by beats."""
        if self._beats:
            self.backend.record_heartbeat(self.id_of(study, number))

    @contextlib.contextmanager
    def beating(self, study: str, number: int) -> Iterator[None]:
        """Tell so every few seconds."""
        ended = threading.Event()

        def keep_on() -> None:
            while not ended.wait(self._beat_seconds):
                with contextlib.suppress(Exception):  # the network may come back; one missed beat of three is none
                    self.beat(study, number)

        thread = threading.Thread(target=keep_on, name="comp-heartbeat", daemon=True)
        if self._beats:
            thread.start()
        try:
            yield
        finally:
            ended.set()
            if self._beats:
                thread.join()

    def id_of(self, study: str, number: int) -> int:
        """Return what the storage calls a study's trial."""
        study_id = self.backend.get_study_id_from_name(study)
        return int(self.backend.get_trial_id_from_study_id_trial_number(study_id, number))

    def is_dead(self, study: str, trial: Any) -> bool:
        """Tell whether nobody runs a running trial any more; asked within `claiming`."""
        try:
            with self.trial_lock(study, trial.number):
                pass
        except filelock.Timeout:
            return False
        if not self._beats or "claimed" not in trial.user_attrs:  # a claim is noted with the first beat, in one turn
            return True
        # Optuna's own way with such trials is to fail them and add copies; here a trial stays itself.
        stale = self.backend._get_stale_trial_ids(self.backend.get_study_id_from_name(study))
        return self.id_of(study, trial.number) in stale

    def put_back(self, study: str, number: int) -> None:
        """Let a running trial wait again: its values, reports and run stay."""
        self.backend.set_trial_state_values(self.id_of(study, number), TrialState.WAITING)


class _JournalLock:
    """A lock that the system releases when its process dies; Optuna's own would make the others wait half a minute."""

    def __init__(self, path: Path) -> None:
        self._lock = filelock.FileLock(path.with_name(path.name + ".writing"))

    def acquire(self) -> bool:
        self._lock.acquire()
        return True

    def release(self) -> None:
        self._lock.release()


def _path(text: str, url: str) -> Path:
    path = Path(text)
    if not path.parent.is_dir():
        raise ConfigError(f"tune.storage: {url}: there is no folder {path.parent}; make it or choose another")
    return path


def _database(url: str, **options: Any) -> Any:
    import sqlalchemy.exc

    shown = runs.hide_password(url).replace("+psycopg", "")
    try:
        return optuna.storages.RDBStorage(url, **options)
    except ImportError:
        raise ConfigError(f"tune.storage: {shown} needs psycopg: pip install 'comp[postgres]'") from None
    except sqlalchemy.exc.SQLAlchemyError as error:
        reason = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
        raise StudyError(f"tune.storage: {shown} cannot be opened: {reason}") from None
