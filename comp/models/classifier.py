"""The one model type of the toolkit: pre-processing, then a network, then logits.

A checkpoint of a `Classifier` cannot meet wrongly normalised or wrongly sized images: mean, deviation and the resize
are its first layers, and are saved and moved with its weights.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Interpolation = Literal["bilinear", "bicubic"]


class Inner(Protocol):
    """What a network must offer beside `forward`; timm's models and `comp.models.coursework.layout.Network` do."""

    def __call__(self, images: Tensor) -> Tensor: ...

    def forward_features(self, images: Tensor) -> Tensor: ...

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor: ...

    def get_classifier(self) -> nn.Module: ...

    def group_matcher(self, coarse: bool = False) -> dict[str, Any] | Callable[[str], Any]: ...


# Added to an image's own deviation: a blank image stays blank, and noise in the dark is not blown up to a picture.
_LEAST_DEVIATION = 0.08


class Normalize(nn.Module):
    """Bring pixels to the scale the network was, or will be, trained on.

    Args:
        mean: one value a channel, of pixels in 0..1.
        std: one value a channel, of pixels in 0..1.
        each: whether every image is then brought to mean 0 and deviation 1 by itself, all channels together: what dims,
            brightens or fades a whole image can then hardly be seen.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float], *, each: bool = False) -> None:
        super().__init__()
        self.each = each
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1))  # [C, 1, 1]
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(-1, 1, 1))  # [C, 1, 1]

    def forward(self, images: Tensor) -> Tensor:
        """Return images [B, C, H, W], uint8 0..255 or floating 0..1, with zero mean and unit deviation."""
        pixels = images.float()
        if not images.is_floating_point():
            pixels = pixels / 255
        scaled = self._standardised(pixels)
        if self.each:
            variance, mean = torch.var_mean(scaled, (1, 2, 3), correction=0, keepdim=True)
            scaled = (scaled - mean) / (variance.sqrt() + _LEAST_DEVIATION)
        # The buffers' type is the network's: a model moved to bfloat16 gets bfloat16 images.
        return scaled.to(self.mean.dtype)

    def _standardised(self, pixels: Tensor) -> Tensor:
        if pixels.is_contiguous() or not pixels.is_contiguous(memory_format=torch.channels_last):
            return (pixels - self.mean).div_(self.std)
        # Three channels side by side are too short a row for vector instructions: a whole image row [W C] at a time
        # gives the same bits in a sixth of the time.
        rows = pixels.permute(0, 2, 3, 1).flatten(2)  # [B, H, W C]
        mean, std = (values.flatten().repeat(pixels.shape[3]) for values in (self.mean, self.std))  # [W C]
        return (rows - mean).div_(std).view(-1, *pixels.shape[2:], pixels.shape[1]).permute(0, 3, 1, 2)

    def extra_repr(self) -> str:
        """Return what `print(model)` shows."""
        return "then each image by itself" if self.each else ""


class Resize(nn.Module):
    """Bring images to the size a stock stem expects, on the device, inside the model.

    Args:
        size: height and width of the result in pixels.
        interpolation: `bilinear` or `bicubic`.
    """

    def __init__(self, size: tuple[int, int], interpolation: Interpolation) -> None:
        super().__init__()
        self.size = size
        self.interpolation = interpolation

    def forward(self, images: Tensor) -> Tensor:
        """Return floating images [B, C, H, W] as [B, C, *size]."""
        shrinks = images.shape[-2] > self.size[0] or images.shape[-1] > self.size[1]
        return F.interpolate(images, self.size, mode=self.interpolation, align_corners=False, antialias=shrinks)

    def extra_repr(self) -> str:
        """Return what `print(model)` shows."""
        return f"{self.size[0]} x {self.size[1]}, {self.interpolation}"


class Classifier(nn.Module):
    """A network that takes raw images.

    Args:
        inner: a timm model or one of ours; freeze names and layer groups are its own.
        mean: see `Normalize`.
        std: see `Normalize`.
        each: see `Normalize`.
        resize: the layer between normalisation and network; None keeps images as they come.
    """

    def __init__(
        self,
        inner: nn.Module,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        each: bool = False,
        resize: Resize | None = None,
    ) -> None:
        super().__init__()
        self.normalize = Normalize(mean, std, each=each)
        self.resize = resize or nn.Identity()
        self.inner = inner
        self.frozen_bn_layers: frozenset[str] = frozenset()
        """Names of the inner model's batch norm layers that stay in evaluation mode while training."""
        self.weights_source = "drawn"
        """Where the first weights came from, for people to read: a file with its SHA-256, or drawn."""
        self.non_trainable = frozenset(name for name, p in inner.named_parameters() if not p.requires_grad)
        """Names of the inner model's parameters that by its design are never trained."""

    @property
    def network(self) -> Inner:
        """The inner model, seen by what this toolkit calls on it."""
        return cast(Inner, self.inner)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [B, classes] of images [B, C, H, W]: uint8 0..255, or floating 0..1."""
        return self.network(self.prepare(images))

    def features(self, images: Tensor) -> Tensor:
        """Return what the last linear layer sees, [B, F], for probes."""
        features = self.network.forward_features(self.prepare(images))
        return self.network.forward_head(features, pre_logits=True)

    def prepare(self, images: Tensor) -> Tensor:
        """Return normalised, resized images [B, C, H', W'], as the inner model wants them."""
        prepared: Tensor = self.resize(self.normalize(images))
        return prepared

    @property
    def initialises_from_images(self) -> bool:
        """Whether `initialise` does anything."""
        return hasattr(self.inner, "initialise")

    def initialise(self, images: Tensor) -> None:
        """Let the network set itself up from training images [N, C, H, W] uint8, once, before the first step.

        Most networks have nothing to do here; `fastnet` takes its whitening layer from the images.
        """
        if self.initialises_from_images:
            with torch.no_grad():
                self.inner.initialise(self.prepare(images))  # type: ignore[operator]  # nn.Module types no method

    def train(self, mode: bool = True) -> "Classifier":
        """Set training or evaluation mode; frozen normalisation layers keep their statistics in both."""
        super().train(mode)
        for name in self.frozen_bn_layers:
            self.inner.get_submodule(name).eval()
        return self

    # timm's optimizers and schedulers ask a model the following. Without `group_matcher`, layer-wise decay would
    # silently put every parameter of a wrapped model into one layer.

    def group_matcher(self, coarse: bool = False) -> dict[str, Any] | Callable[[str], Any]:
        """Return the inner model's layer patterns or function, fitted to this module's parameter names."""
        if not hasattr(self.inner, "group_matcher"):  # a few of timm's families
            order = list(dict.fromkeys(_block(name) for name, _ in self.named_parameters()))
            return lambda name: order.index(_block(name))
        matcher = self.network.group_matcher(coarse=coarse)
        if callable(matcher):
            return lambda name: matcher(name.removeprefix("inner."))
        return {group: _prefixed(spec) for group, spec in matcher.items()}

    def no_weight_decay(self) -> set[str]:
        """Return names of parameters the inner model wants without weight decay."""
        names: set[str] = getattr(self.inner, "no_weight_decay", set)()
        return {f"inner.{name}" for name in names}

    def get_classifier(self) -> nn.Module:
        """Return the inner model's last layer."""
        return self.network.get_classifier()

    @property
    def default_cfg(self) -> Mapping[str, Any]:
        """What timm knows of the inner model's pretrained weights; empty for our own networks."""
        return cast(Mapping[str, Any], getattr(self.inner, "pretrained_cfg", {}))

    pretrained_cfg = default_cfg


def _prefixed(spec: Any) -> Any:
    """Return a timm group pattern, or its list of (pattern, suffix), so that it matches below `inner.`."""
    if spec is None:
        return None
    if isinstance(spec, str):
        # Patterns are matched from the start, so their own `^` marks nothing that the prefix does not.
        alternatives = spec.removeprefix("^").replace("|^", "|").replace("(^", "(")
        return rf"^inner\.(?:{alternatives})"
    return [(_prefixed(pattern), suffix) for pattern, suffix in spec]


def _block(name: str) -> str:
    """Return the block a parameter lies in: `inner.stages.0.blocks.1`, or its top-level module where none is numbered.

    Two numbers name stage and block; further ones lie inside the block.
    """
    parts = name.split(".")
    numbered = [index for index, part in enumerate(parts) if part.isdecimal()][:2]
    return ".".join(parts[: numbered[-1] + 1]) if numbered else ".".join(parts[:2])
