"""What is wrong with a submission's file. Torch-free.

Everything reported here makes a file invalid; a valid one may still be worthless, see
`comp.submission.check_content`. Rows
are matched by id and columns by name: their order does not matter to Kaggle, and is only noted.
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
class Checked:
    """A table that was checked.

    Attributes:
        problems: what makes it invalid, worst first; empty where it is valid.
        notes: how it departs from the format without harm.
        table: of a valid one, its rows and columns in the format's order.
    """

    problems: tuple[str, ...]
    notes: tuple[str, ...] = ()
    table: "pd.DataFrame | None" = None


def format_problems(path: Path, form: SubmissionFormat) -> list[str]:
    """Return what is wrong with a CSV, worst first; empty where it is valid.

    Raises:
        SubmissionError: the file cannot be read as a CSV at all.
    """
    return list(check_table(csv_io.read(path), form).problems)


def check_table(table: "pd.DataFrame", form: SubmissionFormat) -> Checked:
    """Check a CSV's cells; see `check`."""
    import pandas as pd

    expected, columns = list(form.header), list(map(str, table.columns))
    if sorted(columns) != sorted(expected) or columns[0] != expected[0]:
        return Checked((f"header: expected '{','.join(expected)}', found '{','.join(columns)}'",))
    notes = [] if columns == expected else ["columns stand in another order than the format's; they match by name"]
    table = table[expected]
    ids, keys = form.ids(), table[form.id_column].to_numpy()
    problems = _id_problems(keys, ids)
    if not problems and not bool((keys == ids).all()):
        notes.append("rows stand in another order than the format's; they match by id")
        table = table.iloc[pd.Index(keys).get_indexer(pd.Index(ids))].reset_index(drop=True)
    problems += answers.problems(table, form)
    return Checked(tuple(problems), tuple(notes), None if problems else table)


def _id_problems(keys: NDArray[Any], ids: NDArray[np.str_]) -> list[str]:
    import pandas as pd

    if len(keys) == len(ids) and bool((keys == ids).all()):
        return []
    problems = []
    if len(keys) != len(ids):
        problems.append(f"rows: expected {len(ids):,}, found {len(keys):,}")
    index = pd.Index(keys)
    duplicates = index[index.duplicated()].unique()
    for what, strange in (
        ("missing", pd.Index(ids).difference(index, sort=False)),
        ("unknown", index.difference(pd.Index(ids), sort=False)),
        ("duplicate", duplicates),
    ):
        if len(strange):
            problems.append(f"{what} ids: {len(strange):,}, first {', '.join(map(repr, strange[:SHOWN]))}")
    return problems
