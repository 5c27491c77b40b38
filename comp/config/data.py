"""Sections `data` and `augment`."""

import re
from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import AfterValidator, Field
from pydantic.json_schema import SkipJsonSchema

from comp.config.section import Broken, Fraction, FrozenMapping, Positive, Section, Size, UserPath, expecting


def _rises(pair: str | tuple[float, float]) -> str | tuple[float, float]:
    if isinstance(pair, tuple) and not pair[0] < pair[1]:
        raise ValueError
    return pair


Range = Annotated[Literal["auto", "type"] | tuple[float, float], AfterValidator(_rises),
                  expecting("auto, type, or two numbers, the smaller first, such as [0, 4095]")]  # fmt: skip


def _wrong_pattern(pattern: str) -> str:
    """Return what is wrong with a pattern that is to find a class; empty where nothing is."""
    try:
        groups = re.compile(pattern).groups
    except re.error as error:
        return f"expected a regular expression, found {pattern!r}: {error}"
    if pattern and groups != 1:
        return f"expected one group in parentheses, the class, as in ^([a-z]+)[.]; found {groups}"
    return ""


class CSVConfig(Section):
    """Where a Kaggle set's files lie below `data.root`, and which columns its tables have."""

    table: UserPath = "train.csv"
    """Ids and labels of the training images; where it is not there, the same name with `.zip` or `.gz`, or as
    `.parquet`."""
    train: UserPath = "train"
    """Folder of the training images, or .zip archive, or the archive of this name and `.zip`; of `image_folder` too."""
    test: UserPath = "test"
    """Likewise of the test images; where there is none, nothing but validation can be predicted."""
    sample: UserPath = "auto"
    """The sample submission, which shows columns, ids in order and how labels are written; auto:
    `sample_submission*.csv`, `sampleSubmission*.csv` or `SampleSubmission*.csv`, also zipped, where there is one."""
    test_table: UserPath = "auto"
    """A table that lists the test images by id; auto: `test.csv` where there is one and no sample submission lists
    them; empty: none."""
    id_column: str = ""
    """Of `table`; empty: the sample's first column, else a usual name (`id`, `image_id`, `filename`, ...)."""
    file_column: str = ""
    """Of `table` and of `test_table`: file names, where ids are none; empty: ids, or the only column of files."""
    label_column: str = ""
    """Of `table`; empty: the sample's, else a usual name (`label`, `class`, `target`, ...), else the only other one."""
    label_columns: tuple[str, ...] = ()
    """Of `table`: a column of 0 and 1 for each class, instead of one column of names; empty: the sample's columns
    where the table has all of them, or all other columns where they hold 0 and 1 alone."""
    separator: str = ""
    """What parts several names in one label; empty: space, comma or `|`, where some label's parts all occur alone."""
    group_column: str = ""
    """Of `table`: images with the same text there stay together in a split; wants `data.groups: column`."""


class DataConfig(Section):
    """Where images and labels come from and how they are split."""

    source: str = "digits"
    """A row of `comp.data.sources.SOURCES`."""
    root: UserPath = "data"
    """Folder of the datasets; relative paths start at the working directory."""
    labels: Literal["fine", "coarse"] = "fine"
    """Of cifar100: its 100 classes, or their 20 superclasses."""
    classes: tuple[str, ...] = ()
    """Names of the source's classes that are kept, in the order of their new labels; empty: all. Images of others are
    left out of every split: half of the classes to learn from, the other half to transfer to."""
    label_pattern: str = ""
    """Of `image_folder`: a regular expression whose group finds the class in a file's path below the training folder,
    such as `^([a-z]+)[.]` for `cat.0.jpg`; empty: the folders are the classes."""
    csv: CSVConfig = CSVConfig()
    image_size: Size | None = None
    """Side in pixels that image files are brought to, or [height, width]; null: they must all have one size, which is
    kept. Arrays keep their size (`model.stem: resize` enlarges them)."""
    skip_bad: bool = False
    """Whether images that are missing or cannot be read are passed over, and counted: training images are left out,
    test images get a default answer, the mean of all other predictions; false: they are refused before training."""
    resize: Literal["crop", "stretch", "letterbox"] = "crop"
    """How image files of another shape are brought to `image_size`: `crop`, the largest middle part of its shape;
    `stretch`, everything, bent; `letterbox`, everything in proportion, with black bars at two sides."""
    range: Range = "auto"
    """Which values become black and white where pixels have more than 8 bits, the same for all images: auto, as the
    training images need (12-bit pictures 0 to 4095; see `comp.data.decode`); `type`, the range of their type, 0 to
    65535 of 16 bits; [lo, hi], what lies beyond is clipped."""
    loading: Literal["auto", "resident", "streamed"] = "auto"
    """`resident`: training images lie decoded on the training device; `streamed`: workers bring them batch by batch;
    auto: resident where they take at most 4 GiB and a quarter of the free memory. The images are the same. What workers
    augment (`random_resized_crop`, `augment.albumentations`) passes through them either way."""
    workers: Literal["auto"] | Annotated[int, Field(ge=0, le=64)] = "auto"
    """Processes that read streamed images; auto: timed for training, and one a core, at most 8, elsewhere; 0: the
    process itself."""
    validation: Annotated[float, Field(gt=0, lt=1)] | Positive | Literal["none", "official"] = 0.1
    """Held out of the training images: a fraction, a count, or `none` (train on everything); `official`: the source's
    own validation split. Not looked at where `folds` is set."""
    folds: Annotated[int, Field(ge=2)] | None = None
    """k-fold: the training images are cut into this many parts, and part `fold` is the validation split."""
    fold: Annotated[int, Field(ge=0)] = 0
    """Which part validates, from 0."""
    stratify: bool = True
    """Whether every held-out part has the classes' shares of the whole; false: plain random."""
    groups: Literal["none", "duplicates", "column"] = "none"
    """What stays together in a split: nothing, images with equal pixels, or rows of one `csv.group_column`."""
    test: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Fraction held out as the labelled test split where the source has none of its own (digits)."""
    split_seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Of the held-out splits alone, so that runs with other seeds stay comparable."""
    download: bool = True
    """Whether missing files may be downloaded."""

    def broken(self) -> Iterator[Broken]:
        """See `Section`."""
        if wrong := _wrong_pattern(self.label_pattern):
            yield Broken(("label_pattern",), f"data.label_pattern: {wrong}")
        if self.folds is not None and self.fold >= self.folds:
            yield Broken(
                ("fold", "folds"), f"data.fold: expected 0 to {self.folds - 1} of {self.folds} folds, found {self.fold}"
            )
        if self.folds is not None and isinstance(self.validation, str):
            yield Broken(
                ("validation", "folds"),
                f"data.validation: {self.validation} contradicts data.folds, whose parts validate; leave one out",
            )
        if (self.groups == "column") != bool(self.csv.group_column):
            yield Broken(
                ("groups", "csv.group_column"),
                "data.groups: column and data.csv.group_column go together; set both, or leave both out",
            )


class AugmentConfig(Section):
    """What happens to training images."""

    engine: SkipJsonSchema[
        Annotated[Literal["auto", "per_batch", "per_image"], Field(exclude_if=lambda engine: engine == "per_batch")]
    ] = "per_batch"
    """Of configs from when there were two engines; changes nothing, except that `per_image` is not trained any more."""
    policy: str | tuple[str, ...] = "none"
    """A row of `comp.augment.policies.POLICIES`, or several, applied in turn, on whole batches; `photo` also crops
    images while they are read."""
    ops: tuple[FrozenMapping, ...] = ()
    """Free ops after the policy, in turn: `{name: brightness, p: 0.5, magnitude: [-0.3, 0.3]}` for a row of
    `comp.augment.ops.OPS`; and `{name: random_resized_crop, magnitude: [0.35, 1]}`, while an image is read."""
    albumentations: tuple[FrozenMapping, ...] = ()
    """Transforms of albumentations before the policy, in turn, by name and arguments: `{name: GaussNoise, p: 0.2,
    std_range: [0.1, 0.2]}`. Loader workers apply them to each uint8 image; they must keep its size."""
    mixup: Annotated[float, Field(ge=0)] = 0.0
    """MixUp's Beta(alpha, alpha); 0 is off."""
    cutmix: Annotated[float, Field(ge=0)] = 0.0
    """CutMix's Beta(alpha, alpha); 0 is off."""
    switch_probability: Fraction = 0.5
    """A sample's probability of CutMix where both are on."""
    mix_off_epochs: Annotated[int, Field(ge=0)] = 0
    """How many last epochs train without MixUp and CutMix."""
