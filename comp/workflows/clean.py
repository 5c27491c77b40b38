"""What complete runs no longer need, found below a folder of runs and removed. Torch-free.

A folder is touched only where it bears a run's or a study's marks, a file only where its name is one that comp or W&B
gives; links are never followed, and a run that another process is writing is left alone.
"""

import contextlib
import math
import os
import re
import shutil
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from comp.results.runs import Run
from comp.runtime.errors import RunError, UserError

SETTLED_SECONDS = 3600.0  # no file takes so long to write; another machine's process may be at it
STATE = "checkpoints of complete runs"
TEMPORARY = "temporary files of killed processes"
BLOCKS = "blocks of predictions that are stored whole"
UPLOADED = "W&B's files that are uploaded"
UNBEGUN = "runs that ended before their first epoch"

_DEEPEST = 3  # RUNS/competition/study/run: what lies deeper, below `/` say, is not meant
_TEMPORARY_NAME = re.compile(r"\..+\.\d+\.tmp")  # as `files.write_files_atomically` and `_remove_one` name them
# All that a run has before the end of its first epoch.
_UNBEGUN = {"config.yaml", "provenance.json", "split.npz", "execution.json", "plans.json", ".lock", "wandb"}


@dataclass(frozen=True)
class Item:
    """A file or folder that can go.

    Attributes:
        what: STATE, TEMPORARY, ...
        path: of it.
        bytes: that it takes, all its files together.
    """

    what: str
    path: Path
    bytes: int


@dataclass
class Cleaned:
    """What was removed, or with `dry_run` would be, and what was left alone.

    Attributes:
        removed: by place.
        left: path and why, for each.
        unbegun: runs that would go with `older`.
        unfinished: runs that can be resumed.
    """

    removed: list[Item] = field(default_factory=list)
    left: list[tuple[Path, str]] = field(default_factory=list)
    unbegun: list[Path] = field(default_factory=list)
    unfinished: list[Path] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        """Of all that was removed."""
        return sum(item.bytes for item in self.removed)


def clean(root: Path, *, older: float | None = None, dry_run: bool = False) -> Cleaned:
    """Remove what the complete runs below a folder no longer need.

    These are state.pt (unless the run's config has `train.keep_state`), temporary files and blocks that a killed
    process has left, and W&B's segments that are marked as uploaded. Predictions, weights, scores and curves stay.

    Args:
        root: a folder of runs, or one run's.
        older: seconds; only what lies in runs in which no file has changed since. Then runs that ended before their
            first epoch, which hold no weights, checkpoint, history or predictions, go as well.
        dry_run: remove nothing.

    Raises:
        RunError: no such folder, or one without a run below it.
    """
    if not root.is_dir():
        what = "is a file" if root.is_file() else "no such folder"
        raise RunError(f"{root}: {what}; name the one that holds the runs: comp clean RUNS")
    done = Cleaned()
    places = list(_places(root, done))
    if not places:
        raise RunError(f"{root}: no folder of runs: there is neither a run nor a study in it")
    since = math.inf if older is None else time.time() - older
    for place in places:
        try:
            if (place / "provenance.json").exists():
                if older is None or _last_change(place) <= since:
                    _clean_run(Run(place), done, unbegun_too=older is not None, dry_run=dry_run)
            else:
                items = [*_temporaries(place, deep=False), *_uploaded(place)]
                _remove([item for item in items if _last_change(item.path) <= since], done, dry_run=dry_run)
        except OSError as error:
            done.left.append((place, f"cannot be read: {error.strerror}"))
    return done


def _places(root: Path, done: Cleaned) -> Iterator[Path]:
    """Yield the folders of runs and studies, and the root where pushed leaderboards lie in it, by name."""
    if (root / "wandb" / "leaderboards.json").is_file():
        yield root

    def note(error: OSError) -> None:
        done.left.append((Path(error.filename), f"cannot be read: {error.strerror}"))

    for folder, inner, files in os.walk(root, onerror=note):
        if len(Path(folder).relative_to(root).parts) >= _DEEPEST:
            inner.clear()
        if "provenance.json" in files:
            inner.clear()  # no run lies inside another
            if "config.yaml" in files:
                yield Path(folder)
        elif "study.json" in files:
            yield Path(folder)
        inner[:] = sorted(name for name in inner if name != "wandb")


def _clean_run(run: Run, done: Cleaned, *, unbegun_too: bool, dry_run: bool) -> None:
    """Remove what a run does not need, as its one writer."""
    try:
        run.provenance("classes")
        items = _unneeded(run, done, unbegun_too=unbegun_too)
        if items:
            if not os.access(run.path, os.W_OK):
                raise RunError(f"{run.path}: may not be written")
            held = not dry_run or (run.path / ".lock").exists()  # a dry run makes no lock
            with run.write_lock() if held else contextlib.nullcontext():
                # Asked again: it may have begun until now.
                items = [item for item in items if item.what != UNBEGUN or _is_unbegun(run)]
                _remove(items, done, dry_run=dry_run)
    except UserError as error:
        done.left.append((run.path, str(error)))


def _unneeded(run: Run, done: Cleaned, *, unbegun_too: bool) -> list[Item]:
    """Return what a run does not need."""
    items = _temporaries(run.path, deep=True)
    if run.is_complete():
        run.metrics()  # a damaged one marks nothing: its state may be all that is left
        state, weights = run.path / "state.pt", run.path.glob("*.safetensors")
        if _is_file(state) and any(path.is_file() for path in weights) and not run.config().train.keep_state:
            items.append(_item(STATE, state))
        return [*items, *_blocks(run), *_uploaded(run.path)]
    if _is_written(run):
        return items
    if not _is_unbegun(run):
        done.unfinished.append(run.path)
    elif not unbegun_too:
        done.unbegun.append(run.path)
    else:
        return [_item(UNBEGUN, run.path)]
    return items


def _is_written(run: Run) -> bool:
    """Tell whether a process is training it now."""
    try:
        with run.write_lock() if (run.path / ".lock").exists() else contextlib.nullcontext():
            return False
    except RunError:
        return True


def _is_unbegun(run: Run) -> bool:
    """Tell whether a run holds nothing but what it was made with, and nobody has put anything beside that."""
    for path in run.path.iterdir():
        if path.is_symlink() or not (path.name in _UNBEGUN or _TEMPORARY_NAME.fullmatch(path.name)):
            return False
    return _last_change(run.path) < time.time() - SETTLED_SECONDS


def _temporaries(place: Path, *, deep: bool) -> list[Item]:
    """Return temporary files that nobody has written for an hour."""
    found = []
    for folder, inner, files in os.walk(place):
        inner[:] = [name for name in inner if not name.startswith("offline-run-")] if deep else []
        paths = [Path(folder, name) for name in [*files, *inner] if _TEMPORARY_NAME.fullmatch(name)]
        found += [_item(TEMPORARY, path) for path in paths if not path.is_symlink() and _is_settled(path)]
        inner[:] = [name for name in inner if not _TEMPORARY_NAME.fullmatch(name)]
    return found


def _blocks(run: Run) -> list[Item]:
    """Return what predictions were put together from: a process was killed before it could remove it."""
    folder = run.path / "predictions"
    if folder.is_symlink():
        return []
    found = [path for path in sorted(folder.glob("*.parts")) if path.is_dir() and not path.is_symlink()]
    return [_item(BLOCKS, path) for path in found if _is_whole(path.with_suffix(".npz"), path) and _is_settled(path)]


def _is_whole(stored: Path, parts: Path) -> bool:
    """Tell whether predictions were stored after their last block."""
    return stored.is_file() and stored.stat().st_mtime >= _last_change(parts)


def _uploaded(place: Path) -> list[Item]:
    """Return W&B's segments that are marked as uploaded to their end."""
    folder = place / "wandb"
    if folder.is_symlink():
        return []
    found = [path for path in sorted(folder.glob("offline-run-*")) if path.is_dir() and not path.is_symlink()]
    return [_item(UPLOADED, path) for path in found if any(path.glob("*.wandb.synced")) and _is_settled(path)]


def _remove(items: list[Item], done: Cleaned, *, dry_run: bool) -> None:
    for item in items:
        try:
            if not dry_run:
                _remove_one(item)
        except OSError as error:
            done.left.append((item.path, f"cannot be removed: {error.strerror}"))
        else:
            done.removed.append(item)


def _remove_one(item: Item) -> None:
    if item.what == UNBEGUN:
        last = ["config.yaml", "provenance.json"]  # by which it is known, if this is killed
        for name in [*(set(os.listdir(item.path)) - set(last)), *last]:
            path = item.path / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        item.path.rmdir()
    elif item.path.is_dir():  # at once: W&B would take half a segment for one that waits
        gone = item.path.with_name(f".{item.path.name.lstrip('.')}.{os.getpid()}.tmp")
        shutil.rmtree(item.path.rename(gone))
    else:
        item.path.unlink()


def _item(what: str, path: Path) -> Item:
    return Item(what, path, sum(status.st_size for status in _statuses(path)))


def _statuses(path: Path) -> Iterator[os.stat_result]:
    """Yield the status of a file, or of all files in a folder but locks, which change when they are only looked at."""
    if not path.is_dir() or path.is_symlink():
        yield path.lstat()
        return
    for folder, _, files in os.walk(path):
        for name in files:
            if name != ".lock":
                with contextlib.suppress(FileNotFoundError):  # it is being written
                    yield os.lstat(os.path.join(folder, name))


def _last_change(path: Path) -> float:
    """Return when a file, or the last of a folder's files, was written; of an empty folder, when that was made."""
    return max((status.st_mtime for status in _statuses(path)), default=path.stat().st_mtime)


def _is_settled(path: Path) -> bool:
    return _last_change(path) <= time.time() - SETTLED_SECONDS


def _is_file(path: Path) -> bool:
    with contextlib.suppress(OSError):
        return stat.S_ISREG(path.lstat().st_mode)
    return False
