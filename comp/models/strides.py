"""Strides and kernels of a convolutional model, changed in place so that small images keep their pixels."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Halvings that stay: 32 px -> 4x4.
_HALVINGS = 3
# Large enough that each halving of a stock network is seen, and that no map vanishes.
_TRACED_SIZE = 128


def relax_strides(inner: nn.Module, channels: int) -> None:
    """Make the first convolution 3x3 with stride 1 and undo early halvings until three are left, in place.

    Args:
        inner: a timm model with its stock stem.
        channels: of its images.
    """
    halvings = _halvings(inner, channels)
    excess = max(1, _total(halvings) - _HALVINGS)
    first = next((name for name, module in inner.named_modules() if _is_convolution(module)), None)
    for name, (done, _) in halvings.items():
        if done < excess:
            _relax(inner, name, first=name == first)


def _halvings(inner: nn.Module, channels: int) -> dict[str, tuple[int, int]]:
    """Return layers that shrink the map: name -> (halvings before it, halvings it makes), in order of execution."""
    found: dict[str, tuple[int, int]] = {}

    def record(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            before, after = inputs[0].shape[-1], output.shape[-1]
            if before >= 1.5 * after:
                found[name] = (round(math.log2(_TRACED_SIZE / before)), round(math.log2(before / after)))

        return hook

    # Blocks have a `stride` too; what shrinks the map is a convolution or pool in them.
    leaves = [(name, m) for name, m in inner.named_modules() if _is_convolution(m) or not list(m.children())]
    strided = [(name, module) for name, module in leaves if _stride(module) > 1]
    handles = [module.register_forward_hook(record(name)) for name, module in strided]
    was_training = inner.training
    inner.eval()
    with torch.no_grad():
        device = next(inner.parameters()).device
        images = torch.zeros(1, channels, _TRACED_SIZE, _TRACED_SIZE, device=device)
        inner.forward_features(images)  # type: ignore[operator]
    inner.train(was_training)
    for handle in handles:
        handle.remove()
    return found


def _total(halvings: Mapping[str, tuple[int, int]]) -> int:
    return max((before + made for before, made in halvings.values()), default=0)


def _stride(module: nn.Module) -> int:
    stride = getattr(module, "stride", 1)
    strides = stride if isinstance(stride, tuple | list) else (stride,)
    return max((value for value in strides if isinstance(value, int)), default=1)


def _is_convolution(module: nn.Module) -> bool:
    return isinstance(getattr(module, "weight", None), nn.Parameter) and hasattr(module, "kernel_size")


def _relax(inner: nn.Module, name: str, *, first: bool) -> None:
    # Families bring convolutions of their own that only share torch's attributes, not its class.
    layer: Any = inner.get_submodule(name)
    if not _is_convolution(layer):  # a pool or a blur, which only shrinks
        inner.set_submodule(name, nn.Identity())
        return
    layer.stride = (1, 1)
    kernel = layer.weight.shape[-1]
    taps = 3 if first and kernel > 1 else kernel + 1 - kernel % 2
    if taps != kernel:
        layer.weight = nn.Parameter(resample_kernel(layer.weight.detach(), taps))
        layer.kernel_size = (taps, taps)
    if not _pads_itself(layer):
        reach = max(layer.dilation) * (taps // 2)
        layer.padding = (reach, reach)


def _pads_itself(module: nn.Module) -> bool:
    """Whether a convolution pads to the "same" size by itself in `forward`, as TensorFlow's do."""
    return type(module).__name__.endswith("Same") or getattr(module, "same_pad", False)


def resample_kernel(kernels: Tensor, taps: int) -> Tensor:
    """Return kernels [O, I, k, k] resampled to [O, I, taps, taps], each one's sum kept.

    The sum is a kernel's answer to a flat image; keeping it keeps the scale that the following norm layer learnt.
    """
    resampled = F.interpolate(kernels, (taps, taps), mode="bilinear", align_corners=False, antialias=True)
    area = kernels.shape[-1] * kernels.shape[-2] / taps**2
    rough = resampled * area
    # Interpolation weighs edge taps unevenly; the rest of the sum is spread evenly.
    missing = kernels.sum((-2, -1), keepdim=True) - rough.sum((-2, -1), keepdim=True)
    return rough + missing / taps**2
