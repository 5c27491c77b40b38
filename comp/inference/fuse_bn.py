"""Batch norm folded into the convolution before it: in evaluation both are linear, so one of them can do it all.

After Jacob et al. 2018, arXiv:1712.05877, section 3.2, by torch's own arithmetic. Which batch norm follows which
convolution is seen by watching one pass, so that any network will do; that nothing else looks between the two is
checked by comparing logits, and a network that does not agree is left as it is.
"""

import copy
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

_COMPARED_IMAGES = 8
_TOLERANCE = 1e-3  # of the largest logit; folding itself moves float32 logits by some 1e-6 of it

_Pair = tuple[str, str]  # convolution, batch norm


class BatchNormFuser:
    """Finds a network's pairs at the first call and folds them, then and afterwards, in a copy.

    Args:
        changes: whether the model is another one at every call, as an adaptation makes it.
    """

    def __init__(self, *, changes: bool) -> None:
        self._changes = changes
        self._pairs: list[_Pair] | None = None
        self._folded: nn.Module | None = None

    def fuse(self, model: nn.Module, images: Tensor) -> nn.Module:
        """Return the network to predict with: a copy of the model with batch norm folded, or the model itself.

        It is run eagerly: graphs were measured (`benchmarks/compiled_prediction.py`, docs/LOG.md) and are no candidate.
        On one CPU thread in bf16, torch.compile of a folded network brings fastnet 3 %, resnet18 2 % and residual_cnn
        5 to 7 %, and makes tf_efficientnet_lite0 five times slower; building takes 15 to 46 s, so that a plain
        prediction of 950,000 images gains 4 % at most, and another choice must be 5 % faster here. Freezing constants
        adds nothing. TorchScript's frozen trace builds in a second and brings tf_efficientnet_lite0 16 to 18 % and the
        others nothing, but torch 2.14 calls it deprecated. On GPUs nothing was measured.

        Args:
            model: in evaluation mode.
            images: [B, C, H, W] uint8 on its device; looked at in the first call.
        """
        if self._pairs is None:
            self._pairs = _pairs(model, images[:_COMPARED_IMAGES])
        if self._folded is None or self._changes:
            self._folded = _fold(model, self._pairs) if self._pairs else model
        return self._folded


@torch.inference_mode()
def _pairs(model: nn.Module, images: Tensor) -> list[_Pair]:
    """Return which batch norms can be folded into which convolutions; none where the logits would differ."""
    outputs: dict[int, tuple[str, Tensor]] = {}  # the tensors are held, so that no other takes over their identity
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
    if not pairs or len(set(names)) < len(names):  # a module that is used twice
        return []
    apart = (_fold(model, pairs)(images) - before).abs().max()
    return pairs if bool(apart <= _TOLERANCE * before.abs().max()) else []


@torch.no_grad()
def _fold(model: nn.Module, pairs: Sequence[_Pair]) -> nn.Module:
    folded = copy.deepcopy(model)
    for convolution, norm in pairs:
        conv, bn = folded.get_submodule(convolution), folded.get_submodule(norm)
        assert isinstance(conv, nn.Conv2d)
        assert isinstance(bn, nn.BatchNorm2d)
        assert bn.running_mean is not None
        assert bn.running_var is not None
        conv.weight, conv.bias = fuse_conv_bn_weights(
            conv.weight, conv.bias, bn.running_mean, bn.running_var, bn.eps, bn.weight, bn.bias
        )
        parent, _, own = norm.rpartition(".")
        setattr(folded.get_submodule(parent), own, _rest(bn))
    return folded


def _rest(norm: nn.Module) -> nn.Module:
    """Return what timm's batch norms do beside normalising."""
    parts = [part for name in ("drop", "act") if isinstance(part := getattr(norm, name, None), nn.Module)]
    return nn.Sequential(*parts) if parts else nn.Identity()
