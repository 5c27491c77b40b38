"""YAML 1.2-style loader, `extends`, and `key.path=value` overrides."""

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from comp.config import shipped
from comp.runtime.errors import ConfigError, nearest

Keys = tuple[str | int, ...]  # from the top of a document to a value; integers are list indices


@dataclass(frozen=True)
class Document:
    """Plain values, with their locations and spellings in the text.

    Attributes:
        values: the plain values.
        locations: keys -> the value's location, such as `a.yaml, line 3`.
        spellings: keys -> the text of a number or boolean, because YAML reads 007 as 7.
    """

    values: dict[str, Any]
    locations: Mapping[Keys, str] = field(default_factory=dict)
    spellings: Mapping[Keys, str] = field(default_factory=dict)

    def location(self, keys: Keys) -> str:
        """Return the location of a value, or of the nearest enclosing section; empty: unknown."""
        return next(
            (self.locations[keys[:end]] for end in range(len(keys), -1, -1) if keys[:end] in self.locations), ""
        )

    def over(self, base: "Document") -> "Document":
        """Return `base` updated with this document; see `merge`."""
        return Document(
            merge(base.values, self.values), {**base.locations, **self.locations}, {**base.spellings, **self.spellings}
        )


class _Loader(yaml.SafeLoader):
    """YAML 1.2-style loader: `1e-4` is a number, `no` and dates are text, duplicate keys are errors."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in rows if tag.rsplit(":", 1)[1] not in {"bool", "float", "timestamp"}]
    for first, rows in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_BOOL = re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", _BOOL, list("tTfF"))
_FLOAT = re.compile(
    r"^[-+]?(?:(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+|\.inf|\.nan)$"
)


class _Dumper(yaml.SafeDumper):
    """Quotes text that `_Loader` would read as a number, such as `0e0`, which is text for PyYAML."""


for _yaml_class in (_Loader, _Dumper):
    _yaml_class.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


def _unique_mapping(loader: _Loader, node: yaml.MappingNode) -> dict[str, Any]:
    lines: dict[str, int] = {}
    for key_node, _ in node.value:
        key, line = str(key_node.value), key_node.start_mark.line + 1
        if key in lines:
            raise ConfigError(f"line {line}: duplicate key '{key}' (first on line {lines[key]}); remove one")
        lines[key] = line
    loader.flatten_mapping(node)
    return {_key(key): loader.construct_object(value, deep=True) for key, value in node.value}


def _key(node: yaml.Node) -> str:
    """Return a key as text: 007 is a name, not a number."""
    if not isinstance(node, yaml.ScalarNode):
        raise ConfigError(f"line {node.start_mark.line + 1}: expected text before the colon, found a list or a mapping")
    return str(node.value)


_Loader.add_constructor("tag:yaml.org,2002:map", _unique_mapping)


def dump_yaml(values: Any, *, allow_unicode: bool) -> str:
    """Return plain values as YAML."""
    text: str = yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=allow_unicode, width=120)
    return text


def _parse(text: str, where: str) -> tuple[Any, yaml.Node | None]:
    try:
        loader = _Loader(text)
    except yaml.reader.ReaderError as error:
        raise ConfigError(
            f"{where}: not valid YAML: contains the control character U+{error.character:04X} at position "
            f"{error.position + 1:,}; remove it"
        ) from None
    try:
        node = loader.get_single_node()
        return (None if node is None else loader.construct_document(node)), node
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{where}{line}: not valid YAML: {_problem(error, text)}") from None
    except ConfigError as error:
        raise ConfigError(f"{where}, {error}") from None
    finally:
        loader.dispose()


def _problem(error: yaml.YAMLError, text: str) -> str:
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None) or str(error)
    lines = text.splitlines()
    line = lines[mark.line] if mark and mark.line < len(lines) else ""
    if line[: len(line) - len(line.lstrip())].count("\t") or "'\\t'" in problem:
        return "a tab before the first word; indent with spaces"
    if problem == "mapping values are not allowed here":
        return "a second `key: value` on one line, or inconsistent indentation; text with ': ' needs quotes"
    return str(problem)


def _key_lines(node: yaml.Node | None, keys: Keys = ()) -> Iterator[tuple[Keys, int]]:
    """Yield the line, from 1, of every key."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield (*keys, _key(key)), key.start_mark.line + 1
            yield from _key_lines(value, (*keys, _key(key)))


def _spellings(node: yaml.Node | None, keys: Keys = ()) -> dict[Keys, str]:
    if isinstance(node, yaml.ScalarNode):
        return {keys: str(node.value)} if node.tag.rsplit(":", 1)[-1] in ("bool", "int", "float") else {}
    children: list[tuple[str | int, yaml.Node]] = []
    if isinstance(node, yaml.MappingNode):
        children = [(_key(key), value) for key, value in node.value]
    elif isinstance(node, yaml.SequenceNode):
        children = list(enumerate(node.value))
    return {path: text for key, value in children for path, text in _spellings(value, (*keys, key)).items()}


def read_chain(path: Path, extending: tuple[Path, ...] = ()) -> list[Document]:
    """Return a YAML file's document after the documents that it `extends`, the most basic first.

    Raises:
        ConfigError: missing, not UTF-8, not a mapping, or extends itself: it is one of the files `extending` it.
    """
    if path.resolve() in extending:
        raise ConfigError(f"{path}: extends itself through {' -> '.join(map(str, extending))}")
    values, node = _parse(_read_text(path), str(path))
    if values is None:
        return [Document({})]
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected `key: value` lines at the top level, found {describe_value(values)}")
    base = values.pop("extends", None)
    locations = {(): str(path)} | {keys: f"{path}, line {line}" for keys, line in _key_lines(node)}
    document = Document(values, locations, _spellings(node))
    if base is None:
        return [document]
    if not isinstance(base, str):
        raise ConfigError(
            f"{locations['extends',]}: extends: expected the path of one YAML file, found {describe_value(base)}"
        )
    return [*read_chain(path.parent / user_path(base, "extends"), (*extending, path.resolve())), document]


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        files = [p.name for p in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        hint = nearest(path.name, files) or nearest(path.as_posix().removesuffix(".yaml"), shipped.names())
        raise ConfigError(f"{path}: no such config file{hint}") from None
    except IsADirectoryError:
        raise ConfigError(f"{path}: is a folder; expected a YAML file") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None


def user_path(text: str, key: str) -> str:
    """Return a path with a leading `~` and every `${NAME}` (environment variable) replaced.

    Args:
        text: a path, or a URL such as `sqlite:///~/trials.db`.
        key: the config key, for messages.

    Raises:
        ConfigError: a variable is not set, or there is no home folder.
    """

    def value(match: re.Match[str]) -> str:
        name = match[1]
        if name not in os.environ:
            raise ConfigError(
                f"{key}: ${{{name}}} is not set in the environment{nearest(name, os.environ)}; export {name}=..., or "
                "write the full path"
            )
        return os.environ[name]

    text = re.sub(r"\$\{([^{}]*)\}", value, text)
    scheme, home = re.fullmatch(r"((?:[a-z+]+:///)?)(.*)", text, re.DOTALL).groups()  # type: ignore[union-attr]
    if not home.startswith("~"):
        return text
    folder = os.path.expanduser(home)
    if folder == home:
        user = home.partition("/")[0]
        raise ConfigError(f"{key}: {user} has no home folder; write the full path, or ./{home} for a relative path")
    return scheme + folder


def merge(base: Mapping[str, Any], updates: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` updated with `updates`, section by section; `{}` empties a section."""
    merged = dict(base)
    for key, value in updates.items():
        are_sections = value and isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge(merged[key], value) if are_sections else value
    return merged


def parse_override(text: str) -> tuple[Keys, Any, dict[Keys, str]]:
    """Return keys and value of an override such as `train.epochs=3`, and spellings by keys within the value.

    Raises:
        ConfigError: no `=`, an empty key, or a value that is not YAML.
    """
    path, equals, value = text.partition("=")
    keys: Keys = tuple(path.strip().split("."))
    if not equals or not all(keys):
        raise ConfigError(f"override '{text}': expected key.path=value, such as train.epochs=3")
    content, node = _parse(value, f"override '{text}'")
    return keys, content, _spellings(node)


_TYPE_NAMES = {
    dict: "a section",
    list: "a list",
    str: "the text",
    bool: "the boolean",
    int: "the number",
    float: "the number",
    type(None): "nothing (null)",
}


def describe_value(value: Any) -> str:
    """Return a value in words for messages: `the text 'three'`, `a list`."""
    name = _TYPE_NAMES.get(type(value), type(value).__name__)
    return f"{name} {value!r}" if isinstance(value, str | bool | int | float) else name
