"""Checkpoints: state.pt holds weights, optimizer, average and position; written atomically, read without running code.

It is deleted when the run is complete, unless `train.keep_state` is set.
"""

import contextlib
import math
import pickle
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from comp.results import files
from comp.results.array_files import check_member
from comp.results.files import READ_ERRORS, ZIP_ERRORS, error_text
from comp.results.runs import Run
from comp.runtime import memory
from comp.runtime.errors import RunError

_GROUP_KEYS = ("lr", "lr_scale")  # every group of parameters has them


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


def load(
    path: Path,
    parts: Mapping[str, Stateful],
    device: torch.device,
    *,
    trusted: bool = False,
    misplaced: Callable[[TrainState], str] = lambda state: "",
) -> TrainState:
    """Load state.pt into the parts, by name, and return the training's position.

    Args:
        path: of the file.
        parts: just built, unless `trusted`.
        device: of the parts.
        trusted: this training has written the file, and its parts have grown since: their forms are not compared.
        misplaced: returns why this training has no such position, once the parts are loaded; empty if it has.

    Raises:
        RunError: missing, damaged, or from another model.
    """
    try:
        _check_checksums(path)
        values: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
        recorded = {"best_loss": None, **values["cursor"]}  # the first files had no best_loss
        names = {attribute.name for attribute in fields(TrainState)}
        state = TrainState(**{name: value for name, value in recorded.items() if name in names})
        _check_position(state)
        _check_sums(state)
        for name, part in parts.items():
            if not trusted:
                _check_alike(values[name], part.state_dict(), name)
            part.load_state_dict(values[name])
        _check_momenta(parts.get("optimizer"))
        if problem := misplaced(state):
            raise ValueError(problem)
    except FileNotFoundError:
        raise RunError(f"{path}: no checkpoint to resume from; start again: comp run CONFIG") from None
    except (*READ_ERRORS, pickle.UnpicklingError) as error:
        if memory.is_out_of_memory(error):
            raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RunError(f"{path}: damaged, or from another model ({reason}); start again: comp run CONFIG") from None
    return state


def _check_position(state: TrainState) -> None:
    """Raise ValueError if a field has another type than `TrainState` declares, or a count is below 0."""
    _check_alike(asdict(state), asdict(TrainState()), "cursor")
    for name in ("best", "best_loss"):
        if not isinstance(value := getattr(state, name), float | int | None):
            raise ValueError(f"cursor.{name}: expected a number or None, found {type(value).__name__}")
    for name in ("epoch", "step", "seen", "best_epoch"):
        if not isinstance(value := getattr(state, name), int) or value < 0:
            raise ValueError(f"cursor.{name}: expected a whole number from 0 up, found {value!r}")
    for name in ("rollbacks", "notes"):
        if not all(isinstance(text, str) for text in getattr(state, name)):
            raise ValueError(f"cursor.{name}: expected a list of text")


def _check_sums(state: TrainState) -> None:
    """Raise ValueError if a number is not finite, or does not follow from the position."""
    for name in ("seconds", "loss_sum", "right_sum", "rate_factor"):
        if not math.isfinite(value := getattr(state, name)):
            raise ValueError(f"cursor.{name}: expected a finite number, found {value}")
    if state.best_epoch > state.epoch + 1:  # an epoch's scores come before its end
        raise ValueError(f"cursor.best_epoch: expected at most {state.epoch + 1}, found {state.best_epoch}")


def _check_alike(saved: Any, own: Any, where: str) -> None:
    """Raise ValueError if a part of a checkpoint has another form than the same part of this training.

    Numbers may be of any type and lists of any length. What this training has not begun yet is empty: None, or without
    keys. A missing key is left to the part itself: earlier versions of torch wrote fewer.
    """
    kind: Any = next(
        (kind for kind in (Tensor, str, int | float, Mapping, list | tuple) if isinstance(own, kind)), None
    )
    if kind is None:
        return
    if not isinstance(saved, kind):
        raise ValueError(f"{where}: expected {type(own).__name__}, found {type(saved).__name__}")
    if isinstance(own, Tensor) and saved.shape != own.shape:
        raise ValueError(f"{where}: expected the shape {list(own.shape)}, found {list(saved.shape)}")
    if isinstance(own, Mapping):
        for key, value in own.items():
            if key in saved:
                _check_alike(saved[key], value, f"{where}.{key}")
            elif key in _GROUP_KEYS:
                raise ValueError(f"{where}.{key} is missing")
    elif isinstance(own, list | tuple):
        for index, (saved_value, value) in enumerate(zip(saved, own, strict=False)):
            _check_alike(saved_value, value, f"{where}.{index}")


def _check_momenta(optimizer: Any) -> None:
    """Raise ValueError if what an optimizer has accumulated for a parameter has not its form; torch does not look.

    Some of timm's keep sums over rows and columns, in fewer dimensions or in sizes of 1.
    """
    accumulated = getattr(getattr(optimizer, "fast", optimizer), "state", {})
    for parameter, state in accumulated.items():
        for name, value in state.items():
            shape = list(value.shape) if isinstance(value, Tensor) else []
            fits = len(shape) != parameter.dim() or all(map(_is_reduced, shape, parameter.shape))
            if isinstance(value, str) or not fits:
                found = shape or type(value).__name__
                raise ValueError(f"optimizer.{name}: expected the shape {list(parameter.shape)}, found {found}")


def _is_reduced(size: int, whole: int) -> bool:
    return size in (1, whole)


def _check_checksums(path: Path) -> None:
    """Check the sizes and checksums that the archive claims: torch writes them and does not read them.

    Raises:
        ValueError: not an archive, or a member does not match them.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                check_member(entry, path.stat().st_size)
            damaged = archive.testzip()
    except FileNotFoundError:
        raise
    except ZIP_ERRORS as error:
        raise ValueError(f"not a complete archive: {error_text(error)}") from None
    if damaged is not None:
        raise ValueError(f"{damaged} does not match its checksum")
