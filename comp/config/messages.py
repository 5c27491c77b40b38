"""Error messages for invalid configs: every mistake, where it stands, and how to fix it."""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from comp.config.tree import Config
from comp.errors import ConfigError, nearest
from comp.yaml_files import kind


def check_keys(tree: Mapping[str, Any], model: type[BaseModel], where: str, path: tuple[str, ...] = ()) -> None:
    """Check an override's own keys first, so that the message blames the override and not the file."""
    for key, value in tree.items():
        if key not in model.model_fields:
            raise ConfigError(_unknown_key((*path, key), where))
        inner = _section(model, [key])
        if inner is not None and isinstance(value, Mapping):
            check_keys(value, inner, where, (*path, key))


def explain(error: ValidationError, values: Mapping[str, Any], where: str, overrides: Sequence[str]) -> str:
    """Return one message for all mistakes, each once, in the order of the config's sections."""
    details = error.errors(include_url=False)
    by_place: dict[tuple[Any, ...], list[Any]] = {}
    for detail in details:
        by_place.setdefault(tuple(_place(detail, values)), []).append(detail)
    named = {text.partition("=")[0].strip() for text in overrides}
    messages = [_mistake(keys, same, values, where, named) for keys, same in by_place.items()]
    return "\n  ".join(messages)


def _place(detail: Any, values: Mapping[str, Any]) -> list[Any]:
    """Return the path of the value that is wrong: union branches append their own name to the path, which is no key."""
    keys: list[Any] = []
    for key in detail["loc"]:
        if _section(Config, keys) is None and _lookup(values, [*keys, key]) is None:
            break
        keys.append(key)
    return keys


def _mistake(
    keys: Sequence[Any], details: Sequence[Any], values: Mapping[str, Any], where: str, named: Collection[str]
) -> str:
    """Return the message of one wrong value, or of a rule that several values of a section break together."""
    dotted = ".".join(str(key) for key in keys)
    first = details[0]
    if first["type"] == "extra_forbidden":
        return _unknown_key(keys, _blamed(where, [dotted], named))
    if first["type"] == "value_error":
        rule = str(first["msg"]).removeprefix("Value error, ")
        inside = [f"{dotted}.{field}" for field in _fields(keys) if re.search(rf"\b{field}\b", rule)]
        return f"{_blamed(where, inside, named)}: {dotted}{'.' if dotted else ''}{rule}"
    expected = " or ".join(dict.fromkeys(_expected(detail) for detail in details))
    return f"{_blamed(where, [dotted], named)}: {dotted}: expected {expected}, found {kind(_lookup(values, keys))}"


def _blamed(where: str, paths: Sequence[str], named: Collection[str]) -> str:
    """Return what is at fault: the overrides that give these paths, or else the file."""
    given = [path for path in paths if path in named]
    return f"override '{', '.join(given)}'" if given else where


def _fields(keys: Sequence[Any]) -> list[str]:
    section = _section(Config, keys)
    return list(section.model_fields) if section else []


def _section(model: type[BaseModel], keys: Iterable[Any]) -> type[BaseModel] | None:
    """Return the section that a path of keys leads to, None where it leaves the sections."""
    for key in keys:
        field = model.model_fields.get(str(key))
        inner = field.annotation if field else None
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return None
        model = inner
    return model


def _paths(model: type[BaseModel], prefix: str = "") -> list[str]:
    found = []
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            found += _paths(inner, f"{prefix}{name}.")
        else:
            found.append(f"{prefix}{name}")
    return found


def _unknown_key(keys: Sequence[Any], where: str) -> str:
    name, section = str(keys[-1]), _section(Config, keys[:-1])
    known = list(section.model_fields) if section else []
    near = nearest(name, known)
    if not near:  # the key may stand one section off: epochs -> train.epochs
        elsewhere = [path for path in _paths(Config) if path.rsplit(".", 1)[-1] == name]
        near = f" (did you mean '{elsewhere[0]}'?)" if elsewhere else ""
    dotted = ".".join(str(key) for key in keys)
    return f"{where}: unknown key '{dotted}'{near}; known here: {', '.join(known)}"


def _lookup(values: Any, keys: Iterable[Any]) -> Any:
    for key in keys:
        try:
            values = values[key]
        except (KeyError, IndexError, TypeError):
            return None
    return values


_SECTION = "a section of `key: value` lines"


_EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "text",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "model_type": _SECTION,
    "dict_type": _SECTION,
    "mapping_type": _SECTION,
    "literal_error": "{expected}",
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "string_pattern_mismatch": "letters, digits, '.', '_' and '-', starting with a letter or digit",
}


def _expected(detail: Any) -> str:
    form = _EXPECTED.get(detail["type"])
    return form.format(**detail.get("ctx", {})) if form else str(detail["msg"])
