"""Teachers: part of every target is the mean prediction of trained networks.

    target = (1 - share) * label + share * mean of softmax(outputs / temperature)

Knowledge distillation (Hinton et al. 2015, arXiv:1503.02531) with the student's own temperature at 1, as for the hard
labels. The teachers see each image once, not augmented (`comp.workflows.teach`); their probabilities lie on the device
and are looked up by sample, so that a resume needs no teacher, and MixUp and CutMix blend them like labels.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from comp.augment import mixing
from comp.config import Config
from comp.data.dataset import Dataset
from comp.results.predictions import ACTIVATIONS, Predictions
from comp.results.runs import Run
from comp.runtime.errors import RunError

NAME = "teacher"  # of its file and of its key in provenance.json


class Teacher:
    """Blends the teachers' probabilities into targets.

    Args:
        probabilities: [N, classes] float32 of all training samples, on the device of the targets.
        share: weight of the probabilities.
    """

    def __init__(self, probabilities: Tensor, share: float) -> None:
        self._probabilities, self._share = probabilities, share

    def soften(self, targets: Tensor, samples: Tensor, plan: mixing.Plan | None, step: int) -> Tensor:
        """Return a step's targets [B, classes] with the teachers' share.

        Args:
            targets: [B, classes], mixed.
            samples: [B] int64, rows of the training split.
            plan: how the window's images are mixed; None: they are not.
            step: of the plan.
        """
        soft = self._probabilities.index_select(0, samples)
        if plan is not None:
            soft = mixing.mix_targets(soft, plan, step)
        return (1 - self._share) * targets + self._share * soft


def probabilities(predicted: Predictions, temperature: float, classes: tuple[str, ...]) -> NDArray[np.float64]:
    """Return probabilities [N, classes] at a temperature, their columns in the order of `classes`, the same names."""
    columns = [predicted.classes.index(name) for name in classes]
    softened = predicted.outputs.astype(np.float64) / temperature
    return ACTIVATIONS[predicted.row.activation](softened)[:, columns]


def to_arrays(mean: NDArray[np.float64], dataset: Dataset) -> Mapping[str, NDArray[Any]]:
    """Return what a run keeps of its teachers: their mean [N, classes] with the samples and classes it is for."""
    return {
        "ids": dataset.train.ids,
        "classes": np.array(dataset.competition.classes, np.str_),
        "probabilities": mean.astype(np.float32),
    }


def open_teacher(run: Run, config: Config, dataset: Dataset, device: torch.device) -> Teacher | None:
    """Return a run's teacher from its teacher.npz; None if it has none.

    Raises:
        RunError: the file is missing, not the recorded one, or of other training images or classes.
    """
    if not config.train.teacher.runs:
        return None
    arrays = run.read_recorded(NAME)
    ids, classes = arrays["ids"], tuple(arrays["classes"].tolist())
    if not np.array_equal(ids, dataset.train.ids) or classes != dataset.competition.classes:
        raise RunError(f"{run.path / 'teacher.npz'}: is for other training images or classes; start a new run")
    return Teacher(torch.from_numpy(arrays["probabilities"]).to(device), config.train.teacher.share)
