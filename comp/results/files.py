"""Files: written atomically, read with clear errors, hashed. Torch-free.

Each file is written under a temporary name in its folder, flushed to disk and renamed: readers see the old file or the
new one, never half a file.
"""

import contextlib
import errno
import glob
import hashlib
import io
import json
import math
import os
import shutil
import struct
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from comp.runtime import escape, signals
from comp.runtime.errors import RunError, UserError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_VALUE_ERRORS = (ValueError, AssertionError, TypeError, AttributeError, IndexError, KeyError, OverflowError)
ZIP_ERRORS = (OSError, EOFError, MemoryError, RuntimeError, zipfile.BadZipFile, zlib.error, struct.error)
# All that zipfile and NumPy raise on damaged bytes: a flipped flag asks for a password or an unknown compression, a
# corrupt header for more memory than the machine has.
READ_ERRORS = (*_VALUE_ERRORS, *ZIP_ERRORS)

_FREE_BYTES, _MAX_RATIO = 1 << 28, 200  # unpacked: always allowed; times the packed bytes beyond that
_MAX_DEPTH = 100  # of JSON; comp writes a dozen at most
_MAX_INTEGER = 1 << 64

_LONGEST_NAME, _TEMPORARY_LENGTH = 255, 13  # bytes of a name, and what a temporary name adds: `.NAME.1234567.tmp`

_POLL_SECONDS = 0.05  # between two looks at a folder that another process holds

Content = bytes | Callable[[BinaryIO], None]  # a file's bytes, or a function that writes them to the open file


def write_atomically(path: Path, content: Content, *, replace: bool = True) -> None:
    """Write a whole file, or leave the existing one unchanged.

    Args:
        path: the file; its folder must exist.
        content: the bytes, or a function that writes them to an open file.
        replace: whether an existing file may be replaced.

    Raises:
        FileExistsError: `replace` is False and the file exists.
        RunError: the disk is full, or the folder is missing or read-only.
    """
    write_files_atomically({path: content}, replace=replace)


def write_files_atomically(contents: Mapping[Path, Content], *, replace: bool = True) -> None:
    """Write several files: all to disk first, then each to its name; see `write_atomically`."""
    staged = {path: path.with_name(f".{path.name}.{os.getpid()}.tmp") for path in contents}
    path = next(iter(contents))
    try:
        for path, content in contents.items():
            with staged[path].open("wb") as file:
                content(file) if callable(content) else file.write(content)
                file.flush()
                os.fsync(file.fileno())
        for path in contents:
            _move_into_place(staged[path], path, replace)
    except FileExistsError:
        raise
    except OSError as error:
        raise _unwritable(path, error) from None
    except RuntimeError as error:  # of torch's archives, which hides the reason
        if isinstance(error.__context__, OSError):
            raise _unwritable(path, error.__context__) from None
        raise
    finally:
        for temporary in staged.values():
            with contextlib.suppress(OSError):
                remove(temporary, inside=temporary.parent)
    for folder in {path.parent for path in contents}:
        _sync_folder(folder)


def _unwritable(path: Path, error: OSError) -> RunError:
    fix = "free space or choose another folder"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        fix = "choose a folder that you have permission to write to"
    elif error.errno == errno.ENAMETOOLONG:
        fix = "choose a shorter name"
    return RunError(f"{escape.short_path(path)}: cannot be written: {error.strerror}; {fix}")


def _move_into_place(temporary: Path, path: Path, replace: bool) -> None:
    if replace:
        temporary.replace(path)
        return
    try:
        os.link(temporary, path)  # unlike a rename, fails if the name is taken
    except (PermissionError, NotImplementedError):  # a file system without hard links
        if path.exists():
            raise FileExistsError(path) from None
        temporary.replace(path)


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":  # folders cannot be opened on Windows
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def hold_folder(folder: Path, wait: Callable[[], None] = signals.raise_if_interrupted) -> Iterator[None]:
    """Context manager: change several files of a folder, or a file by its content, while no other process does.

    The system locks the folder itself, so no file is left. Nothing is locked on a system without `fcntl` (Windows), on
    a file system without locks, and where the folder does not exist.

    Args:
        folder: held until the block ends, or the process does. Not reentrant.
        wait: called again and again while another process holds it; by default it raises `Interrupted` after a signal.
    """
    try:
        import fcntl

        descriptor = os.open(folder, os.O_RDONLY)
    except (ImportError, OSError):
        yield
        return
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                wait()
                time.sleep(_POLL_SECONDS)
                continue
            except OSError:  # a file system without locks
                pass
            break
        yield
    finally:
        os.close(descriptor)


def staged_for(path: Path) -> list[Path]:
    """Return the temporary files that killed processes left for a file."""
    return sorted(path.parent.glob(f".{glob.escape(path.name)}.*.tmp"))


def arrays_to_bytes(arrays: "Mapping[str, NDArray[Any]]") -> bytes:
    """Return the content of an uncompressed .npz with named arrays; the same arrays give the same bytes."""
    import numpy as np

    content = io.BytesIO()
    np.savez(content, **arrays)  # type: ignore[arg-type]  # see `write_arrays`
    return content.getvalue()


def write_arrays(path: Path, arrays: "Mapping[str, NDArray[Any]]") -> None:
    """Write named arrays as an uncompressed .npz, atomically."""
    import numpy as np  # imported late: progress bars and folder listings do without NumPy

    def write(file: BinaryIO) -> None:
        np.savez(file, **arrays)  # type: ignore[arg-type]  # numpy's stub takes its own flag for a keyword array

    write_atomically(path, write)


def read_bytes(path: Path, what: str, error: type[UserError]) -> bytes:
    """Return a file's content; `what` is its kind in the error message: `submission`, `weights file`.

    Raises:
        UserError: of class `error`: the file is missing or not readable.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise error(f"{path}: no such {what}") from None
    except OSError as reason:
        raise error(f"{path}: cannot be read: {reason.strerror or reason}") from None


def to_json(values: Any) -> bytes:
    """Return indented JSON; raise ValueError on non-finite values (an internal error)."""
    try:
        return (json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
    except UnicodeEncodeError:  # a file name whose bytes are no text, such as an argument of the command line
        return (json.dumps(values, indent=2, allow_nan=False) + "\n").encode()


def most_unpacked(packed: int) -> int:
    """Return how many bytes packed ones may unpack to; more is taken for a decompression bomb."""
    return max(_FREE_BYTES, _MAX_RATIO * packed)


def unpacking_problem(unpacked: int, packed: int) -> str:
    """Return why bytes that claim such a size are not unpacked; empty if they may be."""
    if unpacked <= most_unpacked(packed):
        return ""
    return (
        f"claims to unpack from {packed:,} bytes to {unpacked:,}; more than {_MAX_RATIO} times as many is taken for a "
        "decompression bomb"
    )


def parse_json(content: bytes) -> Any:
    """Return the value of JSON bytes, all of whose numbers are finite and whose text can be printed and written.

    Stricter than `json.loads`, whose results could stop what comes later: a number that is infinite or has more than 64
    bits, a key that is there twice, nesting that exhausts the stack, half a surrogate pair, a NUL in a path.

    Raises:
        ValueError: naming the first such thing, or no JSON.
    """
    try:
        text = content.decode(json.detect_encoding(content))  # strictly, unlike json.loads
        values = json.loads(
            text,
            parse_constant=_parse_float,
            parse_float=_parse_float,
            parse_int=_parse_integer,
            object_pairs_hook=_to_object,
        )
    except RecursionError:
        raise ValueError(f"nested deeper than {_MAX_DEPTH} levels") from None
    level, depth = [values], 0
    while level := [part for parent in level for part in _children(parent) if isinstance(part, dict | list)]:
        depth += 1
        if depth > _MAX_DEPTH:
            raise ValueError(f"nested deeper than {_MAX_DEPTH} levels")
    if "\\u" in text:
        text = json.dumps(values, ensure_ascii=False)
        # Raises UnicodeEncodeError, a ValueError; bytes of a file name that are no text are let through (`to_json`).
        text.encode(errors="surrogateescape")
        if r"\u0000" in text.replace(r"\\", ""):
            raise ValueError("text with a NUL character")
    return values


def _children(parent: Any) -> Any:
    return parent.values() if isinstance(parent, dict) else parent if isinstance(parent, list) else ()


def _parse_float(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"expected finite numbers, found {text}")
    return number


def _parse_integer(text: str) -> int:
    if len(text) > len(str(_MAX_INTEGER)) or abs(number := int(text)) >= _MAX_INTEGER:
        raise ValueError(f"expected whole numbers of at most 64 bits, found {text[:24]}...")
    return number


def _to_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice[:80]!r} is there twice")
    return values


def read_json(path: Path, cure: str = "") -> dict[str, Any]:
    """Return a JSON file's object; see `parse_json`. A message ends with `cure`: how to fix it.

    Raises:
        RunError: missing or not a JSON object.
    """
    try:
        values = parse_json(path.read_bytes())
    except FileNotFoundError:
        problem = "no such file"
    except (ValueError, OSError) as error:
        problem = f"not readable as JSON: {error}"
    else:
        if isinstance(values, dict):
            return values
        problem = f"expected a JSON object, found {type(values).__name__}"
    raise RunError("; ".join(filter(None, (f"{path}: {problem}", cure))))


def error_text(error: BaseException) -> str:
    """Return an exception's message, or its class name if it has none."""
    return str(error) or type(error).__name__


def sha256_file(path: Path) -> str:
    """Return a file's SHA-256 in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_bytes(content: bytes) -> str:
    """Return the SHA-256 of bytes in hex."""
    return hashlib.sha256(content).hexdigest()


def find_write_problem(folder: Path) -> str:
    """Return why a folder, existing or not, cannot be written to; empty if it can."""
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(path))
    if not existing.is_dir():
        return f"{existing} is not a folder"
    too_long = [part for part in folder.absolute().parts if len(os.fsencode(part)) > _LONGEST_NAME]
    if too_long:
        return f"{escape.short_path(too_long[0])}: a name has at most {_LONGEST_NAME} bytes"
    return "" if os.access(existing, os.W_OK | os.X_OK) else f"no permission to write to the folder {existing}"


def check_writable(path: Path, *, suffix: str = "") -> None:
    """Check that an output file can be written or replaced, before the work starts.

    Raises:
        RunError: it has another suffix, is a folder, its name is too long, or its folder cannot be written to.
    """
    if suffix and path.suffix != suffix:
        raise RunError(f"{path}: expected a name that ends in {suffix}")
    if len(os.fsencode(path.name)) > _LONGEST_NAME - _TEMPORARY_LENGTH:
        raise RunError(f"{escape.short_path(path)}: the name is too long; choose a shorter one with -o")
    if path.is_dir():
        raise RunError(f"{path}: is a folder; choose another name with -o")
    if problem := find_write_problem(path.parent):
        raise RunError(f"{escape.short_path(path)}: {problem}; choose another folder")


def make_folder(path: Path) -> None:
    """Create a folder and its parents.

    Raises:
        RunError: it cannot be created.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(
            f"{path}: the folder cannot be created: {error.strerror}; choose one you have permission to write to"
        ) from None


def check_new_folder(path: Path) -> None:
    """Check that a folder can be created, before the work starts.

    Raises:
        RunError: it exists, or cannot be created.
    """
    if os.path.lexists(path):
        raise RunError(f"{path}: exists already; move it away or choose another folder")
    if problem := find_write_problem(path):
        raise RunError(f"{escape.short_path(path)}: {problem}; choose another folder")


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Context manager: fill a folder under a temporary name, which becomes `path` if the block succeeds, else goes.

    Raises:
        RunError: it exists, before or after the block, or cannot be created.
    """
    check_new_folder(path)
    make_folder(path.parent)
    staged = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    make_folder(staged)
    try:
        yield staged
        check_new_folder(path)
        for folder in (staged, *(inner for inner in staged.rglob("*") if inner.is_dir())):
            _sync_folder(folder)
        staged.rename(path)
        _sync_folder(path.parent)
    finally:
        with contextlib.suppress(OSError):
            remove(staged, inside=staged.parent)


def lies_in(path: Path, folder: Path) -> bool:
    """Return whether a path, once links on its way are followed, lies in a folder; the last part may be a link."""
    return path.name not in ("", "..") and folder.resolve() in (path.parent.resolve() / path.name).parents


def remove(path: Path, *, inside: Path, marks: Sequence[str] = ()) -> None:
    """Remove a file, or a folder with all that it holds; nothing if it does not exist.

    Whatever a path comes from, such as a storage that others write to, only what lies in a folder of ours and looks
    like ours is removed. Links are never followed.

    Args:
        path: the file or folder.
        inside: the folder that it must lie in.
        marks: names of files that a folder must have.

    Raises:
        RunError: it lies elsewhere, or lacks a mark or is a link where one is needed.
        OSError: the system refuses it.
    """
    if not os.path.lexists(path):
        return
    if not lies_in(path, inside):
        raise RunError(f"{path}: is not removed: it does not lie in {inside}; remove it yourself if it is yours")
    if marks and path.is_symlink():
        raise RunError(f"{path}: is not removed: it is a link; remove it yourself")
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
        return
    missing = [name for name in marks if not (path / name).is_file()]
    if missing:
        raise RunError(f"{path}: is not removed: it has no {missing[0]}; remove it yourself if it is yours")
    shutil.rmtree(path)
