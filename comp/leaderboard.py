"""The leaderboard: one row for each complete run, from disk. Torch-free.

A listing reads one file of each run, metrics.json, and no YAML: ten thousand runs take a second or two.
"""

import datetime
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from comp import metrics, run_metrics, runs
from comp.errors import ConfigError, RunError, unknown
from comp.run_metrics import RunMetrics, SplitScores

_AGES = {"h": "hours", "d": "days", "w": "weeks"}
_STARTED = re.compile(r"(\d{8}-\d{6})-")  # as run folders' names begin


@dataclass(frozen=True)
class Submitted:
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
class Row:
    """A run as a competitor wants to see it; scores are None where there is nothing to score.

    Attributes:
        run: its folder.
        started: `2026-01-31T12:00:00`, empty where the folder's name does not tell.
        competition: its name.
        model: the network's name.
        parameters: trainable or not.
        metric: what the competition is scored by, a row of `comp.metrics.METRICS`.
        task: a row of `comp.tasks.TASKS`.
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
    submitted: tuple[Submitted, ...]

    def better(self, column: str) -> float | None:
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
class Group:
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


GROUP_COLUMNS = tuple(field.name for field in fields(Group))
COLUMNS = tuple(field.name for field in fields(Row) if field.name != "submitted")
SORTS = (
    "auto", "ood_metric", "val_metric", "suite_metric", "ood_accuracy", "val_accuracy", "test_accuracy",
    "suite_accuracy", "expected_accuracy", "public_score", "private_score", "train_minutes", "parameters", "started",
    "run",
)  # fmt: skip
GROUPS = ("competition", "model", "metric", "device", "variant", "test_like", "transductive")


def rows(root: Path, *, competition: str | None = None, sort: str = "auto", since: str | None = None) -> list[Row]:
    """Return the complete runs below `root`, best first; runs without such a score come last.

    Sorted by `auto`, each competition's runs stand together; see `sorted_by`.

    Args:
        root: usually `runs`.
        competition: only its runs.
        sort: one of SORTS.
        since: only runs that were started since then: a date (`2026-01-31`, with `T12:00` if need be) or an age (`12h`,
            `7d`, `2w`).

    Raises:
        ConfigError: an unknown column to sort by, or no such time.
        RunError: a run's metrics.json is damaged.
    """
    if sort not in SORTS:
        raise ConfigError(f"--sort: {unknown('column', sort, SORTS)}")
    first = _moment(since) if since else ""
    recent = (run for run in runs.list_runs(root) if not first or started(run) >= first)
    kept = [row for row in map(_row_of, recent) if row is not None and competition in (None, row.competition)]
    columns = sorted_by(kept, sort)

    def place(row: Row) -> tuple[str, bool, Any]:
        together, column = row.competition if sort == "auto" else "", columns[row.competition]
        value = row.better(column)
        if value is None:
            return together, True, 0
        return together, False, -value if column.endswith(("accuracy", "metric", "score")) else value

    return sorted(kept, key=place)


def sorted_by(listed: Iterable[Row], sort: str) -> dict[str, str]:
    """Return the column that each competition's runs are sorted by.

    `auto` is the competition's metric on shifted validation where every run with validation has it, else on clean
    validation.
    """
    columns: dict[str, str] = {}
    for row in listed:
        column = columns.setdefault(row.competition, "ood_metric" if sort == "auto" else sort)
        if sort == "auto" and column == "ood_metric" and row.val_metric is not None and row.ood_metric is None:
            columns[row.competition] = "val_metric"
    return columns


def groups(listed: Sequence[Row], by: str, sort: str = "auto") -> list[Group]:
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
    gathered: dict[Any, list[Row]] = {}
    for row in listed:
        gathered.setdefault(getattr(row, by), []).append(row)
    columns = sorted_by(listed, sort)
    return [_group(value, members, columns) for value, members in gathered.items()]


def _group(value: Any, members: list[Row], columns: Mapping[str, str]) -> Group:
    scores = [getattr(row, columns[row.competition]) for row in members]
    found = [score for score in scores if score is not None]
    numbers = [number for number in found if isinstance(number, int | float)]
    return Group(
        value=value,
        runs=len(members),
        best=found[0] if found else None,
        mean=statistics.fmean(numbers) if numbers else None,
        deviation=statistics.stdev(numbers) if len(numbers) > 1 else None,
        best_run=members[0].run,
    )


def started(run: runs.Run) -> str:
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


def _row_of(run: runs.Run) -> Row | None:
    """Return a run's row, None where it is not complete."""
    path = run.path / "metrics.json"
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RunError(f"{path}: cannot be read: {error.strerror or error}") from None
    return _row(run, run_metrics.from_bytes(content, str(path)))


def _row(run: runs.Run, scores: RunMetrics) -> Row:
    val, shifted = scores.counted.val, scores.counted.ood_val
    test, suite, estimate = scores.own("test"), scores.own("suite"), scores.own_estimate()
    submitted = tuple(
        Submitted(one.submission, one.public, one.private, one.rows, one.time) for one in scores.leaderboard_scores
    )
    latest = next((one for one in reversed(submitted) if one.path == scores.submission), None)
    return Row(
        run=str(run.path),
        started=started(run),
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
    )


def _value(scores: SplitScores | None, metric: str) -> float | None:
    return scores.value(metric) if scores else None
