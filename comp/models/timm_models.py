"""Build timm models with a stem, published weights and a new head; look up their arguments and families."""

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

# What network constructors and forward passes raise for arguments or images that do not suit them.
WRONG_ARGUMENTS = (
    TypeError,
    ValueError,
    AssertionError,
    RuntimeError,
    ArithmeticError,
    LookupError,
    AttributeError,
)


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
    """Build a timm model with stem, weights and head.

    Args:
        name: of the model.
        shape: (channels, height, width) of its images.
        classes: width of the logits.
        stem: `cifar` adapts the first layers to small images; anything else keeps them.
        arguments: for timm's factory.
        state: published weights in timm's format; empty: random ones.
        where: file of the weights, for messages.

    Raises:
        ModelError: no cifar stem for the family, invalid arguments, or weights that do not fit.
    """
    inner = _create_with_weights(
        name, factory_arguments(name, shape, stem, arguments or {}), classes, state or {}, where
    )
    if stem == "cifar" and family_of(name).relaxed:
        stems.relax_strides(inner, shape[0])
    return inner


def factory_arguments(name: str, shape: Shape, stem: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return all arguments of timm's factory, except for the classes; see `create`.

    Raises:
        ModelError: no cifar stem for the family.
    """
    chosen: dict[str, Any] = {"in_chans": shape[0]}
    if "img_size" in accepted_arguments(name):
        chosen["img_size"] = shape[1:]
    family = family_of(name)
    if stem == "cifar":
        _check_stem(name, family)
        chosen |= family.arguments(*shape[1:]) if family.arguments else {}
    return {**chosen, **arguments}


def _create_with_weights(
    name: str,
    arguments: Mapping[str, Any],
    classes: int,
    state: State,
    file: Path | None,
) -> nn.Module:
    """Build timm's model; with weights first for their classes, so that every tensor must fit."""
    import timm

    try:
        if not state:
            fresh: nn.Module = timm.create_model(name, num_classes=classes, **arguments)
            return fresh
        cfg = meta_model(name).pretrained_cfg
        published_classes = _count_classes(state, cfg)
        _check_adaptable(name, cfg, state, int(arguments["in_chans"]))
        overlay = {
            "state_dict": state,
            "num_classes": published_classes,
            "source": "",
            "custom_load": False,
            "label_offset": 0,
        }
        inner: nn.Module = timm.create_model(
            name, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=published_classes, **arguments
        )
    except WRONG_ARGUMENTS as error:
        if state and isinstance(error, RuntimeError):
            raise ModelError(f"{file}: weights do not fit {name}: {first_lines(error)}") from None
        _check_square(name, arguments, error)
        raise ModelError(f"model.timm: {name} cannot be built from {dict(arguments)}: {first_lines(error)}") from None
    if published_classes != classes:
        inner.reset_classifier(classes)  # type: ignore[operator]
    return inner


def _check_square(name: str, arguments: Mapping[str, Any], error: Exception) -> None:
    """Blame a non-square image size for `error`, if there is one."""
    size = arguments.get("img_size")
    if isinstance(size, tuple) and size[0] != size[1]:
        side = meta_model(name).pretrained_cfg["input_size"][1]
        reason = first_lines(error) or "an assertion in timm fails"
        raise ModelError(
            f"model.name: {name} cannot be built for {size[0]}x{size[1]} px images ({reason}); "
            f"if it needs square images, set model.stem=resize model.input_size={side}"
        ) from None


def _check_adaptable(name: str, cfg: Mapping[str, Any], state: State, channels: int) -> None:
    """Check that timm's `adapt_input_conv` can adapt the first layer; otherwise it stays random with only a log line.

    It repeats the three colours' kernels over the channels, scaled by 3 / channels; for grey it sums them.
    """
    if channels in (1, 3):
        return
    convolutions = cfg.get("first_conv") or ()
    for convolution in (convolutions,) if isinstance(convolutions, str) else convolutions:
        kernels = state.get(f"{convolution}.weight")
        if kernels is not None and kernels.shape[1] != 3:
            raise ModelError(
                f"model.pretrained: the first layer of {name} takes {kernels.shape[1]} channels and cannot be adapted "
                f"to images of {channels} channels; choose another model, or model.pretrained=false"
            )


def _count_classes(state: State, cfg: Mapping[str, Any]) -> int:
    """Return the number of classes that weights were trained on: from their head, else from timm's config."""
    names = cfg.get("classifier") or ()
    first = names if isinstance(names, str) else next(iter(names), "")
    head = state.get(f"{first}.weight")
    return int(head.shape[0]) if head is not None else int(cfg.get("num_classes", 0))


def first_lines(error: Exception, limit: int = 600) -> str:
    """Return a library's error message on one line, shortened."""
    text = " ".join(str(error).split())
    return text if len(text) <= limit else text[:limit] + " ..."


@functools.lru_cache(maxsize=256)
def meta_model(name: str) -> Any:
    """Return a cached timm model on the meta device, for its config and factory arguments; read-only.

    Raises:
        ModelError: an unknown name.
    """
    import timm

    if not timm.is_model(base_name(name)):
        bare = name.rpartition("/")[2]
        hint = f" (did you mean '{bare}'?)" if timm.is_model(base_name(bare)) else nearest(name, timm.list_models())
        raise ModelError(f"unknown model '{name}'{hint}; `comp models 'resne*t*'` lists models that match a pattern")
    with torch.device("meta"):
        try:
            model = timm.create_model(name)
        except RuntimeError as error:  # an unknown tag
            raise ModelError(f"model '{name}': {first_lines(error)}") from None
    if not hasattr(model, "pretrained_cfg"):  # of a plug-in
        raise ModelError(f"model '{name}': has no pretrained_cfg; build it with timm.models.build_model_with_cfg")
    return model


def base_name(name: str) -> str:
    """Return a model's name without the weights' tag."""
    return name.partition(".")[0]


def accepted_arguments(name: str) -> list[str]:
    """Return the arguments of a timm model's factory that `model.timm` may set."""
    reserved = {"self", "num_classes", "in_chans", "cfg", "kwargs", "args"}
    names = {parameter for cls in type(meta_model(name)).__mro__[:2] for parameter in inspect.signature(cls).parameters}
    return sorted(names - reserved)


def _check_stem(name: str, family: stems.Family) -> None:
    if not family.has_cifar_stem:
        supported = sorted(module for module, row in stems.FAMILIES.items() if row.has_cifar_stem)
        raise ModelError(
            f"model.stem: {name} ({architecture(name)}) has no cifar stem; use stem: resize with an input_size, or a "
            f"model of {', '.join(supported)}"
        )


def architecture(name: str) -> str:
    """Return the timm module that defines a model, such as `resnet` or `vision_transformer`."""
    import timm

    return str(timm.model_entrypoint(base_name(name)).__module__).rpartition(".")[2]


def family_of(name: str) -> stems.Family:
    """Return a timm model's row of `stems.FAMILIES`."""
    return stems.family_of(base_name(name), architecture(name))
