"""Train one trial: an ordinary run, or one for each fold, which the study's pruner may stop after an epoch."""

import gc
import math
import signal
import statistics
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from optuna import TrialPruned
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import Trial

from comp.config import Config, parse_duration
from comp.data.dataset import Dataset, open_dataset
from comp.results import files
from comp.results.runs import Run
from comp.runtime.errors import Interrupted, RunError
from comp.runtime.progress import Progress
from comp.tracking.tracker import Tracker
from comp.training.early_stopping import Stop
from comp.training.loop import Epoch
from comp.tuning import objectives, pruners
from comp.tuning.study import Study, record_failure
from comp.workflows import train


class TrialTakenOver(BaseException):
    """Another process took this worker for dead and ended its trial."""


@dataclass
class TrialRunner:
    """Trains the trials of a study in one process.

    Attributes:
        study: see `comp.tuning.study`.
        runs_root: where run folders are made.
        datasets: fold -> its data, opened when a trial first needs them.
        tracker: receives the events of all trainings.
        progress: called at every step.
    """

    study: Study
    runs_root: Path
    datasets: dict[int, Dataset]
    tracker: Tracker
    progress: Progress

    def run(self, trial: Trial, config: Config) -> list[float]:
        """Train a trial's config and return its values.

        Raises:
            TrialPruned: the pruner stopped it.
            Exception: it failed (memory, a loss that is not finite, ...); the reason is stored with the trial.
            TrialTakenOver: another process has ended the trial.
            Interrupted: a signal; the trial waits for the next command, which resumes its run.
        """
        try:
            try:
                return self._train(trial, config)
            except (TrialPruned, UpdateFinishedTrialError):
                raise
            except Exception as error:
                _free_memory()
                record_failure(trial, error)
                raise
        except UpdateFinishedTrialError:
            raise TrialTakenOver from None
        except Exception:
            raise
        except BaseException as stop:
            self.study.requeue(trial)
            if isinstance(stop, KeyboardInterrupt):  # in notebooks, where comp handles no signals
                raise Interrupted(signal.SIGINT) from None
            raise

    def _train(self, trial: Trial, config: Config) -> list[float]:
        track = config.track.model_copy(update={"group": self.study.group})
        over_folds = self.study.config.tune.folds == "all"
        fold_values: list[list[float]] = []
        seconds, epochs = 0.0, 0
        for fold in range(config.data.folds or 1) if over_folds else (config.data.fold,):
            data = config.data.model_copy(update={"fold": fold})
            watch = _PruningWatch(self.study, trial, config, ignores_epochs=over_folds)
            run = self._one_run(trial, config.model_copy(update={"data": data, "track": track}), watch)
            scores = run.metrics()
            seconds, epochs = seconds + scores.train_seconds, epochs + scores.epochs
            costs = {"seconds": round(seconds, 2), "epochs": epochs, "parameters": scores.parameters}
            for name, value in costs.items():
                trial.set_user_attr(name, value)
            if watch.pruned:
                raise TrialPruned
            fold_values.append(objectives.values_of(self.study.config, scores))
            if over_folds and _is_pruned_after(fold, self.study, trial, [values[0] for values in fold_values]):
                raise TrialPruned
        values = [statistics.fmean(column) for column in zip(*fold_values, strict=True)]
        if not all(math.isfinite(value) for value in values):
            raise RunError(f"objectives {values} are not finite")
        return values

    def _one_run(self, trial: Trial, config: Config, watch: "_PruningWatch") -> Run:
        """Train one run, or resume the run of an earlier worker."""
        fold = config.data.fold
        if fold not in self.datasets:
            self.datasets[fold] = open_dataset(config, self.progress)
        key = f"run-{fold}"
        run = resumable_run(trial.user_attrs.get(key), self.study.folder)
        shared: dict[str, Any] = {
            "dataset": self.datasets[fold],
            "on_epoch": watch,
            "progress": _with_label(f"{self.study.run_prefix} {trial.number}", self.progress),
            "tracker": self.tracker,
        }
        if run is not None:
            watch.catch_up(run)
            return train.resume(run, **shared)
        suffix = f"-fold{fold}" if self.study.config.tune.folds == "all" else ""
        name, group = f"{self.study.run_prefix}-{trial.number:04d}{suffix}", self.study.folder.name
        shared["on_start"] = lambda run, model: trial.set_user_attr(key, str(run.path))
        return train.train(config, name=name, runs_root=self.runs_root, group=group, **shared)


def _free_memory() -> None:
    """Free the memory of a failed training for the next trial."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def resumable_run(path: str | None, folder: Path) -> Run | None:
    """Return the run of an earlier worker if it can be resumed; remove one that stopped before its first step.

    The path comes from a storage that others may write to: only a run in the study's folder counts.
    """
    if not isinstance(path, str) or not files.lies_in(Path(path), folder) or not Path(path).is_dir():
        return None
    run = Run(Path(path))
    try:
        with run.write_lock():
            if all((run.path / name).is_file() for name in ("config.yaml", "provenance.json", "execution.json")):
                return run
            files.remove(run.path, inside=folder, marks=("config.yaml",))
    except RunError:
        pass  # a worker that was taken for dead still writes it, so this trial begins another run
    return None


def _with_label(label: str, progress: Progress) -> Progress:
    def labelled(what: str, done: int, total: int, unit: str = "images", note: str = "") -> None:
        progress(f"{label}, {what}", done, total, unit, note)

    return labelled


def _is_pruned_after(fold: int, study: Study, trial: Trial, scores: list[float]) -> bool:
    """Report a fold to the pruner: `wilcoxon` compares single folds, the others their mean so far."""
    if study.config.tune.pruner == "none":
        return False
    value = scores[-1] if study.config.tune.pruner == "wilcoxon" else statistics.fmean(scores)
    _report(trial, value, fold + 1)
    return fold + 1 < (study.config.data.folds or 1) and trial.should_prune()


def _report(trial: Trial, value: float, step: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a resumed training reports some epochs twice; the first report counts
        trial.report(value, step)


class _PruningWatch:
    """An `on_epoch` that reports epochs to the study and stops the training if its pruner decides so.

    With a time budget, the steps are tenths of it, so that models of different speed are compared at the same time, by
    their last value.
    """

    def __init__(self, study: Study, trial: Trial, config: Config, *, ignores_epochs: bool) -> None:
        self._study, self._trial = study, trial
        self._ignores_epochs = ignores_epochs or study.config.tune.pruner == "none"
        self._budget = parse_duration(config.train.budget) if config.train.budget else 0.0
        self._last = pruners.BUDGET_STEPS if config.train.budget else config.train.epochs
        self._seconds, self._tenths = 0.0, 0
        self._value: float | None = None
        self.pruned = False

    def catch_up(self, run: Run) -> None:
        """Read the time and the state of earlier epochs from the run."""
        self._seconds = sum(float(row["seconds"]) for row in run.history())
        self._tenths = self._tenth()
        self.pruned = run.is_complete() and run.metrics().stopped.startswith("pruned")

    def __call__(self, epoch: Epoch) -> Stop | None:
        if self._ignores_epochs:
            return None
        of_epoch: Callable[[Epoch], float | None] | None = objectives.chosen(self._study.config)[0].of_epoch
        assert of_epoch is not None, "check_study refuses pruners for metrics without epochs"
        value = of_epoch(epoch)
        self._seconds += epoch.seconds
        if value is None or not math.isfinite(value):
            return None
        for step, step_value in self._steps(epoch, value):
            _report(self._trial, step_value, step)
            if step < self._last and self._trial.should_prune():  # a finished training needs no pruning
                self.pruned = True
                return Stop(f"pruned by {self._study.config.tune.pruner} at step {step} of trial {self._trial.number}")
        return None

    def _steps(self, epoch: Epoch, value: float) -> list[tuple[int, float]]:
        """Return the steps since the last epoch, with the last value at each."""
        if not self._budget:
            return [(epoch.number, value)]
        before, self._tenths = self._tenths, self._tenth()
        earlier, self._value = self._value, value
        missed = [(tenth, earlier) for tenth in range(before + 1, self._tenths) if earlier is not None]
        return [*missed, (self._tenths, value)] if self._tenths > before else []

    def _tenth(self) -> int:
        if not self._budget:
            return 0
        return min(pruners.BUDGET_STEPS, int(pruners.BUDGET_STEPS * self._seconds / self._budget))
