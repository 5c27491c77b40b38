"""Small networks that several tests predict with."""

import torch
from torch import Tensor, nn

from comp.inference import adapt
from comp.models.fastnet import fastnet


class Net(nn.Module):
    """A fastnet S that takes bytes, with statistics of other images than those it will see."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner = fastnet((3, 16, 16), 5, size="S")
        for layer in adapt.batch_norms(self):
            layer.running_mean.uniform_(-0.2, 0.2)  # type: ignore[union-attr]
            layer.running_var.uniform_(0.2, 2)  # type: ignore[union-attr]

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [B, 5]."""
        logits: Tensor = self.inner(images.float() / 255)
        return logits
