"""Leaderboard analysis: which differences are significant, whether validation predicts public scores, and which two
submissions to choose. Torch-free; predictions and submissions are read from disk.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from comp.results import leaderboard, prediction_files, runs, stats
from comp.results.final_submissions import (
    CLOSE,
    ESTIMATES,
    FinalSubmission,
    Submission,
    choose_final,
    list_submissions,
    measure_disagreement,
    read_lines,
)
from comp.results.leaderboard import LeaderboardRow
from comp.results.prediction_files import Correctness
from comp.results.stats import Interval, ScoreDifference
from comp.runtime.errors import RunError, plural

_Kind = tuple[str, str, bool, tuple[str, ...]]  # task, metric, groups, classes: runs are compared within one kind
# A column of `LeaderboardRow` -> the split it scores, and the column with its number of independent images.
_SPLITS = {
    "val_accuracy": ("val", "val_images"),
    "ood_accuracy": ("ood_val", "ood_images"),
    "test_accuracy": ("test", ""),
    "suite_accuracy": ("suite", ""),
}
_MAX_PAIRED = 20  # rows whose predictions are read: two files and some milliseconds each
MIN_PAIRS = 4  # for a rank correlation with an interval


@dataclass(frozen=True)
class Agreement:
    """Rank correlation between an estimate and the public scores.

    Attributes:
        column: of ESTIMATES.
        correlation: Spearman's.
        interval: of the correlation.
        count: number of submissions.
    """

    column: str
    correlation: float
    interval: Interval
    count: int


@dataclass(frozen=True)
class ValidationWarning:
    """The submission with the best validation is significantly below another one in public.

    Attributes:
        column: of ESTIMATES, the validation.
        best_validated: the submission that is best by it.
        best_public: the submission with the best public score.
        difference: of their public scores.
    """

    column: str
    best_validated: str
    best_public: str
    difference: ScoreDifference


@dataclass(frozen=True)
class LeaderboardAnalysis:
    """Everything the leaderboard prints below its table.

    Attributes:
        above: each row's difference to the row above it; None for the first row, or where it is unknown.
        agreements: one for each estimate.
        warning: None unless validation is misleading.
        final: up to two suggested submissions, the best first.
        close: number of submissions close to the best among which the second was chosen.
        scored: number of submissions with a public score.
        missing: number of submissions that are not suggested because their CSV is gone.
        limits: what is not compared, and why.
    """

    above: tuple[ScoreDifference | None, ...] = ()
    agreements: tuple[Agreement, ...] = ()
    warning: ValidationWarning | None = None
    final: tuple[FinalSubmission, ...] = ()
    close: int = 0
    scored: int = 0
    missing: int = 0
    limits: tuple[str, ...] = ()

    def sentences(self) -> Iterator[str]:
        """Yield the lines below the table."""
        yield from self.limits
        if 0 < self.scored < MIN_PAIRS:
            yield f"public scores recorded: {self.scored}; {MIN_PAIRS} or more show whether to trust validation"
        for agreement in self.agreements:
            low, high = agreement.interval.low, agreement.interval.high
            yield (
                f"{ESTIMATES[agreement.column]} vs. public score, {agreement.count} submissions: rank correlation "
                f"{agreement.correlation:.2f} ({low:.2f} to {high:.2f})"
                f"{', not significant' if 0 in agreement.interval else ''}"
            )
        if self.warning:
            warning = self.warning
            yield (
                f"warning: {warning.best_validated} is best by {ESTIMATES[warning.column]}, but its public score is "
                f"significantly below {warning.best_public} (by {warning.difference.value:.4f}); validation may be "
                "overfitted, or its shift differs from the test's"
            )
        yield from self._final_sentences()

    def _final_sentences(self) -> Iterator[str]:
        if not self.final:
            if self.missing:
                yield f"no final submissions to suggest: all {self.missing} recorded CSV files are missing or replaced"
            return
        yield "suggested final submissions:"
        for number, submission in enumerate(self.final, 1):
            reason = ""
            if submission.disagreement is not None:
                reason = f"; differs from 1. in {submission.disagreement:.1%} of rows"
                if self.close > 1:
                    reason += f", the most of {self.close} that score within {CLOSE} of it"
            yield f"  {number}. {submission.describe()}{reason}"


def analyze_leaderboard(rows: Sequence[LeaderboardRow], sort: str) -> LeaderboardAnalysis:
    """Return the analysis of one competition's leaderboard.

    Only runs of the most frequent task, metric and classes are compared; others are listed.

    Args:
        rows: sorted, as `comp.results.leaderboard.read_rows` returns them.
        sort: the column they are sorted by, or `auto`.
    """
    column = next(iter(leaderboard.sort_columns(rows, sort).values()), sort)
    kinds = [(row.task, row.metric, bool(row.group_answer), read_classes(row)) for row in rows]
    main_kind = Counter(kinds).most_common(1)[0][0] if kinds else None
    main_rows = [row for row, kind in zip(rows, kinds, strict=True) if kind == main_kind]
    submissions = list(list_submissions(main_rows))
    scored = [submission for submission in submissions if submission.public is not None]
    existing = [submission for submission in submissions if submission.exists]
    final, close = choose_final(existing)
    above = _differences(rows, kinds, column)
    return LeaderboardAnalysis(
        above=above,
        agreements=tuple(_agreements(scored)),
        warning=_validation_warning(scored),
        final=final,
        close=close,
        scored=len(scored),
        missing=len(submissions) - len(existing),
        limits=tuple(_limits(rows, kinds, column, above)),
    )


def _limits(
    rows: Sequence[LeaderboardRow], kinds: Sequence[_Kind], column: str, above: Sequence[ScoreDifference | None]
) -> Iterator[str]:
    """Yield which runs are not compared, and which metrics have no intervals."""
    if len(rows) < 2:
        return
    ((_, metric, _, classes), count), *other_kinds = Counter(kinds).most_common()
    if other_kinds:
        grouped = ", or one answer a group of images" if len({bool(row.group_answer) for row in rows}) > 1 else ""
        yield (
            f"compared: the {plural(count, 'run')} with metric {metric} and "
            f"{plural(len(classes), 'class', 'classes')}; listed only: "
            f"{len(rows) - count:,} with another task, metric or classes{grouped}"
        )
    if metric != "accuracy" and not any(above) and column.endswith(("metric", "score")):
        yield (
            f"{metric} has no intervals and no label-free estimates: differences are not marked, and submissions are "
            "suggested by public score only; record it: comp leaderboard record"
        )


def read_classes(row: LeaderboardRow) -> tuple[str, ...]:
    """Return a run's classes, sorted by name; none if its provenance.json cannot be read."""
    try:
        return tuple(sorted(runs.Run(Path(row.run)).provenance("classes")["classes"]))
    except RunError:
        return ()


def read_correctness(row: LeaderboardRow, split: str) -> Correctness | None:
    """Load which images of a labelled split a run predicts correctly; None if its predictions are gone."""
    suffix = row.variant if split in ("test", "suite") or not row.is_own else ""
    return prediction_files.find_correctness(Path(row.run) / "predictions" / f"{split}{suffix}.npz")


def _differences(
    rows: Sequence[LeaderboardRow], kinds: Sequence[_Kind], sort_column: str
) -> tuple[ScoreDifference | None, ...]:
    """Return each row's difference to the row above it, negative or 0."""
    if sort_column == "public_score":
        return _public_differences(rows, kinds)
    differences: list[ScoreDifference | None] = [None] * len(rows)
    upper: Correctness | None = None
    for index, row in enumerate(rows):
        column = _accuracy_column(row, sort_column)
        if column not in _SPLITS or getattr(row, column) is None:
            upper = None
            continue
        split, count_column = _SPLITS[column]
        lower = read_correctness(row, split) if index < _MAX_PAIRED else None
        if index and kinds[index] == kinds[index - 1] and getattr(rows[index - 1], column) is not None:
            differences[index] = _difference(rows[index - 1], row, column, count_column, upper, lower)
        upper = lower
    return tuple(differences)


def _accuracy_column(row: LeaderboardRow, column: str) -> str:
    """Return the column sorted by; the accuracy column, which has intervals, if the metric is accuracy."""
    if column.endswith("_metric") and row.metric == "accuracy":
        return column.removesuffix("metric") + "accuracy"
    return column


def _difference(
    upper_row: LeaderboardRow,
    lower_row: LeaderboardRow,
    column: str,
    count_column: str,
    upper: Correctness | None,
    lower: Correctness | None,
) -> ScoreDifference | None:
    if upper is not None and lower is not None and upper.has_same_rows(lower):
        assert upper.correct is not None
        assert lower.correct is not None
        return stats.paired_difference(lower.correct, upper.correct, lower.images)
    counts = [getattr(row, count_column) for row in (upper_row, lower_row)] if count_column else []
    if counts and all(counts):
        return stats.unpaired_difference(getattr(lower_row, column), getattr(upper_row, column), min(counts))
    return None


def _public_differences(rows: Sequence[LeaderboardRow], kinds: Sequence[_Kind]) -> tuple[ScoreDifference | None, ...]:
    differences: list[ScoreDifference | None] = [None] * len(rows)
    upper: Submission | None = None
    upper_lines: list[bytes] = []
    for index, row in enumerate(rows[:_MAX_PAIRED]):
        submissions = list_submissions([row])
        lower = next((submission for submission in submissions if submission.path == row.submission), None)
        lines = read_lines(lower.path) if lower else []
        if lower and upper and kinds[index] == kinds[index - 1]:
            differences[index] = _public_difference(lower, upper, measure_disagreement(lines, upper_lines))
        upper, upper_lines = lower, lines
    return tuple(differences)


def _public_difference(first: Submission, second: Submission, disagreement: float | None) -> ScoreDifference | None:
    """Return how far the first is above the second in public; None if no interval can be computed."""
    if first.public is None or second.public is None or first.row.metric != "accuracy":
        return None
    if not (first.public_rows and second.public_rows):
        return None
    count = min(first.public_rows, second.public_rows)
    if disagreement is None:
        return stats.unpaired_difference(first.public, second.public, count)
    return stats.bounded_difference(first.public, second.public, disagreement, count)


def _agreements(scored: Sequence[Submission]) -> Iterator[Agreement]:
    for column in ESTIMATES:
        estimated = [submission for submission in scored if column in submission.estimates]
        if len(estimated) >= MIN_PAIRS:
            public = [submission.public for submission in estimated if submission.public is not None]
            estimates = [submission.estimates[column] for submission in estimated]
            rho, interval = stats.rank_correlation(estimates, public)
            yield Agreement(column, rho, interval, len(estimated))


def _validation_warning(scored: Sequence[Submission]) -> ValidationWarning | None:
    """Return a warning by the best estimate that all scored submissions have."""
    column = next((name for name in ESTIMATES if scored and all(name in entry.estimates for entry in scored)), None)
    if column is None:
        return None
    validated = max(scored, key=lambda submission: submission.estimates[column])
    leader = max(scored, key=lambda submission: submission.public or 0.0)
    disagreement = measure_disagreement(read_lines(leader.path), read_lines(validated.path))
    difference = _public_difference(leader, validated, disagreement)
    if difference is None or not difference.is_real or difference.value <= 0:
        return None
    return ValidationWarning(column, validated.path, leader.path, difference)
