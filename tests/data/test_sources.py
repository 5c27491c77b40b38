"""Every source reads its publisher's layout, and reports what is wrong with a bad file."""

import gzip
import io
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from comp.config import DataConfig
from comp.data.sources import SOURCES, Source, open_source
from comp.runtime.errors import ConfigError, DataError, UserError
from tests.support.commands import REPOSITORY
from tests.support.configs import write_arrays
from tests.support.layouts import CIFAR10, idx, pixels, write_cifar10, write_cifar100, write_idx
from tests.support.photographs import COLOURS, photograph, write_folders, write_kaggle

REAL_DATA = Path(os.environ.get("COMP_TEST_DATA", REPOSITORY / "data"))


def opened(root: Path, source: str, **settings: object) -> Source:
    """Open a source of this folder; nothing is downloaded."""
    values = {"source": source, "root": str(root), "download": False, **settings}
    return open_source(DataConfig.model_validate(values))


# --- CIFAR, in both layouts


@pytest.mark.parametrize("layout", ["binary", "python"])
@pytest.mark.parametrize("labels", ["fine", "coarse"])
def test_cifar100_reads_both_layouts_and_both_label_sets(tmp_path: Path, layout: str, labels: str) -> None:
    images, fine, coarse = write_cifar100(tmp_path, layout)
    loaded = opened(tmp_path, "cifar100", labels=labels)
    assert np.array_equal(loaded.train.images, images)
    assert loaded.train.labels.tolist() == (fine if labels == "fine" else coarse)
    assert len(loaded.classes) == (100 if labels == "fine" else 20)
    assert loaded.classes[3] == f"{labels}3"


@pytest.mark.parametrize("layout", ["bin", "py"])
def test_cifar10_reads_both_layouts(tmp_path: Path, layout: str) -> None:
    images, labels = write_cifar10(tmp_path, layout)
    loaded = opened(tmp_path, "cifar10")
    assert np.array_equal(loaded.train.images, np.tile(images, (5, 1, 1, 1)))
    assert loaded.test is not None
    assert loaded.test.labels.tolist() == labels
    assert loaded.classes == CIFAR10


def test_coarse_labels_are_refused_where_there_are_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.labels: digits .*cifar100"):
        opened(tmp_path, "digits", labels="coarse")


# --- idx files


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("source", "name"), [("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST")])
def test_idx_files_are_read_plain_and_packed(tmp_path: Path, source: str, name: str, packed: bool) -> None:
    images, labels = write_idx(tmp_path, name, packed=packed)
    loaded = opened(tmp_path, source)
    assert np.array_equal(loaded.train.images, images[..., None])
    assert loaded.test is not None
    assert np.array_equal(loaded.test.labels, labels)
    assert len(loaded.classes) == 10


def flip(path: Path, at: int) -> None:
    """Change one byte."""
    content = bytearray(path.read_bytes())
    content[at] ^= 0xFF
    path.write_bytes(content)


BAD_IDX: dict[str, tuple[bool, Callable[[Path], object], str]] = {
    "truncated": (False, lambda p: p.write_bytes(p.read_bytes()[:-9]), "train-images-idx3-ubyte: .*9,408 .*fewer"),
    "too long": (False, lambda p: p.write_bytes(p.read_bytes() + b"x"), "9,408 .*more"),
    "another kind": (False, lambda p: p.write_bytes(b"GIF89a" * 10), "3 dimensions, found .*47494638"),
    "absurd size": (False, lambda p: flip(p, 4), "damaged.* x 28 x 28"),
    "packed and truncated": (True, lambda p: p.write_bytes(p.read_bytes()[:-40]), "ubyte.gz: is truncated"),
    "packed and flipped": (True, lambda p: flip(p, 500), "ubyte.gz: is truncated"),
    "a packed bomb": (True, lambda p: p.write_bytes(gzip.compress(idx(pixels(12, (28, 28))) + bytes(1 << 20))), "more"),
}


@pytest.mark.parametrize("name", BAD_IDX)
def test_a_bad_idx_file_is_refused(tmp_path: Path, name: str) -> None:
    packed, spoil, message = BAD_IDX[name]
    write_idx(tmp_path, packed=packed)
    spoil(tmp_path / "MNIST/raw" / f"train-images-idx3-ubyte{'.gz' if packed else ''}")
    with pytest.raises(DataError, match=message):
        opened(tmp_path, "mnist")


def test_a_missing_mnist_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"MNIST .*data\.download .*curl -L -o .*train-images"):
        opened(tmp_path, "mnist")


# --- arrays


def write_npz(root: Path, *, compressed: bool, **more: np.ndarray) -> Path:
    """Write an archive with a train, val and test split; labels [N, 1], as MedMNIST has them."""
    root.mkdir(exist_ok=True)
    members = {}
    for number, split in enumerate(("train", "val", "test")):
        members[f"{split}_images"] = pixels(6 + number, (28, 28))
        members[f"{split}_labels"] = (np.arange(6 + number) % 3)[:, None]
    (np.savez_compressed if compressed else np.savez)(root / "set.npz", **{**members, **more})
    return root / "set.npz"


@pytest.mark.parametrize("compressed", [False, True])
def test_an_archive_is_read_and_memory_mapped_unless_compressed(tmp_path: Path, compressed: bool) -> None:
    write_npz(tmp_path, compressed=compressed)
    loaded = opened(tmp_path, "arrays")
    assert isinstance(loaded.train.images, np.memmap) != compressed
    assert np.array_equal(loaded.train.images, pixels(6, (28, 28))[..., None])
    assert loaded.val is not None
    assert np.array_equal(loaded.val.images, pixels(7, (28, 28))[..., None])
    assert loaded.val.labels.tolist() == [0, 1, 2, 0, 1, 2, 0]


def test_an_archive_equals_its_files(tmp_path: Path) -> None:
    folder = write_arrays(tmp_path / "files")
    (tmp_path / "one").mkdir()
    np.savez(tmp_path / "one/a.npz", **{path.stem: np.load(path) for path in folder.glob("*.npy")})
    files, archive = opened(folder, "arrays"), opened(tmp_path / "one", "arrays")
    assert np.array_equal(files.train.images, archive.train.images)
    assert np.array_equal(files.train.labels, archive.train.labels)
    assert isinstance(files.train.images, np.memmap)


def add_member(path: Path, name: str) -> None:
    """Add a member of this name to an archive."""
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, b"hello")


def with_objects(path: Path) -> None:
    """Write an archive whose labels would run code if they were unpickled."""
    file = io.BytesIO()
    np.save(file, np.array([print], object), allow_pickle=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("train_images.npy", file.getvalue())


BAD_ARCHIVES: dict[str, tuple[Callable[[Path], object], str]] = {
    "member that leads out": (lambda p: add_member(p, "../evil.npy"), r"found '\.\./evil\.npy'; remove it"),
    "strange member": (lambda p: add_member(p, "notes.txt"), "found 'notes.txt'"),
    "truncated": (lambda p: p.write_bytes(p.read_bytes()[:2000]), "set.npz: is truncated"),
    "bit-flipped": (lambda p: flip(p, 3000), "set.npz: is damaged"),
    "object array": (with_objects, "train_images.npy: .*pickled"),
    "NaN pixels": (
        lambda p: np.savez(p, train_images=np.full((4, 8, 8, 3), np.nan, np.float32), train_labels=[0, 1, 0, 1]),
        "train image 0: .*192",
    ),
    "channels first": (lambda p: np.savez(p, train_images=pixels(4, (3, 32, 32))), r"transpose\(0, 2, 3, 1\)"),
    "wrong dtype": (lambda p: np.savez(p, train_images=np.zeros((4, 8, 8, 3), complex)), "found complex128"),
    "no labels": (lambda p: np.savez(p, train_images=pixels(4)), "train_labels.npy: no such member"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_ARCHIVES)
def test_a_bad_archive_is_refused(tmp_path: Path, name: str) -> None:
    path = write_npz(tmp_path / "data", compressed=False)
    spoil, message = BAD_ARCHIVES[name]
    spoil(path)
    with pytest.raises(DataError, match=message):
        opened(tmp_path / "data", "arrays")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_one_class_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", train_images=pixels(4), train_labels=np.zeros(4, int))
    with pytest.raises(DataError, match=r"two classes or more, .*'0'"):
        opened(tmp_path, "arrays")


def test_an_image_size_is_refused_for_arrays(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.stem=resize model\.input_size=64"):
        opened(tmp_path, "digits", image_size=64)


# --- image_folder


def test_an_image_folder_has_its_classes_and_splits(tmp_path: Path) -> None:
    write_folders(tmp_path, train=3, val=2, test=4)
    loaded = opened(tmp_path, "image_folder", image_size=24)
    assert loaded.classes == tuple(COLOURS)
    assert loaded.train.images.shape == (9, 24, 24, 3)
    assert loaded.train.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert loaded.train.ids[4] == "train/bee/001.png"
    assert loaded.val is not None
    assert len(loaded.val) == 6
    assert loaded.test is not None
    assert (loaded.test.labels, loaded.test.ids.tolist()) == (None, ["000", "001", "002", "003"])
    brightest = np.asarray(loaded.train.images).reshape(9, -1, 3).mean(1).argmax(1)
    assert brightest.tolist() == loaded.train.labels.tolist()


def test_a_labelled_test_folder_is_a_labelled_test(tmp_path: Path) -> None:
    write_folders(tmp_path, train=2)
    (tmp_path / "val").rename(tmp_path / "test")
    loaded = opened(tmp_path, "image_folder", image_size=24)
    assert loaded.test is not None
    assert loaded.test.labels is not None
    assert loaded.val is None


BAD_FOLDERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no train": (lambda p: (p / "train").rename(p / "other"), "train: .*train.zip"),
    "no image": (lambda p: [f.unlink() for f in p.glob("train/bee/*")], "train/bee: "),
    "a class that train lacks": (lambda p: (p / "val/bee").rename(p / "val/beee"), "did you mean 'bee'"),
    "one class": (
        lambda p: [(p / s / c).rename(p / f"{s}-{c}") for s in ("train", "val") for c in ("bee", "cat")],
        "two classes or more, .*'ant'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_FOLDERS)
def test_a_bad_image_folder_is_refused(tmp_path: Path, name: str) -> None:
    write_folders(tmp_path, train=3, val=1)
    spoil, message = BAD_FOLDERS[name]
    spoil(tmp_path)
    with pytest.raises(DataError, match=message):
        opened(tmp_path, "image_folder", image_size=24)


# --- csv_images


def test_a_kaggle_set_follows_the_samples_order(tmp_path: Path) -> None:
    write_kaggle(tmp_path, train=6, test=3)
    loaded = opened(tmp_path, "csv_images", image_size=24)
    assert loaded.train.ids.tolist() == ["000", "001", "002", "003", "004", "005"]
    assert loaded.train.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert loaded.classes == ("ant", "bee", "cat")
    assert loaded.test is not None
    assert loaded.test.ids.tolist() == ["002", "001", "000"]
    assert loaded.sample is not None
    assert (loaded.sample.id_column, loaded.sample.columns) == ("image_id", ("label",))


def rewrite(root: Path, table: str, old: str, new: str) -> None:
    """Replace text in a table."""
    path = root / table
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


def encoded(root: Path, encoding: str, newline: str = "\n") -> None:
    """Write train.csv in another encoding."""
    path = root / "train.csv"
    path.write_bytes(path.read_text().replace("\n", newline).encode(encoding))


GOOD_TABLES: dict[str, Callable[[Path], object]] = {
    "byte order mark": lambda p: encoded(p, "utf-8-sig"),
    "CRLF": lambda p: encoded(p, "utf-8", "\r\n"),
    "UTF-16": lambda p: encoded(p, "utf-16"),
    "ids with endings": lambda p: [rewrite(p, "train.csv", f"{n:03d},", f"{n:03d}.jpg,") for n in range(6)],
    "ids with their folder": lambda p: [rewrite(p, "train.csv", f"{n:03d},", f"train/{n:03d}.jpg,") for n in range(6)],
    "other names": lambda p: (rewrite(p, "train.csv", "image_id,label", "picture,what"),),
    "more columns": lambda p: (
        (p / "train.csv").write_text(
            "".join(f"x,{line}\n" for line in (p / "train.csv").read_text().splitlines()).replace("x,im", "fold,im")
        ),
    ),
}


@pytest.mark.parametrize("name", GOOD_TABLES)
def test_tables_are_read_in_common_variants(tmp_path: Path, name: str) -> None:
    write_kaggle(tmp_path, train=6, test=3)
    GOOD_TABLES[name](tmp_path)
    loaded = opened(tmp_path, "csv_images", image_size=24)
    assert [key.removeprefix("train/").removesuffix(".jpg") for key in loaded.train.ids] == [
        "000", "001", "002", "003", "004", "005",
    ]  # fmt: skip
    assert loaded.train.labels.tolist() == [0, 1, 2, 0, 1, 2]


BAD_TABLES: dict[str, tuple[Callable[[Path], object], str]] = {
    "path that climbs": (lambda p: rewrite(p, "train.csv", "003,", "../003,"), "leads out"),
    "absolute path": (lambda p: rewrite(p, "train.csv", "003,", "/etc/passwd,"), "leads out"),
    "Windows path": (lambda p: rewrite(p, "train.csv", "003,", "C:\\003,"), "leads out"),
    "backslashes that climb": (lambda p: rewrite(p, "train.csv", "003,", "..\\003,"), "leads out"),
    "sample that climbs": (lambda p: rewrite(p, "sample_submission.csv", "002,", "../../x,"), "leads out"),
    "duplicate ids": (lambda p: rewrite(p, "train.csv", "003,", "001,"), "1 duplicate ids, first '001'"),
    "a sample whose ids come last": (
        lambda p: (p / "sample_submission.csv").write_text("label,id\nant,004\nant,005\n"),
        "column 'label', the first, which holds the ids: 1 duplicate ids, first 'ant'; put the column of ids first, as",
    ),
    "duplicate ids in the sample": (lambda p: rewrite(p, "sample_submission.csv", "002", "001"), "duplicate ids"),
    "missing label": (lambda p: rewrite(p, "train.csv", "003,ant", "003,"), "'label': 1 row .*row 5"),
    "labels that differ in spaces": (lambda p: rewrite(p, "train.csv", "003,ant", "003,ant "), "'ant '"),
    "missing image": (lambda p: (p / "train/003.jpg").unlink(), "train: 1 of 6 ids .*'003'"),
    "missing test image": (lambda p: (p / "test/001.jpg").unlink(), "test: 1 of 3 ids .*'001'"),
    "two images for an id": (lambda p: photograph(1, (0, 0, 0)).save(p / "train/003.png"), "'003.jpg', '003.png'"),
    "not UTF-8": (lambda p: encoded(p, "utf-16-be"), "NUL bytes"),
    "latin-1": (lambda p: (p / "train.csv").write_bytes(b"id,label\nM\xfcll,x\n"), "not UTF-8 text"),
    "ragged": (lambda p: rewrite(p, "train.csv", "003,ant", "003,ant,bee"), "not a rectangular CSV"),
    "no row": (lambda p: (p / "train.csv").write_text("id,label\n"), "found no row"),
    "empty": (lambda p: (p / "train.csv").write_text(""), "is empty; expected a header"),
    "no table": (lambda p: (p / "train.csv").unlink(), "train.csv: no such table"),
    "one class": (
        lambda p: [rewrite(p, "train.csv", f",{name}", ",ant") for name in ("bee", "cat")], "'ant'",
    ),
    "no label column": (lambda p: rewrite(p, "train.csv", "image_id,label", "a,b,c"), "rectangular|tell"),
    "no image at all": (lambda p: [f.unlink() for f in p.glob("train/*")], "train: 6 of 6 ids "),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_TABLES)
def test_a_bad_kaggle_set_is_refused(tmp_path: Path, name: str) -> None:
    write_kaggle(tmp_path, train=6, test=3)
    spoil, message = BAD_TABLES[name]
    spoil(tmp_path)
    with pytest.raises(DataError, match=message):
        opened(tmp_path, "csv_images", image_size=24)


def test_an_unknown_column_suggests_the_nearest(tmp_path: Path) -> None:
    write_kaggle(tmp_path, train=6, test=3)
    with pytest.raises(DataError, match=r"no column 'lable' \(did you mean 'label'\?\)"):
        opened(tmp_path, "csv_images", image_size=24, csv={"label_column": "lable"})


def test_numbers_are_ordered_by_value(tmp_path: Path) -> None:
    write_kaggle(tmp_path, train=6, test=3)
    for name, number in zip(COLOURS, ("10", "9", "2"), strict=True):
        rewrite(tmp_path, "train.csv", f",{name}", f",{number}")
    rewrite(tmp_path, "sample_submission.csv", ",ant", ",10")
    loaded = opened(tmp_path, "csv_images", image_size=24)
    assert loaded.classes == ("2", "9", "10")


def test_a_sample_with_a_column_for_each_class_sets_the_class_order(tmp_path: Path) -> None:
    write_kaggle(tmp_path, train=6, test=3)
    (tmp_path / "sample_submission.csv").write_text("image_id,cat,ant,bee\n001,0.3,0.3,0.4\n")
    loaded = opened(tmp_path, "csv_images", image_size=24)
    assert loaded.classes == ("cat", "ant", "bee")
    assert loaded.train.labels.tolist() == [1, 2, 0, 1, 2, 0]
    assert loaded.sample is not None
    assert loaded.sample.columns == ("cat", "ant", "bee")


@pytest.mark.parametrize("name", ["sampleSubmission.csv", "SampleSubmission.csv", "sample_submission_v2.csv", "zip"])
def test_a_sample_is_found_under_common_names(tmp_path: Path, name: str) -> None:
    write_kaggle(tmp_path, train=6, test=3)
    sample = tmp_path / "sample_submission.csv"
    if name == "zip":
        with zipfile.ZipFile(tmp_path / "sample_submission.csv.zip", "w") as archive:
            archive.write(sample, "sample_submission.csv")
            archive.writestr("__MACOSX/._sample_submission.csv", "x")
        sample.unlink()
    else:
        sample.rename(tmp_path / name)
    loaded = opened(tmp_path, "csv_images", image_size=24)
    assert loaded.sample is not None
    assert loaded.test is not None
    assert loaded.test.ids.tolist() == ["002", "001", "000"]


def test_a_missing_named_sample_is_refused_unless_it_is_the_default(tmp_path: Path) -> None:
    write_kaggle(tmp_path, train=6, test=3)
    with pytest.raises(DataError, match=r"did you mean 'sample_submission.csv'"):
        opened(tmp_path, "csv_images", image_size=24, csv={"sample": "sample_submision.csv"})
    (tmp_path / "sample_submission.csv").unlink()
    assert opened(tmp_path, "csv_images", image_size=24, csv={"sample": "sample_submission.csv"}).sample is None


@pytest.mark.parametrize(
    ("content", "columns"), [(",label\n002,ant\n", ("", ("label",))), ("id,\n002,ant\n", ("id", ("",)))]
)
def test_a_samples_header_is_kept(tmp_path: Path, content: str, columns: tuple[str, tuple[str, ...]]) -> None:
    write_kaggle(tmp_path, train=6, test=3)
    (tmp_path / "sample_submission.csv").write_text(content)
    sample = opened(tmp_path, "csv_images", image_size=24).sample
    assert sample is not None
    assert (sample.id_column, sample.columns) == columns


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("sample_submission.csv", "id,id\n002,ant\n", "two columns"),
        ("train.csv", "image_id,label\n000,ant,bee\n001,bee,ant\n", "not a rectangular CSV"),
        ("train.csv", "image_id,label\n000\n001,bee\n", "1 row .*row 2"),
    ],
)
def test_no_cell_of_a_table_is_dropped(tmp_path: Path, name: str, content: str, message: str) -> None:
    write_kaggle(tmp_path, train=6, test=3)
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        opened(tmp_path, "csv_images", image_size=24)


def test_several_samples_need_a_choice(tmp_path: Path) -> None:
    write_kaggle(tmp_path, train=6, test=3)
    shutil.copy(tmp_path / "sample_submission.csv", tmp_path / "sample_submission_2.csv")
    assert "sample_submission_2.csv" in opened(tmp_path, "csv_images", image_size=24).notes[0]
    (tmp_path / "sample_submission.csv").rename(tmp_path / "sampleSubmission_1.csv")
    with pytest.raises(DataError, match=r"several sample submissions.*data\.csv\.sample"):
        opened(tmp_path, "csv_images", image_size=24)
    chosen = opened(tmp_path, "csv_images", image_size=24, csv={"sample": "sample_submission_2.csv"})
    assert chosen.sample is not None


def test_images_that_the_sample_lacks_are_counted(tmp_path: Path) -> None:
    write_kaggle(tmp_path, train=6, test=3)
    rewrite(tmp_path, "sample_submission.csv", "001,ant\n", "")
    loaded = opened(tmp_path, "csv_images", image_size=24)
    assert loaded.test is not None
    assert len(loaded.test) == 2
    assert any(note.startswith("test: 1 image of") and "sample submission" in note for note in loaded.notes)


def test_a_test_table_lists_the_test_images_of_a_shared_folder(tmp_path: Path) -> None:
    write_kaggle(tmp_path, train=6, test=3)
    for path in (tmp_path / "test").iterdir():
        path.rename(tmp_path / "train" / f"t{path.name}")
    (tmp_path / "sample_submission.csv").unlink()
    csv = {"test": "train"}
    loaded = opened(tmp_path, "csv_images", image_size=24, csv=csv)
    assert loaded.test is not None
    assert loaded.test.ids.tolist() == ["t000", "t001", "t002"]  # training images are left out
    assert any(note.startswith("test: 6 training images") for note in loaded.notes)
    (tmp_path / "test.csv").write_text("image_id\nt002\nt000\n")
    loaded = opened(tmp_path, "csv_images", image_size=24, csv=csv)
    assert loaded.test is not None
    assert loaded.test.ids.tolist() == ["t002", "t000"]
    (tmp_path / "test.csv").rename(tmp_path / "ids.csv")
    loaded = opened(tmp_path, "csv_images", image_size=24, csv={**csv, "test_table": "ids.csv"})
    assert loaded.test is not None
    assert loaded.test.ids.tolist() == ["t002", "t000"]
    with pytest.raises(DataError, match=r"no such table .data.csv.test_table.*did you mean 'ids.csv'"):
        opened(tmp_path, "csv_images", image_size=24, csv={**csv, "test_table": "id.csv"})


# Cells of six training rows, competition.task -> the task, the classes, the labels of the first two rows.
LABELS = [
    (["a b", "a", "b", "a", "b", "a"], "auto", "multi_label", ("a", "b"), [[1, 1], [1, 0]]),
    (["a|b", "a", "b", "a", "b", "a"], "auto", "multi_label", ("a", "b"), [[1, 1], [1, 0]]),
    (["a, b", "b", "a", "a", "b", "c"], "auto", "multi_label", ("a", "b", "c"), [[1, 1, 0], [0, 1, 0]]),
    (["Sugar beet", "Maize", "Maize", "Maize", "Maize", "Maize"], "auto", "single_label",
     ("Maize", "Sugar beet"), [1, 0]),
    (["Sugar beet", "Maize", "Maize", "Maize", "Maize", "Maize"], "multi_label", "multi_label",
     ("Maize", "Sugar", "beet"), [[0, 1, 1], [1, 0, 0]]),
    (["a b", "a", "b", "a", "b", "a"], "single_label", "single_label", ("a", "a b", "b"), [1, 0]),
    (["10", "2", "2", "10", "2", "2"], "auto", "single_label", ("2", "10"), [1, 0]),
    (["a", "b", "a", "b", "a", "b"], "multi_label", "multi_label", ("a", "b"), [[1, 0], [0, 1]]),
]  # fmt: skip


@pytest.mark.parametrize(("cells", "task", "shown", "classes", "first"), LABELS)
def test_one_column_may_hold_several_labels(
    tmp_path: Path, cells: list[str], task: str, shown: str, classes: tuple[str, ...], first: list[object]
) -> None:
    write_kaggle(tmp_path, train=6, test=3)
    rows = [f'{number:03d},"{cell}"' for number, cell in enumerate(cells)]
    (tmp_path / "train.csv").write_text("\n".join(["image_id,label", *rows, ""]))
    config = DataConfig(source="csv_images", root=str(tmp_path), image_size=24)
    loaded = open_source(config, task=task)
    assert (loaded.task, loaded.classes) == (shown, classes)
    assert loaded.train.labels is not None
    assert loaded.train.labels[:2].tolist() == first


def test_columns_of_0_and_1_are_labels(tmp_path: Path) -> None:
    write_kaggle(tmp_path, train=6, test=3)
    (tmp_path / "sample_submission.csv").write_text("image_id,bee,ant\n000,0.5,0.5\n")
    rows = ["000,x,1,0", "001,y,0,1", "002,y,1.0,0", "003,x,0,1", "004,x,1,0", "005,x,1,0"]
    table = tmp_path / "train.csv"
    table.write_text("\n".join(["image_id,patient,ant,bee", *rows, ""]))
    config = DataConfig(source="csv_images", root=str(tmp_path), image_size=24)
    loaded = open_source(config)
    assert (loaded.task, loaded.classes) == ("single_label", ("bee", "ant"))
    assert loaded.train.labels is not None
    assert loaded.train.labels.tolist() == [1, 0, 1, 0, 1, 1]
    assert open_source(config, task="multi_label").task == "multi_label"
    rewrite(tmp_path, "train.csv", "003,x,0,1", "003,x,1,1")
    loaded = open_source(config)
    assert loaded.task == "multi_label"
    assert loaded.train.labels is not None
    assert loaded.train.labels[3].tolist() == [1, 1]
    with pytest.raises(DataError, match=r"row 5 .* 2 labels; .*competition\.task=multi_label"):
        open_source(config, task="single_label")
    (tmp_path / "sample_submission.csv").unlink()
    named = config.model_copy(update={"csv": config.csv.model_copy(update={"label_columns": ("ant", "bee")})})
    assert open_source(named).classes == ("ant", "bee")
    rewrite(tmp_path, "train.csv", "003,x,1,1", "003,x,2,1")
    with pytest.raises(DataError, match="expected 0 or 1, found '2'"):
        open_source(named)


# --- all of them


def test_an_unknown_source_suggests_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"unknown source 'cifar11'.*did you mean 'cifar10'"):
        opened(tmp_path, "cifar11")


@pytest.mark.parametrize("name", sorted(set(SOURCES) - {"digits"}))
def test_every_source_reports_what_an_empty_folder_lacks(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"missing|no such"):
        opened(tmp_path, name)


REAL = {
    "cifar10": ("cifar-10-batches-bin", (50_000, 32, 32, 3), 10_000),
    "mnist": ("MNIST/raw", (60_000, 28, 28, 1), 10_000),
    "fashion_mnist": ("FashionMNIST/raw", (60_000, 28, 28, 1), 10_000),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_the_real_sets_are_read_completely(name: str) -> None:
    folder, shape, test = REAL[name]
    if not (REAL_DATA / folder).is_dir():
        pytest.skip(f"{REAL_DATA / folder} does not exist; set COMP_TEST_DATA to the data folder")
    loaded = opened(REAL_DATA, name)
    assert loaded.train.images.shape == shape
    assert loaded.test is not None
    assert len(loaded.test) == test
    assert len(loaded.classes) == 10
    assert np.unique(loaded.train.labels).tolist() == list(range(10))


def test_files_that_are_not_images_are_skipped(tmp_path: Path) -> None:
    write_folders(tmp_path, train=2, val=0)
    (tmp_path / "train/ant/Thumbs.db").write_bytes(b"x")
    (tmp_path / "train/ant/._000.png").write_bytes(b"x")
    (tmp_path / "train/.DS_Store").write_bytes(b"x")
    Image.new("RGB", (9, 9)).save(tmp_path / "train/ant/UPPER.PNG")
    assert len(opened(tmp_path, "image_folder", image_size=24).train) == 7
