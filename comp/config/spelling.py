"""What people write for a value, and what it means there: a first walk over a config's values, before they are checked.

One rule for each kind of key, so that a value need not be spelled as YAML wants it:
- nothing (`key:`, `key=`, null) sets a key back to its default; a section with nothing below it says nothing.
- `none` does the same where the default is null, and for times, where the word can mean nothing else.
- text may look like a number or a truth value: class 007 is not class 7.
- yes, no, on and off are truth values where one is expected, and words elsewhere.
- paths begin with `~` for the home folder, and hold `${NAME}` for a variable of the environment.
"""

import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from comp.config.section import DURATION, PATH
from comp.config.yaml_io import Keys, user_path
from comp.runtime.errors import ConfigError

_TRUTHS = {"yes": True, "on": True, "no": False, "off": False}


def section_of(info: FieldInfo | None) -> type[BaseModel] | None:
    """Return the section that a field holds, None where it holds a value."""
    kind = info.annotation if info else None
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _choices(kind: Any) -> Iterator[Any]:
    """Yield what a value may be: the alternatives of a union, without limits and other notes."""
    origin = get_origin(kind)
    if origin is Annotated:
        yield from _choices(get_args(kind)[0])
    elif origin in (Union, types.UnionType):
        for choice in get_args(kind):
            yield from _choices(choice)
    else:
        yield kind


def holds_entries(info: FieldInfo) -> bool:
    """Tell whether a field may be a mapping of the user's own."""
    return any(get_origin(choice) in (dict, Mapping) for choice in _choices(info.annotation))


@dataclass
class Spelled:
    """Values as they are meant.

    Attributes:
        values: to be checked.
        mistakes: keys -> what cannot be understood.
    """

    values: dict[str, Any]
    mistakes: dict[Keys, str] = field(default_factory=dict)


def meant(values: Mapping[str, Any], model: type[BaseModel], spellings: Mapping[Keys, str], *, expand: bool) -> Spelled:
    """Return a config's values as they are meant; what no field takes stays for the check that follows.

    Args:
        values: of all sections.
        model: the tree of sections.
        spellings: of numbers and truth values, by their keys.
        expand: whether paths are written by a person, and not by a run.
    """
    spelled = Spelled({})
    spelled.values = _section(values, model, (), spellings, spelled.mistakes, expand)
    return spelled


def _section(
    values: Mapping[str, Any], model: type[BaseModel], above: Keys, spellings: Mapping[Keys, str],
    mistakes: dict[Keys, str], expand: bool,
) -> dict[str, Any]:  # fmt: skip
    found: dict[str, Any] = {}
    for name, value in values.items():
        info, keys = model.model_fields.get(name), (*above, name)
        inner = section_of(info)
        if info is None:
            found[name] = value
        elif inner is not None and isinstance(value, Mapping):
            found[name] = _section(value, inner, keys, spellings, mistakes, expand)
        elif not _is_default(value, info):
            found[name] = _value(value, info.annotation, keys, spellings)
            if expand and PATH in info.metadata and isinstance(found[name], str):
                try:
                    found[name] = user_path(found[name], ".".join(map(str, keys)))
                except ConfigError as error:
                    mistakes[keys] = str(error)
    return found


def _is_default(value: Any, info: FieldInfo) -> bool:
    return value is None or (value == "none" and (info.default is None or DURATION in info.metadata))


def _value(value: Any, kind: Any, keys: Keys, spellings: Mapping[Keys, str]) -> Any:
    choices = list(_choices(kind))
    if isinstance(value, list):
        items = next((get_args(choice)[0] for choice in choices if get_origin(choice) is tuple), Any)
        return [_value(item, items, (*keys, number), spellings) for number, item in enumerate(value)]
    if isinstance(value, Mapping):
        entries = next((get_args(choice)[1] for choice in choices if get_origin(choice) in (dict, Mapping)), Any)
        return {key: _value(item, entries, (*keys, key), spellings) for key, item in value.items()}
    if isinstance(value, str) and bool in choices:
        return _TRUTHS.get(value.lower(), value)
    if isinstance(value, bool):
        return _as_text(value, keys, spellings) if str in choices and bool not in choices else value
    if isinstance(value, int | float) and str in choices and not {int, float} & set(choices):
        return _as_text(value, keys, spellings)
    return value


def _as_text(value: Any, keys: Keys, spellings: Mapping[Keys, str]) -> str:
    return spellings.get(keys, str(value))
