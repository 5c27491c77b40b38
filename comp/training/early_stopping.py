"""Early stopping: when a training ends before its last epoch.

Both rules are functions of the history alone, so a resumed training decides like an uninterrupted one.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from comp.training.selection import Selector

Row = Mapping[str, Any]  # of history.csv: an `Epoch`'s fields, as values or as a file's text


@dataclass(frozen=True)
class Stop:
    """Returned by `on_epoch` to end a training after the epoch; the reason is recorded and shown."""

    reason: str


def early_stop(
    rows: Sequence[Row],
    selector: Selector,
    *,
    patience: int | None,
    min_delta: float = 0.0,
    overfit_patience: int | None = None,
    overfit_threshold: float = 0.0,
) -> Stop | None:
    """Return why the training should end now, None if it should continue.

    Args:
        rows: one for each finished epoch, in order.
        selector: what the best weights are selected by.
        patience: see `stagnation`; None: off.
        min_delta: see `stagnation`.
        overfit_patience: see `overfitting`; None: off.
        overfit_threshold: see `overfitting`.
    """
    if not rows:
        return None
    reason = ""
    if overfit_patience is not None:
        reason = overfitting(rows, overfit_patience, overfit_threshold)
    if patience is not None and not reason:
        stagnates = stagnation(rows, lambda row: _selected(row, selector), patience, min_delta)
        reason = f"{selector.name} {stagnates}" if stagnates else ""
    return Stop(reason) if reason else None


def stagnation(
    rows: Sequence[Row], value_of: Callable[[Row], float | None], patience: int, min_delta: float = 0.0
) -> str:
    """Return why a value stagnates (Prechelt 1998, "Early Stopping - But When?"); empty if it has improved.

    Args:
        rows: see `early_stop`.
        value_of: of a row, higher being better; None where the epoch did not measure it.
        patience: epochs since the last improvement.
        min_delta: an improvement exceeds the last one by more than this.
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
        f"stagnates: in epoch {number}, not improved by more than {min_delta:g} since epoch {best_epoch} "
        f"(train.patience={patience})"
    )


def overfitting(rows: Sequence[Row], patience: int, threshold: float = 0.0) -> str:
    """Return why validation loss overfits: it has stayed above its best for too long; empty if it has not.

    Args:
        rows: see `early_stop`.
        patience: consecutive epochs, up to the last one, with a loss above the best.
        threshold: a loss is above where it exceeds the lowest before it by more than this.
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
        f"validation loss overfits: in epoch {int(rows[-1]['number'])}, more than {threshold:g} above its best "
        f"({best:.4g} in epoch {best_epoch}) for {above} epochs (train.overfit_patience={patience})"
    )


def _selected(row: Row, selector: Selector) -> float | None:
    """Return the selected value of the epoch's better weights, raw or averaged."""
    values = (_number(row[selector.name]), _number(row["averaged"]))
    return max((selector.as_maximize(value) for value in values if value is not None), default=None)


def _number(value: Any) -> float | None:
    return None if value in (None, "") else float(value)
