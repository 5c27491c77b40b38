"""`comp tune --show` as a function."""

import contextlib
from pathlib import Path

from comp.tuning import create, results
from comp.tuning.results import Report


def show(name: str, *, runs_root: Path = Path("runs"), storage: str = "") -> Report:
    """Return what a study has come to so far; nothing is trained or written, and nobody who works on it is disturbed.

    Args:
        name: its folder, or its name alone.
        runs_root: where run folders are.
        storage: its URL, where that holds a password: none is kept.

    Raises:
        StudyError: there is no such study.
    """
    plan = create.find(name, runs_root, storage)
    with contextlib.ExitStack() as opened:
        search = opened.enter_context(create.open_search(plan, make=False))
        confirmation = None
        if create.is_confirmed(plan):
            confirmation = opened.enter_context(create.open_confirmation(plan, make=False))
        return results.report(search, confirmation, write=False)
