"""What is wrong with a submission's file. Torch-free.

Everything said here makes a file invalid; a valid one may still be worthless, see `comp.competition.doubts`.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from comp.competition import tables
from comp.competition.spec import SubmissionFormat
from comp.competition.tables import SHOWN

_SUM_TOLERANCE = 1e-3  # of a row of probabilities, each rounded to six digits
_WHOLE = re.compile(r"0|[1-9][0-9]*")
_NO_ANSWER = {"", "nan", "na", "n/a", "none", "null"}


def check(path: Path, wanted: SubmissionFormat) -> list[str]:
    """Return what is wrong with a CSV, worst first; empty where it is valid.

    Raises:
        SubmissionError: the file cannot be read as a CSV at all.
    """
    return check_table(tables.read(path), wanted)


def check_table(table: pd.DataFrame, wanted: SubmissionFormat) -> list[str]:
    """Return what is wrong with a CSV's cells, as `check`."""
    expected = list(wanted.columns)
    if list(table.columns) != expected:
        return [f"header: expected '{','.join(expected)}', found '{','.join(map(str, table.columns))}'"]
    problems = _check_ids(table[wanted.id_column].to_numpy(), wanted.ids())
    return problems + (_check_probabilities(table, wanted) if wanted.probabilities else _check_labels(table, wanted))


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
            problems.append(f"{what} ids: {len(ids):,}, first {', '.join(map(repr, ids[:SHOWN]))}")
    if not problems:
        first = int(np.flatnonzero(found != wanted)[0])
        problems.append(f"order: row {first + 1} is {found[first]!r}, expected {str(wanted[first])!r}")
    return problems


def _check_labels(table: pd.DataFrame, wanted: SubmissionFormat) -> list[str]:
    labels = table[wanted.label_column]
    if wanted.class_count:
        right = labels.isin(set(wanted.texts))
    else:
        known = [cell for cell in labels.unique() if _is_label(cell, wanted)]
        right = labels.isin(known)
    wrong = table[~right]
    if wrong.empty:
        return []
    shown = ", ".join(f"{key!r}: {label!r}" for key, label in wrong.head(SHOWN).itertuples(index=False))
    missing = int(wrong[wanted.label_column].str.strip().str.lower().isin(_NO_ANSWER).sum())
    empty = f", {missing:,} of them empty or NaN" if missing else ""
    return [f"labels: {len(wrong):,} are not {_labels(wanted)}{empty}, first {shown}"]


def _is_label(cell: str, wanted: SubmissionFormat) -> bool:
    """Tell whether a cell may be a label where the classes are not known."""
    return cell.lower() not in _NO_ANSWER if wanted.names else bool(_WHOLE.fullmatch(cell))


def _labels(wanted: SubmissionFormat) -> str:
    """Return what labels are, for a message."""
    if wanted.answers:
        return f"one of {', '.join(wanted.answers[:SHOWN])}{' ...' if len(wanted.answers) > SHOWN else ''}"
    if wanted.class_count:
        return f"whole numbers from 0 to {wanted.class_count - 1}"
    return "names" if wanted.names else "whole numbers from 0"


def _check_probabilities(table: pd.DataFrame, wanted: SubmissionFormat) -> list[str]:
    shares = table[list(wanted.answers)].apply(pd.to_numeric, errors="coerce").to_numpy(np.float64)  # [N, C]
    wrong = ~((shares >= 0) & (shares <= 1)).all(1) | ~(np.abs(shares.sum(1) - 1) <= _SUM_TOLERANCE)
    if not wrong.any():
        return []
    missing = int(np.isnan(shares).any(1).sum())
    empty = f", {missing:,} of them with a cell that is no number" if missing else ""
    shown = ", ".join(map(repr, table[wanted.id_column][wrong].head(SHOWN)))
    return [f"probabilities: {int(wrong.sum()):,} rows are not numbers from 0 to 1 that sum to 1{empty}, first {shown}"]
