"""The process that tells W&B of a run.

    python -m comp.tracking.writer RUN online|offline

It watches the run's folder, writes a segment of W&B's offline files, and ends when its standard input says so or
closes: the training is over, or was killed. Online, W&B's own process uploads the segment as it grows.
"""

import contextlib
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import wandb

from comp.runs import Run
from comp.tracking import login, state, told
from comp.tracking.state import State

_POLL_SECONDS = 1.0
_LAST_SECONDS = 30.0  # that the writer of a training that was killed may take to end
SETTINGS = wandb.Settings(console="off", silent=True, disable_code=True, disable_git=True)


def main(path: Path, mode: str) -> None:
    """Tell of one run until standard input says that it is over."""
    over = threading.Event()
    threading.Thread(target=_wait_for_end, args=(over,), daemon=True).start()
    run = Run(path)
    with state.telling(run, wait_seconds=_LAST_SECONDS):
        uploader = _tell(run, mode, over)
    if uploader:
        uploader.wait()


def _tell(run: Run, mode: str, over: threading.Event) -> "subprocess.Popen[bytes] | None":
    """Write a segment; return what uploads it."""
    known = state.begun(run, mode)
    segment = open_segment(run, known)
    uploader = _upload(run) if mode == "online" else None
    epochs = known.epochs
    while not over.wait(_POLL_SECONDS):
        epochs = _tell_epochs(run, segment, epochs)
    epochs = _tell_epochs(run, segment, epochs)
    complete = run.is_complete()
    if complete:
        _tell_results(run, segment, epochs)
    segment.finish(exit_code=0 if complete else 1)
    state.write(run, known.told(epochs, complete=complete))
    return uploader


def _wait_for_end(over: threading.Event) -> None:
    sys.stdin.readline()
    over.set()


def open_segment(run: Run, known: State) -> Any:
    """Begin a segment."""
    track = run.config().track
    segment = wandb.init(
        mode="offline", dir=run.path, id=known.id, resume="allow", project=known.project, entity=known.entity or None,
        name=run.path.name, group=track.group or None, tags=list(track.tags) or None, config=told.settings(run),
        settings=SETTINGS,
    )  # fmt: skip
    for column in ("ood_accuracy_*", *told.CURVES):
        name, kept = told.name_of(column) or ("", "")
        if kept:
            segment.define_metric(name, summary=kept)
    return segment


def _upload(run: Run) -> "subprocess.Popen[bytes]":
    folder = state.folder_of(run)
    with (folder / "upload.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "wandb", "beta", "sync", "--live", str(state.segments(run)[-1])],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=folder,
            env=login.environment(run.path, uploads=True),
        )  # fmt: skip


def _tell_epochs(run: Run, segment: Any, epochs: int) -> int:
    """Tell of epochs after the first so many; return how many are told now."""
    rows = run.history()
    for row in rows[epochs:]:
        segment.log(told.curves(row), step=int(row["number"]))
    return max(epochs, len(rows))


def _tell_results(run: Run, segment: Any, epochs: int) -> None:
    """Tell what a complete run has come to."""
    scores = run.metrics()
    shown: dict[str, Any] = {}
    tables = {f"distortions/{name}": table for name, table in told.distortions(scores).items()}
    if norms := told.norms(run):
        tables["norms"] = norms
    for name, table in tables.items():
        shown[name] = wandb.Table(columns=table.columns, data=table.rows)
    found = told.validation(run)
    if found is not None and found.targets is not None and found.top1 is not None:
        shown["confusion"] = wandb.plot.confusion_matrix(
            y_true=found.targets.tolist(), preds=found.top1.tolist(), class_names=list(found.classes),
            title="validation",
        )  # fmt: skip
    for path in told.pictures(run):
        shown[f"plots/{path.stem}"] = wandb.Image(str(path))
    if mistakes := _mistakes(run):
        shown["mistakes"] = mistakes
    segment.log(shown, step=max(epochs, 1), commit=True)  # else the step would end after the summary, and into it
    for kind in run.config().track.artifacts:
        _tell_artifact(run, segment, kind)
    segment.summary.update(told.scores(scores))
    # A segment knows its own epochs alone: the best of all are told in its place.
    segment.summary.update(told.summaries(run.history()))


def _mistakes(run: Run) -> list[Any]:
    path = state.folder_of(run) / "mistakes.npz"
    if not path.is_file():
        return []
    with np.load(path, allow_pickle=False) as kept:
        found: Mapping[str, Any] = {name: kept[name] for name in kept.files}
    captions = [f"{key}: {title}" for key, title in zip(found["ids"], found["titles"], strict=True)]
    images = found["images"].squeeze(-1) if found["images"].shape[-1] == 1 else found["images"]
    return [wandb.Image(image, caption=caption) for image, caption in zip(images, captions, strict=True)]


def _tell_artifact(run: Run, segment: Any, kind: str) -> None:
    files = told.artifact_files(run, kind)
    if files:
        artifact = wandb.Artifact(f"{run.path.name}-{kind}", "model" if kind == "weights" else kind)
        for file in files:
            artifact.add_file(str(file.absolute()), policy="immutable")  # names the run's own file and copies nothing
        segment.log_artifact(artifact)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main(Path(sys.argv[1]), sys.argv[2])
