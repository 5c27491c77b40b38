"""From a model and images to predictions. Validation is this too: the trainer calls what writes submissions."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from comp import predictions
from comp.data import loading
from comp.data.splits import Split, Suite
from comp.device import Execution
from comp.predictions import Predictions
from comp.progress import Progress, quiet


def predict(
    model: nn.Module,
    images: Split | Suite,
    *,
    classes: Sequence[str],
    execution: Execution,
    batch_size: int,
    made_by: Mapping[str, Any],
    progress: Progress = quiet,
) -> Predictions:
    """Return a model's predictions of a split, or of a suite's blocks one after the other.

    The model is put into evaluation mode and left in the mode that it came in. Memory holds one block's pixels and
    everybody's float16 logits.

    Args:
        model: images [B, C, H, W] uint8 -> logits [B, classes]; already placed by `execution`.
        images: what is predicted.
        classes: names of the logits' columns.
        execution: device, precision and layout.
        batch_size: images in a forward pass; results do not depend on it beyond float tolerance.
        made_by: recorded with the result.
        progress: called after every batch.
    """
    name, total = (images.name, len(images))
    parts: list[Predictions] = []
    done = 0
    was_training = model.training
    model.eval()
    try:
        for split in _splits(images):
            logits = np.empty((len(split), len(classes)), np.float32)
            start = 0
            for chunk in loading.chunks(split, batch_size):  # [B, H, W, C]
                logits[start : start + len(chunk)] = forward(model, chunk, execution)
                start, done = start + len(chunk), done + len(chunk)
                progress(name, done, total)
            part = predictions.from_logits(
                logits, ids=split.ids, classes=classes, labels=split.labels, made_by=made_by,
                blocks=[(split.name, len(split))] if isinstance(images, Suite) else (),
            )  # fmt: skip
            parts.append(part)
    finally:
        model.train(was_training)
    return predictions.concatenate(parts)


def _splits(images: Split | Suite) -> Iterator[Split]:
    if isinstance(images, Split):
        yield images
    else:
        yield from (images.open(block) for block in images.blocks)


@torch.inference_mode()
def forward(model: nn.Module, images: NDArray[np.uint8], execution: Execution) -> NDArray[np.float32]:
    """Return logits [B, classes] of images [B, H, W, C] uint8 on the host."""
    batch = torch.from_numpy(images).to(execution.torch_device).permute(0, 3, 1, 2)
    with execution.autocast():
        logits = model(execution.layout(batch))
    return logits.float().cpu().numpy()  # type: ignore[no-any-return]
