"""Load, dump, hash and flatten configs.

Before a config's values are checked, they are normalized, so that you need not spell every value as YAML wants it:
- An empty value (`key:`, `key=`, null) resets a key to its default; an empty section changes nothing.
- `none` also resets a key whose default is null, or that is a time.
- Text may look like a number or a boolean: class 007 is not class 7.
- yes, no, on and off are booleans for boolean keys, and text elsewhere.
- Paths may begin with `~` (home folder) and contain `${NAME}` (environment variables).
"""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from comp.config import messages, plugins
from comp.config.data import PseudoConfig
from comp.config.section import DURATION, PATH, alternatives, is_mapping, section_of
from comp.config.training import TeacherConfig
from comp.config.tree import Config
from comp.config.yaml_io import Document, Keys, describe_value, dump_yaml, parse_override, read_chain, user_path
from comp.runtime.errors import ConfigError, shortened

_LARGEST = 1e38  # number that single precision holds
_SHOWN = 20  # mistakes in one message
_BOOLEANS = {"yes": True, "on": True, "no": False, "off": False}


def load(path: Path | str, overrides: Sequence[str] = ()) -> Config:
    """Return the config of a YAML file with `key.path=value` overrides.

    An override sets one key and replaces its value, even a whole mapping. In a mapping with keys of your own
    (`model.args`, `tune.space`, ...) everything after the mapping's name is one key, including dots. `~` and `${NAME}`
    in paths are replaced here.

    Raises:
        ConfigError: lists all mistakes with file and line or override, expected and found values, and the nearest known
            key.
    """
    document, folder = Document({}), Path(path).parent
    for part in read_chain(Path(path)):
        if "plugins" in part.values:
            folder = Path(part.locations[()]).parent
        document = Document(_drop_empty_sections(part.values, Config), part.locations, part.spellings).over(document)
    return _validate(document, str(path), overrides, expand_paths=True, plugins_in=folder)


def load_stored(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Return the config stored with a run; its paths were resolved when the run was created.

    Args:
        path: the file.
        overrides: applied unchanged.

    Raises:
        ConfigError: see `load`.
    """
    *bases, document = read_chain(path)
    if bases:
        raise ConfigError(f"{path}: extends: a stored config is complete; remove the line")
    if isinstance(entries := document.values.get("plugins"), list) and all(isinstance(row, str) for row in entries):
        document.values["plugins"] = plugins.resolve_copies(entries, path.parent)
    return _validate(document, str(path), overrides, expand_paths=False)


def from_mapping(values: Mapping[str, Any], where: str, overrides: Sequence[str] = ()) -> Config:
    """Return the config of plain values with overrides; `where` names their source in messages.

    Raises:
        ConfigError: see `load`.
    """
    return _validate(Document(dict(values)), where, overrides, expand_paths=False)


def dump(config: Config) -> str:
    """Return the resolved config as YAML; loading it gives an equal config."""
    values = config.model_dump(mode="json")
    # PyYAML writes line separators (U+0085, U+2028) unescaped but reads them as line ends.
    is_printable = json.dumps(values, ensure_ascii=False).isprintable()
    return dump_yaml(values, allow_unicode=is_printable)


# Keys that were added after runs had been hashed, with the defaults that match the behaviour of those runs.
_LATER_KEYS: dict[str, dict[str, object]] = {
    "": {"plugins": []},
    "data": {
        "range": "auto",
        "label_pattern": "",
        "group_answer": "none",
        "sampling": "natural",
        "fixes": "",
        "pseudo": PseudoConfig().model_dump(mode="json"),
    },
    "data.csv": {"file_column": ""},
    "augment": {"albumentations": [], "delays": {}},
    "train": {
        "loss": "auto",
        "loss_args": {},
        "class_weights": "none",
        "teacher": TeacherConfig().model_dump(mode="json"),
    },
    "competition": {"test_shares": {}, "balance": "unknown"},
    "competition.rules": {"cross_block": True},
    "predict": {"decide": "auto", "prior": "none", "pool": "none"},
}


def fingerprint(config: Config) -> str:
    """Return a hash of what a run computes, without `track`, `tune` and `train.keep_state`: 16 hex digits of SHA-256.

    Later keys are hashed only if they differ from their defaults, so that the hashes of older runs stay valid.
    """
    values = config.model_dump(mode="json", exclude={"track": True, "tune": True, "train": {"keep_state"}})
    values["plugins"] = plugins.portable(config.plugins)
    for path, keys in _LATER_KEYS.items():
        section = values
        for name in path.split(".") if path else ():
            section = section[name]
        for key in [key for key, default in keys.items() if section[key] == default]:
            del section[key]
    values["augment"]["engine"] = config.augment.engine  # all earlier hashes include it
    canonical = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def settings(config: Config) -> dict[str, Any]:
    """Return dotted path -> plain value of what `fingerprint` hashes and no default sets."""
    defaults, ignored = flatten(Config()), ("track.", "tune.", "train.keep_state")
    return {
        path: value
        for path, value in flatten(config).items()
        if value != defaults.get(path) and not path.startswith(ignored)
    }


def flatten(config: Config) -> dict[str, Any]:
    """Return dotted path -> plain value, as in overrides; mappings with keys of your own stay whole."""

    def walk(section: BaseModel, values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
        leaves: dict[str, Any] = {}
        for name, value in values.items():
            child = getattr(section, name)
            leaves |= walk(child, value, f"{prefix}{name}.") if isinstance(child, BaseModel) else {prefix + name: value}
        return leaves

    return {**walk(config, config.model_dump(mode="json"), ""), "plugins": plugins.portable(config.plugins)}


def schema() -> dict[str, Any]:
    """Return the JSON schema of a config file, for editors."""
    tree = Config.model_json_schema()
    tree["properties"]["extends"] = {"type": "string", "description": "path of the YAML file that this file extends"}
    return tree


def _drop_empty_sections(values: Mapping[str, Any], model: type[BaseModel]) -> dict[str, Any]:
    """Return a file's values without empty sections, which must not reset those of a base file."""
    kept: dict[str, Any] = {}
    for name, value in values.items():
        section = section_of(model.model_fields.get(name))
        if section and value and isinstance(value, Mapping):
            kept[name] = _drop_empty_sections(value, section)
        elif section is None or value is not None:
            kept[name] = value
    return kept


def _validate(
    document: Document, where: str, overrides: Sequence[str], *, expand_paths: bool, plugins_in: Path | None = None
) -> Config:
    """Return the config of a document with overrides; plug-ins are files in the folder `plugins_in`, if it is given."""
    mistakes: list[str] = []
    for text in overrides:
        try:
            document = _apply_override(document, text)
        except ConfigError as error:
            mistakes.append(str(error))
    path_mistakes: dict[Keys, str] = {}
    values = _normalize(document.values, Config, (), document.spellings)
    if expand_paths:
        values = _expand_paths(values, Config, (), path_mistakes)
    if plugins_in and isinstance(entries := values.get("plugins"), list):
        # Entries of an override are relative to the config that it overrides.
        by_override = document.location(("plugins",)).startswith("override")
        try:
            values["plugins"] = plugins.resolve(
                list(map(str, entries)), Path(where).parent if by_override else plugins_in
            )
        except ConfigError as error:
            path_mistakes["plugins",] = str(error)
    mistakes += [f"{document.location(keys) or where}: {mistake}" for keys, mistake in path_mistakes.items()]
    document = Document(_drop_shifted_validation(values), document.locations, document.spellings)
    try:
        text = json.dumps(document.values)
    except TypeError as error:
        raise ConfigError(f"{where}: {error}") from None
    try:
        # JSON mode with strict types: a list may be a tuple, but "3" is not 3.
        config = Config.model_validate_json(text, strict=True)
    except ValidationError as error:
        mistakes += messages.explain(error, document, where, path_mistakes, shown=_SHOWN)
    else:
        mistakes += [
            f"{document.location(keys) or where}: {'.'.join(map(str, keys))}: {mistake}"
            for keys, mistake in _unusable_numbers(document.values)
        ]
    if mistakes:
        lines = list(dict.fromkeys(mistakes))
        more = [f"and {len(lines) - _SHOWN:,} more mistakes"] if len(lines) > _SHOWN else []
        raise ConfigError("\n  ".join([*lines[:_SHOWN], *more]))
    return config


def _unusable_numbers(values: Any, keys: Keys = ()) -> Iterator[tuple[Keys, str]]:
    """Yield keys and mistake of every number that is infinite, NaN or absurdly large."""
    if isinstance(values, float) and not abs(values) <= _LARGEST:
        expected = f"a number from {-_LARGEST:g} to {_LARGEST:g}" if math.isfinite(values) else "a finite number"
        yield keys, f"expected {expected}, found {describe_value(values)}"
    children = values.items() if isinstance(values, Mapping) else enumerate(values) if isinstance(values, list) else ()
    for key, value in children:
        yield from _unusable_numbers(value, (*keys, key))


def _drop_shifted_validation(values: dict[str, Any]) -> dict[str, Any]:
    """Return a config's values without shifted validation, if it has no severities and no suite is corrupted."""
    competition = values.get("competition")
    suite = competition.get("suite") if isinstance(competition, dict) else None
    if not isinstance(competition, dict) or not isinstance(suite, dict) or suite.get("source") not in ("test", "none"):
        return values
    shifted = competition.get("ood_validation", {})
    if not isinstance(shifted, dict) or "severities" in shifted:
        return values
    return {**values, "competition": {**competition, "ood_validation": {**shifted, "severities": []}}}


def _normalize(
    values: Mapping[str, Any], model: type[BaseModel], parent: Keys, spellings: Mapping[Keys, str]
) -> dict[str, Any]:
    """Return a section's values normalized as described above; invalid values are left for the check that follows."""
    normalized: dict[str, Any] = {}
    for name, value in values.items():
        info, keys = model.model_fields.get(name), (*parent, name)
        section = section_of(info)
        if info is None:
            normalized[name] = value
        elif section is not None and isinstance(value, Mapping):
            normalized[name] = _normalize(value, section, keys, spellings)
        elif value is not None and not (value == "none" and (info.default is None or DURATION in info.metadata)):
            normalized[name] = _normalize_value(value, info.annotation, keys, spellings)
    return normalized


def _normalize_value(value: Any, annotation: Any, keys: Keys, spellings: Mapping[Keys, str]) -> Any:
    choices = list(alternatives(annotation))
    if isinstance(value, list):
        items = next((get_args(choice)[0] for choice in choices if get_origin(choice) is tuple), Any)
        return [_normalize_value(item, items, (*keys, index), spellings) for index, item in enumerate(value)]
    if isinstance(value, Mapping):
        entries = next((get_args(choice)[1] for choice in choices if get_origin(choice) in (dict, Mapping)), Any)
        return {key: _normalize_value(item, entries, (*keys, key), spellings) for key, item in value.items()}
    if isinstance(value, str) and bool in choices:
        return _BOOLEANS.get(value.lower(), value)
    if isinstance(value, bool):
        is_text = str in choices and bool not in choices
    else:
        is_text = isinstance(value, int | float) and str in choices and not {int, float} & set(choices)
    return spellings.get(keys, str(value)) if is_text else value


def _expand_paths(
    values: Mapping[str, Any], model: type[BaseModel], parent: Keys, mistakes: dict[Keys, str]
) -> dict[str, Any]:
    """Return a section's values with `~` and `${NAME}` replaced in paths; errors are added to `mistakes`."""
    expanded = dict(values)
    for name, value in values.items():
        info, keys = model.model_fields.get(name), (*parent, name)
        section = section_of(info)
        if section is not None and isinstance(value, Mapping):
            expanded[name] = _expand_paths(value, section, keys, mistakes)
        elif info is not None and PATH in info.metadata and isinstance(value, str | list):
            try:
                dotted = ".".join(map(str, keys))
                expanded[name] = (
                    user_path(value, dotted)
                    if isinstance(value, str)
                    else [user_path(item, dotted) if isinstance(item, str) else item for item in value]
                )
            except ConfigError as error:
                mistakes[keys] = str(error)
    return expanded


def _apply_override(document: Document, text: str) -> Document:
    """Return a document with one override applied."""
    path, value, spellings = parse_override(text)
    model: type[BaseModel] = Config
    where = f"override '{'.'.join(map(str, path))}'"
    text = shortened(text)
    keys: Keys = ()
    for depth, key in enumerate(path, start=1):
        keys = path[:depth]
        if key not in model.model_fields:
            raise ConfigError(f"override '{text}': {messages.unknown_key(keys)}")
        field = model.model_fields[str(key)]
        section = section_of(field)
        if section is None:
            if rest := path[depth:]:
                if not is_mapping(field.annotation):
                    raise ConfigError(f"override '{text}': {'.'.join(map(str, keys))} is a single value without keys")
                keys = (*keys, ".".join(map(str, rest)))
            return _replace(document, keys, value, spellings, where)
        model = section
    if not value or not isinstance(value, Mapping):
        return _replace(document, keys, value, spellings, where)
    messages.check_keys(value, model, f"override '{text}'", tuple(map(str, keys)))
    for leaf_keys, leaf in _leaves(value, model):
        depth = len(leaf_keys)
        leaf_spellings = {at[depth:]: spelling for at, spelling in spellings.items() if at[:depth] == leaf_keys}
        document = _replace(document, (*keys, *leaf_keys), leaf, leaf_spellings, where)
    return document


def _leaves(values: Mapping[str, Any], model: type[BaseModel]) -> list[tuple[Keys, Any]]:
    """Return keys and value of each field that a section's values set."""
    leaves: list[tuple[Keys, Any]] = []
    for name, value in values.items():
        section = section_of(model.model_fields[name])
        if section and value and isinstance(value, Mapping):
            leaves += [((name, *keys), leaf) for keys, leaf in _leaves(value, section)]
        else:
            leaves.append(((name,), value))
    return leaves


def _replace(document: Document, keys: Keys, value: Any, spellings: Mapping[Keys, str], where: str) -> Document:
    """Return a document with one value replaced, together with its locations and spellings."""

    def drop_old(by_keys: Mapping[Keys, str]) -> dict[Keys, str]:
        return {at: text for at, text in by_keys.items() if at[: len(keys)] != keys}

    locations = drop_old(document.locations) | {keys: where}
    spellings = drop_old(document.spellings) | {(*keys, *at): text for at, text in spellings.items()}
    return Document(_set(document.values, keys, value), locations, spellings)


def _set(values: Any, keys: Keys, value: Any) -> Any:
    if not keys:
        return value
    siblings = values if isinstance(values, Mapping) else {}
    return {**siblings, keys[0]: _set(siblings.get(keys[0]), keys[1:], value)}
