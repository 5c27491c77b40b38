"""The verbs, thin. Heavy imports stand inside the commands: `comp --help` never imports torch."""

import json
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from comp import data_verbs, signals
from comp.errors import Interrupted, UserError
from comp.options import Adapt, AdaptPer, Alpha, AsJson, ConfigPath, Overrides, Views, ViewsFor

if TYPE_CHECKING:
    from comp.config import Config
    from comp.data.dataset import Dataset
    from comp.models.catalogue import Costs, Listed
    from comp.models.classifier import Classifier
    from comp.runs import Run
    from comp.training.distributed import Alone

EXIT_OUR_FAULT, EXIT_USER, EXIT_INTERRUPTED = 1, 2, 128

app = typer.Typer(
    no_args_is_help=True, add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False,
)  # fmt: skip
config_app = typer.Typer(no_args_is_help=True, help="Look at configs: `show`, `check`, `schema`.")
data_app = typer.Typer(no_args_is_help=True, help="Bring and look at data: `prepare`, `show`, `check`, `corrupt`.")
app.add_typer(config_app, name="config")
app.add_typer(data_app, name="data")
for verb in (data_verbs.show, data_verbs.check, data_verbs.corrupt):
    data_app.command()(verb)

RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder: runs/COMPETITION/TIME-NAME.")]
RunsRoot = Annotated[Path, typer.Option("--runs", help="Where run folders are.")]
Output = Annotated[Path | None, typer.Option("-o", "--output", help="The submission's CSV; a free name by default.")]
Force = Annotated[bool, typer.Option("--force", help="Replace an existing submission.")]
RUNS = Path("runs")


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line and leave with its exit code.

    0 done; 2 the user's input is wrong, told in one message; 1 a fault of ours; 128 + signal interrupted, resumable.

    Args:
        arguments: instead of the process's own.
    """
    sys.exit(_guarded(arguments))


def _guarded(arguments: list[str] | None) -> int:
    try:
        with signals.noted():
            app(arguments)  # leaves by SystemExit: 0, or 2 with a message of its own where the command line is wrong
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER
    except Interrupted as stop:
        print("interrupted; the same command goes on, and a training with: comp run --resume RUN", file=sys.stderr)
        return EXIT_INTERRUPTED + stop.signum
    except Exception:
        traceback.print_exc()
        print("this is a fault of comp, not of your input; please report it with the lines above", file=sys.stderr)
        return EXIT_OUR_FAULT
    return 0


@app.callback(invoke_without_command=True)
def version(
    show: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """From a competition's data to a scored, valid submission.csv. Begin with: comp run configs/quickstart.yaml"""
    if show:
        from comp import __version__

        print(f"comp {__version__}")
        raise typer.Exit


@app.command()
def run(
    config: Annotated[Path | None, typer.Argument(metavar="CONFIG", help="A YAML file; see configs/.")] = None,
    overrides: Overrides = None,
    rehearse: Annotated[
        bool, typer.Option("--rehearse", help="Every stage on two batches, in a scratch folder.")
    ] = False,
    like: Annotated[Path | None, typer.Option("--as", metavar="RUN", help="Repeat a run bit for bit on CPU.")] = None,
    resume: Annotated[
        Path | None, typer.Option("--resume", metavar="RUN", help="Go on with an interrupted run.")
    ] = None,
    views: Views = None,
    adapt: Adapt = None,
    output: Output = None,
    force: Force = False,
    runs: RunsRoot = RUNS,
    as_json: AsJson = False,
) -> None:
    """Train, evaluate, predict, write and check the submission, add a leaderboard row.

    Example: comp run configs/quickstart.yaml
    """
    from comp import console, pipeline
    from comp import runs as run_folders
    from comp.data.dataset import open_dataset
    from comp.errors import ConfigError
    from comp.training import distributed

    distributed.refuse("comp run")
    if rehearse:
        _rehearse(_load_one(config, overrides), as_json)
        return
    given = {"predict.views": views, "predict.adapt": adapt}
    laid_on = [f"{name}={value}" for name, value in given.items() if value is not None]
    if laid_on and (resume or like):
        raise ConfigError("--views, --adapt: a run that exists keeps its own; predict it again: comp predict RUN")
    overrides = [*(overrides or []), *laid_on]
    _one_of(CONFIG=config, resume=resume, **{"as": like})
    if resume:
        with console.bars() as progress:
            found = run_folders.open_run(resume)
            dataset = open_dataset(found.config(), progress)
            pipeline.resume(found, dataset=dataset, on_epoch=console.print_epoch, progress=progress)
    else:
        found, dataset = _train(config, overrides, like, runs, distributed.ALONE)
    with console.bars() as progress:
        scores = pipeline.finish(found, dataset=dataset, output=output, force=force, progress=progress)
    console.print_json(scores) if as_json else console.print_summary(found, scores)


@app.command()
def train(
    config: Annotated[Path | None, typer.Argument(metavar="CONFIG", help="A YAML file; see configs/.")] = None,
    overrides: Overrides = None,
    resume: Annotated[
        Path | None, typer.Option("--resume", metavar="RUN", help="Go on with an interrupted run.")
    ] = None,
    runs: RunsRoot = RUNS,
    as_json: AsJson = False,
) -> None:
    """Train a config and score it on validation; on several devices under torchrun.

    Example: comp train configs/quickstart.yaml train.epochs=3
    """
    from comp import console, pipeline, signals
    from comp import runs as run_folders
    from comp.training import distributed

    _one_of(CONFIG=config, resume=resume)
    with distributed.joined() as team:
        if not team.leads:
            followed = run_folders.open_run(resume).config() if resume else _load_one(config, overrides)
            pipeline.follow(followed, team, resume=resume is not None, runs_root=runs, progress=signals.progress)
            return
        if resume:
            found = run_folders.open_run(resume)
            with console.bars() as progress:
                pipeline.resume(found, on_epoch=console.print_epoch, progress=progress, team=team)
        else:
            found, _ = _train(config, overrides, None, runs, team)
    console.print_json(found.metrics()) if as_json else console.print_summary(found, found.metrics())


@app.command()
def predict(
    paths: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders; one CSV each.")],
    views: Views = None,
    views_for: ViewsFor = None,
    adapt: Adapt = None,
    adapt_per: AdaptPer = None,
    alpha: Alpha = None,
    split: Annotated[
        str, typer.Option("--split", help="suite, or one to score without a CSV: val, ood_val or test.")
    ] = "suite",
    suite: Annotated[
        Path | None, typer.Option("--suite", metavar="DIR", help="Instead: any folder of distortionNN.npy.")
    ] = None,
    severities: Annotated[int, typer.Option(min=1, help="With --suite: severities stacked in each file.")] = 5,
    output: Output = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Predict the suite with trained runs and write a submission for each.

    Example: comp predict runs/quickstart/20260101-120000-quickstart --views flip --adapt bn
    """
    from comp import console, pipeline
    from comp import runs as run_folders
    from comp.errors import SubmissionError

    if output and (len(paths) > 1 or split != "suite"):
        raise SubmissionError(
            "-o names one file, and several runs, or a split that is not submitted, were given; leave it out"
        )
    given = {"views": views, "views_for": views_for, "adapt": adapt, "adapt_per": adapt_per, "alpha": alpha}
    written: dict[str, Any] = {}
    for found in [run_folders.open_run(path) for path in paths]:
        with console.bars() as progress:
            loaded = pipeline.load(found, progress=progress)
            variant = pipeline.variant_for(loaded, given)
            written[str(found.path)], rows, expected = _predict_one(
                loaded, split, suite, severities, variant, output, force, progress
            )
        if not as_json:
            console.print_prediction(found, rows, written[str(found.path)], expected)
    if as_json:
        console.print_json(written)


def _predict_one(
    loaded: Any, split: str, suite: Path | None, severities: int, variant: Any, output: Path | None, force: bool,
    progress: Any,
) -> tuple[str | dict[str, Any], Any, dict[str, Any]]:  # fmt: skip
    """Return the CSV's path, or the scores of what is not submitted; the predictions; and what they should score."""
    from comp import pipeline
    from comp.data import suites

    shape = loaded.dataset.competition.image_shape
    images = suites.folder_suite(suite, severities, shape) if suite else pipeline.images_of(loaded, split)
    name = f"suite-{suite.resolve().name}" if suite else split
    rows = pipeline.predict_split(loaded, images, name, progress, variant=variant)
    if split != "suite":
        return pipeline.score(loaded, rows), rows, {}
    expected = pipeline.expect(loaded, rows, name, progress)
    path = output or pipeline.default_submission(loaded.config)
    blocks = getattr(images, "blocks", ()) if suite else ()
    return str(pipeline.submit(loaded, rows, path, force=force, blocks=blocks)), rows, expected


@app.command()
def evaluate(
    path: RunPath,
    views: Views = None,
    views_for: ViewsFor = None,
    adapt: Adapt = None,
    adapt_per: AdaptPer = None,
    alpha: Alpha = None,
    as_json: AsJson = False,
) -> None:
    """Score a trained run on the clean labelled test split, beside its validation scores.

    Example: comp evaluate runs/quickstart/20260101-120000-quickstart --views flip
    """
    from comp import console, pipeline
    from comp import runs as run_folders

    found = run_folders.open_run(path)
    given = {"views": views, "views_for": views_for, "adapt": adapt, "adapt_per": adapt_per, "alpha": alpha}
    with console.bars() as progress:
        loaded = pipeline.load(found, progress=progress)
        scores = pipeline.evaluate(loaded, progress, variant=pipeline.variant_for(loaded, given))
    console.print_json(scores) if as_json else console.print_summary(found, scores)


@app.command()
def probe(
    path: RunPath,
    classifier: Annotated[str, typer.Option(help="linear_svm, knn or logistic.")] = "linear_svm",
    k: Annotated[int, typer.Option("--k", help="Neighbours, for knn.")] = 5,
    config: Annotated[Path | None, typer.Option("--config", help="Probe these data instead of the run's own.")] = None,
    runs: RunsRoot = RUNS,
    as_json: AsJson = False,
) -> None:
    """Fit a simple classifier on a trained run's features and score it.

    Example: comp probe runs/quickstart/20260101-120000-quickstart --classifier knn --k 5
    """
    from comp import config as configs
    from comp import console, probing
    from comp import runs as run_folders

    wanted = configs.load(config) if config else None
    with console.bars() as progress:
        found = probing.probe(
            run_folders.open_run(path), name=classifier, k=k, config=wanted, runs_root=runs, progress=progress
        )
    console.print_json(found.metrics()) if as_json else console.print_summary(found, found.metrics())


@app.command()
def leaderboard(
    competition: Annotated[str | None, typer.Option(help="Only this competition's runs.")] = None,
    sort: Annotated[str, typer.Option(help="Column to sort by.")] = "ood_accuracy",
    runs: RunsRoot = RUNS,
    as_json: AsJson = False,
) -> None:
    """List complete runs, best first.

    Example: comp leaderboard --competition quickstart --sort val_accuracy
    """
    from dataclasses import asdict

    from comp import console
    from comp import leaderboard as board

    rows = board.rows(runs, competition=competition, sort=sort)
    console.print_json([asdict(row) for row in rows]) if as_json else console.print_leaderboard(rows, runs)


@app.command()
def check(
    path: Annotated[Path, typer.Argument(metavar="CSV", help="A submission.")],
    wanted: Annotated[
        Path | None, typer.Option("--format", metavar="CONFIG", help="By default the sidecar's format.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check a submission's header, ids, order and labels.

    Example: comp check submissions/quickstart.csv
    """
    from comp import config as configs
    from comp import console, runs
    from comp.competition import submission
    from comp.errors import SubmissionError

    sidecar = submission.sidecar_path(path)
    if not path.is_file():
        raise SubmissionError(f"{path}: no such submission")
    if wanted:
        from comp.data.dataset import open_dataset

        expected = submission.format_of(open_dataset(configs.load(wanted)).competition)
    elif sidecar.exists():
        expected = submission.format_from_json(runs.read_json(sidecar).get("format", {}), sidecar)
    else:
        raise SubmissionError(f"{path}: has no sidecar {sidecar.name} that tells its format; give --format CONFIG")
    problems = submission.check(path, expected)
    if as_json:
        console.print_json({"submission": str(path), "valid": not problems, "problems": problems})
    elif not problems:
        console.print_line(f"{path}: valid")
    if problems:
        raise SubmissionError(f"{path}: not a valid submission\n  " + "\n  ".join(problems))


@app.command("lr-find")
def lr_find(
    config: ConfigPath,
    overrides: Overrides = None,
    lowest: Annotated[float, typer.Option("--from", help="The first step's rate.")] = 1e-6,
    highest: Annotated[float, typer.Option("--to", help="The last step's rate, if the loss holds so long.")] = 10.0,
    steps: Annotated[int, typer.Option(help="How many steps the range is cut into.")] = 200,
    output: Annotated[Path, typer.Option("-o", "--output", help="The picture, a PNG; replaced.")] = Path("lr-find.png"),
    as_json: AsJson = False,
) -> None:
    """Let the learning rate rise from step to step on a copy of the model, and suggest one. Leaves no run.

    Example: comp lr-find configs/quickstart.yaml --steps 100
    """
    from comp import config as configs
    from comp import console, pipeline, plots

    with console.bars() as progress:
        found = pipeline.find_rate(
            configs.load(config, overrides or []), lowest=lowest, highest=highest, steps=steps, progress=progress
        )
    marks = {"steepest descent": found.steepest, "suggestion": found.suggestion}
    plots.rate_search(output, found.rates, found.losses, found.smoothed, marks)
    if as_json:
        console.print_json({**found.to_json(), "picture": str(output)})
    else:
        console.print_rate_search(found, output)


@app.command()
def models(
    pattern: Annotated[str, typer.Argument(help="Names to list; `*` stands for anything.")] = "*",
    size: Annotated[int, typer.Option(help="Image side in pixels that costs are counted at.")] = 32,
    channels: Annotated[int, typer.Option(help="3 for colour, 1 for grey.")] = 3,
    weights: Annotated[Path, typer.Option(help="Folder of weights files.")] = Path("data/weights"),
    as_json: AsJson = False,
) -> None:
    """List models that `model.name` takes, with their costs: with the CIFAR stem where the family has one.

    Example: comp models 'resnet1*' --size 32
    """
    from comp import console
    from comp.models import zoo

    rows = zoo.list_models(pattern, weights_folder=weights)
    counted = {}
    if len(rows) <= console.MOST_COUNTED_MODELS:
        with console.bars() as progress:
            for row in rows:
                counted[row.name] = _costs(row, (channels, size, size))
                progress("counting", len(counted), len(rows), "models")
    console.print_models(rows, counted, as_json)


def _costs(row: "Listed", image_shape: tuple[int, int, int]) -> "Costs | None":
    """Return what a model costs, None where it is too deep for such images."""
    from comp.models import zoo

    try:
        return zoo.costs(row.name, image_shape, stem="cifar" if row.cifar_stem else "stock")
    except (RuntimeError, ValueError, AssertionError):
        return None


@config_app.command("show")
def config_show(config: ConfigPath, overrides: Overrides = None) -> None:
    """Print a config with every default filled in.

    Example: comp config show configs/quickstart.yaml train.epochs=3
    """
    from comp import config as configs

    print(configs.dump(configs.load(config, overrides or [])), end="")


@config_app.command("check")
def config_check(config: ConfigPath, overrides: Overrides = None, runs: RunsRoot = RUNS) -> None:
    """Check a config's keys, types, names and rules.

    Example: comp config check configs/quickstart.yaml
    """
    from comp import config as configs
    from comp import console, pipeline

    loaded = configs.load(config, overrides or [])
    pipeline.check(loaded, runs)
    console.print_line(f"{config}: good (config hash {configs.fingerprint(loaded)})")


@config_app.command("schema")
def config_schema() -> None:
    """Print the JSON schema of a config file, for editors.

    Example: comp config schema > comp.schema.json
    """
    from comp import config as configs

    print(json.dumps(configs.schema(), indent=2))


@data_app.command("prepare")
def data_prepare(config: ConfigPath, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Find or download everything that a config needs, and verify it.

    Example: comp data prepare configs/cifar100-ood/transfer.yaml
    """
    from comp import config as configs
    from comp import console
    from comp.data.dataset import open_dataset

    loaded = configs.load(config, overrides or [])
    with console.bars() as progress:
        dataset = open_dataset(loaded, progress)
    console.print_dataset(dataset, as_json)


def _load_one(config: Path | None, overrides: list[str] | None) -> "Config":
    from comp import config as configs
    from comp.errors import ConfigError

    if config is None:
        raise ConfigError("name a config: comp run configs/quickstart.yaml")
    return configs.load(config, overrides or [])


def _one_of(**given: Any) -> None:
    """Refuse none and several ways of saying what to train."""
    from comp.errors import ConfigError

    names = ["CONFIG" if name == "CONFIG" else f"--{name}" for name in given]
    if sum(value is not None for value in given.values()) != 1:
        raise ConfigError(f"expected one of {', '.join(names)}; for example: comp run configs/quickstart.yaml")


def _train(
    config: Path | None, overrides: list[str] | None, like: Path | None, runs: Path, team: "Alone"
) -> "tuple[Any, Dataset]":
    from comp import console, device, pipeline
    from comp import runs as run_folders

    execution = None
    if like is None:
        loaded, name = _load_one(config, overrides), Path(config or "run").stem
    else:
        original = run_folders.open_run(like)
        loaded, name = original.config(), like.name.split("-", 2)[-1]
        recorded = like / "execution.json"
        execution = device.from_json(run_folders.read_json(recorded), str(recorded))
    with console.bars() as progress:
        dataset = team.leader_first(lambda: pipeline.prepare(loaded, runs, progress))
        console.print_notes(dataset)
        found = pipeline.train(
            loaded, name=name, runs_root=runs, dataset=dataset, execution=execution,
            on_start=_print_start, on_epoch=console.print_epoch, progress=progress, team=team,
        )  # fmt: skip
    return found, dataset


def _print_start(run: "Run", model: "Classifier") -> None:
    from comp import console
    from comp.models.surgery import trainable_table

    console.print_start(run, trainable_table(model), model.origin)


def _rehearse(config: "Config", as_json: bool) -> None:
    from dataclasses import asdict

    from comp import console
    from comp.rehearsal import rehearse

    with console.bars() as progress:
        stages = rehearse(config, progress)
    console.print_json([asdict(stage) for stage in stages]) if as_json else console.print_stages(stages)
