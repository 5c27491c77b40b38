"""Where two submissions say something else, block by block. Torch-free."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from comp.competition import tables
from comp.errors import SubmissionError

_MOST_BLOCKS = 0.5  # of the rows: ids that end in numbers of their own are no blocks


@dataclass(frozen=True)
class Difference:
    """How a block differs.

    Attributes:
        block: its name, `all` where ids tell of none.
        rows: in both submissions.
        differing: of them, those whose cells are not the same text.
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
    """

    blocks: tuple[Difference, ...]
    only_first: int
    only_second: int
    moved: bool

    @property
    def total(self) -> Difference:
        """All blocks as one."""
        return Difference("all", sum(row.rows for row in self.blocks), sum(row.differing for row in self.blocks))

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {**asdict(self), "total": asdict(self.total)}


def compare(first: Path, second: Path) -> Differences:
    """Return how two submissions differ, row by row of equal ids.

    Raises:
        SubmissionError: one of them cannot be read, their columns differ, or an id stands twice.
    """
    one, other = tables.read(first), tables.read(second)
    if list(one.columns) != list(other.columns):
        raise SubmissionError(
            f"{second}: expected the columns {tables.some(list(one.columns))} of {first}, found "
            f"{tables.some(list(other.columns))}"
        )
    ids = pd.Index(one.iloc[:, 0])
    others = pd.Index(other.iloc[:, 0])
    for path, index in ((first, ids), (second, others)):
        if index.has_duplicates:
            raise SubmissionError(f"{path}: an id stands twice, {index[index.duplicated()][0]!r}; see: comp check")
    places = others.get_indexer(ids)
    both = np.flatnonzero(places >= 0)
    here, there = one.iloc[both, 1:].to_numpy(), other.iloc[places[both], 1:].to_numpy()
    differs = pd.Series((here != there).any(1))
    counted = differs.groupby(_block_names(ids[both]), sort=False).agg(["size", "sum"])
    return Differences(
        tuple(Difference(str(name), int(rows), int(count)) for name, rows, count in counted.itertuples()),
        only_first=len(ids) - len(both),
        only_second=len(others) - len(both),
        moved=bool((np.diff(places[both]) < 0).any()),
    )


def _block_names(ids: pd.Index) -> Any:
    """Return each id less its last number; `all` for ids that are not numbered within blocks."""
    parts = ids.to_series().str.extract(r"^(.*)_\d+$")[0]
    if parts.isna().any() or parts.nunique() > _MOST_BLOCKS * len(parts):
        return np.full(len(ids), "all")
    return parts.to_numpy()
