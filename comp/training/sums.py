"""Sums on the device that stay exact over a long epoch."""

from collections.abc import Sequence

import torch
from torch import Tensor

from comp.training.checkpoint import TrainState

_NEVER = 2**62  # a step beyond any epoch's


def wide_dtype(device: torch.device) -> torch.dtype:
    """Return the widest type a device sums in: float64, except on MPS, which has none."""
    return torch.float32 if device.type == "mps" else torch.float64


class RunningSum:
    """Sums of vectors, added without waiting for the device.

    Without float64 each value carries what rounding took from it (Kahan 1965): the sum is off by at most two roundings
    of float32, 1.2e-7 of the values' magnitudes, however many were added.

    Args:
        start: the sums so far.
        device: of the values to add.
    """

    def __init__(self, start: Sequence[float] | Tensor, device: torch.device) -> None:
        self.dtype = wide_dtype(device)
        self.values = torch.as_tensor(start, dtype=self.dtype, device=device)
        self._lost = None if self.dtype == torch.float64 else torch.zeros_like(self.values)

    def add(self, values: Tensor) -> None:
        """Add values on the device, in `dtype`."""
        if self._lost is None:
            self.values += values
            return
        values = values - self._lost
        total = self.values + values
        self._lost = (total - self.values) - values
        self.values = total


class EpochMeter:
    """Loss and correct answers so far, and the first step with a non-finite loss; sums stay on the device.

    Args:
        state: the position in the epoch.
        device: of the steps.
    """

    def __init__(self, state: TrainState, device: torch.device) -> None:
        self._sums = RunningSum([state.loss_sum, state.right_sum], device)
        self._broken_step = torch.tensor(_NEVER, device=device)
        self._host_copy = torch.zeros(2, dtype=torch.float64, pin_memory=True) if device.type == "cuda" else None
        self._copied: torch.cuda.Event | None = None
        self._copied_at = 0
        self._latest = state.loss_sum, state.right_sum, state.seen

    @property
    def dtype(self) -> torch.dtype:
        """Of what `add` takes: float64 where the device has it."""
        return self._sums.dtype

    def add(self, sums: Tensor, step: int) -> None:
        """Add a step's summed loss and correct answers ([2] `dtype` on the device) without waiting for them."""
        self._sums.add(sums)
        self._broken_step = torch.where(sums[0].isfinite(), self._broken_step, self._broken_step.clamp_max(step))

    def peek(self, state: TrainState) -> tuple[float, float, int]:
        """Return loss sum, correct answers and the images they count, as far as known without waiting.

        On CUDA they are copied to the host asynchronously, and known some steps later.
        """
        if self.is_on_cpu:
            return state.loss_sum, state.right_sum, state.seen
        if self._host_copy is not None and (self._copied is None or self._copied.query()):  # type: ignore[no-untyped-call]
            if self._copied is not None:
                loss, right = self._host_copy.tolist()
                self._latest = loss, right, self._copied_at
            self._host_copy.copy_(self._sums.values, non_blocking=True)
            self._copied, self._copied_at = torch.cuda.Event(), state.seen  # type: ignore[no-untyped-call]
            self._copied.record()
        return self._latest

    @property
    def is_on_cpu(self) -> bool:
        """Whether reading costs nothing."""
        return self._sums.values.device.type == "cpu"

    def read(self, state: TrainState) -> int | None:
        """Wait for the device and write the sums into the state; return the first broken step or None."""
        state.loss_sum, state.right_sum = self._sums.values.tolist()
        step = int(self._broken_step)
        return None if step == _NEVER else step
