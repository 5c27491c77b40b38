"""YAML as people mean it, files that extend each other, and `key.path=value` overrides."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from comp.errors import ConfigError, nearest


class _Loader(yaml.SafeLoader):
    """YAML as people mean it: `1e-4` is a number, `no` is a word, dates stay text, a key stands once."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in rows if tag.rsplit(":", 1)[1] not in {"bool", "float", "timestamp"}]
    for first, rows in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"),
                              list("tTfF"))  # fmt: skip
_FLOAT = re.compile(
    r"^[-+]?(?:(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+|\.inf|\.nan)$"
)


class _Dumper(yaml.SafeDumper):
    """Quotes text that the loader would read as something else: `0e0` is text to PyYAML, and a number here."""


for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


def _unique_mapping(loader: _Loader, node: yaml.MappingNode) -> dict[str, Any]:
    lines: dict[str, int] = {}
    for key_node, _ in node.value:
        key, line = str(key_node.value), key_node.start_mark.line + 1
        if key in lines:
            raise ConfigError(f"line {line}: key '{key}' stands twice (first on line {lines[key]}); keep one of them")
        lines[key] = line
    loader.flatten_mapping(node)
    return {str(loader.construct_object(k, deep=True)): loader.construct_object(v, deep=True) for k, v in node.value}


_Loader.add_constructor("tag:yaml.org,2002:map", _unique_mapping)


def dump_yaml(values: Any, *, allow_unicode: bool) -> str:
    """Return plain values as YAML that `parse_yaml` reads back."""
    text: str = yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=allow_unicode, width=120)
    return text


def parse_yaml(text: str, where: str) -> Any:
    """Return the value of a YAML text; `where` names it in messages.

    Raises:
        ConfigError: not YAML, or a key stands twice.
    """
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error)
        raise ConfigError(f"{where}{line}: not valid YAML: {problem}") from None
    except ConfigError as error:
        raise ConfigError(f"{where}, {error}") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """Return a YAML file's mapping, with what it `extends` underneath.

    Raises:
        ConfigError: missing, not UTF-8, not a mapping, or extending itself.
    """
    return _read_chain(path, ())


def _read_chain(path: Path, below: tuple[Path, ...]) -> dict[str, Any]:
    if path.resolve() in below:
        raise ConfigError(f"{path}: extends itself by way of {' -> '.join(str(p) for p in below)}")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        near = nearest(path.name, [p.name for p in path.parent.glob("*.y*ml")]) if path.parent.is_dir() else ""
        raise ConfigError(f"{path}: no such config file{near}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    values = parse_yaml(text, str(path))
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected `key: value` lines at the top level, found {kind(values)}")
    base = values.pop("extends", None)
    if base is None:
        return values
    if not isinstance(base, str):
        raise ConfigError(f"{path}: extends: expected the path of one YAML file, found {kind(base)}")
    return merge(_read_chain(path.parent / base, (*below, path.resolve())), values)


def merge(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return `under` with `over` laid on it, section by section; a value replaces a value, `{}` empties a section."""
    merged = dict(under)
    for key, value in over.items():
        both = value and isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def parse_override(text: str) -> dict[str, Any]:
    """Return `train.epochs=3` as `{"train": {"epochs": 3}}`.

    Raises:
        ConfigError: no `=`, an empty key or a value that is not YAML.
    """
    path, equals, value = text.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise ConfigError(f"override '{text}': expected key.path=value, such as train.epochs=3")
    tree: Any = parse_yaml(value, f"override '{text}'")
    for key in reversed(keys):
        tree = {key: tree}
    assert isinstance(tree, dict)
    return tree


def kind(value: Any) -> str:
    """Return a value as messages name it: `the text 'three'`, `a list`."""
    names = {dict: "a section", list: "a list", str: "the text", bool: "the truth value", int: "the number",
             float: "the number", type(None): "nothing (null)"}  # fmt: skip
    name = names.get(type(value), type(value).__name__)
    return f"{name} {value!r}" if isinstance(value, str | bool | int | float) else name
