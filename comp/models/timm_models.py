"""timm's models: which there are, what their factories take, and how weights and stems reach them."""

import functools
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from comp.models import stems
from comp.models.weights import State
from comp.runtime.errors import ModelError, nearest

Shape = tuple[int, int, int]  # channels, height, width

# What networks raise where they are built from arguments, or for images, that do not suit them.
WRONG_ARGUMENTS = (
    TypeError, ValueError, AssertionError, RuntimeError, ArithmeticError, LookupError, AttributeError,
)  # fmt: skip


def create(
    name: str,
    shape: Shape,
    classes: int,
    *,
    stem: str = "stock",
    arguments: Mapping[str, Any] | None = None,
    state: State | None = None,
    where: Path | None = None,
) -> nn.Module:
    """Return a timm model with its stem, weights and head in place.

    Args:
        name: the model's.
        shape: (channels, height, width) of what it will see.
        classes: width of the logits.
        stem: `cifar` fits the first layers to small images; anything else leaves them.
        arguments: of timm's factory.
        state: published weights in timm's form; empty: drawn ones.
        where: the file of these weights, for messages.

    Raises:
        ModelError: no cifar stem for its family, arguments it cannot be built from, weights that do not fit.
    """
    given: dict[str, Any] = {"in_chans": shape[0]}
    if "img_size" in accepted_arguments(name):
        given["img_size"] = shape[1:]
    family = family_of(name)
    if stem == "cifar":
        _demand_stem(name, family)
        given |= family.arguments(*shape[1:]) if family.arguments else {}
    inner = _created(name, {**given, **(arguments or {})}, classes, state or {}, where)
    if stem == "cifar" and family.relaxed:
        stems.relax_strides(inner, shape[0])
    return inner


def _created(
    name: str, arguments: Mapping[str, Any], classes: int, state: State, file: Path | None
) -> nn.Module:  # fmt: skip
    """Return timm's model; with weights it is first built for their classes, so that every one of them must fit."""
    import timm

    try:
        if not state:
            fresh: nn.Module = timm.create_model(name, num_classes=classes, **arguments)
            return fresh
        cfg = meta_model(name).pretrained_cfg
        found = _classes_of(state, cfg)
        _demand_adaptable(name, cfg, state, int(arguments["in_chans"]))
        overlay = {"state_dict": state, "num_classes": found, "source": "", "custom_load": False, "label_offset": 0}
        inner: nn.Module = timm.create_model(
            name, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=found, **arguments
        )
    except WRONG_ARGUMENTS as error:
        if state and isinstance(error, RuntimeError):
            raise ModelError(f"{file}: these weights do not fit {name}: {first_lines(error)}") from None
        _blame_proportion(name, arguments, error)
        raise ModelError(f"model.timm: {name} cannot be built from {dict(arguments)}: {first_lines(error)}") from None
    if found != classes:
        inner.reset_classifier(classes)  # type: ignore[operator]
    return inner


def _blame_proportion(name: str, arguments: Mapping[str, Any], error: Exception) -> None:
    """Refuse an oblong size where it can be what a factory stumbled over."""
    size = arguments.get("img_size")
    if isinstance(size, tuple) and size[0] != size[1]:
        side = meta_model(name).pretrained_cfg["input_size"][1]
        reason = first_lines(error) or "a check of its own fails"
        raise ModelError(
            f"model.name: {name} cannot be built for {size[0]}x{size[1]} px images ({reason}); "
            f"where it takes squares alone: model.stem=resize model.input_size={side}"
        ) from None


def _demand_adaptable(name: str, cfg: Mapping[str, Any], state: State, channels: int) -> None:
    """Refuse weights whose first layer timm's `adapt_input_conv` would leave at random, saying so in its log alone.

    It repeats the kernels of three colours in turn for as many channels, and scales them by 3 / channels, so that the
    sum over channels keeps its scale; for grey it adds them up.
    """
    if channels in (1, 3):
        return
    convolutions = cfg.get("first_conv") or ()
    for convolution in (convolutions,) if isinstance(convolutions, str) else convolutions:
        kernels = state.get(f"{convolution}.weight")
        if kernels is not None and kernels.shape[1] != 3:
            raise ModelError(
                f"model.pretrained: the first layer of {name} takes {kernels.shape[1]} planes, and cannot be adapted "
                f"to images of {channels} channels; choose another model, or model.pretrained=false"
            )


def _classes_of(state: State, cfg: Mapping[str, Any]) -> int:
    """Return how many classes weights were trained for: by their head, else by timm's facts."""
    names = cfg.get("classifier") or ()
    first = names if isinstance(names, str) else next(iter(names), "")
    head = state.get(f"{first}.weight")
    return int(head.shape[0]) if head is not None else int(cfg.get("num_classes", 0))


def first_lines(error: Exception, most: int = 600) -> str:
    """Return the beginning of a library's message, on one line."""
    text = " ".join(str(error).split())
    return text if len(text) <= most else text[:most] + " ..."


@functools.lru_cache(maxsize=256)
def meta_model(name: str) -> Any:
    """Return a timm model without memory for its weights: for its facts and its factory's arguments; read-only.

    Raises:
        ModelError: an unknown name.
    """
    import timm

    if not timm.is_model(base_name(name)):
        bare = name.rpartition("/")[2]
        near = f" (did you mean '{bare}'?)" if timm.is_model(base_name(bare)) else nearest(name, timm.list_models())
        raise ModelError(
            f"unknown model '{name}'{near}; `comp models 'resne*t*'` lists the known ones that fit a pattern"
        )
    with torch.device("meta"):
        try:
            return timm.create_model(name)
        except RuntimeError as error:  # an unknown tag
            raise ModelError(f"model '{name}': {first_lines(error)}") from None


def base_name(name: str) -> str:
    """Return a model's name without the tag of its weights."""
    return name.partition(".")[0]


def accepted_arguments(name: str) -> list[str]:
    """Return names of the arguments that `model.timm` and this toolkit may pass to a timm model's factory."""
    taken = {"self", "num_classes", "in_chans", "cfg", "kwargs", "args"}
    names = {parameter for cls in type(meta_model(name)).__mro__[:2] for parameter in inspect.signature(cls).parameters}
    return sorted(names - taken)


def _demand_stem(name: str, family: stems.Family) -> None:
    if not family.has_cifar_stem:
        supported = sorted(module for module, row in stems.FAMILIES.items() if row.has_cifar_stem)
        raise ModelError(
            f"model.stem: no cifar stem is known for the family of {name} ({architecture(name)}); expected a model of "
            f"{', '.join(supported)}, or `stem: resize` with an input_size"
        )


def architecture(name: str) -> str:
    """Return the timm module a model is defined in, such as `resnet` or `vision_transformer`."""
    import timm

    return str(timm.model_entrypoint(base_name(name)).__module__).rpartition(".")[2]


def family_of(name: str) -> stems.Family:
    """Return the row of `stems.FAMILIES` a timm model belongs to."""
    return stems.family_of(base_name(name), architecture(name))
