"""Teachers and pseudo-labels: a resume repeats them bit for bit, and no validation image leaks through them."""

import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import softmax
from torch import Tensor

from comp import config as configs
from comp.config import Config
from comp.data.dataset import open_dataset
from comp.inference.predict import predict
from comp.results import array_files, files, leaderboard, runs
from comp.results.runs import Run
from comp.runtime.errors import ConfigError, Interrupted, RunError
from comp.runtime.progress import quiet
from comp.training.batches import PlannedBatch
from comp.workflows import lineage, train
from comp.workflows.load import load_without_data
from comp.workflows.teach import prepare_lessons
from tests.support.commands import Result, assert_refused, interrupt_at
from tests.support.runs import assert_same_weights, history_without_clock, members, the_run

Comp = Callable[..., Result]

PLAIN = ["competition.ood_validation.severities=[]", "competition.suite.source=none", "train.epochs=1"]
PSEUDO = ["data.pseudo.min_confidence=0.3", "data.pseudo.share=0.1"]


def student(*overrides: str) -> Config:
    return configs.load("small.yaml", [*PLAIN, *overrides])


def taught_by(*paths: Path) -> str:
    return f"train.teacher.runs=[{', '.join(map(str, paths))}]"


@pytest.fixture(scope="module")
def taught(three_trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run with two teachers and pseudo-labels, trained in the folder of three runs."""
    with contextlib.chdir(three_trained):
        return train.train(lessons_of_two(), runs_root=tmp_path_factory.mktemp("taught"))


def lessons_of_two() -> Config:
    return student(taught_by(*members()[:2]), f"data.pseudo.run={members()[0]}", *PSEUDO)


def rewrite_split(run: Run, seen: np.ndarray) -> None:
    """Record that a run was trained on more images."""
    with array_files.open_arrays(run.path / "split.npz") as archive:
        arrays = {name: archive[name] for name in archive}
    train_ids = np.concatenate([arrays["train"], seen])
    files.write_arrays(run.path / "split.npz", {**arrays, "train": train_ids})
    provenance = run.provenance()
    images = {**provenance["images"], "train": len(train_ids)}
    run.write_json("provenance.json", {**provenance, "images": images})


def check(config: Config) -> None:
    lineage.check_teachers(config, open_dataset(config))


def test_a_stopped_training_goes_on_without_its_teacher_and_ends_with_the_same_bits(
    taught: Run, three_runs: Path
) -> None:
    with pytest.raises(Interrupted):
        train.train(lessons_of_two(), runs_root=Path("stopped"), progress=interrupt_at(3))
    shutil.rmtree("runs")
    stopped = train.resume(the_run(Path("stopped")))
    assert_same_weights(taught, stopped)
    assert history_without_clock(taught) == history_without_clock(stopped)
    assert stopped.provenance()["teacher"] == taught.provenance()["teacher"]
    assert stopped.provenance()["pseudo"] == taught.provenance()["pseudo"]


def test_an_image_that_is_drawn_twice_has_its_own_soft_targets_each_time(
    three_runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[int] = []

    def check_rows(self: PlannedBatch, *arguments: Any) -> Tensor:
        assert self.samples is not None
        assert torch.equal(self.samples[self.row], self.batch.indices)
        drawn.extend(self.batch.indices.tolist())
        return taught(self, *arguments)

    taught = PlannedBatch.taught
    monkeypatch.setattr(PlannedBatch, "taught", check_rows)
    images = open_dataset(student()).train
    assert images.labels is not None
    dropped = "".join(f"{name},drop,\n" for name in images.ids[images.labels == 0][:30])
    Path("rare.csv").write_text("id,action,label\n" + dropped)
    settings = [taught_by(members()[0]), "data.sampling=balanced", "data.fixes=rare.csv"]
    train.train(student(*settings), runs_root=Path("balanced"))
    assert len(set(drawn)) < len(drawn)


def test_a_resume_refuses_a_damaged_or_missing_file(three_runs: Path) -> None:
    with pytest.raises(Interrupted):
        train.train(lessons_of_two(), runs_root=Path("stopped"), progress=interrupt_at(1))
    stopped = the_run(Path("stopped"))
    for name in ("teacher", "pseudo"):
        path = stopped.path / f"{name}.npz"
        content = path.read_bytes()
        path.write_bytes(content[:-90] + b"x" + content[-89:])
        with pytest.raises(RunError, match=rf"{name}\.npz: expected sha256 .*start a new run"):
            train.resume(stopped)
        path.unlink()
        with pytest.raises(RunError, match=rf"{name}\.npz: .*start a new run"):
            train.resume(stopped)
        path.write_bytes(content)


def test_targets_are_the_mean_of_the_teachers_at_a_temperature(three_runs: Path) -> None:
    config = student(taught_by(*members()), "train.teacher.temperature=2.5")
    dataset = open_dataset(config)
    content = prepare_lessons(config, dataset, quiet).contents["teacher"]
    Path("teacher.npz").write_bytes(content)
    with array_files.open_arrays(Path("teacher.npz")) as archive:
        soft = archive["probabilities"]
    expected = np.zeros(soft.shape)
    for path in members():
        loaded = load_without_data(Run(path))
        outputs = predict(loaded.model, dataset.train, **loaded.prediction_settings, made_by={}).outputs
        expected += softmax(outputs.astype(np.float64) / 2.5, 1) / 3
    assert np.allclose(soft, expected, atol=1e-6)


def test_classes_are_matched_by_name(three_runs: Path) -> None:
    everything = (taught_by(members()[0]), "data.validation=none")
    plain = student(*everything)
    turned = student(*everything, "data.classes=[2, 0, 3, 1]", f"data.pseudo.run={members()[0]}", *PSEUDO)
    ordered, permuted = (prepare_lessons(c, open_dataset(c), quiet) for c in (plain, turned))
    soft = {}
    for name, lessons in (("ordered", ordered), ("permuted", permuted)):
        Path(f"{name}.npz").write_bytes(lessons.contents["teacher"])
        with array_files.open_arrays(Path(f"{name}.npz")) as archive:
            rows = dict(zip(archive["ids"].tolist(), archive["probabilities"], strict=True))
        soft[name] = rows
    assert len(soft["ordered"]) == 240
    assert all(np.allclose(soft["permuted"][key], row[[2, 0, 3, 1]], atol=1e-6) for key, row in soft["ordered"].items())
    joined = permuted.provenance["pseudo"]
    assert sum(joined["classes"].values()) == joined["joined"] > 0


def test_a_teacher_that_saw_validation_images_is_refused_and_counted(three_runs: Path) -> None:
    config = student(taught_by(members()[0]))
    check(config)
    rewrite_split(Run(members()[0]), open_dataset(config).val.ids[:5])  # type: ignore[union-attr]
    with pytest.raises(ConfigError, match=rf"{members()[0]} was trained on 5 of the 48 validation images"):
        check(config)
    check(student(taught_by(members()[0]), "data.validation=none"))  # nothing to leak
    files.write_arrays(members()[0] / "split.npz", {"train": np.array([], np.str_)})
    with pytest.raises(ConfigError, match=r"split\.npz: damaged \(expected 197 training images\)"):
        check(config)


@pytest.mark.parametrize("through", ["teacher", "pseudo", "from_run"])
def test_what_a_teacher_learned_from_another_run_counts_too(three_runs: Path, through: str) -> None:
    teacher, leaky = (Run(path) for path in members()[:2])
    config = student(taught_by(teacher.path))
    if through == "from_run":
        text = (teacher.path / "config.yaml").read_text()
        (teacher.path / "config.yaml").write_text(text.replace("from_run: ''", f"from_run: {leaky.path}"))
    else:
        record = {"runs": [{"run": leaky.name, "path": str(leaky.path)}]}
        teacher.write_json("provenance.json", {**teacher.provenance(), through: record})
    check(config)
    rewrite_split(leaky, open_dataset(config).val.ids[:3])  # type: ignore[union-attr]
    with pytest.raises(ConfigError, match=rf"learned from {leaky.path}, which was trained on 3 of the 48"):
        check(config)
    shutil.rmtree(leaky.path)
    with pytest.raises(ConfigError, match=r"train\.teacher\.runs: .* which is missing, so nothing shows"):
        check(config)


def test_an_ensemble_teaches_by_its_members_unless_one_saw_validation_images(three_runs: Path, comp: Comp) -> None:
    assert comp("ensemble", *members()[:2], "-o", "both.csv").code == 0
    (combined,) = Path("runs/small").glob("*-mean-ensemble")
    config = student(taught_by(combined), f"data.pseudo.run={combined}", *PSEUDO)
    lessons = prepare_lessons(config, open_dataset(config), quiet)
    for key in ("teacher", "pseudo"):
        assert [record["path"] for record in lessons.provenance[key]["runs"]] == [str(path) for path in members()[:2]]
    rewrite_split(Run(members()[1]), open_dataset(config).val.ids)  # type: ignore[union-attr]
    for option in (taught_by(combined), f"data.pseudo.run={combined}"):
        refused = comp("train", "small.yaml", *PLAIN, option, "--runs", "none")
        key = option.partition("=")[0]
        assert_refused(refused, f"{key}: {members()[1]} was trained on 48 of the 48", f"instead: {members()[0]}")
    assert not list(Path("none").rglob("config.yaml"))


def test_of_a_folder_of_runs_those_teach_that_held_the_same_images_out(three_runs: Path) -> None:
    config = student(taught_by(Path("runs/small")))
    held = open_dataset(config).val.ids  # type: ignore[union-attr]
    rewrite_split(Run(members()[1]), held)
    lessons = prepare_lessons(config, open_dataset(config), quiet)
    assert [record["path"] for record in lessons.provenance["teacher"]["runs"]] == [
        str(members()[0]),
        str(members()[2]),
    ]
    for path in members():
        rewrite_split(Run(path), held)
    with pytest.raises(ConfigError, match=r"no run here can teach this one: .* validation images"):
        check(config)


def test_teachers_that_cannot_be_trusted_are_refused_before_a_run_exists(three_runs: Path, comp: Comp) -> None:
    first, second, third = members()
    (first / "split.npz").unlink()
    weights = (second / "best.safetensors").read_bytes()
    (second / "best.safetensors").write_bytes(weights[:-4] + b"\0\0\0\1")
    other = Run(third)
    other.write_json("provenance.json", {**other.provenance(), "data_fingerprint": "0123456789abcdef"})
    refusals = {
        taught_by(first): "nothing shows which images it was trained on",
        taught_by(second): "recorded by the training",
        taught_by(third): "was trained on other images or labels",
        taught_by(Path("runs/small/gone")): "no such run",
        "train.teacher.share=0.7": "has no effect without train.teacher.runs",
        "data.pseudo.share=0.7": "has no effect without data.pseudo.run",
        f"data.pseudo.run={first}": "nothing shows which images it was trained on",
    }
    for option, reason in refusals.items():
        assert_refused(comp("train", "small.yaml", *PLAIN, option, "--runs", "none"), reason)
    assert not list(Path("none").rglob("config.yaml"))


def test_pseudo_labels_join_the_training_images_and_are_shown(taught: Run, comp: Comp, tmp_path: Path) -> None:
    origin = taught.provenance()["pseudo"]
    assert origin["joined"] == min(origin["confident"], 192 // 9)  # at most a tenth of all
    assert taught.provenance()["images"] == {"train": 192, "val": 48, "test": 40}
    assert taught.provenance()["teacher"]["images"] == 192 + origin["joined"]
    with array_files.open_arrays(taught.path / "pseudo.npz") as archive:
        assert {name[:5] for name in archive["ids"].tolist()} == {"test_"}
    assert taught.metrics().pseudo_labels == origin["joined"]
    (row,) = leaderboard.read_rows(taught.path.parent)
    assert row.lessons == "teacher, pseudo-labels"
    assert row.transductive
    assert comp("report", taught.path, "-o", tmp_path / "page.html").code == 0
    assert f"pseudo-labels: {origin['joined']} images" in (tmp_path / "page.html").read_text()
    listed = comp("leaderboard", "--json", "--runs", taught.path.parent)
    assert row.lessons in listed.out


def test_rules_forbid_pseudo_labels_and_teachers_that_were_trained_on_them(three_runs: Path, comp: Comp) -> None:
    rule = "competition.rules.transductive=false"
    refused = comp("train", "small.yaml", *PLAIN, rule, f"data.pseudo.run={members()[0]}")
    assert_refused(refused, "data.pseudo.run", rule)
    teacher = Run(members()[0])
    check(student(rule, taught_by(teacher.path)))
    teacher.write_json("provenance.json", {**teacher.provenance(), "pseudo": {"runs": []}})
    with pytest.raises(ConfigError, match=r"trained on pseudo-labels .*transductive=false forbids"):
        check(student(rule, taught_by(teacher.path)))


def test_no_confident_image_is_an_error_that_names_the_highest(three_runs: Path) -> None:
    config = student(f"data.pseudo.run={members()[0]}", "data.pseudo.min_confidence=1")
    with pytest.raises(ConfigError, match=r"data\.pseudo\.min_confidence: no test image reaches 1, the highest is 0\."):
        train.train(config)
    assert len(runs.list_runs(Path("runs"))) == 3


@pytest.mark.slow  # 3 s
def test_a_rehearsal_needs_no_confident_image(three_runs: Path, comp: Comp) -> None:
    options = [f"data.pseudo.run={members()[0]}", "data.pseudo.min_confidence=1", taught_by(members()[0])]
    result = comp("run", "small.yaml", "--rehearse", *PLAIN, *options)
    assert result.code == 0, result.err
