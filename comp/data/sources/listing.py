"""Find image files by id, below a folder or in a .zip archive, and open unlabelled tests with them."""

import itertools
import os
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from types import MappingProxyType
from typing import Any

from comp.config import DataConfig
from comp.data import archives
from comp.data.decode import SUFFIXES
from comp.data.scan import scan_files
from comp.data.sources.labels import check_look
from comp.data.splits import Split
from comp.runtime import escape
from comp.runtime.errors import DataError, SubmissionError, nearest, plural
from comp.runtime.progress import Progress
from comp.submission import samples
from comp.submission.format import SampleSubmission

_SHOWN = 5  # names in a message
_DEPTH = 6  # of folders that may hold all training images, such as `data/jpeg/train`
_MOST_LOCATIONS = 24
_HIDDEN = "__MACOSX"  # macOS adds it to archives; its files have the names of images but are not images
_PACKED = (".7z", ".gz", ".rar", ".tar", ".tgz", ".xz")
_SKIP_HINT = "data.skip_bad=true gives such rows a default answer: the mean of all others'"


def image_locations(root: Path) -> dict[str, int]:
    """Return the folders and archives below a root that hold images, by the number of those, most first.

    Names are relative; an archive has no `.zip`, as in `data.csv.train`.
    """
    counts: Counter[str] = Counter()
    visited: set[str] = set()
    for parent, folders, names in os.walk(root, followlinks=True):
        if (real := os.path.realpath(parent)) in visited:  # a link to a folder that was listed
            folders.clear()
            continue
        visited.add(real)
        relative = Path(parent).relative_to(root)
        folders[:] = [folder for folder in folders if not folder.startswith(".") and len(relative.parts) < 2 * _DEPTH]
        images = [name for name in names if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES]
        for name in images:
            check_name(Path(parent) / name)
        for depth in range(min(len(relative.parts), _DEPTH) + 1):
            counts["/".join(relative.parts[:depth]) or "."] += len(images)
        if len(relative.parts) < _DEPTH:
            for name in names:
                if name.lower().endswith(archives.ENDING) and not (Path(parent) / Path(name).stem).is_dir():
                    count = sum(
                        Path(member).suffix.lower() in SUFFIXES for member in readable_members(Path(parent) / name)
                    )
                    counts[(relative / Path(name).stem).as_posix()] += count
    kept = [(name, count) for name, count in counts.most_common() if count]
    return dict(kept[:_MOST_LOCATIONS])


def readable_members(archive: Path) -> list[str]:
    """Return the paths of all files in an archive; none if it cannot be read."""
    try:
        return archives.members(archive)
    except DataError:
        return []


def find_location(root: Path, name: str, key: str) -> Path | None:
    """Return where images are stored: the folder of this name, the archive, or the archive of this name and `.zip`.

    None if neither exists. The name is the value of `data.csv.KEY`; the key is empty if it is not configurable.

    Raises:
        DataError: another kind of file has this name, or the images are packed in another format than .zip.
    """
    path = root / name
    if path.is_dir() and any(_is_visible(entry) for entry in os.listdir(path)):
        return path
    zipped = path if path.suffix.lower() == archives.ENDING else path.with_name(path.name + archives.ENDING)
    if zipped.is_file():
        return zipped
    if path.is_dir():
        return path
    packed = [file for file in root.glob(f"{name}.*") if file.suffix in _PACKED]
    if path.is_file() or packed:
        wrong = path if path.is_file() else packed[0]
        raise DataError(f"{wrong}: expected a folder of images or a .zip archive{_set_by(key)}; unpack it")
    return None


def require_location(root: Path, name: str, key: str) -> Path:
    """Return where images are stored; see `find_location`.

    Raises:
        DataError: nothing has this name, or as `find_location`.
    """
    location = find_location(root, name, key)
    if location is None:
        visible = [path for path in root.glob("*") if _is_visible(path.name)]
        names = sorted(path.name for path in visible if path.is_dir() or path.suffix.lower() == archives.ENDING)
        raise DataError(
            f"{root / name}: no such folder, and no {name}{archives.ENDING}; expected the images there{_set_by(key)}; "
            f"{root} holds {', '.join(names[:_SHOWN]) or 'no folder'}{nearest(name, names)}"
        )
    return location


def _set_by(key: str) -> str:
    return f" (data.csv.{key})" if key else ""


class Listing:
    """The image files below a folder or in an archive, indexed by id.

    Folders that all files share (`test/test/`) are ignored in names. Hidden files and folders, `__MACOSX` and files
    that are not images are skipped and counted. Links to folders are followed.
    """

    def __init__(self, location: Path, keep: Sequence[str] = ()) -> None:
        """List the files.

        Args:
            location: an existing folder or archive.
            keep: folder names (classes) that never count as mere wrappers.

        Raises:
            DataError: the archive is damaged, or the paths of two files differ only in their Unicode form.
        """
        self.location = location
        images: list[tuple[str, ...]] = []
        self._hidden = 0
        self._non_images: list[str] = []
        for name in _file_names(location):
            parts = tuple(part for part in name.replace("\\", "/").split("/") if part not in ("", "."))
            is_image = PurePosixPath(name).suffix.lower() in SUFFIXES
            if not all(_is_visible(part) for part in parts):
                self._hidden += is_image
            elif is_image:
                check_name(location / name)
                images.append(parts)
            else:
                self._non_images.append(name)
        self.wrapping = _shared_folders(images, keep)
        by_name = sorted((_normalize("/".join(parts)), parts) for parts in images)
        self._files = {key: location.joinpath(*parts) for key, parts in by_name}
        if len(self._files) < len(set(images)):
            check_look(map("/".join, images), f"{location}: files")
        self._tails: dict[str, list[str]] = {}
        for key in self._files:
            for tail in _tails(key):
                self._tails.setdefault(_lower_suffix(tail), []).append(key)
                self._tails.setdefault(_stem(tail), []).append(key)

    def __len__(self) -> int:
        return len(self._files)

    def files(self) -> list[tuple[str, Path]]:
        """Return every file with its path below the folders that all share, sorted folder by folder."""
        cut = sum(len(part) + 1 for part in self.wrapping)
        pairs = [(key[cut:], path) for key, path in self._files.items()]
        return sorted(pairs, key=lambda pair: pair[0].split("/"))

    def ids(self, *, without: frozenset[Path] = frozenset()) -> tuple[str, ...]:
        """Return the ids of all files but `without`: paths below the shared folders, without suffixes if those stay
        distinct.
        """
        pairs = self.files()
        stems = [_stem(name) for name, _ in pairs]
        unique = len(set(stems)) == len(stems)
        named = zip(stems, pairs, strict=True)
        return tuple(sorted(stem if unique else name for stem, (name, path) in named if path not in without))

    def count(self, *, without: AbstractSet[Path] = frozenset(), only: AbstractSet[Path] | None = None) -> int:
        """Return the number of files, except those in `without`, or only those in `only`."""
        paths = set(self._files.values())
        return len(paths - without if only is None else paths & only)

    def notes(self, split: str) -> list[str]:
        """Return a note on skipped files for `split`; empty if there are none."""
        skipped = []
        if self._hidden:
            skipped.append(f"{plural(self._hidden, 'image')} in hidden folders or under hidden names")
        if self._non_images:
            others = plural(len(self._non_images), "file that is no image", "files that are no images")
            skipped.append(f"{others} (first {self._non_images[0]!r})")
        notes = [f"{split}: left out of {self.location}: {' and '.join(skipped)}"] if skipped else []
        location = self.location if self.location.name else self.location.resolve()  # `.` has no name
        zipped = location.parent / f"{location.name}{archives.ENDING}"
        if location.is_dir() and zipped.is_file():
            notes.append(f"{split}: {zipped} is not read, because the folder {self.location} exists")
        return notes

    def contains(self, key: str) -> bool:
        """Return whether an id matches a file."""
        try:
            return self._find(key) is not None
        except DataError:
            return False

    def locate(self, ids: Sequence[str]) -> list[Path | None]:
        """Return the file of each id, or None.

        An id is a path with or without its suffix, with any number of its last folders. Backslashes count as slashes,
        and a leading `./` is ignored.

        Raises:
            DataError: an id leads out of the folder or matches several files, or two ids match one file.
        """
        paths = [self._find(key) for key in ids]
        seen: dict[Path, str] = {}
        for key, path in zip(ids, paths, strict=True):
            if path is not None and seen.setdefault(path, key) != key:
                raise DataError(f"{path}: ids {seen[path]!r} and {key!r} both name it; keep one row per image")
        return paths

    def require(self, ids: Sequence[str], *, hint: str = "") -> list[Path]:
        """Return the file of each id; see `locate`.

        Args:
            ids: of a table.
            hint: how to fix missing files, for the message.

        Raises:
            DataError: as `locate`, or an id without a file.
        """
        paths = self.locate(ids)
        missing = [key for key, path in zip(ids, paths, strict=True) if path is None]
        if missing:
            raise DataError(self.missing_message(missing, len(ids)) + (f"; {hint}" if hint else ""))
        return [path for path in paths if path is not None]

    def missing_message(self, missing: Sequence[str], total: int) -> str:
        """Return the error message for ids without a file."""
        if not total:
            return f"{self.location}: holds no images"
        return (
            f"{self.location}: {len(missing):,} of {total:,} ids have no image there, first {first_few(missing)}; "
            f"the folder holds {first_few(list(self._files)) or 'no images'}"
        )

    def _find(self, key: str) -> Path | None:
        windows = PureWindowsPath(key)
        if PurePosixPath(key).is_absolute() or windows.anchor or ".." in windows.parts:
            raise DataError(f"{self.location}: id {key!r} leads out of the folder; correct the table")
        name = _normalize("/".join(part for part in key.replace("\\", "/").split("/") if part != "."))
        # As it is, without the folders that lead here, and both without surrounding spaces.
        bare = name.strip()
        candidates = (name, *self._without_lead(name), bare, *self._without_lead(bare))
        for candidate in dict.fromkeys(candidates):
            if candidate in self._files:
                return self._files[candidate]
            matches = self._tails.get(_lower_suffix(candidate)) or self._tails.get(candidate) or []
            # The file at the shortest path wins over deeper ones: `1` is `1.png` before `old/1.png`.
            direct = [match for match in matches if match.count("/") == candidate.count("/")]
            chosen = sorted(set(direct if len(set(direct)) == 1 else matches))
            if len(chosen) > 1:
                raise DataError(f"{self.location}: id {key!r} matches {first_few(chosen)}; remove all but one")
            if chosen:
                return self._files[chosen[0]]
        return None

    def _without_lead(self, key: str) -> Iterator[str]:
        """Yield an id without the folders that lead to this one: `train/7` and `data/train/7` are `7` in data/train."""
        leading = [_normalize(part) for part in self.location.absolute().parts]
        leading[-1] = leading[-1].removesuffix(archives.ENDING)
        parts = key.split("/")
        for count in range(1, min(len(parts), len(leading) + 1)):
            if parts[:count] == leading[-count:]:
                yield "/".join(parts[count:])


def check_name(path: Path) -> None:
    """Raise DataError if an image's path is no text: ids and classes are written to UTF-8 files."""
    if not escape.is_text(str(path)):
        raise DataError(
            f"{path}: expected a path of UTF-8 text, found other bytes in it; rename the file or folder, or remove it"
        )


def first_few(values: Sequence[Any]) -> str:
    """Return the first few values, quoted."""
    shown = ", ".join(repr(str(value)) for value in values[:_SHOWN])
    return shown + (", ..." if len(values) > _SHOWN else "")


def _file_names(location: Path) -> Iterator[str]:
    """Yield every file's path below a folder, with links followed once, or in an archive."""
    if location.is_file():
        yield from archives.members(location)
        return
    above: dict[str, frozenset[str]] = {str(location): frozenset()}  # folder -> real paths of its parents
    for parent, folders, names in os.walk(location, followlinks=True):
        real = os.path.realpath(parent)
        if real in above[parent]:
            folders.clear()  # a link that leads back
            continue
        above |= {os.path.join(parent, folder): above[parent] | {real} for folder in folders}
        for name in names:
            path = os.path.join(parent, name)
            if not os.path.islink(path) or os.path.exists(path):  # else a dead link
                yield Path(path).relative_to(location).as_posix()


def _shared_folders(files: Sequence[tuple[str, ...]], keep: Sequence[str]) -> tuple[str, ...]:
    """Return the leading folders that all files share, up to the first one in `keep`."""
    if not files:
        return ()
    leading = files[0][:-1]
    for parts in files:
        pairs = zip(leading, parts[:-1], strict=False)
        leading = tuple(part for part, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
    end = next((index for index, part in enumerate(leading) if _normalize(part) in keep), len(leading))
    return tuple(_normalize(part) for part in leading[:end])


def _is_visible(name: str) -> bool:
    return not name.startswith(".") and name != _HIDDEN


def _normalize(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def _stem(name: str) -> str:
    return name[: len(name) - len(PurePosixPath(name).suffix)]


def _lower_suffix(name: str) -> str:
    return _stem(name) + PurePosixPath(name).suffix.lower()


def _tails(key: str) -> Iterator[str]:
    """Yield a path from each of its folders on: `a/b/c`, `b/c`, `c`."""
    yield key
    while "/" in key:
        key = key.partition("/")[2]
        yield key


def find_sample(config: DataConfig) -> tuple[SampleSubmission | None, tuple[str, ...]]:
    """Return the sample submission that `data.csv.sample` names or the folder holds, if any, and notes on the search.

    Raises:
        DataError: a named file is missing, several files qualify, or it cannot be read.
    """
    try:
        path, notes = samples.find_sample(Path(config.root), config.csv.sample)
        return samples.read_sample(path) if path else None, notes
    except SubmissionError as error:
        raise DataError(str(error)) from None


@dataclass(frozen=True)
class LoadedTest:
    """A competition's test images.

    Attributes:
        split: in submission order.
        sample: the sample submission, or None.
        notes: ids and files that do not match, with counts.
        files: all image files of the split; empty for pixel tables and labelled folders.
    """

    split: Split
    sample: SampleSubmission | None
    notes: tuple[str, ...] = ()
    files: frozenset[Path] = frozenset()


def unlabelled_test(
    location: Path,
    sample: SampleSubmission | None,
    config: DataConfig,
    progress: Progress,
    *,
    listed: Sequence[str] = (),
    files_by_id: Mapping[str, str] = MappingProxyType({}),
    training: frozenset[Path] = frozenset(),
    listing: Listing | None = None,
) -> LoadedTest:
    """Return the test images in the order of the sample, else of the test table, else of their names.

    Args:
        location: folder or archive of the images; it may hold training images too.
        sample: the sample submission, or None.
        config: section `data`.
        progress: called while files are read.
        listed: ids of a test table; empty without one.
        files_by_id: id -> file name, for ids that are not file names.
        training: training image files, which are left out.
        listing: of `location`, if it exists already.

    Raises:
        DataError: an id without a file or a file that cannot be read, unless `data.skip_bad` is set.
    """
    files = Listing(location) if listing is None else listing
    notes = files.notes("test") if listing is None else []
    if sample and sample.id_column not in sample.ids and all(map(files.contains, (sample.id_column, sample.ids[0]))):
        raise DataError(
            f"{sample.path}: has no header: its first line names an image ({sample.id_column!r}); add one as shown on "
            "the competition's page"
        )
    ids: Sequence[str] = sample.ids if sample else listed or files.ids(without=training)
    keys = [files_by_id.get(key, key) for key in ids]
    paths = files.locate(keys) if config.skip_bad else files.require(keys, hint=_SKIP_HINT)
    used = frozenset(path for path in paths if path)
    if not used:
        raise DataError(files.missing_message(keys, len(keys)))
    unlisted = files.count(without=training | used)
    if unlisted and (sample or listed):
        table = "the sample submission" if sample else "the test table"
        images = plural(unlisted, f"image of {location} is", f"images of {location} are")
        notes.append(f"test: {images} not listed by {table}, and not predicted")
    if shared := files.count(only=training):
        images = plural(shared, f"training image in {location} is", f"training images in {location} are")
        notes.append(f"test: {images} not predicted")
    if sample and listed and (missing := len(set(listed) - set(ids))):
        rest = plural(missing, "id of the test table is", "ids of the test table are")
        notes.append(f"test: {rest} not in the sample submission, and not predicted")
    split = scan_files("test", paths, ids, None, config, progress)
    return LoadedTest(split, sample, tuple(notes), used)
