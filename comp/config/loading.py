"""How a config is read, written back, and told apart from others."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from comp.config.messages import check_keys, explain
from comp.config.tree import Config
from comp.errors import ConfigError
from comp.yaml_files import dump_yaml, merge, parse_override, read_yaml


def load(path: Path | str, overrides: Sequence[str] = ()) -> Config:
    """Return the config of a YAML file with `key.path=value` overrides laid on it.

    Raises:
        ConfigError: naming file, key, what was expected and found, and the nearest known key.
    """
    values = read_yaml(Path(path))
    for text in overrides:
        tree = parse_override(text)
        check_keys(tree, Config, f"override '{text}'")
        values = merge(values, tree)
    return from_mapping(values, str(path), overrides)


def from_mapping(values: Mapping[str, Any], where: str, overrides: Sequence[str] = ()) -> Config:
    """Return the config of plain values; `where` names their origin in messages.

    Raises:
        ConfigError: as `load`.
    """
    try:
        text = json.dumps(values)
    except TypeError as error:
        raise ConfigError(f"{where}: {error}") from None
    try:
        # JSON mode with strict types: a list may be a tuple, but "3" is not 3.
        return Config.model_validate_json(text, strict=True)
    except ValidationError as error:
        raise ConfigError(explain(error, values, where, overrides)) from None


def dump(config: Config) -> str:
    """Return the resolved config as YAML; `load` of it gives an equal config."""
    values = config.model_dump(mode="json")
    # PyYAML writes line separators (U+0085, U+2028) as they are and then reads them as line ends.
    plain = json.dumps(values, ensure_ascii=False).isprintable()
    return dump_yaml(values, allow_unicode=plain)


# Keys that came after runs had been hashed, with the defaults that mean what those runs did without them.
_LATER_KEYS: dict[str, dict[str, object]] = {"data": {"range": "auto", "label_pattern": ""}}


def fingerprint(config: Config) -> str:
    """Return a hash of what a run computes, so without `track` and `tune`: 16 hex digits of SHA-256.

    Keys that were added later count only where they are not at their defaults: runs keep the hash that they had.
    """
    values = config.model_dump(mode="json", exclude={"track", "tune"})
    for section, keys in _LATER_KEYS.items():
        values[section] = {key: value for key, value in values[section].items() if keys.get(key, ...) != value}
    canonical = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def flat(config: Config) -> dict[str, Any]:
    """Return dotted path -> plain value, as overrides spell them; what is a mapping of the user's own stays whole."""

    def walk(section: BaseModel, values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in values.items():
            inner = getattr(section, name)
            is_section = isinstance(inner, BaseModel)
            found |= walk(inner, value, f"{prefix}{name}.") if is_section else {f"{prefix}{name}": value}
        return found

    return walk(config, config.model_dump(mode="json"), "")


def schema() -> dict[str, Any]:
    """Return the JSON schema of a config file, for editors."""
    tree = Config.model_json_schema()
    tree["properties"]["extends"] = {"type": "string", "description": "a YAML file that this one departs from"}
    return tree
