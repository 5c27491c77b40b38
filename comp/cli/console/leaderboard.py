"""Print the leaderboard."""

import csv
import os
import re
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from comp.cli.console.output import print_line, print_table, print_text
from comp.runtime import escape
from comp.runtime.errors import plural

if TYPE_CHECKING:
    from comp.results.analysis import LeaderboardAnalysis
    from comp.results.leaderboard import ColumnGroup, LeaderboardRow
    from comp.results.unfinished import UnfinishedRun

_MAX_DRAWN_ROWS = 500

# Columns that are left out in a narrow window, the first one first; never the one that the table is sorted by.
_DROPPED = (
    *("device", "parameters", "estimated range", "minutes", "submission", "private", "pooled", "fold", "model"),
    *("suite", "test", "estimated", "overrides", "public", "val", "shifted"),
)
_RUN_WIDTH = 36  # the least of a run's name: its time and 20 characters
# Score column of `LeaderboardRow` -> heading in the table, in the table's order.
_SCORES = {
    "val_accuracy": "val",
    "ood_accuracy": "shifted",
    "expected_accuracy": "estimated",
    "public_score": "public",
    "private_score": "private",
    "test_accuracy": "test",
    "suite_accuracy": "suite",
    "pooled_accuracy": "pooled",
}
_METRIC_SPLITS = {"val_metric": "val", "ood_metric": "shifted", "suite_metric": "suite", "pooled_metric": "pooled"}
LEGEND = "< significantly worse than the row above (95 %); ~ not significant"
_UNDEFINED = "- undefined for the images that were scored: comp report RUN says why"


def print_leaderboard(
    rows: "Sequence[LeaderboardRow]", verdicts: "LeaderboardAnalysis", root: Any, top: int, sort: str
) -> None:
    """Print the leaderboard's first rows, 0 for all, and its analysis; a table for each metric that it is sorted by.

    A rank is followed by `<` if the row is significantly worse than the row above it, by `~` if it is not.
    """
    from comp.results import leaderboard  # loads NumPy, which other output does not need

    if not rows:
        _print_none(root)
        return
    listed = rows[:top] if top else rows
    marks = ["" if above is None else " <" if above.is_real else " ~" for above in verdicts.above[: len(listed)]]
    columns, start = leaderboard.sort_columns(rows, sort), 0
    groups = leaderboard.comparable_groups(listed, sort)
    for group in groups:
        title = f"{group[0].competition}: {group[0].metric} ({group[0].task})" if len(groups) > 1 else ""
        _print_board(group, marks[start : start + len(group)], columns, title)
        start += len(group)
    print_text(leaderboard.describe_sort(rows, sort))
    if len(listed) < len(rows):
        print_text(f"{len(rows) - len(listed):,} more: --top 0 shows all, --csv writes them")
    if any(marks):
        print_line(LEGEND)
    if any(row.undefined for row in listed):
        print_text(_UNDEFINED)
    for sentence in verdicts.sentences():
        print_text(sentence)


def _print_none(root: Any) -> None:
    print_line(f"no complete runs under {root}")


def print_unfinished(unfinished: "Sequence[UnfinishedRun]") -> None:
    """Print the runs that are not complete, each with the command that continues it: a line that can be copied."""
    if unfinished:
        print_line(f"{plural(len(unfinished), 'run is', 'runs are')} not complete:")
    for run in unfinished:
        planned = f" of {run.of:,}" if run.of else ""
        place = f" after epoch {run.epochs:,}{planned}" if run.epochs else " in epoch 1"
        print_text(": ".join(filter(None, (f"{run.state}{place * (run.state != 'damaged')}", run.reason))))
        print_line(f"  {run.resume or run.run}")


def _print_board(
    rows: "Sequence[LeaderboardRow]", marks: Sequence[str], sort_columns: Mapping[str, str], title: str
) -> None:
    """Print a table of rows, best first, without empty columns; `marks` stand behind the ranks."""
    metrics = [name for name in dict.fromkeys(row.metric for row in rows) if name != "accuracy"]
    parent = _common_folder([row.run for row in rows])
    cells = [board_cells(row, rank, metrics) for rank, row in enumerate(rows, 1)]
    for line in cells:
        line["run"] = os.path.relpath(line["run"], parent) if parent else line["run"]
    headings = [name for name in cells[0] if any(line[name] for line in cells) or name == "submission"]
    lines = [[line[name] + mark * (name == "#") for name in headings] for line, mark in zip(cells, marks, strict=True)]
    title = ", ".join(filter(None, (title, f"runs in {parent}" if parent else "")))
    if len(lines) > _MAX_DRAWN_ROWS:
        print_text(title)
        _print_plain([headings, *lines])
        return
    sort_headings = {_heading(row, sort_columns[row.competition]) for row in rows}
    # The metric's own columns go late; last the variant, which tells rows of one run apart.
    order = dict.fromkeys([*_DROPPED, *(name for name in headings if name != "variant"), "variant"])
    drop = [name for name in order if name in headings and name not in ("#", "run", *sort_headings)]
    print_table(
        headings,
        lines,
        title=title,
        folded={"overrides": 16, "variant": 14},
        shortened={"run": _RUN_WIDTH, "submission": 28, "model": 18},
        drop=drop,
        full_table="--csv",
    )


def _common_folder(paths: Sequence[str]) -> str:
    """Return the folder that holds all of some runs, for a title instead of each cell; empty for paths of two kinds."""
    try:
        return os.path.commonpath([os.path.dirname(path) for path in paths])
    except ValueError:  # absolute ones and relative ones
        return ""


def _heading(row: "LeaderboardRow", column: str) -> str:
    """Return the table's heading of a column of `LeaderboardRow`."""
    if column in _METRIC_SPLITS:
        return _METRIC_SPLITS[column] if row.metric == "accuracy" else f"{_METRIC_SPLITS[column]} {row.metric}"
    return {**_SCORES, "train_minutes": "minutes"}.get(column, column)


def _print_plain(lines: Sequence[Sequence[str]]) -> None:
    """Print rows without a frame, which would take a millisecond a row."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        text = "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        print(escape.one_line(text.rstrip()))


def board_cells(row: "LeaderboardRow", rank: int, metrics: Sequence[str] = ()) -> dict[str, str]:
    """Return a row's cells by heading, with headings such as `val log_loss` for each of the metrics."""
    scores: dict[str, float | None] = {}
    for column, split in _METRIC_SPLITS.items():
        scores |= {f"{split} {name}": getattr(row, column) if name == row.metric else None for name in metrics}
    scores |= {heading: getattr(row, column) for column, heading in _SCORES.items()}
    cells = {name: "" if score is None else f"{score:.4f}" for name, score in scores.items()}
    cells |= {f"{_METRIC_SPLITS[column]} {row.metric}": "-" for column in row.undefined if row.metric in metrics}
    bounds = (row.expected_low, row.expected_high)
    flags = [name for name, holds in (("test-like", row.test_like), ("transductive", row.transductive)) if holds]
    flags += filter(None, row.lessons.split(", "))
    flags += [f"groups: {row.group_answer}"] if row.group_answer else []
    return {
        "#": str(rank),
        "run": row.run,
        "variant": row.variant,
        "fold": row.fold.replace(" of ", "/"),
        "overrides": re.sub(r"(^| )(?:[^ =.]+\.)+([^ =.]+=)", r"\1\2", row.overrides),
        "model": row.model,
        "parameters": f"{row.parameters:,}",
        **cells,
        "estimated range": "" if None in bounds else " to ".join(f"{bound:.2f}" for bound in bounds),
        "minutes": f"{row.train_minutes:.1f}",
        "device": row.device,
        "submission": " ".join(filter(None, (row.submission, f"({', '.join(flags)})" if flags else ""))),
    }


def print_groups(
    groups: "Sequence[ColumnGroup]", by: str, rows: "Sequence[LeaderboardRow]", root: Any, sort: str
) -> None:
    """Print the leaderboard's rows grouped by a column."""
    from comp.results import leaderboard

    if not rows:
        _print_none(root)
        return
    lines = [
        [str(group.value), f"{group.runs:,}", *map(_cell, (group.best, group.mean, group.deviation)), group.best_run]
        for group in groups
    ]
    headings = (by, "runs", "best", "mean", "deviation", "best run")
    shortened = {by: 14, "best run": _RUN_WIDTH}
    print_table(headings, lines, shortened=shortened, drop=("deviation", "mean"), full_table="--csv")
    print_text(leaderboard.describe_sort(rows, sort))
    if any(group.best is None for group in groups) and len({row.metric for row in rows}) > 1:
        print_text("runs of several metrics have no common best or mean; use --competition NAME or --group-by metric")


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)


def print_rows(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], syntax: str) -> None:
    """Print all rows as `csv` for another program, or as a table in `md`."""
    if syntax == "csv":
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(columns)
        for row in rows:
            writer.writerow(["" if row[name] is None else escape.for_spreadsheet(row[name]) for name in columns])
        return
    print("| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))
    for row in rows:
        print("| " + " | ".join(escape.for_markdown(_cell(row[name])) for name in columns) + " |")


def metric_heads(rows: "Sequence[LeaderboardRow]", columns: Sequence[str]) -> dict[str, str]:
    """Return column -> heading of a Markdown table, naming the metric if all rows share one that is not accuracy."""
    names = {row.metric for row in rows}
    headings = {column: column for column in columns}
    if len(names) == 1 and names != {"accuracy"}:
        headings |= {column: f"{split} {next(iter(names))}" for column, split in _METRIC_SPLITS.items()}
    return headings
