"""Stop at a safe point after SIGINT or SIGTERM; a second signal quits at once."""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from types import FrameType

from comp.runtime.errors import Interrupted

_pending: list[int] = []
# `timeout` sends its signal to the command and to the command's group: two within this time are one request.
_TWICE_SECONDS = 0.5


@contextlib.contextmanager
def catch_stop_signals() -> Iterator[None]:
    """Catch the first SIGINT or SIGTERM for `raise_if_interrupted`; a second one ends the process."""
    first = 0.0

    def catch(signum: int, frame: FrameType | None) -> None:
        nonlocal first
        if _pending and time.monotonic() - first < _TWICE_SECONDS:
            return
        if _pending:
            signal.signal(signum, signal.SIG_DFL)
            signal.raise_signal(signum)
        first = time.monotonic()
        _pending.append(signum)
        if os.environ.get("RANK", "0") == "0":  # of several processes the main one
            print("stopping at the next safe point; a second signal quits at once", file=sys.stderr)

    before = {signum: signal.signal(signum, catch) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        _pending.clear()
        for signum, handler in before.items():
            signal.signal(signum, handler)


def interrupt_at_once() -> None:
    """Let the next SIGINT or SIGTERM raise `Interrupted` without a word: for a command with nothing to bring to an end.

    `catch_stop_signals` sets the handlers of before again.
    """

    def stop(signum: int, frame: FrameType | None) -> None:
        raise Interrupted(signum)

    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, stop)


def raise_if_interrupted() -> None:
    """Raise `Interrupted` after a signal; call it where the work can be resumed."""
    if _pending:
        raise Interrupted(_pending[0])


def progress(what: str, done: int, total: int, unit: str = "images", note: str = "") -> None:
    """A `comp.runtime.progress.Progress` that shows nothing and stops after a signal."""
    raise_if_interrupted()
