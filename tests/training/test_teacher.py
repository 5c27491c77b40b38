"""Soft targets and pseudo-labels, compared with plain loops."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit

from comp.augment import mixing
from comp.data import pseudo
from comp.data.splits import Split
from comp.results.predictions import from_outputs
from comp.runtime import rng
from comp.training import teacher
from comp.training.teacher import Teacher


@given(st.integers(2, 9), st.integers(2, 5), st.floats(0.05, 1), st.integers(0, 2**31), st.booleans())
def test_mixed_soft_targets_are_those_of_a_plain_loop(
    count: int, classes: int, share: float, seed: int, columns: bool
) -> None:
    generator = np.random.default_rng(seed)
    table = generator.dirichlet(np.ones(classes), 20).astype(np.float32)
    samples = generator.integers(0, 20, count)
    labels = generator.integers(0, classes, count)
    hard = np.eye(classes, dtype=np.float32)[labels]
    settings = mixing.Mixing(mixup=0.4, cutmix=1.0, label_smoothing=0.1)
    keys = rng.keys(seed, 1, torch.arange(count))
    images = torch.from_numpy(generator.integers(0, 256, (count, 3, 8, 8), dtype=np.uint8))
    plan = mixing.plan_mixing(settings, keys[None], 8, 8)
    given_labels = torch.from_numpy(hard) if columns else torch.from_numpy(labels)
    _, mixed = mixing.mix_planned(images, given_labels, plan, 0, classes=classes, label_smoothing=0.1)
    found = Teacher(torch.from_numpy(table), share).soften(mixed, torch.from_numpy(samples), plan, 0)
    assert plan is not None
    smoothed = hard * 0.9 + (0.05 if columns else 0.1 / classes)
    own = (1 - share) * smoothed + share * table[samples]
    for row in range(count):
        partner = row if row == count - 1 and count % 2 else row ^ 1
        kept = float(plan.kept[0, row])
        assert np.allclose(found[row], kept * own[row] + (1 - kept) * own[partner], atol=1e-6)


@given(st.floats(0.2, 5), st.integers(0, 2**31))
def test_a_multi_label_teachers_probabilities_are_softened_column_by_column(temperature: float, seed: int) -> None:
    outputs = np.random.default_rng(seed).normal(0, 4, (6, 3)).astype(np.float32)
    ids = np.array([str(row) for row in range(6)])
    made = from_outputs(outputs, task="multi_label", ids=ids, classes="abc", targets=None, made_by={})
    found = teacher.probabilities(made, temperature, ("c", "a", "b"))
    assert np.allclose(found, expit(outputs.astype(np.float64) / temperature)[:, [2, 0, 1]])


@given(st.integers(1, 30), st.integers(0, 8), st.floats(0.3, 1), st.booleans(), st.integers(0, 2**31))
def test_the_most_confident_images_are_chosen_and_the_earlier_of_equals(
    count: int, most: int, least: float, columns: bool, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    values = (
        generator.integers(0, 5, (count, 3)) / 4 if columns else generator.dirichlet(np.ones(3) / 3, count).round(1)
    )
    ids = np.array([f"test_{row}" for row in range(count)])
    blank = generator.random(count) < 0.2
    images = Split("test", np.zeros((count, 2, 2, 3), np.uint8), ids, None, blank)
    chosen = pseudo.choose(values, images, ids, "multi_label" if columns else "single_label", least, most)
    sure = {row: min(max(p, 1 - p) for p in values[row]) if columns else max(values[row]) for row in range(count)}
    ranked = sorted((row for row in sure if sure[row] >= least and not blank[row]), key=lambda row: (-sure[row], row))
    assert chosen.rows.tolist() == sorted(ranked[:most])
    assert chosen.confident == len(ranked)
    assert chosen.ids.tolist() == [ids[row] for row in chosen.rows]
    for row, label in zip(chosen.rows, chosen.labels, strict=True):
        assert np.array_equal(label, values[row] >= 0.5) if columns else label == values[row].argmax()
