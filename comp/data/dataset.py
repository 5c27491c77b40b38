"""Everything that a config's runs need of its data, opened and checked: `open_dataset(config)`."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from comp.config import Config
from comp.config.tasks import TASKS, resolve_metric
from comp.data import loading, splits, splitting, suites
from comp.data.cache import cached_json
from comp.data.images import ImageFiles
from comp.data.sources import Source, open_source
from comp.data.splits import Split, Suite
from comp.results.blocks import Block, block_grid
from comp.runtime.errors import ConfigError, DataError
from comp.runtime.progress import Progress, quiet
from comp.submission.format import Competition, suite_blocks

_SMALLEST_STD = 1 / 255  # a channel of one grey level must not be divided by zero


@dataclass(frozen=True)
class Dataset:
    """A competition's data.

    Attributes:
        competition: its classes, image shape, blocks.
        train: labelled.
        val: labelled and held out of the training images; None where all are trained on.
        test: clean; its labels are None where nobody knows them; None where there is no test.
        suite: what a submission covers: blocks, or the test images; None where nothing is submitted.
        ood_val: shifted copies of `val`; None without one.
        mean: of each channel of `train`, in [0, 1].
        std: likewise.
        fingerprint: of all training images and labels, before the split.
        resident: whether training images lie decoded on the device, or are streamed by workers.
        notes: what a user should know of how the data were read.
        unreadable: files of the source that hold no image, and ids without a file.
        pixel_range: the values of pixels of more than 8 bits that became black and white; None of 8 bits.
        split_seed: of the corruptions that `suite` and `ood_val` are made by.
        samples: what is measured on a part of a split: name -> rows. `ood_val`: of `val`, and `suite`: of `test`, the
            images of each block; what a training sees of `train` beside its epochs stands in
            `comp.training.context.samples`. A name that is not there means the split's first images.
    """

    competition: Competition
    train: Split
    val: Split | None
    test: Split | None
    suite: Split | Suite | None
    ood_val: Suite | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fingerprint: str
    resident: bool
    notes: tuple[str, ...] = ()
    unreadable: tuple[str, ...] = ()
    pixel_range: tuple[float, float] | None = None
    split_seed: int = 0
    samples: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)

    def with_samples(self, samples: Mapping[str, NDArray[np.int64]]) -> "Dataset":
        """Return the same data with other samples, such as a run has recorded; blocks are made of them."""
        suite, ood_val = self.suite, self.ood_val
        if isinstance(suite, Suite) and not suite.folder:
            suite = self._corrupted(suite, self.test, samples)
        if ood_val is not None:
            ood_val = self._corrupted(ood_val, self.val, samples)
        return replace(self, suite=suite, ood_val=ood_val, samples=samples)

    def _corrupted(self, suite: Suite, clean: Split | None, samples: Mapping[str, NDArray[np.int64]]) -> Suite:
        assert clean is not None
        seed = suites.corruption_seed(clean.name, self.split_seed)
        return suites.corrupted_suite(suite.name, clean, suite.blocks, seed, samples.get(suite.name))

    def drawn(self) -> "Dataset":
        """Return the same data with blocks that are made of samples drawn for them."""
        made_of = {"ood_val": (self.ood_val, self.val), "suite": (self.suite, self.test)}
        return self.with_samples(
            {
                name: self.sample(clean, max(block.count for block in suite.blocks))
                for name, (suite, clean) in made_of.items()
                if isinstance(suite, Suite) and not suite.folder and clean is not None
            }
        )

    def sample(self, split: Split, count: int) -> NDArray[np.int64]:
        """Return the rows of a sample of a split, for something to be measured on; see `division.sample`."""
        return splitting.sample(split, count, task=self.competition.task)

    def limited(self, train_images: int, other_images: int) -> "Dataset":
        """Return a small copy for a rehearsal: a sample of each split, and blocks of these."""
        test, competition = self.test, self.competition
        rows = np.array([], np.int64) if test is None else self.sample(test, other_images)
        suite = self.suite and _limited_suite(self.suite, rows, other_images)
        return replace(
            self,
            train=self._limited(self.train, train_images),
            val=self.val and self._limited(self.val, other_images),
            test=test and test.take(rows, test.name),
            suite=suite,
            ood_val=self.ood_val and _limited_blocks(self.ood_val, other_images),
            competition=replace(
                competition,
                blocks=_shorter(competition.blocks, other_images),
                sample=competition.sample and competition.sample.take(rows.tolist()),
                test_ids=tuple(competition.test_ids[row] for row in rows if competition.test_ids),
            ),
        ).drawn()

    def _limited(self, split: Split, count: int) -> Split:
        return split.take(self.sample(split, count), split.name)


def _shorter(blocks: tuple[Block, ...], count: int) -> tuple[Block, ...]:
    return tuple(replace(block, count=min(block.count, count)) for block in blocks)


def _limited_suite(suite: Split | Suite, rows: NDArray[np.int64], count: int) -> Split | Suite:
    """Return a suite of some test images, or of blocks of so many images: rows of a file, by whose place ids go."""
    return suite.take(rows, suite.name) if isinstance(suite, Split) else _limited_blocks(suite, count)


def _limited_blocks(suite: Suite, count: int) -> Suite:
    whole = {block.name: block for block in suite.blocks}
    # Files are addressed by their whole blocks, so the whole block is opened and then cut.
    return replace(
        suite,
        blocks=_shorter(suite.blocks, count),
        open=lambda block: suite.open(whole[block.name]).head(block.count),
    )


def open_dataset(config: Config, progress: Progress = quiet) -> Dataset:
    """Open, download where needed and allowed, check and split a config's data.

    Raises:
        DataError: what is missing or wrong, where it comes from and how to put it in place.
    """
    source = open_source(config.data, progress, config.competition.task)
    fingerprint = splits.fingerprint(source.train)
    cut_test = config.competition.suite.source == "corrupt_test"
    parts = splitting.divide(source, config.data, cut_test=cut_test, progress=progress)
    train, val, test = parts.train, parts.val, parts.test
    _check_shapes(train, val, test)
    mean, std = _statistics(train, fingerprint, Path(config.data.root), progress)
    competition = _competition(config, source, train, test)
    return Dataset(
        competition=competition,
        train=train,
        val=val,
        test=test,
        suite=_open_suite(config, competition, test, progress),
        ood_val=_open_ood_val(config, val),
        mean=mean,
        std=tuple(max(value, _SMALLEST_STD) for value in std),
        fingerprint=fingerprint,
        resident=loading.stays_resident((train, val), config.data.loading),
        notes=(*_notes(config, source), *parts.notes),
        unreadable=tuple(name for images in _files(source) for name in images.unreadable),
        pixel_range=source.pixel_range,
        split_seed=config.data.split_seed,
    ).drawn()


def _check_shapes(train: Split, *others: Split | None) -> None:
    for split in others:
        if split is not None and split.image_shape != train.image_shape:
            raise DataError(
                f"{split.name}: expected images (C, H, W) {train.image_shape} as in training, found "
                f"{split.image_shape}; resize them"
            )


def _statistics(
    train: Split, fingerprint: str, root: Path, progress: Progress
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return each channel's mean and deviation, from the cache where the same images have been measured before."""

    def measure() -> dict[str, object]:
        mean, std = splits.channel_statistics(train.images, progress)
        return {"mean": mean, "std": std}

    found = cached_json(root, "statistics", "\0".join((fingerprint, *train.ids.tolist())), measure)
    return tuple(found["mean"]), tuple(found["std"])


def _files(source: Source) -> list[ImageFiles]:
    found = [split.images for split in (source.train, source.val, source.test) if split is not None]
    return [images for images in found if isinstance(images, ImageFiles)]


def _notes(config: Config, source: Source) -> tuple[str, ...]:
    """Return what was found and left aside, or read in a way that may surprise."""
    notes = list(source.notes)
    for images in _files(source):
        notes += images.notes
    if source.val is not None and config.data.validation != "official":
        notes.append("val: the source's own validation split is not used; data.validation=official takes it")
    return tuple(notes)


def _competition(config: Config, source: Source, train: Split, test: Split | None) -> Competition:
    section, row = config.competition, TASKS[source.task]
    sample, test_ids, header = None, (), ("id", "label")
    if section.suite.source == "test":
        if test is None:
            raise ConfigError(f"competition.suite.source: test: {config.data.source} found no test images to submit")
        sample = source.sample
        test_ids, header = () if sample else tuple(test.ids.tolist()), source.header
    labels = source.train.labels
    return Competition(
        name=section.name,
        metric=resolve_metric(section.metric, row),
        classes=source.classes,
        image_shape=train.image_shape,
        blocks=suite_blocks(section.suite, len(test) if test else 0),
        sample=sample,
        submission=section.submission,
        task=source.task,
        test_ids=test_ids,
        numbered=source.numbered,
        separator=source.separator,
        bare_images=labels is not None and labels.ndim == 2 and not bool(labels.any(1).all()),
        header=header,
        synonyms=source.synonyms,
    )


def _open_suite(
    config: Config, competition: Competition, test: Split | None, progress: Progress
) -> Split | Suite | None:
    wanted = config.competition.suite
    if test is not None and wanted.source == "test":
        return replace(test, name="suite", labels=None)
    if wanted.source == "corrupt_test":
        if test is None or test.labels is None:
            raise DataError(
                "competition.suite: corrupt_test needs a labelled test split, and this source has none; to submit the "
                "test images themselves: competition.suite.source=test"
            )
        return suites.corrupted_suite(
            "suite", test, competition.blocks, seed=suites.corruption_seed("test", config.data.split_seed)
        )
    if not competition.blocks:
        return None
    if config.data.classes:
        raise ConfigError(
            "data.classes: distortion files hold images of every class; make the suite of the test images "
            "(competition.suite.source=corrupt_test) or none"
        )
    folder = Path(config.data.root) / wanted.path
    if wanted.base_address and config.data.download:
        suites.download_distortion_files(wanted, folder, competition.image_shape, progress)
    return suites.distortion_files(folder, competition.blocks, competition.image_shape)


def _open_ood_val(config: Config, val: Split | None) -> Suite | None:
    wanted = config.competition.ood_validation
    if val is None or not wanted.severities:
        return None
    count = min(wanted.per_block, len(val))
    blocks = block_grid(suites.shifted_distortions(wanted), wanted.severities, count)
    return suites.corrupted_suite("ood_val", val, blocks, seed=suites.corruption_seed("val", config.data.split_seed))
