"""Check a package of `comp export --kaggle DIR` before it is pushed to a code competition. Torch-free.

DIR/dataset/ holds dataset-metadata.json, runs/ and wheels/; DIR/kernel/ kernel-metadata.json and the notebook;
DIR/package.json names the run and the hashes of its weights.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from comp.results import files
from comp.results.records import Rows
from comp.runtime.errors import RunError, SubmissionError

_ID = re.compile(r"[\w-]+/[\w-]{5,50}")
_PARTS = {"**/config.yaml": "a run (config.yaml)", "wheels/comp-*.whl": "comp's wheel"}  # of the dataset


@dataclass(frozen=True)
class Package:
    """A package that was checked."""

    folder: Path
    dataset: str  # its id on Kaggle, `owner/slug`
    kernel: str  # the notebook's id
    competition: str  # Kaggle's name of the competition (slug)
    run_path: str  # folder of the run that was exported
    verified: bool  # by `comp export --verify`
    dataset_sha256: str  # of all files of the dataset
    sha256: str  # of all files of dataset and notebook


def read_package(folder: Path) -> Package:
    """Return the package in a folder.

    Raises:
        SubmissionError: naming all that is missing or wrong.
    """
    advice = f"write a package with: comp export RUN --kaggle {folder} --competition NAME --owner USER"
    if not folder.is_dir():
        raise SubmissionError(f"{folder}: {'is no folder' if folder.exists() else 'no such folder'}; {advice}")
    problems: list[str] = []
    dataset = _read(folder / "dataset" / "dataset-metadata.json", {"id": _ID_ROW}, problems)
    rows = _kernel_rows(folder / "kernel", str(dataset.get("id")))
    kernel = _read(folder / "kernel" / "kernel-metadata.json", rows, problems)
    if not problems:
        _read(folder / "kernel" / kernel["code_file"], {"cells": _CELLS_ROW}, problems)
    record = _read(folder / "package.json", _RECORD, problems)
    for pattern, what in _PARTS.items():
        if not any((folder / "dataset").glob(pattern)):
            problems.append(f"{folder / 'dataset' / pattern}: expected {what}, found none")
    hashes = {part: _hash_files(folder / part) for part in ("dataset", "kernel")}
    for name, digest in record.get("weights_sha256", {}).items() if not problems else ():
        if not any(path.startswith(f"{name}/") and sha256 == digest for path, sha256 in hashes["dataset"].items()):
            problems.append(f"{folder / 'dataset' / name}: its weights are not those that were exported")
    if problems:
        raise SubmissionError("\n  ".join((f"{folder}: cannot be pushed; {advice}", *problems)))
    whole = [files.sha256_bytes(files.to_json(content)) for content in (hashes["dataset"], hashes)]
    verified = record.get("verified") is True
    return Package(
        folder, dataset["id"], kernel["id"], kernel["competition_sources"][0], record["run_path"], verified, *whole
    )


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


_ID_ROW = (
    "OWNER/SLUG: your name on Kaggle, and 5 to 50 letters, digits and hyphens",
    lambda value: _is_text(value) and _ID.fullmatch(value) is not None,
)
_CELLS_ROW = ("a list: a notebook's cells", lambda value: isinstance(value, list))
_RECORD: Rows = {
    "run_path": ("a run's folder", _is_text),
    "weights_sha256": ("an object: run -> hash", lambda value: isinstance(value, dict)),
}


def _kernel_rows(folder: Path, dataset: str) -> Rows:
    return {
        "id": _ID_ROW,
        "code_file": (
            f"a file in {folder}",
            lambda value: _is_text(value) and value in {path.name for path in folder.glob("*")},
        ),
        "enable_internet": ("false, as code competitions demand", lambda value: value is False),
        "dataset_sources": (f"a list with {dataset}", lambda value: isinstance(value, list) and dataset in value),
        "competition_sources": (
            "a list of one competition",
            lambda value: isinstance(value, list) and len(value) == 1 and _is_text(value[0]),
        ),
    }


def _read(path: Path, rows: Rows, problems: list[str]) -> dict[str, Any]:
    """Return a JSON file's object; add to `problems` what is wrong with it."""
    try:
        values = files.read_json(path)
    except RunError as error:
        problems.append(str(error))
        return {}
    for name, (expected, is_valid) in rows.items():
        if not is_valid(values.get(name)):
            problems.append(f"{path}: {name}: expected {expected}, found {json.dumps(values.get(name))[:80]}")
    return values


def _hash_files(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file below a folder."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): files.sha256_file(path) for path in paths}
