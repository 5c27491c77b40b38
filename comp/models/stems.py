"""How each family of timm's models is fitted to small images (`stem: cifar`), and what the rules call it.

Stock stems throw away 3/4 to 15/16 of the pixels of an image at once: at 32 px the last feature map of a ResNet is a
single pixel. Here a convolutional model's first convolution becomes 3x3 with stride 1, its early pooling goes, and
strides are relaxed from the front until at most three halvings are left, so 32 px end at 4x4 (the stem of He et al.
2016's CIFAR networks, arXiv:1512.03385). Patch models get small patches instead, windowed ones small windows too.
Pretrained first layers are carried over: by `strides.carried_over`, and for patches by timm's own resampling.
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
    """What is known of the models of one timm module."""

    kind: str
    """What `competition.rules.banned_families` calls them; anything with self-attention is a transformer."""
    relaxed: bool = False
    """Whether `strides.relax_strides` makes its cifar stem."""
    arguments: Callable[[int, int], Arguments] | None = None
    """From image height and width, the factory's arguments that make its cifar stem; None: there are none."""

    @property
    def has_cifar_stem(self) -> bool:
        """Whether `stem: cifar` is supported."""
        return self.relaxed or self.arguments is not None


def _patches(height: int, width: int) -> Arguments:
    """Return patches such that about 8 x 8 tokens cover an image: 4 px at 32 px."""
    return {"patch_size": _divisor(height, width, at_most=min(height, width) // 8)}


def _windows(height: int, width: int) -> Arguments:
    """Return patches and windows for a pyramid of three halvings: 1 px and 4 tokens at 32 px, which end at 4x4."""
    patch = _divisor(height, width, at_most=min(height, width) // 32)
    return {"patch_size": patch, "window_size": math.ceil(min(height, width) / patch / 8)}


def _divisor(height: int, width: int, *, at_most: int) -> int:
    both = math.gcd(height, width)
    return max(side for side in range(1, max(1, at_most) + 1) if both % side == 0)


CONVOLUTIONAL = Family("convolutional", relaxed=True)
HYBRID = Family("transformer", relaxed=True)  # attention after convolutions that shrink the image
PATCHES = Family("transformer", arguments=_patches)
WINDOWS = Family("transformer", arguments=_windows)
# Kinds only: stems of fixed size, tables tied to one image size, or patches their factories do not let go of.
CONVOLUTIONAL_AS_IT_IS = Family("convolutional")
TRANSFORMER_AS_IT_IS = Family("transformer")
MLP = Family("mlp")
RECURRENT = Family("recurrent")
STATE_SPACE = Family("state_space")
UNCLASSIFIED = Family("unclassified")

FAMILIES: dict[str, Family] = {
    "beit": PATCHES,
    "byoanet": TRANSFORMER_AS_IT_IS,
    "byobnet": CONVOLUTIONAL,
    "cait": PATCHES,
    "coat": TRANSFORMER_AS_IT_IS,
    "convit": PATCHES,
    "convmixer": CONVOLUTIONAL,
    "convnext": CONVOLUTIONAL,
    "cpubone": HYBRID,
    "crossvit": TRANSFORMER_AS_IT_IS,
    "csatv2": TRANSFORMER_AS_IT_IS,
    "cspnet": CONVOLUTIONAL,
    "cspnext": CONVOLUTIONAL,
    "davit": HYBRID,
    "deepseek_vit": TRANSFORMER_AS_IT_IS,
    "deit": PATCHES,
    "densenet": CONVOLUTIONAL,
    "dla": CONVOLUTIONAL,
    "dpn": CONVOLUTIONAL,
    "edgenext": HYBRID,
    "efficientformer": TRANSFORMER_AS_IT_IS,
    "efficientformer_v2": TRANSFORMER_AS_IT_IS,
    "efficientnet": CONVOLUTIONAL,
    "efficientvim": STATE_SPACE,
    "efficientvit_mit": HYBRID,
    "efficientvit_msra": HYBRID,
    "eva": PATCHES,
    "fasternet": CONVOLUTIONAL,
    "fastvit": HYBRID,
    "focalnet": HYBRID,
    "gcvit": TRANSFORMER_AS_IT_IS,
    "gemma4_vit": TRANSFORMER_AS_IT_IS,
    "ghostnet": CONVOLUTIONAL,
    "hardcorenas": CONVOLUTIONAL,
    "hgnet": CONVOLUTIONAL,
    "hiera": TRANSFORMER_AS_IT_IS,
    "hieradet_sam2": TRANSFORMER_AS_IT_IS,
    "hrnet": CONVOLUTIONAL,
    "iformer": HYBRID,
    "inception_next": CONVOLUTIONAL,
    "inception_resnet_v2": CONVOLUTIONAL,
    "inception_v3": CONVOLUTIONAL,
    "inception_v4": CONVOLUTIONAL,
    "lcnetv2": CONVOLUTIONAL,
    "levit": TRANSFORMER_AS_IT_IS,
    "lowformer": HYBRID,
    "mambaout": CONVOLUTIONAL,
    "maxxvit": TRANSFORMER_AS_IT_IS,
    "metaformer": HYBRID,
    "mlp_mixer": MLP,
    "mobilenetv3": CONVOLUTIONAL,
    "mobilenetv5": TRANSFORMER_AS_IT_IS,
    "mobilevit": HYBRID,
    "mvitv2": TRANSFORMER_AS_IT_IS,
    "naflexvit": TRANSFORMER_AS_IT_IS,
    "nasnet": CONVOLUTIONAL,
    "nest": TRANSFORMER_AS_IT_IS,
    "nextvit": HYBRID,
    "nfnet": CONVOLUTIONAL,
    "pit": TRANSFORMER_AS_IT_IS,
    "pnasnet": CONVOLUTIONAL,
    "pvt_v2": HYBRID,
    "qwen3_vit": TRANSFORMER_AS_IT_IS,
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
    "shvit": TRANSFORMER_AS_IT_IS,
    "sknet": CONVOLUTIONAL,
    "starnet": CONVOLUTIONAL,
    "swiftformer": HYBRID,
    "swin_transformer": WINDOWS,
    "swin_transformer_v2": WINDOWS,
    "swin_transformer_v2_cr": WINDOWS,
    "tiny_vit": TRANSFORMER_AS_IT_IS,
    "tnt": TRANSFORMER_AS_IT_IS,
    "tresnet": CONVOLUTIONAL_AS_IT_IS,
    "twins": TRANSFORMER_AS_IT_IS,
    "vgg": CONVOLUTIONAL,
    "visformer": TRANSFORMER_AS_IT_IS,
    "vision_transformer": PATCHES,
    "vision_transformer_hybrid": TRANSFORMER_AS_IT_IS,
    "vision_transformer_relpos": PATCHES,
    "vision_transformer_sam": TRANSFORMER_AS_IT_IS,
    "vitamin": TRANSFORMER_AS_IT_IS,
    "volo": TRANSFORMER_AS_IT_IS,
    "vovnet": CONVOLUTIONAL,
    "xception": CONVOLUTIONAL,
    "xception_aligned": CONVOLUTIONAL,
    "xcit": TRANSFORMER_AS_IT_IS,
}

# Models whose timm module holds several kinds.
EXCEPTIONS: dict[str, Family] = {
    "mobilenetv4_hybrid*": TRANSFORMER_AS_IT_IS,
    "resnet*_clip": CONVOLUTIONAL_AS_IT_IS,  # their attention pool is tied to one image size
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
    """Return the row of a timm model: by its name where its module holds several kinds, else by its module."""
    for pattern, family in EXCEPTIONS.items():
        if fnmatch.fnmatchcase(name, pattern):
            return family
    return FAMILIES.get(module, UNCLASSIFIED)


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
