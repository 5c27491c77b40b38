"""Progress bars: by rich on a terminal, as HTML in a notebook, and as lines where a command writes to a file."""

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from comp.runtime import escape, signals
from comp.runtime.progress import OUT_OF_MEMORY

_SHORTEST_TIMED_SECONDS = 0.2  # of a task, before its speed is printed: the first call comes after some images
_PLAIN_EVERY_SECONDS = 10.0  # between progress lines if stderr is a file
_NOTEBOOK_EVERY_SECONDS = 0.25  # between updates of a notebook's bar


class _Rate(ProgressColumn):
    """A task's note, else its rate; the whole line fits in 80 columns."""

    def render(self, task: Task) -> Text:
        if task.fields["note"]:
            return Text(task.fields["note"])
        if not task.speed:
            return Text("")
        unit, speed = task.fields["unit"], task.speed
        return Text(f"{speed / 1e6:,.1f} MB/s" if unit == "bytes" else f"{_speed(speed)} {unit}/s")


def _speed(per_second: float) -> str:
    """Return a speed in whole numbers, a slow one with two digits: never 0."""
    return f"{per_second:,.0f}" if per_second >= 9.5 else f"{per_second:.2g}"


class Bars:
    """A `comp.runtime.progress.Progress` that draws a bar for the current task, or prints a line every ten seconds."""

    def __init__(self, display: Progress) -> None:
        self._display = display
        self._task: TaskID | None = None
        self._what, self._first = "", 0
        self._noted: set[str] = set()
        self._began = self._printed = time.perf_counter()

    def __call__(self, what: str, done: int, total: int, unit: str = "images", note: str = "") -> None:
        """Show the progress; raise `Interrupted` after a signal."""
        what, note = escape.one_line(what), escape.one_line(note)
        if what != self._what:
            self._begin(what, done, total, unit)
        assert self._task is not None
        self._display.update(self._task, completed=done, total=total or None, note=note)
        if note.startswith(OUT_OF_MEMORY) and (line := f"{what}: {note}") not in self._noted:
            self._noted.add(line)  # a bar is gone in the end, and nothing else may say it
            self._display.console.print(line)
        if self._display.disable:
            self._print_line(what, done, total, unit, note)
        signals.raise_if_interrupted()

    def _begin(self, what: str, done: int, total: int, unit: str) -> None:
        if self._task is not None:
            self._display.remove_task(self._task)
        self._task = self._display.add_task(what, total=total or None, unit=unit, note="")
        self._what, self._began, self._first = what, time.perf_counter(), done

    def _print_line(self, what: str, done: int, total: int, unit: str, note: str) -> None:
        now = time.perf_counter()
        if now - self._printed < _PLAIN_EVERY_SECONDS or now - self._began < _SHORTEST_TIMED_SECONDS:
            return
        self._printed = now
        rate = (done - self._first) / (now - self._began)
        shown = note or (f"{_speed(rate)}/s" if rate else "")  # a task may begin with all that it counts
        left = f"{(total - done) / rate:,.0f} s left" if total and rate else ""
        self._display.console.print(", ".join(filter(None, (f"{what}: {done:,} of {total:,} {unit}", shown, left))))


@contextlib.contextmanager
def draw_bars(console: Console) -> Iterator[Bars]:
    """Yield a progress callback that draws bars on a console, or prints lines if that is no terminal."""
    description, percentage = TextColumn("{task.description}", markup=False), TextColumn("{task.percentage:>3.0f}%")
    # FORCE_COLOR makes a pipe a terminal to rich, and a log would be full of bars.
    drawn = console.is_terminal and console.file.isatty()
    columns = (description, BarColumn(10), percentage, _Rate(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not drawn) as display:
        yield Bars(display)


def stderr_console() -> Console:
    """Return a console on which names are printed verbatim."""
    return Console(stderr=True, soft_wrap=True, highlight=False, markup=False, emoji=False)


class NotebookBar:
    """A `comp.runtime.progress.Progress` that shows the current task below a notebook's cell.

    Attributes:
        handle: of the cell's output, as `IPython.display.display(..., display_id=True)` returns it.
    """

    def __init__(self, handle: Any) -> None:
        self.handle = handle
        self._what, self._drawn = "", 0.0

    def __call__(self, what: str, done: int, total: int, unit: str = "images", note: str = "") -> None:
        """Show the progress, a few times a second."""
        now = time.monotonic()
        if what == self._what and now - self._drawn < _NOTEBOOK_EVERY_SECONDS and done != total:
            return
        self._what, self._drawn = what, now
        share = f' value="{done}" max="{total}"' if total else ""
        text = f"{what}: {note or f'{done:,} of {total:,} {unit}' if total else f'{done:,} {unit}'}"
        self._show(f"<progress{share}></progress> {escape.for_html(text)}")

    def clear(self) -> None:
        """Leave nothing below the cell."""
        self._show("")

    def _show(self, html: str) -> None:
        self.handle.update({"text/html": html, "text/plain": ""}, raw=True)


def is_notebook() -> bool:
    """Return whether this process is a notebook's kernel."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return hasattr(shell, "kernel")


@contextlib.contextmanager
def notebook_bar() -> Iterator[NotebookBar]:
    """Yield a progress callback for a notebook's cell, which is empty again in the end."""
    from IPython.display import display

    show: Any = display  # without types
    bar = NotebookBar(show({"text/html": "", "text/plain": ""}, raw=True, display_id=True))
    try:
        yield bar
    finally:
        bar.clear()
