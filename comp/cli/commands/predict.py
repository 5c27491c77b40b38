"""`comp predict`, `comp evaluate` and `comp probe`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from comp.cli.commands.options import (  # fmt: skip
    RUNS,
    Adapt,
    AdaptPer,
    Alpha,
    AsJson,
    Device,
    Force,
    Output,
    RunsRoot,
    RunWords,
    Views,
    ViewsFor,
    opened_run,
    opened_runs,
)

if TYPE_CHECKING:
    from comp.results.run_metrics import SplitScores
    from comp.workflows.predict import Predicted


def predict(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN... [KEY=VALUE]",
            help="Run folders, one CSV each; then where their data lie now: data.root=DIR.",
        ),
    ],
    views: Views = None,
    views_for: ViewsFor = None,
    adapt: Adapt = None,
    adapt_per: AdaptPer = None,
    alpha: Alpha = None,
    split: Annotated[
        str | None,
        typer.Option("--split", help="Of the run's data: suite (the default), or val, ood_val or test, scored only."),
    ] = None,
    suite: Annotated[
        Path | None, typer.Option("--suite", metavar="DIR", help="Instead: any folder of distortionNN.npy.")
    ] = None,
    images: Annotated[
        list[str] | None,
        typer.Option(
            "--images",
            metavar="PATH",
            help="Instead: any images, as a table of labels. A file, a folder, a .zip, a glob, a CSV or text of paths, "
            "or a .npy; repeatable. The run's data need not be there.",
        ),
    ] = None,
    severities: Annotated[int, typer.Option(min=1, help="With --suite: severities stacked in each file.")] = 5,
    device: Device = None,
    output: Output = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Predict the suite with trained runs and write a submission for each; or a split, another suite, or any images.

    Example: comp predict runs/quickstart/20260101-120000-quickstart --views flip --adapt bn
    """
    from comp.cli import console
    from comp.inference import tables
    from comp.inference.inputs import PredictInput
    from comp.runtime.errors import SubmissionError
    from comp.submission import write
    from comp.workflows import predict as predicting

    wanted = PredictInput(split, suite, images or None)
    opened = opened_runs(words)
    if output and (len(opened) > 1 or split not in (None, "suite")):
        raise SubmissionError(
            "-o names one file, and several runs, or a split that is not submitted, were given; leave it out"
        )
    if output and not images:
        write.demand_free(output, force=force)
    given = {"views": views, "views_for": views_for, "adapt": adapt, "adapt_per": adapt_per, "alpha": alpha}
    written: dict[str, Any] = {}
    for run in opened:
        path = output
        if images:
            path = path or tables.next_free_path(run.config().competition.name)
            tables.check_writable(path, force=force)
        with console.bars() as progress:
            loaded = predicting.load_for(run, wanted, progress, device=device or "")
            if loaded.note and not as_json:
                console.print_note(loaded.note)
            variant = predicting.variant_for(loaded, given)
            predicted = predicting.predict_input(loaded, wanted, progress, variant=variant, severities=severities)
            if images:
                assert path is not None
                written[str(run.path)] = _written(path, predicted, as_json)
                continue
            result: str | SplitScores | None = predicting.score(loaded, predicted.found)
            expected = None
            if split in (None, "suite"):
                expected = predicting.estimate_accuracy(loaded, predicted.found, predicted.name, progress)
                path = path or predicting.default_submission(loaded.config)
                result = str(predicting.submit(loaded, predicted.found, path, force=force, blocks=predicted.blocks))
        written[str(run.path)] = result if isinstance(result, str) else result.model_dump() if result else {}
        if not as_json:
            console.print_prediction(run, predicted.found, result, expected)
    if as_json:
        console.print_json(written)


def _written(path: Path, predicted: "Predicted", as_json: bool) -> dict[str, Any]:
    """Write and print the table of predicted images; return where it lies and what it holds."""
    from comp.cli import console
    from comp.inference import tables

    tables.write_csv(path, predicted.found)
    header, rows = tables.build_table(predicted.found)
    if not as_json:
        for note in predicted.notes:
            console.print_note(note)
        console.print_answers(header, rows, path)
    return {
        "csv": str(path), "predictions": str(path.with_suffix(".npz")), "notes": list(predicted.notes),
        "rows": [dict(zip(header, row, strict=True)) for row in rows],
    }  # fmt: skip


def evaluate(
    words: RunWords,
    views: Views = None,
    views_for: ViewsFor = None,
    adapt: Adapt = None,
    adapt_per: AdaptPer = None,
    alpha: Alpha = None,
    baseline: Annotated[
        Path | None, typer.Option("--baseline", metavar="RUN", help="Tell the mean corruption error relative to it.")
    ] = None,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Score a run on the clean labelled test split, and diagnose all that it predicted and has labels for.

    Ensembles and probes, which have no weights, are diagnosed from their stored predictions.

    Example: comp evaluate runs/quickstart/20260101-120000-quickstart --views flip
    """
    from comp.cli import console
    from comp.results import runs as run_folders
    from comp.workflows import evaluate as evaluating

    found = opened_run(words)
    other = run_folders.open_run(baseline) if baseline else None
    given = {"views": views, "views_for": views_for, "adapt": adapt, "adapt_per": adapt_per, "alpha": alpha}
    with console.bars() as progress:
        values = evaluating.evaluate(found, given, baseline=other, device=device or "", progress=progress)
    if as_json:
        console.print_json({**found.metrics().to_json(), "evaluation": values})
        return
    console.print_summary(found, found.metrics())
    console.print_evaluation(values)


def probe(
    words: RunWords,
    classifier: Annotated[str, typer.Option(help="linear_svm, knn or logistic.")] = "linear_svm",
    k: Annotated[int | None, typer.Option("--k", help="Neighbours, for knn; 5 by default.")] = None,
    config: Annotated[Path | None, typer.Option("--config", help="Probe these data instead of the run's own.")] = None,
    runs: RunsRoot = RUNS,
    as_json: AsJson = False,
) -> None:
    """Fit a simple classifier on a trained run's features and score it.

    Example: comp probe runs/quickstart/20260101-120000-quickstart --classifier knn --k 5
    """
    from comp import config as configs
    from comp.cli import console
    from comp.runtime.errors import ConfigError
    from comp.workflows import probe as probing

    if k is not None and classifier != "knn":
        raise ConfigError(f"--k: counts the neighbours of knn, and {classifier} has none; leave it out")
    wanted = configs.load(config) if config else None
    with console.bars() as progress:
        found = probing.probe(
            opened_run(words), name=classifier, k=5 if k is None else k, config=wanted, runs_root=runs,
            progress=progress,
        )  # fmt: skip
    console.print_json(found.metrics().to_json()) if as_json else console.print_summary(found, found.metrics())
