"""The test of a code competition: other images than the local ones, whose number and names only the notebook sees.

A package's manifest.json records the form of the local submission, so that no training data are needed to write the
same columns, and how images are named, for a sample submission that does not list the hidden ones.
"""

from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError

from comp.config import DataConfig
from comp.data.decode import SUFFIXES
from comp.data.images import ImageFiles
from comp.data.sources import TESTS
from comp.data.sources.listing import Listing, LoadedTest, find_location
from comp.data.splits import Split
from comp.inference.inputs import ImageInput
from comp.results import files
from comp.results.predictions import Predictions
from comp.results.runs import Run
from comp.runtime.errors import ConfigError, DataError, plural
from comp.runtime.progress import Progress, quiet
from comp.submission import write
from comp.submission.derive_format import derive_format
from comp.submission.format import SubmissionFormat
from comp.workflows.load import LoadedRun

MANIFEST = "manifest.json"
_BY_IMAGES = "the rows are those of the images"
_AS_THEY_ARE, _NO_RULE = "", "none"  # values of `Manifest.by_images` beside an id


class Manifest(BaseModel):
    """What a package's dataset records for its notebook.

    Attributes:
        run: folder of the run that predicts, below the dataset's.
        rows: of the local test.
        format: of the submission, without ids; see `SubmissionFormat.to_json`.
        by_images: how images give ids: empty: as `comp` names them; `none`: not at all, only a sample lists what is
            asked for; else a local id, whose folders and suffix the others have too.
    """

    run: str
    rows: int
    format: dict[str, Any]
    by_images: str

    @property
    def form(self) -> SubmissionFormat:
        """The submission's format."""
        return SubmissionFormat.from_json(self.format, Path(MANIFEST))

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """Return the manifest of a dataset's folder; raise DataError if it is missing or damaged."""
        try:
            return cls.model_validate_json(files.read_bytes(folder / MANIFEST, "manifest of a package", DataError))
        except ValidationError as error:
            raise DataError(f"{folder / MANIFEST}: damaged ({error.errors()[0]['msg']}); pack the run again") from None


def check_source(run: Run) -> None:
    """Check that the run's test is a folder or table of images, as a notebook finds it; else raise ConfigError."""
    config = run.config()
    suite, source = config.competition.suite.source, config.data.source
    if suite != "test":
        raise ConfigError(
            f"{run.path}: competition.suite.source is {suite}, so a notebook has nothing to predict; expected test"
        )
    if source not in TESTS:
        raise ConfigError(
            f"{run.path}: data.source is {source}, whose test opens only with its training data; expected "
            f"{' or '.join(sorted(TESTS))}"
        )
    for key in ("test", "sample", "test_table"):
        path = Path(getattr(config.data.csv, key))
        if path.is_absolute() or ".." in path.parts:
            raise ConfigError(f"{run.path}: data.csv.{key}: {path} lies outside data.root, and no notebook has it")


def describe_test(loaded: LoadedRun, packed: str, progress: Progress = quiet) -> Manifest:
    """Return the manifest of a run in the folder `packed`, loaded as for `comp predict`, after opening its local test.

    Raises:
        DataError: the local test cannot be opened.
    """
    data = loaded.run.data_config().data
    test = _open(loaded, data, progress)
    listed = test.split.one_per_answer().ids
    return Manifest(
        run=packed,
        rows=len(listed),
        format=replace(derive_format(loaded.competition).format, listed_ids=()).to_json(),
        by_images=_naming_rule(loaded, data, listed, progress) if test.sample else _AS_THEY_ARE,
    )


def _naming_rule(loaded: LoadedRun, data: DataConfig, listed: NDArray[np.str_], progress: Progress) -> str:
    """Return how the images give the ids that the local sample lists; see `Manifest.by_images`."""
    try:
        images = _open(loaded, data, progress, _AS_THEY_ARE).split
    except DataError:  # training images in the same folder
        return _NO_RULE
    for rule in (_AS_THEY_ARE, str(listed[0])):
        if np.array_equal(np.sort(_named(images, rule).one_per_answer().ids), np.sort(listed)):
            return rule
    return _NO_RULE


def open_hidden_test(loaded: LoadedRun, root: Path, manifest: Manifest, progress: Progress = quiet) -> ImageInput:
    """Return the images of a competition's folder as rows of its submission, and notes on what differs from the local.

    The rows are those of the folder's sample submission. Without one, or where it cannot be read, lists images that are
    not there, or does not list all that are, they are those of the images. An image that cannot be read gets the mean
    of all other predictions.

    Raises:
        DataError: no test images in the shape of the run's.
    """
    changes = {"root": str(root), "download": False, "skip_bad": True}  # one damaged image costs one answer, not all
    data = loaded.run.data_config().data.model_copy(update=changes)
    test, notes = _open_rows(loaded, data, manifest.by_images, progress)
    rows = len(test.split.one_per_answer())
    if rows != manifest.rows:
        notes.append(f"{plural(rows, 'row')}, and {manifest.rows:,} in the local test")
    if test.split.image_shape != loaded.competition.image_shape:
        raise DataError(
            f"{root}: expected test images (C, H, W) {loaded.competition.image_shape}, as the run was trained on, "
            f"found {test.split.image_shape}"
        )
    images = test.split.images
    notes += [*test.notes, *(images.notes if isinstance(images, ImageFiles) else ())]
    return ImageInput(replace(test.split, name="suite", labels=None), tuple(notes))


def _open_rows(loaded: LoadedRun, data: DataConfig, rule: str, progress: Progress) -> tuple[LoadedTest, list[str]]:
    """Return the test in the rows of its sample, or by its images where the sample is stale, with a note on that."""
    try:
        test = _open(loaded, data, progress)
        reason = _staleness(test, data)
    except DataError as error:
        if rule == _NO_RULE:
            raise
        reason = f"stale sample: {error}"
    if rule == _NO_RULE or not reason:
        return test, []
    return _open(loaded, data, progress, rule), [f"{reason}: {_BY_IMAGES}"]


def _staleness(test: LoadedTest, data: DataConfig) -> str:
    """Return how a test's sample differs from its images; empty if it lists them all and no others."""
    if test.sample is None:
        return "no sample submission"
    location = find_location(Path(data.root), data.csv.test, "test")
    if not test.files or location is None:  # a table of pixels
        return ""
    stale = f"stale sample: {test.sample.path}"
    if (missing := len(test.split) - len(test.files)) > 0:  # of groups that the sample does not list, files are left
        return f"{stale} lists {plural(missing, 'image')} that {'is' if missing == 1 else 'are'} not in {location}"
    unlisted = Listing(location).count(without=test.files)
    return f"{stale} does not list {plural(unlisted, 'image')} of {location}" if unlisted else ""


def _open(loaded: LoadedRun, data: DataConfig, progress: Progress, rule: str | None = None) -> LoadedTest:
    """Return the test in the rows of its sample; with a rule, by its images, which it names."""
    if rule is None:
        return TESTS[data.source](data, loaded.competition.classes, progress)
    without_sample = data.model_copy(update={"csv": data.csv.model_copy(update={"sample": ""})})
    test = _open(loaded, without_sample, progress)
    return replace(test, split=_named(test.split, rule))


def _named(split: Split, rule: str) -> Split:
    """Return images with ids of as many folders as the rule's id, and with a suffix if that has one."""
    if rule in (_AS_THEY_ARE, _NO_RULE) or not isinstance(split.images, ImageFiles) or split.groups is not None:
        return split
    suffix = PurePosixPath(rule).suffix
    suffix = suffix if suffix.lower() in SUFFIXES else ""
    names = []
    for key, file in zip(split.ids.tolist(), split.images.paths.tolist(), strict=True):
        path = PurePosixPath(Path(file or f"{key}{suffix}").as_posix())  # an unreadable image has no file
        names.append("/".join((path if suffix else path.with_suffix("")).parts[-1 - rule.count("/") :]))
    return replace(split, ids=np.array(names, np.str_))


def write_rows(path: Path, predictions: Predictions, manifest: Manifest) -> None:
    """Write the submission of a hidden test, in the form of the local one."""
    form = replace(manifest.form, listed_ids=tuple(predictions.ids.tolist()))
    files.write_atomically(path, write.to_csv(predictions, form))
