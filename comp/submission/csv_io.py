"""A submission's cells as text, and what is said of a file that is no table. Torch-free."""

import csv
import gzip
import io
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from comp.results import files
from comp.runtime.errors import SubmissionError, UserError

if TYPE_CHECKING:
    import pandas as pd

SHOWN = 5  # offending ids in a message
SEPARATORS = (",", ";", "\t")  # of cells; the first where nothing tells
_SEEN, _LINES = 1 << 16, 50  # characters and lines that the separator is told by
_MARKS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}


def read(path: Path) -> "pd.DataFrame":
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


def read_any(path: Path, error: type[UserError]) -> "pd.DataFrame":
    """Return the cells of a table that someone else wrote, as text: `007` stays `007`, a class `NA` a class, and the
    header as it is.

    UTF-8 with or without a byte order mark, or UTF-16 with one; cells parted by comma, semicolon or tab, whichever
    gives all lines the same, largest number of cells; plain, in a `.gz`, or the only table in a `.zip`. A `.parquet` is
    read where pyarrow is installed.

    Raises:
        UserError: of the kind `error`: missing, of another encoding, ragged, or without a row.
    """
    table = _parquet(path, error) if path.suffix == ".parquet" else _csv(any_text(path, error), path, error)
    if table.empty:
        raise error(f"{path}: expected a header and rows below it, found no row")
    return table


def any_text(path: Path, error: type[UserError]) -> str:
    """Return the text of a table that someone else wrote, unpacked and without its byte order mark; see `read_any`.

    Raises:
        UserError: of the kind `error`: missing, damaged, or of another encoding.
    """
    content = _unpacked(path, error)
    marked = content.startswith(tuple(_MARKS))
    try:
        text = content.decode("utf-16" if marked else "utf-8-sig")
    except UnicodeDecodeError as reason:
        raise error(f"{path}: expected UTF-8 text, found byte {reason.start} that is not; save it as UTF-8") from None
    if not text.strip():
        raise error(f"{path}: is empty; expected a header line")
    if "\0" in text:
        raise error(f"{path}: expected UTF-8 text, found zero bytes (UTF-16 without its mark?); save it as UTF-8")
    return text


def separator_of(text: str) -> str:
    """Return what parts a table's cells: the sign that parts each of its first lines into the same, largest number."""
    lines = [line for line in text[:_SEEN].splitlines()[:_LINES] if line.strip()]
    if len(text) > _SEEN:
        lines = lines[:-1] or lines  # the last one is cut
    widths = {sign: {len(row) for row in csv.reader(lines, delimiter=sign)} for sign in SEPARATORS}
    even = {sign: max(found) for sign, found in widths.items() if len(found) == 1 and max(found) > 1}
    return max(even, key=lambda sign: even[sign], default=SEPARATORS[0])


def _csv(text: str, path: Path, error: type[UserError]) -> "pd.DataFrame":
    import pandas as pd

    try:
        # The header is read as a row: pandas would rename its blank and repeated cells, and drop a longer row's last.
        table = pd.read_csv(
            io.StringIO(text), dtype=str, header=None, keep_default_na=False, on_bad_lines="error",
            quoting=csv.QUOTE_MINIMAL, sep=separator_of(text),
        )  # fmt: skip
    except (pd.errors.ParserError, pd.errors.EmptyDataError, ValueError, csv.Error) as reason:
        raise error(f"{path}: not a rectangular CSV: {str(reason).strip()}") from None
    return _with_header(table)


def _parquet(path: Path, error: type[UserError]) -> "pd.DataFrame":
    import pandas as pd

    try:
        import pyarrow  # few need it
        from pyarrow import parquet
    except ImportError:
        raise error(f"{path}: reading Parquet needs pyarrow; pip install pyarrow, or save the table as CSV") from None
    content = files.read_bytes(path, "file", error)
    try:
        found = parquet.read_table(io.BytesIO(content))
        columns = [column.cast(pyarrow.string()).fill_null("").to_pylist() for column in found.columns]
    except (pyarrow.ArrowException, OSError, ValueError) as reason:
        raise error(f"{path}: not a table of plain columns: {str(reason).splitlines()[0]}") from None
    table = pd.DataFrame(dict(enumerate(columns)), dtype=str)
    table.columns = list(found.column_names)
    return table


def _unpacked(path: Path, error: type[UserError]) -> bytes:
    if path.suffix == ".zip":
        return _unzipped(path, error)
    content = files.read_bytes(path, "file", error)
    if path.suffix != ".gz":
        return content
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as reason:
        raise error(f"{path}: cannot be unpacked ({reason}); fetch it again") from None


def _unzipped(path: Path, error: type[UserError]) -> bytes:
    """Return the only table in an archive; macOS's own entries do not count."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [
                name for name in archive.namelist()
                if not name.startswith("__MACOSX") and name.lower().endswith((".csv", ".tsv", ".txt"))
            ]  # fmt: skip
            if len(names) != 1:
                raise error(f"{path}: expected one CSV in the archive, found {len(names)}; unpack it")
            return archive.read(names[0])
    except FileNotFoundError:
        raise error(f"{path}: no such file") from None
    except (OSError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as reason:
        raise error(f"{path}: cannot be read as a ZIP archive ({reason}); fetch it again") from None


def _text(path: Path) -> str:
    content = files.read_bytes(path, "submission", SubmissionError)
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


def _plain(text: str, path: Path) -> "pd.DataFrame":
    """Return a text's cells; no quote is in it, so that a line is a row and every comma parts two cells."""
    import pandas as pd

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


def _quoted(text: str, path: Path) -> "pd.DataFrame":
    """Return a text's cells, some of them quoted as RFC 4180 has it."""
    import pandas as pd

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


def _with_header(table: "pd.DataFrame") -> "pd.DataFrame":
    """Return the rows below the first, which names the columns; names may be equal."""
    body = table.iloc[1:].reset_index(drop=True)
    body.columns = table.iloc[0].tolist()
    return body


def size(table: "pd.DataFrame") -> str:
    """Return `3 rows of 2 columns`."""
    return f"{len(table):,} rows of {len(table.columns)} columns"


def some(values: Sequence[Any]) -> str:
    """Return the first few values, quoted."""
    return ", ".join(repr(str(value)) for value in values[:SHOWN])
