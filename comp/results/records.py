"""Typed reading of a run's provenance.json and tables and of a submission's sidecar, which other code computes with.

Anybody may edit them. Keys of other versions are kept; those that are used are checked. Torch-free.
"""

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comp.config.tasks import TASKS
from comp.results import files
from comp.runtime.errors import RunError

if TYPE_CHECKING:
    from numpy.typing import NDArray

Rows = Mapping[str, tuple[str, Callable[[Any], bool]]]  # key -> what is expected, and whether a value is that
# A table of a run -> its columns with a number in every row.
_NUMERIC = {"history.csv": ("number",), "norms.csv": ("epoch", "parameters", "gradient_norm", "weight_norm")}
_TEXT_COLUMNS = ("layer", "note")


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_list(value: Any, is_valid: Callable[[Any], bool], length: int | None = None) -> bool:
    return isinstance(value, list) and all(map(is_valid, value)) and length in (None, len(value))


def is_object(**keys: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """Return a check for an object with these keys."""
    return lambda value: isinstance(value, dict) and all(check(value.get(name)) for name, check in keys.items())


def _is_range(value: Any) -> bool:
    numbers = _is_list(value, lambda part: isinstance(part, int | float) and not isinstance(part, bool), 2)
    return value is None or value == "type" or numbers


_is_run = is_object(run=_is_text, run_path=_is_text)
_is_lineage: dict[str, Callable[[Any], bool]] = {
    "runs": lambda value: _is_list(value, is_object(run=_is_text, path=_is_text))
}
PROVENANCE: Rows = {
    "classes": ("a list of text", lambda value: _is_list(value, _is_text)),
    "image_shape": (
        "three whole numbers",
        lambda value: _is_list(value, lambda part: _is_count(part) and 0 < part < 1 << 16, 3),
    ),
    "images": (
        "the number of images of train, val and test",
        is_object(train=_is_count, val=_is_count, test=_is_count),
    ),
    "config": ("an object", is_object()),
    "data_fingerprint": ("text", _is_text),
    "first_weights": ("text", _is_text),
    "loading": ("text", _is_text),
    "notes": ("a list of text", lambda value: _is_list(value, _is_text)),
    "argv": ("a list of text", lambda value: _is_list(value, _is_text)),
    "task": (f"one of {', '.join(TASKS)}", lambda value: _is_text(value) and value in TASKS),
    "numbered": ("true or false", _is_bool),
    "bare_images": ("true or false", _is_bool),
    "separator": ("text", _is_text),
    "header": ("two texts", lambda value: _is_list(value, _is_text, 2)),
    "training_counts": ("a list of whole numbers", lambda value: _is_list(value, _is_count)),
    "pixel_range": ("two numbers, 'type' or null", _is_range),
    "fixes": ("an object with a text sha256", is_object(sha256=_is_text)),
    "members": (
        "a list of runs",
        lambda value: _is_list(value, _is_text) or _is_list(value, _is_run),
    ),
    "teacher": ("an object that lists the runs it came from", is_object(**_is_lineage)),
    "pseudo": ("an object that lists the runs it came from", is_object(**_is_lineage)),
}
_is_upload = is_object(
    sha256=_is_text, competition=_is_text, reference=_is_text, status=_is_text, message=lambda value: True
)
_SIDECAR: Rows = {
    "sha256": ("text", _is_text),
    "made_by": ("an object", is_object()),
    "format": ("an object", is_object()),
    "sent": ("a list of uploads", lambda value: _is_list(value, _is_upload)),
}
PUSHED: Rows = {  # pushed.json of a package for a code competition
    "dataset": ("sha256 and version_before", is_object(sha256=_is_text, version_before=_is_count)),
    "kernel": (
        "sha256, push, version, url, status and error",
        is_object(sha256=_is_text, push=_is_text, version=_is_count, url=_is_text, status=_is_text, error=_is_text),
    ),
    "sent": _SIDECAR["sent"],
}


def check(values: Mapping[str, Any], where: Path, rows: Rows, cure: str, *, needed: tuple[str, ...] = ()) -> None:
    """Check the keys of an object that are there or needed.

    Args:
        values: of the file.
        where: the file.
        rows: what is expected of each key.
        cure: how to fix it; ends the message.
        needed: keys that must be there.

    Raises:
        RunError: naming the first key that is wrong, what was expected and what was found.
    """
    for name, (expected, is_valid) in rows.items():
        if (name in values or name in needed) and not is_valid(values.get(name)):
            shown = json.dumps(values.get(name))[:80]
            raise RunError(f"{where}: damaged: {name}: expected {expected}, found {shown}; {cure}")


def read_sidecar(path: Path) -> dict[str, Any]:
    """Return the content of a submission's sidecar.

    Raises:
        RunError: missing or damaged.
    """
    cure = "write the submission again: comp predict RUN -o CSV --force"
    values = files.read_json(path, cure)
    check(values, path, _SIDECAR, cure)
    return values


def read_arrays(path: Path, expected: str | None) -> "dict[str, NDArray[Any]]":
    """Return the arrays of a run's .npz whose SHA-256 provenance.json records.

    Raises:
        RunError: missing, damaged, or other bytes than the recorded ones.
    """
    content = files.read_bytes(path, "file of this run; restore it, or start a new run", RunError)
    if (sha256 := files.sha256_bytes(content)) != expected:
        raise RunError(
            f"{path}: expected sha256 {expected}, recorded in provenance.json, found {sha256}; the file is damaged or "
            "replaced: restore it, or start a new run"
        )
    from comp.results.array_files import open_arrays  # imports NumPy, without which folders are listed

    try:
        with open_arrays(path) as archive:
            return dict(archive)
    except files.READ_ERRORS as error:
        raise RunError(f"{path}: damaged ({files.error_text(error)}); restore it, or start a new run") from None


def read_table(path: Path) -> list[dict[str, str]]:
    """Return the rows of a run's history.csv or norms.csv.

    Raises:
        RunError: damaged: not a CSV, or a numeric cell is not a number.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file, strict=True))
        for row in rows:
            _check_numbers(row, _NUMERIC[path.name])
    except (OSError, ValueError, csv.Error) as error:
        raise RunError(
            f"{path}: damaged ({files.error_text(error)}); move it away to go on without its curves"
        ) from None
    return rows


def _check_numbers(row: Mapping[Any, Any], numeric: Sequence[str]) -> None:
    """Raise ValueError if a row has too few or too many cells, or a numeric cell is not a number."""
    if None in row or None in row.values():
        raise ValueError("a row has another number of cells than the header")
    for name, cell in row.items():
        if name not in _TEXT_COLUMNS and (cell or name in numeric):
            float(cell)
    missing = [name for name in numeric if name not in row]
    if missing:
        raise ValueError(f"column {missing[0]} is missing")


def to_csv(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Return a table's content; missing cells are empty."""
    text = io.StringIO(newline="")
    columns = list(dict.fromkeys(column for row in rows for column in row))
    writer = csv.DictWriter(text, fieldnames=columns or ["epoch"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()
