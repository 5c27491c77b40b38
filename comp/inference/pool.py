"""Cross-block pooling: one answer for each photograph of a suite whose blocks are distorted copies of the same images.

It exploits how the test was built, not what a network has learnt: the blocks' predictions of row i are combined.
"""

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from comp.data.splits import Split, Suite
from comp.results import predictions
from comp.results.predictions import Predictions
from comp.runtime.errors import ConfigError

_SIDE = 8  # of the thumbnails
_SAMPLE, _FEWEST = 256, 16  # rows compared
# How often a row's thumbnail must lie closer to its own photograph than to another row's. Copies under the corruptions
# of CIFAR-10 and of the digits reach 0.928 and more; other photographs of the same class, at most 0.835; a block with a
# quarter of its rows out of place, at most 0.895 (docs/lab/2026-11-28-adaptation-digits.md).
_LEAST_CLOSER = 0.9
_CURE = "set predict.pool=none (--pool none)"


def check_blocks(suite: Split | Suite | None) -> None:
    """Check that a suite has blocks of one size, with enough images to compare.

    Raises:
        ConfigError: names what it has instead.
    """
    if not isinstance(suite, Suite):
        raise ConfigError(f"predict.pool: {suite.name if suite else 'suite'} has no blocks to combine; {_CURE}")
    first = suite.blocks[0]
    if first.count < _FEWEST:
        raise ConfigError(
            f"predict.pool: a block needs {_FEWEST} images or more to prove that each shows the same photograph in "
            f"every block, found {first.count} in {first.name}; {_CURE}"
        )
    if unlike := [block for block in suite.blocks if block.count != first.count]:
        raise ConfigError(
            f"predict.pool: expected blocks of one size, found {first.count:,} images in {first.name} and "
            f"{unlike[0].count:,} in {unlike[0].name}; {_CURE}"
        )


class PhotographMatcher:
    """Proves, block by block and without labels, that row i shows the same photograph in every block.

    Low frequencies survive most distortions: grey thumbnails of a seeded sample of rows are correlated with the mean of
    those of the earlier blocks.
    """

    def __init__(self) -> None:
        self._total: NDArray[np.float32] | None = None
        self._rows = np.array([], np.int64)

    def add(self, block: Split) -> None:
        """Compare a block with those before it.

        Raises:
            ConfigError: its rows are no copies of theirs.
        """
        if self._total is None:
            sample = np.random.default_rng(0).choice(len(block), min(_SAMPLE, len(block)), replace=False)
            self._rows = np.sort(sample)
            self._total = _thumbnails(block, self._rows)
            return
        thumbnails = _thumbnails(block, self._rows)
        closer = share_closer(thumbnails, self._total)
        if not closer >= _LEAST_CLOSER:
            raise ConfigError(
                f"predict.pool: row i is not the same photograph in every block: a row of {block.name} is closer to "
                f"its own row of the earlier blocks than to another one in {closer:.0%} of the cases, expected "
                f"{_LEAST_CLOSER:.0%} or more; {_CURE}"
            )
        self._total = self._total + thumbnails


def _thumbnails(block: Split, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return grey thumbnails [N, pixels] without the block's mean and their own, of length 1."""
    pixels = torch.from_numpy(np.array(block.images[rows])).permute(0, 3, 1, 2).float()
    grey = F.adaptive_avg_pool2d(pixels.mean(1, keepdim=True), _SIDE).flatten(1)  # [N, side * side]
    grey = grey - grey.mean(0)  # what the distortion adds to all images
    thumbnails: NDArray[np.float32] = F.normalize(grey - grey.mean(1, keepdim=True)).numpy()
    return thumbnails


def share_closer(thumbnails: NDArray[np.float32], reference: NDArray[np.float32]) -> float:
    """Return how often rows [N, F] correlate more with their own row of the reference than another; chance: 0.5."""
    correlations = thumbnails @ (reference / np.linalg.norm(reference, axis=1, keepdims=True).clip(1e-12)).T
    own = np.diag(correlations)[:, None]
    return float((correlations < own).sum() / (len(own) * (len(own) - 1)))


def combine_blocks(predicted: Predictions) -> Predictions:
    """Return a suite's predictions with each row's mean over the blocks: of log posteriors, weighted by confidence.

    Args:
        predicted: of a softmax task, in blocks of one size; a row's confidence is its largest probability.
    """
    spans = predicted.blocks()
    first = predicted.take(spans[0][1])
    total, weights = np.zeros(first.outputs.shape), np.zeros((len(first), 1))
    for _, rows in spans:
        posteriors = predicted.log_probabilities(rows)
        confidence = np.exp(posteriors.max(1, keepdims=True))
        total += confidence * posteriors
        weights += confidence
    pooled = predictions.from_outputs(
        (total / weights).astype(np.float32),
        task=predicted.task,
        ids=first.ids,
        classes=predicted.classes,
        targets=None,
        made_by={},
    )
    assert pooled.top1 is not None
    outputs, top1 = (np.concatenate([rows] * len(spans)) for rows in (pooled.outputs, pooled.top1))
    return replace(predicted, outputs=outputs, top1=top1)
