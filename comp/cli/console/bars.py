"""Bars while work goes on."""

import contextlib
import time
from collections.abc import Iterator

from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from comp.cli.console.output import err
from comp.runtime import signals

_PLAIN_EVERY_SECONDS = 10.0  # between lines where stderr is a file


class _Pace(ProgressColumn):
    """What the work says of itself, else its rate; with the rest of the line it fits in 80 columns."""

    def render(self, task: Task) -> Text:
        if task.fields["note"]:
            return Text(task.fields["note"])
        if not task.speed:
            return Text("")
        unit, speed = task.fields["unit"], task.speed
        return Text(f"{speed / 1e6:,.1f} MB/s" if unit == "bytes" else f"{speed:,.0f} {unit}/s")


class Bars:
    """A `comp.runtime.progress.Progress` that draws one bar for the work at hand, or prints a line now and then."""

    def __init__(self, drawn: Progress) -> None:
        self._drawn = drawn
        self._bar: TaskID | None = None
        self._what = ""
        self._began = self._told = time.perf_counter()

    def __call__(self, what: str, done: int, total: int, unit: str = "images", note: str = "") -> None:
        """Show it; raise `Interrupted` where a signal has come."""
        if what != self._what:
            self._begin(what, total, unit)
        assert self._bar is not None
        self._drawn.update(self._bar, completed=done, total=total or None, note=note)
        if not err.is_terminal:
            self._tell(what, done, total, unit, note)
        signals.raise_if_interrupted()

    def _begin(self, what: str, total: int, unit: str) -> None:
        if self._bar is not None:
            self._drawn.remove_task(self._bar)
        self._bar = self._drawn.add_task(what, total=total or None, unit=unit, note="")
        self._what, self._began = what, time.perf_counter()

    def _tell(self, what: str, done: int, total: int, unit: str, note: str) -> None:
        now = time.perf_counter()
        if now - self._told < _PLAIN_EVERY_SECONDS:
            return
        self._told = now
        rate = done / max(now - self._began, 1e-9)
        left = f", {(total - done) / rate:,.0f} s left" if total and rate else ""
        err.print(f"{what}: {done:,} of {total:,} {unit}, {note or f'{rate:,.0f}/s'}{left}")


@contextlib.contextmanager
def bars() -> Iterator[Bars]:
    """Return the progress to pass down."""
    columns = (
        TextColumn("{task.description}", markup=False), BarColumn(10), TextColumn("{task.percentage:>3.0f}%"), _Pace(),
        TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as drawn:
        yield Bars(drawn)
