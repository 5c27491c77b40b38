"""YAML as people mean it, files that extend each other, and `key.path=value` overrides."""

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from comp.runtime.errors import ConfigError, nearest

Keys = tuple[str | int, ...]  # from the top of a document to a value; whole numbers are places in lists


@dataclass(frozen=True)
class Document:
    """Values, and what their text tells beside them.

    Attributes:
        values: plain ones.
        places: keys -> where that value stands, such as `a.yaml, line 3`.
        spellings: keys -> a number, a truth value or a date as it is written: 007 is 7 to YAML.
    """

    values: dict[str, Any]
    places: Mapping[Keys, str] = field(default_factory=dict)
    spellings: Mapping[Keys, str] = field(default_factory=dict)

    def place(self, keys: Keys) -> str:
        """Return where a value stands, or the section around it where it stands nowhere; empty: not known."""
        return next((self.places[keys[:end]] for end in range(len(keys), -1, -1) if keys[:end] in self.places), "")

    def over(self, under: "Document") -> "Document":
        """Return `under` with this document laid on it; see `merge`."""
        return Document(
            merge(under.values, self.values), {**under.places, **self.places}, {**under.spellings, **self.spellings}
        )


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
    return {_key(key): loader.construct_object(value, deep=True) for key, value in node.value}


def _key(node: yaml.Node) -> str:
    """Return a key as it is written: 007 is a name here, and no number."""
    if not isinstance(node, yaml.ScalarNode):
        raise ConfigError(f"line {node.start_mark.line + 1}: expected a word before the colon, found a list or a map")
    return str(node.value)


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
    return _parsed(text, where)[0]


def _parsed(text: str, where: str) -> tuple[Any, yaml.Node | None]:
    try:
        loader = _Loader(text)
    except yaml.reader.ReaderError as error:
        raise ConfigError(
            f"{where}: not valid YAML: holds the control character U+{error.character:04X} at position "
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
        return "a tab stands before the first word; indent with spaces"
    if problem == "mapping values are not allowed here":
        return "a second `key: value` on one line, or lines that are not indented alike; text with ': ' needs quotes"
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
    below: list[tuple[str | int, yaml.Node]] = []
    if isinstance(node, yaml.MappingNode):
        below = [(_key(key), value) for key, value in node.value]
    elif isinstance(node, yaml.SequenceNode):
        below = list(enumerate(node.value))
    return {path: text for key, value in below for path, text in _spellings(value, (*keys, key)).items()}


def read_chain(path: Path) -> list[Document]:
    """Return a YAML file's mapping, after those that it `extends`, farthest first.

    Raises:
        ConfigError: missing, not UTF-8, not a mapping, or extending itself.
    """
    return _read_chain(path, ())


def _read_chain(path: Path, below: tuple[Path, ...]) -> list[Document]:
    if path.resolve() in below:
        raise ConfigError(f"{path}: extends itself by way of {' -> '.join(str(p) for p in below)}")
    values, node = _parsed(_text_of(path), str(path))
    if values is None:
        return [Document({})]
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected `key: value` lines at the top level, found {kind(values)}")
    base = values.pop("extends", None)
    places = {(): str(path)} | {keys: f"{path}, line {line}" for keys, line in _key_lines(node)}
    own = Document(values, places, _spellings(node))
    if base is None:
        return [own]
    if not isinstance(base, str):
        raise ConfigError(f"{places['extends',]}: extends: expected the path of one YAML file, found {kind(base)}")
    return [*_read_chain(path.parent / user_path(base, "extends"), (*below, path.resolve())), own]


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        files = [p.name for p in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        raise ConfigError(f"{path}: no such config file{nearest(path.name, files)}") from None
    except IsADirectoryError:
        raise ConfigError(f"{path}: is a folder; expected a YAML file") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None


def user_path(text: str, key: str) -> str:
    """Return a path with `~` at its beginning and every `${NAME}` of the environment replaced.

    Args:
        text: as a user writes it; an address such as `sqlite:///~/trials.db` too.
        key: the setting, for messages.

    Raises:
        ConfigError: a variable that is not set, or no home folder.
    """

    def value(found: re.Match[str]) -> str:
        name = found[1]
        if name not in os.environ:
            raise ConfigError(
                f"{key}: ${{{name}}} is not set in the environment{nearest(name, os.environ)}; export {name}=..., or "
                "write the path itself"
            )
        return os.environ[name]

    text = re.sub(r"\$\{([^{}]*)\}", value, text)
    scheme, home = re.fullmatch(r"((?:[a-z+]+:///)?)(.*)", text, re.DOTALL).groups()  # type: ignore[union-attr]
    if not home.startswith("~"):
        return text
    folder = os.path.expanduser(home)
    if folder == home:
        user = home.partition("/")[0]
        raise ConfigError(f"{key}: {user} has no home folder here; write the path itself, or ./{home} for that name")
    return scheme + folder


def merge(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return `under` with `over` laid on it, section by section; a value replaces a value, `{}` empties a section."""
    merged = dict(under)
    for key, value in over.items():
        both = value and isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def parse_override(text: str) -> tuple[Keys, Any, dict[Keys, str]]:
    """Return the keys of `train.epochs=3`, its value, and how numbers in it are spelled, by keys within the value.

    Raises:
        ConfigError: no `=`, an empty key or a value that is not YAML.
    """
    path, equals, value = text.partition("=")
    keys: Keys = tuple(path.strip().split("."))
    if not equals or not all(keys):
        raise ConfigError(f"override '{text}': expected key.path=value, such as train.epochs=3")
    parsed, node = _parsed(value, f"override '{text}'")
    return keys, parsed, _spellings(node)


def kind(value: Any) -> str:
    """Return a value as messages name it: `the text 'three'`, `a list`."""
    names = {dict: "a section", list: "a list", str: "the text", bool: "the truth value", int: "the number",
             float: "the number", type(None): "nothing (null)"}  # fmt: skip
    name = names.get(type(value), type(value).__name__)
    return f"{name} {value!r}" if isinstance(value, str | bool | int | float) else name
