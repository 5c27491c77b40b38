"""The leaderboard: one row for each complete run, from disk. Torch-free."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from comp import metrics, runs
from comp.errors import ConfigError, unknown


@dataclass(frozen=True)
class Row:
    """A run as a competitor wants to see it; scores are None where there is nothing to score.

    Attributes:
        run: its folder.
        competition: its name.
        model: the network's name.
        parameters: trainable or not.
        metric: what the competition is scored by.
        val_accuracy: clean validation, best weights.
        val_metric: likewise, in the competition's metric.
        ood_accuracy: shifted validation, mean over blocks.
        test_accuracy: clean test, where labelled.
        suite_accuracy: the suite, where its labels are known.
        suite_metric: likewise.
        test_like: whether training imitated corruptions of the suite.
        variant: what test and suite were predicted with, such as `+flip`; empty: plainly.
        transductive: whether they, or the submission, were adapted to.
        train_minutes: of training alone.
        device: what it ran on.
        submission: the CSV it wrote last, empty without one.
    """

    run: str
    competition: str
    model: str
    parameters: int
    metric: str
    val_accuracy: float | None
    val_metric: float | None
    ood_accuracy: float | None
    test_accuracy: float | None
    suite_accuracy: float | None
    suite_metric: float | None
    test_like: bool
    variant: str
    transductive: bool
    train_minutes: float
    device: str
    submission: str


SORTS = (
    "ood_accuracy", "val_accuracy", "test_accuracy", "suite_accuracy", "val_metric", "suite_metric", "train_minutes",
    "parameters", "run",
)  # fmt: skip


def rows(root: Path, *, competition: str | None = None, sort: str = "ood_accuracy") -> list[Row]:
    """Return the complete runs below `root`, best first; what has no such score comes last.

    Raises:
        ConfigError: an unknown column to sort by.
    """
    if sort not in SORTS:
        raise ConfigError(f"--sort: {unknown('column', sort, SORTS)}")
    found = [_row(run, run.metrics()) for run in runs.list_runs(root) if run.is_complete()]
    kept = [row for row in found if competition in (None, row.competition)]

    def place(row: Row) -> tuple[bool, Any]:
        value = getattr(row, sort)
        if value is None:
            return True, 0
        if sort.endswith("metric"):
            return False, -metrics.metric(row.metric).value_up(value)
        return False, -value if sort.endswith("accuracy") else value

    return sorted(kept, key=place)


def own_scores(scores: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return the scores of `test` or `suite` as the run's config predicts them, empty where there are none."""
    variant = scores.get("variant", "")
    found: dict[str, Any] = scores.get("variants", {}).get(name + variant, {}) if variant else scores.get(name, {})
    return found


def _row(run: runs.Run, scores: dict[str, Any]) -> Row:
    counted = scores.get("best") or scores.get("final") or {}
    test, suite = own_scores(scores, "test"), own_scores(scores, "suite")
    return Row(
        run=str(run.path),
        competition=scores["competition"],
        model=scores["model"],
        parameters=scores["parameters"],
        metric=scores["metric"],
        val_accuracy=counted.get("val", {}).get("accuracy"),
        val_metric=counted.get("val", {}).get("metric"),
        ood_accuracy=counted.get("ood_val", {}).get("accuracy"),
        test_accuracy=test.get("accuracy"),
        suite_accuracy=suite.get("accuracy"),
        suite_metric=suite.get("metric"),
        test_like=bool(scores["test_like"]),
        variant=scores.get("variant", ""),
        transductive=any(found.get("transductive", False) for found in (scores, test, suite)),
        train_minutes=scores["train_seconds"] / 60,
        device=scores["device"],
        submission=scores.get("submission", ""),
    )
