"""Labels that are numbers: which columns are read as such, what is asked and refused, and how they are split."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import yaml

from comp import config as configs
from comp.data.dataset import Dataset, open_dataset
from comp.data.splitting import STRATIFIERS
from comp.runtime.errors import ConfigError, DataError
from comp.workflows import lineage
from tests.support.commands import Result, assert_refused

Comp = Callable[..., Result]
COUNT = 60
FRACTIONS = [f"{number / 7:.3f}" for number in range(COUNT)]
GRADES = [("0.5", "1.0", "1.5")[number % 3] for number in range(COUNT)]
WHOLE = [str(number % 4) for number in range(COUNT)]


def write_table(cells: Sequence[str], sample: Sequence[str] = ()) -> None:
    """Write a table that holds the pixels of grey images of 8 x 8, and a sample submission."""
    Path("d").mkdir(exist_ok=True)
    pixels = ",".join(f"pixel{number}" for number in range(64))
    row = ",".join(["7"] * 64)
    Path("d/train.csv").write_text(f"age,{pixels}\n" + "".join(f"{cell},{row}\n" for cell in cells))
    Path("d/test.csv").write_text(f"{pixels}\n" + f"{row}\n" * max(1, len(sample)))
    if sample:
        rows = "".join(f"{number},{cell}\n" for number, cell in enumerate(sample))
        Path("d/sample_submission.csv").write_text(f"id,age\n{rows}")


def opened(**competition: str) -> Dataset:
    values = {
        "competition": {"suite": {"source": "none"}, "ood_validation": {"severities": []}, **competition},
        "data": {"source": "csv_images", "root": "d", "validation": 0.2},
    }
    Path("c.yaml").write_text(yaml.safe_dump(values))
    return open_dataset(configs.load(Path("c.yaml")))


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_many_fractions_are_numbers_and_a_note_says_so() -> None:
    write_table(FRACTIONS)
    dataset = opened()
    assert dataset.competition.task == "regression"
    assert dataset.competition.metric == "rmse"
    assert dataset.competition.classes == ("age",)
    assert any("numbers from 0 to 8.429: regression (competition.task)" in note for note in dataset.notes)
    assert dataset.val is not None
    assert dataset.train.labels is not None
    assert dataset.label_scale == pytest.approx((dataset.train.labels.mean(), dataset.train.labels.std()))
    assert dataset.val.labels is not None
    splits = ((dataset.train.ids, dataset.train.labels), (dataset.val.ids, dataset.val.labels))
    read = {str(key): float(label) for ids, labels in splits for key, label in zip(ids, labels, strict=True)}
    assert [read[f"train_{row}"] for row in range(COUNT)] == pytest.approx([float(cell) for cell in FRACTIONS])


def test_whole_numbers_stay_classes_unless_the_task_or_a_metric_of_numbers_is_named() -> None:
    write_table(WHOLE)
    assert opened().competition.task == "single_label"
    assert opened().competition.classes == ("0", "1", "2", "3")
    for settings in ({"task": "regression"}, {"metric": "rmse"}, {"metric": "mae"}):
        dataset = opened(**settings)
        assert dataset.competition.task == "regression"
        assert set(dataset.train.labels.tolist()) == {0.0, 1.0, 2.0, 3.0}
    ordinal = opened(task="ordinal")
    assert ordinal.competition.metric == "quadratic_weighted_kappa"
    assert ordinal.competition.classes == ("0", "1", "2", "3")


def test_few_fractions_are_asked_about_unless_the_sample_shows_numbers() -> None:
    write_table(GRADES)
    with pytest.raises(DataError, match=r"'age' holds 3 values such as 0\.5.*set competition\.task to regression"):
        opened()
    assert opened(task="single_label").competition.classes == ("0.5", "1.0", "1.5")
    assert opened(task="ordinal").competition.classes == ("0.5", "1.0", "1.5")
    write_table(GRADES, sample=["0.73"])
    assert opened().competition.task == "regression"


@pytest.mark.parametrize(
    ("cell", "shown"), [("", "''"), ("nan", "'nan'"), ("inf", "'inf'"), ("1e99", "'1e99'"), ("old", "'old'")]
)
def test_a_cell_that_is_no_number_is_named(cell: str, shown: str) -> None:
    write_table([*FRACTIONS[:5], cell, *FRACTIONS[6:]])
    with pytest.raises(DataError, match=rf"found 1 other cells, first {re.escape(shown)} in row 7"):
        opened()


def test_one_constant_value_teaches_nothing() -> None:
    write_table(["2.5"] * COUNT)
    with pytest.raises(DataError, match=r"all training labels are 2\.5"):
        opened(task="regression")


def test_names_are_refused_as_numbers_and_have_no_order_of_their_own(comp: Comp) -> None:
    write_table([("cold", "warm")[number % 2] for number in range(COUNT)])
    with pytest.raises(DataError, match="found 60 other cells, first 'cold' in row 2"):
        opened(task="regression")
    opened(task="ordinal")
    assert_refused(comp("config", "check", "c.yaml", "--data"), "competition.task: ordinal", "data.classes=[...]")


def test_classes_whose_names_are_numbers_can_be_predicted_as_numbers() -> None:
    Path("d").mkdir()
    np.save("d/train_images.npy", np.zeros((COUNT, 8, 8), np.uint8))
    np.save("d/train_labels.npy", np.arange(COUNT) % 3)
    Path("d/classes.txt").write_text("10\n20\n40\n")
    values = {"competition": {"task": "regression", "suite": {"source": "none"}}, "data": {"source": "arrays"}}
    config = configs.from_mapping(values, "test", ["data.root=d", "competition.ood_validation.severities=[]"])
    assert set(open_dataset(config).train.labels.tolist()) == {10.0, 20.0, 40.0}
    Path("d/classes.txt").write_text("a\nb\nc\n")
    with pytest.raises(DataError, match="the labels are names: a, b, c"):
        open_dataset(config)


def test_float_arrays_are_numbers_and_whole_ones_are_asked_about() -> None:
    Path("d").mkdir()
    np.save("d/train_images.npy", np.zeros((COUNT, 8, 8), np.uint8))
    values = {"competition": {"suite": {"source": "none"}}, "data": {"source": "arrays", "root": "d"}}
    config = configs.from_mapping(values, "test", ["competition.ood_validation.severities=[]"])
    np.save("d/train_labels.npy", np.linspace(0, 1, COUNT))
    assert open_dataset(config).competition.task == "regression"
    np.save("d/train_labels.npy", np.arange(COUNT) % 3 * 1.0)
    with pytest.raises(DataError, match=r"floats without fractions; save classes as whole numbers"):
        open_dataset(config)
    np.save("d/train_labels.npy", np.append(np.linspace(0, 1, COUNT - 1), np.nan))
    with pytest.raises(DataError, match=r"train label nan at row 59: expected a finite number"):
        open_dataset(config)


def test_settings_of_classes_are_refused_for_numbers(comp: Comp) -> None:
    write_table(FRACTIONS)
    with pytest.raises(ConfigError, match="accuracy is not defined for task regression"):
        opened(metric="accuracy")
    opened()
    for setting, part in {
        "train.label_smoothing=0.1": "no classes to smooth over",
        "train.class_weights=balanced": "train.class_weights: balances classes, and the labels are numbers",
        "data.sampling=balanced": "data.sampling: balances classes, and the labels are numbers",
        "train.select=val_accuracy": "not measured in task regression",
        "train.consistency=jsd augment.policy=[augmix]": "train.consistency: jsd is not defined for task regression",
        "data.classes=[a,b]": "task regression has no classes",
        "predict.adapt=tent": "predict.adapt: tent is not defined",
        "predict.views=flip predict.views_for=uncertain:0.5": "confidence in one class",
    }.items():
        assert_refused(comp("config", "check", "c.yaml", "--data", *setting.split()), part)
    config = configs.load("c.yaml", ["train.teacher.runs=[runs/other]"])
    with pytest.raises(ConfigError, match=r"train\.teacher\.runs: needs classes with probabilities"):
        lineage.check_teachers(config, open_dataset(config))


def test_every_fold_of_numbers_has_their_whole_range() -> None:
    labels = np.random.default_rng(0).lognormal(size=200).astype(np.float32)
    folds = [STRATIFIERS["quantiles"].fold(labels, 4, number, 0, None) for number in range(4)]
    assert sorted(np.concatenate(folds).tolist()) == list(range(200))
    deciles = np.quantile(labels, np.arange(1, 10) / 10)
    for rows in folds:
        counts = np.bincount(np.searchsorted(deciles, labels[rows], side="right"), minlength=10)
        assert counts.min() >= 4
        assert counts.max() <= 6
