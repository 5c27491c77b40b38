"""Methods, members and the honest table, on predictions whose truth is known."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from comp.config.tasks import TASKS
from comp.ensembles import align, cross_fit, methods
from comp.ensembles.align import AlignedSplit
from comp.ensembles.methods import METHODS, Scorer
from comp.ensembles.spaces import SPACES, log_probabilities
from comp.results import predictions
from comp.results.blocks import block_grid
from comp.results.predictions import Predictions
from comp.runtime.errors import ConfigError, RunError

CLASSES = 5
ACCURACY = Scorer("accuracy", "abcde", "single_label")
SOFTMAX = SPACES["softmax"]


def drawn(
    seed: int, rows: int, skill: float, labels: np.ndarray, blocks: Sequence[tuple[str, int]] = ()
) -> Predictions:
    """Return a member: noise, and as much of the truth as its skill."""
    logits = np.random.default_rng(seed).normal(0, 1, (rows, CLASSES))
    logits[np.arange(rows), labels] += skill
    ids = np.array([f"val_{row}" for row in range(rows)])
    return predictions.from_outputs(
        logits.astype(np.float32),
        task="single_label",
        ids=ids,
        classes="abcde",
        targets=labels,
        made_by={},
        blocks=blocks,
    )


def a_sample(skills: Sequence[float], rows: int = 600, seed: int = 0) -> AlignedSplit:
    """Return independent members of these skills."""
    labels = np.random.default_rng(seed).integers(0, CLASSES, rows)
    found = [drawn(seed + 1 + number, rows, skill, labels) for number, skill in enumerate(skills)]
    names = [f"member {number}" for number in range(len(skills))]
    return align.align_members("val", names, found, [found[0].ids] * len(found))


def fitted(name: str, sample: AlignedSplit) -> methods.Fitted:
    """Return a method fitted on all of a sample."""
    return METHODS[name].fit(methods.FitData(sample.stack(), sample.space, sample.targets, sample.images, ACCURACY))


def accuracy(name: str, on: AlignedSplit, of: AlignedSplit) -> float:
    """Return the accuracy on one sample of what was fitted on another."""
    assert of.targets is not None
    return float((fitted(name, on).combine(of.stack()).argmax(1) == of.targets).mean())


@pytest.mark.parametrize("name", METHODS)
def test_identical_members_change_no_prediction(name: str) -> None:
    one = a_sample([1.5]).members[0]
    same = align.align_members("val", "abc", [one] * 3, [one.ids] * 3)
    agree = (fitted(name, same).combine(same.stack()).argmax(1) == one.top1).mean()
    assert agree >= (0.9 if name == "stack" else 1.0)  # which may still like a class more than they do


@pytest.mark.parametrize("name", METHODS)
def test_an_ensemble_of_independent_members_is_better_than_any_of_them(name: str) -> None:
    sample, fresh = a_sample([1.2, 1.2, 1.2, 1.2]), a_sample([1.2, 1.2, 1.2, 1.2], seed=50)
    best = max(float((member.top1 == fresh.targets).mean()) for member in fresh.members)
    assert accuracy(name, sample, fresh) > best + 0.03


@pytest.mark.parametrize("name", METHODS)
def test_the_order_of_rows_and_the_moment_do_not_matter(name: str) -> None:
    sample = a_sample([0.5, 2.0])
    once, again = fitted(name, sample), fitted(name, sample)
    stack = sample.stack()
    assert np.array_equal(once.combine(stack), again.combine(stack))
    assert np.allclose(once.combine(stack)[::-1], once.combine(stack[:, ::-1]), atol=1e-5)
    assert once.weights == again.weights


@pytest.mark.parametrize("name", ["weighted", "greedy", "stack"])
def test_methods_that_learn_ignore_a_useless_member(name: str) -> None:
    skills = [2.0, 0.0, 0.0, 0.0]
    sample, fresh = a_sample(skills), a_sample(skills, seed=50)
    alone = float((fresh.members[0].top1 == fresh.targets).mean())
    assert accuracy(name, sample, fresh) > alone - 0.02
    assert accuracy("mean", sample, fresh) < alone - 0.02
    if name != "stack":
        weights = fitted(name, sample).weights
        assert weights[0] > 0.75
        assert sum(weights) == pytest.approx(1)


def test_the_fitted_weights_have_the_least_log_loss_of_all_convex_ones() -> None:
    sample = a_sample([1.0, 1.6, 0.3])
    assert sample.targets is not None
    right = np.exp(sample.stack()[:, np.arange(600), sample.targets])  # [M, N]

    def loss(weights: np.ndarray) -> float:
        return float(-np.log(weights @ right).mean())

    found = np.array(fitted("weighted", sample).weights)
    generator = np.random.default_rng(0)
    others = [*generator.dirichlet(np.ones(3), 300), *(found + generator.dirichlet(np.ones(3) * 9, 99) * 0.02) / 1.02]
    assert loss(found) <= min(loss(other) for other in others) + 1e-6


def test_a_stack_learns_what_no_average_can() -> None:
    sample = a_sample([1.5, 1.5])
    swapped = [2, 0, 1, 3, 4]  # one member calls three classes by each other's names
    confused = predictions.from_outputs(
        sample.members[1].outputs.astype(np.float32)[:, swapped],
        ids=sample.members[1].ids,
        classes="abcde",
        task="single_label",
        targets=sample.targets,
        made_by={},
    )
    mixed = align.align_members("val", "ab", [sample.members[0], confused], [sample.images] * 2)
    assert accuracy("stack", mixed, mixed) > accuracy("mean", mixed, mixed) + 0.1


def test_geometric_and_arithmetic_means_match_their_definitions() -> None:
    stack = np.log(np.array([[[0.9, 0.1]], [[0.4, 0.6]]], np.float32))
    assert np.exp(METHODS["mean"].without_data(2, 2, SOFTMAX).combine(stack)) == pytest.approx(np.array([[0.65, 0.35]]))
    found = np.exp(METHODS["geometric"].without_data(2, 2, SOFTMAX).combine(stack))
    assert found / found.sum() == pytest.approx(np.array([[6, 1]]) ** 0.5 / (6**0.5 + 1), rel=1e-5)


def test_ranks_compare_positions_then_probabilities() -> None:
    rows = np.array([[[0.97, 0.02, 0.01]], [[0.3, 0.6, 0.1]], [[0.3, 0.6, 0.1]]], np.float32)
    assert METHODS["rank"].without_data(3, 3, SOFTMAX).combine(np.log(rows)).argmax(1) == [
        1
    ]  # places 0 1 1: surer does not count
    assert METHODS["rank"].without_data(2, 3, SOFTMAX).combine(np.log(rows[:2])).argmax(1) == [
        0
    ]  # places 0 1, then the surer


def test_a_certain_member_has_no_veto() -> None:
    sure = log_probabilities(np.array([[0.0, -60_000.0]], np.float16))
    other = log_probabilities(np.array([[-30.0, 0.0]], np.float16))
    assert sure[0, 1] == other[0, 0] == -20


@given(seed=st.integers(0, 10**6), folds=st.integers(2, 6))
def test_folds_hold_images_together_and_classes_apart(seed: int, folds: int) -> None:
    generator = np.random.default_rng(seed)
    count = int(generator.integers(folds, 60))
    labels = generator.integers(0, 3, count)
    rows = generator.integers(0, count, 200)
    rows[:count] = np.arange(count)
    names = np.array([f"i{number}" for number in range(count)])
    fold = cross_fit.assign_folds(names[rows], labels[rows], folds)
    assert all(len(set(fold[rows == image])) == 1 for image in range(count))
    sizes = np.array([[np.sum((fold[:count] == f) & (labels == label)) for label in range(3)] for f in range(folds)])
    assert (sizes.max(0) - sizes.min(0) <= 1).all()
    assert set(fold) == set(range(folds))


@pytest.mark.parametrize("count", [1, 2, 7])
def test_a_penalty_is_chosen_on_held_out_images(count: int) -> None:
    images = np.array([f"i{row % count}" for row in range(28)])
    task = methods.FitData(np.zeros((1, 28, 2), np.float32), SOFTMAX, np.zeros(28, int), images)
    tried, held = task.split_rows()
    assert sorted([*tried, *held]) == list(range(28))
    assert len(tried) > 0
    assert len(held) > 0
    assert count == 1 or not set(images[tried]) & set(images[held])


def test_a_bag_holds_all_copies_of_an_image_or_none() -> None:
    images = np.array([f"i{row % 7}" for row in range(28)])
    task = methods.FitData(np.zeros((1, 28, 2), np.float32), SOFTMAX, np.zeros(28, int), images)
    rows = task.draw_bag(np.random.default_rng(0))
    times = np.bincount(rows, minlength=28)
    assert all(len(set(times[images == image])) == 1 for image in images)
    assert times.sum() == 28
    assert (times == 0).any()


def test_too_many_folds_are_refused() -> None:
    with pytest.raises(ConfigError, match="--folds: expected 2 to 3"):
        cross_fit.assign_folds(np.array(["a", "b", "c"]), np.array([0, 1, 0]), 4)


def compared(name: str, sample: AlignedSplit, folds: int = 5) -> cross_fit.Comparison:
    """Return the table."""
    crossed = cross_fit.cross_fit(METHODS[name], sample, folds, ACCURACY)
    held_out = cross_fit.predict_out_of_fold(crossed, sample, {})
    return cross_fit.compare_with_members("val", sample, crossed, fitted(name, sample), held_out, "accuracy")


def test_cross_fitting_shows_no_gain_over_noise() -> None:
    gains, shown = [], []
    for seed in range(6):
        sample = a_sample([0.0] * 4, rows=200, seed=100 * seed)
        found = compared("stack", sample)
        gains.append(found.ensemble.accuracy - 1 / CLASSES)
        shown.append(accuracy("stack", sample, sample) - 1 / CLASSES)
    assert abs(np.mean(gains)) < 0.04  # 1200 rows: a standard deviation is 0.012
    assert np.mean(shown) > 0.05


def test_the_table_shows_members_disagreement_and_gain() -> None:
    found = compared("mean", a_sample([1.0, 1.5, 1.2]))
    assert [row.name for row in found.members] == ["member 0", "member 1", "member 2"]
    assert found.best_single.accuracy == pytest.approx(found.members[1].accuracy)
    assert found.gain == pytest.approx(found.ensemble.accuracy - found.best_single.accuracy)
    matrix = np.array(found.disagreement)
    assert (matrix == matrix.T).all()
    assert (matrix.diagonal() == 0).all()
    assert 0.2 < matrix[0, 1] < 0.8
    assert 0 < found.gain_error < 0.1


def test_an_image_is_never_scored_by_a_fit_on_it_or_its_shifted_copies() -> None:
    clean = a_sample([0.0, 0.0], rows=100)
    assert clean.targets is not None
    labels = np.tile(clean.targets[:50], 2)  # the first 50 images, shifted in two ways
    copies = tuple(with_labels(member, labels) for member in clean.members)
    shifted = AlignedSplit(clean.names, copies, np.tile(clean.images[:50], 2))
    fits: list[set[str]] = []

    def remember(task: methods.FitData) -> methods.Fitted:
        assert task.images is not None
        fits.append(set(task.images.tolist()))
        return methods.Fitted(lambda rows: rows[0])

    crossed = cross_fit.cross_fit(methods.Method(remember, learns=True), shifted, 5, ACCURACY)
    assert [len(seen) for seen in fits] == [40] * 5
    for sample in (clean, shifted):
        for image, number in zip(sample.images.tolist(), crossed.folds_of(sample.images), strict=True):
            assert image not in fits[number]


def with_labels(found: Predictions, labels: np.ndarray) -> Predictions:
    """Return predictions with other labels."""
    return predictions.from_outputs(
        found.outputs.astype(np.float32),
        task=found.task,
        ids=found.ids,
        classes=found.classes,
        targets=labels,
        made_by={},
    )


BASE = a_sample([1.0], rows=12).members[0]


def changed(**fields: object) -> Predictions:
    """Return BASE with some of its fields changed."""
    given: dict[str, object] = {
        "task": BASE.task,
        "ids": BASE.ids,
        "classes": BASE.classes,
        "targets": BASE.targets,
        "made_by": {},
        "blocks": (),
        **fields,
    }
    logits = given.pop("logits", BASE.outputs.astype(np.float32))
    return predictions.from_outputs(logits, **given)  # type: ignore[arg-type]


SHORT = slice(0, 10)
assert BASE.targets is not None


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            changed(ids=BASE.ids[SHORT], targets=BASE.targets[SHORT], logits=BASE.outputs[SHORT].astype(np.float32)),
            "have 10 rows, expected 12",
        ),
        (changed(ids=BASE.ids[::-1]), "order differs .*row 1 is val_11, expected val_0"),
        (changed(ids=np.array([f"test_{row}" for row in range(12)])), "ids differ .*row 1 is test_0"),
        (changed(classes="abcdf"), "have other classes than first: 5 classes, a, b, c, d, f; expected 5 classes"),
        (changed(classes="abcdef", logits=np.zeros((12, 6), np.float32)), "6 classes, a, b, c, d, e ...; expected 5"),
        (changed(targets=(BASE.targets + 1) % 5), "have other labels"),
        (changed(blocks=[("distortion00_1", 12)]), "have other blocks than first"),
    ],
)
def test_incompatible_members_are_refused(other: Predictions, message: str) -> None:
    with pytest.raises(RunError, match=message):
        align.align_members("val", ["first", "second"], [BASE, other], [BASE.ids, other.ids])


def test_equal_ids_of_other_images_are_refused() -> None:
    with pytest.raises(RunError, match="their validation splits differ"):
        align.align_members("ood_val", ["first", "second"], [BASE, BASE], [BASE.ids, BASE.ids[::-1]])


def test_joined_folds_hold_every_image_once_in_blocks_with_all_folds() -> None:
    labels = np.arange(30) % CLASSES
    whole = drawn(3, 30, 1.0, labels)
    cuts = [np.arange(fold, 30, 3) for fold in range(3)]
    parts = [
        changed(ids=whole.ids[rows], targets=labels[rows], logits=whole.outputs[rows].astype(np.float32))
        for rows in cuts
    ]
    joined, images = align.join_folds(parts, [part.ids for part in parts])
    assert sorted(joined.ids) == sorted(whole.ids)
    assert (joined.ids == images).all()
    layout = block_grid(range(2), (1,), 5)
    blocks = [(block.name, block.count) for block in layout]
    ids = np.concatenate([block.ids() for block in layout])
    shifted = [
        changed(ids=ids, targets=part.targets, logits=part.outputs.astype(np.float32), blocks=blocks) for part in parts
    ]
    joined, images = align.join_folds(shifted, [np.tile(part.ids[:5], 2) for part in parts])
    assert [(name, rows.stop - rows.start) for name, rows in joined.blocks()] == [(n, 15) for n, _ in blocks]
    assert len(set(joined.ids)) == 30
    assert joined.ids[5] == "distortion00_1_0@1"
    assert (images[:15] == images[15:]).all()
    with pytest.raises(RunError, match="in two folds"):
        align.join_folds([parts[0], parts[0]], [parts[0].ids] * 2)


@settings(max_examples=20)
@given(name=st.sampled_from(["log_loss", "macro_f1", "roc_auc", "accuracy"]), seed=st.integers(0, 99))
def test_a_better_member_scores_higher_whatever_the_metric(name: str, seed: int) -> None:
    sample = a_sample([0.2, 2.5], seed=seed)
    assert sample.targets is not None
    weak, strong = np.exp(sample.stack())
    score = Scorer(name, "abcde", "single_label")
    assert score(strong, sample.targets) > score(weak, sample.targets)


def test_an_unknown_method_lists_the_known_and_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"unknown method 'gredy'; choose from .*\(did you mean 'greedy'\?\)"):
        methods.method("gredy", TASKS["single_label"])
