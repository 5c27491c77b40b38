"""Processes that a stop reaches once each, so that they leave what can be gone on with."""

import contextlib
import signal
import subprocess
import threading
from collections.abc import Iterator
from types import FrameType


class Children:
    """The processes at work: none begins after a stop, and a stop reaches each of them once."""

    def __init__(self) -> None:
        self._lock, self._stopped = threading.Lock(), False
        self._running: set[subprocess.Popen[str]] = set()

    def run(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        """Run a process to its end, in a session of its own: the terminal's Ctrl-C comes through `stop` alone."""
        with self._lock:
            if self._stopped:
                return subprocess.CompletedProcess(command, 1, "", "stopped before it began")
            child = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
            )
            self._running.add(child)
        out, err = child.communicate()
        with self._lock:
            self._running.discard(child)
        return subprocess.CompletedProcess(command, child.returncode, out, err)

    def stop(self) -> None:
        """Ask every process to stop where it can go on."""
        with self._lock:
            self._stopped = True
            for child in self._running:
                child.terminate()


@contextlib.contextmanager
def stoppable() -> Iterator[Children]:
    """Turn SIGTERM into KeyboardInterrupt, and tell the children of either."""

    def interrupt(signum: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    children = Children()
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield children
    finally:
        children.stop()
        signal.signal(signal.SIGTERM, before)
