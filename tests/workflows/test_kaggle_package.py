"""`comp export --kaggle`: what a package holds, what its notebook predicts, and what is refused."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import venv
import zipfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import nbformat
import pytest

import comp as api
from comp import config as configs
from comp.cli import app
from comp.inference.inputs import PredictInput
from comp.results import files, prediction_files
from comp.results.runs import Run
from comp.runtime.errors import UserError
from comp.submission import write
from comp.submission.check_package import read_package
from comp.workflows import hidden_test, kaggle_verify, kaggle_wheels
from comp.workflows.hidden_test import Manifest
from comp.workflows.load import load_for_input, load_run
from comp.workflows.predict import predict_split
from comp.workflows.train import train
from tests.support.commands import assert_refused
from tests.support.configs import write_config
from tests.support.photographs import COLOURS, photograph, photographs_config, write_kaggle
from tests.support.plugins import forget
from tests.support.runs import Comp, the_run

NAMES = ("--competition", "insects", "--owner", "somebody")


def rows_of(path: Path) -> dict[str, str]:
    with path.open(newline="") as file:
        reader = csv.reader(file)
        assert next(reader) == ["image_id", "label"]
        return dict(reader)


def image_list(folder: Path, without: Sequence[str] = ()) -> Path:
    """Write the list of an image that has what is installed here, without some packages."""
    names = {one.metadata["Name"].lower(): one.version for one in metadata.distributions()}
    lines = [f"{name}=={version}" for name, version in names.items() if name not in without]
    path = folder / "image.txt"
    path.write_text("\n".join(["# python 3.11", *lines]) + "\n")
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a competition in `data`, two runs and an ensemble of ensembles in `runs`, and `image.txt`."""
    folder = tmp_path_factory.mktemp("trained")
    write_kaggle(folder / "data", train=24)
    path = write_config(folder / "small.yaml", photographs_config(folder / "data", "csv_images"))
    runs = []
    for seed in (0, 1):
        runs.append(
            train(configs.load(path, ["train.epochs=1", f"seed={seed}"]), name="one", runs_root=folder / "runs")
        )
        predict_split(load_run(runs[-1]), "suite")
    inner = api.ensemble(runs, runs=folder / "inner")
    api.ensemble([inner, runs[0]], method="geometric", runs=folder / "runs")  # the first run is in both
    image_list(folder)
    return folder


@pytest.fixture(scope="module")
def packed(trained: Path) -> dict[str, Path]:
    """The packages' datasets of a run, whose data have moved, and of the ensemble."""
    shutil.copytree(trained / "data", trained / "moved")
    words = {"run": [f"data.root={trained / 'moved'}", "--title", "Insects, first"], "ensemble": []}
    for kind, run in (("run", member(trained)), ("ensemble", ensemble(trained))):
        image = ("--image-packages", str(trained / "image.txt"))
        with pytest.raises(SystemExit, match="0"):
            app.main(["export", str(run.path), "--kaggle", str(trained / kind), *NAMES, *image, *words[kind]])
    return {kind: trained / kind / "dataset" for kind in words}


def member(folder: Path) -> Run:
    return Run(sorted((folder / "runs/small").glob("*-one"))[0])


def ensemble(folder: Path) -> Run:
    (path,) = (folder / "runs/small").glob("*-ensemble")
    return Run(path)


def hidden(folder: Path, names: Sequence[str], sample: Sequence[str] | None) -> Path:
    """Write a competition's folder without training data: these images, and a sample of these ids."""
    (folder / "hidden/test").mkdir(parents=True)
    for number, name in enumerate(names):
        photograph(number, list(COLOURS.values())[number % 3]).save(folder / "hidden/test" / name)
    if sample is not None:
        lines = ["image_id,label", *(f"{key},ant" for key in sample)]
        (folder / "hidden/sample_submission.csv").write_text("\n".join(lines) + "\n")
    return folder / "hidden"


def test_a_package_holds_what_a_notebook_needs(packed: dict[str, Path], trained: Path, comp: Comp) -> None:
    run, folder = member(trained), packed["run"].parent
    record = files.read_json(folder / "package.json")
    assert (record["verified"], record["rows"], record["dataset"]) == (False, 9, "somebody/insects-first")
    inner = f"runs/small/{run.path.name}"
    assert record["weights_sha256"] == {inner: files.sha256_file(folder / "dataset" / inner / "best.safetensors")}
    dataset = files.read_json(folder / "dataset/dataset-metadata.json")
    assert dataset["id"] == "somebody/insects-first"
    assert len(dataset["licenses"]) == 1
    kernel = files.read_json(folder / "kernel/kernel-metadata.json")
    assert kernel["enable_internet"] is False
    assert kernel["is_private"] is True
    assert kernel["dataset_sources"] == [dataset["id"]]
    assert kernel["competition_sources"] == ["insects"]
    nbformat.validate(nbformat.read(folder / "kernel" / kernel["code_file"], 4))
    (wheel,) = (folder / "dataset/wheels").iterdir()
    assert {"comp/api/__init__.py", "comp_configs/quickstart.yaml"} <= set(zipfile.ZipFile(wheel).namelist())
    assert not (folder / "dataset" / inner / "final.safetensors").exists()
    assert not list(folder.parent.glob(".*"))
    assert_refused(comp("export", run.path, "--kaggle", folder, *NAMES), str(folder), "exists already")


def test_python_packs_what_the_command_packs(packed: dict[str, Path], trained: Path, tmp_path: Path) -> None:
    folder, image = tmp_path / "package", trained / "image.txt"
    names = {"competition": "insects", "owner": "somebody", "image_packages": image}
    record = api.export_kaggle(member(trained).path, folder, **names, title="Insects, first")
    assert record == files.read_json(folder / "package.json")
    assert record.keys() == files.read_json(packed["run"].parent / "package.json").keys()
    with pytest.raises(UserError, match="expected a time such as 90s"):
        api.export_kaggle(member(trained), tmp_path / "other", **names, limit="soon")
    with pytest.raises(UserError, match="exists"):
        api.export_kaggle(member(trained), folder, **names)


def test_a_package_has_what_submitting_it_needs(packed: dict[str, Path], trained: Path) -> None:
    package = read_package(packed["run"].parent)
    assert (package.kernel, package.competition) == ("somebody/insects-first", "insects")
    assert Path(package.run_path) == member(trained).path


@pytest.mark.parametrize("kind", ["run", "ensemble"])
def test_the_notebook_predicts_the_local_test_as_comp_does(
    packed: dict[str, Path], kind: str, trained: Path, tmp_path: Path
) -> None:
    result = api.predict_package(packed[kind], trained / "data", output=tmp_path / "submission.csv")
    run = member(trained) if kind == "run" else ensemble(trained)
    stored = prediction_files.load(run.path / "predictions/suite.npz")
    form = load_run(member(trained)).competition
    expected = write.to_csv(stored, write.derive_format(form).format)
    assert (tmp_path / "submission.csv").read_bytes() == expected
    assert (result.rows, result.notes) == (9, ())


@pytest.mark.parametrize("kind", ["run", "ensemble"])
def test_rows_are_those_of_the_hidden_sample(packed: dict[str, Path], kind: str, tmp_path: Path) -> None:
    data = hidden(tmp_path, [f"{n}.jpg" for n in range(12)], [str(n) for n in reversed(range(12))])
    result = api.predict_package(packed[kind], data, output=tmp_path / "submission.csv")
    assert list(rows_of(result.path)) == [str(n) for n in reversed(range(12))]
    assert any("12 rows, and 9 in the local test" in note for note in result.notes)


@pytest.mark.parametrize("listed", [9, 20, None])
def test_a_stale_sample_gives_way_to_the_images(packed: dict[str, Path], listed: int | None, tmp_path: Path) -> None:
    sample = None if listed is None else [f"{n:03d}" for n in range(listed)]
    data = hidden(tmp_path, [f"{n:03d}.jpg" for n in range(12)], sample)
    result = api.predict_package(packed["run"], data, output=tmp_path / "submission.csv")
    rows = rows_of(result.path)
    assert list(rows) == [f"{n:03d}" for n in range(12)]
    assert set(rows.values()) <= set(COLOURS)
    reason = "no sample submission" if listed is None else "stale sample"
    assert any(reason in note and "the rows are those of the images" in note for note in result.notes)


@pytest.mark.parametrize("sample", ["", "image_id,label\n", "image_id,label\n0,ant\n0,ant\n"])
def test_a_sample_that_cannot_be_read_gives_way_too(packed: dict[str, Path], sample: str, tmp_path: Path) -> None:
    data = hidden(tmp_path, ["a.jpg", "b.jpg"], None)
    (data / "sample_submission.csv").write_text(sample)
    result = api.predict_package(packed["run"], data, output=tmp_path / "submission.csv")
    assert list(rows_of(result.path)) == ["a", "b"]
    assert "stale sample" in result.notes[0]


@pytest.mark.parametrize("kind", ["run", "ensemble"])
@pytest.mark.parametrize("listed", [3, 9])
def test_a_damaged_image_costs_no_submission(packed: dict[str, Path], kind: str, listed: int, tmp_path: Path) -> None:
    data = hidden(tmp_path, [f"{n}.jpg" for n in range(3)], [str(n) for n in range(listed)])
    (data / "test/1.jpg").write_bytes(b"damaged")
    result = api.predict_package(packed[kind], data, output=tmp_path / "submission.csv")
    assert list(rows_of(result.path)) == ["0", "1", "2"]
    assert any("1 unreadable file is given a default answer" in note for note in result.notes)


def test_images_are_named_as_the_local_sample_names_them(
    packed: dict[str, Path], trained: Path, tmp_path: Path
) -> None:
    root = shutil.copytree(trained / "data", tmp_path / "data")
    sample = (root / "sample_submission.csv").read_text().splitlines()
    renamed = [sample[0], *(f"test/{line.replace(',', '.jpg,')}" for line in sample[1:])]
    (root / "sample_submission.csv").write_text("\n".join(renamed) + "\n")
    dataset = shutil.copytree(packed["run"], tmp_path / "dataset")
    loaded = load_for_input(Run(member(trained).path, (f"data.root={root}",)), PredictInput())
    manifest = hidden_test.describe_test(loaded, Manifest.read(dataset).run)
    (dataset / "manifest.json").write_text(manifest.model_dump_json())
    data = hidden(tmp_path, ["a.jpg", "b.jpg"], ["test/x.jpg"])
    result = api.predict_package(dataset, data, output=tmp_path / "submission.csv")
    assert list(rows_of(result.path)) == ["test/a.jpg", "test/b.jpg"]


def test_a_hidden_test_of_another_kind_is_refused(packed: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no such folder"):
        api.predict_package(packed["run"], tmp_path / "empty", output=tmp_path / "submission.csv")
    damaged = shutil.copytree(packed["run"], tmp_path / "damaged")
    (damaged / "manifest.json").write_text('{"run": "runs"}')
    with pytest.raises(UserError, match=r"manifest.json: damaged \(Field required\)"):
        api.predict_package(damaged, tmp_path, output=tmp_path / "submission.csv")
    assert not (tmp_path / "submission.csv").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--competition", "https://x/insects"), "--competition https://x/insects: expected the name"),
        (("--owner", "some body"), "--owner some body: expected your Kaggle user name"),
        (("--title", "a"), "--title a: expected 6 to 50 characters"),
        (("--title", "Käfer, first try"), "--title Käfer, first try: expected 6 to 50 characters of ASCII"),
        (("--rows", "9"), "--rows: is what --verify extrapolates to"),
        (("--limit", "soon"), "--limit: expected a time such as"),
        (("--image-packages", "image.txt"), "the image has torch 2.1.0"),
        (("--image-packages", "old.txt"), "old.txt: the image has Python 3.8, and comp needs >=3.11"),
        (("--image-packages", "other.txt", "--verify"), "the image has Python 3.99"),
        (("--image-packages", "bad.txt"), "bad.txt: line 2: expected name==version"),
    ],
)
def test_bad_words_are_refused_before_work(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, comp: Comp, words: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("image.txt").write_text("torch==2.1.0\ntorchvision==0.16.0\n")
    Path("old.txt").write_text("# python 3.8\ntorch==9.0\ntorchvision==9.0\n")
    Path("other.txt").write_text("# python 3.99\ntorch==9.0\ntorchvision==9.0\n")
    Path("bad.txt").write_text("torch==9.0\nPackage Version\n")
    result = comp("export", member(trained).path, "--kaggle", "package", *NAMES, *words)
    assert_refused(result, message)
    assert not list(tmp_path.glob("*package*"))


def test_runs_that_cannot_be_packed_say_why(trained: Path, comp: Comp, tmp_path: Path) -> None:
    words = ("--kaggle", tmp_path / "package", *NAMES)
    copy = shutil.copytree(member(trained).path, tmp_path / "runs/small/copy")
    config = (copy / "config.yaml").read_text()
    for old, new, message in (
        ("source: test", "source: none", "competition.suite.source is none"),
        ("source: csv_images", "source: arrays", "data.source is arrays"),
        ("    test: test\n", "    test: /mine\n", "data.csv.test: /mine lies outside"),
    ):
        assert old in config
        (copy / "config.yaml").write_text(config.replace(old, new))
        assert_refused(comp("export", copy, *words), message)
    (copy / "metrics.json").unlink()
    assert_refused(comp("export", copy, *words), "not a complete run")
    moved = shutil.copytree(ensemble(trained).path, tmp_path / "elsewhere/ensemble")
    provenance = files.read_json(moved / "provenance.json")
    provenance["members"] = [{"run": "small/gone", "run_path": "gone"}]
    files.write_atomically(moved / "provenance.json", files.to_json(provenance))
    assert_refused(comp("export", moved, *words), "was made from gone", "it cannot be packed")
    assert not (tmp_path / "package").exists()


def test_wheels_are_packed_only_for_what_the_image_lacks(tmp_path: Path) -> None:
    full = kaggle_wheels.read_image(image_list(tmp_path))
    assert kaggle_wheels.missing_packages(full) == {}
    lacking = kaggle_wheels.read_image(image_list(tmp_path, without=("timm", "optuna")))
    assert kaggle_wheels.missing_packages(lacking) == {"timm": metadata.version("timm")}  # tuning is not predicting
    path = image_list(tmp_path, without=("pydantic",))
    path.write_text(path.read_text() + "pydantic==1.10.2\nscipy @ file:///somewhere/scipy.whl\n-e git+x#egg=y\n")
    assert kaggle_wheels.missing_packages(kaggle_wheels.read_image(path))["pydantic"] == metadata.version("pydantic")
    assumed = kaggle_wheels.read_image(None)
    assert assumed.note
    missing = kaggle_wheels.missing_packages(assumed)
    assert "timm" in missing
    assert not {"torch", "numpy", "sympy", "optuna"} & set(missing)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["run", "ensemble"])
def test_verify_runs_the_notebook_without_network(trained: Path, tmp_path: Path, comp: Comp, kind: str) -> None:
    run, folder = member(trained) if kind == "run" else ensemble(trained), tmp_path / "package"
    image = image_list(tmp_path, without=("timm",))
    words = ("--image-packages", image, "--verify", "--rows", 9_000)
    result = comp("export", run.path, "--kaggle", folder, *NAMES, *words, "--json")
    assert result.code == 0, result.err
    record = json.loads(result.out)
    measured = record["verification"]
    assert record["verified"] is True
    assert any(name.startswith("timm-") for name in record["wheels"])
    assert measured["rows"] == 9
    assert measured["hidden_seconds"] > measured["seconds"] > measured["predict_seconds"] > 0
    assert measured["peak_bytes"] > 1e8
    late = ("--kaggle", tmp_path / "late", *NAMES, *words[:-1])
    again = comp("export", run.path, *late, 10**9)
    assert_refused(again, "1,000,000,000 rows would take", "--limit")
    assert (tmp_path / "late/package.json").is_file()


def test_a_folder_for_temporary_files_that_takes_none_is_told(
    packed: dict[str, Path], trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    image = kaggle_wheels.read_image(trained / "image.txt")
    with pytest.raises(UserError, match=r"unverified: in .*gone: .* set TMPDIR to another folder"):
        kaggle_verify.verify(packed["run"].parent, member(trained), image, limit_seconds=600)


@pytest.mark.slow
def test_an_interrupted_verification_leaves_its_name_to_the_same_command(trained: Path, tmp_path: Path) -> None:
    words = (str(member(trained).path), "--kaggle", "package", *NAMES, "--image-packages", str(trained / "image.txt"))
    process = subprocess.Popen([sys.executable, "-m", "comp", "export", *words, "--verify"], cwd=tmp_path)
    while not (tmp_path / "package").exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_notebook_that_fails_leaves_an_unverified_package(packed: dict[str, Path], trained: Path) -> None:
    run, image, folder = member(trained), kaggle_wheels.read_image(trained / "image.txt"), packed["run"].parent
    with pytest.raises(UserError, match="unverified: the notebook still runs after 1 s"):
        kaggle_verify.verify(folder, run, image, limit_seconds=1)
    (weights,) = packed["run"].rglob("best.safetensors")
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(UserError, match=r"unverified: the notebook failed:[^$]*expected sha256"):
        kaggle_verify.verify(folder, run, image, limit_seconds=600)
    assert files.read_json(folder / "package.json")["verified"] is False
    weights.write_bytes(content)


@pytest.mark.slow
def test_plugins_travel_along_with_consent(trained: Path, tmp_path: Path, comp: Comp) -> None:
    (tmp_path / "tiny.py").write_text(
        "from torch import nn\n"
        "from comp.models.coursework.layout import Network\n"
        "def tiny(image_shape, classes):\n"
        "    body = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten())\n"
        "    return Network(body, nn.Identity(), nn.Linear(image_shape[0] * 16, classes))\n"
        "NETWORKS = {'tiny': tiny}\n"
    )
    values = {**photographs_config(trained / "data", "csv_images"), "plugins": ["tiny.py"], "model": {"name": "tiny"}}
    config = write_config(tmp_path / "tiny.yaml", values)
    assert comp("train", config, "train.epochs=1", "--runs", tmp_path / "runs").code == 0
    forget()  # what the config consents to in this process
    run = the_run(tmp_path / "runs")
    words = ("export", run.path, "--kaggle", tmp_path / "package", *NAMES, "--image-packages", trained / "image.txt")
    assert_refused(comp(*words), "--allow-plugins")
    assert not (tmp_path / "package").exists()
    result = comp(*words, "--allow-plugins", "--verify")
    assert result.code == 0, result.err
    forget()
    with pytest.raises(UserError, match=r"tiny\.py"):
        api.predict_package(tmp_path / "package/dataset", trained / "data", output=tmp_path / "submission.csv")


@pytest.mark.slow
@pytest.mark.parametrize("own_network", [True, False])
def test_a_verified_notebook_reaches_the_loopback_alone(
    packed: dict[str, Path], trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_network: bool
) -> None:
    if not own_network:
        monkeypatch.setenv("PATH", str(tmp_path))  # no `unshare` there
    folder = Path(shutil.copytree(packed["run"].parent, tmp_path / "package"))
    notebook = files.read_json(folder / "kernel/submission.ipynb")
    notebook["cells"][1]["source"] = (
        "import socket\n"
        "server = socket.create_server(('127.0.0.1', 0))\n"
        "socket.create_connection(server.getsockname()).close()\n"
        "try:\n"
        "    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'', ('192.0.2.1', 9))\n"
        "    raise ValueError('a datagram has left')\n"
        "except OSError: pass\n"
        "socket.create_connection(('192.0.2.1', 80), timeout=5)"
    )
    files.write_atomically(folder / "kernel/submission.ipynb", files.to_json(notebook))
    with pytest.raises(UserError, match=r"no network in a code competition: 192.0.2.1") as refused:
        kaggle_verify.verify(
            folder, member(trained), kaggle_wheels.read_image(trained / "image.txt"), limit_seconds=600
        )
    assert "\x1b" not in str(refused.value)


@pytest.mark.slow
def test_an_installed_comp_is_packed_as_the_wheel_that_it_came_from(tmp_path: Path) -> None:
    built = kaggle_wheels.write_own_wheel(tmp_path)
    venv.create(tmp_path / "environment", with_pip=True, symlinks=True)
    python = tmp_path / "environment/bin/python"
    (site_packages,) = python.parents[1].glob("lib/python3*/site-packages")
    subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", "--no-index", built], check=True)
    lent = Path(metadata.distribution("numpy").locate_file("")).resolve()  # type: ignore[arg-type]
    (site_packages / "lent.pth").write_text(str(lent))
    program = "import pathlib; from comp.workflows import kaggle_wheels as k; k.write_own_wheel(pathlib.Path('again'))"
    (tmp_path / "again").mkdir()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([python, "-c", program], cwd=tmp_path, env=environment, check=True)
    (again,) = (tmp_path / "again").iterdir()
    assert again.name == built.name
    with zipfile.ZipFile(built) as one, zipfile.ZipFile(again) as other:
        assert sorted(one.namelist()) == sorted(other.namelist())
        names = [name for name in one.namelist() if not name.endswith("RECORD")]
        assert all(one.read(name) == other.read(name) for name in names)
    subprocess.run([python, "-m", "pip", "install", "-q", "--force-reinstall", "--no-deps", again], check=True)
