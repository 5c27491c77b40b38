"""All that can be said of a submission's file: what makes it invalid, and what makes it doubtful. Torch-free."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from comp import runs
from comp.competition import checking, doubts, formats, submission, tables
from comp.competition.doubts import Doubt
from comp.competition.spec import SubmissionFormat
from comp.errors import SubmissionError


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
    doubts: tuple[Doubt, ...] = ()
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
    sidecar = submission.sidecar_path(path)
    if not path.is_file():
        raise SubmissionError(f"{path}: no such submission")
    if not sidecar.exists():
        raise SubmissionError(
            f"{path}: has no sidecar {sidecar.name} that tells its format; give --format CONFIG, or a sample submission"
        )
    return formats.from_json(runs.read_json(sidecar).get("format", {}), sidecar)


def judge(
    path: Path, wanted: SubmissionFormat, *, training: Sequence[int] = (), against: Path | None = None
) -> Verdict:
    """Check a submission and look for reasons not to trust it.

    Args:
        path: of the CSV.
        wanted: its format.
        training: how many training images each class has; empty: what its sidecar says, if there is one.
        against: an earlier submission of the same format.

    Raises:
        SubmissionError: one of the files cannot be read as a CSV, or the earlier one is not valid.
    """
    table = tables.read(path)
    problems = checking.check_table(table, wanted)
    if problems:
        return Verdict(path, len(table), tuple(problems))
    beside = submission.sidecar_path(path)
    sidecar = runs.read_json(beside) if beside.exists() else {}
    said = doubts.answers(table, wanted)
    found = doubts.of_one(said, wanted, training or sidecar.get("training_counts", ()))
    if "sha256" in sidecar and sidecar["sha256"] != runs.sha256(path):
        found.append(Doubt(f"altered: it is not the file that {beside.name} was written for", "note"))
    if against is None:
        return Verdict(path, len(table), (), tuple(found))
    before = tables.read(against)
    if spoilt := checking.check_table(before, wanted):
        raise SubmissionError(f"--against {against}: not a valid submission of this format: {spoilt[0]}")
    ends = np.cumsum([block.count for block in wanted.blocks])
    blocks = [
        (block.name, slice(int(end) - block.count, int(end))) for block, end in zip(wanted.blocks, ends, strict=True)
    ]
    agreement, more = doubts.of_two(said, doubts.answers(before, wanted), blocks)
    return Verdict(path, len(table), (), (*found, *more), agreement)
