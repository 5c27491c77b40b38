"""Which progress the Python API shows."""

import contextlib
import sys
from collections.abc import Iterator

from comp.runtime.progress import Progress, quiet


@contextlib.contextmanager
def shown(progress: Progress | None) -> Iterator[Progress]:
    """Yield a caller's own callback; without one a bar in a notebook or a terminal, and nothing in a pipe or a file."""
    if progress is not None:
        yield progress
        return
    is_terminal = sys.stderr is not None and sys.stderr.isatty()
    if not is_terminal and "IPython" not in sys.modules:
        yield quiet
        return
    from rich.console import Console  # a code competition's notebook may lack it

    from comp.runtime import bars

    console = Console(stderr=True, soft_wrap=True, highlight=False, markup=False, emoji=False)
    if bars.is_notebook():
        with bars.notebook_bar() as bar:
            yield bar
    elif is_terminal:
        with bars.draw_bars(console) as drawn:
            yield drawn
    else:
        yield quiet
