"""Facts that took a pass over the data, kept as small JSON files under `data.root`/.comp-cache; the user's own folder.

A key is a hash of all that the facts depend on, so that nothing here ever has to be thrown away by hand. A cache that
cannot be read or written costs time, never a run.
"""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from comp.results import files
from comp.runtime.errors import RunError

FOLDER = ".comp-cache"
# Environment variable -> folder below it; the first that is set counts.
_USER_FOLDERS = {"COMP_CACHE": "", "XDG_CACHE_HOME": "comp", "LOCALAPPDATA": "comp/cache", "HOME": ".cache/comp"}
_RULES = 2  # goes into every key: raised when a computation changes, which makes old facts unreachable


def cached_json(root: Path, kind: str, key: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return facts from the cache, or compute and keep them.

    Args:
        root: `data.root`; where it does not exist nothing is kept.
        kind: of the facts; begins the file's name.
        key: everything that the facts depend on.
        compute: returns plain values; its keys must be the same at every call.
    """
    digest = files.sha256_bytes(f"{_RULES}\0{key}".encode())[:32]
    path = root / FOLDER / f"{kind}-{digest}.json"
    with contextlib.suppress(RunError):
        return files.read_json(path)
    facts = compute()
    if root.is_dir():
        with contextlib.suppress(RunError, OSError):
            path.parent.mkdir(exist_ok=True)
            files.write_atomically(path, files.to_json(facts))
    return facts


def user_folder() -> Path | None:
    """Return the folder for what belongs to the user and machine: COMP_CACHE, or `comp` where caches are kept.

    None without a home: then nothing is kept.
    """
    for name, below in _USER_FOLDERS.items():
        if root := os.environ.get(name):
            return Path(root, below)
    return None
