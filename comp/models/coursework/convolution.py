"""Convolution from its definition: gather every window of the padded image, contract it with the kernel.

No `torch.nn.functional.conv*` is called: windows are an unfolded view of the padded image, and one `einsum` is the
whole layer. Gradients come from autograd through the view, as for any tensor expression.
"""

import math

import torch
from torch import Tensor, nn

from comp.runtime.errors import ModelError

Pair = tuple[int, int]


def windows(images: Tensor, kernel: Pair, *, stride: Pair, padding: Pair, dilation: Pair) -> Tensor:
    """Return every window a kernel visits, as a view: [B, C, H', W', kh, kw] of images [B, C, H, W].

    Args:
        images: the input.
        kernel: height and width of the kernel in taps.
        stride: pixels between neighbouring windows.
        padding: zeros added on both sides, vertically and horizontally.
        dilation: pixels between neighbouring taps of one window.

    Raises:
        ModelError: the spread kernel is larger than the padded image.
    """
    padded = _padded(images, padding)
    spread = tuple((taps - 1) * gap + 1 for taps, gap in zip(kernel, dilation, strict=True))
    if spread[0] > padded.shape[-2] or spread[1] > padded.shape[-1]:
        raise ModelError(
            f"convolution: expected padded images of at least {spread[0]}x{spread[1]} px for a "
            f"{kernel[0]}x{kernel[1]} kernel with dilation {dilation}, found {padded.shape[-2]}x{padded.shape[-1]}"
        )
    unfolded = padded.unfold(2, spread[0], stride[0]).unfold(3, spread[1], stride[1])  # [B, C, H', W', spread...]
    return unfolded[..., :: dilation[0], :: dilation[1]]


def _padded(images: Tensor, padding: Pair) -> Tensor:
    if padding == (0, 0):
        return images
    B, C, H, W = images.shape
    vertical, horizontal = padding
    padded = images.new_zeros(B, C, H + 2 * vertical, W + 2 * horizontal)
    padded[:, :, vertical : vertical + H, horizontal : horizontal + W] = images
    return padded


class Conv2d(nn.Module):
    """A 2-D convolution (cross-correlation, as in torch) with torch's parameters, names and initial distribution.

    Args:
        in_channels: C of the input; a multiple of `groups`.
        out_channels: C of the output; a multiple of `groups`.
        kernel_size: taps, one number or (height, width).
        stride: see `windows`.
        padding: see `windows`.
        dilation: see `windows`.
        groups: channel groups that do not see each other; `in_channels` of them make it depthwise.
        bias: add a trained bias to each output channel.

    Raises:
        ModelError: channels are not multiples of `groups`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Pair,
        stride: int | Pair = 1,
        padding: int | Pair = 0,
        dilation: int | Pair = 1,
        groups: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__()
        if in_channels % groups or out_channels % groups:
            raise ModelError(
                f"convolution: expected channels that are multiples of {groups} groups, "
                f"found {in_channels} -> {out_channels}"
            )
        self.kernel_size, self.stride = _pair(kernel_size), _pair(stride)
        self.padding, self.dilation = _pair(padding), _pair(dilation)
        self.groups = groups
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels // groups, *self.kernel_size))
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weights and biases uniformly from ±1/sqrt(taps x channels a window covers), as torch does."""
        bound = 1 / math.sqrt(self.weight[0].numel())
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, images: Tensor) -> Tensor:
        """Return [B, out_channels, H', W'] of images [B, in_channels, H, W]."""
        seen = windows(
            images, self.kernel_size, stride=self.stride, padding=self.padding, dilation=self.dilation
        )  # [B, C, H', W', kh, kw]
        B, C = seen.shape[:2]
        grouped = seen.view(B, self.groups, C // self.groups, *seen.shape[2:])  # [B, G, C/G, H', W', kh, kw]
        kernels = self.weight.view(self.groups, -1, *self.weight.shape[1:])  # [G, O/G, C/G, kh, kw]
        contracted = torch.einsum("bgchwyx,gocyx->bgohw", grouped, kernels).flatten(1, 2)  # [B, O, H', W']
        return contracted if self.bias is None else contracted + self.bias.view(-1, 1, 1)


class Filter2d(nn.Module):
    """One fixed kernel applied to every channel by itself; the image keeps its size, edges see zeros.

    Args:
        kernel: [kh, kw], odd sides; saved with the weights, not trained.
    """

    kernel: Tensor

    def __init__(self, kernel: Tensor) -> None:
        super().__init__()
        if kernel.shape[0] % 2 == 0 or kernel.shape[1] % 2 == 0:
            raise ModelError(f"filter: expected odd kernel sides, found {list(kernel.shape)}")
        self.register_buffer("kernel", kernel)

    def forward(self, images: Tensor) -> Tensor:
        """Return filtered images [B, C, H, W]."""
        kh, kw = self.kernel.shape
        seen = windows(images, (kh, kw), stride=(1, 1), padding=(kh // 2, kw // 2), dilation=(1, 1))
        return torch.einsum("bchwyx,yx->bchw", seen, self.kernel)


def box_kernel(radius: int) -> Tensor:
    """Return the mean over (2 radius + 1) squared pixels as a kernel that sums to one."""
    side = 2 * radius + 1
    return torch.full((side, side), 1 / side**2)


def gaussian_kernel(radius: int, sigma: float | None = None) -> Tensor:
    """Return a Gaussian kernel [2 radius + 1, 2 radius + 1] that sums to one; sigma in pixels, radius / 2 if None."""
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float32)
    profile = torch.exp(-(offsets**2) / (2 * (sigma or radius / 2) ** 2))
    kernel = profile[:, None] * profile[None, :]  # [side, side]
    return kernel / kernel.sum()


def _pair(value: int | Pair) -> Pair:
    return (value, value) if isinstance(value, int) else value
