"""Bad input gets one clear message and exit code 2, and nothing that was there before is lost."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from comp.results import runs
from tests.support.commands import Result, assert_refused
from tests.support.configs import small_config, write_arrays, write_config

Comp = Callable[..., Result]


def save_pickle(path: Path) -> None:
    """Write a .npy that would run code if it were unpickled."""
    np.save(path, np.array([print], object), allow_pickle=True)


def truncate(path: Path) -> None:
    """Cut a file in half."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def images(shape: tuple[int, ...], dtype: type = np.uint8) -> Callable[[Path], None]:
    """Return a writer of an array of this shape and type."""
    return lambda path: np.save(path, np.zeros(shape, dtype))


def labels(*values: float) -> Callable[[Path], None]:
    """Return a writer of 160 labels that begin with these."""
    return lambda path: np.save(path, np.array([*values, *[0, 1, 2, 3] * 40][:160]))


BAD_FILES: dict[str, tuple[str, Callable[[Path], object], tuple[str, ...]]] = {
    "missing": ("train_images.npy", Path.unlink, ("train_images.npy: no such file",)),
    "truncated": ("train_images.npy", truncate, ("train_images.npy: is truncated", "fetch it again")),
    "empty file": ("train_images.npy", lambda p: p.write_bytes(b""), ("train_images.npy: is truncated",)),
    "not npy": ("train_images.npy", lambda p: p.write_text("hello " * 100), ("is not a NumPy .npy file",)),
    "pickled": ("train_images.npy", save_pickle, ("pickled Python objects, which are refused",)),
    "float pixels": (
        "train_images.npy",
        images((160, 32, 32, 3), np.float32),
        ("found float32 in train, uint8 in test",),
    ),
    "channels first": ("train_images.npy", images((160, 3, 32, 32)), ("transpose(0, 2, 3, 1)",)),
    "two dimensions": ("train_images.npy", images((160, 3072)), ("expected images [N, H, W, channels]", "[160, 3072]")),
    "four channels": (
        "train_images.npy",
        images((160, 32, 32, 4)),
        ("expected images (C, H, W) (4, 32, 32) as in training",),
    ),
    "no image": ("train_images.npy", images((0, 32, 32, 3)), ("holds no image",)),
    "fewer labels": ("train_labels.npy", images((150,), np.int64), ("expected 160 labels", "found 150")),
    "labels as floats": (
        "train_labels.npy",
        images((160,), np.float64),
        ("labels are floats without fractions", "astype(int)"),
    ),
    "labels one-hot": (
        "train_labels.npy",
        images((160, 4), np.int64),
        ("test_labels.npy: expected labels as in train_labels.npy, 4 columns",),
    ),
    "negative label": ("train_labels.npy", labels(-1), ("expected labels from 0 up, found -1 at row 0",)),
    "label beyond the classes": ("train_labels.npy", labels(1, 7), ("label 7 at row 1 is out of range",)),
    "test of another size": ("test_images.npy", images((40, 28, 28, 3)), ("expected images (C, H, W) (3, 32, 32)",)),
    "test labels missing": ("test_labels.npy", Path.unlink, ("needs a labelled test split", "suite.source=test")),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_data_file_is_told(workplace: Path, comp: Comp, name: str) -> None:
    file, spoil, parts = BAD_FILES[name]
    if name == "label beyond the classes":
        Path("data/classes.txt").write_text("a\nb\nc\nd\n")
    spoil(Path("data") / file)
    result = comp("run", "small.yaml")
    assert_refused(result, *parts)
    assert not list(Path().glob("submissions/*"))
    assert not list(Path().glob("runs/*/*/metrics.json"))


BAD_SETTINGS = {
    "model": ("model.name=resnet81", ("resnet81", "did you mean")),
    "optimizer": ("optim.name=adamv", ("optim.name: unknown optimizer 'adamv'", "did you mean 'adam'")),
    "policy": ("augment.policy=basc", ("basc", "did you mean 'basic'")),
    "source": ("data.source=cifar11", ("data.source: unknown source 'cifar11'", "did you mean 'cifar10'")),
    "metric": ("competition.metric=acuracy", ("competition.metric: unknown metric", "did you mean 'accuracy'")),
    "device": ("train.device=mps", ("train.device: 'mps' is not on this machine",)),
    "model argument": ("model.args={dpth: 3}", ("dpth", "depth")),
    "too many held out": ("data.validation=1000", ("cannot hold out 1000 of 160 images",)),
    "left out": ("competition.ood_validation.leave_out=[niose]", ("ood_validation.leave_out", "did you mean 'noise'")),
    "all left out": (
        "competition.ood_validation.leave_out=[noise, blur, weather, digital]", ("all corruptions",),
    ),
    "selection never measured": ("train.select=ood_accuracy", ("train.select", "ood_validation.every")),
    "external weights": (
        "competition.rules.external_weights=false", ("model.pretrained", "external_weights=false"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_SETTINGS)
def test_a_bad_setting_is_told_before_work_starts(workplace: Path, comp: Comp, name: str) -> None:
    override, parts = BAD_SETTINGS[name]
    more = ["model.name=resnet18", "model.args={}", "model.pretrained=true"] if name == "external weights" else []
    assert_refused(comp("run", "small.yaml", override, *more), *parts)
    assert not Path("runs").exists()


def distortion_config(folder: Path, count: int = 4) -> None:
    """Rewrite small.yaml so that its suite is a folder of files."""
    values = small_config(folder)
    values["competition"]["suite"] = {
        "source": "distortion_files", "path": "ood", "files": 2, "severities": 2, "images_per_block": count,
    }  # fmt: skip
    values["data"]["download"] = False
    write_config(Path("small.yaml"), values)
    (folder / "ood").mkdir()
    for number in range(2):
        np.save(folder / f"ood/distortion{number:02d}.npy", np.zeros((2 * count, 32, 32, 3), np.uint8))


BAD_SUITES: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "missing": (Path.unlink, ("distortion01.npy: no such file",)),
    "truncated": (truncate, ("distortion01.npy: is truncated",)),
    "pickled": (save_pickle, ("distortion01.npy: holds pickled",)),
    "shape": (images((7, 32, 32, 3)), ("expected images [8, 32, 32, 3], found [7, 32, 32, 3]",)),
    "dtype": (images((8, 32, 32, 3), np.float64), ("expected uint8 pixels", "multiply by 255")),
}


@pytest.mark.parametrize("name", BAD_SUITES)
def test_a_bad_suite_file_is_told_before_training(workplace: Path, comp: Comp, name: str) -> None:
    distortion_config(Path("data"))
    spoil, parts = BAD_SUITES[name]
    spoil(Path("data/ood/distortion01.npy"))
    assert_refused(comp("run", "small.yaml"), *parts)
    assert not Path("runs").exists()


def test_a_suite_of_files_is_predicted_in_its_layout(workplace: Path, comp: Comp) -> None:
    distortion_config(Path("data"))
    assert comp("run", "small.yaml").code == 0
    ids = [line.split(",")[0] for line in Path("submissions/small.csv").read_text().splitlines()[1:]]
    assert ids == [f"distortion{d:02d}_{s}_{i}" for d in range(2) for s in (1, 2) for i in range(4)]


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_missing_data_say_what_where_from_and_how(workplace: Path, comp: Comp, name: str) -> None:
    result = comp("run", "small.yaml", f"data.source={name}", "data.download=false")
    assert_refused(result, f"{name.upper()} is missing", "curl -L", f"tar -xz -C '{workplace / 'data'}'")


def test_a_truncated_cifar_batch_is_told(workplace: Path, comp: Comp) -> None:
    folder = Path("data/cifar-10-batches-bin")
    folder.mkdir()
    (folder / "batches.meta.txt").write_text("a\nb\n")
    for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"):
        (folder / f"{name}.bin").write_bytes(bytes(3073 * 3))
    truncate(folder / "data_batch_3.bin")
    result = comp("run", "small.yaml", "data.source=cifar10")
    assert_refused(result, "data_batch_3.bin: is truncated", "not a multiple of 3073")


def test_a_cifar_pickle_that_would_run_code_is_refused(workplace: Path, comp: Comp) -> None:
    folder = Path("data/cifar-100-python")
    folder.mkdir()
    (folder / "meta").write_bytes(b"cos\nsystem\n(S'touch owned'\ntR.")
    assert_refused(comp("run", "small.yaml", "data.source=cifar100"), "os.system", "not a published CIFAR batch")
    assert not Path("owned").exists()


def test_unicode_and_spaces_in_paths_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, comp: Comp) -> None:
    folder = tmp_path / "mein Wettbewerb – 競技"
    folder.mkdir()
    monkeypatch.chdir(folder)
    config = write_config(folder / "kleiner Läufer.yaml", small_config(write_arrays(folder / "Daten ☃")))
    result = comp("run", config.name, "--runs", "Läufe hier", "-o", "Abgabe № 1.csv", "--json")
    assert result.code == 0, result.err
    assert json.loads(result.out)["submission"] == "Abgabe № 1.csv"
    (run,) = runs.list_runs(Path("Läufe hier"))
    assert comp("run", "--as", run.path, "--runs", "zwei", "-o", "zwei.csv").code == 0


def test_two_writers_on_one_run_are_refused(workplace: Path, comp: Comp) -> None:
    comp("train", "small.yaml")
    (run,) = runs.list_runs(Path("runs"))
    program = (
        f"from comp.results import runs; from pathlib import Path; w = runs.Run(Path({str(run.path)!r})).write_lock()\n"
    )
    program += "w.__enter__(); print('held', flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", program], stdin=-1, stdout=-1, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        assert_refused(comp("evaluate", run.path), "another process is writing this run")
        other.communicate("\n")
    assert comp("evaluate", run.path).code == 0


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere; a full or read-only disk is tested below")
def test_an_unwritable_folder_is_told(workplace: Path, comp: Comp) -> None:
    Path("locked").mkdir(mode=0o555)
    assert_refused(comp("run", "small.yaml", "--runs", "locked"), "locked", "choose a folder you may write")


def test_a_runs_folder_that_is_a_file_is_told(workplace: Path, comp: Comp) -> None:
    Path("file").write_text("mine")
    assert_refused(comp("run", "small.yaml", "--runs", "file"), "file is not a folder", "--runs")
    assert Path("file").read_text() == "mine"


def test_a_submission_folder_that_is_a_file_is_told_before_training(workplace: Path, comp: Comp) -> None:
    Path("submissions").write_text("mine")
    assert_refused(comp("run", "small.yaml"), "submissions is not a folder", "-o")
    assert not Path("runs").exists()
    assert Path("submissions").read_text() == "mine"


@pytest.mark.parametrize("writes", ["bytes(5000)", "lambda file: torch.save(torch.zeros(5000), file)"])
def test_a_full_disk_is_told_and_the_file_before_stays(tmp_path: Path, writes: str) -> None:
    program = (
        "import resource, sys, torch; from pathlib import Path; from comp.results import files\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)); import signal\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"try: files.write_atomically(Path('kept.bin'), {writes})\n"
        "except files.RunError as error: print(error); sys.exit(2)"
    )
    (tmp_path / "kept.bin").write_bytes(b"before")
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "kept.bin: cannot be written" in done.stdout
    assert (tmp_path / "kept.bin").read_bytes() == b"before"
    assert os.listdir(tmp_path) == ["kept.bin"]


@pytest.fixture
def trained(workplace: Path, comp: Comp) -> runs.Run:
    """A complete run."""
    assert comp("run", "small.yaml").code == 0
    (run,) = runs.list_runs(Path("runs"))
    return run


def flip_byte(path: Path) -> None:
    """Change a byte in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[8] ^= 0xFF
    path.write_bytes(content)


BAD_RUN_FILES: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "weights truncated": ("best.safetensors", truncate, "best.safetensors"),
    "weights hostile header": ("best.safetensors", flip_byte, "best.safetensors"),
    "metrics not JSON": ("metrics.json", truncate, "metrics.json: damaged"),
    "execution altered": ("execution.json", lambda p: p.write_text("{}"), "not a record of an execution"),
    "config altered": ("config.yaml", lambda p: p.write_text("sed: 1"), "unknown key 'sed'"),
    "provenance missing": ("provenance.json", Path.unlink, "not a run folder"),
}


@pytest.mark.parametrize("name", BAD_RUN_FILES)
def test_a_damaged_run_is_told(trained: runs.Run, comp: Comp, name: str) -> None:
    file, spoil, message = BAD_RUN_FILES[name]
    spoil(trained.path / file)
    before = Path("submissions/small.csv").read_bytes()
    assert_refused(comp("predict", trained.path), message)
    assert Path("submissions/small.csv").read_bytes() == before
    assert not Path("submissions/small-2.csv").exists()


def test_a_damaged_checkpoint_is_told(workplace: Path, comp: Comp) -> None:
    assert comp("train", "small.yaml", "train.keep_state=true").code == 0
    (run,) = runs.list_runs(Path("runs"))
    (run.path / "metrics.json").unlink()
    truncate(run.path / "state.pt")
    assert_refused(comp("train", "--resume", run.path), "state.pt: damaged")


def test_changed_data_are_refused(trained: runs.Run, comp: Comp) -> None:
    changed = np.load("data/train_images.npy")
    changed[0, 0, 0, 0] ^= 1
    np.save("data/train_images.npy", changed)
    assert_refused(comp("predict", trained.path), "training images or labels have changed")


def test_another_class_order_is_refused(trained: runs.Run, comp: Comp) -> None:
    Path("data/classes.txt").write_text("3\n2\n1\n0\n")
    assert_refused(comp("predict", trained.path), "another order of them")


def test_an_existing_submission_is_kept(trained: runs.Run, comp: Comp) -> None:
    before = Path("submissions/small.csv").read_bytes()
    Path("submissions/small.csv").write_bytes(before + b"x")
    assert_refused(comp("predict", trained.path, "-o", "submissions/small.csv"), "already exists", "--force")
    assert Path("submissions/small.csv").read_bytes() == before + b"x"
    assert comp("predict", trained.path, "-o", "submissions/small.csv", "--force").code == 0
    assert Path("submissions/small.csv").read_bytes() == before


def test_a_run_name_off_by_a_letter_names_the_nearest(trained: runs.Run, comp: Comp) -> None:
    result = comp("predict", str(trained.path)[:-1])
    assert_refused(result, "no such run", f"did you mean '{trained.path.name}'")


def test_several_runs_cannot_share_one_output(trained: runs.Run, comp: Comp) -> None:
    assert_refused(comp("predict", trained.path, trained.path, "-o", "a.csv"), "-o names one file")


def test_nothing_to_train_is_told(workplace: Path, comp: Comp) -> None:
    assert_refused(comp("run"), "expected one of CONFIG, --resume, --as")
    assert_refused(comp("train", "small.yaml", "--resume", "x"), "expected one of CONFIG, --resume")


def test_a_run_that_stopped_before_it_was_scored_cannot_predict(workplace: Path, comp: Comp) -> None:
    comp("train", "small.yaml")
    (run,) = runs.list_runs(Path("runs"))
    (run.path / "metrics.json").unlink()
    assert_refused(comp("predict", run.path), "not a complete run", "comp run --resume")


def test_a_loss_that_is_not_finite_stops_with_advice(workplace: Path, comp: Comp) -> None:
    result = comp("train", "small.yaml", "optim.name=sgd", "optim.lr=1e30", "train.epochs=4")
    assert_refused(result, "the loss is not finite at step", "optim.lr=")


def test_a_state_that_is_not_finite_never_takes_a_checkpoints_place(workplace: Path, comp: Comp) -> None:
    """Written at every step, the checkpoint must still be one from before the numbers were lost."""
    lost = ["optim.name=sgd", "optim.lr=1e30", "train.epochs=4", "train.checkpoint_seconds=0"]
    assert_refused(comp("train", "small.yaml", *lost), "not finite at step")
    (run,) = runs.list_runs(Path("runs"))
    state = torch.load(run.path / "state.pt", weights_only=True)
    assert all(tensor.isfinite().all() for tensor in state["model"].values())
    assert np.isfinite(state["cursor"]["loss_sum"])
