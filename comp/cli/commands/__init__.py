"""The verbs, a module for each group of them: thin, and without torch until one of them runs."""

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Import without looking for garbage among modules, which all stay: a tenth of what importing torch takes."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()
