"""Batches of uint8 pixels for training, resident on the training device or streamed by workers.

Both loaders give the same batches. The caller passes an epoch's order, and a transform in a worker depends on
(epoch, index) alone, so that neither the number of workers nor a resume in mid-epoch changes the pixels.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from comp.data.decode import Box, Sides
from comp.data.images import ImageFiles, WorkerPool, read_region
from comp.data.splits import Split
from comp.runtime import memory
from comp.runtime.device import devices
from comp.runtime.errors import ConfigError, DataError, UserError

Loading = Literal["auto", "resident", "streamed"]

_RESIDENT_SHARE = 4  # pixels take a quarter of the free memory at most: the rest is for model and activations
_MOST_FREE = _RESIDENT_SHARE * (4 << 30)  # of main memory that image files may count on
_COPIED_BYTES = 64 << 20


def augmentation_device(device: torch.device) -> torch.device:
    """Return where the images of a training on a device lie and are augmented: Metal has no float64, so on the CPU."""
    return torch.device("cpu") if device.type == "mps" else device


class Transform(Protocol):
    """Changes an image in a worker, by its epoch and index alone; see `comp.augment.worker_stage`."""

    def box(self, decoded: Sides, size: Sides, epoch: int, index: int, /) -> Box | None:
        """Return the region of an image of `decoded` sides that is resized to `size`; None: resize as configured."""

    def __call__(self, image: NDArray[np.uint8], epoch: int, index: int) -> NDArray[np.uint8]:
        """Return the changed image, [H, W, C], of the same shape."""


class Batch(NamedTuple):
    """A training step's input.

    Attributes:
        step: its number in the epoch, from 0.
        indices: [B] int64, rows of the split, on the CPU.
        images: [B, C, H, W] uint8, channels last in memory.
        labels: [B] int64.
    """

    step: int
    indices: Tensor
    images: Tensor
    labels: Tensor


class Loader(Protocol):
    """Yields the batches of a labelled split.

    Attributes:
        note: for the user, why the images are streamed after all; else empty.
    """

    @property
    def note(self) -> str: ...

    def __len__(self) -> int:
        """Return the number of images."""

    def batches(self, order: Tensor, batch_size: int, *, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield an epoch's full batches on the device.

        Args:
            order: [N] int64 on the CPU, draws: a row, plus the split's length for each earlier draw of the same row in
                this epoch. It reaches the device in one copy.
            batch_size: images per batch; an incomplete last batch is dropped.
            epoch: for transforms.
            start: the first step to yield.
        """


@dataclass(frozen=True)
class ResidentLoader:
    """A labelled split that lies whole on the device: a batch is one gather, without workers or copies from the host.

    Attributes:
        images: [N, H, W, C] uint8.
        labels: [N] int64.
    """

    images: Tensor
    labels: Tensor
    note: str = ""

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Return images [B, C, H, W] uint8, channels last in memory, and labels [B]."""
        return self.images.index_select(0, indices).permute(0, 3, 1, 2), self.labels[indices]

    def batches(self, order: Tensor, batch_size: int, *, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield an epoch's full batches; see `Loader`."""
        rows = order.cpu() % len(self)
        there = rows.to(self.images.device)
        for step in range(start, len(order) // batch_size):
            part = slice(step * batch_size, (step + 1) * batch_size)
            yield Batch(step, rows[part], *self.batch(there[part]))


class StreamedLoader:
    """A labelled split whose images are read, and maybe transformed, one by one in workers.

    Workers live as long as the loader: restarting them for every epoch would cost seconds where they are spawned.
    """

    def __init__(
        self,
        split: Split,
        device: torch.device,
        *,
        workers: int,
        transform: Transform | None = None,
        note: str = "",
    ) -> None:
        """Prepare the loader; workers start with the first epoch.

        Args:
            split: labelled.
            device: of the batches.
            workers: processes; 0 reads in this one.
            transform: applied to each image.
            note: see `Loader`.
        """
        assert split.labels is not None
        self.note = note
        self._device = device
        self._labels = torch.from_numpy(split.labels.copy()).to(device)  # [N]
        self._images, self._workers = split.images, workers
        self._pinned = device.type == "cuda"
        # Files without a transform share their decoding workers with validation.
        self._shares_pool = transform is None and workers > 0 and isinstance(split.images, ImageFiles)
        self._pool = WorkerPool(_Reader(split.images, transform), _stack)

    def __len__(self) -> int:
        return len(self._labels)

    def batches(self, order: Tensor, batch_size: int, *, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield an epoch's full batches; see `Loader`.

        Raises:
            DataError: an image cannot be read or a transform changed its shape.
        """
        order = order.cpu()
        rows = order % len(self)
        there = rows.to(self._device)
        steps = range(start, len(order) // batch_size)
        parts = [slice(step * batch_size, (step + 1) * batch_size) for step in steps]
        pixels_of_all = self._read([order[part] for part in parts], epoch)
        for step, part, pixels in zip(steps, parts, pixels_of_all, strict=True):
            images = pixels.to(self._device, non_blocking=True)  # [B, H, W, C]
            yield Batch(step, rows[part], images.permute(0, 3, 1, 2), self._labels[there[part]])

    def _read(self, batches: Sequence[Tensor], epoch: int) -> Iterator[Tensor]:
        if isinstance(self._images, ImageFiles) and self._shares_pool:
            parts = [[self._images[draws.numpy() % len(self)].for_worker()] for draws in batches]
            return self._images.pool.batches(parts, self._workers, pinned=self._pinned, exact=True)
        plan = [[(epoch, draw) for draw in draws.tolist()] for draws in batches]
        return self._pool.batches(plan, self._workers, pinned=self._pinned, exact=True)


class _Reader(Dataset[Any]):
    """One image for each (epoch, draw), or the error raised while reading it."""

    def __init__(self, images: NDArray[np.uint8] | ImageFiles, transform: Transform | None) -> None:
        self._images, self._transform = images, transform

    def __getitem__(self, key: tuple[int, int]) -> "NDArray[np.uint8] | UserError":
        epoch, draw = key
        try:
            return read_training_image(self._images, draw, epoch, self._transform)
        except UserError as error:
            return error


def _stack(items: "list[NDArray[np.uint8] | UserError]") -> "Tensor | UserError":
    arrays = []
    for item in items:
        if isinstance(item, UserError):
            return item
        arrays.append(item)
    return torch.from_numpy(np.stack(arrays))  # [B, H, W, C]


def read_training_image(
    images: NDArray[np.uint8] | ImageFiles, draw: int, epoch: int, transform: Transform | None
) -> NDArray[np.uint8]:
    """Return an image of a training epoch before its batch is augmented, [H, W, C] uint8; `draw` as in `Loader`.

    Raises:
        DataError: its file cannot be read, or a transform changed its shape.
    """
    row = draw % len(images)
    if transform is None:
        plain: NDArray[np.uint8] = images[row]
        return plain
    image = read_region(images, row, lambda decoded, size: transform.box(decoded, size, epoch, draw))
    changed = transform(np.array(image), epoch, draw)
    if changed.shape != image.shape or changed.dtype != np.uint8:
        raise DataError(
            f"augment.albumentations: an image {list(image.shape)} uint8 came back as {list(changed.shape)} "
            f"{changed.dtype}; choose transforms that keep its size"
        )
    return changed


def build_loader(
    split: Split,
    device: torch.device,
    *,
    resident: bool,
    workers: int,
    transform: Transform | None = None,
    configured: Loading = "auto",
) -> Loader:
    """Return the loader of a labelled split; it has a note if its pixels are streamed since they do not fit.

    Args:
        split: labelled.
        device: of the training; batches lie on its `augmentation_device`.
        resident: whether the pixels lie on the device; with a transform they are streamed all the same.
        workers: processes that read or transform.
        transform: applied to each image in a worker.
        configured: `data.loading`.

    Raises:
        ConfigError: `resident` is configured, and the pixels do not fit.
    """
    device = augmentation_device(device)
    moves = resident and transform is None
    if moves and (loader := _load_if_it_fits(split, device)) is not None:
        return loader
    note = ""
    if moves:
        problem = (
            f"{_describe_bytes(split.images.nbytes)} of training images do not fit on {device.type}, where "
            f"{_describe_bytes(memory.free_bytes(device))} are free"
        )
        if configured == "resident":
            raise ConfigError(f"data.loading: resident: {problem}; use auto or streamed")
        note = f"data.loading: {problem}, so workers stream them"
    return StreamedLoader(split, device, workers=workers, transform=transform, note=note)


def _load_if_it_fits(split: Split, device: torch.device) -> ResidentLoader | None:
    if _bytes_to_move(split.images, device) > memory.free_bytes(device):
        return None
    try:
        return load_resident(split, device)
    except (RuntimeError, MemoryError) as error:
        if not memory.is_out_of_memory(error):
            raise
    memory.release_cached()
    return None


def load_resident(split: Split, device: torch.device) -> ResidentLoader:
    """Move a labelled split to the device.

    Raises:
        MemoryError: it does not fit; of torch, a RuntimeError (see `comp.runtime.memory.is_out_of_memory`).
    """
    assert split.labels is not None
    return ResidentLoader(_move(split.images, device), torch.from_numpy(split.labels.copy()).to(device))


def _move(images: NDArray[np.uint8] | ImageFiles, device: torch.device) -> Tensor:
    """Return all pixels on the device, copied in parts unless they are there."""
    array = images.decoded() if isinstance(images, ImageFiles) else images
    if not _bytes_to_move(array, device):
        return torch.from_numpy(array)
    pixels = torch.empty(array.shape, dtype=torch.uint8, device=device)
    step = max(1, _COPIED_BYTES // max(1, array[:1].nbytes))
    for start in range(0, len(array), step):
        rows = slice(start, start + step)
        pixels[rows] = torch.from_numpy(np.array(array[rows])).to(device)  # a copy: memory maps are read-only
    return pixels


def _bytes_to_move(images: NDArray[np.uint8] | ImageFiles, device: torch.device) -> int:
    """Return the device's memory that images need: on the CPU, an array that is no memory map stays where it is."""
    if device.type == "cpu" and (
        isinstance(images, ImageFiles)
        or (type(images) is np.ndarray and images.flags.writeable and images.flags.c_contiguous)
    ):
        return 0
    return int(images.nbytes)


class Residency(NamedTuple):
    """Where training images lie.

    Attributes:
        resident: decoded on the device; else workers stream them.
        note: for the user, why `auto` streams them.
    """

    resident: bool
    note: str = ""


def residency(train: Split, val: Split | None, configured: Loading, device: torch.device) -> Residency:
    """Return whether training images lie on the device.

    Args:
        train: what training reads in every epoch.
        val: likewise; it stays on the host.
        configured: `data.loading`. `auto`: they do where they take at most a quarter of the free memory, of the device
            and, for image files, of the host (at most 4 GiB).
        device: of the training.
    """
    if configured != "auto":
        return Residency(configured == "resident")
    files = [split.images for split in (train, val) if split is not None and isinstance(split.images, ImageFiles)]
    places = (
        ("main memory", sum(images.nbytes for images in files), min(memory.free_host_bytes(), _MOST_FREE)),
        (f"memory of {device.type}", _bytes_to_move(train.images, device), memory.free_bytes(device)),
    )
    for where, needed, free in places:
        if needed > free // _RESIDENT_SHARE:
            return Residency(
                False,
                f"data.loading: workers stream the images: {_describe_bytes(needed)} are more than a quarter of the "
                f"free {where} ({_describe_bytes(free)}); data.loading=resident keeps them there all the same",
            )
    return Residency(True)


def training_device(name: str) -> torch.device:
    """Return the device of `train.device`, or the fastest of this machine, which may only predict."""
    present = devices()
    return torch.device(name if present.get(name) else next(device for device in present if present[device]))


def _describe_bytes(count: int) -> str:
    return f"{count / (1 << 30):.1f} GiB" if count >= 1 << 30 else f"{count / (1 << 20):.1f} MiB"


def iter_chunks(split: Split, batch_size: int, reading: memory.MicroBatch | None = None) -> Iterator[NDArray[np.uint8]]:
    """Yield a split's images in order, [B, H, W, C] uint8; workers decode files ahead of time.

    Args:
        split: the images.
        batch_size: images in a chunk.
        reading: halved where a chunk does not fit the memory; None: it is as large as configured.

    Raises:
        DataError: a file cannot be read.
        WorkersError: a worker died or hangs, or none can start.
        OutOfMemoryError: with `reading`, not even one image fits.
    """
    images, starts = split.images, range(0, len(split), batch_size)
    if isinstance(images, ImageFiles) and images.workers and len(starts) > 1:
        plan = [[images[start : start + batch_size].for_worker()] for start in starts]
        for pixels in images.pool.batches(plan, images.workers):
            yield pixels.numpy()
    elif reading is not None:
        yield from reading.parts(len(split), lambda rows: np.array(images[rows]))
    else:
        for start in starts:
            yield np.array(images[start : start + batch_size])  # a copy: memory maps are read-only
