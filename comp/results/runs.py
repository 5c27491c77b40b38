"""Run folders: where a training lives on disk, how files land there, and who may write. Torch-free.

    runs/<competition>/<time>-<name>/
      config.yaml  split.npz  execution.json  provenance.json  history.csv
      best.safetensors  final.safetensors  predictions/*.npz  plots/*.png
      metrics.json (written last)  state.pt (until then, or for good with train.keep_state)

Every file is written to a temporary name in its folder, flushed to the disk and renamed: a reader sees the old file
or the new one, never half of either.
"""

import contextlib
import csv
import importlib.metadata
import io
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock

from comp import config as configs
from comp.config import Config
from comp.config.yaml_io import user_path
from comp.results import run_metrics
from comp.results.files import Content, error_text, read_bytes, read_json, to_json, write_atomically
from comp.results.run_metrics import RunMetrics
from comp.runtime.errors import ConfigError, RunError, nearest

if TYPE_CHECKING:
    pass

_DEEPEST = 8  # folders between `runs` and a run
_SECTIONS = ("competition", "data", "augment", "model", "optim", "train", "predict", "track")  # of every run's config
# Of provenance.json, what is computed with.
_PROVENANCE: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "classes": ("a list of text", lambda value: _is_list(value, str)),
    "image_shape": ("three whole numbers", lambda value: _is_list(value, int) and len(value) == 3),
    "images": ("the number of images of train, val and test", lambda value: _counts(value)),
    "data_fingerprint": ("text", lambda value: isinstance(value, str)),
    "first_weights": ("text", lambda value: isinstance(value, str)),
    "loading": ("text", lambda value: isinstance(value, str)),
    "notes": ("a list of text", lambda value: _is_list(value, str)),
}
# Of a table, the columns that hold a number in every row.
_NUMBERED = {"history.csv": ("number",), "norms.csv": ("epoch", "parameters", "gradient_norm", "weight_norm")}
_TEXTS = ("layer", "note")  # columns of tables that hold no numbers
MOVABLE = (  # settings that say where and how data are read: another value gives the same images
    "data.root", "data.csv.table", "data.csv.train", "data.csv.test", "data.csv.sample", "data.csv.test_table",
    "data.download", "data.loading", "data.workers", "competition.suite.path", "predict.batch_size",
)  # fmt: skip
WEIGHTS = ("best.safetensors", "averaged.safetensors", "final.safetensors", "state.pt")
REMOVED = "removed.json"  # marks a run whose weights were removed on purpose
_VERSIONS = ("comp", "torch", "torchvision", "timm", "numpy", "albumentations", "optuna", "pandas", "scikit-learn")


def _is_list(value: Any, kind: type) -> bool:
    return isinstance(value, list) and all(isinstance(part, kind) for part in value)


def _counts(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(value.get(name), int) for name in ("train", "val", "test"))


@dataclass(frozen=True)
class Run:
    """One training's folder; `Run("runs/...")` takes text as well.

    Attributes:
        path: of the folder.
        overrides: `key=value` of where its data lie now; see `open_run`.
    """

    path: Path
    overrides: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.path))

    @property
    def name(self) -> str:
        """`<competition>/<time>-<name>`; of a study's run `<study>/<time>-<name>`."""
        return f"{self.path.parent.name}/{self.path.name}"

    def config(self) -> Config:
        """Return the config that it was started with, and where its data lie now.

        Raises:
            RunError: the file is damaged: it lacks a section, whose defaults would mean another run.
            ConfigError: it does not load.
        """
        path = self.path / "config.yaml"
        try:
            config = configs.load_stored(path, self.overrides)
        except ConfigError as error:
            raise ConfigError(f"{error}; it is the config that the run was started with: put it back") from None
        lacking = [name for name in _SECTIONS if name not in config.model_fields_set]
        if lacking:
            raise RunError(
                f"{path}: damaged: it lacks {', '.join(lacking)}; put back the config that the run was started with"
            )
        return config

    def config_hash(self) -> str:
        """Return the hash of the config that it was started with, wherever its data lie."""
        return configs.fingerprint(configs.load_stored(self.path / "config.yaml"))

    def data_config(self) -> Config:
        """Return the config that opens its data as they were in training: `data.range` is what auto had chosen.

        Runs of before it could be chosen took the range of the pixels' type.
        """
        config = self.config()
        recorded = self.provenance().get("pixel_range", "type")
        if config.data.range != "auto" or recorded is None:
            return config
        chosen = recorded if recorded == "type" else tuple(recorded)
        return config.model_copy(update={"data": config.data.model_copy(update={"range": chosen})})

    def provenance(self, *needed: str) -> dict[str, Any]:
        """Return where it came from: argv, git, versions, data fingerprint, classes.

        Args:
            needed: keys that must be there, each with a value of its kind.

        Raises:
            RunError: missing, or damaged.
        """
        path = self.path / "provenance.json"
        try:
            values = read_json(path)
        except RunError as error:
            raise RunError(f"{error}; put the file back, or {self.repair_hint}") from None
        for name in needed:
            expected, holds = _PROVENANCE[name]
            if not holds(values.get(name)):
                raise RunError(
                    f"{path}: damaged: {name}: expected {expected}, found {json.dumps(values.get(name))[:80]}; put the "
                    f"file back, or {self.repair_hint}"
                )
        return values

    @property
    def repair_hint(self) -> str:
        """What makes a run anew whose files are damaged, as the end of a message."""
        if self.has_weights() or (self.path / REMOVED).exists():
            return f"train again: comp run {self.path / 'config.yaml'}"
        return "make it again of the runs that it was made of"

    def metrics(self) -> RunMetrics:
        """Return its scores.

        Raises:
            RunError: the training is not complete, or the file is damaged.
        """
        if not self.is_complete():
            raise RunError(
                f"{self.path}: not a complete run (no metrics.json); finish it: comp run --resume {self.path}"
            )
        path = self.path / "metrics.json"
        return run_metrics.from_bytes(read_bytes(path, "scores", RunError), str(path))

    def write_metrics(self, metrics: RunMetrics) -> None:
        """Write metrics.json, which marks the run as complete."""
        self.write_json("metrics.json", metrics.to_json())

    def is_complete(self) -> bool:
        """Tell whether the training has ended and its scores are written."""
        return (self.path / "metrics.json").is_file()

    def write(self, name: str, content: Content) -> None:
        """Write one of its files atomically; see `write_atomically`."""
        write_atomically(self.path / name, content)

    def write_json(self, name: str, values: Mapping[str, Any]) -> None:
        """Write one of its JSON files atomically."""
        self.write(name, to_json(values))

    def predictions_path(self, name: str) -> Path:
        """Return where predictions `name` (`val`, `suite+flip`) lie; the folder is made."""
        folder = self.path / "predictions"
        folder.mkdir(exist_ok=True)
        return folder / f"{name}.npz"

    def plot_path(self, name: str) -> Path:
        """Return where plot `name` (`curves`, `norms`) lies; the folder is made."""
        folder = self.path / "plots"
        folder.mkdir(exist_ok=True)
        return folder / f"{name}.png"

    def weights_path(self) -> Path:
        """Return the weights to predict with: the best by validation, or without one averaged or final ones."""
        for name in ("best.safetensors", "averaged.safetensors", "final.safetensors"):
            if (self.path / name).is_file():
                return self.path / name
        if self.is_complete() and (self.path / REMOVED).exists():
            raise RunError(
                f"{self.path}: its weights were removed: a study keeps those of its best trials alone (tune.keep); to "
                f"have them again, {self.repair_hint}"
            )
        if self.is_complete():
            raise RunError(f"{self.path}: holds no weights; it was made of other runs, so predict with those")
        raise RunError(f"{self.path}: holds no weights; finish it: comp run --resume {self.path}")

    def has_weights(self) -> bool:
        """Tell whether it can predict; ensembles and probes cannot."""
        return any(self.path.glob("*.safetensors"))

    def history(self) -> list[dict[str, str]]:
        """Return history.csv's rows, none before the first epoch's end; see `table`."""
        return self.table("history.csv")

    def table(self, name: str) -> list[dict[str, str]]:
        """Return the rows of history.csv or norms.csv, none where it is not there.

        Raises:
            RunError: damaged: no CSV, or cells that should be numbers are not.
        """
        path = self.path / name
        if not path.is_file():
            return []
        try:
            with path.open(newline="", encoding="utf-8") as file:
                rows = list(csv.DictReader(file, strict=True))
            for row in rows:
                _check_numbers(row, _NUMBERED[name])
        except (OSError, ValueError, csv.Error) as error:
            raise RunError(f"{path}: damaged ({error_text(error)}); move it away to go on without its curves") from None
        return rows

    def write_table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write one of its CSV files whole; a column that some rows lack is empty there."""
        text = io.StringIO(newline="")
        columns = list(dict.fromkeys(column for row in rows for column in row))
        writer = csv.DictWriter(text, fieldnames=columns or ["epoch"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        self.write(name, text.getvalue().encode())

    @contextlib.contextmanager
    def write_lock(self) -> Iterator[None]:
        """Hold the run as its one writer.

        Raises:
            RunError: another process is writing it.
        """
        try:
            with filelock.FileLock(self.path / ".lock", timeout=0):
                yield
        except filelock.Timeout:
            raise RunError(f"{self.path}: another process is writing this run; wait for it or stop it") from None


def _check_numbers(row: Mapping[Any, Any], numbered: Sequence[str]) -> None:
    """Raise ValueError where a row has cells too few or too many, or a cell that should be a number is not."""
    if None in row or None in row.values():
        raise ValueError("a row has other cells than the header")
    for name, cell in row.items():
        if name not in _TEXTS and (cell or name in numbered):
            float(cell)
    lacking = [name for name in numbered if name not in row]
    if lacking:
        raise ValueError(f"it lacks the column {lacking[0]}")


@contextlib.contextmanager
def delete_on_failure(run: Run) -> Iterator[None]:
    """Remove a run's folder where the block that makes it fails: nothing could go on with one that is half made."""
    try:
        yield
    except BaseException:
        shutil.rmtree(run.path, ignore_errors=True)
        raise


def create(root: Path, config: Config, name: str, provenance: Mapping[str, Any], *, group: str = "") -> Run:
    """Make a new run folder under `root/<competition>/` with its config and provenance.

    Args:
        root: usually `runs`.
        config: written as config.yaml, resolved.
        name: the folder's name after the time.
        provenance: what made it; see `describe_machine`.
        group: a folder between the competition's and the run's; empty: none.

    Raises:
        RunError: the folder cannot be made.
    """
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
            raise RunError(f"{path}: cannot be made: {error.strerror}; choose a folder you may write: --runs") from None
        run = Run(path)
        write_atomically(path / "config.yaml", configs.dump(config).encode())
        run.write_json("provenance.json", provenance)
        return run
    raise RunError(f"{parent}: too many runs named {stem} in one second")


def open_run(path: Path, overrides: Sequence[str] = ()) -> Run:
    """Return the run in a folder.

    Args:
        path: of the folder.
        overrides: `key=value` of settings that tell where and how its data are read, and change nothing of the run.

    Raises:
        RunError: there is none; the nearest name beside it is told.
        ConfigError: an override of anything else.
    """
    for text in overrides:
        key = text.partition("=")[0].strip()
        if key not in MOVABLE:
            raise ConfigError(
                f"override '{text}': a trained run keeps its config; what may change is how its data are read: "
                f"{', '.join(MOVABLE)}{nearest(key, MOVABLE)}"
            )
    if (path / "config.yaml").is_file() and (path / "provenance.json").is_file():
        return Run(path, tuple(_expanded(text) for text in overrides))
    if path.is_dir():
        raise RunError(f"{path}: not a run folder (no config.yaml and provenance.json); `comp leaderboard` lists runs")
    siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    raise RunError(f"{path}: no such run{nearest(path.name, siblings)}; `comp leaderboard` lists runs")


def _expanded(override: str) -> str:
    """Return an override of a path with `~` and `${NAME}` replaced: a stored config's own are not."""
    key, sign, value = override.partition("=")
    return f"{key}{sign}{user_path(value, key)}" if "~" in value or "$" in value else override


def list_runs(root: Path) -> list[Run]:
    """Return all runs below a folder, complete or not, by name. No run lies inside another."""
    return [Run(Path(path)) for path in sorted(_run_folders(str(root)))]


def _run_folders(folder: str, depth: int = 0) -> Iterator[str]:
    """Yield the folders with a provenance.json below a folder; plain strings, for there may be many thousands."""
    try:
        with os.scandir(folder) as entries:
            inner = [entry.path for entry in entries if entry.is_dir() and entry.name != "wandb"]
    except OSError:
        return
    for path in inner:
        if os.path.exists(os.path.join(path, "provenance.json")):
            yield path
        elif depth < _DEEPEST:  # a link may lead back up
            yield from _run_folders(path, depth + 1)


def describe_machine() -> dict[str, Any]:
    """Return argv, git commit, versions, machine and time, as provenance and sidecars hold them."""
    return {
        "argv": [hide_passwords(word) for word in sys.argv[1:]],
        "git": git_commit(),
        "versions": package_versions(),
        "machine": {"system": platform.platform(), "processor": cpu_model(), "cpus": os.cpu_count()},
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def hide_passwords(text: str) -> str:
    """Return a text without the passwords that URLs in it hold: records are shared."""
    return re.sub(r"(://[^:/@\s]*):[^/\s]*@", r"\1@", text)


def package_versions() -> dict[str, str]:
    """Return the versions of python and the packages that results depend on."""
    found = {"python": platform.python_version()}
    for name in _VERSIONS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def git_commit() -> str:
    """Return the working directory's commit, `-dirty` where files differ, empty outside a repository."""
    command = ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def cpu_model() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def sidecar_path(path: Path) -> Path:
    """Return where a submission's sidecar lies, the JSON file that traces it to its run."""
    return path.with_suffix(".json")
