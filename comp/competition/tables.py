"""A submission's cells as text, and what is said of a file that is no table. Torch-free."""

import csv
import io
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from comp import runs
from comp.errors import SubmissionError, UserError

SHOWN = 5  # offending ids in a message
_MARKS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}


def read(path: Path) -> pd.DataFrame:
    """Return a CSV's cells as text. Lines end in LF or all in CRLF; cells may be quoted.

    Raises:
        SubmissionError: missing, not UTF-8, not a CSV, ragged, or ending its lines in several ways.
    """
    text = _text(path)
    if not text.partition("\n")[0].strip():
        raise SubmissionError(f"{path}: is empty; expected a header line")
    if "\0" in text:
        raise SubmissionError(f"{path}: holds a zero byte, so it is no text; write it again")
    # Quotes are left to the reader that is strict about them; the other one is three times as fast.
    return _quoted(text, path) if '"' in text else _plain(text, path)


def read_any(path: Path, error: type[UserError]) -> pd.DataFrame:
    """Return the cells of a table that someone else wrote, as text: UTF-8 with or without a byte order mark, or UTF-16
    with one; plain, or the only CSV in a .zip. `007` stays `007`, a class `NA` a class, and the header as it is.

    Raises:
        UserError: of the kind `error`: missing, of another encoding, ragged, or without a row.
    """
    content = _unzipped(path, error) if path.suffix == ".zip" else runs.read_bytes(path, "file", error)
    marked = content.startswith(tuple(_MARKS))
    try:
        text = content.decode("utf-16" if marked else "utf-8-sig")
    except UnicodeDecodeError as reason:
        raise error(f"{path}: expected UTF-8 text, found byte {reason.start} that is not; save it as UTF-8") from None
    if "\0" in text:
        raise error(f"{path}: expected UTF-8 text, found zero bytes (UTF-16 without its mark?); save it as UTF-8")
    try:
        # The header is read as a row: pandas would rename its blank and repeated cells, and drop a longer row's last.
        table = pd.read_csv(
            io.StringIO(text), dtype=str, header=None, keep_default_na=False, on_bad_lines="error",
            quoting=csv.QUOTE_MINIMAL,
        )  # fmt: skip
    except (pd.errors.ParserError, pd.errors.EmptyDataError, ValueError) as reason:
        raise error(f"{path}: not a rectangular CSV: {str(reason).strip()}") from None
    table = _with_header(table)
    if table.empty:
        raise error(f"{path}: expected a header and rows below it, found no row")
    return table


def _unzipped(path: Path, error: type[UserError]) -> bytes:
    """Return the only CSV in an archive; macOS's own entries do not count."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [
                name for name in archive.namelist() if not name.startswith("__MACOSX") and name.lower().endswith(".csv")
            ]
            if len(names) != 1:
                raise error(f"{path}: expected one CSV in the archive, found {len(names)}; unpack it")
            return archive.read(names[0])
    except FileNotFoundError:
        raise error(f"{path}: no such file") from None
    except (OSError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as reason:
        raise error(f"{path}: cannot be read as a ZIP archive ({reason}); fetch it again") from None


def _text(path: Path) -> str:
    content = runs.read_bytes(path, "submission", SubmissionError)
    if name := _MARKS.get(content[:2]):
        raise SubmissionError(f"{path}: expected UTF-8 text, found {name} by its byte order mark; save it as UTF-8")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise SubmissionError(
            f"{path}: expected UTF-8 text, found byte {error.start} that is not; save it as UTF-8"
        ) from None
    if text.startswith("\ufeff"):
        raise SubmissionError(
            f"{path}: starts with a byte order mark, which spoils the first column's name; save it as UTF-8 without BOM"
        )
    if "\r" not in text:
        return text
    both = text.count("\r\n")
    if text.count("\r") != both or text.count("\n") != both:
        raise SubmissionError(f"{path}: ends its lines in several ways (CR, LF, CRLF); write it again with one of them")
    return text.replace("\r\n", "\n")


def _plain(text: str, path: Path) -> pd.DataFrame:
    """Return a text's cells; no quote is in it, so that a line is a row and every comma parts two cells."""
    content = np.frombuffer(text.encode(), np.uint8)
    commas, ends = np.flatnonzero(content == ord(",")), np.flatnonzero(content == ord("\n"))
    if content[-1] != ord("\n"):
        ends = np.append(ends, len(content))
    _demand_width(np.diff(np.searchsorted(commas, ends), prepend=0) + 1, path)
    table = pd.read_csv(
        io.StringIO(text), dtype=str, header=None, keep_default_na=False, skip_blank_lines=False, engine="c",
        quoting=csv.QUOTE_NONE,
    )  # fmt: skip
    return _with_header(table)


def _quoted(text: str, path: Path) -> pd.DataFrame:
    """Return a text's cells, some of them quoted as RFC 4180 has it."""
    try:
        rows = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    except csv.Error as error:
        raise SubmissionError(f"{path}: not a CSV: {error}") from None
    _demand_width(np.array([len(row) for row in rows]), path)
    return _with_header(pd.DataFrame(rows, dtype=str))


def _demand_width(widths: NDArray[np.int64], path: Path) -> None:
    strange = np.flatnonzero(widths != widths[0])
    if len(strange):
        first = strange[0]
        raise SubmissionError(
            f"{path}: not a rectangular CSV: line {first + 1} has {widths[first]} cells, the header {widths[0]} (and "
            f"{len(strange) - 1:,} more such lines)"
        )


def _with_header(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows below the first, which names the columns; names may be equal."""
    body = table.iloc[1:].reset_index(drop=True)
    body.columns = table.iloc[0].tolist()
    return body


def size(table: pd.DataFrame) -> str:
    """Return `3 rows of 2 columns`."""
    return f"{len(table):,} rows of {len(table.columns)} columns"


def some(values: Sequence[Any]) -> str:
    """Return the first few values, quoted."""
    return ", ".join(repr(str(value)) for value in values[:SHOWN])
