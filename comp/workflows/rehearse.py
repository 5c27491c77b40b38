"""`comp run CONFIG --rehearse`: every stage on two batches in a scratch folder, before a long night."""

import contextlib
import signal
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from comp.config import Config, TrainConfig, seconds_of
from comp.results import leaderboard, runs
from comp.runtime.errors import Interrupted
from comp.runtime.progress import Progress, quiet
from comp.submission import check_format, derive_format
from comp.tracking.tracker import UNTRACKED
from comp.training.loop import Epoch
from comp.workflows import build, predict
from comp.workflows import train as pipeline

_BATCHES = 2
_OTHER_IMAGES = 16  # of each validation, test and suite block


@dataclass(frozen=True)
class Stage:
    """A rehearsed stage, its seconds and what it found."""

    name: str
    seconds: float
    found: str


def rehearse(config: Config, progress: Progress = quiet, *, runs_root: Path | None = None) -> list[Stage]:
    """Go through every stage that `comp run` has, and the resume that a night may need.

    The training is really interrupted after its first step and resumed by the code that a real one would meet. Data
    come from where the config says; all that is written lands in a scratch folder and is removed.

    Args:
        config: what the real run would train.
        progress: called at every step.
        runs_root: where that would land: whether there is room is looked at, and nothing is written; None: not known.

    Raises:
        UserError: whatever would have stopped the real run.
    """
    stages: list[Stage] = []
    epochs: list[Epoch] = []

    @contextlib.contextmanager
    def stage(name: str) -> Iterator[list[str]]:
        began, found = time.perf_counter(), list[str]()
        yield found
        stages.append(Stage(name, time.perf_counter() - began, ", ".join(found)))

    def stop_after_first_step(what: str, done: int, total: int, unit: str = "images", note: str = "") -> None:
        progress(what, done, total, unit)
        if unit == "steps":
            raise Interrupted(signal.SIGTERM)

    with tempfile.TemporaryDirectory(prefix="comp-rehearsal-") as scratch:
        folder = Path(scratch)
        with stage("data") as found:
            whole = build.prepare(config, runs_root or folder, progress)
            dataset = whole.limited(_BATCHES * config.train.batch_size, _OTHER_IMAGES)
            found.append(f"{len(whole.train):,} training images, {len(whole.competition.classes)} classes")
        short = config.model_copy(update={"train": config.train.model_copy(update={"epochs": 1, "budget": ""})})
        with stage("train") as found, contextlib.suppress(Interrupted):
            pipeline.train(
                short, name="rehearsal", runs_root=folder, dataset=dataset, progress=stop_after_first_step,
                tracker=UNTRACKED,
            )  # fmt: skip
        (run,) = runs.list_runs(folder)
        with stage("resume") as found:
            pipeline.resume(run, dataset=dataset, on_epoch=epochs.append, progress=progress, tracker=UNTRACKED)
            if speed := epochs[0].images_per_second:  # 0: the epoch was one step, and the interruption had taken it
                found.append(_outlook(config.train, len(whole.train), speed))
        with stage("evaluate"):
            loaded = predict.load(run, dataset)
            predict.evaluate(loaded, progress)
        if dataset.suite is not None:
            path = folder / "submission.csv"
            with stage("predict") as found:
                predict.submit(loaded, predict.predict(loaded, progress), path)
                found.append(f"{len(whole.suite or ()):,} images to predict in the real run")
            with stage("check") as found:
                problems = check_format.format_problems(path, derive_format.format_of(dataset.competition))
                found.append("; ".join(problems) or "valid")
        with stage("leaderboard") as found:
            found.append(f"{len(leaderboard.read_rows(folder))} row")
    return stages


def _outlook(train: TrainConfig, images: int, speed: float) -> str:
    """Return what a speed in images per second means for the real training."""
    if train.budget:
        epochs = seconds_of(train.budget) * speed / images
        return f"about {speed:,.0f} images/s: {epochs:.3g} epochs fit into {train.budget}"
    hours = train.epochs * images / speed / 3600
    return f"about {speed:,.0f} images/s: {train.epochs} epochs take about {hours:.1g} h"
