"""What a competitor wants to know of a leaderboard, in sentences: which differences are real, whether validation can
be trusted, which two submissions to end with. Torch-free; what was predicted and submitted is read from disk.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

import numpy as np

from comp.results import leaderboard, metrics, stats
from comp.results.evidence import (
    RunCorrectness,
    Sidecar,
    classes_of,
    disagreement_of,
    is_of_suite,
    read_correctness,
    read_lines,
    read_sidecar,
)
from comp.results.leaderboard import LeaderboardRow, PublicScore
from comp.results.runs import sidecar_path
from comp.results.stats import Interval, ScoreDifference

_Kind = tuple[str, str, tuple[str, ...]]  # task, metric and classes: what runs must share to be compared
# A score -> whose predictions it is of, and how many independent images it counts.
_PREDICTED = {
    "val_accuracy": ("val", "val_images"),
    "ood_accuracy": ("ood_val", "ood_images"),
    "test_accuracy": ("test", ""),
    "suite_accuracy": ("suite", ""),
}
# What is known of a submission before its public score is, the most telling first.
_BEFORE = {
    "expected_accuracy": "the expected score",
    "ood_accuracy": "shifted validation",
    "val_accuracy": "clean validation",
}
_MOST_PAIRED = 20  # rows whose predictions are read: two files and some milliseconds each
_MOST_RANKED = 100  # submissions that may be as good as the best
_MOST_COMPARED = 10  # submissions that are read to see where they differ
_GOOD = 0.01  # as near to the best as this, a submission is worth a place for being different
_FEWEST_PAIRS = 4  # for a rank correlation with an interval


@dataclass(frozen=True)
class Agreement:
    """How one kind of validation orders the submissions, against their public scores.

    Attributes:
        column: of `Row`.
        correlation: Spearman's.
        interval: of it.
        count: submissions.
    """

    column: str
    correlation: float
    interval: Interval
    count: int


@dataclass(frozen=True)
class Warned:
    """The submission that validates best is in public below another by more than chance.

    Attributes:
        column: of `Row`, what it validates best by.
        best_validated: its submission.
        best_public: the submission that is above it.
        difference: of their public scores.
    """

    column: str
    best_validated: str
    best_public: str
    difference: ScoreDifference


@dataclass(frozen=True)
class FinalSubmission:
    """A submission that could be one of the final two.

    Attributes:
        submission: the CSV.
        score: that it is expected to end with.
        told_by: what tells that: `public_score`, or a column of validation, moved by what public scores were off.
        disagreement: with the first choice, share of rows; None for the first, or where files cannot be compared.
    """

    submission: str
    score: float
    told_by: str
    disagreement: float | None = None


@dataclass(frozen=True)
class LeaderboardAnalysis:
    """All that is to be said.

    Attributes:
        above: of each row, the difference to the row above it; None for the first, or where nothing tells.
        agreements: of each kind of validation.
        warned: None where validation did not mislead.
        final: the two to end with, the best first; fewer where there are no more.
        near: how many others, as good as the second must be, it was chosen from.
        scored: submissions with a public score.
        gone: submissions that are not advised, for their CSV is no longer there.
        limits: what is not said, and why.
    """

    above: tuple[ScoreDifference | None, ...] = ()
    agreements: tuple[Agreement, ...] = ()
    warned: Warned | None = None
    final: tuple[FinalSubmission, ...] = ()
    near: int = 0
    scored: int = 0
    gone: int = 0
    limits: tuple[str, ...] = ()

    def sentences(self) -> Iterator[str]:
        """Yield what is said below the table."""
        yield from self.limits
        if 0 < self.scored < _FEWEST_PAIRS:
            yield f"public scores so far: {self.scored}; with {_FEWEST_PAIRS} one sees whether to trust validation"
        for found in self.agreements:
            chance = ", which may be chance" if 0 in found.interval else ""
            yield (
                f"{_BEFORE[found.column]} and the public scores of {found.count} submissions: rank correlation "
                f"{found.correlation:.2f} ({found.interval.low:.2f} to {found.interval.high:.2f}){chance}"
            )
        if self.warned:
            yield (
                f"warning: {self.warned.best_validated} is best by {_BEFORE[self.warned.column]} and in public "
                f"{self.warned.difference.value:.4f} below {self.warned.best_public}, which is more than chance; "
                "validation may be overfitted, or shifts otherwise than the test does"
            )
        yield from self._of_the_final_two()

    def _of_the_final_two(self) -> Iterator[str]:
        if not self.final:
            if self.gone:
                yield f"nothing to end with: of {self.gone} submissions, as they were recorded, no CSV is here"
            return
        first, *others = self.final
        yield f"best to end with: {first.submission}, {_worth(first)}"
        for second in others:
            if second.disagreement is None:
                yield f"and with it: {second.submission}, {_worth(second)}"
            else:
                yield (
                    f"and with it: {second.submission}, {_worth(second)}; of {self.near} within {_GOOD} of the best it "
                    f"differs from it most, on {second.disagreement:.1%} of rows"
                )


def analyze_leaderboard(rows: Sequence[LeaderboardRow], sort: str) -> LeaderboardAnalysis:
    """Return what is to be said of a leaderboard of one competition.

    Runs of other tasks, metrics or classes than most have are listed, but not compared with those.

    Args:
        rows: as `comp.results.leaderboard.read_rows` sorts them.
        sort: by what.
    """
    column = next(iter(leaderboard.sort_columns(rows, sort).values()), sort)
    kinds = [(row.task, row.metric, classes_of(row)) for row in rows]
    most = Counter(kinds).most_common(1)[0][0] if kinds else None
    entries = list(_entries([row for row, kind in zip(rows, kinds, strict=True) if kind == most]))
    scored = [entry for entry in entries if entry.public is not None]
    here = [entry for entry in entries if entry.is_here]
    final, near = _final_two(here)
    above = _differences(rows, kinds, column)
    return LeaderboardAnalysis(
        above=above,
        agreements=tuple(_agreements(scored)),
        warned=_warning(scored),
        final=final,
        near=near,
        scored=len(scored),
        gone=len(entries) - len(here),
        limits=tuple(_limits(rows, kinds, column, above)),
    )


def _limits(
    rows: Sequence[LeaderboardRow], kinds: Sequence[_Kind], column: str, above: Sequence[ScoreDifference | None]
) -> Iterator[str]:
    """Yield what is not compared, and what there are no intervals or estimates of."""
    if len(rows) < 2:
        return
    ((_, metric, classes), count), *others = Counter(kinds).most_common()
    if others:
        yield (
            f"compared are {count:,} runs, of {metric} and {len(classes)} classes; {len(rows) - count:,} of another "
            "task, metric or classes are listed alone"
        )
    if metric != "accuracy" and not any(above) and column.endswith(("metric", "score")):
        yield (
            f"{metric} has no intervals and no estimates here: differences are not marked, and a submission is advised "
            "by its public score alone: comp leaderboard record"
        )


def _accuracy_column(row: LeaderboardRow, column: str) -> str:
    """Return the column sorted by; a metric's where that is accuracy is accuracy's, whose intervals are known."""
    if column.endswith("_metric") and row.metric == "accuracy":
        return column.removesuffix("metric") + "accuracy"
    return column


def skip_analysis(rows: Sequence[LeaderboardRow]) -> LeaderboardAnalysis:
    """Return nothing to say: of several competitions, scores cannot be compared."""
    return LeaderboardAnalysis(above=(None,) * len(rows))


@dataclass(frozen=True)
class _Entry:
    """A submission with the run that it is of.

    Attributes:
        row: of the run.
        path: of the CSV.
        public: its public score so that more is better, None where there is none.
        rows: that the public score counts.
        sidecar: what lies beside it, None where nothing does.
        is_here: whether the CSV is there, and none that another run wrote.
        before: column -> what was known of it before, predicted in its own way.
    """

    row: LeaderboardRow
    path: str
    public: float | None
    rows: int | None
    sidecar: Sidecar | None
    is_here: bool
    before: Mapping[str, float] = field(default_factory=dict)


def _entries(rows: Sequence[LeaderboardRow]) -> Iterator[_Entry]:
    """Yield the submissions of all runs: what was recorded of them, and the latest that was not."""
    for row in rows:
        latest: dict[str, PublicScore] = {one.path: one for one in row.submitted}
        if row.submission and row.submission not in latest:
            latest[row.submission] = PublicScore(row.submission, None, None, None, "")
        for path, one in latest.items():
            if not path:
                continue
            sidecar = read_sidecar(row, path)
            known = row.estimates.get(sidecar.variant, {}) if sidecar else {}
            before = {column: known[column] for column in _BEFORE if column in known}
            public = None if one.public is None else _upward(row, one.public)
            here = Path(path).is_file() and (sidecar is not None or not sidecar_path(Path(path)).is_file())
            if public is not None and sidecar is not None and not sidecar.scored:  # written anew since it was scored
                yield _Entry(row, path, None, None, sidecar, here, before)
                here = False
            yield _Entry(row, path, public, one.rows, sidecar, here, before)


def _upward(row: LeaderboardRow, score: float) -> float:
    """Return a score in the competition's metric so that more is better, or back from that."""
    return metrics.metric(row.metric).as_maximize(score)


def _differences(
    rows: Sequence[LeaderboardRow], kinds: Sequence[_Kind], sorted_by: str
) -> tuple[ScoreDifference | None, ...]:
    """Return each row's difference to the one above it; negative or 0, for that one is above."""
    found: list[ScoreDifference | None] = [None] * len(rows)
    if sorted_by == "public_score":
        return _public_differences(rows, kinds)
    above: RunCorrectness | None = None
    for place, row in enumerate(rows):
        column = _accuracy_column(row, sorted_by)
        if column not in _PREDICTED or getattr(row, column) is None:
            above = None
            continue
        name, counted = _PREDICTED[column]
        answers = read_correctness(row, name) if place < _MOST_PAIRED else None
        if place and kinds[place] == kinds[place - 1] and getattr(rows[place - 1], column) is not None:
            found[place] = _difference(rows[place - 1], row, column, counted, above, answers)
        above = answers
    return tuple(found)


def _difference(
    upper: LeaderboardRow,
    lower: LeaderboardRow,
    sort: str,
    counted: str,
    above: RunCorrectness | None,
    answers: RunCorrectness | None,
) -> ScoreDifference | None:
    if above is not None and answers is not None and above.same_images(answers):
        return stats.paired(answers.right, above.right, answers.images)
    images = [getattr(row, counted) for row in (upper, lower)] if counted else []
    if images and all(images):
        return stats.unpaired(getattr(lower, sort), getattr(upper, sort), min(images))
    return None


def _public_differences(rows: Sequence[LeaderboardRow], kinds: Sequence[_Kind]) -> tuple[ScoreDifference | None, ...]:
    found: list[ScoreDifference | None] = [None] * len(rows)
    entries = [
        next((one for one in _entries([row]) if one.path == row.submission), None) for row in rows[:_MOST_PAIRED]
    ]
    above: list[bytes] = []
    for place, entry in enumerate(entries):
        lines = read_lines(entry.path) if entry else []
        upper = entries[place - 1] if place else None
        if entry and upper and kinds[place] == kinds[place - 1]:
            found[place] = _public_difference(entry, upper, disagreement_of(lines, above))
        above = lines
    return tuple(found)


def _public_difference(one: _Entry, other: _Entry, disagreement: float | None) -> ScoreDifference | None:
    """Return how far one submission is above another in public; None where nobody knows how much of it is chance."""
    if one.public is None or other.public is None or not (one.rows and other.rows) or one.row.metric != "accuracy":
        return None
    count = min(one.rows, other.rows)
    if disagreement is None:
        return stats.unpaired(one.public, other.public, count)
    return stats.bounded(one.public, other.public, disagreement, count)


def _agreements(scored: Sequence[_Entry]) -> Iterator[Agreement]:
    for column in _BEFORE:
        known = [entry for entry in scored if column in entry.before]
        if len(known) >= _FEWEST_PAIRS:
            public = [entry.public for entry in known if entry.public is not None]
            rho, interval = stats.rank_correlation([entry.before[column] for entry in known], public)
            yield Agreement(column, rho, interval, len(known))


def _warning(scored: Sequence[_Entry]) -> Warned | None:
    """Return a warning by the most telling kind of validation that all scored submissions have."""
    column = next((name for name in _BEFORE if scored and all(name in entry.before for entry in scored)), None)
    if column is None:
        return None
    validated = max(scored, key=lambda entry: entry.before[column])
    leader = max(scored, key=lambda entry: entry.public or 0.0)
    disagreement = disagreement_of(read_lines(leader.path), read_lines(validated.path))
    difference = _public_difference(leader, validated, disagreement)
    if difference is None or not difference.is_real or difference.value <= 0:
        return None
    return Warned(column, validated.path, leader.path, difference)


def _final_two(entries: Sequence[_Entry]) -> tuple[tuple[FinalSubmission, ...], int]:
    """Return the submission expected to end best, and of those about as good the one that differs from it most."""
    choices = list(islice(_of_suites(sorted(_choices(entries), key=lambda choice: -choice[0])), _MOST_RANKED))
    if len(choices) < 2:
        return tuple(choice for _, choice in choices), 0
    (best, first), others = choices[0], choices[1:]
    near = [choice for score, choice in others if score >= best - _GOOD]
    lines, compared = read_lines(first.submission), []
    for choice in near[:_MOST_COMPARED]:
        disagreement = disagreement_of(lines, read_lines(choice.submission))
        if disagreement is not None:
            compared.append(replace(choice, disagreement=disagreement))
    second = max(compared, key=lambda choice: choice.disagreement or 0.0) if compared else others[0][1]
    return (first, second), len(compared)


def _of_suites(ranked: Sequence[tuple[float, FinalSubmission, _Entry]]) -> Iterator[tuple[float, FinalSubmission]]:
    """Yield what was estimated on the images that it predicts: a CSV of another suite has no score here."""
    for score, choice, entry in ranked:
        estimated = choice.told_by != "public_score"
        if not estimated or entry.sidecar is None or is_of_suite(entry.row, entry.sidecar):
            yield score, choice


def _choices(entries: Sequence[_Entry]) -> Iterator[tuple[float, FinalSubmission, _Entry]]:
    """Yield each submission with what it is expected to end with, and that so that more is better: its public score,
    else validation moved by what the public scores of others were off from it on average.
    """
    off: dict[str, float] = {}
    for column in _BEFORE:
        gaps = [e.public - e.before[column] for e in entries if e.public is not None and column in e.before]
        off[column] = float(np.mean(gaps)) if gaps else 0.0
    for entry in entries:
        if entry.public is not None:
            yield entry.public, FinalSubmission(entry.path, _upward(entry.row, entry.public), "public_score"), entry
        elif entry.row.metric == "accuracy" and entry.before:
            column, value = next(iter(entry.before.items()))
            yield value + off[column], FinalSubmission(entry.path, value + off[column], column), entry


def _worth(choice: FinalSubmission) -> str:
    if choice.told_by == "public_score":
        return f"{choice.score:.4f} in public"
    return f"about {choice.score:.4f} by {_BEFORE[choice.told_by]}"
