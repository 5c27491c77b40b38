"""Predictions as a readable CSV of ids, labels and probabilities, beside the full .npz."""

import csv
import io
from pathlib import Path

from comp.results import files, prediction_files
from comp.results.predictions import Predictions
from comp.runtime import escape
from comp.runtime.errors import SubmissionError

FOLDER = Path("predictions")


def next_free_path(competition: str, folder: Path = FOLDER) -> Path:
    """Return `predictions/<competition>.csv`, or with `-2`, `-3` ... the first that does not exist."""
    number = 1
    while True:
        path = folder / (f"{competition}.csv" if number == 1 else f"{competition}-{number}.csv")
        if not path.exists() and not path.with_suffix(".npz").exists():
            return path
        number += 1


def check_writable(path: Path, *, force: bool) -> None:
    """Check before predicting that `path` and the .npz beside it may be written.

    Raises:
        SubmissionError: not a .csv name, or a file exists and `force` is false.
        RunError: a name is a folder, or the folder cannot be written to.
    """
    if path.suffix != ".csv":
        raise SubmissionError(f"-o {path}: expected a name that ends in .csv (the predictions go beside it as .npz)")
    for name in (path, path.with_suffix(".npz")):
        files.check_writable(name)
        if name.exists() and not force:
            raise SubmissionError(f"{name}: already exists; choose another name with -o, or replace it with --force")


def write_csv(path: Path | None, images: Predictions, *, competition: str, force: bool = False) -> Path:
    """Write the table as a CSV, and the full predictions beside it as a .npz of the same name; return the CSV.

    Args:
        path: the CSV; None: `next_free_path`.
        images: the predictions.
        competition: begins a free name.
        force: replace existing files.

    Raises:
        SubmissionError: a file exists: another process has just written it.
        RunError: the folder cannot be created or written.
    """
    folder = FOLDER if path is None else path.parent
    files.make_folder(folder)
    header, rows = images.table()
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(
        [escape.for_spreadsheet(cell) for cell in row] for row in (header, *rows)
    )
    with files.hold_folder(folder):
        path = path or next_free_path(competition)
        check_writable(path, force=force)
        prediction_files.save(path.with_suffix(".npz"), images)
        files.write_atomically(path, text.getvalue().encode())
    return path
