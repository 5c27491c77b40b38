"""fastnet: our network for the least time to accuracy on 32-px images.

Sources:
- a frozen first layer that whitens image patches with filters computed from training images, each with its negative
  so that rectification loses nothing: Page, "How to train your ResNet" (2019), and tysam-code/hlb-CIFAR10;
- convolutions that start as the identity on their input channels: dirac initialisation, Zagoruyko and Komodakis
  2017 (arXiv:1706.00388), used this way in Jordan, "94% on CIFAR-10 in 3.29 seconds" (2024, arXiv:2404.00498);
- few wide layers, batch norm without a trained scale, GELU, logits scaled by a constant: the same two lineages.

docs/lab/2026-11-22-fastnet-tricks.md has what each brings here.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from comp.models.coursework.layout import Network, halved
from comp.runtime.errors import ModelError, unknown


@dataclass(frozen=True)
class Size:
    """Widths of the three groups, and the number of convolutions in each."""

    widths: tuple[int, int, int]
    convolutions: int


SIZES = {
    "S": Size((32, 96, 96), 2),
    "M": Size((64, 256, 256), 2),
    "L": Size((128, 384, 512), 3),
}

# Eigenvalues below this are noise, which dividing by their root would amplify. Pixels have unit deviation here.
_SMALLEST_VARIANCE = 5e-4
_BLOCK_ELEMENTS = 1 << 22  # of patches in float64 at a time: 32 MB


class Whitening(nn.Conv2d):
    """A frozen convolution that turns patches into uncorrelated values and their negatives.

    Args:
        channels: of the images.
        patch: side of a patch in pixels.
        filters: number of directions to keep, by decreasing variance; the rest is mostly noise.
        bias: add a trained bias.
        smallest: added to each variance before dividing by its root; larger values amplify noise less.
    """

    def __init__(self, channels: int, *, patch: int, filters: int, bias: bool, smallest: float) -> None:
        super().__init__(channels, 2 * filters, kernel_size=patch, bias=bias)
        self.weight.requires_grad = False
        self.smallest = smallest

    def initialise(self, images: Tensor) -> None:
        """Set the filters from normalised images [N, C, H, W]: eigenvectors of the patch covariance, whitened."""
        # MPS has neither float64 nor an eigensolver; elsewhere the sums run where the images are.
        covariance = _patch_covariance(images.cpu() if images.device.type == "mps" else images, self.kernel_size[0])
        variances, directions = torch.linalg.eigh(covariance.cpu())
        filters = (directions / (variances + self.smallest).sqrt()).T  # one filter per row, the least variance first
        kernels = filters[-self.out_channels // 2 :].reshape(-1, *self.weight.shape[1:])
        with torch.no_grad():
            self.weight.copy_(torch.cat([kernels, -kernels]).to(self.weight.dtype))


def _patch_covariance(images: Tensor, side: int) -> Tensor:
    """Return the covariance of all patches of images [N, C, H, W]: [C side side, C side side] float64.

    In float64: the smallest eigenvalues are ten thousand times below the largest. A few images at a time, since patches
    are `side * side` times as large as their images.
    """
    size = images.shape[1] * side * side
    images_at_once = max(1, _BLOCK_ELEMENTS // (images[0].numel() * side * side))
    products = torch.zeros(size, size, dtype=torch.float64, device=images.device)
    sums, count = torch.zeros(size, dtype=torch.float64, device=images.device), 0
    for block in torch.split(images, images_at_once):
        windows = block.double().unfold(2, side, 1).unfold(3, side, 1)  # [n, C, H', W', side, side]
        patches = windows.permute(1, 4, 5, 0, 2, 3).reshape(size, -1)  # [C side side, n H' W']
        products += patches @ patches.T
        sums += patches.sum(1)
        count += patches.shape[1]
    return (products - torch.outer(sums, sums) / count) / (count - 1)


class PooledConvolution(nn.Conv2d):
    """A 3x3 convolution before a pool of 2x2, which drops the last row and column of a map with an odd side.

    They are not computed: a ninth of the work at a side of 15, a quarter at 7. All other values have the same bits.
    """

    def forward(self, features: Tensor) -> Tensor:
        """Return [B, C, H, W] of features [B, F, H, W], H and W rounded down to even."""
        odd_height, odd_width = (side % 2 for side in features.shape[2:])
        if odd_height or odd_width:
            padded = F.pad(features, (1, 1 - odd_width, 1, 1 - odd_height))
            return F.conv2d(padded, self.weight, self.bias)
        return super().forward(features)


class GlobalMaxPool(nn.Module):
    """Each channel's largest value; its gradient goes to the first of equal ones.

    `nn.AdaptiveMaxPool2d(1)` gives the same bits, but on CUDA its backward pass is not deterministic.
    """

    def forward(self, features: Tensor) -> Tensor:
        """Return [B, C] of features [B, C, H, W]."""
        if features.is_contiguous(memory_format=torch.channels_last):  # so that its gradient is channels_last, too
            return features.permute(0, 2, 3, 1).flatten(1, 2).max(1).values
        return features.flatten(2).max(2).values


class ScaledLinear(nn.Linear):
    """A linear layer without bias, its outputs scaled by a constant to keep early logits small."""

    def __init__(self, features: int, classes: int, scale: float) -> None:
        super().__init__(features, classes, bias=False)
        self.scale = scale

    def forward(self, features: Tensor) -> Tensor:
        """Return scaled logits [B, classes] of features [B, F]."""
        return super().forward(features) * self.scale


class FastNet(Network):
    """A `Network` whose first layer is initialised from training images."""

    def initialise(self, images: Tensor) -> None:
        """Set the whitening layer from normalised images [N, C, H, W]; a few thousand are plenty."""
        whitening = self.body[0]
        assert isinstance(whitening, Whitening)
        whitening.initialise(images[:5000])


def fastnet(
    shape: tuple[int, int, int],
    classes: int,
    *,
    size: str = "M",
    scale: Annotated[float, Field(ge=-1000, le=1000)] = 1 / 3,
    patch: int = 2,
    filters: int | None = None,
    bias: Annotated[bool, Field()] = True,
    smallest: Annotated[float, Field(ge=1e-9, le=1000)] = _SMALLEST_VARIANCE,
) -> FastNet:
    """Build fastnet for images of at least 16 px.

    Args:
        shape: (C, H, W) of the images.
        classes: number of classes.
        size: S, M or L.
        scale: factor of the logits.
        patch: side of the whitened patches in pixels.
        filters: directions to keep; None keeps all `patch * patch * C`. The layer has twice as many outputs.
        bias: train a bias in the first layer; without it, nothing below the first convolution needs a gradient.
        smallest: variance added before whitening; see `Whitening`.

    Raises:
        ModelError: unknown size, or a value out of range for the images.
    """
    if size not in SIZES:
        raise ModelError(f"model.args.size: {unknown('size', size, SIZES)}")
    channels, height, width = shape
    for side in (height, width):
        halved(side, 4, network="fastnet")
    if not 1 <= patch <= 5:
        raise ModelError(f"model.args.patch: expected a side of 1 to 5 pixels, found {patch}")
    limit = patch * patch * channels
    if filters is not None and not 1 <= filters <= limit:
        raise ModelError(f"model.args.filters: expected 1 to {limit} for patches of {patch} px, found {filters}")
    whitening = Whitening(channels, patch=patch, filters=filters or limit, bias=bias, smallest=smallest)
    body: list[nn.Module] = [whitening, nn.GELU()]
    before = whitening.out_channels
    for after in SIZES[size].widths:
        body.append(_group(before, after, SIZES[size].convolutions))
        before = after
    neck = nn.Sequential(GlobalMaxPool(), nn.Flatten())
    return FastNet(nn.Sequential(*body), neck, ScaledLinear(before, classes, scale))


def _group(before: int, after: int, convolutions: int) -> nn.Sequential:
    """Return convolutions with batch norm and GELU; a pool halves the map after the first."""
    layers: list[nn.Module] = []
    for index in range(convolutions):
        kind = PooledConvolution if index == 0 else nn.Conv2d
        convolution = kind(before if index == 0 else after, after, 3, padding=1, bias=False)
        with torch.no_grad():
            nn.init.dirac_(convolution.weight[: convolution.in_channels])
        norm = nn.BatchNorm2d(after, momentum=0.4)
        norm.weight.requires_grad = False
        pool = nn.MaxPool2d(2) if index == 0 else nn.Identity()
        layers += [convolution, pool, norm, nn.GELU()]
    return nn.Sequential(*layers)
