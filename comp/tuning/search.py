"""`comp tune` as a function: from a config with a search space to a config to train."""

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from optuna.trial import TrialState

from comp.config import Config, parse_duration
from comp.data.dataset import Dataset
from comp.runtime.progress import Progress, quiet
from comp.tuning import confirm, create, results, wandb_summary
from comp.tuning.create import CONFIRM, OPENERS, StudyPlan
from comp.tuning.results import StudyProgress, StudyReport
from comp.tuning.storage import answering
from comp.tuning.study import Study
from comp.tuning.workers import work, work_together
from comp.workflows import build, checks, lineage

OnTrial = Callable[[str, StudyProgress], None]


def tune(
    config: Config,
    *,
    name: str = "study",
    runs_root: Path = Path("runs"),
    workers: int = 1,
    pictures: bool = True,
    on_start: Callable[[StudyPlan], None] = lambda plan: None,
    on_trial: OnTrial = lambda part, progress: None,
    progress: Progress = quiet,
) -> StudyReport:
    """Search a config's `tune.space`, confirm the best with new seeds, and write best.yaml; the same call continues.

    Args:
        config: section `tune` describes the search.
        name: of the study, if the config names none.
        runs_root: where run folders are; the study's is `<competition>/<name>` below it.
        workers: trainings at a time, each in its own process if there are several.
        pictures: write study.html at the end.
        on_start: called before the first trial.
        on_trial: called with `search` or `confirm` and the study's progress when a trial has ended.
        progress: called at every step; with several workers twice a second.

    Raises:
        UserError: config, data or storage are wrong, three trials in a row have failed, or none is complete.
        Interrupted: a signal; the same call continues, and resumes interrupted trials from their checkpoints.
    """
    checks.check_config(config, runs_root)
    create.check_study(config)
    dataset = build.open_data(config, progress)
    lineage.check_teachers(config, dataset, progress)
    plan = create.plan(config, name, runs_root)
    datasets = {config.data.fold: dataset}
    timeout = parse_duration(config.tune.timeout) if config.tune.timeout else math.inf
    with contextlib.ExitStack() as opened:
        opened.enter_context(answering(plan.folder))
        search = opened.enter_context(OPENERS[plan.part](plan))
        on_start(plan)
        _run(search, plan, datasets, workers, on_trial, progress, timeout)
        confirmation = None
        if config.tune.confirm.top and search.ranked():
            plan = replace(plan, part=CONFIRM)
            confirmation = opened.enter_context(OPENERS[CONFIRM](plan))
            confirm.enqueue(search, confirmation)
            _run(confirmation, plan, datasets, workers, on_trial, progress, math.inf)
        results.discard_weights(search)
        report = results.report(search, confirmation, pictures=pictures)
        wandb_summary.log_study(search, report, pictures=pictures)
        search.check_any_complete()
        return report


def _run(
    study: Study,
    plan: StudyPlan,
    datasets: dict[int, Dataset],
    workers: int,
    on_trial: OnTrial,
    progress: Progress,
    timeout_seconds: float,
) -> None:
    began, ended = time.time(), len(study.ended())
    study.deadline = began + timeout_seconds
    study.prior_failures = frozenset(row.number for row in study.trials() if row.state == TrialState.FAIL)

    def report_trial(study: Study) -> None:
        on_trial(plan.part, results.progress_of(study, began, ended))

    if study.is_over():
        return
    if workers > 1:
        plan = replace(plan, prior_failures=study.prior_failures, deadline=study.deadline)
        work_together(study, plan, workers, progress, report_trial)
    else:
        work(study, datasets, Path(plan.runs_root), progress, report_trial)
