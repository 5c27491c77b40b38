"""`comp data show` and `check`: planted problems are reported, and clean data pass."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from comp import config as configs
from comp.data import inspection, quality
from comp.data.splits import Split
from comp.runtime.progress import quiet
from tests.support.commands import REPOSITORY, Result
from tests.support.patients import patients_config, write_patients

Comp = Callable[..., Result]


def photographs(count: int, size: int = 32) -> NDArray[np.uint8]:
    """Return smooth random pictures [N, size, size, 3], all different."""
    generator = np.random.default_rng(7)
    coarse = generator.integers(0, 256, (count, 6, 6, 3), dtype=np.uint8)
    return np.stack(
        [np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC)) for image in coarse]
    )


def write_photographs(train: int = 160, test: int = 40) -> None:
    """Replace the images of `data/` by photographs; labels stay 0 1 2 3 0 1 ..."""
    images = photographs(train + test)
    np.save("data/train_images.npy", images[:train])
    np.save("data/test_images.npy", images[train:])


def change(name: str, rows: Any, values: Any) -> None:
    """Write values into rows of one of the arrays of `data/`."""
    array = np.load(f"data/{name}.npy")
    array[rows] = values
    np.save(f"data/{name}.npy", array)


def load(name: str) -> NDArray[Any]:
    """Return one of the arrays of `data/`."""
    return np.load(f"data/{name}.npy")  # type: ignore[no-any-return]


def check_data(comp: Comp, code: int, *overrides: str) -> dict[str, dict[str, Any]]:
    """Check small.yaml and return the findings by what was checked."""
    result = comp("data", "check", "small.yaml", "--json", *overrides)
    assert result.code == code, result.err
    assert "Traceback" not in result.err
    assert ("a training on these data would mislead" in result.err) == (code == 2)
    return {finding["what"]: finding for finding in json.loads(result.out)}


def total(findings: dict[str, dict[str, Any]], part: str) -> int:
    """Return the sum of counts of findings that have `part` in their name."""
    return sum(row["count"] for what, row in findings.items() if part in what)


def test_a_clean_set_passes(workplace: Path, comp: Comp) -> None:
    for write in (lambda: None, write_photographs):
        write()
        findings = check_data(comp, 0)
        assert {row["verdict"] for row in findings.values()} == {"ok"}
    assert "near duplicates" in comp("data", "check", "small.yaml").out


def test_the_quickstarts_digits_pass(comp: Comp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert comp("data", "check", REPOSITORY / "configs/quickstart.yaml").code == 0


def test_an_exact_copy_of_a_training_image_in_the_test_misleads(workplace: Path, comp: Comp) -> None:
    write_photographs()
    change("test_images", [5], load("train_images")[[1]])
    change("test_labels", [5], 1)
    findings = check_data(comp, 2, "data.validation=none")
    row = findings["test images that are in train too"]
    assert (row["count"], row["verdict"], row["examples"]) == (1, "misleads", ["test_5 = train_1"])
    assert total(findings, "under another label") == total(findings, "under different labels") == 0


def test_copies_that_a_random_split_separates_mislead(workplace: Path, comp: Comp) -> None:
    write_photographs()
    change("train_images", slice(80, 160), load("train_images")[:80])  # 80 is a multiple of 4: labels agree
    findings = check_data(comp, 2)
    leaked = findings["val images that are in train too"]
    assert leaked["verdict"] == "misleads"
    assert 10 < leaked["count"] <= 32
    assert total(findings, "exact copies within") + leaked["count"] == 80
    assert total(findings, "another label") == 0


def test_copies_within_the_training_images_are_a_note(workplace: Path, comp: Comp) -> None:
    write_photographs()
    change("train_images", [4, 8], load("train_images")[[0, 0]])
    findings = check_data(comp, 0, "data.validation=none")
    row = findings["exact copies within train"]
    assert (row["count"], row["verdict"]) == (2, "note")
    assert row["examples"] == ["train_4 = train_0", "train_8 = train_0"]


CHANGED: dict[str, Callable[[NDArray[np.uint8]], NDArray[Any]]] = {
    "brighter": lambda image: image * 0.8 + 40,
    "noisy": lambda image: image + np.random.default_rng(0).normal(0, 8, image.shape),
    "one level off": lambda image: np.where(image < 255, image + 1.0, 254),
    "recompressed": lambda image: np.asarray(Image.fromarray(image).resize((24, 24)).resize((32, 32))),
}


@pytest.mark.parametrize("change_name", CHANGED)
def test_near_duplicates_across_train_and_test_are_found(workplace: Path, comp: Comp, change_name: str) -> None:
    write_photographs()
    images = load("train_images")
    copies = np.stack([np.clip(CHANGED[change_name](image), 0, 255).astype(np.uint8) for image in images[:4]])
    change("test_images", slice(0, 4), copies)  # labels agree
    findings = check_data(comp, 2, "data.validation=none")  # a tenth of the test
    row = findings["near duplicates: test images that are in train too"]
    assert (row["count"], row["verdict"]) == (4, "misleads")
    assert "train_0 ~ test_0" in row["examples"]
    assert findings["test images that are in train too"]["count"] == 0


def test_a_single_near_duplicate_in_the_test_is_a_note(workplace: Path, comp: Comp) -> None:
    write_photographs()
    change("test_images", [0], np.clip(load("train_images")[[0]], 1, 250))
    row = check_data(comp, 0, "data.validation=none")["near duplicates: test images that are in train too"]
    assert (row["count"], row["verdict"]) == (1, "note")


def test_similar_images_of_one_kind_are_not_near_duplicates() -> None:
    """Thin lines that differ slightly: each has many similar neighbours, as handwritten digits do."""
    generator = np.random.default_rng(0)
    images = np.zeros((500, 28, 28, 1), np.uint8)
    for image, top in zip(images, generator.uniform(-2, 2, 500), strict=True):
        across = np.arange(28) - (13 + top * np.linspace(-1, 1, 28))[:, None]
        image[..., 0] = 255 * np.clip(1.5 - np.abs(across), 0, 1)
    split = Split("train", images, np.arange(500).astype(np.str_), np.zeros(500, np.int64))
    copies = quality.find_copies([split], quiet)
    thumbnails = quality._make_thumbnails(split)
    alike = np.triu(thumbnails @ thumbnails.T >= quality.SMALLEST_CORRELATION, 1).sum()
    assert alike > 5000
    assert len(copies.near) < 0.1 * alike


def test_conflicting_labels_of_copies_mislead(workplace: Path, comp: Comp) -> None:
    write_photographs()
    change("train_images", [1], load("train_images")[[0]])
    change("train_images", [7], np.clip(load("train_images")[[10]], 2, 253))
    findings = check_data(comp, 2, "data.validation=none")
    row = findings["exact copies under another label"]
    assert (row["count"], row["verdict"], row["examples"]) == (1, "misleads", ["train_1 = train_0"])
    assert findings["near duplicates under different labels, pairs"]["count"] == 1


def test_an_empty_class_misleads(workplace: Path, comp: Comp) -> None:
    Path("data/classes.txt").write_text("a\nb\nc\nd\nnever seen\n")
    findings = check_data(comp, 2)
    for split in ("train", "val", "test"):
        row = findings[f"classes without an image in {split}"]
        assert (row["count"], row["verdict"], row["examples"]) == (1, "misleads", ["never seen"])


def test_a_class_that_a_fold_lacks_misleads(workplace: Path, comp: Comp) -> None:
    change("test_labels", load("test_labels") == 2, 1)
    findings = check_data(comp, 2)
    assert findings["classes without an image in test"]["examples"] == ["2"]
    assert findings["classes without an image in train"]["verdict"] == "ok"


VAL, SELECT = "classes without an image in val", "class imbalance (largest/smallest)"


@pytest.mark.parametrize(
    ("what", "overrides", "advice", "left_out"),
    [
        (VAL, ["data.folds=3"], "fewer folds: data.folds, now 3", "data.validation"),
        (VAL, ["data.folds=2"], "remove the classes", "hold out"),
        (VAL, ["data.validation=0.1"], "hold out more (data.validation, now 0.1)", "folds"),
        (SELECT, ["competition.metric=accuracy"], "select by balanced_accuracy or macro_f1", "train.select"),
        (SELECT, ["competition.metric=macro_f1"], "add images of the other classes", "select by"),
        (SELECT, ["competition.metric=log_loss"], "add images of the other classes", "select by"),
        (SELECT, ["competition.metric=macro_f1", "train.select=val_accuracy"], "macro_f1 (train.select", "balanced"),
    ],
)
def test_the_advice_names_the_value_that_is_set_and_is_not_what_is_done_already(
    workplace: Path, comp: Comp, what: str, overrides: list[str], advice: str, left_out: str
) -> None:
    labels = np.zeros(160, np.int64)
    labels[:3] = [1, 2, 3]
    np.save("data/train_labels.npy", labels)
    shown = check_data(comp, 2, *overrides)[what]["mend"]
    assert advice in shown
    assert left_out not in shown


def test_groups_with_one_answer_are_counted_not_their_images(tmp_path: Path) -> None:
    write_patients(tmp_path)
    config = configs.from_mapping(patients_config(tmp_path), "here")
    dataset = inspection.open_without_suite(config)
    findings = {finding.what: finding for finding in quality.find_problems(dataset, config)}
    assert findings["classes without a group in train"].count == 0
    counts = dataset.train.one_per_answer().class_counts(2)
    assert findings[SELECT].count == pytest.approx(max(counts) / min(counts), abs=0.01)
    assert "add groups of the other classes" in findings[SELECT].mend


@pytest.mark.parametrize(
    ("of_others", "ratio", "code", "verdict"), [(39, 1.1, 0, "ok"), (8, 17, 0, "note"), (2, 77, 2, "misleads")]
)
def test_class_imbalance_is_a_note_and_misleads_if_one_class_dominates(
    workplace: Path, comp: Comp, of_others: int, ratio: float, code: int, verdict: str
) -> None:
    labels = np.zeros(160, np.int64)
    labels[: 3 * of_others] = np.repeat([1, 2, 3], of_others)
    np.save("data/train_labels.npy", labels)
    (row,) = [
        row
        for what, row in check_data(comp, code, "data.validation=none").items()
        if what.startswith("class imbalance")
    ]
    assert (row["verdict"], row["count"]) == (verdict, ratio)


def test_images_of_one_colour_are_noted_and_have_no_near_duplicates(workplace: Path, comp: Comp) -> None:
    write_photographs()
    change("train_images", [0, 4], np.array([10, 200])[:, None, None, None])
    findings = check_data(comp, 0, "data.validation=none")
    assert findings["images of one colour"]["count"] == 2
    assert total(findings, "near duplicates") == 0


def test_unreadable_files_mislead_unless_they_are_skipped(workplace: Path) -> None:
    config = configs.load("small.yaml")
    dataset = inspection.open_without_suite(config)
    broken = inspection.Dataset(**{**vars(dataset), "unreadable": ("a.png", "b.png")})
    verdicts = {skip: quality.find_problems(broken, config, skip_bad=skip)[0].verdict for skip in (False, True)}
    assert verdicts == {False: "misleads", True: "note"}
    assert quality.find_problems(broken, config)[0].examples == ("a.png", "b.png")


@settings(max_examples=25)
@given(shift=st.integers(0, 12), grey=st.booleans())
def test_copies_are_found_in_any_row(shift: int, grey: bool) -> None:
    images = photographs(40)[..., :1] if grey else photographs(40)
    first, second = images[:25], images[25:].copy()
    second[shift] = first[2 * shift]
    second[14] = np.clip(first[1], 3, 252)
    splits = [
        Split(name, part, np.arange(len(part)).astype(np.str_), None)
        for name, part in zip("ab", (first, second), strict=True)
    ]
    copies = quality.find_copies(splits, quiet)
    assert copies.group[25 + shift] == copies.group[2 * shift]
    assert len(copies.first) == 39
    assert copies.first[copies.near].tolist() == [[1, 39]]
    assert np.array_equal(quality.gather_pixels(splits, np.array([1, 39])), images_at(splits, 1, 14))


def images_at(splits: list[Split], first: int, second: int) -> NDArray[np.uint8]:
    """Return an image of the first split and one of the second."""
    return np.stack([splits[0].images[first], splits[1].images[second]])


def test_show_prints_counts_sizes_and_statistics(workplace: Path, comp: Comp) -> None:
    result = comp("data", "show", "small.yaml", "--json", "--out", "pictures")
    assert result.code == 0, result.err
    summary = json.loads(result.out)
    assert summary["classes"] == 4
    assert {name: row["images"] for name, row in summary["splits"].items()} == {"train": 128, "val": 32, "test": 40}
    assert summary["splits"]["test"]["shape"] == [3, 32, 32]
    assert summary["splits"]["test"]["labels"] == {str(label): 10 for label in range(4)}
    images = load("test_images") / 255
    assert summary["splits"]["test"]["mean"] == pytest.approx(images.mean((0, 1, 2)), abs=1e-4)
    assert summary["splits"]["test"]["std"] == pytest.approx(images.std((0, 1, 2)), abs=1e-4)
    assert summary["pictures"] == ["pictures/labels.png", "pictures/images.png"]


def test_show_draws_the_pictures_that_it_names(workplace: Path, comp: Comp) -> None:
    result = comp("data", "show", "small.yaml", "--augment")
    assert result.code == 0, result.err
    folder = Path("runs/data/small")
    assert sorted(path.name for path in folder.iterdir()) == ["augmented.png", "images.png", "labels.png"]
    pictures = {path.name: np.asarray(Image.open(path)) for path in folder.iterdir()}
    plain, augmented = pictures["images.png"].shape, pictures["augmented.png"].shape
    assert plain[1] == augmented[1]
    assert plain[0] < augmented[0]  # a mixed image has a line for each of its classes
    assert all(len(np.unique(picture)) > 10 for picture in pictures.values())
    assert str(folder / "labels.png") in result.out


def test_show_and_check_work_without_the_distortion_files(workplace: Path, comp: Comp) -> None:
    overrides = ["competition.suite.source=distortion_files", "competition.suite.path=nowhere"]
    assert comp("data", "show", "small.yaml", *overrides).code == 0
    assert comp("data", "check", "small.yaml", *overrides).code == 0


def test_class_names_may_hold_anything(workplace: Path, comp: Comp) -> None:
    Path("data/classes.txt").write_text("$x^$\n50 % {off}\nTürkçe & co\n" + "long " * 40 + "\n", encoding="utf-8")
    result = comp("data", "show", "small.yaml", "--out", "pictures")
    assert result.code == 0, result.err
    assert "50 % {off}" in result.out


def test_augmented_pictures_are_mixed_where_training_mixes(workplace: Path, comp: Callable[..., Result]) -> None:
    assert comp("data", "show", "small.yaml", "--augment", "augment.policy=none", "augment.mixup=0.4").code == 0
    folder = next(Path("runs").rglob("augmented.png")).parent
    assert (folder / "augmented.png").read_bytes() != (folder / "images.png").read_bytes()
