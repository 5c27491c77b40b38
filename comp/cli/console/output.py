"""Where things are printed: results to stdout, everything else to stderr."""

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.table import Column, Table

_EDGES = 3  # columns that a cell's padding and border take
_FILE_WIDTH = 200  # columns where stdout is a file or a pipe: nothing is cut off
# Names of files, runs and classes are printed as they are: `[red]` is no colour in them, and `:cat:` no picture.
_PLAINLY: dict[str, Any] = {"soft_wrap": True, "highlight": False, "markup": False, "emoji": False}
_WIDTH = None if sys.stdout.isatty() or "COLUMNS" in os.environ else _FILE_WIDTH
out = Console(width=_WIDTH, **_PLAINLY)
err = Console(stderr=True, **_PLAINLY)


def print_line(text: str) -> None:
    """Print a result."""
    out.print(text)


def print_table(
    heads: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    title: str = "",
    folded: Mapping[str, int] | None = None,
    drop: Sequence[str] = (),
    elsewhere: str = "--json",
) -> None:
    """Print a table of text that fits the window, with no cell cut off.

    Where it is too wide, headings break at spaces and long names go over several lines; where that is not enough,
    columns are left out, and named below the table.

    Args:
        heads: of the columns, each another.
        rows: a cell for each column.
        title: above the table.
        folded: heading of a column whose cells may break anywhere -> its least width.
        drop: headings of columns that may be left out, the first to go first.
        elsewhere: what shows all columns.
    """
    kept = _fit(heads, rows, folded or {}, drop)
    columns = [Column(head, width=kept[head], overflow="fold") for head in kept]
    table = Table(*columns, title=title or None)
    places = [place for place, head in enumerate(heads) if head in kept]
    for row in rows:
        table.add_row(*[row[place] for place in places])
    out.print(table)
    if left := [head for head in heads if head not in kept]:
        print_line(f"no room for {', '.join(left)}: a wider window or {elsewhere} shows all")


def _fit(
    heads: Sequence[str], rows: Sequence[Sequence[str]], folded: Mapping[str, int], drop: Sequence[str]
) -> dict[str, int]:
    """Return the columns that fit the window -> their widths."""
    longest = {
        head: max((cell_len(row[place]) for row in rows), default=0) for place, head in enumerate(heads)
    }  # fmt: skip
    whole = {head: max(longest[head], cell_len(head)) for head in heads}
    least = {
        head: min(whole[head], folded[head]) if head in folded
        else max(longest[head], *(cell_len(word) for word in head.split()))
        for head in heads
    }  # fmt: skip

    def room(widths: Mapping[str, int]) -> int:
        return out.width - sum(widths.values()) - _EDGES * len(widths) - 1

    widths = {**least}
    for head in drop:
        if room(widths) >= 0:
            break
        widths.pop(head, None)
    for head in reversed(drop):  # one that is narrow may find room where a wider one had to go
        if head in least and head not in widths and room({**widths, head: least[head]}) >= 0:
            widths[head] = least[head]
    widths = {head: widths[head] for head in heads if head in widths}
    # What is left over goes to the names first, then to the headings, a column at a time.
    for head in sorted(widths, key=lambda head: head not in folded):
        widths[head] += max(0, min(whole[head] - widths[head], room(widths)))
    return widths


def print_note(text: str) -> None:
    """Print what is no part of a result, where it does not mix with one."""
    err.print(text)


def print_json(values: Any) -> None:
    """Print one JSON value."""
    import pydantic_core  # many times faster than the standard library, which is felt at ten thousand rows

    print(pydantic_core.to_json(values, indent=2).decode())
