"""Entries of `plugins`: from a name in a config to the code that it stands for. Imports no plug-in.

You write the name of a file beside the config (`my_module.py`) or of an installed module (`my_package.rows`). A loaded
config holds the file's full path, and for both the SHA-256 of the source: `/home/me/my_module.py#sha256=5b2d...`. So a
config, its hash and each copy of it say exactly which code they mean; `comp.workflows.plugins` runs no other.
"""

import contextlib
import hashlib
import importlib.util
import keyword
import os
import re
import sys
from collections.abc import Iterable, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import NamedTuple

from comp.runtime.errors import ConfigError, nearest

FOLDER = "plugins"
"""Folder of the copies in a run or a study."""

COPIES = "COMP_PLUGIN_COPIES"
"""Environment variable: folder with copies of the sources that this command's processes have loaded."""

_PIN = "#sha256="


class Plugin(NamedTuple):
    """An entry of `plugins`.

    Attributes:
        source: path of a file, or dotted name of an installed module.
        sha256: of its source; empty if not known yet.
    """

    source: str
    sha256: str = ""

    @property
    def is_file(self) -> bool:
        """Whether it is a file, not an installed module."""
        return self.source.endswith(".py")

    @property
    def name(self) -> str:
        """The file's name, or the module's."""
        return Path(self.source).name if self.is_file else self.source

    @property
    def module(self) -> str:
        """The name that it is imported by."""
        return self.name.removesuffix(".py")

    def path(self) -> Path:
        """Return the source file.

        Raises:
            ConfigError: no such installed module.
        """
        return Path(self.source) if self.is_file else _locate_module(self.source)

    def read(self) -> bytes:
        """Return the source; if it is edited while a command runs, the command's processes go on with their copy.

        Raises:
            ConfigError: missing, unreadable, or other code than the SHA-256 says.
        """
        path, digests = self.path(), list[str]()
        for candidate in (path, Path(os.environ.get(COPIES, os.devnull), f"{self.sha256}.py")):
            with contextlib.suppress(OSError):
                content = candidate.read_bytes()
                digests.append(hashlib.sha256(content).hexdigest())
                if self.sha256 in ("", digests[-1]):
                    return content
        if not digests:
            raise ConfigError(f"plugins: {path}: missing, or cannot be read")
        raise ConfigError(
            f"plugins: {path}: expected sha256 {self.sha256}, found {digests[0]}: the source has changed; restore it, "
            "or start anew with a config that names it without a hash"
        )

    def __str__(self) -> str:
        return f"{self.source}{_PIN}{self.sha256}" if self.sha256 else self.source


def parse(entry: str) -> Plugin:
    """Return an entry's parts."""
    source, _, digest = entry.partition(_PIN)
    return Plugin(source, digest)


def portable(entries: Iterable[str]) -> list[str]:
    """Return loaded entries without their folders: what they compute, wherever they lie."""
    return [str(plugin._replace(source=plugin.name)) for plugin in map(parse, entries)]


def as_copies(entries: Iterable[str]) -> tuple[str, ...]:
    """Return loaded entries as a config beside a folder with their copies names them."""
    plugins = map(parse, entries)
    return tuple(str(row._replace(source=f"{FOLDER}/{row.name}") if row.is_file else row) for row in plugins)


def beside(entries: Iterable[str], folder: Path) -> tuple[str, ...]:
    """Return loaded entries as a config in a folder names them; files outside it keep their full path."""
    absolute = folder.absolute()
    return tuple(
        str(row._replace(source=str(Path(row.source).relative_to(absolute))))
        if row.is_file and Path(row.source).is_relative_to(absolute)
        else str(row)
        for row in map(parse, entries)
    )


def resolve_copies(entries: Iterable[str], folder: Path) -> list[str]:
    """Return a stored config's entries with full paths; nothing is read."""
    plugins = map(parse, entries)
    return [str(row._replace(source=str(folder.absolute() / row.source)) if row.is_file else row) for row in plugins]


def resolve(entries: Sequence[str], folder: Path) -> list[str]:
    """Return a user's entries with full paths and the SHA-256 of their source.

    Args:
        entries: of a config in `folder`.
        folder: where the files are.

    Raises:
        ConfigError: a missing or unreadable source, a file elsewhere, a name that hides another module, or the same
            module twice.
    """
    resolved: list[Plugin] = []
    for entry in entries:
        plugin = parse(entry)
        if plugin.is_file:
            _check_file(plugin.source, folder)
            plugin = plugin._replace(source=str(folder.absolute() / plugin.source))
        elif not all(map(_is_name, plugin.source.split("."))):
            raise ConfigError(
                f"plugins: expected a Python file beside the config, such as my_module.py, or an installed module's "
                f"name, found '{entry}'{' (a folder: name its files)' if (folder / plugin.source).is_dir() else ''}"
            )
        elif (folder / f"{plugin.source}.py").is_file():
            raise ConfigError(f"plugins: {plugin.source}: write {plugin.source}.py for the file beside the config")
        if plugin.module in [earlier.module for earlier in resolved]:
            raise ConfigError(f"plugins: {plugin.module} is named twice; keep one, or rename one of the files")
        resolved.append(plugin._replace(sha256=hashlib.sha256(plugin.read()).hexdigest()))
    return list(map(str, resolved))


def _check_file(source: str, folder: Path) -> None:
    relative, path = Path(source), folder / source
    if relative.is_absolute() or ".." in relative.parts or source.startswith("~"):
        raise ConfigError(
            f"plugins: {source}: expected a file beside the config, in {folder.absolute()} or below; put it there and "
            f"write {relative.name}"
        )
    if path.is_dir():
        raise ConfigError(f"plugins: {path}: is a folder; expected a Python file")
    if not path.is_file():
        files = [file.name for file in path.parent.glob("*.py")] if path.parent.is_dir() else []
        raise ConfigError(f"plugins: {path}: no such file{nearest(path.name, files)}")
    stem = path.stem
    if not _is_name(stem):
        raise ConfigError(f"plugins: {source}: expected a name that Python can import, such as my_module.py; rename it")
    if stem in sys.stdlib_module_names or stem == "comp":
        raise ConfigError(f"plugins: {source}: would hide the module {stem} of {_owner(stem)}; rename it")


def _owner(stem: str) -> str:
    return "comp itself" if stem == "comp" else "Python's standard library"


def _is_name(text: str) -> bool:
    return bool(re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", text)) and not keyword.iskeyword(text)


def _locate_module(name: str) -> Path:
    """Return the file of an installed module, without importing it or the packages that hold it.

    Raises:
        ConfigError: there is none, or it has no Python source.
    """
    spec: ModuleSpec | None = None
    first, *rest = name.split(".")
    try:
        spec = importlib.util.find_spec(first)
        for part in rest:
            if spec is not None:
                spec = PathFinder.find_spec(f"{spec.name}.{part}", spec.submodule_search_locations or [])
    except (ImportError, ValueError):  # a module that was made by hand
        spec = None
    if spec is None:
        raise ConfigError(
            f"plugins: {name}: no such installed module; for a file beside the config write its whole name, such as "
            f"{first}.py"
        )
    if first in sys.stdlib_module_names or first == "comp":
        raise ConfigError(f"plugins: {name}: is a module of {_owner(first)}, not a plug-in")
    if not spec.origin or not spec.origin.endswith(".py"):
        raise ConfigError(f"plugins: {name}: has no Python source to record; name one of its modules that has")
    return Path(spec.origin)
