"""Check a submission's format: header, ids and answer cells. Torch-free.

A file with any problem is invalid. A valid file may still be worthless; see `comp.submission.check_content`. Rows are
matched by id and columns by name, because Kaggle ignores their order; another order is only noted.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from comp.submission import answers, csv_io
from comp.submission.answers import SHOWN
from comp.submission.format import SubmissionFormat

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class CheckedTable:
    """The result of a format check.

    Attributes:
        problems: what makes the table invalid, worst first; empty if it is valid.
        notes: harmless deviations from the format.
        table: if valid, the table with rows and columns in the format's order.
    """

    problems: tuple[str, ...]
    notes: tuple[str, ...] = ()
    table: "pd.DataFrame | None" = None


def check_file(path: Path, form: SubmissionFormat) -> list[str]:
    """Return the problems of a CSV, worst first; empty if it is valid.

    Raises:
        SubmissionError: the file cannot be read as a CSV.
    """
    return list(check_table(csv_io.read_strict(path), form).problems)


def check_table(table: "pd.DataFrame", form: SubmissionFormat) -> CheckedTable:
    """Check a CSV's header, ids and answer cells."""
    import pandas as pd

    expected, columns = list(form.header), list(map(str, table.columns))
    if sorted(columns) != sorted(expected) or columns[0] != expected[0]:
        return CheckedTable((f"header: expected '{','.join(expected)}', found '{','.join(columns)}'",))
    notes = [] if columns == expected else ["columns are in another order than the format's; they are matched by name"]
    table = table[expected]
    expected_ids, ids = form.ids(), table[form.id_column].to_numpy()
    problems = _check_ids(ids, expected_ids)
    if not problems and not bool((ids == expected_ids).all()):
        notes.append("rows are in another order than the format's; they are matched by id")
        table = table.iloc[pd.Index(ids).get_indexer(pd.Index(expected_ids))].reset_index(drop=True)
    problems += answers.check_answers(table, form)
    return CheckedTable(tuple(problems), tuple(notes), None if problems else table)


def _check_ids(ids: NDArray[Any], expected_ids: NDArray[np.str_]) -> list[str]:
    import pandas as pd

    if len(ids) == len(expected_ids) and bool((ids == expected_ids).all()):
        return []
    problems = []
    if len(ids) != len(expected_ids):
        problems.append(f"rows: expected {len(expected_ids):,}, found {len(ids):,}")
    index, expected = pd.Index(ids), pd.Index(expected_ids)
    for kind, wrong_ids in (
        ("missing", expected.difference(index, sort=False)),
        ("unknown", index.difference(expected, sort=False)),
        ("duplicate", index[index.duplicated()].unique()),
    ):
        if len(wrong_ids):
            problems.append(f"{kind} ids: {len(wrong_ids):,}, first {', '.join(map(repr, wrong_ids[:SHOWN]))}")
    return problems
