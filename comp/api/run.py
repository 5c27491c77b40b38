"""A run as notebooks and scripts use it."""

import warnings
from pathlib import Path
from typing import Any

from comp.ensembles import new_images
from comp.inference.inputs import PredictInput
from comp.results import cards, runs
from comp.runtime.progress import Progress, shown
from comp.submission import write
from comp.workflows import evaluate, report
from comp.workflows.load import load_for_input
from comp.workflows.predict import estimate_accuracy, options_for, predict_input, with_decision


class Run(runs.Run):
    """A training's folder, or that of an ensemble, with what can be done with it; `comp.Run("runs/...")` opens one.

    It adds to `comp.results.runs.Run`, which only reads and writes files, what needs the rooms above it. Both are equal
    if folder and overrides are.

    Attributes:
        path: the folder.
        overrides: `key=value` settings of where its data are now, such as `data.root=DIR`.
        allow_plugins: whether the code of its plug-ins may run.
    """

    def evaluate(
        self,
        *,
        views: str | None = None,
        adapt: str | None = None,
        prior: str | None = None,
        baseline: runs.Run | Path | str | None = None,
        device: str = "",
        progress: Progress | None = None,
    ) -> dict[str, Any]:
        """Diagnose all labelled predictions, and write evaluation.json and pictures of mistakes into the run.

        A run with weights predicts its labelled test first.

        Args:
            views: of the test, as in `comp.predict`.
            adapt: likewise.
            prior: likewise.
            baseline: a run with predictions of the same blocks, to which `mean_corruption_error` is relative.
            device: `cpu`, `cuda` or `mps`; empty: the training's, or the best of this machine if it lacks that.
            progress: called after every batch; None: a bar in a terminal or notebook; `comp.quiet`: nothing.

        Returns:
            Split (`val`, `ood_val`, `test`, `suite`) -> the competition's `metric`, accuracy, calibration, scores by
            class and `by_block`, as in evaluation.json.

        Raises:
            UserError: nothing is labelled, or the rules forbid the adaptation.
        """
        changed = {"views": views, "adapt": adapt, "prior": prior}
        reference = None if baseline is None else open_run(baseline)
        with shown(progress) as callback:
            return evaluate.evaluate(self, changed, baseline=reference, device=device, progress=callback)

    def report(
        self,
        path: Path | str = "report.html",
        *,
        baseline: runs.Run | Path | str | None = None,
        progress: Progress | None = None,
    ) -> Path:
        """Write an HTML page about the run, which needs no network, and return its path.

        Args:
            path: the page; an existing one is replaced.
            baseline: a run or a config to compare with; None: the defaults.
            progress: called after every batch; None: a bar in a terminal or notebook; `comp.quiet`: nothing.

        Raises:
            UserError: the run is incomplete or damaged, or the page cannot be written.
        """
        return write_report([self], path, baseline, progress)

    def submission(
        self,
        path: Path | str | None = None,
        *,
        views: str | None = None,
        adapt: str | None = None,
        prior: str | None = None,
        pool: str | None = None,
        decide: str = "",
        device: str = "",
        force: bool = False,
        progress: Progress | None = None,
    ) -> Path:
        """Return the run's submission, a CSV; predict the test and write it if that is not done.

        Without options of prediction, a CSV that the run has written and nobody has changed is returned as it is.

        Args:
            path: the CSV; None: the one that is written, or the first free name among `submissions/COMPETITION.csv`,
                `-2`, `-3` ...
            views: as in `comp.predict`.
            adapt: likewise.
            prior: likewise.
            pool: likewise.
            decide: likewise.
            device: `cpu`, `cuda` or `mps`; empty: the training's, or the best of this machine if it lacks that.
            force: replace another file at `path`.
            progress: called after every batch; None: a bar in a terminal or notebook; `comp.quiet`: nothing.

        Raises:
            SubmissionError: a file exists at `path`.
            UserError: the competition has no test to predict, or the run is an ensemble whose CSV is gone.
        """
        changed = {"views": views, "adapt": adapt, "prior": prior, "pool": pool}
        output = None if path is None else Path(path)
        is_own = not decide and not any(changed.values())
        if is_own and (written := write.find_own(self, output)):
            return written
        if new_images.is_ensemble(self):
            new_images.refuse_own_images(self)
        if output is not None:
            write.check_output_path(output, force=force)
        source = PredictInput(None, None, None)
        with shown(progress) as callback:
            loaded = with_decision(load_for_input(self, source, callback, device=device), decide, callback)
            result = predict_input(loaded, source, callback, options=options_for(loaded, changed))
            estimate_accuracy(loaded, result.predictions, "suite", callback)
        output = output or (write.lost_submission(self) if is_own else None)
        counts = loaded.answer_counts
        return write.write_run_submission(
            self, result.predictions, result.competition, output, training_counts=counts, force=force
        )

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the scores with their intervals."""
        return cards.run_card(self)


def open_run(run: runs.Run | Path | str, *, allow_plugins: bool = False, overrides: tuple[str, ...] = ()) -> Run:
    """Return a run, or the run in a folder, with what the API adds.

    Raises:
        UserError: not a run's folder, or an override that would change the run.
    """
    opened = run if isinstance(run, runs.Run) else runs.open_run(Path(run))
    if overrides:
        opened = runs.open_run(opened.path, (*opened.overrides, *overrides), allow_plugins=opened.allow_plugins)
    return Run(opened.path, opened.overrides, opened.allow_plugins or allow_plugins)


def write_report(
    compared: list[Run], path: Path | str, baseline: runs.Run | Path | str | None, progress: Progress | None
) -> Path:
    """Write the page of one run or several; warn if one cannot be diagnosed, for want of its data."""
    page = Path(path)
    reference = None if baseline is None else baseline.path if isinstance(baseline, runs.Run) else Path(baseline)
    with shown(progress) as callback:
        report.write_report(compared, page, baseline=reference, on_note=warnings.warn, progress=callback)
    return page
