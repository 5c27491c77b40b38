"""`comp cv CONFIG`: train every fold of a config, and combine the folds into one run with out-of-fold scores.

Folds are ordinary runs in one folder, `runs/<competition>/cv-<hash>/`. Repeating the command resumes an interrupted
fold, trains the missing ones, and leaves finished ones as they are.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
import numpy as np

from comp import config as configs
from comp.config import Config
from comp.config.tasks import TASKS
from comp.data.dataset import Dataset
from comp.ensembles import combine
from comp.results import files, runs, stats
from comp.results.run_metrics import RunMetrics
from comp.results.runs import Run
from comp.results.stats import Interval
from comp.runtime.errors import ConfigError, RunError
from comp.runtime.progress import Progress, quiet
from comp.submission import write
from comp.workflows.build import prepare
from comp.workflows.checks import check_output
from comp.workflows.train import resume, train


@dataclass(frozen=True)
class CrossValidation:
    """The folds of a config.

    Attributes:
        folds: a run for each fold, in order.
        result: their ensemble: each validation image is predicted by the network that was not trained on it.
    """

    folds: tuple[Run, ...]
    result: Run

    @property
    def metric(self) -> str:
        """The competition's metric."""
        return self.result.metrics().metric

    def fold_values(self, score: str) -> list[float]:
        """Return a score of each fold's validation images."""
        return [_value(run.metrics(), score) for run in self.folds]

    def out_of_fold(self, score: str) -> tuple[float, Interval | None]:
        """Return a score of all validation images together, and its interval at 95 %.

        The interval of accuracy counts images (Wilson), that of another score is of the folds' mean.
        """
        metrics = self.result.metrics()
        value = _value(metrics, score)
        split = metrics.best_or_final.val
        assert split is not None
        if score == "accuracy":
            return value, stats.wilson(value, split.images)
        return value, stats.mean_interval(np.array(self.fold_values(score)))

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        scores = {}
        for score in dict.fromkeys((self.metric, *TASKS[self.result.metrics().task].reported)):
            values = self.fold_values(score)
            value, interval = self.out_of_fold(score)
            scores[score] = {
                "folds": values,
                "mean": float(np.mean(values)),
                "standard_deviation": float(np.std(values, ddof=1)),
                "out_of_fold": value,
                "interval": None if interval is None else [interval.low, interval.high],
            }
        return {
            "folds": [str(run.path) for run in self.folds],
            "run": str(self.result.path),
            "metric": self.metric,
            "scores": scores,
            "decision": None if (decision := self.result.metrics().decision) is None else decision.model_dump(),
            "submission": self.result.metrics().submission,
        }


def _value(metrics: RunMetrics, score: str) -> float:
    split = metrics.best_or_final.val
    assert split is not None  # a fold always validates
    value = split.value(score)
    assert value is not None
    return value


def cross_validate(
    config: Config,
    *,
    runs_root: Path = Path("runs"),
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
        runs_root: where run folders are made.
        output: the submission; None: a free name.
        force: replace an existing submission.
        progress: called at every step.
        on_data: called once with the first fold's data.
        on_fold: called before each fold with its number, and the run that is resumed or complete; None: a new one.
        training: further arguments of `comp.workflows.train.train`.

    Raises:
        UserError: no folds, or anything wrong with config, data or disk.
        Interrupted: a signal; the same command continues.
    """
    if config.data.folds is None:
        raise ConfigError("comp cv: expected data.folds, the number of folds; for example: data.folds=5")
    folds = [_with_fold(config, fold) for fold in range(config.data.folds)]
    check_output(folds[0], output, force=force)
    group = f"cv-{configs.fingerprint(folds[0])[:8]}"
    folder = runs_root / config.competition.name / group
    with _locked(folder):
        dataset = prepare(folds[0], runs_root, progress)
        on_data(dataset)
        existing = [run for run in runs.list_runs(folder) if _has_same_data(run, dataset)]
        trained = []
        for number, fold in enumerate(folds):
            run = _latest(existing, number)
            on_fold(number, run)
            if run is None:
                opened = dataset if number == 0 else None
                run = train(
                    fold,
                    name=f"fold{number}",
                    runs_root=runs_root,
                    group=group,
                    dataset=opened,
                    progress=progress,
                    **training,
                )
            elif not run.is_complete():
                run = resume(run, progress=progress, on_epoch=training.get("on_epoch", lambda epoch: None))
            trained.append(run)
        result = _combined(existing, trained, output)
        if result is None:
            result = combine.ensemble(
                trained, runs_root=runs_root, group=group, output=output, force=force, progress=progress
            )
    return CrossValidation(tuple(trained), result)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Context manager: only one command at a time trains the folds of a config."""
    files.make_folder(folder)
    try:
        with filelock.FileLock(folder / ".lock", timeout=0):
            yield
    except filelock.Timeout:
        raise RunError(f"{folder}: another comp cv trains these folds; wait for it, or stop it") from None


def _has_same_data(run: Run, dataset: Dataset) -> bool:
    provenance, fixes = run.provenance(), dataset.fixes
    same_fixes = provenance.get("fixes", {}).get("sha256") == (fixes and fixes.sha256)
    return same_fixes and provenance.get("data_fingerprint") == dataset.fingerprint


def _with_fold(config: Config, fold: int) -> Config:
    return config.model_copy(update={"data": config.data.model_copy(update={"fold": fold})})


def _latest(existing: Sequence[Run], fold: int) -> Run | None:
    """Return the last run of a fold, a complete one if there is one."""
    of_fold = [run for run in existing if not _is_ensemble(run) and run.config().data.fold == fold]
    complete = [run for run in of_fold if run.is_complete()]
    return next(reversed(complete or of_fold), None)


def _is_ensemble(run: Run) -> bool:
    return "members" in run.provenance()


def _combined(existing: Sequence[Run], folds: Sequence[Run], output: Path | None) -> Run | None:
    """Return the stored ensemble of these folds if it is whole and no other place is named for its submission."""
    names = [run.name for run in folds]
    for run in existing:
        if output is None and run.is_complete() and run.provenance().get("members") == names:
            submits = run.config().competition.suite.source != "none"
            if not submits or write.has_intact_submission(run):
                return run
    return None
