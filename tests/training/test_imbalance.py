"""Rare classes are drawn more often or weigh more: exactly, whatever is interrupted, cut into parts or shared."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.utils.class_weight import compute_class_weight

from comp import config as configs
from comp.config import Config
from comp.data.dataset import Dataset, open_dataset
from comp.models import zoo
from comp.results.runs import Run
from comp.runtime import rng
from comp.runtime.device import Execution
from comp.runtime.errors import ConfigError, Interrupted
from comp.training import imbalance, losses
from comp.training.batches import planned_batches
from comp.training.context import build_context
from comp.training.step import split_batch
from comp.workflows import train
from tests.support.commands import Result, assert_refused, comp_process, interrupt_at
from tests.support.configs import small_config, write_arrays, write_config
from tests.support.runs import assert_same_weights, history_without_clock, the_run

PLAIN = ["competition.suite.source=none", "competition.ood_validation.severities=[]"]
EVERYTHING = [
    *PLAIN, "data.sampling=sqrt", "train.class_weights=balanced", "train.loss=focal", "train.average=ema",
    "model.name=convnet", "model.args={}",
]  # fmt: skip
TAIL = (60, 24, 10, 6)  # training images of each class


@pytest.fixture
def tail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory whose classes have very different numbers of images, and `small.yaml`."""
    monkeypatch.chdir(tmp_path)
    write_long_tail(tmp_path / "data")
    write_config(tmp_path / "small.yaml", small_config(tmp_path / "data"))
    return tmp_path


def write_long_tail(folder: Path) -> None:
    write_arrays(folder, train=4 * max(TAIL))
    labels = np.load(folder / "train_labels.npy")
    rows = np.sort(np.concatenate([np.flatnonzero(labels == name)[:size] for name, size in enumerate(TAIL)]))
    for name in ("images", "labels"):
        np.save(folder / f"train_{name}.npy", np.load(folder / f"train_{name}.npy")[rows])


def sampled(sampling: str, seed: int = 0) -> Config:
    return configs.from_mapping({"data": {"sampling": sampling}, "seed": seed}, "here")


@st.composite
def labels(draw: st.DrawFn) -> NDArray[np.int64] | NDArray[np.float32]:
    """Return class indices [N], or columns [N, 4] in which some rows may have no class."""
    seed, count = draw(st.integers(0, 10_000)), draw(st.integers(2, 80))
    generator, shares = np.random.default_rng(seed), np.array([0.7, 0.2, 0.07, 0.03])
    if draw(st.booleans()):
        return (generator.random((count, 4)) < shares).astype(np.float32)
    return generator.choice(4, count, p=shares)


def rarest(labels: NDArray[np.int64] | NDArray[np.float32]) -> list[int]:
    """Return each image's class: of several the one with the fewest images, and -1 for none."""
    if labels.ndim == 1:
        return [int(label) for label in labels]
    sizes = labels.sum(0)
    return [min(np.flatnonzero(row), key=lambda name: (sizes[name], name), default=-1) for row in labels]


@settings(max_examples=60)
@given(
    labels=labels(), seed=st.integers(0, 99), epoch=st.integers(1, 9), sampling=st.sampled_from(["balanced", "sqrt"])
)
def test_an_epoch_draws_each_class_by_its_share_and_its_images_equally_often(
    labels: NDArray[np.int64], seed: int, epoch: int, sampling: str
) -> None:
    config, count = sampled(sampling, seed), len(labels)
    draws = imbalance.epoch_order(config, labels, epoch)
    assert torch.equal(draws, imbalance.epoch_order(config, labels, epoch))
    assert len(draws) == count
    groups = np.array(rarest(labels))
    sizes = {group: int((groups == group).sum()) for group in set(groups.tolist())}
    power = {"balanced": 0.0, "sqrt": 0.5}[sampling]
    total = sum(size**power for size in sizes.values())
    rows, occurrences = (draws % count).numpy(), (draws // count).numpy()
    times = np.bincount(rows, minlength=count)
    for group, size in sizes.items():
        expected = count * size**power / total
        assert abs(times[groups == group].sum() - expected) < 1 + 1e-6
        assert abs(times[groups == group] - expected / size).max() < 1 + 1e-6
    for row in range(count):
        assert sorted(occurrences[rows == row]) == list(range(times[row]))


def test_natural_sampling_takes_each_image_once_in_the_order_it_always_had() -> None:
    labels = np.repeat([0, 1], [90, 10])
    assert torch.equal(imbalance.epoch_order(sampled("natural", 7), labels, 3), rng.order(7, 3, 100))


def test_all_images_of_a_common_class_are_seen_in_some_epochs() -> None:
    labels = np.repeat([0, 1], [90, 10])
    epochs = [imbalance.epoch_order(sampled("balanced"), labels, epoch) % 100 for epoch in range(1, 13)]
    counts = torch.bincount(torch.cat(epochs), minlength=100)
    assert len({tuple(epoch.tolist()) for epoch in epochs}) == 12
    assert (counts[:90] > 0).all()
    assert counts[:90].float().mean() == pytest.approx(12 * 50 / 90, rel=0.02)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return an uninterrupted run of the long-tailed data."""
    folder = tmp_path_factory.mktemp("whole")
    write_long_tail(folder / "data")
    path = write_config(folder / "small.yaml", small_config(folder / "data"))
    return train.train(configs.load(path, EVERYTHING), runs_root=folder / "runs")


@pytest.mark.parametrize("stop_at", [1, 3])
def test_a_sampled_and_weighted_run_stopped_at_any_step_ends_with_the_same_bits(
    tail: Path, whole: Run, stop_at: int
) -> None:
    with pytest.raises(Interrupted):
        train.train(configs.load("small.yaml", EVERYTHING), progress=interrupt_at(stop_at))
    resumed = train.resume(the_run())
    assert_same_weights(whole, resumed)
    assert history_without_clock(whole) == history_without_clock(resumed)


def test_what_is_drawn_and_how_much_it_weighs_is_told_and_recorded(whole: Run) -> None:
    notes = "\n".join(whole.provenance()["notes"])
    assert "loss: focal" in notes
    assert "sampling (sqrt): an epoch draws 80 images" in notes
    assert "class weights (balanced): " in notes


def drawn_batches(overrides: list[str], batch_size: int) -> dict[int, torch.Tensor]:
    """Return an epoch's augmented images by draw, as a training sees them."""
    config = configs.load(
        "small.yaml", [*PLAIN, "data.sampling=balanced", f"train.batch_size={batch_size}", *overrides]
    )
    dataset = open_dataset(config)
    model = zoo.build(config.model, classes=4, image_shape=(3, 32, 32), mean=dataset.mean, std=dataset.std, seed=0)
    execution = Execution(device="cpu", precision="fp32", channels_last=False, threads=1)
    context = build_context(config, dataset, Run(Path()), model, execution, fresh=False)
    images = {}
    for planned in planned_batches(context, context.order(1), batch_size, epoch=1):
        assert torch.equal(planned.batch.indices, planned.draws % len(dataset.train))
        assert dataset.train.labels is not None
        assert planned.batch.labels.tolist() == dataset.train.labels[planned.batch.indices.numpy()].tolist()
        images |= dict(zip(planned.draws.tolist(), planned.augmented(context), strict=True))
    return images


@pytest.mark.parametrize(
    "overrides",
    [
        ["augment.policy=[basic, color_jitter]"],
        ["data.loading=streamed", "data.workers=0", "augment.albumentations=[{name: GaussNoise, p: 1}]"],
        ["augment.policy=photo", "data.workers=0"],
    ],
    ids=["on the device", "in workers", "while read"],
)
def test_an_image_drawn_again_is_augmented_anew_and_the_same_in_every_batch(tail: Path, overrides: list[str]) -> None:
    images = drawn_batches(overrides, 8)
    count = 80  # training images
    again = [draw for draw in images if draw >= count and draw - count in images]
    assert len(again) > 10
    assert all(not torch.equal(images[draw], images[draw - count]) for draw in again)
    assert all(torch.equal(image, images[draw]) for draw, image in drawn_batches(overrides, 16).items())


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Return an open data set of four classes, whose labels tests replace."""
    folder = tmp_path_factory.mktemp("labels")
    values = small_config(write_arrays(folder / "data", train=40))
    return open_dataset(configs.load(write_config(folder / "small.yaml", values), PLAIN))


def with_labels(data: Dataset, labels: NDArray[np.int64] | NDArray[np.float32]) -> Dataset:
    task = "single_label" if labels.ndim == 1 else "multi_label"
    train = replace(data.train, labels=labels)
    return replace(data, train=train, competition=replace(data.competition, task=task))


def weighted(class_weights: object, sampling: str = "natural", **train: object) -> Config:
    values = {"data": {"sampling": sampling}, "train": {"class_weights": class_weights, **train}}
    return configs.from_mapping(values, "here")


def one_hot(labels: NDArray[np.int64] | NDArray[np.float32]) -> NDArray[np.float64]:
    return np.eye(4)[labels] if labels.ndim == 1 else labels.astype(float)


CHOSEN: list[object] = ["balanced", "effective", {"0": 3.0, "2": 0.5}]


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    labels=labels(),
    chosen=st.sampled_from(CHOSEN),
    sampling=st.sampled_from(["natural", "balanced", "sqrt"]),
)
def test_weights_have_a_mean_of_one_over_the_images_of_an_epoch(
    data: Dataset, labels: NDArray[np.int64], chosen: object, sampling: str
) -> None:
    weights = imbalance.class_weights(weighted(chosen, sampling), with_labels(data, labels))
    assert weights is not None
    draws, columns = imbalance.expected_draws(labels, sampling), one_hot(labels)
    assert draws.sum() == pytest.approx(len(labels))
    each = columns * weights.present + (1 - columns) * weights.absent  # [N, 4]
    if labels.ndim == 1:
        assert draws @ each.sum(1) == pytest.approx(len(labels))
    else:
        assert draws @ each == pytest.approx(np.full(4, len(labels)))


def test_balanced_weights_are_scikit_learns_and_effective_ones_the_papers(data: Dataset) -> None:
    labels = np.repeat([0, 1, 2, 3], [500, 60, 9, 2])
    balanced = imbalance.class_weights(weighted("balanced"), with_labels(data, labels))
    assert balanced is not None
    assert balanced.present == pytest.approx(compute_class_weight("balanced", classes=np.arange(4), y=labels))
    effective = imbalance.class_weights(weighted("effective"), with_labels(data, labels))
    assert effective is not None
    inverse = (1 - 0.999) / (1 - 0.999 ** np.array([500, 60, 9, 2]))
    assert effective.present / effective.present[0] == pytest.approx(inverse / inverse[0])
    columns = np.eye(4, dtype=np.float32)[labels]
    each = imbalance.class_weights(weighted("balanced"), with_labels(data, columns))
    assert each is not None
    for name in range(4):
        expected = compute_class_weight("balanced", classes=np.arange(2), y=columns[:, name])
        assert [each.absent[name], each.present[name]] == pytest.approx(expected)


def test_what_sampling_has_balanced_is_not_balanced_again(data: Dataset) -> None:
    labels = np.repeat([0, 1, 2, 3], [500, 60, 9, 2])
    weights = imbalance.class_weights(weighted("balanced", "balanced"), with_labels(data, labels))
    assert weights is not None
    assert weights.present == pytest.approx(np.ones(4))
    halfway = imbalance.class_weights(weighted("balanced", "sqrt"), with_labels(data, labels))
    assert halfway is not None
    assert halfway.present / halfway.present[0] == pytest.approx(np.sqrt(500 / np.array([500, 60, 9, 2])))


@pytest.mark.parametrize("columns", [False, True], ids=["one class", "several"])
@pytest.mark.parametrize("loss", ["auto", "focal", "bce", "poly"])
def test_mixed_smoothed_targets_weigh_as_their_classes_do_and_parts_of_a_batch_average_exactly(
    data: Dataset, loss: str, columns: bool
) -> None:
    generator, smoothing = np.random.default_rng(0), 0.1
    labels = generator.choice(4, 64, p=[0.7, 0.2, 0.05, 0.05])
    known = np.eye(4, dtype=np.float32)[labels] if columns else labels
    config = weighted({"3": 9.0, "0": 0.5}, loss=loss, label_smoothing=smoothing)
    dataset = with_labels(data, known)
    criterion = losses.build_criterion(config, dataset, torch.device("cpu"))
    unweighted = losses.build_criterion(weighted("none", loss=loss), dataset, torch.device("cpu"))
    weights = imbalance.class_weights(config, dataset)
    assert weights is not None
    logits = torch.from_numpy(generator.normal(0, 2, (7, 4))).float()
    share = torch.from_numpy(generator.random((7, 1))).float()
    mixed = share * torch.eye(4)[labels[:7]] + (1 - share) * torch.eye(4)[labels[7:14]]
    targets = mixed * (1 - smoothing) + smoothing / (2 if columns else 4)
    total = 0.0
    for row in range(7):  # a plain loop
        if columns:
            for name in range(4):
                weight = mixed[row, name] * weights.present[name] + (1 - mixed[row, name]) * weights.absent[name]
                cell = (slice(row, row + 1), slice(name, name + 1))
                total += float(weight * unweighted(logits[cell], targets[cell])) / 4
        else:
            weight = sum(float(mixed[row, name]) * weights.present[name] for name in range(4))
            total += float(weight * unweighted(logits[row : row + 1], targets[row : row + 1]))
    assert criterion(logits, targets).item() == pytest.approx(total / 7, rel=1e-4)
    parts = [(part.stop - part.start) * criterion(logits[part], targets[part]) for part in split_batch(7, 2)]
    assert float(sum(parts)) / 7 == pytest.approx(criterion(logits, targets).item(), rel=1e-5)


def test_no_teachers_share_of_the_targets_turns_a_weight_negative(data: Dataset) -> None:
    labels = np.repeat(np.arange(4), (20, 16, 3, 1))
    for share in (0.5, 0.9):
        config = weighted("balanced", label_smoothing=0.1, teacher={"runs": ["other"], "share": share})
        criterion = losses.build_criterion(config, with_labels(data, labels), torch.device("cpu"))
        smoothed = 0.9 * torch.eye(4) + 0.1 / 4
        taught = (1 - share) * smoothed + share * torch.eye(4)  # by a teacher that is sure and right
        each = [criterion(torch.zeros(1, 4), taught[row : row + 1]).item() for row in range(4)]
        expected = [math.log(4) * 10 / size for size in (20, 16, 3, 1)]
        assert each == pytest.approx(expected)


def test_weights_of_one_leave_the_loss_as_it_is(data: Dataset) -> None:
    labels = np.arange(40) % 4
    logits, targets = torch.randn(8, 4, generator=torch.Generator().manual_seed(0)), torch.eye(4)[labels[:8]]
    criterion = losses.build_criterion(weighted("balanced"), with_labels(data, labels), torch.device("cpu"))
    assert criterion(logits, targets).item() == pytest.approx(losses.LOSSES["cross_entropy"](logits, targets).item())


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["train.class_weights={3: 2, cat: 1.5}"], ("train.class_weights: unknown class 'cat'", "choose from 0, 1")),
        (["train.class_weights={}"], ("train.class_weights: expected the weight of at least one class, found {}",)),
        (["train.class_weights={3: 0}"], ("train.class_weights", "3: expected a number from 1e-06 to 1e+06, found 0")),
        (
            ["train.class_weights={3:2}"],
            ("train.class_weights: 3:2: expected a number from 1e-06 to 1e+06", "write {cat: 2.5}"),
        ),
        (
            ["train.class_weights={3: .nan}"],
            ("train.class_weights: 3: expected a number from 1e-06 to 1e+06, found nan",),
        ),
        (
            ["train.class_weights={3: .inf}"],
            ("train.class_weights: 3: expected a number from 1e-06 to 1e+06, found inf",),
        ),
        (["train.class_weights.3=-1"], ("train.class_weights: 3: expected a number from 1e-06 to 1e+06, found -1",)),
        (
            ["train.class_weights={3: heavy}"],
            ("train.class_weights: 3: expected a number from 1e-06 to 1e+06, found 'heavy'",),
        ),
        (["train.class_weights=inverse"], ("train.class_weights", "'balanced', 'effective' or a mapping", "'inverse'")),
        (["data.sampling=equal"], ("data.sampling", "'balanced'", "'equal'")),
    ],
)
def test_weights_and_sampling_that_make_no_sense_are_refused_before_training(
    tail: Path, comp: Callable[..., Result], overrides: list[str], parts: tuple[str, ...]
) -> None:
    assert_refused(comp("train", "small.yaml", *overrides), *parts)
    assert not Path("runs").exists()


@pytest.mark.parametrize("labels", [np.zeros(40, np.int64), np.tile(np.float32([1, 0, 0, 0]), (40, 1))])
def test_one_class_alone_cannot_be_balanced(data: Dataset, labels: NDArray[np.float32]) -> None:
    dataset = with_labels(data, labels)
    with pytest.raises(ConfigError, match=r"data.sampling: there is nothing to balance.*one class"):
        imbalance.check_imbalance(sampled("sqrt"), dataset)
    with pytest.raises(ConfigError, match=r"train.class_weights: there is nothing to balance"):
        imbalance.check_imbalance(weighted({"0": 2.0}), dataset)
    imbalance.check_imbalance(Config(), dataset)


def test_a_class_without_images_has_no_computed_weight_and_is_passed_over_by_sampling(
    tail: Path, comp: Callable[..., Result]
) -> None:
    labels = np.load("data/train_labels.npy")
    Path("data/classes.txt").write_text("red\nblue\ngrey\ngreen\n")
    np.save("data/train_labels.npy", np.where(labels == 3, 0, labels))
    result = comp("train", "small.yaml", *PLAIN, "train.class_weights=effective")
    assert_refused(result, "train.class_weights: effective", "there are none of green", "data.sampling=balanced")
    result = comp("train", "small.yaml", *PLAIN, "train.epochs=1", "data.sampling=balanced")
    assert result.code == 0, result.err
    assert "sampling (balanced): an epoch draws 80 images" in result.err


def test_the_learning_rate_finder_takes_the_steps_of_the_training(tail: Path) -> None:
    plain, ours = (
        train.find_learning_rate(configs.load("small.yaml", [*PLAIN, "augment.mixup=0", *more]), steps=20)
        for more in ([], ["train.loss=poly", "train.loss_args={epsilon: 10}", "data.sampling=balanced"])
    )
    assert ours.losses[0] == pytest.approx(plain.losses[0] + 10 * 0.75, rel=0.15)  # epsilon (1 - p), at chance


@pytest.mark.slow  # 9 s
def test_two_processes_give_the_curve_of_one_with_sampling_and_weights(tail: Path) -> None:
    settings = [
        *PLAIN, "train.epochs=3", "data.sampling=sqrt", "train.class_weights=balanced", "train.loss=focal",
        "model.args.drop_rate=0.0",
    ]  # fmt: skip
    done = comp_process("train", "small.yaml", *settings, "--gpus", "2", "--runs", "two", cwd=tail)
    assert done.returncode == 0, done.stderr
    one, two = train.train(configs.load("small.yaml", settings), runs_root=Path("one")), the_run(Path("two"))
    curves = [
        [[float(row[name]) for name in ("train_loss", "train_accuracy", "val_loss")] for row in run.history()]
        for run in (one, two)
    ]
    assert np.allclose(*curves, atol=2e-3)


def test_named_weights_are_stored_and_read_as_they_were(tmp_path: Path) -> None:
    config = weighted({"007": 2.5, "a b": 1}, loss="focal", loss_args={"gamma": 1.5})
    (tmp_path / "config.yaml").write_text(configs.dump(config), encoding="utf-8")
    stored = configs.load_stored(tmp_path / "config.yaml")
    assert stored == config
    assert configs.fingerprint(stored) == configs.fingerprint(config) != configs.fingerprint(Config())
