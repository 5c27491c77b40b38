"""Plug-ins of a test, which must leave the process as it was."""

import os
import sys
from collections.abc import Iterator

import pytest

from comp.config import Config
from comp.config.plugins import COPIES
from comp.workflows import plugins


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every test of a module that imports this begins and ends without plug-ins and without consent."""
    monkeypatch.setenv(plugins.ALLOWED, "")
    monkeypatch.delenv(COPIES, raising=False)
    yield
    forget()


def forget() -> None:
    """Take the state of a new process."""
    os.environ[plugins.ALLOWED] = ""
    if (copies := os.environ.pop(COPIES, None)) in sys.path:
        sys.path.remove(copies)
    plugins.load(Config())
