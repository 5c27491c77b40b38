"""When a training comes apart: noticed where numbers stop being finite, told with its step, and gone back from."""

import math

import torch

from comp.runtime.errors import RunError
from comp.training import checkpoint
from comp.training.checkpoint import TrainState
from comp.training.context import TrainContext


class DivergedError(RunError):
    """The loss, the weights or the logits of validation are not finite any more."""


def demand_finite_weights(session: TrainContext, cursor: TrainState) -> None:
    """Refuse weights that no training could mend.

    Raises:
        DivergedError: a weight or statistic is infinite or no number.
    """
    tensors = [tensor for tensor in session.model.state_dict().values() if tensor.is_floating_point()]
    largest = torch.stack([norm.float() for norm in torch._foreach_norm(tensors, math.inf)])
    if not bool(largest.isfinite().all()):
        raise diverged(session, cursor, "weights are", max(cursor.step - 1, 0))


def diverged(session: TrainContext, cursor: TrainState, what: str, step: int) -> DivergedError:
    """Return the error that says what (with its verb) was not finite at a step of the current epoch, from 0."""
    rate = session.rate(cursor, step)
    return DivergedError(
        f"{session.run.path}: the {what} not finite at step {step + 1} of epoch {cursor.epoch + 1}, learning rate "
        f"{rate:.2e}; nothing after the last checkpoint is kept; try a lower rate "
        f"(optim.lr={session.config.optim.lr / 3:.1e}), a longer optim.warmup, optim.clip=norm, train.precision=fp32, "
        "or train.nan_retries=2, which goes back and halves the rate by itself"
    )


def rollback(session: TrainContext, cursor: TrainState, error: DivergedError) -> None:
    """Return to the last good state at half the rate, or pass the error on where that was done often enough.

    Raises:
        DivergedError: `train.nan_retries` times already.
    """
    if len(cursor.rollbacks) >= session.config.train.nan_retries:
        session.team.stop(error)
    good = checkpoint.load(session.run.path / "state.pt", session.parts, session.execution.torch_device)
    session.team.barrier()  # all have read the state before the leader writes another
    reason = str(error).partition(": ")[2].partition(";")[0]
    good.rate_factor = cursor.rate_factor / 2
    told = f"{reason}: back to step {good.step} of epoch {good.epoch + 1}, all rates times {good.rate_factor:g}"
    good.rollbacks = [*cursor.rollbacks, told]
    good.notes = [*cursor.notes, told]
    good.seconds = cursor.seconds
    vars(cursor).update(vars(good))  # whoever holds the cursor goes back too
