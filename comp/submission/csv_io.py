"""Read CSV and Parquet tables as text: submissions strictly, other tables leniently. Torch-free."""

import contextlib
import csv
import gzip
import io
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from comp.results import files
from comp.runtime.errors import SubmissionError, UserError

if TYPE_CHECKING:
    import pandas as pd

_SHOWN = 5  # values in a message
_MAX_LINE = 1 << 24  # bytes; a row of 1,024 x 1,024 grey pixels has 4 MB
_MAX_COLUMNS = 300_000  # a pixel table of 512 x 512 has 262,145
SEPARATORS = (",", ";", "\t")  # between cells; the first is the default
_SNIFFED_CHARACTERS, _SNIFFED_LINES = 1 << 16, 50  # from which the separator is detected
_UTF_16_MARKS = (b"\xff\xfe", b"\xfe\xff")


def read_strict(path: Path) -> "pd.DataFrame":
    """Return a submission's cells as text. All lines end in LF or all in CRLF; cells may be quoted.

    Raises:
        SubmissionError: missing, not UTF-8, not a rectangular CSV, or mixed line endings.
    """
    text = _read_strict_text(path)
    if not first_line(text).strip():
        raise SubmissionError(f"{path}: is empty; expected a header line")
    if "\0" in text:
        raise SubmissionError(f"{path}: contains NUL bytes: not a text file; write it again")
    # Only the csv module checks quoting strictly; without quotes pandas is three times as fast.
    return _parse_quoted(text, path) if '"' in text else _parse_plain(text, path)


def read_table(path: Path, error: type[UserError]) -> "pd.DataFrame":
    """Return a third-party table's cells as text: `007` stays `007`, `NA` stays `NA`, and the header is unchanged.

    Reads UTF-8 with or without a byte order mark, and UTF-16 with one; cells separated by comma, semicolon or tab (see
    `detect_separator`); a plain file, a `.gz`, or the only table in a `.zip`; `.parquet` if pyarrow is installed.

    Raises:
        UserError: of type `error`: missing, another encoding, ragged, or no row.
    """
    table = (
        _read_parquet(path, error) if path.suffix == ".parquet" else _parse_lenient(read_text(path, error), path, error)
    )
    if table.empty:
        raise error(f"{path}: expected a header and at least one row, found no row")
    return table


def read_text(path: Path, error: type[UserError]) -> str:
    """Return a third-party table's text, decompressed and without a byte order mark; see `read_table`.

    Raises:
        UserError: of type `error`: missing, damaged, or another encoding.
    """
    content = _read_unpacked(path, error)
    try:
        text = content.decode("utf-16" if content.startswith(_UTF_16_MARKS) else "utf-8-sig")
    except UnicodeDecodeError as reason:
        raise error(f"{path}: not UTF-8 text (byte {reason.start}); save it as UTF-8") from None
    if not text or text.isspace():
        raise error(f"{path}: is empty; expected a header line")
    if "\0" in text:
        raise error(f"{path}: contains NUL bytes: not UTF-8 text (UTF-16 without a byte order mark?); save it as UTF-8")
    return text


def first_line(text: str) -> str:
    """Return a text up to its first line end."""
    end = re.search(r"[\r\n]", text)
    return text[: end.start()] if end else text


def detect_separator(text: str) -> str:
    """Return the separator that splits each of the first lines into the same, largest number of cells."""
    lines = [line for line in text[:_SNIFFED_CHARACTERS].splitlines()[:_SNIFFED_LINES] if line.strip()]
    if len(text) > _SNIFFED_CHARACTERS:
        lines = lines[:-1] or lines  # the last line may be cut off
    widths: dict[str, int] = {}
    for separator in SEPARATORS:
        line_widths = {len(row) for row in csv.reader(lines, delimiter=separator)}
        if len(line_widths) == 1 and max(line_widths) > 1:
            widths[separator] = line_widths.pop()
    return max(widths, key=lambda separator: widths[separator], default=SEPARATORS[0])


def _parse_lenient(text: str, path: Path, error: type[UserError]) -> "pd.DataFrame":
    import pandas as pd

    try:
        # The header is read as a row: pandas would rename blank and duplicate names, and drop a longer row's last cell.
        table = pd.read_csv(
            io.BytesIO(text.encode()),  # StringIO takes four bytes a character
            dtype=str,
            header=None,
            keep_default_na=False,
            on_bad_lines="error",
            quoting=csv.QUOTE_MINIMAL,
            sep=detect_separator(text),
        )
    except (pd.errors.ParserError, pd.errors.EmptyDataError, ValueError, csv.Error) as reason:
        cure = "expected as many cells in every row as in the header; quote a cell that contains the separator"
        if "EOF inside string" in str(reason):
            cure = "a quote is opened and not closed; close it, or write it twice inside a quoted cell"
        raise error(f"{path}: not a rectangular CSV: {str(reason).strip()}; {cure}") from None
    return _with_header(table)


def _read_parquet(path: Path, error: type[UserError]) -> "pd.DataFrame":
    import pandas as pd

    try:
        import pyarrow  # optional
        from pyarrow import parquet
    except ImportError:
        raise error(f"{path}: Parquet needs pyarrow: pip install pyarrow, or save the table as CSV") from None
    content = files.read_bytes(path, "file", error)
    try:
        arrow = parquet.read_table(io.BytesIO(content))
        columns = [column.cast(pyarrow.string()).fill_null("").to_pylist() for column in arrow.columns]
    except (pyarrow.ArrowException, OSError, ValueError) as reason:
        raise error(f"{path}: not a table of plain columns: {str(reason).splitlines()[0]}") from None
    table = pd.DataFrame(dict(enumerate(columns)), dtype=str)
    table.columns = list(arrow.column_names)
    return table


def _read_unpacked(path: Path, error: type[UserError]) -> bytes:
    if path.suffix == ".zip":
        return _read_zip(path, error)
    if path.suffix != ".gz":
        return _read_lines(path, "file", error)
    content = files.read_bytes(path, "file", error)
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
            return _read_bounded(file, len(content), path, error)
    except (OSError, EOFError, zlib.error, struct.error) as reason:
        raise error(f"{path}: cannot be decompressed ({reason}); download it again") from None


def _read_zip(path: Path, error: type[UserError]) -> bytes:
    """Return the only table in an archive; entries that macOS adds are ignored."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = [name for name in archive.namelist() if not name.startswith("__MACOSX")]
            names = [name for name in entries if name.lower().endswith((".csv", ".tsv", ".txt"))]
            if len(names) != 1:
                raise error(f"{path}: expected one CSV in the archive, found {len(names)}; extract the archive")
            with archive.open(names[0]) as file:
                return _read_bounded(file, path.stat().st_size, path, error)
    except FileNotFoundError:
        raise error(f"{path}: no such file") from None
    except UserError:
        raise
    except files.READ_ERRORS as reason:
        raise error(
            f"{path}: cannot be read as a ZIP archive ({files.error_text(reason)}); download it again"
        ) from None


def _read_bounded(file: IO[bytes] | gzip.GzipFile, packed: int, path: Path, error: type[UserError]) -> bytes:
    """Return a table's bytes, unpacked from so many, if its lines and their sum have a sensible size."""
    head = file.read(_MAX_LINE + 1)
    _check_lines(head, path, error)
    content = head + file.read(files.most_unpacked(packed) + 1 - len(head))
    if problem := files.unpacking_problem(len(content), packed):
        raise error(f"{path}: {problem}; unpack it yourself if you trust it")
    _check_lines(content, path, error)
    return content


def _read_lines(path: Path, what: str, error: type[UserError]) -> bytes:
    """Return a table's bytes if its lines have a sensible length; the first is checked before the rest is read."""
    with contextlib.suppress(OSError), path.open("rb") as file:  # what is wrong is said below
        _check_lines(file.read(_MAX_LINE + 1), path, error)
    content = files.read_bytes(path, what, error)
    _check_lines(content, path, error)
    return content


def _check_lines(content: bytes, path: Path, error: type[UserError]) -> None:
    """Refuse what would fill memory or time as a table and is none: endless lines and headers."""
    start = 0
    while len(content) - start > _MAX_LINE:
        stop = start + _MAX_LINE
        end = max(content.rfind(b"\n", start, stop), content.rfind(b"\r", start, stop))
        if end < 0:
            raise error(
                f"{path}: the line from byte {start:,} on is longer than {_MAX_LINE >> 20} MiB; expected one row on "
                "each line"
            )
        start = end + 1
    line_end = re.search(rb"[\r\n]", content)
    header = content[: line_end.start()] if line_end else content
    columns = 1 + max(header.count(separator.encode()) for separator in SEPARATORS)
    if columns > _MAX_COLUMNS:
        raise error(
            f"{path}: the header has {columns:,} columns, expected at most {_MAX_COLUMNS:,}; is it a table with one "
            "row per image?"
        )
    if (joined := content.find(b"\n\xef\xbb\xbf")) >= 0:
        line = content.count(b"\n", 0, joined) + 2
        raise error(
            f"{path}: line {line} starts with a byte order mark, as where two files were joined; join them without it"
        )


def _read_strict_text(path: Path) -> str:
    content = _read_lines(path, "submission", SubmissionError)
    if content.startswith(_UTF_16_MARKS):
        raise SubmissionError(f"{path}: expected UTF-8 text, found a UTF-16 byte order mark; save it as UTF-8")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise SubmissionError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    if text.startswith("\ufeff"):
        raise SubmissionError(
            f"{path}: starts with a byte order mark, which changes the first column's name; save it without BOM"
        )
    if "\r" not in text:
        return text
    both = text.count("\r\n")
    if text.count("\r") != both or text.count("\n") != both:
        raise SubmissionError(f"{path}: mixed line endings (CR, LF, CRLF); write it again with one of them")
    return text.replace("\r\n", "\n")


def _parse_plain(text: str, path: Path) -> "pd.DataFrame":
    """Return the cells of a text without quotes, in which every line is a row and every comma separates two cells."""
    import pandas as pd

    content = text.encode()
    characters = np.frombuffer(content, np.uint8)
    commas, ends = np.flatnonzero(characters == ord(",")), np.flatnonzero(characters == ord("\n"))
    if characters[-1] != ord("\n"):
        ends = np.append(ends, len(content))
    _check_widths(np.diff(np.searchsorted(commas, ends), prepend=0) + 1, path)
    table = pd.read_csv(
        io.BytesIO(content),  # StringIO takes four bytes a character
        dtype=str,
        header=None,
        keep_default_na=False,
        skip_blank_lines=False,
        engine="c",
        quoting=csv.QUOTE_NONE,
    )
    return _with_header(table)


def _parse_quoted(text: str, path: Path) -> "pd.DataFrame":
    """Return the cells of a text with quoted cells (RFC 4180)."""
    import pandas as pd

    reader, rows, line = csv.reader(_lines(text), strict=True), [], 0
    try:
        for row in reader:
            rows.append(row)
            line = reader.line_num
    except csv.Error as error:
        raise SubmissionError(f"{path}: not a CSV from line {line + 1} on: {error}; is a quote not closed?") from None
    _check_widths(np.array([len(row) for row in rows]), path)
    return _with_header(pd.DataFrame(rows, dtype=str))


def _lines(text: str) -> Iterator[str]:
    start = 0
    while (end := text.find("\n", start)) >= 0:
        yield text[start : end + 1]
        start = end + 1
    if start < len(text):
        yield text[start:]


def _check_widths(widths: NDArray[np.int64], path: Path) -> None:
    bad_lines = np.flatnonzero(widths != widths[0])
    if len(bad_lines):
        first = bad_lines[0]
        raise SubmissionError(
            f"{path}: not a rectangular CSV: line {first + 1} has {widths[first]} cells, the header {widths[0]} (and "
            f"{len(bad_lines) - 1:,} more such lines)"
        )


def _with_header(table: "pd.DataFrame") -> "pd.DataFrame":
    """Return the table with its first row as column names, which may repeat."""
    body = table.iloc[1:].reset_index(drop=True)
    body.columns = table.iloc[0].tolist()
    return body


def list_some(values: Sequence[Any]) -> str:
    """Return the first few values for a message, quoted and separated by commas."""
    return ", ".join(repr(str(value)) for value in values[:_SHOWN]) + (", ..." if len(values) > _SHOWN else "")
