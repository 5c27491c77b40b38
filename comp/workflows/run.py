"""What `comp run` does after training: test scores, the suite, its submission."""

from pathlib import Path

from comp.data.dataset import Dataset
from comp.results.run_metrics import RunMetrics
from comp.results.runs import Run
from comp.runtime.progress import Progress
from comp.workflows import predict


def finish(run: Run, *, dataset: Dataset, output: Path | None, force: bool, progress: Progress) -> RunMetrics:
    """Do what follows training: test, suite, submission. Return all scores."""
    loaded = predict.load(run, dataset, progress)
    predict.evaluate(loaded, progress)
    if dataset.suite is not None:
        found = predict.predict(loaded, progress)
        predict.estimate_accuracy(loaded, found, "suite", progress)
        predict.submit(loaded, found, output or predict.default_submission(loaded.config), force=force)
    return run.metrics()
