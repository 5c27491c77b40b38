"""How each family of timm's models is fitted to small images (`stem: cifar`).

Stock stems throw away 3/4 to 15/16 of the pixels of an image at once: at 32 px the last feature map of a ResNet is a
single pixel. Here a convolutional model's first convolution becomes 3x3 with stride 1, its early pooling goes, and
strides are relaxed from the front until at most three halvings are left, so 32 px end at 4x4 (the stem of He et al.
2016's CIFAR networks, arXiv:1512.03385). Patch models get small patches instead. Weights that are there already are
carried over: see `carried_over`.
"""

import fnmatch
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Arguments = Mapping[str, Any]

# Halvings that stay: 32 px -> 4x4.
_HALVINGS = 3
# Large enough that each halving of a stock network is seen, and that no map vanishes.
_TRACED_SIZE = 128


@dataclass(frozen=True)
class Family:
    """What is known of the models of one timm module.

    Args:
        kind: what `competition.rules.banned_families` calls them.
        relaxed: whether `relax_strides` makes its cifar stem.
        arguments: factory arguments that make its cifar stem, by image side; None: there are none.
    """

    kind: str
    relaxed: bool = False
    arguments: Callable[[int], Arguments] | None = None

    @property
    def has_cifar_stem(self) -> bool:
        """Whether `stem: cifar` is supported."""
        return self.relaxed or self.arguments is not None


def _patches(side: int) -> Arguments:
    """Return patches such that about 8 x 8 tokens cover an image."""
    patch = max(p for p in range(1, max(1, side // 8) + 1) if side % p == 0)
    return {"img_size": side, "patch_size": patch}


def _shifted_windows(side: int) -> Arguments:
    """Return patches and windows for a pyramid of three halvings that ends at 4x4 for 32 px."""
    patch = max(p for p in range(1, max(1, side // 32) + 1) if side % p == 0)
    return {"img_size": side, "patch_size": patch, "window_size": math.ceil(side / patch / 8)}


CONVOLUTIONAL = Family("convolutional", relaxed=True)
PATCHES = Family("transformer", arguments=_patches)
NO_STEM = {kind: Family(kind) for kind in ("convolutional", "transformer", "mlp", "recurrent", "state_space")}

UNCLASSIFIED = Family("unclassified")
EXCEPTIONS: dict[str, Family] = {}
OWN_KINDS = {
    "fully_connected": "mlp",
    "mlp": "mlp",
    "residual_mlp": "mlp",
    "convnet": "convolutional",
    "simple_cnn": "convolutional",
    "residual_cnn": "convolutional",
    "challenge_cnn": "convolutional",
    "imagenette_cnn": "convolutional",
    "fastnet": "convolutional",
}

FAMILIES: dict[str, Family] = {
    "resnet": CONVOLUTIONAL,
    "vision_transformer": PATCHES,
    "inception_v3": NO_STEM["convolutional"],
}


def relax_strides(inner: nn.Module, channels: int) -> None:
    """Make the first convolution 3x3 with stride 1 and undo early halvings until three are left, in place.

    Args:
        inner: a timm model with its stock stem.
        channels: of its images.
    """
    halvings = _halvings(inner, channels)
    excess = max(1, _total(halvings) - _HALVINGS)
    first = next(name for name, module in inner.named_modules() if name in halvings and _is_convolution(module))
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
        inner.forward_features(torch.zeros(1, channels, _TRACED_SIZE, _TRACED_SIZE))  # type: ignore[operator]
    inner.train(was_training)
    for handle in handles:
        handle.remove()
    return found


def _total(halvings: Mapping[str, tuple[int, int]]) -> int:
    return max((before + made for before, made in halvings.values()), default=0)


def _stride(module: nn.Module) -> int:
    stride = getattr(module, "stride", 1)
    return int(max(stride)) if isinstance(stride, tuple | list) else int(stride) if isinstance(stride, int) else 1


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
    taps = 3 if first else kernel + 1 - kernel % 2
    if taps != kernel:
        layer.weight = nn.Parameter(carried_over(layer.weight.detach(), taps))
        layer.kernel_size = (taps, taps)
    if not _pads_itself(layer):
        layer.padding = (taps // 2, taps // 2)


def _pads_itself(module: nn.Module) -> bool:
    """Whether a convolution pads to the "same" size by itself in `forward`, as TensorFlow's do."""
    return type(module).__name__.endswith("Same") or getattr(module, "same_pad", False)


def family_of(name: str, module: str) -> Family:
    """Return the row of a timm model: by its name where its module holds several kinds, else by its module."""
    for pattern, family in EXCEPTIONS.items():
        if fnmatch.fnmatchcase(name, pattern):
            return family
    return FAMILIES.get(module, UNCLASSIFIED)


def carried_over(kernels: Tensor, taps: int) -> Tensor:
    """Return kernels [O, I, k, k] resampled to [O, I, taps, taps], each one's sum kept.

    The sum is a kernel's answer to a flat image; keeping it keeps the scale that the following norm layer learnt.
    """
    resampled = F.interpolate(kernels, (taps, taps), mode="bilinear", align_corners=False, antialias=True)
    area = kernels.shape[-1] * kernels.shape[-2] / taps**2
    rough = resampled * area
    # Interpolation weighs edge taps unevenly; the rest of the sum is spread evenly.
    missing = kernels.sum((-2, -1), keepdim=True) - rough.sum((-2, -1), keepdim=True)
    return rough + missing / taps**2
