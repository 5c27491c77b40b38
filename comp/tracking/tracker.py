"""What a training does to be tracked; wandb is loaded where something is."""

import contextlib
from collections.abc import Iterator
from typing import Any

from comp.config import TrackConfig
from comp.results.runs import Run
from comp.tracking import login


class Tracker:
    """Tells nobody; `comp.tracking.writer.Tracked` tells W&B."""

    def begin(self, run: Run) -> None:
        """Follow a run from here on, and end the one before; for the run at hand do nothing."""

    def tell(self) -> None:
        """Tell of the epochs that have ended."""

    def show(self, run: Run, images: Any) -> None:
        """Keep the validation images that a scored run was surest of and wrong; `images` [N, H, W, C] uint8."""

    def close(self) -> None:
        """Tell what the run has come to; the network is waited for ten seconds at most."""


UNTRACKED = Tracker()


@contextlib.contextmanager
def opened(track: TrackConfig, given: Tracker | None = None) -> Iterator[Tracker]:
    """Return the tracker that a config asks for, closed in the end; one that was given is its owner's to close."""
    mode = login.mode_of(track)
    if given or mode == "disabled":
        yield given or UNTRACKED
        return
    from comp.tracking.writer import Tracked

    tracker = Tracked(mode)
    try:
        yield tracker
    finally:
        tracker.close()
