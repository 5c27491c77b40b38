"""Predictions of images as people read them: a table of ids, labels and probabilities, beside the whole .npz."""

import csv
import io
from pathlib import Path

from comp.results import predictions, runs
from comp.results.predictions import Predictions
from comp.runtime.errors import SubmissionError

Rows = list[list[str]]


def build_table(found: Predictions) -> tuple[list[str], Rows]:
    """Return a header and a row for each image.

    Where classes exclude each other: `id`, `label`, `probability` of that label. Else `id`, `labels` (the decided
    classes, parted by `;`), and the probability of each class in a column of its name.
    """
    shares = found.probabilities()
    if found.top1 is not None:
        header = ["id", "label", "probability"]
        best = shares[range(len(found)), found.top1]
        rows = [
            [str(name), found.classes[label], f"{share:.4f}"]
            for name, label, share in zip(found.ids, found.top1, best, strict=True)
        ]
        return header, rows
    decided = found.decisions()
    rows = [
        [
            str(name),
            ";".join(found.classes[column] for column in there.nonzero()[0]),
            *(f"{share:.4f}" for share in row),
        ]
        for name, there, row in zip(found.ids, decided, shares, strict=True)
    ]
    return ["id", "labels", *found.classes], rows


def next_free_path(competition: str, folder: Path = Path("predictions")) -> Path:
    """Return the first free `predictions/<competition>.csv`, `-2` and so on."""
    number = 1
    while True:
        path = folder / (f"{competition}.csv" if number == 1 else f"{competition}-{number}.csv")
        if not path.exists() and not path.with_suffix(".npz").exists():
            return path
        number += 1


def check_writable(path: Path, *, force: bool) -> None:
    """Refuse a name that cannot be written: asked before the work that ends there.

    Raises:
        SubmissionError: not a .csv name, or the table or the predictions beside it are there and `force` is not given.
    """
    if path.suffix != ".csv":
        raise SubmissionError(f"-o {path}: expected a name that ends in .csv; the predictions land beside it as .npz")
    for name in (path, path.with_suffix(".npz")):
        if name.exists() and not force:
            raise SubmissionError(f"{name}: is there already; choose another name with -o or replace it with --force")


def write_csv(path: Path, found: Predictions) -> None:
    """Write the table as a CSV and, beside it under the same name, the predictions as a .npz.

    Raises:
        RunError: the folder cannot be made or written.
    """
    runs.make_folder(path.parent)
    header, rows = build_table(found)
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    predictions.save(path.with_suffix(".npz"), found)
    runs.write_atomically(path, text.getvalue().encode())
