"""The image files below a folder or in a .zip archive, and the one rule by which an id finds its file."""

import itertools
import os
import unicodedata
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from comp.data import archives
from comp.data.decode import SUFFIXES
from comp.runtime.errors import DataError, nearest

_SHOWN = 5  # offending names in a message
_HIDDEN = "__MACOSX"  # what macOS adds to archives; it holds no pictures, under pictures' names


def place_of(root: Path, name: str, key: str) -> Path | None:
    """Return where images lie: the folder of this name, the archive, or the archive of this name and `.zip`.

    Args:
        root: the folder of the data.
        name: what `data.csv.KEY` says.
        key: of the config, for messages; empty where none names it.

    Returns:
        None where there is nothing of this name.

    Raises:
        DataError: a file of another kind has this name, or the images are packed in another way than as .zip.
    """
    place = root / name
    if place.is_dir() and any(_is_visible(name) for name in os.listdir(place)):
        return place
    zipped = place if place.suffix.lower() == archives.ENDING else place.with_name(place.name + archives.ENDING)
    if zipped.is_file():
        return zipped
    if place.is_dir():
        return place
    packed = [path for path in root.glob(f"{name}.*") if path.suffix in (".7z", ".gz", ".rar", ".tar", ".tgz", ".xz")]
    if place.is_file() or packed:
        found = place if place.is_file() else packed[0]
        raise DataError(f"{found}: expected a folder of images or a .zip archive{_set_by(key)}; unpack it beside")
    return None


def demand_place(root: Path, name: str, key: str) -> Path:
    """Return where images lie; see `place_of`.

    Raises:
        DataError: nothing of this name, or as `place_of`.
    """
    place = place_of(root, name, key)
    if place is None:
        here = sorted(path.name for path in root.glob("*") if _is_visible(path.name) and (
            path.is_dir() or path.suffix.lower() == archives.ENDING))  # fmt: skip
        raise DataError(
            f"{root / name}: no such folder, and no {name}{archives.ENDING}; it holds the images{_set_by(key)}; "
            f"{root} holds {', '.join(here[:_SHOWN]) or 'no folder'}{nearest(name, here)}"
        )
    return place


def _set_by(key: str) -> str:
    return f" (data.csv.{key})" if key else ""


class Listing:
    """The image files below a folder or in an archive, found by ids.

    Folders that all files share (`test/test/`) count for nothing in names. Hidden files and folders, `__MACOSX` and
    files that are no images are left out, and counted. Links to folders are followed.
    """

    def __init__(self, place: Path, keep: Sequence[str] = ()) -> None:
        """List the files.

        Args:
            place: an existing folder or archive.
            keep: names of folders, the classes', that are never taken for ones that only wrap others.

        Raises:
            DataError: the archive is damaged.
        """
        self.place = place
        found: list[tuple[str, ...]] = []
        self._hidden = 0
        self._others: list[str] = []
        for name in _names(place):
            parts = tuple(part for part in name.replace("\\", "/").split("/") if part not in ("", "."))
            image = PurePosixPath(name).suffix.lower() in SUFFIXES
            if not all(_is_visible(part) for part in parts):
                self._hidden += image
            elif image:
                found.append(parts)
            else:
                self._others.append(name)
        self.wrapping = _shared(found, keep)
        by_name = sorted((_normal("/".join(parts)), parts) for parts in found)
        self._files = {key: place.joinpath(*parts) for key, parts in by_name}
        self._tails: dict[str, list[str]] = {}
        for key in self._files:
            for tail in _tails(key):
                self._tails.setdefault(_folded(tail), []).append(key)
                self._tails.setdefault(_stem(tail), []).append(key)

    def __len__(self) -> int:
        return len(self._files)

    def named(self) -> list[tuple[str, Path]]:
        """Return every file with its path below the folders that all share, sorted folder by folder."""
        cut = sum(len(part) + 1 for part in self.wrapping)
        pairs = [(key[cut:], path) for key, path in self._files.items()]
        return sorted(pairs, key=lambda pair: pair[0].split("/"))

    def ids(self, *, without: frozenset[Path] = frozenset()) -> tuple[str, ...]:
        """Return every file's name below the folders that all share, without endings where that leaves them distinct.

        Args:
            without: files that are left out.
        """
        pairs = self.named()
        stems = [_stem(name) for name, _ in pairs]
        unique = len(set(stems)) == len(stems)
        kept = [(stem if unique else name) for stem, (name, path) in zip(stems, pairs, strict=True)
                if path not in without]  # fmt: skip
        return tuple(sorted(kept))

    def count(self, *, without: AbstractSet[Path] = frozenset(), only: AbstractSet[Path] | None = None) -> int:
        """Return how many files there are, less those of `without`, or of `only` alone."""
        paths = set(self._files.values())
        return len(paths - without if only is None else paths & only)

    def note(self, name: str) -> list[str]:
        """Return what was left out, as a note of the split `name`; nothing where nothing was."""
        left = []
        if self._hidden:
            left.append(f"{self._hidden:,} images in hidden folders or under hidden names")
        if self._others:
            left.append(f"{len(self._others):,} files that are no images ({self._others[0]!r} is the first)")
        notes = [f"{name}: left out of {self.place}: {' and '.join(left)}"] if left else []
        beside = self.place.with_name(self.place.name + archives.ENDING)
        if self.place.is_dir() and beside.is_file():
            notes.append(f"{name}: {beside} is not read, since {self.place} lies beside it")
        return notes

    def holds(self, key: str) -> bool:
        """Tell whether an id finds a file."""
        try:
            return self._find(key) is not None
        except DataError:
            return False

    def locate(self, ids: Sequence[str]) -> list[Path | None]:
        """Return the file of each id, None where there is none.

        An id is a path with or without its ending, with any number of the folders that lead to the file, from the
        last on; back slashes and a leading `./` are the same as slashes and nothing.

        Raises:
            DataError: an id that leads out of the folder or fits several files, or two ids of one file.
        """
        found = [self._find(key) for key in ids]
        seen: dict[Path, str] = {}
        for key, path in zip(ids, found, strict=True):
            if path is not None and seen.setdefault(path, key) != key:
                raise DataError(f"{path}: ids {seen[path]!r} and {key!r} both name it; keep one row for each image")
        return found

    def find(self, ids: Sequence[str], *, mend: str = "") -> list[Path]:
        """Return the file of each id; see `locate`.

        Args:
            ids: of a table.
            mend: what helps where files are missing, for the message.

        Raises:
            DataError: as `locate`, or an id without a file.
        """
        found = self.locate(ids)
        missing = [key for key, path in zip(ids, found, strict=True) if path is None]
        if missing:
            raise DataError(self.missing(missing, len(ids)) + (f"; {mend}" if mend else ""))
        return [path for path in found if path is not None]

    def missing(self, missing: Sequence[str], total: int) -> str:
        """Return what is said of ids without a file."""
        return (
            f"{self.place}: {len(missing):,} of {total:,} ids have no image there, first {some(missing)}; "
            f"found are {some(list(self._files)) or 'no images'}"
        )

    def _find(self, key: str) -> Path | None:
        windows = PureWindowsPath(key)
        if PurePosixPath(key).is_absolute() or windows.anchor or ".." in windows.parts:
            raise DataError(f"{self.place}: id {key!r} leads out of the folder, which is refused; mend the table")
        wanted = _normal("/".join(part for part in key.replace("\\", "/").split("/") if part != "."))
        # As it is, without the folders that lead here, and both without spaces around it.
        bare = wanted.strip()
        names = (wanted, *self._without_lead(wanted), bare, *self._without_lead(bare))
        for name in dict.fromkeys(names):
            if name in self._files:
                return self._files[name]
            fitting = self._tails.get(_folded(name)) or self._tails.get(name) or []
            # The file at the shortest path is meant where others lie deeper: `1` is `1.png` before `old/1.png`.
            direct = [found for found in fitting if found.count("/") == name.count("/")]
            chosen = sorted(set(direct if len(set(direct)) == 1 else fitting))
            if len(chosen) > 1:
                raise DataError(f"{self.place}: id {key!r} fits {some(chosen)}; remove all but one")
            if chosen:
                return self._files[chosen[0]]
        return None

    def _without_lead(self, key: str) -> Iterator[str]:
        """Yield an id without the folders that lead to this one: `train/7` and `data/train/7` are `7` in data/train."""
        leading = [_normal(part) for part in self.place.absolute().parts]
        leading[-1] = leading[-1].removesuffix(archives.ENDING)
        parts = key.split("/")
        for count in range(1, min(len(parts), len(leading) + 1)):
            if parts[:count] == leading[-count:]:
                yield "/".join(parts[count:])


def some(values: Sequence[Any]) -> str:
    """Return the first few values, quoted."""
    shown = ", ".join(repr(str(value)) for value in values[:_SHOWN])
    return shown + (", ..." if len(values) > _SHOWN else "")


def _names(place: Path) -> Iterator[str]:
    """Yield every file's path below a folder, with links followed once, or in an archive."""
    if place.is_file():
        yield from archives.members(place)
        return
    above: dict[str, frozenset[str]] = {str(place): frozenset()}  # a folder -> where those that lead to it really lie
    for parent, folders, names in os.walk(place, followlinks=True):
        real = os.path.realpath(parent)
        if real in above[parent]:
            folders.clear()  # a link that leads back
            continue
        above |= {os.path.join(parent, folder): above[parent] | {real} for folder in folders}
        for name in names:
            path = os.path.join(parent, name)
            if not os.path.islink(path) or os.path.exists(path):  # else a link to nothing
                yield Path(path).relative_to(place).as_posix()


def _shared(found: Sequence[tuple[str, ...]], keep: Sequence[str]) -> tuple[str, ...]:
    """Return the leading folders that all files share."""
    if not found:
        return ()
    leading = found[0][:-1]
    for parts in found:
        shorter = zip(leading, parts[:-1], strict=False)
        leading = tuple(one for one, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], shorter))
    kept = next((place for place, part in enumerate(leading) if _normal(part) in keep), len(leading))
    return tuple(_normal(part) for part in leading[:kept])


def _is_visible(name: str) -> bool:
    return not name.startswith(".") and name != _HIDDEN


def _normal(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def _stem(name: str) -> str:
    return name[: len(name) - len(PurePosixPath(name).suffix)]


def _folded(name: str) -> str:
    """Return a name with its ending in small letters."""
    suffix = PurePosixPath(name).suffix
    return name[: len(name) - len(suffix)] + suffix.lower()


def _tails(key: str) -> Iterator[str]:
    """Yield a path from each of its folders on: `a/b/c`, `b/c`, `c`."""
    yield key
    while "/" in key:
        key = key.partition("/")[2]
        yield key
