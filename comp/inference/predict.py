"""Predict images with a model, for validation and for submissions alike."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from comp.data import loading
from comp.data.splits import Split, Suite
from comp.inference import adapt, pool, roid
from comp.inference.fuse_bn import BatchNormFuser
from comp.inference.options import PLAIN, PredictOptions
from comp.inference.views import View, least_confident, views
from comp.results import files, prediction_files, predictions
from comp.results.blocks import Block
from comp.results.predictions import Predictions
from comp.runtime.device import Execution
from comp.runtime.errors import RunError
from comp.runtime.memory import ADVICE, MicroBatch
from comp.runtime.progress import Progress, quiet

# Keys of made_by that tell how a prediction went: the blocks whose steps were undone, an image's forward passes in
# adaptation, and the images at a time that fitted after memory ran out.
_ROLLED_BACK, _FORWARDS, _MICRO_BATCH = "rolled_back", "forward_passes", "micro_batch"
GROUP_ANSWER = "group_answer"  # key of made_by: how a group's images were combined, where they were
_ADVICE = f"predict on another device (--device cpu), or {ADVICE}"

_Part = Split | Block  # of a split, itself; of a suite, a block that is not open yet


@dataclass(frozen=True)
class _PredictJob:
    """Model, images and options, which are the same for every block."""

    model: nn.Module
    images: Split | Suite
    classes: Sequence[str]
    task: str
    execution: Execution
    batch_size: int
    made_by: Mapping[str, Any]
    options: PredictOptions
    progress: Progress
    folding: BatchNormFuser
    forward: MicroBatch
    adapting: MicroBatch

    def open(self, part: _Part) -> Split:
        """Return the images of a part."""
        if isinstance(part, Split):
            return part
        assert isinstance(self.images, Suite)
        return self.images.open(part)

    @property
    def shrunk(self) -> dict[str, int]:
        """What `made_by` records where memory ran out."""
        sizes = [micro_batch.images for micro_batch in (self.forward, self.adapting) if micro_batch.has_shrunk]
        return {_MICRO_BATCH: min(sizes)} if sizes else {}

    def report(self, done: int) -> None:
        """Report progress, with a note where memory ran out."""
        self.progress(self.images.name, done, len(self.images), "images", self.forward.note or self.adapting.note)


def predict(
    model: nn.Module,
    images: Split | Suite,
    *,
    classes: Sequence[str],
    task: str,
    execution: Execution,
    batch_size: int,
    made_by: Mapping[str, Any],
    options: PredictOptions = PLAIN,
    parts: Path | None = None,
    progress: Progress = quiet,
    micro_batch: MicroBatch | None = None,
) -> Predictions:
    """Return a model's predictions of a split, or of a suite's blocks in order: a row for each image, or each group.

    The model predicts in evaluation mode; its mode and weights are restored. Memory holds one block's pixels and all
    outputs.

    Args:
        model: images [B, C, H, W] uint8 -> logits [B, classes]; placed by `execution`.
        images: a split or a suite.
        classes: names of the logits' columns.
        task: a row of `comp.config.tasks.TASKS`.
        execution: device, precision and layout.
        batch_size: images in a forward pass; it changes results only within float tolerance. Where memory runs out,
            half as many, from the batch on that did not fit; `made_by` then records `micro_batch`.
        made_by: recorded with the result.
        options: views, adaptation and pooled blocks, which a split lacks; `prior` is left to the caller, who knows the
            shares.
        parts: folder for a suite's finished blocks. Blocks stored there with the same `made_by` are reused; once the
            result is stored, remove the folder with `delete_partial_blocks`.
        progress: called after every batch.
        micro_batch: what fitted earlier predictions of this model; None: not known.

    Raises:
        ConfigError: blocks to pool do not show the same photographs.
        OutOfMemoryError: not even one image fits.
    """
    images = images.on(execution.device) if isinstance(images, Suite) else images
    folding = BatchNormFuser(changes=options.adapt != "none")
    forward = micro_batch or MicroBatch(batch_size, advice=_ADVICE)
    adapting = MicroBatch(adapt.BATCH_IMAGES, advice=_ADVICE)
    matcher = pool.PhotographMatcher() if options.pool != "none" and isinstance(images, Suite) else None
    job = _PredictJob(
        model,
        images,
        classes,
        task,
        execution,
        batch_size,
        made_by,
        options,
        progress,
        folding,
        forward,
        adapting,
    )
    finished: list[Predictions] = []
    count = 0  # images predicted
    was_training = model.training
    model.eval()
    try:
        for group in _groups(images, options):
            stored = [_load_block(parts, part.name, made_by) for part in group]
            missing = any(block is None for block in stored)
            # Not opened again for each use.
            split = job.open(group[0]) if (missing or matcher) and len(group) == 1 else None
            batches = partial(_batches, job, group, split, count)
            with adapt.adapted(model, batches, options if missing else PLAIN, execution, adapting) as outcome:
                for part, block in zip(group, stored, strict=True):
                    if block is None or matcher:
                        opened = job.open(part) if split is None else split
                        if matcher:
                            matcher.add(opened)
                    if block is None:
                        block = _predict_block(job, opened, count, outcome)
                        went = {**_describe_adaptation(outcome, group, part), **job.shrunk}
                        block = replace(block, made_by={**block.made_by, **went})
                        _save_block(parts, part.name, block)
                    finished.append(block)
                    count += len(block)
    finally:
        model.train(was_training)
    grouped = {GROUP_ANSWER: images.groups.answer} if isinstance(images, Split) and images.groups else {}
    how = {**grouped, **_how_it_went(finished, options)}
    whole = replace(predictions.concatenate(finished), made_by={**made_by, **how})
    return pool.combine_blocks(whole) if matcher else whole


def _describe_adaptation(outcome: adapt.Outcome, group: Sequence[_Part], part: _Part) -> dict[str, Any]:
    """Return what a block's `made_by` records of how the adaptation to its group went."""
    images = sum(each.count if isinstance(each, Block) else len(each) for each in group)
    forwards = {_FORWARDS: round(outcome.forwards / images, 2)} if outcome.forwards else {}
    return {**forwards, **({_ROLLED_BACK: [part.name]} if outcome.rolled_back else {})}


def _how_it_went(finished: Sequence[Predictions], options: PredictOptions) -> dict[str, Any]:
    """Return what `made_by` records beside what was asked for."""
    recorded: dict[str, Any] = {}
    costs = [(block.made_by[_FORWARDS], len(block)) for block in finished if _FORWARDS in block.made_by]
    if costs:
        recorded[_FORWARDS] = round(sum(cost * rows for cost, rows in costs) / sum(rows for _, rows in costs), 2)
    if options.adapt in adapt.STEPS:
        recorded[_ROLLED_BACK] = [name for block in finished for name in block.made_by.get(_ROLLED_BACK, ())]
    sizes = [block.made_by[_MICRO_BATCH] for block in finished if _MICRO_BATCH in block.made_by]
    return {**recorded, _MICRO_BATCH: min(sizes)} if sizes else recorded


def delete_partial_blocks(parts: Path) -> None:
    """Remove the finished blocks of a prediction that is stored whole."""
    with contextlib.suppress(OSError):
        files.remove(parts, inside=parts.parent)


def _groups(images: Split | Suite, options: PredictOptions) -> list[list[_Part]]:
    """Return the parts that the model adapts to together."""
    if isinstance(images, Split):
        return [[images]]
    if options.adapt == "none" or options.adapt_per == "block":
        return [[block] for block in images.blocks]
    if options.adapt_per == "stream":
        return [list(images.blocks)]
    return [list(group) for _, group in groupby(images.blocks, key=lambda block: block.distortion)]


def _batches(job: _PredictJob, group: Sequence[_Part], split: Split | None, count: int) -> Iterator[Tensor]:
    """Yield a group's images on the device, to adapt to; `split` is the group's one open part, or None."""
    for part in group:
        for chunk in loading.iter_chunks(job.open(part) if split is None else split, adapt.BATCH_IMAGES):
            yield _on_device(chunk, job.execution)
            job.report(count)


def _predict_block(job: _PredictJob, split: Split, count: int, outcome: adapt.Outcome) -> Predictions:
    """Return predictions of a split or block by a network with this outcome; `count` images came before it."""
    chosen = views(job.options.views)
    first = chosen if job.options.views_share == 1 else chosen[:1]
    logits = _predict_logits(job, split, first, count)  # [N, C]
    if len(first) < len(chosen):
        rows = least_confident(logits, job.options.views_share)
        more = _predict_logits(job, split.take(rows, split.name), chosen[1:], count + len(split), grows=False)
        logits[rows] = chosen[0].weight * logits[rows] + more
    if job.options.adapt == "roid" and outcome.forwards and not outcome.rolled_back:
        logits += roid.prior_correction(logits if split.blank is None else logits[~split.blank])
    if split.blank is not None:
        logits[split.blank] = predictions.mean_outputs(logits[~split.blank], job.task)
    answered = split.one_per_answer()
    return predictions.from_outputs(
        split.combine(logits, job.task),
        task=job.task,
        ids=answered.ids,
        classes=job.classes,
        targets=answered.labels,
        made_by=job.made_by,
        blocks=[(split.name, len(split))] if isinstance(job.images, Suite) else (),
    )


@torch.inference_mode()
def _predict_logits(
    job: _PredictJob, split: Split, chosen: Sequence[View], count: int, *, grows: bool = True
) -> NDArray[np.float32]:
    """Return the weighted sum of the views' logits [N, C]; a single view has weight 1, whatever its weight in its set.

    Progress starts at `count` images, and counts these N images if `grows`.
    """
    logits = np.empty((len(split), len(job.classes)), np.float32)
    network: nn.Module | None = None
    start = 0
    for chunk in loading.iter_chunks(split, job.batch_size, job.forward):  # [B, H, W, C]
        for attempt in job.forward.attempts(len(chunk)):
            with attempt as part:
                batch = _on_device(chunk[part], job.execution)
                network = job.folding.fuse(job.model, batch) if network is None else network
                total: Tensor | None = None
                for view in chosen:
                    with job.execution.autocast():
                        output = network(job.execution.layout(view.transform(batch))).float()  # [B, C]
                    if len(chosen) > 1:
                        output = view.weight * output
                    total = output if total is None else total + output
                assert total is not None
                done = start + part.stop
                logits[start + part.start : done] = total.cpu().numpy()
                job.report(count + done if grows else count)
        start += len(chunk)
    return logits


def _on_device(images: NDArray[np.uint8], execution: Execution) -> Tensor:
    """Return images [B, H, W, C] of the host as [B, C, H, W] on the device."""
    return execution.layout(torch.from_numpy(images).to(execution.torch_device).permute(0, 3, 1, 2))


def _load_block(folder: Path | None, name: str, made_by: Mapping[str, Any]) -> Predictions | None:
    """Return a stored block; None if it is missing, damaged, or has another `made_by`."""
    if folder is None or not (folder / f"{name}.npz").is_file():
        return None
    try:
        block = prediction_files.load(folder / f"{name}.npz")
    except RunError:
        return None
    recorded = {
        key: value for key, value in block.made_by.items() if key not in (_ROLLED_BACK, _FORWARDS, _MICRO_BATCH)
    }
    return block if recorded == dict(made_by) else None


def _save_block(folder: Path | None, name: str, block: Predictions) -> None:
    if folder is not None:
        files.make_folder(folder)
        prediction_files.save(folder / f"{name}.npz", block)
