"""Multi-label tasks end to end: images made of four scanned digits, and true scores computed by scikit-learn."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.metrics import f1_score, roc_auc_score

from comp.results import prediction_files
from comp.results.runs import Run, list_runs
from tests.support.commands import Result

Comp = Callable[..., Result]
CLASSES = ("0", "1", "2", "3", "4")
TRAIN, TEST = 900, 200


def pictures(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return images [N, 16, 16, 3] of four scanned digits each, and flags of five digits [N, 5].

    One in three tiles is empty, so images have 0 to 4 labels.
    """
    bunch, draw = load_digits(), np.random.default_rng(seed)
    rows = np.flatnonzero(bunch.target < len(CLASSES))
    rows = rows[rows % 2 == seed % 2]  # training and test share no scan
    tiles = draw.choice(rows, (count, 4))
    empty = draw.random((count, 4)) < 1 / 3
    scans = (bunch.images[tiles] * 15.9 * ~empty[..., None, None]).astype(np.uint8)  # [N, 4, 8, 8]
    grid = np.concatenate(
        [np.concatenate([scans[:, 0], scans[:, 1]], 2), np.concatenate([scans[:, 2], scans[:, 3]], 2)], 1
    )
    flags = np.zeros((count, len(CLASSES)), int)
    for tile in range(4):
        filled = ~empty[:, tile]
        flags[np.flatnonzero(filled), bunch.target[tiles[filled, tile]]] = 1
    return np.repeat(grid[..., None], 3, -1), flags


def names(flags: np.ndarray) -> str:
    return " ".join(f"d{number}" for number in np.flatnonzero(flags))


@pytest.fixture
def truth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """A competition's images in `d/`, and a config; return the test's true labels [N, 5]."""
    monkeypatch.chdir(tmp_path)
    (images, flags), (test_images, truth) = pictures(TRAIN, 0), pictures(TEST, 1)
    for name, split in (("train", images), ("test", test_images)):
        Path("d", name).mkdir(parents=True)
        for number, image in enumerate(split):
            Image.fromarray(image).save(f"d/{name}/{name[:2]}{number:04d}.png")
    write("d/columns.csv", ["id", *CLASSES], [[f"tr{n:04d}", *row] for n, row in enumerate(flags.tolist())])
    write("d/texts.csv", ["id", "labels"], [[f"tr{n:04d}", names(row)] for n, row in enumerate(flags)])
    config = {
        "competition": {"name": "tiles", "suite": {"source": "test"}, "ood_validation": {"severities": []}},
        "data": {"source": "csv_images", "root": "d", "validation": 0.2, "csv": {"table": "columns.csv"}},
        "model": {"name": "simple_cnn", "args": {"depth": 2}},
        "optim": {"lr": 3e-3},
        "train": {"epochs": 12, "batch_size": 32, "precision": "fp32", "channels_last": False, "compile": False},
    }  # fmt: skip
    Path("c.yaml").write_text(yaml.safe_dump(config))
    return truth


def write(path: str, header: list[str], rows: list[list[object]]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    Path(path).write_text(text.getvalue())


def sample(header: list[str], cells: list[object]) -> None:
    order = np.random.default_rng(5).permutation(TEST)
    write("d/sample_submission.csv", header, [[f"te{n:04d}", *cells] for n in order])


def submitted(path: str = "submissions/tiles.csv") -> dict[str, dict[str, str]]:
    """Return id -> row of a submission."""
    return {row["id"]: row for row in csv.DictReader(io.StringIO(Path(path).read_text()))}


def probabilities(rows: dict[str, dict[str, str]]) -> np.ndarray:
    """Return a submission's probabilities [N, 5], in the order of the test images."""
    return np.array([[float(rows[f"te{number:04d}"][name]) for name in CLASSES] for number in range(TEST)])


def test_one_hot_columns_are_submitted_as_independent_probabilities(truth: np.ndarray, comp: Comp) -> None:
    sample(["id", *CLASSES[::-1]], [0] * len(CLASSES))
    result = comp("run", "c.yaml", "competition.metric=roc_auc")
    assert result.code == 0, result.err
    assert "multi_label" in result.err
    answers = probabilities(submitted())
    score = roc_auc_score(truth, answers, average="macro")
    assert score > 0.8  # chance is 0.5
    assert comp("check", "submissions/tiles.csv").code == 0
    (run,) = list_runs(Path("runs"))
    metrics = run.metrics()
    assert (metrics.task, metrics.metric, metrics.selected_by) == ("multi_label", "roc_auc", "val_metric")
    val = prediction_files.load(run.predictions_path("val"))
    assert val.targets is not None
    assert metrics.best.val is not None
    recorded = metrics.best.val.value("roc_auc")
    assert recorded == pytest.approx(roc_auc_score(val.targets, val.probabilities(), average="macro"))
    assert abs(float(score) - float(recorded or 0)) < 0.1


@pytest.mark.slow  # 5 s
def test_an_imbalanced_task_learns_by_the_asymmetric_loss_with_weights_and_sampling(
    truth: np.ndarray, comp: Comp
) -> None:
    sample(["id", *CLASSES], [0] * len(CLASSES))
    imbalance = ["train.loss=asymmetric", "train.class_weights=balanced", "data.sampling=sqrt"]
    result = comp("run", "c.yaml", "competition.metric=roc_auc", "augment.mixup=0.2", *imbalance)
    assert result.code == 0, result.err
    assert "loss: asymmetric" in result.err
    assert roc_auc_score(truth, probabilities(submitted()), average="macro") > 0.75  # chance is 0.5


def samples_f1(truth: np.ndarray, answers: np.ndarray) -> float:
    """Return the mean F1 of images by scikit-learn; a correct empty answer counts 1."""
    return float(f1_score(truth, answers, average="samples", zero_division=1.0))


@pytest.mark.slow  # 5 s
def test_a_column_of_names_is_submitted_as_names_with_tuned_thresholds(truth: np.ndarray, comp: Comp) -> None:
    sample(["id", "labels"], ["d0 d1"])
    result = comp("run", "c.yaml", "competition.metric=samples_f1", "data.csv.table=texts.csv")
    assert result.code == 0, result.err
    assert "column 'labels' holds 5 names" in result.err
    assert "separated by ' '" in result.err
    cells = [submitted()[f"te{n:04d}"]["labels"].split() for n in range(TEST)]
    answers = np.array([[f"d{number}" in cell for number in range(len(CLASSES))] for cell in cells])
    assert all(set(cell) <= {f"d{number}" for number in range(len(CLASSES))} for cell in cells)
    score = samples_f1(truth, answers)
    constant = samples_f1(truth, np.ones_like(truth))
    assert score > constant + 0.05
    (run,) = list_runs(Path("runs"))
    metrics = run.metrics()
    assert len(metrics.thresholds) == len(CLASSES)
    assert metrics.best.val is not None
    assert abs(score - float(metrics.best.val.value("samples_f1") or 0)) < 0.1
    assert comp("check", "submissions/tiles.csv").code == 0


@pytest.mark.slow
@pytest.mark.parametrize("metric", ["roc_auc", "macro_f1"])
def test_commands_after_training_support_several_labels(truth: np.ndarray, comp: Comp, metric: str) -> None:
    sample(["id", *CLASSES], [0.5] * len(CLASSES))
    quick = [f"competition.metric={metric}", "train.epochs=3", "augment.mixup=0.4", "train.label_smoothing=0.1",
             "predict.views=flip"]  # fmt: skip
    for seed in (0, 1):
        result = comp("run", "c.yaml", *quick, f"seed={seed}", f"optim.lr={0.003 - seed / 1000}")
        assert result.code == 0, result.err
    trained = [str(run.path) for run in list_runs(Path("runs"))]
    for arguments in (
        ["evaluate", trained[0]], ["report", trained[0]], ["predict", trained[0], "--views", "none", "--adapt", "bn"],
        ["probe", trained[0], "--classifier", "logistic"], ["leaderboard"], ["data", "show", "c.yaml"],
    ):  # fmt: skip
        result = comp(*arguments)
        assert result.code == 0, (arguments, result.err)
    assert "in train" in comp("data", "check", "c.yaml").err  # images of few tiles repeat
    for method in ("mean", "geometric", "rank", "weighted", "greedy", "soup"):
        result = comp("ensemble", *trained, "--method", method, "-o", f"submissions/{method}.csv")
        assert result.code == 0, (method, result.err)
        answers = probabilities(submitted(f"submissions/{method}.csv"))
        assert roc_auc_score(truth, answers, average="macro") > 0.6, method
    refused = comp("ensemble", *trained, "--method", "stack")
    assert refused.code == 2
    assert "stack" in refused.err
    refused = comp("predict", trained[0], "--adapt", "tent")
    assert refused.code == 2
    assert "multi_label" in refused.err
    assert json.loads(comp("leaderboard", "--json").out)[0]["task"] == "multi_label"


def test_arrays_with_a_column_for_each_class(truth: np.ndarray, comp: Comp) -> None:
    images, flags = pictures(200, 0)
    Path("a").mkdir()
    for name, rows in (("train", slice(0, 150)), ("test", slice(150, 200))):
        np.save(f"a/{name}_images.npy", images[rows])
        np.save(f"a/{name}_labels.npy", flags[rows].astype(np.uint8))
    Path("a/classes.txt").write_text("\n".join(CLASSES))
    result = comp(
        "run", "c.yaml", "data.source=arrays", "data.root=a", "train.epochs=1", "competition.suite.source=corrupt_test",
        "competition.suite.files=2", "competition.suite.severities=1", "competition.ood_validation.severities=[1]",
        "competition.ood_validation.every=1", "competition.ood_validation.per_block=10",
    )  # fmt: skip
    assert result.code == 0, result.err
    run: Run = list_runs(Path("runs"))[0]
    metrics = run.metrics()
    assert metrics.selected_by == "ood_metric"
    assert metrics.suite is not None
    suite = prediction_files.load(run.predictions_path("suite"))
    assert suite.targets is not None
    expected = roc_auc_score(suite.targets, suite.probabilities(), average="macro")
    assert metrics.suite.value("roc_auc") == pytest.approx(expected)
