"""Batch norm folded into convolutions: the same logits from fewer layers, or the network as it was."""

import pytest
import torch
from torch import Tensor, nn

from comp.config import ModelConfig
from comp.inference.fuse_bn import BatchNormFuser
from comp.models import zoo

IMAGES = torch.randint(0, 256, (12, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def unsettled(model: nn.Module) -> nn.Module:
    """Return the model in evaluation mode with statistics, scales and shifts that a training could have left."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.3, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
            if module.weight is not None:
                nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
                nn.init.normal_(module.bias, 0, 0.2, generator=generator)
    return model.eval()


def left(model: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


@pytest.mark.parametrize(
    ("name", "stem", "kept"),
    [
        ("resnet18", "cifar", 0),
        ("tf_efficientnet_lite0", "stock", 0),
        ("fastnet", "stock", 3),  # a pool stands between
        ("residual_cnn", "stock", None),
        ("densenet121", "cifar", None),  # normalises before it convolves
    ],
)
def test_a_folded_network_says_the_same(name: str, stem: str, kept: int | None) -> None:
    config = ModelConfig(name=name, stem=stem)
    model = zoo.build(config, classes=5, image_shape=(3, 32, 32), mean=[0.5] * 3, std=[0.25] * 3, seed=0)
    model, before = unsettled(model), left(model)
    folded = BatchNormFuser(changes=False).fuse(model, IMAGES)
    if kept is not None:
        assert left(folded) == kept < before
    with torch.inference_mode():
        torch.testing.assert_close(folded(IMAGES), model(IMAGES), rtol=1e-4, atol=1e-4)
    assert left(model) == before  # the model itself is left alone


class Watched(nn.Module):
    """A convolution whose output goes elsewhere too, past its batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 5)

    def forward(self, images: Tensor) -> Tensor:
        raw = self.conv(images.float() / 255)
        logits: Tensor = self.head((self.bn(raw) + raw).mean((2, 3)))
        return logits


class Standardised(nn.Conv2d):
    """A convolution that computes with other weights than it holds."""

    def forward(self, images: Tensor) -> Tensor:
        weight = self.weight / self.weight.std((1, 2, 3), keepdim=True)
        return nn.functional.conv2d(images.float() / 255, weight, self.bias)


class Shared(nn.Module):
    """One batch norm after two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.bn, self.head = (
            nn.Conv2d(3, 4, 3),
            nn.Conv2d(3, 4, 3),
            nn.BatchNorm2d(4),
            nn.Linear(4, 5),
        )

    def forward(self, images: Tensor) -> Tensor:
        pixels = images.float() / 255
        logits: Tensor = self.head((self.bn(self.one(pixels)) + self.bn(self.two(pixels))).mean((2, 3)))
        return logits


@pytest.mark.parametrize(
    "model",
    [
        Watched(),
        Shared(),
        nn.Sequential(Standardised(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)),
    ],
    ids=["watched", "shared", "standardised"],
)
def test_a_network_that_folding_would_change_is_left_as_it_is(model: nn.Module) -> None:
    model = unsettled(model)
    assert BatchNormFuser(changes=False).fuse(model, IMAGES) is model


class AsOnAmpere(nn.Conv2d):
    """A convolution that keeps 10 bits of its operands, as TF32 does, unless that is switched off."""

    def forward(self, images: Tensor) -> Tensor:
        if torch.backends.cudnn.conv.fp32_precision == "ieee":
            return super().forward(images)
        images, weight = (x.half().float() for x in (images, self.weight))  # float16 has 10 bits, too
        return self._conv_forward(images, weight, self.bias)


def test_a_network_that_multiplies_in_tf32_is_folded_and_its_settings_are_given_back() -> None:
    generator = torch.Generator().manual_seed(1)
    layers = [layer for _ in range(24) for layer in (AsOnAmpere(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())]
    model = nn.Sequential(*layers, nn.Flatten())
    for parameter in model.parameters():
        nn.init.normal_(parameter, 0.1, 0.3, generator=generator)
    images = torch.randn(8, 8, 4, 4, generator=generator)
    for _ in range(30):
        model(images)  # settles the statistics
    model.eval()
    before = torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision
    assert left(BatchNormFuser(changes=False).fuse(model, images)) == 0
    assert (torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision) == before


def test_pairs_are_found_once_and_folded_with_the_statistics_of_the_day() -> None:
    config = ModelConfig(name="resnet18", stem="cifar")
    model = zoo.build(config, classes=5, image_shape=(3, 32, 32), mean=[0.5] * 3, std=[0.25] * 3, seed=0).eval()
    folding = BatchNormFuser(changes=True)
    first = folding.fuse(model, IMAGES)
    unsettled(model)  # as an adaptation to the next block does
    second = folding.fuse(model, IMAGES)
    with torch.inference_mode():
        assert not torch.allclose(first(IMAGES), second(IMAGES), atol=1e-3)
        torch.testing.assert_close(second(IMAGES), model(IMAGES), rtol=1e-4, atol=1e-4)
