"""Plots of data and runs as PNG files. Torch-free; matplotlib is imported late and needs no display.

The first argument of each function is the path of the PNG. Histories and norms are rows of history.csv and norms.csv.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from comp.results import files
from comp.runtime import escape

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MAX_NAMED_CLASSES = 60  # more class names would overlap
_INCHES = 0.75  # an image's side
_MAX_TITLE_LENGTH, _MAX_LINE_LENGTH = 14, 20  # of a title of one line, and of one of several
_MAX_MARKED_POINTS = 50  # a line of a single point is invisible without a marker
_MAX_NORM_EPOCHS = 4  # more lines would hide each other
# A panel of `draw_curves` -> its lines: column of history.csv -> label.
_CURVES = {
    "loss": {"train_loss": "training", "val_loss": "validation"},
    "accuracy": {"train_accuracy": "training", "val_accuracy": "validation", "ood_accuracy": "validation, shifted"},
    "learning rate": {"lr": "at the epoch's end"},
}
# Columns of history.csv that compare runs -> their titles.
_COMPARED = {
    "val_loss": "validation loss",
    "val_accuracy": "validation accuracy",
    "val_metric": "validation metric",
    "train_loss": "training loss",
    "ood_accuracy": "shifted validation accuracy",
    "ood_metric": "shifted validation metric",
}
_METRIC = {"competition's metric": {"val_metric": "validation", "ood_metric": "validation, shifted"}}


def draw_label_bars(path: Path, counts: Mapping[str, Sequence[int]], classes: Sequence[str]) -> None:
    """Draw the number of images of each class, one colour for each split; `counts` are split -> images by class."""
    figure = _figure(max(6.0, min(16.0, 0.45 * len(classes))), 4.5)
    axes = figure.add_subplot()
    width = 0.8 / len(counts)
    for number, (name, values) in enumerate(counts.items()):
        positions = np.arange(len(classes)) - 0.4 + (number + 0.5) * width
        axes.bar(positions, values, width, label=name)
    axes.set_ylabel("images")
    axes.set_xlim(-0.6, len(classes) - 0.4)
    if len(classes) <= _MAX_NAMED_CLASSES:
        names = [_shorten(name) for name in classes]
        axes.set_xticks(range(len(classes)), names, rotation=45, ha="right", parse_math=False)
    else:
        axes.set_xlabel("class index")
    figure.legend(loc="outside upper center", ncols=len(counts))  # off the bars
    _save(figure, path)


def drawable_channels(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the channels of images [..., C] to draw: 1 or 3 unchanged, the first of 2, the first 3 of more."""
    channels = images.shape[-1]
    return images if channels in (1, 3) else images[..., : 1 if channels == 2 else 3]


def draw_image_grid(path: Path, images: NDArray[np.uint8], titles: Sequence[str], columns: int = 10) -> None:
    """Draw images [N, H, W, C], each under its title of one line or several."""
    count, height, width, channels = images.shape
    columns = min(columns, count)
    lines = math.ceil(count / columns)
    padded = np.full((lines * columns, height, width, channels), 255, np.uint8)
    padded[:count] = images
    title_lines = max((title.count("\n") for title in titles), default=0) + 1
    band = max(3, height // 4) * title_lines  # pixels above each image for its title
    mosaic = _mosaic(padded.reshape(lines, columns, height, width, channels), band, max(1, width // 16))
    side = _INCHES * 1.15
    figure = _figure(side * columns, side * lines * (height + band) / width)
    axes = _show_image(figure, mosaic)
    across, down = mosaic.shape[1] / columns, mosaic.shape[0] / lines
    for index, title in enumerate(titles):
        line, column = divmod(index, columns)
        x, y = (column + 0.5) * across, line * down + band * 0.8
        most = _MAX_TITLE_LENGTH if title_lines == 1 else _MAX_LINE_LENGTH
        text = "\n".join(_shorten(part, most) for part in title.split("\n"))
        place = "baseline" if title_lines == 1 else "bottom"
        axes.text(x, y, text, fontsize=6, ha="center", va=place, parse_math=False)
    _save(figure, path)


def draw_image_sheet(path: Path, images: NDArray[np.uint8], rows: Sequence[str], columns: Sequence[str]) -> None:
    """Draw a table of images [rows, columns, H, W, C] with headings."""
    lines, across, height, width, _ = images.shape
    mosaic = _mosaic(images, max(1, height // 16), max(1, width // 16))
    figure = _figure(_INCHES * across + 1.6, _INCHES * lines * height / width + 0.5)
    axes = _show_image(figure, mosaic)
    axes.set_axis_on()
    axes.set_frame_on(False)
    axes.tick_params(length=0, labelsize=7, labeltop=True, labelbottom=False)
    axes.set_xticks((np.arange(across) + 0.5) * mosaic.shape[1] / across, columns)
    axes.set_yticks((np.arange(lines) + 0.5) * mosaic.shape[0] / lines, rows)
    _save(figure, path)


def draw_curves(path: Path, history: Sequence[Mapping[str, str]], best_epoch: int = 0) -> None:
    """Draw a training's loss, accuracy, learning rate and, if it is another one, metric by epoch.

    `best_epoch` is counted from 1 and marked by a line; 0 for none.
    """
    drawn = panels(history)
    figure = _figure(4.0 * len(drawn), 4.0)
    for axes, (title, lines) in zip(figure.subplots(1, len(drawn)), drawn.items(), strict=True):
        for column, label in lines.items():
            if measured := points(history, column):
                marker = "o" if len(measured) <= _MAX_MARKED_POINTS else ""
                axes.plot(*zip(*measured, strict=True), marker=marker, markersize=3, label=label)
        axes.set_title(title)
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        if best_epoch:
            axes.axvline(best_epoch, color="grey", linewidth=0.8, linestyle="--", label="best weights")
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8)
    _save(figure, path)


def panels(history: Sequence[Mapping[str, str]]) -> dict[str, dict[str, str]]:
    """Return the panels of a training's curves: title -> column of history.csv -> label."""
    values = [[row.get(name) or None for name in ("val_metric", "val_accuracy", "val_loss")] for row in history]
    has_metric = any(metric not in (None, *shown) for metric, *shown in values)
    return {**_CURVES, **(_METRIC if has_metric else {})}


def points(history: Sequence[Mapping[str, str]], column: str) -> list[tuple[int, float]]:
    """Return (epoch, value) of a column of history.csv, where it was measured."""
    return [(int(row["number"]), float(row[column])) for row in history if row.get(column)]


def draw_lr_search(
    path: Path, rates: Sequence[float], losses: Sequence[float], smoothed: Sequence[float], marks: Mapping[str, float]
) -> None:
    """Draw the losses of steps, and the same smoothed, over their rising learning rates; mark some rates by a label."""
    figure = _figure(8.0, 4.5)
    axes = figure.add_subplot()
    axes.plot(rates, losses, color="tab:blue", alpha=0.3, linewidth=0.8, label="loss of each step")
    axes.plot(rates, smoothed, color="tab:blue", label="smoothed")
    for number, (label, rate) in enumerate(marks.items(), 1):
        axes.axvline(rate, color=f"C{number}", linestyle="--", label=f"{label}: {rate:.2e}")
    low, high = min(smoothed), max(smoothed[: max(1, len(smoothed) // 2)])
    room = max(0.1 * high, high - low)
    axes.set_ylim(low - 0.1 * room, high + room)  # an exploding loss would flatten the rest of the curve
    axes.set_xscale("log")
    axes.set_xlabel("learning rate")
    axes.set_ylabel("loss")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    _save(figure, path)


def some_epochs(rows: Sequence[Mapping[str, Any]]) -> list[int]:
    """Return the epochs of norms.csv to draw: the first, the last and some between, none without rows."""
    epochs = sorted({int(row["epoch"]) for row in rows})
    count = min(len(epochs), _MAX_NORM_EPOCHS)
    return sorted({epochs[round(index)] for index in np.linspace(0, len(epochs) - 1, count)})


def draw_norms(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Draw gradient and weight norms by layer, input first, one line for each of some epochs."""
    from matplotlib.ticker import LogLocator

    drawn_epochs = some_epochs(rows)
    layers = [str(row["layer"]) for row in rows if int(row["epoch"]) == drawn_epochs[0]]
    figure = _figure(12.0, max(4.0, 0.16 * len(layers) + 1.5))
    for axes, column in zip(figure.subplots(1, 2, sharey=True), ("gradient_norm", "weight_norm"), strict=True):
        for number, epoch in enumerate(drawn_epochs):
            values = [float(row[column]) for row in rows if int(row["epoch"]) == epoch]
            colour = (0.1, 0.3, 0.9 - 0.8 * number / max(len(drawn_epochs) - 1, 1))
            axes.plot(values, range(len(values)), marker="o", markersize=3, color=colour, label=f"epoch {epoch}")
        axes.set_title(column.replace("_", " "))
        if min(float(row[column]) for row in rows) > 0:
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_major_formatter("{x:g}")
            axes.xaxis.set_minor_formatter("")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    axes.set_yticks(range(len(layers)), layers, fontsize=7)
    axes.invert_yaxis()  # shared axis: input at the top
    _save(figure, path)


def compared_columns(histories: Mapping[str, Sequence[Mapping[str, str]]]) -> dict[str, str]:
    """Return the columns of history.csv that compare runs -> their titles; only those that a run has measured."""
    all_rows = [row for rows in histories.values() for row in rows]
    measured = [column for column in _COMPARED if any(row.get(column) for row in all_rows)]
    for split in ("val", "ood"):  # accuracy or loss as the metric already has a panel
        same = (f"{split}_accuracy", f"{split}_loss")
        scored = [row for row in all_rows if row.get(f"{split}_metric")]
        if all(row[f"{split}_metric"] in [row.get(name) for name in same] for row in scored):
            measured = [column for column in measured if column != f"{split}_metric"]
    return {column: _COMPARED[column] for column in measured}


def _mosaic(images: NDArray[np.uint8], top: int, left: int) -> NDArray[np.uint8]:
    """Return images [rows, columns, H, W, C] as one image with white borders [rows * (H + top), ..., 3]."""
    padded = np.pad(drawable_channels(images), ((0, 0), (0, 0), (top, 0), (left, 0), (0, 0)), constant_values=255)
    rows, columns, height, width, channels = padded.shape
    whole = padded.transpose(0, 2, 1, 3, 4).reshape(rows * height, columns * width, channels)
    return np.broadcast_to(whole, (*whole.shape[:2], 3))  # grey as three equal channels


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure((width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)  # without pyplot there is no global state
    return figure


def _show_image(figure: "Figure", pixels: NDArray[np.uint8]) -> Any:
    axes = figure.add_subplot()
    axes.imshow(pixels, interpolation="nearest", extent=(0, pixels.shape[1], pixels.shape[0], 0))
    axes.set_axis_off()
    return axes


def _shorten(text: str, most: int = _MAX_TITLE_LENGTH) -> str:
    text = escape.one_line(text)
    return text if len(text) <= most else text[: most - 1] + "…"


def _save(figure: "Figure", path: Path) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # the font lacks Chinese, and shows boxes
        files.write_atomically(path, partial(figure.savefig, format="png"))
