"""What a shift card suggests, and the config that follows it."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from comp import config as configs
from comp.augment import policies
from comp.config import Config
from comp.config.tasks import TASKS
from comp.config.yaml_io import dump_yaml, merge, parse_override
from comp.data.corruptions.recognise import CLEAN, MIXTURE, Verdict
from comp.data.corruptions.suite import CORRUPTIONS, NAMES, SEVERITIES
from comp.data.dataset import Dataset
from comp.data.shift_features import Property
from comp.inference.adapt import count_adaptable_layers
from comp.models import zoo
from comp.results import files
from comp.runtime.errors import ConfigError, UserError
from comp.workflows import checks

_TRUSTED = 0.5  # share of the likelihood from which a corruption leads to a suggestion
_LEAST_PART = 0.15  # of a mixture: smaller ones are often mistaken for a mild corruption
_SMALLEST_PHOTO = 48  # px: crops of photographs need room
_PLAIN = ("slight", "same")


@dataclass(frozen=True)
class Suggestion:
    """A key to change.

    Attributes:
        key: its dotted path.
        value: the new value.
        reason: why.
    """

    key: str
    value: Any
    reason: str


def suggest(
    config: Config, dataset: Dataset, verdicts: Mapping[str, Verdict], properties: Sequence[Property], *, alike: bool
) -> list[Suggestion]:
    """Return what to change in a config, within the competition's rules; nothing that it already has.

    Args:
        config: of the training.
        dataset: its data.
        verdicts: of the test's blocks.
        properties: compared ones.
        alike: whether nothing tells training and test apart.
    """
    corruptions = _seen_corruptions(verdicts)
    return [
        *_augmentation(config, dataset, corruptions, properties),
        *_validation(config, dataset, corruptions, alike=alike and not corruptions),
        *_adaptation(config, dataset, corruptions),
    ]


def _seen_corruptions(verdicts: Mapping[str, Verdict]) -> dict[str, set[int]]:
    """Return the corruptions that blocks look like -> their severities, in the suite's order."""
    seen: dict[str, set[int]] = {}
    for verdict in verdicts.values():
        if verdict.is_corruption and verdict.share >= _TRUSTED:
            seen.setdefault(verdict.name, set()).add(verdict.severity)
        elif verdict.name == MIXTURE:
            for name, part in verdict.mixture.items():
                if name != CLEAN and part >= _LEAST_PART:
                    seen.setdefault(name, set()).update(SEVERITIES[::2])  # a mixture tells no severity
    return {name: seen[name] for name in NAMES if name in seen}


def _listed(corruptions: Mapping[str, set[int]]) -> str:
    return f"{len(corruptions)} corruptions" if len(corruptions) > 4 else ", ".join(corruptions)


def _augmentation(
    config: Config, dataset: Dataset, corruptions: Mapping[str, set[int]], properties: Sequence[Property]
) -> list[Suggestion]:
    present = config.augment.policy
    names = [name for name in ([present] if isinstance(present, str) else present) if name != "none"]
    added: dict[str, str] = {}
    channels, *sides = dataset.competition.image_shape
    differs = {row.name for row in properties if row.word not in _PLAIN}
    if corruptions and not {"robust", "robust_strict"} & set(names):
        allowed = config.competition.rules.test_like_augmentation
        added["robust" if allowed else "robust_strict"] = f"the test looks like {_listed(corruptions)}" + (
            "" if allowed else "; the rules forbid imitating them, so no op of this policy does"
        )
    colours = sorted(differs & {"brightness", "contrast", "saturation"})
    if not corruptions and colours and not {"color_jitter", "photo", "robust"} & set(names):
        verb = "differs" if len(colours) == 1 else "differ"
        added["color_jitter"] = f"{' and '.join(colours)} {verb}, and no known corruption explains it"
    frames = sorted(differs & {"width", "height", "aspect ratio"})
    crops = policies.resolve(names, config.augment.ops).crop is not None
    if frames and min(sides) >= _SMALLEST_PHOTO and not crops:
        added["photo"] = f"files differ in {', '.join(frames)}, so that objects have other scales; it flips, too"
        names = [name for name in names if name != "basic"]
    if not added or channels not in (1, 3):
        return []
    reason = "; ".join(f"{name}: {why}" for name, why in added.items())
    return [Suggestion("augment.policy", [*names, *added], reason)]


def _validation(
    config: Config, dataset: Dataset, corruptions: Mapping[str, set[int]], *, alike: bool
) -> list[Suggestion]:
    section = config.competition.ood_validation
    if dataset.val is None:
        return []
    key = "competition.ood_validation"
    if alike and section.severities:
        return [
            Suggestion(f"{key}.severities", [], "the test looks like training images: plain validation measures it")
        ]
    if not corruptions:
        return []
    severities = sorted(set().union(*corruptions.values()))
    left_out = _left_out(corruptions)
    suggestions = []
    if severities != list(section.severities):
        reason = f"validation under the severities that the test seems to have, of {_listed(corruptions)}"
        suggestions.append(Suggestion(f"{key}.severities", severities, reason))
    if set(left_out) != set(section.leave_out):
        reason = "leaves out the corruptions that no block of the test looks like" if left_out else "all were seen"
        suggestions.append(Suggestion(f"{key}.leave_out", left_out, reason))
    return suggestions


def _left_out(corruptions: Mapping[str, set[int]]) -> list[str]:
    """Return the families and single corruptions that were not seen."""
    families: dict[str, list[str]] = {}
    for name, row in CORRUPTIONS.items():
        families.setdefault(row.family, []).append(name)
    left_out: list[str] = []
    for family, names in families.items():
        unseen = [name for name in names if name not in corruptions]
        left_out += [family] if len(unseen) == len(names) else unseen
    return left_out


def _adaptation(config: Config, dataset: Dataset, corruptions: Mapping[str, set[int]]) -> list[Suggestion]:
    competition = dataset.competition
    if not corruptions or config.predict.adapt != "none" or "bn" not in TASKS[competition.task].adaptations:
        return []
    model = zoo.build_on_meta(config.model, classes=len(competition.classes), image_shape=competition.image_shape)
    if not count_adaptable_layers(model, "bn"):
        return []
    reason = "batch norm statistics of the test, because its images are corrupted; transductive"
    return [Suggestion("predict.adapt", "bn", reason)]


def check_target(config: Config, path: Path, base: Path, *, force: bool) -> None:
    """Check a path for `write_suggestions`, before the card is measured.

    Raises:
        ConfigError: a folder, an existing file without `force`, the base itself, or rules that forbid to learn from the
            test's images.
    """
    if not config.competition.rules.transductive:
        raise ConfigError(
            "--write: suggestions come from the test's images, which competition.rules.transductive=false forbids to "
            "learn from; leave --write out"
        )
    if path.is_dir():
        raise ConfigError(f"--write: expected a file's name, found the folder {path}; for example {path / 'new.yaml'}")
    if path.exists() and path.resolve() == base.resolve():
        raise ConfigError(f"--write: {path} is the config that the new one extends; choose another file")
    if path.exists() and not force:
        raise ConfigError(f"--write: {path} exists; choose another file, or replace it with --force")


def write_suggestions(
    config: Config,
    suggestions: Sequence[Suggestion],
    path: Path,
    *,
    base: Path,
    overrides: Sequence[str] = (),
    runs: Path = Path("runs"),
) -> Path:
    """Write a config that extends another one, with each suggestion below its reason; return its path.

    Args:
        config: with the overrides applied.
        suggestions: to write, at least one.
        path: of the new YAML file; see `check_target`.
        base: the file that it extends.
        overrides: `key=value` of the command line, which are written too.
        runs: for the checks of a training.

    Raises:
        ConfigError: they make a config that cannot be trained.
    """
    changes: dict[str, Any] = {}
    for suggestion in suggestions:
        changes = merge(changes, _nested(suggestion.key.split("."), suggestion.value))
    try:
        checks.check_config(configs.from_mapping(merge(config.model_dump(mode="json"), changes), str(path)), runs)
    except UserError as error:
        raise ConfigError(f"--write: the suggestions do not fit this config, {path} is not written: {error}") from None
    for override in overrides:
        keys, value, _ = parse_override(override)
        changes = merge(_nested([str(key) for key in keys], value), changes)
    lines = ["# Made by: comp data shift", "# Not measured yet. Train it: comp run THIS_FILE"]
    lines.append(dump_yaml({"extends": os.path.relpath(base, path.parent)}, allow_unicode=True).rstrip())
    for section, values in changes.items():
        reasons = [row for row in suggestions if row.key.partition(".")[0] == section]
        lines += [f"# {row.key.partition('.')[2]}: {row.reason}" for row in reasons]
        lines.append(dump_yaml({section: values}, allow_unicode=True).rstrip())
    files.make_folder(path.parent)
    files.write_atomically(path, ("\n".join(lines) + "\n").encode())
    return path


def _nested(keys: Sequence[str], value: Any) -> dict[str, Any]:
    """Return `{a: {b: value}}` of the keys a and b."""
    for key in reversed(keys):
        value = {key: value}
    nested: dict[str, Any] = value
    return nested
