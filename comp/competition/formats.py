"""What a submission must look like, by whoever says so: the competition, a sidecar or a sample submission."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from comp.competition import tables
from comp.competition.spec import Block, Competition, SubmissionFormat
from comp.errors import SubmissionError

_WHOLE = re.compile(r"0|[1-9][0-9]*")


def format_of(competition: Competition) -> SubmissionFormat:
    """Return the format that a competition wants: its config's, else its sample's, else ids and labels of the blocks.

    Raises:
        SubmissionError: probabilities are wanted and a class has the name of the id column.
    """
    wanted, classes = competition.submission, competition.classes
    found = competition.sample or SubmissionFormat(competition.blocks, len(classes))
    found = replace(found, id_column=wanted.id_column or found.id_column)
    answers = {"auto": found.answers, "indices": (), "names": classes, "probabilities": classes}[wanted.labels]
    probabilities = found.probabilities if wanted.labels == "auto" else wanted.labels == "probabilities"
    if probabilities and found.id_column in answers:
        raise SubmissionError(
            f"competition.submission.id_column: '{found.id_column}' is a class's name too, and each class has a column"
        )
    # A sample of probabilities has no column to name a single answer's.
    label_column = "" if probabilities else wanted.label_column or found.label_column or "label"
    return replace(found, label_column=label_column, answers=answers, probabilities=probabilities)


def from_json(values: Mapping[str, Any], where: Path) -> SubmissionFormat:
    """Return the format that a sidecar holds.

    Raises:
        SubmissionError: the sidecar was altered.
    """
    try:
        listed, answers, probabilities = values.get("ids", ()), values.get("answers", ()), values.get("probabilities")
        id_column, label_column = values["columns"] if not probabilities else (values["columns"][0], "")
        blocks = tuple(Block(int(d), int(s), int(n)) for d, s, n in values["blocks"])
        return SubmissionFormat(
            blocks, int(values["class_count"]), str(id_column), str(label_column), tuple(map(str, listed)),
            tuple(map(str, answers)), bool(probabilities), bool(values.get("names")),
        )  # fmt: skip
    except (KeyError, TypeError, ValueError) as error:
        raise SubmissionError(f"{where}: its `format` is damaged ({error!r}); give --format CONFIG") from None


def from_sample(path: Path) -> SubmissionFormat:
    """Return what a sample submission shows: columns, ids in order, and numbers, names or probabilities.

    How many classes there are a single column does not show: any whole number, or any text, is then a label.

    Raises:
        SubmissionError: it cannot be read, lists an id twice, or its cells are none of these.
    """
    table = tables.read(path)
    id_column, *answers = [str(column) for column in table.columns]
    ids = tuple(table[id_column].tolist())
    if not ids or not answers:
        raise SubmissionError(f"{path}: expected an id column, an answer column and rows, found {tables.size(table)}")
    if twice := pd.Index(ids)[pd.Index(ids).duplicated()].unique().tolist():
        raise SubmissionError(f"{path}: lists {len(twice):,} ids more than once, first {tables.some(twice)}")
    if len(answers) > 1:
        shares = pd.to_numeric(table[answers].stack(), errors="coerce")
        if shares.isna().any():
            raise SubmissionError(
                f"{path}: expected numbers in the columns {tables.some(answers)}, one for each class, found others"
            )
        return SubmissionFormat((), len(answers), id_column, "", ids, tuple(answers), probabilities=True)
    cells = [cell for cell in table[answers[0]].tolist() if cell]
    names = not all(_WHOLE.fullmatch(cell) for cell in cells)
    if names and not pd.to_numeric(pd.Series(cells), errors="coerce").isna().any():
        raise SubmissionError(
            f"{path}: column '{answers[0]}' holds numbers such as {cells[0]!r}; a probability needs a column for each "
            "class"
        )
    return SubmissionFormat((), 0, id_column, answers[0], ids, names=names)
