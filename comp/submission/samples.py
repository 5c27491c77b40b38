"""Sample submissions: found below a competition's folder, also zipped, and read. Torch-free."""

import re
from pathlib import Path

from comp.runtime.errors import SubmissionError, nearest
from comp.submission import csv_io
from comp.submission.format import SampleSubmission

# As competitions name it: sample_submission.csv, sampleSubmission.csv, SampleSubmission.csv, sample_submission_v2.csv.
_NAME = re.compile(r".*sample[ _-]?submission.*\.(csv|csv\.zip|zip)", re.IGNORECASE)
_USUAL = "sample_submission.csv"
_AUTO = ("auto", _USUAL)  # the latter was the default once, so that it is not taken for a choice


def find(root: Path, name: str) -> tuple[Path | None, tuple[str, ...]]:
    """Return a competition's sample submission, None where there is none, and notes of what was passed over.

    Args:
        root: the folder of its data.
        name: `data.csv.sample`: a file below `root`, `auto`, or empty for none.

    Raises:
        SubmissionError: a named one is missing, or several could be meant.
    """
    if not name:
        return None, ()
    if name not in _AUTO:
        if not (root / name).is_file():
            here = sorted(path.name for path in root.glob("*.csv*"))
            raise SubmissionError(
                f"{root / name}: no such sample submission (data.csv.sample){nearest(name, here)}; the folder holds "
                f"{', '.join(here) or 'no CSV'}"
            )
        return root / name, ()
    candidates = below(root)
    usual = [path for path in candidates if path.name in (_USUAL, f"{_USUAL}.zip")]
    if len(candidates) > 1 and not usual:
        listed = ", ".join(path.name for path in candidates)
        raise SubmissionError(f"{root}: holds several sample submissions, {listed}; choose one: data.csv.sample")
    chosen = next(iter(usual or candidates), None)
    others = [path.name for path in candidates if path != chosen]
    notes = (f"sample submission: {chosen} is used, not {', '.join(others)} (data.csv.sample)",) if others else ()
    return chosen, notes


def below(root: Path) -> list[Path]:
    """Return what lies in a folder under a sample submission's usual names; of a file and its .zip the file."""
    known = sorted(path for path in root.glob("*") if path.is_file() and _NAME.fullmatch(path.name))
    plain = [path for path in known if path.suffix != ".zip"]
    names = {path.name for path in plain}
    return plain + [path for path in known if path.suffix == ".zip" and path.stem not in names]


def read(path: Path) -> SampleSubmission:
    """Return a sample submission's columns, ids and cells.

    Raises:
        SubmissionError: it cannot be read, has no answer column or row, or lists an id twice.
    """
    import pandas as pd

    table = csv_io.read_any(path, SubmissionError)
    header = tuple(map(str, table.columns))
    id_column, *columns = [column.strip() for column in header]
    table.columns = [id_column, *columns]
    if not columns:
        raise SubmissionError(f"{path}: expected an id column and one or more to fill in, found only '{id_column}'")
    if len(set(columns)) < len(columns) or id_column in columns:
        raise SubmissionError(f"{path}: has two columns of one name; correct the header")
    ids = tuple(table[id_column].tolist())
    index = pd.Index(ids)
    if index.has_duplicates:
        twice = index[index.duplicated()].unique().tolist()
        raise SubmissionError(f"{path}: lists {len(twice):,} ids more than once, first {csv_io.some(twice)}")
    cells = tuple(zip(*(table[column].tolist() for column in columns), strict=True))
    return SampleSubmission(str(path), id_column, tuple(columns), ids, cells, header)
