"""What a study prints."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from comp.tuning.results import Report, Standing

from comp.cli.console.output import err, print_line, print_table

_TRIALS = ("trial", "of", "seed", "state", "seconds", "parameters", "epochs", "reason")  # what is no knob or score


def print_trial(part: str, standing: "Standing") -> None:
    """Print how far a study is, as a trial ends."""
    row, counts = standing.last, standing.counts
    ended = sum(counts[state] for state in ("done", "pruned", "failed"))
    name = f"trial {row['of']} with seed {row['seed']}" if "of" in row else f"trial {row['trial']}"
    values = "".join(f"  {key} {row[key]:.4f}" for key in list(row) if _is_value(row, key))
    best = "" if standing.best is None or "of" in row else f"  best {standing.best_value:.4f} (trial {standing.best})"
    others = "".join(f"  {state} {counts[state]}" for state in ("running", "pruned", "failed") if counts[state])
    left = f"  about {_duration(standing.seconds_left)} left" if standing.seconds_left else ""
    reason = f"  {row['reason']}" if row["reason"] else ""
    line = f"{part} {ended}/{standing.total}  {name} {row['state']}{values}{reason}{best}{others}{left}"
    err.print(line)


def _is_value(row: Mapping[str, Any], name: str) -> bool:
    names = list(row)
    return names.index("state") < names.index(name) < names.index("seconds") and row[name] is not None


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def print_study(report: "Report") -> None:
    """Print what a study has come to: its trials, which knobs told, the best with new seeds, and where all lies."""
    rows = report.trials
    shown = [name for name in (rows[0] if rows else ()) if any(row[name] not in (None, "") for row in rows)]
    shown = [name for name in shown if name != "run"]
    title = f"study {report.name}: {', '.join(f'{count} {state}' for state, count in report.counts.items() if count)}"
    lines = [
        [f"{row['trial']}{'*' if row['trial'] in report.pareto else ''}", *[_told(row[name]) for name in shown[1:]]]
        for row in rows
    ]
    knobs = [name for name in shown if name not in (*_TRIALS, *report.metrics)]
    folded = {name: 12 if name in knobs else 20 for name in (*knobs, "reason")}
    drop = ("epochs", "parameters", "seconds", "reason", *reversed(knobs))
    print_table(shown, lines, title=title, folded=folded, drop=drop, elsewhere="trials.csv")
    if report.pareto:
        print_line("* best" if len(report.metrics) == 1 else "* no other trial is better in everything (Pareto front)")
    if report.importance:
        print_line("importance  " + ", ".join(f"{path} {share:.2f}" for path, share in report.importance.items()))
    if report.confirmed:
        heads = ("trial", "in the search", "new seeds", "mean", "deviation", "seconds", "parameters",
                 "within noise of the best")  # fmt: skip
        again = [
            (
                str(found.trial), f"{found.searched:.4f}", ", ".join(f"{score:.4f}" for score in found.scores),
                f"{found.mean:.4f}", "" if found.deviation is None else f"{found.deviation:.4f}",
                f"{found.seconds:.1f}", f"{found.parameters:,}", "yes" if found.within_noise else "",
            )
            for found in report.confirmed
        ]  # fmt: skip
        title = f"{report.metrics[0]} with new seeds"
        print_table(heads, again, title=title, folded={"new seeds": 7}, drop=("parameters", "seconds", "deviation"))
    if report.recommended is not None:
        first = not report.confirmed or report.recommended == report.confirmed[0].trial
        why = "the best" if first else "the cheapest within a standard error of the best"
        print_line(f"recommended trial {report.recommended}: {why}")
    print_line(f"trials      {report.folder / 'trials.csv'}, {report.folder / 'study.html'}")
    if report.best:
        print_line(f"config      {report.best}")


def _told(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else str(value)
