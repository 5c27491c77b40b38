"""The coursework's networks, by name, with their published layers.

A network's function takes the image shape and the number of classes; its keyword arguments are `model.args`
(`drop_rate` is `model.drop_rate`). With another image size, only the first linear layer after flattening changes.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from comp.models.coursework import convolution
from comp.models.coursework.layout import Network, activation_layer, halved
from comp.models.fastnet import fastnet
from comp.runtime.errors import ModelError, unknown

Shape = tuple[int, int, int]  # channels, height, width

# Ranges of `model.args`, which are checked before a network is built.
Width = Annotated[int, Field(ge=1, le=65_536)]
Count = Annotated[int, Field(ge=0, le=1000)]
Switch = Annotated[bool, Field()]


def fully_connected(
    shape: Shape,
    classes: int,
    *,
    hidden: Annotated[Sequence[Width], Field(max_length=1000)] = (128,),
    activation: str = "relu",
    drop_rate: float = 0.0,
) -> Network:
    """Flatten, then linear layers of the `hidden` widths, each with activation and dropout."""
    widths = [math.prod(shape), *_check_widths("hidden", hidden)]
    neck: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        neck += [nn.Linear(before, after), activation_layer(activation), nn.Dropout(drop_rate)]
    return Network(nn.Sequential(nn.Flatten()), nn.Sequential(*neck), nn.Linear(widths[-1], classes))


def mlp(shape: Shape, classes: int, *, drop_rate: float = 0.2) -> Network:
    """784-128-64 with ReLU, dropout after the second hidden layer: 109,386 parameters for 28 px grey, 10 classes."""
    neck = nn.Sequential(
        nn.Linear(math.prod(shape), 128),
        nn.ReLU(),
        nn.Linear(128, 64),
        nn.ReLU(),
        nn.Dropout(drop_rate),
    )
    return Network(nn.Sequential(nn.Flatten()), neck, nn.Linear(64, classes))


class ResidualLinear(nn.Module):
    """Two linear layers with dropout, added to the input, then ReLU: [B, width] -> [B, width]."""

    def __init__(self, width: int, drop_rate: float) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.Linear(width, width),
            nn.ReLU(),
            nn.Dropout(drop_rate),
            nn.Linear(width, width),
            nn.Dropout(drop_rate),
        )

    def forward(self, features: Tensor) -> Tensor:
        """Return relu(x + branch(x))."""
        return torch.relu(features + self.branch(features))


def residual_mlp(
    shape: Shape, classes: int, *, width: Width = 110, blocks: Count = 2, drop_rate: float = 0.2
) -> Network:
    """784 -> 110, residual blocks of two linear layers, -> 10: 136,300 parameters for 28 px grey, 10 classes."""
    neck: list[nn.Module] = [nn.Linear(math.prod(shape), width), nn.ReLU()]
    neck += [ResidualLinear(width, drop_rate) for _ in range(blocks)]
    return Network(nn.Sequential(nn.Flatten()), nn.Sequential(*neck), nn.Linear(width, classes))


def convnet(
    shape: Shape, classes: int, *, activation: str = "relu", batch_norm: Switch = True, drop_rate: float = 0.0
) -> Network:
    """Three 3x3 convolutions of 12, 24, 48 channels, each with batch norm, activation and a pool; 768 -> 64 -> 10."""
    channels, height, width = shape
    body: list[nn.Module] = []
    for after in (12, 24, 48):
        norm = nn.BatchNorm2d(after) if batch_norm else nn.Identity()
        layers = (nn.Conv2d(channels, after, 3, padding=1), norm, activation_layer(activation), nn.MaxPool2d(2))
        body.append(nn.Sequential(*layers))
        channels = after
    final = channels * halved(height, 3, network="convnet") * halved(width, 3, network="convnet")
    neck = nn.Sequential(nn.Flatten(), nn.Linear(final, 64), activation_layer(activation), nn.Dropout(drop_rate))
    return Network(nn.Sequential(*body), neck, nn.Linear(64, classes))


CONVOLUTIONS: dict[str, Callable[..., nn.Module]] = {
    "torch": nn.Conv2d,
    "first_principles": convolution.Conv2d,
}


def simple_cnn(
    shape: Shape, classes: int, *, depth: int = 3, channels: Width = 16, conv: str = "torch", drop_rate: float = 0.0
) -> Network:
    """`depth` (2, 3 or 6) 3x3 convolutions whose channels double, a pool after every second one, then a 128-wide layer.

    `conv: first_principles` uses our own convolution instead of torch's.
    """
    if depth not in (2, 3, 6):
        raise ModelError(f"model.args.depth: expected 2, 3 or 6 for simple_cnn, found {depth}")
    if conv not in CONVOLUTIONS:
        raise ModelError(f"model.args.conv: {unknown('convolution', conv, CONVOLUTIONS)}")
    before, height, width = shape
    body: list[nn.Module] = []
    for layer in range(depth):
        after = channels * 2**layer
        pool = nn.MaxPool2d(2) if layer % 2 else nn.Identity()
        body.append(nn.Sequential(CONVOLUTIONS[conv](before, after, 3, padding=1), nn.ReLU(), pool))
        before = after
    pools = depth // 2
    final = before * halved(height, pools, network="simple_cnn") * halved(width, pools, network="simple_cnn")
    neck = nn.Sequential(nn.Flatten(), nn.Linear(final, 128), nn.ReLU(), nn.Dropout(drop_rate))
    return Network(nn.Sequential(*body), neck, nn.Linear(128, classes))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norm, added to the shortcut (He et al. 2016, arXiv:1512.03385).

    Args:
        before: channels in.
        after: channels out.
        stride: of the first convolution and of the shortcut's 1x1 convolution, which exists if shapes differ.
    """

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or before != after:
            self.shortcut = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))

    def forward(self, features: Tensor) -> Tensor:
        """Return [B, after, H / stride, W / stride]."""
        branch = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(features)))))
        return torch.relu(branch + self.shortcut(features))


def residual_cnn(
    shape: Shape,
    classes: int,
    *,
    blocks: Count = 4,
    width: Width = 32,
    blocks_per_stage: int = 2,
    drop_rate: float = 0.0,
) -> Network:
    """A 3x3 stem and `blocks` basic blocks; each stage after the first doubles channels and halves the map."""
    _check_widths("blocks_per_stage", [blocks_per_stage])
    stem = nn.Sequential(nn.Conv2d(shape[0], width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
    body: list[nn.Module] = [stem]
    channels = width
    for block in range(blocks):
        widens = block > 0 and block % blocks_per_stage == 0
        after = channels * 2 if widens else channels
        body.append(BasicBlock(channels, after, stride=2 if widens else 1))
        channels = after
    neck = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(drop_rate))
    return Network(nn.Sequential(*body), neck, nn.Linear(channels, classes))


def challenge_cnn(shape: Shape, classes: int, *, drop_rate: float = 0.0) -> Network:
    """3x3 convolutions 3-32-64-pool-128-256-pool, then 16384-512-100 at 32 px: 8,828,836 parameters."""
    channels, height, width = shape
    body: list[nn.Module] = []
    for layer, after in enumerate((32, 64, 128, 256)):
        pool = nn.MaxPool2d(2) if layer % 2 else nn.Identity()
        body.append(nn.Sequential(nn.Conv2d(channels, after, 3, padding=1), nn.ReLU(), pool))
        channels = after
    final = channels * halved(height, 2, network="challenge_cnn") * halved(width, 2, network="challenge_cnn")
    neck = nn.Sequential(nn.Flatten(), nn.Linear(final, 512), nn.ReLU(), nn.Dropout(drop_rate))
    return Network(nn.Sequential(*body), neck, nn.Linear(512, classes))


def imagenette_cnn(shape: Shape, classes: int, *, batch_norm: Switch = False, drop_rate: float = 0.0) -> Network:
    """Three 3x3 convolutions of stride 2 and 64, 128, 256 channels, a global pool and a 256-wide layer, for 160 px."""
    channels = shape[0]
    body: list[nn.Module] = []
    for after in (64, 128, 256):
        norm = nn.BatchNorm2d(after) if batch_norm else nn.Identity()
        body.append(nn.Sequential(nn.Conv2d(channels, after, 3, stride=2, padding=1), norm, nn.ReLU()))
        channels = after
    pool = (nn.AdaptiveAvgPool2d(1), nn.Flatten())
    neck = nn.Sequential(*pool, nn.Linear(256, 256), nn.ReLU(), nn.Dropout(drop_rate))
    return Network(nn.Sequential(*body), neck, nn.Linear(256, classes))


def _check_widths(field: str, values: Sequence[int]) -> list[int]:
    """Return the widths as a list; raise unless all are positive integers."""
    if isinstance(values, str) or not all(isinstance(value, int) and value > 0 for value in values):
        raise ModelError(f"model.args.{field}: expected positive integers, found {values!r}")
    return list(values)


NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "fully_connected": fully_connected,
    "mlp": mlp,
    "residual_mlp": residual_mlp,
    "convnet": convnet,
    "simple_cnn": simple_cnn,
    "residual_cnn": residual_cnn,
    "challenge_cnn": challenge_cnn,
    "imagenette_cnn": imagenette_cnn,
    "fastnet": fastnet,
}
"""Rows whose function does not describe them:

fastnet: A small, wide network that reaches its accuracy soonest on 32 px images, from a whitening first layer
    (Page 2019, "How to train your ResNet"; Jordan 2024, arXiv:2404.00498).
"""
