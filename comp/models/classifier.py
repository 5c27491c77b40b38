"""The toolkit's model type: pre-processing and a network, from raw images to logits.

Normalisation and resize are layers of a `Classifier`, saved with its weights, so a checkpoint always gets images
normalised and sized as in training.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Interpolation = Literal["bilinear", "bicubic"]


class Inner(Protocol):
    """The interface of a network, as timm's models and `comp.models.coursework.layout.Network` have it."""

    def __call__(self, images: Tensor) -> Tensor: ...

    def forward_features(self, images: Tensor) -> Tensor: ...

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor: ...

    def get_classifier(self) -> nn.Module: ...

    def group_matcher(self, coarse: bool = False) -> dict[str, Any] | Callable[[str], Any]: ...


# Added to an image's standard deviation: a blank image stays blank, and noise in the dark is not amplified.
_STD_OFFSET = 0.08


class Normalize(nn.Module):
    """Normalise pixels by mean and standard deviation.

    Args:
        mean: one value per channel, of pixels in 0..1.
        std: one value per channel, of pixels in 0..1.
        per_image: then also normalise each image by its own mean and standard deviation over all channels, which
            removes global changes of brightness and contrast.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float], *, per_image: bool = False) -> None:
        super().__init__()
        self.per_image = per_image
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1))  # [C, 1, 1]
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(-1, 1, 1))  # [C, 1, 1]

    def forward(self, images: Tensor) -> Tensor:
        """Return images [B, C, H, W], uint8 0..255 or floating 0..1, normalised, in the buffers' dtype."""
        pixels = images.float()
        if not images.is_floating_point():
            pixels = pixels / 255
        scaled = self._standardised(pixels)
        if self.per_image:
            variance, mean = torch.var_mean(scaled, (1, 2, 3), correction=0, keepdim=True)
            scaled = (scaled - mean) / (variance.sqrt() + _STD_OFFSET)
        # The buffers have the network's dtype: a bfloat16 model gets bfloat16 images.
        return scaled.to(self.mean.dtype)

    def _standardised(self, pixels: Tensor) -> Tensor:
        if pixels.is_contiguous() or not pixels.is_contiguous(memory_format=torch.channels_last):
            return (pixels - self.mean).div_(self.std)
        # A row of three channels is too short for vector instructions; whole image rows [W C] give the same bits in a
        # sixth of the time.
        rows = pixels.permute(0, 2, 3, 1).flatten(2)  # [B, H, W C]
        mean, std = (values.flatten().repeat(pixels.shape[3]) for values in (self.mean, self.std))  # [W C]
        return (rows - mean).div_(std).view(-1, *pixels.shape[2:], pixels.shape[1]).permute(0, 3, 1, 2)

    def extra_repr(self) -> str:
        """Return the text in `print(model)`."""
        return "per image" if self.per_image else ""


class Resize(nn.Module):
    """Resize images on the device to the size that the network expects.

    Args:
        size: height and width in pixels.
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
        """Return the text in `print(model)`."""
        return f"{self.size[0]} x {self.size[1]}, {self.interpolation}"


class LabelScale(nn.Module):
    """Turn a standardised output into a number in the label's own unit; saved with the weights.

    Args:
        mean: of the training labels.
        std: of the training labels.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: float, std: float) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32))

    def forward(self, outputs: Tensor) -> Tensor:
        """Return outputs [B, 1] as numbers in float32."""
        return outputs.float() * self.std + self.mean


class Classifier(nn.Module):
    """A network with its pre-processing, which takes raw images.

    Args:
        inner: a timm model or one of ours; freezing and layer groups use its names.
        mean: see `Normalize`.
        std: see `Normalize`.
        per_image: see `Normalize`.
        resize: layer between normalisation and network; None keeps the images' size.
        label_scale: mean and standard deviation of the training labels where they are numbers; None for classes.
    """

    def __init__(
        self,
        inner: nn.Module,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        per_image: bool = False,
        resize: Resize | None = None,
        label_scale: tuple[float, float] | None = None,
    ) -> None:
        super().__init__()
        self.normalize = Normalize(mean, std, per_image=per_image)
        self.resize = resize or nn.Identity()
        self.inner = inner
        self.label_scale = LabelScale(*label_scale) if label_scale else nn.Identity()
        self.frozen_bn_layers: frozenset[str] = frozenset()
        """Names of the inner model's batch norm layers that stay in evaluation mode during training."""
        self.weights_source = "random, from the config's seed"
        """Where the initial weights came from, for people: a file with its SHA-256, or the seed."""
        self.non_trainable = frozenset(name for name, p in inner.named_parameters() if not p.requires_grad)
        """Names of the inner model's parameters that are never trained, by design."""

    @property
    def network(self) -> Inner:
        """The inner model, typed by the interface that comp uses."""
        return cast(Inner, self.inner)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [B, classes], or numbers [B, 1], of images [B, C, H, W]: uint8 0..255, or floating 0..1."""
        outputs: Tensor = self.label_scale(self.network(self.prepare(images)))
        return outputs

    def features(self, images: Tensor) -> Tensor:
        """Return the last linear layer's input, [B, F]."""
        features = self.network.forward_features(self.prepare(images))
        return self.network.forward_head(features, pre_logits=True)

    def prepare(self, images: Tensor) -> Tensor:
        """Return normalised, resized images [B, C, H', W'], the inner model's input."""
        prepared: Tensor = self.resize(self.normalize(images))
        return prepared

    @property
    def initialises_from_images(self) -> bool:
        """Whether `initialise` has an effect."""
        return hasattr(self.inner, "initialise")

    def initialise(self, images: Tensor) -> None:
        """Initialise layers from training images [N, C, H, W] uint8, once, before the first step.

        Only `fastnet` does: its whitening layer comes from the images.
        """
        if self.initialises_from_images:
            with torch.no_grad():
                self.inner.initialise(self.prepare(images))  # type: ignore[operator]  # nn.Module types no method

    def train(self, mode: bool = True) -> "Classifier":
        """Set training or evaluation mode; frozen batch norm layers stay in evaluation mode."""
        super().train(mode)
        for name in self.frozen_bn_layers:
            self.inner.get_submodule(name).eval()
        return self

    # timm's optimizers call the following. Without `group_matcher`, layer-wise decay would silently put every parameter
    # of a wrapped model into one layer.

    def group_matcher(self, coarse: bool = False) -> dict[str, Any] | Callable[[str], Any]:
        """Return the inner model's layer patterns or function, adapted to this module's parameter names."""
        if not hasattr(self.inner, "group_matcher"):  # a few of timm's families
            order = list(dict.fromkeys(_block(name) for name, _ in self.named_parameters()))
            return lambda name: order.index(_block(name))
        matcher = self.network.group_matcher(coarse=coarse)
        if callable(matcher):
            return lambda name: matcher(name.removeprefix("inner."))
        return {group: _prefixed(spec) for group, spec in matcher.items()}

    def no_weight_decay(self) -> set[str]:
        """Return names of the parameters that the inner model exempts from weight decay."""
        names: set[str] = getattr(self.inner, "no_weight_decay", set)()
        return {f"inner.{name}" for name in names}

    def get_classifier(self) -> nn.Module:
        """Return the inner model's last layer."""
        return self.network.get_classifier()

    @property
    def default_cfg(self) -> Mapping[str, Any]:
        """Timm's pretrained config of the inner model; empty for our own networks."""
        return cast(Mapping[str, Any], getattr(self.inner, "pretrained_cfg", {}))

    pretrained_cfg = default_cfg


def _prefixed(spec: Any) -> Any:
    """Return a timm group pattern, or a list of (pattern, suffix), that matches below `inner.`."""
    if spec is None:
        return None
    if isinstance(spec, str):
        # Patterns match from the start, so their own `^` is redundant.
        alternatives = spec.removeprefix("^").replace("|^", "|").replace("(^", "(")
        return rf"^inner\.(?:{alternatives})"
    return [(_prefixed(pattern), suffix) for pattern, suffix in spec]


def _block(name: str) -> str:
    """Return a parameter's block, such as `inner.stages.0.blocks.1`; without numbers, its top-level module.

    The first two numbers are stage and block.
    """
    parts = name.split(".")
    numbered = [index for index, part in enumerate(parts) if part.isdecimal()][:2]
    return ".".join(parts[: numbered[-1] + 1]) if numbered else ".".join(parts[:2])
