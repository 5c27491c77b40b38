"""Sections `competition` and what stands below it."""

from typing import Annotated, Literal

from pydantic import Field

from comp.config.section import Positive, Section


class SuiteConfig(Section):
    """What is predicted for the submission: blocks of distortion x severity, or the test images."""

    source: Literal["corrupt_test", "distortion_files", "test", "none"] = "corrupt_test"
    """`corrupt_test`: our 19 corruptions of the labelled test split; `distortion_files`: a folder of
    `distortionNN.npy`, severities stacked; `test`: the test images themselves, in the order and with the columns of
    the sample submission; `none`: no suite, nothing to submit."""
    path: str = ""
    """Folder of the distortion files, relative to `data.root`."""
    base_address: str = ""
    """Where missing distortion files are downloaded from; empty: never."""
    files: Positive = 19
    """How many distortion files there are, numbered from 00."""
    images_per_block: Annotated[int, Field(ge=0)] = 0
    """Images in each (distortion, severity) block; for `corrupt_test` the first this many test images, 0 for all."""
    severities: Annotated[int, Field(ge=1, le=5)] = 5
    """Severities stacked in each file, or generated: 1 up to this."""


class OODValidationConfig(Section):
    """A shifted copy of the validation split: held-out training images under generated corruptions."""

    severities: tuple[Annotated[int, Field(ge=1, le=5)], ...] = (1, 3, 5)
    """Which severities are generated; empty: no shifted validation."""
    per_block: Positive = 500
    """Images in each (corruption, severity) block, at most the validation split's size."""
    every: Literal["end"] | Positive = "end"
    """`end`: once, with the best weights; N: also every N epochs, and after the last one."""
    leave_out: tuple[str, ...] = ()
    """Corruptions, or families of them (noise, blur, weather, digital), that are not generated: those that the
    augmentation imitates, say, so that the score tells of shifts that training has not seen."""


class RulesConfig(Section):
    """What the competition forbids; checked before training."""

    banned_families: tuple[str, ...] = ()
    """Kinds (`transformer`: anything with self-attention, hybrids too) or timm families (`resnet`) that may not be
    used; `comp models` shows both. A model whose kind is unknown is refused where anything is banned."""
    external_weights: bool = True
    """Whether pretrained weights are allowed."""
    test_like_augmentation: bool = True
    """Whether augmentation may imitate corruptions of the suite."""
    transductive: bool = True
    """Whether a prediction may adapt to the images that it predicts."""


class SubmissionConfig(Section):
    """What a submission looks like, where no sample submission says so or another way is wanted."""

    id_column: str = ""
    """Header of the first column; empty: the sample's, else `id`."""
    label_column: str = ""
    """Header of the answers' column; empty: the sample's, else `label`. Not looked at for probabilities."""
    labels: Literal["auto", "indices", "names", "probabilities"] = "auto"
    """What is written of an image: its class's number, its name, or a probability in a column for each class, named as
    the class is; auto: as the sample shows, else numbers for blocks and names for test images."""


class CompetitionConfig(Section):
    """What is competed in."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = "unnamed"
    """Names the folder under `runs/` and the default submission file."""
    metric: str = "accuracy"
    """What submissions are scored by: a row of `comp.metrics.METRICS`."""
    suite: SuiteConfig = SuiteConfig()
    submission: SubmissionConfig = SubmissionConfig()
    ood_validation: OODValidationConfig = OODValidationConfig()
    rules: RulesConfig = RulesConfig()
