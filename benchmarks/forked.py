"""`comp` commands in forked processes: this process has imported everything once, so a command costs its work alone.

A command can be killed at a moment, or at one of its file operations: each opening of a file to write it, each fsync,
rename, link, removal and new folder is counted in the process, and it ends itself before or after the k-th.
"""

import builtins
import contextlib
import importlib
import io
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import torch

ENVIRONMENT = {"OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled"}
MODULES = (
    "comp.cli.app",
    "comp.workflows.run",
    "comp.ensembles.combine",
    "comp.ensembles.cross_validate",
    "comp.tuning.search",
)
_OPERATIONS = ("replace", "rename", "link", "unlink", "remove", "fsync", "mkdir", "rmdir")


@dataclass(frozen=True)
class Kill:
    """When a command is killed, and by what.

    Attributes:
        signum: SIGKILL, SIGTERM or SIGINT.
        seconds: after the command's start; None: at a file operation.
        operation: number of the operation, from 1.
        after: whether it is killed after the operation instead of before.
    """

    signum: int = signal.SIGKILL
    seconds: float | None = None
    operation: int = 0
    after: bool = False


@dataclass
class Command:
    """A command in a forked process.

    Attributes:
        arguments: without `comp`.
        pid: of the process.
        log: files with what it printed: `.out`, `.err`, and `.count` with its number of file operations.
        kill: when it is killed.
        began: `time.monotonic()` at the start.
        code: its exit code, negative for a signal; None while it works.
    """

    arguments: tuple[str, ...]
    pid: int
    log: Path
    kill: Kill | None = None
    began: float = field(default_factory=time.monotonic)
    code: int | None = None

    def wait(self) -> "Command":
        """Wait for its end, and kill it at its moment."""
        if self.kill is not None and self.kill.seconds is not None:
            while not self._has_ended(os.WNOHANG):
                if time.monotonic() - self.began >= self.kill.seconds:
                    os.kill(self.pid, self.kill.signum)
                    break
                time.sleep(0.002)
        if self.code is None:
            self._has_ended(0)
        return self

    def _has_ended(self, flags: int) -> bool:
        pid, status = os.waitpid(self.pid, flags)
        if pid:
            self.code = os.waitstatus_to_exitcode(status)
        return pid != 0

    @property
    def out(self) -> str:
        """What it wrote to stdout."""
        return self.log.with_suffix(".out").read_text(encoding="utf-8", errors="replace")

    @property
    def err(self) -> str:
        """What it wrote to stderr."""
        return self.log.with_suffix(".err").read_text(encoding="utf-8", errors="replace")

    @property
    def operations(self) -> int:
        """Number of its file operations, if it was not killed."""
        return int(json.loads(self.log.with_suffix(".count").read_text()))


def prepare() -> None:
    """Import all that a command may need."""
    for name in MODULES:
        importlib.import_module(name)


def start(arguments: Iterable[object], folder: Path, log: Path, kill: Kill | None = None) -> Command:
    """Start a command in a working directory; its output goes to files beside `log`."""
    words = tuple(map(str, arguments))
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        _run(words, folder, log, kill)
    return Command(words, pid, log, kill)


def run(arguments: Iterable[object], folder: Path, log: Path, kill: Kill | None = None) -> Command:
    """Run a command to its end, or until it is killed."""
    return start(arguments, folder, log, kill).wait()


def _run(arguments: tuple[str, ...], folder: Path, log: Path, kill: Kill | None) -> NoReturn:
    """Run a command in this forked process and end it."""
    code = 1
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # as comp/__main__.py does
    try:
        os.setpgid(0, 0)
        for number, suffix in ((1, ".out"), (2, ".err")):
            descriptor = os.open(log.with_suffix(suffix), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            os.dup2(descriptor, number)
            os.close(descriptor)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", encoding="utf-8", closefd=False) for number in (1, 2))
        os.chdir(folder)
        os.environ.update(ENVIRONMENT)
        torch.set_num_threads(1)
        sys.argv = ["comp", *arguments]
        from comp.cli import app

        counter = _count_operations(kill)
        try:
            app.main(list(arguments))
        except SystemExit as exit_:
            code = exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
        counter.stop()
        log.with_suffix(".count").write_text(json.dumps(counter.count))
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


class _Counter:
    """Counts file operations, and kills this process at one of them."""

    def __init__(self, kill: Kill | None) -> None:
        self.count, self._kill, self._counts, self._pid = 0, kill, True, os.getpid()

    def stop(self) -> None:
        """Count no more."""
        self._counts = False

    def wrap(self, operation: Callable[..., Any], counts: Callable[..., bool] = lambda *a, **k: True) -> Any:
        """Return an operation that is counted where `counts` says so."""

        def counted(*arguments: Any, **options: Any) -> Any:
            if not self._counts or os.getpid() != self._pid or not counts(*arguments, **options):
                return operation(*arguments, **options)
            self.count += 1
            number = self.count
            self._end(number, after=False)
            result = operation(*arguments, **options)
            self._end(number, after=True)
            return result

        return counted

    def _end(self, number: int, *, after: bool) -> None:
        kill = self._kill
        if kill is not None and kill.seconds is None and (kill.operation, kill.after) == (number, after):
            os.kill(self._pid, kill.signum)


def _count_operations(kill: Kill | None) -> _Counter:
    counter = _Counter(kill)
    for name in _OPERATIONS:
        setattr(os, name, counter.wrap(getattr(os, name)))
    opened = counter.wrap(io.open, _writes)
    io.open = builtins.open = opened  # pathlib looks in `io`
    return counter


def _writes(file: Any, mode: str = "r", *rest: Any, **options: Any) -> bool:
    return isinstance(mode, str) and bool(set(mode) & set("wax+"))
