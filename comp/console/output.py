"""Where things are printed: results to stdout, everything else to stderr."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Column, Table

if TYPE_CHECKING:
    pass


_FILE_WIDTH = 200  # columns where stdout is a file or a pipe: nothing is cut off
out = Console(soft_wrap=True, highlight=False, width=None if sys.stdout.isatty() else _FILE_WIDTH)
err = Console(stderr=True, soft_wrap=True, highlight=False)


def print_line(text: str) -> None:
    """Print a result."""
    out.print(text, markup=False)


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table of text."""
    table = Table(*[Column(name, overflow="fold") for name in header], title=title)
    for row in rows:
        table.add_row(*row)
    out.print(table)


def print_note(text: str) -> None:
    """Print what is no part of a result, where it does not mix with one."""
    err.print(text, markup=False)


def print_json(values: Any) -> None:
    """Print one JSON value."""
    import pydantic_core  # many times faster than the standard library, which is felt at ten thousand rows

    print(pydantic_core.to_json(values, indent=2).decode())
