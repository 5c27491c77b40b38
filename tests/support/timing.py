"""A model that is slow in one precision, and the data to time it on."""

import time

import torch
from torch import Tensor, nn

from comp import config as configs
from comp.config import Config
from comp.data.dataset import Dataset, open_dataset

FIXED = ("train.compile=false", "data.workers=2")


class Slow(nn.Module):
    """A linear classifier that takes 50 ms more in one precision."""

    def __init__(self, *, slow_in_bf16: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(3 * 32 * 32, 4)
        self.slow_in_bf16 = slow_in_bf16

    def forward(self, images: Tensor) -> Tensor:
        """Return logits, in one precision after a while."""
        if torch.is_autocast_enabled("cpu") == self.slow_in_bf16:
            time.sleep(0.05)
        logits: Tensor = self.linear(images.flatten(1).float() / 255)
        return logits


def opened(*overrides: str) -> tuple[Config, Dataset]:
    """Return the workplace's config and data."""
    config = configs.load("small.yaml", [*FIXED, *overrides])
    return config, open_dataset(config)
