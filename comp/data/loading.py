"""Batches of uint8 pixels for training, resident on the training device."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from comp.data.splits import Split


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
        return self.images[indices].permute(0, 3, 1, 2), self.labels[indices]


def resident(split: Split, device: torch.device) -> Resident:
    """Move a labelled split to the device."""
    assert split.labels is not None
    images = torch.from_numpy(np.array(split.images))  # a copy: memory maps are read-only
    return Resident(images.to(device), torch.from_numpy(split.labels.copy()).to(device))
