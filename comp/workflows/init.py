"""`comp init DIR`: write a config for a download, after opening its data with every check of a training."""

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from comp import config as configs
from comp.config import Config, parse_duration
from comp.config.tasks import TASKS
from comp.config.yaml_io import dump_yaml, parse_override
from comp.data.dataset import Dataset, open_dataset
from comp.data.sources.detect import Layout, detect_layout
from comp.models import weights
from comp.results import files, metrics
from comp.runtime import device
from comp.runtime.errors import ConfigError, DataError, plural, unknown
from comp.runtime.progress import Progress, quiet
from comp.workflows.build import check_opened

FOLDS = 5
_SMALL_SIDE = 48  # px: up to here images keep their size and fastnet is the network
_SHORT_SECONDS = 60  # of a fold's training: below, timing how to run takes much of it
_TINY_SIDE = 8  # px: of fewer, no shape can be told
_IMBALANCED = 10  # times the images of the smallest class
_MUON_IMAGES = 10_000  # training images from which fastnet's own recipe, with large batches, is known to work
_BARE = re.compile(r"[A-Za-z0-9_./~-][A-Za-z0-9_./~ -]*(?<! )")  # text that needs no quotes in YAML
_MUON = {  # of configs/cifar10/fastnet.yaml
    "name": "muon",
    "lr": 0.24,
    "momentum": 0.6,
    "weight_decay": 0.0,
    "schedule": "linear",
    "warmup": 0.0,
    "final_factor": 0.0,
    "aux_lr": 106.0,
    "aux_decay": 0.004,
    "decay_all": True,
    "multipliers": {"classifier": 0.01645},
}
_LABELS_METRIC = "samples_f1"  # of a multi-label sample without probabilities
_PHOTO_NETWORK, _SCRATCH_NETWORK = "tf_efficientnet_lite0", "resnet18"


@dataclass(frozen=True)
class Preset:
    """How much a config spends.

    Attributes:
        budget: for all folds together.
        size: of fastnet.
        sides: px of larger images, on a CPU and on a GPU.
        views: test-time views.
    """

    budget: str
    size: str
    sides: tuple[int, int]
    views: str


PRESETS = {
    "fast": Preset("5min", "S", (64, 128), "none"),
    "good": Preset("50min", "M", (96, 224), "flip"),
    "best": Preset("4h", "L", (128, 288), "flip_shift"),
}


@dataclass(frozen=True)
class Draft:
    """A config for a download.

    Attributes:
        text: the YAML.
        config: its values, checked.
        dataset: its data, opened and checked.
        findings: what the data show.
        guesses: what no evidence settles, with the key to set.
        advice: what the data call for, and the config leaves to you.
    """

    text: str
    config: Config
    dataset: Dataset
    findings: tuple[str, ...]
    guesses: tuple[str, ...]
    advice: tuple[str, ...] = ()


@dataclass
class _Sections:
    """The config's values, and dotted key -> comment."""

    values: dict[str, Any] = field(default_factory=dict)
    comments: dict[str, str] = field(default_factory=dict)


def draft_config(
    root: Path,
    *,
    metric: str = "auto",
    budget: str = "",
    preset: str = "good",
    overrides: Sequence[str] = (),
    progress: Progress = quiet,
) -> Draft:
    """Return a config for a download.

    Args:
        root: its folder.
        metric: the competition's, `auto` if unknown.
        budget: training time of all folds together; empty: the preset's.
        preset: a row of `PRESETS`.
        overrides: `key=value`, which win over what is detected.
        progress: called while files are read.

    Raises:
        UserError: nothing that can be trained on, a wrong option, or data that no config of this kind can open.
    """
    if preset not in PRESETS:
        raise ConfigError(f"--preset: {unknown('preset', preset, PRESETS)}")
    seconds = _read_budget(budget or PRESETS[preset].budget)
    layout = detect_layout(root)
    sections = _Sections()
    _describe_competition(sections, root, layout, metric)
    _describe_data(sections, root, layout, PRESETS[preset])
    folds = _load(sections, overrides).data.folds
    if folds is None:
        sections.values["data"].pop("folds", None)
        sections.values["data"].pop("fold", None)
    dataset = _open(sections, overrides, root, progress)
    guesses = [*layout.guesses]
    if metric == "auto":
        usual = "the usual one where a sample lists labels" if _lists_labels(dataset) else "the usual one"
        guesses.append(
            f"competition.metric: {dataset.competition.metric} is {usual} of {dataset.competition.task}; take the "
            "competition's own: --metric NAME"
        )
    sections.values["competition"]["metric"] = dataset.competition.metric
    sections.comments["competition.metric"] = "named" if metric != "auto" else "a guess: --metric names yours"
    _describe_training(sections, dataset, PRESETS[preset], seconds / (folds or 1), root)
    sections.comments["train.budget"] = f"of a fold; {_format_duration(seconds)} for {folds}" if folds else "in all"
    if any(override.startswith("model.name=") for override in overrides):
        sections.values["model"] = {}  # its arguments are those of another network
    config = _load(sections, overrides)
    guesses += _guess_mirroring(sections, config)
    return Draft(
        _to_yaml(sections, root, preset, config, overrides),
        config,
        dataset,
        tuple(_findings(sections, layout, dataset, config)),
        tuple(guesses),
        tuple(_advise(dataset, config)),
    )


def _guess_mirroring(sections: _Sections, config: Config) -> Iterator[str]:
    """Yield whether training mirrors images, which nothing in the data settles, and how to change it."""
    policy = config.augment.policy
    if policy != sections.values["augment"]["policy"]:
        return
    views = f" and predict.views={config.predict.views}" if "flip" in config.predict.views else ""
    mirrors = f"{views} mirror images; for digits, text or sides: augment.policy=rotation predict.views=none"
    yield f"augment.policy: {policy}{mirrors if policy != 'none' else ', ' + sections.comments['augment.policy']}"


def _advise(dataset: Dataset, config: Config) -> Iterator[str]:
    """Yield what to do about a short budget, tiny images, and classes of very different sizes."""
    if config.data.folds and config.train.budget and parse_duration(config.train.budget) < _SHORT_SECONDS:
        yield (
            f"budget: {config.train.budget} a fold, some of which goes into timing how to run on this machine; give "
            f"all folds more, such as --budget 5min, or train one: comp run CONFIG train.budget=1min"
        )
    _, height, width = dataset.competition.image_shape
    if min(height, width) < _TINY_SIDE:
        yield (
            f"images: {width} x {height} pixels are too few to tell classes apart; check that these files are the "
            "whole images, and that data.image_size is meant"
        )
    task, balances = TASKS[dataset.competition.task], (config.data.sampling, config.train.class_weights)
    if task.numeric or balances != ("natural", "none"):
        return
    names = dataset.competition.classes
    counts = dataset.train.class_counts(len(names))
    if dataset.val is not None:
        counts = counts + dataset.val.class_counts(len(names))
    sizes = {name: int(count) for name, count in zip(names, counts, strict=True) if count}
    most, least = max(sizes, key=sizes.__getitem__), min(sizes, key=sizes.__getitem__)
    if sizes[most] >= _IMBALANCED * sizes[least]:
        yield (
            f"imbalance: class {most} has {sizes[most]:,} images, {sizes[most] / sizes[least]:.0f} times the "
            f"{sizes[least]:,} of {least}; try data.sampling=sqrt or train.class_weights=effective"
        )


def check_output(path: Path, *, force: bool = False) -> None:
    """Check that a config can be written, before the data are opened.

    Raises:
        ConfigError: a folder, or the file exists and `force` is off.
    """
    if path.is_dir():
        raise ConfigError(f"{path}: expected a file's name, found a folder; for example -o {path / 'comp.yaml'}")
    if path.exists() and not force:
        raise ConfigError(f"{path}: exists; choose another file with -o, or replace it with --force")


def write_config(draft: Draft, path: Path, *, force: bool = False) -> None:
    """Write a draft's YAML.

    Raises:
        ConfigError: the file exists and `force` is off, or it cannot be written.
    """
    check_output(path, force=force)
    files.make_folder(path.parent)
    try:
        files.write_atomically(path, draft.text.encode(), replace=force)
    except FileExistsError:
        raise ConfigError(f"{path}: exists; choose another file with -o, or replace it with --force") from None


def _read_budget(text: str) -> float:
    try:
        return parse_duration(str(text))
    except ValueError as error:
        raise ConfigError(f"--budget: expected {error}, found '{text}'") from None


def _load(sections: _Sections, overrides: Sequence[str]) -> Config:
    return configs.from_mapping(sections.values, "the detected config", overrides)


def _open(sections: _Sections, overrides: Sequence[str], root: Path, progress: Progress) -> Dataset:
    """Open the data that the config describes, and check it against them.

    Without a metric, one of decided labels is taken where the sample submission shows those.

    Raises:
        UserError: naming the option or the key at fault, where it is one.
    """
    try:
        config = _load(sections, overrides)
        dataset = open_dataset(config, progress)
        if config.competition.metric == "auto" and _lists_labels(dataset):
            dataset = replace(dataset, competition=replace(dataset.competition, metric=_LABELS_METRIC))
        return check_opened(config, dataset)
    except DataError as error:
        all_keys = configs.flatten(Config())
        keys = [key for key in re.findall(r"\bdata(?:\.[a-z_]+)+", str(error)) if key in all_keys]
        hint = f"; to set it: comp init {root} {keys[0]}=VALUE" if keys else ""
        raise type(error)(f"{error}\n  detected so far: {_shorten(sections.values['data'])}{hint}") from None
    except ConfigError as error:
        message = str(error)
        is_option = message.startswith("competition.metric:") and not any(
            override.startswith("competition.metric=") for override in overrides
        )
        raise type(error)(f"--metric: {message.partition(': ')[2]}" if is_option else message) from None


def _lists_labels(dataset: Dataset) -> bool:
    """Return whether a sample submission shows decided labels of a multi-label task, and no probabilities."""
    sample, task = dataset.competition.sample, dataset.competition.task
    if sample is None or task != "multi_label":
        return False
    flags = {cell.strip() for row in sample.cells for cell in row}
    return len(sample.columns) == 1 or (flags <= {"0", "1"} and not sample.is_placeholder)


def _shorten(section: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in section.items() if key != "root")


def _describe_competition(sections: _Sections, root: Path, layout: Layout, metric: str) -> None:
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", root.resolve().name).strip("-._") or "competition"
    sections.values["competition"] = {
        "name": name,
        "metric": metric,
        "suite": {"source": "test" if layout.unlabelled_test else "none"},
    }
    sections.comments["competition.suite"] = (
        "the test images are submitted" if layout.unlabelled_test else "no test without labels, so nothing to submit"
    )


def _describe_data(sections: _Sections, root: Path, layout: Layout, preset: Preset) -> None:
    data = {"root": str(root), **layout.data}
    comments = {f"data.{key}": reason for key, reason in layout.reasons.items()}
    if layout.sizes:
        side, reason = _image_size(layout.sizes, preset.sides[device.choose_device("auto") != "cpu"])
        if side:
            data["image_size"] = side
        comments["data.image_size"] = reason
    if data.get("validation") != "official":
        data |= {"folds": FOLDS, "fold": 0}
        comments["data.folds"] = "the fold `fold` validates"
    sections.values["data"] = data
    sections.comments |= comments


def _image_size(sizes: Sequence[tuple[int, int]], most: int) -> tuple[int, str]:
    """Return the side that images are resized to, 0 to keep their size, and why."""
    distinct = Counter(sizes)
    shortest = sorted(min(size) for size in sizes)[len(sizes) // 2]
    common = distinct.most_common(1)[0][0]
    shown = f"{common[0]} x {common[1]}" if len(distinct) == 1 else f"{len(distinct)} sizes, median side {shortest}"
    if len(distinct) == 1 and max(common) <= _SMALL_SIDE:
        return 0, shown
    side = max(16, min(most, shortest) // 16 * 16)
    return side, f"in the files: {shown}"


def _describe_training(sections: _Sections, dataset: Dataset, preset: Preset, seconds: float, root: Path) -> None:
    channels, height, width = dataset.competition.image_shape
    count = len(dataset.train)
    small = max(height, width) <= _SMALL_SIDE and min(height, width) >= 16
    if small:
        _describe_small(sections, count, preset.size, grey=channels == 1)
    else:
        _describe_photos(sections, count, root)
    sections.values.setdefault("train", {})["budget"] = _format_duration(seconds)
    if TASKS[dataset.competition.task].numeric:
        sections.values["competition"]["task"] = dataset.competition.task
        sections.values["train"].pop("label_smoothing")
    if preset.views != "none" and height == width and channels != 1:
        sections.values["predict"] = {"views": preset.views}


def _describe_small(sections: _Sections, count: int, size: str, *, grey: bool) -> None:
    """Describe fastnet: with its own recipe where there are enough images, else with AdamW."""
    policy = "none" if grey else "mirrored_crop"
    sections.values["augment"] = {"policy": policy}
    sections.comments["augment.policy"] = (
        "grey images may be digits or letters, which must not be mirrored; else: basic" if grey else "shifts and flips"
    )
    if count < _MUON_IMAGES:
        sections.values["model"] = {"name": "fastnet", "args": {"size": size}}
        sections.values["optim"] = {"lr": 3e-3}
        sections.values["train"] = {"batch_size": _batch_size(count, 64), "label_smoothing": 0.1}
        return
    sections.values["model"] = {
        "name": "fastnet",
        "args": {"size": size, "patch": 3, "filters": 16, "bias": False, "scale": 0.10826},
    }
    sections.values["optim"] = dict(_MUON)
    sections.comments["optim.name"] = "the recipe of configs/cifar10/fastnet.yaml"
    sections.values["train"] = {"batch_size": _batch_size(count, 1000), "label_smoothing": 0.2}


def _describe_photos(sections: _Sections, count: int, root: Path) -> None:
    """Describe a network for larger images: pretrained where its weights lie in the weights folder."""
    files_of = {name: weights.local_file(name, root / "weights") for name in (_PHOTO_NETWORK, _SCRATCH_NETWORK)}
    name, local = next(((name, path) for name, path in files_of.items() if path), (_SCRATCH_NETWORK, None))
    sections.values["augment"] = {"policy": "photo"}
    sections.comments["augment.policy"] = "random resized crops, flips, mild colour jitter"
    if local:
        sections.values["model"] = {"name": name, "pretrained": True}
        sections.comments["model.pretrained"] = f"weights: {local}"
        sections.values["optim"] = {"lr": 1e-3}
    else:
        sections.values["model"] = {"name": name}
        places = " or ".join(map(str, weights.folders(root / "weights")))
        sections.comments["model.name"] = (
            f"from scratch: no {_PHOTO_NETWORK}.safetensors in {places}, and weights help most of all"
        )
        sections.values["optim"] = {"lr": 2e-3}
    sections.values["train"] = {"batch_size": _batch_size(count, 64), "label_smoothing": 0.1}


def _batch_size(count: int, most: int) -> int:
    """Return a batch size that leaves at least eight steps an epoch, and at least 8."""
    return max(8, min(most, 1 << int(math.log2(max(1, count // 8)))))


def _findings(sections: _Sections, layout: Layout, dataset: Dataset, config: Config) -> list[str]:
    competition = dataset.competition
    channels, height, width = competition.image_shape
    numeric = TASKS[competition.task].numeric
    labels = f"column {competition.classes[0]}" if numeric else plural(len(competition.classes), "class", "classes")
    direction = "higher" if metrics.metric(competition.metric).higher_is_better else "lower"
    lines = [
        f"metric: {competition.metric}, {direction} is better",
        f"source: {layout.data['source']}, {layout.reasons.get('source', '')}",
        f"labels: {competition.task}, {labels}, {len(dataset.train):,} training and "
        f"{plural(len(dataset.val or ()), 'validation image')} of {width} x {height} x {channels}",
    ]
    if "csv.group_column" in layout.reasons:
        lines.append(f"groups: {layout.data['csv']['group_column']}, {layout.reasons['csv.group_column']}")
    if "group_answer" in layout.reasons:
        lines.append(f"answers: one a group, {layout.reasons['group_answer']}")
    model = config.model
    comment = sections.comments.get("model.pretrained") or sections.comments.get("model.name") or "from scratch"
    lines.append(f"model: {model.name}, {comment}")
    return [*lines, *dataset.notes]


def _to_yaml(sections: _Sections, root: Path, preset: str, config: Config, overrides: Sequence[str]) -> str:
    """Return the YAML, a comment behind each key that has one."""
    for override in overrides:
        (*parents, key), value, _ = parse_override(override)
        section = sections.values
        for parent in parents:
            section = section.setdefault(str(parent), {})
        section[str(key)] = value
        sections.comments[".".join(map(str, (*parents, key)))] = "as you set it"
    how = "Train one fold: comp run THIS_FILE; all: comp cv" if config.data.folds else "Train it: comp run"
    lines = [f"# Made by: comp init {root} --preset {preset}", f"# Not measured yet. {how} THIS_FILE"]
    return "\n".join([*lines, *_block(sections.values, sections.comments, "", 0)]) + "\n"


def _block(values: Mapping[str, Any], comments: Mapping[str, str], path: str, depth: int) -> list[str]:
    """Return a mapping's lines; sections, and mappings with a comment inside, take a line for each key."""
    lines = []
    for key, value in values.items():
        name = f"{path}{key}"
        behind = f"  # {comments[name]}" if comments.get(name) else ""
        inside = isinstance(value, dict) and any(at.startswith(f"{name}.") for at in comments)
        if isinstance(value, dict) and (depth == 0 or inside):
            lines.append(f"{'  ' * depth}{key}:{behind}")
            lines += _block(value, comments, f"{name}.", depth + 1)
        else:
            lines.append(f"{'  ' * depth}{key}: {_flow(value)}{behind}")
    return lines


def _flow(value: Any) -> str:
    """Return a value as YAML on one line."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_flow(key)}: {_flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_flow, value)) + "]"
    if isinstance(value, str) and _BARE.fullmatch(value) and dump_yaml([value], allow_unicode=True) == f"- {value}\n":
        return value
    return json.dumps(value, ensure_ascii=False)


def _format_duration(seconds: float) -> str:
    return f"{seconds / 60:g}min" if seconds % 60 == 0 else f"{seconds:g}s"
