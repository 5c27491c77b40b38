"""Timings of `comp.training.autotune`, kept in the user's cache folder."""

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from comp.data.cache import user_cache_folder
from comp.results import files
from comp.runtime import cores
from comp.runtime.errors import RunError


class TimingCache:
    """Cached seconds of one key, by setting and candidate."""

    def __init__(self, key: str) -> None:
        folder = user_cache_folder()
        self._path = folder and folder / "timing" / f"{files.sha256_bytes(key.encode())[:32]}.json"
        self._seconds: dict[str, dict[str, float]] = {}
        self._changed = False
        if self._path:
            with suppress(RunError):
                self._seconds = _check_timings(files.read_json(self._path), self._path)

    def get(self, setting: str, candidates: Sequence[str]) -> dict[str, float] | None:
        """Return the seconds of all candidates; None if one is missing."""
        cached = self._seconds.get(setting, {})
        return {name: cached[name] for name in candidates} if cached.keys() >= set(candidates) else None

    def add(self, setting: str, seconds: Mapping[str, float]) -> None:
        """Replace the timings of a setting."""
        self._seconds[setting] = dict(seconds)
        self._changed = True

    def save(self) -> str:
        """Write new timings and return an empty text; without new ones, return the file's path."""
        if not self._changed:
            return str(self._path)
        if self._path and not cores.is_busy():
            with suppress(RunError, OSError):  # an unwritable home folder only costs time
                files.make_folder(self._path.parent)
                files.write_atomically(self._path, files.to_json(self._seconds))
        return ""


def _check_timings(values: Mapping[str, Any], path: Path) -> dict[str, dict[str, float]]:
    """Return a cache file's timings.

    Raises:
        RunError: damaged.
    """
    rows = [row.values() if isinstance(row, dict) else [None] for row in values.values()]
    if not all(isinstance(value, float) and math.isfinite(value) and value > 0 for row in rows for value in row):
        raise RunError(f"{path}: damaged: expected positive seconds")
    return dict(values)
