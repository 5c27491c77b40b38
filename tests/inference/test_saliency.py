"""What a network looks at: the maps are bright where its answer comes from, and nowhere else."""

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

from comp.inference import saliency
from comp.models.classifier import Classifier

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), np.uint8)


class LowerRight(nn.Module):
    """A network whose answer comes from the lower right quarter alone."""

    def __init__(self, layers: nn.Sequential) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [B, 2]."""
        mask = torch.zeros_like(images)
        mask[..., 8:, 8:] = 1
        return self.layers(images * mask)


def classifier(inner: nn.Module) -> Classifier:
    return Classifier(inner, mean=(0.5,) * 3, std=(0.25,) * 3).train()


CONVOLUTION = [nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
DENSE = [nn.Flatten(), nn.Linear(768, 8), nn.Tanh()]


@pytest.mark.parametrize(
    ("layers", "method"),
    [([*CONVOLUTION, nn.Linear(8, 2)], "Grad-CAM"), ([*DENSE, nn.Linear(8, 2)], "SmoothGrad")],
)
def test_the_map_is_bright_where_the_answer_comes_from(layers: list[nn.Module], method: str) -> None:
    torch.manual_seed(0)
    model = classifier(LowerRight(nn.Sequential(*layers))).requires_grad_(False)
    parameters = list(model.parameters())
    parameters[-2].abs_()  # every feature speaks for the answer
    found, maps = saliency.explain(model, IMAGES)
    assert found == method
    assert maps.shape == (6, 16, 16)
    assert maps.min() >= 0
    assert maps.max((1, 2)) == pytest.approx(1)
    assert (maps[:, 8:, 8:].mean((1, 2)) > 5 * maps[:, :6, :6].mean((1, 2))).all()
    assert model.training
    assert not any(parameter.requires_grad for parameter in parameters)
    assert np.array_equal(saliency.explain(model, IMAGES)[1], maps)


@pytest.mark.parametrize(
    ("name", "options", "method"),
    [
        ("resnet10t", {}, "Grad-CAM"),
        ("test_vit", {"img_size": 32, "patch_size": 4}, "SmoothGrad"),
        ("test_convnext", {}, "Grad-CAM"),
    ],
)
def test_transformers_have_gradients_and_convolutional_networks_activations(
    name: str, options: dict[str, int], method: str
) -> None:
    images = np.repeat(np.repeat(IMAGES[:2], 2, 1), 2, 2)
    found, maps = saliency.explain(classifier(timm.create_model(name, num_classes=4, **options)), images)
    assert (found, maps.shape) == (method, (2, 32, 32))
