"""Log runs to W&B: the only importer of wandb, loaded only if something is tracked."""

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from comp.config import TrackConfig
from comp.results import diagnostics, plots
from comp.results.array_files import open_arrays
from comp.results.files import READ_ERRORS, error_text, write_arrays
from comp.results.runs import Run
from comp.runtime import escape
from comp.runtime.errors import RunError
from comp.tracking import payload, state
from comp.tracking.payload import Table
from comp.tracking.tracker import Tracker, wandb_folders

for name in ("WANDB_SERVICE", "WANDB_SWEEP_ID"):  # of the process that started this one
    os.environ.pop(name, None)
os.environ["WANDB_ERROR_REPORTING"] = "false"  # read when wandb is loaded

import wandb  # noqa: E402  # after what it reads

START_SECONDS = 4.0  # W&B's service also starts and stops, twice if the server does not answer
RESULTS_SECONDS = 4.5  # W&B asks the server for each table, and takes no limit
FINISH_SECONDS = 4.0
_MAX_MISTAKES = 16
_SETTINGS: dict[str, Any] = {
    "silent": True,
    "console": "off",
    "label_disable": True,
    "x_save_requirements": False,
    "x_disable_machine_info": True,  # git, code, machine metrics, and the command line, which may hold passwords
    "stop_fn": lambda: None,  # a click in W&B stops no training
}


def open_run(folder: Path, mode: Any, *, patient: bool = False, **options: Any) -> Any:
    """Open a W&B run whose files lie in `folder`/wandb; offline if a server does not answer in `START_SECONDS`.

    Args:
        folder: gets a folder `wandb`.
        mode: `online` or `offline`.
        patient: wait for the server without a limit, and raise its errors.
        options: arguments of `wandb.init`.

    Returns:
        A `wandb.Run`; its `offline` tells the mode it got.
    """
    folder = folder.absolute()
    os.environ.update(wandb_folders(folder))
    wandb.setup(wandb.Settings(silent=True))
    settings = {**_SETTINGS}
    if not patient:
        settings |= {"init_timeout": START_SECONDS, "finish_timeout": FINISH_SECONDS, "finish_timeout_raises": True}
    try:
        return wandb.init(mode=mode, dir=folder, resume="allow", reinit="create_new", settings=settings, **options)
    except Exception as error:
        if patient or mode == "offline" or wandb.run is not None:
            raise
        _print_note(f"{_first_line(error)}, so this is tracked offline")
        release()  # it would refuse the same id
        return open_run(folder, "offline", **options)


def release() -> None:
    """End W&B's service process and forget its settings, unless the user has a W&B run open."""
    if wandb.run is None:
        with contextlib.suppress(Exception, SystemExit):
            wandb.teardown()


def server_address() -> str:
    """Return the address of W&B's server."""
    address = str(wandb.setup(wandb.Settings(silent=True)).settings.base_url)
    release()
    return address


@contextlib.contextmanager
def segment(folder: Path, track: TrackConfig, **options: Any) -> Iterator[Any]:
    """Open an offline W&B run that belongs to no training, and finish it."""
    wandb_run = open_run(folder, "offline", entity=track.entity or None, **options)
    try:
        yield wandb_run
    finally:
        wandb_run.finish()
        release()


class WandbTracker(Tracker):
    """Logs one run at a time to W&B when its epochs end; what W&B errors keep from it is noted once, in the end.

    Args:
        mode: `online` or `offline`.
        patient: wait for the server without a limit, and raise its errors.
    """

    def __init__(self, mode: str, *, patient: bool = False) -> None:
        self._mode, self._patient = mode, patient
        self._run: Run | None = None
        self._wandb: Any = None
        self._lock = contextlib.ExitStack()  # of the current run
        self._logged = 0
        self._missed: dict[str, str] = {}  # name of a run -> what is not tracked, and why

    def start(self, run: Run) -> None:
        if self._run == run:
            return
        self._end()
        self._run, self._logged = run, 0
        with self._errors_as_notes():
            self._lock.enter_context(state.locked(run))
            self._before = state.read_or_new(run, self._mode)
            state.write(run, replace(self._before, unsure=True))  # until it has ended in order
            self._wandb = _open_training(run, self._before, patient=self._patient)
            self._logged = max(0, self._wandb.starting_step - 1)  # epochs that the server has
            if self._wandb.offline:
                self._mode = "offline"  # the other runs of a study do not try again
                self._logged = self._before.epochs

    def log(self) -> None:
        if self._wandb:
            with self._errors_as_notes():
                rows = self._run.history() if self._run else []
                for row in rows[self._logged :]:
                    self._wandb.log(payload.curves(row), step=int(row["number"]))
                self._logged = max(self._logged, len(rows))

    def save_mistakes(self, run: Run, images: Any) -> None:
        predicted = payload.validation(run) if run.config().track.images else None
        if predicted is None or predicted.targets is None:
            return
        with self._errors_as_notes():
            rows = diagnostics.find_worst_mistakes(predicted, _MAX_MISTAKES)
            titles = np.array([_title(**diagnostics.describe(predicted, int(row))) for row in rows], np.str_)
            arrays = {
                "images": plots.drawable_channels(np.asarray(images[rows])),
                "ids": predicted.ids[rows],
                "titles": titles,
            }
            write_arrays(state.folder_of(run) / "mistakes.npz", arrays)

    def close(self) -> None:
        try:
            self._end()
        finally:
            release()
            if self._missed:
                (run, missing), *more = self._missed.items()
                others = f", and of {len(more)} other runs" if more else ""
                _print_note(f"not tracked: {missing} of {run}{others}")
                self._missed.clear()

    def _end(self) -> None:
        self.log()
        if self._wandb and self._run:
            with self._errors_as_notes():
                self._finish(self._run, self._wandb)
        self._forget_wandb_run()
        self._run = None

    def _finish(self, run: Run, wandb_run: Any) -> None:
        """Log a run's results; what W&B does not confirm in time stays unsure."""
        complete, offline = run.is_complete(), bool(wandb_run.offline)
        try:
            if complete:
                seconds = None if self._patient else RESULTS_SECONDS
                _within(seconds, lambda: _log_results(run, wandb_run, max(self._logged, 1)))
        finally:
            wandb_run.finish(exit_code=0 if complete else 1)
        if not offline:
            state.mark_uploaded(run)  # the server has the whole run, whichever process logged it
        ended = replace(self._before, mode="offline" if offline else "online", epochs=self._logged, complete=complete)
        state.write(run, replace(ended, unsure=offline and self._before.unsure))

    @contextlib.contextmanager
    def _errors_as_notes(self) -> Iterator[None]:
        """Turn W&B errors into a note, and leave the run to `comp leaderboard --sync`."""
        try:
            yield
        except Exception as error:
            self._forget_wandb_run()
            release()  # the next run gets a new service
            if self._patient:
                raise
            if isinstance(error, TimeoutError):
                self._mode = "offline"  # the next run of a study does not wait for the same server
            self._miss("the server took too long" if isinstance(error, TimeoutError) else _first_line(error))

    def _miss(self, reason: str) -> None:
        """Remember what of the current run is not tracked, for the end."""
        if self._run is not None:
            has_epochs = 0 < self._logged == len(self._run.history())
            what = "the results" if has_epochs else f"epochs from {self._logged + 1} on"
            self._missed.setdefault(self._run.name, f"{what} ({reason})")

    def _forget_wandb_run(self) -> None:
        self._wandb = None
        self._lock.close()


def _within(seconds: float | None, call: Callable[[], None]) -> None:
    """Call; after so many seconds raise TimeoutError and let the call run on until W&B's service ends."""
    errors: list[Exception] = []

    def guarded() -> None:
        try:
            call()
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=guarded, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise TimeoutError
    if errors:
        raise errors[0]


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _print_note(text: str) -> None:
    note = f"note: W&B: {text}; nothing is lost: upload with comp leaderboard --sync"
    print(escape.for_terminal(note), file=sys.stderr)


def _open_training(run: Run, tracked: state.TrackingState, *, patient: bool = False, mode: str = "") -> Any:
    track = run.config().track
    target = {"id": tracked.id, "project": tracked.project, "entity": tracked.entity or None}
    labels = {
        "name": escape.one_line(run.path.absolute().name),
        "group": track.group or None,
        "tags": list(track.tags) or None,
    }
    mode, config = mode or tracked.mode, payload.run_config(run)
    wandb_run = open_run(run.path, mode, patient=patient, config=config, **target, **labels)
    for column in ("ood_accuracy_*", *payload.CURVES):
        name, aggregate = payload.wandb_name(column) or ("", "")
        if aggregate:
            wandb_run.define_metric(name, summary=aggregate)
    return wandb_run


def _log_summary(run: Run, wandb_run: Any, **values: Any) -> None:
    """Log the whole summary: a segment's summary replaces an earlier one's, and W&B aggregates only its own epochs."""
    wandb_run.summary.update({**payload.flatten(run.metrics().to_json()), **payload.summaries(run.history()), **values})


def log_rank(run: Run, values: Mapping[str, Any]) -> None:
    """Write a run's rank in a leaderboard to an offline segment."""
    tracked = state.read(run)
    assert tracked is not None
    wandb_run = _open_training(run, tracked, mode="offline")
    _log_summary(run, wandb_run, **values)
    wandb_run.finish()


def table(values: Table) -> Any:
    """Return a W&B table; a column may hold numbers and text."""
    rows = [[escape.one_line(cell) if isinstance(cell, str) else cell for cell in row] for row in values.rows]
    return wandb.Table(columns=values.columns, data=rows, allow_mixed_types=True)


def _title(true: str, predicted: str, confidence: float | None) -> str:
    return f"{true}: {predicted}" + ("" if confidence is None else f" {confidence:.0%}")


def html_page(path: Path) -> Any:
    """Return a W&B page of an HTML file."""
    return wandb.Html(str(path), inject=False)


def log_artifact(wandb_run: Any, name: str, kind: str, files: list[Path], *, copied: bool) -> None:
    """Log files as an artifact; files that are not copied must not change until they are uploaded."""
    artifact = wandb.Artifact(name, kind)
    for file in files:
        artifact.add_file(str(file.absolute()), policy="mutable" if copied else "immutable")
    wandb_run.log_artifact(artifact)


def _log_results(run: Run, wandb_run: Any, step: int) -> None:
    """Log the results of a complete run."""
    tables = {f"distortions/{name}": values for name, values in payload.distortions(run.metrics()).items()}
    if norms := payload.norms(run):
        tables["norms"] = norms
    values: dict[str, Any] = {name: table(rows) for name, rows in tables.items()}
    predicted = payload.validation(run)
    if predicted is not None and predicted.targets is not None and predicted.top1 is not None:
        truth, answers, classes = (
            predicted.targets.tolist(),
            predicted.top1.tolist(),
            list(map(escape.one_line, predicted.classes)),
        )
        confusion = wandb.plot.confusion_matrix(y_true=truth, preds=answers, class_names=classes, title="validation")
        values["confusion"] = confusion
    if mistakes := _mistakes(run):
        values["mistakes"] = mistakes
    wandb_run.log(values, step=step, commit=True)  # else the step would end after the summary, and overwrite it
    for kind in run.config().track.artifacts:
        if files := payload.artifact_files(run, kind):
            artifact_type = "model" if kind == "weights" else kind
            log_artifact(wandb_run, f"{run.path.absolute().name}-{kind}", artifact_type, files, copied=False)
    _log_summary(run, wandb_run)


def _mistakes(run: Run) -> list[Any]:
    path = state.folder_of(run) / "mistakes.npz"
    if not path.is_file() or not run.config().track.images:
        return []
    try:
        with open_arrays(path) as arrays:
            images, ids, titles = (arrays[name] for name in ("images", "ids", "titles"))
    except READ_ERRORS as error:
        raise RunError(f"{path}: damaged ({error_text(error)}); remove it to go on without these pictures") from None
    images = images.squeeze(-1) if images.shape[-1] == 1 else images
    captions = [escape.for_terminal(f"{key}: {title}") for key, title in zip(ids, titles, strict=True)]
    return [wandb.Image(image, caption=caption) for image, caption in zip(images, captions, strict=True)]
