"""Small images first: most of what a network learns early it learns from a few pixels, at a fraction of the price.

Progressive resizing as of the DAWNBench entries of fast.ai (Howard 2018), and Touvron et al. 2019, "Fixing the
train-test resolution discrepancy", arXiv:1906.06423: the last epochs see the size that will be predicted.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from comp.runtime.errors import ConfigError


def check_sizes(model: nn.Module, sizes: Mapping[int, int], image_shape: tuple[int, int, int]) -> None:
    """Refuse sides that a network cannot take, before an hour has gone by in those that it can.

    Args:
        model: on the CPU.
        sizes: see `side_at`.
        image_shape: (C, H, W) of the training images.

    Raises:
        ConfigError: naming the side.
    """
    for side in sorted(set(sizes.values())):
        images = resized(torch.zeros(1, *image_shape), side)
        was_training = model.training
        try:
            with torch.no_grad():
                model.eval()(images)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(
                f"train.sizes: the network cannot take images of side {side} ({reason}); leave train.sizes out, or "
                "choose a network that pools over whatever it gets"
            ) from None
        finally:
            model.train(was_training)


def side_at(sizes: Mapping[int, int], epoch: int) -> int | None:
    """Return the side in pixels of an epoch's images (from 1), None for their own.

    Args:
        sizes: first epoch -> side, from that epoch until the next one named.
        epoch: counted from 1.
    """
    begun = [first for first in sizes if first <= epoch]
    return sizes[max(begun)] if begun else None


def resized(images: Tensor, side: int | None) -> Tensor:
    """Return float images [B, C, H, W] with their shorter side brought to `side`, antialiased; None leaves them."""
    shorter = min(images.shape[-2:])
    if side is None or side == shorter:
        return images
    size = [round(length * side / shorter) for length in images.shape[-2:]]
    return F.interpolate(images, size, mode="bilinear", align_corners=False, antialias=True)
