"""Telling W&B: the only importer of wandb, loaded where something is tracked."""

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
from comp.results.files import write_arrays
from comp.results.runs import Run
from comp.tracking import login, payload, state
from comp.tracking.payload import Table
from comp.tracking.tracker import Tracker

for name in ("WANDB_SERVICE", "WANDB_SWEEP_ID"):  # of the process that started this one
    os.environ.pop(name, None)
os.environ["WANDB_ERROR_REPORTING"] = "false"  # read when wandb is loaded

import wandb  # noqa: E402  # after what it reads

START_SECONDS = 4.0  # beside them W&B's service starts and stops, twice where the server is silent
RESULTS_SECONDS = 4.5  # W&B asks the server for each table, and takes no limit
FINISH_SECONDS = 4.0
_MOST_MISTAKES = 16
_QUIET: dict[str, Any] = {
    "silent": True, "console": "off", "label_disable": True, "x_save_requirements": False,
    "x_disable_machine_info": True,  # git, code, metrics of the machine, and the command line, which may hold passwords
    "stop_fn": lambda: None,  # a click in W&B stops no training
}  # fmt: skip


def begin(folder: Path, mode: Any, *, patient: bool = False, **about: Any) -> Any:
    """Open a W&B run whose files lie below a folder; offline where a server does not answer in `START_SECONDS`.

    Args:
        folder: that gets a folder `wandb`.
        mode: `online` or `offline`.
        patient: wait for the server as long as it takes, and raise what it says.
        about: arguments of `wandb.init`.

    Returns:
        A `wandb.Run`; its `offline` tells which way it went.
    """
    folder = folder.absolute()
    os.environ.update(login.places(folder))
    wandb.setup(wandb.Settings(silent=True))
    limits: dict[str, Any] = {} if patient else {
        "init_timeout": START_SECONDS, "finish_timeout": FINISH_SECONDS, "finish_timeout_raises": True
    }  # fmt: skip
    try:
        return wandb.init(
            mode=mode, dir=folder, resume="allow", reinit="create_new", settings={**_QUIET, **limits}, **about
        )  # fmt: skip
    except Exception as error:
        if patient or mode == "offline" or wandb.run is not None:
            raise
        _note(f"{_first_line(error)}, so this is tracked offline")
        release()  # it would refuse the same id
        return begin(folder, "offline", **about)


def release() -> None:
    """End W&B's service process and forget its settings, unless a run of the user's own is open."""
    if wandb.run is None:
        with contextlib.suppress(Exception, SystemExit):
            wandb.teardown()


def address() -> str:
    """Return where W&B's server is."""
    found = str(wandb.setup(wandb.Settings(silent=True)).settings.base_url)
    release()
    return found


@contextlib.contextmanager
def segment(folder: Path, track: TrackConfig, **about: Any) -> Iterator[Any]:
    """Open an offline W&B run that is no training's, and finish it."""
    opened = begin(folder, "offline", entity=track.entity or None, **about)
    try:
        yield opened
    finally:
        opened.finish()
        release()


class Tracked(Tracker):
    """Tells W&B of one run at a time, at its epochs' ends; whatever goes wrong there becomes a note.

    Args:
        mode: `online` or `offline`.
        patient: wait for the server as long as it takes, and raise what goes wrong.
    """

    def __init__(self, mode: str, *, patient: bool = False) -> None:
        self._mode, self._patient = mode, patient
        self._run: Run | None = None
        self._wandb: Any = None
        self._held = contextlib.ExitStack()  # the lock of the run that is told of

    def begin(self, run: Run) -> None:
        if self._run == run:
            return
        self._end()
        self._run = run
        with self._harmless():
            self._held.enter_context(state.telling(run))
            self._before = state.begun(run, self._mode)
            state.write(run, replace(self._before, unsure=True))  # until it has ended well
            self._wandb = _open(run, self._before, patient=self._patient)
            self._told = max(0, self._wandb.starting_step - 1)  # what the server has
            if self._wandb.offline:
                self._mode = "offline"  # the other runs of a study do not try again
                self._told = self._before.epochs

    def tell(self) -> None:
        if self._wandb:
            with self._harmless():
                rows = self._run.history() if self._run else []
                for row in rows[self._told :]:
                    self._wandb.log(payload.curves(row), step=int(row["number"]))
                self._told = max(self._told, len(rows))

    def show(self, run: Run, images: Any) -> None:
        predicted = payload.validation(run)
        if predicted is None or predicted.targets is None:
            return
        with self._harmless():
            rows = diagnostics.find_worst_mistakes(predicted, _MOST_MISTAKES)
            titles = np.array([diagnostics.mistake_title(predicted, int(row)) for row in rows], np.str_)
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

    def _end(self) -> None:
        self.tell()
        if self._wandb and self._run:
            with self._harmless():
                self._finish(self._run, self._wandb)
        self._let_go()
        self._run = None

    def _finish(self, run: Run, opened: Any) -> None:
        """Tell what a run has come to; what W&B has not confirmed in time stays unsure."""
        complete, offline = run.is_complete(), bool(opened.offline)
        try:
            if complete:
                seconds = None if self._patient else RESULTS_SECONDS
                _within(seconds, lambda: _results(run, opened, max(self._told, 1)))
        finally:
            opened.finish(exit_code=0 if complete else 1)
        if not offline:
            state.mark_uploaded(run)  # the server has all of the run, whoever told it
        ended = replace(self._before, mode="offline" if offline else "online", epochs=self._told, complete=complete)
        state.write(run, replace(ended, unsure=offline and self._before.unsure))

    @contextlib.contextmanager
    def _harmless(self) -> Iterator[None]:
        """Turn whatever W&B raises into a note, and leave the run to `comp leaderboard --sync`."""
        try:
            yield
        except Exception as error:
            self._let_go()
            release()  # the next run gets a service of its own
            if self._patient:
                raise
            if isinstance(error, TimeoutError):
                self._mode = "offline"  # the next run of a study does not wait for the same server
            _note("not all was taken in time" if isinstance(error, TimeoutError) else _first_line(error))

    def _let_go(self) -> None:
        self._wandb = None
        self._held.close()


def _within(seconds: float | None, call: Callable[[], None]) -> None:
    """Call; raise TimeoutError after so many seconds, and let it go on: the end of W&B's service ends it."""
    raised: list[Exception] = []

    def guarded() -> None:
        try:
            call()
        except Exception as error:
            raised.append(error)

    thread = threading.Thread(target=guarded, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise TimeoutError
    if raised:
        raise raised[0]


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _note(text: str) -> None:
    print(f"note: W&B: {text}; nothing is lost: comp leaderboard --sync uploads it", file=sys.stderr)


def _open(run: Run, known: state.TrackingState, *, patient: bool = False, mode: str = "") -> Any:
    track = run.config().track
    opened = begin(
        run.path, mode or known.mode, patient=patient, id=known.id, project=known.project, entity=known.entity or None,
        name=run.path.absolute().name, group=track.group or None, tags=list(track.tags) or None,
        config=payload.settings(run),
    )  # fmt: skip
    for column in ("ood_accuracy_*", *payload.CURVES):
        name, kept = payload.name_of(column) or ("", "")
        if kept:
            opened.define_metric(name, summary=kept)
    return opened


def rank(run: Run, values: Mapping[str, Any]) -> None:
    """Write a run's place in a leaderboard into an offline segment."""
    known = state.read(run)
    assert known is not None
    opened = _open(run, known, mode="offline")
    # A segment's summary takes the place of an earlier one's, so that it is told whole.
    opened.summary.update({**payload.results(run.metrics().to_json()), **payload.summaries(run.history()), **values})
    opened.finish()


def table(values: Table) -> Any:
    """Return a table as W&B shows it; a column may hold numbers and words."""
    return wandb.Table(columns=values.columns, data=values.rows, allow_mixed_types=True)


def picture(path: Path) -> Any:
    """Return a PNG as W&B shows it."""
    return wandb.Image(str(path))


def log_artifact(opened: Any, name: str, kind: str, files: list[Path], *, copied: bool) -> None:
    """Add files as an artifact; those that are not copied must stay as they are until they are uploaded."""
    artifact = wandb.Artifact(name, kind)
    for file in files:
        artifact.add_file(str(file.absolute()), policy="mutable" if copied else "immutable")
    opened.log_artifact(artifact)


def _results(run: Run, opened: Any, step: int) -> None:
    """Tell what a complete run has come to."""
    scores = run.metrics()
    tables = {f"distortions/{name}": values for name, values in payload.distortions(scores).items()}
    if norms := payload.norms(run):
        tables["norms"] = norms
    shown: dict[str, Any] = {name: table(values) for name, values in tables.items()}
    predicted = payload.validation(run)
    if predicted is not None and predicted.targets is not None and predicted.top1 is not None:
        shown["confusion"] = wandb.plot.confusion_matrix(
            y_true=predicted.targets.tolist(), preds=predicted.top1.tolist(), class_names=list(predicted.classes),
            title="validation",
        )  # fmt: skip
    shown |= {f"plots/{path.stem}": picture(path) for path in payload.pictures(run)}
    if mistakes := _mistakes(run):
        shown["mistakes"] = mistakes
    opened.log(shown, step=step, commit=True)  # else the step would end after the summary, and into it
    for kind in run.config().track.artifacts:
        if files := payload.artifact_files(run, kind):
            group = "model" if kind == "weights" else kind
            log_artifact(opened, f"{run.path.absolute().name}-{kind}", group, files, copied=False)
    # A segment knows its own epochs alone: the best of all are told in its place.
    opened.summary.update({**payload.results(scores.to_json()), **payload.summaries(run.history())})


def _mistakes(run: Run) -> list[Any]:
    path = state.folder_of(run) / "mistakes.npz"
    if not path.is_file():
        return []
    with np.load(path, allow_pickle=False) as kept:
        images, ids, titles = (kept[name] for name in ("images", "ids", "titles"))
    images = images.squeeze(-1) if images.shape[-1] == 1 else images
    return [
        wandb.Image(image, caption=f"{key}: {title}") for image, key, title in zip(images, ids, titles, strict=True)
    ]  # fmt: skip
