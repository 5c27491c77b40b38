"""YAML 1.2-style loader, `extends`, and `key.path=value` overrides.

Nothing that a file holds may hang or exhaust the process: size, depth and number of values are bounded while it is
read, and aliases count as what they stand for.
"""

import os
import re
import select
import stat
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from comp.config import shipped
from comp.runtime import escape
from comp.runtime.errors import ConfigError, nearest, shortened

_MAX_BYTES = 1 << 20  # of a file or an override
_MAX_VALUES = 100_000  # of a document, with aliases written out
_MAX_DEPTH = 32  # of lists and mappings in one another
_MAX_CHAIN = 32  # files that extend one another
_PIPE_SECONDS = 10.0  # that a pipe may take to be written

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


class _Extent(NamedTuple):
    """How many values a node holds, itself included, and how deep they go."""

    values: int
    depth: int


class _Loader(yaml.SafeLoader):
    """YAML 1.2-style loader: `1e-4` is a number, `no` and dates are text, duplicate keys are errors.

    Only plain values pass: no tags for other types, and no characters that no file name or text may have.
    """

    NON_PRINTABLE = re.compile(  # type: ignore[misc]
        "[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]"
    )

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0
        self._extents: dict[yaml.Node, _Extent] = {}  # of the nodes that are complete

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Return the next node.

        Raises:
            ConfigError: it is too deep or too large, contains itself, or is no plain value.
        """
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        line = event.start_mark.line + 1
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise ConfigError(f"line {line}: more than {_MAX_DEPTH} lists and mappings in one another; flatten them")
        node = super().compose_node(parent, index)
        assert node is not None, "for the types' sake: every event begins a node"
        if not isinstance(event, yaml.AliasEvent):
            self._check_plain(node, event, line)
            self._extents[node] = self._measure(node)
        elif node not in self._extents:
            raise ConfigError(f"line {line}: *{event.anchor} contains itself; write its values out")
        extent = self._extents[node]
        self._depth -= 1
        if self._depth + extent.depth > _MAX_DEPTH or extent.values > _MAX_VALUES:
            raise ConfigError(
                f"line {line}: expected at most {_MAX_VALUES:,} values, {_MAX_DEPTH} lists and mappings deep, found "
                f"more, with aliases written out; remove aliases (*name)"
            )
        return node

    def _measure(self, node: yaml.Node) -> _Extent:
        pairs = node.value if isinstance(node, yaml.MappingNode) else ()
        children = [child for pair in pairs for child in pair] or (node.value if _is_list(node) else [])
        extents = [self._extents[child] for child in children]
        return _Extent(1 + sum(row.values for row in extents), 1 + max((row.depth for row in extents), default=0))

    def _check_plain(self, node: yaml.Node, event: Any, line: int) -> None:
        kind = node.tag.removeprefix("tag:yaml.org,2002:")
        if isinstance(node, yaml.ScalarNode):
            plain: str = node.tag
            if event.tag:
                plain = self.resolve(yaml.ScalarNode, node.value, (True, False))  # type: ignore[no-untyped-call]
            fits = node.tag == plain or kind == "str" or (kind == "float" and plain.endswith(":int"))
            if character := _NEVER.search(node.value):
                raise ConfigError(f"line {line}: contains the character U+{ord(character[0]):04X}; remove it")
        else:
            fits = kind == ("seq" if _is_list(node) else "map")
        if not fits:
            raise ConfigError(
                f"line {line}: the tag {shortened(event.tag)} does not fit; expected plain text, numbers, booleans, "
                "lists or mappings: remove the tag"
            )


_NEVER = re.compile("[\ud800-\udfff]")  # written as escapes: UTF-8 has no lone surrogates


def _is_list(node: yaml.Node) -> bool:
    return isinstance(node, yaml.SequenceNode)


_OTHER = {"bool", "float", "timestamp", "value"}  # that YAML 1.1 sees elsewhere than here
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in rows if tag.rsplit(":", 1)[1] not in _OTHER]
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
        key, line = _key(key_node), key_node.start_mark.line + 1
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


def _whole_number(loader: _Loader, node: yaml.ScalarNode) -> int | str:
    """Return an integer of 64 bits; longer ones are text, which a key of text keeps and a key of numbers refuses."""
    try:
        number = int(loader.construct_yaml_int(node))
    except ValueError:  # 0x_, or more digits than Python converts
        return str(node.value)
    return number if -(1 << 63) <= number < 1 << 63 else str(node.value)


_Loader.add_constructor("tag:yaml.org,2002:map", _unique_mapping)
_Loader.add_constructor("tag:yaml.org,2002:int", _whole_number)


def dump_yaml(values: Any, *, allow_unicode: bool) -> str:
    """Return plain values as YAML."""
    text: str = yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=allow_unicode, width=120)
    return text


def _parse(text: str, where: str) -> tuple[Any, yaml.Node | None]:
    if len(text) > _MAX_BYTES:
        raise ConfigError(f"{where}: {_TOO_LONG}")
    try:
        loader = _Loader(text)
    except yaml.reader.ReaderError as error:
        what = "the byte order mark" if error.character == 0xFEFF else "the control character"
        line = text.count("\n", 0, error.position) + 1
        raise ConfigError(
            f"{where}, line {line}: not valid YAML: contains {what} U+{error.character:04X} at position "
            f"{error.position + 1:,}; remove it"
        ) from None
    try:
        node = loader.get_single_node()
        return (None if node is None else loader.construct_document(node)), node
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        at = f", line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{where}{at}: not valid YAML: {_problem(error, text)}") from None
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
    if problem == "but found another document":
        return "a second document begins here; keep one, without the line ---"
    if problem.startswith("found") or "but found" in problem or "but got" in problem:
        return f"{shortened(problem, 200)}; close each bracket and quote, and quote text that begins with a symbol"
    return shortened(problem, 200)


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
    real = Path(os.path.realpath(path))  # unlike `resolve`, of links in a circle too
    if real in extending:
        raise ConfigError(f"{path}: extends itself through {' -> '.join(map(str, extending))}")
    if len(extending) == _MAX_CHAIN:
        raise ConfigError(f"{path}: extends: expected at most {_MAX_CHAIN} files in a chain, found more; join some")
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
    if not isinstance(base, str) or not base.strip():
        raise ConfigError(
            f"{locations['extends',]}: extends: expected the path of one YAML file, found {describe_value(base)}"
        )
    return [*read_chain(path.parent / user_path(base, "extends"), (*extending, real)), document]


def _read_text(path: Path) -> str:
    try:
        return _read_bytes(path).decode("utf-8-sig")
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


_TOO_LONG = f"expected a config of at most {_MAX_BYTES:,} bytes, found more; name a config, or shorten it"


def _read_bytes(path: Path) -> bytes:
    """Return what a file, a pipe or a device holds, without waiting long for it.

    Raises:
        ConfigError: too long, or nothing comes.
        OSError: it cannot be read.
    """
    content, deadline = b"", time.monotonic() + _PIPE_SECONDS
    with open(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb", buffering=0) as file:
        waits = not stat.S_ISREG(os.fstat(file.fileno()).st_mode)
        while len(content) <= _MAX_BYTES:
            if waits and not select.select([file], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise ConfigError(f"{path}: nothing came from it within {_PIPE_SECONDS:g} s; name a YAML file")
            part = file.read(_MAX_BYTES + 1 - len(content))
            if not part:
                return content
            content += part
    raise ConfigError(f"{path}: {_TOO_LONG}")


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
        return _checked_path(os.environ[name], key)

    if "\0" in text:
        raise ConfigError(f"{key}: contains the character U+0000, which no path has; remove it")
    text = re.sub(r"\$\{([^{}]*)\}", value, text)
    scheme, home = re.fullmatch(r"((?:[a-z+]+:///)?)(.*)", text, re.DOTALL).groups()  # type: ignore[union-attr]
    if not home.startswith("~"):
        return text
    folder = os.path.expanduser(home)
    if folder == home:
        user = home.partition("/")[0]
        raise ConfigError(f"{key}: {user} has no home folder; write the full path, or ./{home} for a relative path")
    return scheme + _checked_path(folder, key)


def _checked_path(path: str, key: str) -> str:
    if not escape.is_text(path):
        raise ConfigError(f"{key}: {path} holds bytes that are no UTF-8 text; rename the folder, or use another one")
    return path


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
        raise ConfigError(f"override '{shortened(text)}': expected key.path=value, such as train.epochs=3")
    content, node = _parse(value, f"override '{shortened(text)}'")
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
    return f"{name} {shortened(repr(value))}" if isinstance(value, str | bool | int | float) else name


def read_plain(text: str, where: str) -> Any:
    """Return the plain values of YAML text; `where` names it in messages.

    Raises:
        ConfigError: it is not YAML, too large, or holds other values.
    """
    return _parse(text, where)[0]
