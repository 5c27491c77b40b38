"""Unlabelled tests of Kaggle competitions, and the sample submission that lists their images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from comp.config import DataConfig
from comp.data.scan import files_split
from comp.data.sources.listing import Listing
from comp.data.splits import Split
from comp.results import predictions
from comp.runtime.errors import DataError, SubmissionError
from comp.runtime.progress import Progress
from comp.submission import samples
from comp.submission.format import SampleSubmission

_SKIP = "data.skip_bad=true gives such rows a default answer: the mean of all others'"


@dataclass(frozen=True)
class SubmittedImages:
    """What is submitted of a competition's folder.

    Attributes:
        sample: its sample submission, None without one.
        notes: what was passed over or not there.
    """

    sample: SampleSubmission | None
    notes: tuple[str, ...]


def sample_of(config: DataConfig) -> SubmittedImages:
    """Return the sample submission that `data.csv.sample` names or the folder holds.

    Raises:
        DataError: a named one is missing, several could be meant, or it cannot be read.
    """
    try:
        path, notes = samples.find(Path(config.root), config.csv.sample)
        return SubmittedImages(samples.read(path) if path else None, notes)
    except SubmissionError as error:
        raise DataError(str(error)) from None


def class_order(names: Sequence[str], sample: SampleSubmission | None) -> tuple[str, ...]:
    """Return classes in label order: that of the sample's columns where it has one for each class, else by value or
    text (`sort_classes`).
    """
    if sample is not None and len(sample.columns) > 1 and set(sample.columns) == set(names):
        return sample.columns
    return predictions.sort_classes(names)


@dataclass(frozen=True)
class TestImages:
    """The unlabelled test images.

    Attributes:
        split: in the order that is submitted.
        files: all that it was made of.
        notes: ids and files that do not match, with counts.
    """

    split: Split
    files: frozenset[Path]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class OwnTest:
    """What is submitted of a competition's data, opened without its training images.

    Attributes:
        split: in the order that is submitted.
        sample: the sample submission, None without one.
        notes: ids and files that do not match, with counts.
    """

    split: Split
    sample: SampleSubmission | None
    notes: tuple[str, ...] = ()


def unlabelled_test(
    place: Path,
    sample: SampleSubmission | None,
    config: DataConfig,
    progress: Progress,
    *,
    listed: Sequence[str] = (),
    files_of: Mapping[str, str] = MappingProxyType({}),
    training: frozenset[Path] = frozenset(),
    listing: Listing | None = None,
) -> TestImages:
    """Return the test images in the order of the sample, else of the test table, else of their names.

    Args:
        place: folder or archive where they lie; training images may lie there too.
        sample: the sample submission, None without one.
        config: section `data`.
        progress: called while files are read.
        listed: ids of a test table, empty without one.
        files_of: id -> what names its file, for ids that do not.
        training: files of the training images, which are no test images.
        listing: of `place`, where it is listed already.

    Raises:
        DataError: an id without its file or a file that cannot be read, unless `data.skip_bad` is set.
    """
    files = Listing(place) if listing is None else listing
    notes = files.note("test") if listing is None else []
    if sample and sample.id_column not in sample.ids and files.holds(sample.id_column) and files.holds(sample.ids[0]):
        raise DataError(
            f"{sample.path}: has no header, since its first line names an image ({sample.id_column!r}); write one "
            "above it, as the competition's pages show it"
        )
    ids: Sequence[str] = sample.ids if sample else listed or files.ids(without=training)
    keys = [files_of.get(key, key) for key in ids]
    paths = files.locate(keys) if config.skip_bad else files.find(keys, mend=_SKIP)
    found = frozenset(path for path in paths if path)
    if not found:
        raise DataError(files.missing(keys, len(keys)))
    left = files.count(without=training | found)
    source = "the sample submission" if sample else "the test table"
    if left and (sample or listed):
        notes.append(f"test: {left:,} images of {place} are not listed by {source}, and are not predicted")
    if shared := files.count(only=training):
        notes.append(f"test: {shared:,} training images lie in {place} too, and are not predicted")
    if sample and listed and (missing := len(set(listed) - set(ids))):
        notes.append(f"test: {missing:,} ids of the test table are not in the sample submission, and are not predicted")
    return TestImages(files_split("test", paths, ids, None, config, progress), found, tuple(notes))
