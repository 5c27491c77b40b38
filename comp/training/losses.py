"""Training losses."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

# A task's loss: logits [B, classes] and targets [B, classes] in [0, 1] -> the batch's mean, in nats. timm's losses for
# such targets are these two functions (BinaryCrossEntropy), or equal and 7 % slower (SoftTargetCrossEntropy).
LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cross_entropy": F.cross_entropy,
    "binary_cross_entropy": F.binary_cross_entropy_with_logits,
}


def jensen_shannon(logits: list[Tensor]) -> Tensor:
    """Return how far apart the views' predictions are: the Jensen-Shannon divergence, its mean over the batch.

    The consistency term of AugMix (Hendrycks et al. 2020, arXiv:1912.02781, section 3), in nats: 0 where all views
    say the same, at most the logarithm of their number. timm's JsdCrossEntropy has gradients that are no numbers where
    a probability underflows, and takes 1.2 to 1.8 times as long.

    Args:
        logits: one [B, classes] for each view.
    """
    logs = torch.stack([view.float().log_softmax(1) for view in logits])  # [views, B, classes]
    mixture = logs.exp().mean(0).clamp(min=1e-7).log()  # log 0 has no gradient
    return torch.stack([F.kl_div(mixture, view, reduction="batchmean", log_target=True) for view in logs]).mean()


def consistent(
    criterion: Callable[[Tensor, Tensor], Tensor], logits: Tensor, targets: Tensor, *, views: int, weight: float
) -> Tensor:
    """Return the loss of the first view plus `weight` times the divergence of all; of one view, the former alone.

    Args:
        criterion: a row of LOSSES.
        logits: [views B, classes], view after view, the clean one first.
        targets: [B, classes].
        views: how many; B is the batch's size.
        weight: 12 in AugMix's paper.
    """
    every = list(logits.float().chunk(views))
    if views == 1:
        return criterion(every[0], targets)
    return criterion(every[0], targets) + weight * jensen_shannon(every)
