"""Regression and ordinal tasks end to end: a table of labels, a checked submission, and its true score."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from sklearn.metrics import cohen_kappa_score

from comp import config as configs
from comp.results import metrics, prediction_files
from comp.results.runs import list_runs
from comp.runtime.errors import Interrupted
from comp.workflows import train
from tests.support.commands import Result, interrupt_at
from tests.support.runs import assert_same_weights, history_without_clock, the_run

Comp = Callable[..., Result]
TRAIN, TEST, SIDE = 160, 60, 12


def write_pictures(folder: str, grey: np.ndarray) -> None:
    Path("d", folder).mkdir(parents=True)
    noise = np.random.default_rng(len(grey)).normal(0, 12, (len(grey), SIDE, SIDE, 3))
    for number, pixels in enumerate(np.clip(grey[:, None, None, None] + noise, 0, 255).astype(np.uint8)):
        Image.fromarray(pixels).save(f"d/{folder}/{folder[:2]}{number:03d}.png")


@pytest.fixture
def temperatures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """A competition in `d/`: the brighter a picture, the warmer, from 1980 to 2020; return the test's truth."""
    monkeypatch.chdir(tmp_path)
    draw = np.random.default_rng(0)
    grey, test_grey = draw.uniform(40, 215, TRAIN), draw.uniform(40, 215, TEST)
    write_pictures("train", grey)
    write_pictures("test", test_grey)
    rows = "".join(f"tr{number:03d},{1980 + 40 * value / 255:.3f}\n" for number, value in enumerate(grey))
    Path("d/train.csv").write_text(f"image,year\n{rows}")
    ids = draw.permutation(TEST)
    Path("d/sample_submission.csv").write_text("image,year\n" + "".join(f"te{number:03d},0.0\n" for number in ids))
    config = {
        "competition": {"name": "years", "suite": {"source": "test"}, "ood_validation": {"severities": []}},
        "data": {"source": "csv_images", "root": "d", "validation": 0.25},
        "model": {"name": "simple_cnn", "args": {"depth": 2}},
        "augment": {"policy": "none"},
        "optim": {"lr": 1e-2},
        "train": {
            "epochs": 6, "batch_size": 16, "precision": "fp32", "channels_last": False, "compile": False,
            "device": "cpu", "threads": 1, "average": "ema",
        },
    }  # fmt: skip
    Path("c.yaml").write_text(yaml.safe_dump(config))
    return 1980 + 40 * test_grey / 255


def answers(path: str) -> dict[str, float]:
    with Path(path).open() as file:
        return {row["image"]: float(row["year"]) for row in csv.DictReader(file)}


def test_a_table_of_floats_becomes_a_submission_of_numbers_in_their_own_unit(
    temperatures: np.ndarray, comp: Comp
) -> None:
    result = comp("run", "c.yaml", "-o", "s.csv")
    assert result.code == 0, result.err
    assert "regression (competition.task)" in result.err
    assert "answer value: task regression predicts numbers" in result.err
    written = answers("s.csv")
    true = np.sqrt(np.mean([(written[f"te{n:03d}"] - year) ** 2 for n, year in enumerate(temperatures)]))
    assert true < 0.5 * temperatures.std()
    run = the_run()
    val = run.metrics().best.val
    assert val is not None
    assert list(val.scores) == ["rmse", "mae", "r2"]
    low, high = val.scores["rmse"].low, val.scores["rmse"].high
    assert low is not None
    assert high is not None
    assert low < val.scores["rmse"].value < high
    stored = prediction_files.load(run.predictions_path("val"))
    assert stored.targets is not None
    assert val.value("rmse") == pytest.approx(np.sqrt(np.mean((stored.outputs[:, 0] - stored.targets) ** 2)))
    assert comp("check", "s.csv", "--format", "c.yaml").code == 0
    Path("s.csv").write_text(Path("s.csv").read_text().replace("te003,", "te003,x"))
    assert "1 row is not a finite number" in comp("check", "s.csv", "--format", "c.yaml").err


@pytest.mark.slow
def test_what_reads_a_run_of_numbers_leaves_out_what_has_no_meaning(temperatures: np.ndarray, comp: Comp) -> None:
    assert comp("run", "c.yaml", "-o", "s.csv", "train.epochs=1").code == 0
    run, written = the_run(), answers("s.csv")
    val = run.metrics().best.val
    assert val is not None
    evaluated = comp("evaluate", run.path, "--json")
    assert evaluated.code == 0, evaluated.err
    numbers = json.loads(evaluated.out)["evaluation"]["val"]["numbers"]
    assert numbers["rmse"] == pytest.approx(val.value("rmse"))
    assert {"mae", "r2", "bias", "p90"} <= numbers.keys()
    assert "rmse" in comp("evaluate", run.path).out
    assert comp("report", run.path, "-o", "report.html").code == 0
    assert f"{numbers['mae']:.4f}" in Path("report.html").read_text()
    assert comp("data", "show", "c.yaml", "--out", "pictures", "--augment").code == 0
    assert comp("data", "check", "c.yaml").code == 0
    predicted = comp("predict", run.path, "--images", "d/test", "-o", "p.csv")
    assert predicted.code == 0, predicted.err
    with Path("p.csv").open() as file:
        again = {Path(row["id"]).stem: float(row["year"]) for row in csv.DictReader(file)}
    assert again == pytest.approx(written, rel=1e-5)


@pytest.mark.slow
def test_members_of_numbers_are_averaged_and_the_lower_error_leads(temperatures: np.ndarray, comp: Comp) -> None:
    for seed, epochs in ((0, 1), (1, 6)):
        result = comp("run", "c.yaml", f"seed={seed}", f"train.epochs={epochs}", "train.average=none")
        assert result.code == 0, result.err
    first, second = list_runs(Path("runs"))
    made = comp("ensemble", first.path, second.path, "--method", "weighted", "--runs", "made", "-o", "e.csv", "--json")
    assert made.code == 0, made.err
    values = json.loads(made.out)
    compared = values["ensemble"]
    best = min(row["metric"] for row in compared["members"])
    assert sum(row["weight"] for row in compared["members"]) == pytest.approx(1)
    parts = [prediction_files.load(run.predictions_path("val")) for run in (first, second)]
    assert parts[0].targets is not None
    shares = np.linspace(0, 1, 1001)
    mixes = [share * parts[0].outputs[:, 0] + (1 - share) * parts[1].outputs[:, 0] for share in shares]
    errors = [float(np.mean((mix - parts[0].targets) ** 2)) for mix in mixes]
    assert compared["members"][0]["weight"] == pytest.approx(shares[int(np.argmin(errors))], abs=2e-3)
    assert values["best"]["val"]["scores"]["rmse"]["value"] < 1.2 * best
    assert len(answers("e.csv")) == TEST
    plain = comp("ensemble", first.path, second.path, "--runs", "made", "-o", "m.csv")
    assert plain.code == 0, plain.err
    assert "rmse" in plain.out
    assert "accuracy" not in plain.out
    members = [prediction_files.load(run.predictions_path("suite")).outputs[:, 0] for run in (first, second)]
    assert list(answers("m.csv").values()) == pytest.approx(np.mean(members, 0).tolist(), rel=1e-6)
    board = comp("leaderboard", "--json")
    rows = json.loads(board.out)
    scores = [row["val_metric"] for row in (rows["rows"] if isinstance(rows, dict) else rows)]
    assert scores == sorted(scores)
    assert comp("ensemble", first.path, second.path, "--method", "geometric").code == 2


@pytest.mark.slow
def test_a_stopped_training_of_numbers_ends_with_the_same_bits(temperatures: np.ndarray) -> None:
    config = configs.load(Path("c.yaml"), ["train.epochs=3", "augment.mixup=0.4", "augment.cutmix=1"])
    whole = train.train(config, runs_root=Path("whole"))
    with pytest.raises(Interrupted):
        train.train(config, runs_root=Path("halves"), progress=interrupt_at(9))
    halves = train.resume(the_run(Path("halves")))
    assert_same_weights(whole, halves)
    assert history_without_clock(whole) == history_without_clock(halves)


@pytest.mark.slow
def test_a_unit_changes_no_training(temperatures: np.ndarray) -> None:
    config = configs.load(Path("c.yaml"), ["train.epochs=2"])
    years = train.train(config, runs_root=Path("years"))
    lines = Path("d/train.csv").read_text().splitlines()
    cells = [line.split(",") for line in lines[1:]]
    scaled = [f"{name},{(float(year) - 1980) * 100:.3f}" for name, year in cells]
    Path("d/train.csv").write_text("\n".join([lines[0], *scaled]))
    other = train.train(config, runs_root=Path("other"))
    losses = [[float(row["val_loss"]) for row in run.history()] for run in (years, other)]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)
    assert other.metrics().best.val.value("rmse") == pytest.approx(  # type: ignore[union-attr]
        100 * years.metrics().best.val.value("rmse"),
        rel=0.02,  # type: ignore[union-attr, operator]
    )


def write_grades() -> None:
    """Replace the years by four grades from 2 to 5."""
    lines = Path("d/train.csv").read_text().splitlines()
    cells = [line.split(",") for line in lines[1:]]
    graded = [f"{name},{int((float(year) - 1986) // 7) + 2}" for name, year in cells]
    Path("d/train.csv").write_text("\n".join([lines[0], *graded]))
    Path("d/sample_submission.csv").write_text(Path("d/sample_submission.csv").read_text().replace(",0.0", ",2"))


@pytest.mark.slow
@pytest.mark.parametrize("task", ["ordinal", "regression"])
def test_grades_are_whole_numbers_in_a_submission_for_kappa(task: str, temperatures: np.ndarray, comp: Comp) -> None:
    write_grades()
    settings = (f"competition.task={task}", "competition.metric=quadratic_weighted_kappa", "train.average=none")
    result = comp("run", "c.yaml", *settings, "train.epochs=8", "data.validation=0.6", "-o", "s.csv")
    assert result.code == 0, result.err
    run = the_run()
    val = prediction_files.load(run.predictions_path("val"))
    recorded = run.metrics().best.val
    assert recorded is not None
    assert recorded.value("quadratic_weighted_kappa") == pytest.approx(metrics.quadratic_weighted_kappa(val))
    truth = (temperatures - 1986) // 7 + 2
    written = answers("s.csv")
    levels = np.array([written[f"te{number:03d}"] for number in range(TEST)])
    assert set(levels) <= {2, 3, 4, 5}
    assert np.abs(levels - truth).mean() < 0.6
    assert cohen_kappa_score(truth.astype(int), levels.astype(int), weights="quadratic") > 0.7
    assert comp("evaluate", run.path).code == 0
    assert comp("predict", run.path, "--split", "val").code == 0
    folds = comp("cv", "c.yaml", *settings, "train.epochs=1", "data.folds=2", "data.fold=0", "--runs", "folds")
    assert folds.code == 0, folds.err
    assert "out of fold" in folds.out


@pytest.mark.slow
def test_soups_and_settings_that_need_no_validation_take_numbers_and_probes_do_not(
    temperatures: np.ndarray, comp: Comp
) -> None:
    for seed in (0, 1):
        assert comp("run", "c.yaml", f"seed={seed}", "train.epochs=1", "train.average=none").code == 0
    first, second = list_runs(Path("runs"))
    soup = comp("ensemble", first.path, second.path, "--method", "soup", "--runs", "made", "-o", "s.csv")
    assert soup.code == 0, soup.err
    assert len(answers("s.csv")) == TEST
    refused = comp("probe", first.path)
    assert refused.code == 2
    assert "a probe tells classes apart" in refused.err
    started = ("train.epochs=1", f"model.from_run={first.path}", "data.validation=none", "train.average=none")
    fine = comp("run", "c.yaml", *started, "-o", "f.csv", "--runs", "fine")
    assert fine.code == 0, fine.err
    assert 1980 < np.mean(list(answers("f.csv").values())) < 2020
