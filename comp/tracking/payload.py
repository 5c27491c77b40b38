"""What of a run is told: plain values, read from its folder."""

import csv
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from comp.results import prediction_files
from comp.results.predictions import Predictions
from comp.results.run_metrics import RunMetrics
from comp.results.runs import Run
from comp.runtime.errors import RunError

# A column of history.csv -> its name in W&B, and what its summary keeps.
CURVES = {
    "train_loss": ("train/loss", "min"),
    "train_accuracy": ("train/accuracy", "max"),
    "val_loss": ("val/loss", "min"),
    "val_accuracy": ("val/accuracy", "max"),
    "val_metric": ("val/metric", ""),
    "ood_accuracy": ("ood/accuracy", "max"),
    "ood_metric": ("ood/metric", ""),
    "averaged": ("val/averaged", ""),
    "lr": ("lr", "last"),
    "images_per_second": ("images_per_second", "mean"),
    "seconds": ("seconds", "mean"),
}
_KEPT: dict[str, Callable[[list[float]], float]] = {"min": min, "max": max, "mean": statistics.fmean}
_SEVERITY = "ood_accuracy_"
_LARGE = ("by_block", "by_distortion")  # of scores; they are told as a table
UNTOLD: dict[str, Any] = {"track": True, "tune": {"storage"}}  # of the config; a storage's URL may hold a password
_MOST_NORMS = 10_000  # rows of norms.csv


@dataclass(frozen=True)
class Table:
    """Named columns and rows of as many values."""

    columns: list[Any]
    rows: list[list[Any]]


def name_of(column: str) -> tuple[str, str] | None:
    """Return a column's name in W&B and what its summary keeps; None for one that is no number."""
    if column.startswith(_SEVERITY):
        return f"ood/severity_{column.removeprefix(_SEVERITY)}", "max"
    return CURVES.get(column)


def curves(row: Mapping[str, str]) -> dict[str, float]:
    """Return what a row of history.csv has to say, by its name in W&B."""
    named = {name_of(column): value for column, value in row.items() if value}
    return {name[0]: float(value) for name, value in named.items() if name}


def summaries(rows: Sequence[Mapping[str, str]]) -> dict[str, dict[str, float]]:
    """Return the best, or the mean, of every curve over a whole history: of all segments, not of the last alone."""
    found: dict[str, dict[str, float]] = {}
    for column in dict.fromkeys(column for row in rows for column in row):
        named = name_of(column)
        values = [float(row[column]) for row in rows if row.get(column)]
        if named and values and named[1] in _KEPT:
            found[named[0]] = {named[1]: _KEPT[named[1]](values)}
    return found


def results(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested values as one level of names, `best/val/accuracy`: without lists and what is shown as a table."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and key not in (*_LARGE, "scores"):
            flat |= {f"{key}/{name}": inner for name, inner in results(value).items()}
        elif isinstance(value, str | int | float):
            flat[key] = value
    # A split's scores stand beside its other values, by their metric's name.
    return flat | {name: score["value"] for name, score in values.get("scores", {}).items()}


def settings(run: Run) -> dict[str, Any]:
    """Return a run's config, and the code, data and machine that it was started with."""
    provenance = run.provenance()
    origin = ("git", "versions", "config_hash", "data_fingerprint", "images", "machine", "first_weights")
    config = run.config().model_dump(mode="json", exclude=UNTOLD)
    return {**config, "provenance": {key: provenance[key] for key in origin if key in provenance}}


def distortions(metrics: RunMetrics) -> dict[str, Table]:
    """Return a table for each labelled suite: accuracy of each distortion (rows) at each severity, and their mean."""
    tables = {}
    for name, shifted in (("ood_val", metrics.best_or_final.ood_val), ("suite", metrics.suite)):
        if shifted and shifted.by_block:
            severities = list(shifted.by_severity)
            blocks, many = list(shifted.by_block.values()), len(severities)
            means = enumerate(shifted.by_distortion.items())
            rows = [[who, *blocks[row * many : (row + 1) * many], mean] for row, (who, mean) in means]
            columns = ["distortion", *(f"severity {severity}" for severity in severities), "mean"]
            tables[name] = Table(columns, rows)
    return tables


def validation(run: Run) -> Predictions | None:
    """Return the validation predictions of the weights that count, None where there are none."""
    for name in ("val", "val-averaged", "val-final"):
        path = run.path / "predictions" / f"{name}.npz"
        if path.is_file():
            return prediction_files.load(path)
    return None


def norms(run: Run) -> Table | None:
    """Return norms.csv, evenly thinned where it is long; None where no norms were asked for."""
    path = run.path / "norms.csv"
    if not path.is_file():
        return None
    with path.open(newline="", encoding="utf-8") as file:
        columns, *rows = list(csv.reader(file)) or [[]]
    thinned = rows[:: max(1, -(-len(rows) // _MOST_NORMS))]
    return Table(columns, [[float(value) if value else float("nan") for value in row] for row in thinned])


def pictures(run: Run) -> list[Path]:
    """Return the run's plots."""
    return sorted((run.path / "plots").glob("*.png"))


def artifact_files(run: Run, kind: str) -> list[Path]:
    """Return the files of an artifact: `weights`, or `submission` with its sidecar; those that exist."""
    if kind == "weights":
        try:
            return [run.weights_path()]
        except RunError:
            return []
    written = run.metrics().submission if run.is_complete() else ""
    paths = [Path(written), Path(written).with_suffix(".json")] if written else []
    return [path for path in paths if path.is_file()]
