"""`comp predict`, `comp evaluate` and `comp probe`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from comp.cli.commands.options import (
    RUNS,
    Adapt,
    AdaptPer,
    AllowPlugins,
    Alpha,
    AsJson,
    Device,
    Force,
    Name,
    Output,
    Pool,
    Prior,
    RunsRoot,
    RunWords,
    Views,
    ViewsFor,
    expand_path,
    find_config,
    load_with_plugins,
    open_one_run,
    open_runs,
)

if TYPE_CHECKING:
    from comp.inference.inputs import PredictInput
    from comp.results.run_metrics import AccuracyEstimate, SplitScores
    from comp.results.runs import Run
    from comp.runtime.progress import Progress
    from comp.workflows.load import LoadedRun
    from comp.workflows.predict import PredictResult


def predict(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN... [KEY=VALUE]",
            help="Run folders; each gets its own CSV. If their data have moved: data.root=DIR.",
        ),
    ],
    views: Views = None,
    views_for: ViewsFor = None,
    adapt: Adapt = None,
    adapt_per: AdaptPer = None,
    alpha: Alpha = None,
    prior: Prior = None,
    pool: Pool = None,
    split: Annotated[
        str | None,
        typer.Option("--split", help="Predict suite (default), or only score val, ood_val or test."),
    ] = None,
    suite: Annotated[
        Path | None, typer.Option("--suite", metavar="DIR", help="Predict a folder of distortionNN.npy instead.")
    ] = None,
    images: Annotated[
        list[str] | None,
        typer.Option(
            "--images",
            metavar="PATH",
            help="Predict any images instead, into a table of labels: a file, folder, .zip, glob, CSV or text of "
            "paths, or .npy. Repeatable. The run's data are not needed.",
        ),
    ] = None,
    severities: Annotated[int, typer.Option(min=1, help="With --suite: severities in each file.")] = 5,
    decide: Annotated[
        Literal["auto", "argmax", "thresholds", "cut_points", "temperature", "prior"] | None,
        typer.Option(help="How outputs become answers. Default: the run's predict.decide, as fitted then."),
    ] = None,
    device: Device = None,
    output: Output = None,
    force: Force = False,
    allow_plugins: AllowPlugins = False,
    as_json: AsJson = False,
) -> None:
    """Predict with trained runs and write a submission for each.

    Predicts the competition's suite, or a split, another suite, or any images.

    Example: comp predict runs/quickstart/20260101-120000-quickstart --views flip
    """
    from comp.cli import console
    from comp.inference import tables
    from comp.inference.inputs import PredictInput
    from comp.workflows.predict import scores_of

    source = PredictInput(split, suite, images or None)
    runs, submits = open_runs(words, allow_plugins=allow_plugins), split in (None, "suite")
    _check_output(runs, output, submits=submits, is_table=bool(images), force=force)
    overrides = {"views": views, "views_for": views_for, "adapt": adapt, "adapt_per": adapt_per, "alpha": alpha}
    overrides |= {"prior": prior, "pool": pool}
    written: dict[str, Any] = {}
    for run in runs:
        if images:
            table = output or tables.next_free_path(run.config().competition.name)
            tables.check_writable(table, force=force)
        with console.bars() as progress:
            loaded, predicted = _predict_one(run, source, overrides, decide or "", device or "", severities, progress)
            if loaded and loaded.note and not as_json:
                console.print_note(loaded.note)
            if images:
                written[str(run.path)] = _write_table(output, predicted, as_json, force=force)
                continue
            assert loaded is not None  # an ensemble predicts images alone, into a table
            estimate: AccuracyEstimate | None = None
            result: SplitScores | str | None
            if submits:
                estimate, result = _write_submission(loaded, predicted, output, force, progress)
            else:
                result = scores_of(predicted.predictions, loaded.competition.metric)
        written[str(run.path)] = result if isinstance(result, str) else result.model_dump() if result else {}
        if not as_json:
            console.print_prediction(run, predicted.predictions, result, estimate)
    if as_json:
        console.print_json(written)
    elif submits and not images:
        console.print_next("check", written[str(runs[-1].path)])
    else:
        console.print_next("report", runs[-1].path)


def _check_output(runs: "list[Run]", output: Path | None, *, submits: bool, is_table: bool, force: bool) -> None:
    """Check, before anything is predicted, that each submission can be written.

    Raises:
        SubmissionError: it cannot, or one name is given for several files or for none.
    """
    from comp.runtime.errors import SubmissionError
    from comp.submission import write

    if output and (len(runs) > 1 or not submits):
        raise SubmissionError(
            "-o names one file, but there are several runs, or a split that is not submitted; leave -o out"
        )
    for run in runs if submits and not is_table else ():
        path = output or write.free_path(write.FOLDER, run.config().competition.name)
        write.check_output_path(path, force=force or output is None)


def _predict_one(
    run: "Run",
    source: "PredictInput",
    overrides: dict[str, Any],
    decide: str,
    device: str,
    severities: int,
    progress: "Progress",
) -> "tuple[LoadedRun | None, PredictResult]":
    """Return a run, ready to predict, and its predictions; of new images an ensemble's too, which loads its members."""
    from comp.ensembles import new_images
    from comp.workflows.load import load_for_input
    from comp.workflows.predict import options_for, predict_input, with_decision

    if source.images is not None and new_images.is_ensemble(run):
        return None, new_images.predict_with_members(
            run, source.images, overrides, decide=decide, device=device, progress=progress
        )
    if new_images.is_ensemble(run) and run.is_complete():
        new_images.refuse_own_images(run)
    loaded = with_decision(load_for_input(run, source, progress, device=device), decide, progress)
    options = options_for(loaded, overrides)
    return loaded, predict_input(loaded, source, progress, options=options, severities=severities)


def _write_submission(
    loaded: "LoadedRun", predicted: "PredictResult", output: Path | None, force: bool, progress: "Progress"
) -> "tuple[AccuracyEstimate | None, str]":
    """Write the submission of a suite; return its estimated accuracy and the CSV's path."""
    from comp.submission.write import write_run_submission
    from comp.workflows.predict import estimate_accuracy

    rows, counts = predicted.predictions, loaded.answer_counts
    estimate = estimate_accuracy(loaded, rows, predicted.name, progress)
    path = write_run_submission(loaded.run, rows, predicted.competition, output, training_counts=counts, force=force)
    return estimate, str(path)


def _write_table(output: Path | None, predicted: "PredictResult", as_json: bool, *, force: bool) -> dict[str, Any]:
    """Write and print the table of predicted images; return its paths and rows."""
    from comp.cli import console
    from comp.inference import tables

    rows_of, name = predicted.predictions, predicted.competition.name
    path = tables.write_csv(output, rows_of, competition=name, force=force)
    header, rows = predicted.predictions.table()
    if not as_json:
        for note in predicted.notes:
            console.print_note(note)
        console.print_answers(header, rows, path, numeric=predicted.predictions.row.numeric)
    return {
        "csv": str(path),
        "predictions": str(path.with_suffix(".npz")),
        "notes": list(predicted.notes),
        "rows": [dict(zip(header, row, strict=True)) for row in rows],
    }


def evaluate(
    words: RunWords,
    views: Views = None,
    views_for: ViewsFor = None,
    adapt: Adapt = None,
    adapt_per: AdaptPer = None,
    alpha: Alpha = None,
    prior: Prior = None,
    baseline: Annotated[
        Path | None,
        typer.Option("--baseline", metavar="RUN", help="Compute the mean corruption error relative to this run."),
    ] = None,
    fixes: Annotated[
        Path | None,
        typer.Option(
            "--fixes",
            metavar="CSV",
            help="Also score validation with this fix list's labels. Default: the run's data.fixes.",
            callback=expand_path,
        ),
    ] = None,
    device: Device = None,
    allow_plugins: AllowPlugins = False,
    as_json: AsJson = False,
) -> None:
    """Score a run on the test and diagnose its predictions.

    Ensembles and probes have no weights: their stored predictions are diagnosed.

    Example: comp evaluate runs/quickstart/20260101-120000-quickstart
    """
    from comp.cli import console
    from comp.data.fixes import read_fixes
    from comp.results import diagnostics
    from comp.results import runs as run_folders
    from comp.workflows.evaluate import evaluate

    run = open_one_run(words, allow_plugins=allow_plugins)
    reference = run_folders.open_run(baseline) if baseline else None
    overrides = {"views": views, "views_for": views_for, "adapt": adapt, "adapt_per": adapt_per, "alpha": alpha}
    overrides["prior"] = prior
    listed = read_fixes(fixes) if fixes else None
    with console.bars() as progress:
        values = evaluate(run, overrides, baseline=reference, fixes=listed, device=device or "", progress=progress)
    if as_json:
        console.print_run_json(run, evaluation=values)
        return
    console.print_summary(run, run.metrics())
    console.print_evaluation(values, grouped=bool(run.metrics().group_answer))
    console.print_written(run.path / diagnostics.FILE)
    console.print_next("report", run.path)


def probe(
    words: RunWords,
    classifier: Annotated[str, typer.Option(help="linear_svm, knn or logistic.")] = "linear_svm",
    k: Annotated[int | None, typer.Option("--k", help="Neighbours of knn. Default: 5.")] = None,
    config: Annotated[
        Path | None, typer.Option("--config", help="Probe this config's data instead.", callback=find_config)
    ] = None,
    name: Name = None,
    runs: RunsRoot = RUNS,
    allow_plugins: AllowPlugins = False,
    as_json: AsJson = False,
) -> None:
    """Fit a simple classifier on a run's features and score it.

    Example: comp probe runs/quickstart/20260101-120000-quickstart --classifier knn
    """
    from comp.cli import console
    from comp.runtime.errors import ConfigError
    from comp.workflows.probe import probe

    if k is not None and classifier != "knn":
        raise ConfigError(f"--k: counts the neighbours of knn, and {classifier} has none; leave it out")
    data_config = load_with_plugins(config, None, allow=allow_plugins) if config else None
    neighbours = 5 if k is None else k
    with console.bars() as progress:
        run = open_one_run(words, allow_plugins=allow_plugins)
        result = probe(
            run,
            name=classifier,
            k=neighbours,
            config=data_config,
            run_name=name or "",
            runs_root=runs,
            progress=progress,
        )
    if as_json:
        console.print_run_json(result)
        return
    console.print_summary(result, result.metrics())
    console.print_next("leaderboard")
