"""Run whatever has no complete run yet, as `comp` processes: a stop loses nothing, the same command goes on."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from benchmarks.results.children import Children, stoppable
from benchmarks.results.finding import CONFIGS, FIRST_PRINCIPLES, Runs
from benchmarks.results.rows import ROWS, Row
from comp.results import runs
from comp.runtime.cores import default_threads
from comp.runtime.errors import ConfigError, unknown

Step = tuple[Row, str, int]  # a row, the stem of the config that is run, a seed


def run_all(root: Path, jobs: int, only: Iterable[str] = ()) -> int:
    """Run every step that is left; return how many failed.

    Args:
        root: of the runs.
        jobs: trainings at a time, each with its share of the cores.
        only: stems of configs, or `first_principles`; empty: all.

    Raises:
        ConfigError: one of `only` is nothing that can be run here.
        KeyboardInterrupt: SIGINT or SIGTERM came; trainings were stopped where they can go on.
    """
    only = set(only)
    names = {config for _, config, _ in _steps()} | {"first_principles"}
    for name in sorted(only - names):
        raise ConfigError(f"--only: {unknown('experiment', name, names)}")
    steps = [step for step in _steps() if not only or step[1] in only]
    failed = 0
    with stoppable() as children:
        for phase in range(3):
            calls = [step for step in steps if _phase(step) == phase]
            failed += _in_parallel(jobs, [partial(_run, root, step, jobs, children) for step in calls])
        if (not only or "first_principles" in only) and Runs(root).first_principles() is None:
            failed += not _test_first_principles(root, children)
    return failed


def _in_parallel(jobs: int, calls: Sequence[Callable[[], bool]]) -> int:
    """Make so many calls at a time; return how many were not good. An interrupt lets no further one begin."""
    pool = ThreadPoolExecutor(jobs)
    try:
        return sum(not future.result() for future in [pool.submit(call) for call in calls])
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _steps() -> Iterator[Step]:
    for row in ROWS:
        if not row.missing:
            for seed in range(row.seeds):
                yield row, row.config, seed
            if row.best:
                yield row, row.best, 0


def _phase(step: Step) -> int:
    """Published systems come first, those that start from another's run after it, and recipes of ours last."""
    row, config, _ = step
    if config != row.config:
        return 2
    return 1 if row.start else 0


def _run(root: Path, step: Step, jobs: int, children: Children) -> bool:
    """Run one step, or go on with it, or pass over it; tell whether it has a whole run."""
    row, config, seed = step
    other = config if config != row.config else ""
    matched = Runs(root)
    mine = [run for has, run in matched.of(row, other) if has == seed]
    if any(matched.is_whole(run, row, other) for run in mine):
        return True
    going = [run for run in mine if (run.path / "state.pt").is_file() and not run.is_complete()]
    path = CONFIGS / f"{config}.yaml"
    shared = [f"seed={seed}", f"train.threads={max(1, default_threads() // jobs)}"]
    if row.start and config == row.config:
        begun = _start_of(matched, row)
        if begun is None:
            return _tell(False, f"{config}: {row.start} has no complete run to start from")
        if row.probe:
            return _comp(children, "probe", begun.path, "--classifier", row.probe, "--config", path, "--runs", root)
        shared.append(f"model.from_run={begun.path}")
    if going:
        return _comp(children, "run", "--resume", going[-1].path)
    return _comp(children, "run", path, *shared, "--runs", root)


def _start_of(matched: Runs, row: Row) -> runs.Run | None:
    """Return the newest complete run that a row starts from."""
    complete = [run for _, run in matched.of(Row(row.start, "")) if run.is_complete()]
    return complete[-1] if complete else None


def _comp(children: Children, *arguments: object) -> bool:
    """Run `comp` in a process of its own; what it says is shown only where it fails."""
    line = " ".join(str(argument) for argument in arguments)
    return _timed(children, [sys.executable, "-m", "comp", *map(str, arguments)], f"comp {line}")


def _timed(children: Children, command: list[str], line: str) -> bool:
    began = time.monotonic()
    done = children.run(command)
    if done.returncode:
        print(done.stderr.strip()[-2000:], file=sys.stderr, flush=True)
    return _tell(done.returncode == 0, f"{line}: {time.monotonic() - began:.0f} s")


def _tell(good: bool, text: str) -> bool:
    print(f"{time.strftime('%H:%M:%S')}  {'' if good else 'failed: '}{text}", flush=True)
    return good


def _test_first_principles(root: Path, children: Children) -> bool:
    """Hold our convolution to torch's over the whole grid, and keep what pytest says of it."""
    path = root / FIRST_PRINCIPLES
    path.parent.mkdir(parents=True, exist_ok=True)
    tests = ["tests/models/test_convolution.py", "-m", "slow or not slow", "-p", "no:xdist", "-q"]
    command = [sys.executable, "-m", "pytest", *tests, f"--junitxml={path}"]
    return _timed(children, command, "convolution from first principles")
