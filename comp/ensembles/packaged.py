"""Predict the hidden test of a code competition from the folder that `comp export --kaggle` has packed."""

import time
from pathlib import Path
from typing import NamedTuple

from comp.ensembles import align, new_images
from comp.inference.inputs import ImageInput
from comp.results.runs import open_run
from comp.runtime.progress import Progress, quiet
from comp.workflows import hidden_test
from comp.workflows.hidden_test import Manifest
from comp.workflows.load import LoadedRun, load_without_data
from comp.workflows.predict import predict_images


class PackagePrediction(NamedTuple):
    """A written submission: its CSV, its rows, seconds for reading, predicting and writing, and what was assumed."""

    path: Path
    rows: int
    seconds: float
    notes: tuple[str, ...]


def predict_package(
    dataset: Path | str,
    data: Path | str,
    *,
    output: Path | str = "submission.csv",
    device: str = "",
    allow_plugins: bool = False,
    progress: Progress = quiet,
) -> PackagePrediction:
    """Predict the test in a competition's folder with a packed run or ensemble, and write the submission.

    The rows are those of the folder's sample submission, or of its images where the sample is stale.

    Args:
        dataset: the folder `dataset` that `comp export --kaggle` has packed.
        data: the competition's folder; only its test and its sample submission are read.
        output: the CSV; an existing one is replaced.
        device: `cpu`, `cuda` or `mps`; empty: the training's, or the best of this machine if it lacks that.
        allow_plugins: run the Python code of the plug-ins that are packed.
        progress: called after every batch.

    Raises:
        UserError: a damaged package, or no test images in the shape of the run's.
    """
    started, folder, path = time.monotonic(), Path(dataset), Path(output)
    manifest = Manifest.read(folder)
    run = open_run(folder / manifest.run, allow_plugins=allow_plugins)

    def open_test(loaded: LoadedRun, progress: Progress) -> ImageInput:
        return hidden_test.open_hidden_test(loaded, Path(data), manifest, progress)

    if new_images.is_ensemble(run):
        result = new_images.predict_with_members(run, open_test, device=device, progress=progress)
        predictions, notes = result.predictions, result.notes
        if classes := manifest.form.classes:
            predictions = align.reorder_classes(predictions, classes, f"{run.path}: its members have other classes")
    else:
        loaded = load_without_data(run, device=device)
        opened = open_test(loaded, progress)
        predictions, notes = predict_images(loaded, opened.split, progress), opened.notes
    hidden_test.write_rows(path, predictions, manifest)
    return PackagePrediction(path, len(predictions), time.monotonic() - started, notes)
