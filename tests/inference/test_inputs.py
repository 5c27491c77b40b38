"""A trained run predicts images from anywhere, without its data, with them moved, and on another device."""

import csv
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import comp as api
from comp import config as configs
from comp.results import files, prediction_files, runs
from comp.runtime.errors import ConfigError, DataError
from comp.workflows import train
from comp.workflows.load import load_run
from comp.workflows.predict import predict_split
from tests.support.commands import Result, assert_refused
from tests.support.configs import QUICK, small_config, write_arrays, write_config
from tests.support.photographs import COLOURS, photograph, photographs_config, write_kaggle

Comp = Callable[..., Result]
NAMES = list(COLOURS)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `runs/small/*` trained on photographs in `data`, and what its own test is answered with."""
    folder = tmp_path_factory.mktemp("trained")
    before = Path.cwd()
    os.chdir(folder)
    try:
        write_kaggle(Path("data"), train=60, test=9)
        config = configs.load(write_config(Path("c.yaml"), photographs_config(Path("data"), "csv_images")))
        config = config.model_copy(update={"train": config.train.model_copy(update={"epochs": 6})})
        run = train.train(config, runs_root=Path("runs"))
        predict_split(load_run(run), "suite")
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> runs.Run:
    """The run, alone in a working directory with its test images in `photos`; its data are not there."""
    shutil.copytree(trained / "runs", tmp_path / "runs")
    shutil.copytree(trained / "data" / "test", tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    (found,) = runs.list_runs(Path("runs"))
    return found


def own_answers(run: runs.Run) -> dict[str, tuple[str, float]]:
    """Return what the run has report of its own test, by file."""
    found = prediction_files.load(run.predictions_path("suite"))
    assert found.top1 is not None
    shares = found.probabilities().max(1)
    return {
        f"{name}.jpg": (found.classes[label], share)
        for name, label, share in zip(found.ids, found.top1, shares, strict=True)
    }


def table(path: Path | str) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("with_sample", [True, False])
def test_the_own_test_is_submitted_without_the_training_data(
    trained: Path, run: runs.Run, comp: Comp, with_sample: bool
) -> None:
    """As in a code competition: another notebook, with the test alone."""
    shutil.copytree(trained / "data" / "test", "kaggle/test")
    if with_sample:
        shutil.copy(trained / "data" / "sample_submission.csv", "kaggle")
    own = {Path(name).stem: label for name, (label, _) in own_answers(run).items()}
    result = comp("predict", run.path, "data.root=kaggle", "-o", "s.csv")
    assert result.code == 0, result.err
    assert "the test is predicted without the training data" in " ".join(result.err.split())
    assert comp("check", "s.csv").code == 0
    rows = table("s.csv")
    assert list(rows[0]) == ["image_id", "label"]  # as the sample has it, or the training table had
    assert [row["image_id"] for row in rows] == sorted(own, reverse=with_sample)
    assert {row["image_id"]: row["label"] for row in rows} == own


def test_a_folder_is_predicted_without_the_data_as_the_run_predicted_it_with_them(run: runs.Run, comp: Comp) -> None:
    before = {path: path.stat().st_mtime_ns for path in run.path.rglob("*")}
    result = comp("predict", run.path, "--images", "photos")
    assert result.code == 0, result.err
    rows = table("predictions/small.csv")
    own = own_answers(run)
    assert list(rows[0]) == ["id", "label", "probability"]
    assert [row["id"] for row in rows] == sorted(own)
    for number, row in enumerate(rows):
        label, share = own[row["id"]]
        assert row["label"] == label == NAMES[number % 3]
        assert float(row["probability"]) == pytest.approx(share, abs=2e-3)
        assert row["id"] in result.out
    stored = prediction_files.load(Path("predictions/small.npz"))
    assert stored.ids.tolist() == [row["id"] for row in rows]
    assert stored.made_by["run"] == run.name
    assert {path: path.stat().st_mtime_ns for path in run.path.rglob("*")} == before  # it may be read-only


def test_the_working_folder_is_predicted_by_its_short_name(
    run: runs.Run, comp: Comp, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = run.path.resolve()
    monkeypatch.chdir("photos")
    result = comp("predict", path, "--images", ".", "-o", "all.csv")
    assert result.code == 0, result.err
    assert len(table("all.csv")) == len(own_answers(run.__class__(path)))


def test_files_globs_folders_and_lists_are_taken_together_and_each_file_once(run: runs.Run, comp: Comp) -> None:
    Path("photos/deep/.hidden").mkdir(parents=True)
    shutil.copy("photos/008.jpg", "photos/deep/000.jpg")
    shutil.copy("photos/008.jpg", "photos/deep/.hidden/x.jpg")
    Path("photos/readme.md").write_text("no image")
    Path("table.csv").write_text("number;path\n1;photos/003.jpg\n2;photos/000.jpg\n")
    Path("photos/list.txt").write_text("004.jpg\n\n005.jpg\n")  # beside the list
    paths = ["photos/000.jpg", "photos/00[12].jpg", "table.csv", "photos/list.txt", "photos/deep"]
    words = [word for path in paths for word in ("--images", path)]
    result = comp("predict", run.path, *words, "-o", "out.csv", "--json")
    assert result.code == 0, result.err
    report = json.loads(result.out)[str(run.path)]
    assert [row["id"] for row in report["rows"]] == [
        "photos/000.jpg", "001.jpg", "002.jpg", "photos/003.jpg", "004.jpg", "005.jpg", "photos/deep/000.jpg",
    ]  # fmt: skip
    assert report["rows"] == table("out.csv")
    hidden, duplicates = report["notes"]
    assert "photos/deep" in hidden
    assert " 1 " in hidden
    assert " 1 " in duplicates
    everything = comp("predict", run.path, "--images", "photos", "--json")
    report = json.loads(everything.out)[str(run.path)]
    assert len(report["rows"]) == 10
    assert "1 image in hidden folders or under hidden names and 2 files that are no images" in report["notes"][0]


@pytest.mark.parametrize(
    ("images", "parts"),
    [
        (["nowhere"], ["--images nowhere: no such file or folder"]),
        (["photos/*.gif"], ["photos/*.gif: "]),
        (["empty"], ["--images empty: "]),
        (["notes.md"], ["notes.md: expected an image"]),
        (["broken.jpg", "photos"], ["broken.jpg", "truncated or damaged"]),
        (["list.csv"], ["list.csv: ", " 1 ", "'photos/999.jpg'"]),
        (["names.txt"], ["names.txt: ", "'dog'"]),
        (["small.npy"], ["small.npy: expected uint8 images [N, 32, 32, 3]", "uint8 [2, 8, 8, 3]"]),
    ],
)
def test_what_cannot_be_predicted_is_refused_in_one_message(
    run: runs.Run, comp: Comp, images: list[str], parts: list[str]
) -> None:
    Path("empty").mkdir()
    Path("notes.md").write_text("a")
    Path("broken.jpg").write_bytes(Path("photos/000.jpg").read_bytes()[:300])
    Path("list.csv").write_text("photos/000.jpg\nphotos/999.jpg\n")
    Path("names.txt").write_text("cat\ndog\n")
    np.save("small.npy", np.zeros((2, 8, 8, 3), np.uint8))
    assert_refused(comp("predict", run.path, *[word for path in images for word in ("--images", path)]), *parts)
    assert not Path("predictions").exists()


def test_one_input_is_given_at_most_and_nothing_is_replaced_unasked(run: runs.Run, comp: Comp) -> None:
    for options in (["--split", "val", "--images", "photos"], ["--suite", "photos", "--split", "suite"]):
        assert_refused(comp("predict", run.path, *options), "at most one of", options[0], options[2])
    Path("out.npz").write_bytes(b"mine")
    assert_refused(comp("predict", run.path, "--images", "photos", "-o", "out.csv"), "out.npz: ")
    assert Path("out.npz").read_bytes() == b"mine"
    assert_refused(comp("predict", run.path, "--images", "photos", "-o", "out.txt"), "ends in .csv")


def test_missing_data_are_named_with_both_ways_out(run: runs.Run, comp: Comp) -> None:
    assert_refused(comp("predict", run.path), "data: no such folder (data.root)", "data.root=DIR", "--images PATH")
    assert_refused(comp("evaluate", run.path), "data: no such folder (data.root)", "data.root=DIR")


def test_moved_data_are_found_by_an_override_and_still_compared(trained: Path, run: runs.Run, comp: Comp) -> None:
    shutil.copytree(trained / "data", "moved")
    first = prediction_files.load(run.predictions_path("suite"))
    stored = (run.path / "config.yaml").read_bytes()
    result = comp("predict", run.path, "data.root=moved", "-o", "moved.csv")
    assert result.code == 0, result.err
    assert [row["label"] for row in table("moved.csv")] == [first.classes[label] for label in first.top1]
    assert comp("evaluate", "data.root=moved", run.path).code == 0  # in either order
    assert (run.path / "config.yaml").read_bytes() == stored
    sidecar = json.loads(Path("moved.json").read_text())
    assert sidecar["config_hash"] == run.metrics().config_hash
    photograph(5, COLOURS["bee"]).save("moved/train/000.jpg")
    assert_refused(comp("predict", run.path, "data.root=moved"), "training images or labels have changed")


def test_a_word_with_an_equals_sign_is_an_override_and_a_folder_by_its_path_alone(run: runs.Run, comp: Comp) -> None:
    shutil.copytree(run.path, "a=b")
    assert_refused(comp("predict", "a=b", "--images", "photos"), "expected a run", "./a=b")
    assert comp("predict", "./a=b", "--images", "photos").code == 0
    assert_refused(comp("predict", run.path, "data.rot=x"), "'data.rot=x'", "did you mean 'data.root'")
    assert_refused(comp("predict", run.path, "model.name=convnet"), "a trained run keeps its config", "data.root")


def test_another_device_is_named_where_it_is_not_there(run: runs.Run, comp: Comp) -> None:
    assert_refused(comp("predict", run.path, "--images", "photos", "--device", "gpu"), "--device: unknown device 'gpu'")
    assert_refused(comp("predict", run.path, "--images", "photos", "--device", "mps"), "'mps' is not on this machine")


def test_a_run_of_a_gpu_predicts_on_the_cpu_and_says_what_changes(run: runs.Run, comp: Comp) -> None:
    """As it was trained in half precision and compiled, on a device that this machine has not."""
    recorded = files.read_json(run.path / "execution.json")
    run.write_json("execution.json", {**recorded, "device": "mps", "precision": "fp16", "compiled": True})
    for options in ((), ("--device", "cpu")):
        result = comp("predict", run.path, "--images", "photos", *options)
        assert result.code == 0, result.err
        assert "trained on mps in fp16, predicts on cpu in fp32" in " ".join((result.err + result.out).split())
    own = own_answers(run)
    assert {row["id"]: row["label"] for row in table("predictions/small.csv")} == {k: v[0] for k, v in own.items()}
    run.write_json("execution.json", {**recorded, "compiled": True})
    assert comp("predict", run.path, "--images", "photos").code == 0  # a prediction needs no compiler


def test_the_api_takes_paths_and_arrays(run: runs.Run) -> None:
    own = own_answers(run)
    by_path = api.predict(run, images=["photos/000.jpg", Path("photos/001.jpg")])
    assert [by_path.classes[label] for label in by_path.top1] == [own["000.jpg"][0], own["001.jpg"][0]]
    square = Image.open("photos/000.jpg").convert("RGB").resize((32, 32))
    by_array = api.predict(run.path, images=np.array(square)[None])
    assert by_array.ids.tolist() == ["0"]
    assert by_array.classes[by_array.top1[0]] == own["000.jpg"][0]
    with pytest.raises(DataError, match=r"expected uint8 images \[N, 32, 32, 3\]"):
        api.predict(run, images=np.zeros((1, 32, 32, 3)))
    with pytest.raises(ConfigError, match="at most one"):
        api.predict(run, images="photos", split="val")
    with pytest.raises(DataError, match=r"data\.root=DIR"):
        api.predict(run, split="val")


def test_grey_runs_and_another_suite_do_without_their_data_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, comp: Comp
) -> None:
    monkeypatch.chdir(tmp_path)
    write_arrays(Path("data"))
    for name in ("train", "test"):
        np.save(f"data/{name}_images.npy", np.load(f"data/{name}_images.npy")[..., :1])
    values = small_config(Path("data"))
    values["augment"] = {}
    trained = train.train(
        configs.load(write_config(Path("c.yaml"), values), [*QUICK, "train.epochs=3"]), runs_root=Path("runs")
    )
    assert comp("data", "corrupt", "c.yaml", "--split", "test", "--out", "suite", "--only", "noise").code == 0
    with_data = comp("predict", trained.path, "--split", "test")
    assert with_data.code == 0, with_data.err
    test = prediction_files.load(trained.predictions_path("test"))
    Path("photos").mkdir()
    for row, image in enumerate(np.load("data/test_images.npy")):
        Image.fromarray(image[..., 0]).save(f"photos/{row:03d}.png")
    Image.new("RGB", (64, 48)).save("photos/large.png")
    shutil.move("data", "elsewhere")
    result = comp("predict", trained.path, "--images", "photos", "--json")
    assert result.code == 0, result.err
    report = json.loads(result.out)[str(trained.path)]
    assert [row["label"] for row in report["rows"][:-1]] == [test.classes[label] for label in test.top1]
    assert all(value in report["notes"][0] for value in ("1 of 41", "32x32"))
    suite = comp("predict", trained.path, "--suite", "suite", "-o", "suite.csv")
    assert suite.code == 0, suite.err
    assert "estimated accuracy" in suite.out
    assert len(table("suite.csv")) == len(np.load("suite/distortion00.npy")) * len(list(Path("suite").glob("*.npy")))
    old = {key: value for key, value in trained.provenance().items() if key != "numbered"}  # of before these were kept
    trained.write_json("provenance.json", old)
    assert comp("predict", trained.path, "--images", "photos").code == 0
    assert_refused(comp("predict", trained.path, "--suite", "suite"), "data", "data.root=DIR")
    assert comp("predict", trained.path, "--suite", "suite", "data.root=elsewhere").code == 0
