"""`comp run`, `comp train` and `comp lr-find`."""

import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from comp.cli.commands import importing
from comp.cli.commands.options import (
    RUNS,
    Adapt,
    AllowPlugins,
    AsJson,
    ConfigPath,
    Force,
    Gpus,
    MaybeConfig,
    MaybeRunsRoot,
    Name,
    Output,
    Overrides,
    Views,
    expand_path,
    load_with_plugins,
)

if TYPE_CHECKING:
    from comp.config import Config
    from comp.models.classifier import Classifier
    from comp.results.runs import Run
    from comp.runtime.device import Execution
    from comp.training.cost import Cost

Resume = Annotated[
    Path | None,
    typer.Option("--resume", metavar="RUN", help="Resume an interrupted run.", callback=expand_path),
]


def run(
    context: typer.Context,
    config: MaybeConfig = None,
    overrides: Overrides = None,
    rehearse: Annotated[
        bool, typer.Option("--rehearse", help="Run every stage on two batches, in a scratch folder.")
    ] = False,
    like: Annotated[
        Path | None,
        typer.Option("--as", metavar="RUN", help="Re-run a finished run (identical on CPU).", callback=expand_path),
    ] = None,
    resume: Resume = None,
    name: Name = None,
    views: Views = None,
    adapt: Adapt = None,
    output: Output = None,
    force: Force = False,
    gpus: Gpus = None,
    runs: MaybeRunsRoot = None,
    allow_plugins: AllowPlugins = False,
    as_json: AsJson = False,
) -> None:
    """Train, score, predict and write a checked submission.

    Example: comp run configs/quickstart.yaml
    """
    prediction = {"predict.views": views, "predict.adapt": adapt}
    prediction_overrides = [f"{name}={value}" for name, value in prediction.items() if value is not None]
    config, overrides, data_overrides = _split_overrides(config, overrides, resume)
    _check_sources(config, overrides, {"--resume": resume, "--as": like}, runs, name)
    _check_options(
        existing=resume or like, rehearse=rehearse, predicts=bool(prediction_overrides), gpus=gpus, name=name
    )
    # Before torch is loaded: there may be nothing to do.
    if resume and _is_finished(resume, data_overrides, as_json, output=output):
        return
    with importing():
        from comp import config as configs
        from comp.cli import console
        from comp.results import runs as run_folders
        from comp.runtime import signals
        from comp.submission import write
        from comp.training import distributed
        from comp.workflows.checks import check_output
        from comp.workflows.run import resume_run, run_config
        from comp.workflows.train import follow

    overrides = [*(overrides or []), *prediction_overrides]
    if resume and output is None:
        output, planned_force = run_folders.open_run(resume).planned_output()
        force = force or planned_force

    def load() -> "Config":
        with configs.naming_overrides(overrides):
            if existing := resume or like:
                repeated = _open_with_plugins(existing, data_overrides, allow_plugins)
                loaded = repeated.data_config() if resume else repeated.repeated_config()
                leftover = output is not None and bool(resume) and write.is_leftover(repeated, output)
            else:
                assert config is not None  # see `_check_sources`
                loaded, leftover = load_with_plugins(config, overrides, allow=allow_plugins), False
            check_output(loaded, output, force=force or leftover)
        return loaded

    if rehearse:
        _rehearse(load, overrides, runs or RUNS, as_json, command=context.find_root().obj)
        return
    trained = resume is not None and run_folders.open_run(resume).is_complete()
    if not trained:
        _start_processes(context, gpus, load)
    with distributed.join_group() as team:
        # The main process reads it first: a mistake in it is reported once.
        loaded = team.main_process_first(load)
        team.take_device(loaded.train.device)
        if not team.is_main_process:
            if not trained:
                follow(loaded, team, resume=bool(resume), runs_root=runs or RUNS, progress=signals.progress)
            return
        with configs.naming_overrides(overrides), console.bars() as progress:
            if resume:
                result = resume_run(
                    _open_to_resume(resume, data_overrides),
                    output=output,
                    force=force,
                    on_epoch=console.print_epoch,
                    progress=progress,
                    team=team,
                )
            else:
                like_name, execution = _read_existing(like) if like else (Path(config or "run").stem, None)
                result = run_config(
                    loaded,
                    name=name or like_name,
                    runs_root=runs or RUNS,
                    execution=execution,
                    output=output,
                    force=force,
                    progress=progress,
                    team=team,
                    **_printers(runs or RUNS),
                )
    _print_result(result, as_json)


def train(
    context: typer.Context,
    config: MaybeConfig = None,
    overrides: Overrides = None,
    resume: Resume = None,
    name: Name = None,
    gpus: Gpus = None,
    runs: MaybeRunsRoot = None,
    allow_plugins: AllowPlugins = False,
    as_json: AsJson = False,
) -> None:
    """Train a model and score it on validation.

    Example: comp train configs/quickstart.yaml train.epochs=3
    """
    config, overrides, data_overrides = _split_overrides(config, overrides, resume)
    _check_sources(config, overrides, {"--resume": resume}, runs, name)
    if resume and _is_finished(resume, data_overrides, as_json, trained_only=True):
        return
    with importing():
        from comp import config as configs
        from comp.cli import console
        from comp.runtime import signals
        from comp.training import distributed
        from comp.workflows import train as workflow

    def load() -> "Config":
        with configs.naming_overrides(overrides or []):
            if resume:
                return _open_with_plugins(resume, data_overrides, allow_plugins).data_config()
            assert config is not None  # see `_check_sources`
            return load_with_plugins(config, overrides, allow=allow_plugins)

    _start_processes(context, gpus, load)
    root, name = runs or RUNS, name or Path(config or "run").stem
    with distributed.join_group() as team:
        # The main process reads it first: a mistake in it is reported once.
        loaded = team.main_process_first(load)
        team.take_device(loaded.train.device)
        if not team.is_main_process:
            workflow.follow(loaded, team, resume=resume is not None, runs_root=root, progress=signals.progress)
            return
        with configs.naming_overrides(overrides or []), console.bars() as progress:
            if resume:
                result = _open_to_resume(resume, data_overrides)
                workflow.resume(result, on_epoch=console.print_epoch, progress=progress, team=team)
            else:
                result = workflow.train(
                    loaded, name=name, runs_root=root, progress=progress, team=team, **_printers(root)
                )
    _print_result(result, as_json)


def lr_find(
    config: ConfigPath,
    overrides: Overrides = None,
    lowest: Annotated[float, typer.Option("--from", help="Learning rate of the first step.")] = 1e-6,
    highest: Annotated[float, typer.Option("--to", help="Learning rate of the last step.")] = 10.0,
    steps: Annotated[int, typer.Option(help="Number of steps between them.")] = 200,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Write the plot here, a PNG.", callback=expand_path)
    ] = Path("lr-find.png"),
    allow_plugins: AllowPlugins = False,
    as_json: AsJson = False,
) -> None:
    """Suggest a learning rate, by raising it step by step.

    Trains a copy of the model and stops when the loss diverges. Writes a plot and
    no run.

    Example: comp lr-find configs/quickstart.yaml --steps 100
    """
    from comp import config as configs
    from comp.cli import console
    from comp.results import files, plots
    from comp.workflows.train import find_learning_rate

    files.check_writable(output, suffix=".png")
    with configs.naming_overrides(overrides or []), console.bars() as progress:
        loaded = load_with_plugins(config, overrides, allow=allow_plugins)
        result = find_learning_rate(loaded, lowest=lowest, highest=highest, steps=steps, progress=progress)
    marks = {"steepest descent": result.steepest, "suggestion": result.suggestion}
    plots.draw_lr_search(output, result.rates, result.losses, result.smoothed, marks)
    if as_json:
        console.print_json({**result.to_json(), "picture": str(output)})
    else:
        console.print_lr_find(result, output)
        console.print_next("run", config, *(overrides or []), f"optim.lr={result.suggestion:.1e}")


def _open_with_plugins(path: Path, data_overrides: list[str], allow_plugins: bool) -> "Run":
    """Return a run to resume or repeat, with its plug-ins loaded."""
    from comp.results import runs
    from comp.workflows import lineage, plugins

    run = runs.open_run(path, data_overrides, allow_plugins=allow_plugins)
    plugins.load_of(run)
    if allow_plugins:
        lineage.consent(run.config())
    return run


def _open_to_resume(path: Path, data_overrides: list[str]) -> "Run":
    """Return a run to resume; say where the files of its plug-ins have changed, or its checkpoint is lost."""
    from comp.cli import console
    from comp.results import runs
    from comp.runtime.errors import plural
    from comp.workflows import plugins

    run = runs.open_run(path, data_overrides)
    for note in plugins.changed_since(run):
        console.print_note(note)
    names = ("state.pt", "final.safetensors")
    if not run.is_complete() and not any((run.path / name).exists() for name in names) and (rows := run.history()):
        console.print_note(
            f"{run.path}: holds no state.pt to resume from; the training starts again at epoch 1, without the "
            f"{plural(len(rows), 'epoch')} of history.csv"
        )
    return run


def _check_options(
    *, existing: Path | None, rehearse: bool, predicts: bool, gpus: int | None, name: str | None
) -> None:
    """Refuse options of `run` that contradict each other.

    Args:
        existing: the run of `--resume` or `--as`.
        rehearse: `--rehearse`.
        predicts: whether `--views` or `--adapt` is given.
        gpus: of `--gpus`.
        name: of `--name`.

    Raises:
        ConfigError: naming them.
    """
    from comp.runtime.errors import ConfigError

    if predicts and existing:
        raise ConfigError("--views, --adapt: an existing run keeps its own; predict it again: comp predict RUN")
    if rehearse and existing:
        raise ConfigError("--rehearse runs a config's stages; leave --resume and --as out")
    if rehearse and name:
        raise ConfigError("--rehearse leaves no run to name; leave --name out")
    if rehearse and gpus:
        raise ConfigError("--rehearse runs in one process; leave --gpus out")


def _rehearse(
    load: "Callable[[], Config]", overrides: list[str], runs_root: Path, as_json: bool, *, command: list[str]
) -> None:
    from comp import config as configs
    from comp.cli import console
    from comp.training import distributed
    from comp.workflows import rehearse

    distributed.check_single_process("comp run --rehearse")
    with configs.naming_overrides(overrides), console.bars() as progress:
        stages = rehearse.rehearse(load(), progress, runs_root=runs_root)
    if as_json:
        console.print_json([asdict(stage) for stage in stages])
        return
    console.print_stages(stages)
    console.print_next(*(word for word in command if word != "--rehearse"))


def _start_processes(context: typer.Context, gpus: int | None, load: "Callable[[], Config]") -> None:
    """With `--gpus N`, run the command in N processes and exit as they do; return in a process that trains.

    Args:
        context: of the command; holds its arguments.
        gpus: N.
        load: reads the config; its mistakes are found before anything starts.

    Raises:
        ConfigError: there are fewer GPUs, or torchrun has started another number of processes.
    """
    from comp.runtime.errors import ConfigError
    from comp.training import distributed, launch

    if distributed.is_distributed():
        if gpus and launch.LAUNCHED not in os.environ:
            raise ConfigError(
                f"--gpus {gpus}: WORLD_SIZE={os.environ['WORLD_SIZE']} says that torchrun has started the processes; "
                "leave it out, or unset WORLD_SIZE"
            )
    elif gpus and gpus > 1:
        launch.check_gpus(gpus, load().train.device)
        raise typer.Exit(launch.start(context.find_root().obj, gpus))


def _split_overrides(
    config: Path | None, overrides: list[str] | None, resume: Path | None
) -> tuple[Path | None, list[str] | None, list[str]]:
    """Return config, overrides, and with `--resume` the overrides that only name the data's new location.

    The command line puts the first of those in the config's place.
    """
    from comp.results import runs as run_folders

    words = [*([str(config)] if config else []), *(overrides or [])]
    if resume and words and all(word.partition("=")[0] in run_folders.MOVABLE for word in words):
        return None, None, words
    return config, overrides, []


def _check_sources(
    config: Path | None,
    overrides: list[str] | None,
    existing: "dict[str, Path | None]",
    runs: Path | None,
    name: str | None,
) -> None:
    """Refuse no source or several (CONFIG, --resume, --as), and overrides of an existing run."""
    from comp.runtime.errors import ConfigError

    named = {option: path for option, path in existing.items() if path is not None}
    words = [str(config)] if config and "=" in str(config) and not config.exists() else []
    changes = " ".join([*words, *(overrides or [])])
    if len(named) == 1 and changes and (words or config is None):
        ((option, path),) = named.items()
        if option == "--as":
            raise ConfigError(
                f"--as repeats a run unchanged, and {changes} would change it; to train its config with that: comp run "
                f"{path}/config.yaml {changes}"
            )
        raise ConfigError(
            f"--resume uses the run's own config, and {changes} would change it; to train {_train_on(path, changes)}"
        )
    if len(named) + (config is not None) != 1 or words:
        names = ", ".join(["CONFIG", *existing])
        raise ConfigError(f"expected one of {names}; for example: comp run configs/quickstart.yaml")
    for option, value in {"--runs": runs, "--name": name}.items():
        if "--resume" in named and value is not None:
            raise ConfigError(f"--resume continues in {named['--resume']}; leave {option} out")


def _is_finished(
    resume: Path, data_overrides: list[str], as_json: bool, *, output: Path | None = None, trained_only: bool = False
) -> bool:
    """Print the result of a run with nothing left to do; return whether it is one. Loads neither torch nor data.

    With `trained_only`, test scores and the submission may be missing.
    """
    from comp.cli import console
    from comp.results import runs as run_folders
    from comp.submission import write

    run = run_folders.open_run(resume, data_overrides)
    if not run.is_complete():
        return False
    if not trained_only:
        submits = run.config().competition.suite.source != "none"
        tested = not run.provenance("images")["images"]["test"] or run.metrics().split_scores("test") is not None
        if not (write.has_submission(run, output) if submits else tested and output is None):
            return False
    if os.environ.get("RANK", "0") == "0":  # torchrun's main process prints
        console.print_note(f"{run.path}: complete, nothing is left to do; another CSV: comp predict {run.path}")
        console.print_note(f"to train {_train_on(run.path, 'train.epochs=N')}")
        _print_result(run, as_json)
    return True


def _train_on(run: Path, overrides: str) -> str:
    """Return the command that trains a run's weights further in a new run, and what that restarts."""
    return (
        "on from its best weights, in a new run whose optimizer, schedule and averages start anew: comp run "
        f"{run}/config.yaml model.pretrained=false model.from_run={run} {overrides}"
    )


def _read_existing(run: Path) -> "tuple[str, Execution]":
    """Return a run's name and recorded execution, to repeat it."""
    from comp.results import files, runs
    from comp.runtime import device
    from comp.runtime.errors import RunError

    recorded = run / "execution.json"
    existing = runs.open_run(run)
    if existing.is_complete() and (kind := existing.metrics().kind) != "run":
        article = "an" if kind == "ensemble" else "a"
        raise RunError(
            f"--as {run}: repeats a training, and this is {article} {kind.replace('_', ' ')}, made from other runs; "
            "repeat one of those, or make it again from them"
        )
    return run.name.split("-", 2)[-1], device.from_json(files.read_json(recorded, device.RECORD_CURE), str(recorded))


def _printers(root: Path) -> dict[str, Any]:
    """Return the arguments of `train` that print its progress; a long training's run can be watched below `root`."""
    from comp.cli import console
    from comp.models.surgery import trainable_table

    def print_start(run: "Run", model: "Classifier") -> None:
        console.print_start(run, trainable_table(model), model.weights_source)

    def print_cost(cost: "Cost") -> None:
        console.print_cost(cost)
        console.print_watch(root)

    return {
        "on_data": console.print_notes,
        "on_start": print_start,
        "on_choice": console.print_choice,
        "on_cost": print_cost,
        "on_epoch": console.print_epoch,
    }


def _print_result(run: "Run", as_json: bool) -> None:
    from comp.cli import console

    if as_json:
        console.print_run_json(run)
        return
    console.print_norms(run.table("norms.csv"))
    console.print_summary(run, run.metrics())
    console.print_next("evaluate", run.path)
