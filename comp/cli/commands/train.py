"""`comp run`, `comp train` and `comp lr-find`."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from comp.cli.commands import importing
from comp.cli.commands.options import (  # fmt: skip
    RUNS,
    Adapt,
    AsJson,
    ConfigPath,
    Force,
    MaybeConfig,
    MaybeRunsRoot,
    Output,
    Overrides,
    Views,
    expanded,
)

if TYPE_CHECKING:
    from comp.config import Config
    from comp.data.dataset import Dataset
    from comp.models.classifier import Classifier
    from comp.results.run_metrics import RunMetrics
    from comp.results.runs import Run
    from comp.tracking.tracker import Tracker
    from comp.training.distributed import SingleProcess

Resume = Annotated[
    Path | None, typer.Option("--resume", metavar="RUN", help="Go on with an interrupted run.", callback=expanded)
]


def run(
    config: MaybeConfig = None,
    overrides: Overrides = None,
    rehearse: Annotated[
        bool, typer.Option("--rehearse", help="Every stage on two batches, in a scratch folder.")
    ] = False,
    like: Annotated[
        Path | None, typer.Option("--as", metavar="RUN", help="Repeat a run bit for bit on CPU.", callback=expanded)
    ] = None,
    resume: Resume = None,
    views: Views = None,
    adapt: Adapt = None,
    output: Output = None,
    force: Force = False,
    runs: MaybeRunsRoot = None,
    as_json: AsJson = False,
) -> None:
    """Train, evaluate, predict, write and check the submission, add a leaderboard row.

    Example: comp run configs/quickstart.yaml
    """
    from comp.runtime.errors import ConfigError

    given = {"predict.views": views, "predict.adapt": adapt}
    laid_on = [f"{name}={value}" for name, value in given.items() if value is not None]
    config, overrides, moved = _where_data_lie(config, overrides, resume)
    _demand_one(config, overrides, {"--resume": resume, "--as": like}, runs)
    if laid_on and (resume or like):
        raise ConfigError("--views, --adapt: a run that exists keeps its own; predict it again: comp predict RUN")
    if rehearse and (resume or like):
        raise ConfigError("--rehearse goes through a config's stages; leave --resume and --as out")
    # Before what loads torch: there may be nothing to do.
    if resume and output is None and _is_finished(resume, moved, as_json):
        return
    with importing():
        from comp import config as configs
        from comp.cli import console
        from comp.results import runs as run_folders
        from comp.tracking import tracker as trackers
        from comp.training import distributed
        from comp.workflows import checks, predict
        from comp.workflows import train as pipeline
        from comp.workflows.run import finish

    distributed.refuse("comp run")
    overrides = [*(overrides or []), *laid_on]
    with configs.blamed(overrides):
        wanted = _wanted(config, overrides, resume or like)
        checks.check_output(wanted, output, force=force)
        if rehearse:
            _rehearse(wanted, runs or RUNS, as_json)
            return
    with trackers.opened(wanted.track) as tracker:
        if resume:
            found = run_folders.open_run(resume, moved)
            with console.bars() as progress:
                dataset = predict.opened_data(found, progress)
                pipeline.resume(
                    found, dataset=dataset, on_epoch=console.print_epoch, progress=progress, tracker=tracker
                )
        else:
            found, dataset = _train(wanted, config, overrides, like, runs or RUNS, distributed.SINGLE_PROCESS, tracker)
        with console.bars() as progress:
            scores = finish(found, dataset=dataset, output=output, force=force, progress=progress)
    _print_end(found, scores, as_json)


def train(
    config: MaybeConfig = None,
    overrides: Overrides = None,
    resume: Resume = None,
    runs: MaybeRunsRoot = None,
    as_json: AsJson = False,
) -> None:
    """Train a config and score it on validation; on several devices under torchrun.

    Example: comp train configs/quickstart.yaml train.epochs=3
    """
    config, overrides, moved = _where_data_lie(config, overrides, resume)
    _demand_one(config, overrides, {"--resume": resume}, runs)
    if resume and _is_finished(resume, moved, as_json, trained_only=True):
        return
    with importing():
        from comp.cli import console
        from comp.results import runs as run_folders
        from comp.runtime import signals
        from comp.training import distributed
        from comp.workflows import train as pipeline

    with distributed.joined() as team:
        # The others begin when the leader has read the same: what is wrong with it is told once.
        wanted = team.main_process_first(
            lambda: run_folders.open_run(resume, moved).data_config() if resume else _load_one(config, overrides)
        )
        if not team.is_main_process:
            pipeline.follow(wanted, team, resume=resume is not None, runs_root=runs or RUNS, progress=signals.progress)
            return
        if resume:
            found = run_folders.open_run(resume, moved)
            with console.bars() as progress:
                pipeline.resume(found, on_epoch=console.print_epoch, progress=progress, team=team)
        else:
            found, _ = _train(wanted, config, overrides or [], None, runs or RUNS, team)
    _print_end(found, found.metrics(), as_json)


def lr_find(
    config: ConfigPath,
    overrides: Overrides = None,
    lowest: Annotated[float, typer.Option("--from", help="The first step's rate.")] = 1e-6,
    highest: Annotated[float, typer.Option("--to", help="The last step's rate, if the loss holds so long.")] = 10.0,
    steps: Annotated[int, typer.Option(help="How many steps the range is cut into.")] = 200,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="The picture, a PNG; replaced.", callback=expanded)
    ] = Path("lr-find.png"),
    as_json: AsJson = False,
) -> None:
    """Let the learning rate rise from step to step on a copy of the model, and suggest one. Leaves no run.

    Example: comp lr-find configs/quickstart.yaml --steps 100
    """
    from comp import config as configs
    from comp.cli import console
    from comp.results import files, plots
    from comp.workflows import train as pipeline

    files.check_writable(output, suffix=".png")
    with configs.blamed(overrides or []), console.bars() as progress:
        found = pipeline.find_rate(
            configs.load(config, overrides or []), lowest=lowest, highest=highest, steps=steps, progress=progress
        )
    marks = {"steepest descent": found.steepest, "suggestion": found.suggestion}
    plots.draw_lr_search(output, found.rates, found.losses, found.smoothed, marks)
    if as_json:
        console.print_json({**found.to_json(), "picture": str(output)})
    else:
        console.print_rate_search(found, output)


def _load_one(config: Path | None, overrides: list[str] | None) -> "Config":
    from comp import config as configs
    from comp.runtime.errors import ConfigError

    if config is None:
        raise ConfigError("name a config: comp run configs/quickstart.yaml")
    return configs.load(config, overrides or [])


def _where_data_lie(
    config: Path | None, overrides: list[str] | None, resume: Path | None
) -> tuple[Path | None, list[str] | None, list[str]]:
    """Return what stands beside `--resume` as overrides of where the run's data lie, or config and overrides as given.

    The first of them stands in the config's place on the command line.
    """
    from comp.results import runs as run_folders

    texts = [*([str(config)] if config else []), *(overrides or [])]
    if resume and texts and all(text.partition("=")[0] in run_folders.MOVABLE for text in texts):
        return None, None, texts
    return config, overrides, []


def _demand_one(
    config: Path | None, overrides: list[str] | None, others: "dict[str, Path | None]", runs: Path | None
) -> None:
    """Refuse none and several ways of saying what to train, and what would be laid on a run that exists."""
    from comp.runtime.errors import ConfigError

    given = {name: path for name, path in others.items() if path is not None}
    texts = [str(config)] if config and "=" in str(config) and not config.exists() else []
    laid_on = " ".join([*texts, *(overrides or [])])
    if len(given) == 1 and laid_on and (texts or config is None):
        ((name, path),) = given.items()
        if name == "--as":
            raise ConfigError(
                f"--as repeats a run as it was, and {laid_on} would change it; to train its config with that: comp run "
                f"{path}/config.yaml {laid_on}"
            )
        raise ConfigError(
            f"--resume goes on with the run's own config, and {laid_on} would change it; to train "
            f"{_train_on(path, laid_on)}"
        )
    if len(given) + (config is not None) != 1 or texts:
        names = ", ".join(["CONFIG", *others])
        raise ConfigError(f"expected one of {names}; for example: comp run configs/quickstart.yaml")
    if "--resume" in given and runs is not None:
        raise ConfigError(f"--resume goes on in {given['--resume']}, wherever it lies; leave --runs out")


def _is_finished(resume: Path, moved: list[str], as_json: bool, *, trained_only: bool = False) -> bool:
    """Tell of a run with nothing left to do, without loading torch or opening its data; return whether it is one.

    Args:
        resume: its folder.
        moved: overrides of where its data lie.
        as_json: how to tell.
        trained_only: whether test and submission do not count.
    """
    from comp.cli import console
    from comp.results import runs as run_folders
    from comp.submission import write

    run = run_folders.open_run(resume, moved)
    if not run.is_complete():
        return False
    scores = run.metrics()
    if not trained_only:
        submits = run.config().competition.suite.source != "none"
        tested = not run.provenance("images")["images"]["test"] or scores.split_scores("test") is not None
        if not (write.is_kept(run) if submits else tested):
            return False
    if os.environ.get("RANK", "0") == "0":  # of several processes under torchrun, one tells
        console.print_note(f"{run.path}: complete, nothing is left to do; another CSV: comp predict {run.path}")
        console.print_note(f"to train {_train_on(run.path, 'train.epochs=N')}")
        _print_end(run, scores, as_json)
    return True


def _train_on(run: Path, overrides: str) -> str:
    """Return how to train on from a run's weights, what that does not take over, and the command."""
    return (
        "on from its best weights, in a new run whose optimizer, schedule and averages start anew: comp run "
        f"{run}/config.yaml model.pretrained=false model.from_run={run} {overrides}"
    )


def _wanted(config: Path | None, overrides: list[str] | None, of: Path | None) -> "Config":
    """Return the config of the run to go on with or to repeat, else the one that is given."""
    from comp.results import runs as run_folders

    return run_folders.open_run(of).config() if of else _load_one(config, overrides)


def _train(
    wanted: "Config", config: Path | None, overrides: list[str], like: Path | None, runs: Path, team: "SingleProcess",
    tracker: "Tracker | None" = None,
) -> "tuple[Any, Dataset]":  # fmt: skip
    from comp import config as configs
    from comp.cli import console
    from comp.results import files
    from comp.runtime import device
    from comp.workflows import build
    from comp.workflows import train as pipeline

    execution, name = None, Path(config or "run").stem
    if like is not None:
        name = like.name.split("-", 2)[-1]
        recorded = like / "execution.json"
        execution = device.from_json(files.read_json(recorded), str(recorded))
    with configs.blamed(overrides), console.bars() as progress:
        dataset = team.main_process_first(lambda: build.prepare(wanted, runs, progress))
        console.print_notes(dataset)
        found = pipeline.train(
            wanted, name=name, runs_root=runs, dataset=dataset, execution=execution,
            on_start=_print_start, on_choice=console.print_choice, on_epoch=console.print_epoch, progress=progress,
            team=team, tracker=tracker,
        )  # fmt: skip
    return found, dataset


def _print_start(run: "Run", model: "Classifier") -> None:
    from comp.cli import console
    from comp.models.surgery import trainable_table

    console.print_start(run, trainable_table(model), model.weights_source)


def _print_end(run: "Run", scores: "RunMetrics", as_json: bool) -> None:
    from comp.cli import console

    if as_json:
        console.print_json(scores.to_json())
        return
    console.print_norms(run.table("norms.csv"))
    console.print_summary(run, scores)


def _rehearse(config: "Config", runs: Path, as_json: bool) -> None:
    from dataclasses import asdict

    from comp.cli import console
    from comp.workflows.rehearse import rehearse

    with console.bars() as progress:
        stages = rehearse(config, progress, runs_root=runs)
    console.print_json([asdict(stage) for stage in stages]) if as_json else console.print_stages(stages)
