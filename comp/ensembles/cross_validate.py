"""`comp cv CONFIG`: train every fold of a config, and combine the folds into one run with out-of-fold scores.

Folds are ordinary runs in one folder, `runs/<competition>/cv-<hash>/`. Repeating the command resumes an interrupted
fold, trains the missing ones, and leaves finished ones as they are.
"""

import contextlib
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import filelock
import numpy as np
from numpy.typing import NDArray

from comp import config as configs
from comp.config import Config
from comp.config.tasks import TASKS
from comp.data.dataset import Dataset
from comp.ensembles import combine
from comp.results import cards, files, metrics, prediction_files, runs, stats
from comp.results.predictions import Predictions
from comp.results.run_metrics import SplitScores
from comp.results.runs import Run
from comp.results.stats import Interval
from comp.runtime.errors import ConfigError, Interrupted, RunError
from comp.runtime.progress import Progress, quiet
from comp.runtime.workers import POLL_SECONDS, Worker, start, stop
from comp.runtime.workers import progress as worker_progress
from comp.submission import write
from comp.workflows import lineage, plugins
from comp.workflows.build import prepare
from comp.workflows.checks import check_output
from comp.workflows.train import resume, train


@dataclass(frozen=True)
class CrossValidation:
    """The folds of a config.

    Attributes:
        folds: a run for each fold, in order.
        result: their ensemble: each validation image is predicted by the network that was not trained on it.
        is_new: whether this call made it; False: it was complete before.
        written: the submission that this call wrote of a complete one; None: it was there.
    """

    folds: tuple[Run, ...]
    result: Run
    is_new: bool = True
    written: Path | None = None

    @property
    def metric(self) -> str:
        """The competition's metric."""
        return self.result.metrics().metric

    def fold_values(self, score: str) -> list[float | None]:
        """Return a score of each fold's validation images; None where these leave it undefined."""
        undefined = self.undefined(score)
        return [None if run in undefined else _validation_of(run).value(score) for run in self.folds]

    def undefined(self, score: str) -> dict[Run, str]:
        """Return the folds whose validation leaves a score undefined, and why."""
        reasons = {
            run: (_validation_of(run).undefined or {}).get(score)
            or (metrics.find_undefined(predictions, score) if predictions else "")  # runs of earlier versions
            for run, predictions in zip(self.folds, self._validation, strict=True)
        }
        return {run: reason for run, reason in reasons.items() if reason}

    @cached_property
    def _validation(self) -> tuple[Predictions | None, ...]:
        """Each fold's predictions of validation; None where they were removed."""
        loaded: list[Predictions | None] = []
        for run in self.folds:
            try:
                loaded.append(prediction_files.load(run.predictions_path("val")))
            except RunError:
                loaded.append(None)
        return tuple(loaded)

    def out_of_fold(self, score: str) -> tuple[float | None, Interval | None]:
        """Return a score of all validation images together, and its interval at 95 %.

        The interval of accuracy counts images (Wilson), that of another score is of the folds' mean (Student), where
        it is defined; None if it cannot be estimated, like a score that is undefined.
        """
        split = _validation_of(self.result)
        value = split.value(score)
        if score == "accuracy" and value is not None:
            return value, stats.wilson(value, split.images)
        interval, metric = stats.mean_interval(_defined(self.fold_values(score))), metrics.metric(score)
        return value, interval and Interval(max(interval.low, metric.low), min(interval.high, metric.high))

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the scores of the folds and of all images together."""
        return cards.rows_card(f"{self.result.path} ({len(self.folds)} folds)", *fold_table(self.to_json()))

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        scores = {}
        for score in dict.fromkeys((self.metric, *TASKS[self.result.metrics().task].reported)):
            values = self.fold_values(score)
            value, interval = self.out_of_fold(score)
            defined = _defined(values)
            scores[score] = {
                "folds": values,
                "mean": float(defined.mean()) if len(defined) else None,
                "standard_deviation": float(defined.std(ddof=1)) if len(defined) > 1 else None,
                "out_of_fold": value,
                "interval": None if interval is None else [interval.low, interval.high],
                "undefined": {
                    str(number): reason
                    for number, run in enumerate(self.folds)
                    if (reason := self.undefined(score).get(run))
                },
            }
        return {
            "folds": [str(run.path) for run in self.folds],
            "run": str(self.result.path),
            "metric": self.metric,
            "scores": scores,
            "decision": None if (decision := self.result.metrics().decision) is None else decision.model_dump(),
            "submission": self.result.metrics().submission,
        }


def fold_table(values: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return headings and rows of `CrossValidation.to_json`: each fold, their mean, and all images together."""

    def shown(value: float | None) -> str:
        return "-" if value is None else f"{value:.4f}"

    scores: dict[str, Any] = values["scores"]
    rows = [
        [f"fold {number}", *(shown(score["folds"][number]) for score in scores.values())]
        for number in range(len(values["folds"]))
    ]
    rows += [
        [key.replace("_", " "), *(shown(score[key]) for score in scores.values())]
        for key in ("mean", "standard_deviation", "out_of_fold")
    ]
    return ["validation", *scores], rows


def _defined(values: Sequence[float | None]) -> NDArray[np.float64]:
    return np.array([value for value in values if value is not None], np.float64)


def _validation_of(run: Run) -> SplitScores:
    split = run.metrics().best_or_final.val
    assert split is not None  # a fold always validates
    return split


def cross_validate(
    config: Config,
    *,
    name: str = "",
    runs_root: Path = Path("runs"),
    workers: int = 1,
    output: Path | None = None,
    force: bool = False,
    progress: Progress = quiet,
    on_data: Callable[[Dataset], None] = lambda dataset: None,
    on_fold: Callable[[int, Run | None], None] = lambda fold, run: None,
    **training: Any,
) -> CrossValidation:
    """Train all folds of a config that are not trained yet, and combine them.

    Args:
        config: with `data.folds`; `data.fold` is replaced.
        name: of new runs' folders, after the time; empty: `fold0` and so on, and `mean-ensemble`.
        runs_root: where run folders are made.
        workers: trainings at a time, each in its own process if there are several.
        output: the submission; None: a free name.
        force: replace an existing submission.
        progress: called at every step; with several workers twice a second.
        on_data: called once with the first fold's data.
        on_fold: called before each fold with its number, and the run that is resumed or complete; None: a new one.
        training: further arguments of `comp.workflows.train.train`, without effect on several workers.

    Raises:
        UserError: no folds, or anything wrong with config, data or disk. With several workers the other folds are
            trained before.
        Interrupted: a signal; the same command continues.
    """
    if config.data.folds is None:
        raise ConfigError("comp cv: expected data.folds, the number of folds; for example: data.folds=5")
    folds = [_with_fold(config, fold) for fold in range(config.data.folds)]
    group = f"cv-{configs.fingerprint(folds[0])[:8]}"
    folder = runs_root / config.competition.name / group
    is_own = any(_wrote(run, output) for run in runs.list_runs(folder))
    if not is_own:
        check_output(folds[0], output, force=force)
    with _locked(folder):
        dataset = prepare(folds[0], runs_root, progress)
        existing, notes = _runs_of(folder, config, dataset)
        on_data(replace(dataset, notes=(*dataset.notes, *notes)))
        previous = [_latest(existing, number) for number in range(len(folds))]
        trained = [run for run in previous if run is not None and run.is_complete()]
        result = _combined(existing, trained) if len(trained) == len(folds) else None
        if is_own and result is None:
            check_output(folds[0], output, force=force)
        shared = {"runs_root": runs_root, "group": group}
        names = [f"{name}-fold{number}" if name else f"fold{number}" for number in range(len(folds))]
        if workers > 1:
            _train_together(folds, previous, names, shared, workers, on_fold, progress)
            existing, _ = _runs_of(folder, config, dataset)
            trained = [run for number in range(len(folds)) if (run := _latest(existing, number)) is not None]
        else:
            trained = []
            for number, (fold, run) in enumerate(zip(folds, previous, strict=True)):
                on_fold(number, run)
                opened = dataset if number == 0 else None
                made = {"name": names[number], "dataset": opened, **shared, **training}
                trained.append(_finish(fold, run, progress, **made))
        is_new, written = result is None, None
        if result is not None:
            written = _submit_again(result, dataset, output, force)
        else:
            _check_weights(trained)
            result = combine.ensemble(
                trained, name=name, runs_root=runs_root, group=group, output=output, force=force, progress=progress
            )
    return CrossValidation(tuple(trained), result, is_new, written)


def _finish(fold: Config, run: Run | None, progress: Progress, **training: Any) -> Run:
    """Train a fold, or resume its run; return the complete run."""
    if run is None:
        return train(fold, progress=progress, **training)
    return resume(run, progress=progress, on_epoch=training.get("on_epoch", lambda epoch: None))


def _finish_alone(values: Mapping[str, Any], run: Run | None, training: Mapping[str, Any]) -> None:
    """Train a fold in a process of its own; a config itself cannot be sent to it."""
    config = configs.from_mapping(values, "the fold's config")
    plugins.load(config)
    _finish(config, run, worker_progress, **training)


def _train_together(
    folds: Sequence[Config],
    previous: Sequence[Run | None],
    names: Sequence[str],
    shared: Mapping[str, Any],
    workers: int,
    on_fold: Callable[[int, Run | None], None],
    progress: Progress,
) -> None:
    """Train the folds that are not complete in several processes.

    Raises:
        RunError: some folds failed, after the others were trained.
        Interrupted: a signal; the workers have written their checkpoints.
    """
    waiting = [number for number, run in enumerate(previous) if run is None or not run.is_complete()]
    for number in sorted(set(range(len(folds))) - set(waiting)):
        on_fold(number, previous[number])
    places = min(workers, len(waiting))
    running: dict[int, tuple[int, Worker]] = {}  # place, with its share of the cores -> fold and process
    failures: dict[str, list[int]] = {}
    try:
        while waiting or running:
            for place in range(places):
                if place not in running and waiting:
                    number = waiting.pop(0)
                    on_fold(number, previous[number])
                    values, made = folds[number].model_dump(mode="json"), {"name": names[number], **shared}
                    running[place] = number, start(place, places, _finish_alone, values, previous[number], made)
            time.sleep(POLL_SECONDS)
            for place, (number, worker) in list(running.items()):
                if worker.exit_code is not None:
                    del running[place]
                    if worker.exit_code:
                        failures.setdefault(worker.error(), []).append(number)
            progress("folds", len(folds) - len(waiting) - len(running), len(folds), "folds")
    finally:
        stop(worker for _, worker in running.values())
    if failures:
        reasons = [f"fold {', '.join(map(str, sorted(failed)))}: {reason}" for reason, failed in failures.items()]
        raise RunError(f"{'; '.join(reasons)}; the other folds are trained: mend it, and repeat the command")


def _runs_of(folder: Path, config: Config, dataset: Dataset) -> tuple[list[Run], tuple[str, ...]]:
    """Return the runs in a folder that were trained on what a new one would be, and a note on each other fold."""
    differing = {run: _find_difference(run, config, dataset) for run in runs.list_runs(folder)}
    notes = (
        f"{run.path}: is left alone, and its fold trained anew: {difference}"
        for run, difference in differing.items()
        if difference and not _is_ensemble(run)
    )
    return [run for run, difference in differing.items() if not difference], tuple(notes)


def _find_difference(run: Run, config: Config, dataset: Dataset) -> str:
    """Return what differs in data, fixes, teachers or first weights from those of a new fold; empty if nothing does."""
    provenance, fixes = run.provenance(), dataset.fixes
    if provenance.get("data_fingerprint") != dataset.fingerprint:
        return "the training images or labels have changed"
    if provenance.get("fixes", {}).get("sha256") != (fixes and fixes.sha256):
        return "the fix list has changed (data.fixes)"
    if _is_ensemble(run):
        return ""
    if not lineage.is_taught_alike(run, config, dataset):
        return "the runs that it learned from have changed (train.teacher, data.pseudo)"
    origin = re.fullmatch(r"(.+) \(sha256 ([0-9a-f]{64})\)", provenance.get("first_weights", ""))
    if origin and Path(origin[1]).is_file() and files.sha256_file(Path(origin[1])) != origin[2]:
        return f"{origin[1]}, which had its first weights, has changed"
    return ""


def _check_weights(folds: Sequence[Run]) -> None:
    """Check that each fold has its best weights.

    Raises:
        RunError: naming the missing file.
    """
    for run in folds:
        path = run.path / "best.safetensors"
        if run.metrics().best.val is not None and not path.is_file():
            raise RunError(f"{path}: is missing; restore it, or remove {run.path} to train this fold again")


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Context manager: only one command at a time trains the folds of a config; a refused one leaves no folder."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    files.make_folder(folder)
    try:
        with filelock.FileLock(folder / ".lock", timeout=0):
            try:
                yield
            except Interrupted as stop:
                stop.folder = str(folder)  # not that of one fold
                raise
            finally:
                if os.listdir(folder) == [".lock"]:
                    with contextlib.suppress(OSError):  # others have runs there
                        files.remove(folder, inside=folder.parent)
                        for path in made[1:]:
                            path.rmdir()
    except filelock.Timeout:
        raise RunError(f"{folder}: another comp cv trains these folds; wait for it, or stop it") from None


def _with_fold(config: Config, fold: int) -> Config:
    return config.model_copy(update={"data": config.data.model_copy(update={"fold": fold})})


def _latest(existing: Sequence[Run], fold: int) -> Run | None:
    """Return the last run of a fold, a complete one if there is one."""
    of_fold = [run for run in existing if not _is_ensemble(run) and run.config().data.fold == fold]
    of_fold = [run for run in of_fold if (run.path / "split.npz").is_file()]  # else killed before it had begun
    complete = [run for run in of_fold if run.is_complete()]
    return next(reversed(complete or of_fold), None)


def _is_ensemble(run: Run) -> bool:
    return "members" in run.provenance()


def _combined(existing: Sequence[Run], folds: Sequence[Run]) -> Run | None:
    """Return the stored ensemble of these folds, if it is whole."""
    names = [run.name for run in folds]
    for run in existing:
        if run.is_complete() and [*run.members()] == names:
            submits = run.config().competition.suite.source != "none"
            if not submits or (run.path / "predictions" / "suite.npz").is_file():
                return run
    return None


def _submit_again(result: Run, dataset: Dataset, output: Path | None, force: bool) -> Path | None:
    """Write the submission of a complete ensemble where it is missing; return the file, None if it is there.

    Raises:
        SubmissionError: another file has the name.
    """
    config = result.config()
    if config.competition.suite.source == "none" or write.has_submission(result, output):
        return None
    path = output or write.lost_submission(result)
    if path is None or not write.is_leftover(result, path):
        check_output(config, path, force=force)
    return combine.submit(result, dataset, path, force=force)


def _wrote(run: Run, output: Path | None) -> bool:
    """Return whether a file is, or was, the submission of a complete run."""
    if output is None or not run.is_complete():
        return False
    return write.is_submission_of(run, output) or write.is_leftover(run, output)
