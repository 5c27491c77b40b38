"""state.pt: weights, optimizer and cursor in one atomic replace, read without running code."""

import pickle
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from comp import runs
from comp.errors import RunError


@dataclass
class Cursor:
    """Where a training stands; with the weights and the optimizer it is all that a resume needs.

    Attributes:
        epoch: epochs finished.
        step: steps taken in the current epoch.
        seconds: spent in training so far, over all processes.
        best: the selected metric's best value so far, None before the first validation.
        best_epoch: its epoch, counted from 1.
        loss_sum: of this epoch's steps.
        right_sum: likewise, the lambda-weighted right answers.
        seen: images of this epoch's steps.
        stopped: why it ended before its last epoch, empty if it did not.
    """

    epoch: int = 0
    step: int = 0
    seconds: float = 0.0
    best: float | None = None
    best_epoch: int = 0
    loss_sum: float = 0.0
    right_sum: float = 0.0
    seen: int = 0
    stopped: str = ""


def save(path: Path, model: nn.Module, optimizer: Optimizer, cursor: Cursor) -> None:
    """Write the whole state, or leave the one before."""
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "cursor": asdict(cursor)}
    runs.write_atomically(path, lambda file: torch.save(state, file))


def load(path: Path, model: nn.Module, optimizer: Optimizer, device: torch.device) -> Cursor:
    """Read the state into model and optimizer, and return the cursor.

    Raises:
        RunError: missing, damaged, or another model's.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
        cursor = Cursor(**{field.name: state["cursor"][field.name] for field in fields(Cursor)})
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    except FileNotFoundError:
        raise RunError(f"{path}: no checkpoint to resume from; start again: comp run CONFIG") from None
    except (RuntimeError, KeyError, TypeError, ValueError, EOFError, OSError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RunError(f"{path}: damaged, or of another model ({reason}); start again: comp run CONFIG") from None
    return cursor
