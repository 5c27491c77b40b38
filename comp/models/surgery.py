"""Model surgery: freezing, optimizer parameter groups, and loading a previous run's weights.

Module names are the inner model's (`conv1`, `layer1.0`), without the wrapper's `inner.`.
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
    """A row of the trainable-parameters table, printed before training."""

    name: str
    """Top-level module or parameter of the inner model."""
    parameters: int
    trainable: int
    """Number of trained parameters."""
    statistics: str
    """Batch norm statistics: `move` (updated), `kept`, `partly kept`, or empty without batch norm."""


def freeze(
    model: Classifier,
    patterns: Sequence[str],
    *,
    epoch: int = 1,
    unfreeze: Mapping[int, Sequence[str]] | None = None,
    keep_bn_stats: bool = True,
    train_bn: bool = False,
) -> None:
    """Set what an epoch trains, in place; depends on the arguments alone, not on what was frozen before.

    Args:
        model: its `train()` keeps frozen statistics from now on.
        patterns: names or globs of modules and parameters to freeze, or `all_but_head`.
        epoch: from 1.
        unfreeze: epoch -> patterns trained from that epoch on.
        keep_bn_stats: frozen batch norm uses and keeps its running statistics.
        train_bn: train frozen batch norm anyway: statistics, scale and shift.

    Raises:
        ModelError: a pattern matches nothing.
    """
    for group in (patterns, *(unfreeze or {}).values()):
        _check_patterns(model, group)
    released = released_at(epoch, unfreeze or {})
    frozen_layers: set[str] = set()
    frozen = {name for name, _ in model.inner.named_parameters() if _is_frozen(model, name, patterns, released)}
    for name, module in model.inner.named_modules():
        if isinstance(module, _BatchNorm):
            affine = {f"{name}.{part}" for part, _ in module.named_parameters()}
            if (affine <= frozen) if affine else _is_frozen(model, name, patterns, released):
                if train_bn:
                    frozen -= affine
                elif keep_bn_stats:
                    frozen_layers.add(name)
    for name, parameter in model.inner.named_parameters():
        parameter.requires_grad = name not in frozen and name not in model.non_trainable
    model.frozen_bn_layers = frozenset(frozen_layers)
    model.train(model.training)


def released_at(epoch: int, unfreeze: Mapping[int, Sequence[str]]) -> tuple[str, ...]:
    """Return the patterns that are unfrozen by an epoch (from 1)."""
    return tuple(pattern for start in sorted(unfreeze) if start <= epoch for pattern in unfreeze[start])


def trainable_table(model: Classifier) -> list[TrainableRow]:
    """Return what is trained, one row per top-level module of the inner model, in order."""
    names = dict.fromkeys(name.partition(".")[0] for name, _ in model.inner.named_parameters())
    return [_count_trainable(model, name) for name in names]


def _count_trainable(model: Classifier, name: str) -> TrainableRow:
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
    arXiv:2003.10555; Bao et al. 2021, arXiv:2106.08254). Norms, biases, other 1-d parameters and the network's
    `no_weight_decay` get no weight decay. Frozen parameters are included: optimizers skip parameters without
    gradients, so gradual unfreezing needs no new optimizer.

    Each group also has `decays`, `hidden` (holds hidden matrices) and `ends` (number of epochs trained, None: all).

    Args:
        model: any of the zoo.
        weight_decay: for matrices and kernels.
        layer_decay: in 0..1; 1 is one rate for all layers.
        decay_all: decay every parameter.
        multipliers: pattern as in `freeze` -> factor of the rate; matching patterns multiply.
        ends: pattern as in `freeze` -> number of epochs trained; the least of matching patterns.
        hidden_apart: put `hidden_matrices` into groups of their own.

    Raises:
        ModelError: a pattern matches nothing.
    """
    multipliers, ends = multipliers or {}, ends or {}
    _check_patterns(model, (*multipliers, *ends))
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
        factors = (factor for pattern, factor in multipliers.items() if _matches(model, pattern, inner))
        scale = math.prod(factors, start=layer_decay ** (top - layers[name]))
        end = min((epochs for pattern, epochs in ends.items() if _matches(model, pattern, inner)), default=None)
        group = _empty_group(weight_decay if decays else 0.0, scale, decays, inner in hidden_names, end)
        groups.setdefault(group["name"], group)["params"].append(parameter)
    return [groups[label] for label in sorted(groups)]


def _empty_group(weight_decay: float, scale: float, decays: bool, hidden: bool, end: int | None) -> dict[str, Any]:
    """Return a parameter group without parameters; layers with equal settings get equal names."""
    name = f"{'decay' if decays else 'no_decay'}_x{scale:.9g}"
    name += "_hidden" if hidden else ""
    name += f"_ends{end}" if end else ""
    return {
        "params": [],
        "weight_decay": weight_decay,
        "lr_scale": scale,
        "name": name,
        "decays": decays,
        "hidden": hidden,
        "ends": end,
    }


def hidden_matrices(model: Classifier) -> frozenset[str]:
    """Return names of the inner model's matrices and kernels between first layer and head, for Muon.

    The first layer is layer number 0: the stem, or a transformer's patch and position embeddings. Depth-wise kernels
    (one input channel) are left out: their rows belong to unrelated channels.
    """
    layers, heads = layer_numbers(model), head_names(model)
    return frozenset(
        name
        for name, parameter in model.inner.named_parameters()
        if parameter.ndim > 1 and parameter.shape[1] > 1 and layers[f"inner.{name}"] > 0 and name not in heads
    )


def layer_numbers(model: Classifier) -> dict[str, int]:
    """Return each parameter's layer number: 0 at the stem, the largest at the head."""
    if isinstance(model.inner, Network):  # as timm would number them, without its slow import
        names = [name for name, _ in model.named_parameters()]
        layers = [tuple(name.split(".")[1 : 2 if ".classifier." in name else 3]) for name in names]
        order = list(dict.fromkeys(layers))
        return {name: order.index(layer) for name, layer in zip(names, layers, strict=True)}
    from timm.models import group_parameters

    numbers: dict[str, int] = group_parameters(model, model.group_matcher(coarse=False), reverse=True)
    return numbers


def load_from_run(
    model: Classifier,
    state: Mapping[str, Tensor],
    *,
    where: str,
    normalization: bool = True,
) -> tuple[str, ...]:
    """Load a previous run's weights into a model, in place; a head of another width keeps its fresh weights.

    Args:
        model: the same network; its number of classes may differ.
        state: a `Classifier`'s state dict.
        where: source of the weights, for messages.
        normalization: also load the images' mean and standard deviation.

    Returns:
        Names of the head's tensors that kept their fresh weights.

    Raises:
        ModelError: tensors other than the head differ.
    """
    current = model.state_dict()
    merged = {name: tensor for name, tensor in state.items() if not name.startswith("label_scale.")}
    merged |= {name: tensor for name, tensor in current.items() if name.startswith("label_scale.")}
    if not normalization:
        merged |= {name: tensor for name, tensor in current.items() if name.startswith("normalize.")}
    heads = {f"inner.{name}" for name in head_names(model)}
    shared_heads = [name for name in current if name in heads and name in merged]
    fresh = tuple(name for name in shared_heads if merged[name].shape != current[name].shape)
    merged |= {name: current[name] for name in fresh}
    weights.load_state(model, merged, where=where)
    return fresh


def head_names(model: Classifier) -> set[str]:
    """Return the names of the inner model's last-layer parameters."""
    head = model.get_classifier()
    # Distilled transformers have two heads and return both.
    modules = head if isinstance(head, tuple | list) else (head,)
    parameters = {id(parameter) for module in modules for parameter in module.parameters()}
    return {name for name, parameter in model.inner.named_parameters() if id(parameter) in parameters}


def _is_frozen(model: Classifier, name: str, patterns: Iterable[str], released: Iterable[str]) -> bool:
    return any(_matches(model, p, name) for p in patterns) and not any(_matches(model, p, name) for p in released)


def _matches(model: Classifier, pattern: str, name: str) -> bool:
    """Whether a pattern matches a module or parameter by its name or by a parent module's."""
    if pattern == ALL_BUT_HEAD:
        return name not in head_names(model)
    return any(fnmatch.fnmatchcase(path, pattern) for path in _name_prefixes(name))


def _name_prefixes(name: str) -> Iterator[str]:
    parts = name.split(".")
    return (".".join(parts[:end]) for end in range(1, len(parts) + 1))


def _check_patterns(model: Classifier, patterns: Sequence[str]) -> None:
    parameters = [name for name, _ in model.inner.named_parameters()]
    for pattern in patterns:
        if not any(_matches(model, pattern, name) for name in parameters):
            blocks = dict.fromkeys(path for name in parameters for path in _name_prefixes(name))
            tops = ", ".join(dict.fromkeys(name.partition(".")[0] for name in parameters))
            raise ModelError(
                f"'{pattern}' names nothing in this network{nearest(pattern, blocks)}; expected a name or glob of "
                f"its modules and parameters, such as {tops}, or {ALL_BUT_HEAD}"
            )
