"""Predictions that hypothesis draws, for tasks with one label and with several."""

from collections.abc import Sequence

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from comp.results import predictions
from comp.results.predictions import Predictions


def predicted(
    labels: NDArray[np.int64], outputs: NDArray[np.float32], classes: Sequence[str] | None = None
) -> Predictions:
    """Return predictions of `len(labels)` images whose classes exclude each other."""
    names = classes or [str(c) for c in range(outputs.shape[1])]
    ids = np.arange(len(labels)).astype(np.str_)
    return predictions.from_outputs(outputs, task="single_label", ids=ids, classes=names, targets=labels, made_by={})


def predicted_sets(targets: NDArray[np.float32], outputs: NDArray[np.float32]) -> Predictions:
    """Return predictions of images that may have any number of classes."""
    names = [str(c) for c in range(outputs.shape[1])]
    ids = np.arange(len(targets)).astype(np.str_)
    return predictions.from_outputs(outputs, task="multi_label", ids=ids, classes=names, targets=targets, made_by={})


@st.composite
def multi_label(draw: st.DrawFn) -> Predictions:
    """Draw sets of labels, some empty and some classes nowhere, and coarse outputs."""
    shape = draw(st.integers(1, 30)), draw(st.integers(2, 5))
    cells = shape[0] * shape[1]
    targets = draw(st.lists(st.integers(0, 1), min_size=cells, max_size=cells))
    outputs = draw(st.lists(st.integers(-3, 3), min_size=cells, max_size=cells))
    return predicted_sets(np.array(targets, np.float32).reshape(shape), np.array(outputs, np.float32).reshape(shape))
