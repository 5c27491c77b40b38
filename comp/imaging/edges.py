"""Edges, distances and equalised histograms of batches of grey planes, after OpenCV's definitions."""

import torch
from torch import Tensor
from torch.nn import functional as F


def _slopes(planes: Tensor) -> tuple[Tensor, Tensor]:
    """Sobel derivatives [B, H, W] across and down, borders repeated."""
    padded = F.pad(planes[:, None], (1, 1, 1, 1), mode="replicate")[:, 0]
    tall = padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]
    wide = padded[:, :, :-2] + 2 * padded[:, :, 1:-1] + padded[:, :, 2:]
    return tall[:, :, 2:] - tall[:, :, :-2], wide[:, 2:] - wide[:, :-2]


def _ridges(across: Tensor, down: Tensor, size: Tensor) -> Tensor:
    """[B, H, W] bool: where the gradient's size is largest along its direction (one of four)."""
    padded = F.pad(size, (1, 1, 1, 1))

    def neighbour(dy: int, dx: int) -> Tensor:
        return padded[:, 1 + dy : 1 + dy + size.shape[1], 1 + dx : 1 + dx + size.shape[2]]

    flat, steep = down.abs() < across.abs() * 0.41421356, down.abs() > across.abs() * 2.41421356
    falling = (across < 0) == (down < 0)
    level = (size > neighbour(0, -1)) & (size >= neighbour(0, 1))
    upright = (size > neighbour(-1, 0)) & (size >= neighbour(1, 0))
    slash = torch.where(falling, (size > neighbour(-1, -1)) & (size > neighbour(1, 1)),
                        (size > neighbour(-1, 1)) & (size > neighbour(1, -1)))  # fmt: skip
    return torch.where(flat, level, torch.where(steep, upright, slash))


def canny(planes: Tensor, low: float, high: float) -> Tensor:
    """Return edges (Canny 1986): ridges of the gradient above `low` that hang together with one above `high`.

    Args:
        planes: [B, H, W] float32, whole grey levels 0..255.
        low: of the sum of the absolute Sobel derivatives.
        high: likewise.

    Returns:
        [B, H, W] bool.
    """
    across, down = _slopes(planes)
    size = across.abs() + down.abs()
    candidates = ((size > low) & _ridges(across, down, size)).to(torch.float32)
    edges, count = candidates * (size > high), -1
    while (found := int(edges.sum())) != count:  # grows until nothing is added; a step more changes no image
        count = found
        edges = F.max_pool2d(edges, 3, stride=1, padding=1) * candidates
    return edges > 0


def distance(edges: Tensor, limit: float) -> Tensor:
    """Return each pixel's Euclidean distance to the nearest edge, at most `limit`.

    Separable (Felzenszwalb and Huttenlocher 2012): first along columns, then the best of each row.

    Args:
        edges: [B, H, W] bool.
        limit: in pixels.

    Returns:
        [B, H, W] float32.
    """
    height, width = edges.shape[1:]
    far = height + width + limit
    line = torch.arange(height, dtype=torch.float32, device=edges.device)[:, None]
    seen_above = torch.where(edges, line, -far).cummax(1).values
    seen_below = torch.where(edges, line, height + far).flip(1).cummin(1).values.flip(1)
    vertical = torch.minimum(line - seen_above, seen_below - line).clamp_(max=limit).square_()
    nearest = vertical.clone()
    for step in range(1, min(int(limit), width - 1) + 1):
        nearest[:, :, step:] = torch.minimum(nearest[:, :, step:], vertical[:, :, :-step] + step * step)
        nearest[:, :, :-step] = torch.minimum(nearest[:, :, :-step], vertical[:, :, step:] + step * step)
    return nearest.sqrt_()


def equalize(planes: Tensor, levels: int) -> Tensor:
    """Spread each plane's histogram over 0..255.

    Args:
        planes: [B, H, W] int64 in [0, levels).
        levels: how many there may be.

    Returns:
        [B, H, W] float32, whole grey levels; a plane of one level stays as it is.
    """
    flat = planes.flatten(1)
    counts = torch.zeros(len(flat), levels, device=flat.device)
    counts.scatter_add_(1, flat, torch.ones_like(flat, dtype=torch.float32))
    below = counts.cumsum(1)
    lowest = counts.gather(1, flat.amin(1, keepdim=True))  # pixels of the lowest level that occurs
    spread = (below - lowest).clamp_(min=0) * (255 / (flat.shape[1] - lowest).clamp(min=1))
    stretched = spread.round_().gather(1, flat)
    return torch.where(lowest == flat.shape[1], flat.to(torch.float32), stretched).view(planes.shape)
