"""Layout of our networks: a body, a neck and a linear classifier, with the interface of timm's models."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from comp.runtime.errors import ModelError, unknown

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "identity": nn.Identity,
}


class Network(nn.Module):
    """Body, neck and classifier in sequence.

    Args:
        body: images [B, C, H, W] -> features, [B, F, H', W'] or [B, F].
        neck: features -> [B, F']: pooling, flattening, hidden linear layers, dropout.
        classifier: [B, F'] -> logits [B, classes].
    """

    def __init__(self, body: nn.Sequential, neck: nn.Sequential, classifier: nn.Linear) -> None:
        super().__init__()
        self.body = body
        self.neck = neck
        self.classifier = classifier

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [B, classes] of normalised images [B, C, H, W]."""
        return self.forward_head(self.forward_features(images))

    def forward_features(self, images: Tensor) -> Tensor:
        """Return the body's output, before pooling."""
        features: Tensor = self.body(images)
        return features

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Return logits [B, classes], or with `pre_logits` the classifier's input, [B, F']."""
        features = self.neck(features)
        logits: Tensor = features if pre_logits else self.classifier(features)
        return logits

    def get_classifier(self) -> nn.Module:
        """Return the last linear layer."""
        return self.classifier

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return timm's patterns that number parameters by layer; the classifier is the last layer."""
        return {"body": r"^body" if coarse else r"^body\.(\d+)", "neck": r"^neck" if coarse else r"^neck\.(\d+)"}


def activation_layer(name: str) -> nn.Module:
    """Return a new activation layer.

    Raises:
        ModelError: an unknown name.
    """
    if name not in ACTIVATIONS:
        raise ModelError(f"model.args.activation: {unknown('activation', name, ACTIVATIONS)}")
    return ACTIVATIONS[name]()


def halved(size: int, times: int, *, network: str) -> int:
    """Return an image side after `times` poolings by two.

    Raises:
        ModelError: less than one pixel is left.
    """
    if size >> times < 1:
        raise ModelError(
            f"model.name: {network} halves images {times} times; expected at least {1 << times} px, found {size}"
        )
    return size >> times
