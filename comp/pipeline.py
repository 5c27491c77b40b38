"""What `comp run` does, step by step; each step is also a verb of its own and a function of the Python API.

check -> open_dataset -> train (fit, score) -> evaluate (test) -> predict (suite) -> submit -> leaderboard row
"""

import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from comp import config as configs
from comp import device, metrics, plots, predictions, runs
from comp.augment import policies
from comp.competition import rules, submission
from comp.competition.spec import DISTORTIONS, Block
from comp.config import Config, ModelConfig
from comp.data import division, sources, splits, suites
from comp.data.dataset import Dataset, open_dataset
from comp.data.splits import Split, Suite
from comp.device import Execution
from comp.errors import ConfigError, DataError, RunError, unknown
from comp.imaging import draws
from comp.inference import adapt, expectation
from comp.inference.predict import forget
from comp.inference.predict import predict as predict_images
from comp.inference.variants import PLAIN, Variant, laid_on, variant_of
from comp.models import averaging, weights, zoo
from comp.models.classifier import Classifier
from comp.predictions import Predictions
from comp.progress import Progress, quiet
from comp.runs import Run
from comp.training import consistency, engine_choice, fit, lr_find, optim, timing, validation
from comp.training.distributed import ALONE, Alone, Onlooker
from comp.training.fit import OnEpoch
from comp.training.lr_find import Found
from comp.training.timing import Choice

_INITIAL_WEIGHTS = 1  # names the purpose of a draw beside the seed
_BYTES_PER_ID = 80  # of a suite's row in a .npz: id as UTF-32, top1, label


@dataclass(frozen=True)
class Loaded:
    """A run with its data and model, ready to predict."""

    run: Run
    config: Config
    dataset: Dataset
    model: Classifier
    execution: Execution


def check(config: Config, runs_root: Path) -> None:
    """Check what the first phase could not: names, rules, disk space. Nothing is opened or downloaded.

    Raises:
        ConfigError: what is unknown, forbidden or too large.
    """
    metrics.metric(config.competition.metric)
    if config.data.source not in sources.SOURCES:
        raise ConfigError(f"data.source: {unknown('source', config.data.source, sources.SOURCES)}")
    optim.check(config.optim)
    averaging.check(config.train, validated=config.data.validation != "none" or config.data.folds is not None)
    device.check_precision(config.train.precision, device.choose_device(config.train.device))
    imitated = policies.resolve(config.augment.policy, config.augment.ops).imitates
    consistency.check(config)
    engine_choice.check(config)
    rules.check(
        config.competition.rules, pretrained=_has_external_weights(config), imitated=imitated,
        adapt=variant_of(config.predict).adapt,
    )  # fmt: skip
    zoo.refuse_banned(config.model.name, config.competition.rules.banned_families)
    suites.shifted_distortions(config.competition.ood_validation)
    validation.check(config)
    _check_space(config, runs_root)


def _has_external_weights(config: Config) -> bool:
    """Tell whether weights come from outside the competition, by way of earlier runs too."""
    if not config.model.from_run:
        return bool(config.model.pretrained)
    source = runs.open_run(Path(config.model.from_run)).config()
    return source.competition.name != config.competition.name or _has_external_weights(source)


def _check_space(config: Config, runs_root: Path) -> None:
    """Refuse a run whose predictions would not fit: a night's work should not end at a full disk."""
    suite = config.competition.suite
    rows = suite.files * suite.severities * suite.images_per_block
    needed = rows * (_BYTES_PER_ID + 2 * 100) + (100 << 20)  # float16 logits of up to 100 classes, and some weights
    existing = next(path for path in (runs_root.absolute(), *runs_root.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise ConfigError(f"{runs_root}: needs about {needed >> 20:,} MiB, found {free >> 20:,} MiB free; make room")


def prepare(config: Config, runs_root: Path = Path("runs"), progress: Progress = quiet) -> Dataset:
    """Check a config and open its data: all that can be refused before the first step is refused here.

    Raises:
        UserError: as `check` and `open_dataset`.
    """
    check(config, runs_root)
    return open_dataset(config, progress)


def build_model(config: Config, dataset: Dataset, *, first_weights: bool = True) -> Classifier:
    """Return the config's model on the CPU, with its first weights: random, pretrained, or a previous run's.

    Args:
        config: section `model` and the seed.
        dataset: gives classes, image shape, mean and deviation.
        first_weights: False draws them at random, for a model whose weights a checkpoint holds.

    Raises:
        ModelError: an unknown name or argument, or weights that are missing or do not fit.
        RunError: `model.from_run` names no trained run.
    """
    section = config.model
    if not first_weights:
        section = _without_weights(section)
    elif section.from_run:
        path = runs.open_run(Path(section.from_run)).weights_path()
        section = section.model_copy(update={"pretrained": str(path)})
    return zoo.build(
        section,
        classes=len(dataset.competition.classes),
        image_shape=dataset.competition.image_shape,
        mean=dataset.mean,
        std=dataset.std,
        seed=draws.key(config.seed, _INITIAL_WEIGHTS),
        weights_folder=Path(config.data.root) / "weights",
    )


def _without_weights(section: ModelConfig) -> ModelConfig:
    """Return the same network for weights that come from elsewhere, its normalisation's among them."""
    normalize = "per_image" if section.normalize == "per_image" else "dataset"
    return section.model_copy(update={"pretrained": False, "from_run": "", "sha256": "", "normalize": normalize})


def load_model(run: Run) -> tuple[Classifier, Execution]:
    """Return a trained run's best weights in its model, placed as recorded; its data are not needed.

    Raises:
        RunError: not trained to the end, or damaged.
        ModelError: the weights are damaged or another network's.
    """
    path, provenance = run.weights_path(), run.provenance()
    recorded = run.path / "execution.json"
    execution = device.from_json(runs.read_json(recorded), str(recorded))
    channels, height, width = provenance["image_shape"]
    model = zoo.build(
        _without_weights(run.config().model),
        classes=len(provenance["classes"]),
        image_shape=(channels, height, width),
        mean=[0.0] * channels,  # like the deviation, read with the weights
        std=[1.0] * channels,
        seed=0,
    )
    weights.load_weights(model, path)
    execution.place(model)
    return model, execution


def train(
    config: Config,
    *,
    name: str = "run",
    runs_root: Path = Path("runs"),
    dataset: Dataset | None = None,
    execution: Execution | None = None,
    on_start: Callable[[Run, Classifier], None] = lambda run, model: None,
    on_epoch: OnEpoch = lambda epoch: None,
    progress: Progress = quiet,
    team: Alone = ALONE,
) -> Run:
    """Train a config and score it on clean and shifted validation; return the complete run.

    Args:
        config: what to train.
        name: of the run's folder, after the time.
        runs_root: where run folders are made.
        dataset: from `prepare`, or prepared here.
        execution: recorded choices to reuse; None measures.
        on_start: called before the first step with the run's folder, just made, and the model, frozen as in epoch 1.
        on_epoch: called at every epoch's end; may return a `Stop`.
        progress: called at every step.
        team: the processes that train it together, of which this one leads; the others `follow`.

    Raises:
        UserError: anything wrong with config, data or disk.
        Interrupted: a signal; the run can be resumed.
    """
    began = time.perf_counter()
    dataset = dataset or team.leader_first(lambda: prepare(config, runs_root, progress))
    model = build_model(config, dataset)
    run = runs.create(runs_root, config, name, provenance_of(config, dataset, model))
    on_start(run, model)
    with run.writing(), device.only_deterministic(config.train.deterministic):
        division.save(run.path / "split.npz", dataset.train, dataset.val)
        choice = _reused(config, execution) if execution else _choose_execution(config, dataset, model, progress)
        run.write_json("execution.json", choice.to_json())
        _fit_and_score(
            run, config, dataset, model, choice.execution, resume=False, began=began, on_epoch=on_epoch,
            progress=progress, team=team,
        )  # fmt: skip
    return run


def find_rate(
    config: Config, *, lowest: float = 1e-6, highest: float = 10.0, steps: int = 200, progress: Progress = quiet
) -> Found:
    """Let the learning rate of a config's training rise, on a copy of its model; see `comp.training.lr_find.find`."""
    # A graph takes longer to build than these few steps.
    train = config.train.model_copy(update={"compile": False, "budget": ""})
    config = config.model_copy(update={"train": train})
    dataset = prepare(config, progress=progress)
    model = build_model(config, dataset)
    execution = _choose_execution(config, dataset, model, progress).execution
    return lr_find.find(
        config, dataset, model, execution, lowest=lowest, highest=highest, steps=steps, progress=progress
    )


def resume(
    run: Run,
    *,
    dataset: Dataset | None = None,
    on_epoch: OnEpoch = lambda epoch: None,
    progress: Progress = quiet,
    team: Alone = ALONE,
) -> Run:
    """Go on with an interrupted training where it stopped; a complete one is returned as it is.

    Raises:
        RunError: its data or classes are others now, or its files are damaged.
    """
    if run.is_complete():
        return run
    began = time.perf_counter()
    config = run.config()
    dataset = dataset or team.leader_first(lambda: open_dataset(config, progress))
    _check_same_data(run, dataset)
    with run.writing(), device.only_deterministic(config.train.deterministic):
        path = run.path / "execution.json"
        if path.exists():
            execution = _reused(config, device.from_json(runs.read_json(path), str(path))).execution
        else:  # stopped before its choices were made
            scratch = build_model(config, dataset)
            choice = _choose_execution(config, dataset, scratch, progress)
            run.write_json("execution.json", choice.to_json())
            execution = choice.execution
        model = build_model(config, dataset, first_weights=not (run.path / "state.pt").exists())
        _fit_and_score(
            run,
            config,
            dataset,
            model,
            execution,
            resume=True,
            began=began,
            on_epoch=on_epoch,
            progress=progress,
            team=team,
        )
    return run


def _reused(config: Config, recorded: Execution) -> Choice:
    """Return a recorded choice; records from before engines were chosen leave that to the config."""
    return Choice(replace(recorded, engine=engine_choice.engine_of(config, recorded)))


def follow(
    config: Config, team: Alone, *, resume: bool = False, runs_root: Path = Path("runs"), progress: Progress = quiet
) -> None:
    """Train with the team's leader, who calls `train` or `resume` with the same config; return when it has trained.

    Raises:
        UserError: as the leader.
        Interrupted: likewise.
    """
    dataset = team.leader_first(
        lambda: open_dataset(config, progress) if resume else prepare(config, runs_root, progress)
    )
    task = team.from_leader(_told_by_leader)
    model = build_model(config, dataset, first_weights=not task.resume)
    session = fit.start(
        config, dataset, Onlooker(task.path), model, task.execution, fresh=task.fresh, progress=progress, team=team
    )
    with device.only_deterministic(config.train.deterministic):
        fit.fit(session, resume=task.resume, progress=progress)


@dataclass(frozen=True)
class _Task:
    """What the leader of a team tells the others before the first step."""

    path: Path
    execution: Execution
    fresh: bool
    resume: bool


def _told_by_leader() -> _Task:
    raise AssertionError("a leader trains or resumes, and does not follow")


def _choose_execution(config: Config, dataset: Dataset, model: Classifier, progress: Progress) -> Choice:
    engine, seconds = engine_choice.choose(config, dataset, progress)
    transform = engine_choice.in_workers(config, engine)
    choice = timing.choose_execution(model, dataset, config, transform=transform, progress=progress)
    choice.execution = replace(choice.execution, engine=engine)
    choice.seconds_a_step |= seconds
    return choice


def _fit_and_score(
    run: Run,
    config: Config,
    dataset: Dataset,
    model: Classifier,
    execution: Execution,
    *,
    resume: bool,
    began: float,
    on_epoch: OnEpoch,
    progress: Progress,
    team: Alone,
) -> None:
    resumes = resume and (run.path / "state.pt").exists()
    fresh = not (resumes or config.model.pretrained or config.model.from_run)
    team.from_leader(lambda: _Task(run.path.absolute(), execution, fresh, resumes))
    session = fit.start(config, dataset, run, model, execution, fresh=fresh, began=began, progress=progress, team=team)
    cursor = fit.fit(session, resume=resume, on_epoch=on_epoch, progress=progress)
    plots.curves(run.plot_path("curves"), run.history(), cursor.best_epoch)
    final = _score(run, config, dataset, model, execution, "final", progress)
    averaged: dict[str, Any] = {}
    if (run.path / "averaged.safetensors").exists():
        facts = weights.load_weights(model, run.path / "averaged.safetensors")
        scores = _score(run, config, dataset, model, execution, "averaged", progress)
        averaged = {"method": config.train.average, "statistics": facts["statistics"], **scores}
    elif config.train.average != "none":
        averaged = {
            "method": config.train.average,
            "missing": f"ended in epoch {cursor.epoch}, before the averaged ones",
        }
    best: dict[str, Any] = {}
    if (run.path / "best.safetensors").exists():
        weights.load_weights(model, run.path / "best.safetensors")
        best = _score(run, config, dataset, model, execution, "best", progress)
    trained = {
        "selected_by": config.train.select,
        "epochs": cursor.epoch,
        "stopped": cursor.stopped,
        "rollbacks": cursor.rollbacks,
        "deterministic": config.train.deterministic,
        "micro_batch": min(session.stepper.micro_batch, session.batch_size),
        "best_epoch": cursor.best_epoch,
        "best_averaged": cursor.best_averaged,
        "train_seconds": round(cursor.seconds, 2),
        "test_like": sorted(session.policy.imitates),
        "final": final,
        "averaged": averaged,
        "best": best,
    }
    run.write_json("metrics.json", {**describe(run, config, model, execution), **trained})


def describe(run: Run, config: Config, model: Classifier, execution: Execution) -> dict[str, Any]:
    """Return what metrics.json says of every run, however it was made."""
    return {
        "run": run.name,
        "competition": config.competition.name,
        "metric": config.competition.metric,
        "config_hash": configs.fingerprint(config),
        "model": config.model.name,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "first_weights": run.provenance()["first_weights"],
        "device": execution.device,
        "precision": execution.precision,
        "compiled": execution.compiled,
    }


def _score(
    run: Run, config: Config, dataset: Dataset, model: Classifier, execution: Execution, which: str, progress: Progress
) -> dict[str, Any]:
    """Score the weights in `model` on clean validation, and the ones that count on shifted validation too."""
    loaded = Loaded(run, config, dataset, model, execution)
    scores: dict[str, Any] = {}
    if dataset.val is not None:
        found = _predict(loaded, dataset.val, which, progress)
        scores["val"] = metrics.summary(found, config.competition.metric)
        predictions.save(run.predictions_path("val" if which == "best" else f"val-{which}"), found)
    if dataset.ood_val is not None and which == "best":
        found = _predict(loaded, dataset.ood_val, which, progress)
        scores["ood_val"] = metrics.shifted_summary(found, DISTORTIONS, config.competition.metric)
        predictions.save(run.predictions_path("ood_val"), found)
    return scores


def _predict(
    loaded: Loaded,
    images: Split | Suite,
    which: str,
    progress: Progress,
    *,
    variant: Variant = PLAIN,
    made_of: str = "",
    parts: Path | None = None,
) -> Predictions:
    """Predict with the weights in the model, which file `which` holds; `made_of` tells images apart for `parts`."""
    path = loaded.run.path / f"{which}.safetensors"
    layers = adapt.adaptable(loaded.model, variant.adapt)
    made_by = {
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
    return predict_images(
        loaded.model,
        images,
        classes=loaded.dataset.competition.classes,
        execution=loaded.execution,
        batch_size=loaded.config.predict.batch_size,
        made_by=made_by,
        variant=variant,
        parts=parts,
        progress=progress,
    )


def load(run: Run, dataset: Dataset | None = None, progress: Progress = quiet) -> Loaded:
    """Return a trained run ready to predict: its data opened, its best weights in its model.

    Raises:
        RunError: not trained to the end, damaged, or its data are others now.
    """
    config = run.config()
    model, execution = load_model(run)
    dataset = dataset or open_dataset(config, progress)
    _check_same_data(run, dataset)
    return Loaded(run, config, dataset, model, execution)


def evaluate(loaded: Loaded, progress: Progress = quiet, *, variant: Variant | None = None) -> dict[str, Any]:
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


def predict(loaded: Loaded, progress: Progress = quiet, *, variant: Variant | None = None) -> Predictions:
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
    loaded: Loaded, images: Split | Suite, name: str, progress: Progress = quiet, *, variant: Variant | None = None
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
    own = variant_of(loaded.config.predict)
    chosen = own if variant is None else variant
    rules.check_adaptation(loaded.config.competition.rules, chosen.adapt)
    path = run.predictions_path(name + chosen.suffix)
    parts = path.with_suffix(".parts") if isinstance(images, Suite) else None
    with run.writing():
        found = _predict(
            loaded, images, run.weights_path().stem, progress,
            variant=chosen, made_of=_made_of(loaded, images) if parts else "", parts=parts,
        )  # fmt: skip
        predictions.save(path, found)
        if parts:
            forget(parts)
        if found.labels is not None:
            _record(loaded, found, name, chosen)
    return found


def variant_for(loaded: Loaded, given: Mapping[str, Any]) -> Variant:
    """Return the run's own views and adaptation with some fields of `predict` in their place; None keeps the run's.

    Raises:
        ConfigError: unknown, or the rules forbid the adaptation.
    """
    variant = laid_on(loaded.config.predict, given)
    rules.check_adaptation(loaded.config.competition.rules, variant.adapt)
    return variant


def images_of(loaded: Loaded, split: str) -> Split | Suite:
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


def expect(loaded: Loaded, found: Predictions, name: str, progress: Progress = quiet) -> dict[str, Any]:
    """Return what blocks are expected to score, told without labels, and note it under `expected` in metrics.json.

    Shifted validation is predicted in the same way first, where it was not before. After an adaptation, what was
    expected of the plain prediction stands there as `before`, if that was made.

    Args:
        loaded: the run that made the predictions.
        found: predictions of a suite.
        name: `suite`, or another suite's.
        progress: called after every batch.

    Returns:
        The values of `Expected`; empty without shifted validation of two families of corruptions at least.
    """
    variant = Variant(**{field: found.made_by[field] for field in PLAIN.to_json()})
    shifted = _shifted_validation(loaded, variant, progress)
    calibration = expectation.calibrate(shifted) if shifted is not None else None
    if calibration is None:
        return {}
    values = expectation.expect(found, calibration).to_json()
    scores = loaded.run.metrics()
    known = scores.get("expected", {})
    if variant.adapt != "none" and name in known:
        values["before"] = known[name]["accuracy"]
    with loaded.run.writing():
        loaded.run.write_json("metrics.json", {**scores, "expected": {**known, name + variant.suffix: values}})
    return values


def _shifted_validation(loaded: Loaded, variant: Variant, progress: Progress) -> Predictions | None:
    """Return shifted validation predicted by the run's weights in this way, from the disk where it lies there."""
    if loaded.dataset.ood_val is None:
        return None
    path = loaded.run.predictions_path(f"ood_val{variant.suffix}")
    if path.exists():
        stored = predictions.load(path)
        if stored.made_by.get("weights_sha256") == runs.sha256(loaded.run.weights_path()):
            return stored
    return predict_split(loaded, loaded.dataset.ood_val, "ood_val", progress, variant=variant)


def _made_of(loaded: Loaded, images: Split | Suite) -> str:
    """Return what tells a suite's images from others that its blocks could be made of."""
    if isinstance(images, Suite) and images.folder:
        return suites.state_of(Path(images.folder))
    clean = loaded.dataset.val if images.name == "ood_val" else loaded.dataset.test
    return splits.fingerprint(clean) if clean is not None else ""


def score(loaded: Loaded, found: Predictions) -> dict[str, Any]:
    """Return the scores of predictions, empty where labels are not known."""
    metric = loaded.config.competition.metric
    if found.labels is None:
        return {}
    if len(found.block_names):
        return metrics.shifted_summary(found, DISTORTIONS, metric)
    return metrics.summary(found, metric)


def _record(loaded: Loaded, found: Predictions, name: str, variant: Variant) -> None:
    """Note a score in metrics.json; those of clean and shifted validation, plain, stand there since the training."""
    scored = score(loaded, found)
    scores = loaded.run.metrics()
    scores["variant"] = variant_of(loaded.config.predict).suffix
    if variant.suffix:
        marked = {**scored, "transductive": bool(found.made_by.get("transductive"))}
        scores["variants"] = {**scores.get("variants", {}), name + variant.suffix: marked}
    elif name not in ("val", "ood_val"):
        scores[name] = scored
    loaded.run.write_json("metrics.json", scores)


def submit(
    loaded: Loaded, found: Predictions, path: Path, *, force: bool = False, blocks: tuple[Block, ...] = ()
) -> Path:
    """Write the submission and its sidecar, check the CSV that lies on the disk, and note it in the run.

    Args:
        loaded: the run that made the predictions.
        found: of the competition's suite, or of `blocks`.
        path: of the CSV.
        force: replace what is there.
        blocks: of another suite than the competition's.

    Raises:
        SubmissionError: the name is taken, or the written file does not pass the check.
    """
    competition = loaded.dataset.competition
    wanted = submission.format_of(replace(competition, blocks=blocks, sample=None) if blocks else competition)
    sidecar = {
        "run": loaded.run.name,
        "run_path": str(loaded.run.path),
        "config_hash": configs.fingerprint(loaded.config),
        "seed": loaded.config.seed,
        "made_by": dict(found.made_by),
        "weights_sha256": found.made_by["weights_sha256"],
        "transductive": bool(found.made_by.get("transductive")),
        **runs.describe_machine(),
    }
    submission.write(path, found, wanted, sidecar, force=force)
    problems = submission.check(path, wanted)
    assert not problems, problems
    with loaded.run.writing():
        noted = {"submission": str(path), "transductive": bool(found.made_by.get("transductive"))}
        loaded.run.write_json("metrics.json", {**loaded.run.metrics(), **noted})
    return path


def finish(run: Run, *, dataset: Dataset, output: Path | None, force: bool, progress: Progress) -> dict[str, Any]:
    """Do what follows training: test, suite, submission. Return all scores."""
    loaded = load(run, dataset, progress)
    scores = evaluate(loaded, progress)
    if dataset.suite is not None:
        found = predict(loaded, progress)
        expect(loaded, found, "suite", progress)
        submit(loaded, found, output or default_submission(loaded.config), force=force)
        scores = run.metrics()
    return scores


def default_submission(config: Config, folder: Path = Path("submissions")) -> Path:
    """Return the first free `submissions/<competition>.csv`, `-2` and so on."""
    return submission.free_path(folder, config.competition.name)


def provenance_of(config: Config, dataset: Dataset, model: Classifier) -> dict[str, Any]:
    """Return where a run comes from: command, code, versions, machine, data and classes."""
    return {
        **runs.describe_machine(),
        "config_hash": configs.fingerprint(config),
        "first_weights": model.origin,
        "data_fingerprint": dataset.fingerprint,
        "classes": list(dataset.competition.classes),
        "image_shape": list(dataset.competition.image_shape),
        "images": {"train": len(dataset.train), "val": len(dataset.val or ()), "test": len(dataset.test or ())},
        "loading": "resident" if dataset.resident else "streamed",
        "notes": list(dataset.notes),
    }


def _check_same_data(run: Run, dataset: Dataset) -> None:
    """Refuse data that are not the run's own: its scores and class order would mean something else."""
    recorded = run.provenance()
    if recorded.get("classes") != list(dataset.competition.classes):
        raise RunError(
            f"{run.path}: was trained on other classes, or on another order of them; give it its own data back"
        )
    if recorded.get("data_fingerprint") != dataset.fingerprint:
        raise DataError(
            f"{run.path}: its training images or labels have changed (fingerprint {recorded.get('data_fingerprint')}, "
            f"now {dataset.fingerprint}); give it its own data back or start a new run"
        )
    division.check(run.path / "split.npz", dataset.train, dataset.val)
