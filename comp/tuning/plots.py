"""The page of a study, study.html: what is recommended and why, its progress, its knobs, and all trials."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from optuna.trial import FrozenTrial, TrialState

from comp.config.space import Entry, parse_space
from comp.results import charts, files, page, stats
from comp.results.page import Section
from comp.results.stats import Interval
from comp.tuning.confirm import ConfirmedTrial

if TYPE_CHECKING:
    from comp.tuning.results import StudyReport
    from comp.tuning.study import Study

_BEST, _OTHER = charts.colour(1), charts.colour(0)
_MAX_CURVES = 40  # trials whose epochs are drawn, the best


def draw(study: "Study", report: "StudyReport", intervals: Mapping[str, Interval]) -> Path:
    """Write study.html and return its path.

    Args:
        study: the search.
        report: its results.
        intervals: of the importances.
    """
    path = study.folder / "study.html"
    shown = sections(study, report, intervals)
    files.write_atomically(path, page.render(f"study {report.name}", shown).encode())
    return path


def sections(study: "Study", report: "StudyReport", intervals: Mapping[str, Interval]) -> Iterator[Section]:
    """Yield the sections of study.html; see `draw`."""
    counts = ", ".join(f"{count} {state}" for state, count in report.counts.items() if count)
    yield Section("", page.note(f"{', '.join(report.metrics)}; trials: {counts or 'none'}"))
    complete = study.ranked()
    if complete:
        yield Section("Recommendation", _recommendation(report, maximizes=study.maximizes))
        progress = page.grid([_history(study, report), _pareto(study, report)])
        yield Section("Progress", progress + page.note("Dots: complete trials. Orange: the recommended and the best."))
        yield Section("Importance", _importance(report, intervals, len(complete)))
        yield Section("Knobs", page.grid(_knobs(study, report, complete)))
        yield Section("Epochs", _epochs(study, report.metrics[0]))
    best = [number for number, row in enumerate(report.trials) if row["trial"] in (report.recommended, *report.pareto)]
    head = list(report.trials[0]) if report.trials else []
    cells = [[_cell(name, value) for name, value in row.items()] for row in report.trials]
    yield Section("Trials", page.table(head, cells, best=best) if cells else "")


def _recommendation(report: "StudyReport", *, maximizes: bool) -> str:
    """Return which trial is recommended, its scores with new seeds, and its command."""
    metric, number = report.metrics[0], report.recommended
    row = next(row for row in report.trials if row["trial"] == number)
    run = f"<p><code>comp run {page.text(report.best)}</code></p>" if report.best else ""  # written at the end
    if not report.confirmed:
        why = f"trial {number}, {metric} {row[metric]:.4f} in the search. No trial was trained again with new seeds, "
        return page.note(f"Recommended: {why}so this value is biased: it is the luckiest of many.") + run
    chosen = next(trial for trial in report.confirmed if trial.trial == number)
    best = chosen is report.confirmed[0]
    reason = "has the best mean" if best else "is the cheapest within a standard error of the best"
    text = f"Recommended: trial {number}, {metric} {chosen.mean:.4f} with new seeds. It {reason}."
    axis = charts.category_axis("trial", [str(trial.trial) for trial in reversed(report.confirmed)])
    means = [_mean_interval(trial, maximizes=maximizes) for trial in report.confirmed]
    values = [trial.searched for trial in report.confirmed] + [end for ends in means for end in (ends.low, ends.high)]
    plot = charts.Plot(charts.number_axis(metric, values), axis, "with new seeds", height=30.0 * len(axis.ticks) + 72)
    for height, (trial, ends) in enumerate(reversed([*zip(report.confirmed, means, strict=True)])):
        interval = f"{ends.low:.4f} to {ends.high:.4f}"
        tip = f"trial {trial.trial}\nin the search {trial.searched:.4f}\nwith new seeds {trial.mean:.4f} ({interval})"
        plot.dots([(trial.searched, height, tip, "")])
        plot.whisker(height, trial.mean, ends.low, ends.high, tip, 1 if trial.trial == number else 0)
    note = page.note("Filled: mean and its 95 % interval with new seeds. Hollow: the value in the search.")
    cells = [
        [
            str(trial.trial),
            page.number(trial.searched),
            page.number(trial.mean),
            page.number(trial.deviation),
            "yes" if trial.within_noise else "",
        ]
        for trial in report.confirmed
    ]
    head = ("trial", "in the search", "mean, new seeds", "deviation", "within noise of the best")
    table = page.table(head, cells, best=[report.confirmed.index(chosen)])
    return f'<p class="winner">{page.text(text)}</p>{run}' + page.grid([plot.svg() + note, table])


def _mean_interval(trial: ConfirmedTrial, *, maximizes: bool) -> Interval:
    """Return the 95 % interval of a trial's mean, inside the values that its metric can have."""
    ends = stats.mean_interval(np.array(trial.scores)) or Interval(trial.mean, trial.mean)
    if maximizes:  # comp's own metrics end at 1, and losses and errors begin at 0
        return Interval(ends.low, ends.high if max(trial.scores) > 1 else min(ends.high, 1.0))
    return Interval(ends.low if min(trial.scores) < 0 else max(ends.low, 0.0), ends.high)


def _history(study: "Study", report: "StudyReport") -> str:
    """Return the complete trials' values by number, and the line of the best so far."""
    complete = sorted(study.ranked(), key=lambda trial: trial.number)
    values = [trial.values[0] for trial in complete]
    better = max if study.maximizes else min
    so_far = list(itertools.accumulate(values, better))
    steps = [(float(trial.number), value) for trial, value in zip(complete, so_far, strict=True)]
    corners = [point for (_, before), (x, value) in itertools.pairwise(steps) for point in ((x, before), (x, value))]
    plot = charts.Plot(
        charts.number_axis("trial", [row["trial"] for row in report.trials], integers=True),
        charts.number_axis(report.metrics[0], values),
        "values, and the best so far",
    )
    plot.line([steps[0], *corners], 1, dots=False)
    plot.dots(_dots(report, ((trial.number, trial.values[0], trial) for trial in complete)))
    return plot.svg()


def _dots(report: "StudyReport", points: "Iterator[tuple[float, float, FrozenTrial]]") -> Iterator[charts.Dot]:
    highlighted = {report.recommended, *report.pareto}
    for x, y, trial in sorted(points, key=lambda point: point[2].number in highlighted):  # the last is on top
        knobs = "\n".join(f"{path} {_shown(value)}" for path, value in trial.params.items())
        tip = f"trial {trial.number}: {_shown(trial.values[0])}\n{knobs}"
        yield x, y, tip, _BEST if trial.number in highlighted else _OTHER


def _shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else f"{value:,}" if isinstance(value, int) and value >= 10_000 else str(value)


def _cell(column: str, value: object) -> str:
    """Return a cell of the table of trials; a run is its folder's name."""
    if column == "run":
        return f'<td class="text"><span class="whole">{page.text(Path(str(value)).name)}</span></td>'
    return page.text(_shown(value))


def _pareto(study: "Study", report: "StudyReport") -> str:
    if len(report.metrics) != 2:
        return ""
    trials = study.ranked()
    first, second = ([trial.values[place] for trial in trials] for place in (0, 1))
    axes = charts.number_axis(report.metrics[0], first), charts.number_axis(report.metrics[1], second)
    plot = charts.Plot(*axes, "Pareto front")
    plot.dots(_dots(report, zip(first, second, trials, strict=True)))
    return plot.svg()


def _importance(report: "StudyReport", intervals: Mapping[str, Interval], complete: int) -> str:
    if not report.importance:
        return page.note(f"Importance needs 20 complete trials and two knobs that vary. Complete so far: {complete}.")
    rows = list(reversed(report.importance.items()))
    axis = charts.category_axis("", [path for path, _ in rows])
    shares = charts.number_axis(f"share of the variance of {report.metrics[0]}", (0.0, 1.0))
    plot = charts.Plot(shares, axis, height=28.0 * len(rows) + 48)
    for height, (path, share) in enumerate(rows):
        ends = intervals[path]
        tip = f"{path}: {share:.2f} (95 %: {max(ends.low, 0):.2f} to {min(ends.high, 1):.2f})"
        plot.whisker(height, share, max(ends.low, 0.0), min(ends.high, 1.0), tip)
    return page.grid([plot.svg() + page.note("PED-ANOVA. Lines: 95 % intervals, from leaving out groups of trials.")])


def _knobs(study: "Study", report: "StudyReport", complete: Sequence[FrozenTrial]) -> Iterator[str]:
    """Yield each knob's values against the first metric, the most important knob first."""
    entries = {entry.path: entry for entry in parse_space(study.config.tune)}
    for path in dict.fromkeys([*report.importance, *entries]):
        trials = [trial for trial in complete if path in trial.params]
        if trials:
            plot = charts.Plot(
                _knob_axis(entries[path], trials),
                charts.number_axis(report.metrics[0], (trial.values[0] for trial in complete)),
                path,
            )
            places = ((_place(entries[path], trial), trial.values[0], trial) for trial in trials)
            plot.dots(_dots(report, places))
            yield plot.svg()


def _knob_axis(entry: Entry, trials: Sequence[FrozenTrial]) -> charts.Axis:
    if entry.kind == "choice":
        return charts.category_axis("", [str(choice) for choice in entry.choices])
    values = [trial.params[entry.path] for trial in trials]
    return charts.number_axis("", values, integers=entry.kind == "int", log=entry.log)


def _place(entry: Entry, trial: FrozenTrial) -> float:
    """Return where a trial's value lies on `_knob_axis`."""
    value = trial.params[entry.path]
    if entry.kind != "choice":
        return float(value)
    return next(place for place, choice in enumerate(entry.choices) if value in (choice, repr(choice)))


def _epochs(study: "Study", metric: str) -> str:
    """Return the first metric by epoch of the best trials and of pruned ones."""
    pruned = [trial for trial in study.trials() if trial.state == TrialState.PRUNED]
    trials = [trial for trial in (*study.ranked(), *pruned) if len(trial.intermediate_values) > 1][:_MAX_CURVES]
    series = {
        f"trial {trial.number}{' (pruned)' if trial in pruned else ''}": [
            (float(epoch), value) for epoch, value in sorted(trial.intermediate_values.items()) if math.isfinite(value)
        ]
        for trial in trials
    }
    if not series:
        return ""
    styles = {label: 1 if order == 0 else charts.GREY if "pruned" in label else 0 for order, label in enumerate(series)}
    drawn = charts.lines(f"{metric} by epoch", series, "epoch", styles=styles).svg()
    grey = "; grey: pruned trials" if charts.GREY in styles.values() else ""
    return page.grid([drawn + page.note(f"Orange: the best trial; blue: other complete trials{grey}.")])
