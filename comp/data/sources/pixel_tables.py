"""Tables that hold the pixels themselves, a column for each: `label,pixel0,pixel1...`, as handwritten digits come."""

import csv
import io
import math
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from comp.config import CSVConfig
from comp.data.sources.csv_tables import known_id_column, refuse_duplicates
from comp.runtime.errors import DataError
from comp.submission import csv_io
from comp.submission.format import SampleSubmission

if TYPE_CHECKING:
    import pandas as pd

_PIXEL = re.compile(r"(?:pixel|px)[ _]?(\d+)|(\d+)x(\d+)", re.IGNORECASE)
_FEWEST = 64  # columns: fewer are features, not a picture


@dataclass(frozen=True)
class PixelTable:
    """A table of pictures.

    Attributes:
        images: [N, side, side, 1] uint8.
        others: [N] rows of the further columns, as text.
        path: of the table.
    """

    images: NDArray[np.uint8]
    others: "pd.DataFrame"
    path: Path

    def ids(self, name: str, config: CSVConfig, sample: SampleSubmission | None) -> tuple[list[str], str]:
        """Return the rows' ids and the column that holds them: else those of a sample of as many rows, else numbers.

        Args:
            name: of the split: `train_0` is the first row's id where nothing tells another.
            config: `data.csv`.
            sample: the sample submission, whose rows are this table's in order; None for the training table.

        Raises:
            DataError: an id stands twice, or the sample has another number of rows.
        """
        columns = list(self.others.columns)
        named = config.model_copy(update={"id_column": config.id_column if config.id_column in columns else ""})
        column = known_id_column(columns, config if sample is None else named, sample, self.path)
        listed = sorted(sample.ids) if sample else []
        same = [name for name in columns if sample and sorted(self.others[name]) == listed]
        column = same[0] if same and not column else column
        if column or same:
            ids: list[str] = self.others[column].tolist()
            refuse_duplicates(ids, self.path, column)
            return ids, column
        if sample is None:
            return [f"{name}_{row}" for row in range(len(self.images))], ""
        if len(sample.ids) != len(self.images):
            raise DataError(
                f"{self.path}: has {len(self.images):,} rows and no column of ids, and {sample.path} has "
                f"{len(sample.ids):,} rows; nothing tells which belongs to which"
            )
        return list(sample.ids), ""


def holds_pixels(path: Path) -> bool:
    """Tell whether a table has a column for each pixel; its first line is read."""
    if path.suffix == ".parquet" or not path.is_file():
        return False
    text = csv_io.read_text(path, DataError)
    return len(_pixels(_header(text))) >= _FEWEST


def read(path: Path) -> PixelTable:
    """Return a table's pictures: grey, square, row by row as the columns' numbers count them.

    Raises:
        DataError: missing, ragged, no square picture, or values that are not whole numbers from 0 to 255.
    """
    import pandas as pd

    text = csv_io.read_text(path, DataError)
    header = _header(text)
    pixels = _pixels(header)
    side = math.isqrt(len(pixels))
    if side * side != len(pixels):
        raise DataError(
            f"{path}: expected the pixels of a square grey picture, found {len(pixels):,} columns, whose shape nothing "
            "tells; save the pictures as an array [N, H, W, C] and set data.source=arrays"
        )
    places = {header[place]: np.int16 for place in pixels}
    try:
        with warnings.catch_warnings(action="error", category=pd.errors.ParserWarning):  # of rows that are too long
            table = pd.read_csv(
                io.StringIO(text), sep=csv_io.detect_separator(text), header=0, names=header, index_col=False,
                dtype={name: places.get(name, str) for name in header}, keep_default_na=False,
            )  # fmt: skip
    except pd.errors.ParserWarning:
        raise DataError(f"{path}: not a rectangular CSV: some rows have more cells than the header") from None
    except (pd.errors.ParserError, ValueError, OverflowError) as reason:
        raise DataError(
            f"{path}: expected whole numbers from 0 to 255 in the pixels' columns: {str(reason).splitlines()[0]}"
        ) from None
    values = table[[header[place] for place in pixels]].to_numpy()
    if values.size and (values.min() < 0 or values.max() > 255):
        raise DataError(f"{path}: expected pixels from 0 to 255, found {values.min()} to {values.max()}")
    if not len(values):
        raise DataError(f"{path}: expected a header and rows below it, found no row")
    others = table[[name for name in header if name not in places]]
    return PixelTable(values.astype(np.uint8).reshape(-1, side, side, 1), others, path)


def _header(text: str) -> list[str]:
    line = re.split(r"[\r\n]", text, maxsplit=1)[0]
    return [name.strip() for name in next(csv.reader([line], delimiter=csv_io.detect_separator(text)), [])]


def _pixels(header: Sequence[str]) -> list[int]:
    """Return the places of the pixels' columns, in the order of their numbers."""
    found = [(place, _PIXEL.fullmatch(name)) for place, name in enumerate(header)]
    numbered = [(tuple(int(number) for number in match.groups() if number), place) for place, match in found if match]
    return [place for _, place in sorted(numbered)]
