"""`comp run CONFIG --rehearse`: run every stage on two batches in a scratch folder."""

import contextlib
import signal
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from comp.config import Config
from comp.data.dataset import Dataset
from comp.results import leaderboard, runs
from comp.runtime.errors import Interrupted, plural
from comp.runtime.progress import Progress, quiet
from comp.submission import check_format, derive_format
from comp.submission.write import write_run_submission
from comp.tracking.tracker import UNTRACKED
from comp.training import cost as costs
from comp.training.loop import Epoch
from comp.workflows.build import prepare
from comp.workflows.load import LoadedRun, load_run
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
            classes = plural(len(whole.competition.classes), "class", "classes")
            results.append(f"{plural(len(whole.train), 'training image')}, {classes}")
        short = _shortened(config)
        with stage("train"), contextlib.suppress(Interrupted):
            train(short, runs_root=folder, dataset=dataset, progress=stop_after_first_step, tracker=UNTRACKED)
        (run,) = runs.list_runs(folder)
        with stage("resume") as results:
            resume(run, dataset=dataset, on_epoch=epochs.append, progress=progress, tracker=UNTRACKED)
            if speed := epochs[0].images_per_second:  # 0: the epoch's one step was taken before the interruption
                results.append(_estimate_cost(config, whole, load_run(run, dataset), speed, runs_root or folder))
        with stage("evaluate"):
            loaded = load_run(run, dataset)
            score_test(loaded, progress)
        if dataset.suite is not None:
            path, counts = folder / "submission.csv", loaded.answer_counts
            with stage("predict") as results:
                predicted = predict_split(loaded, "suite", progress)
                write_run_submission(run, predicted, dataset.competition, path, training_counts=counts)
                results.append(f"{plural(len(whole.suite or ()), 'image')} to predict in the real run")
            with stage("check") as results:
                problems = check_format.check_file(path, derive_format.derive_format(dataset.competition).format)
                results.append("; ".join(problems) or "valid")
        with stage("leaderboard") as results:
            results.append(f"{len(leaderboard.read_rows(folder))} row")
    return stages


def _shortened(config: Config) -> Config:
    """Return the config for one epoch with its whole policy; of its few test images, any may be pseudo-labelled."""
    train = config.train.model_copy(update={"epochs": 1, "budget": ""})
    pseudo = config.data.pseudo.model_copy(update={"min_confidence": 1e-9} if config.data.pseudo.run else {})
    data = config.data.model_copy(update={"pseudo": pseudo})
    augment = config.augment.model_copy(update={"delays": {}})
    return config.model_copy(update={"train": train, "data": data, "augment": augment})


def _estimate_cost(config: Config, dataset: Dataset, loaded: LoadedRun, speed: float, runs_root: Path) -> str:
    """Return what the real run takes at a training speed in images per second."""
    cost = costs.estimate(
        config,
        dataset,
        loaded.model,
        loaded.execution,
        folder=next(path for path in (runs_root.absolute(), *runs_root.absolute().parents) if path.exists()),
        step_seconds=min(config.train.batch_size, len(dataset.train)) / speed,
    )
    train = config.train
    if train.budget:
        length = f"{cost.epochs:.3g} epochs fit into {train.budget}"
    else:
        length = f"{train.epochs} epochs, validation and prediction take about {cost.seconds / 3600:.1g} h"
    gpu = f", {cost.gpu_bytes / 1e9:.1f} GB on the GPU" if cost.gpu_bytes else ""
    return (
        f"about {speed:,.0f} images/s: {length}, {cost.host_bytes / 1e9:.1f} GB of memory{gpu}, "
        f"{cost.disk_bytes / 1e9:.1f} GB of disk"
    )
