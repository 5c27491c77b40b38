"""Batches of uint8 pixels for training, resident on the training device or streamed by workers.

Both loaders give the same batches: an epoch's order comes from outside, and whatever a worker does to an image depends
on (epoch, index) alone, so that neither the number of workers nor a resume in mid-epoch can be told from the pixels.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from comp.data.images import Box, ImageFiles, Sides, cut_from
from comp.data.readers import BatchPlan, or_raise
from comp.data.readers import loader as loader_of
from comp.data.splits import Split
from comp.runtime.errors import DataError, UserError


class Transform(Protocol):
    """What a worker does to an image, by its epoch and index alone; see `comp.augment.worker_stage`."""

    def box(self, found: Sides, size: Sides, epoch: int, index: int) -> Box | None:
        """Return the part of an image, `found` large, that is brought to `size`; None: it is read as configured."""

    def __call__(self, image: NDArray[np.uint8], epoch: int, index: int) -> NDArray[np.uint8]:
        """Return the image, [H, W, C], changed; must keep its shape."""


_Place = tuple[int, int]  # epoch, index

_MOST_RESIDENT_BYTES = 4 << 30


class Batch(NamedTuple):
    """What a training step sees.

    Attributes:
        step: its number in the epoch, from 0.
        indices: [B] int64, rows of the split.
        images: [B, C, H, W] uint8, channels last in memory.
        labels: [B] int64.
    """

    step: int
    indices: Tensor
    images: Tensor
    labels: Tensor


class Loader(Protocol):
    """What a training reads."""

    def __len__(self) -> int:
        """Return how many images there are."""

    def batches(self, order: Tensor, batch_size: int, *, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield an epoch's whole batches on the device.

        Args:
            order: [N] int64 on the device.
            batch_size: images in each; what is left over at the end is not yielded.
            epoch: for transforms.
            start: the first step wanted.
        """


@dataclass(frozen=True)
class Resident:
    """A labelled split that lies whole on the device: a batch is one gather, no worker and no copy from the host.

    Attributes:
        images: [N, H, W, C] uint8.
        labels: [N] int64.
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Return images [B, C, H, W] uint8, channels last in memory, and labels [B]."""
        return self.images.index_select(0, indices).permute(0, 3, 1, 2), self.labels[indices]

    def batches(self, order: Tensor, batch_size: int, *, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield an epoch's whole batches; see `Loader`."""
        for step in range(start, len(order) // batch_size):
            indices = order[step * batch_size : (step + 1) * batch_size]
            yield Batch(step, indices, *self.batch(indices))


class Streamed:
    """A labelled split whose images are read, and maybe transformed, one by one in workers.

    Workers live as long as the loader: starting them anew for every epoch would cost seconds where they are spawned.
    """

    def __init__(self, split: Split, device: torch.device, *, workers: int, transform: Transform | None = None) -> None:
        """Prepare; workers start with the first epoch.

        Args:
            split: labelled.
            device: where batches go.
            workers: processes; 0 reads in this one.
            transform: what is done to each image.
        """
        assert split.labels is not None
        self._device = device
        self._labels = torch.from_numpy(split.labels.copy()).to(device)  # [N]
        self._images, self._workers = split.images, workers
        # Files as they are, are decoded by the workers that validation has too.
        self._shares = transform is None and workers > 0 and isinstance(split.images, ImageFiles)
        self._plan = BatchPlan()
        self._loader = loader_of(
            _Reader(split.images, transform), self._plan, workers, _stack, pinned=self._device.type == "cuda"
        )

    def __len__(self) -> int:
        return len(self._labels)

    def batches(self, order: Tensor, batch_size: int, *, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield an epoch's whole batches; see `Loader`.

        Raises:
            DataError: an image cannot be read or a transform changed its shape.
        """
        steps = range(start, len(order) // batch_size)
        cuts = [order[step * batch_size : (step + 1) * batch_size] for step in steps]
        for step, indices, pixels in zip(steps, cuts, self._pixels(cuts, epoch), strict=True):
            images = pixels.to(self._device, non_blocking=True)  # [B, H, W, C]
            yield Batch(step, indices, images.permute(0, 3, 1, 2), self._labels[indices])

    def _pixels(self, cuts: Sequence[Tensor], epoch: int) -> Iterator[Tensor]:
        if isinstance(self._images, ImageFiles) and self._shares:
            parts = [self._images[cut.cpu().numpy()].bare() for cut in cuts]
            pinned = self._device.type == "cuda"
            return self._images.readers.batches(parts, self._workers, pinned=pinned, exact=True)
        self._plan.batches = [[(epoch, index) for index in cut.tolist()] for cut in cuts]
        return map(or_raise, self._loader)


def loader(
    split: Split, device: torch.device, *, stays: bool, workers: int, transform: Transform | None = None
) -> Loader:
    """Return the loader of a labelled split.

    Args:
        split: labelled.
        device: where batches go.
        stays: whether the pixels are to lie on the device; with a transform they go through workers all the same.
        workers: processes that read or transform.
        transform: what is done to each image in a worker; None where nothing is done on the way.
    """
    if stays and transform is None:
        return resident(split, device)
    return Streamed(split, device, workers=workers, transform=transform)


def resident(split: Split, device: torch.device) -> Resident:
    """Move a labelled split to the device."""
    assert split.labels is not None
    images = torch.from_numpy(np.array(split.images))  # a copy: memory maps are read-only
    return Resident(images.to(device), torch.from_numpy(split.labels.copy()).to(device))


def stays_resident(splits: Sequence[Split | None], wanted: Literal["auto", "resident", "streamed"]) -> bool:
    """Tell whether training images are to lie on the device.

    Args:
        splits: what training reads in every epoch.
        wanted: `data.loading`; `auto`: arrays do, and image files do where their pixels take at most 4 GiB and a
            quarter of the memory that is free.
    """
    files = [split.images for split in splits if split is not None and isinstance(split.images, ImageFiles)]
    if wanted != "auto":
        return wanted == "resident"
    return sum(images.nbytes for images in files) <= min(_MOST_RESIDENT_BYTES, _free_bytes() // 4)


def _free_bytes() -> int:
    """Return the memory that may be taken without swapping, as Linux tells it; elsewhere a generous guess."""
    try:
        with open("/proc/meminfo") as file:
            lines = dict(line.split(":") for line in file)
        return int(lines["MemAvailable"].split()[0]) << 10
    except (OSError, KeyError, ValueError):
        return 4 * _MOST_RESIDENT_BYTES


def chunks(split: Split, batch_size: int) -> Iterator[NDArray[np.uint8]]:
    """Yield a split's images in order, [B, H, W, C] uint8; files are decoded by workers ahead of time.

    Raises:
        DataError: a file cannot be read.
    """
    images, starts = split.images, range(0, len(split), batch_size)
    if isinstance(images, np.ndarray) or images.workers == 0 or len(starts) < 2:
        for start in starts:
            yield np.array(images[start : start + batch_size])  # a copy: memory maps are read-only
        return
    parts = [images[start : start + batch_size].bare() for start in starts]
    for pixels in images.readers.batches(parts, images.workers):
        yield pixels.numpy()


class _Reader(Dataset[Any]):
    """One image for each (epoch, index), or the error that reading it ended in; see `or_raise`."""

    def __init__(self, images: NDArray[np.uint8] | ImageFiles, transform: Transform | None) -> None:
        self._images, self._transform = images, transform

    def __getitem__(self, place: _Place) -> "NDArray[np.uint8] | UserError":
        epoch, index = place
        try:
            return read(self._images, index, epoch, self._transform)
        except UserError as error:
            return error


def read(
    images: NDArray[np.uint8] | ImageFiles, index: int, epoch: int, transform: Transform | None
) -> NDArray[np.uint8]:
    """Return an image as a training sees it in an epoch before its batch is augmented, [H, W, C] uint8.

    Raises:
        DataError: its file cannot be read, or a transform changed its shape.
    """
    if transform is None:
        plain: NDArray[np.uint8] = images[index]
        return plain
    image = cut_from(images, index, lambda found, size: transform.box(found, size, epoch, index))
    changed = transform(np.array(image), epoch, index)
    if changed.shape != image.shape or changed.dtype != np.uint8:
        raise DataError(
            f"augment.albumentations: an image {list(image.shape)} uint8 came back as {list(changed.shape)} "
            f"{changed.dtype}; choose transforms that keep its size"
        )
    return changed


def _stack(items: "list[NDArray[np.uint8] | UserError]") -> "Tensor | UserError":
    arrays = []
    for item in items:
        if isinstance(item, UserError):
            return item
        arrays.append(item)
    return torch.from_numpy(np.stack(arrays))  # [B, H, W, C]
