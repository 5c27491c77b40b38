"""Pixel noise on uint8 batches: Gaussian, speckle, impulse and shuffle; each sample has its own amount and draws.

Images are [B, C, H, W] uint8 in any memory format; results are channels_last. Every value takes sixteen bits of a
counted draw, hashed from `fields` [B] int64 (`rng.field_keys`); results are rounded the same way on every device.
"""

import torch
from torch import Tensor

from comp.augment.kernels.colour import rounded
from comp.augment.kernels.geometry import to_images, to_pixels
from comp.runtime import rng


def gaussian(images: Tensor, sigma: Tensor, fields: Tensor) -> Tensor:
    """Return images plus normal noise; `sigma` [B] float32 in grey levels."""
    pixels = to_pixels(images)
    noise = rng.normals(fields, pixels.shape[1:]).mul_(sigma[:, None, None, None])
    return to_images(rounded(noise.add_(pixels.to(torch.float32))))


def speckle(images: Tensor, sigma: Tensor, fields: Tensor) -> Tensor:
    """Return images plus normal noise in proportion to the grey level; `sigma` [B] float32 as a fraction of it."""
    pixels = to_pixels(images)
    factor = rng.normals(fields, pixels.shape[1:]).mul_(sigma[:, None, None, None]).add_(1)
    return to_images(rounded(factor.mul_(pixels.to(torch.float32))))


def impulse(images: Tensor, threshold: Tensor, fields: Tensor) -> Tensor:
    """Return images with a share of single values set to black or white with equal probability.

    Args:
        images: [B, C, H, W] uint8.
        threshold: [B] int32, the share times 2^16.
        fields: [B] int64 from `rng.field_keys`.
    """
    pixels = to_pixels(images)
    shorts = rng.shorts(fields, pixels.shape[1:])
    threshold = threshold[:, None, None, None]
    # Bytes of 0 or 255 in bitwise ops: faster than boolean masks.
    hit = (shorts < threshold).to(torch.uint8).neg_()
    white = (shorts < threshold // 2).to(torch.uint8).neg_()
    return to_images((pixels & hit.bitwise_not_()).bitwise_or_(white))


def shuffle(images: Tensor, reach: Tensor, fields: Tensor) -> Tensor:
    """Replace each pixel by a random one nearby, as through frosted glass.

    Args:
        images: [B, C, H, W] uint8.
        reach: [B] int32, in 1/256 pixels; offsets on each axis are uniform within it, rounded. Borders are repeated.
        fields: [B] int64 from `rng.field_keys`.
    """
    pixels = to_pixels(images)
    B, H, W, C = pixels.shape
    shorts = rng.shorts(fields, (H, W))
    reach = reach[:, None, None]

    def displace(byte: Tensor, positions: Tensor, side: int) -> Tensor:
        # The byte's middle, 2 byte - 255 of 256, times the reach in 1/256 pixels, rounded.
        offsets = byte.mul_(2).sub_(255).mul_(reach).add_(1 << 15).bitwise_right_shift_(16)
        return offsets.add_(positions).clamp_(0, side - 1)

    rows, columns = (torch.arange(side, dtype=torch.int32, device=images.device) for side in (H, W))
    source = displace(shorts >> 8, rows[:, None], H).mul_(W).add_(displace(shorts & 255, columns, W))
    source += torch.arange(0, B * H * W, H * W, dtype=torch.int32, device=images.device)[:, None, None]
    return to_images(pixels.view(-1, C).index_select(0, source.view(-1)).view(B, H, W, C))
