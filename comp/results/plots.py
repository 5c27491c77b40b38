"""Pictures of data, and of a search for a learning rate, as PNG files. Torch-free; matplotlib needs no display.

The first argument of each function is the path of the PNG.
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
