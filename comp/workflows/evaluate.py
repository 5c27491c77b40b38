"""`comp evaluate`: diagnose labelled predictions, as evaluation.json and pictures of mistakes in the run."""

from collections.abc import Mapping
from typing import Any

from comp.data.fixes import FixList, fix_predictions, fixes_of
from comp.data.splits import Split
from comp.inference.options import predict_options
from comp.models.classifier import Classifier
from comp.results import diagnostics, metrics, prediction_files, runs
from comp.results.predictions import Predictions
from comp.results.runs import Run
from comp.runtime.errors import ConfigError, RunError
from comp.runtime.progress import Progress, quiet
from comp.workflows import examples, plugins
from comp.workflows.load import load_run
from comp.workflows.predict import options_for, score_test

_SPLITS = ("val", "ood_val", "test", "suite")


def evaluate(
    run: Run,
    overrides: Mapping[str, Any] | None = None,
    *,
    baseline: Run | None = None,
    fixes: FixList | None = None,
    device: str = "",
    progress: Progress = quiet,
) -> dict[str, Any]:
    """Diagnose all labelled predictions of a run, and write evaluation.json and pictures of mistakes.

    A run with weights predicts the labelled test split first. All other predictions, and all of an ensemble or a probe,
    which have no weights, are read from the disk.

    Args:
        run: complete.
        overrides: fields of `predict` to replace for the test split; None keeps the run's.
        baseline: a run with a scored suite, or shifted validation, of the same blocks: errors are relative to it.
        fixes: also score validation with these labels; None: those that the run was trained with, if any.
        device: to predict on; empty: the training's, or the best of this machine if it lacks that.
        progress: called after every batch.

    Returns:
        The content of evaluation.json: split -> values of `diagnostics.diagnose`, the competition's `metric` with its
        `name` and `value`, or why it is `undefined`, and `by_block` if it has blocks; `fixed` of validation, see
        `_score_fixed`; `examples` of validation and test, see `comp.workflows.examples.draw`; and
        `mean_corruption_error` if a baseline is given.

    Raises:
        ConfigError: the rules forbid the adaptation, or a run without weights, or without a labelled test, cannot be
            predicted in another way.
        RunError: nothing is labelled, or the baseline has no such blocks.
    """
    plugins.load_of(run)
    overrides = {name: value for name, value in (overrides or {}).items() if value is not None}
    fixes = _applicable_fixes(run, fixes)
    names = ", ".join(f"--{name.replace('_', '-')}" for name in overrides)
    if run.has_weights():
        loaded = load_run(run, progress=progress, device=device)
        test = loaded.dataset.test
        if overrides and (test is None or test.labels is None):
            raise ConfigError(
                f"{names}: only a labelled test is predicted anew, and {run.path} has none; leave it out, or score "
                f"validation so: comp predict {run.path} --split val {names} ..."
            )
        options = options_for(loaded, overrides)
        score_test(loaded, progress, options=options)
        suffixes = {"test": options.suffix, "suite": predict_options(loaded.config.predict).suffix}
        splits = {"val": loaded.dataset.val, "test": loaded.dataset.test}
        return _diagnose_stored(run, suffixes, splits, baseline, fixes, loaded.model)
    if device:
        overrides["device"] = device
    if overrides:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in overrides)
        raise ConfigError(
            f"{names}: {run.path} has no weights to predict with, only stored predictions; leave it out, or evaluate "
            "its members"
        )
    suffix = run.metrics().variant
    return _diagnose_stored(run, {"suite": suffix, "test": suffix}, {}, baseline, fixes)


def _applicable_fixes(run: Run, fixes: FixList | None) -> FixList | None:
    """Return the fix list that validation is scored with too: this one, else the training's.

    Raises:
        ConfigError: a list is named, but the run scores groups, and a list names images.
    """
    answer = run.metrics().group_answer
    if answer and fixes is not None:
        raise ConfigError(
            f"--fixes: a fix list names images, and {run.path} scores groups of them (data.group_answer: {answer}); "
            "leave it out"
        )
    return None if answer else fixes or fixes_of(run)


def _diagnose_stored(
    run: Run,
    suffixes: Mapping[str, str],
    splits: Mapping[str, Split | None],
    baseline: Run | None,
    fixes: FixList | None,
    model: Classifier | None = None,
) -> dict[str, Any]:
    """Diagnose the labelled predictions on the disk; `suffixes` are those of their file names.

    `model` is None without weights.
    """
    metric = run.metrics().metric
    paths = [run.predictions_path(name + suffixes.get(name, "")) for name in _SPLITS]
    stored = {path.stem: prediction_files.load(path) for path in paths if path.exists()}
    labelled = {name: predicted for name, predicted in stored.items() if predicted.targets is not None}
    if not labelled:
        raise RunError(f"{run.path}: no labelled predictions, so there is nothing to evaluate")
    values: dict[str, Any] = {name: _diagnose(predicted, metric) for name, predicted in labelled.items()}
    if fixes is not None and "val" in labelled and (fixed := _score_fixed(fixes, labelled["val"], metric)):
        values["val"]["fixed"] = fixed
    if baseline is not None:
        values["mean_corruption_error"] = _corruption_error(values, baseline)
    with run.write_lock(runs.RECORD_SECONDS):
        for name, predicted in labelled.items():
            split = splits.get(name.partition("+")[0])
            if split is not None and model is not None:
                values[name]["examples"] = examples.draw(run, name, predicted, split, model)
        run.write_json(diagnostics.FILE, values)
    return values


def _diagnose(predicted: Predictions, metric: str) -> dict[str, Any]:
    has_blocks = len(predicted.block_names) and not predicted.row.numeric
    blocks = {"by_block": predicted.block_accuracy()} if has_blocks else {}
    return {"metric": _score(predicted, metric), **diagnostics.diagnose(predicted), **blocks}


def _score(predicted: Predictions, metric: str) -> dict[str, Any]:
    """Return the competition's metric as evaluation.json has it: without a value, but with a reason, if undefined."""
    if reason := metrics.find_undefined(predicted, metric):
        return {"name": metric, "value": None, "undefined": reason}
    return {"name": metric, "value": metrics.metric(metric).score(predicted)}


def _score_fixed(fixes: FixList, given: Predictions, metric: str) -> dict[str, Any] | None:
    """Return the scores of validation with a fix list's labels and without the rows it drops; None if it changes none.

    Such a list usually comes from models' predictions, so these scores favour models that agree with them.
    """
    fixed = fix_predictions(fixes, given)
    if fixed is None:
        return None
    return {
        **fixes.origin,
        "images": len(fixed),
        "dropped": len(given) - len(fixed),
        "metric": _score(fixed, metric),
    }


def _corruption_error(values: Mapping[str, Any], baseline: Run) -> dict[str, Any]:
    """Return the mean corruption error of the suite, or else of shifted validation, relative to the baseline's."""
    shifted = [name for name in values if "by_block" in values[name]]
    if not shifted:
        raise RunError("--baseline: this run has no labelled suite and no shifted validation to compare")
    path = baseline.predictions_path(shifted[-1])
    if not path.exists():
        raise RunError(f"--baseline: {path} is missing; predict it the same way: comp predict {baseline.path}")
    baseline_accuracy = prediction_files.load(path).block_accuracy()
    value = diagnostics.mean_corruption_error(values[shifted[-1]]["by_block"], baseline_accuracy)
    return {"value": value, "split": shifted[-1], "baseline": baseline.name}
