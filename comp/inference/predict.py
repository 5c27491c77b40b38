"""From a model and images to predictions. Validation is this too: the trainer calls what writes submissions."""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from comp.data import loading
from comp.data.splits import Split, Suite
from comp.inference import adapt
from comp.inference.fuse_bn import BatchNormFuser
from comp.inference.options import PLAIN, PredictOptions
from comp.inference.views import View, least_confident, views
from comp.results import predictions, runs
from comp.results.blocks import Block
from comp.results.predictions import Predictions
from comp.runtime.device import Execution
from comp.runtime.errors import RunError
from comp.runtime.progress import Progress, quiet

_ROLLED_BACK = "rolled_back"  # of made_by: the blocks whose entropy steps were taken back

_Part = Split | Block  # of a split, itself; of a suite, a block that is still to be opened


@dataclass(frozen=True)
class _PredictJob:
    """How images become logits: all that stays the same from block to block."""

    model: nn.Module
    images: Split | Suite
    classes: Sequence[str]
    task: str
    execution: Execution
    batch_size: int
    made_by: Mapping[str, Any]
    variant: PredictOptions
    progress: Progress
    folding: BatchNormFuser

    def open(self, part: _Part) -> Split:
        """Return the images of a part."""
        if isinstance(part, Split):
            return part
        assert isinstance(self.images, Suite)
        return self.images.open(part)


def predict(
    model: nn.Module,
    images: Split | Suite,
    *,
    classes: Sequence[str],
    task: str,
    execution: Execution,
    batch_size: int,
    made_by: Mapping[str, Any],
    variant: PredictOptions = PLAIN,
    parts: Path | None = None,
    progress: Progress = quiet,
) -> Predictions:
    """Return a model's predictions of a split, or of a suite's blocks one after the other.

    The model is put into evaluation mode and left in the mode, and with the weights, that it came in. Memory holds one
    block's pixels and everybody's outputs.

    Args:
        model: images [B, C, H, W] uint8 -> logits [B, classes]; already placed by `execution`.
        images: what is predicted.
        classes: names of the logits' columns.
        task: a row of `comp.config.tasks.TASKS`.
        execution: device, precision and layout.
        batch_size: images in a forward pass; results do not depend on it beyond float tolerance.
        made_by: recorded with the result.
        variant: views and adaptation.
        parts: folder in which finished blocks of a suite wait for the last one. Blocks that lie there, and were made
            by the same, are not predicted again; whoever stores the result removes it: `forget`.
        progress: called after every batch.
    """
    way = _PredictJob(
        model,
        images,
        classes,
        task,
        execution,
        batch_size,
        made_by,
        variant,
        progress,
        BatchNormFuser(changes=variant.adapt != "none"),
    )
    found: list[Predictions] = []
    was_training = model.training
    model.eval()
    try:
        for group in _groups(images, variant):
            found += _predict_group(way, group, parts, sum(len(part) for part in found))
    finally:
        model.train(was_training)
    rolled_back = [name for part in found for name in part.made_by.get(_ROLLED_BACK, ())]
    noted = {**made_by, _ROLLED_BACK: rolled_back} if variant.adapt == "tent" else made_by
    return replace(predictions.concatenate(found), made_by=noted)


def delete_partial_blocks(parts: Path) -> None:
    """Remove the finished blocks of a prediction that is stored whole."""
    shutil.rmtree(parts, ignore_errors=True)


def _groups(images: Split | Suite, variant: PredictOptions) -> list[list[_Part]]:
    """Return what is adapted to at once."""
    if isinstance(images, Split):
        return [[images]]
    if variant.adapt == "none" or variant.adapt_per == "block":
        return [[block] for block in images.blocks]
    if variant.adapt_per == "stream":
        return [list(images.blocks)]
    return [list(group) for _, group in groupby(images.blocks, key=lambda block: block.distortion)]


def _predict_group(way: _PredictJob, group: list[_Part], folder: Path | None, done: int) -> list[Predictions]:
    names = [part.name for part in group]
    stored = {name: _stored(folder, name, way.made_by) for name in names}
    if all(part is not None for part in stored.values()):
        return [part for part in stored.values() if part is not None]
    opened = way.open(group[0]) if len(group) == 1 else None  # not made twice where one block is the whole group

    def batches() -> Iterator[Tensor]:
        for part in group:
            for chunk in loading.chunks(way.open(part) if opened is None else opened, adapt.BATCH_IMAGES):
                yield _on_device(chunk, way.execution)
                way.progress(way.images.name, done, len(way.images))

    found = []
    with adapt.adapted(way.model, batches, way.variant, way.execution) as outcome:
        for part in group:
            block = stored[part.name]
            if block is None:
                block = _predict_block(way, way.open(part) if opened is None else opened, done)
                if outcome.rolled_back:
                    block = replace(block, made_by={**block.made_by, _ROLLED_BACK: [part.name]})
                _store(folder, part.name, block)
            done += len(block)
            found.append(block)
    return found


def _predict_block(way: _PredictJob, split: Split, done: int) -> Predictions:
    chosen = views(way.variant.views)
    first = chosen if way.variant.views_share == 1 else chosen[:1]
    logits = _logits(way, split, first, done)
    if len(first) < len(chosen):
        rows = least_confident(logits, way.variant.views_share)
        more = _logits(way, split.take(rows, split.name), chosen[1:], done + len(split), grows=False)
        logits[rows] = chosen[0].weight * logits[rows] + more
    if split.blank is not None:
        logits[split.blank] = predictions.mean_outputs(logits[~split.blank], way.task)
    return predictions.from_outputs(
        logits, task=way.task, ids=split.ids, classes=way.classes, targets=split.labels, made_by=way.made_by,
        blocks=[(split.name, len(split))] if isinstance(way.images, Suite) else (),
    )  # fmt: skip


def _logits(
    way: _PredictJob, split: Split, chosen: Sequence[View], done: int, *, grows: bool = True
) -> NDArray[np.float32]:
    """Return the views' logits [N, C], weighted and summed; one view alone is not weighted."""
    logits = np.empty((len(split), len(way.classes)), np.float32)
    network: nn.Module | None = None
    start = 0
    for chunk in loading.chunks(split, way.batch_size):  # [B, H, W, C]
        batch = _on_device(chunk, way.execution)
        network = way.folding.fuse(way.model, batch) if network is None else network
        logits[start : start + len(chunk)] = _forward(network, batch, way.execution, chosen)
        start += len(chunk)
        way.progress(way.images.name, done + start if grows else done, len(way.images))
    return logits


def _on_device(images: NDArray[np.uint8], execution: Execution) -> Tensor:
    """Return images [B, H, W, C] of the host as [B, C, H, W] on the device."""
    return execution.layout(torch.from_numpy(images).to(execution.torch_device).permute(0, 3, 1, 2))


@torch.inference_mode()
def _forward(model: nn.Module, batch: Tensor, execution: Execution, chosen: Sequence[View]) -> NDArray[np.float32]:
    """Return logits [B, classes] of images [B, C, H, W] uint8 on the device: the weighted sum over the views.

    The plain view alone counts whole, whatever its share in its set.
    """
    total: Tensor | None = None
    for view in chosen:
        with execution.autocast():
            logits = model(execution.layout(view.transform(batch))).float()
        if len(chosen) > 1:
            logits = view.weight * logits
        total = logits if total is None else total + logits
    assert total is not None
    return total.cpu().numpy()


def _stored(folder: Path | None, name: str, made_by: Mapping[str, Any]) -> Predictions | None:
    """Return a finished block, None where there is none, or one made by other weights or in another way."""
    if folder is None or not (folder / f"{name}.npz").is_file():
        return None
    try:
        found = predictions.load(folder / f"{name}.npz")
    except RunError:
        return None
    found_by = {key: value for key, value in found.made_by.items() if key != _ROLLED_BACK}
    return found if found_by == dict(made_by) else None


def _store(folder: Path | None, name: str, block: Predictions) -> None:
    if folder is not None:
        runs.make_folder(folder)
        predictions.save(folder / f"{name}.npz", block)
