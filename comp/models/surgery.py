"""What is trained, how fast, and what comes from elsewhere: freezing, layer groups, head swap.

Names of blocks are the inner model's own (`conv1`, `layer1.0`), without the wrapper's `inner.`.
"""

import fnmatch
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from comp.models import weights
from comp.models.classifier import Classifier
from comp.models.coursework.layout import Network
from comp.runtime.errors import ModelError, nearest

ALL_BUT_HEAD = "all_but_head"


class TrainableRow(NamedTuple):
    """A row of the table printed before training."""

    name: str
    """Top-level module or parameter of the inner model."""
    parameters: int
    trainable: int
    """How many of the parameters are trained."""
    statistics: str
    """Of its batch norm layers: `move`, `kept`, `partly kept`, or empty where there are none."""


def freeze(
    model: Classifier,
    patterns: Sequence[str],
    *,
    epoch: int = 1,
    unfreeze: Mapping[int, Sequence[str]] | None = None,
    keep_bn_stats: bool = True,
    train_bn: bool = False,
) -> None:
    """Set what is trained in an epoch, in place; a pure function of the arguments, whatever was set before.

    Args:
        model: whose `train()` keeps frozen statistics from here on.
        patterns: names or globs of modules and parameters that are frozen, or `all_but_head`.
        epoch: from 1.
        unfreeze: epoch -> patterns that are trained from it on.
        keep_bn_stats: frozen batch norm uses and keeps its running statistics.
        train_bn: frozen batch norm is trained after all: statistics, scale and shift.

    Raises:
        ModelError: a pattern that names nothing.
    """
    for every in (patterns, *(unfreeze or {}).values()):
        _demand_names(model, every)
    held = tuple(patterns)
    released = released_at(epoch, unfreeze or {})
    still = set()
    frozen = {name for name, _ in model.inner.named_parameters() if _is_held(model, name, held, released)}
    for name, module in model.inner.named_modules():
        if isinstance(module, _BatchNorm):
            own = {f"{name}.{part}" for part, _ in module.named_parameters()}
            if (own <= frozen) if own else _is_held(model, name, held, released):
                frozen -= own if train_bn else set()
                still |= {name} if keep_bn_stats and not train_bn else set()
    for name, parameter in model.inner.named_parameters():
        parameter.requires_grad = name not in frozen and name not in model.non_trainable
    model.frozen_bn_layers = frozenset(still)
    model.train(model.training)


def released_at(epoch: int, unfreeze: Mapping[int, Sequence[str]]) -> tuple[str, ...]:
    """Return the patterns that gradual unfreezing has released by an epoch (from 1)."""
    return tuple(pattern for start in sorted(unfreeze) if start <= epoch for pattern in unfreeze[start])


def trainable_table(model: Classifier) -> list[TrainableRow]:
    """Return what is trained, a row for each top-level block of the inner model, in its order."""
    names = dict.fromkeys(name.partition(".")[0] for name, _ in model.inner.named_parameters())
    return [_block(model, name) for name in names]


def _block(model: Classifier, name: str) -> TrainableRow:
    parameters = [p for path, p in model.inner.named_parameters() if path.partition(".")[0] == name]
    norms = [
        path
        for path, module in model.inner.named_modules()
        if path.partition(".")[0] == name and isinstance(module, _BatchNorm)
    ]
    kept = sum(path in model.frozen_bn_layers for path in norms)
    statistics = "" if not norms else "move" if not kept else "kept" if kept == len(norms) else "partly kept"
    total = sum(p.numel() for p in parameters)
    return TrainableRow(name, total, sum(p.numel() for p in parameters if p.requires_grad), statistics)


def parameter_groups(
    model: Classifier,
    weight_decay: float,
    layer_decay: float = 1.0,
    *,
    decay_all: bool = False,
    multipliers: Mapping[str, float] | None = None,
    ends: Mapping[str, int] | None = None,
    hidden_apart: bool = False,
) -> list[dict[str, Any]]:
    """Return optimizer groups: `params`, `weight_decay`, `lr_scale` (times the learning rate) and `name`.

    Layer-wise decay multiplies the rate by `layer_decay` for each layer below the head (Clark et al. 2020,
    arXiv:2003.10555; Bao et al. 2021, arXiv:2106.08254). Norms, biases, other 1-d parameters and those the network
    names itself go without weight decay. Frozen parameters are in their groups too: without gradients an optimizer
    passes over them, and gradual unfreezing needs no new optimizer.

    Each group also says whether it `decays`, whether its parameters are `hidden` matrices (where asked to keep those
    apart), and after how many epochs it `ends` (None: with the training).

    Args:
        model: any of the zoo.
        weight_decay: for matrices and kernels.
        layer_decay: in 0..1; 1 is one rate for all layers.
        decay_all: weight decay for every parameter.
        multipliers: pattern as in `freeze` -> discriminative factor of the rate; several that match multiply.
        ends: pattern as in `freeze` -> how many epochs its parameters are trained; of several the least.
        hidden_apart: keep `hidden_matrices` in groups of their own.

    Raises:
        ModelError: a pattern that names nothing.
    """
    multipliers, ends = multipliers or {}, ends or {}
    _demand_names(model, (*multipliers, *ends))
    layers = layer_numbers(model)
    top = max(layers.values())
    exempt = set() if decay_all else model.no_weight_decay()
    hidden_names = hidden_matrices(model) if hidden_apart else frozenset()
    groups: dict[str, dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        inner = name.removeprefix("inner.")
        if inner in model.non_trainable:
            continue
        decays = decay_all or (parameter.ndim > 1 and name not in exempt)
        factors = (factor for pattern, factor in multipliers.items() if _names(model, pattern, inner))
        scale = math.prod(factors, start=layer_decay ** (top - layers[name]))
        end = min((epochs for pattern, epochs in ends.items() if _names(model, pattern, inner)), default=None)
        hidden = inner in hidden_names
        label = f"{'decay' if decays else 'no_decay'}_x{scale:.9g}"  # what layers have in common they have in one group
        label += "_hidden" if hidden else ""
        label += f"_ends{end}" if end else ""
        group = {
            "params": [],
            "weight_decay": weight_decay if decays else 0.0,
            "lr_scale": scale,
            "name": label,
            "decays": decays,
            "hidden": hidden,
            "ends": end,
        }
        groups.setdefault(label, group)["params"].append(parameter)
    return [groups[label] for label in sorted(groups)]


def hidden_matrices(model: Classifier) -> frozenset[str]:
    """Return the inner model's names of the matrices and kernels between first layer and head, as Muon wants them.

    The first layer is whatever holds layer number 0: the stem, a transformer's patch and position embeddings. Kernels
    with one input channel (depth-wise ones) are left out: their rows belong to unrelated channels.
    """
    layers, heads = layer_numbers(model), head_names(model)
    return frozenset(
        name
        for name, parameter in model.inner.named_parameters()
        if parameter.ndim > 1 and parameter.shape[1] > 1 and layers[f"inner.{name}"] > 0 and name not in heads
    )


def layer_numbers(model: Classifier) -> dict[str, int]:
    """Return each parameter's layer, 0 at the stem; the head has the largest."""
    if isinstance(model.inner, Network):  # one after the other; timm, which counts the same, is slow to import
        names = [name for name, _ in model.named_parameters()]
        layers = [tuple(name.split(".")[1 : 2 if ".classifier." in name else 3]) for name in names]
        order = list(dict.fromkeys(layers))
        return {name: order.index(layer) for name, layer in zip(names, layers, strict=True)}
    from timm.models import group_parameters

    numbers: dict[str, int] = group_parameters(model, model.group_matcher(coarse=False), reverse=True)
    return numbers


def load_from_run(
    model: Classifier, state: Mapping[str, Tensor], *, where: str, normalization: bool = True
) -> tuple[str, ...]:  # fmt: skip
    """Put a previous run's weights into a model, in place; a head of another width stays fresh.

    Args:
        model: of the same network, for perhaps another number of classes.
        state: a `Classifier`'s state dict.
        where: names its origin in messages.
        normalization: whether mean and deviation of the images come along.

    Returns:
        Names of the head's tensors that were left as they are.

    Raises:
        ModelError: anything but the head differs.
    """
    own = model.state_dict()
    taken = dict(state)
    if not normalization:
        taken |= {name: tensor for name, tensor in own.items() if name.startswith("normalize.")}
    heads = {f"inner.{name}" for name in head_names(model)}
    fresh = tuple(name for name in own if name in heads and name in taken and taken[name].shape != own[name].shape)
    taken |= {name: own[name] for name in fresh}
    weights.load_state(model, taken, where=where)
    return fresh


def head_names(model: Classifier) -> set[str]:
    """Return the inner model's names of its last layer's parameters."""
    head = model.get_classifier()
    # Distilled transformers have two heads and return both.
    modules = head if isinstance(head, tuple | list) else (head,)
    own = {id(parameter) for module in modules for parameter in module.parameters()}
    return {name for name, parameter in model.inner.named_parameters() if id(parameter) in own}


def _is_held(model: Classifier, name: str, held: Iterable[str], released: Iterable[str]) -> bool:
    return any(_names(model, p, name) for p in held) and not any(_names(model, p, name) for p in released)


def _names(model: Classifier, pattern: str, name: str) -> bool:
    """Whether a pattern means a module or parameter, by its own name or by that of a module it lies in."""
    if pattern == ALL_BUT_HEAD:
        return name not in head_names(model)
    return any(fnmatch.fnmatchcase(path, pattern) for path in _paths(name))


def _paths(name: str) -> Iterator[str]:
    parts = name.split(".")
    return (".".join(parts[:end]) for end in range(1, len(parts) + 1))


def _demand_names(model: Classifier, patterns: Sequence[str]) -> None:
    parameters = [name for name, _ in model.inner.named_parameters()]
    for pattern in patterns:
        if not any(_names(model, pattern, name) for name in parameters):
            blocks = dict.fromkeys(path for name in parameters for path in _paths(name))
            tops = ", ".join(dict.fromkeys(name.partition(".")[0] for name in parameters))
            raise ModelError(
                f"'{pattern}' names nothing in this network{nearest(pattern, blocks)}; expected a name or glob of its "
                f"modules and parameters, such as {tops}, or {ALL_BUT_HEAD}"
            )
