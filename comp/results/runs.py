"""Run folders: one training's files on disk. Torch-free.

    runs/<competition>/<time>-<name>/
      config.yaml  split.npz  execution.json  provenance.json  history.csv
      teacher.npz  pseudo.npz  prior.csv (with train.teacher, data.pseudo, predict.prior)
      best.safetensors  final.safetensors  predictions/*.npz
      plugins/*.py (copies of the config's plug-ins)
      metrics.json (written last)  state.pt (until then, or for good with train.keep_state)

Every file is written atomically, by one process at a time.
"""

import contextlib
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import filelock

from comp import config as configs
from comp.config import Config
from comp.config.yaml_io import user_path
from comp.results import records, run_metrics
from comp.results.files import Content, read_bytes, read_json, remove, sha256_bytes, to_json, write_atomically
from comp.results.machine import cpu_model as cpu_model
from comp.results.machine import describe_machine as describe_machine
from comp.results.machine import hide_passwords as hide_passwords
from comp.results.machine import package_versions as package_versions
from comp.results.plugin_copies import copy_plugins as copy_plugins
from comp.results.plugin_copies import with_copies as with_copies
from comp.results.run_metrics import RunMetrics
from comp.runtime import escape
from comp.runtime.errors import ConfigError, RunError, nearest, shortened

if TYPE_CHECKING:
    from numpy.typing import NDArray

_MAX_DEPTH = 8  # folders between `runs` and a run
_MAX_OTHER_FOLDERS = 20_000  # below `runs` that are no runs: more, and it is a whole disk
_SHOWN_CHANGES = 5  # of a config, in a message
RECORD_SECONDS = 10.0  # how long a prediction, or what has a result to record, waits for another writer of the run
_SECTIONS = ("competition", "data", "augment", "model", "optim", "train", "predict", "track")  # of every run's config
_CSV_PATHS = tuple(f"data.csv.{name}" for name in ("table", "train", "test", "sample", "test_table"))
_READING = ("data.download", "data.loading", "data.workers", "competition.suite.path", "predict.batch_size")
MOVABLE = ("data.root", *_CSV_PATHS, *_READING, "competition.balance")  # these leave the images as they are
WEIGHTS = ("best.safetensors", "averaged.safetensors", "final.safetensors", "state.pt")
PRIOR = "prior.csv"  # in a run folder: a copy of the class shares that its config names (predict.prior)
FIXES = "fixes.csv"  # in a run folder: a copy of the fix list that it was trained with (data.fixes)
REMOVED = "removed.json"  # marks a run whose weights were deleted on purpose


@dataclass(frozen=True)
class Run:
    """One training's folder; `Run("runs/...")` also accepts a string.

    Attributes:
        path: the folder.
        overrides: `key=value` settings of where its data are now; see `open_run`.
        allow_plugins: whether the code of its plug-ins may run; see `comp.workflows.plugins`.
    """

    path: Path
    overrides: tuple[str, ...] = ()
    allow_plugins: bool = field(default=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.path))

    def __eq__(self, other: object) -> bool:
        """Return whether both are the same run; one of them may be a `comp.Run`, which is a subclass."""
        return isinstance(other, Run) and (self.path, self.overrides) == (other.path, other.overrides)

    @property
    def name(self) -> str:
        """`<competition>/<time>-<name>`, or `<study>/<time>-<name>` in a study."""
        return f"{self.path.parent.name}/{self.path.name}"

    def config(self) -> Config:
        """Return the config it was started with, its own copy of `predict.prior`, with overrides applied.

        Raises:
            RunError: a section is missing; its defaults would describe another run.
            ConfigError: it does not load.
        """
        path = self.path / "config.yaml"
        try:
            copy = self.path / PRIOR
            own = (f"predict.prior={json.dumps(str(copy))}",) if copy.is_file() else ()
            config = configs.load_stored(path, (*own, *self.overrides))
        except ConfigError as error:
            if self.overrides:  # of a sound file, an override is wrong
                replace(self, overrides=()).config()
                raise
            raise ConfigError(f"{error}; restore the config that the run was started with") from None
        missing = [name for name in _SECTIONS if name not in config.model_fields_set]
        if missing:
            raise RunError(
                f"{path}: damaged: it lacks {', '.join(missing)}; restore the config that the run was started with"
            )
        return config

    def config_hash(self) -> str:
        """Return the hash of the config it was started with, without overrides."""
        return configs.fingerprint(configs.load_stored(self.path / "config.yaml"))

    def check_config(self) -> None:
        """Refuse to go on with another config than the one it was started with.

        Raises:
            RunError: config.yaml has changed in what the run computes.
        """
        provenance, path = self.provenance(), self.path / "config.yaml"
        recorded = "" if "members" in provenance else provenance.get("config_hash", "")
        if recorded and (current := self.config_hash()) != recorded:
            changes = self._config_changes(provenance) or [f"config hash {recorded} then, {current} now"]
            raise RunError(
                f"{path}: has changed since the run was started ({'; '.join(changes)}), and a training cannot go on "
                f"with another config; restore it, or start a new run: comp run {path}. To name the data's new "
                "location: --resume RUN data.root=DIR"
            )

    def _config_changes(self, provenance: Mapping[str, Any]) -> list[str]:
        """Return what has changed in config.yaml since the run was started; empty: an older run, which does not say."""
        defaults, now = configs.flatten(Config()), configs.settings(configs.load_stored(self.path / "config.yaml"))
        then = provenance.get("config", now)
        rows = [(key, then.get(key, defaults.get(key)), now.get(key, defaults.get(key))) for key in {**then, **now}]
        changes = [f"{key}: {shortened(f'{old} then, {new} now')}" for key, old, new in rows if old != new]
        more = [f"and {len(changes) - _SHOWN_CHANGES} more"] if len(changes) > _SHOWN_CHANGES else []
        return [*changes[:_SHOWN_CHANGES], *more]

    def data_config(self) -> Config:
        """Return the config that opens its data as in training: `data.range` as `auto` had chosen, its copy of `fixes`.

        Runs from before `data.range` existed used the range of the pixels' type.
        """
        config, provenance = self.config(), self.provenance()
        recorded = provenance.get("pixel_range", "type")
        updates: dict[str, Any] = {"fixes": str(self.path / FIXES) if "fixes" in provenance else ""}
        if config.data.range == "auto" and recorded is not None:
            updates["range"] = recorded if recorded == "type" else tuple(recorded)
        return config.model_copy(update={"data": config.data.model_copy(update=updates)})

    def repeated_config(self) -> Config:
        """Return the config that trains it again: its copy of `fixes` where the list is gone or has changed since.

        Raises:
            RunError: that copy is missing or has changed too.
        """
        config, recorded = self.config(), self.provenance().get("fixes")
        if not recorded:
            return config
        for path in (config.data.fixes, str(self.path / FIXES)):
            with contextlib.suppress(OSError):
                if sha256_bytes(Path(path).read_bytes()) == recorded.get("sha256"):
                    return config.model_copy(update={"data": config.data.model_copy(update={"fixes": path})})
        raise RunError(
            f"{self.path / FIXES}: expected the fix list that the run was trained with (sha256 "
            f"{recorded.get('sha256')}), found neither that nor the same in {config.data.fixes}; restore one of them"
        )

    def planned_output(self) -> tuple[Path | None, bool]:
        """Return the submission that its command named (`-o`), None without, and whether to replace an existing one."""
        planned = self.provenance().get("output") or {}
        if not planned.get("path"):
            return None, False
        path, here = Path(planned["path"]), Path.cwd()
        return path.relative_to(here) if path.is_relative_to(here) else path, bool(planned.get("force"))

    def provenance(self, *needed: str) -> dict[str, Any]:
        """Return provenance.json: argv, git, versions, data fingerprint, classes.

        Args:
            needed: keys that must be there; those that are there are checked too.

        Raises:
            RunError: missing or damaged.
        """
        path = self.path / "provenance.json"
        cure = f"restore the file, or {self.repair_hint}"
        values = read_json(path, cure)
        records.check(values, path, records.PROVENANCE, cure, needed=needed)
        return values

    def started_with(self) -> list[str]:
        """Return the overrides of the command that started it, without the fold."""
        words = self.provenance().get("argv") or []
        return [
            word
            for word in words
            if "=" in word
            and word.partition("=")[0].partition(".")[0] in (*_SECTIONS, "tune", "seed")
            and not word.startswith(("data.fold=", "data.folds="))
        ]

    @property
    def repair_hint(self) -> str:
        """How to create a run with damaged files again, as the end of an error message."""
        if self.has_weights() or (self.path / REMOVED).exists():
            return f"train again: comp run {self.path / 'config.yaml'}"
        return "create it again from its member runs"

    def metrics(self) -> RunMetrics:
        """Return its scores.

        Raises:
            RunError: the training is not complete, or the file is damaged.
        """
        if not self.is_complete():
            open_run(self.path)  # raises if this is no run
            raise RunError(
                f"{self.path}: not a complete run (no metrics.json); finish it: comp run --resume {self.path}"
            )
        path = self.path / "metrics.json"
        return run_metrics.from_bytes(read_bytes(path, "scores", RunError), str(path))

    def write_metrics(self, metrics: RunMetrics) -> None:
        """Write metrics.json, which marks the run as complete."""
        self.write_json("metrics.json", metrics.to_json())

    def is_complete(self) -> bool:
        """Return whether the training has ended and its scores are written."""
        return (self.path / "metrics.json").is_file()

    def read_recorded(self, name: str) -> "dict[str, NDArray[Any]]":
        """Return the arrays of NAME.npz, whose SHA-256 provenance.json records under NAME.

        Raises:
            RunError: missing, damaged, or other bytes than the recorded ones.
        """
        recorded = self.provenance().get(name)
        expected = recorded.get("sha256") if isinstance(recorded, dict) else None
        return records.read_arrays(self.path / f"{name}.npz", expected)

    def write(self, name: str, content: Content) -> None:
        """Write a file in the run folder, atomically."""
        write_atomically(self.path / name, content)

    def write_json(self, name: str, values: Mapping[str, Any]) -> None:
        """Write a JSON file in the run folder, atomically."""
        self.write(name, to_json(values))

    def predictions_path(self, name: str) -> Path:
        """Return the path of predictions `name` (`val`, `suite+flip`); create the folder."""
        folder = self.path / "predictions"
        folder.mkdir(exist_ok=True)
        return folder / f"{name}.npz"

    def plot_path(self, name: str) -> Path:
        """Return the path of picture `name` (`examples-val`); create the folder."""
        folder = self.path / "plots"
        folder.mkdir(exist_ok=True)
        return folder / f"{name}.png"

    def weights_path(self) -> Path:
        """Return the weights to predict with: the best by validation, else averaged, else final ones."""
        for name in ("best.safetensors", "averaged.safetensors", "final.safetensors"):
            if (self.path / name).is_file():
                return self.path / name
        if self.is_complete() and (self.path / REMOVED).exists():
            raise RunError(
                f"{self.path}: its weights were deleted: a study keeps only those of its best trials (tune.keep); to "
                f"get them back, {self.repair_hint}"
            )
        if self.is_complete():
            paths = [found.path if (found := self.beside(Path(path))) else path for path in self.members().values()]
            named = f": {', '.join(map(str, paths))}" if paths else ""
            raise RunError(f"{self.path}: has no weights; it combines other runs, so predict with those{named}")
        raise RunError(f"{self.path}: has no weights; finish it: comp run --resume {self.path}")

    def members(self) -> dict[str, str]:
        """Return name -> recorded path of the runs it combines; none of a training. Earlier versions recorded names."""
        recorded = self.provenance().get("members", ())
        return dict((one, one) if isinstance(one, str) else (one["run"], one["run_path"]) for one in recorded)

    def beside(self, path: Path) -> "Run | None":
        """Return a run that this one records, and that may have moved together with it; None if it is gone."""
        places = (path, self.path.parent / path.name, self.path.parent.parent / path.parent.name / path.name)
        return next((Run(place) for place in places if _is_run(place)), None)

    def has_weights(self) -> bool:
        """Return whether it has weights to predict with; ensembles and probes do not."""
        return any(self.path.glob("*.safetensors"))

    def history(self) -> list[dict[str, str]]:
        """Return history.csv's rows, none before the first epoch ends; see `table`."""
        return self.table("history.csv")

    def table(self, name: str) -> list[dict[str, str]]:
        """Return the rows of history.csv or norms.csv, none if it is missing.

        Raises:
            RunError: damaged: not a CSV, or a numeric cell is not a number.
        """
        path = self.path / name
        return records.read_table(path) if path.is_file() else []

    def write_table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write a CSV file in the run folder; missing cells are empty."""
        self.write(name, records.to_csv(rows))

    @contextlib.contextmanager
    def write_lock(self, wait_seconds: float = 1.0) -> Iterator[None]:
        """Lock the run for writing.

        Args:
            wait_seconds: how long to wait for another process; `comp clean` holds the lock for a moment.

        Raises:
            RunError: another process holds the lock, or the folder cannot be written.
        """
        lock = filelock.FileLock(self.path / ".lock", timeout=wait_seconds)
        try:
            lock.acquire()
        except filelock.Timeout:
            raise RunError(f"{self.path}: another process is writing this run; wait for it or stop it") from None
        except OSError as error:
            raise RunError(f"{self.path}: cannot be written: {error.strerror}; copy it to where it can be") from None
        try:
            yield
        finally:
            lock.release()


class HasContent(Protocol):
    """A file that was read, such as a fix list."""

    @property
    def content(self) -> bytes: ...


@contextlib.contextmanager
def delete_on_failure(run: Run) -> Iterator[None]:
    """Delete a run's folder if the block that creates it fails: an incomplete ensemble cannot be resumed."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError, RunError):
            remove(run.path, inside=run.path.parent, marks=("config.yaml",))
        raise


def create(
    root: Path,
    config: Config,
    name: str,
    provenance: Mapping[str, Any],
    *,
    group: str = "",
    fixes: HasContent | None = None,
) -> Run:
    """Create a run folder under `root/<competition>/` with its config and provenance.

    Args:
        root: usually `runs`.
        config: written as config.yaml, resolved, beside copies of its plug-ins.
        name: the part of the folder's name after the time.
        provenance: see `describe_machine`.
        group: a folder between the competition's and the run's; empty for none.
        fixes: the fix list that it is trained with; None: without one.

    Raises:
        RunError: a name can name no folder, or the folder cannot be created.
    """
    for what, text in (("the name of a run", name), ("competition.name", config.competition.name)):
        if not escape.is_text(text) or "\0" in text:  # from Python, which has checked neither
            raise RunError(f"{what}: expected text in UTF-8 that a folder can have, found {text!r}; choose another")
    stem = f"{time.strftime('%Y%m%d-%H%M%S')}-{name}"
    parent = root / config.competition.name / group
    for attempt in range(1, 1000):
        path = parent / (stem if attempt == 1 else f"{stem}-{attempt}")
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            if not parent.is_dir():
                raise RunError(f"{parent}: is a file, not a folder; move it away or choose other --runs") from None
            continue
        except OSError as error:
            raise RunError(f"{path}: cannot be created: {error.strerror}; choose another folder: --runs") from None
        run, copied = Run(path), copy_plugins(config, path)
        write_atomically(path / "config.yaml", configs.dump(with_copies(config)).encode())
        if fixes is not None:
            run.write(FIXES, fixes.content)
        if (shares := Path(config.predict.prior)).suffix == ".csv":
            run.write(PRIOR, shares.read_bytes())
        run.write_json("provenance.json", {**provenance, **({"plugins": copied} if copied else {})})
        return run
    raise RunError(f"{parent}: too many runs named {stem} in one second")


def open_run(path: Path, overrides: Sequence[str] = (), *, allow_plugins: bool = False) -> Run:
    """Return the run in a folder.

    Args:
        path: the folder.
        overrides: `key=value` for settings in MOVABLE, which do not change the run.
        allow_plugins: whether the code of its plug-ins may run.

    Raises:
        RunError: not a run folder; the message suggests the nearest name.
        ConfigError: an override of another setting.
    """
    for text in overrides:
        key = text.partition("=")[0].strip()
        if key == "competition.test_shares":
            raise ConfigError(
                f"override '{text}': a run's decision is fitted, and its gain measured, for the shares that it was "
                f"trained with; start a new run: comp run {path / 'config.yaml'} '{text}'"
            )
        if key not in MOVABLE:
            raise ConfigError(
                f"override '{text}': a trained run keeps its config; only these can change: {', '.join(MOVABLE)}"
                f"{nearest(key, MOVABLE)}"
            )
    if _is_run(path):
        return Run(path, tuple(_expand_path(text) for text in overrides), allow_plugins)
    if path.is_dir():
        raise RunError(f"{path}: not a run folder (no config.yaml and provenance.json); `comp leaderboard` lists runs")
    if path.is_file():
        raise RunError(f"{path}: is a file; name the folder of a run, which `comp leaderboard` lists")
    siblings = [p.name for p in path.parent.iterdir() if p.is_dir()] if path.parent.is_dir() else []
    raise RunError(f"{path}: no such run{nearest(path.name, siblings)}; `comp leaderboard` lists runs")


def _is_run(path: Path) -> bool:
    return (path / "config.yaml").is_file() and (path / "provenance.json").is_file()


def _expand_path(override: str) -> str:
    """Return an override with `~` and `${NAME}` expanded, which loading a stored config does not do."""
    key, sign, value = override.partition("=")
    return f"{key}{sign}{user_path(value, key)}" if "~" in value or "$" in value else override


def list_runs(root: Path) -> list[Run]:
    """Return all runs below a folder, complete or not, sorted by name; runs are not nested.

    Raises:
        RunError: it holds so many other folders that it is no folder of runs, such as `/`.
    """
    return [Run(Path(path)) for path in sorted(_run_folders(str(root)))]


def _run_folders(root: str) -> Iterator[str]:
    """Yield the folders with a provenance.json, as strings: there may be many thousands."""
    waiting, opened = [(root, 0)], 0
    while waiting:
        folder, depth = waiting.pop()
        opened += 1
        if opened > _MAX_OTHER_FOLDERS:
            raise RunError(
                f"{root}: is no folder of runs: {_MAX_OTHER_FOLDERS:,} folders in it are no runs; name a folder that "
                "holds runs alone, such as runs"
            )
        try:
            with os.scandir(folder) as entries:
                inner = [entry.path for entry in entries if entry.is_dir() and entry.name != "wandb"]
        except OSError as error:
            if not depth and isinstance(error, PermissionError):
                raise RunError(f"{folder}: cannot be listed: {error.strerror}; get permission to read it") from None
            continue
        for path in inner:
            if os.path.exists(os.path.join(path, "provenance.json")):
                yield path
            elif depth < _MAX_DEPTH:  # a link may point upwards
                waiting.append((path, depth + 1))


def sidecar_path(path: Path) -> Path:
    """Return the path of a submission's sidecar, the JSON file that traces it to its run."""
    return path.with_suffix(".json")
