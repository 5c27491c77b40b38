"""Folders, archives and tables in all common layouts: every image and row counts and has its label."""

import contextlib
import gzip
import json
import os
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from comp.config import DataConfig
from comp.data.images import ImageFiles
from comp.data.sources import TESTS, Source, folders, open_source
from comp.data.splits import Split
from comp.results import prediction_files
from comp.results.runs import list_runs
from comp.runtime.errors import ConfigError, DataError
from comp.runtime.progress import quiet
from comp.submission import csv_io
from tests.support.commands import Result
from tests.support.configs import write_config
from tests.support.photographs import COLOURS, photograph, photographs_config, write_folders, write_kaggle

Comp = Callable[..., Result]
NAMES = tuple(COLOURS)


def opened(root: Path, source: str, **settings: Any) -> Source:
    values = {"source": source, "root": str(root), "image_size": 24, "download": False, **settings}
    return open_source(DataConfig.model_validate(values))


def colours_seen(split: Split) -> list[str]:
    """Return the class of each picture by its colour: the truth, whatever the reading made of names and labels."""
    means = np.asarray(split.images).mean((1, 2))
    distances = ((means[:, None] - np.array(list(COLOURS.values()))) ** 2).sum(-1)
    return [NAMES[number] for number in distances.argmin(1)]


def labels_are_true(source: Source, count: int) -> None:
    split = source.train
    assert split.labels is not None
    assert len(split) == count
    assert colours_seen(split) == [source.classes[int(label)] for label in split.labels]


def pictures_of_test(source: Source) -> list[tuple[str, bytes]]:
    """Return the test's ids, each with its pixels."""
    assert source.test is not None
    images = np.asarray(source.test.images)
    return [(key, image.tobytes()) for key, image in zip(source.test.ids.tolist(), images, strict=True)]


def moved_below(folder: Path, below: Callable[[Path], str]) -> None:
    """Move every image of a folder into another below it, named by its path."""
    for path in sorted(file for file in folder.rglob("*") if file.is_file()):
        target = path.parent / below(path) / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)


def zipped(folder: Path, *, inside: str = "") -> None:
    """Replace a folder by an archive of its name, whose files lie in `inside`."""
    with zipfile.ZipFile(f"{folder}.zip", "w") as archive:
        for path in sorted(file for file in folder.rglob("*") if file.is_file()):
            name = path.relative_to(folder).as_posix()
            archive.write(path, f"{inside}{name}")
            archive.writestr(f"__MACOSX/{inside}{name}", b"\0")
    shutil.rmtree(folder)


# --- folders and archives


def nested(root: Path) -> None:
    """`train/train/<class>/`, `test/test/`."""
    for name in ("train", "test"):
        (root / name).rename(root / "inner")
        (root / name).mkdir()
        (root / "inner").rename(root / name / name)


def deeper(root: Path) -> None:
    """`train/<class>/images/`, as Tiny-ImageNet has it."""
    for name in NAMES:
        moved_below(root / "train" / name, lambda path: "images")


def parts(root: Path) -> None:
    for name in NAMES:
        moved_below(root / "train" / name, lambda path: f"part_{int(path.stem) % 2}")


def linked(root: Path) -> None:
    (root / "train/bee").rename(root / "elsewhere")
    (root / "train/bee").symlink_to(root / "elsewhere", target_is_directory=True)
    (root / "train/ant/again").symlink_to(root / "train/ant", target_is_directory=True)  # leads back: once is enough


def archives(root: Path) -> None:
    zipped(root / "train", inside="train/")
    zipped(root / "test")


def left_by_others(root: Path) -> None:
    for folder in (
        root / "train/ant/.ipynb_checkpoints",
        root / "train/__MACOSX/ant",
        root / "test/.ipynb_checkpoints",
    ):
        folder.mkdir(parents=True)
        photograph(0, COLOURS["bee"]).save(folder / "000-checkpoint.png")
    (root / "train/ant/Thumbs.db").write_bytes(b"\0")


@pytest.mark.parametrize("arrange", [nested, deeper, parts, linked, archives, left_by_others])
def test_an_image_folder_is_read_in_every_layout(tmp_path: Path, arrange: Callable[[Path], None]) -> None:
    write_folders(tmp_path, train=6, val=0, test=5)
    plain = opened(tmp_path, "image_folder")
    test = pictures_of_test(plain)
    arrange(tmp_path)
    loaded = opened(tmp_path, "image_folder")
    assert loaded.classes == plain.classes
    labels_are_true(loaded, 18)
    assert pictures_of_test(loaded) == test


@pytest.mark.parametrize("arrange", [nested, archives])
def test_ids_of_an_image_folder_do_not_depend_on_packing(tmp_path: Path, arrange: Callable[[Path], None]) -> None:
    write_folders(tmp_path, train=3, val=0, test=3)
    before = opened(tmp_path, "image_folder").train.ids.tolist()
    arrange(tmp_path)
    assert opened(tmp_path, "image_folder").train.ids.tolist() == before


def test_skipped_files_are_counted(tmp_path: Path, comp: Comp) -> None:
    write_folders(tmp_path / "data", train=6, val=0, test=5)
    left_by_others(tmp_path / "data")
    photograph(1, COLOURS["ant"]).save(tmp_path / "data/train/stray.png")
    path = write_config(tmp_path / "small.yaml", photographs_config(tmp_path / "data", "image_folder"))
    for verb in (("data", "show"), ("data", "check"), ("data", "prepare")):
        result = comp(*verb, path)
        text = " ".join((result.err + result.out).split())
        assert re.search(r"train: left out of \S+: 2 images in hidden .* 1 file that is no image", text), (verb, text)
        assert "test: left out of" in text, verb
        assert "train: 1 image of" in text, verb


def by_part(root: Path) -> None:
    """Bare ids in the table, numbered parts on the disk."""
    moved_below(root / "train", lambda path: f"images_{int(path.stem) % 3:03d}")


def with_folder(root: Path) -> None:
    rewrite(root / "train.csv", lambda key: f"train/{key}.jpg")


def with_dot(root: Path) -> None:
    rewrite(root / "train.csv", lambda key: f"./{key}.jpg")


def with_back_slashes(root: Path) -> None:
    moved_below(root / "train", lambda path: f"a{int(path.stem) % 2}")
    rewrite(root / "train.csv", lambda key: f"train\\a{int(key) % 2}\\{key}.jpg")


def with_other_case(root: Path) -> None:
    rewrite(root / "train.csv", lambda key: f"{key}.JPG")


def with_data_folder(root: Path) -> None:
    rewrite(root / "train.csv", lambda key: f"{root.name}/train/{key}.jpg")


def in_train_train(root: Path) -> None:
    nested(root)
    with_folder(root)


def in_archives(root: Path) -> None:
    zipped(root / "train", inside="train/")
    zipped(root / "test", inside="some/where/")


def rewrite(path: Path, change: Callable[[str], str]) -> None:
    header, *rows = path.read_text().splitlines()
    cells = [row.split(",") for row in rows]
    path.write_text("\n".join([header, *(f"{change(key)},{label}" for key, label in cells)]) + "\n")


@pytest.mark.parametrize(
    "arrange",
    [by_part, with_folder, with_dot, with_back_slashes, with_other_case, with_data_folder, in_train_train, in_archives],
)
def test_one_rule_finds_the_file_of_an_id(tmp_path: Path, arrange: Callable[[Path], None]) -> None:
    write_kaggle(tmp_path, train=12)
    plain = opened(tmp_path, "csv_images")
    train, test = np.asarray(plain.train.images), pictures_of_test(plain)
    arrange(tmp_path)
    loaded = opened(tmp_path, "csv_images")
    labels_are_true(loaded, 12)
    assert (np.asarray(loaded.train.images) == train).all()
    assert pictures_of_test(loaded) == test


@settings(max_examples=25)
@given(st.integers(0, 10_000))
def test_matching_agrees_with_a_search_of_every_path(seed: int) -> None:
    """Whatever the folders are, an id finds the one file whose path ends in it, or is refused."""
    from tempfile import TemporaryDirectory

    from comp.data.sources.listing import Listing

    draw = np.random.default_rng(seed)
    with TemporaryDirectory() as folder:
        root = Path(folder, "train")
        paths = set()
        for _ in range(int(draw.integers(1, 8))):
            steps = [str(draw.choice(["a", "b", "train"])) for _ in range(int(draw.integers(0, 3)))]
            paths.add("/".join([*steps, f"{draw.integers(0, 3)}.{draw.choice(['png', 'jpg'])}"]))
        for path in paths:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).touch()
        listing = Listing(root)
        for path in paths:
            steps = path.split("/")
            for start in range(len(steps)):
                for key in ("/".join(steps[start:]), "/".join(steps[start:]).rpartition(".")[0]):
                    fitting = {
                        other for other in paths if f"/{other}".endswith((f"/{key}", f"/{key}.png", f"/{key}.jpg"))
                    }
                    if len(fitting) > 1 and key not in paths:
                        with contextlib.suppress(DataError):
                            (located,) = listing.locate([key])
                            assert located is not None
                            assert located.relative_to(root).as_posix() in fitting, (paths, key)
                        continue
                    (located,) = listing.locate([key])
                    assert located is not None
                    assert located.relative_to(root).as_posix() in fitting, (paths, key)


def test_ids_that_fit_several_files_or_share_one_are_refused(tmp_path: Path) -> None:
    write_kaggle(tmp_path, train=12)
    by_part(tmp_path)
    shutil.copytree(tmp_path / "train/images_000", tmp_path / "train/images_009")
    with pytest.raises(DataError, match=r"'000' .*'images_000/000.jpg', 'images_009/000.jpg'"):
        opened(tmp_path, "csv_images")
    shutil.rmtree(tmp_path / "train/images_009")
    text = (tmp_path / "train.csv").read_text()
    (tmp_path / "train.csv").write_text(text + "000.jpg,ant\n")
    with pytest.raises(DataError, match=r"000.jpg: ids '000' and '000.jpg'"):
        opened(tmp_path, "csv_images")


def test_an_archive_is_read_in_place_and_a_changed_one_is_noticed(tmp_path: Path) -> None:
    write_kaggle(tmp_path, train=12)
    in_archives(tmp_path)
    os.chmod(tmp_path, 0o555)  # as Kaggle's input is: nothing can be unpacked beside
    before = opened(tmp_path, "csv_images").train
    assert isinstance(before.images, ImageFiles)
    pixels = np.asarray(before.images)
    os.chmod(tmp_path, 0o755)
    with zipfile.ZipFile(tmp_path / "train.zip") as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    picture = tmp_path / "other.jpg"
    photograph(99, COLOURS["cat"]).save(picture)
    content["train/000.jpg"] = picture.read_bytes()
    with zipfile.ZipFile(tmp_path / "train.zip", "w") as archive:
        for name, body in content.items():
            archive.writestr(name, body)
    after = opened(tmp_path, "csv_images").train
    assert isinstance(after.images, ImageFiles)
    assert after.images.content != before.images.content
    assert (np.asarray(after.images)[1:] == pixels[1:]).all()
    assert (np.asarray(after.images)[0] != pixels[0]).any()


def damaged_zip(root: Path) -> None:
    in_archives(root)
    (root / "train.zip").write_bytes((root / "train.zip").read_bytes()[:-50])


def tar_beside(root: Path) -> None:
    shutil.rmtree(root / "train")
    (root / "train.tar.gz").write_bytes(b"\0")


def misspelt(root: Path) -> None:
    (root / "train").rename(root / "trian")


@pytest.mark.parametrize(
    ("arrange", "message"),
    [
        (damaged_zip, "train.zip: .*ZIP"),
        (tar_beside, r"train.tar.gz: .*\(data.csv.train\)"),
        (misspelt, r"train: .*train.zip.*test, trian.*did you mean 'trian'"),
    ],
)
def test_missing_images_are_reported(tmp_path: Path, arrange: Callable[[Path], None], message: str) -> None:
    write_kaggle(tmp_path, train=12)
    arrange(tmp_path)
    with pytest.raises(DataError, match=message):
        opened(tmp_path, "csv_images")


def test_common_suffixes_are_images(tmp_path: Path) -> None:
    write_kaggle(tmp_path, train=12)
    endings = [".jpeg", ".jpe", ".jfif", ".JPG"]
    for number, path in enumerate(sorted((tmp_path / "train").glob("*.jpg"))):
        path.rename(path.with_suffix(endings[number % 4]))
    labels_are_true(opened(tmp_path, "csv_images"), 12)


def test_avif_is_read_where_pillow_reads_it(tmp_path: Path) -> None:
    write_kaggle(tmp_path, train=12)
    path = tmp_path / "train/000.jpg"
    try:
        Image.open(path).save(path.with_suffix(".avif"))
    except (KeyError, OSError, ValueError):
        pytest.skip("this Pillow has no AVIF")
    path.unlink()
    labels_are_true(opened(tmp_path, "csv_images"), 12)


# --- labels in file names


def test_labels_in_file_names(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    for number in range(12):
        name = NAMES[number % 3]
        photograph(number, COLOURS[name]).save(tmp_path / f"train/{name}.{number}.jpg")
    (tmp_path / "test").mkdir()
    for number in range(4):
        photograph(50 + number, COLOURS["bee"]).save(tmp_path / f"test/{number + 1}.jpg")
    loaded = opened(tmp_path, "image_folder", label_pattern="^([a-z]+)[.]")
    assert loaded.classes == NAMES
    labels_are_true(loaded, 12)
    assert loaded.test is not None
    assert loaded.test.labels is None
    assert loaded.test.ids.tolist() == ["1", "2", "3", "4"]
    with pytest.raises(DataError, match=r"label_pattern: '\^\(cat\)' .* 8 of 12 .*'ant.0.jpg'"):
        opened(tmp_path, "image_folder", label_pattern="^(cat)")
    with pytest.raises(DataError, match=r"train: .*<class>.*data\.label_pattern.*csv_images"):
        opened(tmp_path, "image_folder")
    write_kaggle(tmp_path / "other")
    with pytest.raises(ConfigError, match=r"label_pattern: csv_images .*image_folder"):
        opened(tmp_path / "other", "csv_images", label_pattern="^(cat)")


@pytest.mark.parametrize(
    ("pattern", "message"), [("^(cat", "expected a regular expression"), ("cat", "one group"), ("(a)(b)", "one group")]
)
def test_a_pattern_without_one_group_is_refused(tmp_path: Path, comp: Comp, pattern: str, message: str) -> None:
    config = photographs_config(tmp_path, "image_folder")
    config["data"]["label_pattern"] = pattern
    result = comp("config", "check", write_config(tmp_path / "small.yaml", config))
    assert result.code == 2
    assert "label_pattern" in result.err
    assert message in result.err


@pytest.mark.slow
def test_a_pattern_that_never_ends_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "_MATCH_SECONDS", 1)
    (tmp_path / "train").mkdir()
    photograph(1, COLOURS["bee"]).save(tmp_path / f"train/{'a' * 60}.jpg")
    with pytest.raises(DataError, match=r"data\.label_pattern: .* is not matched with 1 file names after 1 s"):
        opened(tmp_path, "image_folder", label_pattern="^((?:a|aa)+)+$")


@pytest.mark.parametrize("labels", [("\u00e9", "e\u0301"), ("b \u00e9", "e\u0301 b")], ids=["one", "several"])
def test_labels_that_look_alike_are_refused(tmp_path: Path, labels: tuple[str, str]) -> None:
    write_kaggle(tmp_path)
    rows = [row.split(",")[0] for row in (tmp_path / "train.csv").read_text().splitlines()]
    cells = [labels[number % 2] if number < 4 else "b" for number in range(len(rows) - 1)]
    lines = [f"{rows[0]},label", *(f"{key},{cell}" for key, cell in zip(rows[1:], cells, strict=True))]
    (tmp_path / "train.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    task = "multi_label" if " " in labels[0] else "auto"
    with pytest.raises(DataError, match=r"column 'label': 'e\\u0301' and '\\xe9' look alike \(\u00e9\)"):
        open_source(DataConfig(source="csv_images", root=str(tmp_path)), quiet, task)


@pytest.mark.parametrize("zipped", [False, True], ids=["folder", "zip"])
@pytest.mark.parametrize("same", [False, True], ids=["other files", "the same file"])
def test_class_folders_that_look_alike_are_refused(tmp_path: Path, zipped: bool, same: bool) -> None:
    for number, name in enumerate(("\u00e9", "e\u0301", "b")):
        (tmp_path / "train" / name).mkdir(parents=True)
        file = "1.jpg" if same else f"{number}.jpg"
        photograph(number, COLOURS["bee"]).save(tmp_path / "train" / name / file)

    def pack() -> None:
        if zipped:
            shutil.make_archive(str(tmp_path / "train"), "zip", tmp_path / "train")
            (tmp_path / "train").rename(tmp_path / "unpacked")

    pack()
    names = r"'e\\u0301/1.jpg' and '\\xe9/1.jpg'" if same else r"'e\\u0301' and '\\xe9'"
    with pytest.raises(DataError, match=rf"(class folders|files): {names} look alike"):
        opened(tmp_path, "image_folder")
    if zipped:
        (tmp_path / "unpacked").rename(tmp_path / "train")
    shutil.rmtree(tmp_path / "train/\u00e9")
    pack()
    assert opened(tmp_path, "image_folder").classes == ("b", "\u00e9")


def test_two_images_whose_names_look_alike_are_refused(tmp_path: Path) -> None:
    write_kaggle(tmp_path)
    image = next(path for path in (tmp_path / "train").rglob("*") if path.is_file())
    for name in ("\u00e9", "e\u0301"):
        shutil.copy(image, image.with_name(f"{name}{image.suffix}"))
    with pytest.raises(DataError, match=r"files: .* look alike"):
        opened(tmp_path, "csv_images")


# --- images that are missing or damaged


def empty_test_image(root: Path) -> None:
    (root / "test/004.jpg").write_bytes(b"")


def missing_test_image(root: Path) -> None:
    (root / "test/004.jpg").unlink()


def damaged_in_its_archive(root: Path) -> None:
    zipped(root / "test")
    content = bytearray((root / "test.zip").read_bytes())
    with zipfile.ZipFile(root / "test.zip") as archive:
        start = archive.getinfo("004.jpg").header_offset
    content[start + 200] ^= 0xFF
    (root / "test.zip").write_bytes(content)


@pytest.mark.parametrize("spoil", [empty_test_image, missing_test_image, damaged_in_its_archive])
def test_a_spoiled_test_image_gets_the_mean_answer(
    tmp_path: Path, comp: Comp, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Path], None]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_kaggle(tmp_path / "data")
    spoil(tmp_path / "data")
    path = write_config(tmp_path / "small.yaml", photographs_config(tmp_path / "data", "csv_images"))
    result = comp("run", path)
    assert result.code == 2
    assert "004" in result.err
    assert "data.skip_bad=true" in result.err
    assert not list(Path().glob("runs/*/*"))  # before the first step
    result = comp("run", path, "data.skip_bad=true", "predict.views=flip", "-o", "s.csv")
    assert result.code == 0, result.err
    assert re.search(r"test: 1 (row|unreadable file) .*004", " ".join(result.err.split()))
    assert comp("check", "s.csv").code == 0
    assert len(Path("s.csv").read_text().splitlines()) == 10
    (run,) = list_runs(Path("runs"))
    for name in ("suite", "suite+flip"):
        if not run.predictions_path(name).exists():
            continue
        loaded = prediction_files.load(run.predictions_path(name))
        there = loaded.ids != "004"
        shares = loaded.probabilities()
        assert shares[~there] == pytest.approx(shares[there].mean(0, keepdims=True), abs=2e-3)  # float16
    assert run.predictions_path("suite+flip").exists()


def test_training_rows_without_a_file_are_left_out_or_refused(tmp_path: Path, comp: Comp) -> None:
    write_kaggle(tmp_path / "data", train=12)
    (tmp_path / "data/train/004.jpg").unlink()
    (tmp_path / "data/train/007.jpg").write_bytes(b"no picture")
    path = write_config(tmp_path / "small.yaml", photographs_config(tmp_path / "data", "csv_images"))
    result = comp("data", "prepare", path)
    assert result.code == 2
    assert "1 of 12 ids" in result.err
    assert "'004'" in result.err
    assert "data.skip_bad=true" in result.err
    loaded = opened(tmp_path / "data", "csv_images", skip_bad=True)
    labels_are_true(loaded, 10)
    notes = json.loads(comp("data", "prepare", path, "data.skip_bad=true", "--json").out)["notes"]
    assert any(note.startswith("train: 1 row without a file is") and "'004'" in note for note in notes)
    assert any(note.startswith("train: 1 unreadable file is") for note in notes)


def test_a_folder_that_fits_no_id_at_all_is_refused_even_then(tmp_path: Path) -> None:
    write_kaggle(tmp_path, train=12)
    shutil.rmtree(tmp_path / "test")
    (tmp_path / "test").mkdir()
    photograph(0, COLOURS["ant"]).save(tmp_path / "test/other.jpg")
    with pytest.raises(DataError, match="test: 9 of 9 ids"):
        opened(tmp_path, "csv_images", skip_bad=True)


# --- tables


def semicolons(path: Path) -> None:
    path.write_text(path.read_text().replace(",", ";"))


def tabs(path: Path) -> None:
    path.write_text(path.read_text().replace(",", "\t"))


def gzipped(path: Path) -> None:
    path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()


def in_zip(path: Path) -> None:
    with zipfile.ZipFile(path.with_name(path.name + ".zip"), "w") as archive:
        archive.write(path, path.name)
        archive.writestr(f"__MACOSX/._{path.name}", b"\0")
    path.unlink()


def without_header(path: Path) -> None:
    path.write_text(path.read_text().partition("\n")[2])


def with_further_columns(path: Path) -> None:
    header, *rows = path.read_text().splitlines()
    path.write_text("\n".join([f"width,{header},note", *(f"32,{row},x" for row in rows)]) + "\n")


def as_parquet(path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    header, *rows = [line.split(",") for line in path.read_text().splitlines()]
    columns = dict(zip(header, map(list, zip(*rows, strict=True)), strict=True))
    parquet.write_table(pyarrow.table(columns), path.with_suffix(".parquet"))
    path.unlink()


@pytest.mark.parametrize(
    "change", [semicolons, tabs, gzipped, in_zip, without_header, with_further_columns, as_parquet]
)
def test_a_table_is_read_however_it_was_saved(tmp_path: Path, change: Callable[[Path], None]) -> None:
    write_kaggle(tmp_path, train=12)
    plain = opened(tmp_path, "csv_images")
    change(tmp_path / "train.csv")
    loaded = opened(tmp_path, "csv_images")
    labels_are_true(loaded, 12)  # no row was lost
    assert loaded.classes == plain.classes
    if change is without_header:
        assert any("train.csv: " in note and "header" in note and "'000'" in note for note in loaded.notes)
    if change is with_further_columns:
        assert any("train.csv: 2 columns " in note and "width, note" in note for note in loaded.notes)


def test_a_sample_without_a_header_is_refused(tmp_path: Path) -> None:
    write_kaggle(tmp_path, train=12)
    without_header(tmp_path / "sample_submission.csv")
    with pytest.raises(DataError, match=r"sample_submission.csv: .*header"):
        opened(tmp_path, "csv_images")


def test_an_image_on_two_rows_is_refused_with_the_fix(tmp_path: Path) -> None:
    write_kaggle(tmp_path, train=12)
    (tmp_path / "train.csv").write_text((tmp_path / "train.csv").read_text() + "003,bee\n")
    with pytest.raises(DataError, match=r"1 duplicate ids, first '003'; .*data\.csv\.separator"):
        opened(tmp_path, "csv_images")


def test_a_missing_table_names_those_that_are_there(tmp_path: Path) -> None:
    write_kaggle(tmp_path, train=12)
    (tmp_path / "train.csv").rename(tmp_path / "train_labels.csv")
    with pytest.raises(DataError, match=r"\(data.csv.table\).*sample_submission.csv, train_labels.csv"):
        opened(tmp_path, "csv_images")
    labels_are_true(opened(tmp_path, "csv_images", csv={"table": "train_labels.csv"}), 12)


def test_separators_are_told_by_the_lines() -> None:
    for text, sign in (
        ("a,b\n1,2\n", ","), ("a;b\n1;2\n", ";"), ("a\tb\n1\t2\n", "\t"), ("id;x,label\n1,2\n", ","),
        ("id,names\n1,a;b\n2,c;d\n", ","), ("a\nb\n", ","), ('id,"x;y"\n1,"a;b;c"\n', ","),
        ("a,b\n1\n", ","), ('id;text\n1;"a;b"\n', ";"),
        ("id;v\n1;0,5\n2;0,25\n", ";"),
    ):  # fmt: skip
        assert csv_io.detect_separator(text) == sign, text


# --- pixels in a table


def digits(path: Path, images: np.ndarray, labels: np.ndarray | None, ids: list[str] | None = None) -> None:
    header = [*(["id"] if ids else []), *(["label"] if labels is not None else []),
              *(f"pixel{n}" for n in range(images[0].size))]  # fmt: skip
    lines = [",".join(header)]
    for row, image in enumerate(images):
        cells = [*([ids[row]] if ids else []), *([labels[row]] if labels is not None else []), *image.ravel()]
        lines.append(",".join(map(str, cells)))
    path.write_text("\n".join(lines) + "\n")


@pytest.fixture
def scanned(tmp_path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Handwritten digits as `label,pixel0...`, a test without labels, and a sample that counts from 1."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images, labels = (bunch.images * 15.9).astype(np.uint8), bunch.target
    digits(tmp_path / "train.csv", images[:400], labels[:400])
    digits(tmp_path / "test.csv", images[400:450], None)
    (tmp_path / "sample_submission.csv").write_text("ImageId,Label\n" + "".join(f"{n + 1},0\n" for n in range(50)))
    return images, labels


def test_pixels_in_columns_are_pictures(tmp_path: Path, scanned: tuple[np.ndarray, np.ndarray]) -> None:
    images, labels = scanned
    loaded = opened(tmp_path, "csv_images", image_size=None)
    assert (np.asarray(loaded.train.images)[..., 0] == images[:400]).all()
    assert (loaded.train.labels == labels[:400]).all()
    assert loaded.classes == tuple("0123456789")
    assert loaded.test is not None
    assert (np.asarray(loaded.test.images)[..., 0] == images[400:450]).all()
    assert loaded.test.ids.tolist() == [str(n + 1) for n in range(50)]


def test_pixels_in_columns_end_in_a_submission(
    tmp_path: Path, scanned: tuple[np.ndarray, np.ndarray], comp: Comp, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, labels = scanned
    monkeypatch.chdir(tmp_path)
    config = photographs_config(tmp_path, "csv_images")
    config["data"] = {"source": "csv_images", "root": ".", "validation": 0.2}
    config["model"], config["train"]["epochs"] = {"name": "mlp"}, 30
    result = comp("run", write_config(tmp_path / "c.yaml", config), "-o", "s.csv")
    assert result.code == 0, result.err
    header, *rows = [line.split(",") for line in Path("s.csv").read_text().splitlines()]
    assert header == ["ImageId", "Label"]
    assert [int(key) for key, _ in rows] == list(range(1, 51))
    assert (
        np.mean([int(label) == truth for (_, label), truth in zip(rows, labels[400:450], strict=True)]) > 0.5
    )  # chance is 0.1


def test_rows_with_ids_follow_the_sample_by_name(tmp_path: Path, scanned: tuple[np.ndarray, np.ndarray]) -> None:
    images, _ = scanned
    digits(tmp_path / "test.csv", images[400:450], None, ids=[str(50 - n) for n in range(50)])
    loaded = opened(tmp_path, "csv_images", image_size=None)
    assert loaded.test is not None
    assert loaded.test.ids.tolist() == [str(n + 1) for n in range(50)]
    assert (np.asarray(loaded.test.images)[..., 0] == images[400:450][::-1]).all()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda text: text.replace(",pixel63", ",pixel63,pixel64", 1), "expected"),
        (lambda text: text.replace("\n5,", "\n5,-1,", 1), "expected"),
        (lambda text: text.replace(",0,", ",300,", 1), "found 0 to 300"),
        (lambda text: text.replace(",0,", ",0.5,", 1), "whole numbers from 0 to 255"),
        (lambda text: text.replace(",0,", ",,", 1), "whole numbers from 0 to 255"),
    ],
)
def test_bad_pixel_values_are_refused(
    tmp_path: Path, scanned: tuple[np.ndarray, np.ndarray], spoil: Callable[[str], str], message: str
) -> None:
    path = tmp_path / "train.csv"
    path.write_text(spoil(path.read_text()))
    with pytest.raises(DataError, match=message):
        opened(tmp_path, "csv_images", image_size=None)


def test_a_picture_of_unknown_shape_is_refused(tmp_path: Path) -> None:
    digits(tmp_path / "train.csv", np.zeros((4, 70), np.uint8), np.arange(4))
    with pytest.raises(DataError, match=r"train.csv: .*square.* 70 columns"):
        opened(tmp_path, "csv_images", image_size=None)


# --- ambiguous tables


def test_rows_of_pixels_are_matched_by_any_column_of_the_samples_ids(
    tmp_path: Path, scanned: tuple[np.ndarray, np.ndarray]
) -> None:
    images, _ = scanned
    for name in ("row_id", "", "key"):
        digits(tmp_path / "test.csv", images[400:450], None, ids=[str(50 - n) for n in range(50)])
        text = (tmp_path / "test.csv").read_text()
        (tmp_path / "test.csv").write_text(name + text.removeprefix("id"))
        loaded = opened(tmp_path, "csv_images", image_size=None)
        assert loaded.test is not None
        assert (np.asarray(loaded.test.images)[..., 0] == images[400:450][::-1]).all(), name


def test_rows_of_pixels_that_are_longer_than_the_header_are_refused(
    tmp_path: Path, scanned: tuple[np.ndarray, np.ndarray]
) -> None:
    path = tmp_path / "train.csv"
    header, *rows = path.read_text().splitlines()
    path.write_text("\n".join([header, *(f"{number},{row}" for number, row in enumerate(rows))]) + "\n")
    with pytest.raises(DataError, match=r"train.csv: .*rectangular"):
        opened(tmp_path, "csv_images", image_size=None)


def with_file_column(root: Path, *, files: Callable[[int], str], ids: Callable[[int], str]) -> None:
    """Rewrite `train.csv` with a further column of file names."""
    header, *rows = (root / "train.csv").read_text().splitlines()
    assert header == "image_id,label"
    cells = [row.split(",") for row in rows]
    lines = [f"{ids(n)},{files(n)},{label}" for n, (_, label) in enumerate(cells)]
    (root / "train.csv").write_text("\n".join(["image_id,filename,label", *lines]) + "\n")


def test_a_column_of_files_is_taken_where_ids_name_none(tmp_path: Path) -> None:
    write_kaggle(tmp_path, train=12)
    with_file_column(tmp_path, files=lambda n: f"{n:03d}.jpg", ids=lambda n: f"row-{n}")
    loaded = opened(tmp_path, "csv_images")
    labels_are_true(loaded, 12)
    assert loaded.train.ids.tolist()[0] == "row-0"
    assert any("'filename'" in note and "'image_id'" in note and "file_column" in note for note in loaded.notes)


def test_columns_that_name_other_images_are_refused_until_one_is_chosen(tmp_path: Path) -> None:
    write_kaggle(tmp_path, train=12)
    with_file_column(tmp_path, files=lambda n: f"{n:03d}.jpg", ids=lambda n: f"{11 - n:03d}")
    with pytest.raises(DataError, match=r"'image_id', 'filename' .*file_column"):
        opened(tmp_path, "csv_images")
    labels_are_true(opened(tmp_path, "csv_images", csv={"file_column": "filename"}), 12)


def test_a_test_table_may_name_the_files(tmp_path: Path) -> None:
    write_kaggle(tmp_path, train=12, test=9)
    plain = dict(pictures_of_test(opened(tmp_path, "csv_images")))
    keys = [f"q{n}" for n in range(9)]
    (tmp_path / "test.csv").write_text(
        "image_id,file\n" + "".join(f"{key},{n:03d}.jpg\n" for n, key in enumerate(keys))
    )
    (tmp_path / "sample_submission.csv").write_text("image_id,label\n" + "".join(f"{key},ant\n" for key in keys[::-1]))
    loaded = pictures_of_test(opened(tmp_path, "csv_images"))
    assert loaded == [(f"q{n}", plain[f"{n:03d}"]) for n in reversed(range(9))]


def test_names_in_an_archive_may_have_back_slashes_or_needless_steps(tmp_path: Path) -> None:
    write_kaggle(tmp_path, train=12)
    forms = ("train\\{}", "./train/{}", "train//{}")
    with zipfile.ZipFile(tmp_path / "train.zip", "w") as archive:
        for number, path in enumerate(sorted((tmp_path / "train").iterdir())):
            entry = zipfile.ZipInfo("x")
            entry.filename = forms[number % 3].format(path.name)
            archive.writestr(entry, path.read_bytes())
    shutil.rmtree(tmp_path / "train")
    labels_are_true(opened(tmp_path, "csv_images"), 12)


def test_links_to_one_folder_both_count_and_links_to_nothing_do_not(tmp_path: Path) -> None:
    write_kaggle(tmp_path, train=12, test=4)
    (tmp_path / "sample_submission.csv").unlink()
    (tmp_path / "test").rename(tmp_path / "pictures")
    (tmp_path / "test").mkdir()
    for name in ("a", "b"):
        (tmp_path / "test" / name).symlink_to(tmp_path / "pictures", target_is_directory=True)
    (tmp_path / "test/gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    assert len(pictures_of_test(opened(tmp_path, "csv_images"))) == 8


def test_an_archive_beside_its_folder_is_reported(tmp_path: Path) -> None:
    write_kaggle(tmp_path, train=12)
    shutil.make_archive(str(tmp_path / "train"), "zip", tmp_path / "train")
    assert any("train.zip is not read" in note for note in opened(tmp_path, "csv_images").notes)
    shutil.rmtree(tmp_path / "train")
    (tmp_path / "train").mkdir()
    labels_are_true(opened(tmp_path, "csv_images"), 12)  # an empty folder hides nothing


def test_a_labelled_test_follows_a_sample_that_lists_it(tmp_path: Path) -> None:
    write_folders(tmp_path, train=4, val=0)
    for name in NAMES:
        (tmp_path / "test" / name).mkdir(parents=True)
        photograph(77, COLOURS[name]).save(tmp_path / f"test/{name}/{name}-1.png")
    (tmp_path / "sample_submission.csv").write_text("id,label\ncat-1,ant\nant-1,ant\nbee-1,ant\n")
    loaded = opened(tmp_path, "image_folder")
    assert loaded.test is not None
    assert loaded.test.labels is not None
    assert loaded.test.ids.tolist() == ["cat-1", "ant-1", "bee-1"]
    assert [loaded.classes[int(label)] for label in loaded.test.labels] == ["cat", "ant", "bee"]


def test_a_label_column_that_is_the_ids_or_the_groups_is_refused(tmp_path: Path) -> None:
    write_kaggle(tmp_path, train=12)
    with pytest.raises(DataError, match=r"label_column: 'image_id' .*ids"):
        opened(tmp_path, "csv_images", csv={"label_column": "image_id"})


def test_a_list_of_images_loses_no_first_line(tmp_path: Path) -> None:
    from comp.inference import inputs

    write_kaggle(tmp_path, train=12)
    config = DataConfig(image_size=24, root=str(tmp_path))
    listed = tmp_path / "list.txt"
    listed.write_text("train/nope.jpg\ntrain/001.jpg\n")
    with pytest.raises(DataError, match=r"list\.txt: .*1 missing .*'train/nope\.jpg'"):
        inputs.open_images(str(listed), (3, 24, 24), config)
    listed.write_text("path\ntrain/001.jpg\n")
    assert len(inputs.open_images(str(listed), (3, 24, 24), config).split) == 1


def test_true_and_false_are_flags(tmp_path: Path) -> None:
    write_kaggle(tmp_path, train=12)
    _, *rows = (tmp_path / "train.csv").read_text().splitlines()
    lines = [
        f"{key},{','.join(str(label == name) for name in NAMES)}" for key, label in (row.split(",") for row in rows)
    ]
    (tmp_path / "train.csv").write_text("\n".join([f"image_id,{','.join(NAMES)}", *lines]) + "\n")
    (tmp_path / "sample_submission.csv").unlink()
    loaded = opened(tmp_path, "csv_images")
    assert loaded.classes == NAMES
    labels_are_true(loaded, 12)


# --- the test alone


def folders_without_labels(root: Path) -> str:
    write_folders(root, train=3, val=0, test=4)
    return "image_folder"


def folders_with_labels(root: Path) -> str:
    write_folders(root, train=3, val=0)
    shutil.copytree(root / "train", root / "test")
    return "image_folder"


def kaggle(root: Path) -> str:
    write_kaggle(root, train=12)
    return "csv_images"


def kaggle_with_test_table(root: Path) -> str:
    write_kaggle(root, train=12, test=3)
    (root / "sample_submission.csv").unlink()
    (root / "test.csv").write_text("image_id\n002\n000\n")
    return "csv_images"


def pixels(root: Path) -> str:
    images = np.random.default_rng(0).integers(0, 256, (12, 8, 8), np.uint8)
    digits(root / "train.csv", images[:8], np.arange(8) % 2)
    digits(root / "test.csv", images[8:], None, ids=["d", "c", "b", "a"])
    (root / "sample_submission.csv").write_text("id,label\na,0\nb,0\nc,0\nd,0\n")
    return "csv_images"


@pytest.mark.parametrize("write", [folders_without_labels, folders_with_labels, kaggle, kaggle_with_test_table, pixels])
def test_the_test_is_the_same_without_the_training_data(tmp_path: Path, write: Callable[[Path], str]) -> None:
    source = write(tmp_path)
    size = None if write is pixels else 24
    whole = opened(tmp_path, source, image_size=size)
    expected = pictures_of_test(whole)
    shutil.rmtree(tmp_path / "train", ignore_errors=True)
    (tmp_path / "train.csv").unlink(missing_ok=True)
    config = DataConfig.model_validate({"source": source, "root": str(tmp_path), "image_size": size})
    alone = TESTS[source](config, whole.classes, quiet)
    images = np.asarray(alone.split.images)
    loaded = [(key, image.tobytes()) for key, image in zip(alone.split.ids.tolist(), images, strict=True)]
    assert loaded == expected
    assert alone.sample == whole.sample


def test_a_shared_folder_without_a_table_is_no_test(tmp_path: Path) -> None:
    write_kaggle(tmp_path, train=12)
    (tmp_path / "sample_submission.csv").unlink()
    config = DataConfig.model_validate(
        {"source": "csv_images", "root": str(tmp_path), "image_size": 24, "csv": {"test": "train"}}
    )
    with pytest.raises(DataError, match="train: holds training images too"):
        TESTS["csv_images"](config, NAMES, quiet)


# --- reports of users


def test_lines_may_end_in_carriage_returns(tmp_path: Path) -> None:
    write_kaggle(tmp_path, train=12)
    path = tmp_path / "train.csv"
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r"))
    labels_are_true(opened(tmp_path, "csv_images"), 12)


def test_a_placeholder_that_another_column_explains_is_refused(tmp_path: Path, comp: Comp) -> None:
    data = write_kaggle(tmp_path / "data", train=12)
    _, *rows = [line.split(",") for line in (data / "train.csv").read_text().splitlines()]
    lines = [f"{key},{NAMES.index(name)},{name}" for key, name in rows]
    (data / "train.csv").write_text("\n".join(["image_id,label,name", *lines]) + "\n")
    sample = data / "sample_submission.csv"
    sample.write_text(sample.read_text().replace(",ant", ",bee"))
    path = write_config(tmp_path / "small.yaml", photographs_config(data, "csv_images"))
    result = comp("config", "check", path, "--data")
    assert result.code == 2
    assert "'name'" in result.err
    assert "data.csv.label_column=name" in result.err
    assert comp("config", "check", path, "--data", "data.csv.label_column=name").code == 0


def test_a_class_whose_images_are_all_missing_is_reported(tmp_path: Path) -> None:
    write_kaggle(tmp_path, train=12)
    for number in range(1, 12, 3):  # every bee
        (tmp_path / f"train/{number:03d}.jpg").unlink()
    notes = opened(tmp_path, "csv_images", skip_bad=True).notes
    assert any(note.startswith("train: no image of 1 class, which is") and note.endswith(": bee") for note in notes)


def test_a_check_of_data_counts_a_class_in_validation_alone(tmp_path: Path, comp: Comp) -> None:
    data = write_kaggle(tmp_path / "data", train=2)
    config = photographs_config(data, "csv_images")
    config["data"]["validation"] = 1
    for seed in range(4):  # whichever of the two is held out
        result = comp("data", "check", write_config(tmp_path / "c.yaml", config), f"data.split_seed={seed}")
        assert result.code == 2
        assert "classes without an image in train" in result.err


def test_a_check_of_data_skips_what_the_config_skips(tmp_path: Path, comp: Comp) -> None:
    data = write_kaggle(tmp_path / "data", train=48)
    (data / "train/004.jpg").write_bytes(b"no picture")
    path = write_config(tmp_path / "c.yaml", photographs_config(data, "csv_images"))
    assert "unreadable or missing files" in comp("data", "check", path).err
    assert "unreadable or missing files" not in comp("data", "check", path, "data.skip_bad=true").err


def test_a_control_character_in_a_config_is_refused(tmp_path: Path, comp: Comp) -> None:
    (tmp_path / "c.yaml").write_bytes(b"data: {root: a\x07}\n")
    result = comp("config", "check", tmp_path / "c.yaml")
    assert result.code == 2
    assert "control character U+0007" in result.err
