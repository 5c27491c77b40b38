"""What a trained run predicts: a split of its own data, another suite, or any images."""

import csv
import glob
import io
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from comp.config import DataConfig
from comp.config.yaml_io import user_path
from comp.data import archives
from comp.data.arrays import open_images as open_array
from comp.data.images import SUFFIXES, ImageFiles
from comp.data.scan import files_split
from comp.data.sources.listing import Listing
from comp.data.splits import Split
from comp.runtime.errors import ConfigError, DataError
from comp.runtime.progress import Progress, quiet

_LISTS = (".csv", ".tsv", ".txt")
_GREY_IMAGES = 256  # decoded at a time where a network wants one channel

Paths = str | Path | Sequence[str | Path]


@dataclass(frozen=True)
class PredictInput:
    """What is predicted; at most one is given, and none means the run's own suite.

    Attributes:
        split: of the run's own data: `suite`, `val`, `ood_val` or `test`.
        suite: a folder of `distortionNN.npy`.
        images: files, folders, .zip archives, globs, a table or text of paths, or a `.npy`; or the images, uint8
            [N, H, W, C].

    Raises:
        ConfigError: more than one is given.
    """

    split: str | None = None
    suite: Path | None = None
    images: Paths | NDArray[np.uint8] | None = None

    def __post_init__(self) -> None:
        given = [f"--{name}" for name in ("split", "suite", "images") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ConfigError(
                f"expected at most one of --split, --suite and --images, found {' and '.join(given)}; leave "
                "out what is not meant"
            )

    @property
    def own(self) -> bool:
        """Whether it is of the run's own data, which must be there then."""
        return self.suite is None and self.images is None


@dataclass(frozen=True)
class ImageInput:
    """Images to predict.

    Attributes:
        split: named `images`, without labels. An id is a file's path below the folder that was given, its name, or what
            a list calls it; where two would be the same, both are whole paths.
        notes: what was left out, or brought to another size.
    """

    split: Split
    notes: tuple[str, ...] = ()


def open_images(
    given: Paths | NDArray[np.uint8], shape: tuple[int, int, int], config: DataConfig, progress: Progress = quiet
) -> ImageInput:
    """Return images as a network of `shape` wants them, every file known to be whole.

    Args:
        given: see `PredictInput.images`.
        shape: (C, H, W) that the run was trained on. Files of other sizes are brought to it as `data.resize` says, and
            turned grey where C is 1; arrays must have it.
        config: the run's section `data`.
        progress: called while files are read.

    Raises:
        DataError: nothing there, no image, unreadable files, or arrays of another shape.
    """
    if isinstance(given, np.ndarray):
        return ImageInput(_array_split(given, shape, "images"))
    paths = [str(path) for path in ([given] if isinstance(given, str | Path) else given)]
    if len(paths) == 1 and paths[0].endswith(".npy"):
        return ImageInput(_array_split(open_array(Path(paths[0])), shape, paths[0]))
    named, notes = _named_files(paths)
    channels, height, width = shape
    if channels not in (1, 3):
        raise DataError(f"--images: the run was trained on arrays of {channels} channels, which no image file has")
    sized = config.model_copy(update={"image_size": (height, width)})
    split = files_split("images", list(named), list(named.values()), None, sized, progress)
    files = split.images
    assert isinstance(files, ImageFiles)
    if config.image_size is None and (resized := _of_other_size(list(named), (width, height))):
        notes.append(
            f"images: {resized:,} of {len(named):,} have another size than the run's {width}x{height} and are brought "
            f"to it (data.resize: {files.resize})"
        )
    images = _grey(files, progress) if channels == 1 else files
    return ImageInput(replace(split, images=images), (*notes, *files.notes))


def _array_split(images: NDArray[np.uint8], shape: tuple[int, int, int], where: str) -> Split:
    channels, height, width = shape
    if images.ndim == 3 and channels == 1:
        images = images[..., None]
    if images.dtype != np.uint8 or images.shape[1:] != (height, width, channels) or not len(images):
        raise DataError(
            f"{where}: expected uint8 images [N, {height}, {width}, {channels}], as the run was trained on, found "
            f"{images.dtype} {list(images.shape)}"
        )
    return Split("images", images, np.array([str(row) for row in range(len(images))], np.str_), None)


def _named_files(given: Sequence[str]) -> tuple[dict[Path, str], list[str]]:
    """Return each file with its id, in the order given, and notes of what was left out."""
    named: dict[Path, str] = {}
    notes: list[str] = []
    seen: set[Path] = set()
    twice = 0
    for text in given:
        for path, name in _files_of(text, notes):
            real = path.resolve()
            twice += real in seen
            if real not in seen:
                seen.add(real)
                named[path] = name
    if twice:
        notes.append(f"images: {twice:,} files were given more than once and are predicted once")
    counts = Counter(named.values())
    return {path: path.as_posix() if counts[name] > 1 else name for path, name in named.items()}, notes


def _files_of(text: str, notes: list[str]) -> Iterator[tuple[Path, str]]:
    """Yield the files that one `--images` names, with their ids."""
    text = user_path(text, "--images")
    path = Path(text)
    if path.is_dir() or (path.is_file() and path.suffix.lower() == archives.ENDING):
        yield from _files_below(path, notes)
    elif path.is_file():
        if path.suffix.lower() in _LISTS:
            yield from _listed(path)
        elif path.suffix.lower() in SUFFIXES:
            yield path, path.name
        else:
            raise DataError(
                f"--images {text}: expected an image ({', '.join(SUFFIXES)}), a .zip archive of them, a list of paths "
                f"({', '.join(_LISTS)}) or one .npy by itself"
            )
    elif glob.has_magic(text):
        found = [Path(name) for name in sorted(glob.glob(text, recursive=True)) if Path(name).is_file()]
        images = [name for name in found if name.suffix.lower() in SUFFIXES]
        if not images:
            raise DataError(f"--images {text}: no image matches; known are {', '.join(SUFFIXES)}")
        _note_left_out(notes, text, len(found) - len(images))
        yield from ((name, name.name) for name in images)
    else:
        raise DataError(f"--images {text}: no such file or folder")


def _files_below(place: Path, notes: list[str]) -> Iterator[tuple[Path, str]]:
    """Yield all images below a folder or in an archive, at any depth, less what is hidden."""
    listing = Listing(place)
    if not len(listing):
        raise DataError(f"--images {place}: holds no image; known are {', '.join(SUFFIXES)}")
    notes += listing.note("images")
    yield from ((path, path.relative_to(place).as_posix()) for _, path in listing.named())


def _note_left_out(notes: list[str], where: str, count: int) -> None:
    if count:
        notes.append(f"images: {where}: {count:,} files that are no images are left out")


def _listed(path: Path) -> Iterator[tuple[Path, str]]:
    """Yield the files that a text lists one a line, or a table in the first column that holds paths of files.

    Relative paths start at the list's folder or, where nothing lies there, at the working directory.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as UTF-8 text ({error})") from None
    rows = [[line] for line in lines if line.strip()]
    if path.suffix.lower() != ".txt":
        delimiter = max(",;\t", key=lines[0].count) if lines else ","
        rows = [row for row in csv.reader(lines, delimiter=delimiter) if any(cell.strip() for cell in row)]

    def file_of(cell: str) -> Path:
        beside = path.parent / cell.strip()
        return beside if beside.is_file() else Path(cell.strip())

    shown = rows[:2]  # a header and the first row, or two rows
    columns = [column for row in shown for column, cell in enumerate(row) if file_of(cell).is_file()]
    if not columns:
        raise DataError(f"{path}: expected paths of images, found none that is there: {shown[-1:] or 'no row'}")
    column = columns[0]
    first = rows[0][column].strip() if column < len(rows[0]) else ""
    looks_like_path = "/" in first or "\\" in first or Path(first.strip("\"'")).suffix.lower() in SUFFIXES
    if not file_of(first).is_file() and not looks_like_path:
        rows = rows[1:]  # its header
    cells = [row[column].strip() if column < len(row) else "" for row in rows]
    missing = [cell for cell in cells if not file_of(cell).is_file()]
    if missing:
        raise DataError(f"{path}: lists {len(missing):,} files that are not there, first {missing[0]!r}")
    yield from ((file_of(cell), cell) for cell in cells)


def _of_other_size(paths: Sequence[Path], size: tuple[int, int]) -> int:
    """Return how many files, known to be whole, have another (W, H) in their headers."""
    count = 0
    for path in paths:
        with Image.open(io.BytesIO(archives.read(path))) as image:
            count += image.size != size
    return count


def _grey(files: ImageFiles, progress: Progress) -> NDArray[np.uint8]:
    """Return the luminance of decoded files, [N, H, W, 1]."""
    grey = np.empty((*files.shape[:3], 1), np.uint8)
    for start in range(0, len(files), _GREY_IMAGES):
        for row, image in enumerate(files[start : start + _GREY_IMAGES].decoded(), start):
            grey[row, ..., 0] = np.asarray(Image.fromarray(image).convert("L"))
        progress("decoding images", min(start + _GREY_IMAGES, len(files)), len(files))
    return grey
