"""What there is to choose from: names by pattern, and what one model costs on images of a given size."""

import fnmatch
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from comp.models import pretrained, stems, timm_models
from comp.models.coursework.networks import NETWORKS

Shape = tuple[int, int, int]  # channels, height, width


@dataclass(frozen=True)
class Listed:
    """One line of `comp models`, without what takes building a network to know."""

    name: str
    family: str
    """Its kind, as the competition's rules know it."""
    architecture: str
    """timm's module, or `ours`."""
    cifar_stem: bool
    weights: str
    """`file` (in the folder), `cached` (of the hub), `hub` (to be fetched), or empty where none are published."""


@dataclass(frozen=True)
class Costs:
    """What one model takes on one image."""

    parameters: int
    gmacs: float
    """Thousand million multiplications with addition in a forward pass."""
    feature_map: tuple[int, int]
    """Height and width of the last feature map; (1, 1) where there is none."""


def list_models(pattern: str = "*", *, weights_folder: Path | None = None) -> list[Listed]:
    """Return our networks and timm's models whose names fit a glob, without building any.

    Args:
        pattern: such as `resne*t*`.
        weights_folder: where weights files lie as `<name>.safetensors`.
    """
    import timm

    own = [name for name in NETWORKS if fnmatch.fnmatchcase(name, pattern)]
    others: Sequence[str] = timm.list_models(pattern)
    return [Listed(name, stems.OWN_KINDS[name], "ours", False, "") for name in own] + [
        Listed(
            name,
            timm_models.family_of(name).kind,
            timm_models.architecture(name),
            timm_models.family_of(name).has_cifar_stem,
            _weights_at_hand(name, weights_folder),
        )
        for name in others
    ]


def costs(name: str, image_shape: Shape, *, classes: int = 10, stem: str = "stock") -> Costs:
    """Return what a model costs, counted on a network without memory for its weights.

    Args:
        name: of the zoo.
        image_shape: (channels, height, width) of what it sees; after the resize under `stem: resize`.
        classes: width of the logits.
        stem: `stock` or `cifar`.

    Raises:
        ModelError: an unknown name, or a family without this stem.
        RuntimeError: the network is too deep for these images.
    """
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"), torch.no_grad():
        if name in NETWORKS:
            inner = NETWORKS[name](image_shape, classes)
        else:
            inner = timm_models.create(name, image_shape, classes, stem=stem)
        inner.eval()
        images = torch.zeros(1, *image_shape)
        with FlopCounterMode(display=False) as counter:
            inner(images)
        final = feature_map(inner, images)
    parameters = sum(parameter.numel() for parameter in inner.parameters())
    # The counter takes a multiplication and its addition for two operations.
    return Costs(parameters, counter.get_total_flops() / 2e9, final)


def feature_map(inner: nn.Module, images: Tensor) -> tuple[int, int]:
    """Return height and width of a network's last feature map on images [B, C, H, W]; (1, 1) where there is none."""
    features: Tensor = inner.forward_features(images)  # type: ignore[operator]
    if features.ndim == 4:
        by_pixel = getattr(inner, "output_fmt", "NCHW") == "NHWC"
        height, width = features.shape[1:3] if by_pixel else features.shape[2:4]
        return int(height), int(width)
    if features.ndim == 3:
        side = math.isqrt(features.shape[1] - int(getattr(inner, "num_prefix_tokens", 0)))
        return side, side
    return 1, 1


def _weights_at_hand(name: str, folder: Path | None) -> str:
    import timm

    cfg = timm.get_pretrained_cfg(name)
    if cfg is None or not cfg.has_weights:
        return ""
    if pretrained.local_file(name, folder):
        return "file"
    return "cached" if pretrained.cached_file(cfg.to_dict()) else "hub"
