"""Unlabelled tests of Kaggle competitions, and the sample submission that lists their images."""

import os
import unicodedata
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from comp import class_names
from comp.competition import samples
from comp.competition.spec import Sample
from comp.config import DataConfig
from comp.data.images import SUFFIXES
from comp.data.splits import Split
from comp.data.survey import files_split
from comp.errors import DataError, SubmissionError
from comp.progress import Progress

_SHOWN = 5  # offending names in a message


@dataclass(frozen=True)
class Submitted:
    """What is submitted of a competition's folder.

    Attributes:
        sample: its sample submission, None without one.
        notes: what was passed over or not there.
    """

    sample: Sample | None
    notes: tuple[str, ...]


def sample_of(config: DataConfig) -> Submitted:
    """Return the sample submission that `data.csv.sample` names or the folder holds.

    Raises:
        DataError: a named one is missing, several could be meant, or it cannot be read.
    """
    try:
        path, notes = samples.find(Path(config.root), config.csv.sample)
        return Submitted(samples.read(path) if path else None, notes)
    except SubmissionError as error:
        raise DataError(str(error)) from None


def class_order(names: Sequence[str], sample: Sample | None) -> tuple[str, ...]:
    """Return classes in label order: that of the sample's columns where it has one for each class, else by value or
    text (`class_names.ordered`).
    """
    if sample is not None and len(sample.columns) > 1 and set(sample.columns) == set(names):
        return sample.columns
    return class_names.ordered(names)


@dataclass(frozen=True)
class TestImages:
    """The unlabelled test images.

    Attributes:
        split: in the order that is submitted.
        notes: ids and files that do not match, with counts.
    """

    split: Split
    notes: tuple[str, ...]


def unlabelled_test(
    folder: Path,
    sample: Sample | None,
    config: DataConfig,
    progress: Progress,
    *,
    listed: Sequence[str] = (),
    training: frozenset[Path] = frozenset(),
) -> TestImages:
    """Return the test images in the order of the sample, else of the test table, else of their names.

    Args:
        folder: where they lie; training images may lie there too.
        sample: the sample submission, None without one.
        config: section `data`.
        progress: called while files are read.
        listed: ids of a test table, empty without one.
        training: files of the training images, which are no test images.

    Raises:
        DataError: an id without its file, or a file that cannot be read.
    """
    files = Listing(folder)
    notes: list[str] = []
    ids: Sequence[str] = sample.ids if sample else listed or files.names(without=training)
    paths = files.find(ids)
    left = files.count(without=training | set(paths))
    source = "the sample submission" if sample else "the test table"
    if left and (sample or listed):
        notes.append(f"test: {left:,} images of {folder} are not listed by {source}, and are not predicted")
    if shared := files.count(only=training):
        notes.append(f"test: {shared:,} training images lie in {folder} too, and are not predicted")
    if sample and listed and (missing := len(set(listed) - set(ids))):
        notes.append(f"test: {missing:,} ids of the test table are not in the sample submission, and are not predicted")
    return TestImages(files_split("test", paths, ids, None, config, progress), tuple(notes))


class Listing:
    """The image files below a folder, found by ids with or without their ending."""

    def __init__(self, folder: Path) -> None:
        """List the folder.

        Raises:
            DataError: there is no such folder.
        """
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder; it holds the images that the table names")
        self._folder = folder
        self._files: dict[str, Path] = {}  # by path below the folder
        self._stems: dict[str, list[str]] = {}  # the same without the ending
        self._folded: dict[str, list[str]] = {}  # the same with the ending in lower case
        for parent, _, names in os.walk(folder):
            for name in names:
                path = Path(parent, name)
                if path.suffix.lower() in SUFFIXES and not name.startswith("."):
                    key = unicodedata.normalize("NFC", path.relative_to(folder).as_posix())
                    self._files[key] = path
                    self._stems.setdefault(key[: -len(path.suffix)], []).append(key)
                    self._folded.setdefault(_with_small_ending(key), []).append(key)

    def names(self, *, without: frozenset[Path] = frozenset()) -> tuple[str, ...]:
        """Return every file's name, without endings where that leaves them distinct."""
        kept = {key for key, path in self._files.items() if path not in without}
        unique = all(len(keys) == 1 for keys in self._stems.values())
        return tuple(sorted(stem for stem, keys in self._stems.items() if keys[0] in kept) if unique else sorted(kept))

    def count(self, *, without: AbstractSet[Path] = frozenset(), only: AbstractSet[Path] | None = None) -> int:
        """Return how many files there are, less those of `without`, or of `only` alone."""
        paths = set(self._files.values())
        return len(paths - without if only is None else paths & only)

    def find(self, ids: Sequence[str]) -> list[Path]:
        """Return the file of each id.

        Raises:
            DataError: an id that leads out of the folder, fits no file, or fits several; or two ids that fit one.
        """
        found = [self._find(key) for key in ids]
        missing = [key for key, path in zip(ids, found, strict=True) if path is None]
        if missing:
            raise DataError(
                f"{self._folder}: {len(missing):,} of {len(ids):,} ids have no image there, first {_some(missing)}; "
                f"found are {_some(sorted(self._files)) or 'no images'}"
            )
        first: dict[Path, str] = {}
        for key, path in zip(ids, found, strict=True):
            if path is not None and first.setdefault(path, key) != key:
                raise DataError(f"{path}: ids {first[path]!r} and {key!r} both name this file; remove one of them")
        return [path for path in found if path is not None]

    def _find(self, key: str) -> Path | None:
        if PurePosixPath(key).is_absolute() or PureWindowsPath(key).anchor or ".." in PureWindowsPath(key).parts:
            raise DataError(f"{self._folder}: id {key!r} leads out of the folder, which is refused; mend the table")
        key = unicodedata.normalize("NFC", key.removeprefix(f"{self._folder.name}/"))
        # As it is, without its ending, with the ending's case aside, and the same without spaces around it.
        for text in dict.fromkeys((key, key.strip())):
            if text in self._files:
                return self._files[text]
            fitting = sorted(self._stems.get(text) or self._folded.get(_with_small_ending(text), []))
            if len(fitting) > 1:
                raise DataError(f"{self._folder}: id {key!r} fits {_some(fitting)}; remove all but one")
            if fitting:
                return self._files[fitting[0]]
        return None


def _with_small_ending(name: str) -> str:
    stem, dot, ending = name.rpartition(".")
    return f"{stem}{dot}{ending.lower()}"


def _some(values: Sequence[Any]) -> str:
    shown = ", ".join(repr(str(value)) for value in values[:_SHOWN])
    return shown + (", ..." if len(values) > _SHOWN else "")
