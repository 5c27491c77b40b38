"""Pictures of mistakes and of correct answers, each with what the network looked at, for a run's report."""

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray

from comp.data.splits import Split
from comp.inference import saliency
from comp.models.classifier import Classifier
from comp.results import diagnostics, files, plots
from comp.results.predictions import Predictions
from comp.results.runs import Run

_MISTAKES, _RIGHT = 20, 10
_LARGEST = 128  # pixels of a side; larger pictures are shrunk


def draw(run: Run, name: str, predicted: Predictions, split: Split, model: Classifier) -> dict[str, Any]:
    """Write plots/examples-NAME.png: the most confident mistakes, then some correct answers, in columns of equal cells.

    The upper row holds the images, the lower one what the network looked at.

    Returns:
        `method`: of the lower row, empty if it is missing; `reason`: why it is missing; `shown`: of each column whether
        it is `right`, its `true` and `predicted` class, and its `confidence`, None where there is none.
    """
    rows = [int(row) for row in diagnostics.find_worst_mistakes(predicted, _MISTAKES)]
    mistakes = len(rows)
    if not predicted.row.numeric:
        correct = np.flatnonzero(predicted.correct())
        places = np.linspace(0, len(correct) - 1, min(_RIGHT, len(correct))).astype(int)
        rows += [int(row) for row in correct[places]]
    if not rows:
        return {}
    answered = split.one_per_answer()
    images = np.stack([answered.images[row] for row in rows])  # [N, H, W, C]
    method, reason, bands = "", "", [plots.drawable_channels(images)]
    try:
        method, maps = saliency.explain(model, images)
        bands.append(_lit(bands[0], maps))
    except (RuntimeError, NotImplementedError) as error:  # a plug-in's network, or memory
        reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    _save(run, name, bands)
    shown = [{"right": place >= mistakes, **diagnostics.describe(predicted, row)} for place, row in enumerate(rows)]
    return {"method": method, "reason": reason, "shown": shown}


def _lit(images: NDArray[np.uint8], maps: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return images [N, H, W, 1 or 3] in grey under colours [N, H, W, 3] that are the brighter, the larger the map."""
    from matplotlib import colormaps

    grey = np.repeat(images.mean(-1, keepdims=True), 3, -1)
    strength = 0.15 + 0.5 * maps[..., None]
    mixed: NDArray[np.float64] = (1 - strength) * grey + strength * 255 * colormaps["inferno"](maps)[..., :3]
    return mixed.round().astype(np.uint8)


def _save(run: Run, name: str, bands: list[NDArray[np.uint8]]) -> None:
    from PIL import Image

    count, height, width, _ = bands[0].shape
    scale = min(1.0, _LARGEST / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    sheet = Image.new("RGB", (count * size[0], len(bands) * size[1]))
    for row, band in enumerate(bands):
        for column, image in enumerate(band):
            colours = np.broadcast_to(image, (height, width, 3))
            picture = Image.fromarray(np.ascontiguousarray(colours)).resize(size, Image.Resampling.LANCZOS)
            sheet.paste(picture, (column * size[0], row * size[1]))
    content = io.BytesIO()
    sheet.save(content, "PNG")
    files.write_atomically(run.plot_path(f"examples-{name}"), content.getvalue())
