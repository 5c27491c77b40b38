"""Everything that a config's runs need of its data, opened and checked: `open_dataset(config)`."""

from dataclasses import dataclass, replace
from pathlib import Path

from comp.competition import spec
from comp.competition.spec import Competition
from comp.config import Config
from comp.data import splits, suites
from comp.data.sources import open_source
from comp.data.splits import Split, Suite
from comp.errors import DataError
from comp.progress import Progress, quiet

_SMALLEST_STD = 1 / 255  # a channel of one grey level must not be divided by zero


@dataclass(frozen=True)
class Dataset:
    """A competition's data.

    Attributes:
        competition: its classes, image shape, blocks.
        train: labelled.
        val: labelled and held out of the training images; None where all are trained on.
        test: clean and labelled; None where there is none.
        suite: what a submission covers; None where nothing is submitted.
        ood_val: shifted copies of `val`; None without one.
        mean: of each channel of `train`, in [0, 1].
        std: likewise.
        fingerprint: of all training images and labels, before the split.
        unreadable: files of the source that hold no image, left out.
    """

    competition: Competition
    train: Split
    val: Split | None
    test: Split | None
    suite: Suite | None
    ood_val: Suite | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fingerprint: str
    unreadable: tuple[str, ...] = ()

    def limited(self, train_images: int, other_images: int) -> "Dataset":
        """Return a small copy for a rehearsal: the first images of each split and block."""
        return replace(
            self,
            train=self.train.head(train_images),
            val=self.val and self.val.head(other_images),
            test=self.test and self.test.head(other_images),
            suite=self.suite and _limited(self.suite, other_images),
            ood_val=self.ood_val and _limited(self.ood_val, other_images),
            competition=replace(self.competition, blocks=_shorter(self.competition.blocks, other_images)),
        )


def _shorter(blocks: tuple[spec.Block, ...], count: int) -> tuple[spec.Block, ...]:
    return tuple(replace(block, count=min(block.count, count)) for block in blocks)


def _limited(suite: Suite, count: int) -> Suite:
    whole = {block.name: block for block in suite.blocks}
    # Files are addressed by their whole blocks, so the whole block is opened and then cut.
    return Suite(
        suite.name, _shorter(suite.blocks, count), lambda block: suite.open(whole[block.name]).head(block.count)
    )


def open_dataset(config: Config, progress: Progress = quiet) -> Dataset:
    """Open, download where needed and allowed, check and split a config's data.

    Raises:
        DataError: what is missing or wrong, where it comes from and how to put it in place.
    """
    source = open_source(config.data)
    fingerprint = splits.fingerprint(source.train)
    train, test = source.train, source.test
    if test is None and config.competition.suite.source == "corrupt_test":
        train, test = splits.held_out(train, config.data.test, config.data.split_seed, ("train", "test"))
    val = None
    if config.data.validation != "none":
        train, val = splits.held_out(train, config.data.validation, config.data.split_seed, ("train", "val"))
    _check_shapes(train, test)
    mean, std = splits.channel_statistics(train.images)
    std = tuple(max(value, _SMALLEST_STD) for value in std)
    blocks = spec.suite_blocks(config.competition.suite, len(test) if test else 0)
    competition = Competition(
        config.competition.name, config.competition.metric, source.classes, train.image_shape, blocks
    )
    suite = _open_suite(config, competition, test, progress) if blocks else None
    return Dataset(
        competition, train, val, test, suite, _open_ood_val(config, val), mean, std, fingerprint, source.unreadable
    )


def _check_shapes(train: Split, test: Split | None) -> None:
    if test is not None and test.image_shape != train.image_shape:
        raise DataError(
            f"test: expected images (C, H, W) {train.image_shape} as in training, found {test.image_shape}; resize them"
        )


def _open_suite(config: Config, competition: Competition, test: Split | None, progress: Progress) -> Suite:
    wanted = config.competition.suite
    if wanted.source == "corrupt_test":
        if test is None:
            raise DataError("competition.suite: corrupt_test needs a labelled test split, and this source has none")
        return suites.corrupted("suite", test, competition.blocks, seed=suites.seed_of("test", config.data.split_seed))
    folder = Path(config.data.root) / wanted.path
    if wanted.base_address and config.data.download:
        suites.download_distortion_files(wanted, folder, competition.image_shape, progress)
    return suites.distortion_files(folder, competition.blocks, competition.image_shape)


def _open_ood_val(config: Config, val: Split | None) -> Suite | None:
    wanted = config.competition.ood_validation
    if val is None or not wanted.severities:
        return None
    count = min(wanted.per_block, len(val))
    blocks = spec.blocks(suites.shifted_distortions(wanted), wanted.severities, count)
    return suites.corrupted("ood_val", val, blocks, seed=suites.seed_of("val", config.data.split_seed))
