"""Image files seen as an array, and the worker processes that decode them.

Files are decoded only when they are read. The workers live from one pass to the next: training, validation and
prediction share them, and each batch tells them what to decode.
"""

import multiprocessing
import signal
import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Literal, TypeVar, overload

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, dataloader

from comp.data import worker_faults
from comp.data.decode import Box, Depth, Resize, Scale, Sides, read_image, resize_image, resize_region
from comp.runtime.cores import default_workers
from comp.runtime.errors import UserError
from comp.runtime.progress import Progress, quiet

_BLANK_GREY = 128  # the pixels of a missing image
_THREAD_CHUNK = 64  # files handed to the threads at a time: progress and interruption come in between

ChooseRegion = Callable[[Sides, Sides], Box | None]  # (decoded, output sides) -> region to resize; None: as configured
Rows = slice | NDArray[np.int64]
_Result = TypeVar("_Result")


class _Decoder(Dataset[Any]):
    """Pixels of files [B, H, W, C], or the error raised while reading them; see `_unwrap`."""

    def __getitem__(self, part: "ImageFiles") -> "NDArray[np.uint8] | UserError":
        try:
            return np.stack([part[row] for row in range(len(part))])
        except UserError as error:
            return error


def _to_tensor(items: "list[NDArray[np.uint8] | UserError]") -> "Tensor | UserError":
    (item,) = items
    return item if isinstance(item, UserError) else torch.from_numpy(item)


_DECODER = _Decoder()


class _BatchPlan:
    """The batches of the current pass: a `DataLoader` that keeps its workers reads them anew for each pass."""

    def __init__(self) -> None:
        self.batches: Sequence[list[Any]] = []

    def __iter__(self) -> Iterator[list[Any]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


class WorkerPool:
    """Workers that start with the first pass and stay, as restarting them costs seconds; they end with the pool."""

    def __init__(
        self, dataset: Dataset[Any] = _DECODER, collate: Callable[[list[Any]], "Tensor | UserError"] = _to_tensor
    ) -> None:
        """Prepare the pool.

        Args:
            dataset: reads one item by its key; a `UserError` is returned, not raised.
            collate: makes a batch of items; by default, an item is an `ImageFiles` and a batch its pixels.
        """
        self._dataset, self._collate = dataset, collate
        self._plan = _BatchPlan()
        self._loaders: list[DataLoader[Any]] = []  # at most one
        self._workers: list[BaseProcess] = []  # its processes
        self._settings = (0, False)  # workers, pinned
        self._busy = False
        weakref.finalize(self, self._loaders.clear)  # also at exit: killed workers would look like a crash

    def __reduce__(self) -> tuple[type["WorkerPool"], tuple[()]]:
        return WorkerPool, ()  # a copy, and a pool sent to a worker, has no workers

    def batches(
        self, plan: Sequence[list[Any]], workers: int, *, pinned: bool = False, exact: bool = False
    ) -> Iterator[Tensor]:
        """Yield the pixels of each batch, [B, H, W, C] uint8, in order.

        Args:
            plan: the keys of each batch's items.
            workers: processes that read ahead of time; 0 reads in this one.
            pinned: whether pixels lie in memory that a GPU copies from.
            exact: whether existing workers with other settings are replaced; False: any will do.

        Raises:
            DataError: an item cannot be read.
            WorkersError: a worker died or hangs, or none can start.
        """
        if self._busy:  # a pass within another one
            yield from WorkerPool(self._dataset, self._collate).batches(plan, workers, pinned=pinned)
            return
        if not self._loaders or (exact and self._settings != (workers, pinned)):
            self._settings = workers, pinned
            self._loaders[:] = [self._build_loader(workers, pinned)]
            self._workers = []
        self._plan.batches = plan
        self._busy = True
        iterator: Iterator[Any] | None = None
        try:
            iterator = self._begin()
            while True:
                with worker_faults.raising_deaths(self._workers):
                    pixels = next(iterator, None)
                if pixels is None:
                    break
                yield _unwrap(pixels)
        except Exception as error:
            fault = worker_faults.explain(error, self._workers, starting=iterator is None)
            iterator = None  # the error's traceback would keep the workers alive
            self._loaders.clear()  # a worker may be dead: the next pass starts new ones
            if fault is not None:
                worker_faults.end(self._workers)
                raise fault from None
            raise
        finally:
            self._busy = False

    def _begin(self) -> Iterator[Any]:
        """Begin a pass, and the workers if there are none yet."""
        if self._workers:
            with worker_faults.raising_deaths(self._workers):
                return iter(self._loaders[0])
        existing = set(multiprocessing.active_children())
        try:
            with worker_faults.raising_deaths(()):
                return iter(self._loaders[0])
        finally:
            self._workers = [process for process in multiprocessing.active_children() if process not in existing]

    def _build_loader(self, workers: int, pinned: bool) -> "DataLoader[Any]":
        # If an iterator's queues cannot be made, torch's `__del__` would print that it lacks this attribute.
        dataloader._MultiProcessingDataLoaderIter._shutdown = True
        return DataLoader(
            self._dataset,
            batch_sampler=self._plan,
            num_workers=workers,
            timeout=worker_faults.STALLED_SECONDS if workers else 0,
            collate_fn=partial(_collate_and_share, self._collate),
            pin_memory=pinned,
            persistent_workers=workers > 0,
            worker_init_fn=_init_worker,
            generator=torch.Generator(),  # else every iterator would draw from the global one
        )


def _collate_and_share(collate: Callable[[list[Any]], "Tensor | UserError"], items: list[Any]) -> "Tensor | UserError":
    pixels = collate(items)
    return pixels if isinstance(pixels, UserError) else worker_faults.share(pixels)


def _unwrap(pixels: "Tensor | UserError") -> Tensor:
    """Return a worker's pixels, or raise its error.

    Workers return errors as values: torch would wrap a raised error's message into a traceback.
    """
    if isinstance(pixels, UserError):
        raise pixels
    return pixels


def _init_worker(number: int) -> None:
    """Ignore interrupts, which the training process handles, die without torch's message, and use one core."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for fatal in {"SIGTERM", "SIGBUS", "SIGSEGV", "SIGFPE"} & set(signal.Signals.__members__):
        signal.signal(signal.Signals[fatal], signal.SIG_DFL)
    if "cv2" in sys.modules:
        sys.modules["cv2"].setNumThreads(0)


@dataclass(frozen=True)
class ImageFiles:
    """Image files, seen as an array uint8 [N, H, W, 3].

    Taking rows reads nothing (`files[10:20]`, `files[rows]`); `np.asarray` decodes all, `files[7]` decodes one image.

    Attributes:
        paths: [N] text; empty for a missing image, which is read as grey.
        size: (H, W) of every decoded image.
        resize: how images of another size are resized.
        workers: processes that decode where images are streamed.
        content: a hash of all bytes of the whole list of files, of which these may be a part.
        notes: messages to the user on how the files are read.
        unreadable: of the whole list, paths of files that hold no image, and ids without a file.
        depth: type and range of pixels with more than 8 bits; None where there are none.
        scale: the deep values that become black and white; None: the range of each file's type.
        pool: the workers that decode where images are streamed, shared with all parts of the same list.
    """

    paths: NDArray[np.str_]
    size: tuple[int, int]
    resize: Resize
    workers: int
    content: str
    notes: tuple[str, ...] = ()
    unreadable: tuple[str, ...] = ()
    depth: Depth | None = None
    scale: Scale | None = None
    pool: WorkerPool = field(default_factory=WorkerPool, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """[N, H, W, 3]."""
        return (len(self.paths), *self.size, 3)

    @property
    def nbytes(self) -> int:
        """Bytes of all decoded pixels."""
        return int(np.prod(self.shape, dtype=np.int64))

    @overload
    def __getitem__(self, rows: int) -> NDArray[np.uint8]: ...

    @overload
    def __getitem__(self, rows: Rows) -> "ImageFiles": ...

    def __getitem__(self, rows: "int | Rows") -> "NDArray[np.uint8] | ImageFiles":
        if isinstance(rows, int | np.integer):
            return self.read_region(int(rows), lambda decoded, size: None)
        return replace(self, paths=self.paths[rows])

    def read_region(self, row: int, choose: ChooseRegion) -> NDArray[np.uint8]:
        """Return a chosen region of an image, resized to [H, W, 3]."""
        if not self.paths[row]:
            return np.full((*self.size, 3), _BLANK_GREY, np.uint8)
        image = read_image(Path(self.paths[row]), self.scale)
        box = choose((image.height, image.width), self.size)
        return resize_region(image, self.size, box) if box else resize_image(image, self.size, self.resize)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        pixels = self.decoded()
        return pixels if dtype is None else pixels.astype(dtype, copy=False)

    def for_worker(self) -> "ImageFiles":
        """Return a copy with only the fields that a worker needs to decode."""
        return replace(self, notes=(), unreadable=(), pool=_EMPTY_POOL)

    def decoded(self, progress: Progress = quiet, name: str = "images") -> NDArray[np.uint8]:
        """Return all pixels, [N, H, W, 3]; threads decode.

        Raises:
            DataError: a file cannot be read; the first is named.
        """
        pixels = np.empty(self.shape, np.uint8)

        def decode(row: int) -> None:
            pixels[row] = self[row]

        map_in_threads(decode, range(len(self)), progress, f"decoding {name}")
        return pixels


_EMPTY_POOL = WorkerPool()  # a batch in a queue must not keep its own workers alive


def read_region(images: NDArray[np.uint8] | ImageFiles, row: int, choose: ChooseRegion) -> NDArray[np.uint8]:
    """Return a chosen region of one image, resized to [H, W, C] uint8; files are cut at their own size."""
    if isinstance(images, ImageFiles):
        return images.read_region(row, choose)
    image: NDArray[np.uint8] = images[row]
    sides = (image.shape[0], image.shape[1])
    box = choose(sides, sides)
    if box is None:
        return image
    planes = [resize_region(Image.fromarray(plane), sides, box) for plane in np.moveaxis(image, 2, 0)]
    return np.stack(planes, axis=2)


def resolve_workers(configured: int | Literal["auto"]) -> int:
    """Return how many processes read streamed images: `data.workers`, or one per core and at most 8."""
    return default_workers() if configured == "auto" else configured


def map_in_threads(
    function: Callable[[int], _Result], rows: Sequence[int], progress: Progress = quiet, name: str = "images"
) -> list[_Result]:
    """Return `function` of every row, in order; Pillow releases Python's lock while it decodes."""
    results: list[_Result] = []
    with ThreadPoolExecutor(resolve_workers("auto")) as pool:
        for start in range(0, len(rows), _THREAD_CHUNK):
            results += pool.map(function, rows[start : start + _THREAD_CHUNK])
            progress(name, len(results), len(rows))
    return results
