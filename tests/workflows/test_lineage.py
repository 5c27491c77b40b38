"""What a run learns from others: first weights, teachers with code of their own, and what joins its images."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import comp as api
from comp import config as configs
from comp.config import Config
from comp.data import pseudo
from comp.data.dataset import open_dataset
from comp.results import array_files, files, runs
from comp.results.runs import Run
from comp.runtime import memory
from comp.runtime.errors import ConfigError, Interrupted
from comp.training import imbalance
from comp.workflows import lineage, plugins, train
from tests.support.commands import Result, assert_refused, interrupt_at
from tests.support.configs import small_config
from tests.support.plugins import forget
from tests.support.plugins import fresh as fresh
from tests.support.runs import assert_same_weights, members, the_run

Comp = Callable[..., Result]
PLAIN = ["competition.ood_validation.severities=[]", "competition.suite.source=none", "train.epochs=1"]

# The same file name in two folders: the teacher's network is wider, and its loss must never run in the student.
ROWS = """
from comp.models.coursework.layout import Network
from torch import nn


def tiny(shape, classes):
    body = nn.Sequential(nn.Conv2d(shape[0], WIDTH, 3, padding=1), nn.BatchNorm2d(WIDTH), nn.ReLU())
    return Network(body, nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten()), nn.Linear(4 * WIDTH, classes))


def mine(logits, targets, *, reduction="mean"):
    if BROKEN:
        raise AssertionError("the teacher's loss")
    return nn.functional.cross_entropy(logits, targets, reduction=reduction)


NETWORKS, OWN_KINDS, LOSSES = {"tiny": tiny}, {"tiny": "convolutional"}, {"mine": mine}
TASKS = {"single_label": {"losses": ["mine"]}}
"""


def student(*overrides: str) -> Config:
    return configs.load("small.yaml", [*PLAIN, *overrides])


def write_split(run: Run, *, seen: np.ndarray) -> None:
    """Record that a run was trained on more images."""
    with array_files.open_arrays(run.path / "split.npz") as archive:
        arrays = dict(archive)
    arrays["train"] = np.concatenate([arrays["train"], seen])
    files.write_arrays(run.path / "split.npz", arrays)
    images = {**run.provenance()["images"], "train": len(arrays["train"])}
    run.write_json("provenance.json", {**run.provenance(), "images": images})


def with_plugin(folder: str, width: int) -> Path:
    """Write a config whose network and loss are rows of a plug-in beside it."""
    Path(folder).mkdir()
    Path(folder, "rows.py").write_text(f"WIDTH, BROKEN = {width}, False\n{ROWS}")
    values: dict[str, Any] = small_config(Path("small.yaml").parent)
    values["data"] = yaml.safe_load(Path("small.yaml").read_text())["data"]
    values |= {"plugins": ["rows.py"], "model": {"name": "tiny"}}
    values["train"] |= {"loss": "mine", "label_smoothing": 0.0, "epochs": 1}
    values["competition"] |= {"suite": {"source": "none"}, "ood_validation": {"severities": []}}
    (Path(folder) / "own.yaml").write_text(yaml.safe_dump(values))
    return Path(folder) / "own.yaml"


def taught_by(run: Run) -> str:
    return f"train.teacher.runs=[{run.path}]"


# First weights.


def test_first_weights_of_a_run_that_saw_validation_images_are_refused_and_counted(
    three_runs: Path, comp: Comp
) -> None:
    source, other = (Run(path) for path in members()[:2])
    config = student(f"model.from_run={source.path}")
    dataset = open_dataset(config)
    lineage.check_teachers(config, dataset)
    assert dataset.val is not None
    write_split(source, seen=dataset.val.ids[:4])
    refused = comp("train", "small.yaml", *PLAIN, f"model.from_run={source.path}", "--runs", "none")
    assert_refused(refused, f"model.from_run: {source.path} was trained on 4 of the 48 validation images", "same")
    assert not list(Path("none").rglob("config.yaml"))
    # Through another run, too; and where nothing is held out, nothing leaks.
    text = (other.path / "config.yaml").read_text()
    (other.path / "config.yaml").write_text(text.replace("from_run: ''", f"from_run: {source.path}"))
    with pytest.raises(ConfigError, match=rf"learned from {source.path}, which was trained on 4 of the 48"):
        lineage.check_teachers(student(f"model.from_run={other.path}"), dataset)
    everything = student(f"model.from_run={source.path}", "data.validation=none")
    lineage.check_teachers(everything, open_dataset(everything))


def test_first_weights_of_another_competition_may_come_from_other_data_but_not_from_held_out_images(
    three_runs: Path,
) -> None:
    source = Run(members()[0])
    config = student(f"model.from_run={source.path}", "competition.name=other")
    dataset = open_dataset(config)
    assert dataset.val is not None
    write_split(source, seen=dataset.val.ids[:2])
    with pytest.raises(ConfigError, match="trained on 2 of the 48 validation images"):
        lineage.check_teachers(config, dataset)
    source.write_json("provenance.json", {**source.provenance(), "data_fingerprint": "0123456789abcdef"})
    lineage.check_teachers(config, dataset)
    with pytest.raises(ConfigError, match=r"model\.from_run: .* was trained on other images or labels"):
        lineage.check_teachers(student(f"model.from_run={source.path}"), dataset)


def test_rules_refuse_first_weights_that_learned_from_pseudo_labels(three_runs: Path, comp: Comp) -> None:
    source, rule = Run(members()[0]), "competition.rules.transductive=false"
    words = ("config", "check", "small.yaml", "--data", *PLAIN, f"model.from_run={source.path}")
    assert comp(*words, rule).code == 0
    source.write_json("provenance.json", {**source.provenance(), "pseudo": {"runs": []}})
    assert comp(*words).code == 0
    assert_refused(comp(*words, rule), "model.from_run", "pseudo-labels of the test images", rule)


# Teachers with plug-ins.


def test_a_teachers_plugin_runs_only_when_allowed_and_never_in_place_of_the_students(
    three_runs: Path, comp: Comp
) -> None:
    theirs, ours = with_plugin("theirs", 6), with_plugin("ours", 8)
    assert comp("train", theirs, "--runs", "teachers").code == 0
    teacher = the_run(Path("teachers"))
    forget()
    refused = comp("train", ours, taught_by(teacher), "--runs", "none")
    digest = files.sha256_file(teacher.path / "plugins/rows.py")
    assert_refused(refused, "train.teacher.runs", str(teacher.path), digest, "--allow-plugins")
    assert not list(Path("none").rglob("config.yaml"))
    forget()
    result = comp("train", ours, taught_by(teacher), "--runs", "students", "--allow-plugins")
    assert result.code == 0, result.err
    taught = the_run(Path("students"))
    assert (taught.path / "plugins/rows.py").read_bytes() == (ours.parent / "rows.py").read_bytes()
    assert taught.metrics().parameters != teacher.metrics().parameters
    assert taught.provenance()["teacher"]["runs"][0]["run"] == teacher.name
    # A student without plug-ins leaves none behind, and Python asks in its own words.
    forget()
    with pytest.raises(ConfigError, match="allow_plugins=True"):
        api.train(student(taught_by(teacher)), runs="plain")
    plain = api.train(student(taught_by(teacher)), runs="plain", allow_plugins=True)
    assert plain.metrics().teachers == [teacher.name]
    assert comp("config", "check", "small.yaml", "model.name=tiny").code == 2


def test_the_students_loss_trains_it_after_a_teacher_of_the_same_names_has_predicted(
    three_runs: Path, comp: Comp
) -> None:
    theirs, ours = with_plugin("theirs", 6), with_plugin("ours", 8)
    assert comp("train", theirs, "--runs", "teachers").code == 0
    teacher = the_run(Path("teachers"))
    broken = (theirs.parent / "rows.py").read_text().replace("BROKEN = 6, False", "BROKEN = 6, True")
    old, new = files.sha256_file(theirs.parent / "rows.py"), files.sha256_bytes(broken.encode())
    (teacher.path / "plugins/rows.py").write_text(broken)
    for name in ("config.yaml", "provenance.json"):
        (teacher.path / name).write_text((teacher.path / name).read_text().replace(old, new))
    forget()
    result = comp("train", ours, taught_by(teacher), "--runs", "students", "--allow-plugins")
    assert result.code == 0, result.err


def test_the_students_own_file_needs_no_flag(three_runs: Path, comp: Comp) -> None:
    ours = with_plugin("ours", 8)
    assert comp("train", ours, "--runs", "teachers").code == 0
    forget()
    result = comp("train", ours, taught_by(the_run(Path("teachers"))), "seed=1", "--runs", "students")
    assert result.code == 0, result.err


def test_a_training_with_plugin_loss_and_teacher_goes_on_to_the_same_bits(three_runs: Path, comp: Comp) -> None:
    theirs, ours = with_plugin("theirs", 6), with_plugin("ours", 8)
    assert comp("train", theirs, "--runs", "teachers").code == 0
    teacher = the_run(Path("teachers"))
    config = configs.load(
        ours, [taught_by(teacher), f"data.pseudo.run={teacher.path}", "data.pseudo.min_confidence=0.2"]
    )
    plugins.load(config, allow=True)
    lineage.consent(config)
    whole = train.train(config, runs_root=Path("whole"))
    with pytest.raises(Interrupted):
        train.train(config, runs_root=Path("stopped"), progress=interrupt_at(2))
    shutil.rmtree("teachers")
    shutil.rmtree("ours")
    forget()
    result = comp("train", "--resume", the_run(Path("stopped")).path, "--allow-plugins")
    assert result.code == 0, result.err
    assert_same_weights(whole, the_run(Path("stopped")))


def test_a_missing_copy_of_a_plugin_names_where_to_get_it(three_runs: Path, comp: Comp) -> None:
    ours = with_plugin("ours", 8)
    assert comp("train", ours, "--runs", "own").code == 0
    run = the_run(Path("own"))
    copy = run.path / "plugins/rows.py"
    digest = files.sha256_file(copy)
    copy.unlink()
    forget()
    words = ("predict", run.path, "--split", "val", "--allow-plugins")
    assert_refused(comp(*words), str(copy), "missing", f"copy of {ours.parent.absolute() / 'rows.py'}: copy that there")
    (ours.parent / "rows.py").unlink()
    assert_refused(comp(*words), str(copy), digest, "train again")


# What teachers are checked for, how often, and whether they are the same.


def test_teachers_are_compared_with_the_validation_images_once(
    three_runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []
    original = lineage.trained_on

    def count(run: Run) -> Any:
        read.append(run.path)
        return original(run)

    monkeypatch.setattr(lineage, "trained_on", count)
    first, second = members()[:2]
    words = (f"train.teacher.runs=[{first}]", f"data.pseudo.run={second}", "data.pseudo.min_confidence=0.3")
    train.train(student(*words), runs_root=Path("taught"))
    assert sorted(read) == [first, second]


def test_a_run_is_taught_alike_until_a_teachers_weights_change(three_runs: Path) -> None:
    first, second = (Run(path) for path in members()[:2])
    one, folder = student(taught_by(first)), student("train.teacher.runs=[runs/small]")
    taught, dataset = train.train(one, runs_root=Path("taught")), open_dataset(one)
    assert lineage.is_taught_alike(taught, one, dataset)
    assert not lineage.is_taught_alike(taught, folder, dataset)
    assert not lineage.is_taught_alike(taught, student(taught_by(second)), dataset)
    assert not lineage.is_taught_alike(taught, student(taught_by(first), f"data.pseudo.run={second.path}"), dataset)
    shutil.copy(second.path / "best.safetensors", first.path / "best.safetensors")
    assert not lineage.is_taught_alike(taught, one, dataset)
    assert lineage.is_taught_alike(Run(second.path), student(), dataset)


def test_a_folder_of_teachers_that_gains_a_run_teaches_alike_only_if_that_may_not_teach(three_runs: Path) -> None:
    first, second, third = (Run(path) for path in members())
    assert open_dataset(student()).val is not None
    Path("teachers").mkdir()
    shutil.copytree(first.path, Path("teachers", first.path.name))
    folder = student("train.teacher.runs=[teachers]")
    taught, dataset = train.train(folder, runs_root=Path("taught")), open_dataset(folder)
    assert lineage.is_taught_alike(taught, folder, dataset)
    assert dataset.val is not None
    write_split(second, seen=dataset.val.ids[:2])
    shutil.copytree(second.path, Path("teachers", second.path.name))
    assert lineage.is_taught_alike(taught, folder, dataset)  # it saw validation images
    shutil.copytree(third.path, Path("teachers", third.path.name))
    assert not lineage.is_taught_alike(taught, folder, dataset)
    inside = student(f"train.teacher.runs=[teachers/{first.path.name}, {taught.path.parent}]")
    twice = train.train(inside, runs_root=Path("taught"))
    assert lineage.is_taught_alike(twice, inside, dataset)  # it lies in the folder itself, and teaches no repetition


# Pseudo-labelled images count in what is decided about the training images.


def test_class_weights_are_printed_as_the_loss_has_them_with_the_pseudo_labels(three_runs: Path, comp: Comp) -> None:
    words = (f"data.pseudo.run={members()[0]}", "data.pseudo.min_confidence=0.3", "data.pseudo.share=0.15")
    names = open_dataset(student()).train
    assert names.labels is not None
    dropped = "".join(f"{name},drop,\n" for name in names.ids[names.labels == 0][:30])
    Path("rare.csv").write_text("id,action,label\n" + dropped)
    options = ["train.class_weights=balanced", "data.fixes=rare.csv", *words]
    result = comp("train", "small.yaml", *PLAIN, *options, "--runs", "weighted")
    assert result.code == 0, result.err
    run, config = the_run(Path("weighted")), student(*options)
    (expected,) = imbalance.describe(config, pseudo.rejoin(run, config, open_dataset(config)))
    (without,) = imbalance.describe(config, open_dataset(config))
    assert expected != without
    noted = [note for note in run.provenance()["notes"] if note.startswith("class weights")]
    assert noted == [expected]
    assert " ".join(result.err.split()).count("class weights (balanced)") == 1


def test_images_that_join_are_counted_when_it_is_decided_where_images_lie(
    three_runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = student()
    dataset = open_dataset(config)
    assert dataset.test is not None
    mapped = np.memmap("images.bin", np.uint8, "w+", shape=dataset.train.images.shape)
    mapped[:] = np.asarray(dataset.train.images)
    mapped.flags.writeable = False
    dataset = replace(dataset, train=replace(dataset.train, images=mapped))
    part = replace(dataset.test.head(20), name="pseudo")
    joined_bytes = dataset.train.images.nbytes + part.images.nbytes
    # Concatenated pixels are an array in memory, which moves nothing on the CPU: count them as on a device.
    monkeypatch.setattr("comp.data.loading._bytes_to_move", lambda images, device: int(images.nbytes))
    for free, resident in ((4 * joined_bytes, True), (4 * joined_bytes - 4, False)):
        monkeypatch.setattr(memory, "free_bytes", lambda device, free=free: free)
        joined = pseudo.join(dataset, part, config)
        assert joined.resident is resident
        assert len(joined.train) == len(dataset.train) + 20
        assert ("data.loading: workers stream" in "".join(joined.notes)) is not resident


def test_a_repeated_run_takes_its_own_fix_list_where_the_original_has_changed(three_runs: Path, comp: Comp) -> None:
    names = open_dataset(student()).train.ids
    content = f"id,action,label\n{names[0]},drop,\n{names[1]},drop,\n"
    Path("fixes.csv").write_text(content)
    assert comp("train", "small.yaml", *PLAIN, "data.fixes=fixes.csv", "--runs", "one").code == 0
    one = the_run(Path("one"))
    assert comp("run", "--as", one.path, "--runs", "same").code == 0
    assert the_run(Path("same")).config_hash() == one.config_hash()
    for change in (lambda: Path("fixes.csv").write_text("id,action,label\n"), lambda: Path("fixes.csv").unlink()):
        change()
        root = f"again{Path('fixes.csv').exists()}"
        result = comp("run", "--as", one.path, "--runs", root)
        assert result.code == 0, result.err
        again = the_run(Path(root))
        assert again.provenance()["fixes"]["sha256"] == files.sha256_bytes(content.encode())
        assert_same_weights(one, again)
    (one.path / runs.FIXES).unlink()
    refused = comp("run", "--as", one.path, "--runs", "none")
    assert_refused(refused, str(one.path / runs.FIXES), "fixes.csv", "restore one of them")
    assert not list(Path("none").rglob("config.yaml"))
