"""Why a training ends before its last epoch."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Stop:
    """What `on_epoch` returns to end a training after the epoch; the reason is recorded and shown."""

    reason: str
