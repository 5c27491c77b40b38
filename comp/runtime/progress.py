"""Progress callback protocol: called at points where it is safe to stop. Durations in words.

The command line draws bars from it and raises `comp.runtime.errors.Interrupted` in it after a signal; the Python API
draws bars where somebody sees them (`comp.runtime.bars`); workflows called without a callback print nothing. Callers
never read a device value to make the call.
"""

import contextlib
import sys
from collections.abc import Iterator
from typing import Protocol

OUT_OF_MEMORY = "out of memory"  # begins the note of work that goes on in smaller parts


class Progress(Protocol):
    """Called after each step of some work."""

    def __call__(self, what: str, done: int, total: int, unit: str = "images", note: str = "") -> None:
        """Report progress; may raise `Interrupted`, after which the work must be resumable.

        Args:
            what: the work's name, with its own bar: `epoch 3/50`, `suite`, `distortion07.npy`.
            done: units finished so far.
            total: units in all; 0 where unknown.
            unit: what is counted.
            note: shown instead of the rate, such as `loss 1.23`.
        """


def quiet(what: str, done: int, total: int, unit: str = "images", note: str = "") -> None:
    """Report nothing."""


def duration(seconds: float) -> str:
    """Return `40 s`, `12 min`, `3 h 20 min` or `2 d 4 h`."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


@contextlib.contextmanager
def shown(progress: Progress | None) -> Iterator[Progress]:
    """Yield a caller's own callback; without one a bar in a notebook or a terminal, and nothing in a pipe or a file."""
    is_terminal = sys.stderr is not None and sys.stderr.isatty()
    if progress is not None or not (is_terminal or "IPython" in sys.modules):
        yield progress or quiet
        return
    from comp.runtime import bars  # and rich, which a code competition's notebook may lack

    if bars.is_notebook():
        with bars.notebook_bar() as bar:
            yield bar
    elif is_terminal:
        with bars.draw_bars(bars.stderr_console()) as drawn:
            yield drawn
    else:
        yield quiet
