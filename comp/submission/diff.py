"""Compare two submissions block by block. Torch-free."""

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

_MAX_BLOCKS = 0.5  # as a share of the rows: ids that merely end in a number form no blocks
_LARGEST_EXACT = 2.0**53  # above this, neighbouring whole numbers are the same float
_PLAIN = re.compile(r"[+-]?\d+(\.\d*)?")


@dataclass(frozen=True)
class BlockDifference:
    """The difference in one block.

    Attributes:
        block: its name; `all` if the ids name no blocks.
        rows: rows in both submissions.
        differing: rows in which a cell differs: by value if both cells are numbers, else by text.
    """

    block: str
    rows: int
    differing: int


@dataclass(frozen=True)
class Sizes:
    """How far numbers lie apart in the rows of both submissions.

    Attributes:
        median: of the absolute differences.
        greatest: of them.
        correlation: Pearson's, of all numbers; None if those of one submission are all the same.
    """

    median: float
    greatest: float
    correlation: float | None


@dataclass(frozen=True)
class Differences:
    """The difference between two submissions.

    Attributes:
        blocks: in the first submission's order.
        only_first: number of ids that only the first submission has.
        only_second: number of ids that only the second submission has.
        moved: whether the common ids are in another order.
        columns_moved: whether the columns are in another order.
        sizes: of answers that are numbers; None where they are texts, or whole numbers, which may be classes.
    """

    blocks: tuple[BlockDifference, ...]
    only_first: int
    only_second: int
    moved: bool
    columns_moved: bool = False
    sizes: Sizes | None = None

    @property
    def total(self) -> BlockDifference:
        """The sum over all blocks."""
        return BlockDifference("all", sum(row.rows for row in self.blocks), sum(row.differing for row in self.blocks))

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {**asdict(self), "total": asdict(self.total)}


def compare_submissions(first: Path, second: Path) -> Differences:
    """Compare two submissions; rows are matched by id and columns by name.

    Raises:
        SubmissionError: a file cannot be read or has a duplicate id, or the columns differ.
    """
    import pandas as pd

    left, right = csv_io.read_strict(first), csv_io.read_strict(second)
    columns, other_columns = list(left.columns), list(right.columns)
    if columns != other_columns:
        if sorted(columns) != sorted(other_columns) or len(set(columns)) < len(columns):
            raise SubmissionError(
                f"{second}: expected the columns {csv_io.list_some(columns)} of {first}, found "
                f"{csv_io.list_some(other_columns)}"
            )
        right = right[columns]
    left_ids, right_ids = pd.Index(left.iloc[:, 0]), pd.Index(right.iloc[:, 0])
    for path, index in ((first, left_ids), (second, right_ids)):
        if index.has_duplicates:
            raise SubmissionError(f"{path}: duplicate id {index[index.duplicated()][0]!r}; see: comp check")
    positions = right_ids.get_indexer(left_ids)  # -1 for ids that only the first submission has
    common = np.flatnonzero(positions >= 0)
    answers = left.iloc[common, 1:], right.iloc[positions[common], 1:]
    differs = _rows_differ(*answers)
    counted = pd.Series(differs).groupby(_block_names(left_ids[common]), sort=False).agg(["size", "sum"])
    return Differences(
        tuple(BlockDifference(str(name), int(rows), int(count)) for name, rows, count in counted.itertuples()),
        only_first=len(left_ids) - len(common),
        only_second=len(right_ids) - len(common),
        moved=bool((np.diff(positions[common]) < 0).any()),
        columns_moved=columns != other_columns,
        sizes=_measure_sizes(*answers),
    )


def _measure_sizes(*answers: "pd.DataFrame") -> Sizes | None:
    """Return how far the numbers of two submissions lie apart; see `Differences.sizes`."""
    import pandas as pd

    values = [cells.apply(pd.to_numeric, errors="coerce").to_numpy(np.float64).ravel() for cells in answers]
    if not all(len(cells) and np.isfinite(cells).all() for cells in values):
        return None
    if all((cells == np.floor(cells)).all() for cells in values):
        return None
    apart = np.abs(values[0] - values[1])
    varies = all(np.ptp(cells) > 0 for cells in values)
    correlation = float(np.corrcoef(*values)[0, 1]) if varies else None
    return Sizes(float(np.median(apart)), float(apart.max()), correlation)


def _rows_differ(left: "pd.DataFrame", right: "pd.DataFrame") -> NDArray[np.bool_]:
    """Return which rows [N] differ in any cell: by value if both cells are numbers, else by text."""
    import pandas as pd

    differs = np.zeros(len(left), bool)
    for column in range(left.shape[1]):
        left_cells, right_cells = left.iloc[:, column].to_numpy(), right.iloc[:, column].to_numpy()
        rows = np.flatnonzero((left_cells != right_cells) & ~differs)
        differs[rows[~_equal_numbers(pd.Series(left_cells[rows]), pd.Series(right_cells[rows]))]] = True
    return differs


def _equal_numbers(left: "pd.Series", right: "pd.Series") -> NDArray[np.bool_]:
    """Return where two columns of different texts [N] hold the same number: `1` and `1.0`, `0.50` and `0.5`."""
    import pandas as pd

    values = [pd.to_numeric(texts, errors="coerce").to_numpy(np.float64) for texts in (left, right)]
    equal: NDArray[np.bool_] = values[0] == values[1]  # NaN (not a number) equals nothing
    rows = np.flatnonzero(equal & (np.abs(values[0]) >= _LARGEST_EXACT))
    equal[rows] = [_parse_exact(left[row]) == _parse_exact(right[row]) for row in rows]
    return equal


def _parse_exact(text: str) -> Decimal | float:
    """Return a text's number without rounding plain decimals of any length."""
    return Decimal(text.strip()) if _PLAIN.fullmatch(text.strip()) else float(text)


def _block_names(ids: "pd.Index") -> Any:
    """Return each id without its last number; `all` if the ids are not numbered within blocks."""
    parts = ids.to_series().str.extract(r"^(.*)_\d+$")[0]
    if parts.isna().any() or parts.nunique() > _MAX_BLOCKS * len(parts):
        return np.full(len(ids), "all")
    return parts.to_numpy()
