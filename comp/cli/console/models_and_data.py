"""Print models and data."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.table import Column, Table

if TYPE_CHECKING:
    from comp.data.dataset import Dataset
    from comp.data.quality import DataFinding
    from comp.models.zoo import Costs, ModelSummary

from comp.cli.console.output import err, out, print_json, print_line, print_table

MOST_COUNTED_MODELS = 120  # counting one takes 0.1 to 2 seconds


def print_models(rows: "Sequence[ModelSummary]", counted: "Mapping[str, Costs | None]", as_json: bool) -> None:
    """Print the model table, without costs if there are too many models."""
    if as_json:
        costs = {name: asdict(cost) for name, cost in counted.items() if cost}
        print_json([{**asdict(row), **costs.get(row.name, {})} for row in rows])
        return
    if not rows:
        print_line("no model matches; try `comp models 'resnet*'`")
        return
    heads = ("model", "family", "architecture", "cifar stem", "weights", "parameters", "GMACs", "feature map")
    lines = []
    for row in rows:
        stem = "yes" if row.cifar_stem else ""
        lines.append((row.name, row.family, row.architecture, stem, row.weights, *_cost_cells(row.name, counted)))
    print_table(heads, lines, folded={"model": 16}, drop=("architecture", "feature map", "family", "weights"))
    if not counted:
        print_line(f"no costs: more than {MOST_COUNTED_MODELS} models match; narrow the pattern")


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
    table = Table("data", "value")
    for name, value in values.items():
        if name != "notes":
            table.add_row(name, f"{value:,}" if isinstance(value, int) else str(value))
    out.print(table)
    print_notes(dataset)


def print_notes(dataset: "Dataset") -> None:
    """Print notes on how the data were read."""
    for note in dataset.notes:
        err.print(f"note: {note}")


def print_contents(described: dict[str, Any]) -> None:
    """Print the results of `comp data show`: a table of splits, and one of labels."""
    splits = described["splits"]
    table = Table("split", "images", "shape (C, H, W)", "mean", "std")
    for name, split in splits.items():
        table.add_row(name, f"{split['images']:,}", *[str(split[key]) for key in ("shape", "mean", "std")])
    out.print(table)
    labels = Table("class", *splits, title=f"images in each of {described['classes']} classes")
    for label in next(iter(splits.values()))["labels"]:
        labels.add_row(label, *[f"{split['labels'][label]:,}" if split["labels"] else "" for split in splits.values()])
    out.print(labels)


def print_findings(findings: "Sequence[DataFinding]") -> None:
    """Print the findings of `comp data check`."""
    table = Table("check", "found", "verdict", Column("examples", overflow="fold"))
    for finding in findings:
        table.add_row(finding.what, f"{finding.count:,}", finding.verdict, ", ".join(finding.examples))
    out.print(table)
