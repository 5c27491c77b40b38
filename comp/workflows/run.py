"""`comp run`: train or resume, then score the test, predict the suite and write the submission."""

from pathlib import Path
from typing import Any

from comp.config import Config
from comp.data.dataset import Dataset
from comp.results.runs import Run
from comp.runtime.progress import Progress, quiet
from comp.submission.write import lost_submission, write_run_submission
from comp.tracking.tracker import open_tracker
from comp.training.distributed import SINGLE_PROCESS, SingleProcess
from comp.training.loop import OnEpoch
from comp.workflows.build import prepare
from comp.workflows.load import load_run, open_run_data
from comp.workflows.predict import estimate_accuracy, predict_split, score_test
from comp.workflows.train import resume, train


def run_config(
    config: Config,
    *,
    runs_root: Path = Path("runs"),
    output: Path | None = None,
    force: bool = False,
    progress: Progress = quiet,
    team: SingleProcess = SINGLE_PROCESS,
    **training: Any,
) -> Run:
    """Train a config and finish the run; return it.

    `output` is the submission's CSV, by default a free name; a resume finds it in the run. `force` replaces an existing
    one. `team` trains together; its other processes call `train.follow`, and this one goes on alone. `training` are
    further arguments of `train`.
    """
    with open_tracker(config.track) as tracker:
        dataset = team.main_process_first(lambda: prepare(config, runs_root, progress))
        run = train(
            config,
            runs_root=runs_root,
            dataset=dataset,
            progress=progress,
            team=team,
            tracker=tracker,
            predicts=True,
            records={"output": {"path": str(output.absolute()), "force": force}} if output else {},
            **training,
        )
        finish(run, dataset=dataset, output=output, force=force, progress=progress)
    return run


def resume_run(
    run: Run,
    *,
    output: Path | None = None,
    force: bool = False,
    on_epoch: OnEpoch = lambda epoch: None,
    progress: Progress = quiet,
    team: SingleProcess = SINGLE_PROCESS,
) -> Run:
    """Resume a run's training, if it is not complete, and finish the run; see `run_config`."""
    if not run.is_complete():
        run.check_config()  # before its data are opened
    with open_tracker(run.config().track) as tracker:
        # The other processes open the data to train, and have left when there is nothing to train.
        dataset = (
            open_run_data(run, progress)
            if run.is_complete()
            else team.main_process_first(lambda: open_run_data(run, progress))
        )
        resume(run, dataset=dataset, on_epoch=on_epoch, progress=progress, team=team, tracker=tracker)
        finish(run, dataset=dataset, output=output, force=force, progress=progress)
    return run


def finish(run: Run, *, dataset: Dataset, output: Path | None, force: bool, progress: Progress) -> None:
    """Do what follows training: score the test, predict the suite, write the submission."""
    loaded = load_run(run, dataset, progress)
    score_test(loaded, progress)
    if dataset.suite is None:
        return
    predicted = predict_split(loaded, "suite", progress)
    estimate_accuracy(loaded, predicted, "suite", progress)
    path, counts = output or lost_submission(run), loaded.answer_counts
    write_run_submission(run, predicted, loaded.competition, path, training_counts=counts, force=force)
