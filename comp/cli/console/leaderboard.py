"""The leaderboard's tables."""

import csv
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from comp.cli.console.output import print_line, print_table

if TYPE_CHECKING:
    from comp.results.analysis import LeaderboardAnalysis
    from comp.results.leaderboard import ColumnGroup, LeaderboardRow

_MOST_DRAWN = 500  # rows of a drawn table


# Columns that go where the window is narrow, the first one first; never the one that is sorted by.
_DROPPED = ("device", "parameters", "minutes", "test", "private", "suite", "val", "expected", "public", "shifted",
            "model", "submission")  # fmt: skip
_SHOWN = {  # a column of `Row` -> the table's
    "val_accuracy": "val", "ood_accuracy": "shifted", "test_accuracy": "test", "suite_accuracy": "suite",
    "expected_accuracy": "expected", "public_score": "public", "private_score": "private", "train_minutes": "minutes",
}  # fmt: skip
_SPLITS = {"val_metric": "val", "ood_metric": "shifted", "suite_metric": "suite"}


def print_leaderboard(
    rows: "Sequence[LeaderboardRow]", verdicts: "LeaderboardAnalysis", root: Any, top: int, sort: str
) -> None:
    """Print the leaderboard's first rows, 0 for all, and what is to be said of it. Columns that are empty are left out.

    A score that is more than chance below the one above it is followed by `<`, one that may be chance by `~`.
    """
    from comp.results import leaderboard  # loads NumPy, which the bars can do without

    if not rows:
        print_line(f"no complete runs under {root}; make one: comp run configs/quickstart.yaml")
        return
    shown = rows[:top] if top else rows
    metrics = _other_metrics(shown)
    cells = [board_cells(row, rank, metrics) for rank, row in enumerate(shown, 1)]
    kept = [name for name in cells[0] if any(line[name] for line in cells) or name == "submission"]
    signs = ["" if found is None else " <" if found.is_real else " ~" for found in verdicts.above[: len(shown)]]
    lines = [[line[name] + sign * (name == "#") for name in kept] for line, sign in zip(cells, signs, strict=True)]
    if len(lines) > _MOST_DRAWN:
        _print_plain([kept, *lines])
    else:
        sorted_heads = {_head(row, leaderboard.sort_columns(rows, sort)[row.competition]) for row in shown}
        least = dict.fromkeys([*_DROPPED, *kept])  # the metric's own columns go last
        drop = [name for name in least if name in kept and name not in ("#", "run", *sorted_heads)]
        print_table(
            kept, lines, folded={"run": 24, "submission": 20, "model": 16, "expected": 8}, drop=drop, elsewhere="--csv"
        )
    print_line(leaderboard.describe_sort(rows, sort))
    if len(shown) < len(rows):
        print_line(f"{len(rows) - len(shown):,} more: --top 0 shows all, --csv writes them")
    if any(signs):
        print_line("<: more than chance below the row above it; ~: may be chance (each at 95 %)")
    for sentence in verdicts.sentences():
        print_line(sentence)


def _head(row: "LeaderboardRow", column: str) -> str:
    """Return the table's heading of a column of `Row`."""
    if column in _SPLITS:
        return _SPLITS[column] if row.metric == "accuracy" else f"{_SPLITS[column]} {row.metric}"
    return _SHOWN.get(column, column)


def _print_plain(lines: Sequence[Sequence[str]]) -> None:
    """Print many rows below each other without a frame, which would take a millisecond a row."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _other_metrics(rows: "Sequence[LeaderboardRow]") -> list[str]:
    """Return the competitions' metrics that have columns of their own: all but accuracy."""
    return [name for name in dict.fromkeys(row.metric for row in rows) if name != "accuracy"]


def board_cells(row: "LeaderboardRow", rank: int, metrics: Sequence[str] = ()) -> dict[str, str]:
    """Return a row of the leaderboard as it is shown, with columns such as `val log_loss` for each of the metrics."""

    def own(split: str, value: float | None) -> dict[str, float | None]:
        return {f"{split} {name}": value if name == row.metric else None for name in metrics}

    scores = {
        **own("val", row.val_metric), **own("shifted", row.ood_metric), **own("suite", row.suite_metric),
        "val": row.val_accuracy, "shifted": row.ood_accuracy, "expected": row.expected_accuracy,
        "public": row.public_score, "private": row.private_score, "test": row.test_accuracy,
        "suite": row.suite_accuracy,
    }  # fmt: skip
    shown = {name: "" if score is None else f"{score:.4f}" for name, score in scores.items()}
    if row.expected_low is not None and row.expected_high is not None:
        shown["expected"] += f" ({row.expected_low:.2f} to {row.expected_high:.2f})"
    return {
        "#": str(rank), "run": row.run, "model": row.model, "parameters": f"{row.parameters:,}", **shown,
        "minutes": f"{row.train_minutes:.1f}", "device": row.device, "submission": row.submission + _marks(row),
    }  # fmt: skip


def print_groups(groups: "Sequence[ColumnGroup]", by: str, rows: "Sequence[LeaderboardRow]", sort: str) -> None:
    """Print the groups of rows by what they have in common."""
    from comp.results import leaderboard

    lines = [
        [str(group.value), f"{group.runs:,}", *map(_cell, (group.best, group.mean, group.deviation)), group.best_run]
        for group in groups
    ]
    heads = (by, "runs", "best", "mean", "deviation", "best run")
    print_table(heads, lines, folded={by: 14, "best run": 24}, drop=("deviation", "mean"), elsewhere="--csv")
    if rows:
        print_line(leaderboard.describe_sort(rows, sort))


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)


def print_spelled(lines: Sequence[Mapping[str, Any]], columns: Sequence[str], spelling: str) -> None:
    """Print rows as `csv` or `md`, every row, to be read by another program or pasted into a page."""
    if spelling == "csv":
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([["" if line[name] is None else line[name] for name in columns] for line in lines])
        return
    print("| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))
    for line in lines:
        print("| " + " | ".join(_cell(line[name]).replace("|", "\\|") for name in columns) + " |")


def metric_heads(rows: "Sequence[LeaderboardRow]", columns: Sequence[str]) -> dict[str, str]:
    """Return column -> heading of a Markdown table: the metric's name where all rows have one that is not accuracy."""
    names = {row.metric for row in rows}
    heads = {column: column for column in columns}
    if len(names) == 1 and names != {"accuracy"}:
        shown = {"val_metric": "val", "ood_metric": "shifted", "suite_metric": "suite"}
        heads |= {column: f"{split} {next(iter(names))}" for column, split in shown.items()}
    return heads


def _marks(row: "LeaderboardRow") -> str:
    marks = [name for name, holds in (("test-like", row.test_like), ("transductive", row.transductive)) if holds]
    return f" ({', '.join(marks)})" if marks else ""
