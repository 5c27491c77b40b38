"""Likely wrong labels, held to a plain loop over the paper's definitions and to labels that were flipped on purpose."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from comp.results.label_errors import find_label_errors


def drawn(
    seed: int, count: int, classes: int, skill: float = 2.0
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """Return probabilities of a model that is right more often than not, given labels, and true labels."""
    generator = np.random.default_rng(seed)
    true = generator.integers(0, classes, count)
    outputs = generator.normal(0, 1, (count, classes))
    outputs[np.arange(count), true] += skill
    odds = np.exp(outputs)
    given_labels = np.where(generator.random(count) < 0.15, generator.integers(0, classes, count), true)
    return odds / odds.sum(1, keepdims=True), given_labels, true


def counted_by_hand(probabilities: NDArray[np.float64], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the calibrated confident joint before rounding, by loops over images (equations 1 to 3 of the paper)."""
    classes = probabilities.shape[1]
    members = [[row for row, label in enumerate(labels) if label == c] for c in range(classes)]
    thresholds = [
        np.mean([probabilities[row, c] for row in rows]) if rows else np.inf for c, rows in enumerate(members)
    ]
    joint = np.zeros((classes, classes))
    for row, label in enumerate(labels):
        reached = [c for c in range(classes) if probabilities[row, c] >= thresholds[c] - 1e-6]
        if reached:
            joint[label, max(reached, key=lambda c: probabilities[row, c])] += 1
    for c in range(classes):
        joint[c, c] = max(joint[c, c], 1)
        joint[c] *= len(members[c]) / joint[c].sum()
    return joint


@given(st.integers(0, 2**31), st.integers(1, 120), st.integers(2, 7))
def test_the_estimated_counts_are_those_of_the_papers_definitions(seed: int, count: int, classes: int) -> None:
    probabilities, labels, _ = drawn(seed, count, classes)
    found = find_label_errors(probabilities, labels)
    assert found.joint.sum(1).tolist() == np.bincount(labels, minlength=classes).tolist()
    assert np.abs(found.joint - counted_by_hand(probabilities, labels)).max() < 1
    assert found.estimated == sum(count for *_, count in found.pairs())


@given(st.integers(0, 2**31), st.integers(1, 120), st.integers(2, 7))
def test_listed_labels_are_the_estimated_number_with_the_largest_margin_of_each_pair(
    seed: int, count: int, classes: int
) -> None:
    probabilities, labels, _ = drawn(seed, count, classes)
    found = find_label_errors(probabilities, labels)
    expected = set()
    for label, true in np.argwhere(found.joint):
        if label != true:
            rows = [row for row in range(count) if labels[row] == label]
            rows.sort(key=lambda row: probabilities[row, label] - probabilities[row, true])
            expected |= {row for row in rows[: found.joint[label, true]] if probabilities[row].argmax() != label}
    assert set(found.rows.tolist()) == expected
    assert (np.diff(found.margins) >= 0).all()
    assert found.suggested.tolist() == probabilities[found.rows].argmax(1).tolist()


@given(st.integers(0, 2**31), st.permutations(range(40)))
def test_the_order_of_images_changes_nothing(seed: int, order: list[int]) -> None:
    probabilities, labels, _ = drawn(seed, 40, 4)
    found, moved = find_label_errors(probabilities, labels), find_label_errors(probabilities[order], labels[order])
    assert np.array(order)[moved.rows].tolist() == found.rows.tolist()
    assert moved.joint.tolist() == found.joint.tolist()


def test_flipped_labels_are_found_and_right_ones_are_not() -> None:
    probabilities, labels, true = drawn(0, 4000, 5, skill=6.0)
    found = find_label_errors(probabilities, labels)
    wrong = labels != true
    assert found.estimated == pytest.approx(wrong.sum(), rel=0.1)
    assert wrong[found.rows].mean() > 0.95
    assert wrong[found.rows].sum() > 0.95 * wrong.sum()
    assert (true[found.rows] == found.suggested).mean() > 0.95


@pytest.mark.parametrize("labels", [[0, 0, 0], [0, 1, 0]])
def test_a_perfect_model_and_a_class_without_images_list_nothing(labels: list[int]) -> None:
    found = find_label_errors(np.eye(3)[labels], np.array(labels))
    assert found.estimated == 0
    assert not len(found.rows)
