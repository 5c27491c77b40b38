"""Worker processes that read images, and how those that decode files are kept from one pass to the next.

Workers of a list of files are told what to decode batch by batch: training, validation and prediction share them.
"""

import signal
import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from comp.runtime.errors import UserError


class Files(Protocol):
    """Image files of one size, in a form that can be sent to a worker."""

    def __len__(self) -> int: ...

    def __getitem__(self, row: int, /) -> NDArray[np.uint8]: ...


class BatchPlan:
    """The batches of the pass at hand: a `DataLoader` that keeps its workers asks anew for each pass."""

    def __init__(self) -> None:
        self.batches: list[list[Any]] = []

    def __iter__(self) -> Iterator[list[Any]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


class Readers:
    """The workers of one list of files and of all that is taken from it; they end with the last of these."""

    def __init__(self) -> None:
        self._plan = BatchPlan()
        self._loaders: list[DataLoader[Any]] = []  # one, or none yet
        self._made = (0, False)
        self._busy = False
        weakref.finalize(self, self._loaders.clear)  # at the process's end too: killed, they would look like a fault

    def __reduce__(self) -> tuple[type["Readers"], tuple[()]]:
        return Readers, ()  # a copy, or what a worker is sent, starts with none

    def batches(
        self, parts: Sequence[Files], workers: int, *, pinned: bool = False, exact: bool = False
    ) -> Iterator[Tensor]:
        """Yield the pixels of each part, [B, H, W, C] uint8, in order.

        Args:
            parts: what one worker decodes at a time.
            workers: processes that decode ahead of time, at least 1.
            pinned: whether pixels lie where a GPU copies from.
            exact: whether it must be so many, and so pinned; False: those that are there will do.

        Raises:
            DataError: a file cannot be read.
        """
        if self._busy:  # a pass within another one
            yield from Readers().batches(parts, workers, pinned=pinned)
            return
        if not self._loaders or (exact and self._made != (workers, pinned)):
            self._made = workers, pinned
            self._loaders[:] = [loader(_Decoder(), self._plan, workers, _only, pinned=pinned)]
        self._plan.batches = [[part] for part in parts]
        self._busy = True
        try:
            yield from map(or_raise, self._loaders[0])
        except Exception:
            self._loaders.clear()  # a worker may be lost: the next pass starts others
            raise
        finally:
            self._busy = False


class _Decoder(Dataset[Any]):
    """Pixels of files [B, H, W, C], or the error that reading them ended in; see `or_raise`."""

    def __getitem__(self, part: Files) -> "NDArray[np.uint8] | UserError":
        try:
            return np.stack([part[row] for row in range(len(part))])
        except UserError as error:
            return error


def _only(items: "list[NDArray[np.uint8] | UserError]") -> "Tensor | UserError":
    (item,) = items
    return item if isinstance(item, UserError) else torch.from_numpy(item)


def or_raise(pixels: "Tensor | UserError") -> Tensor:
    """Return what a worker has read.

    An error comes as a value: raised in a worker, torch would wrap its one message into a traceback.
    """
    if isinstance(pixels, UserError):
        raise pixels
    return pixels


def loader(
    dataset: Dataset[Any], plan: BatchPlan, workers: int, collate: Callable[[list[Any]], Any], *, pinned: bool
) -> "DataLoader[Any]":
    """Return a loader whose workers start with the first pass and stay: starting them anew costs seconds."""
    return DataLoader(
        dataset,
        batch_sampler=plan,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=pinned,
        persistent_workers=workers > 0,
        worker_init_fn=_begin_worker,
        generator=torch.Generator(),  # else every iterator would draw from the global one
    )


def _begin_worker(number: int) -> None:
    """Leave signals to the process that trains, and cores to the other workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if "cv2" in sys.modules:
        sys.modules["cv2"].setNumThreads(0)
