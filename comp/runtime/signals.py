"""Signals turned into a stop at a safe point: the first asks, the second quits."""

import contextlib
import signal
import sys
from collections.abc import Iterator
from types import FrameType

from comp.runtime.errors import Interrupted

_pending: list[int] = []


@contextlib.contextmanager
def catch_stop_signals() -> Iterator[None]:
    """Note the first SIGINT or SIGTERM for the next safe point; a second one ends the process as if none were noted."""

    def note(signum: int, frame: FrameType | None) -> None:
        if _pending:
            signal.signal(signum, signal.SIG_DFL)
            signal.raise_signal(signum)
        _pending.append(signum)
        print("stopping at the next safe point; once more to quit at once", file=sys.stderr)

    before = {signum: signal.signal(signum, note) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        _pending.clear()
        for signum, handler in before.items():
            signal.signal(signum, handler)


def raise_if_interrupted() -> None:
    """Raise `Interrupted` where a signal has come; called where the work can be resumed."""
    if _pending:
        raise Interrupted(_pending[0])


def progress(what: str, done: int, total: int, unit: str = "images", note: str = "") -> None:
    """Show nothing and stop where a signal has come: a `comp.runtime.progress.Progress`."""
    raise_if_interrupted()
