"""From a name to a `Classifier`: our own networks and every timm model, adapted to the images at hand."""

import functools
import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from comp.config import ModelConfig
from comp.errors import ModelError, nearest, unknown
from comp.models import pretrained, stems, surgery, weights
from comp.models.classifier import Classifier, Resize
from comp.models.plain import NETWORKS

Shape = tuple[int, int, int]  # channels, height, width


def build(
    config: ModelConfig,
    *,
    classes: int,
    image_shape: Shape,
    mean: Sequence[float],
    std: Sequence[float],
    seed: int,
    weights_folder: Path | None = None,
) -> Classifier:
    """Return the configured model on the CPU; its initial weights depend on `seed` alone.

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
    seen = image_shape if config.input_size is None else (image_shape[0], config.input_size, config.input_size)
    with _seeded(seed):
        file = _weights_file(config, weights_folder)
        state, _ = weights.read(file, sha256=config.sha256) if file else ({}, {})
        ours = any(name.startswith("inner.") for name in state)
        if config.name in NETWORKS:
            inner = _own_network(config, seen, classes)
        else:
            inner = _timm_model(config, seen, classes, {} if ours else state, file)
    _demand_fit(inner, config, seen)
    mean, std = _normalization(config, inner, image_shape[0], (mean, std))
    resize = Resize(config.input_size, config.interpolation) if config.input_size else None
    model = Classifier(inner, mean=mean, std=std, resize=resize)
    if ours:
        keep = config.normalize in ("auto", "pretrained")
        surgery.adopt(model, state, where=str(file), normalization=keep)
    return model


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Draw initial weights from `seed`, leaving torch's global generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def _weights_file(config: ModelConfig, folder: Path | None) -> Path | None:
    if isinstance(config.pretrained, str):
        return Path(config.pretrained)
    if config.sha256 and not config.pretrained:
        raise ModelError("model.sha256: expected only together with model.pretrained, found it alone")
    if not config.pretrained:
        return None
    if config.name in NETWORKS:
        raise ModelError(f"model.pretrained: no weights are published for {config.name}; expected false or a file")
    return pretrained.find(config.name, sketch(config.name).pretrained_cfg, folder)


def _own_network(config: ModelConfig, shape: Shape, classes: int) -> nn.Module:
    factory = NETWORKS[config.name]
    known = [name for name in inspect.signature(factory).parameters if name not in ("shape", "classes")]
    _refuse_unknown("model.args", config.args, [name for name in known if name != "drop_rate"], config.name)
    if config.timm:
        raise ModelError(
            f"model.timm: expected nothing for {config.name}, which is ours: its arguments go in model.args"
        )
    if config.stem == "cifar":
        raise ModelError(f"model.stem: {config.name} is made for small images as it is; expected stock or resize")
    rates = _rates(config, known)
    try:
        return factory(shape, classes, **config.args, **rates)
    except TypeError as error:
        raise ModelError(f"model.args: {config.name} cannot be built from {dict(config.args)}: {error}") from None


def _timm_model(
    config: ModelConfig, shape: Shape, classes: int, state: weights.State, file: Path | None
) -> nn.Module:  # fmt: skip
    """Return a timm model with its stem, weights and head in place."""
    if config.args:
        raise ModelError(f"model.args: expected nothing for {config.name}: a timm model's arguments go in model.timm")
    known = accepted_arguments(config.name)
    _refuse_unknown("model.timm", config.timm, known, config.name)
    arguments: dict[str, Any] = {"in_chans": shape[0], **_rates(config, known)}
    if "img_size" in known:
        arguments["img_size"] = shape[1:]
    family = _family(config.name)
    if config.stem == "cifar":
        _demand_stem(config.name, family)
        arguments |= family.arguments(shape[1]) if family.arguments else {}
    arguments |= config.timm
    inner = _created(config.name, arguments, classes, state, file)
    if config.stem == "cifar" and family.relaxed:
        stems.relax_strides(inner, shape[0])
    return inner


def _created(
    name: str, arguments: Mapping[str, Any], classes: int, state: weights.State, file: Path | None
) -> nn.Module:  # fmt: skip
    """Return timm's model; with weights it is first built for their classes, so that every one of them must fit."""
    try:
        if not state:
            fresh: nn.Module = timm.create_model(name, num_classes=classes, **arguments)
            return fresh
        cfg = sketch(name).pretrained_cfg
        found = _classes_of(state, cfg)
        overlay = {"state_dict": state, "num_classes": found, "source": "", "custom_load": False, "label_offset": 0}
        inner: nn.Module = timm.create_model(
            name, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=found, **arguments
        )
    except RuntimeError as error:
        if not state:
            raise
        raise ModelError(f"{file}: these weights do not fit {name}: {_first_lines(error)}") from None
    except (TypeError, ValueError, AssertionError) as error:
        raise ModelError(f"model.timm: {name} cannot be built from {dict(arguments)}: {_first_lines(error)}") from None
    if found != classes:
        inner.reset_classifier(classes)  # type: ignore[operator]
    return inner


def _classes_of(state: weights.State, cfg: Mapping[str, Any]) -> int:
    """Return how many classes weights were trained for: by their head, else by timm's facts."""
    names = cfg.get("classifier") or ()
    first = names if isinstance(names, str) else next(iter(names), "")
    head = state.get(f"{first}.weight")
    return int(head.shape[0]) if head is not None else int(cfg.get("num_classes", 0))


def _first_lines(error: Exception, most: int = 600) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= most else text[:most] + " ..."


@functools.lru_cache(maxsize=256)
def sketch(name: str) -> Any:
    """Return a timm model without memory for its weights: for its facts, arguments and costs; treat as read-only.

    Raises:
        ModelError: an unknown name.
    """
    if not timm.is_model(name.partition(".")[0]):
        known = [*NETWORKS, *timm.list_models()]
        raise ModelError(
            f"model.name: unknown model '{name}'{nearest(name, known)}; expected one of {', '.join(NETWORKS)} "
            "or a timm model: `comp models 'resne*t*'` lists those of a pattern"
        )
    with torch.device("meta"):
        try:
            return timm.create_model(name)
        except RuntimeError as error:
            raise ModelError(f"model.name: {error}") from None


def accepted_arguments(name: str) -> list[str]:
    """Return names of the arguments that `model.timm` and this toolkit may pass to a timm model's factory."""
    taken = {"self", "num_classes", "in_chans", "cfg", "kwargs", "args"}
    names = {parameter for cls in type(sketch(name)).__mro__[:2] for parameter in inspect.signature(cls).parameters}
    return sorted(names - taken)


def _refuse_unknown(field: str, given: Mapping[str, Any], known: Sequence[str], model: str) -> None:
    for name in given:
        if name not in known:
            raise ModelError(f"{field}: {unknown(f'argument of {model}', name, known)}")


def _rates(config: ModelConfig, known: Sequence[str]) -> dict[str, float]:
    """Return the drop rates that are set, if the network has them."""
    rates = {"drop_rate": config.drop_rate, "drop_path_rate": config.drop_path_rate}
    given = {name: rate for name, rate in rates.items() if rate is not None}
    for name in given:
        if name not in known:
            raise ModelError(f"model.{name}: {config.name} has none; expected null, found {given[name]}")
    return given


def _demand_stem(name: str, family: stems.Family) -> None:
    if not family.has_cifar_stem:
        supported = sorted(module for module, row in stems.FAMILIES.items() if row.has_cifar_stem)
        raise ModelError(
            f"model.stem: no cifar stem is known for the family of {name} ({architecture(name)}); expected a model of "
            f"{', '.join(supported)}, or `stem: resize` with an input_size"
        )


def _demand_fit(inner: nn.Module, config: ModelConfig, shape: Shape) -> None:
    """Run one blank image, so that a network too deep for its images is refused here and not in the first step."""
    was_training = inner.training
    inner.eval()
    try:
        with torch.no_grad():
            inner(torch.zeros(1, *shape))
    except (RuntimeError, ValueError, AssertionError) as error:
        raise ModelError(
            f"model.name: {config.name} with stem {config.stem} cannot take {shape[1]}x{shape[2]} px images "
            f"({_first_lines(error, 200)}); try stem: cifar, or stem: resize with a larger input_size"
        ) from None
    inner.train(was_training)


def _normalization(
    config: ModelConfig, inner: nn.Module, channels: int, dataset: tuple[Sequence[float], Sequence[float]]
) -> tuple[Sequence[float], Sequence[float]]:
    """Return mean and deviation, one value a channel, by `model.normalize`."""
    wanted = config.normalize
    cfg = getattr(inner, "pretrained_cfg", {})
    if isinstance(wanted, str):
        if wanted == "dataset" or (wanted == "auto" and not (config.pretrained and cfg)):
            return dataset
        if not cfg:
            return dataset  # a file of our own brings its normalisation along
        return _spread(cfg["mean"], channels), _spread(cfg["std"], channels)
    mean, std = wanted.get("mean", ()), wanted.get("std", ())
    if len(mean) != channels or len(std) != channels or min(std, default=0) <= 0:
        raise ModelError(
            f"model.normalize: expected mean and std of {channels} numbers each, std above 0, "
            f"found {len(mean)} and {len(std)} numbers: {dict(wanted)}"
        )
    return mean, std


def _spread(values: Sequence[float], channels: int) -> list[float]:
    """Return published colour values for another number of channels: their mean, for each."""
    return list(values) if len(values) == channels else [sum(values) / len(values)] * channels


def architecture(name: str) -> str:
    """Return the timm module a model is defined in (`resnet`, `vision_transformer`), or the name of our network.

    Raises:
        ModelError: an unknown name.
    """
    if name in NETWORKS:
        return name
    sketch(name)
    entry = timm.models.model_entrypoint(name.partition(".")[0])
    return str(entry.__module__).rpartition(".")[2]


def _family(name: str) -> stems.Family:
    return stems.family_of(name, architecture(name))


def family(name: str) -> str:
    """Return a model's kind for the competition's rules: `convolutional`, `transformer`, `mlp`, ..., `unclassified`."""
    return stems.OWN_KINDS[name] if name in NETWORKS else _family(name).kind


def refuse_banned(name: str, banned: Sequence[str]) -> None:
    """Check a model against `competition.rules.banned_families`.

    Raises:
        ModelError: its kind or its architecture is banned, or it cannot be told.
    """
    kind, module = family(name), architecture(name)
    broken = [ban for ban in banned if ban in (kind, module)]
    if broken or (banned and kind == "unclassified"):
        raise ModelError(
            f"model.name: the rules ban {', '.join(banned)} and {name} is {kind} ({module}); choose another model: "
            "`comp models` lists their families"
        )
