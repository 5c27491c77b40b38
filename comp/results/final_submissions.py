"""Final submissions: what is known about each submission, and which two to suggest. Torch-free."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from comp.results import files, prediction_files, runs
from comp.results.leaderboard import LeaderboardRow, PublicScore
from comp.results.runs import sidecar_path
from comp.runtime.errors import RunError

# A column of `LeaderboardRow` that predicts a submission's public score -> its name in sentences, the best guide first.
ESTIMATES = {
    "expected_accuracy": "estimated accuracy (no labels)",
    "ood_accuracy": "shifted validation",
    "val_accuracy": "clean validation",
}
CLOSE = 0.01  # submissions this close to the best are worth choosing for being different
_MAX_RANKED = 100  # submissions that may be as good as the best
_MAX_COMPARED = 10  # submissions whose rows are read


@dataclass(frozen=True)
class Sidecar:
    """The JSON file beside a submission.

    Attributes:
        made_by: how its predictions were made: views, adaptation, images.
        variant: the same as a file suffix such as `+flip`; empty for plain predictions.
        scored: whether a score was recorded for this very file; a rewritten submission has none.
    """

    made_by: dict[str, Any]
    variant: str
    scored: bool


@dataclass(frozen=True)
class Submission:
    """A submission and its run.

    Attributes:
        row: the run's leaderboard row.
        path: the CSV.
        public: its public score as a value to maximize; None if none is recorded.
        public_rows: number of rows the public score counts.
        sidecar: None if it is missing or belongs to another run.
        exists: whether the CSV is there and no other run wrote it.
        estimates: column of ESTIMATES -> value, for predictions made the same way.
    """

    row: LeaderboardRow
    path: str
    public: float | None
    public_rows: int | None
    sidecar: Sidecar | None
    exists: bool
    estimates: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class FinalSubmission:
    """A submission suggested as one of the final two.

    Attributes:
        path: the CSV.
        score: its expected final score.
        source: where the score comes from: `public_score`, or a column of ESTIMATES corrected by the mean difference
            between public scores and that column.
        disagreement: share of rows that differ from the first choice; None for the first, or if files cannot be
            compared.
        correction: what is added to the estimate in `score`.
    """

    path: str
    score: float
    source: str
    disagreement: float | None = None
    correction: float = 0.0

    def describe(self) -> str:
        """Return the path and where its score comes from."""
        if self.source == "public_score":
            return f"{self.path}: public score {self.score:.4f}"
        text = f"{self.path}: {ESTIMATES[self.source]} {self.score - self.correction:.4f}"
        return f"{text}, {self.correction:+.4f} as public scores suggest" if self.correction else text


def list_submissions(rows: Sequence[LeaderboardRow]) -> Iterator[Submission]:
    """Yield the submissions of all runs: the recorded ones, and the latest if it has no score yet."""
    for row in rows:
        latest: dict[str, PublicScore] = {score.path: score for score in row.submitted}
        if row.submission and row.submission not in latest:
            latest[row.submission] = PublicScore(row.submission, None, None, None, "")
        for path, score in latest.items():
            if not path:
                continue
            sidecar = read_sidecar(row, path)
            scores = row.estimates.get(sidecar.variant, {}) if sidecar else {}
            estimates = {column: scores[column] for column in ESTIMATES if column in scores}
            public = None if score.public is None else _as_maximize(row, score.public)
            exists = Path(path).is_file() and (sidecar is not None or not sidecar_path(Path(path)).is_file())
            if public is not None and sidecar is not None and not sidecar.scored:  # rewritten since it was scored
                yield Submission(row, path, None, None, sidecar, exists, estimates)
                exists = False
            yield Submission(row, path, public, score.rows, sidecar, exists, estimates)


def _as_maximize(row: LeaderboardRow, score: float) -> float:
    """Return a score in the competition's metric so that higher is better; applied twice, the score itself."""
    return score if row.higher_is_better else -score


def read_sidecar(row: LeaderboardRow, path: str) -> Sidecar | None:
    """Return the sidecar of a run's submission; None if it is missing, damaged or belongs to another run."""
    try:
        values = files.read_json(sidecar_path(Path(path)))
        made_by = dict(values.get("made_by", {}))
        variant = prediction_files.variant_suffix(made_by)
    except (RunError, TypeError, ValueError):
        return None
    if values.get("run") != runs.Run(Path(row.run)).name:
        return None
    return Sidecar(made_by, variant, scored="scores" in values or "sent" in values)


def choose_final(submissions: Sequence[Submission]) -> tuple[tuple[FinalSubmission, ...], int]:
    """Return the best submission, then the one within CLOSE of it that differs most, and how many were that close.

    One whose answers are all equal to the best's is left out.
    """
    ranked = sorted(_expected_scores(submissions), key=lambda candidate: -candidate[0])
    candidates = list(islice(_with_own_suite(ranked), _MAX_RANKED))
    if len(candidates) < 2:
        return tuple(choice for _, choice in candidates), 0
    (best, first), rest = candidates[0], candidates[1:]
    close = [choice for score, choice in rest if score >= best - CLOSE]
    lines, compared = read_lines(first.path), []
    for choice in close[:_MAX_COMPARED]:
        disagreement = measure_disagreement(lines, read_lines(choice.path))
        if disagreement:
            compared.append(replace(choice, disagreement=disagreement))
    if compared:
        return (first, max(compared, key=lambda choice: choice.disagreement or 0.0)), len(compared)
    second = next((choice for _, choice in rest if measure_disagreement(lines, read_lines(choice.path)) != 0), None)
    return (first,) if second is None else (first, second), 0


def _expected_scores(submissions: Sequence[Submission]) -> Iterator[tuple[float, FinalSubmission, Submission]]:
    """Yield each submission's expected final score as a value to maximize: its public score, else its first estimate
    plus the mean difference between the public scores of others and that estimate.
    """
    corrections: dict[str, float] = {}
    for column in ESTIMATES:
        gaps = [s.public - s.estimates[column] for s in submissions if s.public is not None and column in s.estimates]
        corrections[column] = float(np.mean(gaps)) if gaps else 0.0
    for submission in submissions:
        row, path, public = submission.row, submission.path, submission.public
        if public is not None:
            yield public, FinalSubmission(path, _as_maximize(row, public), "public_score"), submission
        elif row.metric == "accuracy" and submission.estimates:
            column, value = next(iter(submission.estimates.items()))
            correction = corrections[column]
            score = value + correction
            yield score, FinalSubmission(path, score, column, correction=correction), submission


def _with_own_suite(
    ranked: Sequence[tuple[float, FinalSubmission, Submission]],
) -> Iterator[tuple[float, FinalSubmission]]:
    """Leave out submissions whose score was estimated on other images than they predict."""
    for score, choice, submission in ranked:
        sidecar = submission.sidecar
        if choice.source != "public_score" and sidecar is not None:
            path = Path(submission.row.run) / "predictions" / f"suite{sidecar.variant}.npz"
            stored = prediction_files.read_made_by(path) or sidecar.made_by  # the run's predictions may be gone
            if stored.get("images") != sidecar.made_by.get("images"):
                continue
        yield score, choice


def read_lines(path: str) -> list[bytes]:
    """Return a submission's lines; none if the file is missing."""
    try:
        return Path(path).read_bytes().split(b"\n")
    except OSError:
        return []


def measure_disagreement(lines: list[bytes], other_lines: list[bytes]) -> float | None:
    """Return the share of rows whose answers differ; None if two submissions have other ids or columns.

    A full suite has a million rows: whole lines are compared, and only differing ones are parsed.
    """
    header, rows = lines[:1], len(lines) - 2  # without the header and the empty text after the last newline
    if rows < 1 or len(lines) != len(other_lines) or header != other_lines[:1]:
        return None
    columns, differing = header[0].count(b",") + 1, 0
    for line, other_line in zip(lines, other_lines, strict=True):
        if line != other_line:
            (key, answer), (other_key, other_answer) = _parse_line(line, columns), _parse_line(other_line, columns)
            if key != other_key:
                return None
            differing += answer != other_answer
    return differing / rows


def _parse_line(line: bytes, columns: int) -> tuple[bytes, bytes | int]:
    """Return a line's id and answer; for probabilities, the index of the largest."""
    if columns == 2:
        key, _, answer = line.rpartition(b",")
        return key, answer
    key, *probabilities = line.rsplit(b",", columns - 1)
    return key, max(range(len(probabilities)), key=lambda index: _to_float(probabilities[index]), default=0)


def _to_float(text: bytes) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0
