"""Sections `data` and `augment`."""

import re
from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import AfterValidator, Field
from pydantic.json_schema import SkipJsonSchema

from comp.config.section import (
    Amount,
    BrokenRule,
    Fraction,
    FrozenMapping,
    NotNegative,
    Positive,
    Section,
    Size,
    UserPath,
    expecting,
)

_NARROWEST = 1e-9  # range of pixel values that is spread over 0 to 255


def _check_ascending(pair: str | tuple[float, float]) -> str | tuple[float, float]:
    if isinstance(pair, tuple) and not (pair[0] < pair[1] and pair[1] - pair[0] >= _NARROWEST):
        raise ValueError
    return pair


Range = Annotated[
    Literal["auto", "type"] | tuple[float, float],
    AfterValidator(_check_ascending),
    expecting("auto, type, or two numbers, the smaller first, such as [0, 4095]"),
]


_HeldOut = Annotated[
    Annotated[float, Field(gt=0, lt=1)] | Positive, expecting("a fraction between 0 and 1, a whole number from 1 up")
]


def _check_pattern(pattern: str) -> str:
    """Return the error in a class pattern; empty if there is none."""
    try:
        groups = re.compile(pattern).groups
    except re.error as error:
        return f"expected a regular expression, found {pattern!r}: {error}"
    if pattern and groups != 1:
        return f"expected one group in parentheses, the class, as in ^([a-z]+)[.]; found {groups}"
    return ""


class CSVConfig(Section):
    """Files of a Kaggle dataset below `data.root`, and the columns of its tables."""

    table: UserPath = "train.csv"
    """Table of training ids and labels. If it is missing, the same name with `.zip`, `.gz` or `.parquet` is used.
    Example: data.csv.table=labels.csv"""
    train: UserPath = "train"
    """Folder or .zip archive of the training images, also for `image_folder`; the suffix `.zip` may be omitted.
    Example: data.csv.train=train_images.zip"""
    test: UserPath = "test"
    """Folder or .zip archive of the test images. Without it you can predict only the validation split.
    Example: data.csv.test=test_images"""
    sample: UserPath = "auto"
    """The sample submission, which defines columns, ids, their order and how labels are written; auto:
    `sample_submission*.csv`, `sampleSubmission*.csv` or `SampleSubmission*.csv`, also zipped, if there is one; empty:
    none.
    Example: data.csv.sample=sample.csv"""
    test_table: UserPath = "auto"
    """Table of test image ids; auto: `test.csv` if it exists and there is no sample submission; empty: none.
    Example: data.csv.test_table=test.csv"""
    id_column: str = ""
    """Id column of `table`; empty: the sample's first column, else a usual name (`id`, `image_id`, `filename`, ...).
    Example: data.csv.id_column=image_id"""
    file_column: str = ""
    """File name column of `table` and `test_table`, if ids are not file names; empty: ids, or the only such column.
    Example: data.csv.file_column=file_name"""
    label_column: str = ""
    """Label column of `table`; empty: the sample's, else a usual name (`label`, `target`, ...), else the only other
    one.
    Example: data.csv.label_column=breed"""
    label_columns: tuple[str, ...] = ()
    """Columns of `table` with 0 and 1, one per class, instead of one column of names; empty: the sample's columns if
    the table has all of them, or all other columns if they hold only 0 and 1.
    Example: 'data.csv.label_columns=[healthy, rust, scab]'"""
    separator: str = ""
    """Separator of several names in one label; empty: space, comma or `|`, if the parts also occur as single labels.
    Example: 'data.csv.separator="|"'"""
    group_column: str = ""
    """Column of `table`; images with the same text in it stay in the same split. Requires `data.groups: column`;
    see `data.group_answer`.
    Example: data.groups=column data.csv.group_column=patient"""


class PseudoConfig(Section):
    """Pseudo-labels: test images with the confident predictions of a trained run as labels join the training images
    (Lee 2013, "Pseudo-Label"). Labels are hard: the most likely class, or each class from probability 0.5.
    """

    run: UserPath = ""
    """A run, an ensemble, or a folder of runs, as in `train.teacher.runs`; empty: no pseudo-labels.
    Example: data.pseudo.run=runs/cactus/RUN"""
    images: Literal["test", "suite"] = "test"
    """The images to label: the test images, or all that a submission covers, such as the suite's blocks.
    Example: data.pseudo.images=suite data.pseudo.run=runs/cactus/RUN"""
    min_confidence: Annotated[float, Field(gt=0, le=1)] = 0.95
    """Smallest probability of the predicted class, 0 to 1; of several labels, of the least certain decision.
    Example: data.pseudo.min_confidence=0.9 data.pseudo.run=runs/cactus/RUN"""
    share: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Largest share of the training images that are pseudo-labelled, between 0 and 1; if more are confident, the most
    confident ones join.
    Example: data.pseudo.share=0.3 data.pseudo.run=runs/cactus/RUN"""

    def broken_rules(self) -> Iterator[BrokenRule]:
        """See `Section.broken_rules`."""
        for name in ("images", "min_confidence", "share"):
            if not self.run and getattr(self, name) != type(self).model_fields[name].default:
                yield BrokenRule((name, "run"), f"data.pseudo.{name}: has no effect without data.pseudo.run")


class DataConfig(Section):
    """Images, labels and splits."""

    source: str = "digits"
    """The dataset or file layout, from `comp.data.sources.SOURCES`.
    Example: data.source=csv_images"""
    root: UserPath = "data"
    """Folder of the datasets, relative to the working directory.
    Example: data.root=data/cactus"""
    labels: Literal["fine", "coarse"] = "fine"
    """For cifar100: the 100 classes (fine) or the 20 superclasses (coarse).
    Example: data.source=cifar100 data.labels=coarse"""
    classes: tuple[str, ...] = ()
    """Names of the classes to keep, in the order of their new labels; empty: all. Images of other classes are left out
    of every split, for example to train on half of the classes and transfer to the other half.
    Example: 'data.classes=[cat, dog]'"""
    label_pattern: str = ""
    """For `image_folder`: a regular expression whose one group matches the class in a file's path below the training
    folder, such as `^([a-z]+)[.]` for `cat.0.jpg`; empty: the subfolders are the classes.
    Example: data.source=image_folder 'data.label_pattern=^([a-z]+)[.]'"""
    csv: CSVConfig = CSVConfig()
    image_size: Size | None = None
    """Size in pixels to which image files are resized: a side or [height, width], 8 to 4096; null: all files must have
    the same size, which is kept. Arrays keep their size (`model.stem: resize` enlarges them).
    Example: 'data.image_size=[96, 128]'"""
    skip_bad: bool = False
    """Whether to skip and count images that are missing or unreadable: training images are left out, test images get
    the mean of all other predictions; false: they are an error before training.
    Example: data.skip_bad=true"""
    resize: Literal["crop", "stretch", "letterbox"] = "crop"
    """How image files of another aspect ratio are resized to `image_size`: `crop`: the largest centre crop; `stretch`:
    the whole image, distorted; `letterbox`: the whole image in proportion, with black bars.
    Example: data.resize=letterbox"""
    range: Range = "auto"
    """The values that become black and white if pixels have more than 8 bits, the same for all images: auto: derived
    from the training images (0 to 4095 for 12-bit images; see `comp.data.decode`); `type`: the range of the data type,
    0 to 65535 for 16 bits; [low, high]: values outside are clipped.
    Example: 'data.range=[0, 4095]'"""
    loading: Literal["auto", "resident", "streamed"] = "auto"
    """`resident`: decoded training images are kept on the training device; `streamed`: workers load them batch by
    batch; auto: resident if they take at most a quarter of the device's free memory, and image files at most 4 GiB and
    a quarter of the free main memory. The images are the same.
    Augmentation in workers (`random_resized_crop`, `augment.albumentations`) runs either way.
    Example: data.loading=streamed"""
    workers: Literal["auto"] | Annotated[int, Field(ge=0, le=64)] = "auto"
    """Number of processes that read streamed images, 0 to 64; auto: timed for training, elsewhere one per core, at most
    8; 0: the main process reads them.
    Example: data.workers=4"""
    validation: _HeldOut | Literal["none", "official"] = 0.1
    """Training images held out for validation: a fraction (0 to 1), a count, `none` (train on everything) or `official`
    (the source's own validation split). Ignored if `folds` is set.
    Example: data.validation=0.2"""
    folds: Annotated[int, Field(ge=2, le=10**6)] | None = None
    """Number of folds, at least 2: fold `fold` is the validation split; null: no folds.
    Example: data.folds=5"""
    fold: NotNegative = 0
    """The fold used for validation, from 0 to `folds` - 1.
    Example: data.folds=5 data.fold=2"""
    stratify: bool = True
    """Whether every held-out split has the class frequencies of the whole; false: plain random splits.
    Example: data.stratify=false"""
    groups: Literal["none", "duplicates", "column"] = "none"
    """What stays in the same split: `none`: no images; `duplicates`: images with equal pixels; `column`: rows with the
    same `csv.group_column`.
    Example: data.groups=duplicates"""
    group_answer: Literal["none", "mean", "max"] = "none"
    """Whether a group of images has one answer, such as a patient with several scans, and then one row in the
    submission: `none`: each image has its own; `mean`: the mean of its images' probabilities, of each class, or of
    their numbers; `max`: the highest of each class (divided by their sum if classes exclude each other), or the highest
    number. Requires `groups: column`; `csv.test_table` names each test image's group in a column of the same name, else
    in the only one that holds the sample's ids. Each image is learned and predicted alone; scores, decisions, ensembles
    and submissions have a row for each group, whose images must have the same label.
    Example: data.group_answer=mean data.groups=column data.csv.group_column=patient"""
    sampling: Literal["natural", "balanced", "sqrt"] = "natural"
    """The training images of an epoch: `natural`: each once; `balanced`: each class equally often; `sqrt`: in
    proportion to the square root of its images. Images of rare classes are drawn several times, each time augmented
    anew, and of common classes every epoch draws others; an epoch keeps its length. With several classes an image, its
    rarest one counts.
    Example: data.sampling=balanced"""
    fixes: UserPath = ""
    """A fix list of wrong labels, a .csv with columns `id`, `action` (drop, relabel or keep) and `label`, as written by
    `comp data errors --out`; empty: none. Only training images change: validation and test keep their rows and labels,
    so that scores stay comparable.
    Example: data.fixes=fixes.csv"""
    test: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Fraction (0 to 1) held out as the labelled test split if the source has none (digits).
    Example: data.test=0.3"""
    split_seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of the splits, separate from `seed` so that runs with other seeds stay comparable.
    Example: data.split_seed=1"""
    pseudo: PseudoConfig = PseudoConfig()
    download: bool = True
    """Whether missing files may be downloaded.
    Example: data.download=false"""

    def broken_rules(self) -> Iterator[BrokenRule]:
        """See `Section.broken_rules`."""
        if error := _check_pattern(self.label_pattern):
            yield BrokenRule(("label_pattern",), f"data.label_pattern: {error}")
        if self.folds is not None and self.fold >= self.folds:
            yield BrokenRule(
                ("fold", "folds"),
                f"data.fold: expected 0 to {self.folds - 1}, found {self.fold}",
            )
        if self.folds is not None and isinstance(self.validation, str):
            yield BrokenRule(
                ("validation", "folds"),
                f"data.validation: {self.validation} contradicts data.folds, whose folds validate; remove one",
            )
        if (self.groups == "column") != bool(self.csv.group_column):
            yield BrokenRule(
                ("groups", "csv.group_column"),
                "data.groups: column and data.csv.group_column go together; set both or neither",
            )
        if self.group_answer != "none" and self.groups != "column":
            yield BrokenRule(
                ("group_answer", "groups"),
                f"data.group_answer: {self.group_answer} needs to know which images belong together; set "
                "data.groups=column and data.csv.group_column=COLUMN",
            )


class AugmentConfig(Section):
    """Augmentation and mixing of training images."""

    engine: SkipJsonSchema[
        Annotated[Literal["auto", "per_batch", "per_image"], Field(exclude_if=lambda engine: engine == "per_batch")]
    ] = "per_batch"
    """For older configs only; has no effect, except that `per_image` can no longer be trained."""
    policy: str | tuple[str, ...] = "none"
    """One or several policies from `comp.augment.policies.POLICIES`, applied in this order to whole batches; `photo`
    also crops images while they are read.
    Example: 'augment.policy=[basic, cutout]'"""
    delays: dict[str, Positive] = Field(default_factory=dict)
    """Policies of `policy` that start later: name -> epochs at the start of the training without it. A network that
    first sees what the classes look like, and then what may disturb them, gets further in few epochs. Not for `photo`.
    Example: 'augment.policy=[mirrored_crop, robust]' 'augment.delays={robust: 8}'"""
    ops: tuple[FrozenMapping, ...] = ()
    """Additional ops after the policy, in this order: `{name: brightness, p: 0.5, magnitude: [-0.3, 0.3]}` with a name
    from `comp.augment.ops.OPS`, or `{name: random_resized_crop, magnitude: [0.35, 1]}`, which runs while an image is
    read.
    Example: 'augment.ops=[{name: brightness, p: 0.5, magnitude: [-0.3, 0.3]}]'"""
    albumentations: tuple[FrozenMapping, ...] = ()
    """albumentations transforms before the policy, in this order, by name and arguments: `{name: GaussNoise, p: 0.2,
    std_range: [0.1, 0.2]}`. Loader workers apply them to each uint8 image; they must keep its size.
    Example: 'augment.albumentations=[{name: GaussNoise, p: 0.2, std_range: [0.1, 0.2]}]'"""
    mixup: Amount = 0.0
    """MixUp: alpha of Beta(alpha, alpha); 0: off.
    Example: augment.mixup=0.2"""
    cutmix: Amount = 0.0
    """CutMix: alpha of Beta(alpha, alpha); 0: off.
    Example: augment.cutmix=1.0"""
    switch_probability: Fraction = 0.5
    """Probability of CutMix for each sample if both are on, 0 to 1.
    Example: augment.switch_probability=0.3"""
    mix_off_epochs: NotNegative = 0
    """Number of final epochs without MixUp and CutMix.
    Example: augment.mix_off_epochs=2"""
