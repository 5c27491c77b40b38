"""What `comp run` does, step by step; each step is also a verb of its own and a function of the Python API.

check -> open_dataset -> train (fit, score) -> evaluate (test) -> predict (suite) -> submit -> leaderboard row
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from comp import config as configs
from comp.augment import worker_stage
from comp.config import Config
from comp.data import splitting
from comp.data.dataset import Dataset, open_dataset
from comp.models import surgery, weights
from comp.models.classifier import Classifier
from comp.results import plots, runs
from comp.results.run_metrics import Kind, RunMetrics
from comp.results.runs import Run
from comp.runtime import device
from comp.runtime.device import Execution
from comp.runtime.errors import RunError
from comp.runtime.progress import Progress, quiet
from comp.submission.format import Competition
from comp.tracking.tracker import Tracker, opened
from comp.training import autotune, checkpoint, loop, lr_find
from comp.training.autotune import ExecutionChoice
from comp.training.context import build_context
from comp.training.context import samples as training_samples
from comp.training.distributed import SINGLE_PROCESS, ReadOnlyRun, SingleProcess
from comp.training.early_stopping import Stop
from comp.training.loop import Epoch, OnEpoch
from comp.training.lr_find import LRFindResult
from comp.workflows.build import build_model, prepare, ready_model
from comp.workflows.checks import _policy, check_data
from comp.workflows.predict import LoadedRun, Scored, opened_data, own_data, score_weights


def train(
    config: Config,
    *,
    name: str = "run",
    runs_root: Path = Path("runs"),
    group: str = "",
    dataset: Dataset | None = None,
    execution: Execution | None = None,
    on_start: Callable[[Run, Classifier], None] = lambda run, model: None,
    on_choice: Callable[[ExecutionChoice], None] = lambda choice: None,
    on_epoch: OnEpoch = lambda epoch: None,
    progress: Progress = quiet,
    team: SingleProcess = SINGLE_PROCESS,
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
    dataset = dataset or team.main_process_first(lambda: prepare(config, runs_root, progress))
    check_data(config, dataset)
    model = ready_model(config, dataset)
    dataset = replace(dataset, samples={**dataset.samples, **training_samples(config, dataset, model)})
    run = runs.create(runs_root, config, name, provenance_of(config, dataset, model), group=group)
    on_start(run, model)
    deterministic = device.only_deterministic(config.train.deterministic)
    with opened(config.track, tracker) as tracker, run.writing(), deterministic:
        splitting.save(run.path / "split.npz", dataset.train, dataset.val, dataset.samples)
        choice = ExecutionChoice(execution) if execution else _choose_execution(config, dataset, model, progress)
        run.write_json("execution.json", choice.to_json())
        on_choice(choice)
        _fit_and_score(
            run, config, dataset, model, choice.execution, resume=False, began=began, on_epoch=on_epoch,
            progress=progress, team=team, tracker=tracker,
        )  # fmt: skip
    return run


def find_rate(
    config: Config, *, lowest: float = 1e-6, highest: float = 10.0, steps: int = 200, progress: Progress = quiet
) -> LRFindResult:
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
    team: SingleProcess = SINGLE_PROCESS,
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
    dataset = own_data(run, dataset or team.main_process_first(lambda: opened_data(run, progress)))
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
    config: Config,
    team: SingleProcess,
    *,
    resume: bool = False,
    runs_root: Path = Path("runs"),
    progress: Progress = quiet,
) -> None:
    """Train with the team's leader, who calls `train` or `resume` with the same config; return when it has trained.

    Raises:
        UserError: as the leader.
        Interrupted: likewise.
    """
    dataset = team.main_process_first(
        lambda: open_dataset(config, progress) if resume else prepare(config, runs_root, progress)
    )
    task = team.broadcast_from_main(_told_by_leader)
    dataset = dataset.with_samples(splitting.samples(task.path / "split.npz"))
    model = build_model(config, dataset, first_weights=not task.resume)
    session = build_context(
        config, dataset, ReadOnlyRun(task.path), model, task.execution, fresh=task.fresh, progress=progress, team=team
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


def _choose_execution(config: Config, dataset: Dataset, model: Classifier, progress: Progress) -> ExecutionChoice:
    transform = worker_stage.build(_policy(config), config.seed)
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
    team: SingleProcess,
    tracker: Tracker,
) -> None:
    resumes = resume and (run.path / "state.pt").exists()
    fresh = not (resumes or config.model.pretrained or config.model.from_run)
    team.broadcast_from_main(lambda: _Task(run.path.absolute(), execution, fresh, resumes))
    session = build_context(
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
    loaded = LoadedRun(run, config, dataset.competition, model, execution, session.dataset)
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


def describe_network(loaded: LoadedRun, kind: Kind) -> RunMetrics:
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


def provenance_of(config: Config, dataset: Dataset, model: Classifier) -> dict[str, Any]:
    """Return where a run comes from: command, code, versions, machine, data and classes."""
    return {
        **runs.describe_machine(),
        "config_hash": configs.fingerprint(config),
        "first_weights": model.weights_source,
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
