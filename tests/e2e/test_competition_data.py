"""Kaggle data end to end: submissions are compared with the truth.

Each case is a public report: labels from 1, labels that pandas turned into floats, leading zeros, one probability
column, a metric other than accuracy, another name of the sample submission, ensembles of runs with different validation
images.
"""

import colorsys
import csv
import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from sklearn.metrics import log_loss, roc_auc_score

from comp.results.prediction_files import load
from comp.results.runs import list_runs
from tests.support.commands import Result
from tests.support.parameters import slow_except

Comp = Callable[..., Result]
PER_CLASS, PER_CLASS_TEST = 18, 5


def picture(path: Path, number: int, count: int, seed: int, noise: float = 20) -> None:
    """Save a noisy image in the colour of class `number` of `count`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    colour = np.array(colorsys.hsv_to_rgb(number / count, 0.9, 0.8)) * 255
    pixels = colour + np.random.default_rng(seed).normal(0, noise, (16, 16, 3))
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(path)


def table(path: str, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Write a CSV."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    Path(path).write_text(text.getvalue())


def competition(labels: Sequence[str], header: Sequence[str] = ("id", "label"), noise: float = 20) -> dict[str, int]:
    """Write `d/train.csv`, `d/train/`, `d/test/` and `c.yaml`; return the test's ids and class indices."""
    rows, count = [], len(labels)
    for number in range(PER_CLASS * count):
        picture(Path(f"d/train/tr_{number:03d}.png"), number % count, count, number, noise)
        rows.append((f"tr_{number:03d}", labels[number % count]))
    table("d/train.csv", header, rows)
    truth = {}
    for number in range(PER_CLASS_TEST * count):
        picture(Path(f"d/test/te_{number:03d}.png"), number % count, count, 10**6 + number, noise)
        truth[f"te_{number:03d}"] = number % count
    config = {
        "competition": {"name": "t", "suite": {"source": "test"}, "ood_validation": {"severities": []}},
        "data": {"source": "csv_images", "root": "d", "validation": 0.2},
        "model": {"name": "simple_cnn", "args": {"depth": 2}},
        "optim": {"lr": 3e-3},
        "train": {"epochs": 8, "batch_size": 32, "precision": "fp32", "channels_last": False, "compile": False},
    }
    Path("c.yaml").write_text(yaml.safe_dump(config))
    return truth


def sample(truth: dict[str, int], cells: Sequence[object], header: Sequence[str] = ("id", "label")) -> None:
    """Write a sample submission in another order."""
    order = np.random.default_rng(1).permutation(list(truth)).tolist()
    table("d/sample_submission.csv", header, [(key, *cells) for key in order])


def submitted(path: str = "submissions/t.csv") -> list[dict[str, str]]:
    """Return a submission's rows."""
    return list(csv.DictReader(io.StringIO(Path(path).read_text())))


@pytest.fixture(autouse=True)
def _new_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


# Labels of the training table, the sample's placeholder -> the texts to submit.
SPELLED = {
    "from 1, placeholder 0": (["1", "2", "3"], "0", ["1", "2", "3"]),
    "floats of pandas": ([f"{n}.0" for n in range(11)], "0", [str(n) for n in range(11)]),
    "leading zeros": ([f"{n:03d}" for n in (1, 2, 10, 12)], "1", ["1", "2", "10", "12"]),
    "signs": (["-1", "1"], "0", ["-1", "1"]),
    "gaps": (["2", "5", "9"], "0", ["2", "5", "9"]),
    "names": (["cat", "dog", "owl"], "cat", ["cat", "dog", "owl"]),
}


@pytest.mark.parametrize("name", slow_except(SPELLED, "floats of pandas", "leading zeros"))
def test_labels_are_written_as_the_competition_expects_them(comp: Comp, name: str) -> None:
    labels, placeholder, texts = SPELLED[name]
    truth = competition(labels)
    sample(truth, [placeholder])
    result = comp("run", "c.yaml", "train.epochs=14" if len(labels) > 4 else "train.epochs=8")
    assert result.code == 0, result.err
    assert texts[0] in result.err
    rows = submitted()
    assert {row["id"] for row in rows} == set(truth)
    correct = sum(row["label"] == texts[truth[row["id"]]] for row in rows)
    assert correct >= 0.9 * len(rows), rows[:3]
    assert comp("check", "submissions/t.csv").code == 0


def test_numbered_folders_are_classes_in_the_order_of_their_values(comp: Comp) -> None:
    truth = competition([str(number) for number in range(1, 12)])
    for line in csv.DictReader(io.StringIO(Path("d/train.csv").read_text())):
        target = Path("d/train", line["label"], f"{line['id']}.png")
        target.parent.mkdir(exist_ok=True)
        Path(f"d/train/{line['id']}.png").rename(target)
    sample(truth, [0])
    result = comp("run", "c.yaml", "data.source=image_folder", "train.epochs=14")
    assert result.code == 0, result.err
    rows = submitted()
    assert sum(row["label"] == str(truth[row["id"]] + 1) for row in rows) >= 0.9 * len(rows)


@pytest.mark.parametrize("placeholder", ["0.5", "0"])
def test_one_column_under_auc_holds_the_positive_classs_probability(comp: Comp, placeholder: str) -> None:
    truth = competition(["0", "1"], ("id", "has_cactus"), noise=90)
    sample(truth, [placeholder], ("id", "has_cactus"))
    refused = comp("run", "c.yaml", "competition.metric=roc_auc", "competition.submission.answer=label")
    assert refused.code == 2
    assert "roc_auc" in refused.err
    assert "competition.submission.answer" in refused.err
    result = comp("run", "c.yaml", "competition.metric=roc_auc")
    assert result.code == 0, result.err
    rows = submitted()
    probabilities = [float(row["has_cactus"]) for row in rows]
    assert roc_auc_score([truth[row["id"]] for row in rows], probabilities) > 0.9
    assert len(set(probabilities)) > 2  # not hard labels
    table("mine.csv", ("id", "has_cactus"), [(key, 0.25) for key in truth])
    assert comp("check", "mine.csv", "--format", "c.yaml").code == (
        2 if placeholder == "0" else 0
    )  # by the config's metric
    sample(truth, ["0.5"], ("id", "has_cactus"))
    assert comp("check", "mine.csv", "--format", "d/sample_submission.csv").code == 0


def test_the_competitions_metric_selects_the_weights(comp: Comp) -> None:
    names = ["cat", "dog", "owl"]
    truth = competition(names, noise=60)
    sample(truth, [0.3, 0.3, 0.4], ("id", "owl", "cat", "dog"))
    result = comp("run", "c.yaml", "competition.metric=log_loss", "train.epochs=6")
    assert result.code == 0, result.err
    (run,) = list_runs(Path("runs"))
    history = run.history()
    best = min(history, key=lambda row: float(row["val_metric"]))
    assert run.metrics().best_epoch == int(best["number"])
    val = load(run.predictions_path("val"))
    assert log_loss(val.targets, val.probabilities()) == pytest.approx(float(best["val_metric"]), abs=1e-3)
    rows = submitted()
    probabilities = np.array([[float(row[name]) for name in names] for row in rows])
    assert log_loss([truth[row["id"]] for row in rows], probabilities) < 0.8  # chance: 1.1


def test_a_sample_of_another_name_is_found_and_a_wrong_name_refused_before_training(comp: Comp) -> None:
    names = ["cat", "dog", "owl"]
    truth = competition(names)
    sample(truth, ["cat"], ("Id", "Category"))
    Path("d/sample_submission.csv").rename("d/sampleSubmission.csv")
    result = comp("run", "c.yaml")
    assert result.code == 0, result.err
    rows = submitted()
    assert [list(row) for row in rows[:1]] == [["Id", "Category"]]
    assert sum(row["Category"] == names[truth[row["Id"]]] for row in rows) >= 0.9 * len(rows)
    refused = comp("run", "c.yaml", "data.csv.sample=sampleSubmision.csv")
    assert refused.code == 2
    assert "did you mean 'sampleSubmission.csv'" in refused.err
    assert len(list_runs(Path("runs"))) == 1
    Path("d/sampleSubmission.csv").unlink()
    result = comp("run", "c.yaml", "train.epochs=1")
    assert "no sample submission" in result.err


def test_runs_validated_on_different_images_are_averaged_without_a_score(comp: Comp) -> None:
    names = ["cat", "dog", "owl"]
    truth = competition(names, noise=60)
    sample(truth, [0.3, 0.3, 0.4], ("id", *names))
    quick = ["competition.metric=log_loss", "train.epochs=3"]
    assert comp("run", "c.yaml", *quick).code == 0
    sample(truth, [0.3, 0.3, 0.4], ("id", "owl", "cat", "dog"))  # classes in another order, too
    assert comp("run", "c.yaml", *quick, "data.split_seed=1", "seed=1", "-o", "submissions/u.csv").code == 0
    members = [str(run.path) for run in list_runs(Path("runs"))]
    result = comp("ensemble", *members, "-o", "submissions/mean.csv")
    assert result.code == 0, result.err
    first, second, mean = (
        {row["id"]: row for row in submitted(f"submissions/{name}.csv")} for name in ("t", "u", "mean")
    )
    for key, row in mean.items():
        for name in names:
            expected = (float(first[key][name]) + float(second[key][name])) / 2
            assert float(row[name]) == pytest.approx(expected, abs=2e-3)
    refused = comp("ensemble", *members, "--method", "weighted")  # there are no common validation images
    assert refused.code == 2
    assert "mean" in refused.err


@pytest.mark.parametrize(
    ("labels", "header", "positive"),
    [
        (("0", "1"), "is_0", 0),
        (("0", "1"), "is_1", 1),
        (("0", "1"), "0", 1),
        (("cat", "dog"), "isCat", 0),
        (("cat", "dog"), "p_cat", 0),
        (("hot dog", "not hot dog"), "is_hot_dog", 0),
        (("island", "land"), "island", 0),
        (("no", "yes"), "no_show", 1),
        (("cat", "dog"), "target", 1),
    ],
)
def test_the_header_determines_the_class_of_a_probability_column(
    comp: Comp, labels: tuple[str, str], header: str, positive: int
) -> None:
    truth = competition(labels, header=("id", "label"))
    table("d/sample_submission.csv", ("id", header), [(key, 0.5) for key in truth])
    result = comp("config", "check", "c.yaml", "competition.metric=roc_auc", "--data")
    assert result.code == 0, result.err
    text = " ".join(result.err.split())
    assert f"class {labels[positive]!r}" in text
    assert ("no evidence for the positive class" in text) == (header in ("target", "no_show"))
