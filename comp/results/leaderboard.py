"""The leaderboard: one row for each complete run, from disk. Torch-free.

A listing reads one file of each run, metrics.json, and no YAML: ten thousand runs take a second or two.
"""

import datetime
import re
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from comp.results import metrics, run_metrics, runs
from comp.results.run_metrics import RunMetrics, SplitScores
from comp.runtime.errors import ConfigError, RunError, unknown

_AGES = {"h": "hours", "d": "days", "w": "weeks"}
_STARTED = re.compile(r"(\d{8}-\d{6})-")  # as run folders' names begin


@dataclass(frozen=True)
class PublicScore:
    """What the competition said of one submission of a run.

    Attributes:
        path: of the CSV, as it was recorded.
        public: its public score, None where there is none.
        private: likewise.
        rows: how many rows the public score counts, None where that is not known.
        time: when it was recorded.
    """

    path: str
    public: float | None
    private: float | None
    rows: int | None
    time: str


@dataclass(frozen=True)
class LeaderboardRow:
    """A run as a competitor wants to see it; scores are None where there is nothing to score.

    Attributes:
        run: its folder.
        started: `2026-01-31T12:00:00`, empty where the folder's name does not tell.
        competition: its name.
        model: the network's name.
        parameters: trainable or not.
        metric: what the competition is scored by, a row of `comp.results.metrics.METRICS`.
        task: a row of `comp.config.tasks.TASKS`.
        kind: what made it: run, ensemble, soup, fold_group or probe.
        val_accuracy: clean validation, best weights.
        val_metric: likewise, in the competition's metric.
        val_images: that they were measured on.
        ood_accuracy: shifted validation, mean over blocks.
        ood_metric: likewise, in the competition's metric.
        ood_images: that it was measured on; each stands in every block and counts once.
        test_accuracy: clean test, where labelled.
        suite_accuracy: the suite, where its labels are known.
        suite_metric: likewise.
        expected_accuracy: what the suite is expected to score, told without labels.
        expected_low: the mean of its blocks' lower ends.
        expected_high: likewise of the upper ones.
        public_score: of its submission, in the competition's metric, where it was recorded.
        private_score: likewise.
        test_like: whether training imitated corruptions of the suite.
        variant: what test and suite were predicted with, such as `+flip`; empty: plainly.
        transductive: whether they, or the submission, were adapted to.
        train_minutes: of training alone.
        device: what it ran on.
        submission: the CSV it wrote last, empty without one.
        submitted: all that was recorded of its submissions.
        estimates: way of predicting, such as `+flip` -> column -> what is known of a submission made in that way.
    """

    run: str
    started: str
    competition: str
    model: str
    parameters: int
    metric: str
    task: str
    kind: str
    val_accuracy: float | None
    val_metric: float | None
    val_images: int | None
    ood_accuracy: float | None
    ood_metric: float | None
    ood_images: int | None
    test_accuracy: float | None
    suite_accuracy: float | None
    suite_metric: float | None
    expected_accuracy: float | None
    expected_low: float | None
    expected_high: float | None
    public_score: float | None
    private_score: float | None
    test_like: bool
    variant: str
    transductive: bool
    train_minutes: float
    device: str
    submission: str
    submitted: tuple[PublicScore, ...]
    estimates: Mapping[str, Mapping[str, float]]

    @property
    def comparison_key(self) -> tuple[str, str, str]:
        """What its scores can be compared within, as far as one file tells: competition, task and metric."""
        return self.competition, self.task, self.metric

    def as_maximize(self, column: str) -> float | None:
        """Return a column's value so that more is better; None where there is none."""
        value: float | None = getattr(self, column)
        if value is None or not column.endswith(("metric", "score")):
            return value
        return metrics.metric(self.metric).as_maximize(value)

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {**self.cells(), "submitted": [vars(one) for one in self.submitted]}

    def cells(self) -> dict[str, Any]:
        """Return its columns without what was recorded of other submissions."""
        return {name: getattr(self, name) for name in COLUMNS}


@dataclass(frozen=True)
class ColumnGroup:
    """Runs that have a column in common.

    Attributes:
        value: of the column.
        runs: how many.
        best: of the column that was sorted by, None where none of them has it.
        mean: likewise.
        deviation: likewise, the sample's standard deviation; None of fewer than two.
        best_run: the folder of the best.
    """

    value: Any
    runs: int
    best: Any
    mean: float | None
    deviation: float | None
    best_run: str


GROUP_COLUMNS = tuple(field.name for field in fields(ColumnGroup))
COLUMNS = tuple(field.name for field in fields(LeaderboardRow) if field.name not in ("submitted", "estimates"))
SORTS = (
    "auto", "ood_metric", "val_metric", "suite_metric", "ood_accuracy", "val_accuracy", "test_accuracy",
    "suite_accuracy", "expected_accuracy", "public_score", "private_score", "train_minutes", "parameters", "started",
    "run",
)  # fmt: skip
MEANINGS = {  # of columns whose names do not say it
    "ood_metric": "the competition's metric on shifted validation", "ood_accuracy": "accuracy on shifted validation",
    "val_metric": "the competition's metric on clean validation", "val_accuracy": "accuracy on clean validation",
    "expected_accuracy": "the suite's accuracy, estimated without labels",
}  # fmt: skip
GROUPS = ("competition", "model", "metric", "device", "variant", "test_like", "transductive")


def raise_error(error: RunError) -> None:
    """Raise what is wrong with a run; see `rows`."""
    raise error


def read_rows(
    root: Path,
    *,
    competition: str | None = None,
    sort: str = "auto",
    since: str | None = None,
    on_damaged: Callable[[RunError], None] = raise_error,
) -> list[LeaderboardRow]:
    """Return the complete runs below `root`, best first; runs without such a score come last.

    Sorted by `auto`, each competition's runs stand together, and among them those of one task and metric, the most runs
    first; see `sorted_by`.

    Args:
        root: usually `runs`.
        competition: only its runs.
        sort: one of SORTS.
        since: only runs that were started since then: a date (`2026-01-31`, with `T12:00` if need be) or an age (`12h`,
            `7d`, `2w`).
        on_damaged: called for a run whose metrics.json is damaged, which is left out where that does not raise.

    Raises:
        ConfigError: an unknown column to sort by, or no such time.
        RunError: a run's metrics.json is damaged, unless `on_damaged` says otherwise.
    """
    if sort not in SORTS:
        raise ConfigError(f"--sort: {unknown('column', sort, SORTS)}")
    first = _moment(since) if since else ""
    recent = (run for run in runs.list_runs(root) if not first or start_time(run) >= first)
    listed = (_row_of(run, on_damaged) for run in recent)
    kept = [row for row in listed if row is not None and competition in (None, row.competition)]
    columns, alike = sort_columns(kept, sort), Counter(row.comparison_key for row in kept)

    def place(row: LeaderboardRow) -> tuple[Any, bool, Any]:
        kind, column = row.comparison_key, columns[row.competition]
        together = (row.competition, -alike[kind], kind) if sort == "auto" else ()
        value = row.as_maximize(column)
        if value is None:
            return together, True, 0
        return together, False, -value if column.endswith(("accuracy", "metric", "score")) else value

    return sorted(kept, key=place)


def sort_columns(listed: Iterable[LeaderboardRow], sort: str) -> dict[str, str]:
    """Return the column that each competition's runs are sorted by.

    `auto` is the competition's metric on shifted validation where more than half of the runs with validation have it,
    else on clean validation.
    """
    shifted, validated = dict[str, int](), dict[str, int]()
    for row in listed:
        has = row.ood_metric is not None
        shifted[row.competition] = shifted.get(row.competition, 0) + has
        validated[row.competition] = validated.get(row.competition, 0) + (has or row.val_metric is not None)
    if sort != "auto":
        return dict.fromkeys(shifted, sort)
    return {name: "ood_metric" if 2 * shifted[name] > most else "val_metric" for name, most in validated.items()}


def describe_sort(listed: Sequence[LeaderboardRow], sort: str) -> str:
    """Return what the rows are sorted by, in a sentence: the column, what it is, and how many runs have it."""
    columns = sort_columns(listed, sort)
    parts = []
    for column in dict.fromkeys(columns.values()):
        names = [name for name, own in columns.items() if own == column]
        of = [row for row in listed if columns[row.competition] == column]
        have = sum(getattr(row, column) is not None for row in of)
        lacking = f"; {len(of) - have:,} of {len(of):,} runs have none and come last" if have < len(of) else ""
        where = f" in {', '.join(names)}" if len(set(columns.values())) > 1 else ""
        told = f" ({MEANINGS[column]})" if column in MEANINGS else ""
        parts.append(f"{column}{told}{where}{lacking}")
    return f"sorted by {'; by '.join(parts)}"


def group_rows(listed: Sequence[LeaderboardRow], by: str, sort: str = "auto") -> list[ColumnGroup]:
    """Return the runs by what they have in common, in the order of their best ones.

    Args:
        listed: as `rows` returns them.
        by: one of GROUPS.
        sort: what they are sorted by.

    Raises:
        ConfigError: an unknown column to group by.
    """
    if by not in GROUPS:
        raise ConfigError(f"--group-by: {unknown('column', by, GROUPS)}")
    gathered: dict[Any, list[LeaderboardRow]] = {}
    for row in listed:
        gathered.setdefault(getattr(row, by), []).append(row)
    columns = sort_columns(listed, sort)
    return [_group(value, members, columns) for value, members in gathered.items()]


def _group(value: Any, members: list[LeaderboardRow], columns: Mapping[str, str]) -> ColumnGroup:
    scores = [getattr(row, columns[row.competition]) for row in members]
    found = [score for score in scores if score is not None]
    numbers = [number for number in found if isinstance(number, int | float)]
    return ColumnGroup(
        value=value,
        runs=len(members),
        best=found[0] if found else None,
        mean=statistics.fmean(numbers) if numbers else None,
        deviation=statistics.stdev(numbers) if len(numbers) > 1 else None,
        best_run=members[0].run,
    )


def start_time(run: runs.Run) -> str:
    """Return when a run was started, as its folder's name tells: `2026-01-31T12:00:00`, or nothing."""
    found = _STARTED.match(run.path.name)
    if not found:
        return ""
    day, clock = found[1].split("-")
    return f"{day[:4]}-{day[4:6]}-{day[6:]}T{clock[:2]}:{clock[2:4]}:{clock[4:]}"


def _moment(since: str) -> str:
    """Return a moment, local time, as `started` spells it."""
    age = re.fullmatch(r"(\d{1,6})([hdw])", since)
    try:
        if age:
            ago = datetime.timedelta(**{_AGES[age[2]]: int(age[1])})
            moment = datetime.datetime.now() - ago
        else:
            moment = datetime.datetime.fromisoformat(since)
            moment = moment.astimezone().replace(tzinfo=None) if moment.tzinfo else moment
    except (ValueError, OverflowError):
        raise ConfigError(
            f"--since: expected a date such as 2026-01-31 or 2026-01-31T12:00, or an age such as 12h, 7d or 2w; found "
            f"'{since}'"
        ) from None
    return moment.isoformat(timespec="seconds")


def _row_of(run: runs.Run, on_damaged: Callable[[RunError], None]) -> LeaderboardRow | None:
    """Return a run's row, None where it is not complete, or damaged."""
    try:
        return _read(run)
    except RunError as error:
        on_damaged(error)
        return None


def _read(run: runs.Run) -> LeaderboardRow | None:
    path = run.path / "metrics.json"
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RunError(f"{path}: cannot be read: {error.strerror or error}") from None
    scores = run_metrics.from_bytes(content, str(path))
    if scores.metric not in metrics.METRICS:
        raise RunError(f"{path}: damaged ({unknown('metric', scores.metric, metrics.METRICS)}); put the file back")
    return _row(run, scores)


def _row(run: runs.Run, scores: RunMetrics) -> LeaderboardRow:
    val, shifted = scores.best_or_final.val, scores.best_or_final.ood_val
    test, suite, estimate = scores.split_scores("test"), scores.split_scores("suite"), scores.suite_estimate()
    submitted = tuple(
        PublicScore(one.submission, one.public, one.private, one.rows, one.time) for one in scores.leaderboard_scores
    )
    latest = next((one for one in reversed(submitted) if one.path == scores.submission), None)
    return LeaderboardRow(
        run=str(run.path),
        started=start_time(run),
        competition=scores.competition,
        model=scores.model,
        parameters=scores.parameters,
        metric=scores.metric,
        task=scores.task,
        kind=scores.kind,
        val_accuracy=_value(val, "accuracy"),
        val_metric=_value(val, scores.metric),
        val_images=val.images if val else None,
        ood_accuracy=_value(shifted, "accuracy"),
        ood_metric=_value(shifted, scores.metric),
        ood_images=shifted.images // max(1, len(shifted.by_block)) if shifted else None,
        test_accuracy=_value(test, "accuracy"),
        suite_accuracy=_value(suite, "accuracy"),
        suite_metric=_value(suite, scores.metric),
        expected_accuracy=estimate.accuracy if estimate else None,
        expected_low=estimate.low if estimate else None,
        expected_high=estimate.high if estimate else None,
        public_score=latest.public if latest else scores.public_score,
        private_score=latest.private if latest else scores.private_score,
        test_like=bool(scores.test_like),
        variant=scores.variant,
        transductive=scores.transductive or any(part.transductive for part in (test, suite) if part),
        train_minutes=scores.train_seconds / 60,
        device=scores.device,
        submission=scores.submission,
        submitted=submitted,
        estimates=_estimates(scores),
    )


def _estimates(scores: RunMetrics) -> dict[str, dict[str, float]]:
    """Return what is known of submissions by how they are predicted: `Row.estimates`."""
    found: dict[str, dict[str, float]] = {"": {}}
    for name, estimate in scores.expected.items():
        split, plus, variant = name.partition("+")
        if split == "suite":
            found.setdefault(plus + variant, {})["expected_accuracy"] = estimate.accuracy
    validated = {"val": scores.best_or_final.val, "ood_val": scores.best_or_final.ood_val, **scores.variants}
    for split, column in (("ood_val", "ood_accuracy"), ("val", "val_accuracy")):
        for name, part in validated.items():
            own, plus, variant = name.partition("+")
            if own == split and part is not None and part.accuracy is not None:
                found.setdefault(plus + variant, {})[column] = part.accuracy
    return found


def _value(scores: SplitScores | None, metric: str) -> float | None:
    return scores.value(metric) if scores else None
