"""What the terminal shows: bars while work goes on, tables after it.

Bars and epoch lines go to stderr, results to stdout: `comp run --json > result.json` holds the result alone.
"""

import contextlib
import csv
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Column, Table
from rich.text import Text

from comp import signals

if TYPE_CHECKING:
    from comp.data.checks import Finding
    from comp.data.dataset import Dataset
    from comp.leaderboard import Group, Row
    from comp.models.catalogue import Costs, Listed
    from comp.models.surgery import Block
    from comp.predictions import Predictions
    from comp.rehearsal import Stage
    from comp.runs import Run
    from comp.training.fit import Epoch
    from comp.training.lr_find import Found
    from comp.tuning.results import Report, Standing
    from comp.verdicts import Verdicts

_FILE_WIDTH = 200  # columns where stdout is a file or a pipe: nothing is cut off
_out = Console(soft_wrap=True, highlight=False, width=None if sys.stdout.isatty() else _FILE_WIDTH)
_err = Console(stderr=True, soft_wrap=True, highlight=False)
_MOST_DRAWN = 500  # rows of a drawn table
MOST_COUNTED_MODELS = 120  # each takes a tenth of a second to two
_PLAIN_EVERY_SECONDS = 10.0  # between lines where stderr is a file


class _Pace(ProgressColumn):
    """What the work says of itself, else its rate; with the rest of the line it fits in 80 columns."""

    def render(self, task: Task) -> Text:
        if task.fields["note"]:
            return Text(task.fields["note"])
        if not task.speed:
            return Text("")
        unit, speed = task.fields["unit"], task.speed
        return Text(f"{speed / 1e6:,.1f} MB/s" if unit == "bytes" else f"{speed:,.0f} {unit}/s")


class Bars:
    """A `comp.progress.Progress` that draws one bar for the work at hand, or prints a line now and then."""

    def __init__(self, drawn: Progress) -> None:
        self._drawn = drawn
        self._bar: TaskID | None = None
        self._what = ""
        self._began = self._told = time.perf_counter()

    def __call__(self, what: str, done: int, total: int, unit: str = "images", note: str = "") -> None:
        """Show it; raise `Interrupted` where a signal has come."""
        if what != self._what:
            self._begin(what, total, unit)
        assert self._bar is not None
        self._drawn.update(self._bar, completed=done, total=total or None, note=note)
        if not _err.is_terminal:
            self._tell(what, done, total, unit, note)
        signals.stop_if_asked()

    def _begin(self, what: str, total: int, unit: str) -> None:
        if self._bar is not None:
            self._drawn.remove_task(self._bar)
        self._bar = self._drawn.add_task(what, total=total or None, unit=unit, note="")
        self._what, self._began = what, time.perf_counter()

    def _tell(self, what: str, done: int, total: int, unit: str, note: str) -> None:
        now = time.perf_counter()
        if now - self._told < _PLAIN_EVERY_SECONDS:
            return
        self._told = now
        rate = done / max(now - self._began, 1e-9)
        left = f", {(total - done) / rate:,.0f} s left" if total and rate else ""
        _err.print(f"{what}: {done:,} of {total:,} {unit}, {note or f'{rate:,.0f}/s'}{left}")


@contextlib.contextmanager
def bars() -> Iterator[Bars]:
    """Return the progress to pass down."""
    columns = (TextColumn("{task.description}"), BarColumn(10), TextColumn("{task.percentage:>3.0f}%"), _Pace(),
               TimeRemainingColumn())  # fmt: skip
    with Progress(*columns, console=_err, transient=True, disable=not _err.is_terminal) as drawn:
        yield Bars(drawn)


def print_start(run: "Run", rows: "Sequence[Block]", origin: str) -> None:
    """Print a training's folder and what of its model is trained, block by block, before the first step."""
    _err.print(f"run {run.path}", markup=False)
    table = Table("block", "parameters", "trained", "batch norm statistics", title=f"weights: {origin}")
    for row in rows:
        table.add_row(row.name, f"{row.parameters:,}", f"{row.trainable:,}", row.statistics)
    table.add_section()
    table.add_row("all", f"{sum(r.parameters for r in rows):,}", f"{sum(r.trainable for r in rows):,}", "")
    _err.print(table)


def print_epoch(epoch: "Epoch") -> None:
    """Print an epoch's line as it ends."""
    validation = "" if epoch.val_loss is None else f"  val loss {epoch.val_loss:.4f} accuracy {epoch.val_accuracy:.4f}"
    shifted = "" if epoch.ood_accuracy is None else f"  shifted {epoch.ood_accuracy:.4f}"
    _err.print(
        f"epoch {epoch.number:>3}  loss {epoch.train_loss:.4f} accuracy {epoch.train_accuracy:.4f}{validation}{shifted}"
        f"  lr {epoch.lr:.2e}  {epoch.images_per_second:,.0f} images/s  {epoch.seconds:.1f} s"
    )
    if epoch.note:
        _err.print(f"epoch {epoch.number:>3}  {epoch.note}", markup=False)


def print_norms(rows: Sequence[Mapping[str, str]]) -> None:
    """Print the last epoch's rows of norms.csv; nothing where there are none."""
    if not rows:
        return
    last = rows[-1]["epoch"]
    table = Table("layer", "parameters", "gradient norm", "weight norm", title=f"norms in epoch {last}")
    for row in rows:
        if row["epoch"] == last:
            norms = (f"{float(row[name]):.3g}" for name in ("gradient_norm", "weight_norm"))
            table.add_row(row["layer"], f"{int(row['parameters']):,}", *norms)
    _out.print(table)


def print_evaluation(values: Mapping[str, Any]) -> None:
    """Print what evaluation.json holds: a row for each split, then classes and confusions of the last clean one."""
    splits = {name: found for name, found in values.items() if "classes" in found}
    table = Table("split", "images", "accuracy", "top 5", "loss", "precision", "recall", "F1", "macro F1", "ECE",
                  title="precision, recall and F1 weighted by images")  # fmt: skip
    for name, found in splits.items():
        weighted = [f"{found['weighted'][key]:.4f}" for key in ("precision", "recall", "f1")]
        table.add_row(
            name, f"{found['images']:,}", f"{found['accuracy']:.4f}", f"{found['top5']:.4f}", f"{found['loss']:.4f}",
            *weighted, f"{found['macro']['f1']:.4f}", f"{found['calibration']['ece']:.4f}",
        )  # fmt: skip
    _out.print(table)
    (name,) = [name for name in splits if "by_block" not in splits[name]][-1:] or list(splits)[-1:]
    table = Table("class", "images", "precision", "recall", "F1", title=f"{name}, by class")
    for row in splits[name]["classes"]:
        scores = (f"{row[key]:.4f}" for key in ("precision", "recall", "f1"))
        table.add_row(row["name"], f"{row['images']:,}", *scores)
    _out.print(table)
    for label, answer, count in splits[name]["confused"]:
        _out.print(f"{label} taken for {answer}: {count}", markup=False)
    if relative := values.get("mean_corruption_error"):
        share = f"{relative['value']:.1f} % of {relative['baseline']}'s"
        _out.print(f"mean corruption error on {relative['split']}: {share}", markup=False)


def print_line(text: str) -> None:
    """Print a result."""
    _out.print(text, markup=False)


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table of text."""
    table = Table(*[Column(name, overflow="fold") for name in header], title=title)
    for row in rows:
        table.add_row(*row)
    _out.print(table)


def print_note(text: str) -> None:
    """Print what is no part of a result, where it does not mix with one."""
    _err.print(text, markup=False)


def print_json(values: Any) -> None:
    """Print one JSON value."""
    import pydantic_core  # many times faster than the standard library, which is felt at ten thousand rows

    print(pydantic_core.to_json(values, indent=2).decode())


def print_summary(run: "Run", scores: dict[str, Any]) -> None:
    """Print what a run has come to: clean, shifted by severity, seconds, and where everything lies."""
    counted = scores["best"] or scores["final"]
    metric = [scores["metric"]] if scores["metric"] != "accuracy" else []  # a column of its own only if it is another
    table = Table("split", "images", "accuracy", "loss", *metric, title=f"{scores['competition']}: {scores['model']}")
    for name, found in (
        ("validation", counted.get("val")),
        ("validation, last epoch", scores["final"].get("val") if scores["best"] else None),
        ("validation, averaged", scores.get("averaged", {}).get("val")),
        ("validation, shifted", counted.get("ood_val")),
        ("test", scores.get("test")),
        ("suite", scores.get("suite")),
        *sorted(scores.get("variants", {}).items()),
    ):
        if found:
            own = [f"{found['metric']:.4f}"] if metric else []
            table.add_row(name, f"{found['images']:,}", f"{found['accuracy']:.4f}", f"{found['loss']:.4f}", *own)
    _out.print(table)
    if scores["stopped"]:
        _out.print(f"stopped early: {scores['stopped']}", markup=False)
    if missing := scores.get("averaged", {}).get("missing"):
        _out.print(f"no averaged weights: the training {missing}", markup=False)
    from comp import leaderboard  # loads NumPy, which the bars can do without

    suite = leaderboard.own_scores(scores, "suite")
    shifted = suite or counted.get("ood_val")
    if shifted:
        title = f"suite{scores.get('variant', '')}" if suite else "shifted validation"
        _out.print(_severity_table(shifted, title))
    marks = f", test-like augmentation ({', '.join(scores['test_like'])})" if scores["test_like"] else ""
    print_line(f"trained {scores['epochs']} epochs in {scores['train_seconds']:.1f} s on {scores['device']}{marks}")
    print_line(f"run         {run.path}")
    if "submission" in scores:
        print_line(f"submission  {scores['submission']}")
    _print_tracked(run)


def _print_tracked(run: "Run") -> None:
    from comp.tracking import state

    known = state.read(run)
    if known is not None:
        where = "waits: comp leaderboard --sync uploads it" if state.waiting(run) else "uploaded"
        print_line(f"W&B         {known.project}/{known.id}, {where}")


def print_prediction(
    run: "Run", found: "Predictions", result: str | Mapping[str, Any], expected: Mapping[str, Any]
) -> None:
    """Print what a prediction has come to: the CSV that it is in, or its score; and what it is expected to score."""
    adapt = found.made_by["adapt"]
    if adapt != "none" and not found.made_by["adapted_layers"]:
        print_line(f"note: this network has no layer that {adapt} could adapt, so it did nothing")
    marks = " (transductive)" if found.made_by["transductive"] else ""
    if isinstance(result, str):
        print_line(f"{run.path}: {len(found):,} rows in {result}{marks}")
    else:
        accuracy = f"accuracy {result['accuracy']:.4f}, loss {result['loss']:.4f}" if result else "labels are unknown"
        print_line(f"{run.path}: {len(found):,} images, {accuracy}{marks}")
    if expected:
        before = f"; {expected['before']:.4f} before adapting" if "before" in expected else ""
        print_line(
            f"expected accuracy {expected['accuracy']:.4f}, {expected['low']:.4f} to {expected['high']:.4f}: a block's "
            f"interval is {expected['width']:.4f} wide on average, for 90 % of blocks of corruptions not seen{before}"
        )


def _severity_table(shifted: dict[str, Any], title: str) -> Table:
    """Return accuracy by distortion and severity, with means in the last row and column."""
    severities = list(shifted["by_severity"])
    table = Table("distortion", *severities, "mean", title=f"{title}: accuracy by distortion and severity")
    blocks = list(shifted["by_block"].values())
    for row, (name, mean) in enumerate(shifted["by_distortion"].items()):
        cells = blocks[row * len(severities) : (row + 1) * len(severities)]
        table.add_row(name, *[f"{cell:.3f}" for cell in cells], f"{mean:.3f}")
    table.add_section()
    table.add_row("mean", *[f"{value:.3f}" for value in shifted["by_severity"].values()], f"{shifted['accuracy']:.3f}")
    return table


def print_leaderboard(rows: "Sequence[Row]", verdicts: "Verdicts", root: Any, top: int) -> None:
    """Print the leaderboard's first rows, 0 for all, and what is to be said of it. Columns that are empty are left out.

    A score that is more than chance below the one above it is followed by `<`, one that may be chance by `~`.
    """
    if not rows:
        print_line(f"no complete runs under {root}; make one: comp run configs/quickstart.yaml")
        return
    shown = rows[:top] if top else rows
    cells = [board_cells(row, rank) for rank, row in enumerate(shown, 1)]
    kept = [name for name in cells[0] if any(line[name] for line in cells) or name == "submission"]
    signs = ["" if found is None else " <" if found.is_real else " ~" for found in verdicts.above[: len(shown)]]
    lines = [[line[name] + sign * (name == "#") for name in kept] for line, sign in zip(cells, signs, strict=True)]
    if len(lines) > _MOST_DRAWN:
        _print_plain([kept, *lines])
    else:
        table = Table(*[Column(name, overflow="fold") if name in ("run", "submission") else name for name in kept])
        for line in lines:
            table.add_row(*line)
        _out.print(table)
    if len(shown) < len(rows):
        print_line(f"{len(rows) - len(shown):,} more: --top 0 shows all, --csv writes them")
    if any(signs):
        print_line("<: more than chance below the row above it; ~: may be chance (each at 95 %)")
    for sentence in verdicts.sentences():
        print_line(sentence)


def _print_plain(lines: Sequence[Sequence[str]]) -> None:
    """Print many rows below each other without a frame, which would take a millisecond a row."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def board_cells(row: "Row", rank: int) -> dict[str, str]:
    """Return a row of the leaderboard as it is shown."""
    scores = {
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


def print_groups(groups: "Sequence[Group]", by: str, sort: str) -> None:
    """Print runs by what they have in common."""
    table = Table(by, "runs", f"best {sort}", "mean", "deviation", Column("best run", overflow="fold"))
    for group in groups:
        numbers = [_cell(value) for value in (group.best, group.mean, group.deviation)]
        table.add_row(str(group.value), f"{group.runs:,}", *numbers, group.best_run)
    _out.print(table)


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


def _marks(row: "Row") -> str:
    marks = [name for name, holds in (("test-like", row.test_like), ("transductive", row.transductive)) if holds]
    return f" ({', '.join(marks)})" if marks else ""


def print_models(rows: "Sequence[Listed]", counted: "Mapping[str, Costs | None]", as_json: bool) -> None:
    """Print the model table; costs are left out where too many models were asked for."""
    if as_json:
        costs = {name: asdict(found) for name, found in counted.items() if found}
        print_json([{**asdict(row), **costs.get(row.name, {})} for row in rows])
        return
    if not rows:
        print_line("no model has such a name; try `comp models 'resnet*'`")
        return
    table = Table("model", "family", "architecture", "cifar stem", "weights", "parameters", "GMACs", "feature map")
    for row in rows:
        table.add_row(row.name, row.family, row.architecture, "yes" if row.cifar_stem else "", row.weights,
                      *_cost_cells(row.name, counted))  # fmt: skip
    _out.print(table)
    if not counted:
        print_line(f"costs are counted for up to {MOST_COUNTED_MODELS} models; narrow the pattern")


def _cost_cells(name: str, counted: "Mapping[str, Costs | None]") -> list[str]:
    found = counted.get(name)
    if found is None:
        return ["", "", "too small images" if name in counted else ""]
    height, width = found.feature_map
    return [f"{found.parameters:,}", f"{found.gmacs:.3f}", f"{height}x{width}"]


def print_dataset(dataset: "Dataset", as_json: bool) -> None:
    """Print what a config's data hold."""
    found: dict[str, Any] = {
        "classes": len(dataset.competition.classes),
        "image_shape": list(dataset.competition.image_shape),
        "train": len(dataset.train),
        "val": len(dataset.val or ()),
        "test": len(dataset.test or ()),
        "suite": len(dataset.suite or ()),
        "mean": [round(value, 4) for value in dataset.mean],
        "std": [round(value, 4) for value in dataset.std],
        "fingerprint": dataset.fingerprint,
        "loading": "resident" if dataset.resident else "streamed",
        "notes": list(dataset.notes),
    }
    if as_json:
        print_json(found)
        return
    table = Table("what", "found")
    for name, value in found.items():
        if name != "notes":
            table.add_row(name, f"{value:,}" if isinstance(value, int) else str(value))
    _out.print(table)
    print_notes(dataset)


def print_notes(dataset: "Dataset") -> None:
    """Print what a user should know of how the data were read."""
    for note in dataset.notes:
        _err.print(f"note: {note}", markup=False)


def print_contents(described: dict[str, Any]) -> None:
    """Print what `comp data show` has found: a table of splits, and one of labels."""
    splits = described["splits"]
    table = Table("split", "images", "shape (C, H, W)", "mean", "std")
    for name, found in splits.items():
        table.add_row(name, f"{found['images']:,}", *[str(found[key]) for key in ("shape", "mean", "std")])
    _out.print(table)
    labels = Table("class", *splits, title=f"images of each of {described['classes']} classes")
    for label in next(iter(splits.values()))["labels"]:
        labels.add_row(label, *[f"{found['labels'][label]:,}" for found in splits.values()])
    _out.print(labels)


def print_findings(findings: "Sequence[Finding]") -> None:
    """Print what `comp data check` has found."""
    table = Table("looked for", "found", "verdict", Column("first", overflow="fold"))
    for found in findings:
        table.add_row(found.what, f"{found.count:,}", found.verdict, ", ".join(found.examples))
    _out.print(table)


def print_rate_search(found: "Found", picture: Any) -> None:
    """Print the rates that a rising rate has shown, and which of them to set."""
    table = Table("found", "learning rate", title="a rising learning rate")
    table.add_row("steepest descent", f"{found.steepest:.2e}")
    table.add_row("the loss diverges", "not in this range" if found.diverged is None else f"{found.diverged:.2e}")
    table.add_row("a tenth of that", "" if found.tenth is None else f"{found.tenth:.2e}")
    _out.print(table)
    print_line(f"suggestion: optim.lr={found.suggestion:.1e} ({found.reason})")
    print_line(f"picture     {picture}")


def print_stages(stages: "Sequence[Stage]") -> None:
    """Print a rehearsal."""
    table = Table("stage", "seconds", "found", title="rehearsal: every stage went through")
    for stage in stages:
        table.add_row(stage.name, f"{stage.seconds:.1f}", stage.found)
    _out.print(table)


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
    _err.print(line, markup=False)


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
    table = Table(*shown, title=title)
    for row in rows:
        mark = "*" if row["trial"] in report.pareto else ""
        table.add_row(f"{row['trial']}{mark}", *[_cell(row[name]) for name in shown[1:]])
    _out.print(table)
    print_line("* best" if len(report.metrics) == 1 else "* no other trial is better in everything (Pareto front)")
    if report.importance:
        print_line("importance  " + ", ".join(f"{path} {share:.2f}" for path, share in report.importance.items()))
    if report.confirmed:
        again = Table("trial", "in the search", "new seeds", "mean", "deviation", "seconds", "parameters",
                      "within noise of the best", title=f"{report.metrics[0]} with new seeds")  # fmt: skip
        for found in report.confirmed:
            again.add_row(
                str(found.trial), f"{found.searched:.4f}", ", ".join(f"{score:.4f}" for score in found.scores),
                f"{found.mean:.4f}", "" if found.deviation is None else f"{found.deviation:.4f}",
                f"{found.seconds:.1f}", f"{found.parameters:,}", "yes" if found.within_noise else "",
            )  # fmt: skip
        _out.print(again)
    if report.recommended is not None:
        first = not report.confirmed or report.recommended == report.confirmed[0].trial
        why = "the best" if first else "the cheapest within noise of the best"
        print_line(f"recommended trial {report.recommended}: {why}")
    print_line(f"trials      {report.folder / 'trials.csv'}, {report.folder / 'study.html'}")
    if report.best:
        print_line(f"config      {report.best}")


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else str(value)
