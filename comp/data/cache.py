"""Cache results of passes over the data: small JSON files in `data.root`/.comp-cache, or in the user's cache folder.

A key hashes everything that the result depends on, so that no entry ever has to be deleted by hand. A cache that cannot
be read or written costs time, but fails no run.
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
_VERSION = 2  # part of every key; raise it when a computation changes


def cached_json(
    root: Path, kind: str, key: str, compute: Callable[[], dict[str, Any]], is_valid: Callable[[dict[str, Any]], bool]
) -> dict[str, Any]:
    """Return a result from the cache, or compute and store it.

    Args:
        root: `data.root`; nothing is stored where it does not exist.
        kind: of the result; begins the file's name.
        key: everything that the result depends on.
        compute: returns plain values, under the same keys at every call.
        is_valid: returns whether values from the cache are of that form; may raise any of `files.READ_ERRORS` if not.
    """
    digest = files.sha256_bytes(f"{_VERSION}\0{key}".encode(errors="surrogatepass"))[:32]
    path = root / FOLDER / f"{kind}-{digest}.json"
    with contextlib.suppress(*files.READ_ERRORS):
        if is_valid(values := files.read_json(path)):
            return values
    result = compute()
    if root.is_dir():
        with contextlib.suppress(RunError, OSError):
            path.parent.mkdir(exist_ok=True)
            files.write_atomically(path, files.to_json(result))
    return result


def user_cache_folder() -> Path | None:
    """Return the folder for caches of the user and machine: COMP_CACHE, or `comp` in the system's cache folder.

    None without a home folder: then nothing is cached.
    """
    for variable, subfolder in _USER_FOLDERS.items():
        if root := os.environ.get(variable):
            return Path(root, subfolder)
    return None
