"""Where two submissions differ, block by block. Torch-free."""

import re
from dataclasses import asdict, dataclass
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from comp.runtime.errors import SubmissionError
from comp.submission import csv_io

if TYPE_CHECKING:
    import pandas as pd

_MOST_BLOCKS = 0.5  # of the rows: ids that end in numbers of their own are no blocks
_LARGEST_EXACT = 2.0**53  # beyond it neighbouring whole numbers are one float
_PLAIN = re.compile(r"[+-]?\d+(\.\d*)?")


@dataclass(frozen=True)
class BlockDifference:
    """How a block differs.

    Attributes:
        block: its name, `all` where ids have none.
        rows: in both submissions.
        differing: of them, those with a cell of another text, or another value where both cells are numbers.
    """

    block: str
    rows: int
    differing: int


@dataclass(frozen=True)
class Differences:
    """How two submissions differ.

    Attributes:
        blocks: in the first one's order.
        only_first: ids that the second lacks.
        only_second: ids that the first lacks.
        moved: whether ids that both have stand in another order.
        columns_moved: whether the columns stand in another order.
    """

    blocks: tuple[BlockDifference, ...]
    only_first: int
    only_second: int
    moved: bool
    columns_moved: bool = False

    @property
    def total(self) -> BlockDifference:
        """All blocks as one."""
        return BlockDifference("all", sum(row.rows for row in self.blocks), sum(row.differing for row in self.blocks))

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {**asdict(self), "total": asdict(self.total)}


def compare(first: Path, second: Path) -> Differences:
    """Return how two submissions differ, row by row of equal ids and column by column of equal names.

    Raises:
        SubmissionError: one of them cannot be read, their columns differ, or an id stands twice.
    """
    import pandas as pd

    left, right = csv_io.read(first), csv_io.read(second)
    columns, moved_columns = list(left.columns), list(right.columns)
    if columns != moved_columns:
        if sorted(columns) != sorted(moved_columns) or len(set(columns)) < len(columns):
            raise SubmissionError(
                f"{second}: expected the columns {csv_io.some(columns)} of {first}, found {csv_io.some(moved_columns)}"
            )
        right = right[columns]
    left_ids, right_ids = pd.Index(left.iloc[:, 0]), pd.Index(right.iloc[:, 0])
    for path, index in ((first, left_ids), (second, right_ids)):
        if index.has_duplicates:
            raise SubmissionError(f"{path}: an id stands twice, {index[index.duplicated()][0]!r}; see: comp check")
    places = right_ids.get_indexer(left_ids)
    both = np.flatnonzero(places >= 0)
    differs = _differs(left.iloc[both, 1:], right.iloc[places[both], 1:])
    counted = pd.Series(differs).groupby(_block_names(left_ids[both]), sort=False).agg(["size", "sum"])
    return Differences(
        tuple(BlockDifference(str(name), int(rows), int(count)) for name, rows, count in counted.itertuples()),
        only_first=len(left_ids) - len(both),
        only_second=len(right_ids) - len(both),
        moved=bool((np.diff(places[both]) < 0).any()),
        columns_moved=columns != moved_columns,
    )


def _differs(left: "pd.DataFrame", right: "pd.DataFrame") -> NDArray[np.bool_]:
    """Return whether any cell of a row [N] differs: by text, or by value where both are numbers."""
    import pandas as pd

    differs = np.zeros(len(left), bool)
    for column in range(left.shape[1]):
        one, two = left.iloc[:, column].to_numpy(), right.iloc[:, column].to_numpy()
        rows = np.flatnonzero((one != two) & ~differs)
        differs[rows[~_same_number(pd.Series(one[rows]), pd.Series(two[rows]))]] = True
    return differs


def _same_number(one: "pd.Series", two: "pd.Series") -> NDArray[np.bool_]:
    """Return whether two columns of different texts [N] hold the same number: `1` and `1.0`, `0.50` and `0.5`."""
    import pandas as pd

    values = [pd.to_numeric(texts, errors="coerce").to_numpy(np.float64) for texts in (one, two)]
    same: NDArray[np.bool_] = values[0] == values[1]  # NaN, a text that is no number, equals nothing
    rows = np.flatnonzero(same & (np.abs(values[0]) >= _LARGEST_EXACT))
    same[rows] = [_exact(one[row]) == _exact(two[row]) for row in rows]
    return same


def _exact(text: str) -> Decimal | float:
    """Return the number that a text holds, of any length."""
    return Decimal(text.strip()) if _PLAIN.fullmatch(text.strip()) else float(text)


def _block_names(ids: "pd.Index") -> Any:
    """Return each id without its last number; `all` for ids that are not numbered within blocks."""
    parts = ids.to_series().str.extract(r"^(.*)_\d+$")[0]
    if parts.isna().any() or parts.nunique() > _MOST_BLOCKS * len(parts):
        return np.full(len(ids), "all")
    return parts.to_numpy()
