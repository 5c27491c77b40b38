"""Model families and their `stem: cifar`: how timm models are adapted to small images.

Stock stems shrink images 4 to 16 times at once: at 32 px the last feature map of a ResNet is a single pixel. The cifar
stem makes a convolutional model's first convolution 3x3 with stride 1, removes early pooling and relaxes strides from
the front until at most three halvings are left, so that 32 px end at 4x4 (as in the CIFAR networks of He et al. 2016,
arXiv:1512.03385). Patch models get small patches, windowed ones small windows too. Pretrained first layers are kept:
resampled by `resample_kernel`, patches by timm.
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


@dataclass(frozen=True)
class Family:
    """A family of models: one timm module."""

    kind: str
    """Name in `competition.rules.banned_families`; anything with self-attention is a transformer."""
    relaxed: bool = False
    """Whether `relax_strides` makes its cifar stem."""
    arguments: Callable[[int, int], Arguments] | None = None
    """(height, width) -> the factory's arguments that make its cifar stem; None: no such arguments."""

    @property
    def has_cifar_stem(self) -> bool:
        """Whether `stem: cifar` is supported."""
        return self.relaxed or self.arguments is not None


def _patches(height: int, width: int) -> Arguments:
    """Return a patch size that gives about 8 x 8 tokens: 4 px at 32 px."""
    return {"patch_size": _divisor(height, width, at_most=min(height, width) // 8)}


def _windows(height: int, width: int) -> Arguments:
    """Return patch and window sizes for three halvings: at 32 px, 1 px and 4 tokens, which end at 4x4."""
    patch = _divisor(height, width, at_most=min(height, width) // 32)
    return {"patch_size": patch, "window_size": math.ceil(min(height, width) / patch / 8)}


def _divisor(height: int, width: int, *, at_most: int) -> int:
    common = math.gcd(height, width)
    return max(side for side in range(1, max(1, at_most) + 1) if common % side == 0)


CONVOLUTIONAL = Family("convolutional", relaxed=True)
HYBRID = Family("transformer", relaxed=True)  # attention after convolutions that shrink the image
PATCHES = Family("transformer", arguments=_patches)
WINDOWS = Family("transformer", arguments=_windows)
# Without a cifar stem: fixed stems, tables tied to one image size, or patches that no argument changes.
CONVOLUTIONAL_STOCK = Family("convolutional")
TRANSFORMER_STOCK = Family("transformer")
MLP = Family("mlp")
RECURRENT = Family("recurrent")
STATE_SPACE = Family("state_space")
UNCLASSIFIED = Family("unclassified")

FAMILIES: dict[str, Family] = {
    "beit": PATCHES,
    "byoanet": TRANSFORMER_STOCK,
    "byobnet": CONVOLUTIONAL,
    "cait": PATCHES,
    "coat": TRANSFORMER_STOCK,
    "convit": PATCHES,
    "convmixer": CONVOLUTIONAL,
    "convnext": CONVOLUTIONAL,
    "cpubone": HYBRID,
    "crossvit": TRANSFORMER_STOCK,
    "csatv2": TRANSFORMER_STOCK,
    "cspnet": CONVOLUTIONAL,
    "cspnext": CONVOLUTIONAL,
    "davit": HYBRID,
    "deepseek_vit": TRANSFORMER_STOCK,
    "deit": PATCHES,
    "densenet": CONVOLUTIONAL,
    "dla": CONVOLUTIONAL,
    "dpn": CONVOLUTIONAL,
    "edgenext": HYBRID,
    "efficientformer": TRANSFORMER_STOCK,
    "efficientformer_v2": TRANSFORMER_STOCK,
    "efficientnet": CONVOLUTIONAL,
    "efficientvim": STATE_SPACE,
    "efficientvit_mit": HYBRID,
    "efficientvit_msra": HYBRID,
    "eva": PATCHES,
    "fasternet": CONVOLUTIONAL,
    "fastvit": HYBRID,
    "focalnet": HYBRID,
    "gcvit": TRANSFORMER_STOCK,
    "gemma4_vit": TRANSFORMER_STOCK,
    "ghostnet": CONVOLUTIONAL,
    "hardcorenas": CONVOLUTIONAL,
    "hgnet": CONVOLUTIONAL,
    "hiera": TRANSFORMER_STOCK,
    "hieradet_sam2": TRANSFORMER_STOCK,
    "hrnet": CONVOLUTIONAL,
    "iformer": HYBRID,
    "inception_next": CONVOLUTIONAL,
    "inception_resnet_v2": CONVOLUTIONAL,
    "inception_v3": CONVOLUTIONAL,
    "inception_v4": CONVOLUTIONAL,
    "lcnetv2": CONVOLUTIONAL,
    "levit": TRANSFORMER_STOCK,
    "lowformer": HYBRID,
    "mambaout": CONVOLUTIONAL,
    "maxxvit": TRANSFORMER_STOCK,
    "metaformer": HYBRID,
    "mlp_mixer": MLP,
    "mobilenetv3": CONVOLUTIONAL,
    "mobilenetv5": TRANSFORMER_STOCK,
    "mobilevit": HYBRID,
    "mvitv2": TRANSFORMER_STOCK,
    "naflexvit": TRANSFORMER_STOCK,
    "nasnet": CONVOLUTIONAL,
    "nest": TRANSFORMER_STOCK,
    "nextvit": HYBRID,
    "nfnet": CONVOLUTIONAL,
    "pit": TRANSFORMER_STOCK,
    "pnasnet": CONVOLUTIONAL,
    "pvt_v2": HYBRID,
    "qwen3_vit": TRANSFORMER_STOCK,
    "rdnet": CONVOLUTIONAL,
    "regnet": CONVOLUTIONAL,
    "repghost": CONVOLUTIONAL,
    "repvit": CONVOLUTIONAL,
    "res2net": CONVOLUTIONAL,
    "resnest": CONVOLUTIONAL,
    "resnet": CONVOLUTIONAL,
    "resnetv2": CONVOLUTIONAL,
    "rexnet": CONVOLUTIONAL,
    "selecsls": CONVOLUTIONAL,
    "senet": CONVOLUTIONAL,
    "sequencer": RECURRENT,
    "shvit": TRANSFORMER_STOCK,
    "sknet": CONVOLUTIONAL,
    "starnet": CONVOLUTIONAL,
    "swiftformer": HYBRID,
    "swin_transformer": WINDOWS,
    "swin_transformer_v2": WINDOWS,
    "swin_transformer_v2_cr": WINDOWS,
    "tiny_vit": TRANSFORMER_STOCK,
    "tnt": TRANSFORMER_STOCK,
    "tresnet": CONVOLUTIONAL_STOCK,
    "twins": TRANSFORMER_STOCK,
    "vgg": CONVOLUTIONAL,
    "visformer": TRANSFORMER_STOCK,
    "vision_transformer": PATCHES,
    "vision_transformer_hybrid": TRANSFORMER_STOCK,
    "vision_transformer_relpos": PATCHES,
    "vision_transformer_sam": TRANSFORMER_STOCK,
    "vitamin": TRANSFORMER_STOCK,
    "volo": TRANSFORMER_STOCK,
    "vovnet": CONVOLUTIONAL,
    "xception": CONVOLUTIONAL,
    "xception_aligned": CONVOLUTIONAL,
    "xcit": TRANSFORMER_STOCK,
}

# Models whose timm module holds several kinds.
EXCEPTIONS: dict[str, Family] = {
    "mobilenetv4_hybrid*": TRANSFORMER_STOCK,
    "resnet*_clip": CONVOLUTIONAL_STOCK,  # their attention pool is tied to one image size
}

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


def family_of(name: str, module: str) -> Family:
    """Return a timm model's family: by name if its module holds several kinds, else by module."""
    for pattern, family in EXCEPTIONS.items():
        if fnmatch.fnmatchcase(name, pattern):
            return family
    return FAMILIES.get(module, UNCLASSIFIED)


# Halvings to keep: 32 px -> 4x4.
_HALVINGS = 3


# Large enough to trace every halving of a stock network without an empty map.
_TRACED_SIZE = 128


def relax_strides(inner: nn.Module, channels: int) -> None:
    """Make the first convolution 3x3 with stride 1 and remove early halvings until three are left, in place.

    Args:
        inner: a timm model with its stock stem.
        channels: of the images.
    """
    halvings = _trace_halvings(inner, channels)
    total = max((before + count for before, count in halvings.values()), default=0)
    excess = max(1, total - _HALVINGS)
    first = next((name for name, module in inner.named_modules() if _is_convolution(module)), None)
    for name, (before, _) in halvings.items():
        if before < excess:
            _relax(inner, name, first=name == first)


def _trace_halvings(inner: nn.Module, channels: int) -> dict[str, tuple[int, int]]:
    """Return layers that shrink the map: name -> (halvings before it, its own halvings), in execution order."""
    halvings: dict[str, tuple[int, int]] = {}

    def record(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            before, after = inputs[0].shape[-1], output.shape[-1]
            if before >= 1.5 * after:
                halvings[name] = (round(math.log2(_TRACED_SIZE / before)), round(math.log2(before / after)))

        return hook

    # Blocks have a `stride` too, but a convolution or pool inside shrinks the map.
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
    return halvings


def _stride(module: nn.Module) -> int:
    stride = getattr(module, "stride", 1)
    strides = stride if isinstance(stride, tuple | list) else (stride,)
    return max((value for value in strides if isinstance(value, int)), default=1)


def _is_convolution(module: nn.Module) -> bool:
    return isinstance(getattr(module, "weight", None), nn.Parameter) and hasattr(module, "kernel_size")


def _relax(inner: nn.Module, name: str, *, first: bool) -> None:
    # Some families define convolutions with torch's attributes but not its class.
    layer: Any = inner.get_submodule(name)
    if not _is_convolution(layer):  # a pool or a blur
        inner.set_submodule(name, nn.Identity())
        return
    layer.stride = (1, 1)
    kernel = layer.weight.shape[-1]
    taps = 3 if first and kernel > 1 else kernel + 1 - kernel % 2
    if taps != kernel:
        layer.weight = nn.Parameter(resample_kernel(layer.weight.detach(), taps))
        layer.kernel_size = (taps, taps)
    if not _pads_same(layer):
        padding = max(layer.dilation) * (taps // 2)
        layer.padding = (padding, padding)


def _pads_same(module: nn.Module) -> bool:
    """Whether a convolution pads to the "same" size in `forward`, as TensorFlow's do."""
    return type(module).__name__.endswith("Same") or getattr(module, "same_pad", False)


def resample_kernel(kernels: Tensor, taps: int) -> Tensor:
    """Resample kernels [O, I, k, k] to [O, I, taps, taps], keeping each kernel's sum.

    The sum is the response to a flat image, so the scale that the next norm layer learnt stays valid.
    """
    resampled = F.interpolate(kernels, (taps, taps), mode="bilinear", align_corners=False, antialias=True)
    area = kernels.shape[-1] * kernels.shape[-2] / taps**2
    scaled = resampled * area
    # Interpolation weighs edge taps unevenly; spread the rest of the sum evenly.
    missing = kernels.sum((-2, -1), keepdim=True) - scaled.sum((-2, -1), keepdim=True)
    return scaled + missing / taps**2
