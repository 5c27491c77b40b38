"""One answer for several images: the rule of each task against a plain loop."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy.special import expit, softmax

from comp.config.tasks import TASKS
from comp.data.groups import Groups
from comp.data.splits import Split

ACTIVATIONS = {"softmax": lambda outputs: softmax(outputs, 1), "sigmoid": expit, "identity": lambda outputs: outputs}


def by_loop(names: list[str], outputs: np.ndarray, activation: str, answer: str) -> dict[str, np.ndarray]:
    """Return each group's probabilities or numbers."""
    values, pooled = ACTIVATIONS[activation](outputs.astype(np.float64)), {}
    for name in dict.fromkeys(names):
        own = values[[row for row, other in enumerate(names) if other == name]]
        row = own.mean(0) if answer == "mean" else own.max(0)
        pooled[name] = row / row.sum() if activation == "softmax" else row
    return pooled


@pytest.mark.parametrize("answer", ["mean", "max"])
@pytest.mark.parametrize("task", TASKS)
@settings(max_examples=25)
@given(data=st.data())
def test_a_groups_answer_is_the_mean_or_the_highest_of_its_images(task: str, answer: str, data: st.DataObject) -> None:
    names = data.draw(st.lists(st.sampled_from(["p1", "p10", "P1", "é", "p 2"]), min_size=1, max_size=12))
    columns = 1 if TASKS[task].numeric else 3
    finite = st.floats(-30, 30, width=32)
    outputs = data.draw(arrays.arrays(np.float32, (len(names), columns), elements=finite))
    groups = Groups(np.array(names), answer)
    combined = groups.combine(outputs, task)
    expected = by_loop(names, outputs, TASKS[task].activation, answer)
    assert groups.ids.tolist() == list(expected)
    found = ACTIVATIONS[TASKS[task].activation](combined.astype(np.float64))
    np.testing.assert_allclose(found, np.stack(list(expected.values())), rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("answer", ["mean", "max"])
@pytest.mark.parametrize("task", TASKS)
def test_a_group_of_one_image_answers_as_the_image(task: str, answer: str) -> None:
    columns = 1 if TASKS[task].numeric else 4
    outputs = np.random.default_rng(0).normal(0, 8, (6, columns)).astype(np.float32)
    combined = Groups(np.array(list("fbdace")), answer).combine(outputs, task)
    activation = ACTIVATIONS[TASKS[task].activation]
    np.testing.assert_allclose(activation(combined), activation(outputs), rtol=1e-5, atol=1e-7)


def test_confident_outputs_neither_overflow_nor_lose_their_order() -> None:
    outputs = np.array([[1000, -1000], [900, -900], [-2000, 2000]], np.float32)
    single = Groups(np.array(["a", "a", "b"]), "mean")
    assert np.isfinite(single.combine(outputs, "single_label")).all()
    several = single.combine(outputs, "multi_label")
    assert np.isfinite(several).all()
    np.testing.assert_allclose(expit(several), [[1, 0], [0, 1]])


def test_unreadable_images_do_not_count_unless_their_whole_group_is_unreadable() -> None:
    groups = Groups(np.array(["a", "b", "a", "b", "c"]), "mean")
    outputs = np.array([[1], [2], [9], [4], [7]], np.float32)
    blank = np.array([False, False, True, False, True])
    assert groups.combine(outputs, "regression", blank).ravel().tolist() == [1, 3, 7]


def test_an_output_that_is_not_finite_spoils_its_own_group_only() -> None:
    groups = Groups(np.array(["a", "a", "b"]), "max")
    combined = groups.combine(np.array([[1, 2], [-np.inf, 1], [3, 4]], np.float32), "single_label")
    assert np.isnan(combined[0]).any()
    assert np.isfinite(combined[1]).all()


def test_taking_rows_keeps_each_image_in_its_group() -> None:
    images, labels = np.zeros((5, 2, 2, 3), np.uint8), np.array([0, 1, 0, 1, 0])
    groups = Groups(np.array(["a", "b", "a", "b", "c"]), "mean")
    split = Split("val", images, np.array([f"image{n}" for n in range(5)]), labels, groups=groups)
    part = split.take(np.array([4, 1, 3]), "val").one_per_answer()
    assert part.ids.tolist() == ["c", "b"]
    assert part.labels is not None
    assert part.labels.tolist() == [0, 1]
    assert split.head(2).one_per_answer().ids.tolist() == ["a", "b"]
    assert len(split.one_per_answer()) == 3
    assert groups.differing(labels).tolist() == []
    assert groups.differing(np.array([0, 1, 1, 1, 0])).tolist() == [2]
    assert groups.differing(np.array([[0, 1], [1, 1], [0, 0], [1, 1], [0, 0]], np.float32)).tolist() == [2]
