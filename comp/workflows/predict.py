"""Predict with a trained run: store and score predictions, estimate accuracy, write the submission."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from comp.config.tasks import TASKS
from comp.data import splits, suites
from comp.data.dataset import open_dataset
from comp.data.splits import Split, Suite
from comp.inference import accuracy_estimate, adapt, inputs, pool, prior
from comp.inference.inputs import PredictInput
from comp.inference.options import PLAIN, PredictOptions, check_options, predict_options, with_overrides
from comp.inference.predict import delete_partial_blocks, predict
from comp.inference.views import check_size
from comp.results import decisions, files, metrics, prediction_files
from comp.results.blocks import DISTORTIONS
from comp.results.predictions import Predictions
from comp.results.run_metrics import AccuracyEstimate, RunMetrics, SplitScores
from comp.results.runs import RECORD_SECONDS
from comp.runtime import gpu
from comp.runtime.errors import ConfigError, RunError, UserError, unknown
from comp.runtime.progress import Progress, quiet
from comp.submission import rules
from comp.submission.format import Competition
from comp.workflows.load import LoadedRun, open_run_data, verify_run_data

_UNPOOLED = ("val", "ood_val", "test")  # one block, or blocks of other photographs each


def score_test(loaded: LoadedRun, progress: Progress = quiet, *, options: PredictOptions | None = None) -> RunMetrics:
    """Predict the labelled test split, if there is one; return all of the run's scores. See `predict_split`."""
    test = loaded.dataset.test
    if test is not None and test.labels is not None:
        predict_split(loaded, "test", progress, options=options)
    return loaded.run.metrics()


def predict_split(
    loaded: LoadedRun,
    name: str,
    progress: Progress = quiet,
    *,
    options: PredictOptions | None = None,
    suite: Suite | None = None,
) -> Predictions:
    """Predict a split or suite, store predictions/NAME.npz, and record its score in metrics.json if it has labels.

    A suite's finished blocks are kept in predictions/NAME.parts/ until the last one, so that an interrupted prediction
    resumes at its current block.

    Args:
        loaded: a complete run.
        name: `suite`, `test`, `val`, `ood_val`, or the name of `suite`.
        progress: called after every batch.
        options: views and adaptation; None: the config's. Options that are not plain are part of the file's name, such
            as predictions/suite+flip+bn.npz, and so is another decision (`with_decision`); their score is recorded
            under `variants`.
        suite: another suite than the competition's.

    Raises:
        ConfigError: no such split, or the rules forbid the adaptation.
    """
    run = loaded.run
    images = loaded.images_of(name) if suite is None else suite
    options = predict_options(loaded.config.predict) if options is None else options
    _check_options(loaded, options)
    suffix = options.suffix + loaded.decide_suffix
    if options.pool != "none":
        if name not in _UNPOOLED:
            pool.check_blocks(images)
        elif options.pool != loaded.config.predict.pool:
            raise ConfigError(f"predict.pool: {name} has no blocks to combine; set it to none (--pool none)")
        else:
            options = replace(options, pool="none")
    shares = _known_shares(loaded, options, name)
    path = run.predictions_path(name + suffix)
    parts = path.with_suffix(".parts") if isinstance(images, Suite) else None
    source = _suite_fingerprint(loaded, images) if isinstance(images, Suite) else ""
    with run.write_lock(RECORD_SECONDS):
        predicted = predict(
            loaded.model,
            images,
            **loaded.prediction_settings,
            made_by=describe_prediction(loaded, run.weights_path().stem, options, source),
            options=options,
            parts=parts,
            progress=progress,
        )
        predicted = _decide(loaded, predicted if shares is None else prior.assign(predicted, shares), name)
        scores = scores_of(predicted, loaded.competition.metric)
        if scores is not None:
            transductive = bool(predicted.made_by.get("transductive"))
            _record_scores(loaded, scores, name, suffix, transductive=transductive)
        prediction_files.save(path, predicted)  # after the score: stored predictions are not scored again
        if parts:
            delete_partial_blocks(parts)
    return predicted


def predict_images(
    loaded: LoadedRun, images: Split, progress: Progress = quiet, *, options: PredictOptions | None = None
) -> Predictions:
    """Return predictions of any images of the run's shape; nothing is written, so the run's disk may be read-only.

    Raises:
        ConfigError: the rules forbid the adaptation.
    """
    own = predict_options(loaded.config.predict)
    options = own if options is None else options
    if (options.prior, options.pool) not in (("none", "none"), (own.prior, own.pool)):
        raise ConfigError("--prior, --pool: known class shares and blocks are the test's, not those of other images")
    options = replace(options, prior="none", pool="none")
    _check_options(loaded, options)
    made_by = describe_prediction(loaded, loaded.run.weights_path().stem, options, splits.fingerprint(images))
    predicted = predict(
        loaded.model, images, **loaded.prediction_settings, made_by=made_by, options=options, progress=progress
    )
    return _decide(loaded, predicted, images.name)


@dataclass(frozen=True)
class PredictResult:
    """Predictions of a `PredictInput`.

    Attributes:
        predictions: of its images.
        name: `suite`, `val` ..., another suite's, or `images`.
        competition: the format of their submission.
        notes: images that were left out or resized.
    """

    predictions: Predictions
    name: str
    competition: Competition
    notes: tuple[str, ...] = ()


def predict_input(
    loaded: LoadedRun,
    source: PredictInput,
    progress: Progress = quiet,
    *,
    options: PredictOptions,
    severities: int = 5,
) -> PredictResult:
    """Predict a split, another suite, or any images; all but images are stored in the run.

    Args:
        loaded: from `load_for_input`.
        source: what is predicted.
        progress: called after every batch.
        options: views and adaptation.
        severities: stacked in each file of another suite.

    Raises:
        UserError: no such split, or images that are missing or cannot be read.
    """
    competition = loaded.competition
    if source.images is not None:
        config = loaded.run.data_config().data
        opened = inputs.open_images(source.images, competition.image_shape, config, progress)
        predicted = predict_images(loaded, opened.split, progress, options=options)
        return PredictResult(predicted, opened.split.name, competition, notes=opened.notes)
    name, suite = source.split or "suite", None
    if source.suite is not None:
        name = suites.suite_name(source.suite)
        suite = suites.folder_suite(source.suite, severities, competition.image_shape)
        competition = replace(competition, blocks=suite.blocks, sample=None, test_ids=())
    return PredictResult(predict_split(loaded, name, progress, options=options, suite=suite), name, competition)


def options_for(loaded: LoadedRun, overrides: Mapping[str, Any]) -> PredictOptions:
    """Return the run's views and adaptation with fields of section `predict` replaced; None keeps the run's.

    Raises:
        ConfigError: unknown, or the rules forbid the adaptation.
    """
    options = with_overrides(loaded.config.predict, overrides)
    _check_options(loaded, options)
    return options


def with_decision(loaded: LoadedRun, setting: str, progress: Progress = quiet) -> LoadedRun:
    """Return a run that decides by another value of predict.decide, fitted on its validation anew if it has to be.

    Args:
        loaded: a complete run.
        setting: value of predict.decide; the run's own, or empty: the run is returned unchanged.
        progress: called while validation is predicted.

    Raises:
        ConfigError: it does not serve metric, task or validation.
        UserError: the run's data, which it is fitted on, cannot be opened.
    """
    if setting in ("", loaded.config.predict.decide):
        return loaded
    settings = ("auto", "argmax", *decisions.KINDS)
    if setting not in settings:
        raise ConfigError(f"--decide: {unknown('decision', setting, settings)}")
    competition, shares = loaded.competition, loaded.test_shares
    if setting == "prior" and shares is None:
        raise ConfigError(
            f"--decide prior: needs the test's share of each class, and {loaded.run.path} was trained without; start a "
            "new run with them: competition.test_shares={CLASS: SHARE, ...}, or leave --decide out"
        )
    validated = loaded.run.provenance("images")["images"]["val"] > 0
    row = TASKS[competition.task]
    decisions.check(setting, competition.metric, row, validated=validated, shares=shares is not None)
    decision = decisions.decide_without_validation(setting, shares)
    if validated and decisions.choose(setting, competition.metric, shares=shares is not None) != "argmax":
        opened = (
            loaded
            if loaded.data
            else replace(loaded, data=verify_run_data(loaded.run, open_run_data(loaded.run, progress)))
        )
        plain = predict(
            loaded.model, opened.images_of("val"), **loaded.prediction_settings, made_by={}, progress=progress
        )
        decision = decisions.decide(plain, competition.metric, setting, shares=shares)[1]
    return replace(loaded, decide=setting, decision=decision)


def _check_options(loaded: LoadedRun, options: PredictOptions) -> None:
    rules.check_options(loaded.config.competition.rules, options.to_json())
    check_options(options, loaded.config.competition, loaded.competition.task)
    check_size(options.views, *loaded.competition.image_shape[1:])


def scores_of(predicted: Predictions, metric: str) -> SplitScores | None:
    """Return the scores of predictions, including the competition's metric; None without labels."""
    if predicted.targets is None:
        return None
    if len(predicted.block_names):
        return metrics.summarize_blocks(predicted, DISTORTIONS, metric)
    return metrics.summarize(predicted, metric)


def describe_prediction(loaded: LoadedRun, which: str, options: PredictOptions, source: str = "") -> dict[str, Any]:
    """Return the `made_by` of predictions by the weights in file `which`; `source` identifies the images."""
    path = loaded.run.path / f"{which}.safetensors"
    layers = adapt.count_adaptable_layers(loaded.model, options.adapt)
    accelerator = gpu.describe(loaded.execution.device)["gpu"]
    # Earlier runs have no record of prior and pool, and the same bytes otherwise.
    later = {name for name in ("prior", "pool") if getattr(options, name) == "none"}
    asked = {name: value for name, value in options.to_json().items() if name not in later}
    return {
        "run": loaded.run.name,
        "weights": path.name,
        "weights_sha256": files.sha256_file(path),
        **asked,
        "adapted_layers": layers,
        "transductive": layers > 0 or options.prior != "none" or options.pool != "none",
        "batch_size": loaded.config.predict.batch_size,
        "device": loaded.execution.device,
        "precision": loaded.execution.precision,
        **({"gpu": accelerator["name"]} if accelerator else {}),
        "images": source,
        **({"decide": loaded.decide} if loaded.decide else {}),
    }


def _suite_fingerprint(loaded: LoadedRun, suite: Suite) -> str:
    """Return what identifies the images that a suite's blocks are made of."""
    if suite.folder:
        return suites.folder_hash(Path(suite.folder))
    clean = loaded.dataset.val if suite.name == "ood_val" else loaded.dataset.test
    if clean is None:
        return ""
    rows = loaded.dataset.samples.get(suite.name)
    sample = "" if rows is None else f"-{files.sha256_bytes(rows.tobytes())[:8]}"
    return splits.fingerprint(clean) + sample


def _decide(loaded: LoadedRun, predicted: Predictions, name: str) -> Predictions:
    """Return predictions with the run's decisions; clean validation, on which they were fitted, cross-fitted ones."""
    decision, classes = loaded.run.metrics().fitted_decision, len(predicted.classes)
    if loaded.decide:
        decision = loaded.decision
    if decision is None:
        return predicted
    if not decisions.is_sound(decision, classes, numeric=predicted.row.numeric):
        raise RunError(
            f"{loaded.run.path / 'metrics.json'}: damaged: {len(decision.values)} {decision.kind}, expected "
            f"{'one for each of' if decision.kind == 'thresholds' else 'what suits'} {classes} classes; put the file "
            f"back, or {loaded.run.repair_hint}"
        )
    if name == "val" and predicted.targets is not None:
        return decisions.apply_to_validation(decision, predicted, loaded.competition.metric)
    if name == "ood_val":
        return decisions.apply_to_shifted_validation(decision, predicted, loaded.dataset.shifted_folds())
    return decisions.apply(decision, predicted)


def _record_scores(loaded: LoadedRun, scores: SplitScores, name: str, suffix: str, *, transductive: bool) -> None:
    """Record scores in metrics.json; the training has already recorded plain ones of clean and shifted validation."""
    recorded = loaded.run.metrics().model_copy(update={"variant": predict_options(loaded.config.predict).suffix})
    if suffix:
        marked = scores.model_copy(update={"transductive": transductive})
        recorded = recorded.model_copy(update={"variants": {**recorded.variants, name + suffix: marked}})
    elif name not in ("val", "ood_val"):
        recorded = recorded.with_scores(name, scores)
    loaded.run.write_metrics(recorded)


def _known_shares(loaded: LoadedRun, options: PredictOptions, name: str) -> NDArray[np.float64] | None:
    """Return the classes' shares of a split by `predict.prior`; validation has those of the training; None: unknown."""
    if options.prior == "none":
        return None
    known = "train" if name in ("val", "ood_val") else options.prior
    return prior.known_shares(known, loaded.competition.classes, loaded.answer_counts)


def estimate_accuracy(
    loaded: LoadedRun, predicted: Predictions, name: str, progress: Progress = quiet
) -> AccuracyEstimate | None:
    """Estimate the accuracy of blocks without labels, and record it under `expected` in metrics.json.

    Shifted validation is predicted in the same way first, if it is not stored. After an adaptation the plain
    prediction's estimate, if there is one, is recorded as `before`. `name` is the suite's.

    Returns:
        None if the task has no estimate, the decision is not the run's, blocks are pooled, or shifted validation has
        fewer than two families of corruptions or is neither stored nor can be predicted.
    """
    if not predicted.row.accuracy_estimate or loaded.decide or predicted.made_by.get("pool", "none") != "none":
        return None
    options = PredictOptions(**{field: predicted.made_by.get(field, plain) for field, plain in PLAIN.to_json().items()})
    shifted = _shifted_validation(loaded, options, progress)
    calibration = accuracy_estimate.calibrate(shifted) if shifted is not None else None
    if calibration is None:
        return None
    estimate = AccuracyEstimate(**accuracy_estimate.estimate_accuracy(predicted, calibration).to_json())
    with loaded.run.write_lock(RECORD_SECONDS):
        recorded = loaded.run.metrics()
        if options.adapt != "none" and name in recorded.expected:
            estimate = estimate.model_copy(update={"before": recorded.expected[name].accuracy})
        expected = {**recorded.expected, name + options.suffix: estimate}
        loaded.run.write_metrics(recorded.model_copy(update={"expected": expected}))
    return estimate


def _shifted_validation(loaded: LoadedRun, options: PredictOptions, progress: Progress) -> Predictions | None:
    """Return shifted validation predicted by the run's weights with these options, from the disk if it is complete."""
    if not loaded.config.competition.ood_validation.severities:
        return None
    path = loaded.run.predictions_path(f"ood_val{options.suffix}")
    with contextlib.suppress(RunError):  # missing or damaged
        stored = prediction_files.load(path)
        if stored.made_by.get("weights_sha256") == files.sha256_file(loaded.run.weights_path()):
            return stored
    if loaded.data is None:
        try:
            dataset = verify_run_data(loaded.run, open_dataset(loaded.run.data_config(), progress))
        except UserError:
            return None
        loaded = replace(loaded, competition=dataset.competition, data=dataset)
    if loaded.dataset.ood_val is None:
        return None
    return predict_split(loaded, "ood_val", progress, options=options)
