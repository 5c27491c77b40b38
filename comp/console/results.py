"""What a run has come to."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table

if TYPE_CHECKING:
    from comp.predictions import Predictions
    from comp.rehearsal import Stage
    from comp.runs import Run

from comp.console.output import out, print_line


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
    out.print(table)
    if scores["stopped"]:
        out.print(f"stopped early: {scores['stopped']}", markup=False)
    if missing := scores.get("averaged", {}).get("missing"):
        out.print(f"no averaged weights: the training {missing}", markup=False)
    from comp import leaderboard  # loads NumPy, which the bars can do without

    suite = leaderboard.own_scores(scores, "suite")
    shifted = suite or counted.get("ood_val")
    if shifted:
        title = f"suite{scores.get('variant', '')}" if suite else "shifted validation"
        out.print(_severity_table(shifted, title))
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
    out.print(table)
    (name,) = [name for name in splits if "by_block" not in splits[name]][-1:] or list(splits)[-1:]
    table = Table("class", "images", "precision", "recall", "F1", title=f"{name}, by class")
    for row in splits[name]["classes"]:
        scores = (f"{row[key]:.4f}" for key in ("precision", "recall", "f1"))
        table.add_row(row["name"], f"{row['images']:,}", *scores)
    out.print(table)
    for label, answer, count in splits[name]["confused"]:
        out.print(f"{label} taken for {answer}: {count}", markup=False)
    if relative := values.get("mean_corruption_error"):
        share = f"{relative['value']:.1f} % of {relative['baseline']}'s"
        out.print(f"mean corruption error on {relative['split']}: {share}", markup=False)


def print_stages(stages: "Sequence[Stage]") -> None:
    """Print a rehearsal."""
    table = Table("stage", "seconds", "found", title="rehearsal: every stage went through")
    for stage in stages:
        table.add_row(stage.name, f"{stage.seconds:.1f}", stage.found)
    out.print(table)
