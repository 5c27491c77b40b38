"""Section `competition` and its subsections."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from comp.config.section import BrokenRule, Fraction, Name, NotNegative, Positive, Section, UserPath

_CORRUPTIONS = 19  # in `comp.data.corruptions.suite`
_SUM_TOLERANCE = 0.01  # of shares that were rounded


class SuiteConfig(Section):
    """The images to predict for the submission: blocks of distortion x severity, or the test images."""

    source: Literal["corrupt_test", "distortion_files", "test", "none"] = "corrupt_test"
    """`corrupt_test`: comp's 19 corruptions of the labelled test split; `distortion_files`: a folder of
    `distortionNN.npy` files with stacked severities; `test`: the test images, in the sample submission's order and
    columns; `none`: nothing to submit.
    Example: competition.suite.source=test"""
    path: UserPath = ""
    """Folder of the distortion files, relative to `data.root`.
    Example: competition.suite.source=distortion_files competition.suite.path=distortions"""
    base_address: str = ""
    """URL from which missing distortion files are downloaded; empty: no download.
    Example: competition.suite.base_address=https://example.org/distortions"""
    files: Annotated[int, Field(ge=1, le=1000)] = 19
    """Number of distortion files, numbered from 00; at least 1, at most 19 for `corrupt_test`.
    Example: competition.suite.files=5"""
    images_per_block: NotNegative = 0
    """Images per (distortion, severity) block; for `corrupt_test` a stratified sample of the test split. 0: all
    images.
    Example: competition.suite.images_per_block=1000"""
    severities: Annotated[int, Field(ge=1, le=5)] = 5
    """Number of severities in each file, or to generate: 1 to 5.
    Example: competition.suite.severities=3"""

    def broken_rules(self) -> Iterator[BrokenRule]:
        """See `Section.broken_rules`."""
        if self.source == "corrupt_test" and self.files > _CORRUPTIONS:
            yield BrokenRule(
                ("files", "source"),
                f"competition.suite.files: corrupt_test has {_CORRUPTIONS} corruptions; expected at most that many, "
                f"found {self.files}",
            )
        if self.source == "distortion_files" and not self.path:
            yield BrokenRule(
                ("path", "source"),
                "competition.suite.path: source distortion_files needs the folder of the files; set it",
            )


class OODValidationConfig(Section):
    """Shifted validation: a copy of the validation split with generated corruptions."""

    severities: tuple[Annotated[int, Field(ge=1, le=5)], ...] = (1, 3, 5)
    """Severities to generate, each 1 to 5; empty: no shifted validation. If it is not set, plain competitions
    (`suite.source` `test` or `none`) have no shifted validation.
    Example: 'competition.ood_validation.severities=[2, 4]'"""
    per_block: Positive = 500
    """Images per (corruption, severity) block: a stratified sample of the validation split, at most its size.
    Example: competition.ood_validation.per_block=200"""
    every: Literal["end"] | Positive = "end"
    """`end`: measure once, with the best weights; N: also measure every N epochs and after the last epoch.
    Example: competition.ood_validation.every=5"""
    leave_out: tuple[str, ...] = ()
    """Corruptions or families (noise, blur, weather, digital) to leave out, for example those that the augmentation
    imitates, so that the score measures shifts that training has not seen.
    Example: 'competition.ood_validation.leave_out=[noise, fog]'"""


class RulesConfig(Section):
    """The competition's rules, checked before training."""

    banned_families: tuple[str, ...] = ()
    """Forbidden kinds (`transformer`: anything with self-attention, including hybrids) or timm families (`resnet`);
    `comp models` lists both. If anything is banned, models of unknown kind are refused.
    Example: 'competition.rules.banned_families=[transformer]'"""
    external_weights: bool = True
    """Whether pretrained weights are allowed.
    Example: competition.rules.external_weights=false"""
    test_like_augmentation: bool = True
    """Whether the augmentation may imitate corruptions of the suite.
    Example: competition.rules.test_like_augmentation=false"""
    transductive: bool = True
    """Whether predictions may adapt to the test images (`predict.adapt`, `prior` and `pool`), and trainings use them
    (`data.pseudo`).
    Example: competition.rules.transductive=false"""
    cross_block: bool = True
    """Whether an image's predictions in several blocks of the suite may be combined (`predict.pool`).
    Example: competition.rules.cross_block=false"""


class SubmissionConfig(Section):
    """The submission's columns and answers, if there is no sample submission or you want to override it."""

    id_column: str = ""
    """Header of the first column; empty: from the sample, else from the training table, else `id`.
    Example: competition.submission.id_column=image_id"""
    label_column: str = ""
    """Header of a single answer column; empty: from the sample, else from the training table, else `label`.
    Example: competition.submission.label_column=has_cactus"""
    answer: Literal["auto", "label", "labels", "probability", "probabilities", "independent", "value", "ranked"] = (
        "auto"
    )
    """What a row answers (`comp.submission.answers.ANSWERS`): `label`: the most likely class; `labels`: all decided
    classes; `probability`: of the positive class; `probabilities`: of every class, summing to 1; `independent`: of
    every class, each from 0 to 1; `value`: a number; `ranked`: the most likely classes in order; auto: derived from
    metric, task and sample.
    Example: competition.submission.answer=probabilities"""
    labels: Literal["auto", "names", "indices"] | dict[str, str] = "auto"
    """How classes are written: names, numbers from 0 (indices), or `{class: text}`; auto: as in the sample.
    Example: 'competition.submission.labels={cat: "0", dog: "1"}'"""
    positive: str = ""
    """The class whose probability `answer: probability` writes; empty: the class named in the sample's header, such as
    `cat` or `is_cat`, else the second of two classes, such as 1.
    Example: competition.submission.positive=dog"""
    ranked: Positive | None = None
    """Number of classes that `answer: ranked` lists; null: as in the metric or the sample, else 5.
    Example: competition.submission.answer=ranked competition.submission.ranked=3"""

    @model_validator(mode="before")
    @classmethod
    def _convert_old_probabilities(cls, values: Any) -> Any:
        # Before version 0.1 `labels: probabilities` meant one column of probabilities per class.
        if isinstance(values, Mapping) and values.get("labels") == "probabilities":
            return {**values, "labels": "auto", "answer": values.get("answer", "probabilities")}
        return values


class CompetitionConfig(Section):
    """The competition."""

    name: Annotated[Name, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = "unnamed"
    """Name of the folder under `runs/` and of the default submission file.
    Example: competition.name=cactus"""
    task: str = "auto"
    """`single_label` (one class per image), `multi_label` (any number of classes per image), `ordinal` (one class per
    image, in an order: numbers, or names in the order of data.classes; the loss grows with the distance) or
    `regression` (a number); auto: derived from the training labels: whole numbers are classes, many fractions are
    numbers, and a metric of numbers such as rmse asks for regression.
    Example: competition.task=multi_label"""
    metric: str = "auto"
    """The metric that scores submissions, from `comp.results.metrics.METRICS`; auto: accuracy for single_label, roc_auc
    for multi_label, quadratic_weighted_kappa for ordinal, rmse for regression.
    Example: competition.metric=macro_f1"""
    test_shares: dict[str, Fraction] = Field(default_factory=dict)
    """The test's share of each class, `{class: share}` with a sum of 1, if the competition declares it; see
    predict.decide. Empty: as in training.
    Example: 'competition.test_shares={cat: 0.2, dog: 0.8}'"""
    balance: Literal["unknown", "declared"] = "unknown"
    """`declared`: the competition says how often each class occurs in every block of the test, or in the whole test
    without blocks; predict.prior names these shares and needs this; `unknown`: it does not.
    Example: competition.balance=declared predict.prior=uniform"""
    suite: SuiteConfig = SuiteConfig()
    submission: SubmissionConfig = SubmissionConfig()
    ood_validation: OODValidationConfig = OODValidationConfig()
    rules: RulesConfig = RulesConfig()

    def broken_rules(self) -> Iterator[BrokenRule]:
        """See `Section.broken_rules`."""
        total = sum(self.test_shares.values())
        if self.test_shares and abs(total - 1) > _SUM_TOLERANCE:
            yield BrokenRule(
                ("test_shares",),
                f"competition.test_shares: expected shares that sum to 1, found {total:g}; name every class",
            )
