"""Tables of models and of data."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.table import Column, Table

if TYPE_CHECKING:
    from comp.data.dataset import Dataset
    from comp.data.quality import DataFinding
    from comp.models.zoo import Costs, ModelSummary

from comp.cli.console.output import err, out, print_json, print_line, print_table

MOST_COUNTED_MODELS = 120  # each takes a tenth of a second to two


def print_models(rows: "Sequence[ModelSummary]", counted: "Mapping[str, Costs | None]", as_json: bool) -> None:
    """Print the model table; costs are left out where too many models were asked for."""
    if as_json:
        costs = {name: asdict(found) for name, found in counted.items() if found}
        print_json([{**asdict(row), **costs.get(row.name, {})} for row in rows])
        return
    if not rows:
        print_line("no model has such a name; try `comp models 'resnet*'`")
        return
    heads = ("model", "family", "architecture", "cifar stem", "weights", "parameters", "GMACs", "feature map")
    lines = [
        (row.name, row.family, row.architecture, "yes" if row.cifar_stem else "", row.weights,
         *_cost_cells(row.name, counted))
        for row in rows
    ]  # fmt: skip
    print_table(heads, lines, folded={"model": 16}, drop=("architecture", "feature map", "family", "weights"))
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
    out.print(table)
    print_notes(dataset)


def print_notes(dataset: "Dataset") -> None:
    """Print what a user should know of how the data were read."""
    for note in dataset.notes:
        err.print(f"note: {note}")


def print_contents(described: dict[str, Any]) -> None:
    """Print what `comp data show` has found: a table of splits, and one of labels."""
    splits = described["splits"]
    table = Table("split", "images", "shape (C, H, W)", "mean", "std")
    for name, found in splits.items():
        table.add_row(name, f"{found['images']:,}", *[str(found[key]) for key in ("shape", "mean", "std")])
    out.print(table)
    labels = Table("class", *splits, title=f"images of each of {described['classes']} classes")
    for label in next(iter(splits.values()))["labels"]:
        labels.add_row(label, *[f"{found['labels'][label]:,}" if found["labels"] else "" for found in splits.values()])
    out.print(labels)


def print_findings(findings: "Sequence[DataFinding]") -> None:
    """Print what `comp data check` has found."""
    table = Table("looked for", "found", "verdict", Column("first", overflow="fold"))
    for found in findings:
        table.add_row(found.what, f"{found.count:,}", found.verdict, ", ".join(found.examples))
    out.print(table)
