"""Fix lists: training rows are dropped or relabelled, everything else stays as it was, and a wrong list is refused."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from comp import config as configs
from comp.data.dataset import Dataset, open_dataset
from comp.data.fixes import fix_predictions, read_fixes
from comp.runtime.errors import DataError, UserError
from tests.support.configs import small_config, write_arrays
from tests.support.predictions import predicted, predicted_sets


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_arrays(tmp_path_factory.mktemp("fixes") / "data", size=8)


def opened(root: Path, *rows: str, folds: int | None = None, fold: int = 0, header: str = "id,action,label") -> Dataset:
    """Return the small data, opened with a fix list of these rows; without one if there are none."""
    values = small_config(root)
    values["competition"]["ood_validation"]["severities"] = []
    values["data"] |= {"folds": folds, "fold": fold} if folds else {}
    if rows:
        path = root.parent / "fixes.csv"
        path.write_text("\n".join([header, *rows]) + "\n")
        values["data"]["fixes"] = str(path)
    return open_dataset(configs.from_mapping(values, "test"))


@settings(deadline=None, max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(st.integers(0, 159), st.sampled_from(["drop", "keep", "0", "1", "2", "3"]), min_size=1, max_size=40)
)
def test_only_training_images_change_and_exactly_as_listed(root: Path, actions: dict[int, str]) -> None:
    rows = [
        f"train_{row},{action},9" if action in ("drop", "keep") else f"train_{row},relabel,{action}"
        for row, action in actions.items()
    ]
    plain, fixed = opened(root), opened(root, *rows)
    assert plain.val is not None
    assert fixed.val is not None
    assert fixed.val.ids.tolist() == plain.val.ids.tolist()
    assert fixed.val.labels.tolist() == plain.val.labels.tolist()
    assert fixed.test.labels.tolist() == plain.test.labels.tolist()
    assert fixed.fingerprint == plain.fingerprint

    expected = {}
    for name, label in zip(plain.train.ids.tolist(), plain.train.labels.tolist(), strict=True):
        action = actions.get(int(name.removeprefix("train_")), "keep")
        if action != "drop":
            expected[name] = label if action == "keep" else int(action)
    assert dict(zip(fixed.train.ids.tolist(), fixed.train.labels.tolist(), strict=True)) == expected
    assert fixed.fixes.dropped == len(plain.train) - len(expected)
    before = dict(zip(plain.train.ids.tolist(), plain.train.labels.tolist(), strict=True))
    assert fixed.fixes.relabelled == sum(before[name] != label for name, label in expected.items())
    kept = [row for row, name in enumerate(plain.train.ids.tolist()) if name in expected]
    assert np.array_equal(fixed.train.images, plain.train.images[kept])


def test_a_fix_applies_in_every_fold_that_trains_on_the_image(root: Path) -> None:
    for fold in range(3):
        plain, fixed = opened(root, folds=3, fold=fold), opened(root, "train_7,relabel,1", folds=3, fold=fold)
        labels = dict(zip(fixed.train.ids.tolist(), fixed.train.labels.tolist(), strict=True))
        if "train_7" in plain.val.ids:
            assert fixed.val.labels.tolist() == plain.val.labels.tolist()
            assert "fixes: 0 relabelled, 0 dropped" in str(fixed.notes)
            assert "1 more of its images are held out" in str(fixed.notes)
        else:
            assert labels["train_7"] == 1
            assert "fixes: 1 relabelled, 0 dropped" in str(fixed.notes)


REFUSED = {
    "unknown ids": (["train_999,drop,", "x,keep,"], ["no labelled images of these data (2)", "'train_999', 'x'"]),
    "unknown label": (["train_1,relabel,catt"], ["unknown classes (1)", "'catt'"]),
    "unknown action": (["train_1,delete,1"], ["actions other than drop, relabel, keep (1)", "'delete'"]),
    "no label": (["train_1,relabel,"], ["ids to relabel without a label (1)", "'train_1'"]),
    "contradicting": (["train_1,relabel,1", "train_1,drop,1"], ["contradicting rows (1)", "'train_1'"]),
    "emptied class": ([f"train_{row},drop," for row in range(0, 160, 4)], ["classes that would lose all", "'0'"]),
    "no column": (["train_1"], ["one column each of id, action and label", "found id"]),
    "several mistakes": (["train_999,drop,", "train_1,relabel,z"], ["'train_999'", "'z'"]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_wrong_list_is_refused_in_one_message(root: Path, name: str) -> None:
    rows, parts = REFUSED[name]
    with pytest.raises(DataError) as refused:
        opened(root, *rows, header="id" if name == "no column" else "id,action,label")
    for part in ["fixes.csv", *parts]:
        assert part in str(refused.value)


def test_a_list_for_other_labels_is_refused(root: Path) -> None:
    header = "id,action,label,given"
    ids = opened(root).train.ids.tolist()
    rows = [f"{name},relabel,1,{int(name.removeprefix('train_')) % 4}" for name in ids[:5]]
    assert opened(root, *rows, header=header).fixes is not None
    with pytest.raises(DataError, match="label is not the given one"):
        opened(root, *rows[:-1], rows[-1][:-1] + "9", header=header)


def test_a_repeated_row_is_no_contradiction(root: Path) -> None:
    name = opened(root).train.ids[0]
    assert opened(root, f"{name},drop,1", f"{name},drop,2").fixes.dropped == 1


@pytest.mark.parametrize("spoil", ["missing", "binary", "empty", "folder", "suffix"])
def test_a_list_that_cannot_be_read_is_refused(tmp_path: Path, spoil: str) -> None:
    path = tmp_path / ("fixes.txt" if spoil == "suffix" else "fixes.csv")
    if spoil == "folder":
        path.mkdir()
    elif spoil != "missing":
        path.write_bytes(b"" if spoil == "empty" else b"\xff\x00id")
    with pytest.raises(UserError, match="fixes"):
        read_fixes(path)


def test_scores_with_fixed_labels_are_those_of_the_fixed_rows(tmp_path: Path) -> None:
    path = tmp_path / "fixes.csv"
    path.write_text("id,action,label\n0,relabel,1\n2,drop,\n3,keep,\nelsewhere,drop,\n")
    outputs = np.eye(2, dtype=np.float32)[[1, 0, 0, 1]]
    fixed = fix_predictions(read_fixes(path), predicted(np.array([0, 0, 1, 0]), outputs))
    assert fixed.ids.tolist() == ["0", "1", "3"]
    assert fixed.correct().tolist() == [True, True, False]


def test_images_of_several_labels_can_be_dropped_but_not_relabelled(tmp_path: Path) -> None:
    path = tmp_path / "fixes.csv"
    sets = predicted_sets(np.eye(2, dtype=np.float32), np.zeros((2, 2), np.float32))
    path.write_text("id,action,label\n1,drop,\n")
    assert fix_predictions(read_fixes(path), sets).ids.tolist() == ["0"]
    path.write_text("id,action,label\n1,relabel,0\n")
    with pytest.raises(DataError, match="can only be dropped or kept"):
        fix_predictions(read_fixes(path), sets)
