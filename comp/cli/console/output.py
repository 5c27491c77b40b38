"""Print lines, tables and progress bars: results to stdout, everything else to stderr."""

import contextlib
import json
import os
import re
import shlex
import sys
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.table import Table
from rich.text import Text

from comp.runtime import escape, streams
from comp.runtime.bars import Bars, draw_bars

_EDGES = 3  # columns of a cell's padding and border
_NUMBER = re.compile(r"-?|[-+]?[\d,]*\.?\d+(e[-+]\d+)?%?")  # of a column that is aligned on the right
_COMMAND = re.compile(r"(?<=: )comp [a-z].*$")  # at the end of a sentence
_FILE_WIDTH = 200  # columns of a file or a pipe: nothing is cut off
# Names of files, runs and classes are printed verbatim: `[red]` is not a colour, and `:cat:` not an emoji.
_VERBATIM: dict[str, Any] = {"soft_wrap": True, "highlight": False, "markup": False, "emoji": False}


def _width(stream: TextIO | None) -> int | None:
    return None if (stream and stream.isatty()) or "COLUMNS" in os.environ else _FILE_WIDTH


class _PlainConsole(Console):
    """A console on which text from files cannot be a command to the terminal."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(escape.for_terminal(text), **options)

    def print(self, *objects: Any, **options: Any) -> None:
        try:
            super().print(*objects, **options)
        except OSError:
            if not self.stderr:
                raise
            streams.drop_stderr()

    def on_broken_pipe(self) -> None:
        raise


out = _PlainConsole(width=_width(sys.stdout), **_VERBATIM)
err = _PlainConsole(stderr=True, width=_width(sys.stderr), **_VERBATIM)


def print_line(text: str) -> None:
    """Print a result as it is: no path or command in it is broken."""
    out.print(text)


def print_text(text: str) -> None:
    """Print a sentence among the results; see `print_note`."""
    out.print(fill(text, out))


def print_note(text: str) -> None:
    """Print a note to stderr, so that it does not mix with results; in a window its lines break between words."""
    err.print(fill(text, err))


def fill(text: str, console: Console) -> str:
    """Return text whose lines fit a window; a command that ends one has a line of its own, to be copied whole."""
    if console.width == _FILE_WIDTH:
        return text
    lines: list[str] = []
    for line in text.split("\n"):
        command = _COMMAND.search(line) if cell_len(line) > console.width else None
        words = line[: command.start()] if command else line
        indent = " " * (len(line) - len(line.lstrip()) + 2)
        lines += textwrap.wrap(
            words, console.width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
        ) or [""]
        lines += [f"{indent}{command[0]}"] if command else []
    return "\n".join(lines)


def print_written(*paths: object) -> None:
    """Print which files a command wrote."""
    for path in paths:
        print_line(f"wrote       {path}")


def print_next(*words: object) -> None:
    """Print the command to try next, without `comp`; it ends the output for people."""
    print_line(f"next        {shlex.join(['comp', *map(str, words)])}")


def print_json(values: Any, indent: int | None = 2) -> None:
    """Print one JSON value, the only one of a command; docs/JSON.md has the keys of each. None: in one line."""
    import pydantic_core  # many times faster than the standard library on ten thousand rows

    streams.await_json(False)
    try:
        text = pydantic_core.to_json(values, indent=indent).decode()
    except ValueError:  # a file name whose bytes are no text
        text = json.dumps(pydantic_core.to_jsonable_python(values), indent=indent)
    print(escape.for_json(text, sys.stdout.encoding or "utf-8"))


def print_table(
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    title: str = "",
    folded: Mapping[str, int] | None = None,
    shortened: Mapping[str, int] | None = None,
    drop: Sequence[str] = (),
    full_table: str = "--json",
    has_total: bool = False,
    console: Console | None = None,
) -> None:
    """Print a table of text that fits the window: no number is cut off, and columns of numbers end on the right.

    If it is too wide, headings break at spaces, and long names are folded or shortened. If that is not enough, columns
    are left out and named below the table.

    Args:
        headings: of the columns.
        rows: a cell for each column.
        title: above the table.
        folded: heading of a column whose cells may break anywhere -> its least width.
        shortened: likewise of names and paths, which lose their middle instead: half a path helps nobody.
        drop: headings of columns that may be left out, the first to go first.
        full_table: an option or a file that shows all columns.
        has_total: whether the last row sums up the others.
        console: where to; standard output without it.
    """
    console, shortened = console or out, shortened or {}
    rows = [[escape.one_line(cell) for cell in row] for row in rows]
    widths = _fit(headings, rows, {**(folded or {}), **shortened}, drop, console.width)
    table = Table()
    for index, width in widths.items():
        cells = [row[index] for row in rows]
        numeric = any(cells) and all(map(_NUMBER.fullmatch, cells))
        heading = escape.one_line(headings[index])
        table.add_column(heading, width=width, overflow="fold", justify="right" if numeric else "left")
    for number, row in enumerate(rows, 1):
        cells = [_shorten(row[i], width) if headings[i] in shortened else row[i] for i, width in widths.items()]
        table.add_row(*cells, end_section=has_total and number == len(rows) - 1)
    if title:
        console.print(fill(escape.one_line(title), console))
    console.print(table)
    if missing := [heading for index, heading in enumerate(headings) if index not in widths]:
        console.print(fill(f"hidden columns: {', '.join(missing)} (use a wider window or {full_table})", console))


def _shorten(name: str, width: int) -> str:
    """Return a name that fits a column, with the start and the end of a longer one."""
    if cell_len(name) <= width:
        return name
    end = name[-((width - 3) // 3) :]
    while cell_len(end) > (width - 3) // 3:
        end = end[1:]
    return f"{set_cell_size(name, width - 3 - cell_len(end)).rstrip()}...{end}"


def _fit(
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    narrowed: Mapping[str, int],
    drop: Sequence[str],
    window: int,
) -> dict[int, int]:
    """Return the indices of the columns that fit a window -> their widths."""
    ideal, least = [], []
    for index, heading in enumerate(headings):
        longest_cell = max((cell_len(row[index]) for row in rows), default=0)
        longest_word = max((cell_len(word) for word in heading.split()), default=0)
        ideal.append(max(longest_cell, cell_len(heading)))
        least.append(min(ideal[-1], max(narrowed.get(heading, longest_cell), longest_word)))

    def room(widths: Mapping[int, int]) -> int:
        return window - sum(widths.values()) - _EDGES * len(widths) - 1

    last = {heading: index for index, heading in enumerate(headings)}  # a class may be called `id`
    widths, optional = dict(enumerate(least)), [last[heading] for heading in drop if heading in last]
    for index in optional:
        if room(widths) >= 0:
            break
        del widths[index]
    for index in reversed(optional):  # a narrow column may fit in the room of a wider one
        if index not in widths and room({**widths, index: least[index]}) >= 0:
            widths[index] = least[index]
    # The rest of the room goes to narrowed columns first, then to the others, one column after the other.
    for index in sorted(widths, key=lambda index: (headings[index] not in narrowed, index)):
        widths[index] += max(0, min(ideal[index] - widths[index], room(widths)))
    return dict(sorted(widths.items()))


def bars() -> contextlib.AbstractContextManager[Bars]:
    """Return a context whose value is a progress callback that draws bars, or prints lines to a file."""
    return draw_bars(err)
