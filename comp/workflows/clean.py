"""`comp clean`: find and remove files that complete runs no longer need. Torch-free.

It touches only folders of runs and studies, and only files with names that comp or W&B give. It follows no links and
skips runs that another process is writing.
"""

import contextlib
import math
import os
import re
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from comp.results.files import remove
from comp.results.runs import FIXES, PRIOR, Run
from comp.results.unfinished import FAILURE, is_written
from comp.runtime.errors import RunError, UserError

SETTLED_SECONDS = 3600.0  # longer than any write, also by a process on another machine
STATE = "checkpoints of complete runs"
TEMPORARY = "temporary files of killed processes"
BLOCKS = "blocks of predictions that are stored whole"
UPLOADED = "W&B's files that are uploaded"
UNBEGUN = "runs that ended before their first epoch"

_MAX_DEPTH = 3  # RUNS/competition/study/run: deeper folders, for example below `/`, are no runs
_TEMPORARY_NAME = re.compile(r"\..+\.\d+\.tmp")  # as `runs.write_together` and `_remove_one` name them
# Everything that a run has before the end of its first epoch.
_UNBEGUN = {
    "config.yaml", "provenance.json", "split.npz", "execution.json", "plans.json", FIXES, PRIOR, "teacher.npz",
    "pseudo.npz", "plugins", ".lock", "wandb", FAILURE,
}  # fmt: skip
_COMBINED = {"predictions", "best.safetensors"}  # what an ensemble has before it is complete


@dataclass(frozen=True)
class Item:
    """A file or folder that can be removed.

    Attributes:
        what: STATE, TEMPORARY, ...
        path: the file or folder.
        bytes: size of all its files.
    """

    what: str
    path: Path
    bytes: int


@dataclass
class Cleaned:
    """Removed items (with `dry_run`: removable ones) and skipped ones.

    Attributes:
        removed: in order of their folders.
        left: path and reason of each skipped one.
        unbegun: runs that `older` would remove.
        unfinished: runs that can be resumed.
    """

    removed: list[Item] = field(default_factory=list)
    left: list[tuple[Path, str]] = field(default_factory=list)
    unbegun: list[Path] = field(default_factory=list)
    unfinished: list[Path] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        """Size of all removed items."""
        return sum(item.bytes for item in self.removed)


def clean(root: Path, *, older: float | None = None, dry_run: bool = False) -> Cleaned:
    """Remove files that the complete runs below a folder no longer need.

    These are state.pt (unless the run's config has `train.keep_state`), temporary files and blocks of killed processes,
    and W&B segments that are marked as uploaded. Predictions, weights, scores and curves stay.

    Args:
        root: folder of runs, or one run's.
        older: seconds; clean only runs without a changed file since then, and also remove those that ended before their
            first epoch, which have no weights, checkpoint, history or predictions.
        dry_run: remove nothing.

    Raises:
        RunError: no such folder, or no run below it.
    """
    if not root.is_dir():
        what = "is a file" if root.is_file() else "no such folder"
        raise RunError(f"{root}: {what}; name the folder of the runs: comp clean RUNS")
    done = Cleaned()
    folders = list(_list_folders(root, done))
    if not folders:
        raise RunError(f"{root}: not a folder of runs: it contains no run and no study")
    since = math.inf if older is None else time.time() - older
    for folder in folders:
        try:
            if (folder / "provenance.json").exists():
                if older is None or _last_change(folder) <= since:
                    _clean_run(Run(folder), done, unbegun_too=older is not None, dry_run=dry_run)
            else:
                items = [*_find_temporary(folder, deep=False), *_find_uploaded(folder)]
                _remove([item for item in items if _last_change(item.path) <= since], done, dry_run=dry_run)
        except OSError as error:
            done.left.append((folder, f"cannot be read: {error.strerror}"))
    return done


def _list_folders(root: Path, done: Cleaned) -> Iterator[Path]:
    """Yield the folders of runs and studies by name, first the root if it contains pushed leaderboards."""
    if (root / "wandb" / "leaderboards.json").is_file():
        yield root

    def note_error(error: OSError) -> None:
        done.left.append((Path(error.filename), f"cannot be read: {error.strerror}"))

    for folder, inner, files in os.walk(root, onerror=note_error):
        if len(Path(folder).relative_to(root).parts) >= _MAX_DEPTH:
            inner.clear()
        if "provenance.json" in files:
            inner.clear()  # runs are not nested
            if "config.yaml" in files:
                yield Path(folder)
        elif "study.json" in files:
            yield Path(folder)
        inner[:] = sorted(name for name in inner if name != "wandb")


def _clean_run(run: Run, done: Cleaned, *, unbegun_too: bool, dry_run: bool) -> None:
    """Remove a run's removable items, as its only writer."""
    try:
        run.provenance("classes")
        items = _find_removable(run, done, unbegun_too=unbegun_too)
        if items:
            if not os.access(run.path, os.W_OK):
                raise RunError(f"{run.path}: is not writable")
            locks = not dry_run or (run.path / ".lock").exists()  # a dry run creates no lock
            with run.write_lock(0) if locks else contextlib.nullcontext():
                # Checked again: the run may have started since.
                items = [item for item in items if item.what != UNBEGUN or _is_unbegun(run)]
                _remove(items, done, dry_run=dry_run)
    except UserError as error:
        done.left.append((run.path, str(error)))


def _find_removable(run: Run, done: Cleaned, *, unbegun_too: bool) -> list[Item]:
    """Return the items that a run does not need."""
    items = _find_temporary(run.path, deep=True)
    if run.is_complete():
        run.metrics()  # refuses a damaged one: the state may be all that is left
        state, weights = run.path / "state.pt", run.path.glob("*.safetensors")
        if _is_file(state) and any(path.is_file() for path in weights) and not run.config().train.keep_state:
            items.append(_item(STATE, state))
        return [*items, *_find_blocks(run), *_find_uploaded(run.path)]
    if is_written(run):
        return items
    if not _is_unbegun(run):
        done.unfinished.append(run.path)
    elif not unbegun_too:
        done.unbegun.append(run.path)
    else:
        return [_item(UNBEGUN, run.path)]
    return items


def _is_unbegun(run: Run) -> bool:
    """Return whether a run has only its initial files, and no file of anyone else.

    An ensemble that a kill left without scores counts too: it cannot be resumed, and can be made again.
    """
    names = _UNBEGUN | _COMBINED if "members" in run.provenance() else _UNBEGUN
    for path in run.path.iterdir():
        if path.is_symlink() or not (path.name in names or _TEMPORARY_NAME.fullmatch(path.name)):
            return False
    return _last_change(run.path) < time.time() - SETTLED_SECONDS


def _find_temporary(parent: Path, *, deep: bool) -> list[Item]:
    """Return temporary files that are unchanged for an hour."""
    items = []
    for folder, inner, files in os.walk(parent):
        inner[:] = [name for name in inner if not name.startswith("offline-run-")] if deep else []
        paths = [Path(folder, name) for name in [*files, *inner] if _TEMPORARY_NAME.fullmatch(name)]
        items += [_item(TEMPORARY, path) for path in paths if not path.is_symlink() and _is_settled(path)]
        inner[:] = [name for name in inner if not _TEMPORARY_NAME.fullmatch(name)]
    return items


def _find_blocks(run: Run) -> list[Item]:
    """Return blocks of stored predictions, from processes killed before they could remove them."""
    folder = run.path / "predictions"
    if folder.is_symlink():
        return []
    parts = [path for path in sorted(folder.glob("*.parts")) if path.is_dir() and not path.is_symlink()]
    return [_item(BLOCKS, path) for path in parts if _is_whole(path.with_suffix(".npz"), path) and _is_settled(path)]


def _is_whole(stored: Path, parts: Path) -> bool:
    """Return whether predictions were stored after their last block."""
    return stored.is_file() and stored.stat().st_mtime >= _last_change(parts)


def _find_uploaded(parent: Path) -> list[Item]:
    """Return W&B segments that are marked as fully uploaded."""
    folder = parent / "wandb"
    if folder.is_symlink():
        return []
    segments = [path for path in sorted(folder.glob("offline-run-*")) if path.is_dir() and not path.is_symlink()]
    return [_item(UPLOADED, path) for path in segments if any(path.glob("*.wandb.synced")) and _is_settled(path)]


def _remove(items: list[Item], done: Cleaned, *, dry_run: bool) -> None:
    for item in items:
        try:
            if not dry_run:
                _remove_one(item)
        except OSError as error:
            done.left.append((item.path, f"cannot be removed: {error.strerror}"))
        except RunError as error:
            done.left.append((item.path, str(error)))
        else:
            done.removed.append(item)


def _remove_one(item: Item) -> None:
    if item.what == UNBEGUN:
        last = ["config.yaml", "provenance.json"]  # they identify the run, if this is killed
        for name in [*(set(os.listdir(item.path)) - set(last)), *last]:
            path = item.path / name
            remove(path, inside=item.path)
        item.path.rmdir()
    elif item.path.is_dir():  # renamed first: W&B would upload half a segment
        renamed = item.path.with_name(f".{item.path.name.lstrip('.')}.{os.getpid()}.tmp")
        remove(item.path.rename(renamed), inside=item.path.parent)
    else:
        remove(item.path, inside=item.path.parent)


def _item(what: str, path: Path) -> Item:
    return Item(what, path, sum(status.st_size for status in _statuses(path)))


def _statuses(path: Path) -> Iterator[os.stat_result]:
    """Yield the status of a file, or of a folder's files without locks, which reading changes."""
    if not path.is_dir() or path.is_symlink():
        yield path.lstat()
        return
    for folder, _, files in os.walk(path):
        for name in files:
            if name != ".lock":
                with contextlib.suppress(FileNotFoundError):  # replaced in the meantime
                    yield os.lstat(os.path.join(folder, name))


def _last_change(path: Path) -> float:
    """Return when a file, or the newest file in a folder, changed; of an empty folder, when it was made."""
    return max((status.st_mtime for status in _statuses(path)), default=path.stat().st_mtime)


def _is_settled(path: Path) -> bool:
    return _last_change(path) <= time.time() - SETTLED_SECONDS


def _is_file(path: Path) -> bool:
    with contextlib.suppress(OSError):
        return stat.S_ISREG(path.lstat().st_mode)
    return False
