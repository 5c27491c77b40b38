"""Files inside .zip archives, read without unpacking: a path may lead through one, `data/train.zip/train/7.jpg`."""

import functools
import os
import threading
import zipfile
from pathlib import Path

from comp.results import files
from comp.runtime.errors import DataError

ENDING = ".zip"
_MAX_BYTES = 1 << 30  # of one file: larger ones are no images, and an archive can claim any size
_lock = threading.Lock()


class DamagedError(DataError):
    """A file in an archive cannot be unpacked."""


def read(path: Path) -> bytes:
    """Return the content of a file, which may be in an archive.

    Raises:
        DataError: missing or not readable.
        DamagedError: in an archive, but cannot be unpacked.
    """
    inside = _split(path)
    try:
        if inside is None:
            return path.read_bytes()
        archive, member = inside
        opened, names = _open_archive(archive)
        entry = opened.getinfo(names.get(member, member))
        if entry.file_size > _MAX_BYTES:
            raise DamagedError(
                f"{path}: expected at most {_MAX_BYTES >> 20:,} MiB unpacked; remove it from the archive"
            )
        return opened.read(entry)  # thread-safe: zipfile locks
    except (FileNotFoundError, KeyError):
        raise DataError(f"{path}: no such file") from None
    except OSError as reason:
        raise DataError(f"{path}: cannot be read: {reason.strerror or reason}") from None
    except (DamagedError, MemoryError):
        raise
    except files.READ_ERRORS as reason:
        raise DamagedError(
            f"{path}: cannot be read from the archive ({files.error_text(reason)}); fetch it again"
        ) from None


def stamp(path: Path) -> str:
    """Return a text that changes with a file's content, without reading it: size and time of change, in an archive a
    checksum.

    Raises:
        DataError: missing or not readable.
    """
    inside = _split(path)
    try:
        if inside is None:
            status = path.stat()
            return f"{status.st_size}\0{status.st_mtime_ns}"
        opened, names = _open_archive(inside[0])
        entry = opened.getinfo(names.get(inside[1], inside[1]))
        return f"{entry.file_size}\0{entry.CRC}\0{inside[0].stat().st_mtime_ns}"
    except KeyError:
        raise DataError(f"{path}: no such file") from None
    except OSError as reason:
        raise DataError(f"{path}: cannot be read: {reason.strerror or reason}") from None


def members(archive: Path) -> list[str]:
    """Return the paths of all files in an archive, as `read` takes them.

    Raises:
        DataError: missing, or not an archive.
    """
    try:
        return list(_open_archive(archive)[1])
    except OSError as reason:
        raise DataError(f"{archive}: cannot be read: {reason.strerror or reason}") from None


def _split(path: Path) -> tuple[Path, str] | None:
    """Return the archive that a path leads through and the name inside it; None for an ordinary file."""
    if f"{ENDING}/" not in path.as_posix().lower():
        return None
    for parent in reversed(path.parents):
        if parent.suffix.lower() == ENDING and parent.is_file():
            return parent, path.relative_to(parent).as_posix()
    return None


_Archive = tuple[zipfile.ZipFile, dict[str, str]]


def _open_archive(archive: Path) -> _Archive:
    """Return an archive, opened in this process because workers must not share a file position, and its files: plain
    path -> name in the archive, which may have backslashes or redundant steps (`./a`, `a//b`).
    """
    changed = archive.stat().st_mtime_ns
    with _lock:
        return _cached_open(str(archive), changed, os.getpid())


@functools.lru_cache(maxsize=16)
def _cached_open(archive: str, changed: int, process: int) -> _Archive:
    try:
        opened = zipfile.ZipFile(archive)
        names = [entry.filename for entry in opened.infolist() if not entry.is_dir()]
        return opened, {_plain(name): name for name in names}
    except (OSError, MemoryError):
        raise
    except files.READ_ERRORS as reason:
        raise DataError(
            f"{archive}: cannot be read as a ZIP archive ({files.error_text(reason)}); fetch it again"
        ) from None


def _plain(name: str) -> str:
    return "/".join(part for part in name.replace("\\", "/").split("/") if part not in ("", "."))
