"""Progress callback protocol: called at points where it is safe to stop.

The command line draws bars from it and raises `comp.runtime.errors.Interrupted` in it after a signal; the Python API
draws bars where somebody sees them (`comp.runtime.bars`); workflows called without a callback print nothing. Callers
never read a device value to make the call.
"""

from typing import Protocol

OUT_OF_MEMORY = "out of memory"  # begins the note of work that goes on in smaller parts


class Progress(Protocol):
    """Called after each step of some work."""

    def __call__(self, what: str, done: int, total: int, unit: str = "images", note: str = "") -> None:
        """Report progress; may raise `Interrupted`, after which the work must be resumable.

        Args:
            what: the work's name, with its own bar: `epoch 3/50`, `suite`, `distortion07.npy`.
            done: units finished so far.
            total: units in all; 0 where unknown.
            unit: what is counted.
            note: shown instead of the rate, such as `loss 1.23`.
        """


def quiet(what: str, done: int, total: int, unit: str = "images", note: str = "") -> None:
    """Report nothing."""
