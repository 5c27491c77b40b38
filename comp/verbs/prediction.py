"""`comp predict`, `comp evaluate` and `comp probe`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from comp.verbs.options import (
    RUNS,
    Adapt,
    AdaptPer,
    Alpha,
    AsJson,
    Force,
    Output,
    RunPath,
    RunsRoot,
    Views,
    ViewsFor,
    expanded,
)  # fmt: skip

if TYPE_CHECKING:
    from comp.run_metrics import AccuracyEstimate, SplitScores


def predict(
    paths: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Run folders; one CSV each.", callback=expanded)
    ],
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
    from comp import console, predicting
    from comp import runs as run_folders
    from comp.competition import submission
    from comp.errors import SubmissionError

    if output and (len(paths) > 1 or split != "suite"):
        raise SubmissionError(
            "-o names one file, and several runs, or a split that is not submitted, were given; leave it out"
        )
    if output:
        submission.demand_free(output, force=force)
    given = {"views": views, "views_for": views_for, "adapt": adapt, "adapt_per": adapt_per, "alpha": alpha}
    written: dict[str, Any] = {}
    for found in [run_folders.open_run(path) for path in paths]:
        with console.bars() as progress:
            loaded = predicting.load(found, progress=progress)
            variant = predicting.variant_for(loaded, given)
            result, rows, expected = _predict_one(loaded, split, suite, severities, variant, output, force, progress)
        written[str(found.path)] = result if isinstance(result, str) else result.model_dump() if result else {}
        if not as_json:
            console.print_prediction(found, rows, result, expected)
    if as_json:
        console.print_json(written)


def _predict_one(
    loaded: Any, split: str, suite: Path | None, severities: int, variant: Any, output: Path | None, force: bool,
    progress: Any,
) -> "tuple[str | SplitScores | None, Any, AccuracyEstimate | None]":  # fmt: skip
    """Return the CSV's path, or the scores of what is not submitted; the predictions; and their estimated accuracy."""
    from comp import predicting
    from comp.data import suites

    shape = loaded.dataset.competition.image_shape
    images = suites.folder_suite(suite, severities, shape) if suite else predicting.images_of(loaded, split)
    name = suites.name_of(suite) if suite else split
    rows = predicting.predict_split(loaded, images, name, progress, variant=variant)
    if split != "suite":
        return predicting.score(loaded, rows), rows, None
    expected = predicting.expect(loaded, rows, name, progress)
    path = output or predicting.default_submission(loaded.config)
    blocks = getattr(images, "blocks", ()) if suite else ()
    return str(predicting.submit(loaded, rows, path, force=force, blocks=blocks)), rows, expected


def evaluate(
    path: RunPath,
    views: Views = None,
    views_for: ViewsFor = None,
    adapt: Adapt = None,
    adapt_per: AdaptPer = None,
    alpha: Alpha = None,
    baseline: Annotated[
        Path | None, typer.Option("--baseline", metavar="RUN", help="Tell the mean corruption error relative to it.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Score a run on the clean labelled test split, and diagnose all that it predicted and has labels for.

    Ensembles and probes, which have no weights, are diagnosed from their stored predictions.

    Example: comp evaluate runs/quickstart/20260101-120000-quickstart --views flip
    """
    from comp import console, evaluating
    from comp import runs as run_folders

    found = run_folders.open_run(path)
    other = run_folders.open_run(baseline) if baseline else None
    given = {"views": views, "views_for": views_for, "adapt": adapt, "adapt_per": adapt_per, "alpha": alpha}
    with console.bars() as progress:
        values = evaluating.evaluate(found, given, baseline=other, progress=progress)
    if as_json:
        console.print_json({**found.metrics().to_json(), "evaluation": values})
        return
    console.print_summary(found, found.metrics())
    console.print_evaluation(values)


def probe(
    path: RunPath,
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
    from comp import console, probing
    from comp import runs as run_folders
    from comp.errors import ConfigError

    if k is not None and classifier != "knn":
        raise ConfigError(f"--k: counts the neighbours of knn, and {classifier} has none; leave it out")
    wanted = configs.load(config) if config else None
    with console.bars() as progress:
        found = probing.probe(
            run_folders.open_run(path),
            name=classifier,
            k=5 if k is None else k,
            config=wanted,
            runs_root=runs,
            progress=progress,
        )
    console.print_json(found.metrics().to_json()) if as_json else console.print_summary(found, found.metrics())
