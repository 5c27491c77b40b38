"""Submission files: write, trace and check them. Torch-free.

A submission is a CSV with an id and a label for each image of the suite. Beside it lies a sidecar `.json` that traces
it to its run, weights, config and code. Neither is ever half-written, and an existing one is replaced only on demand.
"""

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from comp import runs
from comp.competition.spec import Block, Competition
from comp.errors import SubmissionError
from comp.predictions import Predictions

_SHOWN = 5  # offending ids in a message


@dataclass(frozen=True)
class SubmissionFormat:
    """What a submission must look like.

    Attributes:
        id_column: header of the first column.
        label_column: header of the second.
        blocks: give the ids in their order.
        class_count: labels are 0 to this less one.
    """

    blocks: tuple[Block, ...]
    class_count: int
    id_column: str = "id"
    label_column: str = "label"

    def ids(self) -> NDArray[np.str_]:
        """Return every id in order."""
        return np.concatenate([block.ids() for block in self.blocks]) if self.blocks else np.array([], np.str_)

    def to_json(self) -> dict[str, Any]:
        """Return plain values for a sidecar."""
        return {
            "columns": [self.id_column, self.label_column],
            "blocks": [[block.distortion, block.severity, block.count] for block in self.blocks],
            "class_count": self.class_count,
        }


def format_of(competition: Competition) -> SubmissionFormat:
    """Return the format that a competition wants."""
    return SubmissionFormat(competition.blocks, len(competition.classes))


def format_from_json(values: Mapping[str, Any], where: Path) -> SubmissionFormat:
    """Return the format that a sidecar holds.

    Raises:
        SubmissionError: the sidecar was altered.
    """
    try:
        id_column, label_column = values["columns"]
        blocks = tuple(Block(int(d), int(s), int(n)) for d, s, n in values["blocks"])
        return SubmissionFormat(blocks, int(values["class_count"]), str(id_column), str(label_column))
    except (KeyError, TypeError, ValueError) as error:
        raise SubmissionError(f"{where}: its `format` is damaged ({error!r}); give --format CONFIG") from None


def sidecar_path(path: Path) -> Path:
    """Return where a submission's sidecar lies."""
    return path.with_suffix(".json")


def free_path(folder: Path, stem: str) -> Path:
    """Return `folder/stem.csv`, or with `-2`, `-3` ... the first that neither a CSV nor a sidecar has."""
    number = 1
    while True:
        path = folder / (f"{stem}.csv" if number == 1 else f"{stem}-{number}.csv")
        if not path.exists() and not sidecar_path(path).exists():
            return path
        number += 1


def write(
    path: Path, predictions: Predictions, wanted: SubmissionFormat, sidecar: Mapping[str, Any], *, force: bool = False
) -> None:
    """Write the CSV and its sidecar.

    Args:
        path: ends in .csv; its folder is made.
        predictions: of the whole suite, in its order.
        wanted: the competition's format.
        sidecar: what made the predictions; the format and the CSV's sha256 are added.
        force: replace what is there.

    Raises:
        SubmissionError: not a .csv name, something is there already, or ids differ from the format's.
    """
    if path.suffix != ".csv":
        raise SubmissionError(f"{path}: a submission's name must end in .csv")
    if not np.array_equal(predictions.ids, wanted.ids()):
        raise SubmissionError(f"{path}: the predictions' ids are not the suite's; predict again: comp predict RUN")
    if not force and (path.exists() or sidecar_path(path).exists()):
        raise SubmissionError(f"{path}: is there already; choose another name with -o or replace it with --force")
    runs.make_folder(path.parent)
    rows = zip(predictions.ids.tolist(), predictions.top1.tolist(), strict=True)
    text = f"{wanted.id_column},{wanted.label_column}\n" + "".join(f"{key},{label}\n" for key, label in rows)
    content = text.encode()
    # The sidecar lands first: a crash in between leaves a trace without a CSV, never a CSV without a trace.
    traced = {**sidecar, "rows": len(predictions), "sha256": runs.sha256_of(content), "format": wanted.to_json()}
    try:
        runs.write_atomically(sidecar_path(path), runs.to_json(traced), replace=force)
        runs.write_atomically(path, content, replace=force)
    except FileExistsError:
        raise SubmissionError(f"{path}: another process has just written it; choose another name with -o") from None


def check(path: Path, wanted: SubmissionFormat) -> list[str]:
    """Return what is wrong with a CSV, worst first; empty where it is valid.

    Raises:
        SubmissionError: the file cannot be read as a CSV at all.
    """
    table = read(path)
    expected = [wanted.id_column, wanted.label_column]
    if list(table.columns) != expected:
        return [f"header: expected '{','.join(expected)}', found '{','.join(map(str, table.columns))}'"]
    problems = _check_ids(table[wanted.id_column].to_numpy(), wanted.ids())
    return problems + _check_labels(table, wanted)


def read(path: Path) -> pd.DataFrame:
    """Return a CSV's cells as text.

    Raises:
        SubmissionError: missing, not UTF-8, not a CSV or ragged.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise SubmissionError(f"{path}: no such submission") from None
    except OSError as error:
        raise SubmissionError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise SubmissionError(
            f"{path}: expected UTF-8 text, found byte {error.start} that is not; save it as UTF-8"
        ) from None
    if text.startswith("\ufeff"):
        raise SubmissionError(
            f"{path}: starts with a byte order mark, which spoils the first column's name; save it as UTF-8 without BOM"
        )
    header = text.partition("\n")[0]
    if not header.strip():
        raise SubmissionError(f"{path}: is empty; expected a header line")
    try:
        return pd.read_csv(
            io.StringIO(text), dtype=str, keep_default_na=False, index_col=False, skip_blank_lines=False, engine="c",
            on_bad_lines="error", quoting=csv.QUOTE_MINIMAL,
        )  # fmt: skip
    except (pd.errors.ParserError, pd.errors.EmptyDataError, ValueError) as error:
        raise SubmissionError(f"{path}: not a rectangular CSV: {str(error).strip()}") from None


def _check_ids(found: NDArray[Any], wanted: NDArray[np.str_]) -> list[str]:
    if len(found) == len(wanted) and bool((found == wanted).all()):
        return []
    problems = []
    if len(found) != len(wanted):
        problems.append(f"rows: expected {len(wanted):,}, found {len(found):,}")
    index = pd.Index(found)
    duplicates = index[index.duplicated()].unique()
    for what, ids in (
        ("missing", pd.Index(wanted).difference(index, sort=False)),
        ("unknown", index.difference(pd.Index(wanted), sort=False)),
        ("duplicate", duplicates),
    ):
        if len(ids):
            problems.append(f"{what} ids: {len(ids):,}, first {', '.join(map(repr, ids[:_SHOWN]))}")
    if not problems:
        first = int(np.flatnonzero(found != wanted)[0])
        problems.append(f"order: row {first + 1} is {found[first]!r}, expected {str(wanted[first])!r}")
    return problems


def _check_labels(table: pd.DataFrame, wanted: SubmissionFormat) -> list[str]:
    labels = table[wanted.label_column]
    valid = {str(label) for label in range(wanted.class_count)}
    wrong = table[~labels.isin(valid)]
    if wrong.empty:
        return []
    shown = ", ".join(f"{key!r}: {label!r}" for key, label in wrong.head(_SHOWN).itertuples(index=False))
    return [f"labels: {len(wrong):,} are not whole numbers from 0 to {wanted.class_count - 1}, first {shown}"]
