"""`comp init`: a config for a download, found in its files and checked by opening it."""

import csv
import json
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from comp import config as configs
from tests.support.commands import Result, assert_refused

Comp = Callable[..., Result]


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def save(*paths: str, side: int = 16, mode: str = "RGB") -> None:
    draw = np.random.default_rng(len(paths))
    for path in paths:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (side, side, 3), np.uint8)).convert(mode).save(path)


def write_table(path: str, rows: Sequence[Sequence[object]]) -> None:
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows(rows)


def made(comp: Comp, *arguments: str) -> configs.Config:
    """Return the config that `comp init d` writes; its check opens the data again."""
    result = comp("init", "d", *arguments)
    assert result.code == 0, result.err
    assert comp("config", "check", "comp.yaml", "--data").code == 0
    return configs.load("comp.yaml")


def test_class_folders_with_a_nested_unlabelled_test(comp: Comp) -> None:
    save(*[f"d/train/{name}/{n}.png" for name in ("ant", "bee", "cow") for n in range(10)])
    save(*[f"d/test/test/{n}.png" for n in range(6)])
    config = made(comp)
    assert config.data.source == "image_folder"
    assert config.competition.suite.source == "test"
    assert config.data.folds == 5
    assert config.data.image_size is None
    assert not config.competition.ood_validation.severities


def test_classes_in_file_names(comp: Comp) -> None:
    save(*[f"d/train/{name}.{n}.jpg" for name in ("cat", "dog") for n in range(12)])
    save(*[f"d/test/{n}.jpg" for n in range(4)])
    write_table("d/sample_submission.csv", [["id", "label"], *[[n, 0.5] for n in range(4)]])
    config = made(comp, "--metric", "log_loss")
    assert config.data.label_pattern
    assert config.competition.metric == "log_loss"


def test_text_labels_among_other_columns_and_a_test_table(comp: Comp) -> None:
    """The label column has an unusual name, and another column repeats over images."""
    rows = [[f"img_{n}.png", 20 + n % 7, ("oak", "elm", "fir")[n % 3], f"P{n // 3}"] for n in range(30)]
    save(*[f"d/images/img_{n}.png" for n in range(40)])
    write_table("d/data.csv", [["photo", "age", "tree species name", "patient_id"], *rows])
    write_table("d/sample_submission.csv", [["photo", "answer"], *[[f"img_{n}.png", "oak"] for n in range(30, 40)]])
    config = made(comp)
    assert config.data.csv.table == "data.csv"
    assert config.data.csv.label_column == "tree species name"
    assert config.data.csv.group_column == "patient_id"
    assert config.data.csv.train == config.data.csv.test == "images"


def test_a_sample_of_patients_asks_for_one_answer_each(comp: Comp) -> None:
    """The ids of images are in a column of no usual name, and a further column repeats too."""
    save(*[f"d/images/x{n}.png" for n in range(44)])
    rows = [[n % 5, f"pat{n // 3}", f"x{n}", "ny"[n // 3 % 2], "left" if n % 2 else "right"] for n in range(30)]
    write_table("d/train.csv", [["age", "patient", "scan", "ill", "side"], *rows])
    write_table("d/meta_test.csv", [["patient", "scan"], *[[f"pat{n // 2}", f"x{n}"] for n in range(30, 44)]])
    write_table("d/sample_submission.csv", [["patient", "ill"], *[[f"pat{n}", "n"] for n in range(21, 14, -1)]])
    result = comp("init", "d", "--json")
    assert result.code == 0, result.err
    values = json.loads(result.out)
    assert any("a row for each patient of meta_test.csv" in line for line in values["found"])
    assert any(line.startswith("data.group_answer: mean") for line in values["guessed"])
    config = configs.load("comp.yaml")
    assert comp("config", "check", "comp.yaml", "--data").code == 0
    assert config.data.group_answer == "mean"
    assert config.data.csv.group_column == "patient"
    assert config.data.csv.id_column == "scan"
    assert config.data.csv.test_table == "meta_test.csv"
    assert config.competition.suite.source == "test"
    assert "# sample_submission.csv has a row for each patient" in Path("comp.yaml").read_text()
    table = Path("d/sample_submission.csv")
    table.write_text(table.read_text() + "pat99,n\n")  # one that the test table lacks changes no detection
    assert_refused(comp("init", "d", "-o", "again.yaml"), "1 of 8 ids have no image", "'patient'", "'pat99'")


def test_patients_whose_images_have_a_row_each_have_no_answer_together(comp: Comp) -> None:
    save(*[f"d/train/x{n}.png" for n in range(30)], *[f"d/test/x{n}.png" for n in range(30, 40)])
    write_table("d/train.csv", [["id", "patient", "ill"], *[[f"x{n}", f"p{n // 3}", n % 2] for n in range(30)]])
    write_table("d/test.csv", [["id", "patient"], *[[f"x{n}", f"p{n // 3}"] for n in range(30, 40)]])
    write_table("d/sample_submission.csv", [["id", "ill"], *[[f"x{n}", 0] for n in range(30, 40)]])
    assert made(comp).data.group_answer == "none"


def test_one_column_per_class_with_a_permuted_sample(comp: Comp) -> None:
    labels = np.eye(3, dtype=int)[np.arange(24) % 3]
    save(*[f"d/train/{n}.png" for n in range(24)])
    save(*[f"d/test/{n + 100}.png" for n in range(5)])
    write_table("d/train.csv", [["id", "x", "y", "z"], *[[n, *row] for n, row in enumerate(labels)]])
    write_table("d/sample_submission.csv", [["id", "z", "x", "y"], *[[n + 100, 0.3, 0.3, 0.4] for n in range(5)]])
    result = comp("init", "d", "--metric", "log_loss", "--json")
    assert result.code == 0, result.err
    found = " ".join(json.loads(result.out)["found"])
    assert "id,z,x,y" in found
    assert json.loads(result.out)["next"] == "comp run comp.yaml"


def test_images_of_several_sizes_get_one_and_the_budget_covers_all_folds(comp: Comp) -> None:
    for side in (80, 120, 200):
        save(*[f"d/train/{name}/{side}-{n}.png" for name in ("a", "b") for n in range(5)], side=side)
    config = made(comp, "--budget", "15min", "--preset", "fast")
    assert config.data.image_size == 64
    assert config.train.budget == "3min"
    assert config.competition.suite.source == "none"


def test_what_was_detected_wrongly_is_set_behind_the_folder(comp: Comp) -> None:
    save(*[f"d/train/{n}.png" for n in range(20)])
    write_table("d/train.csv", [["id", "kind", "colour"], *[[n, n % 2, n % 4] for n in range(20)]])
    config = made(comp, "data.csv.label_column=colour", "data.folds=4")
    assert config.data.csv.label_column == "colour"
    assert config.data.folds == 4


@pytest.mark.parametrize(
    ("train", "test", "extra"),
    [("train", "test", 0), ("train_images", "test_images", 5), ("images", "a_test", 3), ("zz/train", "aa/test", 0)],
)
def test_training_and_test_images_of_the_same_names_are_not_confused(
    comp: Comp, train: str, test: str, extra: int
) -> None:
    save(*[f"d/{train}/{n}.png" for n in range(20 + extra)])
    save(*[f"d/{test}/{n}.png" for n in range(20)])
    write_table("d/train.csv", [["id", "label"], *[[n, n % 2] for n in range(20)]])
    write_table("d/sample_submission.csv", [["id", "label"], *[[n, 0] for n in range(20)]])
    config = made(comp)
    assert (config.data.csv.train, config.data.csv.test) == (train, test)


def test_overrides_change_what_is_derived_from_them(comp: Comp) -> None:
    save(*[f"d/train/{name}/{n}.png" for name in ("a", "b") for n in range(12)])
    config = made(comp, "--budget", "15min", "data.folds=3", "model.name=resnet18", "model.stem=cifar")
    assert config.train.budget == "5min"
    assert not config.model.args
    config = made(comp, "--budget", "15min", "data.folds=none", "--force")
    assert (config.train.budget, config.data.folds) == ("15min", None)


def test_missing_and_repeated_images_are_named(comp: Comp) -> None:
    save(*[f"d/train/{n}.png" for n in range(19)])
    rows = [[n, n % 2] for n in range(20)]
    write_table("d/train.csv", [["id", "label"], *rows])
    Path("d/README.txt").write_text("")
    result = comp("init", "d")
    assert result.code == 2
    assert "1 of 20 ids have no image" in result.err
    write_table("d/train.csv", [["id", "label"], *rows[:19], rows[3]])
    result = comp("init", "d")
    assert result.code == 2
    assert "1 duplicate ids, first '3'" in result.err


def test_a_sample_without_its_images_is_said(comp: Comp) -> None:
    save(*[f"d/train/{n}.png" for n in range(20)])
    write_table("d/train.csv", [["id", "label"], *[[n, n % 2] for n in range(20)]])
    write_table("d/sample_submission.csv", [["id", "label"], *[[n + 50, 0] for n in range(5)]])
    assert any("data.csv.test" in guess for guess in json.loads(comp("init", "d", "--json").out)["guessed"])


def test_a_guess_is_said(comp: Comp) -> None:
    save(*[f"d/train/{n}.png" for n in range(20)])
    write_table("d/train.csv", [["id", "kind", "colour"], *[[n, n % 2, n % 4] for n in range(20)]])
    guesses = json.loads(comp("init", "d", "--json").out)["guessed"]
    assert any("data.csv.label_column" in guess and "'kind'" in guess and "'colour'" in guess for guess in guesses)
    assert any("--metric" in guess for guess in guesses)


def test_local_weights_are_used_where_they_lie(comp: Comp) -> None:
    import timm
    from safetensors.torch import save_file

    save(*[f"d/train/{name}/{n}.png" for name in ("a", "b") for n in range(5)], side=64)
    Path("d/weights").mkdir()
    save_file(timm.create_model("tf_efficientnet_lite0").state_dict(), "d/weights/tf_efficientnet_lite0.safetensors")
    config = made(comp, "--preset", "fast")
    assert (config.model.name, config.model.pretrained) == ("tf_efficientnet_lite0", True)


def test_all_local_weights_are_looked_for_and_named_where_there_are_none(comp: Comp) -> None:
    import timm
    from safetensors.torch import save_file

    save(*[f"d/train/{name}/{n}.png" for name in ("a", "b") for n in range(5)], side=64)
    for preset in ("fast", "good", "best"):
        result = comp("init", "d", "--preset", preset, "--force")
        assert "from scratch: no tf_efficientnet_lite0.safetensors in d/weights or data/weights" in result.out
    Path("data/weights").mkdir(parents=True)
    save_file(timm.create_model("resnet18").state_dict(), "data/weights/resnet18.safetensors")
    config = made(comp, "--force")
    assert (config.model.name, config.model.pretrained) == ("resnet18", True)
    listed = json.loads(comp("models", "resnet18", "--weights", "elsewhere", "--json").out)
    assert "file" in json.dumps(listed)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("letters", ["xy", "XY"])
def test_arrays_named_as_in_keras(comp: Comp, packed: bool, letters: str) -> None:
    x, y = letters
    draw = np.random.default_rng(0)
    arrays = {f"{x}_train": draw.integers(0, 256, (40, 16, 16, 3), np.uint8), f"{y}_train": np.arange(40) % 4}
    arrays |= {f"{x}_test": arrays[f"{x}_train"][:6]}
    Path("d").mkdir()
    if packed:
        np.savez("d/set.npz", **arrays)
    else:
        for name, array in arrays.items():
            np.save(f"d/{name}.npy", array)
    config = made(comp)
    assert (config.data.source, config.competition.suite.source) == ("arrays", "test")


def test_class_folders_below_many_others(comp: Comp) -> None:
    deep = "d/release/v2/data/images"
    save(*[f"{deep}/train/{name}/{n}.png" for name in ("ant", "bee") for n in range(8)])
    save(*[f"{deep}/test/{n}.png" for n in range(4)])
    config = made(comp)
    assert config.data.csv.train == deep[2:] + "/train"
    assert config.data.csv.test == deep[2:] + "/test"


def test_a_sample_that_lists_labels_asks_for_an_f1(comp: Comp) -> None:
    texts = ("rust", "scab", "rust scab", "healthy")
    save(*[f"d/train/{n}.png" for n in range(40)])
    save(*[f"d/test/{n + 50}.png" for n in range(4)])
    write_table("d/train.csv", [["image", "labels"], *[[f"{n}.png", texts[n % 4]] for n in range(40)]])
    write_table("d/sample_submission.csv", [["image", "labels"], *[[f"{n + 50}.png", "healthy"] for n in range(4)]])
    assert made(comp).competition.metric == "samples_f1"


def test_the_metrics_direction_is_printed(comp: Comp) -> None:
    save(*[f"d/train/{name}/{n}.png" for name in ("a", "b") for n in range(8)])
    assert "log_loss, lower is better" in comp("init", "d", "--metric", "log_loss").out
    assert "accuracy, higher is better" in comp("init", "d", "--force").out


def test_plain_validation_is_the_default_without_a_corrupted_suite(comp: Comp) -> None:
    save(*[f"d/train/{name}/{n}.png" for name in ("a", "b") for n in range(8)])
    assert made(comp).competition.ood_validation.severities == ()
    assert "ood_validation" not in Path("comp.yaml").read_text()
    for source, severities in (("corrupt_test", (1, 3, 5)), ("test", ()), ("none", ())):
        values = {"competition": {"suite": {"source": source}}}
        assert configs.from_mapping(values, "here").competition.ood_validation.severities == severities
        values["competition"]["ood_validation"] = {"severities": [2], "per_block": 7}
        assert configs.from_mapping(values, "here").competition.ood_validation.severities == (2,)


@pytest.mark.parametrize(
    ("arguments", "named", "unnamed"),
    [
        (["--metric", "map_at_9"], ["--metric: ", "map_at_5"], "label_column"),
        (["--metric", "samples_f1"], ["--metric: ", "single_label"], "label_column"),
        (["data.csv.label_column=colr"], ["data.csv.label_column", "colour"], "data.csv.table=VALUE"),
        (["data.csv.train=trian"], ["data.csv.train", "d holds train"], "label_column"),
    ],
)
def test_an_error_names_the_key_at_fault(comp: Comp, arguments: list[str], named: list[str], unnamed: str) -> None:
    save(*[f"d/train/{n}.png" for n in range(20)])
    write_table("d/train.csv", [["id", "colour"], *[[n, n % 2] for n in range(20)]])
    result = comp("init", "d", *arguments)
    assert_refused(result, *named)
    assert unnamed not in result.err


def test_one_class_and_a_damaged_archive_have_messages_of_their_own(comp: Comp) -> None:
    save(*[f"one/train/cat/{n}.png" for n in range(8)])
    assert_refused(comp("init", "one"), "one folder, cat", "two or more classes")
    Path("bad").mkdir()
    Path("bad/train.zip").write_bytes(b"PK\x03\x04 cut off")
    write_table("bad/train.csv", [["id", "label"], *[[n, n % 2] for n in range(20)]])
    assert_refused(comp("init", "bad"), "bad/train.zip")
    assert "found no training images" not in comp("init", "bad").err


def test_a_download_that_is_still_packed_or_lies_deeper_is_found_and_named(comp: Comp) -> None:
    Path("packed").mkdir()
    with zipfile.ZipFile("packed/competition.zip", "w") as archive:
        archive.writestr("train.csv", "id,label\n")
    assert_refused(comp("init", "packed"), "unpack it first: unzip packed/competition.zip -d packed/competition")
    save(*[f"deep/a/b/train/{n}.png" for n in range(8)])
    write_table("deep/a/b/train.csv", [["id", "label"], *[[n, "xy"[n % 2]] for n in range(8)]])
    assert_refused(comp("init", "deep"), "comp init deep/a/b")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["nowhere"], "nowhere"),
        (["empty"], "train.csv"),
        (["file.zip"], "unzip"),
        (["d", "--preset", "goood"], "good"),
        (["d", "--budget", "soon"], "--budget"),
        (["d", "--metric", "acuracy"], "accuracy"),
        (["d", "data.csv.nothing=1"], "data.csv.nothing"),
    ],
)
def test_what_cannot_be_described_is_refused_with_one_message(comp: Comp, arguments: list[str], named: str) -> None:
    Path("empty").mkdir()
    Path("file.zip").write_bytes(b"PK\x05\x06" + bytes(18))
    save(*[f"d/train/{name}/{n}.png" for name in ("a", "b") for n in range(5)])
    result = comp("init", *arguments)
    assert result.code == 2
    assert named in result.err
    assert "Traceback" not in result.err
    assert not Path("comp.yaml").exists()


def test_a_sample_in_the_folder_of_the_table_gives_the_ids(comp: Comp) -> None:
    save(*[f"d/deep/{part}/{n}.png" for part, rows in (("train", range(8)), ("test", range(8, 11))) for n in rows])
    write_table("d/deep/train.csv", [["file", "label"], *[[f"{n}.png", "xy"[n % 2]] for n in range(8)]])
    write_table("d/deep/sample_submission.csv", [["file", "label"], *[[f"{n}.png", "x"] for n in (10, 8, 9)]])
    result = comp("init", "d")
    assert result.code == 0, result.err
    assert yaml.safe_load(Path("comp.yaml").read_text())["data"]["csv"]["sample"] == "deep/sample_submission.csv"
    assert "10.png,x" in result.out


def test_a_wrong_budget_is_quoted(comp: Comp) -> None:
    save(*[f"d/train/{name}/{n}.png" for name in ("a", "b") for n in range(5)])
    assert_refused(comp("init", "d", "--budget", "5"), "expected a time such as 90s", "found '5'")


def test_an_existing_config_is_kept_and_no_data_are_opened_for_it(comp: Comp) -> None:
    Path("comp.yaml").write_text("mine: true\n")
    assert_refused(comp("init", "nowhere"), "comp.yaml: exists")


def test_an_existing_config_is_kept(comp: Comp) -> None:
    save(*[f"d/train/{name}/{n}.png" for name in ("a", "b") for n in range(5)])
    Path("comp.yaml").write_text("mine: true\n")
    assert comp("init", "d").code == 2
    assert yaml.safe_load(Path("comp.yaml").read_text()) == {"mine": True}
    assert comp("init", "d", "--force").code == 0
    assert "competition" in yaml.safe_load(Path("comp.yaml").read_text())


def advice(comp: Comp, *arguments: str) -> str:
    result = comp("init", "d", "--json", "--force", *arguments)
    assert result.code == 0, result.err
    return "\n".join(json.loads(result.out)["advice"])


def test_a_largest_class_of_ten_times_the_smallest_is_said_with_the_keys_to_set(comp: Comp) -> None:
    save(*[f"d/train/rare/{n}.png" for n in range(5)], *[f"d/train/common/{n}.png" for n in range(49)])
    assert advice(comp) == ""
    save(*[f"d/train/common/{n}.png" for n in range(60)])
    said = advice(comp)
    assert all(part in said for part in ("class common has 60 images", "12 times the 5 of rare", "data.sampling=sqrt"))
    assert advice(comp, "data.sampling=sqrt") == advice(comp, "train.class_weights=balanced") == ""


def test_a_budget_of_seconds_for_each_fold_is_said_with_what_to_do(comp: Comp) -> None:
    save(*[f"d/train/{name}/{n}.png" for name in ("a", "b") for n in range(10)])
    assert all(part in advice(comp, "--budget", "1min") for part in ("12s a fold", "--budget 5min", "comp run CONFIG"))
    assert advice(comp, "--budget", "5min") == advice(comp, "--budget", "30s", "data.folds=none") == ""


def test_whether_images_are_mirrored_is_a_guess_that_is_said(comp: Comp) -> None:
    save(*[f"d/train/{name}/{n}.png" for name in ("a", "b") for n in range(10)])
    assert "mirror images; for digits" in " ".join(json.loads(comp("init", "d", "--json").out)["guessed"])
    result = comp("init", "d", "--json", "--force", "augment.policy=rotation", "predict.views=none")
    assert "augment.policy" not in " ".join(json.loads(result.out)["guessed"])


def test_grey_pixels_of_a_table_are_not_mirrored_and_that_is_said(comp: Comp) -> None:
    Path("d").mkdir()
    pixels = [[n % 2, *[(n * 7 + at) % 256 for at in range(256)]] for n in range(20)]
    write_table("d/train.csv", [["label", *[f"pixel{at}" for at in range(256)]], *pixels])
    assert "must not be mirrored" in " ".join(json.loads(comp("init", "d", "--json").out)["guessed"])


def test_images_of_a_pixel_are_doubted(comp: Comp) -> None:
    save(*[f"d/train/{name}/{n}.png" for name in ("a", "b") for n in range(10)], side=1)
    assert "1 x 1 pixels" in advice(comp)


@pytest.mark.parametrize(("folds", "then"), [("3", "comp cv comp.yaml"), ("none", None)])
def test_one_fold_comes_first_and_all_of_them_then(comp: Comp, folds: str, then: str | None) -> None:
    save(*[f"d/train/{name}/{n}.png" for name in ("a", "b") for n in range(9)])
    written = json.loads(comp("init", "d", f"data.folds={folds}", "--json").out)
    assert (written["next"], written.get("then")) == ("comp run comp.yaml", then)
    lines = comp("init", "d", f"data.folds={folds}", "--force").out.splitlines()
    commands = [line.split(None, 1)[1].partition("  #")[0] for line in lines if line.startswith(("next", "then"))]
    assert commands == [command for command in (written["next"], then) if command]


def test_images_without_a_label_may_be_of_several(comp: Comp) -> None:
    save(*[f"d/train/{n}.png" for n in range(20)])
    rows = [[n, ("red", "blue", "")[n % 3]] for n in range(20)]
    write_table("d/train.csv", [["id", "label"], *rows])
    assert_refused(comp("init", "d"), "6 rows have no label, first row 4", "competition.task=multi_label")
    assert made(comp, "competition.task=multi_label").competition.task == "multi_label"


@pytest.mark.parametrize("names", [("x_train", "y_train"), ("arr_0", "arr_0")])
def test_arrays_in_an_archive_each_are_to_be_joined(comp: Comp, names: tuple[str, str]) -> None:
    Path("d").mkdir()
    np.savez("d/x_train.npz", **{names[0]: np.zeros((8, 16, 16, 3), np.uint8)})
    np.savez("d/y_train.npz", **{names[1]: np.arange(8) % 2})
    assert_refused(comp("init", "d"), "one .npz, found x_train.npz, y_train.npz", "x_train=..., y_train=...")


def test_a_metric_with_its_words_in_another_order_is_suggested(comp: Comp) -> None:
    save(*[f"d/train/{name}/{n}.png" for name in ("a", "b") for n in range(9)])
    assert_refused(comp("init", "d", "--metric", "f1_macro"), "--metric: ", "did you mean 'macro_f1'?")
