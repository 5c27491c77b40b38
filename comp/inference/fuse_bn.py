"""Fuse batch norm into the preceding convolution for faster inference (Jacob et al. 2018, arXiv:1712.05877, 3.2).

One traced forward pass finds which batch norm follows which convolution, so that any network works. If the fused
network's logits differ, the network stays unfused.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

_COMPARED_IMAGES = 8
_TOLERANCE = 1e-3  # relative to the largest logit; fusing changes float32 logits by about 1e-6

_Pair = tuple[str, str]  # convolution, batch norm


class BatchNormFuser:
    """Finds a network's pairs of convolution and batch norm once, and fuses them in a copy.

    Args:
        changes: the model's weights change between calls, as with adaptation.
    """

    def __init__(self, *, changes: bool) -> None:
        self._changes = changes
        self._pairs: list[_Pair] | None = None
        self._fused: nn.Module | None = None

    def fuse(self, model: nn.Module, images: Tensor) -> nn.Module:
        """Return a copy of the model with batch norm fused, or the model itself where that is not possible.

        It runs eagerly: torch.compile gains at most 4 % on 950,000 images on a CPU, and makes tf_efficientnet_lite0
        five times slower (`benchmarks/compiled_prediction.py`, docs/lab/2026-11-25-compiled-prediction.md). GPUs were
        not measured.

        Args:
            model: in evaluation mode.
            images: [B, C, H, W] uint8 on its device; used in the first call.
        """
        if self._pairs is None:
            self._pairs = _find_pairs(model, images[:_COMPARED_IMAGES])
        if self._fused is None or self._changes:
            self._fused = _fuse(model, self._pairs) if self._pairs else model
        return self._fused


@contextmanager
def _without_tf32() -> Iterator[None]:
    """Multiply float32 in full: TF32 keeps 10 bits, and its logits differ by as much as those of a wrong network."""
    settings: tuple[Any, ...] = torch.backends.cudnn.conv, torch.backends.cuda.matmul  # type: ignore[attr-defined]
    before = [setting.fp32_precision for setting in settings]
    for setting in settings:
        setting.fp32_precision = "ieee"
    try:
        yield
    finally:
        for setting, precision in zip(settings, before, strict=True):
            setting.fp32_precision = precision


@torch.inference_mode()
@_without_tf32()
def _find_pairs(model: nn.Module, images: Tensor) -> list[_Pair]:
    """Return pairs of convolution and batch norm to fuse; none if the logits, in full float32, would differ."""
    outputs: dict[int, tuple[str, Tensor]] = {}  # holds the tensors, so that ids stay unique
    pairs: list[_Pair] = []

    def leave(name: str, _module: nn.Module, _inputs: Any, output: Tensor) -> None:
        outputs[id(output)] = (name, output)

    def enter(name: str, _module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if id(inputs[0]) in outputs:
            pairs.append((outputs[id(inputs[0])][0], name))

    hooks = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            hooks.append(module.register_forward_hook(partial(leave, name)))
        elif isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            hooks.append(module.register_forward_pre_hook(partial(enter, name)))
    try:
        before = model(images)
    finally:
        for hook in hooks:
            hook.remove()
    names = [name for pair in pairs for name in pair]
    if not pairs or len(set(names)) < len(names):  # a module used twice
        return []
    difference = (_fuse(model, pairs)(images) - before).abs().max()
    return pairs if bool(difference <= _TOLERANCE * before.abs().max()) else []


@torch.no_grad()
def _fuse(model: nn.Module, pairs: Sequence[_Pair]) -> nn.Module:
    fused = copy.deepcopy(model)
    for convolution, norm in pairs:
        conv, bn = fused.get_submodule(convolution), fused.get_submodule(norm)
        assert isinstance(conv, nn.Conv2d)
        assert isinstance(bn, nn.BatchNorm2d)
        assert bn.running_mean is not None
        assert bn.running_var is not None
        conv.weight, conv.bias = fuse_conv_bn_weights(
            conv.weight, conv.bias, bn.running_mean, bn.running_var, bn.eps, bn.weight, bn.bias
        )
        parent, _, child = norm.rpartition(".")
        setattr(fused.get_submodule(parent), child, _drop_and_activation(bn))
    return fused


def _drop_and_activation(norm: nn.Module) -> nn.Module:
    """Return the dropout and activation inside timm's batch norms."""
    parts = [part for name in ("drop", "act") if isinstance(part := getattr(norm, name, None), nn.Module)]
    return nn.Sequential(*parts) if parts else nn.Identity()
