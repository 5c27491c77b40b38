"""Splits: seeded, stratified, grouped, in folds; the same on every machine, and recorded by the run."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from comp.config import Config, DataConfig
from comp.data import splits
from comp.data.dataset import open_dataset
from comp.data.sources import Source
from comp.data.splits import Split
from comp.data.splitting import STRATIFIERS, fold_indices, holdout_indices, sample_indices, split_source
from comp.results import runs
from comp.runtime.errors import ConfigError, DataError, RunError
from tests.support.commands import Result
from tests.support.photographs import write_folders, write_kaggle

Comp = Callable[..., Result]


def split_of(labels: list[int], images: np.ndarray | None = None) -> Split:
    """Return a split of these labels, with images of its own unless some are given."""
    count = len(labels)
    if images is None:
        images = np.arange(count, dtype=np.int64).view(np.uint8).reshape(count, 1, 8, 1)
    return Split("train", images, np.array([f"id{row}" for row in range(count)]), np.array(labels, np.int64))


LABELS = [row % 4 for row in range(40)]


@pytest.mark.parametrize(("size", "count"), [(0.25, 10), (8, 8)])
@pytest.mark.parametrize("stratify", [True, False])
def test_a_part_is_held_out_by_fraction_and_by_count(size: float | int, count: int, stratify: bool) -> None:
    kept, held = holdout_indices(
        split_of(LABELS), size, seed=0, stratifier=STRATIFIERS["classes" if stratify else "none"]
    )
    assert len(held) == count
    assert sorted([*kept, *held]) == list(range(40))
    if stratify:
        assert np.ptp(np.bincount(np.array(LABELS)[held])) <= 1


def test_the_same_seed_holds_out_the_same_images_on_every_machine() -> None:
    # Written down once: a package or platform that draws otherwise would move images between training and validation.
    assert holdout_indices(split_of(LABELS), 4, seed=0)[1].tolist() == RECORDED["held out"]
    assert holdout_indices(split_of(LABELS), 4, seed=0, stratifier=STRATIFIERS["none"])[1].tolist() == RECORDED["plain"]
    assert fold_indices(split_of(LABELS), 5, 2, seed=0)[1].tolist() == RECORDED["fold"]
    groups = np.arange(40) // 2
    assert (
        holdout_indices(split_of(LABELS), 8, seed=0, groups=groups, stratifier=STRATIFIERS["none"])[1].tolist()
        == RECORDED["groups"]
    )


RECORDED = {
    "held out": [17, 19, 20, 30],
    "plain": [4, 20, 22, 25],
    "fold": [5, 8, 14, 18, 23, 36, 37, 39],
    "groups": [2, 3, 16, 17, 36, 37, 38, 39],
}


@pytest.mark.parametrize("stratify", [True, False])
@pytest.mark.parametrize("grouped", [True, False])
def test_every_image_validates_in_exactly_one_fold(stratify: bool, grouped: bool) -> None:
    groups = np.arange(40) // 3 if grouped else None
    parts = [
        fold_indices(
            split_of(LABELS),
            5,
            number,
            seed=1,
            stratifier=STRATIFIERS["classes" if stratify else "none"],
            groups=groups,
        )
        for number in range(5)
    ]
    assert sorted(row for _, held in parts for row in held) == list(range(40))
    for kept, held in parts:
        assert sorted([*kept, *held]) == list(range(40))
        if groups is not None:
            assert not set(groups[kept]) & set(groups[held])


@settings(max_examples=25)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9)), min_size=20, max_size=60),
    st.floats(0.2, 0.6),
    st.integers(0, 99),
)
def test_groups_stay_whole_and_never_exceed_the_size(rows: list[tuple[int, int]], size: float, seed: int) -> None:
    labels, groups = [label for label, _ in rows], np.array([group for _, group in rows])
    try:
        kept, held = holdout_indices(split_of(labels), size, seed, groups=groups, stratifier=STRATIFIERS["none"])
    except DataError as error:
        assert "groups that stay together" in str(error)  # noqa: PT017  # a refusal is a valid outcome, too
        return
    assert not set(groups[kept]) & set(groups[held])
    assert 0 < len(held) <= round(size * len(rows))


def test_copies_of_an_image_stay_together() -> None:
    images = np.repeat(np.arange(20, dtype=np.uint8), 2)[:, None, None, None] * np.ones((1, 4, 4, 3), np.uint8)
    source = Source(split_of([row // 2 % 2 for row in range(40)], images), None, ("a", "b"))
    config = DataConfig(validation=0.3, groups="duplicates")
    parts = split_source(source, config, cut_test=True)
    assert parts.val is not None
    assert parts.test is not None
    seen = [set(np.asarray(split.images)[:, 0, 0, 0].tolist()) for split in (parts.train, parts.val, parts.test)]
    assert not seen[0] & seen[1] | seen[0] & seen[2] | seen[1] & seen[2]
    assert len(parts.val) >= 6


def test_groups_passed_in_replace_the_configured_ones() -> None:
    source = Source(split_of(LABELS), None, tuple("abcd"))
    groups = np.arange(40) // 10
    config = DataConfig(folds=4, fold=1, stratify=False)
    parts = split_source(source, config, cut_test=False, groups=groups)
    assert parts.val is not None
    rows = [int(name[2:]) for name in parts.val.ids]
    assert {row // 10 for row in rows} == {rows[0] // 10}


IMPOSSIBLE: dict[str, tuple[DataConfig, str]] = {
    "more folds than images": (DataConfig(folds=41), "40 images into 41 folds"),
    "no official split": (DataConfig(validation="official"), "digits has no val split"),
    "more than there are": (DataConfig(validation=50), "cannot hold out 50 of 40 images"),
}


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_a_split_that_is_impossible_is_refused(name: str) -> None:
    config, message = IMPOSSIBLE[name]
    with pytest.raises((DataError, ConfigError), match=message):
        split_source(Source(split_of(LABELS), None, tuple("abcd")), config, cut_test=False)


def test_one_group_cannot_be_split() -> None:
    with pytest.raises(DataError, match="1 groups that stay together"):
        holdout_indices(split_of(LABELS), 0.5, 0, groups=np.zeros(40, np.int64))
    with pytest.raises(DataError, match="1 groups into 2 folds"):
        fold_indices(split_of(LABELS), 2, 0, 0, groups=np.zeros(40, np.int64))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data={folds: 3, fold: 3}", "expected 0 to 2, found 3"),
        ("data={folds: 3, validation: none}", "contradicts data.folds"),
        ("data.groups=column", "go together"),
        ("data.csv.group_column=patient", "go together"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    workplace: Path, comp: Comp, override: str, message: str
) -> None:
    result = comp("config", "check", "small.yaml", override)
    assert result.code == 2
    assert message in result.err


def test_the_official_validation_split_is_used_and_otherwise_noted(tmp_path: Path) -> None:
    write_folders(tmp_path, train=6, val=2)
    data = {"source": "image_folder", "root": str(tmp_path), "image_size": 16}
    none = {"suite": {"source": "none"}}
    official = open_dataset(Config.model_validate({"data": {**data, "validation": "official"}, "competition": none}))
    assert official.val is not None
    assert official.val.ids[0] == "val/ant/000.png"
    assert len(official.train) == 18
    share = open_dataset(Config.model_validate({"data": {**data, "validation": 6}, "competition": none}))
    assert share.val is not None
    assert share.val.ids[0].startswith("train/")
    assert any("data.validation=official" in note for note in share.notes)


def test_a_group_column_keeps_its_rows_together(tmp_path: Path) -> None:
    write_kaggle(tmp_path, train=24, test=3)
    lines = (tmp_path / "train.csv").read_text().splitlines()
    table = ["image_id,label,patient", *(f"{line},p{row // 4}" for row, line in enumerate(lines[1:]))]
    (tmp_path / "train.csv").write_text("\n".join(table))
    data = {
        "source": "csv_images",
        "root": str(tmp_path),
        "image_size": 16,
        "groups": "column",
        "folds": 3,
        "csv": {"group_column": "patient"},
    }
    dataset = open_dataset(Config.model_validate({"data": data, "competition": {"suite": {"source": "test"}}}))
    assert dataset.val is not None
    patients = [{int(name) // 4 for name in split.ids} for split in (dataset.train, dataset.val)]
    assert not patients[0] & patients[1]
    assert sum(map(len, patients)) == 6


def test_a_run_records_its_split_and_refuses_another(workplace: Path, comp: Comp) -> None:
    assert comp("train", "small.yaml", "data.folds=4", "data.fold=1", "train.epochs=1").code == 0
    (run,) = runs.list_runs(Path("runs"))
    path = run.path / "split.npz"
    dataset = open_dataset(run.config())
    splits.check_saved_split(path, dataset.train, dataset.val)
    recorded = splits.read_split(path, "")
    assert (len(set(recorded["train"])), len(set(recorded["val"]))) == (120, 40)
    config = run.path / "config.yaml"
    config.write_text(config.read_text().replace("fold: 1", "fold: 2"))
    result = comp("evaluate", run.path)
    assert result.code == 2
    assert all(part in result.err for part in ("split.npz", "train split", "120 images"))
    path.write_bytes(b"PK")
    with pytest.raises(RunError, match=r"split\.npz: .*damaged"):
        splits.read_split(path, "train again")


def test_a_split_without_validation_is_recorded_too(tmp_path: Path) -> None:
    train = split_of(LABELS)
    splits.save_split(tmp_path / "split.npz", train, None)
    splits.check_saved_split(tmp_path / "split.npz", train, None)
    with pytest.raises(RunError, match=r"split\.npz: the val split"):
        splits.check_saved_split(tmp_path / "split.npz", train, train.head(3))


def test_a_class_of_one_image_stops_no_folds_and_is_named() -> None:
    labels = [0] * 20 + [1] * 19 + [2]
    source = Source(split_of(labels), None, ("common", "usual", "rare"))
    folds = [split_source(source, DataConfig(folds=5, fold=number), cut_test=False) for number in range(5)]
    held = sorted(name for parts in folds if parts.val is not None for name in parts.val.ids)
    assert held == sorted(source.train.ids)
    for parts in folds:
        assert "every fold: 'rare' (1)" in parts.notes[0]
        assert parts.val is not None
        assert all(3 <= count <= 5 for count in parts.val.class_counts(3)[:2])


def test_a_class_with_fewer_groups_than_folds_is_named() -> None:
    labels, groups = [0] * 20 + [1] * 12, [*range(20), *(20 + row // 4 for row in range(12))]
    source = Source(split_of(labels), None, ("common", "rare"))
    parts = split_source(source, DataConfig(folds=5), cut_test=False, groups=np.array(groups))
    assert parts.notes == ("split: classes with too few groups of images to be in training and every fold: 'rare' (3)",)


@pytest.mark.parametrize("size", [0.2, 3, 8])
def test_a_class_of_one_image_stays_in_training(size: float | int) -> None:
    labels = [0] * 20 + [1] * 19 + [2]
    kept, held = holdout_indices(split_of(labels), size, seed=0)
    assert len(held) == (size if isinstance(size, int) else 8)
    assert 39 in kept
    assert sorted([*kept, *held]) == list(range(40))
    assert np.ptp(np.bincount(np.array(labels)[held], minlength=2)[:2]) <= 1


@pytest.mark.parametrize("grouped", [False, True])
def test_label_sets_are_split_evenly(grouped: bool) -> None:
    generator = np.random.default_rng(0)
    labels = (generator.random((400, 6)) < [0.5, 0.3, 0.2, 0.1, 0.05, 0.02]).astype(np.float32)
    split = replace(split_of([0] * 400), labels=labels)
    groups = np.arange(400) // 2 if grouped else None
    source = Source(split, None, tuple("abcdef"), task="multi_label")
    parts = [split_source(source, DataConfig(folds=4, fold=n), cut_test=False, groups=groups).val for n in range(4)]
    assert sorted(name for part in parts if part for name in part.ids) == sorted(split.ids)
    counts = np.stack([part.class_counts(6) for part in parts if part])
    assert (np.abs(counts - labels.sum(0) / 4) <= (3 if grouped else 1.5)).all(), counts
    plain = np.stack([labels[generator.permutation(400)[:100]].sum(0) for _ in range(200)])
    assert np.ptp(counts, axis=0).mean() < np.abs(plain - labels.sum(0) / 4).mean() * 2  # nearer than chance
    if groups is not None:
        rows = [{int(name[2:]) // 2 for name in part.ids} for part in parts if part]
        assert sum(map(len, rows)) == len(set.union(*rows))


@settings(max_examples=25)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=80), st.integers(1, 90))
def test_a_sample_has_each_class_in_its_share_and_every_one_where_there_is_room(labels: list[int], count: int) -> None:
    split = split_of(labels)
    rows = sample_indices(split, count, task="single_label")
    assert len(rows) == min(count, len(labels))
    assert (np.diff(rows) > 0).all()
    assert np.array_equal(rows, sample_indices(split, count, task="single_label"))
    sizes, taken = np.bincount(labels, minlength=6), np.bincount(np.array(labels)[rows], minlength=6)
    classes = np.count_nonzero(sizes)
    if count >= classes:
        assert np.count_nonzero(taken) == classes
    # A common class gives up an image for each rare one that has no whole share, and rounds off at most one more.
    shares = sizes * len(rows) / len(labels)
    assert (taken - shares <= 1).all()
    assert (shares - taken <= 1 + np.count_nonzero((sizes > 0) & (shares < 1))).all()


def test_a_sample_of_label_sets_is_balanced_and_of_exact_size() -> None:
    generator = np.random.default_rng(0)
    labels = (generator.random((400, 5)) < [0.5, 0.3, 0.2, 0.1, 0.05]).astype(np.float32)
    split = replace(split_of([0] * 400), labels=labels[np.argsort(labels @ (1 << np.arange(5)), kind="stable")])
    for count in (37, 100):
        rows = sample_indices(split, count, task="multi_label")
        assert len(set(rows.tolist())) == count
        assert (np.abs(split.labels[rows].sum(0) - split.labels.sum(0) * count / 400) <= 2).all()


def test_images_without_labels_are_sampled_uniformly() -> None:
    rows = sample_indices(replace(split_of(LABELS), labels=None), 10, task="single_label")
    assert len(set(rows.tolist())) == 10
    assert rows.max() > 10
