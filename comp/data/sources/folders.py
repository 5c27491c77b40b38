"""Image files in one folder per class, like Imagenette, or with the class in their names (`cat.0.jpg`)."""

import json
import subprocess
import sys
import unicodedata
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from comp.config import DataConfig
from comp.data.scan import scan_files
from comp.data.sources.labels import check_look, order_classes
from comp.data.sources.listing import (
    Listing,
    LoadedTest,
    find_location,
    find_sample,
    first_few,
    require_location,
    unlabelled_test,
)
from comp.data.sources.source import Source
from comp.data.splits import Split
from comp.runtime.errors import DataError, nearest, plural
from comp.runtime.progress import Progress
from comp.submission.format import SampleSubmission

_MATCH_SECONDS = 30  # for all names; a pattern that repeats a repetition may need centuries for one
# A process of its own, which can be ended in the middle of a match; it ends itself if its parent is gone.
_MATCH = """
import json, re, signal, sys
pattern, names, seconds = json.load(sys.stdin)
if hasattr(signal, "alarm"):
    signal.alarm(2 * seconds)
matches = [re.search(pattern, name) for name in names]
json.dump([match and match[1] for match in matches], sys.stdout)
"""
_Labelled = list[tuple[str, str, Path]]  # a file's path below the folders that all share, its class, the file


def image_folder(config: DataConfig, progress: Progress, task: str = "auto") -> Source:
    """`train/<class>/*`, optionally `val/<class>/*`, and `test/<class>/*` or, unlabelled, `test/*`; folders or
    archives.

    Images may lie deeper (`train/<class>/images/*`), and all classes in a further folder (`train/train/<class>/*`).
    Classes are the folders of `train`, ordered by value if all are numbers, else by name; with `data.label_pattern`,
    the match of its group in the files' paths below `train`. Ids are paths below `data.root`; of an unlabelled test,
    names without the suffix, or the ids of a sample submission (`data.csv.sample`).
    """
    root = Path(config.root)
    sample, sample_notes = find_sample(config)
    listing = Listing(require_location(root, config.csv.train, "train"))
    files = _training_files(listing, config)
    classes = order_classes(list(dict.fromkeys(name for _, name, _ in files)), sample)
    notes = [*sample_notes, *listing.notes("train")]
    if unused := len(listing) - len(files):
        images = plural(unused, f"image of {listing.location} is", f"images of {listing.location} are")
        notes.append(f"train: {images} in no class folder, and not used")
    train = _labelled_split("train", config.csv.train, files, classes, config, progress)
    val, test = None, None
    if (location := find_location(root, "val", "")) is not None:
        val_listing = Listing(location, keep=classes)
        val_files = _files_of_classes(val_listing, classes, config)
        if val_files or config.validation == "official":
            _check_class_folders(val_listing, classes, config)
            val = _labelled_split("val", "val", val_files, classes, config, progress)
        else:
            notes.append(f"val: {location} has no class folder, and is not used")
    if (location := find_location(root, config.csv.test, "test")) is not None:
        loaded = _open_test(location, sample, classes, config, progress)
        test, sample = loaded.split, loaded.sample
        notes += loaded.notes
    return Source(train, test, classes, val=val, sample=sample, notes=tuple(notes))


def folder_test(config: DataConfig, classes: Sequence[str], progress: Progress) -> LoadedTest:
    """Return the test images of `image_folder`, without needing the training images.

    Raises:
        DataError: no test images.
    """
    location = require_location(Path(config.root), config.csv.test, "test")
    sample, _ = find_sample(config)
    return _open_test(location, sample, classes, config, progress)


def _open_test(
    location: Path, sample: SampleSubmission | None, classes: Sequence[str], config: DataConfig, progress: Progress
) -> LoadedTest:
    """Return the test images of a folder or archive, labelled if its folders or file names are those of classes."""
    listing = Listing(location, keep=classes)
    files = _files_of_classes(listing, classes, config)
    if files and (not config.label_pattern or len(files) == len(listing)):
        _check_class_folders(listing, classes, config)
        return _labelled_test(listing, files, sample, classes, config, progress)
    return unlabelled_test(location, sample, config, progress)


def _by_folder(listing: Listing) -> _Labelled:
    return [(name, name.partition("/")[0], path) for name, path in listing.files() if "/" in name]


def _training_files(listing: Listing, config: DataConfig) -> _Labelled:
    """Return the training files and their classes; no class folder may be empty."""
    if config.label_pattern:
        return _by_pattern(listing, config.label_pattern)
    location = listing.location
    files = _by_folder(listing)
    if not files and listing.wrapping:  # a single class looks like a folder that wraps all files
        only = listing.wrapping[-1]
        return [(f"{only}/{name}", only, path) for name, path in listing.files()]
    if not files:
        content = "images without folders" if len(listing) else "no image"
        raise DataError(
            f"{location}: expected one folder per class, {location}/<class>/*.jpg, found {content}; if file names hold "
            "the class (cat.0.jpg), set data.label_pattern; if a table does, set data.source=csv_images"
        )
    base, depth = location.joinpath(*listing.wrapping), len(location.parts) + len(listing.wrapping)
    folders = [path.name for path in base.iterdir() if path.is_dir()] if base.is_dir() else []  # an archive has none
    visible = {name for name in folders if not name.startswith((".", "__MACOSX"))}
    check_look({*visible, *(path.parts[depth] for _, _, path in files)}, f"{base}: class folders")
    filled = {name for _, name, _ in files}  # in one Unicode form
    empty = sorted(name for name in visible if unicodedata.normalize("NFC", name) not in filled)
    if empty:
        raise DataError(f"{base / empty[0]}: holds no image; fill it or remove it")
    return files


def _by_pattern(listing: Listing, pattern: str) -> _Labelled:
    matches = _match(listing, pattern)
    unmatched = [name for name, label, _ in matches if not label]
    if unmatched:
        raise DataError(
            f"{listing.location}: data.label_pattern: {pattern!r} finds no class in {len(unmatched):,} of "
            f"{len(matches):,} files, first {first_few(unmatched)}; correct the pattern, or move those files away"
        )
    return [(name, label, path) for name, label, path in matches if label]


def _match(listing: Listing, pattern: str) -> list[tuple[str, str | None, Path]]:
    """Return each file's path below the listing's folder, the match of the pattern's group, None without one, and the
    file.

    Raises:
        DataError: the pattern needs too long.
    """
    files = list(listing.files())
    work = json.dumps([pattern, [name for name, _ in files], _MATCH_SECONDS])
    command = [sys.executable, "-I", "-S", "-c", _MATCH]
    try:
        done = subprocess.run(command, input=work, capture_output=True, text=True, timeout=_MATCH_SECONDS, check=True)
    except subprocess.TimeoutExpired:
        raise DataError(
            f"{listing.location}: data.label_pattern: {pattern!r} is not matched with {len(files):,} file names after "
            f"{_MATCH_SECONDS} s; write it without a repetition inside a repetition, as in ^([a-z]+)[.]"
        ) from None
    labels: list[str | None] = json.loads(done.stdout)
    return [(name, label, path) for (name, path), label in zip(files, labels, strict=True)]


def _files_of_classes(listing: Listing, classes: Sequence[str], config: DataConfig) -> _Labelled:
    """Return the files in the folders of `classes`, or whose names match one of them."""
    if not config.label_pattern:
        return [row for row in _by_folder(listing) if row[1] in classes]
    matches = _match(listing, config.label_pattern)
    return [(name, label, path) for name, label, path in matches if label is not None and label in classes]


def _check_class_folders(listing: Listing, classes: Sequence[str], config: DataConfig) -> None:
    """Refuse folders that are not classes: their images would be missing from a score."""
    if config.label_pattern:
        return
    unknown = sorted({name for _, name, _ in _by_folder(listing)} - set(classes))
    if unknown:
        folder = listing.location.joinpath(*listing.wrapping, unknown[0])
        raise DataError(f"{folder}: no class of train has this name{nearest(unknown[0], classes)}; rename it")


def _labelled_test(
    listing: Listing,
    files: _Labelled,
    sample: SampleSubmission | None,
    classes: Sequence[str],
    config: DataConfig,
    progress: Progress,
) -> LoadedTest:
    """Return a labelled test, with the ids and order of a sample that lists all of it, else with its paths as ids."""
    split = _labelled_split("test", config.csv.test, files, classes, config, progress)
    notes = tuple(listing.notes("test"))
    row_of = {path: row for row, (_, _, path) in enumerate(files)}
    rows = [row_of.get(path) if path else None for path in listing.locate(sample.ids)] if sample else []
    kept = [row for row in rows if row is not None]
    if sample is None or not len(kept) == len(sample.ids) == len(files) == len(split):
        return LoadedTest(split, None, notes)
    test = replace(split.take(np.array(kept, np.int64), "test"), ids=np.array(sample.ids, np.str_))
    return LoadedTest(test, sample, notes)


def _labelled_split(
    name: str, folder: str, files: _Labelled, classes: Sequence[str], config: DataConfig, progress: Progress
) -> Split:
    index_of = {label: index for index, label in enumerate(classes)}
    ids = [f"{folder}/{below}" for below, _, _ in files]
    labels = [index_of[label] for _, label, _ in files]
    return scan_files(name, [path for _, _, path in files], ids, labels, config, progress)
