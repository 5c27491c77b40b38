"""Detect which images of a download belong together, and whether each group of them has one answer."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from comp.config import CSVConfig
from comp.data.sources.columns import find_id_column
from comp.submission.format import SampleSubmission

if TYPE_CHECKING:
    import pandas as pd

# Words in the name of a column whose equal texts mean the same subject.
_SUBJECTS = ("patient", "subject", "person", "individual", "lesion", "study", "case", "group", "plant", "animal")
_SERIES = ("session", "sequence", "video", "scene", "user", "slide")
_MIN_PER_GROUP = 1.2  # images: a column that hardly repeats groups nothing


class ImageTable(Protocol):
    """A table whose rows name images, in `column`."""

    @property
    def name(self) -> str: ...
    @property
    def cells(self) -> "pd.DataFrame": ...
    @property
    def column(self) -> str: ...
    @property
    def ids(self) -> Sequence[str]: ...


@dataclass(frozen=True)
class DetectedGroups:
    """Groups of images.

    Attributes:
        column: of their names in the training table; empty without groups.
        test_ids: of the test images, where each group has one answer; None where each image has its own.
        data: their keys of section `data`, without `csv`.
        csv: their keys of `data.csv`.
        reasons: dotted key -> why its value was chosen.
        guesses: what no evidence settles.
    """

    column: str = ""
    test_ids: Sequence[str] | None = None
    data: dict[str, Any] = field(default_factory=dict)
    csv: dict[str, Any] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    guesses: tuple[str, ...] = ()


def names_subjects(column: str) -> bool:
    """Return whether a column's name says that equal texts in it mean the same subject or series."""
    words = re.findall(r"[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", column).lower())
    return any(word in _SUBJECTS + _SERIES for word in words)


def detect_groups(train: ImageTable, label_column: str) -> DetectedGroups:
    """Return the groups of a training table: a column whose name and repetitions show one subject for each text."""
    for name in _subject_columns(train):
        if name != label_column:
            return _kept_together(name)
    return DetectedGroups()


def _subject_columns(train: ImageTable) -> list[str]:
    counts = {name: train.cells[name].nunique() for name in map(str, train.cells.columns) if names_subjects(name)}
    return [name for name, count in counts.items() if count > 1 and count * _MIN_PER_GROUP <= len(train.cells)]


def _kept_together(column: str) -> DetectedGroups:
    reason = f"several images share a {column}, so they stay in one fold"
    return DetectedGroups(
        column, data={"groups": "column"}, csv={"group_column": column}, reasons={"csv.group_column": reason}
    )


def detect_group_answers(
    train: ImageTable, tests: Sequence[ImageTable], sample: SampleSubmission | None
) -> DetectedGroups | None:
    """Return the groups whose names are most of the sample's ids; None where the sample lists images.

    Args:
        train: the training table, which names the groups in the same column, or in the only one that names subjects.
        tests: tables of test images: a column of one repeats the sample's ids.
        sample: the sample submission, or None.
    """
    for test in tests if sample else ():
        assert sample is not None
        for column in map(str, test.cells.columns):
            names = test.cells[column]
            known = [column] if column in train.cells.columns else _subject_columns(train)
            repeats = not names.is_unique and column != test.column and len(known) == 1
            if repeats and 2 * len(set(sample.ids) & set(names)) > len(set(sample.ids)):
                return _answered(known[0], train, test, column, sample)
    return None


def _answered(
    column: str, train: ImageTable, test: ImageTable, test_column: str, sample: SampleSubmission
) -> DetectedGroups:
    groups = _kept_together(column)
    others = [name for name in map(str, train.cells.columns) if name != column]
    usual = find_id_column(others, CSVConfig(), None, Path(train.name)) or others[0]
    csv = {**groups.csv, **({"id_column": train.column} if train.column != usual else {})}
    if not re.fullmatch(r"test\.(csv(\.zip|\.gz)?|parquet)", test.name):
        csv["test_table"] = test.name
    reason = f"{Path(sample.path).name} has a row for each {test_column} of {test.name}, not for each image"
    guess = (
        f"data.group_answer: mean, each {column} gets the mean of its images' answers; max takes the highest, which "
        "suits what a single image may show: compare both on validation"
    )
    return DetectedGroups(
        column,
        test.ids,
        {**groups.data, "group_answer": "mean"},
        csv,
        {**groups.reasons, "group_answer": reason},
        (guess,),
    )
