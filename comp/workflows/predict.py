"""A trained run's predictions: made, stored, scored, and written as a submission."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from comp.config import Config
from comp.data import sources, splits, splitting, suites
from comp.data.dataset import Dataset, open_dataset
from comp.data.splits import Split, Suite
from comp.inference import accuracy_estimate, adapt, inputs
from comp.inference.inputs import PredictInput
from comp.inference.options import PLAIN, PredictOptions, check_task, predict_options, with_overrides
from comp.inference.predict import delete_partial_blocks
from comp.inference.predict import predict as predict_with
from comp.inference.views import check_size
from comp.models.classifier import Classifier
from comp.results import decisions, metrics, predictions, runs
from comp.results.blocks import DISTORTIONS, Block
from comp.results.predictions import Predictions
from comp.results.run_metrics import AccuracyEstimate, RunMetrics, SplitScores, WeightScores
from comp.results.runs import Run
from comp.runtime.device import Execution
from comp.runtime.errors import ConfigError, DataError, RunError, UserError, unknown
from comp.runtime.progress import Progress, quiet
from comp.submission import rules, submitting, write
from comp.submission.format import Competition
from comp.training.selection import Scores
from comp.training.validation import Measured
from comp.workflows.build import load_model


@dataclass(frozen=True)
class TrainedModel:
    """A run with its best weights in its model, ready to predict images from anywhere; its own data stay closed.

    Attributes:
        run: complete.
        config: its own.
        competition: its classes, metric and task; without blocks and sample submission where no data are open.
        model: placed by `execution`.
        execution: device and precision.
        note: what is done otherwise than in training; empty: nothing.
    """

    run: Run
    config: Config
    competition: Competition
    model: Classifier
    execution: Execution
    note: str = field(default="", kw_only=True)


@dataclass(frozen=True)
class LoadedRun(TrainedModel):
    """A run with its data and model, ready to predict."""

    dataset: Dataset


@dataclass(frozen=True)
class TestOnlyRun(TrainedModel):
    """A run whose training images are not there, with the test that it submits."""

    test: Split


def load(run: Run, dataset: Dataset | None = None, progress: Progress = quiet, *, device: str = "") -> LoadedRun:
    """Return a trained run ready to predict: its data opened, its best weights in its model.

    Args:
        run: trained to the end.
        dataset: its data; None: opened here.
        progress: called while they are.
        device: to predict on; empty: the one that it was trained on.

    Raises:
        ConfigError: a device that is unknown or not on this machine.
        DataError: its data are not where they were, or others now.
        RunError: not trained to the end, damaged, or its data are others now.
    """
    config = run.config()
    model, execution, note = load_model(run, device)
    dataset = own_data(run, dataset or opened_data(run, progress))
    return LoadedRun(run, config, dataset.competition, model, execution, dataset, note=note)


def opened_data(run: Run, progress: Progress = quiet) -> Dataset:
    """Return a run's own data, opened as they were in training; where they are missing, both ways out are told.

    Raises:
        DataError: they cannot be opened.
    """
    try:
        return open_dataset(run.data_config(), progress)
    except DataError as error:
        raise DataError(
            f"{error}; these are the data of {run.path}: where they lie now is said by data.root=DIR, and images are "
            f"predicted without them by comp predict {run.path} --images PATH"
        ) from None


def load_trained(run: Run, *, device: str = "") -> TrainedModel:
    """Return a complete run ready to predict images from anywhere: its data are not opened and need not be there.

    Raises:
        ConfigError: a device that is unknown or not on this machine.
        RunError: not complete, or damaged.
    """
    config, scores, recorded = run.config(), run.metrics(), run.provenance("classes", "image_shape")
    model, execution, note = load_model(run, device)
    channels, height, width = recorded["image_shape"]
    competition = Competition(
        name=config.competition.name,
        metric=scores.metric,
        classes=tuple(recorded["classes"]),
        image_shape=(channels, height, width),
        blocks=(),
        submission=config.competition.submission,
        task=scores.task,
        numbered=recorded.get("numbered", False),
        separator=recorded.get("separator", ""),
        bare_images=recorded.get("bare_images", False),
        header=tuple(recorded.get("header", ("id", "label"))),
    )
    return TrainedModel(run, config, competition, model, execution, note=note)


def load_for(run: Run, wanted: PredictInput, progress: Progress = quiet, *, device: str = "") -> TrainedModel:
    """Return a run ready to predict what is wanted, its data opened where that needs them.

    Raises:
        UserError: as `load` and `load_trained`.
    """
    if wanted.own and wanted.split in (None, "suite"):
        try:
            dataset = opened_data(run, progress)
        except DataError as error:
            return _with_test_alone(run, error, progress, device)
        return load(run, dataset, progress, device=device)
    if wanted.own:
        return load(run, progress=progress, device=device)
    if wanted.suite is not None and "numbered" not in run.provenance():
        # A run of before these facts were kept: its data tell how a submission spells its classes.
        return load(run, progress=progress, device=device)
    return load_trained(run, device=device)


def _with_test_alone(run: Run, error: DataError, progress: Progress, device: str) -> TestOnlyRun:
    """Return a run with its test, where all of its data cannot be opened; what cannot be opened either is `error`."""
    config = run.data_config()
    opener = sources.TESTS.get(config.data.source)
    if config.competition.suite.source != "test" or opener is None or "header" not in run.provenance():
        raise error
    trained = load_trained(run, device=device)
    shape = trained.competition.image_shape
    try:
        found = opener(config.data, trained.competition.classes, progress)
        if found.split.image_shape != shape:
            raise DataError("images of another size")
    except DataError:
        raise error from None
    competition = replace(
        trained.competition, sample=found.sample, test_ids=() if found.sample else tuple(found.split.ids.tolist())
    )
    told = f"{str(error).partition('; these are the data')[0]}: the test is predicted without the training data"
    return TestOnlyRun(
        run, trained.config, competition, trained.model, trained.execution,
        replace(found.split, name="suite", labels=None), note="; ".join(filter(None, (trained.note, told))),
    )  # fmt: skip


def evaluate(loaded: LoadedRun, progress: Progress = quiet, *, variant: PredictOptions | None = None) -> RunMetrics:
    """Score the clean labelled test split, where there is one; return all of the run's scores.

    Args:
        loaded: a complete run.
        progress: called after every batch.
        variant: views and adaptation; None: the config's.

    Raises:
        ConfigError: the rules forbid the adaptation.
    """
    test = loaded.dataset.test
    if test is not None and test.labels is not None:
        predict_split(loaded, test, "test", progress, variant=variant)
    return loaded.run.metrics()


def predict(loaded: LoadedRun, progress: Progress = quiet, *, variant: PredictOptions | None = None) -> Predictions:
    """Predict the suite, store predictions/suite.npz, and score it where its labels are known.

    Args:
        loaded: a complete run.
        progress: called after every batch.
        variant: views and adaptation; None: the config's. One that is not plain lands beside the plain predictions, as
            predictions/suite+flip+bn.npz.

    Raises:
        ConfigError: the competition has no suite, or its rules forbid the adaptation.
    """
    suite = loaded.dataset.suite
    if suite is None:
        raise ConfigError(f"{loaded.run.path}: competition.suite.source is none, so there is nothing to submit")
    return predict_split(loaded, suite, "suite", progress, variant=variant)


def predict_split(
    loaded: TrainedModel,
    images: Split | Suite,
    name: str,
    progress: Progress = quiet,
    *,
    variant: PredictOptions | None = None,
) -> Predictions:
    """Predict images, store predictions/NAME.npz, and record their score in metrics.json where labels are known.

    A suite's blocks wait in predictions/NAME.parts/ until the last one is there: a prediction that was stopped goes on
    at the block that it was in.

    Args:
        loaded: a complete run.
        images: a split, or a suite.
        name: `test`, `suite`, `val`, `ood_val`, or another suite's.
        progress: called after every batch.
        variant: as for `predict`; its score stands under `variants` in metrics.json, and the plain one stays.

    Raises:
        ConfigError: the rules forbid the adaptation.
    """
    run = loaded.run
    own = predict_options(loaded.config.predict)
    chosen = own if variant is None else variant
    _check_variant(loaded, chosen)
    path = run.predictions_path(name + chosen.suffix)
    parts = path.with_suffix(".parts") if isinstance(images, Suite) else None
    with run.writing():
        found = _predict(
            loaded, images, run.weights_path().stem, progress,
            variant=chosen, made_of=_made_of(loaded, images) if parts else "", parts=parts,
        )  # fmt: skip
        found = _decided(loaded, found, name)
        predictions.save(path, found)
        if parts:
            delete_partial_blocks(parts)
        if (scores := score(loaded, found)) is not None:
            _record(loaded, scores, name, chosen, transductive=bool(found.made_by.get("transductive")))
    return found


def predict_images(
    loaded: TrainedModel, images: Split, progress: Progress = quiet, *, variant: PredictOptions | None = None
) -> Predictions:
    """Return predictions of images from anywhere; nothing is written, so that the run may lie on a read-only disk.

    Args:
        loaded: a complete run.
        images: of the shape that it was trained on.
        progress: called after every batch.
        variant: as for `predict`.

    Raises:
        ConfigError: the rules forbid the adaptation.
    """
    chosen = predict_options(loaded.config.predict) if variant is None else variant
    _check_variant(loaded, chosen)
    found = _predict(
        loaded, images, loaded.run.weights_path().stem, progress, variant=chosen, made_of=splits.fingerprint(images)
    )
    return _decided(loaded, found, images.name)


@dataclass(frozen=True)
class Predicted:
    """What a `PredictInput` has come to.

    Attributes:
        found: the predictions.
        name: `suite`, `val` ..., another suite's, or `images`.
        blocks: of another suite than the competition's.
        notes: what of the images was left out, or brought to another size.
    """

    found: Predictions
    name: str
    blocks: tuple[Block, ...] = ()
    notes: tuple[str, ...] = ()


def predict_input(
    loaded: TrainedModel,
    wanted: PredictInput,
    progress: Progress = quiet,
    *,
    variant: PredictOptions,
    severities: int = 5,
) -> Predicted:
    """Predict what is wanted; all but images is stored in the run, see `predict_split` and `predict_images`.

    Args:
        loaded: by `load_for`.
        wanted: see `PredictInput`.
        progress: called after every batch.
        variant: views and adaptation.
        severities: stacked in each file of another suite.

    Raises:
        UserError: no such split, or images that are not there or cannot be read.
    """
    shape = loaded.competition.image_shape
    if wanted.images is not None:
        opened = inputs.open_images(wanted.images, shape, loaded.run.data_config().data, progress)
        found = predict_images(loaded, opened.split, progress, variant=variant)
        return Predicted(found, opened.split.name, notes=opened.notes)
    if wanted.suite is not None:
        suite, name = suites.folder_suite(wanted.suite, severities, shape), suites.name_of(wanted.suite)
        return Predicted(predict_split(loaded, suite, name, progress, variant=variant), name, suite.blocks)
    name = wanted.split or "suite"
    if isinstance(loaded, TestOnlyRun):
        return Predicted(predict_split(loaded, loaded.test, name, progress, variant=variant), name)
    assert isinstance(loaded, LoadedRun)
    return Predicted(predict_split(loaded, images_of(loaded, name), name, progress, variant=variant), name)


def variant_for(loaded: TrainedModel, given: Mapping[str, Any]) -> PredictOptions:
    """Return the run's own views and adaptation with some fields of `predict` in their place; None keeps the run's.

    Raises:
        ConfigError: unknown, or the rules forbid the adaptation.
    """
    variant = with_overrides(loaded.config.predict, given)
    _check_variant(loaded, variant)
    return variant


def _check_variant(loaded: TrainedModel, variant: PredictOptions) -> None:
    rules.check_adaptation(loaded.config.competition.rules, variant.adapt)
    check_task(variant, loaded.competition.task)
    check_size(variant.views, *loaded.competition.image_shape[1:])


def images_of(loaded: LoadedRun, split: str) -> Split | Suite:
    """Return what `comp predict --split` names.

    Raises:
        ConfigError: no such split, or these data have none.
    """
    dataset = loaded.dataset
    found: dict[str, Split | Suite | None] = {
        "val": dataset.val, "ood_val": dataset.ood_val, "test": dataset.test, "suite": dataset.suite,
    }  # fmt: skip
    if split not in found:
        raise ConfigError(f"--split: {unknown('split', split, found)}")
    images = found[split]
    if images is None:
        raise ConfigError(f"--split {split}: the data of {loaded.run.path} have none")
    return images


def score(loaded: TrainedModel, found: Predictions) -> SplitScores | None:
    """Return the scores of predictions; None where targets are not known."""
    return scores_of(found, loaded.competition.metric)


def scores_of(found: Predictions, metric: str) -> SplitScores | None:
    """Return the scores of predictions, the competition's metric among them; None where targets are not known."""
    if found.targets is None:
        return None
    if len(found.block_names):
        return metrics.shifted_summary(found, DISTORTIONS, metric)
    return metrics.summary(found, metric)


@dataclass(frozen=True)
class Scored:
    """What `score_weights` measures.

    Attributes:
        scores: of clean and shifted validation.
        thresholds: of each class, tuned on all of clean validation; empty where decisions need none.
    """

    scores: WeightScores = field(default_factory=WeightScores)
    thresholds: tuple[float, ...] = ()


def score_weights(loaded: LoadedRun, which: str, progress: Progress, measured: Measured | None = None) -> Scored:
    """Score the weights in the model on clean validation, and the best ones on shifted validation too.

    Args:
        loaded: its model holds the weights.
        which: `best`, `averaged` or `final`: the file that they lie in.
        progress: called after every batch.
        measured: what the training has just measured of them: it is not predicted again.
    """
    run, dataset, metric = loaded.run, loaded.dataset, loaded.competition.metric
    before = measured or Measured(Scores())
    val, shifted, thresholds = None, None, None
    if dataset.val is not None:
        found = _predicted(loaded, dataset.val, which, progress, before.val)
        if decisions.is_tuned(found, metric):
            thresholds = decisions.tune(found, metric)
        found = decisions.validated(found, metric)
        val = metrics.summary(found, metric)
        predictions.save(run.predictions_path("val" if which == "best" else f"val-{which}"), found)
    if dataset.ood_val is not None and which == "best":
        found = _predicted(loaded, dataset.ood_val, which, progress, before.ood_val)
        found = replace(found, thresholds=thresholds)
        shifted = metrics.shifted_summary(found, DISTORTIONS, metric)
        predictions.save(run.predictions_path("ood_val"), found)
    tuned = () if thresholds is None else tuple(map(float, thresholds))
    return Scored(WeightScores(val=val, ood_val=shifted), tuned)


def _predicted(
    loaded: LoadedRun, images: Split | Suite, which: str, progress: Progress, before: Predictions | None
) -> Predictions:
    """Return plain predictions by the weights in the model: those that were made of them before, or new ones."""
    if before is None:
        return _predict(loaded, images, which, progress)
    return replace(before, made_by=_made_by(loaded, which, PLAIN, ""))


def _decided(loaded: TrainedModel, found: Predictions, name: str) -> Predictions:
    """Return predictions with the run's thresholds; clean validation, which those were tuned on, cross-fitted ones."""
    if name == "val" and found.targets is not None:
        return decisions.validated(found, loaded.competition.metric)
    thresholds = loaded.run.metrics().thresholds
    if thresholds and len(thresholds) != len(found.classes):
        raise RunError(
            f"{loaded.run.path / 'metrics.json'}: damaged: {len(thresholds)} thresholds, expected one for each of "
            f"{len(found.classes)} classes; put the file back, or {loaded.run.cure}"
        )
    return replace(found, thresholds=np.array(thresholds, np.float32)) if thresholds else found


def _predict(
    loaded: TrainedModel,
    images: Split | Suite,
    which: str,
    progress: Progress,
    *,
    variant: PredictOptions = PLAIN,
    made_of: str = "",
    parts: Path | None = None,
) -> Predictions:
    """Predict with the weights in the model, which file `which` holds; `made_of` tells images apart for `parts`."""
    return predict_with(
        loaded.model,
        images,
        classes=loaded.competition.classes,
        task=loaded.competition.task,
        execution=loaded.execution,
        batch_size=loaded.config.predict.batch_size,
        made_by=_made_by(loaded, which, variant, made_of),
        variant=variant,
        parts=parts,
        progress=progress,
    )


def _made_by(loaded: TrainedModel, which: str, variant: PredictOptions, made_of: str) -> dict[str, Any]:
    """Return what predictions by the weights in file `which` are recorded with."""
    path = loaded.run.path / f"{which}.safetensors"
    layers = adapt.count_adaptable_layers(loaded.model, variant.adapt)
    return {
        "run": loaded.run.name,
        "weights": path.name,
        "weights_sha256": runs.sha256(path),
        **variant.to_json(),
        "adapted_layers": layers,
        "transductive": layers > 0,
        "batch_size": loaded.config.predict.batch_size,
        "device": loaded.execution.device,
        "precision": loaded.execution.precision,
        "images": made_of,
    }


def _made_of(loaded: TrainedModel, images: Split | Suite) -> str:
    """Return what tells a suite's images from others that its blocks could be made of."""
    if isinstance(images, Suite) and images.folder:
        return suites.state_of(Path(images.folder))
    assert isinstance(loaded, LoadedRun)
    clean = loaded.dataset.val if images.name == "ood_val" else loaded.dataset.test
    rows = loaded.dataset.samples.get(images.name)
    of_rows = "" if rows is None else f"-{runs.sha256_of(rows.tobytes())[:8]}"
    return splits.fingerprint(clean) + of_rows if clean is not None else ""


def _record(
    loaded: TrainedModel, scores: SplitScores, name: str, variant: PredictOptions, *, transductive: bool
) -> None:
    """Note scores in metrics.json; those of clean and shifted validation, plain, stand there since the training."""
    noted = loaded.run.metrics().model_copy(update={"variant": predict_options(loaded.config.predict).suffix})
    if variant.suffix:
        marked = scores.model_copy(update={"transductive": transductive})
        noted = noted.model_copy(update={"variants": {**noted.variants, name + variant.suffix: marked}})
    elif name not in ("val", "ood_val"):
        noted = noted.with_scores(name, scores)
    loaded.run.write_metrics(noted)


def estimate_accuracy(
    loaded: TrainedModel, found: Predictions, name: str, progress: Progress = quiet
) -> AccuracyEstimate | None:
    """Return the accuracy of blocks estimated without labels, and note it under `expected` in metrics.json.

    Shifted validation is predicted in the same way first, where it was not before. After an adaptation, what was
    expected of the plain prediction stands there as `before`, if that was made.

    Args:
        loaded: the run that made the predictions.
        found: predictions of a suite.
        name: `suite`, or another suite's.
        progress: called after every batch.

    Returns:
        None without shifted validation of two families of corruptions at least, where that is neither stored nor can be
        predicted because the run's data are not there, or where the task has no estimate.
    """
    if not found.row.accuracy_estimate:
        return None
    variant = PredictOptions(**{field: found.made_by[field] for field in PLAIN.to_json()})
    shifted = _shifted_validation(loaded, variant, progress)
    calibration = accuracy_estimate.calibrate(shifted) if shifted is not None else None
    if calibration is None:
        return None
    estimate = AccuracyEstimate(**accuracy_estimate.estimate_accuracy(found, calibration).to_json())
    noted = loaded.run.metrics()
    if variant.adapt != "none" and name in noted.expected:
        estimate = estimate.model_copy(update={"before": noted.expected[name].accuracy})
    with loaded.run.writing():
        expected = {**noted.expected, name + variant.suffix: estimate}
        loaded.run.write_metrics(noted.model_copy(update={"expected": expected}))
    return estimate


def _shifted_validation(loaded: TrainedModel, variant: PredictOptions, progress: Progress) -> Predictions | None:
    """Return shifted validation predicted by the run's weights in this way, from the disk where it lies there whole."""
    if not loaded.config.competition.ood_validation.severities:
        return None
    path = loaded.run.predictions_path(f"ood_val{variant.suffix}")
    with contextlib.suppress(RunError):  # missing, or damaged
        stored = predictions.load(path)
        if stored.made_by.get("weights_sha256") == runs.sha256(loaded.run.weights_path()):
            return stored
    if not isinstance(loaded, LoadedRun):
        try:
            dataset = own_data(loaded.run, open_dataset(loaded.run.data_config(), progress))
        except UserError:
            return None
        loaded = LoadedRun(loaded.run, loaded.config, dataset.competition, loaded.model, loaded.execution, dataset)
    if loaded.dataset.ood_val is None:
        return None
    return predict_split(loaded, loaded.dataset.ood_val, "ood_val", progress, variant=variant)


def submit(
    loaded: TrainedModel,
    found: Predictions,
    path: Path,
    *,
    force: bool = False,
    blocks: tuple[Block, ...] = (),
    trace: Mapping[str, Any] | None = None,
) -> Path:
    """Write the submission and its sidecar, check the CSV that lies on the disk, and note it in the run.

    Args:
        loaded: the run that made the predictions.
        found: of the competition's suite, or of `blocks`.
        path: of the CSV.
        force: replace what is there.
        blocks: of another suite than the competition's.
        trace: what the sidecar says beside what it always does.

    Raises:
        SubmissionError: the name is taken, or the written file does not pass the check.
    """
    competition = loaded.competition
    if isinstance(loaded, LoadedRun):
        counts = loaded.dataset.train.class_counts(len(competition.classes)).tolist()
    else:
        counts = loaded.run.provenance()["training_counts"]
    if blocks:
        competition = replace(competition, blocks=blocks, sample=None, test_ids=())
    told = {"weights_sha256": found.made_by["weights_sha256"], "seed": loaded.config.seed, **(trace or {})}
    return submitting.submit(loaded.run, found, competition, path, trace=told, training_counts=counts, force=force)


def default_submission(config: Config, folder: Path = Path("submissions")) -> Path:
    """Return the first free `submissions/<competition>.csv`, `-2` and so on."""
    return write.free_path(folder, config.competition.name)


def own_data(run: Run, dataset: Dataset) -> Dataset:
    """Return a run's data with the samples that it has recorded.

    Raises:
        UserError: they are not the run's own: its scores and class order would mean something else.
    """
    recorded = run.provenance("classes", "data_fingerprint")
    if recorded["classes"] != list(dataset.competition.classes):
        raise RunError(
            f"{run.path}: was trained on other classes, or on another order of them; give it its own data back"
        )
    if recorded["data_fingerprint"] != dataset.fingerprint:
        raise DataError(
            f"{run.path}: its training images or labels have changed (fingerprint {recorded['data_fingerprint']}, "
            f"now {dataset.fingerprint}); give it its own data back or start a new run"
        )
    splitting.check_saved_split(run.path / "split.npz", dataset.train, dataset.val)
    return dataset.with_samples(splitting.samples(run.path / "split.npz"))
