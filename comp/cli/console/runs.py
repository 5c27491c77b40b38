"""What a run has come to."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from pathlib import Path

    from comp.results.predictions import Predictions
    from comp.results.run_metrics import AccuracyEstimate, RunMetrics, SplitScores
    from comp.results.runs import Run
    from comp.workflows.rehearse import Stage

from comp.cli.console.output import out, print_line, print_note, print_table
from comp.runtime.errors import RunError

# Columns of an evaluation that go where the window is narrow, the first one first.
_DROPPED = ("micro F1", "macro F1", "top 5", "recall", "precision", "images", "ECE", "F1")

_SHOWN_ANSWERS, _SHOWN_COLUMNS = 20, 8  # of a table of predicted images


def print_summary(run: "Run", scores: "RunMetrics") -> None:
    """Print what a run has come to: clean, shifted by severity, seconds, and where everything lies."""
    columns = ["accuracy", "log_loss"]
    columns += [scores.metric] if scores.metric not in columns else []
    heads = ("loss" if name == "log_loss" and name != scores.metric else name for name in columns)
    rows = [
        [name, f"{split.images:,}", *(_spelled(split.value(column)) for column in columns)]
        for name, split in _split_rows(scores)
        if split
    ]
    if rows:
        title = f"{scores.competition}: {scores.model}"
        print_table(["split", "images", *heads], rows, title=title, folded={"split": 16}, drop=("images",))
    if scores.stopped:
        out.print(f"stopped early: {scores.stopped}")
    if scores.averaged.missing:
        out.print(f"no averaged weights: the training {scores.averaged.missing}")
    suite = scores.split_scores("suite")
    shifted = suite or scores.best_or_final.ood_val
    if shifted and shifted.by_block:
        title = f"suite{scores.variant}" if suite else "shifted validation"
        out.print(_severity_table(shifted, title))
    marks = f", test-like augmentation ({', '.join(scores.test_like)})" if scores.test_like else ""
    trained = f"trained {scores.epochs} epochs" if scores.kind == "run" else f"{scores.model}, made"
    print_line(f"{trained} in {scores.train_seconds:.1f} s on {scores.device}{marks}")
    print_line(f"run         {run.path}")
    if scores.submission:
        print_line(f"submission  {scores.submission}")
    _print_tracked(run)


def _split_rows(scores: "RunMetrics") -> "Iterator[tuple[str, SplitScores | None]]":
    yield "validation", scores.best_or_final.val
    if scores.best_or_final is scores.best:
        yield "validation, last epoch", scores.final.val
    yield "validation, averaged", scores.averaged.val
    yield "validation, shifted", scores.best_or_final.ood_val
    yield "test", scores.test
    yield "suite", scores.suite
    yield from sorted(scores.variants.items())


def _spelled(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _print_tracked(run: "Run") -> None:
    from comp.tracking import state

    try:
        known = state.read(run)
    except RunError as error:  # the results above are whole
        print_note(f"note: {error}")
        return
    if known is not None:
        whole = state.is_told(run) and not state.waiting(run)
        where = "uploaded" if whole else "waits: comp leaderboard --sync uploads it"
        print_line(f"W&B         {known.project}/{known.id}, {where}")


def print_prediction(
    run: "Run", found: "Predictions", result: "str | SplitScores | None", expected: "AccuracyEstimate | None"
) -> None:
    """Print a prediction's CSV, or its scores; and the accuracy estimated for it."""
    adapt = found.made_by["adapt"]
    if adapt != "none" and not found.made_by["adapted_layers"]:
        print_line(f"note: this network has no layer that {adapt} could adapt, so it did nothing")
    marks = " (transductive)" if found.made_by["transductive"] else ""
    if isinstance(result, str):
        print_line(f"{run.path}: {len(found):,} rows in {result}{marks}")
    else:
        shown = (
            {"loss" if name == "log_loss" else name: one.value for name, one in result.scores.items()} if result else {}
        )
        scores = ", ".join(f"{name} {value:.4f}" for name, value in shown.items()) or "labels are unknown"
        print_line(f"{run.path}: {len(found):,} images, {scores}{marks}")
    if expected:
        before = f"; {expected.before:.4f} before adapting" if expected.before is not None else ""
        print_line(
            f"expected accuracy {expected.accuracy:.4f}, {expected.low:.4f} to {expected.high:.4f}: a block's "
            f"interval is {expected.width:.4f} wide on average, for 90 % of blocks of corruptions not seen{before}"
        )


def print_answers(header: Sequence[str], rows: Sequence[Sequence[str]], path: "Path") -> None:
    """Print the first predicted images as a table, and where all of them lie."""
    table = Table(*header[:_SHOWN_COLUMNS])
    for row in rows[:_SHOWN_ANSWERS]:
        table.add_row(*(escape(cell) for cell in row[:_SHOWN_COLUMNS]))
    out.print(table)
    shown = f", the first {_SHOWN_ANSWERS} above" if len(rows) > _SHOWN_ANSWERS else ""
    print_line(f"{len(rows):,} images in {path}{shown}; all probabilities in {path.with_suffix('.npz')}")


def _severity_table(shifted: "SplitScores", title: str) -> Table:
    """Return accuracy by distortion and severity, with means in the last row and column."""
    severities = list(shifted.by_severity)
    table = Table("distortion", *severities, "mean", title=f"{title}: accuracy by distortion and severity")
    blocks = list(shifted.by_block.values())
    for row, (name, mean) in enumerate(shifted.by_distortion.items()):
        cells = blocks[row * len(severities) : (row + 1) * len(severities)]
        table.add_row(name, *[f"{cell:.3f}" for cell in cells], f"{mean:.3f}")
    table.add_section()
    table.add_row(
        "mean",
        *[f"{value:.3f}" for value in shifted.by_severity.values()],
        "" if shifted.accuracy is None else f"{shifted.accuracy:.3f}",
    )
    return table


def print_evaluation(values: Mapping[str, Any]) -> None:
    """Print what evaluation.json holds: a row for each split, then classes and confusions of the last clean one."""
    splits = {name: found for name, found in values.items() if "classes" in found}
    rows = [_evaluation_cells(name, found) for name, found in splits.items()]
    title = "precision, recall and F1 weighted by images"
    print_table(
        list(rows[0]), [list(cells.values()) for cells in rows], title=title, folded={"split": 12}, drop=_DROPPED
    )
    (name,) = [name for name in splits if "by_block" not in splits[name]][-1:] or list(splits)[-1:]
    _print_classes(name, splits[name]["classes"])
    for label, answer, count in splits[name].get("confused", ()):
        out.print(f"{label} taken for {answer}: {count}")
    if relative := values.get("mean_corruption_error"):
        share = f"{relative['value']:.1f} % of {relative['baseline']}'s"
        out.print(f"mean corruption error on {relative['split']}: {share}")


def _evaluation_cells(name: str, found: Mapping[str, Any]) -> dict[str, str]:
    own = found["metric"]
    scores = {own["name"]: own["value"]} if own["name"] not in ("accuracy", "log_loss") else {}
    scores |= {"accuracy": found["accuracy"], "top 5": found.get("top5"), "loss": found["loss"]}
    scores |= {
        head: found["weighted"][key] for head, key in (("precision", "precision"), ("recall", "recall"), ("F1", "f1"))
    }
    scores |= {f"{average} F1": found[average]["f1"] for average in ("macro", "micro") if average in found}
    scores["ECE"] = found["calibration"]["ece"]
    shown = {head: _spelled(score) for head, score in scores.items() if score is not None}
    return {"split": name, "images": f"{found['images']:,}", **shown}


def _print_classes(name: str, classes: Sequence[Mapping[str, Any]]) -> None:
    from comp.results.diagnostics import CLASS_SCORES  # loads NumPy, which the bars can do without

    columns = [key for key in CLASS_SCORES if key in classes[0]]
    heads = ["class", "images", *(CLASS_SCORES[key] for key in columns)]
    rows = [[row["name"], f"{row['images']:,}", *(_spelled(row[key]) for key in columns)] for row in classes]
    print_table(heads, rows, title=f"{name}, by class", folded={"class": 16}, drop=("threshold", "recall", "precision"))


def print_stages(stages: "Sequence[Stage]") -> None:
    """Print a rehearsal."""
    table = Table("stage", "seconds", "found", title="rehearsal: every stage went through")
    for stage in stages:
        table.add_row(stage.name, f"{stage.seconds:.1f}", stage.found)
    out.print(table)
