"""Sections `competition` and what stands below it."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from comp.config.section import Broken, Positive, Section, UserPath

_CORRUPTIONS = 19  # that `comp.data.corruptions.suite` makes


class SuiteConfig(Section):
    """What is predicted for the submission: blocks of distortion x severity, or the test images."""

    source: Literal["corrupt_test", "distortion_files", "test", "none"] = "corrupt_test"
    """`corrupt_test`: our 19 corruptions of the labelled test split; `distortion_files`: a folder of
    `distortionNN.npy`, severities stacked; `test`: the test images themselves, in the order and with the columns of
    the sample submission; `none`: no suite, nothing to submit."""
    path: UserPath = ""
    """Folder of the distortion files, relative to `data.root`."""
    base_address: str = ""
    """Where missing distortion files are downloaded from; empty: never."""
    files: Positive = 19
    """How many distortion files there are, numbered from 00."""
    images_per_block: Annotated[int, Field(ge=0)] = 0
    """Images in each (distortion, severity) block; of `corrupt_test` a stratified sample of the test, 0 for all."""
    severities: Annotated[int, Field(ge=1, le=5)] = 5
    """Severities stacked in each file, or generated: 1 up to this."""

    def broken(self) -> Iterator[Broken]:
        """See `Section`."""
        if self.source == "corrupt_test" and self.files > _CORRUPTIONS:
            yield Broken(
                ("files", "source"),
                f"competition.suite.files: corrupt_test makes {_CORRUPTIONS} at most, one for each corruption; found "
                f"{self.files}",
            )
        if self.source == "distortion_files" and not self.path:
            yield Broken(
                ("path", "source"),
                "competition.suite.path: a suite of distortion_files needs the folder that they lie in",
            )


class OODValidationConfig(Section):
    """A shifted copy of the validation split: held-out training images under generated corruptions."""

    severities: tuple[Annotated[int, Field(ge=1, le=5)], ...] = (1, 3, 5)
    """Which severities are generated; empty: no shifted validation."""
    per_block: Positive = 500
    """Images in each (corruption, severity) block: a stratified sample of the validation split, at most its size."""
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


def _text(value: Any) -> Any:
    return str(value) if type(value) in (int, float) else value


class SubmissionConfig(Section):
    """What a submission looks like, where no sample submission shows it or another way is wanted."""

    id_column: str = ""
    """Header of the first column; empty: the sample's, else the training table's, else `id`."""
    label_column: str = ""
    """Header of a single answer column; empty: the sample's, else the training table's, else `label`."""
    answer: Literal["auto", "label", "labels", "probability", "probabilities", "independent", "value", "ranked"] = (
        "auto"
    )
    """A row of `comp.submission.answers.ANSWERS`: `label` the likeliest class, `labels` all decided classes,
    `probability` of the positive class, `probabilities` of every class (they sum to 1), `independent` ones of every
    class, `value` a number, `ranked` the likeliest few in order; auto: as metric, task and sample show."""
    labels: Literal["auto", "names", "indices"] | dict[str, str] = "auto"
    """How a class is written: its name, its number from 0, or `{class: text}` for each; auto: as the sample shows."""
    positive: str = ""
    """The class whose probability `answer: probability` writes; empty: the one that the sample's column names, such as
    `cat` or `is_cat`, else of two classes the second, such as 1."""
    ranked: Positive | None = None
    """How many classes `answer: ranked` lists; null: as many as the metric counts, or the sample shows."""

    @model_validator(mode="before")
    @classmethod
    def _probabilities_were_labels(cls, values: Any) -> Any:
        # Until version 0.1 `labels: probabilities` was how a column for each class was asked for.
        if isinstance(values, Mapping) and values.get("labels") == "probabilities":
            return {**values, "labels": "auto", "answer": values.get("answer", "probabilities")}
        return values

    @field_validator("labels", mode="before")
    @classmethod
    def _numbers_are_texts_too(cls, values: Any) -> Any:
        """Take `{cat: 0, dog: 1}` for texts; a number whose spelling counts, such as 007, must be quoted."""
        if not isinstance(values, Mapping):
            return values
        return {key: _text(text) for key, text in values.items()}

    @field_validator("positive", mode="before")
    @classmethod
    def _a_number_names_a_class(cls, value: Any) -> Any:
        return _text(value)


class CompetitionConfig(Section):
    """What is competed in."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = "unnamed"
    """Names the folder under `runs/` and the default submission file."""
    task: str = "auto"
    """A row of `comp.config.tasks.TASKS`: `single_label` (one class an image) or `multi_label` (any number of classes);
    auto: as the training labels show."""
    metric: str = "auto"
    """What submissions are scored by: a row of `comp.results.metrics.METRICS`; auto: accuracy, or roc_auc of several
    labels."""
    suite: SuiteConfig = SuiteConfig()
    submission: SubmissionConfig = SubmissionConfig()
    ood_validation: OODValidationConfig = OODValidationConfig()
    rules: RulesConfig = RulesConfig()
