"""Print models and data."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from comp.data.dataset import Dataset
    from comp.data.quality import DataFinding
    from comp.models.zoo import Costs, ModelSummary
    from comp.workflows.label_errors import LabelReport

from comp.cli.console.output import print_json, print_line, print_note, print_table, print_text
from comp.runtime.errors import plural

_MOST_PAIRS = 5  # of confused classes
MOST_COUNTED_MODELS = 40  # counting one takes 0.1 to 2 seconds


def print_models(rows: "Sequence[ModelSummary]", counted: "Mapping[str, Costs | None]", as_json: bool) -> None:
    """Print the model table, without costs if there are too many models."""
    if as_json:
        costs = {name: asdict(cost) for name, cost in counted.items() if cost}
        print_json([{**asdict(row), **costs.get(row.name, {})} for row in rows])
        return
    if not rows:
        print_line("no model or family matches")
        return
    heads = ("model", "family", "architecture", "cifar stem", "weights", "parameters", "GMACs", "feature map")
    lines = []
    for row in rows:
        stem = "yes" if row.cifar_stem else ""
        lines.append((row.name, row.family, row.architecture, stem, row.weights, *_cost_cells(row.name, counted)))
    print_table(heads, lines, folded={"model": 16}, drop=("architecture", "feature map", "family", "weights"))
    if not counted:
        print_text(f"no costs: more than {MOST_COUNTED_MODELS} models match; narrow the pattern")


def _cost_cells(name: str, counted: "Mapping[str, Costs | None]") -> list[str]:
    costs = counted.get(name)
    if costs is None:
        return ["", "", "images too small" if name in counted else ""]
    height, width = costs.feature_map
    return [f"{costs.parameters:,}", f"{costs.gmacs:.3f}", f"{height}x{width}"]


def print_dataset(dataset: "Dataset", as_json: bool) -> None:
    """Print a config's splits, statistics and notes."""
    values: dict[str, Any] = {
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
        print_json(values)
        return
    rows = [
        [name.replace("_", " "), f"{value:,}" if isinstance(value, int) else _numbers(value)]
        for name, value in values.items()
        if name != "notes"
    ]
    print_table(["data", "value"], rows, folded={"value": 20})
    print_notes(dataset)


def print_notes(dataset: "Dataset") -> None:
    """Print notes on how the data were read."""
    for note in dataset.notes:
        print_note(f"note: {note}")


def print_contents(described: dict[str, Any]) -> None:
    """Print the results of `comp data show`: a table of splits, and one of labels."""
    splits = described["splits"]
    rows = [
        [name, f"{split['images']:,}", *(_numbers(split[key]) for key in ("shape", "mean", "std"))]
        for name, split in splits.items()
    ]
    print_table(["split", "images", "shape (CHW)", "mean", "std"], rows, drop=("shape (CHW)", "std", "mean"))
    first = next(iter(splits.values()))["labels"]
    numeric = any(isinstance(count, float) for count in first.values())
    classes = plural(described["classes"], "class", "classes")
    title = "numbers in the labels" if numeric else f"images in each of {classes}"
    heading = "statistic" if numeric else "class"
    counts = [
        [label, *(f"{split['labels'][label]:,}" if split["labels"] else "" for split in splits.values())]
        for label in first
    ]
    print_table([heading, *splits], counts, title=title, folded={heading: 16})


def _numbers(value: Any) -> str:
    """Return `0.3055 0.3055 0.3055` for a list, anything else as text."""
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def print_findings(findings: "Sequence[DataFinding]") -> None:
    """Print the findings of `comp data check`."""
    rows = [[finding.what, f"{finding.count:,}", finding.verdict] for finding in findings]
    print_table(["check", "found", "verdict"], rows, folded={"check": 40})
    for finding in findings:
        if finding.examples:
            print_text(f"{finding.what}: {', '.join(finding.examples)}")


_WEAK = 0.2  # networks that miss more images list mostly their own mistakes


def print_label_errors(report: "LabelReport", count: int) -> None:
    """Print the first likely wrong labels, the most confused pairs of classes, and how many labels were judged."""
    rows = [
        [row.id, row.given, row.label, f"{row.probability:.3f}", f"{row.margin:.3f}", row.action]
        for row in report.suspects[:count]
    ]
    if rows:
        heads = ("id", "given", "suggested", "probability", "margin", "action")
        print_table(heads, rows, folded={"given": 8, "suggested": 8}, shortened={"id": 16}, drop=("margin",))
    for given, true, images in report.pairs[:_MOST_PAIRS]:
        print_line(f"given {given}, likely {true}: about {plural(images, 'image')}")
    share, disagreeing = report.estimated / report.images, report.disagreeing / report.images
    print_line(f"at most about {report.estimated:,} of {report.images:,} labels are wrong ({share:.1%})")
    if disagreeing > _WEAK:
        print_note(
            f"note: the networks disagree with {disagreeing:.0%} of all labels: most that are listed may be right"
        )
        print_note("note: train better ones first, or look at every picture before you use the list")
    actions = [suspect.action for suspect in report.suspects]
    shown = f", the first {count:,} above" if len(actions) > count else ""
    relabel, drop = actions.count("relabel"), actions.count("drop")
    listed = plural(len(actions), "label is", "labels are")
    print_line(f"{listed} listed{shown}: {relabel:,} to relabel, {drop:,} to drop")
    if report.kept:
        print_text(f"{plural(report.kept, 'more is', 'more are')} marked keep in the run's fix list, and not listed")
    first, members = report.trained[0].path, len(report.trained)
    print_line(f"judged by {first}" + (f" and {plural(members - 1, 'more run')}" if members > 1 else ""))
    if report.unjudged:
        others = f"{plural(report.unjudged, 'other image')} {'was' if report.unjudged == 1 else 'were'} trained on"
        print_text(f"{others}, so only comp cv, with all folds, can judge them")
