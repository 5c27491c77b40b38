"""How long work tells whoever watches: one call at a point where it is safe to stop.

The command line draws bars from it and raises `comp.runtime.errors.Interrupted` in it when a signal has come; a library
user passes nothing and gets silence. A caller never reads a device value to make the call.
"""

from typing import Protocol


class Progress(Protocol):
    """Called after each step with how much of `what` is done."""

    def __call__(self, what: str, done: int, total: int, unit: str = "images", note: str = "") -> None:
        """Report; may raise `Interrupted`, after which the work must be resumable.

        Args:
            what: the work's name, one bar for each: `epoch 3/50`, `suite`, `distortion07.npy`.
            done: units finished so far.
            total: units in all; 0 where unknown.
            unit: what is counted.
            note: what else is known of it, such as `loss 1.23`; in place of the rate.
        """


def quiet(what: str, done: int, total: int, unit: str = "images", note: str = "") -> None:
    """Report to nobody."""
