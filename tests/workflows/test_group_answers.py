"""One answer for several images (`data.group_answer`), from the tables to the submission."""

import contextlib
import csv
import json
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit
from sklearn.metrics import accuracy_score, log_loss, mean_squared_error

from comp import config as configs
from comp.data.dataset import open_dataset
from comp.results import prediction_files, runs
from comp.results.runs import Run
from comp.runtime.errors import Interrupted
from comp.workflows import train
from comp.workflows.load import load_run
from comp.workflows.predict import predict_images
from tests.support.commands import Result, assert_refused, interrupt_at
from tests.support.configs import write_config
from tests.support.patients import patients_config, write_patients, write_rows
from tests.support.runs import assert_same_weights, history_without_clock, the_run

Comp = Callable[..., Result]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a download in `d` and its config in `c.yaml`, and the run of it in `runs`."""
    folder = tmp_path_factory.mktemp("patients")
    write_patients(folder / "d")
    write_config(folder / "c.yaml", patients_config(Path("d")))
    with contextlib.chdir(folder):
        train.train(configs.load("c.yaml"))
    return folder


@pytest.fixture
def place(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with copies of all three."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rows_of(path: str | Path) -> list[list[str]]:
    return list(csv.reader(Path(path).read_text().splitlines()))


def by_image(run: Run, split: str) -> pd.DataFrame:
    """Return each image's probabilities, the group from the tables beside it, by a prediction that knows no groups."""
    loaded = load_run(run)
    images = getattr(loaded.dataset, split)
    predicted = predict_images(loaded, replace(images, groups=None))
    table = pd.DataFrame(predicted.probabilities(), columns=list(predicted.classes))
    tables = pd.concat([pd.read_csv(f"d/{name}.csv", dtype=str) for name in ("train", "test")])
    table["patient"] = tables.set_index("image").loc[predicted.ids.tolist(), "patient"].to_numpy()
    return table


def test_a_submission_has_a_row_a_patient_in_the_samples_order(place: Path, comp: Comp) -> None:
    run = the_run()
    result = comp("predict", run.path, "-o", "s.csv")
    assert result.code == 0, result.err
    assert comp("check", "s.csv").code == 0
    header, *rows = rows_of("s.csv")
    assert header == ["patient", "ill", "well"]
    assert [row[0] for row in rows] == [row[0] for row in rows_of("d/sample_submission.csv")[1:]]
    expected = by_image(run, "suite").groupby("patient").mean().loc[[row[0] for row in rows], ["ill", "well"]]
    np.testing.assert_allclose(np.array(rows)[:, 1:].astype(float), expected, atol=2e-3)
    sidecar = json.loads(runs.sidecar_path(Path("s.csv")).read_text())
    assert sidecar["made_by"]["group_answer"] == "mean"
    assert sum(sidecar["training_counts"]) == run.provenance()["groups"]["train"]


def test_validation_scores_and_selects_by_patients_whose_images_stay_together(place: Path) -> None:
    run = the_run()
    stored = prediction_files.load(run.predictions_path("val"))
    assert stored.made_by["group_answer"] == "mean"
    expected = by_image(run, "val").groupby("patient").mean().loc[stored.ids.tolist(), ["ill", "well"]]
    np.testing.assert_allclose(stored.probabilities(), expected, atol=2e-3)
    label_of = {row[1]: row[2] for row in rows_of("d/train.csv")[1:]}
    truth = [label_of[name] for name in stored.ids.tolist()]
    scores = run.metrics().best.val
    assert scores is not None
    assert scores.images == len(stored) < len(by_image(run, "val"))
    assert scores.value("log_loss") == pytest.approx(log_loss(truth, expected), abs=2e-3)
    assert scores.accuracy == pytest.approx(accuracy_score(truth, expected.idxmax(1)))
    best = min(float(row["val_metric"]) for row in run.history())
    assert scores.value("log_loss") == pytest.approx(best, abs=1e-6)
    dataset = open_dataset(run.config())
    assert dataset.val is not None
    assert dataset.val.groups is not None
    assert dataset.train.groups is not None
    assert not set(dataset.val.groups.names) & set(dataset.train.groups.names)
    assert run.metrics().group_answer == "mean"
    assert run.provenance()["groups"]["val"] == len(stored)


def test_an_interrupted_training_ends_with_the_same_bits(place: Path, trained: Path) -> None:
    config = configs.load("c.yaml")
    with pytest.raises(Interrupted):
        train.train(config, runs_root=Path("parts"), progress=interrupt_at(5))
    stopped = train.resume(the_run(Path("parts")))
    assert_same_weights(stopped, the_run(trained / "runs"))
    assert history_without_clock(stopped) == history_without_clock(the_run(trained / "runs"))


@pytest.mark.slow
def test_folds_are_combined_patient_by_patient(place: Path, comp: Comp) -> None:
    """Out-of-fold scores count each patient once, and a submission's row is the mean of the folds' rows."""
    settings = ["data.folds=3", "data.validation=0.1", "train.epochs=1"]
    result = comp("cv", "c.yaml", *settings, "-o", "cv.csv", "--runs", "folds", "--json")
    assert result.code == 0, result.err
    values = json.loads(result.out)
    ensemble = runs.open_run(Path(values["run"]))
    whole = prediction_files.load(ensemble.predictions_path("val"))
    assert sorted(whole.ids) == sorted({row[1] for row in rows_of("d/train.csv")[1:]})
    label_of = {row[1]: row[2] for row in rows_of("d/train.csv")[1:]}
    folds = [prediction_files.load(runs.open_run(Path(path)).predictions_path("val")) for path in values["folds"]]
    pooled = np.concatenate([fold.probabilities() for fold in folds])
    truth = [label_of[name] for fold in folds for name in fold.ids.tolist()]
    assert values["scores"]["log_loss"]["out_of_fold"] == pytest.approx(log_loss(truth, pooled), rel=5e-3)
    tests = [prediction_files.load(runs.open_run(Path(path)).predictions_path("suite")) for path in values["folds"]]
    expected = np.mean([part.probabilities() for part in tests], 0)
    rows = np.array(rows_of("cv.csv")[1:])
    assert rows[:, 0].tolist() == [row[0] for row in rows_of("d/sample_submission.csv")[1:]]
    np.testing.assert_allclose(rows[:, 1:].astype(float), expected, atol=2e-3)
    assert ensemble.metrics().group_answer == "mean"
    assert comp("check", "cv.csv").code == 0
    assert_refused(
        comp("predict", ensemble.path), "already written: cv.csv", f"{ensemble.path} --images PATH", *values["folds"]
    )
    refused = comp("data", "errors", ensemble.path)
    assert_refused(refused, "data.group_answer: mean", "image by image", "data.group_answer=none")


@pytest.mark.slow
def test_a_fold_without_a_class_has_no_score_that_needs_both(place: Path, comp: Comp) -> None:
    """Two of 24 patients are ill, so a third fold at least has none of them: its AUC is left out, its loss is not."""
    header, *rows = rows_of("d/train.csv")
    write_rows("d/train.csv", header, [[*row[:2], "ill" if row[1] in ("tr-0", "tr-2") else "well"] for row in rows])
    settings = ["data.folds=3", "data.validation=0.1", "train.epochs=1", "competition.metric=roc_auc"]
    result = comp("cv", "c.yaml", *settings, "--runs", "folds", "--json")
    assert result.code == 0, result.err
    assert "too few groups of images to be in training and every fold: 'ill' (2)" in result.err
    score = json.loads(result.out)["scores"]["roc_auc"]
    assert score["undefined"]
    for number, value in enumerate(score["folds"]):
        assert (value is None) == (str(number) in score["undefined"])
    assert score["mean"] == np.mean([value for value in score["folds"] if value is not None])
    printed = comp("cv", "c.yaml", *settings, "--runs", "folds")
    fold = next(iter(score["undefined"]))
    assert f"fold {fold}: roc_auc undefined, and left out of mean and interval: no group of class 'ill'" in printed.err
    board = {row["run"]: row for row in json.loads(comp("leaderboard", "--runs", "folds", "--json").out)}
    for path, value in zip(json.loads(result.out)["folds"], score["folds"], strict=True):
        run, reason = runs.open_run(Path(path)), "no group of class 'ill'"
        assert board[path]["val_metric"] == value
        assert board[path]["undefined"] == ({} if value is not None else {"val_metric": reason})
        assert all((row["val_metric"] == "") == (value is None) for row in run.history())
        if value is None:
            evaluated = comp("evaluate", path)
            assert f"roc_auc of validation is undefined: {reason}" in evaluated.out
            assert f"roc_auc of val is undefined: {reason}" in evaluated.out
            assert comp("report", path, "-o", "one.html").code == 0
            assert (
                f"validation roc_auc is undefined: {reason.replace(chr(39), '&#x27;')}" in Path("one.html").read_text()
            )
    listed = comp("leaderboard", "--runs", "folds").out
    assert re.search(r"│ +- │", listed)
    assert "- undefined for the images" in listed


@pytest.mark.slow
def test_patience_waits_for_no_metric_that_is_undefined(place: Path, comp: Comp) -> None:
    header, *rows = rows_of("d/train.csv")
    write_rows("d/train.csv", header, [[*row[:2], "ill" if row[1] == "tr-0" else "well"] for row in rows])
    words = ["competition.metric=roc_auc", "data.folds=3", "data.validation=0.1", "train.patience=1", "train.epochs=4"]
    for fold in range(3):
        assert comp("train", "c.yaml", *words, f"data.fold={fold}", "--runs", "waiting", "--name", f"f{fold}").code == 0
    histories = [run.history() for run in runs.list_runs(Path("waiting"))]
    undefined = [rows for rows in histories if rows[0]["val_metric"] == ""]
    assert undefined
    assert all(len(rows) == 4 for rows in undefined)


@pytest.mark.slow
def test_decisions_are_fitted_on_patients(place: Path, comp: Comp) -> None:
    """They count them: too few patients have a decision, though they have more images than it needs."""
    data = {"validation": 0.9}
    write_config(Path("c.yaml"), patients_config(Path("many"), **data))
    write_patients(Path("many"), train=80)
    result = comp("train", "c.yaml", "predict.decide=temperature", "train.epochs=1", "--runs", "decided")
    assert result.code == 0, result.err
    run = the_run(Path("decided"))
    counts = run.provenance()
    assert counts["groups"]["val"] < 100 < counts["images"]["val"]
    decision = run.metrics().decision
    assert decision is not None
    assert f"validation has {counts['groups']['val']} groups for it" in decision.reason


@pytest.mark.slow
def test_evaluation_probe_rehearsal_and_report_work_with_patients(place: Path, comp: Comp) -> None:
    run = the_run()
    evaluated = comp("evaluate", run.path)
    assert evaluated.code == 0, evaluated.err
    assert "groups" in evaluated.out
    assert "images" not in evaluated.out
    assert run.plot_path("examples-val").exists()
    assert_refused(comp("evaluate", run.path, "--views", "flip"), "--views: only a labelled test", "--split val")
    report = comp("report", run.path, "-o", "report.html")
    assert report.code == 0, report.err
    assert "one answer a group of images" in Path("report.html").read_text()
    assert f"Validation: {run.provenance()['groups']['val']} groups" in Path("report.html").read_text()
    probe = comp("probe", run.path, "--runs", "probes")
    assert probe.code == 0, probe.err
    probed = the_run(Path("probes"))
    assert len(prediction_files.load(probed.predictions_path("val"))) == run.provenance()["groups"]["val"]
    rehearsal = comp("run", "c.yaml", "--rehearse", "--runs", "rehearsed")
    assert rehearsal.code == 0, rehearsal.err
    assert "valid" in rehearsal.out


def test_a_list_of_images_must_name_files_and_prior_needs_shares(place: Path, comp: Comp) -> None:
    write_rows("list.csv", ["file", "patient"], [["test_000", "te-0"]])
    refused = comp("predict", the_run().path, "--images", "list.csv")
    assert_refused(refused, "list.csv: expected a list of images", "relative to", "suffix", "['test_000', 'te-0']")
    refused = comp("predict", the_run().path, "--decide", "prior")
    assert_refused(refused, "trained without", "new run", "competition.test_shares={")


def test_images_without_groups_are_predicted_one_by_one(place: Path, comp: Comp) -> None:
    result = comp("predict", the_run().path, "--images", "d/test", "-o", "photos.csv")
    assert result.code == 0, result.err
    assert len(rows_of("photos.csv")) == 1 + len(list(Path("d/test").iterdir()))


def test_the_test_alone_is_enough_to_predict_patients(place: Path, comp: Comp) -> None:
    run = the_run()
    assert comp("predict", run.path, "-o", "whole.csv").code == 0
    shutil.rmtree("d/train")
    result = comp("predict", run.path, "-o", "alone.csv", "--force")
    assert result.code == 0, result.err
    assert Path("alone.csv").read_text() == Path("whole.csv").read_text()


def test_without_a_sample_patients_are_listed_as_the_test_table_lists_them(place: Path, comp: Comp) -> None:
    Path("d/sample_submission.csv").unlink()
    result = comp("predict", the_run().path, "-o", "s.csv")
    assert result.code == 0, result.err
    header, *rows = rows_of("s.csv")
    assert header[0] == "patient"
    assert [row[0] for row in rows] == list(dict.fromkeys(row[1] for row in rows_of("d/test.csv")[1:]))


@pytest.mark.slow
def test_teachers_and_pseudo_labels_speak_of_images(place: Path, comp: Comp) -> None:
    run = the_run()
    result = comp(
        "train", "c.yaml", f"train.teacher.runs=[{run.path}]", f"data.pseudo.run={run.path}", "--runs", "taught",
        "data.pseudo.min_confidence=0.3", "data.pseudo.share=0.1", "train.epochs=1",
    )  # fmt: skip
    assert result.code == 0, result.err
    student = the_run(Path("taught"))
    taught, labelled = student.read_recorded("teacher"), student.read_recorded("pseudo")
    images = {path.stem for folder in ("d/train", "d/test") for path in Path(folder).iterdir()}
    assert {Path(name).stem for name in taught["ids"].tolist()} <= images
    assert {Path(name).stem for name in labelled["ids"].tolist()} <= {path.stem for path in Path("d/test").iterdir()}
    assert len(prediction_files.load(student.predictions_path("val"))) == student.provenance()["groups"]["val"]


@pytest.mark.slow
def test_runs_that_score_patients_and_images_are_not_compared(place: Path, comp: Comp) -> None:
    write_rows("d/sample_submission.csv", ["image", "ill", "well"], [[f"test_{n:03d}", 0.5, 0.5] for n in range(3)])
    result = comp("train", "c.yaml", "data.group_answer=none", "train.epochs=1")
    assert result.code == 0, result.err
    board = comp("leaderboard")
    assert board.code == 0, board.err
    assert "one answer a group of images" in board.out
    alone = next(run for run in runs.list_runs(Path("runs")) if not run.metrics().group_answer)
    grouped = next(run for run in runs.list_runs(Path("runs")) if run.metrics().group_answer)
    assert_refused(comp("ensemble", grouped.path, alone.path), str(alone.path), "one answer a group")


@pytest.mark.slow
def test_regression_and_several_labels_answer_by_patient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_patients(Path("d"))
    _, *rows = rows_of("d/train.csv")
    number_of = {name: round(0.5 + 0.37 * index, 2) for index, name in enumerate(sorted({row[1] for row in rows}))}
    write_rows("d/train.csv", ["image", "patient", "age"], [[*row[:2], number_of[row[1]]] for row in rows])
    write_rows("d/sample_submission.csv", ["patient", "age"], [[f"te-{n}", 0.5] for n in range(10)])
    values = patients_config(Path("d"))
    values["competition"] |= {"metric": "rmse", "task": "regression"}
    run = train.train(configs.from_mapping(values, "here"))
    stored = prediction_files.load(run.predictions_path("val"))
    loaded = load_run(run)
    assert loaded.dataset.val is not None
    alone = predict_images(loaded, replace(loaded.dataset.val, groups=None))
    group_of = {row[0]: row[1] for row in rows}
    means = pd.Series(alone.values()).groupby([group_of[name] for name in alone.ids.tolist()]).mean()
    expected = means.loc[stored.ids.tolist()]
    np.testing.assert_allclose(stored.values(), expected, rtol=1e-5)
    scores = run.metrics().best.val
    assert scores is not None
    truth = [number_of[name] for name in stored.ids.tolist()]
    assert scores.value("rmse") == pytest.approx(mean_squared_error(truth, expected) ** 0.5, rel=1e-4)

    flags = [[*row[:2], int(number_of[row[1]] > 3), int(number_of[row[1]] < 6)] for row in rows]
    write_rows("d/train.csv", ["image", "patient", "cough", "fever"], flags)
    write_rows("d/sample_submission.csv", ["patient", "cough", "fever"], [[f"te-{n}", 0.5, 0.5] for n in range(10)])
    values["competition"] |= {"metric": "roc_auc", "task": "multi_label"}
    values["data"]["group_answer"] = "max"
    run = train.train(configs.from_mapping(values, "here"))
    stored, loaded = prediction_files.load(run.predictions_path("val")), load_run(run)
    assert loaded.dataset.val is not None
    alone = predict_images(loaded, replace(loaded.dataset.val, groups=None))
    frame = pd.DataFrame(expit(alone.outputs)).groupby([group_of[name] for name in alone.ids.tolist()]).max()
    np.testing.assert_allclose(stored.probabilities(), frame.loc[stored.ids.tolist()], rtol=1e-5)


@pytest.mark.slow
def test_unreadable_test_images_leave_the_answer_to_the_patients_other_images(place: Path, comp: Comp) -> None:
    patients: dict[str, list[str]] = {}
    for image, patient in rows_of("d/test.csv")[1:]:
        patients.setdefault(patient, []).append(image)
    several = next(name for name, images in patients.items() if len(images) > 1)
    lost = next(name for name, images in patients.items() if len(images) == 1)
    Path(f"d/test/{patients[several][0]}.png").write_bytes(b"no image")
    Path(f"d/test/{patients[lost][0]}.png").unlink()
    write_config(Path("c.yaml"), patients_config(Path("d"), skip_bad=True))
    run = train.train(configs.load("c.yaml"), runs_root=Path("skipped"))
    assert comp("predict", run.path, "-o", "s.csv").code == 0
    answers = {row[0]: np.array(row[1:], float) for row in rows_of("s.csv")[1:]}
    assert answers.keys() == patients.keys()
    images = by_image(run, "suite")
    blank = load_run(run).dataset.suite.blank  # type: ignore[union-attr]
    readable = images[~blank]
    expected = readable[readable.patient == several][["ill", "well"]].mean()
    np.testing.assert_allclose(answers[several], expected, atol=2e-3)
    np.testing.assert_allclose(answers[lost], readable[["ill", "well"]].mean(), atol=2e-3)


def blank_group(rows: list[list[str]]) -> list[list[str]]:
    return [[rows[0][0], " ", *rows[0][2:]], *rows[1:]]


def mixed_labels(rows: list[list[str]]) -> list[list[str]]:
    return [
        [image, patient, "well" if n % 2 else "ill"] for n, (image, patient, _) in enumerate(sorted(rows, reverse=True))
    ]


@pytest.mark.parametrize(
    ("table", "change", "parts"),
    [
        ("train", blank_group, ("train.csv", "column 'patient'", "1 rows have no group", "first row 2")),
        ("test", blank_group, ("test.csv", "column 'patient'", "1 rows have no group", "first row 2")),
        (
            "train",
            mixed_labels,
            ("groups have different labels", "ill", "well", "data.group_answer=none data.csv.sample"),
        ),
        ("sample_submission", lambda rows: [*rows, ["te-99", 0, 0]], ("1 of 11 ids", "te-99", "'patient'")),
        (
            "sample_submission",
            lambda rows: [[f"test_{n:03d}", 0.5, 0.5] for n in range(9)],
            ("9 of 9 ids", "they are images", "data.group_answer=none"),
        ),
    ],
)
def test_tables_that_leave_a_group_or_its_label_open_are_refused(
    place: Path, comp: Comp, table: str, change: Callable[[Any], Sequence[Sequence[object]]], parts: tuple[str, ...]
) -> None:
    header, *rows = rows_of(f"d/{table}.csv")
    write_rows(f"d/{table}.csv", header, change(rows))
    assert_refused(comp("config", "check", "c.yaml", "--data"), *parts)


def test_who_forgets_the_key_is_led_to_it(place: Path, comp: Comp) -> None:
    check = ("config", "check", "c.yaml", "--data")
    assert_refused(comp(*check, "data.group_answer=none"), "duplicate ids", "data.group_answer=mean")
    checked = comp(*check)
    assert checked.code == 0, checked.err
    assert "patient,ill,well, 10 rows" in " ".join((checked.out + checked.err).split())


def test_the_advice_on_different_labels_works(place: Path, comp: Comp) -> None:
    header, *rows = rows_of("d/train.csv")
    write_rows("d/train.csv", header, mixed_labels(rows))
    check = ("config", "check", "c.yaml", "--data", "data.group_answer=none")
    checked = comp(*check, 'data.csv.sample=""', "data.csv.id_column=image")
    assert checked.code == 0, checked.err
    one = next(row for row in rows if row[1] == "tr-1")
    write_rows("d/train.csv", header, [[*row[:2], "ill" if row is one else row[2]] for row in rows])
    assert_refused(comp("config", "check", "c.yaml", "--data"), "the images of 1 group have different labels")


def test_the_test_tables_other_name_of_the_group_column_is_taken_where_the_sample_shows_it(
    place: Path, comp: Comp
) -> None:
    before = open_dataset(configs.load("c.yaml"))
    rows = rows_of("d/test.csv")[1:]
    write_rows("d/test.csv", ["image", "side", "person"], [[row[0], "left", row[1]] for row in rows])
    after = open_dataset(configs.load("c.yaml"))
    assert before.test is not None
    assert after.test is not None
    assert after.test.ids.tolist() == before.test.ids.tolist()
    assert after.test.one_per_answer().ids.tolist() == before.test.one_per_answer().ids.tolist()
    assert "d/test.csv: column 'person' is 'patient' of train.csv: it holds the sample submission's ids" in after.notes
    write_rows("d/test.csv", ["image", "person", "nurse"], [[*row, row[1]] for row in rows])
    check = ("config", "check", "c.yaml", "--data")
    assert_refused(comp(*check), "no column 'patient'", "person, nurse all hold", "data.csv.group_column")
    write_rows("d/test.csv", ["image", "person"], [[row[0], f"x{row[1]}"] for row in rows])
    assert_refused(comp(*check), "no column 'patient'", "none of image, person repeats", "data.csv.group_column")


def test_patients_of_the_training_table_that_are_in_the_test_too_are_noted(place: Path, comp: Comp) -> None:
    checked = comp("data", "check", "c.yaml")
    assert "are in the training table too" not in checked.err
    rows = rows_of("d/test.csv")[1:]
    write_rows("d/test.csv", ["image", "patient"], [[row[0], row[1].replace("te-3", "tr-3")] for row in rows])
    words = ["data.group_answer=none", 'data.csv.sample=""', "data.csv.id_column=image"]
    checked = comp("data", "check", "c.yaml", *words)
    assert "column 'patient': 1 of 10 groups are in the training table too, first 'tr-3'" in " ".join(
        checked.err.split()
    )


def test_a_test_without_a_table_or_its_column_is_refused(place: Path, comp: Comp) -> None:
    rows = rows_of("d/test.csv")
    check = ("config", "check", "c.yaml", "--data")
    write_rows("d/test.csv", ["patient"], [[row[1]] for row in rows[1:]])
    assert_refused(comp(*check), "test.csv", "a column that names the images", "patient")
    Path("d/test.csv").unlink()
    assert_refused(comp(*check), "data.csv.test_table", "data.group_answer", "'patient'")


def test_patients_of_the_table_that_the_sample_leaves_out_are_not_predicted(place: Path, comp: Comp) -> None:
    header, *rows = rows_of("d/sample_submission.csv")
    write_rows("d/sample_submission.csv", header, rows[:6])
    result = comp("predict", the_run().path, "-o", "s.csv")
    assert result.code == 0, result.err
    assert [row[0] for row in rows_of("s.csv")[1:]] == [row[0] for row in rows[:6]]
    assert "4 groups" in comp("data", "prepare", "c.yaml").err


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["data.groups=none", "data.csv.group_column="], ("data.group_answer", "data.csv.group_column=COLUMN")),
        (["data.group_answer=median"], ("data.group_answer", "'mean'", "'median'")),
        (["competition.suite.source=corrupt_test"], ("data.group_answer", "corrupt_test", "test or none")),
        (["competition.ood_validation.severities=[3]"], ("competition.ood_validation.severities", "[]")),
    ],
)
def test_settings_that_leave_no_groups_to_answer_are_refused(
    place: Path, comp: Comp, overrides: list[str], parts: tuple[str, ...]
) -> None:
    assert_refused(comp("config", "check", "c.yaml", *overrides), *parts)


def test_tables_of_pixels_have_patients_too(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    pixels = [f"pixel{n}" for n in range(64)]

    def image(label: int) -> list[int]:
        return draw.integers(0, 100, 64).__add__(100 * label).tolist()

    write_rows(
        tmp_path / "train.csv", ["id", "patient", "label", *pixels],
        [[n, f"p{n // 2}", n // 2 % 2, *image(n // 2 % 2)] for n in range(24)],
    )  # fmt: skip
    write_rows(
        tmp_path / "test.csv", ["id", "patient", *pixels], [[n + 50, f"q{n // 3}", *image(0)] for n in range(12)]
    )
    write_rows(tmp_path / "sample_submission.csv", ["patient", "label"], [[f"q{n}", 0] for n in (2, 0, 3, 1)])
    dataset = open_dataset(configs.from_mapping(patients_config(tmp_path), "here"))
    assert dataset.test is not None
    assert dataset.test.one_per_answer().ids.tolist() == ["q2", "q0", "q3", "q1"]
    assert dataset.test.ids.tolist()[:3] == ["56", "57", "58"]


def test_the_key_at_its_default_leaves_the_hash_as_it_was() -> None:
    values = patients_config(Path("d"))
    without = {**values, "data": {key: value for key, value in values["data"].items() if key != "group_answer"}}
    values["data"]["group_answer"] = "none"
    explicit, absent = (configs.fingerprint(configs.from_mapping(each, "here")) for each in (values, without))
    assert explicit == absent
    values["data"]["group_answer"] = "max"
    assert configs.fingerprint(configs.from_mapping(values, "here")) != absent
