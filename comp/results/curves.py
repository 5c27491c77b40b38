"""Charts of trainings, of one run or of several: scores by epoch (history.csv) and norms by layer (norms.csv)."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from comp.results import charts, page

_MAX_NORM_EPOCHS = 4  # more lines would hide each other
_NORMS = ("gradient_norm", "weight_norm")
Row = Mapping[str, Any]
# A run's charts: title -> column of history.csv -> label.
_PANELS = {
    "loss": {"train_loss": "training", "val_loss": "validation"},
    "accuracy": {"train_accuracy": "training", "val_accuracy": "validation", "ood_accuracy": "validation, shifted"},
    "learning rate": {"lr": "at the epoch's end"},
}
_METRIC = {"val_metric": "validation", "ood_metric": "validation, shifted"}
# Columns of history.csv that compare runs -> their titles.
_COMPARED = {
    "val_loss": "validation loss",
    "val_accuracy": "validation accuracy",
    "val_metric": "validation metric",
    "train_loss": "training loss",
    "ood_accuracy": "shifted validation accuracy",
    "ood_metric": "shifted validation metric",
}


def draw(history: Sequence[Row], metric: str, best_epoch: int | None) -> str:
    """Return a run's charts by epoch, by its `metric` too; a line marks the epoch of its best weights."""
    drawn = []
    for title, columns in _panels(history, metric).items():
        series = {label: points for column, label in columns.items() if (points := _points(history, column))}
        if series:
            plot = charts.lines(title, series, "epoch")
            if best_epoch:
                plot.guide(best_epoch)
            drawn.append(plot.svg() + (charts.legend(series) if len(series) > 1 else ""))
    best = f"Dashed: the best weights, after epoch {best_epoch}." if best_epoch and drawn else ""
    return page.grid(drawn) + (page.note(best) if best else "")


def compare(histories: Mapping[str, Sequence[Row]], styles: Mapping[str, int]) -> str:
    """Return charts by epoch of several runs, by label; `styles` are those of all runs of the page."""
    drawn = []
    for column, title in _compared_columns(histories).items():
        series = {label: points for label, rows in histories.items() if (points := _points(rows, column))}
        drawn.append(charts.lines(title, series, "epoch", styles=styles).svg())
    return page.grid(drawn) + charts.legend(styles) if drawn else ""


def draw_norms(rows: Sequence[Row]) -> str:
    """Return the norms of a run's layers, input first, in some of its epochs."""
    if not rows:
        return ""
    epochs = sorted({int(row["epoch"]) for row in rows})
    places = np.linspace(0, len(epochs) - 1, min(len(epochs), _MAX_NORM_EPOCHS))
    some = sorted({epochs[round(place)] for place in places})
    names = _layers(rows)
    drawn = []
    for column in _NORMS:
        series = {f"epoch {epoch}": _by_layer(rows, column, epoch) for epoch in some}
        drawn.append(charts.lines(column.replace("_", " "), series, "layer", log=True, names=names).svg())
    return page.grid(drawn) + charts.legend(f"epoch {epoch}" for epoch in some)


def compare_norms(tables: Mapping[str, Sequence[Row]], styles: Mapping[str, int]) -> str:
    """Return the norms of several runs' layers in their last epochs, by label."""
    drawn, layers = [], [_layers(rows) for rows in tables.values()]
    names = layers[0] if layers and layers == [layers[0]] * len(layers) else ()  # of other networks, numbers
    for column in _NORMS if tables else ():
        series = {label: _by_layer(rows, column, int(rows[-1]["epoch"])) for label, rows in tables.items()}
        title = f"{column.replace('_', ' ')}, last epoch"
        drawn.append(charts.lines(title, series, "layer", log=True, styles=styles, names=names).svg())
    return page.grid(drawn)


def _panels(history: Sequence[Row], metric: str) -> dict[str, dict[str, str]]:
    """Return the charts of a run's training; the metric has one unless it is accuracy or loss."""
    values = [[row.get(name) or None for name in ("val_metric", "val_accuracy", "val_loss")] for row in history]
    has_metric = any(value not in (None, *shown) for value, *shown in values)
    return {**_PANELS, **({metric: _METRIC} if has_metric else {})}


def _compared_columns(histories: Mapping[str, Sequence[Row]]) -> dict[str, str]:
    """Return the columns of history.csv that compare runs -> their titles; only those that a run has measured."""
    all_rows = [row for rows in histories.values() for row in rows]
    measured = [column for column in _COMPARED if any(row.get(column) for row in all_rows)]
    for split in ("val", "ood"):  # accuracy or loss as the metric already has a panel
        same = (f"{split}_accuracy", f"{split}_loss")
        scored = [row for row in all_rows if row.get(f"{split}_metric")]
        if all(row[f"{split}_metric"] in [row.get(name) for name in same] for row in scored):
            measured = [column for column in measured if column != f"{split}_metric"]
    return {column: _COMPARED[column] for column in measured}


def _points(history: Sequence[Row], column: str) -> list[tuple[int, float]]:
    """Return (epoch, value) of a column of history.csv, where it was measured."""
    return [(int(row["number"]), float(row[column])) for row in history if row.get(column)]


def _layers(rows: Sequence[Row]) -> list[str]:
    """Return the names of the layers in norms.csv, input first."""
    return [str(row["layer"]) for row in rows if row["epoch"] == rows[0]["epoch"]]


def _by_layer(rows: Sequence[Row], column: str, epoch: int) -> list[tuple[float, float]]:
    """Return (layer's number from the input, norm) of an epoch in norms.csv."""
    values = [float(row[column]) for row in rows if int(row["epoch"]) == epoch]
    return [(float(layer), value) for layer, value in enumerate(values)]
