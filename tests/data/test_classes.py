"""`data.classes` keeps the images of some classes, relabelled in the order they are named in."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

from comp.config import DataConfig
from comp.data.sources import Source, open_source
from comp.results import prediction_files
from comp.runtime.errors import UserError
from tests.support.commands import Result
from tests.support.configs import write_arrays, write_config
from tests.support.photographs import write_kaggle


def digits(*classes: str) -> Source:
    """Open the embedded digits, some of them."""
    return open_source(DataConfig(source="digits", classes=classes))


def test_images_of_other_classes_are_left_out() -> None:
    whole, some = digits(), digits("7", "3", "5")
    assert some.classes == ("7", "3", "5")
    labels = whole.train.labels
    assert labels is not None
    kept = np.flatnonzero(np.isin(labels, (7, 3, 5)))
    assert some.train.ids.tolist() == whole.train.ids[kept].tolist()
    np.testing.assert_array_equal(np.asarray(some.train.images), np.asarray(whole.train.images)[kept])
    assert [(7, 3, 5)[label] for label in np.asarray(some.train.labels)] == labels[kept].tolist()


BAD = {
    "unknown": (("3", "12"), "unknown class '12'"),
    "one": (("3",), "expected two different classes or more, found ['3']"),
    "twice": (("3", "4", "3"), "expected two different classes or more, found ['3', '4', '3']"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_classes_are_told(name: str) -> None:
    classes, expected = BAD[name]
    with pytest.raises(UserError) as caught:
        digits(*classes)
    assert expected in str(caught.value)


def test_a_class_without_training_images_leaves_too_few(tmp_path: Path) -> None:
    root = write_arrays(tmp_path, classes=2)
    (root / "classes.txt").write_text("here\nthere\nnowhere\n")
    with pytest.raises(UserError, match="two classes or more, found only class 'here'"):
        open_source(DataConfig(source="arrays", root=str(root), classes=("here", "nowhere")))


def test_classes_of_unlabelled_test_images_are_refused(tmp_path: Path) -> None:
    write_kaggle(tmp_path)
    whole = open_source(DataConfig(source="csv_images", root=str(tmp_path), image_size=16))
    with pytest.raises(UserError, match=r"labels are not known"):
        open_source(DataConfig(source="csv_images", root=str(tmp_path), image_size=16, classes=whole.classes[:2]))


def test_a_run_of_some_classes_is_probed_on_the_others(workplace: Path, comp: Callable[..., Result]) -> None:
    first = comp("train", "small.yaml", "data.classes=['0', '1']", "--json")
    assert first.code == 0, first.err
    trained = Path("runs") / json.loads(first.out)["run"]
    values = yaml.safe_load(Path("small.yaml").read_text())
    values["data"]["classes"] = ["2", "3"]
    write_config(workplace / "others.yaml", values)
    result = comp("probe", trained, "--classifier", "knn", "--config", "others.yaml", "--json")
    assert result.code == 0, result.err
    stored = prediction_files.load(Path("runs") / json.loads(result.out)["run"] / "predictions/test.npz")
    assert list(stored.classes) == ["2", "3"]
    assert stored.targets is not None
    assert set(stored.targets.tolist()) == {0, 1}
    assert (stored.top1 == stored.targets).mean() > 0.5


def test_distortion_files_have_every_class(workplace: Path, comp: Callable[..., Result]) -> None:
    given = ("data.classes=['0', '1']", "competition.suite={source: distortion_files, path: suite}")
    result = comp("train", "small.yaml", *given)
    assert result.code == 2
    assert "distortion files hold images of every class" in result.err
