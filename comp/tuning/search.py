"""`comp tune` as a function: a study from its config to a config that can be trained."""

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from optuna.trial import TrialState

from comp.config import Config, parse_duration
from comp.runtime.progress import Progress, quiet
from comp.tuning import confirm, create, keeping, results, wandb_summary
from comp.tuning.create import CONFIRM, OPENERS, StudyPlan
from comp.tuning.results import Report, Standing
from comp.tuning.study import Study
from comp.tuning.trial import Data
from comp.tuning.worker import work
from comp.tuning.workers import work_together
from comp.workflows import build, checks

OnTrial = Callable[[str, Standing], None]


def tune(
    config: Config,
    *,
    name: str = "study",
    runs_root: Path = Path("runs"),
    workers: int = 1,
    pictures: bool = True,
    on_trial: OnTrial = lambda part, standing: None,
    progress: Progress = quiet,
) -> Report:
    """Search a config's `tune.space`, confirm the best with new seeds, and leave best.yaml; the same call continues.

    Args:
        config: section `tune` says what is searched and how.
        name: of the study, where the config names none.
        runs_root: where run folders are; the study's is `<competition>/<name>` below it.
        workers: trainings at a time, in processes of their own where there are several.
        pictures: whether plots/ and study.html are drawn at the end.
        on_trial: called with `search` or `confirm` and how far it is, when a trial has ended.
        progress: called at every step; of several workers twice a second.

    Raises:
        UserError: anything wrong with config, data, storage; three trials in a row have failed, or none is complete.
        Interrupted: a signal; the same call goes on, trials under way from their checkpoints.
    """
    checks.check_config(config, runs_root)
    create.check_study(config)
    dataset = build.open_data(config, progress)
    plan = create.plan(config, name, runs_root)
    data = Data({config.data.fold: dataset})
    timeout = parse_duration(config.tune.timeout) if config.tune.timeout else math.inf
    with contextlib.ExitStack() as opened:
        search = opened.enter_context(OPENERS[plan.part](plan))
        _run(search, plan, data, workers, on_trial, progress, timeout)
        confirmation = None
        if config.tune.confirm.top and confirm.ranked(search):
            plan = replace(plan, part=CONFIRM)
            confirmation = opened.enter_context(OPENERS[CONFIRM](plan))
            confirm.enqueue(search, confirmation)
            _run(confirmation, plan, data, workers, on_trial, progress, math.inf)
        keeping.tidy(search)
        report = results.report(search, confirmation, pictures=pictures)
        wandb_summary.tell(search, report, pictures=pictures)
        search.refuse_empty()
        return report


def _run(
    study: Study,
    plan: StudyPlan,
    data: Data,
    workers: int,
    on_trial: OnTrial,
    progress: Progress,
    timeout_seconds: float,
) -> None:
    study.deadline = time.time() + timeout_seconds
    study.forgiven = frozenset(row.number for row in study.trials() if row.state == TrialState.FAIL)
    began, ended = time.time(), sum(row.state.is_finished() for row in study.trials())

    def tell(study: Study) -> None:
        on_trial(plan.part, results.standing(study, began, ended))

    if study.is_over():
        return
    if workers > 1:
        plan = replace(plan, forgiven=study.forgiven, deadline=study.deadline)
        work_together(study, plan, workers, progress, tell)
    else:
        work(study, data, Path(plan.runs_root), progress, tell)


__all__ = ["Report", "Standing", "tune"]
