"""`comp evaluate RUN`: what labelled predictions show, as evaluation.json and plots in the run."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from comp.data.splits import Split
from comp.inference.options import PredictOptions, predict_options
from comp.results import diagnostics, metrics, plots, prediction_files
from comp.results.predictions import Predictions
from comp.results.runs import Run
from comp.runtime.errors import ConfigError, RunError
from comp.runtime.progress import Progress, quiet
from comp.workflows import predict
from comp.workflows.predict import LoadedRun

_SPLITS = ("val", "ood_val", "test", "suite")
_PICTURED_MISTAKES = 30


def evaluate(
    run: Run, given: Mapping[str, Any] | None = None, *, baseline: Run | None = None, device: str = "",
    progress: Progress = quiet,
) -> dict[str, Any]:  # fmt: skip
    """Diagnose all that a run predicted and has labels for, and write evaluation.json and its plots.

    A run with weights predicts the clean labelled test split first. Validation and the suite, and all of an ensemble
    or a probe, which have no weights, are the predictions that lie on the disk.

    Args:
        run: complete.
        given: fields of `predict` in place of the run's own, for the test split; None keeps the run's.
        baseline: a run with a scored suite, or shifted validation, of the same blocks: errors are relative to its.
        device: to predict on; empty: the one that it was trained on.
        progress: called after every batch.

    Returns:
        What evaluation.json holds: split -> values of `diagnosis.diagnose`, the competition's `metric` with its `name`
        and `value`, and `by_block` where it has blocks; and
        `mean_corruption_error` with the baseline's name where one was given.

    Raises:
        ConfigError: the rules forbid the adaptation, or a run without weights cannot be predicted in another way.
        RunError: nothing is labelled, or the baseline has no such blocks.
    """
    given = {name: value for name, value in (given or {}).items() if value is not None}
    if run.has_weights():
        loaded = predict.load(run, progress=progress, device=device)
        return evaluate_loaded(loaded, progress, variant=predict.variant_for(loaded, given), baseline=baseline)
    if device:
        given["device"] = device
    if given:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise ConfigError(
            f"{options}: {run.path} has no weights to predict with, only stored predictions; leave it out, or evaluate "
            "its members"
        )
    return _evaluate(run, _stored(run, {"suite": run.metrics().variant, "test": run.metrics().variant}), {}, baseline)


def evaluate_loaded(
    loaded: LoadedRun, progress: Progress = quiet, *, variant: PredictOptions | None = None, baseline: Run | None = None
) -> dict[str, Any]:
    """Diagnose a run whose weights and data are loaded; see `evaluate`.

    Args:
        loaded: a complete run.
        progress: called after every batch.
        variant: views and adaptation of the test split; None: the config's.
        baseline: see `evaluate`.
    """
    predict.evaluate(loaded, progress, variant=variant)
    own = predict_options(loaded.config.predict).suffix
    stored = _stored(loaded.run, {"test": own if variant is None else variant.suffix, "suite": own})
    return _evaluate(loaded.run, stored, {"val": loaded.dataset.val, "test": loaded.dataset.test}, baseline)


def _stored(run: Run, suffixes: Mapping[str, str]) -> dict[str, Predictions]:
    """Return the labelled predictions on the disk by their file's name."""
    paths = [run.predictions_path(name + suffixes.get(name, "")) for name in _SPLITS]
    read = {path.stem: prediction_files.load(path) for path in paths if path.exists()}
    labelled = {name: found for name, found in read.items() if found.targets is not None}
    if not labelled:
        raise RunError(f"{run.path}: nothing that it predicted has labels, so there is nothing to evaluate")
    return labelled


def _evaluate(
    run: Run, stored: Mapping[str, Predictions], splits: Mapping[str, Split | None], baseline: Run | None
) -> dict[str, Any]:
    metric = run.metrics().metric
    values: dict[str, Any] = {name: _diagnosed(found, metric) for name, found in stored.items()}
    if baseline is not None:
        values["mean_corruption_error"] = _relative(values, baseline)
    with run.write_lock():
        run.write_json(diagnostics.FILE, values)
        for name, found in stored.items():
            _draw(run, name, found, values[name], splits.get(name.partition("+")[0]))
    return values


def _diagnosed(found: Predictions, metric: str) -> dict[str, Any]:
    blocks = {"by_block": found.block_accuracy()} if len(found.block_names) else {}
    own = {"name": metric, "value": metrics.metric(metric).score(found)}
    return {"metric": own, **diagnostics.diagnose(found), **blocks}


def _relative(values: Mapping[str, Any], baseline: Run) -> dict[str, Any]:
    """Return the mean corruption error of the suite, or else of shifted validation, relative to the baseline's."""
    shifted = [name for name in values if "by_block" in values[name]]
    if not shifted:
        raise RunError("--baseline: this run has no labelled suite and no shifted validation to compare")
    path = baseline.predictions_path(shifted[-1])
    if not path.exists():
        raise RunError(f"--baseline: {path} is not there; predict it the same way: comp predict {baseline.path}")
    theirs = prediction_files.load(path).block_accuracy()
    value = diagnostics.mean_corruption_error(values[shifted[-1]]["by_block"], theirs)
    return {"value": value, "split": shifted[-1], "baseline": baseline.name}


def _draw(run: Run, name: str, found: Predictions, values: Mapping[str, Any], split: Split | None) -> None:
    calibration = values["calibration"]
    if "confusion" in values:
        plots.draw_confusion(run.plot_path(f"confusion-{name}"), np.array(values["confusion"]), found.classes)
    plots.draw_reliability(run.plot_path(f"reliability-{name}"), calibration["bins"], calibration["ece"])
    if "by_block" in values:
        plots.draw_blocks(run.plot_path(f"blocks-{name}"), *diagnostics.accuracy_grid(values["by_block"]))
    if split is None:
        return
    rows = diagnostics.find_worst_mistakes(found, _PICTURED_MISTAKES)
    if len(rows):
        titles = [diagnostics.mistake_title(found, int(row)) for row in rows]
        images = np.stack([split.images[int(row)] for row in rows])
        plots.draw_image_grid(run.plot_path(f"mistakes-{name}"), images, titles, columns=6)
