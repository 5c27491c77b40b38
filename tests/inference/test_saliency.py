"""What a network looks at: the maps are bright where its answer comes from, and nowhere else."""

from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from comp.inference import saliency
from comp.models.classifier import Classifier

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), np.uint8)
LARGER = np.repeat(np.repeat(IMAGES[:2], 2, 1), 2, 2)
SWIN = {"img_size": 32, "window_size": 4, "embed_dim": 12, "depths": (1, 1), "num_heads": (1, 2)}


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
        ("test_vit", {"img_size": 32, "patch_size": 4}, "attention rollout"),
        ("test_convnext", {}, "Grad-CAM"),
        ("swin_tiny_patch4_window7_224", SWIN, "SmoothGrad"),
    ],
)
def test_the_method_fits_the_network(name: str, options: dict[str, Any], method: str) -> None:
    found, maps = saliency.explain(classifier(timm.create_model(name, num_classes=4, **options)), LARGER)
    assert (found, maps.shape) == (method, (2, 32, 32))


@pytest.mark.parametrize("pool", ["token", "avg"])
def test_rollout_multiplies_the_attention_of_all_blocks(pool: str) -> None:
    torch.manual_seed(0)
    network = timm.create_model("test_vit", num_classes=4, img_size=32, patch_size=4, global_pool=pool)
    for block in network.blocks:
        nn.init.normal_(block.attn.qkv.weight, std=0.5)  # else all tokens get the same attention
    model = classifier(network).eval()
    inputs: list[Tensor] = []
    hooks = [block.attn.register_forward_hook(lambda _, args, __: inputs.append(args[0])) for block in network.blocks]
    with torch.no_grad():
        before = model(torch.from_numpy(LARGER).permute(0, 3, 1, 2))
    for hook in hooks:
        hook.remove()
    passed = torch.eye(65)
    for block, tokens in zip(network.blocks, inputs, strict=True):
        heads = block.attn.num_heads
        query, key, _ = block.attn.qkv(tokens).unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)  # [B, heads, T, D]
        attention = (query @ key.mT / key.shape[-1] ** 0.5).softmax(-1).mean(1)
        passed = (0.5 * attention + 0.5 * torch.eye(65)) @ passed
    read = (passed[:, 0] if pool == "token" else passed[:, 1:].mean(1))[:, 1:].reshape(2, 1, 8, 8).detach()
    expected = F.interpolate(read - read.amin((2, 3), keepdim=True), (32, 32), mode="bilinear")[:, 0]
    found, maps = saliency.explain(model, LARGER)
    assert found == "attention rollout"
    assert maps == pytest.approx((expected / expected.amax((1, 2), keepdim=True)).numpy(), abs=2e-3)
    with torch.no_grad():
        assert torch.equal(model(torch.from_numpy(LARGER).permute(0, 3, 1, 2)), before)
