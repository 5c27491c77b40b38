"""Error messages for invalid configs: every mistake once, where it stands, and how to fix it."""

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from comp.config.spelling import section_of
from comp.config.tree import Config
from comp.config.yaml_io import Document, Keys, kind
from comp.runtime.errors import ConfigError, ModelError, nearest

_SHOWN = 120  # characters of a value in a message


def check_keys(tree: Mapping[str, Any], model: type[BaseModel], where: str, path: tuple[str, ...] = ()) -> None:
    """Check that every key is known, down to where a mapping of the user's own begins.

    Raises:
        ConfigError: naming the first that is not.
    """
    for key, value in tree.items():
        if key not in model.model_fields:
            raise ConfigError(f"{where}: {unknown_key((*path, key))}")
        inner = section_of(model.model_fields[key])
        if inner is not None and isinstance(value, Mapping):
            check_keys(value, inner, where, (*path, key))


def explain(error: ValidationError, document: Document, where: str, others: Mapping[Keys, str]) -> list[str]:
    """Return a message for each mistake, in the order of the config's sections.

    Args:
        error: from the check.
        document: what was checked.
        where: names the document, where it does not know the place of a value.
        others: keys -> mistakes that were found before; what else is wrong with these values is left out.
    """
    by_keys: dict[Keys, list[Any]] = {}
    for detail in error.errors(include_url=False):
        by_keys.setdefault(tuple(_keys_of(detail, document.values)), []).append(detail)
    messages: list[str] = []
    for keys, details in by_keys.items():
        if keys not in others:
            messages += _messages(keys, details, document, where)
    return messages


@contextlib.contextmanager
def blamed(overrides: Sequence[str]) -> Iterator[None]:
    """Name the override in what is refused inside, where it gave the key that a message begins with.

    Args:
        overrides: that were laid on a config.
    """
    given = [text.partition("=")[0].strip() for text in overrides]
    try:
        yield
    except (ConfigError, ModelError) as error:
        lines = [_blaming(line, given) for line in str(error).split("\n  ")]
        raise type(error)("\n  ".join(lines)) from None


def _blaming(line: str, given: Sequence[str]) -> str:
    key = re.match(r"[a-z_]+(?:\.\w+)+(?=[\[:., ])", line.removeprefix("tune.space: "))
    culprits = [path for path in given if key and f"{key[0]}.".startswith(f"{path}.")]
    culprits = culprits or [path for path in given if key and path.startswith(f"{key[0]}.")]
    return f"override '{culprits[-1]}': {line}" if culprits else line


def _keys_of(detail: Any, values: Mapping[str, Any]) -> list[Any]:
    """Return the keys of the value that is wrong: union branches append their own name, which is no key."""
    keys: list[Any] = []
    for key in detail["loc"]:
        if _section(keys) is None and _lookup(values, [*keys, key]) is None:
            break
        keys.append(key)
    return keys


def _messages(keys: Keys, details: Sequence[Any], document: Document, where: str) -> Iterator[str]:
    """Yield the message of one wrong value, or those of the rules that a section's values break."""
    dotted, first = ".".join(map(str, keys)), details[0]
    if first["type"] == "rules":
        for rule in first["ctx"]["broken"]:
            fields = [(*keys, *field.split(".")) for field in rule.fields]
            yield f"{_blamed(fields, document, where)}: {rule.message}"
        return
    place = document.place(keys) or where
    if first["type"] == "extra_forbidden":
        yield f"{place}: {unknown_key(keys)}"
        return
    if of_key := [detail for detail in details if "[key]" in detail["loc"]]:
        name = of_key[0]["loc"][of_key[0]["loc"].index("[key]") - 1]
        around = ".".join(map(str, keys[:-1] if keys[-1] == name else keys))
        yield f"{place}: {around}: expected keys that are {_expected(of_key)}, found '{name}'"
        return
    value = _lookup(document.values, keys)
    expected = _expected(details)
    shown = kind(value)
    shown = shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}..."
    yield f"{place}: {dotted}: expected {expected}, found {shown}{_hint(value, details)}"


def _blamed(fields: Sequence[Keys], document: Document, where: str) -> str:
    """Return what is at fault where values contradict each other: the overrides among them, or else the file."""
    places = list(dict.fromkeys(document.places[keys] for keys in fields if keys in document.places))
    overrides = [place for place in places if place.startswith("override ")]
    return " and ".join(overrides) or (places[0] if places else document.place(fields[0]) or where)


def _section(keys: Iterable[Any]) -> type[BaseModel] | None:
    """Return the section that a path of keys leads to, None where it leaves the sections."""
    model: type[BaseModel] | None = Config
    for key in keys:
        model = section_of(model.model_fields.get(str(key))) if model else None
    return model


def _paths(model: type[BaseModel], prefix: str = "") -> list[str]:
    found = []
    for name, field in model.model_fields.items():
        inner = section_of(field)
        found += _paths(inner, f"{prefix}{name}.") if inner else [f"{prefix}{name}"]
    return found


def unknown_key(keys: Sequence[Any]) -> str:
    """Return the message for a key that its section does not have: the nearest one, and the known ones."""
    name, section = str(keys[-1]), _section(keys[:-1])
    known = list(section.model_fields) if section else []
    # The key may stand one section off: epochs -> train.epochs.
    elsewhere = [path for path in _paths(Config) if path.rsplit(".", 1)[-1] == name]
    top = [name] if len(keys) > 1 and name in Config.model_fields else []
    near = next((f" (did you mean '{path}'?)" for path in (*top, *elsewhere)), "") or nearest(name, known)
    return f"unknown key '{'.'.join(map(str, keys))}'{near}; known here: {', '.join(known)}"


def _lookup(values: Any, keys: Iterable[Any]) -> Any:
    for key in keys:
        try:
            values = values[key]
        except (KeyError, IndexError, TypeError):
            return None
    return values


_SECTION, _MAPPING = "a section of `key: value` lines", "a map such as {{key: value}}"
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
    "missing": "one value more",
    "too_short": "{min_length} values or more",
    "too_long": "{max_length} values at most",
    "string_pattern_mismatch": "letters, digits, '.', '_' and '-', starting with a letter or digit",
    "expected": "{text}",
    "duration": "a time such as 90s, 15min or 1.5h",
}
_PATTERNS = {r"^([0-9a-fA-F]{8,64})?$": "8 to 64 hex digits"}


def _expected(details: Sequence[Any]) -> str:
    """Return what a value may be, each choice once."""
    choices: dict[str, None] = {}
    for detail in details:
        context = detail.get("ctx", {})
        if detail["type"] == "literal_error":
            choices |= dict.fromkeys(_words(detail))
        elif context.get("pattern") in _PATTERNS:
            choices[_PATTERNS[context["pattern"]]] = None
        else:
            choices[_EXPECTED.get(detail["type"], "another kind of value").format(**context)] = None
    *all_but_last, last = choices
    return f"{', '.join(all_but_last)} or {last}" if all_but_last else last


def _words(detail: Any) -> list[str]:
    return re.findall(r"'[^']*'|[^\s,']+", str(detail["ctx"]["expected"]).replace(" or ", ", "))


def _hint(value: Any, details: Sequence[Any]) -> str:
    """Return how a value that is only spelled wrong is written."""
    if not isinstance(value, str):
        return ""
    if details[0]["type"] == "tuple_type":
        return f"; write [{value}]"
    is_number = any(detail["type"].startswith(("float", "finite")) for detail in details)
    if is_number and (percent := re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*%\s*", value)):
        return f"; write {float(percent[1]) / 100:g}"
    if is_number and re.fullmatch(r"[-+]?\d+,\d+", value):
        return f"; write {value.replace(',', '.')}"
    words = [word.strip("'") for detail in details if detail["type"] == "literal_error" for word in _words(detail)]
    return nearest(value, words)
