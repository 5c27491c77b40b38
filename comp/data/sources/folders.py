"""Image files in a folder for each class, as those of Imagenette, or with the class in their names (`cat.0.jpg`)."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from comp.config import DataConfig
from comp.data.scan import scan_files
from comp.data.sources.listing import Listing, demand_place, place_of, some
from comp.data.sources.samples import OwnTest, class_order, sample_of, unlabelled_test
from comp.data.sources.source import Source
from comp.data.splits import Split
from comp.runtime.errors import DataError, nearest
from comp.runtime.progress import Progress
from comp.submission.format import SampleSubmission


def image_folder(config: DataConfig, progress: Progress, task: str = "auto") -> Source:
    """`train/<class>/*`, maybe `val/<class>/*`, and `test/<class>/*` or, unlabelled, `test/*`; folders or archives.

    Images may lie deeper (`train/<class>/images/*`), and all classes in a further folder (`train/train/<class>/*`).
    Classes are the folders of `train`, by value where all are numbers, else by name; with `data.label_pattern`, what
    its group finds in the files' paths below `train`. Ids are paths below `data.root`; of an unlabelled test, names
    without the ending, or what a sample submission (`data.csv.sample`) lists.
    """
    root, submitted = Path(config.root), sample_of(config)
    listing = Listing(demand_place(root, config.csv.train, "train"))
    found = _class_of_files(listing, config)
    classes = class_order(list(dict.fromkeys(name for _, name, _ in found)), submitted.sample)
    notes = [*submitted.notes, *listing.note("train"), *_without_class(listing, found)]
    train = _labelled("train", config.csv.train, found, classes, config, progress)
    val, test, sample = None, None, submitted.sample
    if (place := place_of(root, "val", "")) is not None:
        val_files = Listing(place, keep=classes)
        val_found = _known(val_files, classes, config)
        if val_found or config.validation == "official":
            _refuse_unknown(val_files, classes, config)
            val = _labelled("val", "val", val_found, classes, config, progress)
        else:
            notes.append(f"val: {place} has no folder of a class, and is not used")
    if (place := place_of(root, config.csv.test, "test")) is not None:
        own = _test_in(place, sample, classes, config, progress)
        test, sample = own.split, own.sample
        notes += own.notes
    return Source(train, test, classes, val=val, sample=sample, notes=tuple(notes))


def folder_test(config: DataConfig, classes: Sequence[str], progress: Progress) -> OwnTest:
    """Return the test images of `image_folder`; the training images need not be there.

    Raises:
        DataError: no test images.
    """
    place = demand_place(Path(config.root), config.csv.test, "test")
    return _test_in(place, sample_of(config).sample, classes, config, progress)


def _test_in(
    place: Path, sample: SampleSubmission | None, classes: Sequence[str], config: DataConfig, progress: Progress
) -> OwnTest:
    """Return the test images in a folder or archive, labelled where its folders or file names are those of classes."""
    files = Listing(place, keep=classes)
    found = _known(files, classes, config)
    if found and (not config.label_pattern or len(found) == len(files)):
        _refuse_unknown(files, classes, config)
        return _labelled_test(files, found, sample, classes, config, progress)
    images = unlabelled_test(place, sample, config, progress)
    return OwnTest(images.split, sample, images.notes)


_Found = list[tuple[str, str, Path]]  # a file's path below the folders that all share, its class, the file


def _class_of_files(listing: Listing, config: DataConfig) -> _Found:
    """Return the training files and their classes.

    Raises:
        DataError: no folder of a class, one without an image, or a file that the pattern finds no class in.
    """
    if config.label_pattern:
        return _by_pattern(listing, config.label_pattern)
    place = listing.place
    found = [(name, name.partition("/")[0], path) for name, path in listing.named() if "/" in name]
    if not found and listing.wrapping:  # one class alone looks like a folder that wraps all
        only = listing.wrapping[-1]
        return [(f"{only}/{name}", only, path) for name, path in listing.named()]
    if not found:
        seen = "its images lie in it directly" if len(listing) else "it holds no image"
        raise DataError(
            f"{place}: expected one folder for each class in it, {place}/<class>/*.jpg, and {seen}; where names tell "
            "the class (cat.0.jpg): data.label_pattern; where a table does: data.source=csv_images"
        )
    base = place.joinpath(*listing.wrapping)
    empty = sorted(set(_folders(base)) - {name for _, name, _ in found})
    if empty:
        raise DataError(f"{base / empty[0]}: holds no image; fill it or remove it")
    return found


def _by_pattern(listing: Listing, pattern: str) -> _Found:
    matches = [(name, re.search(pattern, name), path) for name, path in listing.named()]
    strange = [name for name, match, _ in matches if match is None or not match[1]]
    if strange:
        raise DataError(
            f"{listing.place}: data.label_pattern: {pattern!r} finds no class in {len(strange):,} of {len(matches):,} "
            f"files, first {some(strange)}; mend the pattern, or move those files away"
        )
    return [(name, match[1], path) for name, match, path in matches if match is not None]


def _known(listing: Listing, classes: Sequence[str], config: DataConfig) -> _Found:
    """Return the files below the folders of known classes, or whose names tell one."""
    if not config.label_pattern:
        cut = [(name, name.partition("/")[0], path) for name, path in listing.named() if "/" in name]
        return [row for row in cut if row[1] in classes]
    matches = [(name, re.search(config.label_pattern, name), path) for name, path in listing.named()]
    return [(name, match[1], path) for name, match, path in matches if match is not None and match[1] in classes]


def _refuse_unknown(listing: Listing, classes: Sequence[str], config: DataConfig) -> None:
    """Refuse folders beside those of the classes: their images would be left out of a score."""
    if config.label_pattern:
        return
    names = sorted({name.partition("/")[0] for name, _ in listing.named() if "/" in name})
    strange = next((name for name in names if name not in classes), None)
    if strange is not None:
        where = listing.place.joinpath(*listing.wrapping, strange)
        raise DataError(f"{where}: no class of train has this name{nearest(strange, classes)}; rename it")


def _without_class(listing: Listing, found: _Found) -> list[str]:
    left = len(listing) - len(found)
    return [f"train: {left:,} images of {listing.place} lie in no folder of a class, and are not used"] if left else []


def _folders(base: Path) -> list[str]:
    """Return the visible folders in a folder; none in an archive, which holds files alone."""
    if not base.is_dir():
        return []
    return [path.name for path in base.iterdir() if path.is_dir() and not path.name.startswith((".", "__MACOSX"))]


def _labelled_test(
    listing: Listing,
    found: _Found,
    sample: SampleSubmission | None,
    classes: Sequence[str],
    config: DataConfig,
    progress: Progress,
) -> OwnTest:
    """Return a labelled test: under the ids and in the order of a sample that lists all of it, else under its paths."""
    split = _labelled("test", config.csv.test, found, classes, config, progress)
    row_of = {path: row for row, (_, _, path) in enumerate(found)}
    rows = [row_of.get(path) if path else None for path in listing.locate(sample.ids)] if sample else []
    kept = [row for row in rows if row is not None]
    if sample is None or not len(kept) == len(sample.ids) == len(found) == len(split):
        return OwnTest(split, None, tuple(listing.note("test")))
    test = replace(split.take(np.array(kept, np.int64), "test"), ids=np.array(sample.ids, np.str_))
    return OwnTest(test, sample, tuple(listing.note("test")))


def _labelled(
    name: str, folder: str, found: _Found, classes: Sequence[str], config: DataConfig, progress: Progress
) -> Split:
    numbers = {label: number for number, label in enumerate(classes)}
    ids = [f"{folder}/{below}" for below, _, _ in found]
    labels = [numbers[label] for _, label, _ in found]
    return scan_files(name, [path for _, _, path in found], ids, labels, config, progress)
