"""Validate a submission file: problems make it invalid, findings make it suspicious. Torch-free."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from comp.results import files, records, runs
from comp.runtime.errors import SubmissionError
from comp.submission import check_content, check_format, csv_io
from comp.submission.check_content import Finding
from comp.submission.format import SubmissionFormat


@dataclass(frozen=True)
class SubmissionReport:
    """The result of validating a submission.

    Attributes:
        path: the CSV.
        rows: its number of rows.
        problems: what makes it invalid, worst first.
        findings: reasons not to trust a valid file, and notes.
        agreement: share of rows with the same answer as the earlier submission; None without one.
    """

    path: Path
    rows: int
    problems: tuple[str, ...]
    findings: tuple[Finding, ...] = ()
    agreement: float | None = None

    @property
    def misleading(self) -> tuple[str, ...]:
        """The findings that must stop the submission."""
        return tuple(finding.what for finding in self.findings if finding.verdict == "misleads")

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "path": str(self.path),
            "rows": self.rows,
            "problems": self.problems,
            "doubts": [asdict(finding) for finding in self.findings],
            "agreement": self.agreement,
            "submission": str(self.path),
            "valid": not self.problems,
        }

    def raise_if_invalid(self, hint: str = "") -> None:
        """Refuse an invalid or misleading file.

        Raises:
            SubmissionError: lists all problems, or all misleading findings followed by the hint.
        """
        if self.problems:
            raise SubmissionError("\n  ".join((f"{self.path}: not a valid submission", *self.problems)))
        if self.misleading:
            heading = f"{self.path}: valid format, but its answers look wrong"
            raise SubmissionError("\n  ".join((heading, *self.misleading)) + hint)


def read_sidecar_format(path: Path) -> SubmissionFormat:
    """Return the format in a submission's sidecar.

    Raises:
        SubmissionError: the submission or its sidecar is missing, or the sidecar is damaged.
    """
    sidecar = runs.sidecar_path(path)
    if not path.is_file():
        raise SubmissionError(f"{path}: no such submission")
    if not sidecar.exists():
        raise SubmissionError(
            f"{path}: no sidecar {sidecar.name} with its format; use --format with a config or a sample submission"
        )
    return SubmissionFormat.from_json(records.read_sidecar(sidecar).get("format", {}), sidecar)


def validate_submission(
    path: Path,
    form: SubmissionFormat,
    *,
    training: Sequence[int] = (),
    against: Path | None = None,
    notes: Sequence[str] = (),
) -> SubmissionReport:
    """Check a submission's format and content.

    Args:
        path: the CSV.
        form: its format.
        training: training images per class; empty: the sidecar's counts, if there is one.
        against: an earlier submission of the same format.
        notes: assumptions about the format.

    Raises:
        SubmissionError: a file cannot be read as a CSV, or the earlier submission is invalid.
    """
    cells = csv_io.read_strict(path)
    checked = check_format.check_table(cells, form)
    if checked.table is None:
        return SubmissionReport(path, len(cells), checked.problems, tuple(Finding(note, "note") for note in notes))
    findings = [Finding(note, "note") for note in (*notes, *checked.notes)]
    sidecar_path = runs.sidecar_path(path)
    sidecar = files.read_json(sidecar_path) if sidecar_path.exists() else {}
    findings += check_content.check_class_texts(_add_classes(form, sidecar), derived=bool(form.classes))
    findings += check_content.check_distribution(checked.table, form, training or _training_counts(sidecar))
    if "sha256" in sidecar and sidecar["sha256"] != files.sha256_file(path):
        findings.append(Finding(f"altered: the file has changed since {sidecar_path.name} was written", "note"))
    if against is None:
        return SubmissionReport(path, len(cells), (), tuple(findings))
    earlier = check_format.check_table(csv_io.read_strict(against), form)
    if earlier.table is None:
        raise SubmissionError(f"--against {against}: not a valid submission of this format: {earlier.problems[0]}")
    ends = np.cumsum([block.count for block in form.blocks])
    blocks = [
        (block.name, slice(int(end) - block.count, int(end))) for block, end in zip(form.blocks, ends, strict=True)
    ]
    agreement, more = check_content.check_agreement(checked.table, earlier.table, form, blocks)
    return SubmissionReport(path, len(cells), (), (*findings, *more), agreement)


def find_doubts(path: Path) -> list[Finding]:
    """Return why the answers of a submission that comp wrote may be worthless: constant, lopsided, or without a class.

    Raises:
        SubmissionError: the file or its sidecar is missing or damaged.
    """
    form = read_sidecar_format(path)
    checked = check_format.check_table(csv_io.read_strict(path), form)
    if checked.table is None:
        return []
    training = _training_counts(files.read_json(runs.sidecar_path(path)))
    return check_content.check_distribution(checked.table, form, training)


def _add_classes(form: SubmissionFormat, sidecar: Mapping[str, Any]) -> SubmissionFormat:
    """Return the format with the training labels; for a version 1 sidecar they come from its run's provenance."""
    if form.blocks:
        return replace(form, classes=())  # blocks hold class numbers by the challenge's own rule
    provenance = Path(str(sidecar.get("run_path", ""))) / "provenance.json"
    if form.classes or "run_path" not in sidecar or not provenance.is_file():
        return form
    classes = files.read_json(provenance).get("classes")
    return replace(form, classes=tuple(map(str, classes))) if isinstance(classes, list) else form


def _training_counts(sidecar: Mapping[str, Any]) -> Sequence[int]:
    """Return the training images per class that a sidecar holds; empty if it has none, or no list of numbers."""
    counts = sidecar.get("training_counts", ())
    return counts if isinstance(counts, list) and all(isinstance(count, int) and count >= 0 for count in counts) else ()
