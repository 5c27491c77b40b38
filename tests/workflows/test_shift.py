"""`comp data shift`: what tells the test from training images, what it looks like, and the config that follows."""

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from comp import config as configs
from comp.data.corruptions.recognise import CLEAN, MIXTURE, NONE, Verdict
from comp.data.corruptions.suite import corrupt
from comp.data.dataset import Dataset, open_dataset
from comp.data.shift_features import Property, compare_properties
from comp.results import runs
from comp.results.run_metrics import RunMetrics, Score, SplitScores, WeightScores
from comp.workflows.shift_advice import suggest
from tests.support.commands import Result, assert_refused
from tests.support.configs import small_config, write_arrays, write_config
from tests.support.patients import patients_config, write_patients
from tests.support.photographs import photographs_config, write_folders, write_kaggle

Comp = Callable[..., Result]


def set_up(folder: Path, side: int, **competition: Any) -> Path:
    """Write data of this side and `small.yaml`, which submits the test."""
    write_arrays(folder / "data", train=150, test=100, size=side)
    values = small_config(Path("data"))
    values["competition"] |= {"suite": {"source": "test"}, **competition}
    return write_config(folder / "small.yaml", values)


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with images too small to look for corruptions, which takes most of the time."""
    monkeypatch.chdir(tmp_path)
    set_up(tmp_path, 6)
    return tmp_path


def card(comp: Comp, *arguments: object) -> dict[str, Any]:
    result = comp("data", "shift", *arguments, "--json")
    assert result.code == 0, result.err
    found: dict[str, Any] = json.loads(result.out)
    return found


def test_a_test_like_the_training_images_is_found_alike(tiny: Path, comp: Comp) -> None:
    found = card(comp, "small.yaml")
    assert found["auc_interval"][0] <= 0.5 <= found["auc_interval"][1]
    assert found["meaning"] == "no difference found"
    assert {row["word"] for row in found["properties"]} == {"same"}
    assert [row["key"] for row in found["suggestions"]] == ["competition.ood_validation.severities"]
    assert "of 8 to 320 px" in found["notes"][0]
    assert found == card(comp, "small.yaml")


def test_other_brightness_is_found_listed_and_written(tiny: Path, comp: Comp) -> None:
    images = np.load("data/test_images.npy")
    np.save("data/test_images.npy", (images * 0.5).astype(np.uint8))
    result = comp("data", "shift", "small.yaml", "--out", "card", "--write", "new.yaml", "seed=3")
    assert result.code == 0, result.err
    assert "training and test: almost disjoint, AUC" in result.out
    assert max(map(len, result.out.splitlines())) <= 200
    written = json.loads(Path("card/shift.json").read_text())
    assert written["properties"][0]["name"] in ("brightness", "contrast")
    assert written["properties"][0]["word"] == "very large"
    with open("card/train_like_test.csv") as file:
        rows = list(csv.DictReader(file))
    scores = [float(row["probability"]) for row in rows]
    assert scores == sorted(scores, reverse=True)
    dataset = open_dataset(configs.load("small.yaml"))
    assert {row["id"] for row in rows} == set(dataset.train.ids.tolist())
    assert Path("card/shift.png").read_bytes().startswith(b"\x89PNG")
    new = configs.load("new.yaml")
    assert new.augment.policy == ("basic", "color_jitter")
    assert new.seed == 3
    assert new.data == configs.load("small.yaml").data
    assert comp("config", "check", "new.yaml").code == 0


def test_a_corrupted_test_is_recognised_in_whole_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, comp: Comp
) -> None:
    monkeypatch.chdir(tmp_path)
    set_up(tmp_path, 12)
    images = torch.from_numpy(np.load("data/test_images.npy")).permute(0, 3, 1, 2)
    noisy = corrupt(images, "impulse_noise", 4, seed=9, indices=torch.arange(len(images)))
    np.save("data/test_images.npy", noisy.permute(0, 2, 3, 1).numpy())
    found = card(comp, "small.yaml", "--write", "new.yaml")
    assert found["auc_interval"][0] > 0.9
    verdict = found["verdicts"]["test"]
    assert verdict["name"] == "impulse_noise"
    assert 0.5 < verdict["share"] < 1
    assert found["recognised"][1] == 96
    new = configs.load("new.yaml")
    assert new.augment.policy == ("basic", "robust")
    assert new.competition.ood_validation.severities == (verdict["severity"],)
    assert {"blur", "weather", "digital", "gaussian_noise"} <= set(new.competition.ood_validation.leave_out)


@pytest.mark.parametrize("count", [1, 30])
def test_distortion_files_are_compared_block_by_block(tiny: Path, comp: Comp, count: int) -> None:
    """Copies of one image in all blocks are in one fold, unless there are too few images for that."""
    Path("data/ood").mkdir()
    images = np.load("data/test_images.npy")[:count]
    for number in range(19):
        np.save(f"data/ood/distortion{number:02d}.npy", np.concatenate([images // (2 + number % 2)] * 5))
    suite = f"{{source: distortion_files, path: ood, images_per_block: {count}}}"
    found = card(comp, "small.yaml", f"competition.suite={suite}", "data.download=false", "--images", "190")
    assert (found["test"], found["counts"]) == ("suite", [120, min(count, 2) * 95])
    assert found["auc"] > 0.9


def test_a_missing_test_image_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, comp: Comp) -> None:
    monkeypatch.chdir(tmp_path)
    write_kaggle(tmp_path / "data", train=60, test=30)
    Path("data/test/003.jpg").unlink()
    values = photographs_config(Path("data"), "csv_images")
    values["data"] |= {"image_size": 400, "skip_bad": True}
    found = card(comp, write_config(tmp_path / "a.yaml", values))
    assert found["counts"] == [45, 29]
    assert "these have 400" in found["notes"][0]
    assert found["verdicts"] == {}
    assert {"width", "height", "aspect ratio", "format JPEG RGB"} <= {row["name"] for row in found["properties"]}


def test_a_runs_network_compares_what_it_has_not_seen(tiny: Path, comp: Comp) -> None:
    assert comp("train", "small.yaml", "train.epochs=1", "competition.ood_validation.severities=[]").code == 0
    (run,) = runs.list_runs(Path("runs"))
    found = card(comp, run.path)
    assert found["reference"] == "val"
    assert found["counts"] == [30, 100]
    assert run.name in found["features"]
    assert found["auc_interval"][0] <= 0.5 <= found["auc_interval"][1]
    assert len(found["test_like"]) == 10
    assert {row["id"].partition("_")[0] for row in found["test_like"]} == {"train"}
    out = comp("data", "shift", run.path).out
    assert out.startswith("validation and test: ")
    assert "30 validation and 100 test images" in out


def verdict(name: str, severity: int = 0, share: float = 0.9, **mixture: float) -> Verdict:
    return Verdict(name, severity, {name: share}, mixture, 0.0, 5.0, 100)


def suggested(dataset: Dataset, *verdicts: Verdict, alike: bool = False, **rules: bool) -> dict[str, Any]:
    """Return the keys suggested for blocks with these verdicts."""
    config = configs.load("small.yaml", [f"competition.rules.{name}={value}" for name, value in rules.items()])
    blocks = {f"distortion{number:02d}_1": row for number, row in enumerate(verdicts)}
    return {row.key: row.value for row in suggest(config, dataset, blocks, (), alike=alike)}


def test_suggestions_follow_what_was_seen_and_the_rules(tiny: Path) -> None:
    dataset = open_dataset(configs.load("small.yaml"))
    blurred = verdict("zoom_blur", 2), verdict("zoom_blur", 5), verdict(CLEAN)
    policy, severities = "augment.policy", "competition.ood_validation.severities"
    assert suggested(dataset, *blurred)[policy] == ["basic", "robust"]
    assert suggested(dataset, *blurred)[severities] == [2, 5]
    assert suggested(dataset, *blurred, test_like_augmentation=False)[policy] == ["basic", "robust_strict"]
    assert suggested(dataset, verdict("snow", 3, share=0.3)) == {}
    assert suggested(dataset, verdict(NONE), verdict(CLEAN)) == {}
    mixed = suggested(dataset, verdict(MIXTURE, fog=0.4, clean=0.6))
    left_out = mixed["competition.ood_validation.leave_out"]
    assert "fog" not in left_out
    assert {"noise", "blur", "digital", "snow"} <= set(left_out)
    assert suggested(dataset, verdict(CLEAN), alike=True) == {severities: []}


def test_rules_without_transduction_describe_but_suggest_nothing(tiny: Path, comp: Comp) -> None:
    rule = "competition.rules.transductive=false"
    found = card(comp, "small.yaml", rule)
    assert found["suggestions"] == []
    assert any("transductive=false" in note for note in found["notes"])
    assert_refused(comp("data", "shift", "small.yaml", rule, "--write", "new.yaml"), "transductive=false", "--write")
    assert not Path("new.yaml").exists()


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("small.yaml", "--split", "tset"), ("--split", "auto, suite, test", "tset")),
        (("small.yaml", "--images", "3"), ("--images", "at least 20", "3")),
        (("small.yaml", "--write", "data"), ("--write", "folder data")),
        (("small.yaml", "--write", "small.yaml", "--force"), ("small.yaml", "extends")),
        (("small.yaml", "--write", "old.yaml"), ("old.yaml exists", "--force")),
        (("smal.yaml",), ("smal.yaml: no such config file", "small.yaml")),
        (("data",), ("data: not a run folder",)),
        (("small.yaml", "--out", "old.yaml"), ("old.yaml",)),
        (("small.yaml", "competition.suite.source=none", "--split", "suite"), ("no test images", "--split suite")),
        (("small.yaml", "data.validation=132"), ("20 or more training images",)),
    ],
)
def test_bad_input_is_one_message(tiny: Path, comp: Comp, arguments: tuple[str, ...], parts: tuple[str, ...]) -> None:
    Path("old.yaml").write_text("seed: 1\n")
    assert_refused(comp("data", "shift", *arguments), *parts)
    assert Path("old.yaml").read_text() == "seed: 1\n"


@pytest.mark.parametrize(
    ("order", "said"),
    [
        ((0, 1, 2, 3, 4, 5, 6, 7), "validation ranks as the leaderboard does"),
        ((3, 0, 6, 1, 7, 2, 5, 4), "too weak to trust"),
        ((7, 6, 5, 4, 3, 2, 1, 0), "validation ranks against the leaderboard"),
        ((0, 1, 2), "3 recorded, too few to compare"),
    ],
)
def test_recorded_public_scores_tell_whether_to_trust_validation(
    tiny: Path, comp: Comp, order: tuple[int, ...], said: str
) -> None:
    config = configs.load("small.yaml", ["competition.metric=macro_f1"])
    described: dict[str, Any] = {
        "competition": "small", "metric": "macro_f1", "task": "single_label",
        "kind": "run", "model": "a", "parameters": 1,
    }  # fmt: skip
    for number, rank in enumerate(order):
        run = runs.create(Path("runs"), config, f"n{number}", {"classes": ["0", "1", "2", "3"]})
        value = SplitScores(images=30, scores={"macro_f1": Score(value=0.5 + 0.01 * number)})
        run.write_metrics(
            RunMetrics(run=run.name, best=WeightScores(val=value), public_score=0.4 + 0.05 * rank, **described)
        )
    assert said in comp("data", "shift", "small.yaml", "competition.metric=macro_f1").out


def test_files_of_another_kind_and_size_differ(tmp_path: Path) -> None:
    root = write_folders(tmp_path / "files", train=12, val=4, test=30)
    config = configs.load(write_config(tmp_path / "a.yaml", photographs_config(root, "image_folder")))
    dataset = open_dataset(config)
    assert dataset.test is not None
    splits = dataset.train, dataset.test
    rows = {row.name: row for row in compare_properties(*splits, splits)}
    assert (rows["format PNG RGB"].train, rows["format PNG RGB"].test) == (1, 0)
    assert (rows["format JPEG RGB"].train, rows["format JPEG RGB"].test) == (0, 1)
    assert rows["bytes a pixel"].word != "same"
    assert rows["width"].word == rows["aspect ratio"].word == "same"
    assert [row.word == "same" for row in rows.values()] == sorted(row.word == "same" for row in rows.values())


def test_other_frames_of_photographs_lead_to_crops(tmp_path: Path) -> None:
    root = write_folders(tmp_path / "files", train=12, val=4, test=30)
    values = photographs_config(root, "image_folder")
    values["data"]["image_size"] = 64
    config = configs.load(write_config(tmp_path / "a.yaml", values))
    wide = Property("aspect ratio", 1.0, 1.5, None, 1.0, "very large")
    (suggestion,) = suggest(config, open_dataset(config), {}, [wide], alike=False)
    assert (suggestion.key, suggestion.value) == ("augment.policy", ["photo"])
    assert "aspect ratio" in suggestion.reason
    assert suggest(config, open_dataset(config), {}, [replace(wide, word="slight")], alike=False) == []


def test_of_patients_with_several_images_one_each_is_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, comp: Comp
) -> None:
    monkeypatch.chdir(tmp_path)
    write_patients(Path("d"), train=40, test=24)
    write_config(Path("c.yaml"), patients_config(Path("d"), validation=0.1))
    found = card(comp, "c.yaml")
    train = open_dataset(configs.load("c.yaml")).train.one_per_answer()
    assert list(found["counts"]) == [len(train), 24]
    assert "one image of each group is compared (data.group_answer)" in found["notes"]
