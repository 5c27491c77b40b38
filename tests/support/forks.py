"""Processes that are forked from a clean one, which has imported what commands need and has done nothing else.

A fork of the tests' own process inherits what earlier tests began in it, such as autograd's threads of a device: no
backward pass works in it then. The clean process starts at the first use; from then on a fork costs its work alone.
"""

import functools
import multiprocessing
import multiprocessing.forkserver
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import forked
from benchmarks.forked import Kill
from tests.support.commands import REPOSITORY, Result

_IMPORTED = (*forked.MODULES, __name__, "hypothesis", "tests.support.configs", "tests.support.runs")


@functools.cache
def _context() -> Any:
    """Return the context of processes that are forked from the clean one, which is started."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(_IMPORTED))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(REPOSITORY), prepend=os.pathsep)
        multiprocessing.forkserver.ensure_running()
    return context


def start(work: Callable[..., Any], *arguments: Any) -> Any:
    """Start a module's function in a process of its own, in this working directory and environment."""
    process = _context().Process(target=_work, args=(dict(os.environ), work, arguments))
    process.start()
    return process


def call(work: Callable[..., Any], *arguments: Any) -> Any:
    """Return what a module's function returns, or raise what it raises, in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=_context()) as pool:
        return pool.submit(_work, dict(os.environ), work, arguments).result()


def _work(environment: Mapping[str, str], work: Callable[..., Any], arguments: Sequence[Any]) -> Any:
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(1)
    return work(*arguments)


def commands(
    folder: Path,
    lines: Sequence[Sequence[object]],
    pauses: Sequence[float] = (),
    kill: Kill | None = None,
    before: Callable[[], None] | None = None,
) -> list[Result]:
    """Run `comp` commands at the same time; return how each ended, a signal as a code below 0. Use it with `call`.

    Args:
        folder: the working directory.
        lines: their arguments, in the order in which they start.
        pauses: seconds before the second, the third ...
        kill: when each is killed.
        before: what this process does first.
    """
    if before is not None:
        before()
    begun = []
    for number, (line, pause) in enumerate(zip(lines, (0, *pauses), strict=True)):
        time.sleep(pause)
        begun.append(forked.start(line, folder, folder / f".log{number}", kill))
    return [Result(command.wait().code or 0, command.out, command.err) for command in begun]
