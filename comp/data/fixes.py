"""Fix lists (`data.fixes`): which training images to drop or relabel, by id.

A list corrects training images alone: validation and test keep their rows and labels, so that scores stay comparable.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from comp.data.splits import Split
from comp.results import files
from comp.results.predictions import Predictions, Targets
from comp.results.runs import FIXES, Run
from comp.runtime.errors import DataError, nearest
from comp.submission import csv_io

ACTIONS = ("drop", "relabel", "keep")


@dataclass(frozen=True)
class Fix:
    """What to do with an image; `label` is the new one of `relabel`, `given` the present one if the list has it."""

    action: str
    label: str
    given: str


@dataclass(frozen=True)
class FixList:
    """A fix list and, once it is applied, what it changed.

    Attributes:
        path: of the CSV.
        content: its bytes.
        fixes: id -> fix.
        relabelled: training images with another label now.
        dropped: training images that are left out.
        held_out: its other images to drop or relabel: of validation or test, which keep their labels.
    """

    path: Path
    content: bytes
    fixes: Mapping[str, Fix]
    relabelled: int = 0
    dropped: int = 0
    held_out: int = 0

    @property
    def sha256(self) -> str:
        """The SHA-256 of the file."""
        return files.sha256_bytes(self.content)

    @property
    def note(self) -> str:
        """What the list changed, for the user."""
        held = f"; {self.held_out:,} more of its images are held out and keep their labels" if self.held_out else ""
        return f"fixes: {self.relabelled:,} relabelled, {self.dropped:,} dropped, by {self.path}{held}"

    @property
    def origin(self) -> dict[str, Any]:
        """Its file and hash, as provenance.json has them."""
        return {"file": str(self.path), "sha256": self.sha256}

    def to_json(self) -> dict[str, Any]:
        """Return the record for provenance.json: its origin, and what it changed."""
        counts = {"relabelled": self.relabelled, "dropped": self.dropped, "held_out": self.held_out}
        return {**self.origin, **counts}


def read_fixes(path: Path) -> FixList:
    """Return a fix list: a CSV with columns `id`, `action` (drop, relabel or keep), `label`, and maybe `given`.

    Raises:
        DataError: lists all mistakes of the file.
    """
    if path.suffix != ".csv":
        raise DataError(f"{path}: expected a fix list, a name that ends in .csv (data.fixes)")
    content = files.read_bytes(path, "fix list (data.fixes)", DataError)
    table = csv_io.read_table(path, DataError)
    columns = [str(column).strip() for column in table.columns]
    if missing := [name for name in ("id", "action", "label") if columns.count(name) != 1]:
        raise DataError(
            f"{path}: expected one column each of id, action and label, and maybe given; {', '.join(missing)} of them "
            f"is missing or twice; found {', '.join(columns)}"
        )
    table.columns = columns
    given = table["given"].tolist() if columns.count("given") == 1 else [""] * len(table)
    actions = [action.strip().lower() for action in table["action"]]
    rows = list(zip(table["id"].tolist(), map(Fix, actions, table["label"].tolist(), given), strict=True))
    fixes: dict[str, Fix] = {}
    contradicted = [name for name, fix in rows if _effect(fixes.setdefault(name, fix)) != _effect(fix)]
    _raise_if_wrong(
        path,
        {
            f"actions other than {', '.join(ACTIONS)}": [fix.action for _, fix in rows if fix.action not in ACTIONS],
            "ids to relabel without a label": [name for name, fix in rows if _effect(fix) == ("relabel", "")],
            "ids with contradicting rows": list(dict.fromkeys(contradicted)),
        },
    )
    return FixList(path, content, fixes)


def _effect(fix: Fix) -> tuple[str, str]:
    return fix.action, fix.label if fix.action == "relabel" else ""


def _raise_if_wrong(path: Path, mistakes: Mapping[str, Sequence[str]]) -> None:
    """Raise one error for all mistakes: what is wrong -> the values that are."""
    wrong = [f"{what} ({len(values):,}): {csv_io.list_some(values)}" for what, values in mistakes.items() if values]
    if wrong:
        raise DataError(f"{path} (data.fixes): {'; '.join(wrong)}; correct these rows or remove them")


def apply_fixes(
    fixes: FixList, train: Split, held_out: Sequence[Split], classes: Sequence[str]
) -> tuple[FixList, Split]:
    """Return the list with its counts, and the training split with its labels fixed.

    Args:
        fixes: from `read_fixes`.
        train: labelled.
        held_out: validation and test, whose images may be listed too and are not changed.
        classes: names in label order.

    Raises:
        DataError: lists all unknown ids and labels, labels that are not those of the data, and classes left empty.
    """
    row_of = {name: row for row, name in enumerate(train.ids.tolist())}
    labels = train.labels
    assert labels is not None
    named = {name for split in held_out if split.labels is not None for name in split.ids.tolist()}
    listed, exclusive = fixes.fixes.items(), _are_exclusive(labels)
    unknown = [name for name in fixes.fixes if name not in row_of and name not in named]
    _raise_if_wrong(
        fixes.path,
        {
            "ids that are no labelled images of these data": unknown,
            **_wrong_labels(fixes, classes, labels),
            "ids whose label is not the given one": [
                name
                for name, fix in listed
                if fix.given and exclusive and name in row_of and classes[int(labels[row_of[name]])] != fix.given
            ],
        },
    )
    active = {row_of[name]: fix for name, fix in listed if name in row_of and fix.action != "keep"}
    fixed, kept = _fixed(labels, active, classes)
    relabelled = int((fixed[kept] != labels[kept]).sum()) if exclusive else 0
    changed = replace(train, labels=fixed)
    changed = changed if kept.all() else changed.take(np.flatnonzero(kept), train.name)
    emptied = (train.class_counts(len(classes)) > 0) & (changed.class_counts(len(classes)) == 0)
    _raise_if_wrong(
        fixes.path, {"classes that would lose all training images": [classes[int(c)] for c in np.flatnonzero(emptied)]}
    )
    counted = replace(
        fixes,
        relabelled=relabelled,
        dropped=int((~kept).sum()),
        held_out=sum(name in named and fix.action != "keep" for name, fix in listed),
    )
    return counted, changed


def _are_exclusive(labels: Targets) -> bool:
    """Return whether labels are class indices, which can be replaced by another class."""
    return labels.ndim == 1 and labels.dtype.kind == "i"


def _wrong_labels(fixes: FixList, classes: Sequence[str], targets: Targets) -> dict[str, list[str]]:
    """Return the mistakes in the labels of rows to relabel."""
    labels = {name: fix.label for name, fix in fixes.fixes.items() if fix.action == "relabel"}
    if not _are_exclusive(targets):
        return {"images to relabel, but without exclusive classes they can only be dropped or kept": list(labels)}
    unknown = sorted(set(labels.values()) - set(classes))
    hint = nearest(unknown[0], classes) if unknown else ""
    return {f"unknown classes{hint}": unknown}


def _fixed(labels: Targets, active: Mapping[int, Fix], classes: Sequence[str]) -> tuple[Targets, NDArray[np.bool_]]:
    """Return the labels with those of relabelled rows replaced, and which rows are not dropped [N]."""
    index_of = {name: index for index, name in enumerate(classes)}
    fixed, kept = labels.copy(), np.ones(len(labels), bool)
    for row, fix in active.items():
        if fix.action == "drop":
            kept[row] = False
        else:
            fixed[row] = index_of[fix.label]
    return fixed, kept


def fix_predictions(fixes: FixList, predicted: Predictions) -> Predictions | None:
    """Return labelled predictions without blocks with the list applied to their rows; None if it changes none.

    Raises:
        DataError: lists all unknown labels.
    """
    targets = predicted.known_targets()
    _raise_if_wrong(fixes.path, _wrong_labels(fixes, predicted.classes, targets))
    rows = {row: fixes.fixes[name] for row, name in enumerate(predicted.ids.tolist()) if name in fixes.fixes}
    active = {row: fix for row, fix in rows.items() if fix.action != "keep"}
    fixed, kept = _fixed(targets, active, predicted.classes)
    if not active or not kept.any():
        return None
    return replace(predicted, targets=fixed).take(np.flatnonzero(kept))


def fixes_of(run: Run) -> FixList | None:
    """Return the fix list that a run was trained with, from its folder; None if it had none.

    Raises:
        DataError: its copy is missing or damaged.
    """
    return read_fixes(run.path / FIXES) if "fixes" in run.provenance() else None


def shared_fixes(trained: Sequence[Run]) -> FixList | None:
    """Return the fix list that all runs were trained with; None if they had none, or different ones.

    Raises:
        DataError: see `fixes_of`.
    """
    hashes = {run.provenance().get("fixes", {}).get("sha256") for run in trained}
    return fixes_of(trained[0]) if len(hashes) == 1 else None
