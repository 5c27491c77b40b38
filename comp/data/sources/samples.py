"""Unlabelled tests of Kaggle competitions, and the sample submission that says how their answers are written."""

import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from comp.competition.spec import SubmissionFormat
from comp.config import DataConfig
from comp.data.images import SUFFIXES
from comp.data.sources.csv_tables import read_table, refuse_duplicates
from comp.data.splits import Split
from comp.data.survey import files_split
from comp.errors import DataError
from comp.progress import Progress

_SHOWN = 5  # offending names in a message


def sample_of(path: Path, names: Sequence[str]) -> tuple[SubmissionFormat | None, tuple[str, ...]]:
    """Return what a sample submission asks for, None without one, and the classes in label order.

    The class order is the sample's where it has a column for each class, else that of `names`. A single column is
    filled with what it shows: class names, or numbers where the names are none (the class's place in the order).

    Args:
        path: where a sample would lie.
        names: of the classes, in the order that they would have.

    Raises:
        DataError: it cannot be read, or asks for what the classes cannot give.
    """
    if not path.is_file():
        return None, tuple(names)
    table = read_table(path)
    id_column, *answers = [str(column) for column in table.columns]
    ids = tuple(table[id_column].tolist())
    refuse_duplicates(ids, path, id_column)
    if len(answers) > 1:
        if set(answers) != set(names):
            raise DataError(
                f"{path}: expected a column for each class after '{id_column}', found {_some(answers)}, and the "
                f"classes are {_some(sorted(names))}; name the columns as the classes"
            )
        return SubmissionFormat((), len(names), id_column, "", ids, tuple(answers), True), tuple(answers)
    if not answers:
        raise DataError(f"{path}: expected an id column and one or more to fill in, found only '{id_column}'")
    texts = _answers(table[answers[0]].tolist(), names, path, answers[0])
    return SubmissionFormat((), len(names), id_column, answers[0], ids, texts), tuple(names)


def _answers(shown: list[str], names: Sequence[str], path: Path, column: str) -> tuple[str, ...]:
    """Return what is written for each class, learnt from a sample's cells."""
    if all(cell in names or not cell for cell in shown):
        return tuple(names)
    numbers = tuple(str(place) for place in range(len(names)))
    if all(cell in numbers or not cell for cell in shown):
        return numbers
    strange = next(cell for cell in shown if cell and cell not in names)
    raise DataError(
        f"{path}: column '{column}' holds {strange!r}, neither a class ({_some(names)}) nor a class's number 0 to "
        f"{len(names) - 1}; a probability needs a column for each class"
    )


def unlabelled_test(
    folder: Path, sample: SubmissionFormat | None, classes: tuple[str, ...], config: DataConfig, progress: Progress
) -> tuple[Split, SubmissionFormat]:
    """Return the test images in the sample's order and the format of a submission of them.

    Without a sample the order is that of the names, and the columns are `id` and `label`.

    Raises:
        DataError: an id without its file, or a file that cannot be read.
    """
    files = Listing(folder)
    if sample is None:
        ids = files.names()
        sample = SubmissionFormat((), len(classes), listed_ids=ids, answers=classes)
    paths = files.find(sample.listed_ids)
    return files_split("test", paths, sample.listed_ids, None, config, progress), sample


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
        for parent, _, names in os.walk(folder):
            for name in names:
                path = Path(parent, name)
                if path.suffix.lower() in SUFFIXES and not name.startswith("."):
                    key = unicodedata.normalize("NFC", path.relative_to(folder).as_posix())
                    self._files[key] = path
                    self._stems.setdefault(key[: -len(path.suffix)], []).append(key)

    def names(self) -> tuple[str, ...]:
        """Return every file's name, without endings where that leaves them distinct."""
        unique = all(len(keys) == 1 for keys in self._stems.values())
        return tuple(sorted(self._stems if unique else self._files))

    def find(self, ids: Sequence[str]) -> list[Path]:
        """Return the file of each id.

        Raises:
            DataError: an id that leads out of the folder, fits no file, or fits several.
        """
        found = [self._find(key) for key in ids]
        missing = [key for key, path in zip(ids, found, strict=True) if path is None]
        if missing:
            raise DataError(
                f"{self._folder}: {len(missing):,} of {len(ids):,} ids have no image there, first {_some(missing)}; "
                f"found are {_some(sorted(self._files)) or 'no images'}"
            )
        return [path for path in found if path is not None]

    def _find(self, key: str) -> Path | None:
        if PurePosixPath(key).is_absolute() or PureWindowsPath(key).anchor or ".." in PureWindowsPath(key).parts:
            raise DataError(f"{self._folder}: id {key!r} leads out of the folder, which is refused; mend the table")
        key = unicodedata.normalize("NFC", key.removeprefix(f"{self._folder.name}/"))
        stems = sorted(self._stems.get(key, []))
        if key not in self._files and len(stems) > 1:
            raise DataError(f"{self._folder}: id {key!r} fits {_some(stems)}; remove all but one")
        name = key if key in self._files else (stems or [""])[0]
        return self._files.get(name)


def _some(values: Sequence[Any]) -> str:
    shown = ", ".join(repr(str(value)) for value in values[:_SHOWN])
    return shown + (", ..." if len(values) > _SHOWN else "")
