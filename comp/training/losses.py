"""What a training step makes smaller."""

import torch
from torch import Tensor
from torch.nn import functional as F


def jensen_shannon(logits: list[Tensor]) -> Tensor:
    """Return how far apart the views' predictions are: the Jensen-Shannon divergence, its mean over the batch.

    The consistency term of AugMix (Hendrycks et al. 2020, arXiv:1912.02781, section 3), in nats: 0 where all views
    say the same, at most the logarithm of their number.

    Args:
        logits: one [B, classes] for each view.
    """
    logs = torch.stack([view.float().log_softmax(1) for view in logits])  # [views, B, classes]
    mixture = logs.exp().mean(0).clamp(min=1e-7).log()  # log 0 has no gradient
    return torch.stack([F.kl_div(mixture, view, reduction="batchmean", log_target=True) for view in logs]).mean()


def consistent(logits: Tensor, targets: Tensor, *, views: int, weight: float) -> Tensor:
    """Return cross-entropy of the first view plus `weight` times the divergence of all; of one view, the former alone.

    Args:
        logits: [views B, classes], view after view, the clean one first.
        targets: [B, classes].
        views: how many; B is the batch's size.
        weight: 12 in AugMix's paper.
    """
    every = list(logits.float().chunk(views))
    if views == 1:
        return F.cross_entropy(every[0], targets)
    return F.cross_entropy(every[0], targets) + weight * jensen_shannon(every)
