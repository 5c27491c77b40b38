"""Train a config, or resume a run, and score it on clean and shifted validation."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from comp import config as configs
from comp.augment import policies, worker_stage
from comp.config import Config
from comp.data import pseudo, splits
from comp.data.dataset import Dataset, open_dataset
from comp.models import weights
from comp.models.classifier import Classifier
from comp.results import files, runs
from comp.results.run_metrics import Decision
from comp.results.runs import Run
from comp.results.unfinished import noting_failure
from comp.runtime import device, gpu
from comp.runtime.device import Execution
from comp.runtime.errors import RunError
from comp.runtime.memory import is_out_of_memory
from comp.runtime.progress import Progress, quiet
from comp.tracking.tracker import Tracker, open_tracker
from comp.training import autotune, checkpoint, loop, lr_find
from comp.training import cost as costs
from comp.training.autotune import ExecutionChoice
from comp.training.checkpoint import TrainState
from comp.training.context import TrainContext, build_context, training_samples
from comp.training.cost import Cost
from comp.training.distributed import SINGLE_PROCESS, ReadOnlyRun, SingleProcess
from comp.training.early_stopping import Stop
from comp.training.loop import Epoch, OnEpoch
from comp.training.lr_find import LRFindResult
from comp.workflows import plugins
from comp.workflows.build import build_model, prepare, ready_model
from comp.workflows.checks import check_data
from comp.workflows.load import LoadedRun, open_run_data, verify_run_data
from comp.workflows.score import WeightResult, describe_network, score_weights
from comp.workflows.teach import describe_lessons, prepare_lessons


def train(
    config: Config,
    *,
    name: str = "run",
    runs_root: Path = Path("runs"),
    group: str = "",
    dataset: Dataset | None = None,
    execution: Execution | None = None,
    on_data: Callable[[Dataset], None] = lambda dataset: None,
    on_start: Callable[[Run, Classifier], None] = lambda run, model: None,
    on_choice: Callable[[ExecutionChoice], None] = lambda choice: None,
    on_cost: Callable[[Cost], None] = lambda cost: None,
    on_epoch: OnEpoch = lambda epoch: None,
    progress: Progress = quiet,
    team: SingleProcess = SINGLE_PROCESS,
    tracker: Tracker | None = None,
    predicts: bool = False,
    records: Mapping[str, Any] | None = None,
) -> Run:
    """Train a config and score it on clean and shifted validation; return the complete run.

    Args:
        config: what to train.
        name: of the run's folder, after the time.
        runs_root: where run folders are made.
        group: a folder below the competition's, such as a study's.
        dataset: from `prepare`; None prepares it.
        execution: recorded choices to reuse; None measures them.
        on_data: called with the open data.
        on_start: called before the first step with the new run and the model, frozen as in epoch 1.
        on_choice: called with the chosen execution and its timings.
        on_cost: called with what a long training will take.
        on_epoch: called at every epoch's end; may return a `Stop`.
        progress: called at every step.
        team: the processes that train together; this is the main one, the others call `follow`.
        tracker: follows the run, and the caller closes it; None opens one as section `track` configures.
        predicts: whether the caller predicts test and suite afterwards, which then count as part of the cost.
        records: more values for provenance.json.

    Raises:
        UserError: anything wrong with config, data or disk.
        Interrupted: a signal; the run can be resumed.
    """
    began = time.perf_counter()
    dataset = dataset or team.main_process_first(lambda: prepare(config, runs_root, progress))
    on_data(dataset)
    check_data(config, dataset, whole=False)
    model = ready_model(config, dataset)
    lessons = prepare_lessons(config, dataset, progress)
    if lessons.notes:
        on_data(replace(dataset, notes=lessons.notes))
    notes, resident = (*dataset.notes, *lessons.notes), lessons.dataset.resident
    labelled, dataset = replace(dataset, notes=notes, resident=resident), lessons.dataset
    dataset = replace(dataset, samples={**dataset.samples, **training_samples(config, dataset, model)})
    device_name = execution.device if execution else device.choose_device(config.train.device)
    provenance = {**provenance_of(config, labelled, model, device_name), **lessons.provenance, **(records or {})}
    run = runs.create(runs_root, config, name, provenance, group=group, fixes=dataset.fixes)
    on_start(run, model)
    deterministic = device.kernel_choice(deterministic=config.train.deterministic)
    with open_tracker(config.track, tracker) as tracker, run.write_lock(), noting_failure(run), deterministic:
        splits.save_split(run.path / "split.npz", labelled.train, dataset.val, dataset.samples)
        lessons.write(run)
        choice = (
            ExecutionChoice(execution) if execution else _choose_execution(config, dataset, model, progress, team.size)
        )
        cost = _estimate_cost(config, dataset, model, choice, run, predicts=predicts, processes=team.size)
        run.write_json("execution.json", {**choice.to_json(), **({"estimate": cost.to_json()} if cost else {})})
        on_choice(choice)
        if cost:
            on_cost(cost)
            cost.check_disk(run)
        loaded = LoadedRun(run, config, dataset.competition, model, choice.execution, dataset)
        _fit_and_score(
            loaded, resume=False, began=began, on_epoch=on_epoch, progress=progress, team=team, tracker=tracker
        )
    return run


def resume(
    run: Run,
    *,
    dataset: Dataset | None = None,
    on_epoch: OnEpoch = lambda epoch: None,
    progress: Progress = quiet,
    team: SingleProcess = SINGLE_PROCESS,
    tracker: Tracker | None = None,
) -> Run:
    """Resume an interrupted training; return a complete run unchanged.

    Raises:
        RunError: its data or classes have changed, or its files are damaged or missing.
    """
    if run.is_complete():
        if tracker:
            tracker.start(run)  # test and suite scores may follow
        return run
    if "members" in run.provenance():
        raise RunError(
            f"{run.path}: an ensemble that was stopped before it was complete, which has nothing to resume; remove the "
            "folder, and repeat the command that made it"
        )
    state = run.path / "state.pt"
    if not state.exists() and (run.path / "final.safetensors").exists():
        raise RunError(
            f"{run.path}: was complete, but metrics.json is missing; restore it, or train again: comp run "
            f"{run.path / 'config.yaml'}"
        )
    plugins.load_of(run)
    run.check_config()
    began = time.perf_counter()
    config = run.config()
    if config.augment.engine == "per_image":
        raise RunError(device.removed_engine_message(run.path))
    dataset = verify_run_data(run, dataset or team.main_process_first(lambda: open_run_data(run, progress)))
    dataset = pseudo.rejoin(run, config, dataset)
    deterministic = device.kernel_choice(deterministic=config.train.deterministic)
    with open_tracker(config.track, tracker) as tracker, run.write_lock(), noting_failure(run), deterministic:
        if run.is_complete():  # while this one opened the data and waited for the lock
            raise RunError(
                f"{run.path}: another process is writing this run: it has completed the training meanwhile; run the "
                "same command again to submit what is not submitted"
            )
        path = run.path / "execution.json"
        if path.exists():
            execution = device.from_json(files.read_json(path, device.RECORD_CURE), str(path))
            if config.data.workers != "auto":  # maybe changed for this resume: it changes no pixel
                execution = replace(execution, workers=config.data.workers)
        else:  # stopped before the choice was made
            choice = _choose_execution(config, dataset, build_model(config, dataset), progress, team.size)
            run.write_json("execution.json", choice.to_json())
            execution = choice.execution
        model = build_model(config, dataset, first_weights=not state.exists())
        loaded = LoadedRun(run, config, dataset.competition, model, execution, dataset)
        _fit_and_score(
            loaded, resume=True, began=began, on_epoch=on_epoch, progress=progress, team=team, tracker=tracker
        )
    return run


@dataclass(frozen=True)
class _TeamSetup:
    """What the main process broadcasts before the first step."""

    path: Path
    execution: Execution
    fresh: bool
    resume: bool


def follow(
    config: Config,
    team: SingleProcess,
    *,
    resume: bool = False,
    runs_root: Path = Path("runs"),
    progress: Progress = quiet,
) -> None:
    """Train together with the main process, which calls `train` or `resume` with the same config.

    Raises:
        UserError: as in the main process.
        Interrupted: likewise.
    """

    def only_main() -> _TeamSetup:
        raise AssertionError("the main process trains or resumes; it does not follow")

    dataset = team.main_process_first(
        lambda: open_dataset(config, progress) if resume else prepare(config, runs_root, progress)
    )
    setup = team.broadcast_from_main(only_main)
    run = ReadOnlyRun(setup.path)
    dataset = pseudo.rejoin(run, config, dataset.with_recorded_samples(setup.path / "split.npz"))
    model = build_model(config, dataset, first_weights=not setup.resume)
    context = build_context(
        config, dataset, run, model, setup.execution, fresh=setup.fresh, progress=progress, team=team
    )
    with device.kernel_choice(deterministic=config.train.deterministic):
        loop.fit(context, resume=setup.resume, progress=progress)
    team.leave()


def find_learning_rate(
    config: Config, *, lowest: float = 1e-6, highest: float = 10.0, steps: int = 200, progress: Progress = quiet
) -> LRFindResult:
    """Raise the learning rate step by step on a copy of a config's model; see `comp.training.lr_find.find`."""
    # Compiling takes longer than these few steps.
    train = config.train.model_copy(update={"compile": False, "budget": "", "teacher": configs.TeacherConfig()})
    config = config.model_copy(update={"train": train})
    dataset = prepare(config, progress=progress)
    model = ready_model(config, dataset)
    execution = _choose_execution(config, dataset, model, progress).execution
    return lr_find.find(
        config, dataset, model, execution, lowest=lowest, highest=highest, steps=steps, progress=progress
    )


def _choose_execution(
    config: Config, dataset: Dataset, model: Classifier, progress: Progress, processes: int = 1
) -> ExecutionChoice:
    policy = policies.resolve(config.augment.policy, config.augment.ops, config.augment.albumentations)
    transform = worker_stage.build(policy, config.seed)
    return autotune.choose_execution(
        model, dataset, config, transform=transform, processes=processes, progress=progress
    )


def _estimate_cost(
    config: Config,
    dataset: Dataset,
    model: Classifier,
    choice: ExecutionChoice,
    run: Run,
    *,
    predicts: bool,
    processes: int,
) -> Cost | None:
    """Return what a training will take; None if it is short, or memory is: its first step says what helps."""
    try:
        if costs.is_surely_short(config, dataset, model, predicts=predicts):
            return None
        cost = costs.estimate(
            config,
            dataset,
            model,
            choice.execution,
            folder=run.path,
            step_seconds=costs.timed_step_seconds(choice.execution, choice.seconds_a_step),
            predicts=predicts,
            processes=processes,
        )
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return None
    return cost if cost.is_long else None


def _fit_and_score(
    loaded: LoadedRun,
    *,
    resume: bool,
    began: float,
    on_epoch: OnEpoch,
    progress: Progress,
    team: SingleProcess,
    tracker: Tracker,
) -> None:
    """Train a run's model from its first weights or its checkpoint, score it, and write metrics.json last."""
    run, config, execution = loaded.run, loaded.config, loaded.execution
    resumes = resume and (run.path / "state.pt").exists()
    fresh = not (resumes or config.model.pretrained or config.model.from_run)
    team.broadcast_from_main(lambda: _TeamSetup(run.path.absolute(), execution, fresh, resumes))
    context = build_context(
        config, loaded.dataset, run, loaded.model, execution, fresh=fresh, began=began, progress=progress, team=team
    )
    tracker.start(run)  # after everything that is timed, which should have the machine to itself

    def on_epoch_end(epoch: Epoch) -> Stop | None:
        tracker.log()
        return on_epoch(epoch)

    state = loop.fit(context, resume=resume, on_epoch=on_epoch_end, progress=progress)
    team.leave()
    loaded = replace(loaded, data=context.dataset)
    scores = _score_weight_files(loaded, context, state, progress)
    if loaded.dataset.val is not None:
        tracker.save_mistakes(run, loaded.dataset.val.one_per_answer().images)
    trained = {**_describe_training(context, state), **describe_lessons(run.provenance()), **scores}
    run.write_metrics(describe_network(loaded, "run").model_copy(update=trained))
    if not config.train.keep_state:  # removed last: a run killed at any moment is complete or can be resumed
        checkpoint.remove(run)


def _score_weight_files(
    loaded: LoadedRun, context: TrainContext, state: TrainState, progress: Progress
) -> dict[str, Any]:
    """Score the best weights, then averaged and final ones decided alike; return them as RunMetrics has them."""
    path, average, measured = loaded.run.path, loaded.config.train.average, context.best_weights.measured
    averaged, best, decision = WeightResult(), WeightResult(), None
    averaging: dict[str, str] = {}
    if (path / "best.safetensors").exists():
        weights.load_weights(loaded.model, path / "best.safetensors")
        best = score_weights(loaded, "best", progress, measured("best"))
        decision = best.decision or Decision()
    if (path / "averaged.safetensors").exists():
        facts = weights.load_weights(loaded.model, path / "averaged.safetensors")
        averaged = score_weights(loaded, "averaged", progress, measured("averaged"), compared_with=decision)
        averaging = {"method": average, "statistics": facts["statistics"]}
    elif average != "none":
        averaging = {"method": average, "missing": f"ended in epoch {state.epoch}, before the averaged ones"}
    weights.load_weights(loaded.model, path / "final.safetensors")
    final = score_weights(loaded, "final", progress, measured("final"), compared_with=decision)
    predicting = best if decision else final
    return {
        "final": final.scores,
        "averaged": averaged.scores.model_copy(update=averaging),
        "best": best.scores,
        **predicting.recorded_decision(),
        "weights_sha256": files.sha256_file(loaded.run.weights_path()),
    }


def _describe_training(context: TrainContext, state: TrainState) -> dict[str, Any]:
    """Return what RunMetrics records of a training beside its scores."""
    return {
        "selected_by": context.best_weights.selector.name if context.dataset.val is not None else "",
        "epochs": state.epoch,
        "stopped": state.stopped,
        "rollbacks": state.rollbacks,
        "deterministic": context.config.train.deterministic,
        "micro_batch": min(context.stepper.micro_batch, context.batch_size),
        "best_epoch": state.best_epoch,
        "best_averaged": state.best_averaged,
        "train_seconds": round(state.seconds, 2),
        "test_like": sorted(context.policy.imitates),
    }


def provenance_of(config: Config, dataset: Dataset, model: Classifier, device_name: str) -> dict[str, Any]:
    """Return the origin of a run: command, code, versions, machine, data and classes."""
    return {
        **runs.describe_machine(gpu.describe(device_name)),
        "config_hash": configs.fingerprint(config),
        "config": configs.settings(config),
        "first_weights": model.weights_source,
        "data_fingerprint": dataset.fingerprint,
        **({"fixes": dataset.fixes.to_json()} if dataset.fixes else {}),
        "classes": list(dataset.competition.classes),
        "task": dataset.competition.task,
        "numbered": dataset.competition.numbered,
        "separator": dataset.competition.separator,
        "header": list(dataset.competition.header),
        "bare_images": dataset.competition.bare_images,
        "training_counts": dataset.train.class_counts(len(dataset.competition.classes)).tolist(),
        **_describe_groups(dataset),
        "label_scale": list(dataset.label_scale) if dataset.label_scale else None,
        "image_shape": list(dataset.competition.image_shape),
        "pixel_range": list(dataset.pixel_range) if dataset.pixel_range else None,
        "images": {"train": len(dataset.train), "val": len(dataset.val or ()), "test": len(dataset.test or ())},
        "loading": "resident" if dataset.resident else "streamed",
        "notes": list(dataset.notes),
    }


def _describe_groups(dataset: Dataset) -> dict[str, Any]:
    """Return the provenance of groups with one answer: their number by split; empty where each image has its own."""
    if dataset.train.groups is None:
        return {}
    counts = {split.name: len(split.groups.ids) for split in dataset.splits if split.groups}
    classes = len(dataset.competition.classes)
    training_counts = dataset.train.one_per_answer().class_counts(classes).tolist()
    return {"groups": {"answer": dataset.train.groups.answer, **counts, "training_counts": training_counts}}
