"""`comp run CONFIG --rehearse`: run every stage on two batches in a scratch folder."""

import contextlib
import signal
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from comp.config import Config, TrainConfig, parse_duration
from comp.results import leaderboard, runs
from comp.runtime.errors import Interrupted
from comp.runtime.progress import Progress, quiet
from comp.submission import check_format, derive_format
from comp.submission.write import write_run_submission
from comp.tracking.tracker import UNTRACKED
from comp.training.loop import Epoch
from comp.workflows.build import prepare
from comp.workflows.load import load_run
from comp.workflows.predict import predict_split, score_test
from comp.workflows.train import resume, train

_BATCHES = 2
_OTHER_IMAGES = 16  # of each validation, test and suite block


@dataclass(frozen=True)
class Stage:
    """A rehearsed stage, its seconds and its result."""

    name: str
    seconds: float
    found: str


def rehearse(config: Config, progress: Progress = quiet, *, runs_root: Path | None = None) -> list[Stage]:
    """Run every stage of `comp run`, including a resume.

    The training is interrupted after its first step and resumed, by the code of a real run. Data come from where the
    config says; everything is written to a scratch folder and removed.

    Args:
        config: of the real run.
        progress: called at every step.
        runs_root: of the real run: its disk space is checked, and nothing is written there; None: unknown.

    Raises:
        UserError: anything that would stop the real run.
    """
    stages: list[Stage] = []
    epochs: list[Epoch] = []

    @contextlib.contextmanager
    def stage(name: str) -> Iterator[list[str]]:
        began, results = time.perf_counter(), list[str]()
        yield results
        stages.append(Stage(name, time.perf_counter() - began, ", ".join(results)))

    def stop_after_first_step(what: str, done: int, total: int, unit: str = "images", note: str = "") -> None:
        progress(what, done, total, unit)
        if unit == "steps":
            raise Interrupted(signal.SIGTERM)

    with tempfile.TemporaryDirectory(prefix="comp-rehearsal-") as scratch:
        folder = Path(scratch)
        with stage("data") as results:
            whole = prepare(config, runs_root or folder, progress)
            dataset = whole.limited(_BATCHES * config.train.batch_size, _OTHER_IMAGES)
            results.append(f"{len(whole.train):,} training images, {len(whole.competition.classes)} classes")
        short = config.model_copy(update={"train": config.train.model_copy(update={"epochs": 1, "budget": ""})})
        with stage("train"), contextlib.suppress(Interrupted):
            train(short, runs_root=folder, dataset=dataset, progress=stop_after_first_step, tracker=UNTRACKED)
        (run,) = runs.list_runs(folder)
        with stage("resume") as results:
            resume(run, dataset=dataset, on_epoch=epochs.append, progress=progress, tracker=UNTRACKED)
            if speed := epochs[0].images_per_second:  # 0: the epoch's one step was taken before the interruption
                results.append(_estimate_training_time(config.train, len(whole.train), speed))
        with stage("evaluate"):
            loaded = load_run(run, dataset)
            score_test(loaded, progress)
        if dataset.suite is not None:
            path, counts = folder / "submission.csv", loaded.training_counts
            with stage("predict") as results:
                predicted = predict_split(loaded, "suite", progress)
                write_run_submission(run, predicted, dataset.competition, path, training_counts=counts)
                results.append(f"{len(whole.suite or ()):,} images to predict in the real run")
            with stage("check") as results:
                problems = check_format.check_file(path, derive_format.derive_format(dataset.competition).format)
                results.append("; ".join(problems) or "valid")
        with stage("leaderboard") as results:
            results.append(f"{len(leaderboard.read_rows(folder))} row")
    return stages


def _estimate_training_time(train: TrainConfig, images: int, speed: float) -> str:
    """Return the real training's epochs or hours at a speed in images per second."""
    if train.budget:
        epochs = parse_duration(train.budget) * speed / images
        return f"about {speed:,.0f} images/s: {epochs:.3g} epochs fit into {train.budget}"
    hours = train.epochs * images / speed / 3600
    return f"about {speed:,.0f} images/s: {train.epochs} epochs take about {hours:.1g} h"
