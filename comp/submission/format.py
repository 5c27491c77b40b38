"""Competition and submission format: classes, image shape, metric, blocks, columns and ids. Torch-free."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from comp.config import SubmissionConfig, SuiteConfig
from comp.config.tasks import TASKS
from comp.results.blocks import Block, block_grid
from comp.runtime.errors import SubmissionError

_MAX_ROWS, _MAX_CLASSES = 100_000_000, 1_000_000  # of a sidecar; more would only fill the memory


@dataclass(frozen=True)
class SampleSubmission:
    """The content of a sample submission.

    Attributes:
        path: the file, for messages.
        id_column: header of the first column.
        columns: headers of the answer columns.
        ids: all ids in order.
        cells: the text of every answer cell, row by row: [N][len(columns)].
        header: all headers including surrounding spaces; empty: `id_column` and `columns`.
    """

    path: str
    id_column: str
    columns: tuple[str, ...]
    ids: tuple[str, ...]
    cells: tuple[tuple[str, ...], ...]
    header: tuple[str, ...] = ()

    @property
    def full_header(self) -> tuple[str, ...]:
        """All headers, byte for byte as in the file."""
        return self.header or (self.id_column, *self.columns)

    @property
    def is_placeholder(self) -> bool:
        """Whether all rows hold the same answer, so that the sample shows only columns and ids."""
        return len(set(self.cells)) == 1

    def take(self, rows: Sequence[int]) -> "SampleSubmission":
        """Return a copy with only these rows."""
        return replace(self, ids=tuple(self.ids[row] for row in rows), cells=tuple(self.cells[row] for row in rows))


@dataclass(frozen=True)
class SubmissionFormat:
    """The columns, ids and answer cells that a submission must have.

    Attributes:
        blocks: the blocks whose ids a submission lists, unless `listed_ids` is set.
        id_column: header of the first column.
        columns: headers of the answer columns, in order: one in total, or one per class.
        answer: a row of `comp.submission.answers.ANSWERS`.
        listed_ids: all ids in the sample submission's order.
        classes: training label texts in label order; empty if only a sample is available.
        texts: the text written for each class, in label order; empty if only a sample is available.
        positive: index of the class whose probability a single column holds.
        separator: between several classes in one cell.
        ranked: maximum number of classes in a `ranked` cell.
        any_text: if the classes are unknown: whether any text counts as a label, or only whole numbers.
        may_be_empty: whether a `labels` cell may be empty because some training images have no class.
        whole: whether a `value` must be a whole number, as the metric compares.
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
    whole: bool = False

    @property
    def header(self) -> tuple[str, ...]:
        """All columns."""
        return (self.id_column, *self.columns)

    @property
    def wide(self) -> bool:
        """Whether there is one column per class."""
        return len(self.columns) > 1

    def column_texts(self) -> tuple[str, ...]:
        """Return the class text of each answer column, without spaces that the sample's header adds."""
        return tuple(column if column in self.texts else column.strip() for column in self.columns)

    def column_classes(self) -> list[int]:
        """Return the class index of each answer column. Requires one column per class."""
        index = {text: label for label, text in enumerate(self.texts)}
        return [index[text] for text in self.column_texts()]

    def ids(self) -> NDArray[np.str_]:
        """Return all ids in order."""
        if self.listed_ids:
            return np.array(self.listed_ids, np.str_)
        return np.concatenate([block.ids() for block in self.blocks]) if self.blocks else np.array([], np.str_)

    def to_json(self) -> dict[str, Any]:
        """Return plain values for a sidecar; see `from_json`."""
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
            **({"whole": True} if self.whole else {}),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any], where: Path) -> "SubmissionFormat":
        """Return the format stored in a sidecar (version 1 or 2).

        Raises:
            SubmissionError: values are missing or damaged.
        """
        try:
            blocks = tuple(Block(_number(d), _number(s), _number(n)) for d, s, n in values["blocks"])
            if sum(block.count for block in blocks) > _MAX_ROWS:
                raise ValueError(f"blocks: expected at most {_MAX_ROWS:,} rows")
            ids = _texts(values.get("ids", ()))
            if "version" not in values:
                return cls._from_version_1(values, blocks, ids)
            if values["answer"] not in {answer for row in TASKS.values() for answer in row.answers}:
                raise ValueError(f"answer {values['answer']}")
            form = cls(
                blocks=blocks,
                id_column=str(values["id_column"]),
                columns=_texts(values["columns"]),
                answer=str(values["answer"]),
                listed_ids=ids,
                classes=_texts(values["classes"]),
                texts=_texts(values["texts"]),
                positive=None if values["positive"] is None else _number(values["positive"]),
                separator=str(values["separator"]),
                ranked=_number(values["ranked"]),
                any_text=bool(values["any_text"]),
                may_be_empty=bool(values.get("may_be_empty", False)),
                whole=bool(values.get("whole", False)),
            )
            form._check_classes()
            return form
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise SubmissionError(
                f"{where}: the value of `format` is damaged ({error!r}); use --format CONFIG instead"
            ) from None

    def _check_classes(self) -> None:
        """Raise ValueError if columns or the positive class have no text."""
        if self.wide and self.texts and (missing := set(self.column_texts()) - set(self.texts)):
            raise ValueError(f"columns without a class: {sorted(missing)[:3]}")
        if self.positive is not None and self.texts and self.positive >= len(self.texts):
            raise ValueError(f"positive: expected a class from 0 to {len(self.texts) - 1}, found {self.positive}")

    @classmethod
    def _from_version_1(
        cls, values: Mapping[str, Any], blocks: tuple[Block, ...], ids: tuple[str, ...]
    ) -> "SubmissionFormat":
        id_column, *columns = _texts(values["columns"])
        return cls(
            blocks=blocks,
            id_column=id_column,
            columns=tuple(columns),
            answer="probabilities" if values.get("probabilities") else "label",
            listed_ids=ids,
            texts=_texts(values.get("answers", ()))
            or _texts(list(range(min(_number(values["class_count"]), _MAX_CLASSES)))),
            any_text=bool(values.get("names")),
        )


def _texts(values: Any) -> tuple[str, ...]:
    if not isinstance(values, list | tuple):
        raise TypeError(f"expected a list, found {values!r:.80}")
    return tuple(map(str, values))


def _number(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise TypeError(f"expected a whole number from 0 up, found {value!r:.80}")
    return value


@dataclass(frozen=True)
class Competition:
    """A competition as its config and data define it.

    Attributes:
        name: used for folder and file names.
        metric: a row of `comp.results.metrics.METRICS`; never `auto`.
        classes: class names in label order.
        image_shape: (C, H, W) of the model's input images.
        blocks: the suite's blocks in submission order; empty if the test images are submitted.
        sample: the sample submission, if there is one.
        submission: the config's section; takes precedence over the sample.
        task: a row of `comp.config.tasks.TASKS`; never `auto`.
        test_ids: all test ids in order, if the test images are submitted without a sample.
        numbered: whether classes have numbers as well as names.
        separator: between several classes in one label of the training table; empty: labels are single classes.
        bare_images: whether some training images have no class.
        header: id and answer column names to use if neither config nor sample sets them.
        synonyms: other training table columns that map one to one to the labels: name -> text of each class.
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
    """Return the suite's blocks: by distortion, then by severity.

    Args:
        config: section `competition.suite`.
        test_images: size of the labelled test split, from which `corrupt_test` is generated.
    """
    if config.source in ("none", "test"):
        return ()
    count = config.images_per_block or test_images
    if config.source == "corrupt_test":
        count = min(count, test_images)
    return block_grid(range(config.files), range(1, config.severities + 1), count)
