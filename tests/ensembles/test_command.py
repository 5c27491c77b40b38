"""`comp ensemble` from trained runs to a submission, by the command line."""

import dataclasses
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import softmax

from comp import config as configs
from comp.ensembles import collect, combine
from comp.ensembles.methods import METHODS
from comp.models import weights
from comp.results import files, prediction_files, runs
from comp.results.predictions import Predictions
from comp.runtime.errors import RunError
from comp.workflows import train
from comp.workflows.load import load_run
from comp.workflows.predict import predict_split, score_test
from tests.support.configs import QUICK, small_config, write_config
from tests.support.runs import Comp, made, members


def test_the_result_is_a_run_like_any_other(three_runs: Path, comp: Comp) -> None:
    result = comp("ensemble", *members(), "-o", "out/mean.csv")
    assert result.code == 0, result.err
    assert "gain over the best single member" in result.out
    assert "best single, held-out folds" in result.out
    (found,) = [run for run in runs.list_runs(Path("runs")) if "ensemble" in run.name]
    assert found.is_complete()
    parts = [prediction_files.load(path / "predictions/suite.npz") for path in members()]
    mean = mean_probabilities(parts)
    suite = prediction_files.load(found.predictions_path("suite"))
    assert (suite.top1 == mean.argmax(1)).mean() > 0.99  # float16 logits
    lines = Path("out/mean.csv").read_text().splitlines()
    assert [line.split(",") for line in lines[1:]] == [
        [key, str(label)] for key, label in zip(suite.ids, suite.top1, strict=True)
    ]
    assert comp("check", "out/mean.csv").code == 0
    rows = json.loads(comp("leaderboard", "--json").out)
    (row,) = [row for row in rows if "ensemble" in row["run"]]
    assert row["model"] == "mean of 3 runs"
    assert row["submission"] == "out/mean.csv"
    scores = found.metrics()
    assert scores.best.val is not None
    assert scores.best.ood_val is not None
    assert scores.suite is not None
    assert scores.ensemble is not None
    assert row["val_accuracy"] == scores.best.val.accuracy
    assert scores.suite.images == len(suite)
    assert scores.kind == "ensemble"
    assert scores.ensemble["split"] == "ood_val"
    assert "note" not in scores.ensemble


TrainApart = Callable[..., Path]


@pytest.fixture(scope="module")
def trained_once(three_trained: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainApart:
    """Train a run with other settings than the three, once for each settings; return its folder."""
    folder, trained = tmp_path_factory.mktemp("apart"), dict[tuple[str, ...], Path]()

    def train_once(*overrides: str) -> Path:
        if overrides not in trained:
            config = configs.load(three_trained / "small.yaml", [*QUICK, "seed=5", *overrides])
            run = train.train(config, name=f"apart{len(trained)}", runs_root=folder)
            loaded = load_run(run)
            score_test(loaded)
            predict_split(loaded, "suite")
            trained[overrides] = run.path
        return trained[overrides]

    return train_once


@pytest.fixture
def train_apart(three_runs: Path, trained_once: TrainApart) -> TrainApart:
    """Return a copy of a run with other settings than the three, in the working directory."""

    def copy(*overrides: str) -> Path:
        run = trained_once(*overrides)
        return Path(shutil.copytree(run, Path("apart") / run.name))

    return copy


def mean_probabilities(parts: Sequence[Predictions]) -> np.ndarray:
    """Return the mean of softmax probabilities, computed apart from comp."""
    return np.mean([softmax(part.outputs.astype(np.float64), axis=1) for part in parts], axis=0)


def test_the_sidecar_names_every_member_with_its_weights_seed_and_share(three_runs: Path, comp: Comp) -> None:
    comp("ensemble", *members(), "--method", "weighted", "-o", "a.csv", "--views", "flip")
    sidecar = json.loads(Path("a.json").read_text())
    told = sidecar["members"]
    assert [member["run"] for member in told] == [runs.open_run(path).name for path in members()]
    assert [member["weights_sha256"] for member in told] == [
        files.sha256_file(path / "best.safetensors") for path in members()
    ]
    assert [member["seed"] for member in told] == [0, 1, 2]
    assert {member["views"] for member in told} == {"flip"}
    assert {member["adapt"] for member in told} == {"none"}
    assert sum(member["weight"] for member in told) == pytest.approx(1)
    assert all(len(member["config_hash"]) == 16 for member in told)
    assert {"git", "versions", "config_hash", "sha256", "format", "run"} <= sidecar.keys()
    assert sidecar["training_counts"] == [48] * 4


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("select_on", ["val", "ood_val"])
def test_every_method_goes_through_on_either_split(three_runs: Path, comp: Comp, method: str, select_on: str) -> None:
    first, second, _ = members()
    _, values = made(comp, first, second, "--method", method, "--select-on", select_on, "--folds", 3)
    assert values["ensemble"]["split"] == select_on
    assert values["ensemble"]["folds"] == 3
    assert len(values["ensemble"]["disagreement"]) == 2


def test_an_ensemble_can_contain_ensembles(three_runs: Path, comp: Comp) -> None:
    first, second, third = members()
    inner, _ = made(comp, first, second)
    outer, values = made(comp, inner.path, third, "--method", "greedy")
    assert values["model"] == "greedy of 2 runs"
    sidecar = json.loads(sidecar_of(values))
    assert [member["run"] for member in sidecar["members"]] == [inner.name, runs.open_run(third).name]
    assert len(sidecar["members"][0]["members"]) == 2
    assert values["parameters"] == sum(runs.open_run(p).metrics().parameters for p in members())
    result = comp("predict", inner.path)
    assert result.code == 2
    assert f"{inner.path}: has no weights" in result.err
    assert f"{inner.path}: has no weights" in comp("ensemble", inner.path, third, "--views", "flip").err
    with pytest.raises(RunError, match=f"predict with those: {first}, {second}$"):  # paths that can be copied
        inner.weights_path()
    assert outer.is_complete()


def sidecar_of(values: dict[str, Any]) -> str:
    """Return the text of a submission's sidecar."""
    return Path(values["submission"]).with_suffix(".json").read_text()


def test_existing_predictions_are_reused(three_runs: Path, comp: Comp) -> None:
    made(comp, *members())
    paths = sorted(Path("runs").glob("*/*/predictions/*.npz"))
    before = {path: path.stat().st_mtime_ns for path in paths}
    assert any(path.name == "suite.npz" for path in paths)
    made(comp, *members(), "--method", "geometric")
    assert {path: path.stat().st_mtime_ns for path in paths} == before


def test_predictions_of_other_weights_are_replaced(three_runs: Path, comp: Comp) -> None:
    first, second, _ = members()
    made(comp, first, second)
    path = first / "predictions/suite.npz"
    before = path.read_bytes()
    shutil.copy(second / "predictions/suite.npz", path)
    made(comp, first, second)
    assert path.read_bytes() == before


def test_invalid_ensembles_are_refused_and_leave_no_run(three_runs: Path, comp: Comp) -> None:
    first, second, _ = members()
    cases: list[tuple[list[object], str]] = [
        ([first], "needs two or more runs, each named once"),
        ([first, first], "needs two or more runs, each named once"),
        ([first, second, "--method", "gredy"], "did you mean 'greedy'?"),
        ([first, second, "--select-on", "test"], "--select-on: unknown split 'test'"),
        ([first, second, "--folds", 10_000], "--folds: expected 2 to"),
        ([first, "runs/small/nothing"], "no such run"),
        ([first, second, "-o", "a.txt"], "must end in .csv"),
    ]
    for arguments, message in cases:
        result = comp("ensemble", *arguments, "--runs", "made")
        assert (result.code, message in result.err) == (2, True), (message, result.err)
    assert not Path("made").exists()


def test_an_existing_submission_is_only_replaced_by_force(three_runs: Path, comp: Comp) -> None:
    first, second, _ = members()
    Path("a.csv").write_text("mine")
    assert "already exists" in comp("ensemble", first, second, "-o", "a.csv").err
    assert Path("a.csv").read_text() == "mine"
    assert comp("ensemble", first, second, "-o", "a.csv", "--force").code == 0
    assert Path("a.csv").read_text().startswith("id,label\n")


def test_runs_of_other_suites_or_competitions_are_refused(three_runs: Path, comp: Comp) -> None:
    first, *_ = members()
    for more, message in (
        (["competition.suite.images_per_block=3"], "rows, expected"),
        (["competition.name=other"], "competition 'other'"),
    ):
        assert comp("train", "small.yaml", *QUICK, *more, "--runs", "others").code == 0
        (other,) = runs.list_runs(Path("others"))
        result = comp("ensemble", first, other.path)
        assert (result.code, message in result.err) == (2, True), result.err
        shutil.rmtree("others")


def test_runs_of_all_folds_are_one_member_with_out_of_fold_predictions(three_runs: Path, comp: Comp) -> None:
    for fold in range(3):
        assert comp("train", "small.yaml", *QUICK, "data.folds=3", f"data.fold={fold}", "--runs", "folds").code == 0
    parts = runs.list_runs(Path("folds"))
    (group,) = collect.group_folds(parts[::-1])
    assert [run.config().data.fold for run in group.runs] == [0, 1, 2]
    found, values = made(comp, *[run.path for run in parts])
    val = prediction_files.load(found.predictions_path("val"))
    assert len(val) == len(set(val.ids)) == 240  # every training image, by the network that has not seen it
    for run in group.runs:
        own = prediction_files.load(run.predictions_path("val"))
        rows = np.searchsorted(np.sort(val.ids), own.ids)
        at = np.argsort(val.ids)[rows]
        assert (val.top1[at] == own.top1).all()
    assert values["ensemble"]["images"] == 19 * 3 * 12  # each block by all three
    (member,) = values["ensemble"]["members"]
    assert values["kind"] == "fold_group"
    assert member["name"].endswith("(3 folds)")
    result = comp("ensemble", parts[0].path, parts[1].path)  # a fold is missing: averaged, without a validation score
    assert result.code == 0, result.err
    assert "no validation score" in result.out + result.err
    assert "data.fold=0, 1" in result.out + result.err
    again, _ = made(comp, found.path, *[run.path for run in parts], "--method", "stack", "--select-on", "val")
    assert len(prediction_files.load(again.predictions_path("val"))) == 240


def test_a_soup_has_weights_and_predicts_like_any_run(three_runs: Path, comp: Comp) -> None:
    first, second, third = members()
    found, values = made(comp, first, first_with_noise(first), "--method", "soup")
    mixed, _ = weights.read(found.path / "best.safetensors")
    states = [weights.read(runs.open_run(Path(m["run_path"])).weights_path())[0] for m in values["soup"]["members"]]
    chosen = [state for state, m in zip(states, values["soup"]["members"], strict=True) if m["weight"]]
    name = next(name for name, tensor in mixed.items() if tensor.ndim == 4)
    mean = sum(state[name].double() for state in chosen) / len(chosen)
    assert np.allclose(mixed[name].double(), mean, atol=1e-6)
    assert values["soup"]["accuracy"] >= max(m["accuracy"] for m in values["soup"]["members"])
    assert comp("predict", found.path, "-o", "again.csv").code == 0
    assert Path("again.csv").read_bytes() == Path(values["submission"]).read_bytes()
    assert len(json.loads(sidecar_of(values))["members"]) == 2
    result = comp("ensemble", first, third, "--method", "soup")
    assert result.code == 2
    assert "a soup needs one architecture" in result.err
    assert comp("ensemble", found.path, second, "--runs", "made").code == 0


def first_with_noise(path: Path) -> Path:
    """Return a copy of a run whose weights lie a little beside its own."""
    other = path.with_name("20300101-000000-beside")
    shutil.copytree(path, other)
    state, _ = weights.read(other / "best.safetensors")
    beside = {name: tensor * 1.001 if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    (other / "best.safetensors").write_bytes(weights.to_bytes(beside, {}))
    values = json.loads((other / "metrics.json").read_text())
    digest = files.sha256_file(other / "best.safetensors")
    (other / "metrics.json").write_text(json.dumps({**values, "weights_sha256": digest}))
    return other


def test_without_validation_only_methods_that_learn_nothing_combine(train_apart: TrainApart, comp: Comp) -> None:
    one, two = train_apart("data.validation=none"), train_apart("data.validation=none", "seed=6")
    _, values = made(comp, one, two)
    assert "no validation score" in values["ensemble"]["note"]
    assert combine.read_comparison(runs.open_run(Path("made") / values["run"])) is None
    assert values["suite"]["scores"]["accuracy"]["value"] > 0.2
    assert "learns from validation" in comp("ensemble", one, two, "--method", "greedy").err
    assert f"{one} has no validation split" in comp("ensemble", one, two, "--method", "soup").err


def data_of(path: Path) -> str:
    """Return where a run's data lie."""
    return runs.open_run(path).config().data.root


def test_a_transductive_member_marks_the_ensemble(three_runs: Path, comp: Comp) -> None:
    first, second, _ = members()
    path = second / "predictions/suite.npz"
    stored = prediction_files.load(path)
    prediction_files.save(path, dataclasses.replace(stored, made_by={**stored.made_by, "transductive": True}))
    _, values = made(comp, first, second, "-o", "a.csv")
    assert values["transductive"]
    assert json.loads(Path("a.json").read_text())["transductive"]
    (row,) = json.loads(comp("leaderboard", "--runs", "made", "--json").out)
    assert row["transductive"]


@pytest.mark.slow
def test_members_adapted_on_request_mark_the_ensemble(three_runs: Path, comp: Comp) -> None:
    values = small_config(three_runs.parent / "nowhere")
    values["data"]["root"] = data_of(members()[0])
    config = write_config(three_runs / "fastnet.yaml", {**values, "model": {"name": "fastnet", "args": {"size": "S"}}})
    assert comp("train", config, *QUICK, "--runs", "bn").code == 0
    (run,) = runs.list_runs(Path("bn"))
    one, two = run.path, first_with_noise(run.path)
    _, values = made(comp, one, two, "--adapt", "bn", "-o", "a.csv")
    assert values["transductive"]
    assert json.loads(Path("a.json").read_text())["transductive"]
    (row,) = json.loads(comp("leaderboard", "--runs", "made", "--json").out)
    assert row["transductive"]


def test_the_comparison_is_read_back_from_disk(three_runs: Path, comp: Comp) -> None:
    found, values = made(comp, *members())
    compared = combine.read_comparison(found)
    assert compared is not None
    assert json.loads(json.dumps(compared.to_json())) == values["ensemble"]


def test_runs_of_other_splits_are_averaged_without_a_validation_score(train_apart: TrainApart, comp: Comp) -> None:
    first, apart = members()[0], train_apart("data.split_seed=1")
    result = comp("ensemble", first, apart, "-o", "a.csv", "--runs", "made")
    assert result.code == 0, result.err
    assert result.out.count("no validation score: the members were validated on different images") == 1
    (run,) = runs.list_runs(Path("made"))
    scores = run.metrics()
    assert (scores.best.val, scores.best.ood_val, scores.selected_by) == (None, None, "")
    assert "data.split_seed" in (scores.ensemble or {})["note"]
    assert "data.split_seed" in run.provenance()["ensemble_note"]
    mean = mean_probabilities([prediction_files.load(path / "predictions/suite.npz") for path in (first, apart)])
    rows = [line.split(",")[1] for line in Path("a.csv").read_text().splitlines()[1:]]
    sure = np.sort(mean, axis=1)[:, -1] - np.sort(mean, axis=1)[:, -2] > 1e-3  # float16 outputs
    assert (np.array(rows)[sure] == mean.argmax(1).astype(str)[sure]).all()
    assert not (run.path / "predictions/val.npz").exists()


@pytest.mark.parametrize("method", ["geometric", "rank"])
def test_methods_that_learn_nothing_need_no_common_validation(train_apart: TrainApart, comp: Comp, method: str) -> None:
    _, values = made(comp, members()[0], train_apart("data.split_seed=1"), "--method", method)
    assert values["suite"]["scores"]["accuracy"]["value"] > 0.2


def test_methods_that_learn_are_refused_on_different_splits(train_apart: TrainApart, comp: Comp) -> None:
    first, apart = members()[0], train_apart("data.split_seed=1")
    for arguments in (["--method", "weighted"], ["--method", "stack"], ["--select-on", "val"]):
        result = comp("ensemble", first, apart, *arguments, "--runs", "made")
        assert result.code == 2, arguments
        assert "data.split_seed" in result.err
        assert "--method mean" in result.err
    assert not Path("made").exists()


def test_a_run_without_validation_joins_without_a_score(train_apart: TrainApart, comp: Comp) -> None:
    apart = train_apart("data.validation=none")
    _, values = made(comp, members()[0], apart)
    assert values["ensemble"]["note"].endswith(f"{runs.open_run(apart).name} has no validation split")
    assert "best" not in values or "val" not in values["best"]


def test_clean_validation_is_used_if_only_shifted_validation_differs(train_apart: TrainApart, comp: Comp) -> None:
    apart = train_apart("competition.ood_validation.per_block=7")
    _, values = made(comp, members()[0], apart, "--method", "greedy")
    assert values["ensemble"]["split"] == "val"
    assert values["ensemble"]["note"].startswith("ood_val is left out")
    assert "ood_val" not in values["best"]


def test_members_with_another_class_order_are_matched_by_name(three_runs: Path, comp: Comp) -> None:
    first, second, third = members()
    _, plain = made(comp, first, second, "--method", "weighted", "-o", "plain.csv")
    turned = turn_classes(second)
    run, values = made(comp, first, turned, "--method", "weighted", "-o", "turned.csv")
    assert Path("turned.csv").read_bytes() == Path("plain.csv").read_bytes()
    assert [row["weight"] for row in values["ensemble"]["members"]] == pytest.approx(
        [row["weight"] for row in plain["ensemble"]["members"]]
    )
    suite = prediction_files.load(run.predictions_path("suite"))
    assert list(suite.classes) == list(runs.open_run(third).provenance()["classes"])
    _, values = made(comp, turned, first, "-o", "back.csv")  # the order of the data as they are now
    _, plain = made(comp, second, first, "-o", "again.csv")
    assert Path("back.csv").read_bytes() == Path("again.csv").read_bytes()


def turn_classes(path: Path) -> Path:
    """Return a copy of a run, as an ensemble of its predictions, whose classes stand in another order."""
    turned = path.with_name("20300101-000000-turned")
    shutil.copytree(path, turned)
    for weights_file in turned.glob("*.safetensors"):
        weights_file.unlink()
    provenance = json.loads((turned / "provenance.json").read_text())
    classes = provenance["classes"][::-1]
    (turned / "provenance.json").write_text(json.dumps({**provenance, "classes": classes}))
    for file in (turned / "predictions").glob("*.npz"):
        stored = prediction_files.load(file)
        prediction_files.save(
            file,
            dataclasses.replace(
                stored,
                classes=tuple(classes),
                outputs=stored.outputs[:, ::-1],
                top1=3 - stored.top1,
                targets=None if stored.targets is None else 3 - stored.targets,
            ),
        )
    return turned


def test_other_classes_are_refused(three_runs: Path, comp: Comp) -> None:
    first, second, _ = members()
    path = second / "predictions/suite.npz"
    stored = prediction_files.load(path)
    prediction_files.save(path, dataclasses.replace(stored, classes=("0", "1", "2", "x")))
    result = comp("ensemble", first, second)
    assert result.code == 2
    assert "4 classes, 0, 1, 2, x; expected 4 classes, 0, 1, 2, 3" in result.err


def test_members_of_another_metric_are_refused(train_apart: TrainApart, comp: Comp) -> None:
    result = comp("ensemble", members()[0], train_apart("competition.metric=log_loss"))
    assert result.code == 2
    assert "task single_label, metric log_loss" in result.err


def test_the_gain_follows_the_competitions_metric_and_its_direction(train_apart: TrainApart, comp: Comp) -> None:
    one, two = train_apart("competition.metric=log_loss"), train_apart("competition.metric=log_loss", "seed=6")
    result = comp("ensemble", one, two, "--runs", "made")
    assert result.code == 0, result.err
    (run,) = runs.list_runs(Path("made"))
    compared = combine.read_comparison(run)
    assert compared is not None
    assert compared.metric == "log_loss"
    assert compared.metric_gain == pytest.approx(compared.best_single.loss - compared.ensemble.loss)
    assert f"log_loss {compared.metric_gain:+.4f}" in result.out
    assert "accuracy" in result.out
