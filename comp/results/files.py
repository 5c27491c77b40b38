"""Files: written atomically, read with clear errors, hashed. Torch-free.

Each file is written under a temporary name in its folder, flushed to disk and renamed: readers see the old file or the
new one, never half a file.
"""

import contextlib
import glob
import hashlib
import io
import json
import os
import struct
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from comp.runtime import signals
from comp.runtime.errors import RunError, UserError

if TYPE_CHECKING:
    from numpy.lib.npyio import NpzFile
    from numpy.typing import NDArray

_VALUE_ERRORS = (ValueError, AssertionError, TypeError, IndexError, KeyError, OverflowError)
_ZIP_ERRORS = (OSError, EOFError, MemoryError, RuntimeError, zipfile.BadZipFile, zlib.error, struct.error)
# All that zipfile and NumPy raise on damaged bytes: a flipped flag asks for a password or an unknown compression, a
# corrupt header for more memory than the machine has.
READ_ERRORS = (*_VALUE_ERRORS, *_ZIP_ERRORS)

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
                temporary.unlink(missing_ok=True)
    for folder in {path.parent for path in contents}:
        _sync_folder(folder)


def _unwritable(path: Path, error: OSError) -> RunError:
    return RunError(f"{path}: cannot be written: {error.strerror}; free space or choose another folder")


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


@contextlib.contextmanager
def open_arrays(path: Path) -> "Iterator[NpzFile]":
    """Open a .npz to read its arrays by name; the caller handles READ_ERRORS."""
    import numpy as np

    with path.open("rb") as file:
        start = file.read(4)
        if start != b"PK\x03\x04":  # NumPy would take it for a pickle and advise to trust it
            raise ValueError("not a .npz file" if start else "empty file")
        file.seek(0)
        with np.load(file, allow_pickle=False) as archive:
            yield archive


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
    return (json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON file's object.

    Raises:
        RunError: missing or not a JSON object.
    """
    try:
        values = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise RunError(f"{path}: no such file") from None
    except (ValueError, OSError) as error:
        raise RunError(f"{path}: not readable as JSON: {error}") from None
    if not isinstance(values, dict):
        raise RunError(f"{path}: expected a JSON object, found {type(values).__name__}")
    return values


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
    return "" if os.access(existing, os.W_OK | os.X_OK) else f"no permission to write to the folder {existing}"


def check_writable(path: Path, *, suffix: str = "") -> None:
    """Check that an output file can be written or replaced, before the work starts.

    Raises:
        RunError: it has another suffix, is a folder, or its folder cannot be written to.
    """
    if suffix and path.suffix != suffix:
        raise RunError(f"{path}: expected a name that ends in {suffix}")
    if path.is_dir():
        raise RunError(f"{path}: is a folder; choose another name with -o")
    if problem := find_write_problem(path.parent):
        raise RunError(f"{path}: {problem}; choose another folder with -o")


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
