"""`comp cv`: all folds in one command, resumable, and one run of them together."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import filelock
import numpy as np
import pytest
import safetensors.numpy

from comp.ensembles.cross_validate import CrossValidation
from comp.results import files, prediction_files, runs
from tests.support.commands import Result, assert_refused, comp_process

Comp = Callable[..., Result]
SMALL = (
    "data.folds=3", "data.fold=1", "train.epochs=1", "competition.ood_validation.severities=[]",
    "competition.suite={files: 2, severities: 1, images_per_block: 8}", "train.device=cpu", "train.channels_last=false",
)  # fmt: skip
CONFIG = str(Path(__file__).parents[2] / "configs" / "quickstart.yaml")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder in which three folds were trained and combined."""
    folder = tmp_path_factory.mktemp("cv")
    done = comp_process("cv", CONFIG, *SMALL, "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    (folder / "result.json").write_text(done.stdout)
    return folder


@pytest.fixture
def folder(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(trained, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy"


def test_each_image_is_predicted_by_the_fold_that_did_not_train_on_it(folder: Path) -> None:
    result = json.loads(Path("result.json").read_text())
    assert [runs.open_run(Path(path)).config().data.fold for path in result["folds"]] == [0, 1, 2]
    whole = prediction_files.load(Path(result["run"]) / "predictions" / "val.npz")
    parts = [prediction_files.load(Path(path) / "predictions" / "val.npz") for path in result["folds"]]
    assert sorted(whole.ids) == sorted(np.concatenate([part.ids for part in parts]))
    accuracy = result["scores"]["accuracy"]
    sizes = [len(part) for part in parts]
    assert accuracy["out_of_fold"] == pytest.approx(np.average(accuracy["folds"], weights=sizes), abs=1e-6)
    assert accuracy["interval"][0] < accuracy["out_of_fold"] < accuracy["interval"][1]
    assert Path(result["submission"]).is_file()


def test_the_interval_of_a_mean_stays_in_the_range_of_its_metric(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = json.loads(Path("result.json").read_text())
    folds = tuple(runs.open_run(Path(path)) for path in result["folds"])
    validated = CrossValidation(folds, runs.open_run(Path(result["run"])))
    monkeypatch.setattr(CrossValidation, "fold_values", lambda self, score: [0.1, 2.0, None])
    _, interval = validated.out_of_fold("log_loss")
    assert interval is not None
    assert interval.low == 0
    assert interval.high > 2


def test_a_repeated_command_trains_nothing_and_says_the_same(folder: Path, comp: Comp) -> None:
    before = sorted(path.name for path in Path("runs").rglob("*.safetensors"))
    result = comp("cv", CONFIG, *SMALL, "--json")
    assert result.code == 0, result.err
    assert json.loads(result.out) == json.loads(Path("result.json").read_text())
    assert sorted(path.name for path in Path("runs").rglob("*.safetensors")) == before


@pytest.mark.slow
def test_a_missing_fold_is_trained_and_the_others_stay(folder: Path, comp: Comp) -> None:
    first = json.loads(Path("result.json").read_text())
    shutil.rmtree(first["folds"][1])
    result = comp("cv", CONFIG, *SMALL, "--json")
    assert result.code == 0, result.err
    second = json.loads(result.out)
    assert second["folds"][::2] == first["folds"][::2]
    assert second["folds"][1] != first["folds"][1]
    assert second["scores"]["accuracy"]["folds"] == pytest.approx(first["scores"]["accuracy"]["folds"])


@pytest.mark.slow
def test_folds_of_other_data_are_trained_anew(folder: Path, comp: Comp) -> None:
    first = json.loads(Path("result.json").read_text())
    for path in first["folds"]:
        provenance = Path(path) / "provenance.json"
        provenance.write_text(provenance.read_text().replace('"data_fingerprint": "', '"data_fingerprint": "0'))
    result = comp("cv", CONFIG, *SMALL, "--json")
    assert result.code == 0, result.err
    assert not set(json.loads(result.out)["folds"]) & set(first["folds"])


@pytest.mark.slow
@pytest.mark.parametrize("changed", ["weights", "fixes", "more"])
def test_a_fold_is_trained_anew_where_its_teacher_or_fix_list_has_changed(
    folder: Path, comp: Comp, changed: str
) -> None:
    names = prediction_files.load(
        Path(json.loads(Path("result.json").read_text())["folds"][0]) / "predictions/val.npz"
    ).ids
    Path("fixes.csv").write_text(f"id,action,label\n{names[0]},drop,\n")
    (teachers,) = Path("runs").glob("*/cv-*")
    shutil.copytree(teachers, "teachers")
    words = ("cv", CONFIG, *SMALL, "train.teacher.runs=[teachers]", "data.fixes=fixes.csv", "--json")
    first = comp(*words)
    assert first.code == 0, first.err
    assert json.loads(comp(*words).out)["folds"] == json.loads(first.out)["folds"]
    if changed == "fixes":
        Path("fixes.csv").write_text(f"id,action,label\n{names[1]},drop,\n")
    elif changed == "more":
        assert comp("train", CONFIG, *SMALL, "seed=7", "--runs", "teachers").code == 0  # of fold 1
    else:
        teacher = sorted(run.path for run in runs.list_runs(Path("teachers")) if run.config().data.fold == 1)[0]
        tensors = safetensors.numpy.load_file(teacher / "best.safetensors")
        name = next(name for name, tensor in tensors.items() if tensor.ndim > 1)
        safetensors.numpy.save_file({**tensors, name: tensors[name] * 1.5}, teacher / "best.safetensors")
        scores, digest = runs.Run(teacher).metrics(), files.sha256_file(teacher / "best.safetensors")
        runs.Run(teacher).write_metrics(scores.model_copy(update={"weights_sha256": digest}))
    second = comp(*words)
    assert second.code == 0, second.err
    same = [one == other for one, other in zip(*(json.loads(r.out)["folds"] for r in (first, second)), strict=True)]
    assert same == ([False] * 3 if changed == "fixes" else [True, False, True])
    assert "is left alone, and its fold trained anew" in " ".join(second.err.split())


@pytest.mark.slow
def test_workers_make_the_same_bytes_as_one_process(trained: Path, tmp_path: Path) -> None:
    done = comp_process("cv", CONFIG, *SMALL, "--workers", 2, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    alone, together = json.loads((trained / "result.json").read_text()), json.loads(done.stdout)
    assert together["scores"] == alone["scores"]
    for one, other in zip(alone["folds"], together["folds"], strict=True):
        weights = [folder / "final.safetensors" for folder in (trained / one, tmp_path / other)]
        assert weights[0].read_bytes() == weights[1].read_bytes()
    assert (trained / alone["submission"]).read_bytes() == (tmp_path / together["submission"]).read_bytes()


@pytest.mark.slow
def test_a_fold_that_fails_is_named_and_the_others_are_trained(folder: Path, comp: Comp) -> None:
    first = json.loads(Path("result.json").read_text())
    (Path(first["folds"][1]) / "metrics.json").unlink()  # neither complete nor resumable
    shutil.rmtree(first["folds"][2])
    result = comp("cv", CONFIG, *SMALL, "--workers", 2)
    assert_refused(result, "fold 1: ", first["folds"][1], "the other folds are trained")
    shutil.rmtree(first["folds"][1])
    result = comp("cv", CONFIG, *SMALL, "--workers", 2, "--json")
    assert result.code == 0, result.err
    second = json.loads(result.out)
    assert second["folds"][0] == first["folds"][0]
    assert second["scores"] == first["scores"]


@pytest.mark.slow
def test_ctrl_c_stops_all_workers_and_the_same_command_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    words = ["cv", CONFIG, *SMALL, "train.epochs=5", "data.folds=2", "--workers", "2", "--json"]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    whole.mkdir()
    stopped.mkdir()
    done = comp_process(*words, cwd=whole)
    assert done.returncode == 0, done.stderr
    command = [sys.executable, "-m", "comp", *words]
    process = subprocess.Popen(command, cwd=stopped, start_new_session=True, stderr=subprocess.PIPE, text=True)
    while not list(stopped.glob("runs/*/*/*-fold?/state.pt")) and process.poll() is None:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal's Ctrl-C
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGINT
    (folder,) = (path.relative_to(stopped) for path in stopped.glob("runs/*/cv-*"))
    assert f"Stopped. What is done stays in {folder}. Continue with: comp cv {CONFIG}" in err
    with pytest.raises(ProcessLookupError):  # noqa: PT012
        for _ in range(1000):
            os.killpg(process.pid, 0)  # multiprocessing's tracker of resources may live a moment longer
            time.sleep(0.02)
    resumed = comp_process(*words, cwd=stopped)
    assert resumed.returncode == 0, resumed.stderr
    folds = [json.loads(text)["folds"] for text in (done.stdout, resumed.stdout)]
    for one, other in zip(*folds, strict=True):
        weights = [folder / "final.safetensors" for folder in (whole / one, stopped / other)]
        assert weights[0].read_bytes() == weights[1].read_bytes()


def test_its_own_submission_is_no_reason_to_refuse_a_finished_command(folder: Path, comp: Comp) -> None:
    whole = json.loads(Path("result.json").read_text())
    first = comp("cv", CONFIG, *SMALL, "-o", "mine.csv", "--json")
    assert first.code == 0, first.err
    assert "its submission is written to mine.csv" in first.err
    assert json.loads(first.out) == {**whole, "submission": "mine.csv"}  # the same ensemble
    assert Path("mine.csv").read_bytes() == Path(whole["submission"]).read_bytes()
    before = Path("mine.csv").read_bytes()
    again = comp("cv", CONFIG, *SMALL, "-o", "mine.csv", "--json")
    assert again.code == 0, again.err
    assert "nothing is left to do" in again.err
    assert again.out == first.out
    Path("other.csv").write_text("id,label\n")
    assert_refused(comp("cv", CONFIG, *SMALL, "-o", "other.csv"), "other.csv", "--force")
    with Path("mine.csv").open("a") as file:
        file.write("changed,0\n")
    assert_refused(comp("cv", CONFIG, *SMALL, "-o", "mine.csv"), "mine.csv", "--force")
    assert comp("cv", CONFIG, *SMALL, "-o", "mine.csv", "--force").code == 0
    assert Path("mine.csv").read_bytes() == before


def test_a_submission_that_is_gone_is_written_again_in_its_place(folder: Path, comp: Comp) -> None:
    path = Path(json.loads(Path("result.json").read_text())["submission"])
    before = path.read_bytes()
    path.unlink()  # its sidecar stays
    result = comp("cv", CONFIG, *SMALL, "--json")
    assert result.code == 0, result.err
    assert json.loads(result.out) == json.loads(Path("result.json").read_text())
    assert path.read_bytes() == before
    assert sorted(path.parent.iterdir()) == [path, path.with_suffix(".json")]


@pytest.mark.parametrize("words", [["train.loss=none"], ["data.folds=1"], ["model.name=nothing"]])
def test_a_refused_command_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, comp: Comp, words: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert comp("cv", CONFIG, *SMALL, *words).code == 2
    assert not list(tmp_path.iterdir())


def test_missing_weights_of_a_fold_are_named(folder: Path, comp: Comp) -> None:
    path = Path(json.loads(Path("result.json").read_text())["folds"][1]) / "best.safetensors"
    path.unlink()
    shutil.rmtree(json.loads(Path("result.json").read_text())["run"])  # so that the folds are combined again
    assert_refused(comp("cv", CONFIG, *SMALL, "-o", "new.csv"), str(path), "is missing")
    assert not Path("new.csv").exists()


def test_two_commands_at_once_are_refused(folder: Path, comp: Comp) -> None:
    (group,) = Path("runs").glob("*/cv-*")
    with filelock.FileLock(group / ".lock"):
        result = comp("cv", CONFIG, *SMALL)
    assert result.code == 2
    assert "another comp cv" in result.err


def test_the_leaderboard_has_one_line_for_the_folds_together(folder: Path, comp: Comp) -> None:
    rows = json.loads(comp("leaderboard", "--json").out)
    rows = rows["rows"] if isinstance(rows, dict) else rows
    assert [row["kind"] for row in rows].count("fold_group") == 1


def test_a_table_shows_folds_mean_and_interval(folder: Path, comp: Comp) -> None:
    result = comp("cv", CONFIG, *SMALL)
    for text in ("fold 0", "fold 2", "mean", "standard deviation", "out of fold", "95 %", "submission"):
        assert text in result.out


def test_a_config_without_folds_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, comp: Comp) -> None:
    monkeypatch.chdir(tmp_path)
    result = comp("cv", CONFIG)
    assert result.code == 2
    assert "data.folds" in result.err
    assert not Path("runs").exists()
