"""The reference of config keys: type, default, meaning and an example of each, all from the sections themselves.

A key's docstring is its meaning; it ends with `Example:` and overrides that a shell takes. `comp config explain` prints
it, the documentation shows it, and the JSON schema carries it into editors.
"""

import functools
import inspect
import json
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from comp.config.messages import unknown_key
from comp.config.section import DURATION, PATH, is_mapping, section_of
from comp.config.tree import Config
from comp.runtime.errors import ConfigError

_EXAMPLE = "Example:"
_WIDTH = 80  # columns of a terminal
_ENDLESS = 1e9  # a maximum that stands for none
_WORDS = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true or false", "null": "null"}


@dataclass(frozen=True)
class Key:
    """A config key.

    Attributes:
        path: dotted, as in overrides.
        type: its values in words.
        default: as YAML.
        meaning: in one paragraph.
        example: overrides in a shell's spelling.
    """

    path: str
    type: str
    default: str
    meaning: str
    example: str


def keys_in(path: str = "") -> list[Key]:
    """Return a key, all keys of a section, or by default all keys; of a mapping's own key, the mapping.

    Raises:
        ConfigError: unknown; names the nearest key.
    """
    model: type[BaseModel] = Config
    names = path.split(".") if path else []
    for depth, name in enumerate(names, start=1):
        field = model.model_fields.get(name)
        section = section_of(field)
        if field is None:
            raise ConfigError(unknown_key(names[:depth]))
        if section is None:
            if depth < len(names) and not is_mapping(field.annotation):
                raise ConfigError(f"{'.'.join(names[:depth])} is a single value without keys")
            return [_key(model, names[:depth])]
        model = section
    return list(_keys_of(model, names))


def heading(path: str) -> str:
    """Return the first paragraph of a section's docstring; empty for a key."""
    model: type[BaseModel] | None = Config
    for name in path.split(".") if path else ():
        model = section_of(model.model_fields.get(name)) if model else None
    first, _, _ = ((model and inspect.getdoc(model)) or "").partition("\n\n")
    return " ".join(first.split())


def explain(key: Key) -> str:
    """Return a key's reference as lines for a terminal."""
    rows = (("", key.meaning), ("type     ", key.type), ("default  ", key.default), ("example  ", key.example))
    return "\n".join([key.path, *(wrapped(text, f"  {label}") for label, text in rows)])


def wrapped(text: str, label: str = "") -> str:
    """Return text as lines for a terminal, the first one after a label, the others below its end."""
    indent = " " * len(label)
    return textwrap.fill(
        text, _WIDTH, initial_indent=label, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def _keys_of(model: type[BaseModel], parents: list[str]) -> Iterator[Key]:
    for name, field in model.model_fields.items():
        if section := section_of(field):
            yield from _keys_of(section, [*parents, name])
        elif field.exclude_if is None:  # else for older configs only
            yield _key(model, [*parents, name])


def _key(model: type[BaseModel], names: list[str]) -> Key:
    field = model.model_fields[names[-1]]
    text = " ".join((field.description or "").split())
    meaning, _, example = text.partition(_EXAMPLE)
    return Key(".".join(names), _type_of(model, names[-1]), _default_of(field), meaning.strip(), example.strip())


def _default_of(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    return value if isinstance(value, str) and value else json.dumps(value)


def _type_of(model: type[BaseModel], name: str) -> str:
    text = _in_words(_schemas(model).get(name, {"type": "string"}))
    metadata = model.model_fields[name].metadata
    if DURATION in metadata:
        return text.replace("text", "time")
    return text.replace("text", "path") if PATH in metadata else text


@functools.cache
def _schemas(model: type[BaseModel]) -> dict[str, Any]:
    """Return the JSON schema of each of a section's keys."""
    return dict(model.model_json_schema()["properties"])


def _in_words(schema: Mapping[str, Any]) -> str:
    """Return the values that a JSON schema allows in words."""
    *names, last = dict.fromkeys(_alternatives(schema))
    return f"{', '.join(names)} or {last}" if names else last


def _alternatives(schema: Mapping[str, Any]) -> Iterator[str]:
    kind = schema.get("type", "")
    if "anyOf" in schema:
        for member in schema["anyOf"]:
            yield from _alternatives(member)
    elif "enum" in schema or "const" in schema:
        yield from schema.get("enum") or [schema["const"]]
    elif "prefixItems" in schema:
        yield f"[{', '.join(map(_in_words, schema['prefixItems']))}]"
    elif kind == "array":
        yield f"list of {_in_words(schema['items'])}"
    elif kind == "object":
        values = schema.get("additionalProperties") or {}
        yield f"mapping to {_in_words(values)}" if "type" in values or "anyOf" in values else "mapping"
    else:
        yield _WORDS.get(kind, "any value") + _bounds(schema)


def _bounds(schema: Mapping[str, Any]) -> str:
    """Return the range of a number: `, 0 to 1`, `, above 0`."""
    low, above = schema.get("minimum"), schema.get("exclusiveMinimum")
    high, below = schema.get("maximum", _ENDLESS), schema.get("exclusiveMaximum", _ENDLESS)
    first = f"above {above:g}" if above is not None else f"from {low:g}" if low is not None else ""
    last = f"to {high:,}" if high < _ENDLESS else f"below {below:,}" if below < _ENDLESS else ""
    return "".join(f" {part.removesuffix('.0')}" for part in (first, last) if part)
