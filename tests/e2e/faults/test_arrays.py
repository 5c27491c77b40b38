"""Hostile and damaged arrays: refused before memory is asked for, in one message that names file and cure."""

import gzip
import pickle
import re
import struct
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from comp import config as configs
from comp.data.dataset import open_dataset
from comp.runtime.errors import DataError
from tests.support.commands import Result, assert_refused
from tests.support.configs import small_config, write_arrays, write_config

Comp = Callable[..., Result]
Spoil = Callable[[Path], object]
_TEBIBYTES = 7 << 40


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a data set of 40 training images."""
    return write_arrays(tmp_path_factory.mktemp("arrays"), train=40, test=8)


@pytest.fixture
def place(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with `small.yaml` and a copy of the data in `data/`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    for path in dataset.iterdir():
        (tmp_path / "data" / path.name).write_bytes(path.read_bytes())
    write_config(tmp_path / "small.yaml", small_config(tmp_path / "data"))
    return tmp_path


def npy(header: str, values: bytes = b"", version: tuple[int, int] = (1, 0)) -> Spoil:
    """Return a writer of a .npy with any header."""
    text = header.encode() + b"\n"
    length = struct.pack("<H" if version == (1, 0) else "<I", len(text))
    return lambda path: path.write_bytes(b"\x93NUMPY" + bytes(version) + length + text + values)


def shaped(shape: object, kind: object = "|u1") -> Spoil:
    """Return a writer of a .npy whose header promises a shape, with a hundred bytes of values."""
    return npy(f"{{'descr': {kind!r}, 'fortran_order': False, 'shape': {shape}, }}", bytes(100))


def saved(array: object, kind: object = None) -> Spoil:
    """Return a writer of an array."""
    return lambda path: np.save(path, np.asarray(array, kind), allow_pickle=True)  # type: ignore[arg-type]


def repeated(*values: object, kind: object = None, rows: int = 40) -> Spoil:
    """Return a writer of one label per image, which begin with these."""
    return saved((list(values) + [0, 1, 2, 3] * rows)[:rows], kind)


def add(name: str, content: bytes) -> Spoil:
    """Return a change that adds a member to an archive."""

    def change(path: Path) -> None:
        with zipfile.ZipFile(path, "a" if path.suffix == ".npz" else "w") as opened:
            opened.writestr(name, content)

    return change


BAD_IMAGES: dict[str, tuple[Spoil, str]] = {
    "a side below 0": (shaped((-1, 32, 32, 3)), "has the shape [-1, 32, 32, 3], expected no number below 0"),
    "7 TiB": (shaped((_TEBIBYTES // 3072, 32, 32, 3)), "fewer than its header promises"),
    "a product beyond 64 bits": (shaped((1 << 40, 1 << 40, 1 << 40, 3)), "fewer than its header promises"),
    "a side of a thousand digits": (shaped((10**1000, 32, 32, 3)), "fewer than its header promises"),
    "no height": (saved(np.zeros((40, 0, 32, 3), np.uint8)), "expected images [N, H, W, channels]"),
    "no dimension": (saved(np.uint8(1)), "expected images [N, H, W, channels], found []"),
    "five dimensions": (saved(np.zeros((40, 1, 8, 8, 3), np.uint8)), "found [40, 1, 8, 8, 3]"),
    "records": (
        saved(np.zeros((40, 8, 8, 3), [("red", "u1"), ("green", "u1")])), "records with the fields red, green",
    ),
    "raw bytes": (saved(np.zeros((40, 8, 8, 3), "V8")), "values of type |V8"),
    "complex": (saved(np.zeros((40, 8, 8, 3), complex)), "found complex128"),
    "dates": (saved(np.zeros((40, 8, 8, 3), "M8[s]")), "found datetime64[s]"),
    "text": (saved(np.full((40, 8, 8, 3), "255")), "found <U3"),
    "not a number": (saved(np.full((40, 8, 8, 3), np.nan, np.float32)), "train image 0: expected finite pixels"),
    "a promise of objects": (shaped((40, 8, 8, 3), "|O"), "pickled Python objects, which are refused"),
    "a header of 60,000 bytes": (npy(" " * 60_000), "its header has 60,001 bytes, expected at most 10,000"),
    "a header of brackets": (npy("(" * 900), "its header cannot be read"),
    "a header that stops in a text": (npy("{'descr': '|u1"), "its header cannot be read"),
    "a header that is a list": (npy("['descr', 1, 2]"), "its header cannot be read"),
    "a header of other keys": (npy("{'descr': '|u1', 'shape': (40, 8, 8, 3)}"), "its header cannot be read"),
    "a type that does not exist": (shaped((40, 8, 8, 3), "x9"), "its header cannot be read"),
    "a shape of text": (shaped("'40'"), "its header cannot be read"),
    "version 3": (npy("{}", version=(3, 0)), "is a .npy of version 3.0, expected 1.0 or 2.0"),
    "version 2 that is cut off": (lambda p: p.write_bytes(b"\x93NUMPY\2\0\1\0"), "is truncated"),
    "the first ten bytes": (lambda p: p.write_bytes(p.read_bytes()[:10]), "is truncated"),
    "one byte less": (lambda p: p.write_bytes(p.read_bytes()[:-1]), "is truncated"),
    "a changed first byte": (lambda p: p.write_bytes(b"\x94" + p.read_bytes()[1:]), "is not a NumPy .npy file"),
    "an archive": (add("images.npy", b"x"), "found an archive; rename it to .npz"),
}  # fmt: skip
BAD_LABELS: dict[str, tuple[Spoil, str]] = {
    "beyond 63 bits": (repeated(2**63 + 5, kind=np.uint64), "found 9223372036854775813 at row 0"),
    "a million millions": (repeated(0, 10**12), "expected labels below 10,000,000, found 1000000000000 at row 1"),
    "five millions": (repeated(0, 5_000_000), "expected labels below 1,000,000, found 5000000 at row 1; number"),
    "not a number": (repeated(0.5, np.nan), "label nan at row 1: expected a finite number"),
    "infinite": (repeated(0.5, np.inf), "label inf at row 1: expected a finite number"),
    "too large for 32 bits": (repeated(0.5, 1e300), "label inf at row 1: expected a finite number"),
    "below 0 in 8 bits": (repeated(1, -128, kind=np.int8), "expected labels from 0 up, found -128 at row 1"),
    "complex": (repeated(1j), "found complex128 [40]"),
    "text": (repeated("cat", "dog"), "expected whole numbers [40], found <U"),
    "objects": (saved(np.array([None] * 40, object)), "pickled Python objects"),
    "dates": (saved(np.zeros(40, "M8[D]")), "found datetime64[D] [40]"),
    "three dimensions": (saved(np.zeros((40, 1, 2), int)), "found int64 [40, 1, 2]"),
    "no dimension": (saved(3), "found int64 []"),
    "none": (saved(np.zeros(0, int)), "found int64 [0]"),
    "one more": (repeated(0, rows=41), "expected 40 labels, one per image, found 41"),
    "columns of 2": (saved(np.full((40, 3), 2)), "expected 0 and 1 in one column per class, found 2"),
    "columns of floats": (saved(np.full((40, 3), 0.5)), "found float64 [40, 3]"),
    "no text of zero width": (shaped(f"({1 << 40},)", "<U0"), "fewer than its header promises"),
}


@pytest.mark.parametrize("name", BAD_IMAGES)
def test_bad_images_are_refused(place: Path, comp: Comp, name: str) -> None:
    spoil, part = BAD_IMAGES[name]
    spoil(Path("data/train_images.npy"))
    assert_refused(comp("config", "check", "small.yaml", "--data"), "train", part)


@pytest.mark.parametrize("name", BAD_LABELS)
def test_bad_labels_are_refused(place: Path, comp: Comp, name: str) -> None:
    spoil, part = BAD_LABELS[name]
    spoil(Path("data/train_labels.npy"))
    assert_refused(comp("config", "check", "small.yaml", "--data"), "train", part)


COLUMNS = np.arange(120).reshape(40, 3) % 5 % 2  # several labels an image
ONE_HOT = np.eye(4, dtype=int)[np.arange(40) % 4]
WHOLE, FLOATS = np.arange(40) % 4, np.linspace(0, 1, 40)
# Labels of train and of another split, and what the message says of the second.
UNLIKE: dict[str, tuple[object, object, str]] = {
    "one column more": (COLUMNS, ONE_HOT[:8], "expected 3 columns, one per class of train_labels.npy, found 4"),
    "one column less": (COLUMNS, COLUMNS[:8, :2], "expected 3 columns, one per class of train_labels.npy, found 2"),
    "fewer classes": (ONE_HOT, np.eye(2, dtype=int)[[0, 1] * 4], "expected 4 columns"),
    "fewer columns than classes": (WHOLE, np.eye(3, dtype=int)[[0, 1] * 4], "expected 4 columns"),
    "several labels": (WHOLE, COLUMNS[:8], "as in train_labels.npy, whole numbers, found 3 columns of 0 and 1"),
    "no columns": (COLUMNS, WHOLE[:8], "as in train_labels.npy, 3 columns of 0 and 1, found whole numbers"),
    "floats among classes": (WHOLE, FLOATS[:8], "whole numbers, found floats; save classes as whole numbers"),
    "floats among columns": (COLUMNS, FLOATS[:8], "3 columns of 0 and 1, found floats; save classes"),
    "columns among floats": (FLOATS, COLUMNS[:8], "floats, found 3 columns of 0 and 1; save one number per image"),
}


@pytest.mark.parametrize("split", ["val", "test"])
@pytest.mark.parametrize("name", UNLIKE)
def test_labels_unlike_those_of_training_are_refused(place: Path, name: str, split: str) -> None:
    trained, other, message = UNLIKE[name]
    np.save("data/train_labels.npy", trained)
    Path("data/test_labels.npy").unlink()
    np.save(f"data/{split}_images.npy", np.load("data/test_images.npy"))
    np.save(f"data/{split}_labels.npy", other)
    with pytest.raises(DataError, match=re.escape(message)) as error:
        open_dataset(configs.load(Path("small.yaml")))
    assert str(error.value).startswith(f"{place}/data/{split}_labels.npy: ")


def test_one_1_in_every_row_is_a_whole_number(place: Path) -> None:
    np.save("data/test_labels.npy", ONE_HOT[:8])
    test = open_dataset(configs.load(Path("small.yaml"))).test
    assert test is not None
    assert test.labels is not None
    assert test.labels.tolist() == [0, 1, 2, 3] * 2


def test_a_class_that_training_lacks_is_refused_in_columns_too(place: Path) -> None:
    np.save("data/test_labels.npy", WHOLE[:8] + 1)
    with pytest.raises(DataError, match="test label 4 at row 3 is out of range"):
        open_dataset(configs.load(Path("small.yaml"), ["competition.task=multi_label"]))


def test_floats_are_no_classes_whatever_the_config_says(place: Path) -> None:
    np.save("data/train_labels.npy", FLOATS)
    with pytest.raises(DataError, match=r"training labels are floats; save classes as whole numbers \(astype\(int\)\)"):
        open_dataset(configs.load(Path("small.yaml"), ["competition.task=single_label"]))


def test_whole_numbers_to_regress_may_be_large(place: Path) -> None:
    np.save("data/train_labels.npy", np.arange(40) * 200_000)
    np.save("data/test_labels.npy", np.arange(8) * 1_200_000)
    overrides = [
        "competition.task=regression",
        "competition.suite.source=none",
        "competition.ood_validation.severities=[]",
    ]
    began = time.perf_counter()
    dataset = open_dataset(configs.load(Path("small.yaml"), overrides))
    assert time.perf_counter() - began < 2, "a name was made for each of 8 million numbers"
    assert dataset.competition.classes == ("label",)
    assert dataset.train.labels is not None
    assert dataset.train.labels.max() == 39 * 200_000
    assert dataset.test is not None
    assert dataset.test.labels is not None
    assert dataset.test.labels.max() == 7 * 1_200_000


def test_arrays_in_fortran_order_are_the_same_data(place: Path) -> None:
    config = configs.load(Path("small.yaml"))
    before = open_dataset(config)
    np.save("data/train_images.npy", np.asfortranarray(np.load("data/train_images.npy")))
    after = open_dataset(config)
    assert after.fingerprint == before.fingerprint
    assert np.array_equal(after.train.images, before.train.images)


def archive(*, compressed: bool) -> Path:
    """Replace the arrays in `data/` by one archive of them."""
    arrays = {path.stem: np.load(path) for path in Path("data").glob("*.npy")}
    for path in Path("data").glob("*.npy"):
        path.unlink()
    path = Path("data/set.npz")
    (np.savez_compressed if compressed else np.savez)(path, **arrays)
    return path


def patch(offset: int, value: bytes) -> Spoil:
    """Return a change of the directory's entry of an archive's first member; offsets are those of the ZIP format."""

    def change(path: Path) -> None:
        content = bytearray(path.read_bytes())
        start = content.index(b"PK\x01\x02") + offset
        content[start : start + len(value)] = value
        path.write_bytes(content)

    return change


_ENCRYPTED, _UNKNOWN, _FOUR_GIB = b"\1\0", b"\x63\0", b"\xf0\xff\xff\xff"
BAD_ARCHIVES: dict[str, tuple[bool, Spoil, str]] = {
    "a member that claims 4 GiB": (False, patch(24, _FOUR_GIB), "claims 4,294,967,280 bytes, and has"),
    "a packed member that claims 4 GiB": (True, patch(24, _FOUR_GIB), "is taken for a decompression bomb"),
    "a member that wants a password": (False, patch(8, _ENCRYPTED), "set.npz"),
    "a member packed in an unknown way": (False, patch(10, _UNKNOWN), "set.npz"),
    "a member at another place": (False, patch(42, b"\x30\0\0\0"), "set.npz"),
    "a changed checksum": (True, patch(16, b"\0\0\0\0"), "fails its checksum"),
    "a member that leads out": (False, add("../evil.npy", b"x"), "found '../evil.npy'; remove it"),
    "a member without values": (False, add("val_images.npy", b""), "val_images.npy: is truncated"),
    "an empty archive": (False, lambda p: p.write_bytes(b"PK\5\6" + bytes(18)), "set.npz: not a .npz file"),
    "text": (False, lambda p: p.write_text("images"), "set.npz: not a .npz file"),
    "no directory": (False, lambda p: p.write_bytes(p.read_bytes()[:-60]), "set.npz: is truncated"),
}


@pytest.mark.parametrize("name", BAD_ARCHIVES)
def test_bad_archives_are_refused(place: Path, comp: Comp, name: str) -> None:
    compressed, spoil, part = BAD_ARCHIVES[name]
    spoil(archive(compressed=compressed))
    assert_refused(comp("config", "check", "small.yaml", "--data"), "set.npz", part)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_archive_with_two_arrays_of_one_name_is_refused(place: Path, comp: Comp) -> None:
    add("train_labels.npy", b"x")(archive(compressed=False))
    assert_refused(comp("config", "check", "small.yaml", "--data"), "set.npz: holds two arrays of the same name")


def write_idx(folder: Path, shape: tuple[int, ...], values: bytes, name: str) -> None:
    content = bytes((0, 0, 8, len(shape))) + struct.pack(f">{len(shape)}I", *shape) + values
    (folder / f"{name}.gz").write_bytes(gzip.compress(content))


BAD_IDX = {
    "images of 2 GiB in a small file": ("train-images-idx3-ubyte", (1 << 21, 32, 32), bytes(64), "decompression bomb"),
    "images of 4 GiB": ("train-images-idx3-ubyte", (1 << 30, 28, 28), bytes(64), "is damaged: its header promises"),
    "no image": ("train-images-idx3-ubyte", (0, 28, 28), b"", "its header promises 0 x 28 x 28"),
    "a label beyond the classes": ("train-labels-idx1-ubyte", (20,), bytes([200] * 20), "label 200 at row 0"),
    "labels of two dimensions": ("train-labels-idx1-ubyte", (20, 1), bytes(20), "with 1 dimensions"),
    "fewer labels": ("train-labels-idx1-ubyte", (19,), bytes(19), "a label for each of 20 train images, found 19"),
}


@pytest.mark.parametrize("name", BAD_IDX)
def test_bad_idx_files_are_refused(place: Path, comp: Comp, name: str) -> None:
    folder = Path("data/MNIST/raw")
    folder.mkdir(parents=True)
    for prefix in ("train", "t10k"):
        write_idx(folder, (20, 28, 28), bytes(range(20)) * 784, f"{prefix}-images-idx3-ubyte")
        write_idx(folder, (20,), bytes([0, 1] * 10), f"{prefix}-labels-idx1-ubyte")
    file, shape, values, part = BAD_IDX[name]
    write_idx(folder, shape, values, file)
    assert_refused(comp("config", "check", "small.yaml", "--data", "data.source=mnist"), part)


def batch(**changes: object) -> bytes:
    """Return a CIFAR batch of two images, as it is published, with other values."""
    return pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [0, 1], **changes}, protocol=4)


BAD_BATCHES = {
    "text as labels": (batch(labels=["cat", "dog"]), "expected `labels`, a class number for each of 2 images"),
    "a huge label": (batch(labels=[0, 10**30]), "expected `labels`, a class number for each of 2 images"),
    "no image": (batch(data=np.zeros((0, 3072), np.uint8), labels=[]), "expected `data` uint8 [N, 3072]"),
    "images of floats": (batch(data=np.zeros((2, 3072))), "expected `data` uint8 [N, 3072]"),
    "a list": (pickle.dumps([1, 2]), "not a published CIFAR batch"),
    "text of 7 TiB": (b"\x80\x04\x8d" + struct.pack("<Q", _TEBIBYTES) + b"x", "not a published CIFAR batch"),
    "a place that was never written": (b"\x80\x02h\x05.", "not a published CIFAR batch"),
    "another class": (pickle.dumps(Path("x")), "not a published CIFAR batch: it needs pathlib."),
}


@pytest.mark.parametrize("name", BAD_BATCHES)
def test_bad_cifar_batches_are_refused(place: Path, comp: Comp, name: str) -> None:
    content, part = BAD_BATCHES[name]
    folder = Path("data/cifar-10-batches-py")
    folder.mkdir()
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": ["cat", "dog"]}))
    for file in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"):
        (folder / file).write_bytes(batch())
    (folder / "data_batch_3").write_bytes(content)
    assert_refused(comp("config", "check", "small.yaml", "--data", "data.source=cifar10"), "data_batch_3", part)
