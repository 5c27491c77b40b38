"""How a config is read, written back, and told apart from others."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from comp.config import messages
from comp.config.spelling import holds_entries, meant, section_of
from comp.config.tree import Config
from comp.config.yaml_io import Document, Keys, dump_yaml, parse_override, read_chain
from comp.runtime.errors import ConfigError


def load(path: Path | str, overrides: Sequence[str] = ()) -> Config:
    """Return the config of a YAML file with `key.path=value` overrides laid on it.

    An override sets one key, and its value replaces what was there, mappings too; in a mapping of the user's own
    (`model.args`, `tune.space`, ...) what follows the mapping's name is one entry's key, dots and all. `~` and
    `${NAME}` in paths are replaced here: the config holds what they stand for.

    Raises:
        ConfigError: naming every mistake, its file and line or its override, what was expected and found, and the
            nearest known key.
    """
    document = Document({})
    for part in read_chain(Path(path)):
        document = Document(_without_empty(part.values, Config), part.places, part.spellings).over(document)
    return _checked(document, str(path), overrides, expand=True)


def load_stored(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Return the config that a run has stored: whatever its paths hold stood there when the run was made.

    Args:
        path: of the file.
        overrides: laid on it as they are.

    Raises:
        ConfigError: as `load`.
    """
    (document,) = read_chain(path)
    return _checked(document, str(path), overrides, expand=False)


def from_mapping(values: Mapping[str, Any], where: str, overrides: Sequence[str] = ()) -> Config:
    """Return the config of plain values with overrides laid on them; `where` names their origin in messages.

    Raises:
        ConfigError: as `load`.
    """
    return _checked(Document(dict(values)), where, overrides, expand=False)


def _without_empty(values: Mapping[str, Any], model: type[BaseModel]) -> dict[str, Any]:
    """Return a file's values without sections that have nothing below them: they say nothing, of a base neither."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        inner = section_of(model.model_fields.get(name))
        if inner is None or value is not None:
            found[name] = _without_empty(value, inner) if inner and value and isinstance(value, Mapping) else value
    return found


def _checked(document: Document, where: str, overrides: Sequence[str], *, expand: bool) -> Config:
    wrong: list[str] = []
    for text in overrides:
        try:
            document = _overridden(document, text)
        except ConfigError as error:
            wrong.append(str(error))
    spelled = meant(document.values, Config, document.spellings, expand=expand)
    wrong += [f"{document.place(keys) or where}: {mistake}" for keys, mistake in spelled.mistakes.items()]
    document = Document(spelled.values, document.places, document.spellings)
    try:
        text = json.dumps(document.values)
    except TypeError as error:
        raise ConfigError(f"{where}: {error}") from None
    try:
        # JSON mode with strict types: a list may be a tuple, but "3" is not 3.
        config = Config.model_validate_json(text, strict=True)
    except ValidationError as error:
        wrong += messages.explain(error, document, where, spelled.mistakes)
    if wrong:
        raise ConfigError("\n  ".join(dict.fromkeys(wrong)))
    return config


def _overridden(document: Document, text: str) -> Document:
    """Return a document with one override laid on it."""
    path, value, spellings = parse_override(text)
    model: type[BaseModel] = Config
    where = f"override '{'.'.join(map(str, path))}'"
    keys: Keys = ()
    for number, key in enumerate(path):
        keys = path[: number + 1]
        if key not in model.model_fields:
            raise ConfigError(f"override '{text}': {messages.unknown_key(keys)}")
        field = model.model_fields[str(key)]
        inner = section_of(field)
        if inner is None:
            if rest := path[number + 1 :]:
                if not holds_entries(field):
                    raise ConfigError(f"override '{text}': {'.'.join(map(str, keys))} is one value and has no entries")
                keys = (*keys, ".".join(map(str, rest)))
            return _replaced(document, keys, value, spellings, where)
        model = inner
    if not value or not isinstance(value, Mapping):
        return _replaced(document, keys, value, spellings, where)
    messages.check_keys(value, model, f"override '{text}'", tuple(map(str, keys)))
    for below, leaf in _leaves(value, model):
        own = {at[len(below) :]: spelling for at, spelling in spellings.items() if at[: len(below)] == below}
        document = _replaced(document, (*keys, *below), leaf, own, where)
    return document


def _leaves(values: Mapping[str, Any], model: type[BaseModel]) -> list[tuple[Keys, Any]]:
    """Return keys and value of each field that a section's values set."""
    found: list[tuple[Keys, Any]] = []
    for name, value in values.items():
        inner = section_of(model.model_fields[name])
        if inner and value and isinstance(value, Mapping):
            found += [((name, *below), leaf) for below, leaf in _leaves(value, inner)]
        else:
            found.append(((name,), value))
    return found


def _replaced(document: Document, keys: Keys, value: Any, spellings: Mapping[Keys, str], where: str) -> Document:
    """Return a document with one value in another's place, and nothing left of what was known of that."""
    kept = {"places": dict(document.places), "spellings": dict(document.spellings)}
    for known in kept.values():
        for at in [at for at in known if at[: len(keys)] == keys]:
            del known[at]
    kept["places"][keys] = where
    kept["spellings"] |= {(*keys, *below): spelling for below, spelling in spellings.items()}
    return Document(_set(document.values, keys, value), **kept)


def _set(values: Any, keys: Keys, value: Any) -> Any:
    if not keys:
        return value
    above = values if isinstance(values, Mapping) else {}
    return {**above, keys[0]: _set(above.get(keys[0]), keys[1:], value)}


def dump(config: Config) -> str:
    """Return the resolved config as YAML; `load` of it gives an equal config."""
    values = config.model_dump(mode="json")
    # PyYAML writes line separators (U+0085, U+2028) as they are and then reads them as line ends.
    plain = json.dumps(values, ensure_ascii=False).isprintable()
    return dump_yaml(values, allow_unicode=plain)


# Keys that came after runs had been hashed, with the defaults that mean what those runs did without them.
_LATER_KEYS: dict[str, dict[str, object]] = {
    "data": {"range": "auto", "label_pattern": ""},
    "data.csv": {"file_column": ""},
    "augment": {"albumentations": []},
}


def fingerprint(config: Config) -> str:
    """Return a hash of what a run computes (not `track`, `tune`, `train.keep_state`): 16 hex digits of SHA-256.

    Keys that were added later count only where they are not at their defaults: runs keep the hash that they had.
    """
    values = config.model_dump(mode="json", exclude={"track": True, "tune": True, "train": {"keep_state"}})
    for path, keys in _LATER_KEYS.items():
        section = values
        for name in path.split("."):
            section = section[name]
        for key in [key for key, default in keys.items() if section[key] == default]:
            del section[key]
    values["augment"]["engine"] = config.augment.engine  # every hash has it, from when there were two
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
