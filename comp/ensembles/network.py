"""An ensemble as one network, to export: the members' outputs, combined as `comp.ensembles.methods` combines them.

Each formula is that of `comp.ensembles.spaces` and `methods`, in torch; the check of an export compares both.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from comp.config.tasks import TASKS
from comp.data.splits import Split
from comp.ensembles import collect, methods, new_images, spaces
from comp.ensembles.methods import Fitted
from comp.models import portable
from comp.results.runs import Run
from comp.runtime.errors import RunError
from comp.runtime.progress import Progress, quiet
from comp.workflows import lineage
from comp.workflows.export import Exportable, not_inside
from comp.workflows.load import LoadedRun, load_without_data, open_run_data, verify_run_data

_PLAIN = {"views": "none", "views_for": "all", "adapt": "none", "prior": "none", "pool": "none"}


def _mean_of_exclusive(values: Tensor, weights: Tensor) -> Tensor:
    return (weights * values.exp()).sum(0).clamp(min=spaces.MIN_PROBABILITY).log()


def _mean_of_independent(values: Tensor, weights: Tensor) -> Tensor:
    smallest = torch.finfo(torch.float32).tiny
    present, absent = ((weights * (sign * values).sigmoid()).sum(0).clamp(min=smallest).log() for sign in (1, -1))
    return present - absent


# Activation -> outputs [B, K] as values, and the mean of values [M, B, K] with weights [M, 1, 1].
_SPACES: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]] = {
    "softmax": (lambda outputs: outputs.log_softmax(1).clamp(min=spaces.MIN_LOG), _mean_of_exclusive),
    "sigmoid": (lambda outputs: outputs.clamp(-spaces.MAX_LOGIT, spaces.MAX_LOGIT), _mean_of_independent),
    "identity": (lambda outputs: outputs, lambda values, weights: (weights * values).sum(0)),
}


class Member(nn.Module):
    """A network as the ensemble sees it: outputs [B, K] in the ensemble's order of classes, over its temperature."""

    columns: Tensor

    def __init__(self, network: nn.Module, columns: Sequence[int], temperature: float) -> None:
        super().__init__()
        self.network, self.temperature = network, temperature
        self.register_buffer("columns", torch.tensor(columns))

    def forward(self, images: Tensor) -> Tensor:
        """Return outputs [B, K]."""
        outputs: Tensor = self.network(images)[:, self.columns] / self.temperature
        return outputs


class EnsembleNetwork(nn.Module):
    """Several networks as one: images [B, C, H, W] -> outputs [B, K].

    Args:
        members: images -> outputs [B, K], in one order of classes.
        task: a row of `comp.config.tasks.TASKS`.
        method: a row of `comp.ensembles.methods.METHODS` but rank.
        fitted: the method, with its weights or coefficients.
    """

    weights: Tensor
    coefficients: Tensor

    def __init__(self, members: Sequence[nn.Module], task: str, method: str, fitted: Fitted) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.values, self.mean = _SPACES[TASKS[task].activation]
        self.method = method
        self.register_buffer("weights", torch.tensor(fitted.weights, dtype=torch.float32).view(-1, 1, 1))  # [M, 1, 1]
        learnt = np.zeros((1, 1), np.float32) if fitted.coefficients is None else fitted.coefficients
        self.register_buffer("coefficients", torch.from_numpy(learnt))  # [M K + 1, K] of `stack`

    def forward(self, images: Tensor) -> Tensor:
        """Return outputs [B, K]."""
        values = torch.stack([self.values(member(images)) for member in self.members])  # [M, B, K]
        if self.method == "geometric":
            return values.clamp(spaces.MIN_LOG, -spaces.MIN_LOG).mean(0)
        if self.method == "stack":
            features = values.clamp(min=methods.MIN_STACK_INPUT).permute(1, 0, 2).flatten(1)  # [B, M K]
            return features @ self.coefficients[:-1] + self.coefficients[-1]
        return self.mean(values, self.weights)


def open_ensemble(run: Run, progress: Progress = quiet) -> Exportable:
    """Return an ensemble as one network, ready to export; see `open_run`.

    Raises:
        RunError: it ranks or adapts to the test, its members take other images, or one is missing or changed.
    """
    parts: list[LoadedRun] = []
    network = _build(run, parts)
    kinds = {f"{part.competition.image_shape} {part.config.data.resize}" for part in parts}
    if len(kinds) > 1:
        raise RunError(
            f"{run.path}: its members take different images ({', '.join(sorted(kinds))}), so no one network can"
        )
    first = parts[0].run
    dataset = verify_run_data(first, open_run_data(first, progress))
    views = sorted({part.config.predict.views for part in parts} - {"none"})
    notes = (*not_inside(run), *(f"test-time views of members: {name}" for name in views))
    return Exportable(run, portable.plain_copy(network), tuple(parts), dataset, functools.partial(_predict, run), notes)


def _predict(run: Run, images: Split) -> NDArray[np.float32]:
    """Return an ensemble's outputs [N, K] as `comp predict` computes them, without views, adaptation and decision."""
    result = new_images.predict_with_members(run, np.asarray(images.images), _PLAIN, decide="argmax")
    return result.predictions.outputs.astype(np.float32)


def _build(run: Run, parts: list[LoadedRun]) -> nn.Module:
    """Return an ensemble's network; its trained runs are appended to `parts`."""
    origin, task = new_images.origin_of(run), run.metrics().task
    method, classes = origin["ensemble"], run.provenance("classes")["classes"]
    if method == "rank":
        raise RunError(
            f"{run.path}: is combined by rank: places, of several labels among all images of the test, which a network "
            "that sees one batch cannot know; make it again with --method mean or weighted"
        )
    if origin.get("transductive"):
        raise RunError(
            f"{run.path}: its members adapt to the test, which needs all its images at once, and a network sees one "
            "batch; make it again with --adapt none"
        )
    members = [replace(each, allow_plugins=run.allow_plugins) for each in lineage.members_of(run, "it cannot leave")]
    built = {
        member.path: _member(member, record, run, classes, parts)
        for member, record in zip(members, origin["members"], strict=True)
    }
    space, joined = spaces.SPACES[TASKS[task].activation], []
    for group in collect.group_folds(members):
        folds = [built[each.path] for each in group.runs]
        mean = methods.METHODS["mean"].without_data(len(folds), len(classes), space)
        joined.append(folds[0] if len(folds) == 1 else EnsembleNetwork(folds, task, "mean", mean))
    fitted = new_images.fitted_method(run, method, len(joined), len(classes), space)
    return EnsembleNetwork(joined, task, method, fitted)


def _member(member: Run, record: Mapping[str, Any], run: Run, classes: Sequence[str], parts: list[LoadedRun]) -> Member:
    new_images.check_weights(member, record, run)
    if new_images.is_ensemble(member):
        network = _build(member, parts)
    else:
        parts.append(load_without_data(member))
        network = parts[-1].model
    own = list(member.provenance("classes")["classes"])
    decision, temperature = member.metrics().fitted_decision, 1.0
    if decision is not None and decision.kind == "temperature" and not decision.shift:
        temperature = decision.values[0]  # with a shift, the ensemble undoes both: `decisions.without_shift`
    return Member(network, [own.index(name) for name in classes], temperature)
