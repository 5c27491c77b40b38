"""From a name to a `Classifier`: our own networks and every timm model, adapted to the images at hand."""

import fnmatch
import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from comp.config import ModelConfig
from comp.config.section import height_and_width
from comp.models import stems, surgery, timm_models, weights
from comp.models.classifier import Classifier, Resize
from comp.models.coursework.networks import NETWORKS
from comp.runtime.errors import ModelError, UserError, unknown

Shape = tuple[int, int, int]  # channels, height, width
Numbers = Sequence[float]


def build(
    config: ModelConfig,
    *,
    classes: int,
    image_shape: Shape,
    mean: Numbers,
    std: Numbers,
    seed: int,
    weights_folder: Path | None = None,
) -> Classifier:
    """Return the configured model on the CPU, frozen as in the first epoch; its initial weights depend on `seed` alone.

    Args:
        config: the section `model`.
        classes: width of the logits.
        image_shape: (channels, height, width) of the images that will come.
        mean: of the dataset's pixels, one value a channel, in 0..1.
        std: of the dataset's pixels, one value a channel, in 0..1.
        seed: of the weights.
        weights_folder: where `pretrained: true` looks for `<name>.safetensors` before it asks the hub.

    Raises:
        ModelError: an unknown name or argument, a family without the stem, weights that are missing or do not fit.
    """
    size = None if config.input_size is None else height_and_width(config.input_size)
    seen = image_shape if size is None else (image_shape[0], *size)
    check_model(config)
    file = _weights_file(config, weights_folder)
    state, facts = weights.read(file, sha256=config.sha256) if file else ({}, {})
    ours = any(name.startswith("inner.") for name in state)
    with _seeded(seed):
        inner = _network(config, seen, classes, {} if ours else state, file)
    _demand_fit(inner, config, seen)
    resize = Resize(size, config.interpolation) if size else None
    mean, std = _normalization(config, inner, image_shape[0], (mean, std))
    model = Classifier(inner, mean=mean, std=std, each=config.normalize == "per_image", resize=resize)
    if ours:
        surgery.load_from_run(model, state, where=str(file), normalization=config.normalize in ("auto", "pretrained"))
    model.weights_source = f"{file} (sha256 {facts['sha256']})" if file else "drawn at random"
    apply_freezing(model, config, epoch=1)
    return model


def build_on_meta(config: ModelConfig, *, classes: int, image_shape: Shape) -> Classifier:
    """Return the configured model without memory for its weights: for its names and shapes; of any size in a second.

    Args:
        config: the section `model`; where weights come from is not looked at.
        classes: width of the logits.
        image_shape: (channels, height, width) of the images that will come.

    Raises:
        ModelError: as `build`, weights apart.
    """
    check_model(config)
    channels = image_shape[0]
    size = None if config.input_size is None else height_and_width(config.input_size)
    seen = image_shape if size is None else (channels, *size)
    with torch.device("meta"):
        inner = _network(config, seen, classes, {}, None)
        resize = Resize(size, config.interpolation) if size else None
        model = Classifier(inner, mean=[0.0] * channels, std=[1.0] * channels, resize=resize)
        if size:  # else what comes may have another size than this
            _demand_fit(inner, config, seen)
    apply_freezing(model, config, epoch=1)
    return model


def published_side(name: str) -> int:
    """Return the side in pixels of the images that a model is published for."""
    return 32 if name in NETWORKS else int(timm_models.meta_model(name).pretrained_cfg["input_size"][-1])


def supports_single_images(model: Classifier, image_shape: Shape) -> bool:
    """Tell whether a `build_on_meta` can be trained on one image at a time: batch norm of 1x1 maps needs two values."""
    try:
        with torch.no_grad():
            model.train()(torch.zeros(1, *image_shape, device="meta"))
    except ValueError as error:
        return "more than 1 value per channel" not in str(error)
    return True


def apply_freezing(model: Classifier, config: ModelConfig, *, epoch: int) -> None:
    """Set what `model.freeze` and `model.unfreeze` have trained in an epoch (from 1), in place."""
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
    """Return the timm module a model is defined in (`resnet`, `vision_transformer`), or the name of our network.

    Raises:
        ModelError: an unknown name.
    """
    if name in NETWORKS:
        return name
    _demand_known(name)
    return timm_models.architecture(name)


def family(name: str) -> str:
    """Return a model's kind for the competition's rules: `convolutional`, `transformer`, `mlp`, ..., `unclassified`.

    Raises:
        ModelError: an unknown name.
    """
    if name in NETWORKS:
        return stems.OWN_KINDS[name]
    _demand_known(name)
    return timm_models.family_of(name).kind


def check_family_allowed(name: str, banned: Sequence[str]) -> None:
    """Check a model against `competition.rules.banned_families`.

    Raises:
        ModelError: its kind or its architecture is banned or cannot be told, or nothing bears a banned name.
    """
    kind, module = family(name), architecture(name)
    known = {*stems.FAMILIES, *NETWORKS, *(row.kind for row in stems.FAMILIES.values())}
    for ban in banned:
        if ban not in known:
            raise ModelError(f"competition.rules.banned_families: {unknown('family', ban, known)}")
    if {kind, module} & set(banned) or (banned and kind == stems.UNCLASSIFIED.kind):
        raise ModelError(
            f"model.name: the rules ban {', '.join(banned)} and {name} is {kind} ({module}); choose another model: "
            "`comp models` lists their families"
        )


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Draw initial weights from `seed`, leaving torch's global generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def _demand_known(name: str) -> None:
    try:
        timm_models.meta_model(name)
    except ModelError as error:
        raise ModelError(f"model.name: {error}, and of our own there are {', '.join(NETWORKS)}") from None


def check_model(config: ModelConfig) -> None:
    """Refuse fields that do not fit the network or one another; nothing is built.

    Raises:
        ModelError: naming the field and what it takes.
    """
    own = config.name in NETWORKS
    if not own:
        _demand_known(config.name)
    wrong = {
        f"model.timm: expected nothing for {config.name}, which is ours; its arguments go in model.args": (
            own and config.timm
        ),
        f"model.args: expected nothing for {config.name}; a timm model's arguments go in model.timm": (
            not own and config.args
        ),
        f"model.stem: {config.name} is made for small images as it is; expected stock or resize": (
            own and config.stem == "cifar"
        ),
        f"model.pretrained: no weights are published for {config.name}; expected false or a file": (
            own and config.pretrained is True
        ),
    }
    for message, found in wrong.items():
        if found:
            raise ModelError(message)
    _check_arguments(config, "model.args" if own else "model.timm", config.args or config.timm)


def _check_arguments(config: ModelConfig, field: str, given: Mapping[str, Any]) -> None:
    """Check names against the factory's own arguments."""
    known = _known_arguments(config.name)
    for name in given:
        if name not in known:
            raise ModelError(f"{field}: {unknown(f'argument of {config.name}', name, known)}")
    for name, rate in _rates(config).items():
        if name not in known:
            raise ModelError(f"model.{name}: {config.name} has none; expected null, found {rate}")
        if name in given:
            raise ModelError(f"{field}.{name}: stands in model.{name} too; keep one of them")
    for name, value in given.items():
        if "drop" in name and isinstance(value, int | float) and not 0 <= value < 1:
            raise ModelError(f"{field}.{name}: expected a share from 0 to less than 1, found {value}")


def _known_arguments(name: str) -> list[str]:
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


def _network(
    config: ModelConfig, shape: Shape, classes: int, state: weights.State, file: Path | None
) -> nn.Module:  # fmt: skip
    """Return the inner model, with a timm model's published weights in it."""
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
    if state:
        weights.load_state(inner, state, where=str(file))
    return inner


def _demand_fit(inner: nn.Module, config: ModelConfig, shape: Shape) -> None:
    """Run one blank image, so that a network too deep for its images is refused here and not in the first step."""
    was_training = inner.training
    inner.eval()
    try:
        with torch.no_grad():
            inner(torch.zeros(1, *shape))
    except NotImplementedError:
        pass  # what a build_on_meta cannot compute
    except timm_models.WRONG_ARGUMENTS as error:
        reason = timm_models.first_lines(error, 200)
        raise ModelError(
            f"model.name: {config.name} with stem {config.stem} cannot take {shape[1]}x{shape[2]} px images"
            f"{f' ({reason})' if reason else ''}; {_wider(config)}"
            f"{_own_size(inner) if shape[1] != shape[2] else ''}"
        ) from None
    inner.train(was_training)


def _own_size(inner: nn.Module) -> str:
    """Return what helps a network of fixed size against oblong images: the size that it was made for."""
    size: Sequence[int] = getattr(inner, "pretrained_cfg", {}).get("input_size", ())
    return f"; it was made for {size[1]}x{size[2]}: model.stem=resize model.input_size={size[1]}" if size else ""


def _wider(config: ModelConfig) -> str:
    """Return how a network that is too deep for its images may get along with them."""
    if config.name in NETWORKS or config.stem == "resize":
        return (
            "choose a larger input_size, or another network"
            if config.stem == "resize"
            else ("use stem: resize with a larger input_size, or another network")
        )
    side = published_side(config.name)
    resize = f"use stem: resize with a larger input_size, such as the {side} px that {config.name} is made for"
    has_stem = timm_models.family_of(config.name).has_cifar_stem and config.stem != "cifar"
    return f"use stem: cifar, or {resize.removeprefix('use ')}" if has_stem else resize


def _normalization(
    config: ModelConfig, inner: nn.Module, channels: int, dataset: tuple[Numbers, Numbers]
) -> tuple[Numbers, Numbers]:
    """Return mean and deviation, one value a channel, by `model.normalize`."""
    wanted = config.normalize
    published: Mapping[str, Any] = getattr(inner, "pretrained_cfg", {})
    if not isinstance(wanted, str):
        return _given_normalization(wanted, channels)
    # A file of ours brings its own mean and deviation along when it is adopted.
    if wanted in ("dataset", "per_image") or not config.pretrained or not published:
        return dataset
    return _spread(published["mean"], channels), _spread(published["std"], channels)


def _given_normalization(wanted: Mapping[Any, Numbers], channels: int) -> tuple[Numbers, Numbers]:
    mean, std = wanted.get("mean", ()), wanted.get("std", ())
    if len(mean) != channels or len(std) != channels or min(std) <= 0:
        raise ModelError(
            f"model.normalize: expected mean and std of {channels} numbers each, std above 0, "
            f"found {len(mean)} and {len(std)} numbers: {dict(wanted)}"
        )
    return mean, std


def _spread(values: Numbers, channels: int) -> Numbers:
    """Return published colour values for another number of channels: their mean, for each."""
    return values if len(values) == channels else [sum(values) / len(values)] * channels


@dataclass(frozen=True)
class ModelSummary:
    """One line of `comp models`, without what takes building a network to know."""

    name: str
    family: str
    """Its kind, as the competition's rules know it."""
    architecture: str
    """timm's module, or `ours`."""
    cifar_stem: bool
    weights: str
    """`file` (in the folder), `cached` (of the hub), `hub` (to be fetched), or empty where none are published."""


@dataclass(frozen=True)
class Costs:
    """What one model takes on one image."""

    parameters: int
    gmacs: float
    """Thousand million multiplications with addition in a forward pass."""
    feature_map: tuple[int, int]
    """Height and width of the last feature map; (1, 1) where there is none."""


def list_models(pattern: str = "*", *, weights_folder: Path | None = None) -> list[ModelSummary]:
    """Return our networks and timm's models whose names fit a glob, without building any.

    Args:
        pattern: such as `resne*t*`.
        weights_folder: where weights files lie as `<name>.safetensors`.
    """
    import timm

    own = [name for name in NETWORKS if fnmatch.fnmatchcase(name, pattern)]
    others: Sequence[str] = timm.list_models(pattern)
    return [ModelSummary(name, stems.OWN_KINDS[name], "ours", False, "") for name in own] + [
        ModelSummary(
            name,
            timm_models.family_of(name).kind,
            timm_models.architecture(name),
            timm_models.family_of(name).has_cifar_stem,
            _weights_at_hand(name, weights_folder),
        )
        for name in others
    ]


def measure_costs(name: str, image_shape: Shape, *, classes: int = 10, stem: str = "stock") -> Costs:
    """Return what a model costs, counted on a network without memory for its weights.

    Args:
        name: of the zoo.
        image_shape: (channels, height, width) of what it sees; after the resize under `stem: resize`.
        classes: width of the logits.
        stem: `stock` or `cifar`.

    Raises:
        ModelError: an unknown name, or a family without this stem.
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
    # The counter takes a multiplication and its addition for two operations.
    return Costs(parameters, counter.get_total_flops() / 2e9, final)


def feature_map(inner: nn.Module, images: Tensor) -> tuple[int, int]:
    """Return height and width of a network's last feature map on images [B, C, H, W]; (1, 1) where there is none."""
    features: Tensor = inner.forward_features(images)  # type: ignore[operator]
    if features.ndim == 4:
        by_pixel = getattr(inner, "output_fmt", "NCHW") == "NHWC"
        height, width = features.shape[1:3] if by_pixel else features.shape[2:4]
        return int(height), int(width)
    if features.ndim == 3:
        side = math.isqrt(features.shape[1] - int(getattr(inner, "num_prefix_tokens", 0)))
        return side, side
    return 1, 1


def _weights_at_hand(name: str, folder: Path | None) -> str:
    import timm

    cfg = timm.get_pretrained_cfg(name)
    if cfg is None or not cfg.has_weights:
        return ""
    if weights.local_file(name, folder):
        return "file"
    return "cached" if weights.cached_file(cfg.to_dict()) else "hub"
