"""Sums over an epoch's steps that stay on the device until they are asked for."""

import torch
from torch import Tensor

from comp.training.checkpoint import TrainState

_NEVER = 2**62  # no epoch has as many steps


class EpochMeter:
    """Loss and right answers so far, and the first step whose loss was not finite.

    Args:
        cursor: where the epoch stands.
        device: of the steps.
    """

    def __init__(self, cursor: TrainState, device: torch.device) -> None:
        self._sums = torch.tensor([cursor.loss_sum, cursor.right_sum], dtype=torch.float64, device=device)
        self._broken = torch.tensor(_NEVER, device=device)
        self._aside = torch.zeros(2, dtype=torch.float64, pin_memory=True) if device.type == "cuda" else None
        self._copied: torch.cuda.Event | None = None
        self._copied_at = 0
        self._known = cursor.loss_sum, cursor.right_sum, cursor.seen

    def add(self, sums: Tensor, step: int) -> None:
        """Add a step's summed loss and right answers ([2] float64 on the device); nothing waits for them."""
        self._sums += sums
        self._broken = torch.where(sums[0].isfinite(), self._broken, self._broken.clamp_max(step))

    def glance(self, cursor: TrainState) -> tuple[float, float, int]:
        """Return loss, right answers and the images that they count, as far as they are known without waiting.

        On CUDA they are copied aside when the device comes to it, and known some steps later.
        """
        if self.is_free:
            return cursor.loss_sum, cursor.right_sum, cursor.seen
        if self._aside is not None and (self._copied is None or self._copied.query()):  # type: ignore[no-untyped-call]
            if self._copied is not None:
                loss, right = self._aside.tolist()
                self._known = loss, right, self._copied_at
            self._aside.copy_(self._sums, non_blocking=True)
            self._copied, self._copied_at = torch.cuda.Event(), cursor.seen  # type: ignore[no-untyped-call]
            self._copied.record()
        return self._known

    @property
    def is_free(self) -> bool:
        """Whether reading costs nothing because the steps were taken by this very processor."""
        return self._sums.device.type == "cpu"

    def read(self, cursor: TrainState) -> int | None:
        """Wait for the device and write the sums into the cursor; return the first broken step, None if all is well."""
        cursor.loss_sum, cursor.right_sum = self._sums.tolist()
        broken = int(self._broken)
        return None if broken == _NEVER else broken
