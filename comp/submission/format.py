"""What is competed in: classes, image shape, metric, the suite's layout of blocks and what a submission looks like."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from comp.config import SubmissionConfig, SuiteConfig
from comp.results.blocks import Block, block_grid


@dataclass(frozen=True)
class SampleSubmission:
    """A sample submission as its file shows it.

    Attributes:
        path: of the file, for messages.
        id_column: header of the first column.
        columns: headers of the others.
        ids: every id in order.
        cells: the text of every answer cell, row by row: [N][len(columns)].
        header: of all columns as the file holds them, spaces around them too; empty: as the others.
    """

    path: str
    id_column: str
    columns: tuple[str, ...]
    ids: tuple[str, ...]
    cells: tuple[tuple[str, ...], ...]
    header: tuple[str, ...] = ()

    @property
    def written(self) -> tuple[str, ...]:
        """The header as a submission repeats it, byte for byte."""
        return self.header or (self.id_column, *self.columns)

    @property
    def constant(self) -> bool:
        """Whether all rows are the same: a placeholder, which shows no more than columns and ids."""
        return len(set(self.cells)) == 1

    def take(self, rows: Sequence[int]) -> "SampleSubmission":
        """Return the same with some rows alone."""
        return replace(self, ids=tuple(self.ids[row] for row in rows), cells=tuple(self.cells[row] for row in rows))


@dataclass(frozen=True)
class SubmissionFormat:
    """What a submission must look like.

    Attributes:
        blocks: give the ids in their order, where none are listed.
        id_column: header of the first column.
        columns: headers of the answer columns, in order: one, or one for each class.
        answer: a row of `comp.submission.answers.ANSWERS`.
        listed_ids: every id in order, as a sample submission lists them.
        classes: the training labels' own texts, in label order; empty where a sample alone was seen.
        texts: what is written for each class, in label order; empty where a sample alone was seen.
        positive: index of the class whose probability a single column holds.
        separator: between several classes in one cell.
        ranked: how many classes a cell lists at most, for `ranked`.
        any_text: whether any text is a label where the classes are not known; else whole numbers alone.
        may_be_empty: whether a cell that lists classes may list none, as some training images have none.
    """

    blocks: tuple[Block, ...] = ()
    id_column: str = "id"
    columns: tuple[str, ...] = ("label",)
    answer: str = "label"
    listed_ids: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    positive: int | None = None
    separator: str = " "
    ranked: int = 0
    any_text: bool = False
    may_be_empty: bool = False

    @property
    def header(self) -> tuple[str, ...]:
        """All columns."""
        return (self.id_column, *self.columns)

    @property
    def wide(self) -> bool:
        """Whether there is a column for each class."""
        return len(self.columns) > 1

    def column_texts(self) -> tuple[str, ...]:
        """Return the class that each answer column's header names: a sample may put spaces around it."""
        return tuple(column if column in self.texts else column.strip() for column in self.columns)

    def column_classes(self) -> list[int]:
        """Return the class index of each answer column; there must be one for each class."""
        index = {text: number for number, text in enumerate(self.texts)}
        return [index[text] for text in self.column_texts()]

    def ids(self) -> NDArray[np.str_]:
        """Return every id in order."""
        if self.listed_ids:
            return np.array(self.listed_ids, np.str_)
        return np.concatenate([block.ids() for block in self.blocks]) if self.blocks else np.array([], np.str_)

    def to_json(self) -> dict[str, Any]:
        """Return plain values for a sidecar; the format that `comp.submission.derive_format.from_json` reads."""
        return {
            "version": 2,
            "id_column": self.id_column,
            "columns": list(self.columns),
            "answer": self.answer,
            "blocks": [[block.distortion, block.severity, block.count] for block in self.blocks],
            "ids": list(self.listed_ids),
            "classes": list(self.classes),
            "texts": list(self.texts),
            "positive": self.positive,
            "separator": self.separator,
            "ranked": self.ranked,
            "any_text": self.any_text,
            "may_be_empty": self.may_be_empty,
        }


@dataclass(frozen=True)
class Competition:
    """What is competed in.

    Attributes:
        name: names folders and files.
        metric: a row of `comp.results.metrics.METRICS`; never `auto`.
        classes: class names in label order.
        image_shape: (C, H, W) of what the model sees.
        blocks: what a submission covers, in its order; empty where there are no blocks.
        sample: the sample submission; None where there is none.
        submission: what the config says of a submission's columns; it goes before the sample.
        task: a row of `comp.config.tasks.TASKS`; never `auto`.
        test_ids: of a submission of the test images without a sample, every id in order.
        numbered: whether classes have numbers as well as names.
        separator: what parts several classes in one label of the training table; empty where nothing does.
        bare_images: whether some training images have no class at all.
        header: of the id and of a single answer column where neither config nor sample names them.
        synonyms: columns of the training table that go one to one with the labels: each class's text, in label order.
    """

    name: str
    metric: str
    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]
    blocks: tuple[Block, ...]
    sample: SampleSubmission | None = None
    submission: SubmissionConfig = field(default_factory=SubmissionConfig)
    task: str = "single_label"
    test_ids: tuple[str, ...] = ()
    numbered: bool = False
    separator: str = ""
    bare_images: bool = False
    header: tuple[str, str] = ("id", "label")
    synonyms: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def suite_blocks(config: SuiteConfig, test_images: int) -> tuple[Block, ...]:
    """Return the suite's blocks, file by file, severities in order.

    Args:
        config: competition.suite.
        test_images: images in the labelled test split, for a suite made from it.
    """
    if config.source in ("none", "test"):
        return ()
    count = config.images_per_block or test_images
    if config.source == "corrupt_test":
        count = min(count, test_images)
    return block_grid(range(config.files), range(1, config.severities + 1), count)
