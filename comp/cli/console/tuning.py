"""Print studies."""

import importlib.util
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from comp.tuning.confirm import ConfirmedTrial
    from comp.tuning.results import StudyProgress, StudyReport

from comp.cli.console.output import err, print_line, print_note, print_table, print_text, print_written
from comp.results.machine import hide_passwords
from comp.runtime.errors import plural

_TRIAL_COLUMNS = ("trial", "of", "seed", "state", "seconds", "parameters", "epochs", "reason")  # neither knob nor score


def print_watch(root: Path, storage: str = "") -> None:
    """Print the command that shows runs in the browser, and for a study Optuna's own if it is installed."""
    print_note(f"watch it: {shlex.join(['comp', 'watch', str(root)])}")
    if storage and importlib.util.find_spec("optuna_dashboard"):
        url = hide_passwords(storage.removeprefix("journal:///"))
        print_note(f"or: {shlex.join(['optuna-dashboard', url])}")


def print_trial(part: str, progress: "StudyProgress") -> None:
    """Print a trial that has ended, and how far its study is."""
    row, counts = progress.last, progress.counts
    ended = sum(counts[state] for state in ("done", "pruned", "failed"))
    name = f"trial {row['of']} with seed {row['seed']}" if "of" in row else f"trial {row['trial']}"
    values = "".join(f"  {key} {row[key]:.4f}" for key in list(row) if _is_score(row, key))
    best = "" if progress.best is None or "of" in row else f"  best {progress.best_value:.4f} (trial {progress.best})"
    others = "".join(f"  {state} {counts[state]}" for state in ("running", "pruned", "failed") if counts[state])
    seconds = progress.seconds_left or 0.0
    remaining = f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
    left = f"  about {remaining} left" if seconds else ""
    reason = f"  {row['reason']}" if row["reason"] else ""
    err.print(f"{part} {ended}/{progress.total}  {name} {row['state']}{values}{reason}{best}{others}{left}")


def _is_score(row: Mapping[str, Any], name: str) -> bool:
    names = list(row)
    return names.index("state") < names.index(name) < names.index("seconds") and row[name] is not None


def print_study(report: "StudyReport") -> None:
    """Print a study's trials, importances, confirmed trials, and files."""
    rows = report.trials
    columns = [name for name in (rows[0] if rows else ()) if any(row[name] not in (None, "") for row in rows)]
    columns = [name for name in columns if name != "run"]
    title = f"study {report.name}: {', '.join(f'{count} {state}' for state, count in report.counts.items() if count)}"
    marks = ["*" if row["trial"] in report.pareto else "" for row in rows]
    lines = [
        [f"{row['trial']}{mark}", *(_cell(row[name], name) for name in columns[1:])]
        for row, mark in zip(rows, marks, strict=True)
    ]
    knobs = [name for name in columns if name not in (*_TRIAL_COLUMNS, *report.metrics)]
    folded = {name: 12 if name in knobs else 20 for name in (*knobs, "reason")}
    drop = ("epochs", "parameters", "seconds", "reason", *reversed(knobs))
    if rows:
        print_table(columns, lines, title=title, folded=folded, drop=drop, full_table="trials.csv")
    else:
        print_line(f"study {report.name}: no trials")
    if report.pareto:
        print_line("* best" if len(report.metrics) == 1 else "* Pareto front")
    if report.importance:
        print_text("importance  " + ", ".join(f"{path} {share:.2f}" for path, share in report.importance.items()))
    if report.confirmed:
        confirmed = [_confirmed_cells(trial) for trial in report.confirmed]
        print_table(
            list(confirmed[0]),
            [list(cells.values()) for cells in confirmed],
            title=f"{report.metrics[0]} with new seeds",
            folded={"new seeds": 7},
            drop=("parameters", "seconds", "deviation"),
        )
    if report.recommended is not None:
        is_best = not report.confirmed or report.recommended == report.confirmed[0].trial
        reason = "the best" if is_best else "the cheapest within a standard error of the best"
        print_line(f"recommended trial {report.recommended}: {reason}")
    if report.interrupted:
        numbers = ", ".join(map(str, report.interrupted))
        print_line(f"{plural(len(report.interrupted), 'interrupted trial')}: {numbers}")
    print_written(report.folder / "trials.csv", report.folder / "study.html", *filter(None, [report.best]))


def _confirmed_cells(trial: "ConfirmedTrial") -> dict[str, str]:
    return {
        "trial": str(trial.trial),
        "in the search": f"{trial.searched:.4f}",
        "new seeds": ", ".join(f"{score:.4f}" for score in trial.scores),
        "mean": f"{trial.mean:.4f}",
        "deviation": "" if trial.deviation is None else f"{trial.deviation:.4f}",
        "seconds": f"{trial.seconds:.1f}",
        "parameters": f"{trial.parameters:,}",
        "within noise": "yes" if trial.within_noise else "",
    }


def _cell(value: Any, column: str) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if column == "parameters" and value is not None:
        return f"{value:,}"
    return "" if value is None else str(value)
