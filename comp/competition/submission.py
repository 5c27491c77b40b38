"""Submission files: write, trace and check them. Torch-free.

A submission is a CSV with an id and a label, or a probability of each class, for each image of the suite. Beside it
lies a sidecar `.json` that traces it to its run, weights, config and code. Neither is ever half-written, and an
existing one is replaced only on demand.
"""

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from comp import runs
from comp.competition.spec import Block, Competition, SubmissionFormat
from comp.errors import SubmissionError
from comp.predictions import Predictions

_SHOWN = 5  # offending ids in a message
_SUM_TOLERANCE = 1e-3  # of a row of probabilities, each rounded to six digits


def format_of(competition: Competition) -> SubmissionFormat:
    """Return the format that a competition wants: its sample submission's, else ids and labels of the blocks."""
    return competition.sample or SubmissionFormat(competition.blocks, len(competition.classes))


def format_from_json(values: Mapping[str, Any], where: Path) -> SubmissionFormat:
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
            tuple(map(str, answers)), bool(probabilities),
        )  # fmt: skip
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
    content = _to_csv(predictions, wanted)
    # The sidecar lands first: a crash in between leaves a trace without a CSV, never a CSV without a trace.
    traced = {**sidecar, "rows": len(predictions), "sha256": runs.sha256_of(content), "format": wanted.to_json()}
    try:
        runs.write_atomically(sidecar_path(path), runs.to_json(traced), replace=force)
        runs.write_atomically(path, content, replace=force)
    except FileExistsError:
        raise SubmissionError(f"{path}: another process has just written it; choose another name with -o") from None


def _to_csv(predictions: Predictions, wanted: SubmissionFormat) -> bytes:
    if wanted.probabilities:
        odds = np.exp(predictions.logits.astype(np.float64))  # [N, C]; rows' maxima are 0: no overflow
        answers = [[f"{share:.6g}" for share in row] for row in (odds / odds.sum(1, keepdims=True)).tolist()]
    else:
        texts = wanted.texts
        answers = [[texts[label]] for label in predictions.top1.tolist()]
    text = io.StringIO(newline="")
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(wanted.columns)
    rows.writerows([key, *answer] for key, answer in zip(predictions.ids.tolist(), answers, strict=True))
    return text.getvalue().encode()


def check(path: Path, wanted: SubmissionFormat) -> list[str]:
    """Return what is wrong with a CSV, worst first; empty where it is valid.

    Raises:
        SubmissionError: the file cannot be read as a CSV at all.
    """
    table = read(path)
    expected = list(wanted.columns)
    if list(table.columns) != expected:
        return [f"header: expected '{','.join(expected)}', found '{','.join(map(str, table.columns))}'"]
    problems = _check_ids(table[wanted.id_column].to_numpy(), wanted.ids())
    return problems + (_check_probabilities(table, wanted) if wanted.probabilities else _check_labels(table, wanted))


def read(path: Path) -> pd.DataFrame:
    """Return a CSV's cells as text.

    Raises:
        SubmissionError: missing, not UTF-8, not a CSV or ragged.
    """
    content = runs.read_bytes(path, "submission", SubmissionError)
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
    wrong = table[~labels.isin(set(wanted.texts))]
    if wrong.empty:
        return []
    shown = ", ".join(f"{key!r}: {label!r}" for key, label in wrong.head(_SHOWN).itertuples(index=False))
    known = f"one of {', '.join(wanted.answers[:_SHOWN])} ..." if wanted.answers else ""
    known = known or f"whole numbers from 0 to {wanted.class_count - 1}"
    return [f"labels: {len(wrong):,} are not {known}, first {shown}"]


def _check_probabilities(table: pd.DataFrame, wanted: SubmissionFormat) -> list[str]:
    shares = table[list(wanted.answers)].apply(pd.to_numeric, errors="coerce").to_numpy(np.float64)  # [N, C]
    wrong = ~((shares >= 0) & (shares <= 1)).all(1) | ~(np.abs(shares.sum(1) - 1) <= _SUM_TOLERANCE)
    if not wrong.any():
        return []
    shown = ", ".join(map(repr, table[wanted.id_column][wrong].head(_SHOWN)))
    return [f"probabilities: {int(wrong.sum()):,} rows are not numbers from 0 to 1 that sum to 1, first {shown}"]
