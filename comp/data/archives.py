"""Files inside .zip archives, read in place: a path may lead through one, as `data/train.zip/train/7.jpg` does.

Nothing is unpacked, so a set needs no second copy on the disk and may lie where nothing can be written.
"""

import functools
import os
import threading
import zipfile
import zlib
from pathlib import Path

from comp.runtime.errors import DataError

ENDING = ".zip"
_MOST_BYTES = 1 << 30  # of one file: more is no picture, and an archive can promise any size
_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError, ValueError)
_opening = threading.Lock()


class DamagedError(DataError):
    """A file of an archive that is there and cannot be unpacked."""


def read(path: Path) -> bytes:
    """Return a file's content, which may lie in an archive.

    Raises:
        DataError: missing or not readable.
        DamagedError: in an archive, and cannot be unpacked.
    """
    inside = _split(path)
    try:
        if inside is None:
            return path.read_bytes()
        archive, member = inside
        opened, names = _opened(archive)
        entry = opened.getinfo(names.get(member, member))
        if entry.file_size > _MOST_BYTES:
            raise DamagedError(
                f"{path}: expected at most {_MOST_BYTES >> 20:,} MiB unpacked; remove it from the archive"
            )
        return opened.read(entry)  # zipfile locks: threads may read at once
    except (FileNotFoundError, KeyError):
        raise DataError(f"{path}: no such file") from None
    except OSError as reason:
        raise DataError(f"{path}: cannot be read: {reason.strerror or reason}") from None
    except _DAMAGE as reason:
        raise DamagedError(f"{path}: cannot be read from the archive ({reason}); fetch it again") from None


def stamp(path: Path) -> str:
    """Return what changes with a file's content, without reading it: size and time of change, in an archive a checksum.

    Raises:
        DataError: missing or not readable.
    """
    inside = _split(path)
    try:
        if inside is None:
            facts = path.stat()
            return f"{facts.st_size}\0{facts.st_mtime_ns}"
        opened, names = _opened(inside[0])
        entry = opened.getinfo(names.get(inside[1], inside[1]))
        return f"{entry.file_size}\0{entry.CRC}\0{inside[0].stat().st_mtime_ns}"
    except KeyError:
        raise DataError(f"{path}: no such file") from None
    except OSError as reason:
        raise DataError(f"{path}: cannot be read: {reason.strerror or reason}") from None


def members(archive: Path) -> list[str]:
    """Return the paths of all files in an archive, folders left out, in the form that `read` takes.

    Raises:
        DataError: missing, or no archive.
    """
    try:
        return list(_opened(archive)[1])
    except OSError as reason:
        raise DataError(f"{archive}: cannot be read: {reason.strerror or reason}") from None


def _split(path: Path) -> tuple[Path, str] | None:
    """Return the archive that a path leads through and the name inside it; None for a file of its own."""
    if f"{ENDING}/" not in path.as_posix().lower():
        return None
    for parent in reversed(path.parents):
        if parent.suffix.lower() == ENDING and parent.is_file():
            return parent, path.relative_to(parent).as_posix()
    return None


_Opened = tuple[zipfile.ZipFile, dict[str, str]]


def _opened(archive: Path) -> _Opened:
    """Return an archive opened in this process, since workers must not share a place in the file, and its files: plain
    path -> the archive's own name, which may have back slashes or needless steps (`./a`, `a//b`).
    """
    changed = archive.stat().st_mtime_ns
    with _opening:
        return _kept_open(str(archive), changed, os.getpid())


@functools.lru_cache(maxsize=16)
def _kept_open(archive: str, changed: int, process: int) -> _Opened:
    try:
        opened = zipfile.ZipFile(archive)
        names = [entry.filename for entry in opened.infolist() if not entry.is_dir()]
        return opened, {_plain(name): name for name in names}
    except _DAMAGE as reason:
        raise DataError(f"{archive}: cannot be read as a ZIP archive ({reason}); fetch it again") from None


def _plain(name: str) -> str:
    return "/".join(part for part in name.replace("\\", "/").split("/") if part not in ("", "."))
