"""What `comp run` does, step by step; each step is also a verb of its own and a function of the Python API.

check -> open_dataset -> train (fit, score) -> evaluate (test) -> predict (suite) -> submit -> leaderboard row
"""

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from comp import config as configs
from comp.augment import policies, worker_stage
from comp.augment.ops import Policy
from comp.config import Config, space
from comp.config.section import height_and_width
from comp.config.tasks import TASKS, metric_name, task
from comp.data import sources, splitting, suites
from comp.data.dataset import Dataset, open_dataset
from comp.inference.options import check_task, variant_of
from comp.inference.views import check_size
from comp.models import averaging, surgery, weights, zoo
from comp.models.classifier import Classifier
from comp.results import class_names, metrics, plots, runs
from comp.results.run_metrics import Kind, RunMetrics
from comp.results.runs import Run
from comp.runtime import device
from comp.runtime.device import Execution
from comp.runtime.errors import ConfigError, RunError, UserError, unknown
from comp.runtime.progress import Progress, quiet
from comp.submission import derive_format, rules, samples, write
from comp.submission.format import Competition
from comp.tracking import login
from comp.tracking.tracker import Tracker, opened
from comp.training import autotune, checkpoint, consistency, loop, lr_find, optimizers, resolution, validation
from comp.training.autotune import Choice
from comp.training.context import open_session
from comp.training.context import samples as training_samples
from comp.training.distributed import ALONE, Alone, Onlooker
from comp.training.early_stopping import Stop
from comp.training.loop import Epoch, OnEpoch
from comp.training.lr_find import Found
from comp.workflows import predict
from comp.workflows.build import build_model
from comp.workflows.predict import Loaded, Scored, opened_data, own_data, score_weights

_SHOWN_HEADER = 80  # characters of a header in a note
_ANY_CLASSES = 10  # of a network whose data are not opened yet
_BYTES_PER_ID = 80  # of a suite's row in a .npz: id as UTF-32, top1, label


def check(config: Config, runs_root: Path) -> None:
    """Check what the first phase could not: names, rules, ranges, disk space. Nothing is opened or downloaded.

    Raises:
        ConfigError: what is unknown, forbidden or too large: all of it, a line each.
    """
    _check_one(config, runs_root)
    for trial in space.probes(config):
        try:
            _check_one(trial, runs_root)
        except UserError as error:
            raise ConfigError(f"tune.space: {error}") from None


def _check_one(config: Config, runs_root: Path) -> None:
    """Check a config as `check` does, its search space aside."""
    validated = config.data.validation != "none" or config.data.folds is not None
    _all_of(
        lambda: _check_competition(config),
        lambda: _check_source(config),
        lambda: optimizers.check(config.optim),
        lambda: averaging.check(config.train, validated=validated),
        lambda: device.check_precision(config.train.precision, device.choose_device(config.train.device)),
        lambda: _check_augmentation(config),
        lambda: _check_model(config),
        lambda: suites.shifted_distortions(config.competition.ood_validation),
        lambda: validation.check(config),
        lambda: login.check(config.track),
        lambda: _check_room(config, runs_root),
    )


def _all_of(*checks: Callable[[], object]) -> None:
    """Make every check, and refuse what they refuse in one message, each mistake once."""
    wrong: list[UserError] = []
    for made in checks:
        try:
            made()
        except UserError as error:
            wrong.append(error)
    if len(wrong) == 1:
        raise wrong[0]
    if wrong:
        raise ConfigError("\n  ".join(dict.fromkeys(str(error) for error in wrong)))


def _check_competition(config: Config) -> None:
    section = config.competition
    if section.metric != "auto":
        metrics.metric(section.metric)
    if section.task != "auto":
        metric_name(section.metric, task(section.task))
    derive_format.check_answer(section.submission.answer, section.task, section.metric)


def _check_source(config: Config) -> None:
    if config.data.source not in sources.SOURCES:
        raise ConfigError(f"data.source: {unknown('source', config.data.source, sources.SOURCES)}")


def _check_augmentation(config: Config) -> None:
    if config.augment.engine == "per_image":
        raise ConfigError(
            "augment.engine: per_image is gone: policies run on whole batches on the training device; leave the key "
            "out, and name transforms of albumentations in augment.albumentations"
        )
    policy = _policy(config)
    consistency.check(config)
    worker_stage.of(policy, config.seed)
    rules.check(
        config.competition.rules, pretrained=_has_external_weights(config), imitated=policy.imitates,
        adapt=variant_of(config.predict).adapt,
    )  # fmt: skip


def _policy(config: Config) -> Policy:
    return policies.resolve(config.augment.policy, config.augment.ops, config.augment.albumentations)


def _check_model(config: Config) -> None:
    """Refuse a network that cannot be built or trained as asked, of whatever the config alone tells of its images."""
    section = config.model
    zoo.refuse_banned(section.name, config.competition.rules.banned_families)
    shape = (3, *height_and_width(section.input_size or zoo.usual_side(section.name)))
    model = zoo.blueprint(section, classes=_ANY_CLASSES, image_shape=shape)
    optimizers.for_model(model, config.optim)
    if section.input_size:
        _demand_pairs(config, model, shape, images=2)


def _demand_pairs(config: Config, model: Classifier, image_shape: tuple[int, int, int], images: int) -> None:
    """Refuse steps of one image where batch norm could not learn from it; `model` is a blueprint."""
    batch = min(config.train.batch_size, images)
    if batch > 1 or config.train.consistency != "none" or zoo.learns_from_one(model, image_shape):
        return
    if images == 1:
        raise ConfigError(f"data: one training image, and batch norm of {config.model.name} learns from two or more")
    raise ConfigError(
        f"train.batch_size: batch norm of {config.model.name} learns from two images or more at a time, found 1; set "
        "it to 2 or more"
    )


def _has_external_weights(config: Config) -> bool:
    """Tell whether weights come from outside the competition, by way of earlier runs too."""
    if not config.model.from_run:
        return bool(config.model.pretrained)
    source = runs.open_run(Path(config.model.from_run)).config()
    return source.competition.name != config.competition.name or _has_external_weights(source)


def _check_room(config: Config, runs_root: Path) -> None:
    """Refuse a run whose predictions would not fit: a night's work should not end at a full disk."""
    suite = config.competition.suite
    rows = suite.files * suite.severities * suite.images_per_block
    needed = rows * (_BYTES_PER_ID + 2 * 100) + (100 << 20)  # float16 logits of up to 100 classes, and some weights
    if reason := runs.unwritable(runs_root):
        raise ConfigError(f"{runs_root}: {reason}; choose another folder with --runs")
    existing = next(path for path in (runs_root.absolute(), *runs_root.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise ConfigError(f"{runs_root}: needs about {needed >> 20:,} MiB, found {free >> 20:,} MiB free; make room")


def check_output(config: Config, output: Path | None, *, force: bool) -> None:
    """Refuse a submission that could not be written, before the hours that end there.

    Args:
        config: what will be submitted.
        output: the CSV; None: a free name in `submissions/`.
        force: whether it may replace one.

    Raises:
        ConfigError: nothing will be submitted, so that no name is wanted.
        SubmissionError: the name is taken or cannot be written.
    """
    if config.competition.suite.source != "none":
        write.demand_free(output or predict.default_submission(config), force=force)
    elif output is not None:
        raise ConfigError(f"-o {output}: competition.suite.source is none, so nothing is submitted; leave it out")


def prepare(config: Config, runs_root: Path = Path("runs"), progress: Progress = quiet) -> Dataset:
    """Check a config and open its data: all that can be refused before the first step is refused here.

    The dataset's notes then also say how the submission will be written, and why.

    Raises:
        UserError: as `check`, `open_dataset` and `comp.submission.derive_format.derive`.
    """
    check(config, runs_root)
    return open_data(config, progress)


def open_data(config: Config, progress: Progress = quiet) -> Dataset:
    """Open the data of a config that is checked, and refuse what only they show; see `prepare`."""
    dataset = open_dataset(config, progress)
    check_data(config, dataset)
    return replace(dataset, notes=(*dataset.notes, *_submission_notes(config, dataset)))


def ready_model(config: Config, dataset: Dataset) -> Classifier:
    """Return the config's model with its first weights, and refuse what could not take these data's first step.

    Raises:
        UserError: as `build_model`; blocks that the optimizer's settings name and the network does not have; sizes that
            it cannot take.
    """
    model = build_model(config, dataset)
    shape = dataset.competition.image_shape
    optimizers.for_model(model, config.optim)
    resolution.check(model, config.train.sizes, shape)
    blank = zoo.blueprint(config.model, classes=len(dataset.competition.classes), image_shape=shape)
    _demand_pairs(config, blank, shape, images=len(dataset.train))
    return model


def check_data(config: Config, dataset: Dataset) -> None:
    """Refuse what a config asks for and its data do not allow.

    Raises:
        ConfigError: naming the key.
    """
    _check_task(config, dataset)
    _check_shape(config, dataset)


def _check_task(config: Config, dataset: Dataset) -> None:
    """Refuse what a config asks for and the data's task or classes do not allow.

    Raises:
        ConfigError: naming the key.
    """
    competition = dataset.competition
    check_task(variant_of(config.predict), competition.task)
    if config.train.consistency != "none" and not TASKS[competition.task].consistency:
        raise ConfigError(f"train.consistency: {config.train.consistency} is not defined for task {competition.task}")
    ordered = competition.numbered or config.data.classes or class_names.values(competition.classes) is not None
    if metrics.metric(competition.metric).ordered_classes and not ordered:
        raise ConfigError(
            f"competition.metric: {competition.metric} compares classes by their order, and these are names; give "
            "their order, lowest first: data.classes=[...]"
        )


def _check_shape(config: Config, dataset: Dataset) -> None:
    """Refuse what a config asks for and images of these channels and sides cannot have.

    Raises:
        ConfigError: naming the key, and what can be taken instead.
    """
    channels, height, width = dataset.competition.image_shape
    policies.check_channels(config.augment.policy, config.augment.ops, channels)
    worker_stage.check(_policy(config), dataset.competition.image_shape)
    suites.check_channels(config.competition, channels, validated=dataset.val is not None)
    check_size(config.predict.views, height, width)


def _submission_notes(config: Config, dataset: Dataset) -> tuple[str, ...]:
    """Return how a submission will be written and why, with example rows; nothing where nothing is submitted."""
    if dataset.suite is None:
        return ()
    competition = dataset.competition
    derived = derive_format.derive(competition)
    header = ",".join(derived.form.header)
    shown = header if len(header) <= _SHOWN_HEADER else f"{header[:_SHOWN_HEADER]}..."
    notes = [f"submission: {shown}, {len(dataset.suite):,} rows; {'; '.join(derived.reasons)}"]
    if competition.test_ids:
        whose = ", the training table's," if competition.header != ("id", "label") else ""
        notes.append(
            f"submission: {_why_no_sample(config)}, so this header{whose} and the order of the ids are assumed"
        )
    notes += [f"submission, as it will be written: {row}" for row in derive_format.examples(derived, competition.task)]
    return (*notes, *(f"submission: {doubt}" for doubt in derived.doubts))


def _why_no_sample(config: Config) -> str:
    """Return why no sample submission was read; a named one must be there.

    Raises:
        SubmissionError: the named one is missing.
    """
    root, named = Path(config.data.root), config.data.csv.sample
    if not named:
        return "no sample submission is read (data.csv.sample is empty)"
    unread = [path] if named != "auto" and (path := samples.find(root, named)[0]) else samples.below(root)
    if not unread:
        return "no sample submission was found"
    kind = f"data.source={config.data.source}"
    return (
        f"{', '.join(map(str, unread))} is not read by {kind}, which knows no test images by the ids of a sample (only "
        "image_folder with test images in no class's folder and csv_images do)"
    )


def train(
    config: Config,
    *,
    name: str = "run",
    runs_root: Path = Path("runs"),
    group: str = "",
    dataset: Dataset | None = None,
    execution: Execution | None = None,
    on_start: Callable[[Run, Classifier], None] = lambda run, model: None,
    on_choice: Callable[[Choice], None] = lambda choice: None,
    on_epoch: OnEpoch = lambda epoch: None,
    progress: Progress = quiet,
    team: Alone = ALONE,
    tracker: Tracker | None = None,
) -> Run:
    """Train a config and score it on clean and shifted validation; return the complete run.

    Args:
        config: what to train.
        name: of the run's folder, after the time.
        runs_root: where run folders are made.
        group: a folder of its own below the competition's, such as a study's.
        dataset: from `prepare`, or prepared here.
        execution: recorded choices to reuse; None measures.
        on_start: called before the first step with the run's folder, just made, and the model, frozen as in epoch 1.
        on_choice: called with how its steps are computed, and what was timed for it.
        on_epoch: called at every epoch's end; may return a `Stop`.
        progress: called at every step.
        team: the processes that train it together, of which this one leads; the others `follow`.
        tracker: to follow the run, and to be closed by the caller; None: as `track` says, until this returns.

    Raises:
        UserError: anything wrong with config, data or disk.
        Interrupted: a signal; the run can be resumed.
    """
    began = time.perf_counter()
    dataset = dataset or team.leader_first(lambda: prepare(config, runs_root, progress))
    check_data(config, dataset)
    model = ready_model(config, dataset)
    dataset = replace(dataset, samples={**dataset.samples, **training_samples(config, dataset, model)})
    run = runs.create(runs_root, config, name, provenance_of(config, dataset, model), group=group)
    on_start(run, model)
    deterministic = device.only_deterministic(config.train.deterministic)
    with opened(config.track, tracker) as tracker, run.writing(), deterministic:
        splitting.save(run.path / "split.npz", dataset.train, dataset.val, dataset.samples)
        choice = Choice(execution) if execution else _choose_execution(config, dataset, model, progress)
        run.write_json("execution.json", choice.to_json())
        on_choice(choice)
        _fit_and_score(
            run, config, dataset, model, choice.execution, resume=False, began=began, on_epoch=on_epoch,
            progress=progress, team=team, tracker=tracker,
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
    model = ready_model(config, dataset)
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
    tracker: Tracker | None = None,
) -> Run:
    """Go on with an interrupted training where it stopped; a complete one is returned as it is.

    Raises:
        RunError: its data or classes are others now, or its files are damaged or gone.
    """
    if run.is_complete():
        if tracker:
            tracker.begin(run)  # what follows the training may be new
        return run
    state = run.path / "state.pt"
    if not state.exists() and (run.path / "final.safetensors").exists():
        raise RunError(
            f"{run.path}: was complete, and its metrics.json is gone; put it back, or train again: comp run "
            f"{run.path / 'config.yaml'}"
        )
    began = time.perf_counter()
    config = run.config()
    if config.augment.engine == "per_image":
        raise RunError(device.gone_engine(run.path))
    dataset = own_data(run, dataset or team.leader_first(lambda: opened_data(run, progress)))
    deterministic = device.only_deterministic(config.train.deterministic)
    with opened(config.track, tracker) as tracker, run.writing(), deterministic:
        path = run.path / "execution.json"
        if path.exists():
            execution = device.from_json(runs.read_json(path), str(path))
        else:  # stopped before its choices were made
            scratch = build_model(config, dataset)
            choice = _choose_execution(config, dataset, scratch, progress)
            run.write_json("execution.json", choice.to_json())
            execution = choice.execution
        model = build_model(config, dataset, first_weights=not state.exists())
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
            tracker=tracker,
        )
    return run


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
    dataset = dataset.with_samples(splitting.samples(task.path / "split.npz"))
    model = build_model(config, dataset, first_weights=not task.resume)
    session = open_session(
        config, dataset, Onlooker(task.path), model, task.execution, fresh=task.fresh, progress=progress, team=team
    )
    with device.only_deterministic(config.train.deterministic):
        loop.fit(session, resume=task.resume, progress=progress)


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
    transform = worker_stage.of(_policy(config), config.seed)
    return autotune.choose_execution(model, dataset, config, transform=transform, progress=progress)


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
    tracker: Tracker,
) -> None:
    resumes = resume and (run.path / "state.pt").exists()
    fresh = not (resumes or config.model.pretrained or config.model.from_run)
    team.from_leader(lambda: _Task(run.path.absolute(), execution, fresh, resumes))
    session = open_session(
        config, dataset, run, model, execution, fresh=fresh, began=began, progress=progress, team=team
    )
    tracker.begin(run)  # not before: what is timed should have the machine for itself

    def told(epoch: Epoch) -> Stop | None:
        tracker.tell()
        return on_epoch(epoch)

    cursor = loop.fit(session, resume=resume, on_epoch=told, progress=progress)
    plots.curves(run.plot_path("curves"), run.history(), cursor.best_epoch)
    if session.norms.wanted:
        plots.norms(run.plot_path("norms"), run.table("norms.csv"))
    loaded = Loaded(run, config, dataset.competition, model, execution, session.dataset)
    measured = session.contest.measured
    final, averaged, best = score_weights(loaded, "final", progress, measured("final")), Scored(), Scored()
    average: dict[str, str] = {}
    if (run.path / "averaged.safetensors").exists():
        facts = weights.load_weights(model, run.path / "averaged.safetensors")
        averaged = score_weights(loaded, "averaged", progress, measured("averaged"))
        average = {"method": config.train.average, "statistics": facts["statistics"]}
    elif config.train.average != "none":
        missing = f"ended in epoch {cursor.epoch}, before the averaged ones"
        average = {"method": config.train.average, "missing": missing}
    if (run.path / "best.safetensors").exists():
        weights.load_weights(model, run.path / "best.safetensors")
        best = score_weights(loaded, "best", progress, measured("best"))
    if dataset.val is not None:
        tracker.show(run, dataset.val.images)
    trained = {
        "selected_by": session.contest.selector.name if dataset.val is not None else "",
        "epochs": cursor.epoch,
        "stopped": cursor.stopped,
        "rollbacks": cursor.rollbacks,
        "deterministic": config.train.deterministic,
        "micro_batch": min(session.stepper.micro_batch, session.batch_size),
        "best_epoch": cursor.best_epoch,
        "best_averaged": cursor.best_averaged,
        "train_seconds": round(cursor.seconds, 2),
        "test_like": sorted(session.policy.imitates),
        "final": final.scores,
        "averaged": averaged.scores.model_copy(update=average),
        "best": best.scores,
        "thresholds": list(best.thresholds),
        "weights_sha256": runs.sha256(run.weights_path()),
    }
    run.write_metrics(describe_network(loaded, "run").model_copy(update=trained))
    if not config.train.keep_state:  # not before: killed at any moment, a run can be resumed or is complete
        checkpoint.remove(run)


def describe(run: Run, competition: Competition, kind: Kind, *, model: str, parameters: int) -> RunMetrics:
    """Return the metrics of a run of any kind before it is scored; scores are added with `model_copy(update=...)`.

    Args:
        run: its folder.
        competition: of its data: task and metric are resolved there.
        kind: what makes it.
        model: a network's name, or what stands for it.
        parameters: of all its networks.
    """
    return RunMetrics(
        kind=kind,
        task=competition.task,
        run=run.name,
        competition=competition.name,
        metric=competition.metric,
        config_hash=configs.fingerprint(run.config()),
        model=model,
        parameters=parameters,
        first_weights=run.provenance("first_weights")["first_weights"],
    )


def describe_network(loaded: Loaded, kind: Kind) -> RunMetrics:
    """Return the metrics of a run that has a network, before it is scored; see `describe`."""
    model, execution = loaded.model, loaded.execution
    described = describe(
        loaded.run, loaded.dataset.competition, kind, model=loaded.config.model.name,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
    )  # fmt: skip
    network = {
        "trainable": [row._asdict() for row in surgery.trainable_table(model)],
        "device": execution.device,
        "precision": execution.precision,
        "compiled": execution.compiled,
    }
    return described.model_copy(update=network)


def finish(run: Run, *, dataset: Dataset, output: Path | None, force: bool, progress: Progress) -> RunMetrics:
    """Do what follows training: test, suite, submission. Return all scores."""
    loaded = predict.load(run, dataset, progress)
    predict.evaluate(loaded, progress)
    if dataset.suite is not None:
        found = predict.predict(loaded, progress)
        predict.expect(loaded, found, "suite", progress)
        predict.submit(loaded, found, output or predict.default_submission(loaded.config), force=force)
    return run.metrics()


def provenance_of(config: Config, dataset: Dataset, model: Classifier) -> dict[str, Any]:
    """Return where a run comes from: command, code, versions, machine, data and classes."""
    return {
        **runs.describe_machine(),
        "config_hash": configs.fingerprint(config),
        "first_weights": model.origin,
        "data_fingerprint": dataset.fingerprint,
        "classes": list(dataset.competition.classes),
        "numbered": dataset.competition.numbered,
        "separator": dataset.competition.separator,
        "header": list(dataset.competition.header),
        "bare_images": dataset.competition.bare_images,
        "training_counts": dataset.train.class_counts(len(dataset.competition.classes)).tolist(),
        "image_shape": list(dataset.competition.image_shape),
        "pixel_range": list(dataset.pixel_range) if dataset.pixel_range else None,
        "images": {"train": len(dataset.train), "val": len(dataset.val or ()), "test": len(dataset.test or ())},
        "loading": "resident" if dataset.resident else "streamed",
        "notes": list(dataset.notes),
    }
