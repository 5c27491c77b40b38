"""All that can be said of a submission's file: what makes it invalid, and what makes it doubtful. Torch-free."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from comp.results import files, runs
from comp.runtime.errors import SubmissionError
from comp.submission import check_content, check_format, csv_io, derive_format
from comp.submission.check_content import Finding
from comp.submission.format import SubmissionFormat


@dataclass(frozen=True)
class Verdict:
    """What is to be said of a file.

    Attributes:
        path: of the CSV.
        rows: how many it has.
        problems: what makes it invalid, worst first.
        doubts: what makes a valid one worthless, or suspicious.
        agreement: share of rows that say the same as the earlier submission; None where there is none to compare.
    """

    path: Path
    rows: int
    problems: tuple[str, ...]
    doubts: tuple[Finding, ...] = ()
    agreement: float | None = None

    @property
    def misleading(self) -> tuple[str, ...]:
        """The doubts that should stop it."""
        return tuple(doubt.what for doubt in self.doubts if doubt.verdict == "misleads")

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {**asdict(self), "submission": str(self.path), "path": str(self.path), "valid": not self.problems}

    def demand(self, mend: str = "") -> None:
        """Refuse an invalid or misleading file.

        Raises:
            SubmissionError: all that is wrong.
        """
        if self.problems:
            raise SubmissionError("\n  ".join((f"{self.path}: not a valid submission", *self.problems)))
        if self.misleading:
            raise SubmissionError(
                "\n  ".join((f"{self.path}: valid in form, but its score would be chance", *self.misleading)) + mend
            )


def format_beside(path: Path) -> SubmissionFormat:
    """Return the format that a submission's sidecar holds.

    Raises:
        SubmissionError: the submission is missing, or has no sidecar, or that was altered.
    """
    sidecar = runs.sidecar_path(path)
    if not path.is_file():
        raise SubmissionError(f"{path}: no such submission")
    if not sidecar.exists():
        raise SubmissionError(
            f"{path}: has no sidecar {sidecar.name} that tells its format; give --format CONFIG, or a sample submission"
        )
    return derive_format.from_json(files.read_json(sidecar).get("format", {}), sidecar)


def validate(
    path: Path,
    form: SubmissionFormat,
    *,
    training: Sequence[int] = (),
    against: Path | None = None,
    notes: Sequence[str] = (),
) -> Verdict:
    """Check a submission and look for reasons not to trust it.

    Args:
        path: of the CSV.
        form: its format.
        training: how many training images each class has; empty: what its sidecar says, if there is one.
        against: an earlier submission of the same format.
        notes: what was assumed of the format.

    Raises:
        SubmissionError: one of the files cannot be read as a CSV, or the earlier one is not valid.
    """
    checked = check_format.check_table(cells := csv_io.read(path), form)
    if checked.table is None:
        return Verdict(path, len(cells), checked.problems, tuple(Finding(note, "note") for note in notes))
    beside = runs.sidecar_path(path)
    sidecar = files.read_json(beside) if beside.exists() else {}
    findings = [Finding(note, "note") for note in (*notes, *checked.notes)]
    findings += check_content.check_texts(_with_classes(form, sidecar), derived=bool(form.classes))
    findings += check_content.check_distribution(checked.table, form, training or sidecar.get("training_counts", ()))
    if "sha256" in sidecar and sidecar["sha256"] != files.sha256_file(path):
        findings.append(Finding(f"altered: it is not the file that {beside.name} was written for", "note"))
    if against is None:
        return Verdict(path, len(cells), (), tuple(findings))
    earlier = check_format.check_table(csv_io.read(against), form)
    if earlier.table is None:
        raise SubmissionError(f"--against {against}: not a valid submission of this format: {earlier.problems[0]}")
    ends = np.cumsum([block.count for block in form.blocks])
    blocks = [
        (block.name, slice(int(end) - block.count, int(end))) for block, end in zip(form.blocks, ends, strict=True)
    ]
    agreement, more = check_content.check_agreement(checked.table, earlier.table, form, blocks)
    return Verdict(path, len(cells), (), (*findings, *more), agreement)


def _with_classes(form: SubmissionFormat, sidecar: Mapping[str, Any]) -> SubmissionFormat:
    """Return a format with the training labels; of a sidecar of version 1 they stand in its run's provenance."""
    provenance = Path(str(sidecar.get("run_path", ""))) / "provenance.json"
    # Blocks hold class numbers by the challenge's own rule.
    if form.classes or form.blocks or "run_path" not in sidecar or not provenance.is_file():
        return replace(form, classes=()) if form.blocks else form
    return replace(form, classes=tuple(files.read_json(provenance).get("classes", ())))
