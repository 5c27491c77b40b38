"""`comp evaluate RUN`: all that labelled predictions tell, as evaluation.json and pictures in the run."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from comp import diagnosis, plots, predicting, predictions
from comp.data.splits import Split
from comp.errors import RunError
from comp.inference.variants import Variant, variant_of
from comp.predicting import Loaded
from comp.predictions import Predictions
from comp.progress import Progress, quiet
from comp.runs import Run

_SPLITS = ("val", "ood_val", "test", "suite")
_PICTURED_MISTAKES = 30


def evaluate(
    loaded: Loaded, progress: Progress = quiet, *, variant: Variant | None = None, baseline: Run | None = None
) -> dict[str, Any]:
    """Predict the clean labelled test split, where there is one, and diagnose what is predicted and labelled.

    Validation and the suite are taken from the disk, as the run predicts them by itself.

    Args:
        loaded: a complete run.
        progress: called after every batch.
        variant: views and adaptation of the test split; None: the config's.
        baseline: a run with a scored suite, or shifted validation, of the same blocks: errors are told relative to its.

    Returns:
        What evaluation.json holds: split -> values of `diagnosis.diagnose`, and `by_block` where it has blocks; and
        `mean_corruption_error` with the baseline's name where one was given.

    Raises:
        ConfigError: the rules forbid the adaptation.
        RunError: nothing is labelled, or the baseline has no such blocks.
    """
    predicting.evaluate(loaded, progress, variant=variant)
    own = variant_of(loaded.config.predict).suffix
    suffixes = {"test": own if variant is None else variant.suffix, "suite": own}
    found: dict[str, Predictions] = {}
    for name in _SPLITS:
        path = loaded.run.predictions_path(name + suffixes.get(name, ""))
        if path.exists() and (read := predictions.load(path)).labels is not None:
            found[path.stem] = read
    if not found:
        raise RunError(f"{loaded.run.path}: nothing that it predicted has labels, so there is nothing to evaluate")
    values: dict[str, Any] = {name: _diagnosed(read) for name, read in found.items()}
    if baseline is not None:
        values["mean_corruption_error"] = _relative(values, baseline)
    with loaded.run.writing():
        loaded.run.write_json(diagnosis.FILE, values)
        for name, read in found.items():
            _draw(loaded, name, read, values[name])
    return values


def _diagnosed(found: Predictions) -> dict[str, Any]:
    blocks = {"by_block": found.block_accuracy()} if len(found.block_names) else {}
    return {**diagnosis.diagnose(found), **blocks}


def _relative(values: Mapping[str, Any], baseline: Run) -> dict[str, Any]:
    """Return the mean corruption error of the suite, or else of shifted validation, relative to the baseline's."""
    shifted = [name for name in values if "by_block" in values[name]]
    if not shifted:
        raise RunError("--baseline: this run has no labelled suite and no shifted validation to compare")
    path = baseline.predictions_path(shifted[-1])
    if not path.exists():
        raise RunError(f"--baseline: {path} is not there; predict it the same way: comp predict {baseline.path}")
    theirs = predictions.load(path).block_accuracy()
    value = diagnosis.mean_corruption_error(values[shifted[-1]]["by_block"], theirs)
    return {"value": value, "split": shifted[-1], "baseline": baseline.name}


def _draw(loaded: Loaded, name: str, found: Predictions, values: Mapping[str, Any]) -> None:
    run, calibration = loaded.run, values["calibration"]
    plots.confusion(run.plot_path(f"confusion-{name}"), np.array(values["confusion"]), found.classes)
    plots.reliability(run.plot_path(f"reliability-{name}"), calibration["bins"], calibration["ece"])
    if "by_block" in values:
        plots.blocks(run.plot_path(f"blocks-{name}"), *diagnosis.grid(values["by_block"]))
    split = {"val": loaded.dataset.val, "test": loaded.dataset.test}.get(name.partition("+")[0])
    if split is not None:
        _draw_mistakes(run, name, split, found)


def _draw_mistakes(run: Run, name: str, split: Split, found: Predictions) -> None:
    rows = diagnosis.worst(found, _PICTURED_MISTAKES)
    if not len(rows):
        return
    labels, sure = found.labels, diagnosis.confidences(found)
    assert labels is not None
    titles = [f"{found.classes[labels[row]]}: {found.classes[found.top1[row]]} {100 * sure[row]:.0f}%" for row in rows]
    images = np.stack([split.images[int(row)] for row in rows])
    plots.image_grid(run.plot_path(f"mistakes-{name}"), images, titles, columns=6)
