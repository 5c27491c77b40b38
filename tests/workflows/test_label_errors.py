"""`comp data errors` and `data.fixes` from end to end: labels are listed, pictured, fixed, recorded, resumed."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from comp import config as configs
from comp.results import prediction_files, runs
from comp.runtime.errors import Interrupted
from comp.workflows import train
from tests.support.commands import Result, assert_refused, interrupt_at
from tests.support.configs import small_config, write_arrays, write_config
from tests.support.runs import assert_same_weights, history_without_clock, the_run

Comp = Callable[..., Result]
pytestmark = pytest.mark.slow
FLIPPED = list(range(0, 240, 25))  # rows whose label is the next class's


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data of four colours, ten wrong labels among 240, and the three folds of their config."""
    from tests.support.commands import comp_process

    folder = tmp_path_factory.mktemp("flipped")
    write_arrays(folder / "data", train=240, size=8)
    path = folder / "data" / "train_labels.npy"
    labels = np.load(path)
    labels[FLIPPED] = (labels[FLIPPED] + 1) % 4
    np.save(path, labels)
    values = small_config(Path("data"))
    values["competition"] = {"name": "flipped", "suite": {"source": "none"}, "ood_validation": {"severities": []}}
    values["data"] |= {"folds": 3}
    values["augment"] = {}
    values["train"] |= {"epochs": 8, "batch_size": 16, "label_smoothing": 0.0}
    write_config(folder / "flipped.yaml", values)
    done = comp_process("cv", "flipped.yaml", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def folder(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(trained, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy"


def cv_folder() -> Path:
    (path,) = Path("runs/flipped").glob("cv-*")
    return path


def folds() -> list[Path]:
    return sorted(path for path in cv_folder().glob("*-fold*"))


def test_flipped_labels_are_listed_pictured_and_written_as_a_fix_list(folder: Path, comp: Comp) -> None:
    result = comp("data", "errors", cv_folder(), "--out", "fixes.csv")
    assert result.code == 0, result.err
    with Path("fixes.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    listed = {int(row["id"].removeprefix("train_")): row for row in rows}
    assert set(listed) <= set(FLIPPED)
    assert len(listed) >= 6
    assert all(row["label"] == str(number % 4) for number, row in listed.items())
    assert all(row["given"] == str((number + 1) % 4) for number, row in listed.items())
    assert "of 240 labels are wrong" in result.out
    assert "trained on" not in result.out
    with Image.open("fixes.png") as picture:
        assert picture.size[0] > 300


def test_the_folds_their_folder_and_their_ensemble_say_the_same(folder: Path, comp: Comp) -> None:
    (ensemble,) = cv_folder().glob("*-ensemble")
    listed = []
    for words in ([cv_folder()], folds(), [ensemble]):
        result = comp("data", "errors", *words, "--json", "--pictures", "page.html")
        assert result.code == 0, result.err
        listed.append(json.loads(result.out))
        assert len(listed[-1].pop("runs")) == (3 if len(words) == 3 else 1)
    assert listed[0] == listed[1] == listed[2]
    assert listed[0]["unjudged"] == 0
    page = Path("page.html").read_text()
    assert page.count("data:image/png;base64") == len(listed[0]["suspects"])


def test_one_run_judges_only_its_validation_images_and_says_so(folder: Path, comp: Comp) -> None:
    result = comp("data", "errors", folds()[1], "--top", 2)
    assert result.code == 0, result.err
    assert "of 80 labels are wrong" in result.out
    assert "160 other images were trained on" in result.out
    two = json.loads(comp("data", "errors", folds()[1], "--top", 2, "--json").out)["suspects"]
    every = json.loads(comp("data", "errors", folds()[1], "--json").out)["suspects"]
    assert two == every[:2]
    assert Path("runs/data/flipped/label-errors.png").is_file()


def test_images_marked_keep_in_the_runs_fix_list_are_not_listed_again(folder: Path, comp: Comp) -> None:
    assert comp("data", "errors", cv_folder(), "--out", "fixes.csv").code == 0
    text = Path("fixes.csv").read_text().replace("relabel", "keep").replace("drop", "keep")
    Path("fixes.csv").write_text(text)
    assert comp("train", "flipped.yaml", "data.fixes=fixes.csv", "train.epochs=3", "--runs", "again").code == 0
    ids = {row["id"] for row in csv.DictReader(text.splitlines())}
    values = json.loads(comp("data", "errors", the_run(Path("again")).path, "--json").out)
    assert not ids & {row["id"] for row in values["suspects"]}


def test_validation_is_scored_with_given_and_with_fixed_labels(folder: Path, comp: Comp) -> None:
    (ensemble,) = cv_folder().glob("*-ensemble")
    stored = prediction_files.load(ensemble / "predictions" / "val.npz")
    rows = [f"train_{row},relabel,{row % 4}" for row in FLIPPED[:-1]] + [f"train_{FLIPPED[-1]},drop,"]
    Path("fixes.csv").write_text("\n".join(["id,action,label", *rows]) + "\n")
    result = comp("evaluate", ensemble, "--fixes", "fixes.csv", "--json")
    assert result.code == 0, result.err
    fixed = json.loads(result.out)["evaluation"]["val"]["fixed"]
    kept = [name != f"train_{FLIPPED[-1]}" for name in stored.ids]
    true = np.array([int(name.removeprefix("train_")) % 4 for name in stored.ids])
    assert fixed["metric"]["name"] == "accuracy"
    assert fixed["metric"]["value"] == pytest.approx((stored.top1 == true)[kept].mean())
    assert fixed["images"] == 239
    printed = comp("evaluate", ensemble, "--fixes", "fixes.csv").out
    assert "val with the labels of fixes.csv, without 1 it drops: accuracy" in printed


def test_a_run_with_fixes_is_recorded_resumed_to_the_bit_and_predicts_without_the_original_list(
    folder: Path, comp: Comp
) -> None:
    rows = [f"train_{row},relabel,{row % 4}" for row in FLIPPED[:5]] + [f"train_{row},drop," for row in FLIPPED[5:]]
    content = "\n".join(["id,action,label", *rows]) + "\n"
    Path("fixes.csv").write_text(content)
    config = configs.load("flipped.yaml", ["data.fixes=fixes.csv", "train.epochs=2"])
    whole = train.train(config, runs_root=Path("whole"))
    with pytest.raises(Interrupted):
        train.train(config, runs_root=Path("parts"), progress=interrupt_at(13))
    Path("fixes.csv").write_text("id,action,label\ntrain_1,drop,\n")  # the run has its own copy
    resumed = train.resume(the_run(Path("parts")))
    assert_same_weights(whole, resumed)
    assert history_without_clock(whole) == history_without_clock(resumed)
    record = whole.provenance()["fixes"]
    assert (whole.path / "fixes.csv").read_text() == content
    assert record["relabelled"] + record["dropped"] + record["held_out"] == len(FLIPPED)

    # The same validation rows and labels as without fixes.
    plain = prediction_files.load(folds()[0] / "predictions" / "val.npz")
    fixed = prediction_files.load(whole.path / "predictions" / "val.npz")
    assert plain.ids.tolist() == fixed.ids.tolist()
    assert plain.targets.tolist() == fixed.targets.tolist()
    assert whole.provenance()["data_fingerprint"] == runs.Run(folds()[0]).provenance()["data_fingerprint"]

    Path("fixes.csv").unlink()
    result = comp("predict", whole.path, "--split", "val")
    assert result.code == 0, result.err
    (whole.path / "fixes.csv").write_text("id,action,label\ntrain_2,keep,\n")
    assert_refused(comp("predict", whole.path, "--split", "val"), "was trained with the fix list of sha256", "restore")


def test_cross_validation_with_another_list_trains_anew(folder: Path, comp: Comp) -> None:
    words = ["cv", "flipped.yaml", "train.epochs=1", "data.folds=2", "data.fixes=fixes.csv", "--json"]
    results = []
    for row in ("train_1,drop,", "train_1,drop,", "train_2,drop,"):
        Path("fixes.csv").write_text(f"id,action,label\n{row}\n")
        result = comp(*words)
        assert result.code == 0, result.err
        results.append(json.loads(result.out))
    assert results[0] == results[1]
    assert not set(results[0]["folds"]) & set(results[2]["folds"])
    ensemble = runs.Run(results[2]["run"])
    assert (ensemble.path / "fixes.csv").read_text() == "id,action,label\ntrain_2,drop,\n"
    assert "fixed" in json.loads(comp("evaluate", ensemble.path, "--json").out)["evaluation"]["val"]


def test_what_cannot_be_judged_or_written_is_refused(folder: Path, comp: Comp) -> None:
    first, second, third = folds()
    assert_refused(comp("data", "errors", first, first), "validate the same images")
    assert_refused(comp("data", "errors", first, "--out", "fixes.txt"), "fixes.txt", ".csv")
    assert_refused(comp("data", "errors", first, "--pictures", "a.jpg"), "a.jpg", ".png or .html")
    assert_refused(comp("data", "errors", "nowhere"), "nowhere: no such run")
    assert_refused(comp("data", "errors", "data"), "found no complete run")
    Path("fixes.csv").write_text("mine\nstays\n")
    assert_refused(comp("data", "errors", first, "--out", "fixes.csv"), "fixes.csv: exists")
    assert Path("fixes.csv").read_text() == "mine\nstays\n"
    assert_refused(comp("train", "flipped.yaml", "data.fixes=none.csv"), "none.csv: no such fix list")
    assert_refused(comp("config", "check", "flipped.yaml", "data.fixes=fixes.csv"), "one column each of id, action")
    (second / "predictions" / "val.npz").write_bytes(b"PK")
    assert_refused(comp("data", "errors", first, second, third), "val.npz")


def test_without_its_images_the_list_is_still_written(folder: Path, comp: Comp) -> None:
    Path("data").rename("moved")
    result = comp("data", "errors", cv_folder(), "--out", "fixes.csv")
    assert result.code == 0, result.err
    assert "no pictures: " in result.err
    assert len(Path("fixes.csv").read_text().splitlines()) > 6
    assert_refused(comp("data", "errors", cv_folder(), "--pictures", "a.png"), "data.root=DIR")
    assert comp("data", "errors", cv_folder(), "--pictures", "a.png", "data.root=moved").code == 0
    assert Path("a.png").is_file()


def test_labels_of_several_classes_are_refused(workplace: Path, comp: Comp) -> None:
    labels = np.load("data/train_labels.npy")
    np.save("data/train_labels.npy", np.eye(4, dtype=np.uint8)[labels] | np.eye(4, dtype=np.uint8)[0])
    np.save("data/test_labels.npy", np.eye(4, dtype=np.uint8)[np.load("data/test_labels.npy")])
    assert comp("train", "small.yaml", "train.epochs=1", "competition.ood_validation.severities=[]").code == 0
    assert_refused(comp("data", "errors", the_run().path), "exclusive classes", "multi_label")


def test_a_run_without_validation_is_refused(workplace: Path, comp: Comp) -> None:
    settings = ["train.epochs=1", "data.validation=none", "competition.ood_validation.severities=[]"]
    assert comp("train", "small.yaml", *settings).code == 0
    assert_refused(comp("data", "errors", the_run().path), "no validation predictions", "comp cv")
