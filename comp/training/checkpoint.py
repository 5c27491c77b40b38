"""Checkpoints: state.pt holds weights, optimizer, average and position; written atomically, read without running code.

It is deleted when the run is complete, unless `train.keep_state` is set.
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

from comp.results import files
from comp.results.runs import Run
from comp.runtime.errors import RunError


@dataclass
class TrainState:
    """Position of a training; with weights, optimizer and average it is all that a resume needs.

    Attributes:
        epoch: epochs finished.
        step: steps taken in the current epoch.
        seconds: spent in training so far, over all processes.
        best: the selected metric's best value so far (higher is better), None before the first validation.
        best_loss: the validation loss of the same weights; ties of `best` go to the lower one.
        best_epoch: its epoch, counted from 1.
        best_averaged: whether averaged weights reached it.
        loss_sum: of this epoch's steps.
        right_sum: correct answers of this epoch's steps, weighted by the mixing's lambda.
        seen: images of this epoch's steps.
        stopped: why it ended before its last epoch, empty if it did not.
        rate_factor: multiplies the schedule's rate; halved at each rollback.
        rollbacks: the reason of each rollback.
        notes: for the next epoch's row.
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
    """Anything with a state: model, optimizer, ..."""

    def state_dict(self) -> Any: ...

    def load_state_dict(self, state: Any, /) -> Any: ...


def save(run: Run, parts: Mapping[str, Stateful], state: TrainState) -> None:
    """Replace state.pt atomically."""
    values = {name: part.state_dict() for name, part in parts.items()} | {"cursor": asdict(state)}
    run.write("state.pt", lambda file: torch.save(values, file))


def remove(run: Run) -> None:
    """Delete state.pt of a complete run: it is only needed to resume."""
    with contextlib.suppress(OSError, RunError):  # a read-only disk: the run is complete all the same
        files.remove(run.path / "state.pt", inside=run.path)


def load(path: Path, parts: Mapping[str, Stateful], device: torch.device) -> TrainState:
    """Load state.pt into the parts, by name, and return the training's position.

    Raises:
        RunError: missing, damaged, or from another model.
    """
    try:
        _check_checksums(path)
        values: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
        recorded = {"best_loss": None, **values["cursor"]}  # the first files had no best_loss
        names = {attribute.name for attribute in fields(TrainState)}
        state = TrainState(**{name: value for name, value in recorded.items() if name in names})
        for name, part in parts.items():
            part.load_state_dict(values[name])
    except FileNotFoundError:
        raise RunError(f"{path}: no checkpoint to resume from; start again: comp run CONFIG") from None
    except (RuntimeError, KeyError, TypeError, ValueError, EOFError, OSError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RunError(f"{path}: damaged, or from another model ({reason}); start again: comp run CONFIG") from None
    return state


def _check_checksums(path: Path) -> None:
    """Check the file's checksums, which torch writes and does not read.

    Raises:
        ValueError: not an archive, or a member does not match its checksum.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise ValueError(f"not a complete archive: {error}") from None
    if damaged is not None:
        raise ValueError(f"{damaged} does not match its checksum")
