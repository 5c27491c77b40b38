"""Error messages for invalid configs: each mistake once, with its location and how to fix it."""

import contextlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from comp.config.section import section_of
from comp.config.tree import Config
from comp.config.yaml_io import Document, Keys, describe_value
from comp.runtime.errors import ConfigError, ModelError, nearest


def check_keys(tree: Mapping[str, Any], model: type[BaseModel], where: str, path: tuple[str, ...] = ()) -> None:
    """Check that all keys are known, except in mappings with keys of your own.

    Raises:
        ConfigError: names the first unknown key.
    """
    for key, value in tree.items():
        if key not in model.model_fields:
            raise ConfigError(f"{where}: {unknown_key((*path, key))}")
        section = section_of(model.model_fields[key])
        if section is not None and isinstance(value, Mapping):
            check_keys(value, section, where, (*path, key))


def explain(
    error: ValidationError, document: Document, where: str, earlier: Mapping[Keys, str], *, shown: int
) -> list[str]:
    """Return a message for each mistake, in the order of the config's sections.

    Args:
        error: from pydantic's validation.
        document: the validated document.
        where: names the document if it has no location for a value.
        earlier: keys -> mistakes that are reported already; further mistakes in these values are omitted.
        shown: how many messages are read; unknown keys after them are only counted, since advice on a key takes time.
    """
    by_keys: dict[Keys, list[Any]] = {}
    for detail in error.errors(include_url=False):
        by_keys.setdefault(tuple(_keys_of(detail, document.values)), []).append(detail)
    messages: list[str] = []
    for keys, details in by_keys.items():
        if len(messages) >= shown and details[0]["type"] == "extra_forbidden":
            messages.append(f"unknown key '{keys}'")
        elif keys not in earlier:
            messages += _messages(keys, details, document, where)
    return messages


@contextlib.contextmanager
def naming_overrides(overrides: Sequence[str]) -> Iterator[None]:
    """Name the override in errors raised inside, if it set the key that a message begins with."""
    paths = [text.partition("=")[0].strip() for text in overrides]
    try:
        yield
    except (ConfigError, ModelError) as error:
        lines = [_name_override(line, paths) for line in str(error).split("\n  ")]
        raise type(error)("\n  ".join(lines)) from None


def _name_override(line: str, paths: Sequence[str]) -> str:
    key = re.match(r"[a-z_]+(?:\.\w+)+(?=[\[:., ])", line.removeprefix("tune.space: "))
    culprits = [path for path in paths if key and f"{key[0]}.".startswith(f"{path}.")]
    culprits = culprits or [path for path in paths if key and path.startswith(f"{key[0]}.")]
    return f"override '{culprits[-1]}': {line}" if culprits else line


def _keys_of(detail: Any, values: Mapping[str, Any]) -> list[Any]:
    """Return the keys of the invalid value, without the names of union branches that pydantic appends."""
    keys: list[Any] = []
    for key in detail["loc"]:
        if _section(keys) is None and _lookup(values, [*keys, key], _MISSING) is _MISSING:
            break
        keys.append(key)
    return keys


def _messages(keys: Keys, details: Sequence[Any], document: Document, where: str) -> Iterator[str]:
    """Yield the message for one invalid value, or one for each rule that a section's values break."""
    dotted, first = ".".join(map(str, keys)), details[0]
    if first["type"] == "rules":
        for rule in first["ctx"]["broken"]:
            fields = [(*keys, *field.split(".")) for field in rule.fields]
            yield f"{_locations(fields, document, where)}: {rule.message}"
        return
    location = document.location(keys) or where
    if first["type"] == "extra_forbidden":
        yield f"{location}: {unknown_key(keys)}"
        return
    if key_details := [detail for detail in details if "[key]" in detail["loc"]]:
        path = key_details[0]["loc"]
        name = path[path.index("[key]") - 1]
        mapping = ".".join(map(str, keys[:-1] if keys[-1] == name else keys))
        yield f"{location}: {mapping}: expected keys that are {_expected(key_details)}, found '{name}'"
        return
    value = _lookup(document.values, keys)
    yield f"{location}: {dotted}: expected {_expected(details)}, found {describe_value(value)}{_hint(value, details)}"


def _locations(fields: Sequence[Keys], document: Document, where: str) -> str:
    """Return the locations of contradicting values: the overrides among them, else the file."""
    locations = list(dict.fromkeys(document.locations[keys] for keys in fields if keys in document.locations))
    overrides = [location for location in locations if location.startswith("override ")]
    return " and ".join(overrides) or (locations[0] if locations else document.location(fields[0]) or where)


def _section(keys: Iterable[Any]) -> type[BaseModel] | None:
    """Return the section at a path of keys; None if the path leads elsewhere."""
    model: type[BaseModel] | None = Config
    for key in keys:
        model = section_of(model.model_fields.get(str(key))) if model else None
    return model


def _field_paths(model: type[BaseModel], prefix: str = "") -> list[str]:
    paths = []
    for name, field in model.model_fields.items():
        section = section_of(field)
        paths += _field_paths(section, f"{prefix}{name}.") if section else [f"{prefix}{name}"]
    return paths


def unknown_key(keys: Sequence[Any]) -> str:
    """Return the message for an unknown key, with the nearest and all known keys of its section."""
    name, section = str(keys[-1]), _section(keys[:-1])
    names = list(section.model_fields) if section else []
    # The key may belong to another section: epochs -> train.epochs.
    elsewhere = [path for path in _field_paths(Config) if path.rsplit(".", 1)[-1] == name]
    top = [name] if len(keys) > 1 and name in Config.model_fields else []
    near = next((f" (did you mean '{path}'?)" for path in (*top, *elsewhere)), "")
    near = near or nearest(name, names).replace("mean '", f"mean '{''.join(f'{key}.' for key in keys[:-1])}")
    return f"unknown key '{'.'.join(map(str, keys))}'{near}; known here: {', '.join(names)}"


def _lookup(values: Any, keys: Iterable[Any], missing: Any = None) -> Any:
    for key in keys:
        try:
            values = values[key]
        except (KeyError, IndexError, TypeError):
            return missing
    return values


_MISSING = object()  # unlike null
_LONG = 60  # characters of a text that no hint repeats
_SECTION, _MAPPING = "a section of `key: value` lines", "a mapping such as {{key: value}}"
_EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "string_type": "text",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "model_type": _SECTION,
    "dict_type": _MAPPING,
    "mapping_type": _MAPPING,
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "missing": "one more value",
    "too_short": "at least {min_length} values",
    "too_long": "at most {max_length} values",
    "string_too_long": "at most {max_length} characters",
    "string_pattern_mismatch": "letters, digits, '.', '_' and '-', starting with a letter or digit",
    "expected": "{text}",
    "duration": "a time such as 90s, 15min or 1.5h, at most 1000d",
}
_PATTERNS = {r"^([0-9a-fA-F]{8,64})?$": "8 to 64 hex digits"}


def _expected(details: Sequence[Any]) -> str:
    """Return the allowed values in words, each choice once."""
    choices: dict[str, None] = {}
    for detail in details:
        context = detail.get("ctx", {})
        if detail["type"] == "literal_error":
            choices |= dict.fromkeys(_words(detail))
        elif context.get("pattern") in _PATTERNS:
            choices[_PATTERNS[context["pattern"]]] = None
        else:
            choices[_EXPECTED.get(detail["type"], "another type of value").format(**context)] = None
    *all_but_last, last = choices
    return f"{', '.join(all_but_last)} or {last}" if all_but_last else last


def mistake_in(value: Any, annotation: Any) -> str:
    """Return what a plain value's annotated type and range expect instead of it; empty if it fits."""
    try:
        TypeAdapter(annotation).validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        details = error.errors(include_url=False)
        part = _lookup(value, details[0]["loc"]) if isinstance(value, list) else value
        return f"expected {_expected(details)}, found {describe_value(part)}"
    return ""


def _words(detail: Any) -> list[str]:
    return re.findall(r"'[^']*'|[^\s,']+", str(detail["ctx"]["expected"]).replace(" or ", ", "))


def _hint(value: Any, details: Sequence[Any]) -> str:
    """Return the correct spelling of a misspelled value."""
    if not isinstance(value, str):
        return ""
    if details[0]["type"] == "tuple_type" and len(value) < _LONG:
        return f"; write [{value}]"
    is_number = any(
        detail["type"].startswith(("float", "finite")) or "fraction" in detail.get("ctx", {}).get("text", "")
        for detail in details
    )
    if is_number and (percent := re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*%\s*", value)):
        return f"; write {float(percent[1]) / 100:g}"
    if is_number and re.fullmatch(r"[-+]?\d+,\d+", value):
        return f"; write {value.replace(',', '.')}"
    words = [word.strip("'") for detail in details if detail["type"] == "literal_error" for word in _words(detail)]
    return nearest(value, words)
