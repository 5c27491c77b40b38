"""Prediction inputs: a split of the run's data, another suite, or any images."""

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
from comp.data.decode import SUFFIXES
from comp.data.images import ImageFiles
from comp.data.scan import scan_files
from comp.data.sources.listing import Listing, check_name
from comp.data.sources.numpy_files import open_images as open_array
from comp.data.splits import Split
from comp.runtime.errors import ConfigError, DataError, plural
from comp.runtime.progress import Progress, quiet

_LISTS = (".csv", ".tsv", ".txt")
_GREY_IMAGES = 256  # decoded at a time for one-channel networks

Paths = str | Path | Sequence[str | Path]


@dataclass(frozen=True)
class PredictInput:
    """What to predict: at most one of the fields; none means the run's own suite.

    Attributes:
        split: of the run's data: `suite`, `val`, `ood_val` or `test`.
        suite: a folder of `distortionNN.npy`.
        images: files, folders, .zip archives, globs, a list of paths (.csv, .tsv, .txt) or a `.npy`; or an array
            uint8 [N, H, W, C].

    Raises:
        ConfigError: more than one field is set.
    """

    split: str | None = None
    suite: Path | None = None
    images: Paths | NDArray[np.uint8] | None = None

    def __post_init__(self) -> None:
        options = [f"--{name}" for name in ("split", "suite", "images") if getattr(self, name) is not None]
        if len(options) > 1:
            raise ConfigError(
                f"expected at most one of --split, --suite and --images, found {' and '.join(options)}; keep only one"
            )

    @property
    def own(self) -> bool:
        """Whether it comes from the run's own data, which must exist."""
        return self.suite is None and self.images is None


@dataclass(frozen=True)
class ImageInput:
    """Images to predict.

    Attributes:
        split: named `images`, without labels. An id is a file's path below its folder, its name, or its entry in a
            list; duplicate ids become full paths.
        notes: about skipped or resized files.
    """

    split: Split
    notes: tuple[str, ...] = ()


def open_images(
    source: Paths | NDArray[np.uint8], shape: tuple[int, int, int], config: DataConfig, progress: Progress = quiet
) -> ImageInput:
    """Open images in a run's shape, after checking every file.

    Args:
        source: see `PredictInput.images`.
        shape: (C, H, W) that the run was trained on. Files are resized to it as `data.resize` says, and converted to
            grey if C is 1; arrays must have this shape.
        config: the run's section `data`.
        progress: called while files are read.

    Raises:
        DataError: no such file, no image, unreadable files, or arrays of another shape.
    """
    if isinstance(source, np.ndarray):
        return ImageInput(_array_split(source, shape, "images"))
    paths = [str(path) for path in ([source] if isinstance(source, str | Path) else source)]
    if len(paths) == 1 and paths[0].endswith(".npy"):
        return ImageInput(_array_split(open_array(Path(paths[0])), shape, paths[0]))
    named, notes = _named_files(paths)
    channels, height, width = shape
    if channels not in (1, 3):
        raise DataError(
            f"--images: the run was trained on arrays of {channels} channels, which image files do not have"
        )
    sized = config.model_copy(update={"image_size": (height, width)})
    split = scan_files("images", list(named), list(named.values()), None, sized, progress)
    files = split.images
    assert isinstance(files, ImageFiles)
    if config.image_size is None and (resized := _count_other_sizes(list(named), (width, height))):
        notes.append(
            f"images: {resized:,} of {len(named):,} differ from the run's size {width}x{height} and are resized "
            f"(data.resize: {files.resize})"
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


def _named_files(paths: Sequence[str]) -> tuple[dict[Path, str], list[str]]:
    """Return file -> id, in the order of `paths`, and notes about skipped files."""
    named: dict[Path, str] = {}
    notes: list[str] = []
    seen: set[Path] = set()
    duplicates = 0
    for text in paths:
        for path, name in _files_of(text, notes):
            check_name(path)
            real = path.resolve()
            duplicates += real in seen
            if real not in seen:
                seen.add(real)
                named[path] = name
    if duplicates:
        notes.append(f"images: {plural(duplicates, 'file is', 'files are')} listed more than once and predicted once")
    counts = Counter(named.values())
    return {path: path.as_posix() if counts[name] > 1 else name for path, name in named.items()}, notes


def _files_of(text: str, notes: list[str]) -> Iterator[tuple[Path, str]]:
    """Yield the files of one `--images` value, with their ids."""
    text = user_path(text, "--images")
    path = Path(text)
    if path.is_dir() or (path.is_file() and path.suffix.lower() == archives.ENDING):
        yield from _files_below(path, notes)
    elif path.is_file():
        if path.suffix.lower() in _LISTS:
            yield from _read_list(path)
        elif path.suffix.lower() in SUFFIXES:
            yield path, path.name
        else:
            raise DataError(
                f"--images {text}: expected an image ({', '.join(SUFFIXES)}), a .zip archive of images, a list of "
                f"paths ({', '.join(_LISTS)}), or a single .npy"
            )
    elif glob.has_magic(text):
        files = [Path(name) for name in sorted(glob.glob(text, recursive=True)) if Path(name).is_file()]
        images = [name for name in files if name.suffix.lower() in SUFFIXES]
        if not images:
            raise DataError(f"--images {text}: no image matches; supported are {', '.join(SUFFIXES)}")
        if len(images) < len(files):
            others = plural(len(files) - len(images), "file that is no image is", "files that are no images are")
            notes.append(f"images: {text}: {others} left out")
        yield from ((name, name.name) for name in images)
    else:
        raise DataError(f"--images {text}: no such file or folder")


def _files_below(root: Path, notes: list[str]) -> Iterator[tuple[Path, str]]:
    """Yield all images below a folder or in an archive, at any depth, except hidden files."""
    listing = Listing(root)
    if not len(listing):
        raise DataError(f"--images {root}: holds no image; supported are {', '.join(SUFFIXES)}")
    notes += listing.notes("images")
    yield from ((path, path.relative_to(root).as_posix()) for _, path in listing.files())


def _read_list(path: Path) -> Iterator[tuple[Path, str]]:
    """Yield the files that a .txt lists, one per line, or a table in its first column of file paths.

    Relative paths start at the list's folder, else at the working directory.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as UTF-8 text ({error})") from None
    rows = [[line] for line in lines if line.strip()]
    if path.suffix.lower() != ".txt":
        delimiter = max(",;\t", key=lines[0].count) if lines else ","
        try:
            rows = [row for row in csv.reader(lines, delimiter=delimiter) if any(cell.strip() for cell in row)]
        except csv.Error as error:
            raise DataError(f"{path}: not a CSV: {error}; expected one image on each line") from None

    def file_of(cell: str) -> Path:
        beside = path.parent / cell.strip()
        return beside if beside.is_file() else Path(cell.strip())

    head = rows[:2]  # a header and the first row, or two rows
    columns = [column for row in head for column, cell in enumerate(row) if file_of(cell).is_file()]
    if not columns:
        raise DataError(
            f"{path}: expected a list of images, one on each row: a column with paths of existing files, relative to "
            f"{path.parent} or the working directory, with their suffix (train/1.png); found {head[-1:] or 'no row'}"
        )
    column = columns[0]
    first = rows[0][column].strip() if column < len(rows[0]) else ""
    looks_like_path = "/" in first or "\\" in first or Path(first.strip("\"'")).suffix.lower() in SUFFIXES
    if not file_of(first).is_file() and not looks_like_path:
        rows = rows[1:]  # skip the header
    cells = [row[column].strip() if column < len(row) else "" for row in rows]
    missing = [cell for cell in cells if not file_of(cell).is_file()]
    if missing:
        raise DataError(f"{path}: lists {len(missing):,} missing files, first {missing[0]!r}")
    yield from ((file_of(cell), cell) for cell in cells)


def _count_other_sizes(paths: Sequence[Path], size: tuple[int, int]) -> int:
    """Return how many files have another (W, H) in their headers."""
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
