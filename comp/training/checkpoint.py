"""state.pt: weights, optimizer, average and cursor in one atomic replace, read without running code.

It goes when the run is complete, unless `train.keep_state` is set.
"""

import contextlib
import pickle
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Protocol

import torch

from comp.results.runs import Run
from comp.runtime.errors import RunError


@dataclass
class TrainState:
    """Where a training stands; with weights, optimizer and average it is all that a resume needs.

    Attributes:
        epoch: epochs finished.
        step: steps taken in the current epoch.
        seconds: spent in training so far, over all processes.
        best: the selected metric's best value so far, None before the first validation.
        best_loss: the validation loss of the same weights; ties of `best` go to the lower one.
        best_epoch: its epoch, counted from 1.
        best_averaged: whether averaged weights had it.
        loss_sum: of this epoch's steps.
        right_sum: likewise, the lambda-weighted right answers.
        seen: images of this epoch's steps.
        stopped: why it ended before its last epoch, empty if it did not.
        rate_factor: what the schedule's rate is multiplied by; halved each time the training goes back.
        rollbacks: why it went back, a sentence for each time.
        notes: what the next epoch's row will tell.
    """

    epoch: int = 0
    step: int = 0
    seconds: float = 0.0
    best: float | None = None
    best_loss: float | None = None
    best_epoch: int = 0
    best_averaged: bool = False
    loss_sum: float = 0.0
    right_sum: float = 0.0
    seen: int = 0
    stopped: str = ""
    rate_factor: float = 1.0
    rollbacks: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class Stateful(Protocol):
    """What has a state to keep: model, optimizer, ..."""

    def state_dict(self) -> Any: ...

    def load_state_dict(self, state: Any, /) -> Any: ...


def save(run: Run, parts: Mapping[str, Stateful], cursor: TrainState) -> None:
    """Write the whole state, state.pt, or leave the one before."""
    state = {name: part.state_dict() for name, part in parts.items()} | {"cursor": asdict(cursor)}
    run.write("state.pt", lambda file: torch.save(state, file))


def remove(run: Run) -> None:
    """Remove the state of a run whose metrics.json is written: what it holds was for going on."""
    with contextlib.suppress(OSError):  # a disk that has turned read-only: the run is complete all the same
        (run.path / "state.pt").unlink(missing_ok=True)


def load(path: Path, parts: Mapping[str, Stateful], device: torch.device) -> TrainState:
    """Read the state into the parts, under the names they were saved by, and return the cursor.

    Raises:
        RunError: missing, damaged, or another model's.
    """
    try:
        _demand_whole(path)
        state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
        recorded = {"best_loss": None, **state["cursor"]}  # states of version 0.1 lack it
        cursor = TrainState(**{attribute.name: recorded[attribute.name] for attribute in fields(TrainState)})
        for name, part in parts.items():
            part.load_state_dict(state[name])
    except FileNotFoundError:
        raise RunError(f"{path}: no checkpoint to resume from; start again: comp run CONFIG") from None
    except (RuntimeError, KeyError, TypeError, ValueError, EOFError, OSError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RunError(f"{path}: damaged, or of another model ({reason}); start again: comp run CONFIG") from None
    return cursor


def _demand_whole(path: Path) -> None:
    """Refuse a file in which a bit has changed: torch writes checksums and does not compare them.

    Raises:
        ValueError: it is no archive, or a part of it does not fit its checksum.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            changed = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise ValueError(f"not a whole archive: {error}") from None
    if changed is not None:
        raise ValueError(f"{changed} does not fit its checksum")
