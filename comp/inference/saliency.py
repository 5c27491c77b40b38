"""What a network looks at: Grad-CAM of convolutions, attention rollout of transformers, else smoothed gradients."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from comp.models.classifier import Classifier

_AT_A_TIME = 4  # images; large ones with all their activations fill the memory
_COPIES, _NOISE = 8, 0.1  # noisy copies of an image, and the noise's deviation, of pixels in 0..1
_BLUR = 5  # pixels; single pixels' gradients are noise
_MAX_LINEAR = 2  # of places, after the last convolution: ConvNeXt's last block has two


@dataclass
class _Layers:
    """Sees a network's layers as they compute.

    Attributes:
        linear: linear layers that have computed places or tokens since the last convolution; None before a convolution.
        features: the last output with two spatial directions, [B, C, h, w].
    """

    linear: int | None = None
    features: Tensor | None = None

    def see(self, module: nn.Module, _: object, output: object) -> None:
        """Note a layer's output; a forward hook."""
        if not isinstance(output, Tensor):
            return
        if isinstance(module, nn.Conv2d):
            self.linear = 0
        if isinstance(module, nn.Linear) and output.ndim > 2 and self.linear is not None:
            self.linear += 1
        if output.ndim == 4 and min(output.shape[2:]) > 1:
            self.features = output

    @property
    def is_convolutional(self) -> bool:
        """Whether it convolves up to its end; transformers only cut an image into patches so, at the start."""
        return self.linear is not None and self.linear <= _MAX_LINEAR


def explain(model: Classifier, images: NDArray[np.uint8]) -> tuple[str, NDArray[np.float32]]:
    """Return how much each pixel spoke for the network's answer, and the method.

    Convolutional networks: Grad-CAM (Selvaraju et al. 2017, arXiv:1610.02391) of the last features with two spatial
    directions. Transformers whose attention maps can be had: attention rollout (Abnar and Zuidema 2020,
    arXiv:2005.00928), which is the same for each answer. Others: the mean squared gradient by pixel over noisy copies
    (SmoothGrad, Smilkov et al. 2017, arXiv:1706.03825), slightly blurred.

    Args:
        model: on its device; its mode and gradients stay as they are.
        images: [N, H, W, C], at least one.

    Returns:
        The method, and maps [N, H, W] from 0 to 1, each with a maximum of 1 unless it is 0 everywhere.
    """
    was_training = model.training
    model.eval()
    layers = _Layers()
    hooks = [module.register_forward_hook(layers.see) for module in model.inner.modules()]
    try:
        starts = range(0, len(images), _AT_A_TIME)
        parts = [_explain_part(model, images[start : start + _AT_A_TIME], layers) for start in starts]
    finally:
        for hook in hooks:
            hook.remove()
        model.train(was_training)
    return parts[0][0], np.concatenate([maps for _, maps in parts])


def _explain_part(model: Classifier, images: NDArray[np.uint8], layers: _Layers) -> tuple[str, NDArray[np.float32]]:
    device = next(model.parameters()).device
    pixels = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).to(device).float() / 255
    with torch.enable_grad():
        score = model(pixels.requires_grad_()).amax(1).sum()
        if layers.is_convolutional and layers.features is not None:
            method, maps = "Grad-CAM", _grad_cam(score, layers.features)
        elif (rolled := _attention_rollout(model, pixels.detach())) is not None:
            method, maps = "attention rollout", rolled
        else:
            method, maps = "SmoothGrad", _smooth_gradient(model, pixels.detach())
    maps = F.interpolate(maps.nan_to_num(), pixels.shape[2:], mode="bilinear", align_corners=False)[:, 0]  # [N, H, W]
    highest = maps.amax((1, 2), keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    shares: NDArray[np.float32] = (maps / highest).cpu().numpy()
    return method, shares


def _grad_cam(score: Tensor, features: Tensor) -> Tensor:
    """Return class activation maps [N, 1, h, w]."""
    (gradient,) = torch.autograd.grad(score, features)
    weights = gradient.float().mean((2, 3), keepdim=True)  # [N, C, 1, 1]
    return F.relu((weights * features.detach().float()).sum(1, keepdim=True))


def _attention_rollout(model: Classifier, pixels: Tensor) -> Tensor | None:
    """Return how much of each patch is in the tokens that are read out [N, 1, h, w], above the least.

    None unless each block of a timm network has one attention map of all its tokens: windows and reduced keys do not.
    """
    inner: Any = model.inner
    layers, grid = _attention_layers(inner), getattr(getattr(inner, "patch_embed", None), "grid_size", None)
    if not layers or not grid:
        return None
    maps, first = _attention_maps(model, pixels, layers), inner.num_prefix_tokens
    tokens = first + grid[0] * grid[1]
    if len(maps) != len(layers) or any(each.shape != (len(pixels), tokens, tokens) for each in maps):
        return None
    passed = itself = torch.eye(tokens, device=pixels.device)
    for attention in maps:
        passed = (attention + itself) / 2 @ passed  # half of a token skips the block
    read = passed[:, 0] if inner.global_pool == "token" else passed[:, first:].mean(1)
    shares: Tensor = read[:, first:].reshape(-1, 1, grid[0], grid[1])
    return shares - shares.amin((2, 3), keepdim=True)


def _attention_layers(inner: Any) -> list[Any]:
    """Return the attention layers of a timm network, one for each block; empty for any other network."""
    blocks = getattr(inner, "blocks", None)
    if not isinstance(blocks, nn.Sequential | nn.ModuleList) or not hasattr(inner, "num_prefix_tokens"):
        return []
    layers = [layer for layer in blocks.modules() if hasattr(layer, "fused_attn")]
    have_maps = all(isinstance(getattr(layer, "attn_drop", None), nn.Dropout) for layer in layers)
    return layers if have_maps and len(layers) == len(blocks) else []


def _attention_maps(model: Classifier, pixels: Tensor, layers: list[Any]) -> list[Tensor]:
    """Return each layer's attention, its heads' mean [N, T, T] where each token attends to each."""
    maps: list[Tensor] = []
    fused = [layer.fused_attn for layer in layers]
    hooks = [
        layer.attn_drop.register_forward_hook(lambda _, __, attention: maps.append(attention.float().mean(1)))
        for layer in layers
    ]
    try:
        for layer in layers:
            layer.fused_attn = False  # the fused kernel has no map to see
        with torch.no_grad():
            model(pixels)
    finally:
        for layer, was_fused, hook in zip(layers, fused, hooks, strict=True):
            layer.fused_attn = was_fused
            hook.remove()
    return maps


def _smooth_gradient(model: Classifier, pixels: Tensor) -> Tensor:
    """Return blurred mean squared gradients [N, 1, H, W]."""
    generator = torch.Generator().manual_seed(0)
    total = torch.zeros_like(pixels[:, :1])
    for _ in range(_COPIES):
        noise = _NOISE * torch.randn(pixels.shape, generator=generator).to(pixels.device)
        noisy = (pixels + noise).requires_grad_()
        (gradient,) = torch.autograd.grad(model(noisy).amax(1).sum(), noisy)
        total += gradient.float().square().sum(1, keepdim=True)
    return F.avg_pool2d(total, _BLUR, stride=1, padding=_BLUR // 2)
