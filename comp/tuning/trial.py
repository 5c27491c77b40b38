"""One trial: an ordinary training, or one for each fold, watched by the study's pruner at its epochs' ends."""

import gc
import math
import shutil
import signal
import statistics
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from optuna import TrialPruned
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import Trial

from comp.config import Config, seconds_of
from comp.data.dataset import Dataset, open_dataset
from comp.results.runs import Run
from comp.runtime.errors import Interrupted, RunError
from comp.runtime.progress import Progress
from comp.tracking.tracker import Tracker
from comp.training.early_stopping import Stop
from comp.training.loop import Epoch
from comp.tuning import objectives, pruners
from comp.tuning.study import Study, failed
from comp.workflows import train


class TakenOver(BaseException):
    """A trial that another process took for dead, and has ended, while this one was training it."""


@dataclass
class Data:
    """A study's data, opened once in a process: for each fold that its trials train."""

    opened: dict[int, Dataset] = field(default_factory=dict)

    def of(self, config: Config, progress: Progress) -> Dataset:
        """Return a trial's data."""
        if config.data.fold not in self.opened:
            self.opened[config.data.fold] = open_dataset(config, progress)
        return self.opened[config.data.fold]


def run(
    study: Study, trial: Trial, config: Config, data: Data, runs_root: Path, tracker: Tracker, progress: Progress
) -> list[float]:
    """Train a trial's config and return its values.

    Raises:
        TrialPruned: it looked bad.
        Exception: what went wrong (memory, a loss that is not finite, ...); its reason is kept with the trial.
        TakenOver: see there.
        Interrupted: a signal; the trial waits for the next command, and its run can be resumed.
    """
    try:
        try:
            return _train(study, trial, config, data, runs_root, tracker, progress)
        except (TrialPruned, UpdateFinishedTrialError):
            raise
        except Exception as error:
            _free_memory()
            failed(trial, error)
            raise
    except UpdateFinishedTrialError:
        raise TakenOver from None
    except Exception:
        raise
    except BaseException as stop:
        study.put_back(trial)
        if isinstance(stop, KeyboardInterrupt):  # where nobody notes signals, as in notebooks
            raise Interrupted(signal.SIGINT) from None
        raise


def _free_memory() -> None:
    """Let go of a model that did not fit, which would keep the next one out."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _train(
    study: Study, trial: Trial, config: Config, data: Data, runs_root: Path, tracker: Tracker, progress: Progress
) -> list[float]:
    track = config.track.model_copy(update={"group": study.group})
    over_folds = study.config.tune.folds == "all"
    found: list[list[float]] = []
    seconds, epochs = 0.0, 0
    for fold in range(config.data.folds or 1) if over_folds else (config.data.fold,):
        fold_config = config.model_copy(update={"data": config.data.model_copy(update={"fold": fold}), "track": track})
        watch = _Watch(study, trial, config, silent=over_folds)
        trained = _one_run(study, trial, fold_config, data, runs_root, tracker, watch, progress)
        scores = trained.metrics()
        seconds, epochs = seconds + scores.train_seconds, epochs + scores.epochs
        costs = {"seconds": round(seconds, 2), "epochs": epochs, "parameters": scores.parameters}
        for name, value in costs.items():
            trial.set_user_attr(name, value)
        if watch.pruned:
            raise TrialPruned
        found.append(objectives.values_of(study.config, scores))
        if over_folds and _is_pruned_after(fold, study, trial, [values[0] for values in found]):
            raise TrialPruned
    values = [statistics.fmean(column) for column in zip(*found, strict=True)]
    if not all(math.isfinite(value) for value in values):
        raise RunError(f"its values are not finite: {values}")
    return values


def _one_run(
    study: Study, trial: Trial, config: Config, data: Data, runs_root: Path, tracker: Tracker, watch: "_Watch",
    progress: Progress,
) -> Run:  # fmt: skip
    """Train one run, or go on with the one that an earlier worker has begun."""
    dataset = data.of(config, progress)
    key = f"run-{config.data.fold}"
    begun = begun_by(trial.user_attrs.get(key))
    labelled = _labelled(f"{study.kind} {trial.number}", progress)
    if begun is not None:
        watch.catch_up(begun)
        return train.resume(begun, dataset=dataset, on_epoch=watch, progress=labelled, tracker=tracker)

    def note(run: Run, model: Any) -> None:
        trial.set_user_attr(key, str(run.path))

    fold = f"-fold{config.data.fold}" if study.config.tune.folds == "all" else ""
    return train.train(
        config, name=f"{study.kind}-{trial.number:04d}{fold}", runs_root=runs_root, group=study.folder.name,
        dataset=dataset, on_start=note, on_epoch=watch, progress=labelled, tracker=tracker,
    )  # fmt: skip


def begun_by(path: str | None) -> Run | None:
    """Return the run that an earlier worker has begun and this one can go on with; what is left of another goes."""
    if path is None or not Path(path).is_dir():
        return None
    begun = Run(Path(path))
    try:
        with begun.write_lock():
            if all((begun.path / name).is_file() for name in ("config.yaml", "provenance.json", "execution.json")):
                return begun
            shutil.rmtree(begun.path)  # stopped before its first step: nothing in it was trained
    except RunError:
        pass  # written by one that was taken for dead: it keeps its run, and this trial begins another
    return None


def _labelled(label: str, progress: Progress) -> Progress:
    def labelled(what: str, done: int, total: int, unit: str = "images", note: str = "") -> None:
        progress(f"{label}, {what}", done, total, unit, note)

    return labelled


def _is_pruned_after(fold: int, study: Study, trial: Trial, scores: list[float]) -> bool:
    """Report a fold and ask: `wilcoxon` compares folds one by one, the others their mean so far."""
    if study.config.tune.pruner == "none":
        return False
    value = scores[-1] if study.config.tune.pruner == "wilcoxon" else statistics.fmean(scores)
    _report(trial, value, fold + 1)
    return fold + 1 < (study.config.data.folds or 1) and trial.should_prune()


def _report(trial: Trial, value: float, step: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a resumed training tells some epochs twice, and the first time counts
        trial.report(value, step)


class _Watch:
    """An `on_epoch` that reports epochs to the study and ends the training where its pruner says so.

    With a time budget the steps are tenths of it: models of different speed are compared at the same time, by what was
    last known then.
    """

    def __init__(self, study: Study, trial: Trial, config: Config, *, silent: bool) -> None:
        self._study, self._trial = study, trial
        self._silent = silent or study.config.tune.pruner == "none"
        self._budget = seconds_of(config.train.budget) if config.train.budget else 0.0
        self._last = pruners.BUDGET_STEPS if config.train.budget else config.train.epochs
        self._seconds, self._tenths = 0.0, 0
        self._value: float | None = None
        self.pruned = False

    def catch_up(self, run: Run) -> None:
        """Take over what the run's history tells of earlier epochs."""
        self._seconds = sum(float(row["seconds"]) for row in run.history())
        self._tenths = self._tenth()
        self.pruned = run.is_complete() and run.metrics().stopped.startswith("pruned")

    def __call__(self, epoch: Epoch) -> Stop | None:
        if self._silent:
            return None
        of_epoch: Callable[[Epoch], float | None] | None = objectives.chosen(self._study.config)[0].of_epoch
        assert of_epoch is not None, "a pruner that watches this was refused"
        value = of_epoch(epoch)
        self._seconds += epoch.seconds
        if value is None or not math.isfinite(value):
            return None
        for step, known in self._steps(epoch, value):
            _report(self._trial, known, step)
            if step < self._last and self._trial.should_prune():  # what has ended needs no pruning
                self.pruned = True
                return Stop(f"pruned by {self._study.config.tune.pruner} at step {step} of trial {self._trial.number}")
        return None

    def _steps(self, epoch: Epoch, value: float) -> list[tuple[int, float]]:
        """Return the steps that have passed since the last epoch, with what was known at each."""
        if not self._budget:
            return [(epoch.number, value)]
        before, self._tenths = self._tenths, self._tenth()
        earlier, self._value = self._value, value
        missed = [(tenth, earlier) for tenth in range(before + 1, self._tenths) if earlier is not None]
        return [*missed, (self._tenths, value)] if self._tenths > before else []

    def _tenth(self) -> int:
        return (
            min(pruners.BUDGET_STEPS, int(pruners.BUDGET_STEPS * self._seconds / self._budget)) if self._budget else 0
        )
