"""Eight image-classification competitions, packed like Kaggle's downloads, each from data to a correct CSV.

Slow tests train the configs that `comp init` writes, as they are.
Layouts, tables, names, metrics and samples are those of MLE-bench's eight (lite) tasks of this kind. The images are
scanned digits, so the truth is known, and scikit-learn computes the score. A config has at most ten lines.
"""

import csv
import io
import re
import shutil
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.metrics import log_loss, roc_auc_score

from tests.support.commands import Result

Comp = Callable[..., Result]

TRAINING = """
model: {name: mlp}
optim: {lr: 3e-3}
train: {epochs: EPOCHS, batch_size: 32, precision: fp32, channels_last: false, compile: false}
"""


def scans(digits: Sequence[Sequence[int]], *, test: bool) -> np.ndarray:
    """Return images [N, 16, 16] of one or two scanned digits each; training and test share no scan."""
    bunch, draw = load_digits(), np.random.default_rng(int(test))
    of_digit = [np.flatnonzero(bunch.target == digit)[int(test) :: 2] for digit in range(10)]
    pictures = []
    for row_digits in digits:
        tiles = [bunch.images[draw.choice(of_digit[digit])] * 15.9 for digit in row_digits]
        row = np.concatenate(tiles, 1)
        pictures.append(np.pad(row, ((4, 4), ((16 - row.shape[1]) // 2,) * 2)).astype(np.uint8))
    return np.stack(pictures)


def save(paths: Sequence[str], pictures: np.ndarray) -> None:
    for path, picture in zip(paths, pictures, strict=True):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).convert("RGB").save(path, **({"quality": 95} if path.endswith("jpg") else {}))


def table(path: str, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    Path(path).write_text(text.getvalue())


def packed(archive: str, *paths: str) -> None:
    """Move files and folders into an archive, as macOS does, with its own files."""
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for path in paths:
            for member in [member for member in sorted(Path(path).rglob("*")) if member.is_file()] or [Path(path)]:
                file.write(member, member.relative_to("d"))
                file.writestr(f"__MACOSX/{member.relative_to('d').parent}/._{member.name}", b"resource fork")
            shutil.rmtree(path) if Path(path).is_dir() else Path(path).unlink()


@pytest.fixture(autouse=True, params=["by hand", pytest.param("by init", marks=pytest.mark.slow)])
def workplace(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("d").mkdir()
    Path("made").write_text(request.param)


def submitted(comp: Comp, config: str, header: Sequence[str], ids: Sequence[str], *, epochs: int = 8) -> np.ndarray:
    """Run a config and check the submission's header and ids; return its numbers [N, columns]."""
    text = config.strip() + TRAINING.replace("EPOCHS", str(epochs))
    assert len(text.strip().splitlines()) <= 10
    Path("c.yaml").write_text(text)
    if Path("made").read_text() == "by init":
        metric = re.findall(r"metric: (\w+)", config)[0]
        made = comp("init", "d", "-o", "c.yaml", "--force", "--metric", metric, "--budget", "100s")
        assert made.code == 0, made.err
    result = comp("run", "c.yaml", "-o", "s.csv")
    assert result.code == 0, result.err
    checked = comp("check", "s.csv")
    # How far a budget trains depends on the machine; a weak network's answers may be lopsided, in the right form.
    assert checked.code == 0 or (Path("made").read_text() == "by init" and "misleads" in checked.out), checked.err
    written = list(csv.reader(io.StringIO(Path("s.csv").read_text())))
    assert written[0] == list(header)
    assert [row[0] for row in written[1:]] == list(ids)
    return np.array([[float(cell) for cell in row[1:]] for row in written[1:]])


def test_aerial_cactus(comp: Comp) -> None:
    """Archives, ids with their ending, one probability under AUC, numbers as labels."""
    truth = {}
    for name, count in (("train", 160), ("test", 60)):
        flags = np.random.default_rng(len(name)).integers(0, 2, count)
        ids = [f"{name}{n:032x}.jpg" for n in range(count)]
        save([f"d/{name}/{key}" for key in ids], scans([[3 if flag else 7] for flag in flags], test=name == "test"))
        truth[name] = dict(zip(ids, flags.tolist(), strict=True))
        packed(f"d/{name}.zip", f"d/{name}")
    table("d/train.csv", ["id", "has_cactus"], list(truth["train"].items()))
    table("d/sample_submission.csv", ["id", "has_cactus"], [[key, 0.5] for key in reversed(truth["test"])])
    answers = submitted(comp, """
competition: {name: cactus, metric: roc_auc, suite: {source: test}, ood_validation: {severities: []}}
data: {source: csv_images, root: d, validation: 0.2}
""", ["id", "has_cactus"], list(reversed(truth["test"])))  # fmt: skip
    assert roc_auc_score(list(reversed(truth["test"].values())), answers[:, 0]) > 0.95


PAIRS = [(first, second) for first in range(10) for second in range(10)]


def test_dog_breed(comp: Comp) -> None:
    """`labels.csv`, 120 columns of probabilities not in alphabetical order, log loss."""
    breeds = [f"breed_{number:02d}-{'light' if number < 100 else 'dark'}" for number in range(120)]

    def pictures(labels: np.ndarray, *, test: bool) -> np.ndarray:
        images = scans([PAIRS[label % 100] for label in labels], test=test)
        return np.where((labels >= 100)[:, None, None], 255 - images, images)

    train, test = np.arange(720) % 120, np.random.default_rng(1).permutation(240) % 120
    save([f"d/train/{n:032x}.jpg" for n in range(720)], pictures(train, test=False))
    save([f"d/test/{n:032x}.jpg" for n in range(240)], pictures(test, test=True))
    table("d/labels.csv", ["id", "breed"], [[f"{n:032x}", breeds[c]] for n, c in enumerate(train)])
    columns = [breeds[c] for c in np.random.default_rng(2).permutation(120)]
    table("d/sample_submission.csv", ["id", *columns], [[f"{n:032x}", *[1 / 120] * 120] for n in range(240)])
    answers = submitted(comp, """
competition: {name: dogs, metric: log_loss, suite: {source: test}, ood_validation: {severities: []}}
data: {source: csv_images, root: d, validation: 0.2, csv: {table: labels.csv}}
""", ["id", *columns], [f"{n:032x}" for n in range(240)], epochs=10)  # fmt: skip
    order = [columns.index(name) for name in breeds]
    assert log_loss(test, answers[:, order], labels=range(120)) < 4.2  # of equal shares: 4.8


def test_dogs_versus_cats_redux(comp: Comp) -> None:
    """Labels in file names, archives, ids from 1, the probability of a dog."""
    for animal, digit in (("cat", 4), ("dog", 9)):
        save([f"d/train/{animal}.{n}.jpg" for n in range(90)], scans([[digit]] * 90, test=False))
    truth = np.random.default_rng(3).integers(0, 2, 80)
    save([f"d/test/{n + 1}.jpg" for n in range(80)], scans([[9 if dog else 4] for dog in truth], test=True))
    packed("d/train.zip", "d/train")
    packed("d/test.zip", "d/test")
    table("d/sample_submission.csv", ["id", "label"], [[n + 1, 0.5] for n in range(80)])
    answers = submitted(comp, r"""
competition: {name: redux, metric: log_loss, suite: {source: test}, ood_validation: {severities: []}}
data: {source: image_folder, root: d, validation: 0.2, label_pattern: "^([a-z]+)[.]"}
""", ["id", "label"], [str(n + 1) for n in range(80)])  # fmt: skip
    assert log_loss(truth, answers[:, 0]) < 0.4  # of equal shares: 0.69


def test_histopathologic_cancer(comp: Comp) -> None:
    """`train_labels.csv`, TIFF, a sample of whole numbers although AUC needs probabilities."""
    labels, truth = (np.random.default_rng(seed).integers(0, 2, count) for seed, count in ((4, 160), (5, 70)))
    save([f"d/train/{n:040x}.tif" for n in range(160)], scans([[5 if ill else 3] for ill in labels], test=False))
    save([f"d/test/{n:040x}.tif" for n in range(70)], scans([[5 if ill else 3] for ill in truth], test=True))
    table("d/train_labels.csv", ["id", "label"], [[f"{n:040x}", ill] for n, ill in enumerate(labels)])
    table("d/sample_submission.csv", ["id", "label"], [[f"{n:040x}", 0] for n in range(70)])
    answers = submitted(comp, """
competition: {name: cells, metric: roc_auc, suite: {source: test}, ood_validation: {severities: []}}
data: {source: csv_images, root: d, validation: 0.2, csv: {table: train_labels.csv}}
""", ["id", "label"], [f"{n:040x}" for n in range(70)])  # fmt: skip
    assert roc_auc_score(truth, answers[:, 0]) > 0.95


def test_leaf_classification(comp: Comp) -> None:
    """Packed tables with feature columns, one shared archive of images, 99 columns, log loss."""
    names = [f"Species_{number:02d}" for number in range(99)]
    every = np.random.default_rng(6).permutation(np.arange(792)) + 1  # training and test ids are mixed
    labels = np.arange(792) % 99
    ids, test_ids = every[:594], every[594:]
    save([f"d/images/{key}.jpg" for key in ids], scans([PAIRS[c] for c in labels[:594]], test=False))
    save([f"d/images/{key}.jpg" for key in test_ids], scans([PAIRS[c] for c in labels[594:]], test=True))
    features = [f"{kind}{n}" for kind in ("margin", "shape", "texture") for n in range(1, 65)]
    draw = np.random.default_rng(7)
    table("d/train.csv", ["id", "species", *features],
          [[key, names[c], *draw.random(192).round(4)] for key, c in zip(ids, labels, strict=False)])  # fmt: skip
    table("d/test.csv", ["id", *features], [[key, *draw.random(192).round(4)] for key in sorted(test_ids)])
    table("d/sample_submission.csv", ["id", *names], [[key, *[1 / 99] * 99] for key in sorted(test_ids)])
    packed("d/images.zip", "d/images")
    for name in ("train", "test", "sample_submission"):
        packed(f"d/{name}.csv.zip", f"d/{name}.csv")
    answers = submitted(comp, """
competition: {name: leaf, metric: log_loss, suite: {source: test}, ood_validation: {severities: []}}
data: {source: csv_images, root: d, validation: 0.2, csv: {train: images, test: images}}
""", ["id", *names], [str(key) for key in sorted(test_ids)], epochs=10)  # fmt: skip
    truth = labels[594:][np.argsort(test_ids)]
    assert log_loss(truth, answers, labels=range(99)) < 4.2  # of equal shares: 4.6


def test_plant_pathology_2020(comp: Comp) -> None:
    """One-hot columns, a shared folder, a table of test ids, the mean of the columns' AUC."""
    columns = ["healthy", "multiple_diseases", "rust", "scab"]
    digits = {0: 0, 1: 8, 2: 6, 3: 9}
    train, test = np.arange(240) % 4, np.random.default_rng(8).permutation(80) % 4
    save([f"d/images/Train_{n}.jpg" for n in range(240)], scans([[digits[c]] for c in train], test=False))
    save([f"d/images/Test_{n}.jpg" for n in range(80)], scans([[digits[c]] for c in test], test=True))
    table(
        "d/train.csv", ["image_id", *columns], [[f"Train_{n}", *(np.arange(4) == c) * 1] for n, c in enumerate(train)]
    )
    table("d/test.csv", ["image_id"], [[f"Test_{n}"] for n in range(80)])
    table("d/sample_submission.csv", ["image_id", *columns], [[f"Test_{n}", *[0.25] * 4] for n in range(80)])
    answers = submitted(comp, """
competition: {name: plants, metric: roc_auc, suite: {source: test}, ood_validation: {severities: []}}
data: {source: csv_images, root: d, validation: 0.2, csv: {train: images, test: images}}
""", ["image_id", *columns], [f"Test_{n}" for n in range(80)])  # fmt: skip
    assert np.mean([roc_auc_score(test == c, answers[:, c]) for c in range(4)]) > 0.95


def test_ranzcr_clip(comp: Comp) -> None:
    """Several labels per image, patients that stay together, a column that is not a label, other files."""
    columns = ["ETT - Abnormal", "ETT - Normal", "CVC - Borderline", "NGT - Normal", "Swan Ganz Catheter Present"]
    draw = np.random.default_rng(9)

    def written(folder: str, count: int, *, test: bool) -> np.ndarray:
        tiles = draw.integers(0, 6, (count, 2))  # 5 is not a label
        save([f"d/{folder}/1.2.826.{n}.jpg" for n in range(count)], scans((tiles % 6).tolist(), test=test))
        return np.array([[int(label in row) for label in range(5)] for row in tiles.tolist()])

    train, test = written("train", 400, test=False), written("test", 120, test=True)
    rows = [[f"1.2.826.{n}", *row, f"patient{n // 4}"] for n, row in enumerate(train.tolist())]
    table("d/train.csv", ["StudyInstanceUID", *columns, "PatientID"], rows)
    table("d/train_annotations.csv", ["StudyInstanceUID", "label", "data"], [["1.2.826.0", "CVC", "[[1, 2]]"]])
    table("d/sample_submission.csv", ["StudyInstanceUID", *columns], [[f"1.2.826.{n}", *[0] * 5] for n in range(120)])
    answers = submitted(comp, """
competition: {name: clip, metric: roc_auc, suite: {source: test}, ood_validation: {severities: []}}
data: {source: csv_images, root: d, validation: 0.2, groups: column, csv: {group_column: PatientID}}
""", ["StudyInstanceUID", *columns], [f"1.2.826.{n}" for n in range(120)], epochs=8)  # fmt: skip
    assert roc_auc_score(test, answers, average="macro") > 0.85


def test_siim_isic_melanoma(comp: Comp) -> None:
    """`jpeg/train`, patients, two further columns that look like labels, 2 % positive."""
    draw = np.random.default_rng(10)
    ill = (np.arange(500) % 50 == 0).astype(int)
    truth = (np.arange(200) % 10 == 0).astype(int)
    other = [0, 2, 3, 4, 5, 6, 8, 9]
    digits = [[7] if flag else [int(draw.choice(other))] for flag in ill]
    save([f"d/jpeg/train/ISIC_{n:07d}.jpg" for n in range(500)], scans(digits, test=False))
    digits = [[7] if flag else [int(draw.choice(other))] for flag in truth]
    save([f"d/jpeg/test/ISIC_{n + 5000:07d}.jpg" for n in range(200)], scans(digits, test=True))
    header = ["image_name", "patient_id", "sex", "age_approx", "anatom_site_general_challenge", "diagnosis",
              "benign_malignant", "target"]  # fmt: skip
    rows = [[f"ISIC_{n:07d}", f"IP_{n // 5}", "male" if n % 2 else "", 45.0, "torso", "melanoma" if flag else "unknown",
             "malignant" if flag else "benign", flag] for n, flag in enumerate(ill)]  # fmt: skip
    table("d/train.csv", header, rows)
    table("d/test.csv", header[:5], [[f"ISIC_{n + 5000:07d}", f"IQ_{n // 5}", "female", 50.0, ""] for n in range(200)])
    table("d/sample_submission.csv", ["image_name", "target"], [[f"ISIC_{n + 5000:07d}", 0] for n in range(200)])
    answers = submitted(comp, """
competition: {name: isic, metric: roc_auc, suite: {source: test}, ood_validation: {severities: []}}
data:
  {source: csv_images, root: d, validation: 0.2, groups: column,
   csv: {train: jpeg/train, test: jpeg/test, group_column: patient_id}}
""", ["image_name", "target"], [f"ISIC_{n + 5000:07d}" for n in range(200)], epochs=10)  # fmt: skip
    assert roc_auc_score(truth, answers[:, 0]) > 0.85


def by_init(comp: Comp, header: Sequence[str], ids: Sequence[str], metric: str) -> list[list[str]]:
    """Train what `comp init` writes and check the submission's header and ids; return its answers, a row per id."""
    for words in (
        ("init", "d", "-o", "c.yaml", "--metric", metric, "--budget", "100s"),
        ("run", "c.yaml", "-o", "s.csv", "--runs", "runs"),
        ("check", "s.csv"),
    ):
        result = comp(*words)
        assert result.code == 0, result.err
    written = list(csv.reader(io.StringIO(Path("s.csv").read_text())))
    assert written[0] == list(header)
    assert [row[0] for row in written[1:]] == list(ids)
    return [row[1:] for row in written[1:]]


only_by_init = pytest.mark.parametrize("workplace", [pytest.param("by init", marks=pytest.mark.slow)], indirect=True)


@only_by_init
def test_names_as_labels_among_other_columns(comp: Comp) -> None:
    """Texts as labels, columns before and behind them, a sample in an order of its own, accuracy."""
    names = np.array(["Acer rubrum", "Tilia cordata", "Ulmus minor"])
    train, truth = np.arange(240) % 3, np.random.default_rng(20).permutation(90) % 3
    save([f"d/photos/p{n:04d}.jpg" for n in range(240)], scans([[2 * c + 1] for c in train], test=False))
    save([f"d/photos/q{n:04d}.jpg" for n in range(90)], scans([[2 * c + 1] for c in truth], test=True))
    draw = np.random.default_rng(21)
    rows = [[draw.integers(1, 40), f"p{n:04d}.jpg", "north" if n % 2 else "south", names[c], n / 7]
            for n, c in enumerate(train)]  # fmt: skip
    table("d/train.csv", ["height_m", "photo", "site", "species", "score"], rows)
    order = draw.permutation(90)
    table("d/sample_submission.csv", ["photo", "species"], [[f"q{n:04d}.jpg", names[0]] for n in order])
    answers = by_init(comp, ["photo", "species"], [f"q{n:04d}.jpg" for n in order], "accuracy")
    assert np.mean(np.array(answers)[:, 0] == names[truth[order]]) > 0.8  # of one name: 0.33


@only_by_init
def test_one_hot_columns_under_log_loss_with_a_permuted_sample(comp: Comp) -> None:
    columns, permuted = ["crazing", "patches", "pitted", "scratches"], ["pitted", "crazing", "scratches", "patches"]
    train, truth = np.arange(240) % 4, np.random.default_rng(22).permutation(80) % 4
    save([f"d/train/steel_{n}.png" for n in range(240)], scans([[2 * c] for c in train], test=False))
    save([f"d/test/steel_{n + 900}.png" for n in range(80)], scans([[2 * c] for c in truth], test=True))
    table("d/train.csv", ["id", *columns], [[f"steel_{n}", *(np.arange(4) == c) * 1] for n, c in enumerate(train)])
    order = np.random.default_rng(23).permutation(80)
    table("d/sample_submission.csv", ["id", *permuted], [[f"steel_{n + 900}", *[0.25] * 4] for n in order])
    answers = np.array(by_init(comp, ["id", *permuted], [f"steel_{n + 900}" for n in order], "log_loss"), float)
    assert np.allclose(answers.sum(1), 1, atol=1e-4)
    assert log_loss(truth[order], answers[:, [permuted.index(name) for name in columns]]) < 0.7  # equal shares: 1.39


@only_by_init
def test_class_folders_with_a_nested_unlabelled_test(comp: Comp) -> None:
    """As packed on another machine: `train/train/<class>`, `test/test/*`, and no table at all."""
    names = ["ant", "bee", "wasp"]
    truth = np.random.default_rng(24).permutation(75) % 3
    for index, name in enumerate(names):
        save([f"d/train/train/{name}/{name}_{n}.png" for n in range(80)], scans([[index + 5]] * 80, test=False))
    ids = [f"unknown_{n:03d}" for n in range(75)]
    save([f"d/test/test/{name}.png" for name in ids], scans([[c + 5] for c in truth], test=True))
    answers = by_init(comp, ["id", "label"], ids, "accuracy")
    assert np.mean(np.array(answers)[:, 0] == np.array(names)[truth]) > 0.8


@only_by_init
def test_patients_with_several_images(comp: Comp) -> None:
    """Patients stay in one fold, and each image has a row."""
    patients, ill = np.arange(300) // 5, np.arange(300) // 5 % 3 == 0
    truth = np.arange(100) // 5 % 3 == 0
    save([f"d/train/scan_{n}.png" for n in range(300)], scans([[7 if flag else 3] for flag in ill], test=False))
    save([f"d/test/scan_{n + 500}.png" for n in range(100)], scans([[7 if flag else 3] for flag in truth], test=True))
    rows = [[f"scan_{n}", f"patient_{p}", int(flag)] for n, (p, flag) in enumerate(zip(patients, ill, strict=True))]
    table("d/train.csv", ["image_id", "PatientID", "cancer"], rows)
    table("d/test.csv", ["image_id", "PatientID"], [[f"scan_{n + 500}", f"patient_{n // 5 + 80}"] for n in range(100)])
    ids = [f"scan_{n + 500}" for n in range(100)]
    table("d/sample_submission.csv", ["image_id", "cancer"], [[key, 0.5] for key in ids])
    answers = by_init(comp, ["image_id", "cancer"], ids, "roc_auc")
    assert roc_auc_score(truth, np.array(answers, float)[:, 0]) > 0.95
    (split,) = Path("runs").glob("*/*/split.npz")
    patient_of = {row[0]: row[1] for row in rows}
    with np.load(split) as arrays:
        train, val = ({patient_of[Path(key).stem] for key in arrays[name].tolist()} for name in ("train", "val"))
    assert train
    assert val
    assert not train & val


@only_by_init
def test_patients_with_one_row_each(comp: Comp) -> None:
    """Scans of a patient, in no order, and a sample that lists patients: the config averages each one's scans."""
    draw = np.random.default_rng(25)
    shares = {name: draw.integers(1, 7, count) for name, count in (("train", 80), ("test", 30))}
    patients = {name: np.repeat(np.arange(len(counts)), counts) for name, counts in shares.items()}
    ill = {name: draw.permutation(np.arange(len(counts)) % 3 == 0) for name, counts in shares.items()}
    rows: dict[str, list[list[object]]] = {}
    for name, first in (("train", 0), ("test", 1000)):
        digits = [[7] if ill[name][patient] else [3] for patient in patients[name]]
        ids = [f"scan_{first + n}" for n in draw.permutation(len(digits))]
        save([f"d/{name}/{key}.png" for key in ids], scans(digits, test=name == "test"))
        rows[name] = [[key, f"{name}_{p}", int(ill[name][p])] for key, p in zip(ids, patients[name], strict=True)]
        draw.shuffle(rows[name])
    table("d/train.csv", ["image_id", "patient_id", "cancer"], rows["train"])
    table("d/test.csv", ["image_id", "patient_id"], [row[:2] for row in rows["test"]])
    order = draw.permutation(30)
    ids = [f"test_{patient}" for patient in order]
    table("d/sample_submission.csv", ["patient_id", "cancer"], [[key, 0.5] for key in ids])
    answers = by_init(comp, ["patient_id", "cancer"], ids, "roc_auc")
    assert roc_auc_score(ill["test"][order], np.array(answers, float)[:, 0]) > 0.95
