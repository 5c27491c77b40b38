"""The three standard streams: whatever they are, a command works, and says if its results could not be printed."""

import contextlib
import io
import os
import re
import sys
from collections.abc import Iterator

_NARROWEST, _WIDEST = 20, 9999  # columns of a window that tables are fitted to
_awaited = {"json": False}  # what the standard output still lacks


class _Stdout(io.TextIOWrapper):
    """Standard output that keeps its first failure: Python forgets it, and what it could not write."""

    failure: OSError | None = None

    def write(self, text: str) -> int:
        with self._noted():
            return super().write(text)

    def flush(self) -> None:
        with self._noted():
            super().flush()

    @contextlib.contextmanager
    def _noted(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.failure = error
            raise


def prepare() -> None:
    r"""Make the standard streams safe to print to.

    A closed one becomes /dev/null: else the next file that is opened would get its number, and what C code prints. What
    an encoding lacks is printed as `\xe9`. COLUMNS becomes a width that tables can have.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number: this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w" if number else "r", closefd=False))  # noqa: SIM115 - lives on
    if type(sys.stdout) is io.TextIOWrapper:  # not what a test or a notebook has put there
        encoding, modes = sys.stdout.encoding, (sys.stdout.line_buffering, sys.stdout.write_through)
        sys.stdout = _Stdout(sys.stdout.detach(), encoding, "backslashreplace", None, *modes)
        sys.__stdout__ = sys.stdout  # type: ignore[misc]  # the one before has no buffer now
    columns = os.environ.get("COLUMNS")
    if columns is not None:
        if re.fullmatch(r"0*[1-9][0-9]{0,3}", columns, re.ASCII):
            os.environ["COLUMNS"] = str(min(max(int(columns), _NARROWEST), _WIDEST))
        else:
            del os.environ["COLUMNS"]


def await_json(awaited: bool) -> None:
    """Note whether standard output still lacks the one JSON value of `--json`, which an error becomes then."""
    _awaited["json"] = awaited


def awaits_json() -> bool:
    """Return whether the JSON value of `--json` is not printed yet."""
    return _awaited["json"]


def drop_stderr() -> None:
    """Print no more notes: a full disk or a closed pipe below them must not end the work."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


def is_given_up() -> bool:
    """Return whether typer ended the command for a broken pipe, of standard output or of another process."""
    return hasattr(sys.stdout, "wrapped")


def flush_stdout() -> OSError | None:
    """Write what is printed; return why that or an earlier print is impossible, and print no more then."""
    stream = getattr(sys.stdout, "wrapped", sys.stdout)
    failure: OSError | None = getattr(stream, "failure", None)
    try:
        stream.flush()
    except OSError as error:
        failure = error
    if failure is not None:
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return failure
