"""A config's data, opened, checked and split: `open_dataset(config)`."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from comp.config import Config
from comp.config.tasks import TASKS, infer_task, resolve_metric
from comp.data import loading, splits, splitting, suites
from comp.data.cache import cached_json
from comp.data.fixes import FixList, apply_fixes, read_fixes
from comp.data.images import ImageFiles
from comp.data.sources import Source, open_source
from comp.data.splits import Split, Suite
from comp.results import decisions
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
        test: clean; its labels are None where unknown; None where there is no test.
        suite: the blocks or test images that a submission covers; None where nothing is submitted.
        ood_val: shifted copies of `val`; None without one.
        mean: of each channel of `train`, in [0, 1].
        std: of each channel of `train`.
        label_scale: mean and standard deviation of the labels of `train` where they are numbers, else None.
        fingerprint: of all training images and labels, before the split.
        resident: whether training images lie decoded on the device, or are streamed by workers.
        notes: messages to the user on how the data were read.
        unreadable: files of the source that hold no image, and ids without a file.
        pixel_range: the values of pixels of more than 8 bits that become black and white; None of 8 bits.
        split_seed: of the corruptions in `suite` and `ood_val`.
        test_is_cut: whether the test was held out of the training images, where the source has none.
        fixes: the fix list applied to `train`; None without one.
        samples: rows of the parts of a split that are measured, by name: `ood_val`, of `val`, and `suite`, of `test`,
            the images of each block; `comp.training.context.samples` adds those of `train`. A missing name means the
            split's first images.
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
    test_is_cut: bool = False
    fixes: FixList | None = None
    samples: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)
    label_scale: tuple[float, float] | None = None

    @property
    def splits(self) -> list[Split]:
        """`train`, then `val` and `test` if the data have them."""
        return [split for split in (self.train, self.val, self.test) if split is not None]

    def with_recorded_samples(self, path: Path) -> "Dataset":
        """Return the same data with the samples of a run's split.npz.

        Raises:
            RunError: the file is missing or damaged.
        """
        # Pseudo-labelled images of the test may have joined those of `train` before they were sampled.
        test = len(self.test or ())
        trained = len(self.train) + test
        sizes = {"suite": test, "ood_val": len(self.val or ()), "initialise": trained, "statistics": trained}
        return self.with_samples(splits.read_samples(path, sizes))

    def with_samples(self, samples: Mapping[str, NDArray[np.int64]]) -> "Dataset":
        """Return the same data with other samples, such as a run's recorded ones, and blocks made of them."""
        suite, ood_val = self.suite, self.ood_val
        if isinstance(suite, Suite) and not suite.folder:
            suite = self._corrupt(suite, self.test, samples)
        if ood_val is not None:
            ood_val = self._corrupt(ood_val, self.val, samples)
        return replace(self, suite=suite, ood_val=ood_val, samples=samples)

    def shifted_folds(self) -> NDArray[np.int64]:
        """Return the fold of the image of `val` that each row of `ood_val` shows, [N]; see `decisions.image_folds`."""
        assert self.val is not None
        assert self.val.labels is not None
        assert self.ood_val is not None
        rows = self.samples.get("ood_val", np.arange(len(self.val)))
        shown = np.concatenate([rows[: block.count] for block in self.ood_val.blocks])
        folds: NDArray[np.int64] = decisions.image_folds(self.val.labels)[shown]
        return folds

    def _corrupt(self, suite: Suite, clean: Split | None, samples: Mapping[str, NDArray[np.int64]]) -> Suite:
        assert clean is not None
        seed = suites.corruption_seed(clean.name, self.split_seed)
        return suites.corrupted_suite(suite.name, clean, suite.blocks, seed, samples.get(suite.name))

    def with_drawn_samples(self) -> "Dataset":
        """Return the same data with newly drawn samples for its corrupted blocks."""
        sources = {"ood_val": (self.ood_val, self.val), "suite": (self.suite, self.test)}
        return self.with_samples(
            {
                name: self.sample(clean, max(block.count for block in suite.blocks))
                for name, (suite, clean) in sources.items()
                if isinstance(suite, Suite) and not suite.folder and clean is not None
            }
        )

    def sample(self, split: Split, count: int) -> NDArray[np.int64]:
        """Return the rows of a stratified sample of a split; see `splitting.sample_indices`."""
        return splitting.sample_indices(split, count, task=self.competition.task)

    def limited(self, train_images: int, other_images: int) -> "Dataset":
        """Return a small copy for a rehearsal: a sample of each split, and blocks made of these."""
        test, competition = self.test, self.competition
        rows = np.array([], np.int64) if test is None else self.sample(test, other_images)
        answers = rows if test is None or test.groups is None else np.unique(test.groups.numbers[rows])
        suite = self.suite
        if isinstance(suite, Split):
            suite = suite.take(rows, suite.name)
        elif suite:  # the first images of each block, whose ids follow the order
            suite = _limit_blocks(suite, other_images)
        return replace(
            self,
            train=self._take_sample(self.train, train_images),
            val=self.val and self._take_sample(self.val, other_images),
            test=test and test.take(rows, test.name),
            suite=suite,
            ood_val=self.ood_val and _limit_blocks(self.ood_val, other_images),
            competition=replace(
                competition,
                blocks=_shorten(competition.blocks, other_images),
                sample=competition.sample and competition.sample.take(answers.tolist()),
                test_ids=tuple(competition.test_ids[row] for row in answers if competition.test_ids),
            ),
        ).with_drawn_samples()

    def _take_sample(self, split: Split, count: int) -> Split:
        return split.take(self.sample(split, count), split.name)


def _shorten(blocks: tuple[Block, ...], count: int) -> tuple[Block, ...]:
    return tuple(replace(block, count=min(block.count, count)) for block in blocks)


def _limit_blocks(suite: Suite, count: int) -> Suite:
    whole = {block.name: block for block in suite.blocks}
    # Files are indexed by whole blocks, so the whole block is opened and then cut.
    return replace(
        suite,
        blocks=_shorten(suite.blocks, count),
        open=lambda block: suite.open(whole[block.name]).head(block.count),
        moved=lambda device: _limit_blocks(suite.on(device), count),
    )


def open_dataset(config: Config, progress: Progress = quiet) -> Dataset:
    """Open, check and split a config's data; download what is missing where `data.download` allows it.

    Raises:
        DataError: names what is missing or wrong, its source and how to fix it.
    """
    task = infer_task(config.competition.task, config.competition.metric)
    source = open_source(config.data, progress, task)
    fingerprint = splits.fingerprint(source.train)
    needs_test = config.competition.suite.source == "corrupt_test"
    divided = splitting.split_source(source, config.data, cut_test=needs_test, progress=progress)
    train, val, test = divided.train, divided.val, divided.test
    _check_shapes(train, val, test)
    fixes = None
    if config.data.fixes:  # after the split: the same images validate with and without them
        held_out = [split for split in (val, test, *source.splits[1:]) if split is not None]
        fixes, train = apply_fixes(read_fixes(Path(config.data.fixes)), train, held_out, source.classes)
    mean, std = _measure_channels(train, fingerprint, Path(config.data.root), progress)
    competition = _describe_competition(config, source, train, test)
    image_files = [split.images for split in source.splits if isinstance(split.images, ImageFiles)]
    notes = [*source.notes, *(note for images in image_files for note in images.notes)]
    if source.val is not None and config.data.validation != "official":
        notes.append("val: the source's own validation split is not used; use it with data.validation=official")
    residency = loading.residency(train, val, config.data.loading, loading.training_device(config.train.device))
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
        resident=residency.resident,
        notes=(*notes, *divided.notes, *([fixes.note] if fixes else []), *filter(None, [residency.note])),
        unreadable=tuple(name for images in image_files for name in images.unreadable),
        pixel_range=source.pixel_range,
        split_seed=config.data.split_seed,
        test_is_cut=source.test is None and test is not None,
        fixes=fixes,
        label_scale=_measure_labels(train),
    ).with_drawn_samples()


def _check_shapes(train: Split, *others: Split | None) -> None:
    for split in others:
        if split is not None and split.image_shape != train.image_shape:
            raise DataError(
                f"{split.name}: expected images (C, H, W) {train.image_shape} as in training, found "
                f"{split.image_shape}; resize them"
            )


def _measure_channels(
    train: Split, fingerprint: str, root: Path, progress: Progress
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return each channel's mean and standard deviation, from the cache if the images are unchanged."""

    def measure() -> dict[str, object]:
        mean, std = splits.channel_statistics(train.images, progress)
        return {"mean": mean, "std": std}

    def is_valid(values: dict[str, object]) -> bool:
        finite = np.isfinite(np.array([values["mean"], values["std"]], np.float64))
        return finite.shape == (2, train.image_shape[0]) and bool(finite.all())

    key = "\0".join((fingerprint, *train.ids.tolist()))
    statistics = cached_json(root, "statistics", key, measure, is_valid)
    return tuple(statistics["mean"]), tuple(statistics["std"])


def _measure_labels(train: Split) -> tuple[float, float] | None:
    if train.labels is None or not train.is_numeric:
        return None
    numbers = train.labels.astype(np.float64)
    if not numbers.std():
        raise DataError(f"train: all labels of the training split are {numbers[0]:g}; hold out fewer images")
    return float(numbers.mean()), float(numbers.std())


def _describe_competition(config: Config, source: Source, train: Split, test: Split | None) -> Competition:
    section, row = config.competition, TASKS[source.task]
    sample, test_ids, header = None, (), ("id", "label")
    if section.suite.source == "test":
        if test is None:
            raise ConfigError(f"competition.suite.source: test: {config.data.source} has no test images to submit")
        sample = source.sample
        test_ids, header = () if sample else tuple(test.one_per_answer().ids.tolist()), source.header
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
    section = config.competition.suite
    if test is not None and section.source == "test":
        return replace(test, name="suite", labels=None)
    if section.source == "corrupt_test":
        if test is None or test.labels is None:
            raise DataError(
                f"competition.suite: corrupt_test needs a labelled test split, and {config.data.source} has none; to "
                "submit the test images themselves: competition.suite.source=test"
            )
        return suites.corrupted_suite(
            "suite", test, competition.blocks, seed=suites.corruption_seed("test", config.data.split_seed)
        )
    if not competition.blocks:
        return None
    if config.data.classes:
        raise ConfigError(
            "data.classes: distortion files hold images of every class; corrupt the test images instead "
            "(competition.suite.source=corrupt_test), or set the suite to none"
        )
    folder = Path(config.data.root) / section.path
    if section.base_address and config.data.download:
        suites.download_distortion_files(section, folder, competition.image_shape, progress)
    return suites.distortion_files(folder, competition.blocks, competition.image_shape)


def _open_ood_val(config: Config, val: Split | None) -> Suite | None:
    section = config.competition.ood_validation
    if val is None or not section.severities:
        return None
    count = min(section.per_block, len(val))
    blocks = block_grid(suites.shifted_distortions(section), section.severities, count)
    return suites.corrupted_suite("ood_val", val, blocks, seed=suites.corruption_seed("val", config.data.split_seed))
