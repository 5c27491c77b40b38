"""What W&B is told of a study that has ended: a run of its own, in the group of its trials.

Like a training, a study tells W&B nothing itself: a process, `summary.py`, writes a segment of W&B's offline files
below the study's folder, and where one is logged in another one uploads it. What a network did not take within ten
seconds lies there until `comp leaderboard --sync`.
"""

import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from comp import runs
from comp.config import TrackConfig
from comp.errors import RunError
from comp.runs import Run
from comp.tracking import login, state
from comp.tracking.told import Table
from comp.tracking.tracker import END_SECONDS, end_process


@dataclass(frozen=True)
class Digest:
    """What a study has come to, in plain values.

    Attributes:
        id: of its W&B run; the same however often it is continued.
        number: of this telling, from 1.
        name: of the study.
        group: of its trials.
        config: of the study.
        summary: name -> value.
        tables: name -> table.
        pictures: paths of PNGs.
        best: path of best.yaml, empty without a whole trial.
    """

    id: str
    number: int
    name: str
    group: str
    config: Mapping[str, Any]
    summary: Mapping[str, Any]
    tables: Mapping[str, Table]
    pictures: Sequence[str]
    best: str


def tell(folder: Path, digest: Digest, track: TrackConfig) -> None:
    """Write a study's run into W&B's files, and upload it where one is logged in; neither can hold the study up.

    Args:
        folder: of the study.
        digest: what is told.
        track: says where to, and is not `disabled`.
    """
    mode = login.mode_of(track)
    place = Run(folder.absolute())  # no run itself, but W&B's files lie below both alike
    told = {
        **asdict(digest), "folder": str(place.path), "project": track.project or place.path.parent.name,
        "entity": track.entity, "tags": list(track.tags),
    }  # fmt: skip
    with contextlib.suppress(RunError, OSError):  # told by another command now; no space left
        runs.make_folder(state.folder_of(place))
        with state.telling(place, wait_seconds=END_SECONDS["offline"]):
            _process(place, ["comp.tracking.summary"], told, END_SECONDS["offline"], uploads=False)
            segments = [str(segment) for segment in state.waiting(place)]
            if segments and mode == "online":
                _process(place, ["comp.tracking.uploader", *segments], {}, END_SECONDS["online"], uploads=True)


def waiting(root: Path) -> list[Path]:
    """Return the segments of studies in a folder of runs that wait for an upload, a study's as they were begun.

    Those of studies that are being told are left for later.
    """
    places = [Run(path.parent) for path in sorted(root.glob("*/*/study.json"))]
    ended = [place for place in places if state.folder_of(place).is_dir() and not state.is_being_told(place)]
    return [segment for place in ended for segment in state.waiting(place)]


def _process(place: Run, words: Sequence[str], told: Mapping[str, Any], seconds: float, *, uploads: bool) -> None:
    """Run one of W&B's processes with JSON as its standard input; after so many seconds end it."""
    with (state.folder_of(place) / "summary.log").open("ab") as log, tempfile.TemporaryFile() as values:
        values.write(json.dumps(told).encode())  # a file, because a process that hangs reads no pipe
        values.seek(0)
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", *words], stdin=values, stdout=log, stderr=log, cwd=place.path,
            env=login.environment(place.path, uploads=uploads), start_new_session=True,
        )  # fmt: skip
        end_process(process, seconds)
