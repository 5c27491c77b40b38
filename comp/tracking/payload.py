"""Build the W&B payload: plain values, read from a run's folder."""

import csv
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from comp.config import Config, plugins
from comp.results import prediction_files
from comp.results.files import error_text
from comp.results.predictions import Predictions
from comp.results.run_metrics import RunMetrics
from comp.results.runs import Run
from comp.runtime.errors import RunError

# Column of history.csv -> its name in W&B, and the aggregate in its summary.
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
_AGGREGATES: dict[str, Callable[[list[float]], float]] = {"min": min, "max": max, "mean": statistics.fmean}
_SEVERITY = "ood_accuracy_"
_LARGE = ("by_block", "by_distortion")  # scores that are logged as a table
_PRIVATE: dict[str, Any] = {"track": True, "tune": {"storage"}}  # of the config; a storage's URL may hold a password
_MAX_NORM_ROWS = 10_000


@dataclass(frozen=True)
class Table:
    """Columns and rows."""

    columns: list[Any]
    rows: list[list[Any]]


def wandb_name(column: str) -> tuple[str, str] | None:
    """Return a column's name in W&B and its summary's aggregate; None for a column without numbers."""
    if column.startswith(_SEVERITY):
        return f"ood/severity_{column.removeprefix(_SEVERITY)}", "max"
    return CURVES.get(column)


def curves(row: Mapping[str, str]) -> dict[str, float]:
    """Return the values of a row of history.csv by their names in W&B."""
    named = {wandb_name(column): value for column, value in row.items() if value}
    return {name[0]: float(value) for name, value in named.items() if name}


def summaries(rows: Sequence[Mapping[str, str]]) -> dict[str, dict[str, float]]:
    """Return the best, or the mean, of every curve over the whole history, not over the last segment alone."""
    aggregates: dict[str, dict[str, float]] = {}
    for column in dict.fromkeys(column for row in rows for column in row):
        name, aggregate = wandb_name(column) or ("", "")
        values = [float(row[column]) for row in rows if row.get(column)]
        if values and aggregate in _AGGREGATES:
            aggregates[name] = {aggregate: _AGGREGATES[aggregate](values)}
    return aggregates


def flatten(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested values under names such as `best/val/accuracy`, without lists and values logged as a table."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and key not in (*_LARGE, "scores"):
            flat |= {f"{key}/{name}": inner for name, inner in flatten(value).items()}
        elif isinstance(value, str | int | float):
            flat[key] = value
    # A split's scores lie beside its other values, under their metrics' names.
    return flat | {name: score["value"] for name, score in values.get("scores", {}).items()}


def run_config(run: Run) -> dict[str, Any]:
    """Return a run's config, and the code, data and machine that it was started with."""
    provenance = run.provenance()
    keys = ("git", "versions", "config_hash", "data_fingerprint", "images", "machine", "first_weights")
    recorded = {key: provenance[key] for key in keys if key in provenance}
    return {**public_config(run.config()), "provenance": recorded}


def public_config(config: Config) -> dict[str, Any]:
    """Return a config's plain values without passwords and without the folders of its plug-ins."""
    values = config.model_dump(mode="json", exclude=_PRIVATE)
    return {**values, "plugins": plugins.portable(config.plugins)}


def distortions(metrics: RunMetrics) -> dict[str, Table]:
    """Return a table for each labelled suite: the accuracy of each distortion at each severity, and their mean."""
    tables = {}
    with_views = [(name, scores) for name, scores in sorted(metrics.variants.items()) if name.startswith("suite")]
    for name, shifted in (("ood_val", metrics.best_or_final.ood_val), ("suite", metrics.suite), *with_views):
        if shifted and shifted.by_block:
            blocks, count = list(shifted.by_block.values()), len(shifted.by_severity)
            rows = [
                [distortion, *blocks[index * count : (index + 1) * count], mean]
                for index, (distortion, mean) in enumerate(shifted.by_distortion.items())
            ]
            columns = ["distortion", *(f"severity {severity}" for severity in shifted.by_severity), "mean"]
            tables[name] = Table(columns, rows)
    return tables


def validation(run: Run) -> Predictions | None:
    """Return the validation predictions of the weights that predict, None if there are none."""
    for name in ("val", "val-averaged", "val-final"):
        path = run.path / "predictions" / f"{name}.npz"
        if path.is_file():
            return prediction_files.load(path)
    return None


def norms(run: Run) -> Table | None:
    """Return norms.csv, evenly thinned if it is long; None if the run recorded no norms."""
    path = run.path / "norms.csv"
    if not path.is_file():
        return None
    try:
        with path.open(newline="", encoding="utf-8") as file:
            columns, *rows = list(csv.reader(file)) or [[]]
    except (OSError, ValueError, csv.Error) as error:
        raise RunError(f"{path}: damaged ({error_text(error)}); move it away to go on without its norms") from None
    thinned = rows[:: max(1, -(-len(rows) // _MAX_NORM_ROWS))]
    return Table(columns, [list(map(_cell, row)) for row in thinned])


def _cell(text: str) -> float | str:
    try:
        return float(text) if text else math.nan
    except ValueError:  # a layer's name
        return text


def artifact_files(run: Run, kind: str) -> list[Path]:
    """Return the existing files of an artifact: `weights`, or `submission` with its sidecar."""
    if kind == "weights":
        try:
            return [run.weights_path()]
        except RunError:
            return []
    submission = run.metrics().submission if run.is_complete() else ""
    paths = [Path(submission), Path(submission).with_suffix(".json")] if submission else []
    return [path for path in paths if path.is_file()]
