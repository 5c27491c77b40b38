"""The model zoo: build a `Classifier` from our networks or any timm model, list models and measure their costs."""

import fnmatch
import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_origin

import torch
from torch import Tensor, nn

from comp.config import ModelConfig
from comp.config.messages import mistake_in
from comp.config.section import check_numbers, height_and_width
from comp.models import stems, surgery, timm_models, weights
from comp.models.classifier import Classifier, Resize
from comp.models.coursework.networks import NETWORKS
from comp.runtime.errors import ModelError, UserError, unknown

Shape = tuple[int, int, int]  # channels, height, width
Numbers = Sequence[float]

_LARGEST = 65_536  # of a number in `model.timm`: widths, depths, sides
_METHODS = ("forward", "forward_features", "forward_head", "get_classifier")  # of every network


def build(
    config: ModelConfig,
    *,
    classes: int,
    image_shape: Shape,
    mean: Numbers,
    std: Numbers,
    seed: int,
    weights_folder: Path | None = None,
    label_scale: tuple[float, float] | None = None,
) -> Classifier:
    """Build the configured model on the CPU, frozen as in epoch 1; initial weights depend on `seed` alone.

    Args:
        config: the section `model`.
        classes: width of the logits.
        image_shape: (channels, height, width) of the images.
        mean: the dataset's mean per channel, in 0..1.
        std: the dataset's standard deviation per channel, in 0..1.
        seed: of the weights.
        weights_folder: searched for `<name>.safetensors` before the hub, with `pretrained: true`.
        label_scale: see `Classifier`.

    Raises:
        ModelError: unknown name or argument, no such stem for the family, or missing or mismatched weights.
    """
    size = None if config.input_size is None else height_and_width(config.input_size)
    shape = image_shape if size is None else (image_shape[0], *size)  # after the resize
    check_model(config)
    file = _weights_file(config, weights_folder)
    state, metadata = weights.read(file, sha256=config.sha256) if file else ({}, {})
    ours = any(name.startswith("inner.") for name in state)
    with torch.random.fork_rng(devices=[]):  # leaves torch's global generator as it was
        torch.default_generator.manual_seed(seed)
        inner = _build_network(config, shape, classes, {} if ours else state, file)
    _check_image_size(inner, config, shape, classes)
    resize = Resize(size, config.interpolation) if size else None
    mean, std = _choose_normalization(config, inner, image_shape[0], (mean, std))
    per_image = config.normalize == "per_image"
    model = Classifier(inner, mean=mean, std=std, per_image=per_image, resize=resize, label_scale=label_scale)
    if ours:
        surgery.load_from_run(model, state, where=str(file), normalization=config.normalize in ("auto", "pretrained"))
    if file:
        model.weights_source = f"{file} (sha256 {metadata['sha256']})"
    apply_freezing(model, config, epoch=1)
    return model


def build_on_meta(config: ModelConfig, *, classes: int, image_shape: Shape) -> Classifier:
    """Build the configured model on the meta device, for names and shapes; see `build`. Weights are not read.

    Raises:
        ModelError: as `build`, except for weights.
    """
    check_model(config)
    channels = image_shape[0]
    size = None if config.input_size is None else height_and_width(config.input_size)
    shape = image_shape if size is None else (channels, *size)
    with torch.device("meta"):
        inner = _build_network(config, shape, classes, {}, None)
        resize = Resize(size, config.interpolation) if size else None
        model = Classifier(inner, mean=[0.0] * channels, std=[1.0] * channels, resize=resize)
        if size:  # otherwise the images may differ from `image_shape`
            _check_image_size(inner, config, shape, classes)
    apply_freezing(model, config, epoch=1)
    return model


def published_side(name: str) -> int:
    """Return the image side in pixels that a model was published with."""
    return 32 if name in NETWORKS else int(timm_models.meta_model(name).pretrained_cfg["input_size"][-1])


def supports_single_images(model: Classifier, image_shape: Shape) -> bool:
    """Whether a meta model trains on single-image batches; batch norm of a 1x1 map needs two values per channel."""
    try:
        with torch.no_grad():
            model.train()(torch.zeros(1, *image_shape, device="meta"))
    except ValueError as error:
        return "more than 1 value per channel" not in str(error)
    return True


def apply_freezing(model: Classifier, config: ModelConfig, *, epoch: int) -> None:
    """Apply `model.freeze` and `model.unfreeze` for an epoch (from 1), in place."""
    try:
        surgery.freeze(
            model,
            config.freeze,
            epoch=epoch,
            unfreeze=config.unfreeze,
            keep_bn_stats=config.freeze_bn_stats,
            train_bn=config.unfreeze_bn,
        )
    except ModelError as error:
        raise ModelError(f"model.freeze, model.unfreeze: {error}") from None


def architecture(name: str) -> str:
    """Return the timm module that defines a model (`resnet`, `vision_transformer`), or our network's name.

    Raises:
        ModelError: an unknown name.
    """
    if name in NETWORKS:
        return name
    _check_name(name)
    return timm_models.architecture(name)


def family(name: str) -> str:
    """Return a model's family as the rules name it: `convolutional`, `transformer`, `mlp`, ..., `unclassified`.

    Raises:
        ModelError: an unknown name.
    """
    if name in NETWORKS:
        return stems.OWN_KINDS[name]
    _check_name(name)
    return timm_models.family_of(name).kind


def check_family_allowed(name: str, banned: Sequence[str]) -> None:
    """Check a model against `competition.rules.banned_families`.

    Raises:
        ModelError: its family or architecture is banned or unknown, or a banned name matches no family.
    """
    kind, module = family(name), architecture(name)
    families = {*stems.FAMILIES, *NETWORKS, *(row.kind for row in stems.FAMILIES.values())}
    for ban in banned:
        if ban not in families:
            raise ModelError(f"competition.rules.banned_families: {unknown('family', ban, families)}")
    if {kind, module} & set(banned) or (banned and kind == stems.UNCLASSIFIED.kind):
        raise ModelError(
            f"model.name: the rules ban {', '.join(banned)} and {name} is {kind} ({module}); choose another model: "
            "`comp models` lists their families"
        )


def _check_name(name: str) -> None:
    try:
        timm_models.meta_model(name)
    except ModelError as error:
        raise ModelError(f"model.name: {error}; comp's own networks are {', '.join(NETWORKS)}") from None


def check_model(config: ModelConfig) -> None:
    """Check that the fields fit the network and one another; builds nothing.

    Raises:
        ModelError: names the field and what it accepts.
    """
    ours = config.name in NETWORKS
    if not ours:
        _check_name(config.name)
    name = config.name
    if ours and config.timm:
        raise ModelError(
            f"model.timm: expected nothing for {name}, which is comp's own; set its arguments in model.args"
        )
    if not ours and config.args:
        raise ModelError(f"model.args: expected nothing for {name}; set a timm model's arguments in model.timm")
    if ours and config.stem == "cifar":
        raise ModelError(f"model.stem: {name} is already made for small images; expected stock or resize")
    if ours and config.pretrained is True:
        raise ModelError(f"model.pretrained: no weights are published for {name}; expected false or a file")
    _check_arguments(config, "model.args" if ours else "model.timm", config.args or config.timm)


def _check_arguments(config: ModelConfig, field: str, arguments: Mapping[str, Any]) -> None:
    """Check argument names against the factory's signature, and rates against their range."""
    accepted = _accepted_arguments(config.name)
    for name in arguments:
        if name not in accepted:
            raise ModelError(f"{field}: {unknown(f'argument of {config.name}', name, accepted)}")
    for name, rate in _rates(config).items():
        if name not in accepted:
            raise ModelError(f"model.{name}: {config.name} has none; expected null, found {rate}")
        if name in arguments:
            raise ModelError(f"{field}.{name}: also set in model.{name}; keep only one")
    for name, value in arguments.items():
        if "drop" in name and isinstance(value, int | float) and not 0 <= value < 1:
            raise ModelError(f"{field}.{name}: expected a share from 0 to less than 1, found {value}")
    _check_ranges(config.name, field, arguments)


def _check_ranges(network: str, field: str, arguments: Mapping[str, Any]) -> None:
    """Check numbers against the ranges that our network's function declares (`Annotated`); timm's against one."""
    if network not in NETWORKS:
        check_numbers(arguments, field, -_LARGEST, _LARGEST)
        return
    parameters = inspect.signature(NETWORKS[network]).parameters
    for name, value in arguments.items():
        kind = parameters[name].annotation
        if get_origin(kind) is Annotated and (mistake := mistake_in(value, kind)):
            raise ModelError(f"{field}.{name}: {mistake}")


def _accepted_arguments(name: str) -> list[str]:
    if name not in NETWORKS:
        return timm_models.accepted_arguments(name)
    return [
        argument for argument in inspect.signature(NETWORKS[name]).parameters if argument not in ("shape", "classes")
    ]


def _rates(config: ModelConfig) -> dict[str, float]:
    rates = {"drop_rate": config.drop_rate, "drop_path_rate": config.drop_path_rate}
    return {name: rate for name, rate in rates.items() if rate is not None}


def _weights_file(config: ModelConfig, folder: Path | None) -> Path | None:
    if config.pretrained is True:
        return weights.find_published(config.name, timm_models.meta_model(config.name).pretrained_cfg, folder)
    return Path(config.pretrained) if config.pretrained else None


def _build_network(
    config: ModelConfig,
    shape: Shape,
    classes: int,
    state: weights.State,
    file: Path | None,
) -> nn.Module:
    """Build the inner model; `state` holds a timm model's published weights, or nothing."""
    rates = _rates(config)
    if config.name not in NETWORKS:
        return timm_models.create(
            config.name, shape, classes, stem=config.stem, arguments={**config.timm, **rates}, state=state, where=file
        )
    try:
        inner = NETWORKS[config.name](shape, classes, **config.args, **rates)
    except UserError:
        raise
    except timm_models.WRONG_ARGUMENTS as error:
        reason = timm_models.first_lines(error, 200)
        raise ModelError(f"model.args: {config.name} cannot be built from {dict(config.args)}: {reason}") from None
    if missing := [method for method in _METHODS if not callable(getattr(inner, method, None))]:
        raise ModelError(
            f"model.name: {config.name} builds a {type(inner).__name__} without {', '.join(missing)}; build it from "
            "comp.models.coursework.layout.Network, or add them as timm's models have them"
        )
    if state:
        weights.load_state(inner, state, where=str(file))
    return inner


def _check_image_size(inner: nn.Module, config: ModelConfig, shape: Shape, classes: int) -> None:
    """Run one blank image, so that a network too deep for its images fails here and not in the first step."""
    was_training = inner.training
    inner.eval()
    try:
        with torch.no_grad():
            logits = inner(torch.zeros(1, *shape))
        if logits.shape != (1, classes):
            raise ModelError(
                f"model.name: {config.name} returns {list(logits.shape)} for one image of {classes} classes; expected "
                f"logits [1, {classes}]"
            )
    except ModelError:
        raise
    except NotImplementedError:
        pass  # an op without a meta implementation
    except timm_models.WRONG_ARGUMENTS as error:
        reason = timm_models.first_lines(error, 200)
        raise ModelError(
            f"model.name: {config.name} with stem {config.stem} cannot take {shape[1]}x{shape[2]} px images"
            f"{f' ({reason})' if reason else ''}; {_suggest_size(config)}"
            f"{_published_size(inner) if shape[1] != shape[2] else ''}"
        ) from None
    inner.train(was_training)


def _published_size(inner: nn.Module) -> str:
    """Return advice for non-square images: the size that the network was made for."""
    size: Sequence[int] = getattr(inner, "pretrained_cfg", {}).get("input_size", ())
    return f"; it was made for {size[1]}x{size[2]}: model.stem=resize model.input_size={size[1]}" if size else ""


def _suggest_size(config: ModelConfig) -> str:
    """Return advice for a network that is too deep for its images."""
    if config.stem == "resize":
        return "choose a larger input_size, or another network"
    if config.name in NETWORKS:
        return "use stem: resize with a larger input_size, or another network"
    side = published_side(config.name)
    resize = f"stem: resize with a larger input_size, such as the {side} px that {config.name} is made for"
    has_stem = timm_models.family_of(config.name).has_cifar_stem and config.stem != "cifar"
    return f"use stem: cifar, or {resize}" if has_stem else f"use {resize}"


def _choose_normalization(
    config: ModelConfig, inner: nn.Module, channels: int, dataset: tuple[Numbers, Numbers]
) -> tuple[Numbers, Numbers]:
    """Return mean and standard deviation per channel, by `model.normalize`."""
    choice = config.normalize
    published: Mapping[str, Any] = getattr(inner, "pretrained_cfg", {})
    if not isinstance(choice, str):
        mean, std = choice.get("mean", ()), choice.get("std", ())
        if len(mean) != channels or len(std) != channels or min(std) <= 0:
            raise ModelError(
                f"model.normalize: expected mean and std of {channels} numbers each, std above 0, "
                f"found {len(mean)} and {len(std)} numbers: {dict(choice)}"
            )
        return mean, std
    # Weights of a previous run bring their own mean and deviation in `load_from_run`.
    if choice in ("dataset", "per_image") or not config.pretrained or not published:
        return dataset
    return _spread(published["mean"], channels), _spread(published["std"], channels)


def _spread(values: Numbers, channels: int) -> Numbers:
    """Return published RGB values for `channels` channels: their mean, repeated."""
    return values if len(values) == channels else [sum(values) / len(values)] * channels


@dataclass(frozen=True)
class ModelSummary:
    """One line of `comp models`; all that needs no network."""

    name: str
    family: str
    """As in `competition.rules.banned_families`."""
    architecture: str
    """timm's module, or `ours`."""
    cifar_stem: bool
    weights: str
    """`file` (in the folder), `cached` (from the hub), `hub` (to download), or empty: none published."""


@dataclass(frozen=True)
class Costs:
    """Costs of a model on one image."""

    parameters: int
    gmacs: float
    """Billions of multiply-accumulates in a forward pass."""
    feature_map: tuple[int, int]
    """Height and width of the last feature map; (1, 1) without one."""


def list_models(pattern: str = "*", *, weights_folder: Path | None = None) -> list[ModelSummary]:
    """List our networks and timm's models that a pattern names; builds none.

    Args:
        pattern: a glob of names such as `resne*t*`; a whole name; or else a part of names or families.
        weights_folder: holds weights as `<name>.safetensors`.
    """
    import timm

    is_part = not set("*?[") & set(pattern) and pattern not in NETWORKS and not timm.is_model(pattern)

    def fits(name: str, *families: str) -> bool:
        if is_part:
            return any(pattern.lower() in text.lower() for text in (name, *families))
        return fnmatch.fnmatchcase(name, pattern)

    ours = [name for name in NETWORKS if fits(name, stems.OWN_KINDS[name])]
    timm_names: Sequence[str] = timm.list_models("" if is_part else pattern)
    if is_part:
        timm_names = [
            name for name in timm_names if fits(name, timm_models.family_of(name).kind, timm_models.architecture(name))
        ]
    return [ModelSummary(name, stems.OWN_KINDS[name], "ours", False, "") for name in ours] + [
        ModelSummary(
            name,
            timm_models.family_of(name).kind,
            timm_models.architecture(name),
            timm_models.family_of(name).has_cifar_stem,
            weights.source_of(name, weights_folder),
        )
        for name in timm_names
    ]


def measure_costs(name: str, image_shape: Shape, *, classes: int = 10, stem: str = "stock") -> Costs:
    """Count a model's costs on the meta device, without memory for weights.

    Args:
        name: of the zoo.
        image_shape: (channels, height, width), after the resize with `stem: resize`.
        classes: width of the logits.
        stem: `stock` or `cifar`.

    Raises:
        ModelError: unknown name, or no such stem for the family.
        RuntimeError: the network is too deep for these images.
    """
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"), torch.no_grad():
        if name in NETWORKS:
            inner = NETWORKS[name](image_shape, classes)
        else:
            inner = timm_models.create(name, image_shape, classes, stem=stem)
        inner.eval()
        images = torch.zeros(1, *image_shape)
        with FlopCounterMode(display=False) as counter:
            inner(images)
        final = feature_map(inner, images)
    parameters = sum(parameter.numel() for parameter in inner.parameters())
    # The counter counts a multiply-accumulate as two operations.
    return Costs(parameters, counter.get_total_flops() / 2e9, final)


def feature_map(inner: nn.Module, images: Tensor) -> tuple[int, int]:
    """Return height and width of the last feature map of images [B, C, H, W]; (1, 1) without one."""
    features: Tensor = inner.forward_features(images)  # type: ignore[operator]
    if features.ndim == 4:
        channels_last = getattr(inner, "output_fmt", "NCHW") == "NHWC"
        height, width = features.shape[1:3] if channels_last else features.shape[2:4]
        return int(height), int(width)
    if features.ndim == 3:
        side = math.isqrt(features.shape[1] - int(getattr(inner, "num_prefix_tokens", 0)))
        return side, side
    return 1, 1
