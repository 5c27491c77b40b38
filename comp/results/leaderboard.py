"""The leaderboard: one row for each complete run, from disk. Torch-free.

Only metrics.json of each run is read, and no YAML: ten thousand runs take a second or two.
"""

import datetime
import itertools
import re
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from comp.results import metrics, run_metrics, runs
from comp.results.prediction_files import is_pooled, is_transductive
from comp.results.run_metrics import RunMetrics, SplitScores
from comp.runtime.errors import ConfigError, RunError, unknown

_AGES = {"h": "hours", "d": "days", "w": "weeks"}
_STARTED = re.compile(r"(\d{8}-\d{6})-")  # the start of a run folder's name


@dataclass(frozen=True)
class PublicScore:
    """The recorded score of one of a run's submissions.

    Attributes:
        path: the CSV, as recorded.
        public: public score; None if not recorded.
        private: private score; None if not recorded.
        rows: number of rows the public score counts; None if unknown.
        time: when it was recorded.
    """

    path: str
    public: float | None
    private: float | None
    rows: int | None
    time: str


@dataclass(frozen=True)
class LeaderboardRow:
    """One run; scores are None if they were not computed.

    Attributes:
        run: its folder.
        started: `2026-01-31T12:00:00`, empty if the folder's name holds no time.
        competition: its name.
        model: the network's name.
        parameters: their number, frozen ones included.
        metric: the competition's, a row of `comp.results.metrics.METRICS`.
        task: a row of `comp.config.tasks.TASKS`.
        kind: run, ensemble, soup, fold_group or probe.
        val_accuracy: clean validation, best weights.
        val_metric: likewise, in the competition's metric.
        val_images: number of images scored.
        ood_accuracy: shifted validation, mean over blocks.
        ood_metric: likewise, in the competition's metric.
        ood_images: number of images scored; an image occurs in every block and counts once.
        test_accuracy: clean test, if labelled.
        suite_accuracy: the suite, if labelled.
        suite_metric: likewise, in the competition's metric.
        expected_accuracy: the suite's accuracy, estimated without labels.
        expected_low: mean of its blocks' lower bounds.
        expected_high: mean of its blocks' upper bounds.
        public_score: of its submission, in the competition's metric, if recorded.
        private_score: likewise.
        test_like: whether training imitated corruptions of the suite.
        pooled_accuracy: the suite, if labelled and its blocks were pooled (`predict.pool`); such rows have no
            `suite_accuracy` and no `suite_metric`.
        pooled_metric: likewise, in the competition's metric.
        variant: options and other decision of test, suite and submission, such as `+flip`; empty for none.
        transductive: whether the model was adapted to test, suite or submission images, or trained on pseudo-labels.
        lessons: `teacher`, `pseudo-labels` or both, if they were part of the training; else empty.
        train_minutes: training only.
        device: what it ran on.
        submission: the CSV written last of predictions made in this way; empty if none.
        submitted: the recorded scores of such submissions.
        overrides: of the command that started its training, `key=value` separated by spaces.
        fold: of its training, such as `1 of 5`; empty without folds.
        estimates: variant such as `+flip` -> column -> score of predictions made that way.
        higher_is_better: the metric's direction.
        group_answer: how groups of images were scored, `mean` or `max`; empty where each image was.
        undefined: column in the competition's metric -> why the images leave it undefined, so that it is None.
        is_own: whether the run's config predicts in this way. Submissions made in another way have a row of their own,
            whose scores of validation are made in that way too.
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
    lessons: str
    train_minutes: float
    device: str
    submission: str
    submitted: tuple[PublicScore, ...]
    overrides: str
    fold: str
    estimates: Mapping[str, Mapping[str, float]]
    higher_is_better: bool
    group_answer: str = ""
    pooled_accuracy: float | None = None
    pooled_metric: float | None = None
    undefined: Mapping[str, str] = field(default_factory=dict)
    is_own: bool = True

    @property
    def comparison_key(self) -> tuple[str, str, str, bool]:
        """Competition, task, metric and whether groups were scored: scores are comparable only if these are equal."""
        return self.competition, self.task, self.metric, bool(self.group_answer)

    def as_maximize(self, column: str) -> float | None:
        """Return a column's value, its sign turned if lower is better; None if missing."""
        value: float | None = getattr(self, column)
        if value is None or not _depends_on_metric(column):
            return value
        return value if self.higher_is_better else -value

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {**self.cells(), "undefined": self.undefined, "submitted": [vars(score) for score in self.submitted]}

    def cells(self) -> dict[str, Any]:
        """Return the columns of tables."""
        return {name: getattr(self, name) for name in COLUMNS}


@dataclass(frozen=True)
class ColumnGroup:
    """Runs with the same value in a column.

    Attributes:
        value: that value.
        runs: number of runs.
        best: best value of the sort column; None if no run has one, or the runs have several metrics.
        mean: mean of the sort column.
        deviation: its sample standard deviation; None for fewer than two runs.
        best_run: folder of the best run.
    """

    value: Any
    runs: int
    best: Any
    mean: float | None
    deviation: float | None
    best_run: str


GROUP_COLUMNS = tuple(one.name for one in fields(ColumnGroup))
_NO_COLUMNS = ("submitted", "estimates", "higher_is_better", "group_answer", "undefined", "is_own")
COLUMNS = tuple(one.name for one in fields(LeaderboardRow) if one.name not in _NO_COLUMNS)
_METRIC_SORTS = ("ood_metric", "val_metric", "suite_metric")
_ACCURACY_SORTS = ("ood_accuracy", "val_accuracy", "test_accuracy", "suite_accuracy", "expected_accuracy")
_OTHER_SORTS = ("public_score", "private_score", "train_minutes", "parameters", "started", "run")
SORTS = ("auto", *_METRIC_SORTS, *_ACCURACY_SORTS, *_OTHER_SORTS)
MEANINGS = {  # of columns whose names do not explain them
    "ood_metric": "the competition's metric on shifted validation",
    "ood_accuracy": "accuracy on shifted validation",
    "val_metric": "the competition's metric on clean validation",
    "val_accuracy": "accuracy on clean validation",
    "expected_accuracy": "the suite's accuracy, estimated without labels",
}
GROUPS = ("competition", "model", "metric", "device", "variant", "test_like", "transductive")


def read_rows(
    root: Path,
    *,
    competition: str | None = None,
    sort: str = "auto",
    since: str | None = None,
    on_damaged: Callable[[RunError], None] | None = None,
) -> list[LeaderboardRow]:
    """Return the complete runs below `root`, best first; runs without a score in the sort column come last.

    Columns in the competition's metric group the runs by competition, then by task and metric, the largest group first;
    see `comparable_groups`.

    Args:
        root: usually `runs`.
        competition: only its runs.
        sort: one of SORTS.
        since: only runs started since a date (`2026-01-31`, optionally with `T12:00`) or an age (`12h`, `7d`, `2w`).
        on_damaged: called for a run with a damaged metrics.json, which is left out; None: raise the error.

    Raises:
        ConfigError: an unknown sort column, or an invalid time.
        RunError: a run's metrics.json is damaged, without `on_damaged`.
    """
    if sort not in SORTS:
        raise ConfigError(f"--sort: {unknown('column', sort, SORTS)}")
    all_rows = (row for run in runs_since(root, since) for row in _try_read_rows(run, on_damaged))
    rows = [row for row in all_rows if competition in (None, row.competition)]
    columns, group_sizes = sort_columns(rows, sort), Counter(row.comparison_key for row in rows)

    def sort_key(row: LeaderboardRow) -> tuple[Any, bool, Any]:
        group, column = row.comparison_key, columns[row.competition]
        group_key = (row.competition, -group_sizes[group], group) if _depends_on_metric(column) else ()
        value = row.as_maximize(column)
        if value is None:
            return group_key, True, 0
        return group_key, False, -value if column.endswith(("accuracy", "metric", "score")) else value

    return sorted(rows, key=sort_key)


def runs_since(root: Path, since: str | None) -> list[runs.Run]:
    """Return the runs below `root`, complete or not, that were started since a date or an age; see `read_rows`."""
    earliest = _parse_since(since) if since else ""
    return [run for run in runs.list_runs(root) if not earliest or start_time(run) >= earliest]


def sort_columns(rows: Iterable[LeaderboardRow], sort: str) -> dict[str, str]:
    """Return the column that each competition's runs are sorted by.

    `auto` is the competition's metric on shifted validation if more than half of the validated runs have it, else on
    clean validation.
    """
    shifted, validated = dict[str, int](), dict[str, int]()
    for row in rows:
        has = row.ood_metric is not None
        shifted[row.competition] = shifted.get(row.competition, 0) + has
        validated[row.competition] = validated.get(row.competition, 0) + (has or row.val_metric is not None)
    if sort != "auto":
        return dict.fromkeys(shifted, sort)
    return {name: "ood_metric" if 2 * shifted[name] > most else "val_metric" for name, most in validated.items()}


def comparable_groups(rows: Sequence[LeaderboardRow], sort: str) -> list[list[LeaderboardRow]]:
    """Return sorted rows in groups within which the sort column ranks them.

    Values in the competition's metric are compared within one competition, task and metric, others in all runs.
    """
    columns = sort_columns(rows, sort)

    def key(row: LeaderboardRow) -> tuple[str, str, str, bool] | None:
        return row.comparison_key if _depends_on_metric(columns[row.competition]) else None

    return [list(group) for _, group in itertools.groupby(rows, key)]


def _depends_on_metric(column: str) -> bool:
    return column.endswith(("metric", "score"))


def describe_sort(rows: Sequence[LeaderboardRow], sort: str) -> str:
    """Return a sentence about the sort column: its name, its meaning, and how many runs lack it."""
    columns = sort_columns(rows, sort)
    parts = []
    for column in dict.fromkeys(columns.values()):
        names = [name for name, sort_column in columns.items() if sort_column == column]
        values = [getattr(row, column) for row in rows if columns[row.competition] == column and row.is_own]
        missing = values.count(None)
        last = f"; {missing:,} of {len(values):,} runs have none and come last" if missing else ""
        where = f" in {', '.join(names)}" if len(set(columns.values())) > 1 else ""
        meaning = f" ({MEANINGS[column]})" if column in MEANINGS else ""
        parts.append(f"{column}{meaning}{where}{last}")
    falling = sorted({row.metric for row in rows if not row.higher_is_better})
    lower = f"; {', '.join(falling)}: lower is better" if falling else ""
    return f"sorted by {'; by '.join(parts)}{lower}"


def group_rows(rows: Sequence[LeaderboardRow], by: str, sort: str = "auto") -> list[ColumnGroup]:
    """Group the runs by a column, in the order of each group's best run.

    Args:
        rows: as `read_rows` returns them.
        by: one of GROUPS.
        sort: the sort column, or `auto`.

    Raises:
        ConfigError: an unknown column.
    """
    if by not in GROUPS:
        raise ConfigError(f"--group-by: {unknown('column', by, GROUPS)}")
    members: dict[Any, list[LeaderboardRow]] = {}
    for row in rows:
        members.setdefault(getattr(row, by), []).append(row)
    columns = sort_columns(rows, sort)
    return [_summarize_group(value, group, columns) for value, group in members.items()]


def _summarize_group(value: Any, rows: list[LeaderboardRow], columns: Mapping[str, str]) -> ColumnGroup:
    scores = [getattr(row, columns[row.competition]) for row in rows]
    present = [score for score in scores if score is not None]
    if len({row.metric for row in rows if _depends_on_metric(columns[row.competition])}) > 1:
        present = []  # of several metrics
    numbers = [number for number in present if isinstance(number, int | float)]
    return ColumnGroup(
        value=value,
        runs=len({row.run for row in rows}),
        best=present[0] if present else None,
        mean=statistics.fmean(numbers) if numbers else None,
        deviation=statistics.stdev(numbers) if len(numbers) > 1 else None,
        best_run=rows[0].run,
    )


def start_time(run: runs.Run) -> str:
    """Return when a run was started, from its folder's name: `2026-01-31T12:00:00`; empty if unknown."""
    match = _STARTED.match(run.path.name)
    if not match:
        return ""
    day, clock = match[1].split("-")
    return f"{day[:4]}-{day[4:6]}-{day[6:]}T{clock[:2]}:{clock[2:4]}:{clock[4:]}"


def _parse_since(since: str) -> str:
    """Return a date or age as local time in the form of `start_time`."""
    age = re.fullmatch(r"(\d{1,6})([hdw])", since)
    try:
        if age:
            moment = datetime.datetime.now() - datetime.timedelta(**{_AGES[age[2]]: int(age[1])})
        else:
            moment = datetime.datetime.fromisoformat(since)
            moment = moment.astimezone().replace(tzinfo=None) if moment.tzinfo else moment
    except (ValueError, OverflowError):
        raise ConfigError(
            f"--since: expected a date such as 2026-01-31 or 2026-01-31T12:00, or an age such as 12h, 7d or 2w; found "
            f"'{since}'"
        ) from None
    return moment.isoformat(timespec="seconds")


def _try_read_rows(run: runs.Run, on_damaged: Callable[[RunError], None] | None) -> list[LeaderboardRow]:
    """Return a run's rows; none if it is incomplete or damaged."""
    try:
        return _read_rows(run)
    except RunError as error:
        if on_damaged is None:
            raise
        on_damaged(error)
        return []


def _read_rows(run: runs.Run) -> list[LeaderboardRow]:
    """Return a row for the way in which a run's config predicts, and one for each other way of its submissions."""
    path = run.path / "metrics.json"
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise RunError(f"{path}: cannot be read: {error.strerror or error}") from None
    scores = run_metrics.from_bytes(content, str(path))
    if scores.higher_is_better is None and scores.metric not in metrics.METRICS:
        raise RunError(f"{path}: damaged ({unknown('metric', scores.metric, metrics.METRICS)}); restore the file")
    return [_row(run, scores, variant) for variant in dict.fromkeys((scores.variant, *scores.written().values()))]


def _row(run: runs.Run, scores: RunMetrics, variant: str) -> LeaderboardRow:
    is_own, written = variant == scores.variant, scores.written()
    val, shifted = (
        getattr(scores.best_or_final, name) if is_own or not variant else scores.variants.get(name + variant)
        for name in ("val", "ood_val")
    )
    test, predicted_suite = scores.split_scores("test", variant), scores.split_scores("suite", variant)
    is_pooled_too = is_pooled(variant) or bool((scores.ensemble or {}).get("pooled"))
    suite, pooled = (None, predicted_suite) if is_pooled_too else (predicted_suite, None)
    estimate = scores.expected.get("suite" + variant)
    submission = next((path for path, how in reversed(written.items()) if how == variant), "")
    submitted = tuple(
        PublicScore(score.submission, score.public, score.private, score.rows, score.time)
        for score in scores.leaderboard_scores
        if written.get(score.submission, scores.variant) == variant
    )
    latest = next((score for score in reversed(submitted) if score.path == submission), None)
    if latest is None and is_own and len(submitted) == len(scores.leaderboard_scores):  # of an earlier CSV, or version
        latest = PublicScore("", scores.public_score, scores.private_score, None, "")
    parts = {"val_metric": val, "ood_metric": shifted, "suite_metric": suite, "pooled_metric": pooled}
    reasons = {column: (part.undefined or {}).get(scores.metric) for column, part in parts.items() if part}
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
        pooled_accuracy=_value(pooled, "accuracy"),
        pooled_metric=_value(pooled, scores.metric),
        expected_accuracy=estimate.accuracy if estimate else None,
        expected_low=estimate.low if estimate else None,
        expected_high=estimate.high if estimate else None,
        public_score=latest.public if latest else None,
        private_score=latest.private if latest else None,
        test_like=bool(scores.test_like),
        variant=variant,
        transductive=(scores.transductive if submission == scores.submission else is_transductive(variant))
        or bool(scores.pseudo_labels)
        or any(part.transductive for part in (test, predicted_suite) if part),
        lessons=", ".join(scores.lessons),
        train_minutes=scores.train_seconds / 60,
        device=scores.device,
        submission=submission,
        submitted=submitted,
        overrides=" ".join(scores.overrides),
        fold=scores.fold,
        estimates=_estimates(scores),
        higher_is_better=metrics.is_higher_better(scores),
        group_answer=scores.group_answer or "",
        undefined={column: reason for column, reason in reasons.items() if reason},
        is_own=is_own,
    )


def _estimates(scores: RunMetrics) -> dict[str, dict[str, float]]:
    """Return `LeaderboardRow.estimates`."""
    estimates: dict[str, dict[str, float]] = {"": {}}
    for name, estimate in scores.expected.items():
        split, plus, variant = name.partition("+")
        if split == "suite":
            estimates.setdefault(plus + variant, {})["expected_accuracy"] = estimate.accuracy
    validated = {"val": scores.best_or_final.val, "ood_val": scores.best_or_final.ood_val, **scores.variants}
    for split, column in (("ood_val", "ood_accuracy"), ("val", "val_accuracy")):
        for name, part in validated.items():
            scored_split, plus, variant = name.partition("+")
            if scored_split == split and part is not None and part.accuracy is not None:
                estimates.setdefault(plus + variant, {})[column] = part.accuracy
    return estimates


def _value(scores: SplitScores | None, metric: str) -> float | None:
    return scores.value(metric) if scores else None
