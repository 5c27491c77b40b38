"""Why a training ends before its last epoch.

Both rules are functions of the history alone, so that a resumed training decides as one that was never stopped.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from comp.config import Config
from comp.training.selection import Selector

Row = Mapping[str, Any]  # of history.csv: an `Epoch`'s fields, as values or as the text that a file holds


@dataclass(frozen=True)
class Stop:
    """What `on_epoch` returns to end a training after the epoch; the reason is recorded and shown."""

    reason: str


def due(rows: Sequence[Row], config: Config, selector: Selector) -> Stop | None:
    """Return why the training that a history tells of should end now, None where it should go on.

    Args:
        rows: one for each epoch finished, in order; the last is the one just finished.
        config: section `train`: `patience`, `overfit_patience` and theirs.
        selector: what the best weights are selected by.
    """
    train = config.train
    if not rows or (not train.budget and int(rows[-1]["number"]) >= train.epochs):
        return None  # it ends anyway
    reason = ""
    if train.overfit_patience is not None:
        reason = overfitting(rows, train.overfit_patience, train.overfit_threshold)
    if train.patience is not None and not reason:
        found = stagnation(rows, lambda row: _selected(row, selector), train.patience, train.min_delta)
        reason = f"{selector.name} {found}" if found else ""
    return Stop(reason) if reason else None


def stagnation(
    rows: Sequence[Row], value_of: Callable[[Row], float | None], patience: int, min_delta: float = 0.0
) -> str:
    """Tell that a value has not improved for too long (Prechelt 1998, "Early Stopping - But When?"); empty: it has.

    Args:
        rows: see `due`.
        value_of: of a row, more being better; None where the epoch did not measure it.
        patience: epochs since the last improvement.
        min_delta: by how much more than this a value must exceed the last improvement to be one itself.
    """
    best, best_epoch = None, 0
    for row in rows:
        value = value_of(row)
        if value is not None and (best is None or value > best + min_delta):
            best, best_epoch = value, int(row["number"])
    number = int(rows[-1]["number"])
    if best is None or value_of(rows[-1]) is None or number - best_epoch < patience:
        return ""
    return (
        f"stagnates: at the end of epoch {number}, none since epoch {best_epoch} had been better by more than "
        f"{min_delta:g} (train.patience={patience})"
    )


def overfitting(rows: Sequence[Row], patience: int, threshold: float = 0.0) -> str:
    """Tell that validation loss has stayed above its best for too long; empty: it has not.

    Args:
        rows: see `due`.
        patience: epochs in a row, up to the last one, that lay above.
        threshold: an epoch lies above where its loss exceeds the lowest before it by more than this.
    """
    best, best_epoch, above = float("inf"), 0, 0
    for row in rows:
        loss = _number(row["val_loss"])
        if loss is None:
            continue
        above = above + 1 if loss > best + threshold else 0
        if loss < best:
            best, best_epoch = loss, int(row["number"])
    if above < patience:
        return ""
    return (
        f"validation loss overfits: at the end of epoch {int(rows[-1]['number'])} it had been more than {threshold:g} "
        f"above its best, {best:.4g} in epoch {best_epoch}, for {above} epochs (train.overfit_patience={patience})"
    )


def _selected(row: Row, selector: Selector) -> float | None:
    """Return what the epoch's better weights, raw or averaged, were selected by."""
    values = (_number(row[selector.name]), _number(row["averaged"]))
    return max((selector.as_maximize(value) for value in values if value is not None), default=None)


def _number(value: Any) -> float | None:
    return None if value in (None, "") else float(value)
